// The public face: specifications become automata, answers become positions in them.
//
// An answer is in one of four phases: free text up to start_after, free text in which the trigger may come, the grammar, and
// the end behind a stop id. The free phases look for their marker over the bytes of the tokens (Knuth-Morris-Pratt); a token
// may reach over the end of a marker when its rest obeys what follows.
#include "text/grammar.h"

#include <fmt/core.h>

#include <algorithm>
#include <list>
#include <mutex>

#include "base/check.h"
#include "text/grammar_ebnf.h"
#include "text/grammar_mask.h"
#include "text/grammar_regex.h"
#include "text/grammar_schema.h"
#include "text/tokenizer.h"

namespace dg {

namespace {

using grammar::Config;
using grammar::Item;
using grammar::Machine;
using grammar::Mask;

constexpr size_t kMaxMarkerBytes = 1024;

enum class Phase : uint8_t { kBefore, kWaiting, kGrammar, kEnded };

// A text that is looked for in a stream of bytes.
class Marker {
 public:
  explicit Marker(std::string text) : text_(std::move(text)), failure_(text_.size() + 1, 0) {
    for (size_t i = 1, k = 0; i < text_.size(); i++) {
      while (k > 0 && text_[i] != text_[k]) k = failure_[k];
      if (text_[i] == text_[k]) k++;
      failure_[i + 1] = static_cast<uint32_t>(k);
    }
  }
  bool empty() const { return text_.empty(); }
  // Bytes of `text` up to the marker's end, or npos with `matched` = the length of its beginning that the stream ends in.
  size_t find(std::string_view text, uint32_t& matched) const {
    for (size_t i = 0; i < text.size(); i++) {
      while (matched > 0 && text[i] != text_[matched]) matched = failure_[matched];
      if (text[i] == text_[matched]) matched++;
      if (matched == text_.size()) return i + 1;
    }
    return std::string_view::npos;
  }

 private:
  std::string text_;
  std::vector<uint32_t> failure_;
};

// What is shared by all grammars of a compiler.
struct Shared {
  Shared(const Tokenizer& tokenizer, int64_t vocab, std::vector<int32_t> stop_ids, const GrammarLimits& limits)
      : vocabulary(tokenizer, vocab, std::move(stop_ids)), string_sets(limits.cache_bytes) {}
  grammar::Vocabulary vocabulary;
  grammar::NodeSetCache string_sets;
};

// A cached mask; `every`: it allows all ids, so that a sampler need not look at it.
struct CachedMask {
  Mask bits;
  bool every = false;
};

}  // namespace

class Grammar {
 public:
  Grammar(std::shared_ptr<Shared> shared, grammar::Automaton automaton, const GrammarSpec& spec, const GrammarLimits& limits)
      : shared(std::move(shared)),
        automaton(std::move(automaton)),
        before(spec.start_after),
        trigger(spec.trigger),
        masks(limits.cache_bytes / 2),
        sets(limits.cache_bytes / 2) {}
  const grammar::Vocabulary& vocabulary() const { return shared->vocabulary; }

