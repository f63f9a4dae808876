// Streams over real sockets: SSE, disconnects, back-pressure, memory, and what outlives what.
#include <gtest/gtest.h>

#include <fstream>
#include <random>

#include "server/http_server.h"
#include "server/http_test_client.h"

namespace dg {
namespace {

using namespace testing_http;

// Keeps the responders of "/stream" (a stream is begun) and "/hold" (nothing is answered) for the test.
struct Held {
  std::mutex mutex;
  std::vector<std::shared_ptr<HttpResponder>> responders;
  std::atomic<int> closed{0}, pressed{0}, relieved{0};

  std::shared_ptr<HttpResponder> last() {
    std::lock_guard lock(mutex);
    return responders.empty() ? nullptr : responders.back();
  }
  size_t count() {
    std::lock_guard lock(mutex);
    return responders.size();
  }
  void clear() {
    std::vector<std::shared_ptr<HttpResponder>> gone;
    std::lock_guard lock(mutex);
    gone.swap(responders);
  }
  void keep(std::shared_ptr<HttpResponder> responder) {
    responder->on_close([this] { ++closed; });
    responder->on_pressure([this](bool blocked) { ++(blocked ? pressed : relieved); });
    std::lock_guard lock(mutex);
    responders.push_back(std::move(responder));
  }
};

class HttpStreamTest : public ::testing::Test {
 protected:
  ~HttpStreamTest() override {
    held_.clear();
    server_.reset();
  }
  void serve(HttpServerOptions options = {}) {
    options.listen.port = 0;
    std::vector<Route> routes = {
        route("GET", "/stream",
              [this](auto responder, auto) {
                responder->begin_stream(200, "text/event-stream", {{"Cache-Control", "no-cache"}});
                held_.keep(std::move(responder));
              }),
        route("GET", "/hold", [this](auto responder, auto) { held_.keep(std::move(responder)); }),
        route("GET", "/ok", [](auto responder, auto) { responder->respond({.body = "ok"}); }),
    };
    auto server = HttpServer::start(options, std::move(routes), nullptr);
    ASSERT_TRUE(server.ok()) << server.error().message;
    server_ = std::move(*server);
  }
  TestClient client() { return TestClient(server_->port()); }
  TestClient open(const char* path) {
    const size_t before = held_.count();
    TestClient c = client();
    EXPECT_TRUE(c.send(std::string("GET ") + path + " HTTP/1.1\r\nHost: x\r\n\r\n"));
    EXPECT_TRUE(eventually([&] { return held_.count() > before; }));
    return c;
  }
  Held held_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpStreamTest, StreamsEventsAndKeepsConnection) {
  serve();
  TestClient c = open("/stream");
  TestResponse head = c.read_head();
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(head.headers["content-type"], "text/event-stream");
  EXPECT_EQ(head.headers["cache-control"], "no-cache");
  EXPECT_EQ(head.headers["transfer-encoding"], "chunked");
  std::shared_ptr<HttpResponder> responder = held_.last();
  responder->send("data: one\n\n");
  std::string got;
  bool last = false;
  ASSERT_TRUE(c.read_chunk(got, last));
  EXPECT_EQ(got, "data: one\n\n");
  responder->send("data: two\n\n");
  responder->finish();
  responder->send("data: after the end\n\n");  // does nothing
  while (c.read_chunk(got, last)) continue;
  EXPECT_TRUE(last);
  EXPECT_EQ(got, "data: one\n\ndata: two\n\n");
  EXPECT_EQ(c.get("/ok").body, "ok");
  EXPECT_EQ(held_.closed, 0);  // a regular end is no close
}

TEST_F(HttpStreamTest, CoalescesSends) {
  serve();
  TestClient c = open("/stream");
  c.read_head();
  std::string sent, got;
  // While the I/O thread is held in a callback everything piles up, and must then leave as few chunks.
  for (int i = 0; i < 20000; ++i) {
    sent += "data: " + std::to_string(i) + "\n\n";
    held_.last()->send("data: " + std::to_string(i) + "\n\n");
  }
  held_.last()->finish();
  int chunks = 0;
  bool last = false;
  while (c.read_chunk(got, last)) ++chunks;
  EXPECT_TRUE(last);
  EXPECT_EQ(got, sent);
  EXPECT_LT(chunks, 20000);
}

TEST_F(HttpStreamTest, SendsHeartbeats) {
  serve({.heartbeat = 50ms});
  TestClient c = open("/stream");
  c.read_head();
  std::string got;
  bool last = false;
  const auto begin = TestClock::now();
  ASSERT_TRUE(c.read_chunk(got, last));
  ASSERT_TRUE(c.read_chunk(got, last));
  EXPECT_EQ(got, ": ping\n\n: ping\n\n");
  EXPECT_GE(TestClock::now() - begin, 80ms);
  held_.last()->finish();
  EXPECT_FALSE(c.read_chunk(got, last));
}

TEST_F(HttpStreamTest, NoticesDisconnectAtOnce) {
  serve();
  for (const char* path : {"/stream", "/hold"}) {
    for (bool reset : {false, true}) {
      TestClient c = open(path);
      if (path == std::string("/stream")) c.read_head();
      const int before = held_.closed;
      const auto begin = TestClock::now();
      if (reset) {
        c.reset();
      } else {
        c.close();
      }
      ASSERT_TRUE(eventually([&] { return held_.closed == before + 1; })) << path << reset;
      EXPECT_LT(TestClock::now() - begin, 1s) << path << reset;  // milliseconds; a heartbeat comes after 10 s
      held_.last()->send("data: nobody\n\n");
      held_.last()->respond({});
    }
  }
  // A client that pipelines while its answer is in progress is seen to leave as well.
  TestClient c = open("/hold");
  c.send("GET /ok HTTP/1.1\r\nHost: x\r\n\r\n");
  std::this_thread::sleep_for(20ms);
  c.close();
  EXPECT_TRUE(eventually([&] { return held_.closed == 5; }));
  EXPECT_TRUE(eventually([&] { return server_->stats().connections == 0 && server_->stats().requests_active == 0; }));
  EXPECT_EQ(server_->stats().client_closed, 5u);
  // Registered after the fact: called all the same.
  std::atomic<bool> told{false};
  TestClient late = open("/hold");
  std::shared_ptr<HttpResponder> responder = held_.last();
  late.close();
  ASSERT_TRUE(eventually([&] { return held_.closed == 6; }));
  responder->on_close([&] { told = true; });  // the second registration of one that was called: no second call
  std::this_thread::sleep_for(20ms);
  EXPECT_FALSE(told);
}

TEST_F(HttpStreamTest, TellsHandlerThatRegistersAfterTheClientLeft) {
  std::atomic<bool> entered{false}, go{false}, told{false};
  HttpServerOptions options;
  options.listen.port = 0;
  auto server = HttpServer::start(options,
                                  {route("GET", "/late",
                                         [&](auto responder, auto) {
                                           entered = true;
                                           while (!go) std::this_thread::sleep_for(1ms);
                                           responder->on_close([&] { told = true; });
                                           EXPECT_TRUE(eventually([&] { return told.load(); }));
                                         })},
                                  nullptr);
  ASSERT_TRUE(server.ok());
  TestClient c((*server)->port());
  c.send("GET /late HTTP/1.1\r\nHost: x\r\n\r\n");
  ASSERT_TRUE(eventually([&] { return entered.load(); }));
  c.close();
  ASSERT_TRUE(eventually([&] { return (*server)->stats().connections == 0; }));
  go = true;
  (*server)->stop();  // waits for the handler; its callback still runs
  EXPECT_TRUE(told);
}

TEST_F(HttpStreamTest, ReportsPressureAndRelief) {
  serve({.max_send_buffer = 64 << 10});
  TestClient c = open("/stream");
  c.read_head();
  std::shared_ptr<HttpResponder> responder = held_.last();
  size_t sent = 0;
  while (held_.pressed == 0 && sent < (64u << 20)) {
    responder->send("data: " + std::string(8192, 'x') + "\n\n");
    sent += 8200;
    std::this_thread::sleep_for(100us);
  }
  EXPECT_EQ(held_.pressed, 1);
  responder->finish();
  std::string got;
  bool last = false;
  while (c.read_chunk(got, last)) continue;
  EXPECT_TRUE(last);
  EXPECT_EQ(got.size(), sent);
  EXPECT_EQ(held_.relieved, 1);
}

TEST_F(HttpStreamTest, ClosesSlowClients) {
  serve({.slow_client_timeout = 200ms, .max_send_buffer = 64 << 10});
  TestClient c = open("/stream");  // reads nothing from now on
  std::shared_ptr<HttpResponder> responder = held_.last();
  const auto begin = TestClock::now();
  while (held_.closed == 0 && TestClock::now() - begin < 30s) {
    // The kernel's buffers grow, so a first pressure may be relieved although nobody reads.
    if (held_.pressed == held_.relieved) responder->send(std::string(8192, 'x') + "\n\n");
    std::this_thread::sleep_for(100us);
  }
  EXPECT_EQ(held_.closed, 1);
  EXPECT_EQ(server_->stats().slow_closed, 1u);
  EXPECT_TRUE(eventually([&] { return server_->stats().connections == 0; }));
}

TEST_F(HttpStreamTest, BoundsBufferOfHandlerThatIgnoresPressure) {
  serve({.max_send_buffer = 16 << 10});
  TestClient c = open("/stream");
  std::shared_ptr<HttpResponder> responder = held_.last();
  const auto begin = TestClock::now();
  while (held_.closed == 0 && TestClock::now() - begin < 30s) responder->send(std::string(16384, 'x') + "\n\n");
  EXPECT_EQ(held_.closed, 1);
  EXPECT_EQ(server_->stats().slow_closed, 1u);
}

TEST_F(HttpStreamTest, CutsStreamOfDroppedResponder) {
  serve();
  TestClient c = open("/stream");
  c.read_head();
  held_.last()->send("data: half\n\n");
  std::string got;
  bool last = false;
  ASSERT_TRUE(c.read_chunk(got, last));
  held_.clear();
  EXPECT_FALSE(c.read_chunk(got, last));
  EXPECT_FALSE(last);  // no last chunk: the client knows that something is missing
  TestClient old = client();
  old.send("GET /stream HTTP/1.0\r\n\r\n");
  ASSERT_TRUE(eventually([&] { return held_.count() == 1; }));
  held_.last()->send("data: whole\n\n");
  held_.last()->finish();
  TestResponse response = old.read_response();
  EXPECT_EQ(response.headers["connection"], "close");
  EXPECT_EQ(response.body, "data: whole\n\n");
}

TEST_F(HttpStreamTest, StopsAtOnceWithStuckClientsAndOutlivingResponders) {
  serve({.io_threads = 2});
  std::vector<TestClient> clients;
  for (int i = 0; i < 10; ++i) clients.push_back(open(i % 2 == 0 ? "/stream" : "/hold"));
  clients.push_back(client());
  clients.back().send("POST /hold HTTP/1.1\r\nContent-Le");
  for (int i = 0; i < 400; ++i) held_.last()->send(std::string(8192, 'x'));  // a client that does not read
  std::vector<std::shared_ptr<HttpResponder>> outliving;
  {
    std::lock_guard lock(held_.mutex);
    outliving = held_.responders;
  }
  const auto begin = TestClock::now();
  server_->stop();
  EXPECT_LT(TestClock::now() - begin, 5s);  // milliseconds; the shortest timeout is 10 s
  EXPECT_EQ(held_.closed, 10);
  EXPECT_EQ(server_->stats().connections, 0);
  server_.reset();
  for (const auto& responder : outliving) {
    responder->begin_stream(200, "text/event-stream", {});
    responder->send("data: x\n\n");
    responder->on_close([] {});
    responder->on_pressure([](bool) {});
    responder->finish();
    responder->respond({});
  }
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // whose shadow memory counts too
TEST_F(HttpStreamTest, IdleStreamsAreSmall) {
  constexpr int kStreams = 1000;
  serve();
  auto resident = [] {
    long total = 0, pages = 0;
    std::ifstream("/proc/self/statm") >> total >> pages;
    return pages * ::sysconf(_SC_PAGESIZE);
  };
  std::vector<TestClient> clients;
  clients.reserve(kStreams);
  for (int i = 0; i < 50; ++i) clients.push_back(open("/stream"));  // warm up allocators and threads
  const long before = resident();
  for (int i = 50; i < kStreams; ++i) clients.push_back(open("/stream"));
  for (TestClient& c : clients) EXPECT_EQ(c.read_head().status, 200);
  {
    std::lock_guard lock(held_.mutex);
    for (const auto& responder : held_.responders) responder->send("data: " + std::string(2000, 'x') + "\n\n");
  }
  std::string got;
  bool last = false;
  for (TestClient& c : clients) EXPECT_TRUE(c.read_chunk(got, last));
  clients.shrink_to_fit();
  const long per_stream = (resident() - before - static_cast<long>(got.capacity())) / (kStreams - 50);
  std::printf("resident memory per idle stream: %ld bytes\n", per_stream);
  RecordProperty("bytes_per_idle_stream", static_cast<int>(per_stream));
  EXPECT_LT(per_stream, 64 << 10);
}
#endif

TEST_F(HttpStreamTest, SurvivesRandomDisconnects) {
  constexpr int kClients = 300, kRounds = 4;
  serve({.io_threads = 2, .worker_threads = 2, .heartbeat = 5ms, .max_send_buffer = 32 << 10});
  for (int i = 0; i < 4; ++i) client().get("/ok");  // both I/O threads have made their descriptors
  ASSERT_TRUE(eventually([&] { return server_->stats().connections == 0; }));
  const int descriptors = open_descriptors();
  std::atomic<bool> stop{false};
  std::vector<std::thread> producers;
  for (int p = 0; p < 2; ++p) {
    producers.emplace_back([&, p] {
      std::mt19937 random(static_cast<unsigned>(p));
      while (!stop) {
        std::vector<std::shared_ptr<HttpResponder>> some;
        {
          std::lock_guard lock(held_.mutex);
          for (const auto& responder : held_.responders) {
            if (random() % 4 == 0) some.push_back(responder);
          }
        }
        for (const auto& responder : some) {
          if (random() % 50 == 0) {
            responder->finish();
          } else {
            responder->send("data: " + std::string(random() % 3000, 'y') + "\n\n");
          }
        }
        std::this_thread::sleep_for(1ms);
      }
    });
  }
  std::mt19937 random(7);
  for (int round = 0; round < kRounds; ++round) {
    std::vector<TestClient> clients;
    for (int i = 0; i < kClients; ++i) {
      clients.push_back(client());
      clients.back().send(std::string("GET ") + (i % 3 == 0 ? "/hold" : i % 7 == 0 ? "/ok" : "/stream") + " HTTP/1.1\r\nHost: x\r\n\r\n");
      const unsigned victim = random() % clients.size();
      if (random() % 4 == 0) {
        clients[victim].reset();
      } else if (random() % 2 == 0) {
        clients[victim].receive_some(1ms);
      }
    }
    for (TestClient& c : clients) {
      if (random() % 2 == 0) c.reset();
    }
    held_.clear();  // and the handlers give up the rest
  }
  stop = true;
  for (std::thread& producer : producers) producer.join();
  held_.clear();
  EXPECT_TRUE(eventually([&] { return server_->stats().connections == 0 && server_->stats().requests_active == 0; }));
  EXPECT_TRUE(eventually([&] { return open_descriptors() <= descriptors; })) << open_descriptors() << " " << descriptors;
  EXPECT_GT(server_->stats().requests, 200u);
  EXPECT_EQ(client().get("/ok").body, "ok");
}

}  // namespace
}  // namespace dg
