// HTTP/1.1 as handlers see it: a request, and a responder that any thread may use. No Boost here: server/http_server.cpp owns
// the sockets (docs/engine_contract.md, section HTTP).
//
// A handler runs on a worker thread, so it may render, tokenise and compile; it answers with respond(), or keeps the
// responder and streams from other threads. A handler that lets its responder go without an answer gives a 500.
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace dg {

enum class Role { kOpen, kUser, kAdmin };  // kOpen: no key needed (/health)

struct HttpRequest {
  std::string method, path, query;                           // path without the query, percent-decoded
  std::vector<std::pair<std::string, std::string>> headers;  // names in lower case
  std::string body;
  std::string peer;         // "127.0.0.1:1234", "unix"
  std::string id;           // x-request-id of the client when it is sane, else made: "req-<hex>"
  std::string traceparent;  // W3C, validated; "" when absent or malformed
  std::string tenant = "";  // of the API key; "" without keys
  std::string key_name;     // label of the API key
  Role role = Role::kOpen;
  std::chrono::steady_clock::time_point received;
  std::string_view header(std::string_view lower_name) const;  // "" when absent
};

struct HttpResponse {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers;  // "Retry-After", ...
};

// Fields of the access log that only the handler knows.
struct AccessFields {
  std::string model;
  int64_t prompt_tokens = -1, cached_tokens = -1, generated_tokens = -1;
  double ttft_s = -1;
  std::string finish;  // finish reason, or the error's code
};

// Thread-safe; at most one of respond() and begin_stream(). Calls after the client is gone do nothing.
class HttpResponder {
 public:
  virtual ~HttpResponder() = default;
  virtual void respond(HttpResponse response) = 0;
  // Starts a chunked response. SSE streams get heartbeats (": ping" comments) while nothing is sent.
  virtual void begin_stream(int status, std::string content_type, std::vector<std::pair<std::string, std::string>> headers) = 0;
  virtual void send(std::string bytes) = 0;  // one or several whole events
  virtual void finish() = 0;                 // the end of the stream
  // The client went away, was too slow for --slow-client-timeout, or the server stops: called once, on an I/O thread, also
  // when it has happened already. Must be quick and must not call the responder.
  virtual void on_close(std::function<void()> callback) = 0;
  // More than --max-send-buffer bytes wait for the client (true), and less than half of it again (false).
  virtual void on_pressure(std::function<void(bool blocked)> callback) = 0;
  virtual void set_access_fields(AccessFields fields) = 0;
};

using HttpHandler = std::function<void(std::shared_ptr<HttpResponder>, HttpRequest)>;

struct Route {
  std::string method, path;  // exact
  Role role = Role::kUser;
  HttpHandler handler;
};

// OpenAI's error shape: {"error": {"message", "type", "param", "code"}}. `param` and `code` may be "" (null).
HttpResponse error_response(int status, std::string_view message, std::string_view type, std::string_view param = "",
                            std::string_view code = "");
// The status and type of an Error: kInput 400 invalid_request_error, kResource 429 (Retry-After: 1) rate_limit_error,
// kCancelled 503, kDevice and kIo 500 server_error.
HttpResponse error_response(const Error& error, std::string_view param = "");

}  // namespace dg
