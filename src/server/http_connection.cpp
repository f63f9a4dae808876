#include "server/http_connection.h"

#include <fmt/core.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <future>

#include "base/log.h"
#include "server/http_listener.h"

// g++ 12 takes Asio's frame allocator for one that does not match its deallocator.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"

namespace dg {

namespace asio = boost::asio;

namespace {

// A refused request whose body is no longer is read to its end, so that the connection can be kept.
constexpr int64_t kMaxSkippedBodyBytes = 64 << 10;
// Bodies of all requests in progress, in units of --max-body-bytes: many large requests at once must not take the memory.
constexpr int64_t kMaxBodiesInProgress = 16;
// Empty lines before a request line.
constexpr int kMaxEmptyLines = 4;
// Reads of a body before other connections have their turn.
constexpr int kReadsPerTurn = 16;
// The least rate at which a body must come, on top of --body-timeout.
constexpr int64_t kMinBodyBytesPerSecond = 64 << 10;

HttpResponse overloaded(std::string_view message, std::string_view code) {
  HttpResponse response = error_response(503, message, "server_error", "", code);
  response.headers.emplace_back("Retry-After", "1");
  return response;
}

}  // namespace

Connection::Connection(std::shared_ptr<HttpShared> shared, std::shared_ptr<IoThread> thread, int fd, bool over_limit)
    : shared_(std::move(shared)),
      thread_(std::move(thread)),
      descriptor_(thread_->context(), fd),
      timer_(thread_->context()),
      transport_(fd, shared_->tls.get()),
      over_limit_(over_limit),
      peer_(peer_name(fd)) {
  shared_->open_sockets.fetch_add(1);
  if (!over_limit_) shared_->stats.connections.fetch_add(1);
}

Connection::~Connection() = default;

void Connection::start() {
  asio::co_spawn(
      thread_->context(), [self = shared_from_this()] { return self->run(); }, asio::detached);
}

void Connection::signal() {
  signalled_ = true;
  timer_.cancel();
}

void Connection::stop() {
  stopping_ = true;
  signal();
}

asio::awaitable<void> Connection::run() {
  try {
    co_await serve();
  } catch (const std::exception& error) {  // no memory, above all
    log_error(fmt::format("HTTP connection of {}: {}", peer_, error.what()));
  }
  close();
}

void Connection::close() {
  if (active_) end_request(true);
  boost::system::error_code ignored;
  timer_.cancel(ignored);
  descriptor_.close(ignored);
  shared_->open_sockets.fetch_sub(1);
  if (!over_limit_) shared_->stats.connections.fetch_sub(1);
  thread_->remove(shared_from_this());
}

asio::awaitable<void> Connection::serve() {
  const bool ready = co_await handshake();
  if (!ready) co_return;
  if (over_limit_) {
    close_after_ = true;
    record_.request_id = make_request_id();
    put_response(overloaded(
        fmt::format("the server has its {} connections; try again later or raise --max-connections", shared_->options.max_connections),
        "too_many_connections"));
    const bool sent = co_await flush();
    if (sent) co_await linger();
    co_return;
  }
  for (int served = 1;; ++served) {
    const bool again = co_await serve_request();
    if (!again) co_return;
    // A client that pipelines without end must not hold the thread.
    if (served % 16 == 0) co_await asio::post(thread_->context(), asio::use_awaitable);
  }
}

asio::awaitable<bool> Connection::handshake() {
  const Clock::time_point deadline = Clock::now() + shared_->options.header_timeout;
  for (;;) {
    bool plain_http = false;
    const IoStatus status = transport_.handshake(plain_http);
    if (status == IoStatus::kDone) co_return true;
    if (plain_http) transport_.write_raw("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nThis port speaks TLS: use https://\n");
    if (status == IoStatus::kClosed || stopping_) co_return false;
    arm(status);
    const bool in_time = co_await wait(deadline);
    if (!in_time || Clock::now() >= deadline) co_return false;
  }
}

asio::awaitable<bool> Connection::serve_request() {
  std::optional<RequestParser> parser(std::in_place, ParserLimits{shared_->options.max_header_bytes, shared_->options.max_body_bytes});
  ReadResult read = co_await read_head(*parser);
  if (read == ReadResult::kClosed) co_return false;
  begin_request(*parser);
  if (read == ReadResult::kTimeout) {
    const bool kept = co_await refuse(error_response(408, "the request's headers did not arrive in time; send them at once",
                                                     "invalid_request_error", "", "request_timeout"),
                                      true);
    co_return kept;
  }
  if (parser->state() == RequestParser::State::kFailed) {
    const RequestParser::Failure failure = parser->failure();
    const bool kept = co_await refuse(error_response(failure.status, failure.message, "invalid_request_error"), true);
    co_return kept;
  }

  HttpRequest& request = parser->request();
  HttpResponse refusal;
  const Route* route = shared_->router.find(request, refusal);
  if (route != nullptr && !authorise(shared_->keys.get(), route->role, request, refusal)) route = nullptr;
  record_.tenant = request.tenant;
  record_.key_name = request.key_name;
  const std::string_view expect = request.header("expect");
  const bool wants_continue = !http_1_0_ && equal_ignoring_case(expect, "100-continue");
  if (!expect.empty() && !wants_continue && !http_1_0_) {
    route = nullptr;
    refusal =
        error_response(417, fmt::format("Expect: only '100-continue' is known, found '{}'", expect.substr(0, 80)), "invalid_request_error");
  }
  if (route == nullptr) {
    bool close = false;
    if (parser->has_body()) {
      const int64_t length = parser->content_length();
      close = length < 0 || length > kMaxSkippedBodyBytes || wants_continue;
      if (!close) {
        parser->discard_body();
        read = co_await read_body(*parser);
        close = read != ReadResult::kReady || parser->state() != RequestParser::State::kDone;
      }
    }
    record_.bytes_in = parser->received_bytes();
    const bool kept = co_await refuse(std::move(refusal), close);
    co_return kept;
  }

  if (parser->has_body()) {
    if (wants_continue && input().empty()) {
      out_ += "HTTP/1.1 100 Continue\r\n\r\n";
      const bool sent = co_await flush();
      if (!sent) co_return false;
    }
    read = co_await read_body(*parser);
    record_.bytes_in = parser->received_bytes();
    if (read == ReadResult::kClosed) co_return false;
    if (read == ReadResult::kOverload) {
      const bool kept =
          co_await refuse(overloaded("the bodies of the requests in progress take too much memory; try again later", "overloaded"), true);
      co_return kept;
    }
    if (read == ReadResult::kTimeout || parser->state() == RequestParser::State::kFailed) {
      HttpResponse late =
          error_response(408, "the request's body did not arrive in time; send it faster", "invalid_request_error", "", "request_timeout");
      if (read != ReadResult::kTimeout) late = error_response(parser->failure().status, parser->failure().message, "invalid_request_error");
      const bool kept = co_await refuse(std::move(late), true);
      co_return kept;
    }
  }
  HttpRequest taken = std::move(request);
  parser.reset();  // a stream may last for hours
  if (!dispatch(*route, std::move(taken))) {
    const bool kept = co_await refuse(
        overloaded(fmt::format("{} requests wait already for a worker; try again later", shared_->options.max_queued_requests),
                   "overloaded"),
        false);
    co_return kept;
  }
  const bool answered = co_await answer();
  end_request(!answered);
  if (answered && close_after_) co_await linger();
  co_return answered && !close_after_;
}

asio::awaitable<Connection::ReadResult> Connection::read_head(RequestParser& parser) {
  const Clock::time_point idle_deadline = Clock::now() + shared_->options.idle_timeout;
  Clock::time_point deadline = idle_deadline;
  bool begun = false;
  int empty_lines = 0;
  for (;;) {
    if (stopping_) co_return ReadResult::kClosed;
    // Old clients send an empty line behind a body (RFC 9112, 2.2).
    while (!begun && input().starts_with("\r\n") && ++empty_lines <= kMaxEmptyLines) consume(2);
    if (!input().empty() && (begun || input() != "\r")) {
      if (!begun) {
        begun = true;
        received_ = Clock::now();
        deadline = received_ + shared_->options.header_timeout;
      }
      consume(parser.feed(input()));
      if (parser.state() != RequestParser::State::kHead) co_return ReadResult::kReady;
    }
    const IoStatus status = read_input(SIZE_MAX);
    if (status == IoStatus::kClosed) co_return ReadResult::kClosed;
    // After the read: a request that had come before the drain is answered.
    if (!begun && status != IoStatus::kDone && shared_->draining) co_return ReadResult::kClosed;
    if (status != IoStatus::kDone) {
      arm(status);
      (void)co_await wait(deadline);
    }
    if (Clock::now() >= deadline) co_return begun ? ReadResult::kTimeout : ReadResult::kClosed;
  }
}

asio::awaitable<Connection::ReadResult> Connection::read_body(RequestParser& parser) {
  const Clock::time_point begin = Clock::now();
  const int64_t head_bytes = static_cast<int64_t>(parser.received_bytes());
  for (int reads = 1;; ++reads) {
    if (stopping_) co_return ReadResult::kClosed;
    if (reads % kReadsPerTurn == 0) co_await asio::post(thread_->context(), asio::use_awaitable);
    consume(parser.feed(input()));
    if (!account_body(parser.request().body.size())) co_return ReadResult::kOverload;
    if (parser.state() != RequestParser::State::kBody) co_return ReadResult::kReady;
    const int64_t received = static_cast<int64_t>(parser.received_bytes()) - head_bytes;
    const Clock::time_point deadline =
        begin + shared_->options.body_timeout + std::chrono::milliseconds(received * 1000 / kMinBodyBytesPerSecond);
    const IoStatus status = read_input(SIZE_MAX);
    if (status == IoStatus::kClosed) co_return ReadResult::kClosed;
    if (status != IoStatus::kDone) {
      arm(status);
      (void)co_await wait(deadline);
    }
    if (Clock::now() >= deadline) co_return ReadResult::kTimeout;
  }
}

bool Connection::account_body(size_t bytes) {
  const int64_t limit = kMaxBodiesInProgress * static_cast<int64_t>(shared_->options.max_body_bytes);
  const int64_t more = static_cast<int64_t>(bytes) - std::exchange(body_bytes_, static_cast<int64_t>(bytes));
  return shared_->body_bytes.fetch_add(more) + more <= limit;
}

// Answers on the I/O thread, without a handler.
asio::awaitable<bool> Connection::refuse(HttpResponse response, bool close) {
  if (close) close_after_ = true;
  put_response(response);
  const bool sent = co_await flush();
  const bool ends = close_after_;
  end_request(!sent);
  if (sent && ends) co_await linger();
  co_return sent && !ends;
}

void Connection::begin_request(RequestParser& parser) {
  HttpRequest& request = parser.request();
  active_ = true;
  shared_->request_begins();
  shared_->stats.requests.fetch_add(1);
  http_1_0_ = parser.http_1_0();
  head_only_ = request.method == "HEAD";
  close_after_ = !parser.keep_alive() || shared_->draining;
  answer_ = {};
  first_output_ = {};
  request.peer = peer_;
  request.received = received_;
  const std::string_view id = request.header("x-request-id");
  request.id = valid_request_id(id) ? std::string(id) : make_request_id();
  const std::string_view trace = request.header("traceparent");
  if (valid_traceparent(trace)) request.traceparent = trace;
  cors_ = shared_->router.cors_headers(request.header("origin"));
  record_ = {};
  record_.time = std::chrono::system_clock::now();
  record_.request_id = request.id;
  if (!request.traceparent.empty()) record_.trace_id = request.traceparent.substr(3, 32);
  record_.peer = peer_;
  record_.method = request.method;
  record_.path = request.path.empty() ? std::string(parser.target().substr(0, 1024)) : request.path;
  record_.bytes_in = parser.received_bytes();
}

bool Connection::dispatch(const Route& route, HttpRequest request) {
  // The thread outlives its posted tasks, the connection need not: a task that is left over at the end holds nothing.
  std::weak_ptr<Connection> weak = weak_from_this();
  exchange_ = std::make_shared<Exchange>(
      thread_,
      [weak] {
        if (std::shared_ptr<Connection> connection = weak.lock()) connection->signal();
      },
      32 * shared_->options.max_send_buffer);
  std::function<void()> task = [exchange = exchange_, request = std::move(request), &route]() mutable {
    if (exchange->closed()) return;  // nobody waits any more
    std::shared_ptr<HttpResponder> responder = make_responder(exchange);
    try {
      route.handler(responder, std::move(request));
    } catch (const std::exception& error) {
      exchange->abandon(fmt::format("the handler of {} {} failed: {}", route.method, route.path, error.what()));
    } catch (...) {
      exchange->abandon(fmt::format("the handler of {} {} failed", route.method, route.path));
    }
  };
  return shared_->workers->submit(task);
}

void Connection::end_request(bool client_closed) {
  active_ = false;
  account_body(0);
  if (exchange_ != nullptr) {
    record_.fields = exchange_->access_fields();
    std::exchange(exchange_, nullptr)->close(client_closed);
  }
  const Clock::time_point now = Clock::now();
  if (client_closed && !stopping_) shared_->stats.client_closed.fetch_add(1);
  record_.client_closed = client_closed;
  record_.duration_s = std::chrono::duration<double>(now - received_).count();
  if (record_.fields.ttft_s < 0 && answer_.streaming && first_output_ != Clock::time_point{}) {
    record_.fields.ttft_s = std::chrono::duration<double>(first_output_ - received_).count();
  }
  if (shared_->access_log != nullptr) shared_->access_log->write(std::move(record_));
  record_ = {};
  cors_ = {};
  shared_->request_ends();
}

// IoThread

IoThread::IoThread(std::shared_ptr<HttpShared> shared) : shared_(std::move(shared)), work_(context_.get_executor()) {}

void IoThread::start() {
  thread_ = std::thread([this] {
    block_signals_in_this_thread();
    for (;;) {
      try {
        context_.run();
        return;
      } catch (const std::exception& error) {  // of a callback, or no memory: the other connections go on
        log_error(fmt::format("HTTP I/O thread: {}", error.what()));
      }
    }
  });
}

void IoThread::post(std::function<void()> task) { asio::post(context_, std::move(task)); }

void IoThread::adopt(int fd, bool over_limit) {
  struct Socket {
    int fd;
    explicit Socket(int owned) : fd(owned) {}
    Socket(const Socket&) = delete;
    ~Socket() {
      if (fd >= 0) ::close(fd);
    }
  };
  auto socket = std::make_shared<Socket>(fd);
  post([this, socket, over_limit] {
    if (stopping_) return;
    auto connection = std::make_shared<Connection>(shared_, shared_from_this(), std::exchange(socket->fd, -1), over_limit);
    connections_.insert(connection);
    connection->start();
  });
}

void IoThread::drain() {
  post([this] {
    for (const std::shared_ptr<Connection>& connection : connections_) connection->signal();
  });
}

void IoThread::close_all() {
  auto gone = std::make_shared<std::promise<void>>();
  post([this, gone] {
    stopping_ = true;
    for (const std::shared_ptr<Connection>& connection : connections_) connection->stop();
    if (connections_.empty()) return gone->set_value();
    all_gone_ = [gone] { gone->set_value(); };
  });
  gone->get_future().wait();
}

void IoThread::join() {
  work_.reset();
  if (thread_.joinable()) thread_.join();
}

void IoThread::remove(const std::shared_ptr<Connection>& connection) {
  connections_.erase(connection);
  if (stopping_ && connections_.empty() && all_gone_) std::exchange(all_gone_, nullptr)();
}

}  // namespace dg
