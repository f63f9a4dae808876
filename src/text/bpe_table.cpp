#include "text/bpe_table.h"

#include <algorithm>
#include <bit>
#include <random>

namespace dg {

uint64_t bpe_hash_seed() {
  static const uint64_t seed = [] {
    std::random_device device;
    return (static_cast<uint64_t>(device()) << 32 | device()) | 1;
  }();
  return seed;
}

void TokenTable::reserve(size_t count, size_t bytes) {
  arena_.reserve(bytes);
  grow(std::bit_ceil(std::max<size_t>(16, count * 2)));
}

void TokenTable::grow(size_t slots) {
  if (slots <= slots_.size()) return;
  std::vector<Slot> old(slots);
  old.swap(slots_);
  mask_ = slots - 1;
  for (const Slot& slot : old) {
    if (slot.id < 0) continue;
    size_t at = hash_bytes(std::string_view(arena_).substr(slot.offset, slot.length), seed_) & mask_;
    while (slots_[at].id >= 0) at = (at + 1) & mask_;
    slots_[at] = slot;
  }
}

bool TokenTable::insert(std::string_view text, int32_t id) {
  if ((count_ + 1) * 2 > slots_.size()) grow(std::max<size_t>(16, slots_.size() * 2));
  size_t at = hash_bytes(text, seed_) & mask_;
  for (; slots_[at].id >= 0; at = (at + 1) & mask_)
    if (std::string_view(arena_).substr(slots_[at].offset, slots_[at].length) == text) return false;
  slots_[at] = {static_cast<uint32_t>(arena_.size()), static_cast<uint32_t>(text.size()), id};
  arena_.append(text);
  count_++;
  longest_ = std::max(longest_, text.size());
  return true;
}

void MergeTable::reserve(size_t count) {
  slots_.assign(std::bit_ceil(std::max<size_t>(16, count * 2)), Slot{});
  mask_ = slots_.size() - 1;
}

void MergeTable::insert(int32_t left, int32_t right, Merge merge) {
  const uint64_t key = key_of(left, right);
  size_t at = mix(key ^ seed_, 0x9e3779b97f4a7c15ull) & mask_;
  while (slots_[at].key != kEmpty && slots_[at].key != key) at = (at + 1) & mask_;
  slots_[at] = {key, merge};
}

}  // namespace dg
