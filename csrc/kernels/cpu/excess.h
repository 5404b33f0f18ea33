// What the offset of w (dots.h) adds to sums of products. Only int8_linear.isa.cpp includes this.
#pragma once

#include "dots.h"
#include "isa_kernels.h"
#include "room.h"

namespace lorahub_edge::cpu {
namespace {

class Excess {
 public:
  Excess(const Int8LinearArgs& args, Room& room)
      : n_blocks_(args.n_blocks), x_sums_(room.take<std::int32_t>(kOffset == 0 ? 0 : args.n_rows * args.n_blocks)) {}

  // Adds up x's codes, once for all columns.
  void read_inputs(const Int8LinearArgs& args) {
    if (kOffset == 0) return;
    const index_t block_features = args.in_features / n_blocks_;
    for (index_t i = 0; i < args.n_rows * n_blocks_; ++i) {
      x_sums_[i] = sum_codes(args.x + i * block_features, block_features);
    }
  }

  // In every sum of this row of x over block b, modulo 2^32: with an offset sums may wrap, and do so back again.
  std::uint32_t of(index_t row, index_t b) const {
    return kOffset == 0 ? 0 : kOffset * static_cast<std::uint32_t>(x_sums_[row * n_blocks_ + b]);
  }

 private:
  index_t n_blocks_;
  std::int32_t* x_sums_;
};

}  // namespace
}  // namespace lorahub_edge::cpu
