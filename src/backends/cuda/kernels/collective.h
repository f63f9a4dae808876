// Collectives of several GPUs in one process: what ranks share, and the protocol, written once for the GPU (all_reduce.cu) and for
// threads of the CPU (collective_test.cpp, under sanitizers). `M` stands for the machine: index and barrier of a block, loads and stores.
//
// Block b of a rank meets only block b of the others, so all ranks launch the same grid, small enough to be resident as a whole.
//   push       small messages. Everyone stores x into a slot of its own in the memory of all others, and polls its own memory until the
//              slots are full: one way over the link, no meeting. A number that has not come is a NaN that is never sent (kEmpty), so each
//              number tells by itself that it is there; who read a place empties it again. Slots have two halves that take turns.
//   one shot   x is copied to this rank's buffer, ranks meet, everyone reads all buffers. Buffers have two halves that take turns: who
//              writes a half again has met all ranks in the turn between, so they had read it. One meeting, (n - 1) x bytes in.
//   two shot   ranks tell each other where x lies and meet; rank r sums part r of all x and stores it into all of them (nobody else
//              touches that part); they meet again. 2 (n - 1) / n x bytes in and as many out, no copy, any size.
// Sums are taken in order of rank, in all three: the same bits on every rank and with each.
//
// Flags hold the number of the collective (`turn`), which only grows, so they are never reset; kernels read it from the memory of their
// GPU, so a captured graph can be replayed.
//
// Why two halves are enough without a meeting. Let rank A store into half t % 2 of rank B's slots, in turn t. A's kernel of turn t - 1 had
// ended before (stream order), and it ends only after it heard of B in that turn: a flag, or a number in a slot. B sent that behind
// wait_for_previous() of its turn t - 1, when its kernel of turn t - 2 had ended and all it wrote was performed: it had read the half and
// emptied it. So A finds it empty, and no rank is ever more than one collective ahead of another. The same holds for the buffers of one
// shot, whatever the turn between was.
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

enum class Collective : uint32_t { kOneShot, kTwoShot, kPush, kNorm };

// What a place of a slot holds until a number comes; that number is sent as kSentInstead, another NaN.
constexpr uint32_t kEmpty = 0xffffffffu, kSentInstead = 0x7fffffffu;

// Written by all ranks; in the memory of its own.
struct SharedFlags {
  uint64_t ready[kMostCollectiveBlocks][kMostRanks];  // [b][r]: the turn for which block b of rank r is ready, and done
  uint64_t done[kMostCollectiveBlocks][kMostRanks];
  uint64_t x[kMostCollectiveBlocks][kMostRanks];  // where its x lies
  uint32_t failed;
};

// Of a rank's own kernels.
struct CollectiveState {
  uint64_t turn[kMostCollectiveBlocks];  // of the last collective, by block, so that blocks need not meet to count it
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
  float* slots[kMostRanks];   // [turn % 2][rank that sends][slot_elements], empty at first
  CollectiveState* state;
  CollectiveReport* report;
  int64_t half_elements, slot_elements;  // multiples of four
  int64_t limit_ns;                      // of one wait
  int rank, ranks;
};

struct ReduceArgs {
  float* x;
  int64_t elements;
};

// delta is summed over the ranks, residual += the sum, out = rms_norm(residual). Rows of `groups` * 4 floats, aligned to 16 bytes.
// A row belongs to `across` threads of `parts` blocks; thread i of them keeps groups i, i + across, ...
struct ReduceNormArgs {
  float *out, *residual;
  const float *delta, *weight;
  int64_t out_stride, residual_stride, delta_stride;
  int64_t rows;
  int groups;
  float eps;
  int parts, across;
};

