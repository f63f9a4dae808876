// The HTTP floor over real sockets: parsing, routing, limits, timeouts, life cycle. Streams: http_stream_test.cpp.
#include "server/http_server.h"

#include <gtest/gtest.h>

#include <fstream>
#include <future>
#include <stdexcept>

#include "base/json.h"
#include "server/http_test_client.h"
#include "server/http_text.h"

namespace dg {
namespace {

using namespace testing_http;

void echo(std::shared_ptr<HttpResponder> responder, HttpRequest request) {
  Json body = {{"method", request.method},     {"path", request.path},
               {"query", request.query},       {"body", request.body},
               {"peer", request.peer},         {"id", request.id},
               {"trace", request.traceparent}, {"tenant", request.tenant},
               {"key", request.key_name},      {"x", std::string(request.header("x-test"))}};
  responder->respond({.body = body.dump()});
}

std::vector<Route> basic_routes() {
  return {
      route("POST", "/v1/chat/completions", echo),
      route("GET", "/v1/models", echo),
      route("GET", "/health", echo, Role::kOpen),
      route("POST", "/admin/drain", echo, Role::kAdmin),
      route("GET", "/throws", [](auto, auto) { throw std::runtime_error("broken pipe organ"); }),
      route("GET", "/drops", [](auto, auto) {}),
      route("GET", "/injects",
            [](auto responder, auto) {
              responder->respond({.headers = {{"x-bad", "a\r\nSet-Cookie: b"}, {"x-good", "1"}}});
            }),
  };
}

class HttpServerTest : public ::testing::Test {
 protected:
  HttpServer& serve(HttpServerOptions options = {}, std::vector<Route> routes = basic_routes(),
                    std::shared_ptr<const ApiKeys> keys = nullptr) {
    if (options.listen.unix_path.empty()) options.listen.port = 0;
    auto server = HttpServer::start(options, std::move(routes), std::move(keys));
    EXPECT_TRUE(server.ok()) << server.error().message;
    server_ = std::move(*server);
    return *server_;
  }
  TestClient client() { return TestClient(server_->port()); }
  static std::string error_field(const TestResponse& response, const char* field) {
    Json json = Json::parse(response.body, nullptr, false);
    if (!json.is_object() || !json.contains("error")) return "no error object: " + response.body;
    EXPECT_EQ(json["error"].size(), 4u);  // message, type, param, code
    return json["error"][field].is_string() ? json["error"][field].get<std::string>() : "null";
  }
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, ParsesRequestAndKeepsConnection) {
  serve();
  TestClient c = client();
  TestResponse first = c.post("/v1/chat/completions?a=%20b", "hello", "X-Test:  spaced \r\n");
  ASSERT_EQ(first.status, 200);
  Json seen = Json::parse(first.body);
  EXPECT_EQ(seen["path"], "/v1/chat/completions");
  EXPECT_EQ(seen["query"], "a=%20b");
  EXPECT_EQ(seen["body"], "hello");
  EXPECT_EQ(seen["x"], "spaced");
  EXPECT_TRUE(seen["peer"].get<std::string>().starts_with("127.0.0.1:"));
  EXPECT_EQ(first.headers["content-type"], "application/json");
  EXPECT_EQ(first.headers["x-request-id"], seen["id"].get<std::string>());
  EXPECT_TRUE(first.headers["x-request-id"].starts_with("req-"));
  EXPECT_EQ(Json::parse(c.get("/v1/%6dodels").body)["path"], "/v1/models");
  EXPECT_EQ(server_->stats().accepted, 1u);
  EXPECT_EQ(server_->stats().requests, 2u);
}

TEST_F(HttpServerTest, AnswersPipelinedRequestsInOrder) {
  serve({.worker_threads = 4});
  TestClient c = client();
  std::string text;
  for (int i = 0; i < 100; ++i) text += "GET /health?" + std::to_string(i) + " HTTP/1.1\r\nHost: x\r\n\r\n";
  ASSERT_TRUE(c.send(text));
  for (int i = 0; i < 100; ++i) {
    TestResponse response = c.read_response();
    ASSERT_EQ(response.status, 200) << i;
    EXPECT_EQ(Json::parse(response.body)["query"], std::to_string(i));
  }
}

TEST_F(HttpServerTest, ReadsRequestSentByteByByte) {
  serve();
  TestClient c = client();
  const std::string text =
      "\r\nPOST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
      "5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\nTrailer: t\r\n\r\n";
  for (char byte : text) {
    ASSERT_TRUE(c.send({&byte, 1}));
    std::this_thread::sleep_for(100us);  // so that the server sees them one by one
  }
  TestResponse response = c.read_response();
  ASSERT_EQ(response.status, 200);
  EXPECT_EQ(Json::parse(response.body)["body"], "hello world");
  EXPECT_EQ(c.get("/health").status, 200);
}

TEST_F(HttpServerTest, RefusesUnknownRoutesMethodsAndKeepsConnection) {
  serve();
  TestClient c = client();
  TestResponse missing = c.post("/v1/chat/completion", "{}");
  EXPECT_EQ(missing.status, 404);
  EXPECT_EQ(error_field(missing, "message"), "there is no route POST /v1/chat/completion; the nearest is POST /v1/chat/completions");
  EXPECT_EQ(error_field(missing, "type"), "invalid_request_error");
  EXPECT_NE(error_field(c.get("/chat/completions"), "message").find("POST /v1/chat/completions"), std::string::npos);
  TestResponse method = c.get("/v1/chat/completions");
  EXPECT_EQ(method.status, 405);
  EXPECT_EQ(method.headers["allow"], "POST, OPTIONS");
  EXPECT_EQ(server_->stats().responses_4xx, 3u);
  EXPECT_EQ(server_->stats().accepted, 1u);
}

TEST_F(HttpServerTest, AnswersHead) {
  serve();
  TestClient c = client();
  c.send("HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n");
  TestResponse head = c.read_response(true);
  EXPECT_EQ(head.status, 200);
  EXPECT_GT(std::stoi(head.headers["content-length"]), 10);
  EXPECT_EQ(c.get("/health").status, 200);  // no body bytes came in between
}

TEST_F(HttpServerTest, AnswersCors) {
  serve({.allowed_origins = {"https://chat.example"}});
  TestClient c = client();
  c.send(
      "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: x\r\nOrigin: https://chat.example\r\n"
      "Access-Control-Request-Headers: authorization,x-y\r\n\r\n");
  TestResponse preflight = c.read_response();
  EXPECT_EQ(preflight.status, 204);
  EXPECT_EQ(preflight.headers["access-control-allow-origin"], "https://chat.example");
  EXPECT_EQ(preflight.headers["access-control-allow-methods"], "POST, OPTIONS");
  EXPECT_EQ(preflight.headers["access-control-allow-headers"], "authorization,x-y");
  EXPECT_EQ(preflight.headers["vary"], "Origin");
  EXPECT_EQ(c.get("/health", "Origin: https://chat.example\r\n").headers["access-control-allow-origin"], "https://chat.example");
  EXPECT_FALSE(c.get("/health", "Origin: https://evil.example\r\n").headers.contains("access-control-allow-origin"));
}

TEST_F(HttpServerTest, ChecksKeysAndRoles) {
  TestFolder folder;
  auto user = ApiKeys::generate("alice", Role::kUser, "team"), admin = ApiKeys::generate("root", Role::kAdmin, "");
  std::ofstream(folder.file("keys")) << user->line << "\n" << admin->line << "\n";
  ::chmod(folder.file("keys").c_str(), 0600);
  auto keys = ApiKeys::load(folder.file("keys"));
  ASSERT_TRUE(keys.ok()) << keys.error().message;
  serve({}, basic_routes(), *keys);
  TestClient c = client();
  TestResponse none = c.get("/v1/models");
  EXPECT_EQ(none.status, 401);
  EXPECT_EQ(none.headers["www-authenticate"], "Bearer realm=\"dougong\"");
  EXPECT_EQ(error_field(none, "code"), "invalid_api_key");
  EXPECT_EQ(error_field(none, "type"), "invalid_request_error");
  EXPECT_EQ(error_field(c.get("/v1/models", "anthropic-version: 2023-06-01\r\n"), "type"), "authentication_error");
  EXPECT_EQ(c.get("/v1/models", "Authorization: Bearer nonsense\r\n").status, 401);
  EXPECT_EQ(c.get("/health").status, 200);
  TestResponse good = c.get("/v1/models", "Authorization: Bearer " + user->key + "\r\n");
  EXPECT_EQ(good.status, 200);
  EXPECT_EQ(Json::parse(good.body)["tenant"], "team");
  EXPECT_EQ(Json::parse(good.body)["key"], "alice");
  EXPECT_EQ(c.post("/admin/drain", "", "x-api-key: " + user->key + "\r\n").status, 403);
  EXPECT_EQ(c.post("/admin/drain", "", "x-api-key: " + admin->key + "\r\n").status, 200);
}

TEST_F(HttpServerTest, AcceptsSaneRequestIdAndTraceparent) {
  serve();
  TestClient c = client();
  const std::string trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  TestResponse good = c.get("/health", "x-request-id: abc.D_1:2-3\r\ntraceparent: " + trace + "\r\n");
  EXPECT_EQ(good.headers["x-request-id"], "abc.D_1:2-3");
  EXPECT_EQ(Json::parse(good.body)["trace"], trace);
  TestResponse bad = c.get("/health", "x-request-id: a b\r\ntraceparent: 00-00000000000000000000000000000000-00f067aa0ba902b7-01\r\n");
  EXPECT_TRUE(bad.headers["x-request-id"].starts_with("req-"));
  EXPECT_EQ(Json::parse(bad.body)["trace"], "");
  EXPECT_TRUE(c.get("/nowhere").headers.contains("x-request-id"));
  EXPECT_FALSE(valid_traceparent("00-4BF92F3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
  EXPECT_FALSE(valid_traceparent("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
  EXPECT_FALSE(valid_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01"));
  EXPECT_FALSE(valid_request_id(std::string(129, 'a')));
}

TEST_F(HttpServerTest, RefusesMalformedRequests) {
  serve();
  struct Row {
    const char* text;
    int status;
  };
  const Row rows[] = {
      {"nonsense\r\n\r\n", 400},
      {"\r\n\r\n\r\n\r\n\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"GET /health HTTP/2.0\r\nHost: x\r\n\r\n", 400},
      {"GET /health HTTP/1.1\r\n\r\n", 400},
      {"GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400},
      {"GET health HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"GET /a%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"GET /a%00 HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"GET /health HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n", 400},
      {"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400},
      {"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400},
      {"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na", 400},
      {"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
      {"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
      {"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", 413},
      {"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 400},
      {"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: magic\r\nContent-Length: 0\r\n\r\n", 417},
  };
  for (const Row& row : rows) {
    TestClient c = client();
    c.send(row.text);
    TestResponse response = c.read_response();
    EXPECT_EQ(response.status, row.status) << row.text << response.body;
    EXPECT_EQ(error_field(response, "type"), "invalid_request_error") << row.text;
    if (row.status != 417) {
      EXPECT_EQ(response.headers["connection"], "close") << row.text;
      EXPECT_TRUE(c.closed()) << row.text;
    }
  }
  EXPECT_TRUE(eventually([&] { return server_->stats().connections == 0; }));
}

TEST_F(HttpServerTest, LimitsBodyAndHeaders) {
  serve({.max_body_bytes = 1000, .max_header_bytes = 2000});
  TestClient c = client();
  EXPECT_EQ(c.post("/v1/chat/completions", std::string(1000, 'a')).status, 200);
  c.send("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n");
  TestResponse large = c.read_response();  // before any of the body
  EXPECT_EQ(large.status, 413);
  EXPECT_NE(error_field(large, "message").find("larger than 1000 bytes"), std::string::npos);
  EXPECT_TRUE(c.closed());

  TestClient chunked = client();
  chunked.send("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (int i = 0; i < 11; ++i) chunked.send("64\r\n" + std::string(100, 'b') + "\r\n");
  EXPECT_EQ(chunked.read_response().status, 413);

  TestClient header = client();
  EXPECT_EQ(header.get("/health", "x-long: " + std::string(3000, 'c') + "\r\n").status, 431);
  EXPECT_TRUE(header.closed());
  TestClient trickle = client();  // never one long header, but many
  trickle.send("GET /health HTTP/1.1\r\nHost: x\r\n");
  for (int i = 0; i < 60 && trickle.send("x-h: " + std::string(40, 'd') + "\r\n"); ++i) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(trickle.read_response().status, 431);
  TestClient extension = client();
  extension.send("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;" + std::string(40000, 'e'));
  EXPECT_EQ(extension.read_response().status, 400);
}

TEST_F(HttpServerTest, LimitsBodiesInProgress) {
  std::mutex mutex;
  std::vector<std::shared_ptr<HttpResponder>> held;
  serve({.max_body_bytes = 1000}, {route("POST", "/hold", [&](auto responder, auto) {
          std::lock_guard lock(mutex);
          held.push_back(std::move(responder));
        })});
  const std::string request = "POST /hold HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + std::string(1000, 'a');
  auto count = [&] {
    std::lock_guard lock(mutex);
    return held.size();
  };
  std::vector<TestClient> clients;
  for (int i = 0; i < 16; ++i) {
    clients.push_back(client());
    clients.back().send(request);
  }
  ASSERT_TRUE(eventually([&] { return count() == 16; }));
  TestClient refused = client();
  refused.send(request);
  EXPECT_EQ(refused.read_response().status, 503);
  held[0]->respond({});
  held[1]->respond({});
  EXPECT_EQ(clients[0].read_response().status, 200);
  EXPECT_EQ(clients[1].read_response().status, 200);
  clients[0].send(request);
  EXPECT_TRUE(eventually([&] { return count() == 17; }));
  held.clear();
}

TEST_F(HttpServerTest, AsksForBodyWithExpect) {
  serve({.max_body_bytes = 100});
  TestClient c = client();
  c.send("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
  EXPECT_EQ(c.read_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  c.send("hello");
  EXPECT_EQ(c.read_response().status, 200);
  c.send("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 500\r\n\r\n");
  EXPECT_EQ(c.read_response().status, 413);  // and no 100 before
}

TEST_F(HttpServerTest, TimesOut) {
  serve({.header_timeout = 150ms, .body_timeout = 150ms, .idle_timeout = 250ms});
  TestClient idle = client(), slow = client(), body = client();
  const auto begin = TestClock::now();
  body.send("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhe");
  for (int i = 0; i < 10 && slow.send("G"); ++i) std::this_thread::sleep_for(20ms);  // slow loris: always a little more
  TestResponse late = slow.read_response();
  EXPECT_EQ(late.status, 408);
  EXPECT_TRUE(slow.closed());
  EXPECT_EQ(body.read_response().status, 408);
  EXPECT_TRUE(idle.closed());
  EXPECT_GE(TestClock::now() - begin, 240ms);
  EXPECT_LT(TestClock::now() - begin, 10s);
}

TEST_F(HttpServerTest, LimitsConnections) {
  serve({.max_connections = 2});
  TestClient a = client(), b = client();
  EXPECT_EQ(a.get("/health").status, 200);
  EXPECT_EQ(b.get("/health").status, 200);
  TestClient c = client();
  TestResponse refused = c.get("/health");
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.headers["retry-after"], "1");
  EXPECT_TRUE(c.closed());
  a.close();
  ASSERT_TRUE(eventually([&] { return server_->stats().connections == 1; }));
  EXPECT_EQ(client().get("/health").status, 200);
}

TEST_F(HttpServerTest, LimitsQueuedHandlers) {
  std::promise<void> release;
  std::shared_future<void> released = release.get_future().share();
  std::atomic<int> running{0};
  std::vector<Route> routes = {route("GET", "/wait", [&](auto responder, auto) {
    ++running;
    released.wait();
    responder->respond({});
  })};
  serve({.worker_threads = 1, .max_queued_requests = 1}, std::move(routes));
  const std::string request = "GET /wait HTTP/1.1\r\nHost: x\r\n\r\n";
  TestClient a = client(), b = client(), c = client();
  a.send(request);
  ASSERT_TRUE(eventually([&] { return running == 1; }));
  b.send(request);
  ASSERT_TRUE(eventually([&] { return server_->stats().requests_active == 2; }));
  c.send(request);
  TestResponse refused = c.read_response();
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.headers["retry-after"], "1");
  release.set_value();
  EXPECT_EQ(a.read_response().status, 200);
  EXPECT_EQ(b.read_response().status, 200);
}

TEST_F(HttpServerTest, SurvivesBadHandlers) {
  serve();
  TestClient c = client();
  TestResponse thrown = c.get("/throws");
  EXPECT_EQ(thrown.status, 500);
  EXPECT_EQ(error_field(thrown, "type"), "server_error");
  EXPECT_EQ(error_field(thrown, "message").find("organ"), std::string::npos);  // goes to the log, not to the client
  EXPECT_EQ(c.get("/drops").status, 500);
  TestResponse injected = c.get("/injects");
  EXPECT_EQ(injected.headers["x-good"], "1");
  EXPECT_FALSE(injected.headers.contains("set-cookie"));
  EXPECT_EQ(server_->stats().responses_5xx, 2u);
}

TEST_F(HttpServerTest, SpeaksHttp10) {
  serve();
  TestClient c = client();
  c.send("GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  TestResponse kept = c.read_response();
  EXPECT_EQ(kept.headers["connection"], "keep-alive");
  c.send("GET /health HTTP/1.0\r\n\r\n");
  EXPECT_EQ(c.read_response().headers["connection"], "close");
  EXPECT_TRUE(c.closed());
}

TEST_F(HttpServerTest, ListensOnIpv6AndUnixSocket) {
  HttpServerOptions v6;
  v6.listen.host = "::1";
  HttpServer& server = serve(v6);
  EXPECT_TRUE(server.address().starts_with("http://[::1]:"));
  TestClient c(server.port(), AF_INET6);
  EXPECT_TRUE(Json::parse(c.get("/health").body)["peer"].get<std::string>().starts_with("[::1]:"));

  TestFolder folder;
  HttpServerOptions uds;
  uds.listen.unix_path = folder.file("socket");
  {
    // A dead server's socket: bound, and nobody accepts.
    const int dead = ::socket(AF_UNIX, SOCK_STREAM, 0);
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    uds.listen.unix_path.copy(name.sun_path, sizeof name.sun_path - 1);
    ASSERT_EQ(::bind(dead, reinterpret_cast<sockaddr*>(&name), sizeof name), 0);
    ::close(dead);
  }
  serve(uds);
  TestClient local(uds.listen.unix_path);
  EXPECT_EQ(Json::parse(local.get("/health").body)["peer"], "unix");
  auto second = HttpServer::start(uds, basic_routes(), nullptr);
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.error().message.find("another server listens there"), std::string::npos);
  server_->stop();
  EXPECT_NE(::access(uds.listen.unix_path.c_str(), F_OK), 0);
  std::ofstream(uds.listen.unix_path) << "a file";
  EXPECT_FALSE(HttpServer::start(uds, basic_routes(), nullptr).ok());
  EXPECT_EQ(::access(uds.listen.unix_path.c_str(), F_OK), 0);
}

TEST_F(HttpServerTest, NamesWhatIsWrongAtStart) {
  HttpServer& server = serve();
  HttpServerOptions taken;
  taken.listen.port = server.port();
  auto busy = HttpServer::start(taken, basic_routes(), nullptr);
  ASSERT_FALSE(busy.ok());
  EXPECT_NE(busy.error().message.find("127.0.0.1:" + std::to_string(server.port())), std::string::npos) << busy.error().message;
  HttpServerOptions host;
  host.listen.host = "no.such.host.invalid";
  EXPECT_FALSE(HttpServer::start(host, basic_routes(), nullptr).ok());
  EXPECT_FALSE(HttpServer::start({.tls_certificate = "/nowhere.pem"}, basic_routes(), nullptr).ok());
  EXPECT_FALSE(HttpServer::start({.access_log = "/nowhere/log"}, basic_routes(), nullptr).ok());
  EXPECT_FALSE(HttpServer::start({.io_threads = 0}, basic_routes(), nullptr).ok());
}

TEST_F(HttpServerTest, SurvivesRunningOutOfDescriptors) {
  serve();
  std::vector<TestClient> waiting;
  for (int i = 0; i < 20; ++i) waiting.push_back(TestClient(server_->port()));
  ASSERT_TRUE(eventually([&] { return server_->stats().connections == 20; }));
  // Sockets made before the descriptors run out, connected after.
  std::vector<int> sockets, fill;
  for (int i = 0; i < 3; ++i) sockets.push_back(::socket(AF_INET, SOCK_STREAM, 0));
  for (int fd; (fd = ::dup(0)) >= 0;) fill.push_back(fd);
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_port = htons(static_cast<uint16_t>(server_->port()));
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  for (int fd : sockets) EXPECT_EQ(::connect(fd, reinterpret_cast<sockaddr*>(&name), sizeof name), 0);
  const std::clock_t cpu = std::clock();
  std::this_thread::sleep_for(400ms);
  EXPECT_LT(std::clock() - cpu, CLOCKS_PER_SEC / 8);  // it does not spin
  EXPECT_EQ(server_->stats().connections, 20);
  for (int fd : fill) ::close(fd);
  EXPECT_TRUE(eventually([&] { return server_->stats().connections == 23; }));
  for (int fd : sockets) ::close(fd);
  EXPECT_EQ(waiting[0].get("/health").status, 200);
}

TEST_F(HttpServerTest, Drains) {
  std::promise<void> release;
  std::shared_future<void> released = release.get_future().share();
  std::vector<Route> routes = basic_routes();
  std::atomic<bool> waits{false};
  routes.push_back(route("GET", "/wait", [released, &waits](auto responder, auto) {
    waits = true;
    released.wait();
    responder->respond({.body = "done"});
  }));
  serve({}, std::move(routes));
  TestClient idle = client(), busy = client();
  EXPECT_EQ(idle.get("/health").status, 200);
  busy.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
  ASSERT_TRUE(eventually([&] { return waits && server_->stats().requests_active == 1; }));
  server_->drain();
  EXPECT_TRUE(idle.closed());
  EXPECT_FALSE(client().connected());
  EXPECT_FALSE(server_->wait_idle(50ms));
  release.set_value();
  TestResponse last = busy.read_response();
  EXPECT_EQ(last.body, "done");
  EXPECT_EQ(last.headers["connection"], "close");
  EXPECT_TRUE(server_->wait_idle(20s));
  server_->drain();  // again, and after the end: nothing happens
  server_->stop();
  server_->stop();
  server_->drain();
}

}  // namespace
}  // namespace dg
