// quantize_rows and dequantize_rows on CUDA: a block of threads has a row. Quantising reads it twice, the second time
// from the caches.
#include "../int8_rows.h"

#include "../../dispatch.h"
#include "launch.cuh"
#include "reduce.cuh"
#include "values.cuh"

namespace lorahub_edge::cuda {
namespace {

constexpr int kThreads = 128;

template <typename T, int W>
__device__ float absmax_of(const T* values, index_t n_columns) {
  const Larger larger;
  int most[1] = {};
  for (index_t column = threadIdx.x * W; column < n_columns; column += kThreads * W) {
    float columns[W];
    load(values + column, columns);
#pragma unroll
    for (int w = 0; w < W; ++w) most[0] = larger(most[0], abs_bits(columns[w]));
  }
  reduce_over_block<kThreads, Larger>(most);
  return __int_as_float(most[0]);
}

template <typename T, int W>
__global__ void __launch_bounds__(kThreads) quantize_kernel(QuantizeRowsArgs args) {
  for (index_t row = blockIdx.x; row < args.n_rows; row += gridDim.x) {
    const T* values = static_cast<const T*>(args.values) + row * args.n_columns;
    std::int8_t* codes = args.codes + row * args.n_columns;
    const float row_scale = row_scale_of(absmax_of<T, W>(values, args.n_columns));
    for (index_t column = threadIdx.x * W; column < args.n_columns; column += kThreads * W) {
      float columns[W];
      load(values + column, columns);
#pragma unroll
      for (int w = 0; w < W; ++w) columns[w] = clamped(rintf(__fdiv_rn(columns[w], row_scale)));
      store(codes + column, columns);
    }
    if (threadIdx.x == 0) args.row_scale[row] = row_scale;
  }
}

template <typename T, int W>
__global__ void __launch_bounds__(kThreads) dequantize_kernel(DequantizeRowsArgs args) {
  for (index_t row = blockIdx.x; row < args.n_rows; row += gridDim.x) {
    const std::int8_t* codes = args.codes + row * args.n_columns;
    T* values = static_cast<T*>(args.values) + row * args.n_columns;
    const float row_scale = __ldg(args.row_scale + row);
    for (index_t column = threadIdx.x * W; column < args.n_columns; column += kThreads * W) {
      float columns[W];
      load(codes + column, columns);
#pragma unroll
      for (int w = 0; w < W; ++w) columns[w] = __fmul_rn(columns[w], row_scale);
      store(values + column, columns);
    }
  }
}

}  // namespace

void quantize_rows(const QuantizeRowsArgs& args, Where where) {
  constexpr const char* op = "quantize_rows";
  if (args.n_rows == 0) return;
  const DeviceGuard guard(where.device, op);
  dispatch_dtype<float, bfloat16>(op, "values", args.values_dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool wide = rows_aligned<kWide<T>>(static_cast<const T*>(args.values), args.n_columns) &&
                      rows_aligned<kWide<T>>(args.codes, args.n_columns);
    const Launch how{op, where, args.n_rows, kThreads};
    launch(how, wide ? quantize_kernel<T, kWide<T>> : quantize_kernel<T, 1>, args);
  });
}

void dequantize_rows(const DequantizeRowsArgs& args, Where where) {
  constexpr const char* op = "dequantize_rows";
  if (args.n_rows == 0 || args.n_columns == 0) return;
  const DeviceGuard guard(where.device, op);
  dispatch_dtype<float, bfloat16>(op, "values", args.values_dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool wide = rows_aligned<kWide<T>>(args.codes, args.n_columns) &&
                      rows_aligned<kWide<T>>(static_cast<T*>(args.values), args.n_columns);
    const Launch how{op, where, args.n_rows, kThreads};
    launch(how, wide ? dequantize_kernel<T, kWide<T>> : dequantize_kernel<T, 1>, args);
  });
}

}  // namespace lorahub_edge::cuda
