#include "server/access_log.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "base/json.h"
#include "server/http_test_client.h"

namespace dg {
namespace {

using namespace testing_http;

std::vector<Json> log_lines(const std::string& path) {
  std::vector<Json> out;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) out.push_back(Json::parse(line));
  return out;
}

TEST(AccessLog, WritesOneLinePerRequest) {
  TestFolder folder;
  HttpServerOptions options;
  options.listen.port = 0;
  options.access_log = folder.file("log");
  auto server =
      HttpServer::start(options,
                        {
                            route("POST", "/v1/completions",
                                  [](auto responder, auto) {
                                    responder->set_access_fields(
                                        {.model = "m", .prompt_tokens = 3, .cached_tokens = 1, .generated_tokens = 2, .finish = "stop"});
                                    responder->begin_stream(200, "text/event-stream", {});
                                    responder->send("data: x\n\n");
                                    responder->finish();
                                  }),
                            route("GET", "/hold",
                                  [](auto responder, auto) {
                                    responder->on_close([responder] {});  // kept until the client goes
                                  }),
                        },
                        nullptr);
  ASSERT_TRUE(server.ok());
  TestClient c((*server)->port());
  const std::string trace = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";
  EXPECT_EQ(c.post("/v1/completions", "{}", "x-request-id: r1\r\n" + trace).status, 200);
  EXPECT_EQ(c.get("/a%ffb%22").status, 404);
  c.send("GET /hold HTTP/1.1\r\nHost: x\r\n\r\n");
  ASSERT_TRUE(eventually([&] { return (*server)->stats().requests_active == 1; }));
  c.close();
  ASSERT_TRUE(eventually([&] { return (*server)->stats().connections == 0; }));
  (*server)->stop();
  std::vector<Json> log = log_lines(options.access_log);
  ASSERT_EQ(log.size(), 3u);
  const Json& first = log[0];
  EXPECT_EQ(first["request_id"], "r1");
  EXPECT_EQ(first["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_EQ(first["method"], "POST");
  EXPECT_EQ(first["path"], "/v1/completions");
  EXPECT_EQ(first["status"], 200);
  EXPECT_EQ(first["model"], "m");
  EXPECT_EQ(first["prompt_tokens"], 3);
  EXPECT_EQ(first["cached_tokens"], 1);
  EXPECT_EQ(first["generated_tokens"], 2);
  EXPECT_EQ(first["finish"], "stop");
  EXPECT_GE(first["ttft_ms"].get<double>(), 0);
  EXPECT_LE(first["ttft_ms"].get<double>(), first["duration_ms"].get<double>());
  EXPECT_GT(first["bytes_in"].get<int>(), 100);
  EXPECT_GT(first["bytes_out"].get<int>(), 100);
  const std::string time = first["time"];
  EXPECT_EQ(time.size(), 24u) << time;
  EXPECT_EQ(time[10], 'T');
  EXPECT_EQ(time[19], '.');
  EXPECT_EQ(time[23], 'Z');
  EXPECT_EQ(log[1]["status"], 404);
  EXPECT_EQ(log[1]["path"],
            "/a\xEF\xBF\xBD"
            "b\"");  // bytes that are no UTF-8 are replaced
  EXPECT_EQ(log[2]["status"], 0);
  EXPECT_EQ(log[2]["client_closed"], true);
}

TEST(AccessLog, ReopensAfterRotation) {
  TestFolder folder;
  auto log = AccessLog::open(folder.file("log"));
  ASSERT_TRUE(log.ok());
  (*log)->write({.path = "/old"});
  (*log)->flush();
  std::filesystem::rename(folder.file("log"), folder.file("log.1"));
  (*log)->write({.path = "/still old"});
  (*log)->flush();
  (*log)->reopen();
  (*log)->flush();
  (*log)->write({.path = "/new"});
  (*log)->flush();
  ASSERT_EQ(log_lines(folder.file("log.1")).size(), 2u);
  ASSERT_EQ(log_lines(folder.file("log")).size(), 1u);
  EXPECT_EQ(log_lines(folder.file("log"))[0]["path"], "/new");
}

// A reader that does not read stands for a full disk or a hung one.
TEST(AccessLog, DropsAndCountsInsteadOfWaiting) {
  TestFolder folder;
  const std::string path = folder.file("pipe");
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  std::string text;
  std::atomic<bool> read{false};
  std::thread reader([&] {
    std::ifstream file(path);
    while (!read) std::this_thread::sleep_for(1ms);
    text.assign(std::istreambuf_iterator<char>(file), {});
  });
  uint64_t dropped = 0;
  {
    auto log = AccessLog::open(path, 10);
    ASSERT_TRUE(log.ok());
    for (int i = 0; i < 50'000; ++i) (*log)->write({.path = "/" + std::string(100, 'p')});
    read = true;  // only now: a write() that waits for the file would never come here
    (*log)->flush();
    dropped = (*log)->dropped();
  }
  reader.join();
  EXPECT_GT(dropped, 40'000u);
  uint64_t reported = 0, lines = 0;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    const Json json = Json::parse(line);
    if (json.contains("dropped")) {
      reported += json["dropped"].get<uint64_t>();
    } else {
      ++lines;
    }
  }
  EXPECT_EQ(reported, dropped);
  EXPECT_EQ(lines + dropped, 50'000u);
}

}  // namespace
}  // namespace dg
