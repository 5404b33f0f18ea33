// inject_layers: inject_delta of many layers in one launch, on CUDA. Launching one layer after the other, a GPU waits
// for the CPU: a layer takes microseconds. What does not change from one candidate to the next, all but the values of
// the arrays, stands in a table in the GPU's memory, written once.
#pragma once

#include <vector>

#include "inject_delta.h"

namespace lorahub_edge::cuda {

// A layer, and the first of its groups of rows among those of all layers.
struct InjectLayer {
  InjectDeltaArgs args;
  index_t first_group;
};

// What a launch needs to know; the pointers are into the table.
struct InjectLayersArgs {
  const InjectLayer* layers;
  const std::int32_t* layer_of_group;
  index_t n_groups;
  DType values_dtype;  // of all layers
  bool wide;           // whether all layers can be read several columns at a time
};

// The table's bytes for layers of one dtype of values, which have rows: the layers, then the layer of each group. In
// the result the pointers are null.
struct InjectTable {
  std::vector<std::int8_t> bytes;
  index_t n_layers;
  InjectLayersArgs args;

  explicit InjectTable(const std::vector<InjectDeltaArgs>& layers);
};

// With the table's bytes at `table`, a multiple of 16, in the memory of the arrays.
void inject_layers(const InjectTable& table, const void* at, Where where);

}  // namespace lorahub_edge::cuda
