// int8_linear: the output of an int8 layer from int8 inputs, the product and int8_epilogue in one pass, so that no
// int32 product is ever written to memory. For row m of group g, and blocks b of in_features / n_blocks input features:
//
//   y[m, o] = sum_b(x_scale[m, b] * dot(x[m, b], w[o, b])) * row_scale[o] + bias[o] + sum_k side[m, k] * B[g, o, k]
//
// and with a gate (gated_activation.h) the output is activation(gate[m, o]) * y[m, o].
//
// Each dot product is exact, in int32; what follows is float32, blocks, factors and terms in this order, then rounded
// once to the output's dtype. Blocks with scales of their own keep an outlier from costing the whole row its precision.
#pragma once

#include "int8_epilogue.h"

namespace lorahub_edge {

struct Int8LinearArgs : Int8Outputs {  // x_scale: [n_rows, n_blocks]
  const std::int8_t* x;                // [n_rows, in_features], within -127 and 127
  const std::int8_t* w;                // [out_features, in_features]
  index_t in_features;
  index_t n_blocks;  // divides in_features, and in_features / 4 if it is not 1
};

namespace cpu {
void int8_linear(const Int8LinearArgs& args, Where where);
}

// From compute capability 8.0 on, for one block and no gate; rows of x and w begin at multiples of 16 bytes.
namespace cuda {
void int8_linear(const Int8LinearArgs& args, Where where);
}

}  // namespace lorahub_edge
