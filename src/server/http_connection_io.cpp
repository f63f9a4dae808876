// Connection: bytes, waiting, and the answer of an exchange.
#include <fmt/core.h>

#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "base/log.h"
#include "server/http_connection.h"

// g++ 12 takes Asio's frame allocator for one that does not match its deallocator.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"

namespace dg {

namespace asio = boost::asio;

namespace {

constexpr size_t kMaxInputAhead = 16 << 10;   // of a pipelining client, while its request is in progress
constexpr size_t kKeptBufferBytes = 4 << 10;  // an empty buffer above this is given back
constexpr size_t kMaxLingerBytes = 4 << 20;
constexpr auto kLinger = std::chrono::seconds(1);

void release(std::string& buffer) {
  buffer.clear();
  if (buffer.capacity() > kKeptBufferBytes) std::string().swap(buffer);
}

}  // namespace

asio::awaitable<bool> Connection::wait(Clock::time_point deadline) {
  if (!signalled_) {
    timer_.expires_at(deadline);
    boost::system::error_code ignored;
    co_await timer_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
  const bool woken = std::exchange(signalled_, false);
  co_return woken || Clock::now() < deadline;
}

void Connection::arm(IoStatus wanted) {
  bool& armed = wanted == IoStatus::kWantWrite ? write_armed_ : read_armed_;
  if (std::exchange(armed, true)) return;
  const auto type = wanted == IoStatus::kWantWrite ? asio::posix::stream_descriptor::wait_write : asio::posix::stream_descriptor::wait_read;
  descriptor_.async_wait(type, [self = shared_from_this(), &armed](boost::system::error_code) {
    armed = false;
    self->signal();
  });
}

void Connection::consume(size_t bytes) {
  in_at_ += bytes;
  if (in_at_ < in_.size()) return;
  in_at_ = 0;
  release(in_);
}

IoStatus Connection::read_input(size_t max_bytes) {
  std::vector<char>& scratch = thread_->scratch();
  const IoResult result = transport_.read(scratch.data(), std::min(max_bytes, scratch.size()));
  if (result.status != IoStatus::kDone) return result.status;
  in_.erase(0, std::exchange(in_at_, 0));
  in_.append(scratch.data(), result.bytes);
  return IoStatus::kDone;
}

bool Connection::watch_input() {
  while (!read_armed_ && input().size() < kMaxInputAhead) {
    const IoStatus status = read_input(kMaxInputAhead - input().size());
    if (status == IoStatus::kClosed) return false;
    if (status != IoStatus::kDone) arm(status);
    if (status == IoStatus::kWantWrite) break;
  }
  return true;
}

// kDone: everything is out.
IoStatus Connection::write_output() {
  while (unsent() > 0) {
    const IoResult result = transport_.write(out_.data() + out_at_, unsent());
    if (result.status != IoStatus::kDone) return result.status;
    out_at_ += result.bytes;
    record_.bytes_out += result.bytes;
    answer_.last_output = Clock::now();
  }
  out_at_ = 0;
  release(out_);
  return IoStatus::kDone;
}

asio::awaitable<bool> Connection::flush() {
  answer_.last_output = Clock::now();
  for (;;) {
    const IoStatus status = write_output();
    if (status == IoStatus::kDone) co_return true;
    if (status == IoStatus::kClosed || stopping_) co_return false;
    arm(status);
    const Clock::time_point deadline = answer_.last_output + shared_->options.slow_client_timeout;
    (void)co_await wait(deadline);
    if (Clock::now() >= deadline) {
      shared_->stats.slow_closed.fetch_add(1);
      co_return false;
    }
  }
}

// Before a close: what the client still sends is read and forgotten for a moment. Closing a socket with unread bytes resets
// the connection, and the client would lose the answer that says why.
asio::awaitable<void> Connection::linger() {
  transport_.shutdown_write();
  const Clock::time_point deadline = Clock::now() + kLinger;
  size_t discarded = 0;
  while (!stopping_ && discarded < kMaxLingerBytes && Clock::now() < deadline) {
    const IoStatus status = read_input(SIZE_MAX);
    if (status == IoStatus::kClosed) co_return;
    if (status == IoStatus::kDone) {
      discarded += input().size();
      consume(input().size());
    } else {
      arm(status);
      (void)co_await wait(deadline);
    }
  }
}

asio::awaitable<bool> Connection::answer() {
  const HttpServerOptions& options = shared_->options;
  bool pressed = false;
  answer_.last_output = Clock::now();
  for (;;) {
    if (stopping_) co_return false;
    const bool behind = unsent() > 0;
    if (!take_output(exchange_->take(!behind))) co_return false;
    const IoStatus status = write_output();
    if (status == IoStatus::kClosed) co_return false;
    // What has come since the take does not wait for the client, unless the client is what holds it up.
    const size_t waiting = status == IoStatus::kDone ? 0 : unsent() + exchange_->pending_bytes();
    if (pressed ? waiting < options.max_send_buffer / 2 : waiting > options.max_send_buffer) {
      pressed = !pressed;
      exchange_->report_pressure(pressed);
    }
    if (status == IoStatus::kDone && answer_.ended) co_return true;
    if (status == IoStatus::kDone && behind) continue;  // the client has caught up: what has piled up since can be taken
    if (!watch_input()) co_return false;

    Clock::time_point deadline = Clock::now() + std::chrono::hours(24);
    const bool blocked = status != IoStatus::kDone;
    const bool beats = !blocked && answer_.streaming && answer_.sse && !head_only_;
    if (blocked) {
      arm(status);
      deadline = answer_.last_output + options.slow_client_timeout;
    } else if (beats) {
      deadline = answer_.last_output + options.heartbeat;
    }
    const bool woken = co_await wait(deadline);
    if (blocked && Clock::now() >= deadline && write_output() != IoStatus::kDone && answer_.last_output < deadline) {
      shared_->stats.slow_closed.fetch_add(1);
      log_warning(
          fmt::format("request {}: closed, its client took nothing for {} ms", record_.request_id, options.slow_client_timeout.count()));
      co_return false;
    }
    if (beats && !woken && exchange_->pending_bytes() == 0) put_stream_bytes(": ping\n\n");
  }
}

// What the handler has left, as bytes for the client.
bool Connection::take_output(ExchangeOutput output) {
  if (output.abandoned) {
    if (output.too_slow) shared_->stats.slow_closed.fetch_add(1);
    log_error(fmt::format("request {}: {}", record_.request_id, *output.abandoned));
    if (answer_.head_sent || output.stream) return false;  // a cut stream says that something is missing
    put_response(error_response(500, fmt::format("the server failed; its log tells why under request id {}", record_.request_id),
                                "server_error", "", "internal_error"));
    answer_.ended = true;
    return true;
  }
  if (output.response) {
    put_response(*output.response);
    answer_.ended = true;
  }
  if (output.stream) put_stream_head(*output.stream);
  if (!output.bytes.empty()) {
    if (first_output_ == Clock::time_point{}) first_output_ = Clock::now();
    put_stream_bytes(output.bytes);
  }
  if (output.ended) {
    answer_.ended = true;
    if (answer_.chunked && !head_only_) out_ += "0\r\n\r\n";
  }
  return true;
}

void Connection::put_response(const HttpResponse& response) {
  HttpStats& stats = shared_->stats;
  record_.status = response.status;
  if (response.status >= 500) {
    stats.responses_5xx.fetch_add(1);
  } else if (response.status >= 400) {
    stats.responses_4xx.fetch_add(1);
  }
  if (shared_->draining) close_after_ = true;
  answer_.head_sent = true;
  out_ += render_head({.status = response.status,
                       .content_type = response.content_type,
                       .content_length = static_cast<int64_t>(response.body.size()),
                       .close = close_after_,
                       .http_1_0 = http_1_0_,
                       .request_id = record_.request_id,
                       .headers = &response.headers,
                       .cors = &cors_});
  if (!head_only_ && response.status != 204 && response.status != 304) out_ += response.body;
}

void Connection::put_stream_head(const StreamHead& head) {
  if (shared_->draining || http_1_0_) close_after_ = true;  // 1.0 has no chunks: the end of the connection ends the body
  record_.status = head.status;
  if (head.status >= 500) shared_->stats.responses_5xx.fetch_add(1);
  if (head.status >= 400 && head.status < 500) shared_->stats.responses_4xx.fetch_add(1);
  answer_.head_sent = answer_.streaming = true;
  answer_.chunked = !http_1_0_;
  answer_.sse = head.content_type.starts_with("text/event-stream");
  out_ += render_head({.status = head.status,
                       .content_type = head.content_type,
                       .chunked = answer_.chunked,
                       .close = close_after_,
                       .http_1_0 = http_1_0_,
                       .request_id = record_.request_id,
                       .headers = &head.headers,
                       .cors = &cors_});
}

void Connection::put_stream_bytes(std::string_view bytes) {
  if (head_only_) return;
  if (!answer_.chunked) {
    out_ += bytes;
    return;
  }
  out_ += fmt::format("{:x}\r\n", bytes.size());
  out_ += bytes;
  out_ += "\r\n";
}

}  // namespace dg
