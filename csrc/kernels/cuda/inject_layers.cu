// inject_layers: the rows of all layers share one grid.
#include "../inject_layers.h"

#include "../../dispatch.h"
#include "inject_rows.cuh"
#include "launch.cuh"

namespace lorahub_edge::cuda {
namespace {

using namespace inject;

constexpr const char* kOp = "inject_layers";

template <typename T, int W>
__global__ void __launch_bounds__(kThreads) inject_layers_kernel(InjectLayersArgs table) {
  __shared__ Staged<W> staged;
  __shared__ InjectLayer layer;  // in registers its addresses would leave no room for sums
  for (index_t group = blockIdx.x; group < table.n_groups; group += gridDim.x) {
    __syncthreads();  // until here others may still read the layer before
    if (threadIdx.x == 0) layer = table.layers[table.layer_of_group[group]];
    __syncthreads();
    inject_rows<T, W>(layer.args, (group - layer.first_group) * kBlockRows, staged);
  }
}

bool is_wide(const InjectDeltaArgs& layer) {
  bool wide = false;
  dispatch_dtype<std::int8_t, bfloat16, float>(kOp, "values", layer.values_dtype, [&](auto tag) {
    wide = inject::is_wide<typename decltype(tag)::type>(layer);
  });
  return wide;
}

}  // namespace

InjectTable::InjectTable(const std::vector<InjectDeltaArgs>& layers) : n_layers(static_cast<index_t>(layers.size())) {
  args = {nullptr, nullptr, 0, layers.empty() ? DType::int8 : layers[0].values_dtype, true};
  std::vector<InjectLayer> placed;
  std::vector<std::int32_t> layer_of_group;
  for (const InjectDeltaArgs& layer : layers) {
    const index_t n_groups = divided_up(layer.out_features, kBlockRows);
    layer_of_group.insert(layer_of_group.end(), static_cast<std::size_t>(n_groups),
                          static_cast<std::int32_t>(placed.size()));
    placed.push_back({layer, args.n_groups});
    args.n_groups += n_groups;
    args.wide = args.wide && is_wide(layer);
  }
  const auto append = [&](const auto& values) {
    const auto* begin = reinterpret_cast<const char*>(values.data());
    bytes.insert(bytes.end(), begin, begin + values.size() * sizeof(values[0]));
  };
  append(placed);
  append(layer_of_group);
}

void inject_layers(const InjectTable& table, const void* at, Where where) {
  if (table.args.n_groups == 0) return;
  const DeviceGuard guard(where.device, kOp);
  InjectLayersArgs args = table.args;
  args.layers = static_cast<const InjectLayer*>(at);
  args.layer_of_group = reinterpret_cast<const std::int32_t*>(args.layers + table.n_layers);
  const Launch how{kOp, where, args.n_groups, kThreads};
  dispatch_dtype<std::int8_t, bfloat16, float>(kOp, "values", args.values_dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(how, args.wide ? inject_layers_kernel<T, kColumns> : inject_layers_kernel<T, 1>, args);
  });
}

}  // namespace lorahub_edge::cuda
