// Rows of any weight on the device as f32 or bf16, with the padding that products want: what decode_weight.h is made of.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "quant/format.h"

namespace dg::cuda {

struct DecodeRows {
  void* to;         // aligned to 16 bytes where `ld` is a multiple of 8
  bool bf16;        // else f32
  int64_t ld;       // elements from row to row
  int64_t columns;  // written of each row: w.in and then zeros
  int64_t rows;
  int64_t first = 0;             // row i is row first + i of the weight,
  const int32_t* ids = nullptr;  // or row ids[i] (device; clamped to the weight's rows)
};

// As w.columns says nothing about rows, it is not looked at.
void launch_decode_rows(const Weight& w, const DecodeRows& args, cudaStream_t stream);

}  // namespace dg::cuda
