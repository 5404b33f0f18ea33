// inject_delta on the CPU: shares the rows out to threads. The loops are in inject_delta.isa.cpp.
#include "../inject_delta.h"

#include <algorithm>
#include <vector>

#include "../../dispatch.h"
#include "../../parallel.h"
#include "isa_kernels.h"

namespace lorahub_edge::cpu {
namespace {

// Multiply-adds that take some ten microseconds: below this waking a thread costs more than it saves.
constexpr index_t kMinWorkPerThread = index_t{1} << 18;

// Rows whose factors B are composed together, tile by tile, when they come from a stack.
constexpr index_t kStackTileRows = 64;

// Calls body(first_row, last_row, rows) in the threads; ranges begin at a multiple of kInjectRows, so that a row is
// computed by the same instructions whoever computes it.
template <typename F>
void for_row_ranges(const InjectDeltaArgs& args, Where where, const F& body) {
  const index_t n_tiles = (args.out_features + kInjectRows - 1) / kInjectRows;
  const index_t work_per_tile = std::max<index_t>(1, kInjectRows * args.in_features * (args.rank + 8));
  const index_t min_tiles = (kMinWorkPerThread + work_per_tile - 1) / work_per_tile;
  parallel_for(n_tiles, where.n_threads, min_tiles, [&](index_t first, index_t last) {
    std::vector<float> rows(static_cast<std::size_t>(kInjectRows * args.in_features));
    body(first * kInjectRows, std::min(last * kInjectRows, args.out_features), rows.data());
  });
}

void inject_rows(const InjectDeltaArgs& args, index_t first_row, index_t last_row, float* rows) {
  dispatch_dtype<std::int8_t, bfloat16, float>("inject_delta", "values", args.values_dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    on_active_isa([&](auto isa) { decltype(isa)::template inject_rows<T>(args, first_row, last_row, rows); });
  });
}

// Composes blocks [first, first + n_blocks) of a stack, A's or B's, for one candidate.
std::vector<float> compose(const StackedFactors& factors, const void* stack, const float* scales, index_t first,
                           index_t n_blocks, Where where) {
  const index_t first_row = first * factors.n_modules;
  const char* start = static_cast<const char*>(stack) + first_row * factors.block * bytes_of(factors.dtype);
  const float* first_scale = scales == nullptr ? nullptr : scales + first_row;
  std::vector<float> out(static_cast<std::size_t>(n_blocks * factors.block));
  compose_factors({start, first_scale, factors.coefficients, out.data(), factors.dtype, 1, factors.n_modules, n_blocks,
                   factors.block},
                  where);
  return out;
}

// Rows [first_row, last_row) with their part of B composed from the stack.
void inject_stack_tile(const InjectDeltaArgs& args, const StackedFactors& factors, index_t first_row, index_t last_row,
                       float* rows) {
  const index_t first_block = first_row * args.rank / factors.block;
  const index_t last_block = (last_row * args.rank + factors.block - 1) / factors.block;
  const std::vector<float> B =
      compose(factors, factors.B, factors.B_scales, first_block, last_block - first_block, Where{1});
  InjectDeltaArgs tile = args;
  tile.B = B.data();
  tile.B_skipped = first_block * factors.block;
  inject_rows(tile, first_row, last_row, rows);
}

}  // namespace

void inject_delta(const InjectDeltaArgs& args, Where where) {
  for_row_ranges(args, where, [&](index_t first, index_t last, float* rows) { inject_rows(args, first, last, rows); });
}

void inject_delta_from_stack(const InjectDeltaArgs& args, const StackedFactors& factors, Where where) {
  // Every row needs all of A, so that is composed once for the layer; B is composed as its rows come.
  const std::vector<float> A = compose(factors, factors.A, factors.A_scales, 0, factors.n_blocks_A, where);
  InjectDeltaArgs with_A = args;
  with_A.A = A.data();
  for_row_ranges(args, where, [&](index_t first, index_t last, float* rows) {
    for (index_t row = first; row < last; row += kStackTileRows) {
      inject_stack_tile(with_A, factors, row, std::min(row + kStackTileRows, last), rows);
    }
  });
}

}  // namespace lorahub_edge::cpu
