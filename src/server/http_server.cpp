// HttpServer: the listener, the threads, and their orderly end.
//
// stop() takes things down in the order that lets every callback run: first the listener and the connections (on_close is
// called), then the workers (a handler that only now registers on_close is still told), then the I/O threads.
#include "server/http_server.h"

#include <fmt/core.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/dispatch.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cerrno>
#include <cstring>
#include <future>

#include "base/log.h"
#include "server/http_connection.h"
#include "server/http_listener.h"

namespace dg {

namespace asio = boost::asio;

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kAcceptsPerWake = 64;
// Connections over the limit that are told so at one time; beyond, they are closed without a word.
constexpr int64_t kMaxRefusals = 64;
constexpr auto kAcceptPause = std::chrono::milliseconds(50);

// Accepts on one I/O thread and deals connections out to all. Everything but close() on that thread.
class Acceptor : public std::enable_shared_from_this<Acceptor> {
 public:
  Acceptor(std::shared_ptr<HttpShared> shared, std::vector<std::shared_ptr<IoThread>> threads, ListenSocket socket)
      : shared_(std::move(shared)),
        threads_(std::move(threads)),
        socket_(std::move(socket)),
        descriptor_(threads_[0]->context(), socket_.release()),
        timer_(threads_[0]->context()) {}

  void arm() {
    descriptor_.async_wait(asio::posix::stream_descriptor::wait_read, [self = shared_from_this()](boost::system::error_code error) {
      if (!error) self->accept_some();
    });
  }

  // Any thread; returns when nobody can connect any more.
  void close() {
    auto closed = std::make_shared<std::promise<void>>();
    asio::dispatch(threads_[0]->context(), [self = shared_from_this(), closed] {
      boost::system::error_code ignored;
      self->descriptor_.close(ignored);
      self->timer_.cancel(ignored);
      self->socket_.unlink();
      closed->set_value();
    });
    closed->get_future().wait();
  }

 private:
  void accept_some() {
    for (int i = 0; i < kAcceptsPerWake && descriptor_.is_open(); ++i) {
      const int fd = ::accept4(descriptor_.native_handle(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd >= 0) {
        adopt(fd);
      } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
        break;
      } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        return pause(errno);
      }
      // Other errors are those of one connection (ECONNABORTED, EPROTO, ...).
    }
    if (descriptor_.is_open()) arm();
  }

  void adopt(int fd) {
    const int64_t limit = shared_->options.max_connections;
    const bool over_limit = handed_out() >= limit;
    if (over_limit && shared_->open_sockets.load() >= limit + kMaxRefusals) {
      ::close(fd);
      return;
    }
    if (!socket_.is_unix()) {
      const int on = 1;
      ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    shared_->stats.accepted.fetch_add(1);
    threads_[next_++ % threads_.size()]->adopt(fd, over_limit);
  }

  int64_t handed_out() const { return shared_->stats.connections.load(); }

  // Out of descriptors or memory: the connection waits in the backlog. Trying again at once would only spin.
  void pause(int error) {
    const Clock::time_point now = Clock::now();
    if (now >= next_warning_) {
      next_warning_ = now + std::chrono::seconds(10);
      log_warning(fmt::format("HTTP server {}: cannot accept connections: {}; they wait. Raise the limit of open files (ulimit -n)",
                              shared_->options.name, std::strerror(error)));
    }
    timer_.expires_after(kAcceptPause);
    timer_.async_wait([self = shared_from_this()](boost::system::error_code error_code) {
      if (!error_code && self->descriptor_.is_open()) self->arm();
    });
  }

  const std::shared_ptr<HttpShared> shared_;
  const std::vector<std::shared_ptr<IoThread>> threads_;
  ListenSocket socket_;  // its descriptor belongs to descriptor_
  asio::posix::stream_descriptor descriptor_;
  asio::steady_timer timer_;
  size_t next_ = 0;
  Clock::time_point next_warning_{};
};

class Server final : public HttpServer {
 public:
  Server(std::shared_ptr<HttpShared> shared, ListenSocket socket)
      : shared_(std::move(shared)), port_(socket.port()), address_(socket.address()) {
    const HttpServerOptions& options = shared_->options;
    shared_->workers = std::make_unique<HttpWorkers>(options.worker_threads, options.max_queued_requests);
    for (int i = 0; i < options.io_threads; ++i) threads_.push_back(std::make_shared<IoThread>(shared_));
    acceptor_ = std::make_shared<Acceptor>(shared_, threads_, std::move(socket));
    acceptor_->arm();
    for (const auto& thread : threads_) thread->start();
  }
  ~Server() override { stop(); }

