// grammar_walk TOKENIZER_DIRECTORY CORPUS.json WALKS SEED
// For each schema of the corpus, one line of JSON: {"name", "error" | "outputs", "unfinished", "valid", "invalid"}. `outputs`:
// texts made by random walks over the allowed tokens, as an undecided model would. `valid`, `invalid`: for each instance of
// the corpus, in several spellings, whether the grammar takes it token by token and lets it end.
#include <fmt/core.h>

#include <cctype>
#include <cstdlib>
#include <random>

#include "base/file.h"
#include "base/json.h"
#include "text/grammar.h"
#include "text/tokenizer.h"

namespace {

constexpr int kLongWalk = 60, kMaxWalk = 1500;  // tokens; from kLongWalk on, tokens that close something are preferred

int fail(const std::string& message) {
  fmt::print(stderr, "grammar_walk: {}\n", message);
  return 2;
}

bool allows(const uint32_t* mask, int32_t id) { return !mask || (mask[id / 32] >> (id % 32) & 1) != 0; }

class Walker {
 public:
  Walker(const dg::Tokenizer& tokenizer, int32_t stop, uint32_t seed) : tokenizer_(tokenizer), stop_(stop), random_(seed) {}

  // false: the walk came to no end.
  bool walk(dg::GrammarState state, std::string& text) {
    for (int step = 0; step < kMaxWalk; step++) {
      const uint32_t* mask = state.mask();
      if (allows(mask, stop_) && (state.must_end() || random_() % 2 == 0)) return state.accept(stop_);
      const int32_t id = pick(mask, step);
      if (id < 0 || !state.accept(id)) {
        text += "<the mask allowed a token that accept() refused>";
        return true;
      }
      text += tokenizer_.token_bytes(id);
    }
    return false;
  }

  bool takes(dg::GrammarState state, const std::string& text) {
    for (int32_t id : tokenizer_.encode(text, {.add_special = false, .parse_added = false})) {
      const bool allowed = allows(state.mask(), id);
      if (state.accept(id) != allowed) fmt::print(stderr, "mask and accept differ at token {} of {}\n", id, text);
      if (!allowed) return false;
    }
    return state.can_end();
  }

 private:
  int32_t pick(const uint32_t* mask, int step) {
    std::vector<int32_t> all, closing, single;
    for (int32_t id = 0; id < tokenizer_.vocab_size(); id++) {
      if (id == stop_ || !allows(mask, id)) continue;
      all.push_back(id);
      const std::string_view bytes = tokenizer_.token_bytes(id);
      if (bytes.size() == 1 && (std::isalnum(static_cast<unsigned char>(bytes[0])) || bytes[0] == '@' || bytes[0] == '.'))
        single.push_back(id);
      if (bytes.find_first_of("\"]}") != std::string_view::npos && bytes.find_first_of("[{,:") == std::string_view::npos)
        closing.push_back(id);
    }
    if (all.empty()) return -1;
    // Texts end sooner or later, and not only in exotic tokens.
    const bool late = step > kLongWalk;
    const bool close = !closing.empty() && (late ? random_() % 2 == 0 : random_() % 4 == 0);
    const auto& from = close ? closing : late && !single.empty() ? single : all;
    return from[random_() % from.size()];
  }

  const dg::Tokenizer& tokenizer_;
  int32_t stop_;
  std::mt19937 random_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return fail("usage: grammar_walk TOKENIZER_DIRECTORY CORPUS.json WALKS SEED");
  auto tokenizer = dg::Tokenizer::load(argv[1]);
  if (!tokenizer.ok()) return fail(tokenizer.error().message);
  auto corpus = dg::read_json_file(argv[2]);
  if (!corpus.ok()) return fail(corpus.error().message);
  const int walks = std::atoi(argv[3]);
  const int32_t stop = (*tokenizer)->eos_id().value_or(1);
  dg::GrammarCompiler compiler(**tokenizer, (*tokenizer)->vocab_size(), {stop});
  Walker walker(**tokenizer, stop, static_cast<uint32_t>(std::atoi(argv[4])));
  for (const dg::Json& entry : *corpus) {
    dg::Json line{{"name", entry["name"]}};
    auto grammar = compiler.compile({.kind = dg::GrammarKind::kJsonSchema, .text = entry["schema"].dump()});
    if (!grammar.ok()) {
      line["error"] = grammar.error().message;
      fmt::print("{}\n", line.dump());
      continue;
    }
    line["outputs"] = dg::Json::array();
    int unfinished = 0;
    for (int i = 0; i < walks; i++) {
      std::string text;
      if (walker.walk(dg::GrammarState(*grammar), text)) line["outputs"].push_back(text);
      else unfinished++;
    }
    line["unfinished"] = unfinished;
    for (const char* list : {"valid", "invalid"}) {
      line[list] = dg::Json::array();
      if (!entry.contains(list)) continue;
      for (const dg::Json& instance : entry[list]) {
        dg::Json taken = dg::Json::array();
        for (const std::string& text : {instance.dump(), instance.dump(2), dg::dump_json_python(instance)})
          taken.push_back(walker.takes(dg::GrammarState(*grammar), text));
        line[list].push_back(taken);
      }
    }
    fmt::print("{}\n", line.dump(-1, ' ', false, dg::Json::error_handler_t::replace));
  }
  return 0;
}
