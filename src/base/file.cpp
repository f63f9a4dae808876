#include "base/file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace dg {
namespace {
struct Fd {
  int fd;
  ~Fd() {
    if (fd >= 0) ::close(fd);
  }
};
}  // namespace

Result<std::string> read_file(const std::string& path, size_t max_bytes) {
  Fd file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) return io_error(fmt::format("{}: cannot be opened: {}", path, std::strerror(errno)));
  struct stat info;
  if (::fstat(file.fd, &info) != 0) return io_error(fmt::format("{}: {}", path, std::strerror(errno)));
  if (!S_ISREG(info.st_mode)) return io_error(fmt::format("{}: not a regular file", path));
  if (static_cast<size_t>(info.st_size) > max_bytes)
    return input_error(fmt::format("{}: {} bytes, at most {} are accepted", path, info.st_size, max_bytes));
  std::string content(static_cast<size_t>(info.st_size), '\0');
  size_t done = 0;
  while (done < content.size()) {
    ssize_t n = ::read(file.fd, content.data() + done, content.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return io_error(fmt::format("{}: read failed at byte {}: {}", path, done, std::strerror(errno)));
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  content.resize(done);
  return content;
}

Result<void> write_file(const std::string& path, std::string_view content) {
  Fd file{::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)};
  if (file.fd < 0) return io_error(fmt::format("{}: cannot be written: {}", path, std::strerror(errno)));
  size_t done = 0;
  while (done < content.size()) {
    ssize_t n = ::write(file.fd, content.data() + done, content.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return io_error(fmt::format("{}: write failed: {}", path, std::strerror(errno)));
    done += static_cast<size_t>(n);
  }
  return {};
}

bool file_exists(const std::string& path) {
  struct stat info;
  return ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

bool directory_exists(const std::string& path) {
  struct stat info;
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

}  // namespace dg
