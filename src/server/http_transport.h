// Transport: non-blocking bytes of one connection, plain or TLS. OpenSSL works on the socket itself: its own buffers are
// released while a connection is idle, and the connection waits for readiness only, so an idle TLS stream stays small.
#pragma once
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"

struct ssl_ctx_st;
struct ssl_st;

namespace dg {

enum class IoStatus { kDone, kWantRead, kWantWrite, kClosed };  // kClosed: the end, or an error

struct IoResult {
  IoStatus status = IoStatus::kDone;
  size_t bytes = 0;  // kDone
};

// Certificate and key of a listener. TLS 1.2 or later, ALPN http/1.1.
class TlsContext {
 public:
  // PEM files, the certificate with its chain. Errors name the file and what is wrong with it.
  static Result<std::unique_ptr<TlsContext>> load(const std::string& certificate_path, const std::string& key_path);
  ~TlsContext();
  ssl_ctx_st* get() const { return context_; }

 private:
  explicit TlsContext(ssl_ctx_st* context) : context_(context) {}
  ssl_ctx_st* context_;
};

// Does not own `fd`, which must be non-blocking. One thread at a time. The thread blocks SIGPIPE (OpenSSL writes raise it).
class Transport {
 public:
  Transport(int fd, const TlsContext* tls);  // tls null: plain
  ~Transport();
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  bool encrypted() const { return ssl_ != nullptr; }
  // kDone at once for a plain connection. `plain_http`: the client speaks HTTP without TLS.
  IoStatus handshake(bool& plain_http);
  IoResult read(char* data, size_t bytes);  // kDone: at least one byte
  IoResult write(const char* data, size_t bytes);
  void write_raw(std::string_view text);  // past TLS, best effort
  void shutdown_write();                  // best effort; the peer sees an orderly end

 private:
  IoStatus tls_status(int result);
  int fd_;
  ssl_st* ssl_ = nullptr;
};

}  // namespace dg
