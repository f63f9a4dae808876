// Grammar-constrained decoding: which tokens may follow, so that the text is always a prefix of something the grammar
// derives.
//
// A grammar is compiled once per specification into a byte-level pushdown automaton over the tokenizer's vocabulary; the
// tokens allowed in a state are a bit mask, cached per automaton state. Special and added tokens are allowed only where the
// specification writes them literally. Compilation is bounded (size, time, depth): a hostile schema is an error, not a hang.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace dg {

class Tokenizer;

enum class GrammarKind { kJsonObject, kJsonSchema, kRegex, kChoice, kEbnf };

struct GrammarSpec {
  GrammarKind kind = GrammarKind::kJsonObject;
  std::string text;                  // schema (JSON text), regular expression, or EBNF; empty for kJsonObject, kChoice
  std::vector<std::string> choices;  // kChoice
  // Free text comes first, without limits, until this text has been generated ("</think>"); the end of the answer is not
  // allowed before. "": the grammar applies from the first token.
  std::string start_after;
  // Free text until this text is generated, which may never happen; what follows it obeys the grammar, and after its end only
  // the end of the answer follows. "": none. Used for tool calls. Comes behind start_after when both are set.
  std::string trigger;
};

struct GrammarLimits {
  size_t max_spec_bytes = size_t{256} << 10;
  size_t max_states = size_t{1} << 20;
  size_t cache_bytes = size_t{64} << 20;  // masks kept per compiled grammar
  size_t cached_grammars = 64;            // compiled grammars kept, least recently used leaves first
};

// A compiled grammar with its cache of masks. Immutable to its users; any number of threads.
class Grammar;

// One per model; any thread.
class GrammarCompiler {
 public:
  // `vocab`: width of a row of logits (ids above the tokenizer's are never allowed). `stop_ids` end an answer.
  GrammarCompiler(const Tokenizer& tokenizer, int64_t vocab, std::vector<int32_t> stop_ids, GrammarLimits limits = {});
  ~GrammarCompiler();
  // The error names the place in the specification: "response_format.json_schema.schema: $.properties.a.type: ...". A
  // keyword that cannot be enforced is an error that names it, never ignored silently (annotations such as title are fine).
  Result<std::shared_ptr<const Grammar>> compile(const GrammarSpec& spec);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Where one answer stands in its grammar. A value: copies are cheap (speculation keeps the state before a draft).
class GrammarState {
 public:
  GrammarState() = default;
  explicit GrammarState(std::shared_ptr<const Grammar> grammar);

  bool active() const { return grammar_ != nullptr; }
  // Bit id of the result says whether the token may follow. (vocab + 31) / 32 words, valid until the next call or the state's
  // end; null: every token may follow (free text). Never all zero: where nothing else may follow, a stop id may.
  const uint32_t* mask();
  // The state after the token; false, and no change, when it may not follow.
  bool accept(int32_t id);
  bool can_end() const;   // a stop id may follow
  bool must_end() const;  // nothing but a stop id may follow: the answer is complete

 private:
  struct Position;
  std::shared_ptr<const Grammar> grammar_;
  std::shared_ptr<const Position> position_;  // persistent: shared by copies
  std::shared_ptr<std::vector<uint32_t>> mask_;
};

}  // namespace dg
