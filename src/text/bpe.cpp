#include "text/bpe.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "base/json.h"
#include "text/unicode.h"

namespace dg {
namespace {

constexpr int32_t kMaxTokenId = (1 << 24) - 1;
constexpr size_t kMaxTokenBytes = 65536;
constexpr size_t kShortPiece = 48;                  // symbols merged by scanning arrays
constexpr int kCacheBits = 14;                      // 2^14 entries: 1 MiB per scratch
constexpr size_t kMaxPieceBytes = size_t{1} << 30;  // positions are 32-bit; a longer piece is cut here
constexpr uint32_t kEnd = UINT32_MAX;

struct Alphabet {
  std::array<char32_t, 256> chars;
  std::array<int16_t, 512> bytes;
};

const Alphabet& alphabet() {
  static const Alphabet built = [] {
    Alphabet a{};
    a.bytes.fill(-1);
    char32_t next = 256;
    for (unsigned b = 0; b < 256; b++) {
      const bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
      a.chars[b] = printable ? b : next++;
      a.bytes[a.chars[b]] = static_cast<int16_t>(b);
    }
    return a;
  }();
  return built;
}

}  // namespace

char32_t ByteAlphabet::char_of(unsigned char byte) { return alphabet().chars[byte]; }
int ByteAlphabet::byte_of(char32_t c) { return c < 512 ? alphabet().bytes[c] : -1; }

bool ByteAlphabet::append_bytes(std::string_view token, std::string& bytes) {
  for (const char *p = token.data(), *end = p + token.size(); p < end;) {
    const auto lead = static_cast<unsigned char>(*p);
    // Chars of the alphabet are below U+0180: one byte or two. An ill-formed one is of none, as the replacement character is.
    char32_t c = lead;
    if (lead >= 0x80) c = lead >= 0xc2 && lead <= 0xc5 && end - p >= 2 && (p[1] & 0xc0) == 0x80 ? (lead & 31u) << 6 | (p[1] & 63u) : 0xfffd;
    const int byte = byte_of(c);
    if (byte < 0) return false;
    bytes += static_cast<char>(byte);
    p += lead < 0x80 ? 1 : 2;
  }
  return true;
}

Result<std::unique_ptr<Bpe>> Bpe::from_json(const JsonField& model, const BpeTables& tables, bool byte_level) {
  auto bpe = std::make_unique<Bpe>();
  bpe->byte_level_ = byte_level;
  DG_TRY(bpe->load_vocabulary(model, tables));
  DG_TRY(bpe->load_options(model));
  DG_TRY(bpe->load_merges(model, tables));
  bpe->fill_bytes();
  return bpe;
}

Result<void> Bpe::load_vocabulary(const JsonField& model, const BpeTables& tables) {
  DG_ASSIGN(JsonField vocab, model.member("vocab"));
  if (!vocab.value().is_object()) return vocab.expected("an object of token: id");
  if (tables.tokens.empty()) return vocab.expected("at least one token");
  std::vector<int32_t> ids;
  ids.reserve(tables.tokens.size());
  int32_t largest = 0;
  size_t bytes = 0;
  for (const auto& [token, literal] : tables.tokens) {
    int32_t id = -1;
    const auto [end, error] = std::from_chars(literal.data(), literal.data() + literal.size(), id);
    if (error != std::errc() || end != literal.data() + literal.size() || id < 0 || id > kMaxTokenId)
      return input_error(fmt::format("{}[\"{}\"]: expected an id from 0 to {}, found {}", vocab.path(), token.substr(0, 100), kMaxTokenId,
                                     literal.substr(0, 40)));
    if (token.size() > kMaxTokenBytes) return vocab.expected(fmt::format("tokens of at most {} bytes", kMaxTokenBytes));
    ids.push_back(id);
    largest = std::max(largest, id);
    bytes += token.size();
  }
  // A gap is harmless, but one huge id in a small vocabulary is a damaged file that would cost memory per id.
  if (static_cast<size_t>(largest) > ids.size() * 16 + 65536)
    return input_error(fmt::format("{}: expected ids near the number of tokens ({}), found {}", vocab.path(), ids.size(), largest));
  tokens_.resize(static_cast<size_t>(largest) + 1);
  std::vector<bool> used(tokens_.size(), false);
  contents_.reserve(ids.size(), bytes);
  pieces_.reserve(ids.size(), bytes);
  std::string raw;
  for (size_t i = 0; i < ids.size(); i++) {
    const std::string_view token = tables.tokens[i].text;
    const size_t id = static_cast<size_t>(ids[i]);
    if (used[id])
      return input_error(
          fmt::format("{}[\"{}\"]: id {} is already used by \"{}\"", vocab.path(), token.substr(0, 100), id, tokens_[id].substr(0, 100)));
    if (!contents_.insert(token, ids[i])) return input_error(fmt::format("{}: \"{}\" occurs twice", vocab.path(), token.substr(0, 100)));
    used[id] = true;
    tokens_[id] = token;
    raw.clear();
    if (!byte_level_) pieces_.insert(token, ids[i]);
    else if (ByteAlphabet::append_bytes(token, raw)) pieces_.insert(raw, ids[i]);
  }
  reachable_ = std::vector<std::atomic<uint8_t>>(tokens_.size());
  return {};
}

Result<void> Bpe::load_options(const JsonField& model) {
  if (model.has("dropout")) {
    DG_ASSIGN(JsonField dropout, model.member("dropout"));
    if (!dropout.value().is_number() || dropout.value().get<double>() != 0) return dropout.expected("null or 0");
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    DG_ASSIGN(const std::string affix, model.text_or(key, ""));
    if (!affix.empty()) return model.unsupported(fmt::format("{} \"{}\"", key, affix), "null or \"\"");
  }
  DG_ASSIGN(byte_fallback_, model.boolean_or("byte_fallback", false));
  DG_ASSIGN(fuse_unk_, model.boolean_or("fuse_unk", false));
  DG_ASSIGN(ignore_merges_, model.boolean_or("ignore_merges", false));
  DG_ASSIGN(const std::string unk, model.text_or("unk_token", ""));
  if (!unk.empty()) {
    unk_id_ = contents_.find(unk);
    if (unk_id_ < 0) return input_error(fmt::format("{}.unk_token: \"{}\" is not in the vocabulary", model.path(), unk));
  }
  return {};
}

Result<void> Bpe::load_merges(const JsonField& model, const BpeTables& tables) {
  DG_ASSIGN(JsonField merges, model.member("merges"));
  if (!merges.value().is_array()) return merges.expected("an array");
  merges_.reserve(tables.merges.size());
  std::string merged;
  for (size_t i = 0; i < tables.merges.size(); i++) {
    const auto& [left, right] = tables.merges[i];
    merged.assign(left).append(right);
    const int32_t a = contents_.find(left), b = contents_.find(right), c = contents_.find(merged);
    for (const auto& [id, token] : {std::pair{a, left}, std::pair{b, right}, std::pair{c, std::string_view(merged)}})
      if (id < 0) return input_error(fmt::format("{}[{}]: token \"{}\" is not in the vocabulary", merges.path(), i, token.substr(0, 100)));
    merges_.insert(a, b, {static_cast<uint32_t>(i), c});
  }
  return {};
}

void Bpe::fill_bytes() {
  all_fallback_bytes_ = true;
  for (unsigned b = 0; b < 256; b++) {
    std::string symbol;
    if (byte_level_) unicode::append_utf8(symbol, ByteAlphabet::char_of(static_cast<unsigned char>(b)));
    else symbol = fmt::format("<0x{:02X}>", b);
    byte_ids_[b] = contents_.find(symbol);
    all_fallback_bytes_ = all_fallback_bytes_ && byte_ids_[b] >= 0;
  }
}

void Bpe::encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const {
  if (piece.empty()) return;
  if (piece.size() > CacheEntry::kMaxBytes) {
    if (ignore_merges_ && piece.size() <= pieces_.longest()) {
      if (int32_t id = pieces_.find(piece); id >= 0) return out.push_back(id);
    }
    while (piece.size() > kMaxPieceBytes) {
      merge_piece(piece.substr(0, kMaxPieceBytes), scratch, out);
      piece.remove_prefix(kMaxPieceBytes);
    }
    return merge_piece(piece, scratch, out);
  }
  if (scratch.cache.empty()) scratch.cache.resize(size_t{1} << kCacheBits);
  CacheEntry& entry = scratch.cache[hash_bytes(piece, 0) >> (64 - kCacheBits)];
  if (entry.length == piece.size() && std::memcmp(entry.text, piece.data(), piece.size()) == 0) {
    out.insert(out.end(), entry.ids, entry.ids + entry.count);
    return;
  }
  const size_t before = out.size();
  const int32_t whole = pieces_.find(piece);
  uint8_t state = kUnreachable;
  if (whole >= 0) state = ignore_merges_ ? uint8_t{kReachable} : reachable_[static_cast<size_t>(whole)].load(std::memory_order_relaxed);
  if (state == kReachable) {
    out.push_back(whole);
  } else {
    merge_piece(piece, scratch, out);
    if (state == kUnknown) {
      const bool reached = out.size() == before + 1 && out.back() == whole;
      reachable_[static_cast<size_t>(whole)].store(reached ? kReachable : kUnreachable, std::memory_order_relaxed);
    }
  }
  const size_t count = out.size() - before;
  if (count > CacheEntry::kMaxIds) return;
  entry.length = static_cast<uint8_t>(piece.size());
  entry.count = static_cast<uint8_t>(count);
  std::memcpy(entry.text, piece.data(), piece.size());
  std::copy(out.begin() + static_cast<long>(before), out.end(), entry.ids);
}

// Characters to ids, with the order of Hugging Face's unknown handling: a pending unknown is written before the next
// known symbol or at the end, but byte-fallback tokens do not flush it.
void Bpe::first_symbols(std::string_view piece, std::vector<int32_t>& ids) const {
  ids.clear();
  bool pending = false;
  const auto known = [&](int32_t id) {
    if (pending) ids.push_back(unk_id_);
    pending = false;
    ids.push_back(id);
  };
  const auto unknown = [&] {
    if (unk_id_ < 0) return;
    if (pending && !fuse_unk_) ids.push_back(unk_id_);
    pending = true;
  };
  if (byte_level_) {
    for (char c : piece) {
      const int32_t id = byte_ids_[static_cast<unsigned char>(c)];
      if (id >= 0) known(id);
      else unknown();
    }
  } else {
    for (const char *p = piece.data(), *end = p + piece.size(); p < end;) {
      const uint32_t bytes = unicode::decode(p, end).bytes;
      const int32_t id = pieces_.find({p, bytes});
      if (id >= 0) {
        known(id);
      } else {
        bool fallback = byte_fallback_;
        for (uint32_t i = 0; i < bytes && fallback; i++) fallback = byte_ids_[static_cast<unsigned char>(p[i])] >= 0;
        if (fallback)
          for (uint32_t i = 0; i < bytes; i++) ids.push_back(byte_ids_[static_cast<unsigned char>(p[i])]);
        else unknown();
      }
      p += bytes;
    }
  }
  if (pending) ids.push_back(unk_id_);
}

void Bpe::merge_piece(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const {
  first_symbols(piece, scratch.ids);
  if (scratch.ids.size() < 2) out.insert(out.end(), scratch.ids.begin(), scratch.ids.end());
  else if (scratch.ids.size() <= kShortPiece) merge_short(scratch, out);
  else merge_long(scratch, out);
}

void Bpe::merge_short(Scratch& scratch, std::vector<int32_t>& out) const {
  int32_t* const ids = scratch.ids.data();
  size_t n = scratch.ids.size();
  MergeTable::Merge pair[kShortPiece];  // pair[i]: merge of symbols i and i + 1
  for (size_t i = 0; i + 1 < n; i++) pair[i] = merges_.find(ids[i], ids[i + 1]);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; i++)
      if (pair[i].rank < pair[best].rank) best = i;
    if (pair[best].rank == MergeTable::kNone) break;
    ids[best] = pair[best].id;
    std::copy(ids + best + 2, ids + n, ids + best + 1);
    std::copy(pair + best + 1, pair + n - 1, pair + best);
    n--;
    if (best > 0) pair[best - 1] = merges_.find(ids[best - 1], ids[best]);
    if (best + 1 < n) pair[best] = merges_.find(ids[best], ids[best + 1]);
  }
  out.insert(out.end(), ids, ids + n);
}

