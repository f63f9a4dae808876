// A file under construction beside its final place: it appears under its name only when it is complete.
#pragma once
#include <cstddef>
#include <span>
#include <string>

#include "base/result.h"

namespace dg {

// Writes path + ".partial"; removed again unless committed. Errors name the file and the system's reason.
class PartialFile {
 public:
  static Result<PartialFile> create(const std::string& path);
  PartialFile(PartialFile&& other) noexcept;
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;
  ~PartialFile();

  Result<void> write(std::span<const std::byte> data);
  Result<void> commit();  // flushes to the disk and gives the file its name
  const std::string& path() const { return path_; }

 private:
  PartialFile(std::string path, std::string partial, int fd) : path_(std::move(path)), partial_(std::move(partial)), fd_(fd) {}
  std::string path_, partial_;
  int fd_;
};

}  // namespace dg
