// For tests only: a small blocking HTTP client on a real socket, so that tests decide what goes over the wire byte for byte.
#pragma once
#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <utility>

#include "server/http_server.h"

namespace dg::testing_http {

using namespace std::chrono_literals;
using TestClock = std::chrono::steady_clock;

struct TestResponse {
  int status = 0;  // 0: the connection closed before a whole answer
  std::map<std::string, std::string> headers;
  std::string body;
  bool complete = false;
};

class TestClient {
 public:
  TestClient() = default;
  explicit TestClient(int port, int family = AF_INET) {
    fd_ = ::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in v4{};
    v4.sin_family = AF_INET;
    v4.sin_port = htons(static_cast<uint16_t>(port));
    v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    sockaddr_in6 v6{};
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(static_cast<uint16_t>(port));
    v6.sin6_addr = in6addr_loopback;
    const int result = family == AF_INET ? ::connect(fd_, reinterpret_cast<sockaddr*>(&v4), sizeof v4)
                                         : ::connect(fd_, reinterpret_cast<sockaddr*>(&v6), sizeof v6);
    if (result != 0) close();
  }
  explicit TestClient(const std::string& unix_path) {
    fd_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    unix_path.copy(name.sun_path, sizeof name.sun_path - 1);
    if (::connect(fd_, reinterpret_cast<sockaddr*>(&name), sizeof name) != 0) close();
  }
  TestClient(TestClient&& other) noexcept : fd_(std::exchange(other.fd_, -1)), in_(std::move(other.in_)) {}
  TestClient& operator=(TestClient&& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(in_, other.in_);
    return *this;
  }
  ~TestClient() { close(); }

  bool connected() const { return fd_ >= 0; }
  int fd() const { return fd_; }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  // Closes with a reset instead of an orderly end.
  void reset() {
    const linger now{1, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close();
  }
  bool send(std::string_view text) {
    while (!text.empty()) {
      const ssize_t sent = ::send(fd_, text.data(), text.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      text.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }
  // False: the end, an error or the timeout.
  bool receive_some(std::chrono::milliseconds timeout = 20s) {
    pollfd wait{fd_, POLLIN, 0};
    if (fd_ < 0 || ::poll(&wait, 1, static_cast<int>(timeout.count())) <= 0) return false;
    char buffer[65536];
    const ssize_t got = ::recv(fd_, buffer, sizeof buffer, 0);
    if (got <= 0) return false;
    in_.append(buffer, static_cast<size_t>(got));
    return true;
  }
  // What came up to and with `mark`; "" when it does not come.
  std::string read_until(std::string_view mark, std::chrono::milliseconds timeout = 20s) {
    const TestClock::time_point deadline = TestClock::now() + timeout;
    for (;;) {
      const size_t at = in_.find(mark);
      if (at != in_.npos) return take(at + mark.size());
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - TestClock::now());
      if (left.count() <= 0 || !receive_some(left)) return "";
    }
  }
  bool read_exactly(size_t bytes, std::string& out, std::chrono::milliseconds timeout = 20s) {
    while (in_.size() < bytes) {
      if (!receive_some(timeout)) return false;
    }
    out += take(bytes);
    return true;
  }
  // The other side has closed, and everything before was read by the caller.
  bool closed(std::chrono::milliseconds timeout = 20s) {
    const TestClock::time_point deadline = TestClock::now() + timeout;
    char byte = 0;
    for (;;) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - TestClock::now());
      pollfd wait{fd_, POLLIN, 0};
      if (left.count() <= 0 || ::poll(&wait, 1, static_cast<int>(left.count())) <= 0) return false;
      if (::recv(fd_, &byte, 1, 0) <= 0) return true;
    }
  }
  TestResponse read_head(std::chrono::milliseconds timeout = 20s) {
    TestResponse out;
    const std::string head = read_until("\r\n\r\n", timeout);
    if (head.size() < 12) return out;
    out.status = std::atoi(head.c_str() + 9);
    for (size_t at = head.find("\r\n") + 2; at + 2 < head.size();) {
      const size_t end = head.find("\r\n", at), colon = head.find(':', at);
      std::string name = head.substr(at, colon - at);
      for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      out.headers[name] = head.substr(colon + 2, end - colon - 2);
      at = end + 2;
    }
    return out;
  }
  // One chunk of a chunked body; false at its end or when it breaks off.
  bool read_chunk(std::string& out, bool& last) {
    last = false;
    const std::string line = read_until("\r\n");
    if (line.empty()) return false;
    const size_t size = std::strtoul(line.c_str(), nullptr, 16);
    std::string crlf;
    if (!read_exactly(size, out) || !read_exactly(2, crlf) || crlf != "\r\n") return false;
    last = size == 0;
    return !last;
  }
  TestResponse read_response(bool head_only = false, std::chrono::milliseconds timeout = 20s) {
    TestResponse out = read_head(timeout);
    if (out.status == 0) return out;
    if (head_only || out.status == 204) {
      out.complete = true;
    } else if (out.headers.contains("content-length")) {
      out.complete = read_exactly(std::stoul(out.headers["content-length"]), out.body);
    } else if (out.headers.contains("transfer-encoding")) {
      bool last = false;
      while (read_chunk(out.body, last)) continue;
      out.complete = last;
    } else {
      while (receive_some()) continue;
      out.body = take(in_.size());
      out.complete = true;
    }
    return out;
  }
  TestResponse get(const std::string& path, const std::string& headers = "") {
    send("GET " + path + " HTTP/1.1\r\nHost: x\r\n" + headers + "\r\n");
    return read_response();
  }
  TestResponse post(const std::string& path, const std::string& body, const std::string& headers = "") {
    send("POST " + path + " HTTP/1.1\r\nHost: x\r\nContent-Length: " + std::to_string(body.size()) + "\r\n" + headers + "\r\n" + body);
    return read_response();
  }

 private:
  std::string take(size_t bytes) {
    std::string out = in_.substr(0, bytes);
    in_.erase(0, bytes);
    return out;
  }
  int fd_ = -1;
  std::string in_;
};

inline bool eventually(const std::function<bool()>& condition, std::chrono::milliseconds limit = 20s) {
  const TestClock::time_point deadline = TestClock::now() + limit;
  while (!condition()) {
    if (TestClock::now() > deadline) return false;
    std::this_thread::sleep_for(1ms);
  }
  return true;
}

inline int open_descriptors() {
  int count = 0;
  DIR* folder = ::opendir("/proc/self/fd");
  while (::readdir(folder) != nullptr) ++count;
  ::closedir(folder);
  return count;
}

// An empty folder that goes away with its owner.
class TestFolder {
 public:
  TestFolder() {
    char name[] = "/tmp/dougong-http-XXXXXX";
    path_ = ::mkdtemp(name);
  }
  ~TestFolder() { (void)!std::system(("rm -rf " + path_).c_str()); }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline Route route(std::string method, std::string path, HttpHandler handler, Role role = Role::kUser) {
  return {std::move(method), std::move(path), role, std::move(handler)};
}

}  // namespace dg::testing_http
