// The loops of int8_linear, compiled once per instruction set (see isa.h).
//
// Per panel of kOutputColumns columns: its weights are packed once, then a tile of rows at a time is multiplied with
// them while the tile stays in the first-level cache, and the tile becomes outputs. For a few rows nothing is packed.
#include "clipped_panel.h"
#include "few_rows.h"
#include "int8_outputs.h"
#include "matrix_panel.h"
#include "panel.h"

namespace lorahub_edge::cpu {
namespace {

// How weights are packed: for rows with one scale, and for rows with a scale for each block of features.
#if defined(__ARM_FEATURE_MATMUL_INT8)
using RowPanel = MatrixPanel;
using BlockPanel = MatrixPanel;
#elif defined(__AVX2__) && !defined(__AVXVNNI__) && !defined(__AVX512F__)
using RowPanel = ClippedPanel;
using BlockPanel = Panel;
#else
using RowPanel = Panel;
using BlockPanel = Panel;
#endif

// Vectors of columns with blocks, whose totals are in registers beside the sums.
constexpr int kBlockVectors = 2;

// Products of R rows with a panel.
template <int R>
inline void product_rows(const Int8LinearArgs&, const RowPanel& panel, index_t row, std::int32_t* products) {
  constexpr int V = RowPanel::kVectors;
  for (int at = 0; at < kTileVectors; at += V) {
    Sums<R, V> sums;
    panel.dot<R, V>(0, row, at, sums);
    for (int r = 0; r < R; ++r) std::memcpy(products + r * kOutputColumns + at * kLanes, sums[r], sizeof(sums[r]));
  }
}

// The same with blocks, whose sums are scaled and added up while they are in registers.
template <int R>
inline void product_rows(const Int8LinearArgs& args, const BlockPanel& panel, index_t row, float* products) {
  constexpr int V = kBlockVectors;
  for (int at = 0; at < kTileVectors; at += V) {
    Vector totals[R][V] = {};
    for (index_t b = 0; b < args.n_blocks; ++b) {
      Sums<R, V> sums;
      panel.dot<R, V>(b, row, at, sums);
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

// What a thread works with. P: of products, see Tile.
template <typename Rows, typename P>
struct Workplace {
  Workplace(const Int8LinearArgs& args, index_t tile_rows, Room& room)
      : weights(args, room),
        products(room.take<P>(tile_rows * kOutputColumns)),
        B_turned(room.take<float>(args.rank * kOutputColumns)) {}

  Rows weights;
  P* products;
  float* B_turned;  // [rank, kOutputColumns]
};

template <typename T, typename Rows, typename P>
void one_panel(const Int8LinearArgs& args, index_t column, bool stream, Workplace<Rows, P>& at) {
  constexpr int R = Rows::kRows;
  static_assert(Rows::kTileRows % R == 0 && kTileVectors % Rows::kVectors == 0 && kTileVectors % kBlockVectors == 0);
  const index_t n_columns = smaller(kOutputColumns, args.out_features - column);
  at.weights.pack(column);
  for (index_t first = 0; first < args.n_rows; first += Rows::kTileRows) {
    const index_t last = smaller(first + Rows::kTileRows, args.n_rows);
    index_t row = first;
    for (; row + R <= last; row += R) {
      prefetch_next(args, column, row, row + R);
      product_rows<R>(args, at.weights, row, at.products + (row - first) * kOutputColumns);
    }
    for (; row < last; ++row) {
      product_rows<1>(args, at.weights, row, at.products + (row - first) * kOutputColumns);
    }
    at.weights.complete(first, last, at.products);
    const Tile<P> tile{at.products, kOutputColumns, first, column, n_columns, at.B_turned, stream};
    output_groups<T>(args, tile, last, at.B_turned);
  }
}

template <typename T>
void one_panel(const Int8LinearArgs& args, index_t column, bool, Workplace<FewRows, std::int32_t>& at) {
  const index_t n_columns = smaller(kOutputColumns, args.out_features - column);
  at.weights.multiply(column, at.products);
  const Tile<std::int32_t> tile{at.products, kOutputColumns, 0, column, n_columns, at.B_turned, false};
  output_groups<T>(args, tile, args.n_rows, at.B_turned);
}

// Calls f with the workplace that suits the layer, laid out in `room`.
template <typename F>
void in_workplace(const Int8LinearArgs& args, Room& room, const F& f) {
  if (FewRows::suits(args)) return f(Workplace<FewRows, std::int32_t>(args, kFewRows, room));
  if (args.n_blocks == 1) return f(Workplace<RowPanel, std::int32_t>(args, RowPanel::kTileRows, room));
  f(Workplace<BlockPanel, float>(args, BlockPanel::kTileRows, room));
}

}  // namespace

template <>
index_t LinearKernels<kIsa>::linear_scratch_bytes(const Int8LinearArgs& args) {
  Room room(nullptr);
  in_workplace(args, room, [](auto) {});
  return room.used();
}

template <>
template <typename T>
void LinearKernels<kIsa>::linear_panels(const Int8LinearArgs& args, index_t first_panel, index_t last_panel,
                                        std::uint8_t* scratch, bool stream) {
  Room room(scratch);
  in_workplace(args, room, [&](auto workplace) {
    workplace.weights.read_inputs();
    for (index_t panel = first_panel; panel < last_panel; ++panel) {
      one_panel<T>(args, panel * kOutputColumns, stream, workplace);
    }
  });
  if (stream) finish_streams();
}

template void LinearKernels<kIsa>::linear_panels<float>(const Int8LinearArgs&, index_t, index_t, std::uint8_t*, bool);
template void LinearKernels<kIsa>::linear_panels<bfloat16>(const Int8LinearArgs&, index_t, index_t, std::uint8_t*,
                                                           bool);

}  // namespace lorahub_edge::cpu
