// One registrar for all kernels on the dense trn key, so that the loop over the host's kernels
// knows which operators have one of their own. A file with kernels adds a line here and in
// registration.cpp.
#pragma once

#include "typed.h"

#include <torch/library.h>

#include <string>
#include <unordered_set>

namespace trn {

class Registrar {
 public:
  explicit Registrar(torch::Library& library) : library_(library) {}

  // `name` without the namespace: "add.Tensor".
  void add(const std::string& name, torch::CppFunction&& kernel) {
    library_.impl(name.c_str(), std::move(kernel));
    names_.insert(name);
  }
  template <class F>
  void add(const std::string& name, F* kernel) {
    add(name, torch::CppFunction::makeFromUnboxedFunction(kernel));
  }
  // The unboxed host kernel of an operator.
  template <class Op>
  void host() {
    add(std::string(op_name<Op>()).substr(sizeof("aten::") - 1), &HostOp<Op>::kernel);
  }
  bool has(const std::string& name) const { return names_.count(name) > 0; }

 private:
  torch::Library& library_;
  std::unordered_set<std::string> names_;
};

void register_attention(Registrar& registrar);
void register_convolution(Registrar& registrar);
void register_matmul(Registrar& registrar);
void register_rnn(Registrar& registrar);

}  // namespace trn
