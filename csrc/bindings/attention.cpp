// Only in the CPU's module: elsewhere torch's own attention is fast.
#include "../kernels/attention.h"

#include <optional>

#include "arrays.h"
#include "device.h"
#include "ops.h"

namespace py = pybind11;

namespace lorahub_edge::bindings {
namespace {

constexpr const char* kOp = "attention";

// bias: [n_heads, n_queries, n_keys], or [n_heads, n_queries + n_keys - 1] by key - query, beginning with the last
// query and the first key.
void fill_bias(AttentionArgs& args, const Array& bias) {
  const index_t n_distances = args.n_queries + args.n_keys - 1;
  const bool by_distance = bias.shape().size() == 2;
  bias.expect_shape(by_distance ? std::vector<index_t>{args.n_heads, n_distances}
                                : std::vector<index_t>{args.n_heads, args.n_queries, args.n_keys});
  args.bias = bias.data_of<float>() + (by_distance ? args.n_queries - 1 : 0);
  args.bias_head = by_distance ? n_distances : args.n_queries * args.n_keys;
  args.bias_query = by_distance ? -1 : args.n_keys;
}

void attention(const py::object& query, const py::object& key, const py::object& value, const py::object& bias,
               const py::object& out, float scaling, bool causal, std::int64_t n_threads) {
  const Array query_array(query, {kOp, "query"}, Access::read);
  const Array key_array(key, {kOp, "key"}, Access::read);
  const Array value_array(value, {kOp, "value"}, Access::read);
  const Array out_array(out, {kOp, "out"}, Access::write);
  query_array.expect_dims(4);
  key_array.expect_dims(4);
  const std::vector<index_t>& shape = query_array.shape();
  const index_t n_keys = key_array.shape()[1], n_key_heads = key_array.shape()[2];
  key_array.expect_shape({shape[0], n_keys, n_key_heads, shape[3]});
  value_array.expect_shape(key_array.shape());
  out_array.expect_shape(shape);
  check(n_key_heads > 0 && shape[2] % n_key_heads == 0, "attention: key: expected heads that divide the query's");
  check(n_keys > 0 && (!causal || n_keys >= shape[1]), "attention: key: expected keys for every query");

  AttentionArgs args{};
  args.query = query_array.data_of<float>();
  args.key = key_array.data_of<float>();
  args.value = value_array.data_of<float>();
  args.out = out_array.data_of<float>();
  args.batch = shape[0];
  args.n_queries = shape[1];
  args.n_heads = shape[2];
  args.head_features = shape[3];
  args.n_keys = n_keys;
  args.n_key_heads = n_key_heads;
  args.scaling = scaling;
  args.causal = causal;
  std::optional<Array> bias_array;
  if (!bias.is_none()) fill_bias(args, bias_array.emplace(bias, ArrayName{kOp, "bias"}, Access::read));
  py::gil_scoped_release no_gil;
  cpu::attention(args, {n_threads});
}

}  // namespace

void register_attention(py::module_& module) {
  module.def(kOp, &attention, py::arg("query"), py::arg("key"), py::arg("value"), py::arg("bias"), py::arg("out"),
             py::arg("scaling"), py::arg("causal"), py::arg("n_threads"),
             "Write attention's output; see lorahub_edge.kernels.ops.attention.");
}

}  // namespace lorahub_edge::bindings
