// The BPE model of tokenizer.json: turns one piece of text into token ids by merging the pair of lowest rank, leftmost
// first, until nothing merges.
//
// Speed comes from three shortcuts that give the same ids: a small cache of recent pieces (in the caller's scratch);
// pieces that are a vocabulary entry which merging is known to reach (found out once per entry, on first use); and
// plain arrays instead of a heap for short pieces. A long piece costs O(n log n).
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/bpe_table.h"
#include "text/bpe_tables.h"
#include "text/tokenizer_json.h"

namespace dg {

// GPT-2's mapping between bytes and printable characters.
class ByteAlphabet {
 public:
  static char32_t char_of(unsigned char byte);
  static int byte_of(char32_t c);  // -1: not in the alphabet
  // Appends the bytes that `token` stands for; false when a character is not in the alphabet (some may be appended).
  static bool append_bytes(std::string_view token, std::string& bytes);
};

class Bpe {
 public:
  struct CacheEntry {  // one cache line
    static constexpr size_t kMaxBytes = 30, kMaxIds = 8;
    uint8_t length = 0, count = 0;
    char text[kMaxBytes];
    int32_t ids[kMaxIds];
  };
  static_assert(sizeof(CacheEntry) == 64);
  struct Scratch {
    std::vector<CacheEntry> cache;
    std::vector<int32_t> ids;
    std::vector<uint32_t> ranks, next, previous;
    std::vector<uint64_t> heap;
    std::vector<int32_t> out;
  };

  // `byte_level`: pieces are raw bytes and the vocabulary is written in the byte alphabet.
  // `model` has the options; vocabulary and merges come in `tables`.
  static Result<std::unique_ptr<Bpe>> from_json(const JsonField& model, const BpeTables& tables, bool byte_level);

  void encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const;

  int32_t id_of(std::string_view content) const { return contents_.find(content); }
  int32_t largest_id() const { return static_cast<int32_t>(tokens_.size()) - 1; }
  const std::string& content(int32_t id) const { return tokens_[static_cast<size_t>(id)]; }  // "" for an unused id

 private:
  enum : uint8_t { kUnknown, kReachable, kUnreachable };

  Result<void> load_vocabulary(const JsonField& model, const BpeTables& tables);
  Result<void> load_merges(const JsonField& model, const BpeTables& tables);
  Result<void> load_options(const JsonField& model);
  void fill_bytes();
  void merge_piece(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const;
  void first_symbols(std::string_view piece, std::vector<int32_t>& ids) const;
  void merge_short(Scratch& scratch, std::vector<int32_t>& out) const;
  void merge_long(Scratch& scratch, std::vector<int32_t>& out) const;

  bool byte_level_ = false, byte_fallback_ = false, fuse_unk_ = false, ignore_merges_ = false;
  int32_t unk_id_ = -1;
  int32_t byte_ids_[256];  // byte level: id of the symbol of a byte; else of the token <0xXX>; -1: none
  bool all_fallback_bytes_ = false;
  std::vector<std::string> tokens_;  // by id
  TokenTable contents_;              // as written in the file
  TokenTable pieces_;                // as found in pieces (raw bytes when byte_level_)
  MergeTable merges_;
  mutable std::vector<std::atomic<uint8_t>> reachable_;  // by id; a benign race: every thread finds the same
};

}  // namespace dg
