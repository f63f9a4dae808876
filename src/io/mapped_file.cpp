#include "io/mapped_file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <utility>

#include "io/error_text.h"

namespace dg {
namespace {

const char* file_kind(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a FIFO (named pipe)";
  if (S_ISSOCK(mode)) return "a socket";
  if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
  return "a special file";
}

Error not_regular(const std::string& path, mode_t mode) {
  return input_error(fmt::format("{}: expected a regular file, found {}", path, file_kind(mode)));
}

Error cannot_open(const std::string& path, int error_number) {
  struct stat info;
  // A link whose target is gone reads as "no such file" although the path is there: half-downloaded Hugging Face caches.
  if (error_number == ENOENT && ::lstat(path.c_str(), &info) == 0 && S_ISLNK(info.st_mode)) {
    char target[4096];
    ssize_t n = ::readlink(path.c_str(), target, sizeof target);
    return io_error(fmt::format("{}: cannot be opened: symbolic link to a missing file {}; download it again", path,
                                quote_text({target, static_cast<size_t>(std::max<ssize_t>(n, 0))})));
  }
  return system_error(path, "cannot be opened", error_number);
}

}  // namespace

Result<MappedFile> MappedFile::open(const std::string& path) {
  if (path.find('\0') != std::string::npos) return input_error(fmt::format("{}: a path has no NUL byte", quote_text(path)));
  struct stat info;
  // stat before open: opening some devices has side effects. O_NONBLOCK and fstat cover what changes in between.
  if (::stat(path.c_str(), &info) != 0) return cannot_open(path, errno);
  if (!S_ISREG(info.st_mode)) return not_regular(path, info.st_mode);
  MappedFile file;
  file.fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (file.fd_ < 0) return cannot_open(path, errno);
  if (::fstat(file.fd_, &info) != 0) return system_error(path, "cannot be examined", errno);
  if (!S_ISREG(info.st_mode)) return not_regular(path, info.st_mode);
  if (static_cast<uint64_t>(info.st_size) > std::numeric_limits<size_t>::max() / 2)
    return input_error(fmt::format("{}: {} bytes are more than this processor can address", path, info.st_size));
  ::posix_fadvise(file.fd_, 0, 0, POSIX_FADV_SEQUENTIAL);  // doubles the read-ahead of read_into
  file.path_ = path;
  auto size = static_cast<size_t>(info.st_size);
  if (size > 0) {
    void* address = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.fd_, 0);
    if (address == MAP_FAILED) return system_error(path, "cannot be mapped", errno);
    file.address_ = address;
    file.size_ = size;
  }
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      address_(std::exchange(other.address_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  if (this != &other) {
    close();
    path_ = std::move(other.path_);
    fd_ = std::exchange(other.fd_, -1);
    address_ = std::exchange(other.address_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

MappedFile::~MappedFile() { close(); }

void MappedFile::close() {
  if (address_ != nullptr) ::munmap(address_, size_);
  if (fd_ >= 0) ::close(fd_);
}

Result<void> MappedFile::read_into(uint64_t offset, std::span<std::byte> out) const {
  if (offset > size_ || out.size() > size_ - offset)
    return input_error(fmt::format("{}: {} bytes at offset {} are outside the file, which has {} bytes", path_, out.size(), offset, size_));
  constexpr size_t kMaxRead = size_t{1} << 30;  // the kernel returns at most 2 GiB - 4 KiB a call
  size_t done = 0;
  while (done < out.size()) {
    ssize_t n = ::pread(fd_, out.data() + done, std::min(out.size() - done, kMaxRead), static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0)
      return system_error(path_, fmt::format("read of bytes {}..{} failed at {}", offset, offset + out.size(), offset + done), errno);
    if (n == 0) {
      struct stat info;
      long long now = ::fstat(fd_, &info) == 0 ? static_cast<long long>(info.st_size) : -1;
      return io_error(
          fmt::format("{}: bytes {}..{} are needed, but the file shrank from {} to {} bytes while it was read; "
                      "restore the file and start again",
                      path_, offset, offset + out.size(), size_, now));
    }
    done += static_cast<size_t>(n);
  }
  return {};
}

void MappedFile::will_need(uint64_t offset, uint64_t size) const {
  if (offset >= size_ || size == 0) return;
  size = std::min<uint64_t>(size, size_ - offset);
  auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  uint64_t begin = offset / page * page;
  // Not MADV_SEQUENTIAL: it marks the range, and a range per tensor would run into vm.max_map_count.
  ::madvise(static_cast<char*>(address_) + begin, offset + size - begin, MADV_WILLNEED);
}

void MappedFile::drop(uint64_t offset, uint64_t size) const {
  if (offset >= size_ || size == 0) return;
  uint64_t end = offset + std::min<uint64_t>(size, size_ - offset);
  auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  uint64_t first = (offset + page - 1) / page * page;
  // The page at the end of the file belongs to nobody else; elsewhere a shared page stays for the neighbour.
  uint64_t last = end == size_ ? (end + page - 1) / page * page : end / page * page;
  if (first < last) ::madvise(static_cast<char*>(address_) + first, last - first, MADV_DONTNEED);
}

}  // namespace dg
