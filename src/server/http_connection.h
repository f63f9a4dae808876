// Connection and its I/O thread. Internal to the HTTP floor: only http_connection*.cpp and http_server.cpp include it (Asio).
//
// A connection is one coroutine on the io_context of one I/O thread, and everything in it belongs to that thread. It waits in
// one place, wait(): for a signal or a deadline. What may wake it signals: the socket became readable or writable, an
// exchange has output, drain, stop. While a request is in progress the socket stays armed for reading, so a client that goes
// away is noticed at once; what a pipelining client sends ahead is kept up to a limit.
//
// Bytes are read into a buffer of the thread, and buffers of a connection are given back when they are empty: an idle stream
// costs its coroutine frames and little else.
#pragma once
#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

#include "server/access_log.h"
#include "server/http_exchange.h"
#include "server/http_parser.h"
#include "server/http_router.h"
#include "server/http_server.h"
#include "server/http_transport.h"
#include "server/http_workers.h"

namespace dg {

// What all connections of a server share; outlives them.
struct HttpShared {
  HttpShared(const HttpServerOptions& options, std::vector<Route> routes, std::shared_ptr<const ApiKeys> keys)
      : options(options), router(std::move(routes), options.allowed_origins), keys(std::move(keys)) {}

  const HttpServerOptions options;
  const Router router;
  const std::shared_ptr<const ApiKeys> keys;
  std::unique_ptr<TlsContext> tls;
  std::unique_ptr<AccessLog> access_log;
  std::unique_ptr<HttpWorkers> workers;
  HttpStats stats;
  std::atomic<int64_t> body_bytes{0};    // of all requests in progress
  std::atomic<int64_t> open_sockets{0};  // with those over the limit that only hear a 503
  std::atomic<bool> draining{false};
  std::mutex idle_mutex;
  std::condition_variable idle;

  void request_begins() { stats.requests_active.fetch_add(1); }
  void request_ends() {
    if (stats.requests_active.fetch_sub(1) != 1) return;
    std::lock_guard lock(idle_mutex);
    idle.notify_all();
  }
};

class Connection;

class IoThread final : public IoExecutor, public std::enable_shared_from_this<IoThread> {
 public:
  explicit IoThread(std::shared_ptr<HttpShared> shared);
  void start();
  void post(std::function<void()> task) override;
  void adopt(int fd, bool over_limit);  // any thread; owns the descriptor from now on
  void drain();                         // any thread
  void close_all();                     // any thread but this one: stops the connections, waits until they are gone
  void join();                          // after close_all()

  // I/O thread only.
  void remove(const std::shared_ptr<Connection>& connection);
  boost::asio::io_context& context() { return context_; }
  std::vector<char>& scratch() { return scratch_; }

 private:
  const std::shared_ptr<HttpShared> shared_;
  boost::asio::io_context context_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  std::vector<char> scratch_ = std::vector<char>(64 << 10);
  std::unordered_set<std::shared_ptr<Connection>> connections_;
  bool stopping_ = false;
  std::function<void()> all_gone_;
  std::thread thread_;
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::shared_ptr<HttpShared> shared, std::shared_ptr<IoThread> thread, int fd, bool over_limit);
  ~Connection();
  void start();
  void signal();
  void stop();  // ends at its next step

 private:
  using Clock = std::chrono::steady_clock;
  enum class ReadResult { kReady, kTimeout, kOverload, kClosed };
  template <class T>
  using Awaitable = boost::asio::awaitable<T>;

  // http_connection.cpp: the life of a connection and of a request
  Awaitable<void> run();
  Awaitable<void> serve();
  Awaitable<bool> serve_request();  // false: the connection ends
  Awaitable<bool> handshake();
  Awaitable<ReadResult> read_head(RequestParser& parser);
  Awaitable<ReadResult> read_body(RequestParser& parser);
  Awaitable<bool> refuse(HttpResponse response, bool close);
  bool dispatch(const Route& route, HttpRequest request);
  bool account_body(size_t bytes);  // false: too many bytes of all requests
  void begin_request(RequestParser& parser);
  void end_request(bool client_closed);
  void close();

  // http_connection_io.cpp: bytes, waiting, and the answer
  Awaitable<bool> wait(Clock::time_point deadline);  // false: the deadline has passed
  Awaitable<bool> answer();                          // the exchange's answer; false: the connection is broken
  Awaitable<bool> flush();
  Awaitable<void> linger();
  void arm(IoStatus wanted);
  IoStatus read_input(size_t max_bytes);
  bool watch_input();  // false: the client is gone
  IoStatus write_output();
  bool take_output(ExchangeOutput output);  // false: the stream breaks off
  void put_response(const HttpResponse& response);
  void put_stream_head(const StreamHead& head);
  void put_stream_bytes(std::string_view bytes);
  std::string_view input() const { return std::string_view(in_).substr(in_at_); }
  void consume(size_t bytes);
  size_t unsent() const { return out_.size() - out_at_; }

  const std::shared_ptr<HttpShared> shared_;
  const std::shared_ptr<IoThread> thread_;  // before what lives on its io_context
  boost::asio::posix::stream_descriptor descriptor_;
  boost::asio::steady_timer timer_;
  Transport transport_;
  const bool over_limit_;
  bool signalled_ = false, read_armed_ = false, write_armed_ = false, stopping_ = false;
  std::string peer_;
  std::string in_, out_;
  size_t in_at_ = 0, out_at_ = 0;

  // The request in progress.
  bool active_ = false, close_after_ = false, http_1_0_ = false, head_only_ = false;
  int64_t body_bytes_ = 0;  // counted in shared_->body_bytes
  Clock::time_point received_{}, first_output_{};
  AccessRecord record_;
  HttpHeaders cors_;
  std::shared_ptr<Exchange> exchange_;

  // Its answer.
  struct {
    bool head_sent = false, streaming = false, chunked = false, sse = false, ended = false, blocked = false;
    Clock::time_point last_output{};
  } answer_;
};

}  // namespace dg
