#include "backends/cuda/weight_layout.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "quant/convert.h"
#include "quant/ggml_block.h"
#include "quant/int4_asym.h"
#include "quant/mxfp4_gguf.h"
#include "quant/q8_0.h"

namespace dg::cuda {
namespace {

constexpr const char* kPublishedNames[] = {
    "f32",  "bf16", "f16",  "fp8_block", "q8_0", "int8", "int4", "fp8_block32", "fp8_channel", "int4_asym", "int8_asym", "q4_0",
    "q4_1", "q5_0", "q5_1", "q2_k",      "q3_k", "q4_k", "q5_k", "q6_k",        "iq4_nl",      "iq4_xs",    "mxfp4_gguf"};
static_assert(std::size(kPublishedNames) == static_cast<size_t>(Published::kCount));

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

uint16_t load_u16(const std::byte* p) {
  uint16_t v;
  std::memcpy(&v, p, 2);
  return v;
}
float load_f32(const std::byte* p) {
  float v;
  std::memcpy(&v, p, 4);
  return v;
}

// The codes of one row, one per byte and zero from `in` up, and what scales them.
struct RowCodes {
  std::vector<uint8_t> codes;        // (padded in)
  std::vector<float> scale, offset;  // (padded in / 32)
  std::vector<uint8_t> exponent;     // (padded in / 32) of kFp4
  std::vector<float> values;         // (padded in) of kBf16
  std::vector<std::byte> packed;     // of all rows of a call

