// The collectives in which each rank gets something of its own, and the barrier.
#include "calls.h"

#include <numeric>

namespace trn {

using namespace calls;  // NOLINT: these two files only

Backend::WorkPtr Backend::gather(std::vector<Tensors>& outputs, Tensors& inputs,
                                 const c10d::GatherOptions& opts) {
  only(inputs, "gather");
  check_root(opts.rootRank, size_, "gather");
  const int root = int(opts.rootRank);
  TORCH_CHECK_VALUE(rank_ != root || (outputs.size() == 1 && int(outputs[0].size()) == size_),
                    "gather: the root needs a list of one output tensor for each of the ", size_,
                    " ranks");
  Call call = call_of(OpType::GATHER, "gather", inputs, opts);
  call.root = root;
  call.priced_bytes *= size_;
  const at::Tensor mine = borrow_contiguous(inputs[0], Access::kRead, "gather");
  Tensors memory;
  if (rank_ == root) {
    check_dtypes(outputs[0], call.dtype, "gather");
    for (const at::Tensor& tensor : outputs[0])
      memory.push_back(borrow_contiguous(tensor, Access::kWrite, "gather"));
    call.receives = sizes(memory);
    call.results = outputs[0];
  }
  call.sends.assign(size_t(size_), 0);
  call.sends[size_t(root)] = mine.nbytes();
  call.along = in(mine);
  return start(std::move(call), [this, mine, memory, root](const Meeting& m) {
    const std::vector<Out> from =
        rank_ == root ? outs(memory) : std::vector<Out>(size_t(size_), Out{});
    m.transport.gather(in(mine), from, root, m.largest, m.wait);
  });
}

Backend::WorkPtr Backend::scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                                  const c10d::ScatterOptions& opts) {
  only(outputs, "scatter");
  check_root(opts.rootRank, size_, "scatter");
  const int root = int(opts.rootRank);
  TORCH_CHECK_VALUE(rank_ != root || (inputs.size() == 1 && int(inputs[0].size()) == size_),
                    "scatter: the root needs a list of one input tensor for each of the ", size_,
                    " ranks");
  Call call = call_of(OpType::SCATTER, "scatter", outputs, opts);
  call.root = root;
  call.priced_bytes *= size_;
  const at::Tensor mine = borrow_contiguous(outputs[0], Access::kWrite, "scatter");
  Tensors memory;
  if (rank_ == root) {
    check_dtypes(inputs[0], call.dtype, "scatter");
    for (const at::Tensor& tensor : inputs[0])
      memory.push_back(borrow_contiguous(tensor, Access::kRead, "scatter"));
    call.sends = sizes(memory);
  }
  call.receives.assign(size_t(size_), 0);
  call.receives[size_t(root)] = mine.nbytes();
  call.results = outputs;
  return start(std::move(call), [this, mine, memory, root](const Meeting& m) {
    std::vector<Out> from(size_t(size_), Out{});
    from[size_t(root)] = out(mine);
    const std::vector<In> to = rank_ == root ? ins(memory) : std::vector<In>(size_t(size_), In{});
    m.transport.exchange(to, from, m.largest, m.wait);
  });
}

namespace {

// The pieces of a tensor cut along its first dimension; equal ones if no sizes are given.
Tensors cut(const at::Tensor& tensor, const std::vector<int64_t>& splits, int parts,
            const char* name) {
  if (splits.empty()) {
    const int64_t rows = tensor.dim() == 0 ? 1 : tensor.size(0);
    TORCH_CHECK_VALUE(rows % parts == 0, name, ": the first dimension, ", rows,
                      ", does not divide among ", parts, " ranks: give split sizes");
    return pieces(tensor, parts, name);
  }
  TORCH_CHECK_VALUE(int(splits.size()) == parts, name, ": ", splits.size(), " split sizes for ",
                    parts, " ranks");
  const int64_t rows = std::accumulate(splits.begin(), splits.end(), int64_t{0});
  TORCH_CHECK_VALUE(tensor.dim() > 0 && rows == tensor.size(0), name, ": the split sizes sum to ",
                    rows, ", the first dimension is ", tensor.dim() > 0 ? tensor.size(0) : 1);
  Tensors all;
  int64_t at = 0;
  for (const int64_t split : splits) {
    TORCH_CHECK_VALUE(split >= 0, name, ": a negative split size, ", split);
    all.push_back(tensor.narrow(0, at, split));
    at += split;
  }
  return all;
}

}  // namespace

Backend::WorkPtr Backend::alltoall_base(at::Tensor& output, at::Tensor& input,
                                        std::vector<int64_t>& output_splits,
                                        std::vector<int64_t>& input_splits,
                                        const c10d::AllToAllOptions& opts) {
  constexpr const char* name = "all_to_all_single";
  Tensors tensors{input};
  Call call = call_of(OpType::ALLTOALL_BASE, name, tensors, opts);
  check_dtypes({output}, call.dtype, name);
  const Tensors to = cut(borrow_contiguous(input, Access::kRead, name), input_splits, size_, name);
  const Tensors from =
      cut(borrow_contiguous(output, Access::kWrite, name), output_splits, size_, name);
  call.sends = sizes(to);
  call.receives = sizes(from);
  call.results = {output};
  return start(std::move(call), [to, from](const Meeting& m) {
    m.transport.exchange(ins(to), outs(from), m.largest, m.wait);
  });
}

Backend::WorkPtr Backend::alltoall(Tensors& outputs, Tensors& inputs,
                                   const c10d::AllToAllOptions& opts) {
  TORCH_CHECK_VALUE(int(outputs.size()) == size_ && int(inputs.size()) == size_,
                    "all_to_all: the lists need one tensor for each of the ", size_, " ranks");
  Call call = call_of(OpType::ALLTOALL, "all_to_all", inputs, opts);
  check_dtypes(outputs, call.dtype, "all_to_all");
  check_dtypes(inputs, call.dtype, "all_to_all");
  Tensors to, from;
  for (int r = 0; r < size_; ++r) {
    to.push_back(borrow_contiguous(inputs[size_t(r)], Access::kRead, "all_to_all"));
    from.push_back(borrow_contiguous(outputs[size_t(r)], Access::kWrite, "all_to_all"));
  }
  call.sends = sizes(to);
  call.receives = sizes(from);
  call.results = outputs;
  return start(std::move(call), [to, from](const Meeting& m) {
    m.transport.exchange(ins(to), outs(from), m.largest, m.wait);
  });
}

Backend::WorkPtr Backend::barrier(const c10d::BarrierOptions& opts) {
  Call call{OpType::BARRIER, "barrier"};
  call.timeout = opts.timeout;
  call.async = opts.asyncOp;
  call.priced_bytes = 4;
  if (opts.device && opts.device->is_privateuseone() && opts.device->has_index())
    call.device = *opts.device;
  else if (!opts.device_ids.empty())
    call.device = c10::Device(kTrn, c10::DeviceIndex(opts.device_ids[0]));
  else
    call.device = getBoundDeviceId().value_or(c10::Device(kTrn, current_device()));
  return start(std::move(call), [](const Meeting&) {});
}

}  // namespace trn
