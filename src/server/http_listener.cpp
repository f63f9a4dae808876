#include "server/http_listener.h"

#include <arpa/inet.h>
#include <fmt/core.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

namespace dg {
namespace {

constexpr int kBacklog = 4096;

Error listen_error(const std::string& address, int error) {
  const char* advice = "choose another --host or --port";
  if (error == EADDRINUSE) advice = "another program listens there: stop it or choose another --port";
  if (error == EACCES) advice = "the port needs privileges or is reserved: choose a --port from 1024 up";
  if (error == EADDRNOTAVAIL) advice = "no interface of this machine has the address: choose another --host";
  if (error == EMFILE || error == ENFILE) advice = "raise the limit of open files (ulimit -n)";
  return io_error(fmt::format("cannot listen on {}: {}; {}", address, std::strerror(error), advice));
}

std::string bracketed(const std::string& host) { return host.find(':') != std::string::npos ? "[" + host + "]" : host; }

}  // namespace

Result<ListenSocket> ListenSocket::open(const ListenAddress& address, const std::string& scheme) {
  return address.unix_path.empty() ? open_tcp(address, scheme) : open_unix(address.unix_path);
}

Result<ListenSocket> ListenSocket::open_tcp(const ListenAddress& address, const std::string& scheme) {
  if (address.port < 0 || address.port > 65535) {
    return input_error(fmt::format("--port {}: expected 0 to 65535; choose a free port", address.port));
  }
  std::string host = address.host;
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const std::string port_text = std::to_string(address.port);
  const int resolved = ::getaddrinfo(host.empty() ? nullptr : host.c_str(), port_text.c_str(), &hints, &found);
  if (resolved != 0) {
    return input_error(fmt::format("--host {}: {}; give an address of this machine, or 0.0.0.0 or :: for all", address.host,
                                   resolved == EAI_SYSTEM ? std::strerror(errno) : ::gai_strerror(resolved)));
  }
  std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, &::freeaddrinfo);

  ListenSocket socket;
  const std::string shown = fmt::format("{}:{}", bracketed(host), address.port);
  socket.fd_ = ::socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (socket.fd_ < 0) return listen_error(shown, errno);
  const int on = 1, off = 0;
  ::setsockopt(socket.fd_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (found->ai_family == AF_INET6) ::setsockopt(socket.fd_, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);  // :: takes IPv4 too
  ::setsockopt(socket.fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);                                       // accepted sockets inherit it
  if (::bind(socket.fd_, found->ai_addr, found->ai_addrlen) != 0 || ::listen(socket.fd_, kBacklog) != 0) {
    return listen_error(shown, errno);
  }
  sockaddr_storage bound{};
  socklen_t length = sizeof bound;
  if (::getsockname(socket.fd_, reinterpret_cast<sockaddr*>(&bound), &length) != 0) return listen_error(shown, errno);
  socket.port_ = ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(bound).sin6_port
                                                   : reinterpret_cast<sockaddr_in&>(bound).sin_port);
  socket.address_ = fmt::format("{}://{}:{}", scheme, bracketed(host), socket.port_);
  return socket;
}

Result<ListenSocket> ListenSocket::open_unix(const std::string& path) {
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  if (path.size() >= sizeof name.sun_path || path.find('\0') != path.npos) {
    return input_error(fmt::format("--uds {}: the path has {} bytes, expected at most {}; choose a shorter path", path, path.size(),
                                   sizeof name.sun_path - 1));
  }
  std::memcpy(name.sun_path, path.c_str(), path.size() + 1);

  struct stat info {};
  if (::lstat(path.c_str(), &info) == 0) {
    if (!S_ISSOCK(info.st_mode)) {
      return input_error(fmt::format("--uds {}: expected a socket or nothing, found another file; remove it or choose another path", path));
    }
    // Is someone still answering there? A refused connection means that the server is dead.
    const int probe = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (probe < 0) return listen_error(path, errno);
    const int connected = ::connect(probe, reinterpret_cast<sockaddr*>(&name), sizeof name);
    const int error = errno;
    ::close(probe);
    if (connected == 0 || error == EAGAIN) {
      return io_error(fmt::format("--uds {}: another server listens there; stop it or choose another path", path));
    }
    if (error != ECONNREFUSED) {
      return io_error(fmt::format("--uds {}: cannot replace the socket: {}; remove it or choose another path", path, std::strerror(error)));
    }
    ::unlink(path.c_str());
  }
  ListenSocket socket;
  socket.fd_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (socket.fd_ < 0 || ::bind(socket.fd_, reinterpret_cast<sockaddr*>(&name), sizeof name) != 0) {
    return io_error(
        fmt::format("--uds {}: cannot bind: {}; choose a path in a folder that exists and is writable", path, std::strerror(errno)));
  }
  socket.unix_path_ = path;
  if (::lstat(path.c_str(), &info) == 0) {
    socket.device_ = info.st_dev;
    socket.inode_ = info.st_ino;
  }
  if (::listen(socket.fd_, kBacklog) != 0) return listen_error(path, errno);
  socket.address_ = "unix:" + path;
  return socket;
}

int ListenSocket::release() { return std::exchange(fd_, -1); }

void ListenSocket::unlink() {
  struct stat info {};
  if (unix_path_.empty() || ::lstat(unix_path_.c_str(), &info) != 0) return;
  if (info.st_dev == device_ && info.st_ino == inode_) ::unlink(unix_path_.c_str());
  inode_ = 0;
}

void ListenSocket::close() {
  unlink();
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

void ListenSocket::swap(ListenSocket& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(port_, other.port_);
  std::swap(address_, other.address_);
  std::swap(unix_path_, other.unix_path_);
  std::swap(device_, other.device_);
  std::swap(inode_, other.inode_);
}

std::string peer_name(int fd) {
  sockaddr_storage peer{};
  socklen_t length = sizeof peer;
  char text[INET6_ADDRSTRLEN] = "";
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &length) != 0) return "unknown";
  if (peer.ss_family == AF_UNIX) return "unix";
  if (peer.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(peer);
    ::inet_ntop(AF_INET, &v4.sin_addr, text, sizeof text);
    return fmt::format("{}:{}", text, ntohs(v4.sin_port));
  }
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(peer);
  ::inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof text);
  return fmt::format("[{}]:{}", text, ntohs(v6.sin6_port));
}

}  // namespace dg