void Bpe::merge_long(Scratch& scratch, std::vector<int32_t>& out) const {
  // Symbols form a linked list; the heap holds rank << 32 | position, so ties go to the left. An entry is stale when the
  // pair at its position has another rank by now.
  std::vector<int32_t>& ids = scratch.ids;
  const uint32_t n = static_cast<uint32_t>(ids.size());
  auto& ranks = scratch.ranks;
  auto& next = scratch.next;
  auto& previous = scratch.previous;
  auto& heap = scratch.heap;
  ranks.assign(n, MergeTable::kNone);
  next.resize(n);
  previous.resize(n);
  heap.clear();
  for (uint32_t i = 0; i < n; i++) {
    next[i] = i + 1 < n ? i + 1 : kEnd;
    previous[i] = i > 0 ? i - 1 : kEnd;
    if (i + 1 < n) ranks[i] = merges_.find(ids[i], ids[i + 1]).rank;
    if (ranks[i] != MergeTable::kNone) heap.push_back((static_cast<uint64_t>(ranks[i]) << 32) | i);
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto refresh = [&](uint32_t at) {
    ranks[at] = next[at] == kEnd ? MergeTable::kNone : merges_.find(ids[at], ids[next[at]]).rank;
    if (ranks[at] == MergeTable::kNone) return;
    heap.push_back((static_cast<uint64_t>(ranks[at]) << 32) | at);
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    const uint64_t top = heap.front();
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    heap.pop_back();
    const uint32_t at = static_cast<uint32_t>(top), rank = static_cast<uint32_t>(top >> 32);
    if (ranks[at] != rank) continue;
    const uint32_t gone = next[at];
    ids[at] = merges_.find(ids[at], ids[gone]).id;
    ranks[gone] = MergeTable::kNone;
    next[at] = next[gone];
    if (next[at] != kEnd) previous[next[at]] = at;
    refresh(at);
    if (previous[at] != kEnd) refresh(previous[at]);
  }
  for (uint32_t i = 0; i != kEnd; i = next[i]) out.push_back(ids[i]);
  if (n > (1u << 20)) scratch = Scratch{};  // do not keep the memory of one enormous piece
}

}  // namespace dg
