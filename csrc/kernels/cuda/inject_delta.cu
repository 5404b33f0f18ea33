// inject_delta on CUDA: one layer in one launch.
#include "../inject_delta.h"

#include "../../dispatch.h"
#include "inject_rows.cuh"
#include "launch.cuh"

namespace lorahub_edge::cuda {
namespace {

using namespace inject;

constexpr const char* kOp = "inject_delta";

template <typename T, int W>
__global__ void __launch_bounds__(kThreads) inject_kernel(InjectDeltaArgs args) {
  __shared__ Staged<W> staged;
  for (index_t group = blockIdx.x; group * kBlockRows < args.out_features; group += gridDim.x) {
    inject_rows<T, W>(args, group * kBlockRows, staged);
  }
}

// Whether B, and where there are any its scales, lie right behind those of A.
bool is_one_stack(const StackedFactors& factors) {
  const index_t n_rows = factors.n_blocks_A * factors.n_modules;
  const char* end_of_A = static_cast<const char*>(factors.A) + n_rows * factors.block * bytes_of(factors.dtype);
  return end_of_A == factors.B && (factors.A_scales == nullptr || factors.A_scales + n_rows == factors.B_scales);
}

}  // namespace

void inject_delta(const InjectDeltaArgs& args, Where where) {
  if (args.out_features == 0) return;
  const DeviceGuard guard(where.device, kOp);
  const Launch how{kOp, where, divided_up(args.out_features, kBlockRows), kThreads};
  dispatch_dtype<std::int8_t, bfloat16, float>(kOp, "values", args.values_dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(how, is_wide<T>(args) ? inject_kernel<T, kColumns> : inject_kernel<T, 1>, args);
  });
}

void inject_delta_from_stack(const InjectDeltaArgs& args, const StackedFactors& factors, Where where) {
  float* A = factors.workspace;
  float* B = A + factors.n_blocks_A * factors.block;
  const auto compose = [&](const void* stack, const float* scales, index_t n_blocks, float* out) {
    compose_factors(
        {stack, scales, factors.coefficients, out, factors.dtype, 1, factors.n_modules, n_blocks, factors.block},
        where);
  };
  const bool together = is_one_stack(factors);  // as in a module stack: one launch for both
  compose(factors.A, factors.A_scales, factors.n_blocks_A + (together ? factors.n_blocks_B : 0), A);
  if (!together) compose(factors.B, factors.B_scales, factors.n_blocks_B, B);
  InjectDeltaArgs composed = args;
  composed.A = A;
  composed.B = B;
  inject_delta(composed, where);
}

}  // namespace lorahub_edge::cuda
