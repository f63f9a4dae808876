// HttpServer: listeners (TCP, TLS, Unix socket), connections, routing, API keys, limits, access log. Boost.Beast and OpenSSL
// stay inside http_server*.cpp. One io_context per I/O thread, no thread per connection; handlers run on worker threads.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "server/api_keys.h"
#include "server/http.h"

namespace dg {

struct ListenAddress {
  std::string host = "127.0.0.1";  // or an IPv6 address, or "0.0.0.0"
  int port = 8000;                 // 0: any free port
  std::string unix_path;           // not empty: a Unix socket instead (an old one of a dead server is replaced)
};

struct HttpServerOptions {
  ListenAddress listen;
  std::string name;                      // for logs: "api", "admin"
  std::string tls_certificate, tls_key;  // PEM files; both or none
  int io_threads = 1, worker_threads = 2;
  int64_t max_connections = 16384;
  size_t max_body_bytes = size_t{32} << 20;               // 413 above
  size_t max_header_bytes = 32 << 10;                     // 431 above
  std::chrono::milliseconds header_timeout{10'000};       // from the first byte of a request to its last header
  std::chrono::milliseconds body_timeout{60'000};         // 408
  std::chrono::milliseconds idle_timeout{75'000};         // keep-alive without a request
  std::chrono::milliseconds heartbeat{10'000};            // SSE comments while nothing is sent
  std::chrono::milliseconds slow_client_timeout{60'000};  // a write that makes no progress
  size_t max_send_buffer = 256 << 10;                     // bytes waiting for a client before on_pressure(true)
  size_t max_queued_requests = 4096;                      // handlers waiting for a worker; 503 above
  std::string access_log;                                 // "": none, "-": stderr, else a file; one JSON object per line
  std::vector<std::string> allowed_origins;               // CORS; "*" = all; empty: no CORS headers
};

// Counters for /metrics and tests.
struct HttpStats {
  std::atomic<int64_t> connections{0}, requests_active{0};
  std::atomic<uint64_t> accepted{0}, requests{0}, responses_4xx{0}, responses_5xx{0}, client_closed{0}, slow_closed{0};
};

class HttpServer {
 public:
  // Binds and starts; the error names the address, file or option. `keys` may be null: no authentication.
  static Result<std::unique_ptr<HttpServer>> start(const HttpServerOptions& options, std::vector<Route> routes,
                                                   std::shared_ptr<const ApiKeys> keys);
  virtual ~HttpServer() = default;  // stop()

  virtual int port() const = 0;             // the bound TCP port, 0 for a Unix socket
  virtual std::string address() const = 0;  // "http://127.0.0.1:8000", "https://...", "unix:/path"
  // Closes the listener and idle connections; answers in progress go on (Connection: close).
  virtual void drain() = 0;
  virtual bool wait_idle(std::chrono::milliseconds limit) = 0;  // no request in progress
  virtual void stop() = 0;                                      // closes everything, joins the threads
  virtual const HttpStats& stats() const = 0;
  virtual void reopen_access_log() = 0;  // after log rotation (SIGHUP); any thread
};

}  // namespace dg
