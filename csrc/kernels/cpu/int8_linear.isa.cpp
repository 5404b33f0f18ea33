// The loops of int8_linear, compiled once per instruction set (see isa.h).
//
// Per panel of kOutputColumns columns: its weights are packed once, then kLinearRows rows at a time are multiplied with
// them into a tile that stays in the first-level cache, and the tile becomes outputs. For a few rows nothing is packed.
#include "codes.h"
#include "few_rows.h"
#include "int8_outputs.h"

namespace lorahub_edge::cpu {
namespace {

// Rows and vectors of columns whose sums are in registers together.
#if defined(__AVX512F__)
constexpr int kDotRows = 6;
constexpr int kDotVectors = 4;
#elif defined(__AVX2__)
constexpr int kDotRows = 4;
constexpr int kDotVectors = 2;
#else
constexpr int kDotRows = 2;
constexpr int kDotVectors = 2;
#endif
// Vectors of columns with blocks, whose totals are in registers beside the sums.
constexpr int kBlockVectors = 2;
static_assert(kLinearRows % kDotRows == 0 && kTileVectors % kDotVectors == 0 && kTileVectors % kBlockVectors == 0);

template <int R, int V>
using Sums = Ints[R][V];

// sums += dot products of R rows of x with V vectors of the panel's columns over features i to i + 4; kPart: over the
// first n of them. panel: at the first of the columns.
template <int R, int V, bool kPart>
inline void add_features(const Int8LinearArgs& args, index_t row, index_t i, index_t n, const std::uint8_t* panel,
                         Sums<R, V>& sums) {
  Ints w[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) std::memcpy(&w[v], panel + i / 4 * kPanelBytes + v * kVectorBytes, sizeof(Ints));
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    const Ints x = broadcast_codes<kPart>(args.x + (row + r) * args.in_features + i, n);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[r][v] = add_dots(sums[r][v], w[v], x);
  }
}

// sums = dot products of R rows of x with V vectors of the panel's columns, over block b.
template <int R, int V>
inline void dot_rows(const Int8LinearArgs& args, index_t b, index_t row, const std::uint8_t* panel,
                     const std::int32_t* x_sums, Sums<R, V>& sums) {
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    const std::int32_t start = -kPanelOffset * x_sums[(row + r) * args.n_blocks + b];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[r][v] = start - Ints{};
  }
  const index_t block_features = args.in_features / args.n_blocks;
  const index_t last = (b + 1) * block_features;
  index_t i = b * block_features;
  for (; i + 4 <= last; i += 4) add_features<R, V, false>(args, row, i, 4, panel, sums);
  if (i < last) add_features<R, V, true>(args, row, i, last - i, panel, sums);
}

// Products of R rows with a panel.
template <int R>
inline void product_rows(const Int8LinearArgs& args, index_t row, const LinearScratch& scratch,
                         std::int32_t* products) {
  for (int at = 0; at < kTileVectors; at += kDotVectors) {
    Sums<R, kDotVectors> sums;
    dot_rows<R, kDotVectors>(args, 0, row, scratch.panel + at * kVectorBytes, scratch.x_sums, sums);
    for (int r = 0; r < R; ++r) std::memcpy(products + r * kOutputColumns + at * kLanes, sums[r], sizeof(sums[r]));
  }
}

// The same with blocks, whose sums are scaled and added up while they are in registers.
template <int R>
inline void product_rows(const Int8LinearArgs& args, index_t row, const LinearScratch& scratch, float* products) {
  constexpr int V = kBlockVectors;
  for (int at = 0; at < kTileVectors; at += V) {
    Vector totals[R][V] = {};
    for (index_t b = 0; b < args.n_blocks; ++b) {
      Sums<R, V> sums;
      dot_rows<R, V>(args, b, row, scratch.panel + at * kVectorBytes, scratch.x_sums, sums);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        const Vector x_scale = broadcast(args.x_scale[(row + r) * args.n_blocks + b]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          totals[r][v] = multiply_add(__builtin_convertvector(sums[r][v], Vector), x_scale, totals[r][v]);
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) store(products + r * kOutputColumns + (at + v) * kLanes, totals[r][v]);
    }
  }
}

