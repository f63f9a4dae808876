// What a host needs to pick a token from a row of logits that lies on a device, without the row: the largest logits with their
// ids, the mass of the row, and the 256 logits among which a draw from the whole row falls. Layouts and arithmetic that ops, kernels
// and the sampler share.
//
// Exact: the sums are those of engine/sampler_kernels.h bit for bit (chunks of 256 logits in 32 lanes, the same polynomial, no fused
// multiply-add, chunks added in order as doubles), so that a token picked from these figures is the one picked from the row.
#pragma once
#include <cstddef>
#include <cstdint>

namespace dg {

constexpr size_t kChunk = 256;  // logits that are summed together
// A logit this many powers of two below the largest weighs nothing: 150,000 such tokens are 1.4e-7 of the total.
constexpr float kNegligibleBits = 40;

// 2^y = 2^i * 2^r with r in [-0.5, 0.5]; 2^r by the polynomial of degree 5 through it at the six Chebyshev nodes, its constant
// rounded to 1, so that 2^0 is exact: relative error 2.8e-7 with all rounding. kExp2Round leaves the nearest whole number i in the
// low bits of the sum.
constexpr float kExp2[] = {1.0f, 0.693147182f, 0.240221068f, 0.0555035695f, 0.00967603177f, 0.00133908633f};
constexpr float kExp2Round = 12582912;  // 1.5 * 2^23
constexpr float kSmallestExponent = -125;
constexpr float kLog2E = 1.44269504f;

// 2^y for y <= 0, relative error below 3e-7; 0 for y < -125 and NaN.
float exp2_of_negative(float y);

constexpr int kMostCandidates = 256;
constexpr int64_t kMostPickColumns = 1024 * static_cast<int64_t>(kChunk);  // of a row

enum PickFlags : int32_t {
  kPickSums = 1,       // the mass at `scale`
  kPickSumsAtOne = 2,  // the mass at temperature 1
  kPickDraw = 4,       // the chunk in which `uniform` of the mass at `scale` ends; with kPickSums
};

// What is asked of one row.
struct PickSpec {
  double repetition = 1, presence = 0, frequency = 0;  // penalties: SamplingParams
  double uniform = 0;
  float scale = 0;           // log2(e) / temperature
  int32_t first_change = 0;  // of this row among all
  int32_t change_count = 0;
  int32_t mask = -1;       // row of the masks; -1: every token is allowed
  int32_t candidates = 0;  // wanted; 0: this row is left alone
  int32_t flags = 0;       // PickFlags
  int32_t unused[2] = {0, 0};
};
static_assert(sizeof(PickSpec) == 64);

// How the logit of one token changes, in this order. A row names a token once.
struct LogitChange {
  int32_t id;
  int32_t outputs;  // times in the answer, for the penalties; 0: in the prompt only; -1: in neither
  float bias;       // added; -inf: the token must not be picked
};

// A row of results: this, then `most` logits, `most` ids, and kChunk logits where the op is asked to draw.
struct PickHeader {
  double total;         // of 2^((logit - max) * scale) over the row
  double total_at_one;  // the same with log2(e) as the scale
  double left;          // what of uniform * total is left for the logits from `chunk` on
  float max;            // -inf: nothing can be picked
  int32_t count;        // candidates, by falling logit, of equals the lower id first; NaN and -inf are none; -0 is 0
  int32_t complete;     // 1: there are no others
  int32_t chunk;        // column of its first logit / kChunk; -1: none
};
static_assert(sizeof(PickHeader) == 40);

// 32-bit words of a row of results. Even: a row starts with a double.
constexpr int64_t pick_words(int64_t most, bool draw) {
  return static_cast<int64_t>(sizeof(PickHeader) / 4) + 2 * most + (draw ? static_cast<int64_t>(kChunk) : 0);
}

}  // namespace dg
