// Hash tables of the BPE model: read-only after loading, open addressing, no allocation per entry. The hash is seeded
// per process, so a crafted vocabulary cannot make every look-up collide.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace dg {

uint64_t bpe_hash_seed();

inline uint64_t mix(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

inline uint64_t hash_bytes(std::string_view text, uint64_t seed) {
  uint64_t h = seed ^ (text.size() * 0x9e3779b97f4a7c15ull);
  const char* p = text.data();
  size_t n = text.size();
  for (; n >= 8; p += 8, n -= 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    h = mix(h ^ word, 0xd6e8feb86659fd93ull);
  }
  uint64_t word = 0;
  for (size_t i = 0; i < n; i++) word |= static_cast<uint64_t>(static_cast<unsigned char>(p[i])) << (8 * i);
  return mix(h ^ word, 0xa0761d6478bd642full);
}

// Token text -> id. Texts live in one arena.
class TokenTable {
 public:
  void reserve(size_t count, size_t bytes);
  bool insert(std::string_view text, int32_t id);  // false: already there (the id is kept)
  int32_t find(std::string_view text) const {      // -1: absent
    if (slots_.empty()) return -1;
    for (size_t at = hash_bytes(text, seed_) & mask_;; at = (at + 1) & mask_) {
      const Slot& slot = slots_[at];
      if (slot.id < 0) return -1;
      if (slot.length == text.size() && std::memcmp(arena_.data() + slot.offset, text.data(), text.size()) == 0) return slot.id;
    }
  }
  size_t size() const { return count_; }
  size_t longest() const { return longest_; }  // bytes

 private:
  struct Slot {
    uint32_t offset = 0, length = 0;
    int32_t id = -1;
  };
  void grow(size_t slots);

  std::vector<Slot> slots_;
  std::string arena_;
  uint64_t seed_ = bpe_hash_seed();
  size_t mask_ = 0, count_ = 0, longest_ = 0;
};

// Pair of token ids -> rank of the merge and the merged id.
class MergeTable {
 public:
  struct Merge {
    uint32_t rank;
    int32_t id;
  };
  static constexpr uint32_t kNone = UINT32_MAX;  // rank: the pair does not merge

  void reserve(size_t count);
  void insert(int32_t left, int32_t right, Merge merge);  // a repeated pair: the last one holds, as in Hugging Face
  Merge find(int32_t left, int32_t right) const {
    if (slots_.empty()) return {kNone, -1};
    const uint64_t key = key_of(left, right);
    for (size_t at = mix(key ^ seed_, 0x9e3779b97f4a7c15ull) & mask_;; at = (at + 1) & mask_) {
      const Slot& slot = slots_[at];
      if (slot.key == key) return slot.merge;
      if (slot.key == kEmpty) return {kNone, -1};
    }
  }

 private:
  static constexpr uint64_t kEmpty = UINT64_MAX;
  struct Slot {
    uint64_t key = kEmpty;
    Merge merge{kNone, -1};
  };
  static uint64_t key_of(int32_t left, int32_t right) {
    return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
  }

  std::vector<Slot> slots_;
  uint64_t seed_ = bpe_hash_seed();
  size_t mask_ = 0;
};

}  // namespace dg