struct alignas(16) Four {
  float x, y, z, w;
};
DG_COLLECTIVE Four operator+(Four a, Four b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

template <class M>
DG_COLLECTIVE void give_up(const CollectiveArgs& c) {
  for (int r = 0; r < c.ranks; r++) M::set(&c.flags[r]->failed, 1u);
}

struct Wait {
  int64_t begin = 0;
  uint32_t polls = 0;
};

// Between two polls for what rank `from` does in `turn`. False: it did not come in time, or somebody failed.
template <class M>
DG_COLLECTIVE bool wait_on(const CollectiveArgs& c, Wait& wait, uint64_t turn, int from, Collective what, int64_t elements) {
  M::pause();
  if (++wait.polls % 16 != 0) return true;
  if (M::get(&c.flags[c.rank]->failed) != 0) {
    M::set(&c.report->aborted, 1u);
    return false;
  }
  if (wait.polls % 1024 == 0 && M::get(&c.report->give_up) != 0) {  // over PCIe
    M::set(&c.report->aborted, 1u);
    give_up<M>(c);
    return false;
  }
  const int64_t now = M::now_ns();
  if (wait.begin == 0) wait.begin = now;
  if (now - wait.begin < c.limit_ns) return true;
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

// Until rank `from` came to `turn`. False: as wait_on.
template <class M>
DG_COLLECTIVE bool wait_for(const CollectiveArgs& c, const uint64_t* flag, uint64_t turn, int from, Collective what, int64_t elements) {
  Wait wait;
  while (M::acquire(flag) < turn)
    if (!wait_on<M>(c, wait, turn, from, what, elements)) return false;
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

// The number of this collective. A block reads and writes its own count; blocks that this grid lacks are counted by those it has.
template <class M>
DG_COLLECTIVE uint64_t turn_of(M& m, const CollectiveArgs& c) {
  return c.state->turn[m.block()] + 1;
}
// By all threads, once all have read it.
template <class M>
DG_COLLECTIVE void count_turn(M& m, const CollectiveArgs& c, uint64_t turn) {
  m.sync();
  for (int b = m.block() + m.thread() * m.blocks(); b < kMostCollectiveBlocks; b += m.threads() * m.blocks()) c.state->turn[b] = turn;
}

template <int kRanks>
DG_COLLECTIVE Four sum_of(const Four (&v)[kRanks], int ranks) {
  Four sum = v[0];
  DG_UNROLL
  for (int r = 1; r < kRanks; r++)
    if (r < ranks) sum = sum + v[r];
  return sum;
}

// What rank `from` sends to rank `to` in `turn`.
DG_COLLECTIVE float* slot_of(const CollectiveArgs& c, int to, int from, uint64_t turn) {
  return c.slots[to] + (static_cast<int64_t>(turn % 2) * c.ranks + from) * c.slot_elements;
}

// The o-th of the other ranks, in order of rank; there are always some.
DG_COLLECTIVE int other(const CollectiveArgs& c, int o) { return o < c.rank ? o : o + 1; }
DG_COLLECTIVE bool is_other(const CollectiveArgs& c, int o) { return o == 0 || o < c.ranks - 1; }

template <class M, int kRanks>
DG_COLLECTIVE void send(const CollectiveArgs& c, uint64_t turn, int64_t at, Four v) {
  v = {M::sent(v.x), M::sent(v.y), M::sent(v.z), M::sent(v.w)};
  DG_UNROLL
  for (int o = 0; o < kRanks - 1; o++)
    if (is_other(c, o)) M::push(slot_of(c, other(c, o), c.rank, turn) + at, v);
}

// Adds what the others sent to places `at` (negative: none) to `mine`, in order of rank. All polls are on their way at once. False: see
// wait_on; `mine` is as it was.
template <class M, int kRanks, int kBatch>
DG_COLLECTIVE bool receive(M& m, const CollectiveArgs& c, uint64_t turn, const int (&at)[kBatch], Four* mine, Collective what,
                           int64_t elements) {
  float* slots[kRanks - 1];
  DG_UNROLL
  for (int o = 0; o < kRanks - 1; o++) slots[o] = slot_of(c, c.rank, other(c, o), turn);
  Four v[kBatch][kRanks - 1];
  Wait wait;
  for (;;) {
    DG_UNROLL
    for (int k = 0; k < kBatch; k++) {
      DG_UNROLL
      for (int o = 0; o < kRanks - 1; o++)
        if (is_other(c, o) && at[k] >= 0) v[k][o] = M::poll(slots[o] + at[k]);
    }
    int missing = -1;
    DG_UNROLL
    for (int k = 0; k < kBatch; k++) {
      DG_UNROLL
      for (int o = 0; o < kRanks - 1; o++)
        if (is_other(c, o) && at[k] >= 0 && (M::empty(v[k][o].x) || M::empty(v[k][o].y) || M::empty(v[k][o].z) || M::empty(v[k][o].w)))
          missing = o;
    }
    if (missing < 0) break;
    if (!wait_on<M>(c, wait, turn, other(c, missing), what, elements)) return false;
  }
  DG_UNROLL
  for (int k = 0; k < kBatch; k++) {
    if (at[k] < 0) continue;
    Four sum = c.rank == 0 ? mine[k] : v[k][0];
    DG_UNROLL
    for (int o = 0; o < kRanks - 1; o++) {
      if (!is_other(c, o)) continue;
      M::push(slots[o] + at[k], M::nothing());
      m.heard(other(c, o));
      const int next = o + 1 < kRanks - 1 ? o + 1 : o;
      sum = sum + (o + 1 == c.rank ? mine[k] : o + 1 < c.rank ? v[k][next] : v[k][o]);  // of rank o + 1
    }
    mine[k] = sum;
  }
  return true;
}

// elements <= slot_elements. kVector: x is aligned to 16 bytes and its size to four.
template <class M, int kRanks, bool kVector>
DG_COLLECTIVE void reduce_push(M& m, const CollectiveArgs& c, const ReduceArgs& a) {
  m.start_next();
  m.wait_for_previous();
  const auto elements = static_cast<int>(a.elements);
  const int first = (m.block() * m.threads() + m.thread()) * 4, step = m.blocks() * m.threads() * 4;
  Four begin{0, 0, 0, 0};
  if (first < elements) begin = M::template own<kVector>(a.x + first, elements - first);
  const uint64_t turn = turn_of(m, c);
  for (int i = first; i < elements; i += step)
    send<M, kRanks>(c, turn, i, i == first ? begin : M::template own<kVector>(a.x + i, elements - i));
  count_turn(m, c, turn);
  for (int i = first; i < elements; i += step) {
    const int at[1] = {i};
    Four sum = i == first ? begin : M::template own<kVector>(a.x + i, elements - i);
    if (!receive<M, kRanks, 1>(m, c, turn, at, &sum, Collective::kPush, a.elements)) return;
    M::template store<kVector>(a.x + i, elements - i, sum);
  }
}

// kRanks: at least `ranks`; so many loads are on their way at once. kVector: x is aligned to 16 bytes and its size to four.
template <class M, int kRanks, bool kVector>
DG_COLLECTIVE void reduce_one_shot(M& m, const CollectiveArgs& c, const ReduceArgs& a) {
  m.wait_for_previous();
  m.start_next();
  const uint64_t turn = turn_of(m, c);
  const int64_t half = static_cast<int64_t>(turn % 2) * c.half_elements;
  const int64_t first = (static_cast<int64_t>(m.block()) * m.threads() + m.thread()) * 4;
  const int64_t step = static_cast<int64_t>(m.blocks()) * m.threads() * 4;
  for (int64_t i = first; i < a.elements; i += step)
    M::template store<true>(c.buffer[c.rank] + half + i, 4, M::template load<kVector>(a.x + i, a.elements - i));
  count_turn(m, c, turn);
  if (meet<M, &SharedFlags::ready>(m, c, turn, Collective::kOneShot, a.elements)) {
    for (int64_t i = first; i < a.elements; i += step) {
      Four v[kRanks];
      DG_UNROLL
      for (int r = 0; r < kRanks; r++)
        if (r < c.ranks) v[r] = M::template load<true>(c.buffer[r] + half + i, 4);
      M::template store<kVector>(a.x + i, a.elements - i, sum_of<kRanks>(v, c.ranks));
    }
  }
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
  const uint64_t turn = turn_of(m, c);
  for (int r = m.thread(); r < c.ranks; r += m.threads())
    M::set(&c.flags[r]->x[m.block()][c.rank], static_cast<uint64_t>(reinterpret_cast<uintptr_t>(a.x)));
  count_turn(m, c, turn);
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
}

// Push, then the norm, of rows that stay in registers between the two passes: groups <= across * kKept, rows * groups * 4 <=
// slot_elements. m.row_sum adds over the threads of a row; they go on together, also after a failure, with what this rank has.
template <class M, int kRanks, int kKept>
DG_COLLECTIVE void reduce_norm(M& m, const CollectiveArgs& c, const ReduceNormArgs& a) {
  m.start_next();
  constexpr int kBatch = kKept * kRanks <= 8 ? kKept : 8 / kRanks;
  const int first_row = m.block() / a.parts, row_step = m.blocks() / a.parts, rows = static_cast<int>(a.rows);
  const int index = m.block() % a.parts * m.threads() + m.thread();
  int group[kKept];
  Four weight[kKept], mine[kKept], residual[kKept];
  DG_UNROLL
  for (int k = 0; k < kKept; k++) {
    group[k] = index < a.across && index + k * a.across < a.groups ? index + k * a.across : -1;
    weight[k] = mine[k] = residual[k] = {0, 0, 0, 0};
    if (group[k] >= 0) weight[k] = M::template own<true>(a.weight + group[k] * 4, 4);
  }
  m.wait_for_previous();
  auto load = [&](Four(&v)[kKept], const float* from) {
    DG_UNROLL
    for (int k = 0; k < kKept; k++)
      if (group[k] >= 0) v[k] = M::template own<true>(from + group[k] * 4, 4);
  };
  load(mine, a.delta + first_row * a.delta_stride);
  load(residual, a.residual + first_row * a.residual_stride);
  const uint64_t turn = turn_of(m, c);
  for (int row = first_row; row < rows; row += row_step) {
    if (row != first_row) load(mine, a.delta + row * a.delta_stride);
    DG_UNROLL
    for (int k = 0; k < kKept; k++)
      if (group[k] >= 0) send<M, kRanks>(c, turn, (row * a.groups + group[k]) * 4, mine[k]);
  }
  count_turn(m, c, turn);
  bool good = true;
  for (int row = first_row; row < rows; row += row_step) {
    if (row_step < rows) load(mine, a.delta + row * a.delta_stride);
    if (row != first_row) load(residual, a.residual + row * a.residual_stride);
    float squares = 0;
    DG_UNROLL
    for (int k = 0; k < kKept; k += kBatch) {
      int at[kBatch];
      DG_UNROLL
      for (int j = 0; j < kBatch; j++) at[j] = group[k + j] < 0 ? -1 : (row * a.groups + group[k + j]) * 4;
      good = good && receive<M, kRanks, kBatch>(m, c, turn, at, mine + k, Collective::kNorm, a.rows * a.groups * 4);
    }
    DG_UNROLL
    for (int k = 0; k < kKept; k++) {
      if (group[k] < 0) continue;
      residual[k] = residual[k] + mine[k];
      M::template store<true>(a.residual + row * a.residual_stride + group[k] * 4, 4, residual[k]);
      squares = M::add_squares(squares, residual[k]);
    }
    const float inverse = M::inverse_root(m.row_sum(squares), a.groups * 4, a.eps);
    DG_UNROLL
    for (int k = 0; k < kKept; k++) {
      if (group[k] < 0) continue;
      const Four v = residual[k], w = weight[k];
      M::template store<true>(a.out + row * a.out_stride + group[k] * 4, 4,
                              {v.x * inverse * w.x, v.y * inverse * w.y, v.z * inverse * w.z, v.w * inverse * w.w});
    }
  }
}

}  // namespace dg::cuda
