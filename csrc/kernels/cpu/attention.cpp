// attention on the CPU: shares the key heads of all examples out to threads. The loops are in attention.isa.cpp.
#include "../attention.h"

#include <algorithm>

#include "../../parallel.h"
#include "aligned.h"
#include "isa_kernels.h"

namespace lorahub_edge::cpu {
namespace {

// Multiply-adds that take some ten microseconds: below this waking a thread costs more than it saves.
constexpr index_t kMinWorkPerThread = index_t{1} << 19;

constexpr index_t in_panels(index_t n_columns) {
  return (n_columns + kAttentionColumns - 1) / kAttentionColumns * kAttentionColumns;
}

}  // namespace

void attention(const AttentionArgs& args, Where where) {
  const index_t n_heads_each = args.n_heads / args.n_key_heads;
  const index_t work = std::max<index_t>(1, 2 * n_heads_each * args.n_queries * args.n_keys * args.head_features);
  const index_t min_key_heads = (kMinWorkPerThread + work - 1) / work;
  parallel_for(args.batch * args.n_key_heads, where.n_threads, min_key_heads, [&](index_t first, index_t last) {
    Aligned<float> keys(in_panels(args.n_keys) * args.head_features);
    Aligned<float> values(in_panels(args.head_features) * args.n_keys);
    Aligned<float> scores(kAttentionRows * in_panels(args.n_keys));
    const AttentionScratch scratch{keys.data(), values.data(), scores.data(), in_panels(args.n_keys)};
    on_active_isa([&](auto isa) { decltype(isa)::attend(args, first, last, scratch); });
  });
}

}  // namespace lorahub_edge::cpu
