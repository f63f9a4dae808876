// Collectives of several GPUs in one process: what ranks share, and the protocol, written once for the GPU (all_reduce.cu) and for
// threads of the CPU (collective_test.cpp, under sanitizers). `M` stands for the machine: index and barrier of a block, loads and stores.
//
// Block b of a rank meets only block b of the others, so all ranks launch the same grid, small enough to be resident as a whole.
// Flags hold the number of the collective (`turn`), which only grows, so nothing is ever reset and a captured graph can be replayed.
//   one shot   x is copied to this rank's buffer, ranks meet, everyone reads all buffers. Buffers have two halves that take turns: who
//              writes a half again has met all ranks in the turn between, so they had read it. One meeting, (n - 1) x bytes in.
//   two shot   ranks tell each other where x lies and meet; rank r sums part r of all x and stores it into all of them (nobody else
//              touches that part); they meet again. 2 (n - 1) / n x bytes in and as many out, no copy, any size.
// Sums are taken in order of rank, in both: the same bits on every rank and with either.
//
// A rank that waits longer than the limit writes a report to host memory, sets `failed` of all ranks and ends; a set `failed` ends
// every wait, so later collectives return at once with unspecified contents. The host reads the report (collectives.cpp).
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define DG_COLLECTIVE __device__ __forceinline__
#define DG_UNROLL _Pragma("unroll")
#else
#define DG_COLLECTIVE inline
#define DG_UNROLL
#endif

