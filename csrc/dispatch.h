// The one dtype switch: a run-time DType becomes a compile-time type inside a generic lambda.
//
//   dispatch_stack_dtype("compose_factors", args.stack_dtype, [&](auto tag) {
//     using T = typename decltype(tag)::type;
//     ...
//   });
#pragma once

#include "core.h"

namespace lorahub_edge {

template <typename T>
struct TypeTag {
  using type = T;
};

// dtypes in which a module stack may be stored.
template <typename F>
void dispatch_stack_dtype(const char* op, DType dtype, F&& f) {
  switch (dtype) {
    case DType::float32:
      return f(TypeTag<float>{});
    case DType::bfloat16:
      return f(TypeTag<bfloat16>{});
  }
  throw std::invalid_argument(std::string(op) + ": expected stack dtype float32 or bfloat16");
}

}  // namespace lorahub_edge
