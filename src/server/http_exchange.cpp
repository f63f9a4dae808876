#include "server/http_exchange.h"

#include <exception>
#include <utility>

#include "base/log.h"

namespace dg {
namespace {

class Responder final : public HttpResponder {
 public:
  explicit Responder(std::shared_ptr<Exchange> exchange) : exchange_(std::move(exchange)) {}
  ~Responder() override { exchange_->abandon("the handler let its responder go without a complete answer"); }

  void respond(HttpResponse response) override { exchange_->respond(std::move(response)); }
  void begin_stream(int status, std::string content_type, std::vector<std::pair<std::string, std::string>> headers) override {
    exchange_->begin_stream({status, std::move(content_type), std::move(headers)});
  }
  void send(std::string bytes) override { exchange_->send(std::move(bytes)); }
  void finish() override { exchange_->finish(); }
  void on_close(std::function<void()> callback) override { exchange_->on_close(std::move(callback)); }
  void on_pressure(std::function<void(bool)> callback) override { exchange_->on_pressure(std::move(callback)); }
  void set_access_fields(AccessFields fields) override { exchange_->set_access_fields(std::move(fields)); }

 private:
  std::shared_ptr<Exchange> exchange_;
};

}  // namespace

std::shared_ptr<HttpResponder> make_responder(std::shared_ptr<Exchange> exchange) {
  return std::make_shared<Responder>(std::move(exchange));
}

Exchange::Exchange(std::weak_ptr<IoExecutor> io, std::function<void()> wake, size_t max_pending_bytes)
    : io_(std::move(io)), wake_(std::move(wake)), max_pending_bytes_(max_pending_bytes) {}

// Posts without the lock: the last reference to an executor may end here, and with it anything.
void Exchange::wake_locked(std::unique_lock<std::mutex>& lock) {
  if (std::exchange(woken_, true)) return;
  lock.unlock();
  if (std::shared_ptr<IoExecutor> io = io_.lock()) io->post(wake_);
}

void Exchange::respond(HttpResponse response) {
  std::unique_lock lock(mutex_);
  if (closed_ || state_ != State::kOpen) return;
  state_ = State::kAnswered;
  output_.response = std::move(response);
  wake_locked(lock);
}

void Exchange::begin_stream(StreamHead head) {
  std::unique_lock lock(mutex_);
  if (closed_ || state_ != State::kOpen) return;
  state_ = State::kStreaming;
  output_.stream = std::move(head);
  wake_locked(lock);
}

void Exchange::send(std::string bytes) {
  std::unique_lock lock(mutex_);
  if (closed_ || state_ != State::kStreaming || bytes.empty()) return;
  if (output_.bytes.size() > max_pending_bytes_) {
    state_ = State::kEnded;
    output_.too_slow = true;
    output_.abandoned = "the client takes its stream too slowly and the handler does not wait for it";
  } else if (output_.bytes.empty()) {
    output_.bytes = std::move(bytes);
  } else {
    output_.bytes += bytes;
  }
  wake_locked(lock);
}

void Exchange::finish() {
  std::unique_lock lock(mutex_);
  if (closed_ || state_ != State::kStreaming) return;
  state_ = State::kEnded;
  output_.ended = true;
  wake_locked(lock);
}

void Exchange::abandon(std::string why) {
  std::unique_lock lock(mutex_);
  if (closed_ || state_ == State::kAnswered || state_ == State::kEnded) return;
  state_ = State::kEnded;
  output_.abandoned = std::move(why);
  wake_locked(lock);
}

void Exchange::on_close(std::function<void()> callback) {
  std::unique_lock lock(mutex_);
  if (!closed_) {
    std::swap(on_close_, callback);  // the old one ends without the lock
    lock.unlock();
    return;
  }
  if (!lost_ || std::exchange(close_called_, true)) return;
  lock.unlock();
  if (std::shared_ptr<IoExecutor> io = io_.lock()) io->post(std::move(callback));
}

void Exchange::on_pressure(std::function<void(bool)> callback) {
  auto shared = std::make_shared<std::function<void(bool)>>(std::move(callback));
  std::unique_lock lock(mutex_);
  if (!closed_) std::swap(on_pressure_, shared);
  lock.unlock();
}

void Exchange::set_access_fields(AccessFields fields) {
  std::lock_guard lock(mutex_);
  fields_ = std::move(fields);
}

bool Exchange::closed() const {
  std::lock_guard lock(mutex_);
  return closed_;
}

ExchangeOutput Exchange::take(bool with_bytes) {
  std::lock_guard lock(mutex_);
  woken_ = false;
  if (with_bytes) return std::exchange(output_, {});
  ExchangeOutput out;  // the rest waits until the client has taken what was sent before
  out.abandoned = std::exchange(output_.abandoned, std::nullopt);
  out.too_slow = output_.too_slow;
  return out;
}

size_t Exchange::pending_bytes() const {
  std::lock_guard lock(mutex_);
  return output_.bytes.size();
}

void Exchange::report_pressure(bool blocked) {
  std::shared_ptr<std::function<void(bool)>> callback;
  {
    std::lock_guard lock(mutex_);
    callback = on_pressure_;
  }
  if (callback != nullptr && *callback) (*callback)(blocked);
}

void Exchange::close(bool lost) {
  std::function<void()> callback;
  std::shared_ptr<std::function<void(bool)>> pressure;
  ExchangeOutput output;
  {
    std::lock_guard lock(mutex_);
    if (closed_) return;
    closed_ = true;
    lost_ = lost;
    callback.swap(on_close_);
    pressure.swap(on_pressure_);
    std::swap(output, output_);
    if (callback && lost) close_called_ = true;
  }
  if (!callback || !lost) return;
  try {
    callback();
  } catch (const std::exception& error) {  // the connection must still come to its end
    log_error(std::string("HTTP close callback: ") + error.what());
  }
}

AccessFields Exchange::access_fields() const {
  std::lock_guard lock(mutex_);
  return fields_;
}

}  // namespace dg
