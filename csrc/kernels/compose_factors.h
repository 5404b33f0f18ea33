// compose_factors: the weighted sums of the modules' stacked factors, for several candidates in one pass.
//
//   out[c, b * block + j] = sum_k coefficients[c, k] * stack[b, k, j]      k = 0 .. n_modules - 1, in this order
//   out[c, b * block + j] = sum_k (coefficients[c, k] * scales[b, k]) * stack[b, k, j]                  int8 stack
//
// The stack is interleaved: the same `block` values of all modules lie together, so that one pass over it is one
// sequential stream. Products and sums are float32, one sum per element: the result does not depend on the thread
// count, nor on which other candidates are in the call. A zero coefficient is multiplied like any other. The product of
// coefficient and scale is rounded by itself, in every variant: it is made once for all values of a block. The twin is
// lorahub_edge/kernels/reference/factors.py; the portable variant equals it bit for bit, variants with fused
// multiply-add round once where the twin rounds twice.
#pragma once

#include "../core.h"

namespace lorahub_edge {

struct ComposeFactorsArgs {
  const void* stack;          // [n_blocks, n_modules, block], stack_dtype
  const float* scales;        // [n_blocks, n_modules] of an int8 stack; not read for another
  const float* coefficients;  // [n_candidates, n_modules]
  float* out;                 // [n_candidates, n_blocks * block], overlaps no input
  DType stack_dtype;          // float32, bfloat16 or int8
  index_t n_candidates;
  index_t n_modules;
  index_t n_blocks;
  index_t block;
};

namespace cpu {
void compose_factors(const ComposeFactorsArgs& args, Where where);
}

namespace cuda {
void compose_factors(const ComposeFactorsArgs& args, Where where);
}

}  // namespace lorahub_edge
