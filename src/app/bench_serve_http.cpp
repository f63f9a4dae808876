// The HTTP client of `dougong bench serve`: one thread, one coroutine and one connection for each request, so thousands of
// streams are cheap. Beast parses the answers; everything else here is sockets and timers.
//
// A connection is closed by whoever wants to end its request early (time limit, Ctrl-C): the coroutine then sees a failed
// read and asks the connection why. Cross builds have no Boost and OpenSSL and leave `bench` out.
#include "app/bench_serve.h"

#include <fmt/core.h>
#include <sys/resource.h>

#include <algorithm>
#include <boost/asio.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <set>

#include "app/bench_serve_stream.h"

namespace dg {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;
using Socket = asio::generic::stream_protocol::socket;
using Clock = std::chrono::steady_clock;

constexpr size_t kChunkBytes = 8192, kSlowBytes = 64;
constexpr auto kSlowPause = std::chrono::milliseconds(100);
constexpr size_t kMaxErrorBytes = size_t{1} << 20;
constexpr uint64_t kMaxFetchBytes = uint64_t{64} << 20;

auto into(error_code& error) { return asio::redirect_error(asio::use_awaitable, error); }

double seconds_from(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// What one run shares: addresses and TLS settings.
struct Target {
  const BenchServer& server;
  std::vector<Socket::endpoint_type> endpoints;
  std::optional<asio::ssl::context> tls;
};

Result<Target> resolve(asio::io_context& io, const BenchServer& server) {
  Target target{server, {}, {}};
  error_code error;
  if (!server.unix_path.empty()) {
    if (server.unix_path.size() > 100)
      return input_error(
          fmt::format("--url {}: expected a socket path of at most 100 bytes, found {}", server.url, server.unix_path.size()));
    target.endpoints.emplace_back(asio::local::stream_protocol::endpoint(server.unix_path));
    return target;
  }
  asio::ip::tcp::resolver resolver(io);
  for (const auto& entry : resolver.resolve(server.host, server.port, error)) target.endpoints.emplace_back(entry.endpoint());
  if (error || target.endpoints.empty())
    return io_error(fmt::format("--url {}: cannot find the host {}: {}", server.url, server.host, error.message()));
  if (server.tls) {
    target.tls.emplace(asio::ssl::context::tls_client);
    target.tls->set_default_verify_paths(error);
    target.tls->set_verify_mode(server.verify_tls ? asio::ssl::verify_peer : asio::ssl::verify_none);
    if (server.verify_tls) target.tls->set_verify_callback(asio::ssl::host_name_verification(server.host));
  }
  return target;
}

// A plain or encrypted stream.
class Connection {
 public:
  Connection(asio::io_context& io, Target& target) : target_(target), socket_(io), limit_(io) {}

  asio::awaitable<void> open(error_code& error) {
    for (const auto& endpoint : target_.endpoints) {
      error_code ignored;
      socket_.close(ignored);
      co_await socket_.async_connect(endpoint, into(error));
      if (!error || why_) break;
    }
    if (error) co_return;
    error_code ignored;
    if (target_.server.unix_path.empty()) socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
    if (!target_.tls) co_return;
    tls_.emplace(socket_, *target_.tls);
    SSL_set_tlsext_host_name(tls_->native_handle(), target_.server.host.c_str());
    co_await tls_->async_handshake(asio::ssl::stream_base::client, into(error));
  }
  asio::awaitable<void> write(const std::string& bytes, error_code& error) {
    if (tls_) co_await asio::async_write(*tls_, asio::buffer(bytes), into(error));
    else co_await asio::async_write(socket_, asio::buffer(bytes), into(error));
  }
  asio::awaitable<size_t> read_some(asio::mutable_buffer buffer, error_code& error) {
    if (tls_) co_return co_await tls_->async_read_some(buffer, into(error));
    co_return co_await socket_.async_read_some(buffer, into(error));
  }
  // A small receive buffer, so that a slow reader is felt by the server.
  void read_slowly() {
    error_code ignored;
    socket_.set_option(asio::socket_base::receive_buffer_size(4096), ignored);
  }
  // Ends whatever is going on; `why` is a literal that why() then gives. The first reason counts.
  void close(const char* why) {
    if (!why_) why_ = why;
    error_code ignored;
    socket_.close(ignored);
  }
  const char* why() const { return why_; }
  asio::steady_timer& limit() { return limit_; }

 private:
  Target& target_;
  Socket socket_;
  asio::steady_timer limit_;
  std::optional<asio::ssl::stream<Socket&>> tls_;
  const char* why_ = nullptr;
};

constexpr const char *kTimedOut = "timeout", *kStopped = "stopped", *kLeft = "left";

void set_limit(const std::shared_ptr<Connection>& connection, double seconds) {
  connection->limit().expires_after(std::chrono::milliseconds(static_cast<int64_t>(seconds * 1e3)));
  connection->limit().async_wait([weak = std::weak_ptr(connection)](error_code error) {
    auto alive = weak.lock();
    if (!error && alive) alive->close(kTimedOut);
  });
}

std::string request_text(const BenchServer& server, std::string_view method, std::string_view path, const std::string& body, bool stream) {
  const bool v6 = server.host.find(':') != std::string::npos;
  const std::string port = server.unix_path.empty() ? ":" + server.port : "";
  std::string out = fmt::format("{} {}{} HTTP/1.1\r\nHost: {}{}{}{}\r\nUser-Agent: dougong-bench\r\nAccept: {}\r\nConnection: close\r\n",
                                method, server.base_path, path, v6 ? "[" : "", server.host, v6 ? "]" : "", port,
                                stream ? "text/event-stream" : "application/json");
  if (!server.api_key.empty()) out += fmt::format("Authorization: Bearer {}\r\n", server.api_key);
  if (!body.empty()) out += fmt::format("Content-Type: application/json\r\nContent-Length: {}\r\n", body.size());
  return out + "\r\n" + body;
}

// Feeds bytes to Beast's parser and hands out the body as it comes.
class Answer {
 public:
  Answer() {
    parser_.eager(true);
    parser_.body_limit(boost::none);
  }
  // "" or what is wrong.
  std::string push(std::string_view bytes) {
    pending_ += bytes;
    while (!pending_.empty() && !parser_.is_done()) {
      error_code error;
      const size_t used = parser_.put(asio::buffer(pending_), error);
      pending_.erase(0, used);
      if (error == http::error::need_more) break;
      if (error) return error.message();
      if (used == 0) break;
    }
    return "";
  }
  std::string end() {
    error_code error;
    if (parser_.is_done()) return "";
    parser_.put_eof(error);
    return error ? error.message() : "";
  }
  bool has_header() const { return parser_.is_header_done(); }
  bool done() const { return parser_.is_done(); }
  int status() const { return static_cast<int>(parser_.get().result_int()); }
  std::string type() const { return std::string(parser_.get()[http::field::content_type]); }
  std::string take_body() { return std::exchange(parser_.get().body(), {}); }

 private:
  http::response_parser<http::string_body> parser_;
  std::string pending_;
};

asio::awaitable<void> fetch(std::shared_ptr<Connection> connection, std::string request, BenchReply& reply, std::string& problem) {
  error_code error;
  co_await connection->open(error);
  if (error) {
    problem = "cannot connect: " + error.message();
    co_return;
  }
  co_await connection->write(request, error);
  Answer answer;
  std::vector<char> chunk(kChunkBytes);
  while (!error && problem.empty() && !answer.done()) {
    const size_t n = co_await connection->read_some(asio::buffer(chunk), error);
    problem = answer.push({chunk.data(), n});
    if (answer.has_header()) reply.body += answer.take_body();
    if (reply.body.size() > kMaxFetchBytes) problem = "the answer is too long";
  }
  if (problem.empty() && error && !answer.done()) problem = answer.end().empty() && answer.has_header() ? "" : error.message();
  if (answer.has_header()) reply.status = answer.status();
}

class LoadRunner {
 public:
  LoadRunner(asio::io_context& io, Target& target, const std::vector<BenchRequest>& requests, const BenchLoad& load)
      : io_(io), target_(target), requests_(requests), load_(load), arrival_(io), slot_(io), watch_(io) {
    run_.outcomes.resize(requests.size());
  }

  BenchRun run() {
    begin_ = Clock::now();
    asio::co_spawn(io_, drive(), asio::detached);
    asio::co_spawn(io_, watch(), asio::detached);
    io_.run();
    return std::move(run_);
  }

 private:
  asio::awaitable<void> drive() {
    error_code ignored;
    for (size_t i = 0; i < requests_.size() && !stopping_; i++) {
      const auto start = begin_ + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(requests_[i].start_s));
      if (start > Clock::now()) {
        arrival_.expires_at(start);
        co_await arrival_.async_wait(into(ignored));
      }
      while (load_.concurrency > 0 && running_ >= load_.concurrency && !stopping_) co_await wait_for_slot();
      if (stopping_) break;
      running_++;
      asio::co_spawn(io_, one(i), asio::detached);
    }
    while (running_ > 0) co_await wait_for_slot();
    run_.duration_s = seconds_from(begin_);
    finished_ = true;
    watch_.cancel();
  }

  asio::awaitable<void> wait_for_slot() {
    error_code ignored;
    slot_.expires_at(Clock::time_point::max());
    co_await slot_.async_wait(into(ignored));
  }

  // Ctrl-C sets a flag only: somebody has to look.
  asio::awaitable<void> watch() {
    error_code ignored;
    while (!finished_) {
      watch_.expires_after(std::chrono::milliseconds(50));
      co_await watch_.async_wait(into(ignored));
      if (!load_.stop || !*load_.stop || stopping_) continue;
      stopping_ = true;
      for (Connection* connection : open_) connection->close(kStopped);
      arrival_.cancel();
      slot_.cancel();
    }
  }

  asio::awaitable<void> one(size_t i) {
    auto connection = std::make_shared<Connection>(io_, target_);
    open_.insert(connection.get());
    set_limit(connection, target_.server.timeout_s);
    co_await exchange(*connection, requests_[i], run_.outcomes[i]);
    connection->limit().cancel();
    open_.erase(connection.get());
    running_--;
    if (load_.on_end) load_.on_end();
    slot_.cancel();
  }

  asio::awaitable<void> exchange(Connection& connection, const BenchRequest& request, BenchOutcome& outcome) {
    const auto begin = Clock::now();
    outcome.prompt_tokens = request.prompt_tokens;
    error_code error;
    BenchStream stream(load_.chat);
    auto failed = [&](const char* kind, std::string message) {
      outcome.kind = BenchOutcome::kFailed;
      outcome.error_kind = kind;
      outcome.error = std::move(message);
    };
    // A connection that was closed on purpose says so; else the error of the operation counts.
    auto broken = [&](const char* kind, const char* doing) {
      if (connection.why() == kStopped) outcome.kind = BenchOutcome::kCancelled;
      else if (connection.why() == kTimedOut)
        failed("timeout", fmt::format("no complete answer within {} s ({} events came); see --timeout", target_.server.timeout_s,
                                      stream.text_events()));
      else failed(kind, fmt::format("{} {}: {}", doing, target_.server.url, error.message()));
    };
    co_await connection.open(error);
    if (error) {
      broken("connect", "cannot connect to");
      co_return;
    }
    if (request.slow) connection.read_slowly();
    co_await connection.write(request_text(target_.server, "POST", load_.path, request.body, true), error);
    if (error) {
      broken("closed", "cannot send the request to");
      co_return;
    }
    Answer answer;
    std::string error_body;
    std::vector<char> chunk(request.slow ? kSlowBytes : kChunkBytes);
    asio::steady_timer pause(io_);
    while (!answer.done()) {
      if (request.disconnect_after >= 0 && stream.text_events() >= request.disconnect_after) {
        connection.close(kLeft);
        outcome.kind = BenchOutcome::kDisconnected;
        co_return;
      }
      const size_t n = co_await connection.read_some(asio::buffer(chunk), error);
      const double now_s = seconds_from(begin);
      if (error && connection.why()) break;
      const std::string wrong = error ? answer.end() : answer.push({chunk.data(), n});
      if (!wrong.empty() && !error) {
        failed("malformed", "the answer is not HTTP/1.1: " + wrong);
        co_return;
      }
      if (answer.has_header()) {
        const std::string body = answer.take_body();
        if (answer.status() != 200) {
          error_body += body.substr(0, kMaxErrorBytes - std::min(error_body.size(), kMaxErrorBytes));
        } else if (!answer.type().starts_with("text/event-stream")) {
          failed("malformed", fmt::format("expected the content type text/event-stream, found \"{}\"", bench_reply_reason(answer.type())));
          co_return;
        } else if (!stream.push(body, now_s)) {
          failed(stream.error_kind().c_str(), stream.error());
          co_return;
        }
      }
      if (error) break;
      if (request.slow) {
        error_code ignored;
        pause.expires_after(kSlowPause);
        co_await pause.async_wait(into(ignored));
      }
    }
    if (error && connection.why()) broken("closed", "");
    else if (!answer.has_header()) broken("closed", "no answer from");
    else if (answer.status() != 200) failed(fmt::format("http_{}", answer.status()).c_str(), bench_reply_reason(error_body));
    else if (!stream.finish()) failed(stream.error_kind().c_str(), stream.error());
    else if (!answer.done()) broken("closed", "the connection was cut within the answer of");
    else {
      outcome.kind = BenchOutcome::kCompleted;
      stream.fill(outcome);
    }
  }

  asio::io_context& io_;
  Target& target_;
  const std::vector<BenchRequest>& requests_;
  const BenchLoad& load_;
  asio::steady_timer arrival_, slot_, watch_;
  Clock::time_point begin_;
  BenchRun run_;
  size_t running_ = 0;
  bool stopping_ = false, finished_ = false;
  std::set<Connection*> open_;
};

Result<void> raise_connection_limit(size_t connections) {
  constexpr size_t kOtherFiles = 32;
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return {};
  const rlim_t need = connections + kOtherFiles;
  if (limit.rlim_cur >= need) return {};
  if (limit.rlim_max < need)
    return resource_error(
        fmt::format("{} connections at a time need {} open files, the system allows {}; lower --concurrency or raise `ulimit -n`",
                    connections, need, limit.rlim_max));
  limit.rlim_cur = need;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  return {};
}

Result<void> check_api_key(const BenchServer& server) {
  for (char c : server.api_key)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return input_error("--api-key: expected a key without control characters");
  return {};
}

}  // namespace

