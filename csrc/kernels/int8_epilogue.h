// int8_epilogue: what turns the int32 product of an int8 layer into its output. For row m of group g = m /
// rows_per_group:
//
//   y[m, o] = product[m, o] * x_scale[m] * row_scale[o] + bias[o] + sum_k side[m, k] * B[g, o, k]
//
// in float32, factors and terms in this order, then rounded once to the output's dtype. The last sum is the side path
// of a candidate's LoRA factors (side = scaling * x @ A.T); bias and side path may be absent.
#pragma once

#include "gated_activation.h"

namespace lorahub_edge {

// What becomes of products, wherever they come from.
struct Int8Outputs {
  const float* x_scale;    // [n_rows]
  const float* row_scale;  // [out_features]
  const float* bias;       // [out_features] or null
  const float* side;       // [n_rows, rank] or null
  const float* B;          // [n_rows / rows_per_group, out_features, rank] or null
  void* out;               // [n_rows, out_features], float32 or bfloat16
  DType out_dtype;
  index_t n_rows;
  index_t out_features;
  index_t rank;
  index_t rows_per_group;  // divides n_rows
  // of int8_linear alone: like out, and may be it; null for none
  const void* gate = nullptr;
  Activation activation = Activation::silu;
};

struct Int8EpilogueArgs : Int8Outputs {
  const std::int32_t* product;  // [n_rows, out_features]
};

namespace cpu {
void int8_epilogue(const Int8EpilogueArgs& args, Where where);
}

namespace cuda {
void int8_epilogue(const Int8EpilogueArgs& args, Where where);
}

}  // namespace lorahub_edge
