// ListenSocket: binds and listens, with errors that name the address and the cause. Unlinks a Unix socket at its end.
#pragma once
#include <string>

#include "base/result.h"
#include "server/http_server.h"

namespace dg {

class ListenSocket {
 public:
  static Result<ListenSocket> open(const ListenAddress& address, const std::string& scheme);  // "http", "https"
  ListenSocket() = default;
  ListenSocket(ListenSocket&& other) noexcept { swap(other); }
  ListenSocket& operator=(ListenSocket&& other) noexcept {
    swap(other);
    return *this;
  }
  ~ListenSocket() { close(); }

  int fd() const { return fd_; }
  int port() const { return port_; }
  bool is_unix() const { return !unix_path_.empty(); }
  const std::string& address() const { return address_; }
  int release();  // the caller closes the descriptor; unlink() stays here
  void unlink();  // a Unix socket that is still ours
  void close();

 private:
  void swap(ListenSocket& other) noexcept;
  static Result<ListenSocket> open_unix(const std::string& path);
  static Result<ListenSocket> open_tcp(const ListenAddress& address, const std::string& scheme);

  int fd_ = -1, port_ = 0;
  std::string address_, unix_path_;
  unsigned long device_ = 0, inode_ = 0;  // of the Unix socket: another server may have replaced it
};

// "127.0.0.1:1234", "[::1]:1234", "unix"
std::string peer_name(int fd);

}  // namespace dg
