#include "io/partial_file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "io/error_text.h"

namespace dg {

Result<PartialFile> PartialFile::create(const std::string& path) {
  std::string partial = path + ".partial";
  int fd = ::open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return system_error(partial, "cannot be written", errno);
  return PartialFile(path, std::move(partial), fd);
}

PartialFile::PartialFile(PartialFile&& other) noexcept
    : path_(std::move(other.path_)), partial_(std::move(other.partial_)), fd_(std::exchange(other.fd_, -1)) {}

PartialFile::~PartialFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(partial_.c_str());
}

Result<void> PartialFile::write(std::span<const std::byte> data) {
  constexpr size_t kMaxWrite = size_t{1} << 30;
  while (!data.empty()) {
    ssize_t n = ::write(fd_, data.data(), std::min(data.size(), kMaxWrite));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return system_error(partial_, fmt::format("write failed with {} bytes left", data.size()), errno);
    data = data.subspan(static_cast<size_t>(n));
  }
  return {};
}

Result<void> PartialFile::commit() {
  // Without fsync a power cut could leave the new name on an empty file.
  if (::fsync(fd_) != 0) return system_error(partial_, "cannot be written to the disk", errno);
  if (::rename(partial_.c_str(), path_.c_str()) != 0) return system_error(path_, "cannot be put in place", errno);
  ::close(std::exchange(fd_, -1));
  return {};
}

}  // namespace dg