  std::shared_ptr<Shared> shared;
  grammar::Automaton automaton;
  Marker before, trigger;
  mutable grammar::ByteCache<CachedMask> masks;
  mutable grammar::NodeSetCache sets;
};

struct GrammarState::Position {
  Phase phase = Phase::kGrammar;
  uint32_t matched = 0;  // bytes of the marker that the text ends in, in the free phases
  Config config;         // in the grammar
  uint64_t key = 0;      // of the mask
};

namespace {

// Where a text leads that begins in some phase; items point into the machine's arena.
struct Reached {
  Phase phase;
  uint32_t matched = 0;
  std::vector<Item> items;
  bool can_end = false;
};

// Runs over the free phases into the grammar. false: the text may not follow.
bool run_free(const Grammar& grammar, Machine& machine, std::string_view text, Reached& at) {
  if (at.phase == Phase::kBefore) {
    const size_t end = grammar.before.find(text, at.matched);
    if (end == std::string_view::npos) return true;
    text.remove_prefix(end);
    at.matched = 0;
    at.phase = grammar.trigger.empty() ? Phase::kGrammar : Phase::kWaiting;
    if (at.phase == Phase::kGrammar) machine.start(at.items, at.can_end);
  }
  if (at.phase == Phase::kWaiting) {
    const size_t end = grammar.trigger.find(text, at.matched);
    if (end == std::string_view::npos) return true;
    text.remove_prefix(end);
    at.matched = 0;
    at.phase = Phase::kGrammar;
    machine.start(at.items, at.can_end);
  }
  if (text.empty()) return true;
  const std::vector<Item> from = at.items;
  return machine.run(from, text, at.items, at.can_end);
}

std::shared_ptr<CachedMask> free_mask(const Grammar& grammar, Phase phase, uint32_t matched) {
  const grammar::Vocabulary& v = grammar.vocabulary();
  auto mask = std::make_shared<CachedMask>();
  mask->bits.assign(v.words(), 0);
  Machine machine(grammar.automaton, v.reach());
  Reached at{.phase = phase};
  bool every = true;
  for (int32_t id = 0; id < v.size(); id++) {
    bool may = v.known(id);
    if (v.is_stop(id)) {
      may = phase == Phase::kWaiting;
    } else if (may) {
      machine.arena().release({});
      at.phase = phase;
      at.matched = matched;
      may = run_free(grammar, machine, v.bytes(id), at);
    }
    if (may) mask->bits[static_cast<size_t>(id) >> 5] |= uint32_t{1} << (id & 31);
    every &= may;
  }
  mask->every = every;
  return mask;
}

// Never all zero: where the vocabulary has no token that could follow, the answer may end.
std::shared_ptr<CachedMask> grammar_mask(const Grammar& grammar, const Config& config) {
  const grammar::Vocabulary& v = grammar.vocabulary();
  auto mask = std::make_shared<CachedMask>();
  mask->bits.assign(v.words(), 0);
  grammar::MaskBuilder(grammar.automaton, v, grammar.shared->string_sets, grammar.sets).build(config.items(), mask->bits);
  if (config.can_end() || std::all_of(mask->bits.begin(), mask->bits.end(), [](uint32_t word) { return word == 0; }))
    for (int32_t id : v.stop_ids()) mask->bits[static_cast<size_t>(id) >> 5] |= uint32_t{1} << (id & 31);
  return mask;
}

std::string spec_key(const GrammarSpec& spec) {
  std::string key = fmt::format("{}:{}:{}:", static_cast<int>(spec.kind), spec.start_after.size(), spec.trigger.size());
  key += spec.start_after + spec.trigger;
  for (const std::string& choice : spec.choices) key += fmt::format("{}:{}", choice.size(), choice);
  return key + "|" + spec.text;
}

Result<grammar::RuleId> add_choices(grammar::Ast& ast, const std::vector<std::string>& choices) {
  if (choices.empty()) return input_error("expected at least one text, found none");
  std::vector<grammar::ExprId> ways;
  for (const std::string& choice : choices) {
    if (unicode::first_invalid(choice) != std::string_view::npos) return input_error(fmt::format("text {}: expected UTF-8", ways.size()));
    ways.push_back(ast.text(choice));
  }
  const grammar::RuleId rule = ast.add_rule("choice");
  ast.define(rule, ast.alt(std::move(ways)));
  return rule;
}

}  // namespace

struct GrammarCompiler::Impl {
  Impl(const Tokenizer& t, int64_t vocab, std::vector<int32_t> stop_ids, const GrammarLimits& l)
      : tokenizer(t), limits(l), vocab(vocab), stop_ids(std::move(stop_ids)) {}