  void clear(int64_t padded) {
    const auto n = static_cast<size_t>(padded), groups = n / 32;
    codes.assign(n, 0), scale.assign(groups, 0), offset.assign(groups, 0), exponent.assign(groups, 0);
  }
};

void read_q8_0(const Weight& w, int64_t row, RowCodes& r) {
  const int64_t groups = ceil_div(w.in, 32);
  const std::byte* pack = w.data + row * groups * 34;
  for (int64_t g = 0; g < groups; g++, pack += 34) {
    r.scale[static_cast<size_t>(g)] = f16_to_float(load_u16(pack));
    std::memcpy(&r.codes[static_cast<size_t>(g) * 32], pack + 2, static_cast<size_t>(std::min<int64_t>(32, w.in - g * 32)));
  }
}

void read_int8_asym(const Weight& w, int64_t row, RowCodes& r) {
  const int64_t groups = ceil_div(w.in, 32);
  const std::byte* pack = w.data + row * groups * 36;
  for (int64_t g = 0; g < groups; g++, pack += 36) {
    const float scale = f16_to_float(load_u16(pack));
    r.scale[static_cast<size_t>(g)] = scale;
    r.offset[static_cast<size_t>(g)] = scale * static_cast<float>(128 - static_cast<int>(load_u16(pack + 2)));
    for (int64_t i = 0; i < std::min<int64_t>(32, w.in - g * 32); i++)
      r.codes[static_cast<size_t>(g * 32 + i)] = static_cast<uint8_t>(static_cast<int>(pack[4 + i]) - 128);
  }
}

// 16 bytes of nibbles, elements j and j + 16 in byte j.
void read_nibbles(const std::byte* q, int64_t count, uint8_t* codes) {
  for (int64_t j = 0; j < std::min<int64_t>(16, count); j++) codes[j] = static_cast<uint8_t>(q[j]) & 15;
  for (int64_t j = 16; j < count; j++) codes[j] = static_cast<uint8_t>(q[j - 16]) >> 4;
}

void read_mxfp4(const Weight& w, int64_t row, RowCodes& r) {
  const int64_t groups = ceil_div(w.in, 32);
  const std::byte* pack = w.data + row * groups * 17;
  for (int64_t g = 0; g < groups; g++, pack += 17) {
    r.exponent[static_cast<size_t>(g)] = static_cast<uint8_t>(pack[0]);
    read_nibbles(pack + 1, std::min<int64_t>(32, w.in - g * 32), &r.codes[static_cast<size_t>(g) * 32]);
  }
}

void read_iq4_nl(const Weight& w, int64_t row, RowCodes& r) {
  const int64_t groups = ceil_div(w.in, 32);
  const std::byte* pack = w.data + row * groups * 18;
  for (int64_t g = 0; g < groups; g++, pack += 18) {
    r.scale[static_cast<size_t>(g)] = f16_to_float(load_u16(pack));
    read_nibbles(pack + 2, std::min<int64_t>(32, w.in - g * 32), &r.codes[static_cast<size_t>(g) * 32]);
  }
}

void read_iq4_xs(const Weight& w, int64_t row, RowCodes& r) {
  const int64_t blocks = ceil_div(w.in, kKQuantBlock), groups = ceil_div(w.in, 32);
  for (int64_t g = 0; g < groups; g++) {
    const std::byte* block = w.data + (row * blocks + g / 8) * 136;
    const int sub = static_cast<int>(g % 8), high = load_u16(block + 2);
    const int scale = (static_cast<int>(block[4 + sub / 2]) >> (4 * (sub % 2)) & 15) | (high >> (2 * sub) & 3) << 4;
    r.scale[static_cast<size_t>(g)] = f16_to_float(load_u16(block)) * static_cast<float>(scale - 32);
    read_nibbles(block + 8 + 16 * sub, std::min<int64_t>(32, w.in - g * 32), &r.codes[static_cast<size_t>(g) * 32]);
  }
}

void read_row(Published format, const Weight& w, int64_t row, RowCodes& r) {
  switch (format) {
    case Published::kFp8Block:
    case Published::kFp8Block32:
    case Published::kFp8Channel:
    case Published::kInt8: std::memcpy(r.codes.data(), w.data + row * w.in, static_cast<size_t>(w.in)); return;
    case Published::kQ80: return read_q8_0(w, row, r);
    case Published::kInt8Asym: return read_int8_asym(w, row, r);
    case Published::kMxfp4: return read_mxfp4(w, row, r);
    case Published::kIq4Nl: return read_iq4_nl(w, row, r);
    case Published::kIq4Xs: return read_iq4_xs(w, row, r);
    default: CHECK(w.format->codes4) << w.format->name; w.format->codes4(w, row, 0, w.in, r.codes.data(), r.scale.data(), r.offset.data());
  }
}

// A power of two by which the row's scales and offsets, divided, use f16's range; exact for those that are f16 already.
float row_factor(const RowCodes& r) {
  float most = 0;
  for (float v : r.scale) most = std::max(most, std::fabs(v));
  for (float v : r.offset) most = std::max(most, std::fabs(v));
  if (!(most > 0) || !std::isfinite(most)) return 1;
  return std::ldexp(1.0f, std::max(-120, std::ilogb(most) - 14));
}

void put_u16(std::byte* to, uint16_t v) { std::memcpy(to, &v, 2); }
void put_f32(std::byte* to, float v) { std::memcpy(to, &v, 4); }

void put_scales(WeightKind kind, const RowCodes& r, float factor, int row, int64_t chunk, std::byte* block) {
  for (int j = 0; j < chunk_groups(kind); j++) {
    const auto g = static_cast<size_t>(chunk * chunk_groups(kind) + j);
    std::byte* to = block + scale_offset(kind, row, j);
    switch (kind) {
      case WeightKind::kCode8:
      case WeightKind::kCode4: put_u16(to, float_to_f16(r.scale[g])); break;
      case WeightKind::kIq4: put_u16(to, float_to_f16(r.scale[g] / factor)); break;
      case WeightKind::kCode8Offset: put_f32(to, r.scale[g]), put_f32(to + 4, r.offset[g]); break;
      case WeightKind::kCode4Offset:
        put_u16(to, float_to_f16(r.scale[g] / factor)), put_u16(to + 2, float_to_f16(r.offset[g] / factor));
        break;
      case WeightKind::kFp4: *to = std::byte{r.exponent[g]}; break;
      default: break;
    }
  }
}

void put_codes(WeightKind kind, const uint8_t* codes, int row, std::byte* block) {
  for (int j = 0; j < chunk_groups(kind); j++)
    for (int t = 0; t < 4; t++) {
      const uint8_t* c = codes + 32 * j + 8 * t;
      const int lane = row % 8 * 4 + t, half = row / 8;
      if (chunk_groups(kind) == 2) {
        for (int i = 0; i < 8; i++) block[code8_offset(kind, half, lane, j, i)] = std::byte{c[i]};
      } else {
        uint32_t word = 0;
        for (int i = 0; i < 8; i++) word |= static_cast<uint32_t>(c[i] & 15) << nibble_shift(i);
        std::memcpy(block + half * 512 + lane * 16 + j * 4, &word, 4);
      }
    }
}

}  // namespace

Published published(const Format& format) {
  thread_local struct {
    const Format* format;
    Published value;
  } known[64] = {};
  auto& slot = known[reinterpret_cast<uintptr_t>(&format) / 8 % 64];
  if (slot.format != &format) {
    int i = 0;
    while (i < static_cast<int>(Published::kCount) && std::strcmp(kPublishedNames[i], format.name) != 0) i++;
    slot = {&format, static_cast<Published>(i)};
  }
  return slot.value;
}

WeightKind weight_kind(Published format) {
  switch (format) {
    case Published::kF32: return WeightKind::kF32;
    case Published::kFp8Block: return WeightKind::kFp8Block128;
    case Published::kFp8Block32: return WeightKind::kFp8Block32;
    case Published::kFp8Channel: return WeightKind::kFp8Row;
    case Published::kInt8: return WeightKind::kInt8Row;
    case Published::kQ80: return WeightKind::kCode8;
    case Published::kInt8Asym: return WeightKind::kCode8Offset;
    case Published::kInt4:
    case Published::kQ40: return WeightKind::kCode4;
    case Published::kInt4Asym:
    case Published::kQ41:
    case Published::kQ4K: return WeightKind::kCode4Offset;
    case Published::kMxfp4: return WeightKind::kFp4;
    case Published::kIq4Nl:
    case Published::kIq4Xs: return WeightKind::kIq4;
    default: return WeightKind::kBf16;
  }
}

const char* weight_kind_name(WeightKind kind) {
  constexpr const char* names[] = {"f32",      "bf16",  "fp8/128x128", "fp8/32x32", "fp8/row", "int8/row",
                                   "8/32+f16", "8a/32", "4/32+f16",    "4a/32",     "fp4/32",  "iq4/32"};
  static_assert(std::size(names) == static_cast<size_t>(WeightKind::kCount));
  return names[static_cast<int>(kind)];
}

WeightGeometry weight_geometry(WeightKind kind, int64_t out, int64_t in) {
  WeightGeometry g{.kind = kind, .out = out, .in = in};
  g.chunks = ceil_div(in, chunk_columns(kind));
  g.tiles = ceil_div(out, kTileRows);
  if (!has_blocks(kind)) {
    const int64_t row_bytes = kind == WeightKind::kF32 ? in * 4 : g.padded_in() * 2;
    g.tile_bytes = row_bytes * kTileRows;
    g.aux_offset = g.bytes = round_up(out * row_bytes, 64);
    return g;
  }
  g.tile_bytes = g.chunks * block_bytes(kind);
  g.aux_offset = g.tiles * g.tile_bytes;
  int64_t aux = 0;
  if (has_row_scale(kind)) aux = g.tiles * kTileRows;
  else if (const int side = square_side(kind)) aux = ceil_div(out, side) * square_pitch(kind, g.chunks);
  g.bytes = round_up(g.aux_offset + aux * 4, 64);
  return g;
}

void pack_weight(const Weight& rows, int64_t first, int64_t out, const std::function<void(int64_t, const void*, size_t)>& write) {
  CHECK(first % 128 == 0 && first + rows.out <= out) << first;
  const Published format = published(*rows.format);
  const WeightKind kind = weight_kind(format);
  const WeightGeometry g = weight_geometry(kind, out, rows.in);
  thread_local RowCodes r;
  if (!has_blocks(kind)) {
    CHECK(kind == WeightKind::kBf16) << "f32 stays as published";
    const int64_t row_bytes = g.padded_in() * 2;
    r.packed.assign(static_cast<size_t>(rows.out * row_bytes), std::byte{0});
    r.values.resize(static_cast<size_t>(rows.in));
    for (int64_t row = 0; row < rows.out; row++) {
      std::byte* to = r.packed.data() + row * row_bytes;
      if (format == Published::kBf16) {
        std::memcpy(to, rows.data + row * rows.in * 2, static_cast<size_t>(rows.in) * 2);
        continue;
      }
      rows.decode(row, 0, rows.in, r.values.data());
      for (int64_t k = 0; k < rows.in; k++) put_u16(to + k * 2, float_to_bf16(r.values[static_cast<size_t>(k)]));
    }
    return write(first * row_bytes, r.packed.data(), r.packed.size());
  }

  const int64_t tiles = ceil_div(rows.out, kTileRows);
  r.packed.assign(static_cast<size_t>(tiles * g.tile_bytes), std::byte{0});
  std::vector<float> aux;
  if (has_row_scale(kind)) aux.assign(static_cast<size_t>(tiles * kTileRows), 0.0f);
  for (int64_t row = 0; row < rows.out; row++) {
    r.clear(g.padded_in());
    read_row(format, rows, row, r);
    float factor = 1;
    if (kind == WeightKind::kCode4Offset || kind == WeightKind::kIq4) aux[static_cast<size_t>(row)] = factor = row_factor(r);
    else if (has_row_scale(kind)) aux[static_cast<size_t>(row)] = load_f32(rows.scales + row * 4);
    std::byte* tile = r.packed.data() + row / kTileRows * g.tile_bytes;
    for (int64_t c = 0; c < g.chunks; c++) {
      std::byte* block = tile + c * block_bytes(kind);
      put_codes(kind, r.codes.data() + c * chunk_columns(kind), static_cast<int>(row % kTileRows), block);
      put_scales(kind, r, factor, static_cast<int>(row % kTileRows), c, block);
    }
  }
  write(first / kTileRows * g.tile_bytes, r.packed.data(), r.packed.size());
  if (has_row_scale(kind)) {
    write(g.aux_offset + first * 4, aux.data(), aux.size() * 4);
  } else if (const int side = square_side(kind)) {
    const int64_t pitch = square_pitch(kind, g.chunks), used = ceil_div(rows.in, side), scale_rows = ceil_div(rows.out, side);
    aux.assign(static_cast<size_t>(scale_rows * pitch), 0.0f);
    for (int64_t s = 0; s < scale_rows; s++)
      std::memcpy(&aux[static_cast<size_t>(s * pitch)], rows.scales + s * used * 4, static_cast<size_t>(used) * 4);
    write(g.aux_offset + first / side * pitch * 4, aux.data(), aux.size() * 4);
  }
}

void unpack_weight_row(const WeightGeometry& g, const std::byte* data, int64_t row, float* to) {
  const WeightKind kind = g.kind;
  if (!has_blocks(kind)) {
    CHECK(kind == WeightKind::kBf16);
    for (int64_t k = 0; k < g.in; k++) to[k] = bf16_to_float(load_u16(data + (row * g.padded_in() + k) * 2));
    return;
  }
  const int r = static_cast<int>(row % kTileRows);
  const std::byte* aux = data + g.aux_offset;
  const float row_scale = has_row_scale(kind) ? load_f32(aux + row * 4) : 1;
  for (int64_t k = 0; k < g.in; k++) {
    const std::byte* block = data + row / kTileRows * g.tile_bytes + k / chunk_columns(kind) * block_bytes(kind);
    const int j = static_cast<int>(k % chunk_columns(kind)) / 32, t = static_cast<int>(k % 32) / 8, i = static_cast<int>(k % 8);
    const int lane = r % 8 * 4 + t, half = r / 8;
    uint32_t word;
    std::memcpy(&word, block + half * 512 + lane * 16 + (chunk_groups(kind) == 4 ? j * 4 : 0), 4);
    const int nibble = static_cast<int>(word >> nibble_shift(i) & 15);
    const auto code8 = static_cast<uint8_t>(block[code8_offset(kind, half, lane, j % 2, i)]);
    const std::byte* scale = block + scale_offset(kind, r, j);
    switch (kind) {
      case WeightKind::kFp8Block128:
      case WeightKind::kFp8Block32: {
        const int64_t side = square_side(kind);
        to[k] = e4m3_to_float(code8) * load_f32(aux + (row / side * square_pitch(kind, g.chunks) + k / side) * 4);
        break;
      }
      case WeightKind::kFp8Row: to[k] = e4m3_to_float(code8) * row_scale; break;
      case WeightKind::kInt8Row: to[k] = row_scale * static_cast<float>(static_cast<int8_t>(code8)); break;
      case WeightKind::kCode8: to[k] = f16_to_float(load_u16(scale)) * static_cast<float>(static_cast<int8_t>(code8)); break;
      case WeightKind::kCode8Offset: to[k] = load_f32(scale) * static_cast<float>(static_cast<int8_t>(code8)) + load_f32(scale + 4); break;
      case WeightKind::kCode4: to[k] = f16_to_float(load_u16(scale)) * static_cast<float>(nibble - 8); break;
      case WeightKind::kCode4Offset:
        to[k] = row_scale * (f16_to_float(load_u16(scale)) * static_cast<float>(nibble) + f16_to_float(load_u16(scale + 2)));
        break;
      case WeightKind::kFp4:
        to[k] = bits_to_float(static_cast<uint32_t>(*scale) << 23) * static_cast<float>(kFp4Doubled[nibble]) * 0.5f;
        break;
      case WeightKind::kIq4: to[k] = row_scale * (f16_to_float(load_u16(scale)) * static_cast<float>(kIq4Values[nibble])); break;
      default: CHECK(false);
    }
  }
}

}  // namespace dg::cuda
