// The "pre_tokenizer" of tokenizer.json: cuts a text into the pieces that are merged separately.
//
// A sequence of stages works piece by piece, depth first: each piece a stage finds goes straight through the following
// stages, so no list of all pieces is ever built and the text stays in cache.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/regex.h"
#include "text/tokenizer_json.h"

namespace dg {

class PieceSink {
 public:
  virtual void piece(std::string_view text) = 0;

 protected:
  ~PieceSink() = default;
};

class PreTokenizer {
 public:
  struct Span {
    size_t begin, end;
    bool is_match;
  };
  struct StageScratch {
    Regex::Scratch regex;
    std::string text;  // what the stage rewrote its piece to
    std::vector<Span> spans;
  };
  using Scratch = std::vector<StageScratch>;

  PreTokenizer() = default;  // one piece: the whole text
  static Result<PreTokenizer> from_json(const JsonField& field);

  // Pieces are UTF-8 bytes of the text itself that the model maps through its byte alphabet ("ByteLevel").
  bool byte_level() const { return byte_level_; }

  // `at_start`: `text` begins where the whole input begins (Metaspace's prepend_scheme "first").
  void split(std::string_view text, bool at_start, Scratch& scratch, PieceSink& sink) const;

 private:
  enum class Kind { kSplit, kPrefixSpace, kMetaspace };
  enum class Behavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Prepend { kAlways, kFirst, kNever };
  struct Stage {
    Kind kind = Kind::kSplit;
    Behavior behavior = Behavior::kIsolated;
    bool invert = false;
    std::vector<Regex> regex;  // kSplit: one
    std::string replacement;   // kMetaspace
    Prepend prepend = Prepend::kAlways;
  };
  static Result<Behavior> behavior_of(const JsonField& field, std::string_view fallback);
  Result<void> append(const JsonField& field, int depth);
  Result<void> append_split(std::string_view pattern, Behavior behavior, bool invert);
  Result<void> append_byte_level(const JsonField& field);
  Result<void> append_metaspace(const JsonField& field);
  void run(size_t stage, std::string_view text, bool at_start, Scratch& scratch, PieceSink& sink) const;
  void run_split(size_t stage, std::string_view text, bool at_start, Scratch& scratch, PieceSink& sink) const;

  std::vector<Stage> stages_;
  bool byte_level_ = false;
};

}  // namespace dg
