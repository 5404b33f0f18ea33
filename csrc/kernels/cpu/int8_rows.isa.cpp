// The loops of quantize_rows and dequantize_rows, compiled once per instruction set (see isa.h).
#include "isa_kernels.h"
#include "simd.h"

namespace lorahub_edge::cpu {
namespace {

template <typename T>
inline float absmax_of(const T* values, index_t n) {
  Ints most = {};
  index_t j = 0;
  for (; j + kLanes <= n; j += kLanes) most = larger(most, abs_bits(load(values + j)));
  if (j < n) most = larger(most, abs_bits(load_part(values + j, n - j)));
  return largest(most);
}

inline Vector code_of(Vector values, float row_scale) {
  return clamp(round_half_even(values / row_scale), kMaxCode);
}

template <typename T>
inline float quantize_row(const T* values, index_t n, std::int8_t* codes) {
  const float row_scale = row_scale_of(absmax_of(values, n));
  index_t j = 0;
  for (; j + kLanes <= n; j += kLanes) store(codes + j, code_of(load(values + j), row_scale));
  if (j < n) store_part(codes + j, code_of(load_part(values + j, n - j), row_scale), n - j);
  return row_scale;
}

}  // namespace

template <>
template <typename T>
void OpKernels<kIsa>::quantize_row_range(const QuantizeRowsArgs& args, index_t first_row, index_t last_row) {
  const index_t n = args.n_columns;
  for (index_t i = first_row; i < last_row; ++i) {
    args.row_scale[i] = quantize_row(static_cast<const T*>(args.values) + i * n, n, args.codes + i * n);
  }
}

template <>
template <typename T>
void OpKernels<kIsa>::dequantize_row_range(const DequantizeRowsArgs& args, index_t first_row, index_t last_row) {
  const index_t n = args.n_columns;
  for (index_t i = first_row; i < last_row; ++i) {
    const std::int8_t* codes = args.codes + i * n;
    T* values = static_cast<T*>(args.values) + i * n;
    const float row_scale = args.row_scale[i];
    index_t j = 0;
    for (; j + kLanes <= n; j += kLanes) store(values + j, load(codes + j) * row_scale);
    if (j < n) store_part(values + j, load_part(codes + j, n - j) * row_scale, n - j);
  }
}

template void OpKernels<kIsa>::quantize_row_range<float>(const QuantizeRowsArgs&, index_t, index_t);
template void OpKernels<kIsa>::quantize_row_range<bfloat16>(const QuantizeRowsArgs&, index_t, index_t);
template void OpKernels<kIsa>::dequantize_row_range<float>(const DequantizeRowsArgs&, index_t, index_t);
template void OpKernels<kIsa>::dequantize_row_range<bfloat16>(const DequantizeRowsArgs&, index_t, index_t);

}  // namespace lorahub_edge::cpu
