// bench_grammar MODEL_DIRECTORY [ROUNDS]
// Time of GrammarCompiler::compile() and of mask() + accept() per token over JSON answers, on one thread. "cold": the first
// time an answer passes (masks are computed), "warm": later passes (masks come from the cache). Prints a table; the target is
// 50 us per token, warm, for a vocabulary of 129k tokens.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/json.h"
#include "text/grammar.h"
#include "text/tokenizer.h"

namespace {

double now_us() { return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

int fail(const std::string& message) {
  fmt::print(stderr, "bench_grammar: {}\n", message);
  return 2;
}

struct Case {
  const char* name;
  dg::GrammarSpec spec;
  std::string text;
};

std::vector<Case> cases() {
  using Kind = dg::GrammarKind;
  const std::string people =
      R"({"people": [{"name": "Ada Lovelace", "age": 36, "email": "ada@example.org", "role": "author", "notes": "Wrote the first )"
      R"(program for the Analytical Engine; \"Note G\"."}, {"name": "山田太郎", "age": null, "email": "taro@example.jp", "role": "editor", )"
      R"("notes": "日本語のメモ、二行目\n三行目"}], "summary": "Two people were found in the text, both of them writers of some kind."})";
  const std::string people_schema =
      R"({"type":"object","properties":{"people":{"type":"array","minItems":1,"maxItems":8,"items":{"type":"object","properties":{)"
      R"("name":{"type":"string","minLength":1,"maxLength":100},"age":{"type":["integer","null"]},"email":{"type":"string",)"
      R"("format":"email"},)"
      R"("role":{"type":"string","enum":["author","editor","reader"]},"notes":{"type":"string","maxLength":200}},)"
      R"("required":["name","age","email","role","notes"],"additionalProperties":false}},"summary":{"type":"string"}},)"
      R"("required":["people","summary"],"additionalProperties":false})";
  std::string free = "{\n  \"title\": \"A free object\",\n  \"list\": [1, 2.5, -3e10, true, null, {\"deep\": [[\"x\", \"y z\"], {}]}],\n";
  for (int i = 0; i < 8; i++) free += fmt::format("  \"key {}\": \"Some text of a sentence, with number {} in it.\",\n", i, i * 37);
  free += "  \"last\": {\"a\": {\"b\": {\"c\": \"d\"}}}\n}";
  std::string tree = "null";
  for (int i = 0; i < 12; i++) tree = fmt::format("{{\"value\": {}, \"next\": {}}}", i, tree);
  const std::string tree_schema =
      R"({"$ref":"#/$defs/n","$defs":{"n":{"type":"object","properties":{"value":{"type":"integer"},)"
      R"("next":{"anyOf":[{"$ref":"#/$defs/n"},{"type":"null"}]}},"required":["value","next"],"additionalProperties":false}}})";
  return {
      {"json object", {.kind = Kind::kJsonObject}, free},
      {"extraction", {.kind = Kind::kJsonSchema, .text = people_schema}, people},
      {"linked list", {.kind = Kind::kJsonSchema, .text = tree_schema}, tree},
      {"regex", {.kind = Kind::kRegex, .text = "(\\w+ ){1,50}[a-z]+\\."}, "the quick brown fox jumps over the lazy dog and then sleeps."},
      {"choice", {.kind = Kind::kChoice, .choices = {"positive", "negative", "neutral"}}, "negative"},
  };
}

double percentile(std::vector<double> values, double p) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[std::min(values.size() - 1, static_cast<size_t>(p * static_cast<double>(values.size())))];
}

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (double v : values) sum += v;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) return fail("usage: bench_grammar MODEL_DIRECTORY [ROUNDS]");
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 20;
  auto tokenizer = dg::Tokenizer::load(argv[1]);
  if (!tokenizer.ok()) return fail(tokenizer.error().message);
  const int32_t stop = (*tokenizer)->eos_id().value_or(1);
  double begin_us = now_us();
  dg::GrammarCompiler compiler(**tokenizer, (*tokenizer)->vocab_size(), {stop});
  fmt::print("vocabulary {} tokens, compiler made in {:.1f} ms\n", (*tokenizer)->vocab_size(), (now_us() - begin_us) / 1e3);
  fmt::print("{:<12} {:>6} {:>11} | {:>9} {:>9} {:>9} {:>9} | {:>9} {:>9} {:>10}\n", "grammar", "tokens", "compile ms", "cold mean", "p50",
             "p99", "max us", "warm mean", "p99 us", "accept us");
  for (const Case& c : cases()) {
    begin_us = now_us();
    auto grammar = compiler.compile(c.spec);
    const double compile_us = now_us() - begin_us;
    if (!grammar.ok()) return fail(grammar.error().message);
    const std::vector<int32_t> ids = (*tokenizer)->encode(c.text, {.add_special = false});
    std::vector<double> cold, warm, accept;
    for (int round = 0; round <= rounds; round++) {
      dg::GrammarState state(*grammar);
      for (size_t i = 0; i <= ids.size(); i++) {
        const int32_t id = i == ids.size() ? stop : ids[i];
        const double t0 = now_us();
        const uint32_t* mask = state.mask();
        const double t1 = now_us();
        if (mask && (mask[id / 32] >> (id % 32) & 1) == 0)
          return fail(fmt::format("{}: token {} is refused: {}", c.name, i, (*tokenizer)->content(id)));
        const double t2 = now_us();
        if (!state.accept(id)) return fail(fmt::format("{}: accept() refuses token {}", c.name, i));
        accept.push_back(now_us() - t2);
        (round == 0 ? cold : warm).push_back(t1 - t0);
      }
    }
    fmt::print("{:<12} {:>6} {:>11.2f} | {:>9.1f} {:>9.1f} {:>9.1f} {:>9.1f} | {:>9.2f} {:>9.2f} {:>10.2f}\n", c.name, ids.size(),
               compile_us / 1e3, mean(cold), percentile(cold, 0.5), percentile(cold, 0.99), percentile(cold, 1), mean(warm),
               percentile(warm, 0.99), mean(accept));
  }
  return 0;
}