namespace dg::cuda {

constexpr int kMostRanks = 8, kMostCollectiveBlocks = 128;

enum class Collective : uint32_t { kOneShot, kTwoShot, kNorm };

// Written by all ranks; in the memory of its own.
struct SharedFlags {
  uint64_t ready[kMostCollectiveBlocks][kMostRanks];  // [b][r]: the turn for which block b of rank r is ready, and done
  uint64_t done[kMostCollectiveBlocks][kMostRanks];
  uint64_t x[kMostCollectiveBlocks][kMostRanks];  // where its x lies
  uint32_t failed;
};

// Of a rank's own kernels.
struct CollectiveState {
  uint64_t turn;  // of the last collective
  uint32_t finished_blocks;
  uint32_t reported;
};

// In host memory that the GPU can write.
struct CollectiveReport {
  uint32_t code;     // 0: no failure; 1: this rank waited in vain (the rest says for whom); written last
  uint32_t aborted;  // this rank gave up because another one had failed
  uint32_t give_up;  // set by the host: waits end
  Collective what;
  uint32_t waited_for;
  uint64_t turn;
  int64_t elements;
};

struct CollectiveArgs {
  SharedFlags* flags[kMostRanks];
  float* buffer[kMostRanks];  // two halves of half_elements
  CollectiveState* state;
  CollectiveReport* report;
  int64_t half_elements;
  int64_t limit_ns;  // of one wait
  int rank, ranks;
};

struct ReduceArgs {
  float* x;
  int64_t elements;
};

// delta is summed over the ranks, residual += the sum, out = rms_norm(residual). Rows of `groups` * 4 floats, aligned to 16 bytes.
struct ReduceNormArgs {
  float *out, *residual;
  const float *delta, *weight;
  int64_t out_stride, residual_stride, delta_stride;
  int64_t rows, groups;
  float eps;
  int parts;  // blocks that share a row
};

struct alignas(16) Four {
  float x, y, z, w;
};
DG_COLLECTIVE Four operator+(Four a, Four b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

template <class M>
DG_COLLECTIVE void give_up(const CollectiveArgs& c) {
  for (int r = 0; r < c.ranks; r++) M::set(&c.flags[r]->failed, 1u);
}

// Until rank `from` came to `turn`. False: it did not, or somebody failed.
template <class M>
DG_COLLECTIVE bool wait_for(const CollectiveArgs& c, const uint64_t* flag, uint64_t turn, int from, Collective what, int64_t elements) {
  int64_t begin = 0;
  for (uint32_t polls = 1; M::acquire(flag) < turn; polls++) {
    M::pause();
    if (polls % 16 != 0) continue;
    if (M::get(&c.flags[c.rank]->failed) != 0) {
      M::set(&c.report->aborted, 1u);
      return false;
    }
    if (polls % 1024 == 0 && M::get(&c.report->give_up) != 0) {  // over PCIe
      M::set(&c.report->aborted, 1u);
      give_up<M>(c);
      return false;
    }
    const int64_t now = M::now_ns();
    if (begin == 0) begin = now;
    if (now - begin < c.limit_ns) continue;
    if (M::swap(&c.state->reported, 1u) == 0) {  // the first of this rank's threads
      c.report->what = what;
      c.report->waited_for = static_cast<uint32_t>(from);
      c.report->turn = turn;
      c.report->elements = elements;
      M::publish(&c.report->code, 1u);
    }
    give_up<M>(c);
    return false;
  }
  return true;
}

// What this block wrote is seen by the same block of all ranks, and theirs by this one. The same answer in all threads.
template <class M, uint64_t (SharedFlags::*kFlags)[kMostCollectiveBlocks][kMostRanks]>
DG_COLLECTIVE bool meet(M& m, const CollectiveArgs& c, uint64_t turn, Collective what, int64_t elements) {
  m.sync();
  for (int r = m.thread(); r < c.ranks; r += m.threads())
    if (r != c.rank) M::release(&(c.flags[r]->*kFlags)[m.block()][c.rank], turn);
  bool good = true;
  for (int r = m.thread(); r < c.ranks; r += m.threads())
    if (r != c.rank) good = wait_for<M>(c, &(c.flags[c.rank]->*kFlags)[m.block()][r], turn, r, what, elements) && good;
  return m.all(good);
}

// The last block counts the collective; until then all blocks read the turn before it.
template <class M>
DG_COLLECTIVE void finish(M& m, const CollectiveArgs& c, uint64_t turn) {
  m.sync();
  if (m.thread() != 0 || !M::last(&c.state->finished_blocks, static_cast<uint32_t>(m.blocks()))) return;
  c.state->finished_blocks = 0;
  c.state->turn = turn;
}

template <int kRanks>
DG_COLLECTIVE Four sum_of(const Four (&v)[kRanks], int ranks) {
  Four sum = v[0];
  DG_UNROLL
  for (int r = 1; r < kRanks; r++)
    if (r < ranks) sum = sum + v[r];
  return sum;
}

// kRanks: at least `ranks`; so many loads are on their way at once. kVector: x is aligned to 16 bytes and its size to four.
template <class M, int kRanks, bool kVector>
DG_COLLECTIVE void reduce_one_shot(M& m, const CollectiveArgs& c, const ReduceArgs& a) {
  m.wait_for_previous();
  m.start_next();
  const uint64_t turn = c.state->turn + 1;
  const int64_t half = static_cast<int64_t>(turn % 2) * c.half_elements;
  const int64_t first = (static_cast<int64_t>(m.block()) * m.threads() + m.thread()) * 4;
  const int64_t step = static_cast<int64_t>(m.blocks()) * m.threads() * 4;
  for (int64_t i = first; i < a.elements; i += step)
    M::template store<true>(c.buffer[c.rank] + half + i, 4, M::template load<kVector>(a.x + i, a.elements - i));
  if (meet<M, &SharedFlags::ready>(m, c, turn, Collective::kOneShot, a.elements)) {
    for (int64_t i = first; i < a.elements; i += step) {
      Four v[kRanks];
      DG_UNROLL
      for (int r = 0; r < kRanks; r++)
        if (r < c.ranks) v[r] = M::template load<true>(c.buffer[r] + half + i, 4);
      M::template store<kVector>(a.x + i, a.elements - i, sum_of<kRanks>(v, c.ranks));
    }
  }
  finish(m, c, turn);
}

// Elements [begin, end) of all x become their sum, kBatch groups of four at a time, so that few ranks also keep enough loads on their way.
template <class M, int kRanks, int kBatch, bool kVector>
DG_COLLECTIVE void sum_part(M& m, float* const (&x)[kRanks], int ranks, int64_t begin, int64_t end) {
  const int64_t across = static_cast<int64_t>(m.blocks()) * m.threads() * 4;
  const int64_t first = begin + (static_cast<int64_t>(m.block()) * m.threads() + m.thread()) * 4;
  for (int64_t at = first; at < end; at += across * kBatch) {
    Four v[kBatch][kRanks];
    DG_UNROLL
    for (int k = 0; k < kBatch; k++) {
      const int64_t i = at + k * across;
      DG_UNROLL
      for (int r = 0; r < kRanks; r++)
        if (r < ranks && i < end) v[k][r] = M::template load<kVector>(x[r] + i, end - i);
    }
    DG_UNROLL
    for (int k = 0; k < kBatch; k++) {
      const int64_t i = at + k * across;
      if (i >= end) continue;
      const Four sum = sum_of<kRanks>(v[k], ranks);
      DG_UNROLL
      for (int r = 0; r < kRanks; r++)
        if (r < ranks) M::template store<kVector>(x[r] + i, end - i, sum);
    }
  }
}

template <class M, int kRanks, int kBatch>
DG_COLLECTIVE void reduce_two_shot(M& m, const CollectiveArgs& c, const ReduceArgs& a) {
  m.wait_for_previous();
  m.start_next();
  const uint64_t turn = c.state->turn + 1;
  for (int r = m.thread(); r < c.ranks; r += m.threads())
    M::set(&c.flags[r]->x[m.block()][c.rank], static_cast<uint64_t>(reinterpret_cast<uintptr_t>(a.x)));
  if (meet<M, &SharedFlags::ready>(m, c, turn, Collective::kTwoShot, a.elements)) {
    float* x[kRanks];
    uint64_t bits = static_cast<uint64_t>(a.elements) % 4;
    DG_UNROLL
    for (int r = 0; r < kRanks; r++) {
      const uint64_t at = r < c.ranks ? M::get(&c.flags[c.rank]->x[m.block()][r]) : 0;
      x[r] = reinterpret_cast<float*>(static_cast<uintptr_t>(at));
      bits |= at % 16;
    }
    const int64_t part = ((a.elements + 3) / 4 + c.ranks - 1) / c.ranks * 4;
    const int64_t begin = part * c.rank, end = begin + part < a.elements ? begin + part : a.elements;
    if (bits == 0) sum_part<M, kRanks, kBatch, true>(m, x, c.ranks, begin, end);
    else sum_part<M, kRanks, 1, false>(m, x, c.ranks, begin, end);
    meet<M, &SharedFlags::done>(m, c, turn, Collective::kTwoShot, a.elements);
  }
  finish(m, c, turn);
}

// One shot, then the norm: `parts` blocks share a row (m.row_sum adds over them), which stays in registers between the two passes:
// groups <= parts * threads * kKept. Blocks of a row go on together, also after a failure, with what this rank has.
template <class M, int kRanks, int kKept>
DG_COLLECTIVE void reduce_norm(M& m, const CollectiveArgs& c, const ReduceNormArgs& a) {
  m.wait_for_previous();
  m.start_next();
  const uint64_t turn = c.state->turn + 1;
  const int64_t half = static_cast<int64_t>(turn % 2) * c.half_elements;
  const int part = m.block() % a.parts;
  const int64_t share = (a.groups + a.parts - 1) / a.parts, begin = share * part;
  const int64_t end = begin + share < a.groups ? begin + share : a.groups;
  const int64_t first_row = m.block() / a.parts, row_step = m.blocks() / a.parts;
  for (int64_t row = first_row; row < a.rows; row += row_step)
    for (int64_t g = begin + m.thread(); g < end; g += m.threads())
      M::template store<true>(c.buffer[c.rank] + half + (row * a.groups + g) * 4, 4,
                              M::template load<true>(a.delta + row * a.delta_stride + g * 4, 4));
  const bool good = meet<M, &SharedFlags::ready>(m, c, turn, Collective::kNorm, a.rows * a.groups * 4);
  for (int64_t row = first_row; row < a.rows; row += row_step) {
    Four kept[kKept];
    float squares = 0;
    DG_UNROLL
    for (int k = 0; k < kKept; k++) {
      const int64_t g = begin + m.thread() + static_cast<int64_t>(k) * m.threads();
      if (g >= end) continue;
      Four v[kRanks];
      DG_UNROLL
      for (int r = 0; r < kRanks; r++)
        if (r < c.ranks) v[r] = M::template load<true>(c.buffer[good ? r : c.rank] + half + (row * a.groups + g) * 4, 4);
      kept[k] = M::template load<true>(a.residual + row * a.residual_stride + g * 4, 4) + sum_of<kRanks>(v, c.ranks);
    }
    DG_UNROLL
    for (int k = 0; k < kKept; k++) {  // behind all loads, which need not wait for these then
      const int64_t g = begin + m.thread() + static_cast<int64_t>(k) * m.threads();
      if (g >= end) continue;
      M::template store<true>(a.residual + row * a.residual_stride + g * 4, 4, kept[k]);
      squares += kept[k].x * kept[k].x + kept[k].y * kept[k].y + kept[k].z * kept[k].z + kept[k].w * kept[k].w;
    }
    const float mean = m.row_sum(squares) / static_cast<float>(a.groups * 4);
    const float inverse = 1.0f / M::root(mean + a.eps);
    DG_UNROLL
    for (int k = 0; k < kKept; k++) {
      const int64_t g = begin + m.thread() + static_cast<int64_t>(k) * m.threads();
      if (g >= end) continue;
      const Four w = M::template load<true>(a.weight + g * 4, 4);
      M::template store<true>(a.out + row * a.out_stride + g * 4, 4,
                              {kept[k].x * inverse * w.x, kept[k].y * inverse * w.y, kept[k].z * inverse * w.z, kept[k].w * inverse * w.w});
    }
  }
  finish(m, c, turn);
}

}  // namespace dg::cuda
