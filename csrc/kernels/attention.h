// attention: for every query the mean of the values, weighted by how well it meets their keys. For query i of head h,
// key head g = h / (n_heads / n_key_heads), and the keys j that it sees (all, or with causal those up to i + n_keys -
// n_queries), in float32:
//
//   s[j]   = scaling * dot(query[i, h], key[j, g]) + bias[h, i, j]
//   p[j]   = exp(max(s[j] - max_j(s[j]), -87))
//   out[i, h] = sum_j(p[j] * value[j, g]) / sum_j(p[j])
//
// A query's result depends on no other query, so it is the same in any batch. With causal, a value that is not finite
// also spoils the few queries before its key that are computed together with later ones: zero times infinity is no
// number.
#pragma once

#include "../core.h"

namespace lorahub_edge {

struct AttentionArgs {
  const float* query;  // [batch, n_queries, n_heads, head_features]
  const float* key;    // [batch, n_keys, n_key_heads, head_features]
  const float* value;  // like key
  const float* bias;   // of the first head, query and key; may be null
  float* out;          // like query
  index_t bias_head;   // from head to head; keys lie side by side
  index_t bias_query;  // from query to query: -1 where the bias depends on key - query alone
  index_t batch;
  index_t n_queries;
  index_t n_keys;  // at least 1, and with causal at least n_queries
  index_t n_heads;
  index_t n_key_heads;  // divides n_heads
  index_t head_features;
  float scaling;
  bool causal;
};

namespace cpu {
void attention(const AttentionArgs& args, Where where);
}

}  // namespace lorahub_edge