Result<BenchReply> bench_fetch(const BenchServer& server, std::string_view method, std::string_view path, const std::string& body) {
  DG_TRY(check_api_key(server));
  asio::io_context io(1);
  DG_ASSIGN(Target target, resolve(io, server));
  BenchReply reply;
  std::string problem;
  auto connection = std::make_shared<Connection>(io, target);
  set_limit(connection, std::min(server.timeout_s, 30.0));
  asio::co_spawn(io, fetch(connection, request_text(server, method, path, body, false), reply, problem),
                 [&connection](std::exception_ptr) { connection->limit().cancel(); });
  io.run();
  if (connection->why() == kTimedOut) problem = "no answer in time";
  if (!problem.empty()) return io_error(fmt::format("--url {}: {} ({}); start the server or pass its address", server.url, problem, path));
  return reply;
}

Result<BenchRun> run_bench_load(const BenchServer& server, const std::vector<BenchRequest>& requests, const BenchLoad& load) {
  DG_TRY(check_api_key(server));
  DG_TRY(raise_connection_limit(load.concurrency > 0 ? std::min(load.concurrency, requests.size()) : requests.size()));
  asio::io_context io(1);
  DG_ASSIGN(Target target, resolve(io, server));
  return LoadRunner(io, target, requests, load).run();
}

}  // namespace dg
