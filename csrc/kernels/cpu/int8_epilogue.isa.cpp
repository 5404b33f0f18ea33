// The loops of int8_epilogue, compiled once per instruction set (see isa.h).
//
// Per group of rows, B is turned once so that its columns lie together. Then some rows at a time go through the tiles
// of output columns.
#include "int8_outputs.h"

namespace lorahub_edge::cpu {
namespace {

// Rows that go through a tile of columns before the next: enough to keep the tile's part of B in the first-level cache,
// few enough that their pages all stay in the first-level address cache.
constexpr index_t kBlockRows = 16;

// A tile's columns of every array. B_turned: of all tiles.
Tile<std::int32_t> tile_of(const Int8EpilogueArgs& args, index_t row, index_t column, const float* B_turned) {
  const std::int32_t* products = args.product + row * args.out_features + column;
  const index_t n_columns = smaller(kOutputColumns, args.out_features - column);
  return {products, args.out_features, row, column, n_columns, B_turned + column * args.rank, false};
}

void turn_all_B(const Int8EpilogueArgs& args, index_t group, float* turned) {
  for (index_t column = 0; column < args.out_features; column += kOutputColumns) {
    turn_B(args, group, column, smaller(kOutputColumns, args.out_features - column), turned + column * args.rank);
  }
}

}  // namespace

template <>
template <typename T>
void OpKernels<kIsa>::epilogue_rows(const Int8EpilogueArgs& args, index_t first_row, index_t last_row,
                                    float* B_turned) {
  for (index_t row = first_row; row < last_row;) {
    const index_t group = row / args.rows_per_group;
    const index_t end = smaller(last_row, (group + 1) * args.rows_per_group);
    if (args.side != nullptr) turn_all_B(args, group, B_turned);
    for (; row < end; row += kBlockRows) {
      for (index_t column = 0; column < args.out_features; column += kOutputColumns) {
        output_tile<T>(args, tile_of(args, row, column, B_turned), row, smaller(row + kBlockRows, end));
      }
    }
    row = end;
  }
}

template void OpKernels<kIsa>::epilogue_rows<float>(const Int8EpilogueArgs&, index_t, index_t, float*);
template void OpKernels<kIsa>::epilogue_rows<bfloat16>(const Int8EpilogueArgs&, index_t, index_t, float*);

}  // namespace lorahub_edge::cpu
