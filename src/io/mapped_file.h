// A regular file opened once for reading, mapped and also readable with pread.
//
// A mapping is only as good as the file: when another process truncates the file, touching a page behind the new end
// raises SIGBUS, which no handler of ours turns into an error. So `bytes()` is for zero-copy users that accept this
// (and for files nobody writes), while loading goes through `read_into`, which answers with an error instead.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/result.h"

namespace dg {

// Read-only mapping of a regular file; movable, unmaps on destruction. Const calls are safe from any thread.
class MappedFile {
 public:
  // Refuses directories, FIFOs, sockets and devices (without blocking on them), symlink loops and unreadable files, each
  // with one line that names the path. An empty file is fine: its `bytes()` is empty.
  static Result<MappedFile> open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(address_), size_}; }
  uint64_t size() const { return size_; }  // when it was opened
  const std::string& path() const { return path_; }

  // Copies the bytes [offset, offset + out.size()) of the file. An error names the file, the bytes and what was found:
  // outside the file, the file shrank since it was opened, or the device failed.
  Result<void> read_into(uint64_t offset, std::span<std::byte> out) const;

  // Hints to the kernel about a byte range, clamped to the file; they never fail.
  void will_need(uint64_t offset, uint64_t size) const;  // start reading ahead, in order
  void drop(uint64_t offset, uint64_t size) const;       // unmaps whole pages inside the range; they can be read again

 private:
  MappedFile() = default;
  void close();

  std::string path_;
  int fd_ = -1;
  void* address_ = nullptr;  // null when the file is empty
  size_t size_ = 0;
};

}  // namespace dg