// Rows of a tile become outputs, group by group.
template <typename T, typename P>
void output_groups(const Int8LinearArgs& args, Tile<P> tile, index_t last_row, float* B_turned) {
  for (index_t row = tile.first_row; row < last_row;) {
    const index_t group = row / args.rows_per_group;
    const index_t end = smaller(last_row, (group + 1) * args.rows_per_group);
    const bool is_first = row % args.rows_per_group == 0;  // later tiles find B as it is
    if (args.side != nullptr && is_first) turn_B(args, group, tile.first_column, tile.n_columns, B_turned);
    output_tile<T>(args, tile, row, end);
    row = end;
  }
}

// Asks for a share of the next panel's weights: they come from memory while the current one is multiplied.
inline void prefetch_next(const Int8LinearArgs& args, index_t column, index_t first_row, index_t last_row) {
  const index_t next = column + kOutputColumns;
  if (next >= args.out_features) return;
  const index_t n = smaller(kOutputColumns, args.out_features - next) * args.in_features;
  const std::int8_t* w = args.w + next * args.in_features;
  for (index_t i = n * first_row / args.n_rows; i < n * last_row / args.n_rows; i += 64)
    __builtin_prefetch(w + i, 0, 2);
}

template <typename T, typename P>
void linear_panel(const Int8LinearArgs& args, index_t column, const LinearScratch& scratch) {
  const index_t n_columns = smaller(kOutputColumns, args.out_features - column);
  P* products = static_cast<P*>(scratch.products);
  for (index_t first = 0; first < args.n_rows; first += kLinearRows) {
    const index_t last = smaller(first + kLinearRows, args.n_rows);
    index_t row = first;
    for (; row + kDotRows <= last; row += kDotRows) {
      prefetch_next(args, column, row, row + kDotRows);
      product_rows<kDotRows>(args, row, scratch, products + (row - first) * kOutputColumns);
    }
    for (; row < last; ++row) product_rows<1>(args, row, scratch, products + (row - first) * kOutputColumns);
    const Tile<P> tile{products, kOutputColumns, first, column, n_columns, scratch.B_turned, scratch.stream};
    output_groups<T>(args, tile, last, scratch.B_turned);
  }
}

template <typename T>
void few_rows_panel(const Int8LinearArgs& args, index_t column, const LinearScratch& scratch) {
  std::int32_t* products = static_cast<std::int32_t*>(scratch.products);
  product_few(args, column, scratch.x_sums, products);
  const index_t n_columns = smaller(kOutputColumns, args.out_features - column);
  const Tile<std::int32_t> tile{products, kOutputColumns, 0, column, n_columns, scratch.B_turned, false};
  output_groups<T>(args, tile, args.n_rows, scratch.B_turned);
}

}  // namespace

template <>
template <typename T>
void IsaKernels<kIsa>::linear_panels(const Int8LinearArgs& args, index_t first_panel, index_t last_panel,
                                     const LinearScratch& scratch) {
  const index_t block_features = args.in_features / args.n_blocks;
  for (index_t i = 0; i < args.n_rows * args.n_blocks; ++i) {
    scratch.x_sums[i] = sum_codes(args.x + i * block_features, block_features);
  }
  for (index_t panel = first_panel; panel < last_panel; ++panel) {
    const index_t column = panel * kOutputColumns;
    if (has_few_rows(args)) {
      few_rows_panel<T>(args, column, scratch);
      continue;
    }
    pack_panel(args.w, column, args.out_features, args.in_features, scratch.panel);
    if (args.n_blocks == 1) {
      linear_panel<T, std::int32_t>(args, column, scratch);
    } else {
      linear_panel<T, float>(args, column, scratch);
    }
  }
  if (scratch.stream) finish_streams();
}

template void IsaKernels<kIsa>::linear_panels<float>(const Int8LinearArgs&, index_t, index_t, const LinearScratch&);
template void IsaKernels<kIsa>::linear_panels<bfloat16>(const Int8LinearArgs&, index_t, index_t, const LinearScratch&);

}  // namespace lorahub_edge::cpu
