// Which arrays each op of csrc/kernels reads and writes. Both ends of the pipe share this: the structs go over as they
// lie in memory, their layout being the same on x86-64 and ARM64, then every array in the order given here.
#pragma once

#include <type_traits>

#include "../../csrc/kernels/attention.h"
#include "../../csrc/kernels/compose_factors.h"
#include "../../csrc/kernels/gated_activation.h"
#include "../../csrc/kernels/inject_delta.h"
#include "../../csrc/kernels/int8_epilogue.h"
#include "../../csrc/kernels/int8_linear.h"
#include "../../csrc/kernels/int8_rows.h"

namespace lorahub_edge::cross {

enum class Op : std::int32_t {
  isas,
  compose_factors,
  inject_delta,
  inject_delta_from_stack,
  int8_epilogue,
  int8_linear,
  quantize_rows,
  dequantize_rows,
  gated_activation,
  attention,
};

// inject_delta_from_stack has two structs.
struct InjectFromStackArgs {
  InjectDeltaArgs inject;
  StackedFactors factors;
};

// Each calls visit.in(pointer, bytes) or visit.out(pointer, bytes) for every array; a null pointer stays one.
template <typename Visit>
void each_array(ComposeFactorsArgs& args, Visit& visit) {
  visit.in(args.stack, args.n_blocks * args.n_modules * args.block * bytes_of(args.stack_dtype));
  visit.in(args.scales, args.stack_dtype == DType::int8 ? args.n_blocks * args.n_modules * 4 : 0);
  visit.in(args.coefficients, args.n_candidates * args.n_modules * 4);
  visit.out(args.out, args.n_candidates * args.n_blocks * args.block * 4);
}

template <typename Visit>
void each_array(InjectDeltaArgs& args, Visit& visit) {
  const index_t n = args.out_features * args.in_features;
  visit.in(args.codes, n);
  visit.in(args.row_scale, args.out_features * 4);
  visit.in(args.A, args.rank * args.in_features * 4);
  visit.in(args.B, args.out_features * args.rank * 4);
  visit.out(args.values, n * bytes_of(args.values_dtype));
  visit.out(args.new_scale, args.out_features * 4);
  visit.out(args.report, 4 * args.out_features * 4);
}

template <typename Visit>
void each_array(InjectFromStackArgs& args, Visit& visit) {
  StackedFactors& factors = args.factors;
  const index_t of_A = factors.n_blocks_A * factors.n_modules, of_B = factors.n_blocks_B * factors.n_modules;
  each_array(args.inject, visit);
  visit.in(factors.A, of_A * factors.block * bytes_of(factors.dtype));
  visit.in(factors.B, of_B * factors.block * bytes_of(factors.dtype));
  visit.in(factors.A_scales, of_A * 4);
  visit.in(factors.B_scales, of_B * 4);
  visit.in(factors.coefficients, factors.n_modules * 4);
}

template <typename Visit>
void each_output(Int8Outputs& args, index_t n_scales, Visit& visit) {
  const index_t n = args.n_rows * args.out_features * bytes_of(args.out_dtype);
  visit.in(args.x_scale, n_scales * 4);
  visit.in(args.row_scale, args.out_features * 4);
  visit.in(args.bias, args.out_features * 4);
  visit.in(args.side, args.n_rows * args.rank * 4);
  visit.in(args.B, args.n_rows / args.rows_per_group * args.out_features * args.rank * 4);
  visit.in(args.gate, n);
  visit.out(args.out, n);
}

template <typename Visit>
void each_array(Int8EpilogueArgs& args, Visit& visit) {
  each_output(args, args.n_rows, visit);
  visit.in(args.product, args.n_rows * args.out_features * 4);
}

template <typename Visit>
void each_array(Int8LinearArgs& args, Visit& visit) {
  each_output(args, args.n_rows * args.n_blocks, visit);
  visit.in(args.x, args.n_rows * args.in_features);
  visit.in(args.w, args.out_features * args.in_features);
}

template <typename Visit>
void each_array(QuantizeRowsArgs& args, Visit& visit) {
  const index_t n = args.n_rows * args.n_columns;
  visit.in(args.values, n * bytes_of(args.values_dtype));
  visit.out(args.codes, n);
  visit.out(args.row_scale, args.n_rows * 4);
}

template <typename Visit>
void each_array(DequantizeRowsArgs& args, Visit& visit) {
  const index_t n = args.n_rows * args.n_columns;
  visit.in(args.codes, n);
  visit.in(args.row_scale, args.n_rows * 4);
  visit.out(args.values, n * bytes_of(args.values_dtype));
}

template <typename Visit>
void each_array(GatedActivationArgs& args, Visit& visit) {
  const index_t n = args.n * bytes_of(args.dtype);
  visit.in(args.gate, n);
  visit.in(args.up, n);
  visit.out(args.out, n);
}

template <typename Visit>
void each_array(AttentionArgs& args, Visit& visit) {
  const index_t of_queries = args.batch * args.n_queries * args.n_heads * args.head_features * 4;
  const index_t of_keys = args.batch * args.n_keys * args.n_key_heads * args.head_features * 4;
  visit.in(args.query, of_queries);
  visit.in(args.key, of_keys);
  visit.in(args.value, of_keys);
  // the bias begins at its first head, query and key, and queries may lie before that
  const index_t of_other_queries = (args.n_queries - 1) * args.bias_query;
  const index_t before = of_other_queries < 0 ? -of_other_queries : 0;
  const index_t behind = (args.n_heads - 1) * args.bias_head + (of_other_queries > 0 ? of_other_queries : 0);
  visit.in(args.bias, (before + behind + args.n_keys) * 4, before * 4);
  visit.out(args.out, of_queries);
}

}  // namespace lorahub_edge::cross
