// The one dtype switch: a run-time DType becomes a compile-time type inside a generic lambda.
//
//   dispatch_dtype<float, bfloat16>("compose_factors", "stack", args.stack_dtype, [&](auto tag) {
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

inline constexpr DType dtype_of(TypeTag<float>) {
  return DType::float32;
}
inline constexpr DType dtype_of(TypeTag<bfloat16>) {
  return DType::bfloat16;
}
inline constexpr DType dtype_of(TypeTag<std::int8_t>) {
  return DType::int8;
}

// Calls f with the tag of the one type among T... that `dtype` stands for.
template <typename... T, typename F>
void dispatch_dtype(const char* op, const char* argument, DType dtype, F&& f) {
  const bool found = ((dtype_of(TypeTag<T>{}) == dtype ? (f(TypeTag<T>{}), true) : false) || ...);
  if (found) return;
  std::string names;
  ((names += std::string(names.empty() ? "" : " or ") + name_of(dtype_of(TypeTag<T>{}))), ...);
  throw std::invalid_argument(std::string(op) + ": " + argument + ": expected dtype " + names + ", received " +
                              name_of(dtype));
}

}  // namespace lorahub_edge
