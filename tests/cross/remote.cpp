// The CPU kernels by a process that runs them for another processor: `make cross-check` links this into
// lorahub_edge._native in place of csrc/kernels/cpu, and the kernels' own tests run as they are.
//
// The environment variable LORAHUB_EDGE_REMOTE is the command of that process, words between blanks; see server.cpp.
#include <csignal>
#include <cstdlib>
#include <mutex>
#include <sstream>
#include <vector>

#include "../../csrc/kernels/cpu/isa.h"
#include "arguments.h"
#include "pipes.h"

namespace lorahub_edge {
namespace cross {
namespace {

// Starts with the first call and ends with this process: it then reads the end of its input.
class Server {
 public:
  Server() {
    const char* command = std::getenv("LORAHUB_EDGE_REMOTE");
    if (command == nullptr) throw std::runtime_error("expected LORAHUB_EDGE_REMOTE, the command of a kernel server");
    std::signal(SIGPIPE, SIG_IGN);
    int calls[2], answers[2];
    if (pipe(calls) != 0 || pipe(answers) != 0) throw std::runtime_error("no pipe to be had");
    if (fork() == 0) {
      dup2(calls[0], 0);
      dup2(answers[1], 1);
      for (const int end : {calls[0], calls[1], answers[0], answers[1]}) close(end);
      std::istringstream words(command);
      std::vector<std::string> arguments;
      for (std::string word; words >> word;) arguments.push_back(word);
      std::vector<char*> pointers;
      for (std::string& argument : arguments) pointers.push_back(argument.data());
      pointers.push_back(nullptr);
      execvp(pointers[0], pointers.data());
      _exit(127);
    }
    close(calls[0]);
    close(answers[1]);
    calls_ = calls[1];
    answers_ = answers[0];
  }

  int calls() const { return calls_; }
  int answers() const { return answers_; }

 private:
  int calls_;
  int answers_;
};

Server& server() {
  static Server server;
  return server;
}

struct Send {
  template <typename T>
  void in(T*& pointer, index_t n, index_t before = 0) {
    if (pointer != nullptr) write_all(server().calls(), reinterpret_cast<const char*>(pointer) - before, n);
  }
  template <typename T>
  void out(T*&, index_t) {}
};

struct Receive {
  template <typename T>
  void in(T*&, index_t, index_t = 0) {}
  template <typename T>
  void out(T*& pointer, index_t n) {
    read_all(server().answers(), pointer, n);
  }
};

std::mutex one_call;

template <typename Args>
void call(Op op, Args args, cpu::Where where) {
  const std::lock_guard<std::mutex> alone(one_call);
  write_value(server().calls(), op);
  write_value(server().calls(), where.n_threads);
  write_value(server().calls(), args);
  Send send;
  each_array(args, send);
  const std::string error = read_text(server().answers());
  check(error.empty(), error);
  Receive receive;
  each_array(args, receive);
}

struct Isas {
  std::vector<cpu::Isa> runnable;
  cpu::Isa active;
  std::string error;
};

Isas ask_isas() {
  const std::lock_guard<std::mutex> alone(one_call);
  write_value(server().calls(), Op::isas);
  const int from = server().answers();
  Isas isas{std::vector<cpu::Isa>(static_cast<std::size_t>(read_value<std::int32_t>(from))), {}, {}};
  for (cpu::Isa& isa : isas.runnable) isa = read_value<cpu::Isa>(from);
  isas.active = read_value<cpu::Isa>(from);
  isas.error = read_text(from);
  return isas;
}

}  // namespace
}  // namespace cross

namespace cpu {

std::vector<Isa> runnable_isas() {
  return cross::ask_isas().runnable;
}

Isa active_isa() {
  const cross::Isas isas = cross::ask_isas();
  check(isas.error.empty(), isas.error);
  return isas.active;
}

void compose_factors(const ComposeFactorsArgs& args, Where where) {
  cross::call(cross::Op::compose_factors, args, where);
}
void inject_delta(const InjectDeltaArgs& args, Where where) {
  cross::call(cross::Op::inject_delta, args, where);
}
void inject_delta_from_stack(const InjectDeltaArgs& args, const StackedFactors& factors, Where where) {
  cross::call(cross::Op::inject_delta_from_stack, cross::InjectFromStackArgs{args, factors}, where);
}
void int8_epilogue(const Int8EpilogueArgs& args, Where where) {
  cross::call(cross::Op::int8_epilogue, args, where);
}
void int8_linear(const Int8LinearArgs& args, Where where) {
  cross::call(cross::Op::int8_linear, args, where);
}
void quantize_rows(const QuantizeRowsArgs& args, Where where) {
  cross::call(cross::Op::quantize_rows, args, where);
}
void dequantize_rows(const DequantizeRowsArgs& args, Where where) {
  cross::call(cross::Op::dequantize_rows, args, where);
}
void gated_activation(const GatedActivationArgs& args, Where where) {
  cross::call(cross::Op::gated_activation, args, where);
}
void attention(const AttentionArgs& args, Where where) {
  cross::call(cross::Op::attention, args, where);
}

}  // namespace cpu
}  // namespace lorahub_edge
