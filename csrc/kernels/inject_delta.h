// inject_delta: one layer's delta added to its int8 base, row by row, and rounded once. Per row i, in float32:
//
//   delta[j]     = sum_k (scaling * B[i, k]) * A[k, j]                   k = 0 .. rank - 1, in this order
//   value[j]     = codes[i, j] * row_scale[i] + delta[j]
//   new_scale[i] = max_j abs(value[j]) / 127                             1 where that is 0
//   new code     = clip(round(value[j] / new_scale[i]), -127, 127)       or value[j] itself as float32 or bfloat16
//
//   round        nearest: half to even. stochastic: floor, plus 1 if random24(seed, i, j) / 2^24 < the fraction
//
//   report[0, i] = sqrt(mean_j (delta[j] / new_scale[i])^2)              rms of the delta in quantisation steps
//   report[1, i] = norm(error) / norm(delta)                             error[j] = new value - value[j]
//   report[2, i] = 1 + dot(error, delta) / norm(delta)^2                 share of the delta that survived
//   report[3, i] = number of j with abs(value[j] / new_scale[i]) > 127.5  clipped: only where new_scale underflows
//
// A row whose delta is zero everywhere gets the base's codes and scale bit for bit, and the report 0, 0, 1, 0. A row
// whose value is not finite gets that as its new scale. `inject_delta_from_stack` is the same with
// A = sum_k c[k] A_k and B = sum_k c[k] B_k composed from the module stack as compose_factors does.
//
// Temporary memory on the CPU: kInjectRows rows in float32 per thread, and with a stack A of this one layer. Rows are
// independent, so the result does not depend on the thread count.
#pragma once

#include "../core.h"
#include "compose_factors.h"

namespace lorahub_edge {

enum class Rounding { nearest, stochastic };

struct InjectDeltaArgs {
  const std::int8_t* codes;  // [out_features, in_features]
  const float* row_scale;    // [out_features]
  const float* A;            // [rank, in_features]
  const float* B;            // [out_features, rank]
  void* values;              // [out_features, in_features], values_dtype; overlaps no input
  float* new_scale;          // [out_features]
  float* report;             // [4, out_features]
  DType values_dtype;        // int8, bfloat16 or float32
  Rounding rounding;         // of int8 values
  std::uint64_t seed;        // of stochastic rounding
  float scaling;
  index_t out_features;
  index_t in_features;
  index_t rank;
  index_t B_skipped;  // values of the layer's B before the first at `B`: 0 where B is whole
};

// The layer's factors in a module stack: whole blocks of it, for one candidate.
struct StackedFactors {
  const void* A;              // [n_blocks_A, n_modules, block]: rank * in_features values, then padding
  const void* B;              // [n_blocks_B, n_modules, block]: out_features * rank values, then padding
  const float* A_scales;      // [n_blocks_A, n_modules] of an int8 stack, else null
  const float* B_scales;      // [n_blocks_B, n_modules] likewise
  const float* coefficients;  // [n_modules]
  float* workspace;           // CUDA: [(n_blocks_A + n_blocks_B) * block]; the CPU brings its own
  DType dtype;
  index_t n_modules;
  index_t n_blocks_A;
  index_t n_blocks_B;
  index_t block;
};

namespace cpu {
void inject_delta(const InjectDeltaArgs& args, Where where);
void inject_delta_from_stack(const InjectDeltaArgs& args, const StackedFactors& factors, Where where);
}  // namespace cpu

namespace cuda {
void inject_delta(const InjectDeltaArgs& args, Where where);
void inject_delta_from_stack(const InjectDeltaArgs& args, const StackedFactors& factors, Where where);
}  // namespace cuda

}  // namespace lorahub_edge
