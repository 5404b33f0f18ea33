// quantize_rows, dequantize_rows: rows of a matrix as int8 codes with one scale each. Per row i, in float32:
//
//   row_scale[i] = max_j abs(values[i, j]) / 127                         1 where that is 0
//   codes[i, j]  = clip(round_half_even(values[i, j] / row_scale[i]), -127, 127)
//
//   values[i, j] = codes[i, j] * row_scale[i]                            then rounded once to the values' dtype
//
// A row with a NaN or an infinity gets that as its scale, and codes that mean nothing.
#pragma once

#include "../core.h"

namespace lorahub_edge {

struct QuantizeRowsArgs {
  const void* values;  // [n_rows, n_columns], float32 or bfloat16
  std::int8_t* codes;  // [n_rows, n_columns]
  float* row_scale;    // [n_rows]
  DType values_dtype;
  index_t n_rows;
  index_t n_columns;
};

struct DequantizeRowsArgs {
  const std::int8_t* codes;  // [n_rows, n_columns]
  const float* row_scale;    // [n_rows]
  void* values;              // [n_rows, n_columns], float32 or bfloat16
  DType values_dtype;
  index_t n_rows;
  index_t n_columns;
};

namespace cpu {
void quantize_rows(const QuantizeRowsArgs& args, Where where);
void dequantize_rows(const DequantizeRowsArgs& args, Where where);
}  // namespace cpu

namespace cuda {
void quantize_rows(const QuantizeRowsArgs& args, Where where);
void dequantize_rows(const DequantizeRowsArgs& args, Where where);
}  // namespace cuda

}  // namespace lorahub_edge
