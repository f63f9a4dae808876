// Exchange: one request and its answer, between the threads that produce the answer (through HttpResponder) and the I/O
// thread of its connection. It may outlive the connection and the server: it holds both weakly, and once closed every call
// of a producer does nothing. Callbacks run on the I/O thread, never under the lock.
#pragma once
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "server/http.h"
#include "server/http_text.h"

namespace dg {

// An I/O thread, as far as an exchange needs it.
class IoExecutor {
 public:
  virtual ~IoExecutor() = default;
  virtual void post(std::function<void()> task) = 0;  // any thread
};

struct StreamHead {
  int status = 200;
  std::string content_type;
  HttpHeaders headers;
};

// What the producers have left since the last take().
struct ExchangeOutput {
  std::optional<HttpResponse> response;  // the whole answer, or
  std::optional<StreamHead> stream;      // the beginning of a stream,
  std::string bytes;                     // its next bytes,
  bool ended = false;                    // and its end (after `bytes`)
  std::optional<std::string> abandoned;  // no answer will come, or no more of it: why
  bool too_slow = false;                 // abandoned because the client is
};

class Exchange : public std::enable_shared_from_this<Exchange> {
 public:
  // `wake` is posted to `io` when something is left to take, once until the next take(). More than `max_pending_bytes` in the
  // buffer when a producer sends still more: the stream is abandoned.
  Exchange(std::weak_ptr<IoExecutor> io, std::function<void()> wake, size_t max_pending_bytes);

  // Producers, any thread.
  void respond(HttpResponse response);
  void begin_stream(StreamHead head);
  void send(std::string bytes);
  void finish();
  void abandon(std::string why);  // nothing when the answer is complete
  void on_close(std::function<void()> callback);
  void on_pressure(std::function<void(bool)> callback);
  void set_access_fields(AccessFields fields);
  bool closed() const;

  // The connection, on its I/O thread.
  ExchangeOutput take(bool with_bytes);
  size_t pending_bytes() const;
  void report_pressure(bool blocked);
  // No more of it reaches the client. `lost`: not by its regular end, so on_close is called.
  void close(bool lost);
  AccessFields access_fields() const;

 private:
  enum class State { kOpen, kAnswered, kStreaming, kEnded };
  void wake_locked(std::unique_lock<std::mutex>& lock);

  const std::weak_ptr<IoExecutor> io_;
  const std::function<void()> wake_;
  const size_t max_pending_bytes_;

  mutable std::mutex mutex_;
  State state_ = State::kOpen;
  ExchangeOutput output_;
  bool woken_ = false, closed_ = false, lost_ = false, close_called_ = false;
  std::function<void()> on_close_;
  std::shared_ptr<std::function<void(bool)>> on_pressure_;
  AccessFields fields_;
};

// The HttpResponder of an exchange. Its end without an answer abandons the exchange.
std::shared_ptr<HttpResponder> make_responder(std::shared_ptr<Exchange> exchange);

}  // namespace dg