  int port() const override { return port_; }
  std::string address() const override { return address_; }
  const HttpStats& stats() const override { return shared_->stats; }

  void drain() override {
    std::lock_guard lock(mutex_);
    if (stopped_) return;
    shared_->draining = true;
    acceptor_->close();
    for (const auto& thread : threads_) thread->drain();
  }

  bool wait_idle(std::chrono::milliseconds limit) override {
    std::unique_lock lock(shared_->idle_mutex);
    return shared_->idle.wait_for(lock, limit, [this] { return shared_->stats.requests_active.load() == 0; });
  }

  void stop() override {
    std::lock_guard lock(mutex_);
    if (std::exchange(stopped_, true)) return;
    shared_->draining = true;
    acceptor_->close();
    for (const auto& thread : threads_) thread->close_all();
    shared_->workers->stop();
    for (const auto& thread : threads_) thread->join();
    acceptor_.reset();  // and with it its references to the threads
    threads_.clear();
    if (shared_->access_log != nullptr) shared_->access_log->flush();
  }

  void reopen_access_log() override {
    if (shared_->access_log != nullptr) shared_->access_log->reopen();
  }

 private:
  const std::shared_ptr<HttpShared> shared_;
  const int port_;
  const std::string address_;
  std::vector<std::shared_ptr<IoThread>> threads_;
  std::shared_ptr<Acceptor> acceptor_;
  std::mutex mutex_;
  bool stopped_ = false;
};

Result<void> check_options(const HttpServerOptions& options) {
  auto positive = [](std::string_view name, int64_t value) -> Result<void> {
    if (value > 0) return {};
    return input_error(fmt::format("{}: expected at least 1, found {}; give a positive number", name, value));
  };
  DG_TRY(positive("HTTP I/O threads", options.io_threads));
  DG_TRY(positive("HTTP worker threads", options.worker_threads));
  DG_TRY(positive("--max-connections", options.max_connections));
  DG_TRY(positive("--max-body-bytes", static_cast<int64_t>(options.max_body_bytes)));
  DG_TRY(positive("--max-header-bytes", static_cast<int64_t>(options.max_header_bytes)));
  DG_TRY(positive("--max-send-buffer", static_cast<int64_t>(options.max_send_buffer)));
  DG_TRY(positive("--slow-client-timeout", options.slow_client_timeout.count()));
  DG_TRY(positive("SSE heartbeat interval", options.heartbeat.count()));
  if (options.tls_certificate.empty() != options.tls_key.empty()) {
    return input_error(fmt::format("{} is given without {}; TLS needs both", options.tls_key.empty() ? "--ssl-certfile" : "--ssl-keyfile",
                                   options.tls_key.empty() ? "--ssl-keyfile" : "--ssl-certfile"));
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<HttpServer>> HttpServer::start(const HttpServerOptions& options, std::vector<Route> routes,
                                                      std::shared_ptr<const ApiKeys> keys) {
  DG_TRY(check_options(options));
  auto shared = std::make_shared<HttpShared>(options, std::move(routes), std::move(keys));
  if (!options.tls_certificate.empty()) {
    DG_ASSIGN(shared->tls, TlsContext::load(options.tls_certificate, options.tls_key));
  }
  if (!options.access_log.empty()) {
    DG_ASSIGN(shared->access_log, AccessLog::open(options.access_log));
  }
  DG_ASSIGN(ListenSocket socket, ListenSocket::open(options.listen, shared->tls != nullptr ? "https" : "http"));
  try {
    return std::unique_ptr<HttpServer>(std::make_unique<Server>(std::move(shared), std::move(socket)));
  } catch (const std::exception& error) {  // no thread, no descriptor for the event queue
    return resource_error(fmt::format("cannot start the HTTP server: {}; raise the limits of processes and open files", error.what()));
  }
}

}  // namespace dg
