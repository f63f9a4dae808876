// The Jinja interpreter against Python's jinja2: vectors/*.json are written by make_vectors.py, so no oracle is needed here.
#include <gtest/gtest.h>

#include <string>

#include "base/file.h"
#include "base/json.h"
#include "text/jinja_template.h"

namespace dg {
namespace {

std::string chat_path(const std::string& name) { return std::string(DG_SOURCE_DIR) + "/tests/chat/" + name; }

Json load(const std::string& name) {
  auto json = read_json_file(chat_path(name));
  EXPECT_TRUE(json.ok()) << (json.ok() ? "" : json.error().message);
  return json.ok() ? *json : Json();
}

Result<std::string> render(const std::string& source, const Json& variables) {
  auto parsed = JinjaTemplate::parse(source);
  if (!parsed.ok()) return parsed.error();
  return parsed->render(variables);
}

void expect_vector(const Json& vector, const Result<std::string>& got) {
  if (vector.contains("error")) {
    ASSERT_FALSE(got.ok()) << "rendered " << *got << "\nbut Python says " << vector["error"];
    EXPECT_EQ(got.error().message.find('\n'), std::string::npos);
    EXPECT_EQ(got.error().message.rfind("chat template, line ", 0), 0u) << got.error().message;
  } else {
    ASSERT_TRUE(got.ok()) << got.error().message;
    EXPECT_EQ(*got, vector["expected"].get<std::string>());
  }
}

TEST(JinjaVectors, Snippets) {
  Json variables = load("snippet_variables.json"), vectors = load("vectors/snippets.json");
  ASSERT_GE(vectors.size(), 150u);
  for (auto& vector : vectors) {
    SCOPED_TRACE(vector["template"].get<std::string>());
    expect_vector(vector, render(vector["template"], variables));
  }
}

TEST(JinjaVectors, Templates) {
  Json vectors = load("vectors/templates.json"), conversations = load("conversations.json");
  Json by_name = Json::object();
  for (auto& c : conversations) by_name[c["name"].get<std::string>()] = c;
  for (auto& vector : vectors) {
    SCOPED_TRACE(vector["template"].get<std::string>() + " / " + vector["conversation"].get<std::string>() + " / " +
                 vector["extra"].dump());
    const Json& c = by_name[vector["conversation"].get<std::string>()];
    auto source = read_file(chat_path("templates/" + vector["template"].get<std::string>()), 1 << 20);
    ASSERT_TRUE(source.ok());
    Json variables = vector["extra"];
    variables["messages"] = c["messages"];
    variables["tools"] = c.contains("tools") ? c["tools"] : Json(nullptr);
    variables["add_generation_prompt"] = c.value("add_generation_prompt", true);
    variables["bos_token"] = "<｜begin▁of▁sentence｜>";
    variables["eos_token"] = variables["pad_token"] = "<｜end▁of▁sentence｜>";
    expect_vector(vector, render(*source, variables));
  }
}

}  // namespace
}  // namespace dg