  Result<grammar::RuleId> add_spec(grammar::Ast& ast, const GrammarSpec& spec) {
    switch (spec.kind) {
      case GrammarKind::kJsonObject: return grammar::add_json_rules(ast).object;
      case GrammarKind::kJsonSchema: return grammar::add_schema(ast, spec.text);
      case GrammarKind::kChoice: return add_choices(ast, spec.choices);
      case GrammarKind::kEbnf:
        return grammar::add_ebnf(ast, spec.text, [this](std::string_view content) -> std::optional<int32_t> {
          const auto id = tokenizer.id_of(content);
          return id && shared()->vocabulary.added(*id) ? id : std::nullopt;
        });
      case GrammarKind::kRegex: {
        DG_ASSIGN(const grammar::ExprId body, grammar::add_regex(ast, spec.text, {}));
        const grammar::RuleId rule = ast.add_rule("regex");
        ast.define(rule, body);
        return rule;
      }
    }
    return input_error("unknown kind of grammar");
  }

  Result<std::shared_ptr<const Grammar>> build(const GrammarSpec& spec) {
    static constexpr const char* kPlaces[] = {"json object", "schema", "regex", "choice", "grammar"};
    const std::string place = kPlaces[static_cast<size_t>(spec.kind)];
    auto explain = [&](const Error& error) {
      Error out{error.kind, place + ": " + error.message};
      for (char& c : out.message)  // names quoted from the specification
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
      return out;
    };
    size_t bytes = spec.text.size();
    for (const std::string& choice : spec.choices) bytes += choice.size() + 1;
    if (bytes > limits.max_spec_bytes)
      return input_error(fmt::format("{}: expected at most {} bytes, found {}; make it smaller", place, limits.max_spec_bytes, bytes));
    for (const std::string* marker : {&spec.start_after, &spec.trigger})
      if (marker->size() > kMaxMarkerBytes)
        return input_error(
            fmt::format("{}: expected a marker of at most {} bytes before the grammar, found {}", place, kMaxMarkerBytes, marker->size()));
    grammar::Ast ast;
    auto root = add_spec(ast, spec);
    if (!root.ok()) return explain(root.error());
    const bool json = spec.kind == GrammarKind::kJsonObject || spec.kind == GrammarKind::kJsonSchema;
    if (json && !spec.start_after.empty()) {
      // Models leave a blank line behind their reasoning.
      const grammar::RuleId spaced = ast.add_rule("answer");
      ast.define(spaced, ast.seq({ast.repeat(ast.text("\n"), 0, 2), ast.call(*root)}));
      root = spaced;
    }
    auto automaton = grammar::build_automaton(ast, *root, limits.max_states);
    if (!automaton.ok()) return explain(automaton.error());
    return std::shared_ptr<const Grammar>(std::make_shared<const Grammar>(shared(), std::move(*automaton), spec, limits));
  }

  // Made for the first grammar: the vocabulary's tree takes a tenth of a second, and most servers never need it.
  const std::shared_ptr<Shared>& shared() {
    std::call_once(shared_once, [this] { made_shared = std::make_shared<Shared>(tokenizer, vocab, stop_ids, limits); });
    return made_shared;
  }

