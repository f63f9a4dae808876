// TLS with a certificate made at test time by openssl, and curl as the client.
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

#include "server/http_server.h"
#include "server/http_test_client.h"

namespace dg {
namespace {

using namespace testing_http;

std::string output_of(const std::string& command) {
  std::string out;
  std::FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return "popen failed";
  char buffer[4096];
  for (size_t got; (got = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) out.append(buffer, got);
  ::pclose(pipe);
  return out;
}

class HttpTlsTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<TestFolder>();
    for (const char* name : {"a", "b"}) {
      output_of(
          "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost "
          "-addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout " +
          file(name) + ".key -out " + file(name) + ".crt");
    }
    output_of("openssl pkey -in " + file("a.key") + " -aes256 -passout pass:secret -out " + file("locked.key"));
  }
  static void TearDownTestSuite() { folder_.reset(); }
  static std::string file(const std::string& name) { return folder_->file(name); }
  static Result<std::unique_ptr<HttpServer>> start(const std::string& certificate, const std::string& key, HttpServerOptions options = {}) {
    options.listen.port = 0;
    options.tls_certificate = file(certificate);
    options.tls_key = file(key);
    return HttpServer::start(
        options,
        {
            route("POST", "/size",
                  [](auto responder, HttpRequest request) { responder->respond({.body = std::to_string(request.body.size())}); }),
            route("GET", "/large", [](auto responder, auto) { responder->respond({.body = std::string(3 << 20, 'x')}); }),
            route("GET", "/stream",
                  [](auto responder, auto) {
                    responder->begin_stream(200, "text/event-stream", {});
                    std::lock_guard lock(mutex_);
                    streams_.push_back(responder);
                    responder->on_close([] { ++closed_; });
                  }),
        },
        nullptr);
  }
  static std::string error(const std::string& certificate, const std::string& key) {
    auto server = start(certificate, key);
    return server.ok() ? "no error" : server.error().message;
  }
  static std::string curl(HttpServer& server, const std::string& arguments, const std::string& path) {
    return output_of("curl -sS --max-time 20 --cacert " + file("a.crt") + " " + arguments +
                     " https://localhost:" + std::to_string(server.port()) + path);
  }
  static inline std::unique_ptr<TestFolder> folder_;
  static inline std::mutex mutex_;
  static inline std::vector<std::shared_ptr<HttpResponder>> streams_;
  static inline std::atomic<int> closed_{0};
};

TEST_F(HttpTlsTest, ServesCurl) {
  auto server = start("a.crt", "a.key");
  ASSERT_TRUE(server.ok()) << server.error().message;
  EXPECT_TRUE((*server)->address().starts_with("https://127.0.0.1:"));
  std::ofstream(file("body")) << std::string(5 << 20, 'b');
  EXPECT_EQ(curl(**server, "--data-binary @" + file("body"), "/size"), std::to_string(5 << 20));
  EXPECT_EQ(curl(**server, "-H 'Transfer-Encoding: chunked' --data-binary @" + file("body"), "/size"), std::to_string(5 << 20));
  EXPECT_EQ(curl(**server, "", "/large").size(), size_t{3} << 20);
  EXPECT_EQ(curl(**server, "-o /dev/null -w '%{http_version} %{ssl_verify_result}'", "/large"), "1.1 0");
  EXPECT_NE(curl(**server, "-v", "/large -o /dev/null").find("ALPN: server accepted http/1.1"), std::string::npos);
  EXPECT_EQ(curl(**server, "--tls-max 1.2 -o /dev/null -w '%{http_code}'", "/large"), "200");
  EXPECT_NE(curl(**server, "--tls-max 1.1 --ciphers DEFAULT@SECLEVEL=0", "/large").find("curl:"), std::string::npos);
  TestClient plain((*server)->port());
  EXPECT_NE(plain.get("/large").status, 200);
  EXPECT_TRUE(eventually([&] { return (*server)->stats().connections == 0; }));
}

TEST_F(HttpTlsTest, StreamsAndNoticesDisconnect) {
  auto server = start("a.crt", "a.key");
  ASSERT_TRUE(server.ok());
  closed_ = 0;
  std::thread client([&] {
    const std::string got = output_of("timeout 0.6 curl -sSN --cacert " + file("a.crt") +
                                      " https://localhost:" + std::to_string((*server)->port()) + "/stream");
    EXPECT_NE(got.find("data: one\n\n"), std::string::npos);
  });
  ASSERT_TRUE(eventually([&] {
    std::lock_guard lock(mutex_);
    return !streams_.empty();
  }));
  streams_.back()->send("data: one\n\n");
  EXPECT_EQ(closed_, 0);
  client.join();
  EXPECT_TRUE(eventually([&] { return closed_ == 1; }));
  streams_.clear();
}

TEST_F(HttpTlsTest, NamesWrongFiles) {
  EXPECT_EQ(error("a.crt", "a.key"), "no error");
  EXPECT_NE(error("a.crt", "b.key").find(file("b.key") + ": the key does not belong to the certificate " + file("a.crt")),
            std::string::npos);
  EXPECT_NE(error("a.key", "a.crt").find(file("a.key") + ": expected a PEM file with a certificate, found a private key"),
            std::string::npos);
  EXPECT_NE(error("a.crt", "b.crt").find("expected a PEM file with a private key, found a certificate"), std::string::npos);
  EXPECT_NE(error("a.crt", "locked.key").find("encrypted with a passphrase"), std::string::npos);
  EXPECT_NE(error("missing", "a.key").find(file("missing")), std::string::npos);
  std::ofstream(file("broken.crt")) << "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n";
  EXPECT_NE(error("broken.crt", "a.key").find("cannot use the certificate"), std::string::npos);
  for (const char* key : {"b.key", "locked.key"}) EXPECT_EQ(error("a.crt", key).find('\n'), std::string::npos);
}

TEST_F(HttpTlsTest, ClosesClientThatNeverFinishesTheHandshake) {
  auto server = start("a.crt", "a.key", {.header_timeout = 100ms});
  ASSERT_TRUE(server.ok());
  TestClient c((*server)->port());
  c.send("\x16\x03\x01");
  EXPECT_TRUE(c.closed());
  TestClient http((*server)->port());
  http.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_EQ(http.read_head().status, 400);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // whose shadow memory counts too
TEST_F(HttpTlsTest, IdleStreamsAreSmall) {
  auto server = start("a.crt", "a.key");
  ASSERT_TRUE(server.ok());
  auto resident = [] {
    long total = 0, pages = 0;
    std::ifstream("/proc/self/statm") >> total >> pages;
    return pages * ::sysconf(_SC_PAGESIZE);
  };
  // Clients of their own process: their memory is not counted.
  auto open = [&](int count) {
    const size_t before = streams_.size();
    std::string command = "curl -sSN --max-time 60 --parallel --parallel-immediate --parallel-max 300 --cacert " + file("a.crt");
    for (int i = 0; i < count; ++i) command += " -o /dev/null https://localhost:" + std::to_string((*server)->port()) + "/stream";
    (void)!std::system((command + " >/dev/null 2>&1 &").c_str());
    ASSERT_TRUE(eventually(
        [&] {
          std::lock_guard lock(mutex_);
          return streams_.size() == before + static_cast<size_t>(count);
        },
        30s));
  };
  open(20);
  const long before = resident();
  open(200);
  for (const auto& stream : streams_) stream->send("data: x\n\n");
  std::this_thread::sleep_for(100ms);
  const long per_stream = (resident() - before) / 200;
  std::printf("resident memory per idle TLS stream: %ld bytes\n", per_stream);
  EXPECT_LT(per_stream, 64 << 10);
  for (const auto& stream : streams_) stream->finish();
  EXPECT_TRUE(eventually([&] { return (*server)->stats().connections == 0; }));
  streams_.clear();
}
#endif

}  // namespace
}  // namespace dg
