// The two huge parts of tokenizer.json, model.vocab and model.merges, read without a JSON document tree: most of the file
// is a quarter of a million short strings, and a tree of them takes several times as long to build as the model itself.
#pragma once
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace dg {

struct BpeTables {
  struct Token {
    std::string_view text;
    std::string_view id;  // the JSON literal, not checked yet
  };
  struct Merge {
    std::string_view left, right;
  };
  // Views into the document given to split_tokenizer_json, or into `unescaped`.
  std::vector<Token> tokens;
  std::vector<Merge> merges;
  std::deque<std::string> unescaped;
  std::string rest;  // the document with an empty vocab and empty merges
};

// Finds vocab (an object) and merges (an array) directly in the top-level "model" and reads them; other JSON is copied to
// `rest` unchecked, a value of another type included. `document` must outlive the result.
Result<BpeTables> split_tokenizer_json(std::string_view document, std::string_view origin);

}  // namespace dg