  const Tokenizer& tokenizer;
  GrammarLimits limits;
  int64_t vocab;
  std::vector<int32_t> stop_ids;
  std::once_flag shared_once;
  std::shared_ptr<Shared> made_shared;
  std::mutex mutex;
  struct Compiled {
    std::string key;
    std::shared_ptr<const Grammar> grammar;
  };
  std::list<Compiled> compiled;  // most recently used first
};

GrammarCompiler::GrammarCompiler(const Tokenizer& tokenizer, int64_t vocab, std::vector<int32_t> stop_ids, GrammarLimits limits)
    : impl_(std::make_unique<Impl>(tokenizer, vocab, std::move(stop_ids), limits)) {}
GrammarCompiler::~GrammarCompiler() = default;

Result<std::shared_ptr<const Grammar>> GrammarCompiler::compile(const GrammarSpec& spec) {
  const std::string key = spec_key(spec);
  {
    std::lock_guard lock(impl_->mutex);
    for (auto it = impl_->compiled.begin(); it != impl_->compiled.end(); ++it) {
      if (it->key != key) continue;
      impl_->compiled.splice(impl_->compiled.begin(), impl_->compiled, it);
      return it->grammar;
    }
  }
  auto built = impl_->build(spec);  // outside the lock: others need not wait
  if (!built.ok()) return built;
  std::lock_guard lock(impl_->mutex);
  impl_->compiled.push_front({key, *built});
  while (impl_->compiled.size() > std::max<size_t>(impl_->limits.cached_grammars, 1)) impl_->compiled.pop_back();
  return built;
}

GrammarState::GrammarState(std::shared_ptr<const Grammar> grammar) : grammar_(std::move(grammar)) {
  auto position = std::make_shared<Position>();
  if (!grammar_->before.empty()) position->phase = Phase::kBefore;
  else if (!grammar_->trigger.empty()) position->phase = Phase::kWaiting;
  if (position->phase == Phase::kGrammar) {
    Machine machine(grammar_->automaton, grammar_->vocabulary().reach());
    std::vector<Item> items;
    bool can_end = false;
    machine.start(items, can_end);
    position->config = Config(std::move(items), can_end);
    position->key = grammar::mix(position->config.key(grammar_->vocabulary().reach()), 11);
  } else {
    position->key = grammar::mix(static_cast<uint64_t>(position->phase), 0);
  }
  position_ = std::move(position);
}

const uint32_t* GrammarState::mask() {
  CHECK(active());
  const Position& at = *position_;
  auto found = grammar_->masks.find(at.key);
  if (!found) {
    if (at.phase == Phase::kGrammar || at.phase == Phase::kEnded) found = grammar_mask(*grammar_, at.config);
    else found = free_mask(*grammar_, at.phase, at.matched);
    grammar_->masks.insert(at.key, found, found->bits.size() * sizeof(uint32_t) + 128);
  }
  mask_ = std::shared_ptr<std::vector<uint32_t>>(found, &found->bits);
  return found->every ? nullptr : mask_->data();
}

bool GrammarState::accept(int32_t id) {
  CHECK(active());
  const grammar::Vocabulary& v = grammar_->vocabulary();
  const Position& at = *position_;
  const bool stop = v.is_stop(id);
  if (!stop && (!v.known(id) || at.phase == Phase::kEnded)) return false;
  Machine machine(grammar_->automaton, v.reach());
  Reached next{.phase = at.phase, .matched = at.matched};
  if (at.phase == Phase::kGrammar) machine.step_token(at.config.items(), id, next.items, next.can_end);
  const bool by_token = !next.items.empty() || next.can_end;
  if (stop && !by_token) {
    const bool stuck =
        at.phase == Phase::kGrammar && !at.config.can_end() && (mask(), (*mask_)[static_cast<size_t>(id) >> 5] >> (id & 31) & 1);
    if (!can_end() && !stuck) return false;
    next = {.phase = Phase::kEnded};
  } else if (!by_token && at.phase == Phase::kGrammar) {
    if (v.added(id) || v.bytes(id).size() >= v.reach() || !machine.run(at.config.items(), v.bytes(id), next.items, next.can_end))
      return false;
  } else if (!by_token && !run_free(*grammar_, machine, v.bytes(id), next)) {
    return false;
  }
  auto position = std::make_shared<Position>();
  position->phase = next.phase;
  position->matched = next.matched;
  if (next.phase == Phase::kGrammar) {
    position->config = Config(std::move(next.items), next.can_end);
    position->key = grammar::mix(position->config.key(v.reach()), 11);
  } else if (next.phase == Phase::kEnded) {
    position->config = Config({}, true);
    position->key = grammar::mix(position->config.key(v.reach()), 11);
  } else {
    position->key = grammar::mix(static_cast<uint64_t>(next.phase), next.matched);
  }
  position_ = std::move(position);
  return true;
}

bool GrammarState::can_end() const {
  if (!active()) return true;
  switch (position_->phase) {
    case Phase::kBefore: return false;
    case Phase::kGrammar: return position_->config.can_end();
    case Phase::kWaiting:
    case Phase::kEnded: return true;
  }
  return true;
}

bool GrammarState::must_end() const {
  if (!active()) return false;
  if (position_->phase == Phase::kEnded) return true;
  return position_->phase == Phase::kGrammar && position_->config.can_end() && position_->config.items().empty();
}

}  // namespace dg
