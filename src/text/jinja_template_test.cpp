// What the interpreter does with hostile templates, its messages and the clock. Its results are checked against Python in
// tests/chat.
#include "text/jinja_template.h"

#include <gtest/gtest.h>

#include "base/json.h"

namespace dg {
namespace {

Result<std::string> render(const std::string& source, const Json& variables = Json::object(), JinjaLimits limits = {}) {
  auto parsed = JinjaTemplate::parse(source, limits);
  if (!parsed.ok()) return parsed.error();
  return parsed->render(variables, std::time_t{1700000000});
}

std::string error_of(const std::string& source, JinjaLimits limits = {}) {
  auto result = render(source, Json::object(), limits);
  EXPECT_FALSE(result.ok()) << "rendered " << result->substr(0, 100);
  if (result.ok()) return "";
  EXPECT_EQ(result.error().message.find('\n'), std::string::npos);
  EXPECT_LT(result.error().message.size(), 700u);
  return result.error().message;
}

std::string repeated(const std::string& s, size_t n) {
  std::string out;
  for (size_t i = 0; i < n; i++) out += s;
  return out;
}

TEST(JinjaTemplate, ErrorsNameTheLine) {
  EXPECT_EQ(error_of("a\nb\n{{ x.y }}"), "chat template, line 3: 'x' is undefined");
  EXPECT_EQ(error_of("{% if true %}\n\n{{ 'a' + 1 }}{% endif %}"),
            "chat template, line 3: unsupported operand types for +: 'str' and 'int'");
  EXPECT_EQ(error_of("\n{% for %}"), "chat template, line 2: syntax error: expected the name of a variable, found '%}'");
  EXPECT_EQ(error_of("{{ 1 }}\n{% endfor %}"), "chat template, line 2: syntax error: unknown statement 'endfor'");
  EXPECT_EQ(error_of("{{ raise_exception('two\nlines') }}"), "chat template, line 1: two lines");
  EXPECT_EQ(error_of("{% include 'x' %}"), "chat template, line 1: syntax error: 'include' is not available in a chat template");
}

TEST(JinjaTemplate, MutableListsAndDicts) {
  auto out = render(
      "{% set l = [1] %}{{ l.append(2) }}{% set _ = l.extend([3]) %}{{ l.pop(0) }}{{ l }}"
      "{% set d = {'a': 1} %}{% set _ = d.update({'b': 2}, c=3) %}{{ d }}{{ d.pop('a') }}{{ d.setdefault('z', 9) }}{{ d }}");
  ASSERT_TRUE(out.ok()) << out.error().message;
  EXPECT_EQ(*out, "None1[2, 3]{'a': 1, 'b': 2, 'c': 3}19{'b': 2, 'c': 3, 'z': 9}");
}

TEST(JinjaTemplate, ClockAndLargeIntegers) {
  setenv("TZ", "UTC", 1);
  auto out = render("{{ strftime_now('%Y-%m-%d %H:%M %d %b %Y %-d %% %Q %') }}");
  ASSERT_TRUE(out.ok());
  EXPECT_EQ(*out, "2023-11-14 22:13 14 Nov 2023 14 % %Q %");
  out = render("{{ n }} {{ n | tojson }}", {{"n", 18446744073709551615u}});
  ASSERT_TRUE(out.ok());
  EXPECT_EQ(*out, "18446744073709551615 18446744073709551615");
}

TEST(JinjaTemplate, FromJsonAndStrftimeErrors) {
  auto out = render("{{ ('{\"a\": [1, 2]}' | from_json).a[1] }}");
  ASSERT_TRUE(out.ok());
  EXPECT_EQ(*out, "2");
  EXPECT_NE(error_of("{{ '{' | from_json }}").find("not valid JSON"), std::string::npos);
  EXPECT_NE(error_of("{{ strftime_now(3) }}").find("must be a string"), std::string::npos);
}

TEST(JinjaTemplate, HostileLoopsEnd) {
  EXPECT_NE(error_of("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}").find("too"), std::string::npos);
  EXPECT_NE(error_of("{% set ns = namespace(s='x') %}{% for a in range(99) %}{% set ns.s = ns.s * 2 %}{% endfor %}")
                .find("too much "
                      "data"),
            std::string::npos);
  EXPECT_NE(error_of("{% set ns = namespace(s=[1]) %}{% for a in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}").find("too"),
            std::string::npos);
  EXPECT_NE(error_of("{{ 'x' * 10 ** 15 }}").find("too"), std::string::npos);
  EXPECT_NE(error_of("{{ [0] * 9223372036854775807 }}").find("too"), std::string::npos);
  EXPECT_NE(error_of("{{ range(10 ** 9) }}").find("more than 100000"), std::string::npos);
  EXPECT_NE(error_of("{{ 10 ** 10 ** 10 }}").find("64-bit"), std::string::npos);
  EXPECT_NE(error_of("{% set a = 'a' * 3000000 %}{% set b = 'a' * 1000000 ~ 'b' %}{% for i in range(9999) %}{{ b in a }}{% endfor "
                     "%}")
                .find("too many steps"),
            std::string::npos);
  EXPECT_NE(error_of("{% set l = [[]] %}{% for i in range(200) %}{% set l = l %}{% set _ = l.append(l) %}{% endfor %}{{ l "
                     "}}")
                .find("nested deeper"),
            std::string::npos);
  EXPECT_NE(error_of("{{ 'a' | center(99999999999) ~ ('%9999999d' % 1) }}").find("width"), std::string::npos);
  EXPECT_NE(error_of("{{ 'aa' | replace('', 'b' * 9999999) | replace('b', 'c' * 9999999) }}").find("too"), std::string::npos);
}

TEST(JinjaTemplate, HostileNestingEnds) {
  size_t n = 20000;
  EXPECT_NE(error_of("{{ " + repeated("(", n) + "1" + repeated(")", n) + " }}").find("nested deeper"), std::string::npos);
  EXPECT_NE(error_of("{{ " + repeated("[", n) + repeated("]", n) + " }}").find("nested deeper"), std::string::npos);
  EXPECT_NE(error_of("{{ " + repeated("not ", n) + "1 }}").find("nested deeper"), std::string::npos);
  EXPECT_NE(error_of("{{ " + repeated("-", n) + "1 }}").find("nested deeper"), std::string::npos);
  EXPECT_NE(error_of("{{ 1" + repeated(" + 1", n) + " }}").find("deeper than"), std::string::npos);
  EXPECT_NE(error_of("{{ a" + repeated(".b", n) + " }}").find("deeper than"), std::string::npos);
  EXPECT_NE(error_of("{{ a" + repeated("|upper", n) + " }}").find("deeper than"), std::string::npos);
  EXPECT_NE(error_of("{{ 1" + repeated(" if 1 else 1", n) + " }}").find("nested deeper"), std::string::npos);
  EXPECT_NE(error_of(repeated("{% if 1 %}", n)).find("nested deeper"), std::string::npos);
  EXPECT_NE(error_of("{% for " + repeated("(", n) + repeated(")", n) + " %}").find("nested deeper"), std::string::npos);
  EXPECT_NE(error_of("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}").find("nested deeper"), std::string::npos);
  EXPECT_NE(error_of("{% set ns = namespace(l=[]) %}{% for i in range(5000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l "
                     "}}")
                .find("nested deeper"),
            std::string::npos);
  EXPECT_NE(error_of("{% set ns = namespace(l=[]) %}{% for i in range(5000) %}{% set ns.l = {'a': ns.l} %}{% endfor %}{{ ns.l | tojson "
                     "}}")
                .find("nested deeper"),
            std::string::npos);
  EXPECT_NE(error_of("{% set a = [] %}{% set _ = a.append(a) %}{% set b = [] %}{% set _ = b.append(b) %}{{ a == b }}")
                .find("nested "
                      "deeper"),
            std::string::npos);
}

TEST(JinjaTemplate, LongButHarmlessTemplatesWork) {
  auto out = render("{% for i in range(20000) %}{{ i % 10 }}{% endfor %}");
  ASSERT_TRUE(out.ok()) << out.error().message;
  EXPECT_EQ(out->size(), 20000u);
  out = render("{{ 'a'" + repeated(" + 'a'", 100) + " }}");
  ASSERT_TRUE(out.ok()) << out.error().message;
  EXPECT_EQ(out->size(), 101u);
  out = render("{% if x %}" + repeated("{% elif z %}", 5000) + "{% endif %}ok");
  ASSERT_TRUE(out.ok()) << out.error().message;
  EXPECT_EQ(*out, "ok");
}

TEST(JinjaTemplate, LimitsApply) {
  EXPECT_NE(error_of(std::string(2000, 'x'), {.max_source_bytes = 1000}).find("2000 bytes"), std::string::npos);
  EXPECT_NE(error_of("{% for i in range(100) %}0123456789{% endfor %}", {.max_output_bytes = 500}).find("longer than 500"),
            std::string::npos);
  EXPECT_NE(error_of("{% for i in range(1000) %}{% endfor %}", {.max_steps = 500}).find("too many steps"), std::string::npos);
}

TEST(JinjaTemplate, RejectsVariablesThatAreNoObject) {
  auto parsed = JinjaTemplate::parse("x");
  ASSERT_TRUE(parsed.ok());
  EXPECT_FALSE(parsed->render(Json::array()).ok());
}

}  // namespace
}  // namespace dg
