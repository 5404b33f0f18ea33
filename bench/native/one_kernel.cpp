// Runs one CPU kernel once, on fixed data, for an instruction count under callgrind: see bench/callgrind.py.
//
//   one_kernel <case>        cases: compose_1 compose_13 compose_13_bfloat16 compose_13_int8 inject
//                          inject_stochastic quantize epilogue linear linear_blocks gated attention
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "../../csrc/kernels/attention.h"
#include "../../csrc/kernels/compose_factors.h"
#include "../../csrc/kernels/gated_activation.h"
#include "../../csrc/kernels/inject_delta.h"
#include "../../csrc/kernels/int8_epilogue.h"
#include "../../csrc/kernels/int8_linear.h"
#include "../../csrc/kernels/int8_rows.h"

namespace {

using namespace lorahub_edge;

constexpr index_t kFeatures = 256;
constexpr index_t kRank = 16;
constexpr index_t kTokens = 64;
constexpr index_t kModules = 20;
constexpr index_t kBlock = 128;
constexpr index_t kBlocks = 64;
constexpr cpu::Where kOneThread{1};

// A fixed sequence in (-1, 1): what is counted must not depend on a library's random numbers.
std::vector<float> floats(index_t n) {
  std::vector<float> values(static_cast<std::size_t>(n));
  std::uint32_t state = 1;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(static_cast<std::int32_t>(state)) * 0x1p-31f;
  }
  return values;
}

template <typename T>
std::vector<T> wholes(index_t n, float scale) {
  std::vector<T> values;
  for (const float value : floats(n)) values.push_back(static_cast<T>(value * scale));
  return values;
}

void compose(index_t n_candidates, DType dtype) {
  const auto stack = floats(kBlocks * kModules * kBlock);  // for other dtypes its bytes, read as such
  const auto scales = floats(kBlocks * kModules);
  const auto coefficients = floats(n_candidates * kModules);
  std::vector<float> out(static_cast<std::size_t>(n_candidates * kBlocks * kBlock));
  cpu::compose_factors(
      {stack.data(), scales.data(), coefficients.data(), out.data(), dtype, n_candidates, kModules, kBlocks, kBlock},
      kOneThread);
}

void inject(Rounding rounding) {
  const auto codes = wholes<std::int8_t>(kFeatures * kFeatures, 127);
  const std::vector<float> row_scale(kFeatures, 0.01f);
  const auto A = floats(kRank * kFeatures);
  const auto B = floats(kFeatures * kRank);
  std::vector<std::int8_t> values(codes.size());
  std::vector<float> new_scale(kFeatures), report(4 * kFeatures);
  InjectDeltaArgs args{};
  args.codes = codes.data();
  args.row_scale = row_scale.data();
  args.A = A.data();
  args.B = B.data();
  args.values = values.data();
  args.new_scale = new_scale.data();
  args.report = report.data();
  args.values_dtype = DType::int8;
  args.rounding = rounding;
  args.scaling = 0.01f;
  args.out_features = kFeatures;
  args.in_features = kFeatures;
  args.rank = kRank;
  cpu::inject_delta(args, kOneThread);
}

void quantize() {
  const auto values = floats(kTokens * kFeatures);
  std::vector<std::int8_t> codes(values.size());
  std::vector<float> row_scale(kTokens);
  cpu::quantize_rows({values.data(), codes.data(), row_scale.data(), DType::float32, kTokens, kFeatures}, kOneThread);
}

void epilogue() {
  const auto product = wholes<std::int32_t>(kTokens * kFeatures, 1e6f);
  const auto x_scale = floats(kTokens);
  const auto row_scale = floats(kFeatures);
  const auto side = floats(kTokens * kRank);
  const auto B = floats(2 * kFeatures * kRank);
  std::vector<float> out(product.size());
  const Int8Outputs outputs{x_scale.data(), row_scale.data(), nullptr,   side.data(), B.data(),   out.data(),
                            DType::float32, kTokens,          kFeatures, kRank,       kTokens / 2};
  cpu::int8_epilogue({outputs, product.data()}, kOneThread);
}

void linear(index_t n_blocks) {
  const auto x = wholes<std::int8_t>(kTokens * kFeatures, 127.0f);
  const auto w = wholes<std::int8_t>(kFeatures * kFeatures, 127.0f);
  const auto x_scale = floats(kTokens * n_blocks);
  const auto row_scale = floats(kFeatures);
  const auto side = floats(kTokens * kRank);
  const auto B = floats(2 * kFeatures * kRank);
  std::vector<float> out(kTokens * kFeatures);
  const Int8Outputs outputs{x_scale.data(), row_scale.data(), nullptr,   side.data(), B.data(),   out.data(),
                            DType::float32, kTokens,          kFeatures, kRank,       kTokens / 2};
  cpu::int8_linear({outputs, x.data(), w.data(), kFeatures, n_blocks}, kOneThread);
}

void gated() {
  const auto gate = floats(kTokens * kFeatures);
  const auto up = floats(kTokens * kFeatures);
  std::vector<float> out(gate.size());
  cpu::gated_activation(
      {gate.data(), up.data(), out.data(), DType::float32, kTokens * kFeatures, Activation::gelu_tanh}, kOneThread);
}

void attention() {
  constexpr index_t kHeads = kFeatures / 64;
  const auto query = floats(kTokens * kFeatures);
  const auto bias = floats(kHeads * (2 * kTokens - 1));
  std::vector<float> out(query.size());
  AttentionArgs args{};
  args.query = args.key = args.value = query.data();
  args.bias = bias.data() + kTokens - 1;
  args.out = out.data();
  args.bias_head = 2 * kTokens - 1;
  args.bias_query = -1;
  args.batch = 1;
  args.n_queries = args.n_keys = kTokens;
  args.n_heads = args.n_key_heads = kHeads;
  args.head_features = 64;
  args.scaling = 1.0f;
  cpu::attention(args, kOneThread);
}

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, std::function<void()>> cases{
      {"compose_1", [] { compose(1, DType::float32); }},
      {"compose_13", [] { compose(13, DType::float32); }},
      {"compose_13_bfloat16", [] { compose(13, DType::bfloat16); }},
      {"compose_13_int8", [] { compose(13, DType::int8); }},
      {"inject", [] { inject(Rounding::nearest); }},
      {"inject_stochastic", [] { inject(Rounding::stochastic); }},
      {"quantize", quantize},
      {"epilogue", epilogue},
      {"linear", [] { linear(1); }},
      {"linear_blocks", [] { linear(kFeatures / 64); }},
      {"gated", gated},
      {"attention", attention},
  };
  const auto found = cases.find(argc == 2 ? argv[1] : "");
  if (found == cases.end()) {
    std::fputs("one_kernel: expected one argument, the name of a case\n", stderr);
    return 2;
  }
  found->second();
  return 0;
}
