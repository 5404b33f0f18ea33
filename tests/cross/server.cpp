// Runs kernels for another process: reads calls from standard input, computes, writes the outputs to standard output.
// Compiled for the processor whose kernels are tested, and run under an emulator of it; see remote.cpp.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "../../csrc/kernels/cpu/isa.h"
#include "arguments.h"
#include "pipes.h"

namespace lorahub_edge::cross {
namespace {

// Puts the arrays that come with a call into memory of their own, each behind and before bytes that nobody may touch.
class Received {
 public:
  template <typename T>
  void in(T*& pointer, index_t n, index_t before = 0) {
    if (pointer == nullptr) return;
    char* bytes = place(n);
    read_all(0, bytes, n);
    pointer = reinterpret_cast<T*>(bytes + before);
  }

  template <typename T>
  void out(T*& pointer, index_t n) {
    char* bytes = place(n);
    std::memset(bytes, kFilling, static_cast<std::size_t>(n));
    pointer = reinterpret_cast<T*>(bytes);
    outputs_.push_back({bytes, n});
  }

  void answer() const {
    for (const Part& part : parts_) {
      for (index_t i = 0; i < kMargin; ++i) {
        if (part.bytes[-1 - i] != kFilling || part.bytes[part.n + i] != kFilling) {
          throw std::runtime_error("a kernel wrote outside of its arrays");
        }
      }
    }
    for (const Part& part : outputs_) write_all(1, part.bytes, part.n);
  }

 private:
  struct Part {
    char* bytes;
    index_t n;
  };
  static constexpr index_t kMargin = 64;
  static constexpr char kFilling = 0x5a;

  char* place(index_t n) {
    const std::size_t space = static_cast<std::size_t>((n + 63) / 64 * 64 + 2 * kMargin);
    void* block = std::aligned_alloc(64, space);
    if (block == nullptr) throw std::bad_alloc();
    std::memset(block, kFilling, space);
    blocks_.emplace_back(block, &std::free);
    parts_.push_back({static_cast<char*>(block) + kMargin, n});
    return parts_.back().bytes;
  }

  std::vector<std::unique_ptr<void, void (*)(void*)>> blocks_;
  std::vector<Part> parts_;
  std::vector<Part> outputs_;
};

// What a call says that refuses its arguments, or nothing.
template <typename Call>
std::string refusal_of(const Call& call) {
  try {
    call();
  } catch (const std::invalid_argument& refused) {
    return refused.what();
  }
  return "";
}

template <typename Args, typename Kernel>
void run(const Kernel& kernel) {
  const auto n_threads = read_value<index_t>(0);
  auto args = read_value<Args>(0);
  Received arrays;
  each_array(args, arrays);
  const std::string error = refusal_of([&] { kernel(args, cpu::Where{n_threads}); });
  write_text(1, error);
  if (error.empty()) arrays.answer();
}

void tell_isas() {
  const auto runnable = cpu::runnable_isas();
  write_value(1, static_cast<std::int32_t>(runnable.size()));
  for (const cpu::Isa isa : runnable) write_value(1, isa);
  cpu::Isa active{};
  const std::string error = refusal_of([&] { active = cpu::active_isa(); });
  write_value(1, active);
  write_text(1, error);
}

void serve(Op op) {
  switch (op) {
    case Op::isas:
      return tell_isas();
    case Op::compose_factors:
      return run<ComposeFactorsArgs>(cpu::compose_factors);
    case Op::inject_delta:
      return run<InjectDeltaArgs>(cpu::inject_delta);
    case Op::inject_delta_from_stack:
      return run<InjectFromStackArgs>([](const InjectFromStackArgs& args, cpu::Where where) {
        cpu::inject_delta_from_stack(args.inject, args.factors, where);
      });
    case Op::int8_epilogue:
      return run<Int8EpilogueArgs>(cpu::int8_epilogue);
    case Op::int8_linear:
      return run<Int8LinearArgs>(cpu::int8_linear);
    case Op::quantize_rows:
      return run<QuantizeRowsArgs>(cpu::quantize_rows);
    case Op::dequantize_rows:
      return run<DequantizeRowsArgs>(cpu::dequantize_rows);
    case Op::gated_activation:
      return run<GatedActivationArgs>(cpu::gated_activation);
    case Op::attention:
      return run<AttentionArgs>(cpu::attention);
  }
  throw std::runtime_error("expected the number of an op");
}

}  // namespace
}  // namespace lorahub_edge::cross

int main() {
  using namespace lorahub_edge::cross;
  for (Op op; read(0, &op, sizeof(op)) == sizeof(op);) serve(op);
  return 0;
}
