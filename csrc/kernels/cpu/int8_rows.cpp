// quantize_rows and dequantize_rows on the CPU: shares the rows out to threads. The loops are in int8_rows.isa.cpp.
#include "../int8_rows.h"

#include <algorithm>

#include "../../dispatch.h"
#include "../../parallel.h"
#include "isa_kernels.h"

namespace lorahub_edge::cpu {
namespace {

// Values that take some ten microseconds: below this waking a thread costs more than it saves.
constexpr index_t kMinValuesPerThread = index_t{1} << 16;

index_t min_rows(index_t n_columns) {
  const index_t columns = std::max<index_t>(1, n_columns);
  return (kMinValuesPerThread + columns - 1) / columns;
}

}  // namespace

void quantize_rows(const QuantizeRowsArgs& args, Where where) {
  dispatch_dtype<float, bfloat16>("quantize_rows", "values", args.values_dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(args.n_rows, where.n_threads, min_rows(args.n_columns), [&](index_t first, index_t last) {
      on_active_isa([&](auto isa) { decltype(isa)::template quantize_row_range<T>(args, first, last); });
    });
  });
}

void dequantize_rows(const DequantizeRowsArgs& args, Where where) {
  dispatch_dtype<float, bfloat16>("dequantize_rows", "values", args.values_dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(args.n_rows, where.n_threads, min_rows(args.n_columns), [&](index_t first, index_t last) {
      on_active_isa([&](auto isa) { decltype(isa)::template dequantize_row_range<T>(args, first, last); });
    });
  });
}

}  // namespace lorahub_edge::cpu
