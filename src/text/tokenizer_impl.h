// What a Tokenizer holds: filled by tokenizer_load.cpp, read by tokenizer.cpp.
#pragma once
#include <memory>
#include <mutex>
#include <unordered_map>

#include "text/bpe.h"
#include "text/decoder.h"
#include "text/normalizer.h"
#include "text/pretokenizer.h"
#include "text/tokenizer.h"
#include "text/tokenizer_added.h"

namespace dg {

struct EncodeScratch {
  Regex::Scratch regex;  // normaliser
  PreTokenizer::Scratch pre;
  Bpe::Scratch bpe;
  std::vector<AddedTokenMatcher::Span> raw_spans, normalized_spans;
};

// Working memory of encode() calls: one per concurrent caller, kept with its warm piece cache.
class EncodeScratchPool {
 public:
  std::unique_ptr<EncodeScratch> take() {
    std::lock_guard lock(mutex_);
    if (free_.empty()) return std::make_unique<EncodeScratch>();
    auto scratch = std::move(free_.back());
    free_.pop_back();
    return scratch;
  }
  void give(std::unique_ptr<EncodeScratch> scratch) {
    std::lock_guard lock(mutex_);
    if (free_.size() < kMaxFree) free_.push_back(std::move(scratch));
  }

 private:
  static constexpr size_t kMaxFree = 64;
  std::mutex mutex_;
  std::vector<std::unique_ptr<EncodeScratch>> free_;
};

struct Tokenizer::Impl {
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::unique_ptr<Bpe> model;
  Decoder decoder;

  std::vector<AddedToken> added;
  std::unordered_map<int32_t, size_t> added_by_id;  // -> index into added
  std::unordered_map<std::string, int32_t> added_by_content;
  AddedTokenMatcher raw_matcher, normalized_matcher;

  std::vector<int32_t> prefix, suffix;  // what add_special puts around the text

  std::string bytes;              // token_bytes of all ids, one after the other
  std::vector<uint32_t> offsets;  // vocab_size + 1

  std::string bos_token, eos_token, chat_template;
  std::optional<int32_t> bos_id, eos_id;
  mutable EncodeScratchPool scratch;

  const AddedToken* added_token(int32_t id) const {
    auto it = added_by_id.find(id);
    return it == added_by_id.end() ? nullptr : &added[it->second];
  }
  int32_t vocab_size() const { return static_cast<int32_t>(offsets.size()) - 1; }
  std::string_view content(int32_t id) const;
  std::optional<int32_t> id_of(std::string_view token) const;
  void encode_section(std::string_view text, bool at_start, bool parse_added, EncodeScratch& scratch, std::vector<int32_t>& out) const;
  void encode_normalized(std::string_view text, bool at_start, EncodeScratch& scratch, std::vector<int32_t>& out) const;
};

}  // namespace dg
