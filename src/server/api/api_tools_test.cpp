// The helpers of api_test_tools.h, and the tests of what every endpoint writes with: JSON text, base64, fields.
#include <limits>

#include "base/json.h"
#include "server/api/api_test_tools.h"
#include "server/api/json_writer.h"
#include "server/api/request_fields.h"

namespace dg::api {

void ApiTest::SetUp() {
  auto loaded = Tokenizer::load(std::string(DG_SOURCE_DIR) + "/models/mini-r1");
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  tokenizer = std::move(loaded).value();
  auto encoder = make_prompt_encoder(
      {.chat_template = tokenizer->chat_template(), .bos_token = tokenizer->bos_token(), .eos_token = tokenizer->eos_token()});
  ASSERT_TRUE(encoder.ok()) << encoder.error().message;
  prompt = std::move(encoder).value();
  config.vocab = tokenizer->vocab_size();
  config.hidden = 4;
  options.model_path = "/models/mini";
  options.version = "1.2.3";
  options.served_names = {"mini", "org/mini"};
  options.stop_ids = {1};
  options.tool_format = ToolFormat::kDeepseekV31;
  grammars = std::make_unique<GrammarCompiler>(*tokenizer, config.vocab, options.stop_ids);
}

Service& ApiTest::service() {
  if (!service_) service_ = std::make_unique<Service>(engine, *tokenizer, with_chat ? prompt.get() : nullptr, *grammars, config, options);
  return *service_;
}

std::shared_ptr<MemoryResponder> ApiTest::call(const std::string& method, const std::string& path, std::string body, bool admin) {
  auto responder = std::make_shared<MemoryResponder>();
  HttpRequest request;
  request.method = method;
  request.path = path;
  request.body = std::move(body);
  request.id = "r1";
  request.tenant = "acme";
  request.received = EngineClock::now();
  for (const Route& route : admin ? service().admin_routes([] { return std::string("metric 1\n"); }) : service().api_routes()) {
    if (route.method != method || route.path != path) continue;
    route.handler(responder, std::move(request));
    return responder;
  }
  ADD_FAILURE() << "no route " << method << " " << path;
  return responder;
}

std::string ApiTest::error_of(const MemoryResponder& responder) {
  if (!responder.answer) return "no answer";
  auto json = parse_json(responder.answer->body, "answer");
  if (!json.ok() || !json->contains("error")) return responder.answer->body;
  const Json& error = (*json)["error"];
  std::string param = error.contains("param") && error["param"].is_string() ? error["param"].get<std::string>() : "";
  return std::to_string(responder.answer->status) + " [" + param + "] " + error["message"].get<std::string>();
}

std::string masked(std::string json) {
  auto mask = [&json](const std::string& before, const char* of, const std::string& with) {
    for (size_t at = 0; (at = json.find(before, at)) != std::string::npos;) {
      at += before.size();
      size_t end = json.find_first_not_of(of, at);
      json.replace(at, (end == std::string::npos ? json.size() : end) - at, with);
    }
  };
  const char* kHex = "0123456789abcdef";
  for (const char* prefix : {"\"call_", "\"toolu_", "\"rs_", "\"fc_"}) mask(prefix, kHex, "*");
  if (json.find("\"msg_r1") == std::string::npos) mask("\"msg_", kHex, "*");
  mask("\"created\":", "0123456789", "0");
  mask("\"created_at\":", "0123456789", "0");
  return json;
}

std::vector<std::string> events_of(const std::string& stream) {
  std::vector<std::string> events;
  for (size_t at = 0; at < stream.size();) {
    size_t end = stream.find("\n\n", at);
    EXPECT_NE(end, std::string::npos) << "an event without its end";
    if (end == std::string::npos) break;
    std::string event = stream.substr(at, end - at);
    at = end + 2;
    size_t data = event.find("data: ");
    EXPECT_TRUE(data == 0 || (data != std::string::npos && event.starts_with("event: "))) << event;
    if (data == std::string::npos) break;
    std::string json = event.substr(data + 6);
    EXPECT_TRUE(json == "[DONE]" || parse_json(json, "event").ok()) << json;
    if (data > 0) {  // the event's name is the type inside
      std::string name = event.substr(7, data - 8);
      EXPECT_NE(json.find("\"type\":\"" + name + "\""), std::string::npos) << event;
    }
    events.push_back(masked(std::move(json)));
  }
  return events;
}

namespace {

TEST(JsonWriter, EscapesWhatJsonNeedsAndReplacesIllFormedBytes) {
  EXPECT_EQ(json_string("a\"b\\c\n\t\r\x01\x7f"), "\"a\\\"b\\\\c\\n\\t\\r\\u0001\\u007f\"");
  EXPECT_EQ(json_string("中é😀"), "\"中é😀\"");
  EXPECT_EQ(json_string(std::string_view("\xe4\xb8", 2)), "\"\xEF\xBF\xBD\"");         // cut off: one subpart
  EXPECT_EQ(json_string("\xc0\xaf"), "\"\xEF\xBF\xBD\xEF\xBF\xBD\"");                  // overlong
  EXPECT_EQ(json_string("\xed\xa0\x80"), "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\"");  // surrogate
  for (int c = 0; c < 256; c++) {
    std::string all(3, static_cast<char>(c));
    auto read = parse_json(json_string(all), "text");
    ASSERT_TRUE(read.ok()) << c;
    if (c < 0x80 && c > 0) {
      EXPECT_EQ(read->get<std::string>(), all);
    }
  }
}

TEST(JsonWriter, NumbersAreShortestAndFinite) {
  std::string out;
  append_json_number(out, 0.1);
  out += ' ';
  append_json_float(out, -0.3f);
  out += ' ';
  append_json_float(out, -std::numeric_limits<float>::infinity());
  out += ' ';
  append_json_number(out, std::numeric_limits<double>::quiet_NaN());
  EXPECT_EQ(out, "0.1 -0.3 -9999 -9999");
}

TEST(JsonWriter, Base64OfFloatsIsLittleEndian) {
  std::vector<float> values = {1.0f};
  EXPECT_EQ(base64(values), "AACAPw==");
  values = {1.0f, -2.0f, 0.5f};
  EXPECT_EQ(base64(values), "AACAPwAAAMAAAAA/");
}

TEST(JsonWriter, TokensThatAreNoTextAreShownAsBytes) {
  EXPECT_EQ(shown_token("\xe4\xbd"), "bytes:\\xe4\\xbd");
  EXPECT_EQ(shown_token("ok"), "ok");
  EXPECT_EQ(random_hex(24).size(), 24u);
  EXPECT_NE(random_hex(24), random_hex(24));
}

TEST(Fields, ErrorsNameFieldRangeAndValue) {
  struct Row {
    const char* json;
    const char* message;
  };
  const Row rows[] = {
      {R"({"t":"hot"})", "t: expected a number between 0 and 2, found \"hot\""},
      {R"({"t":3})", "t: expected a number between 0 and 2, found 3"},
      {R"({"t":[1]})", "t: expected a number between 0 and 2, found a list"},
      {R"({"i":1.5})", "i: expected an integer between 1 and 8, found 1.5"},
      {R"({"i":99999999999999999999})", "i: expected an integer between 1 and 8, found 1e+20"},
      {R"({"i":18446744073709551615})", "i: expected an integer between 1 and 8, found 18446744073709551615"},
      {R"({"b":1})", "b: expected true or false, found 1"},
      {R"({"s":["a",2]})", "s[1]: expected a string, found 2"},
      {R"({"s":{}})", "s: expected a string or a list of strings, found an object"},
      {R"({"o":{"in":"x"}})", "o.in: expected true or false, found \"x\""},
      {R"({"o":[]})", "o: expected an object, found an empty list"},
      {R"({"ids":[3,9]})", "ids[1]: expected a token id between 0 and 8, found 9"},
      {R"({"ids":[-1]})", "ids[0]: expected a token id between 0 and 8, found -1"},
      {R"({"c":"z"})", "c: expected \"x\" or \"y\", found \"z\""},
      {R"({"t":2,"i":8.0,"b":null,"s":"one","o":{},"ids":[],"c":"x"})", ""},
  };
  for (const Row& row : rows) {
    auto json = parse_json(row.json, "json");
    ASSERT_TRUE(json.ok());
    Fields fields(*json);
    fields.number("t", {.min = 0, .max = 2});
    fields.integer("i", 1, 8);
    fields.flag("b");
    fields.texts("s", 4, true);
    fields.object("o").flag("in");
    fields.ids("ids", 9);
    fields.choice("c", {"x", "y"});
    EXPECT_EQ(fields.ok() ? "" : fields.error().message, row.message) << row.json;
  }
}

TEST(Fields, ParamIsTheFieldThatTheMessageBeginsWith) {
  EXPECT_EQ(field_of("messages[0].content: expected a string"), "messages[0].content");
  EXPECT_EQ(field_of("the queue is full: 3"), "");
  EXPECT_EQ(field_of("no field"), "");
}

}  // namespace
}  // namespace dg::api
