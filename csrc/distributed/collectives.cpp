// The collectives that reduce, gather or broadcast, each as a Call: who sends what to whom, and how
// it moves. Those that send each rank something of its own are in exchanges.cpp.
#include "calls.h"

#include <algorithm>

namespace trn {

using namespace calls;  // NOLINT: these two files only

Backend::WorkPtr Backend::broadcast(Tensors& tensors, const c10d::BroadcastOptions& opts) {
  const at::Tensor& tensor = only(tensors, "broadcast");
  check_root(opts.rootRank, size_, "broadcast");
  const int root = int(opts.rootRank);
  Call call = call_of(OpType::BROADCAST, "broadcast", tensors, opts);
  call.root = root;
  const at::Tensor memory =
      borrow(tensor, rank_ == root ? Access::kRead : Access::kWrite, "broadcast");
  call.receives.assign(size_t(size_), 0);
  call.receives[size_t(root)] = memory.nbytes();
  if (rank_ == root) call.sends.assign(size_t(size_), memory.nbytes());
  call.results = tensors;
  call.along = rank_ == root ? in(memory) : In{};
  return start(std::move(call), [this, memory, root](const Meeting& m) {
    std::vector<Out> from(size_t(size_), Out{});
    if (rank_ != root)
      from[size_t(root)] = out(memory);
    else
      from[size_t(root)] = {nullptr, memory.nbytes()};
    m.transport.gather(rank_ == root ? in(memory) : In{}, from, -1, m.largest, m.wait);
  });
}

Backend::WorkPtr Backend::allreduce(Tensors& tensors, const c10d::AllreduceOptions& opts) {
  Call call = call_of(OpType::ALLREDUCE, "all_reduce", tensors, opts);
  if (tensors.size() > 1) {  // one call of several tensors
    call.op = OpType::ALLREDUCE_COALESCED;
    call.name = "all_reduce_coalesced";
    call.shapes = hash_of(tensors);
    check_dtypes(tensors, call.dtype, call.name);
  }
  reduces(call, opts.reduceOp);
  const Borrowed all = borrow(tensors, Access::kWrite, call.name);
  call.sends.assign(size_t(size_), bytes_of(tensors));
  call.receives = call.sends;
  call.results = tensors;
  if (all.memory.size() == 1) call.along = in(all.memory[0]);
  const Call about = call;
  return start(std::move(call), [about, memory = all.memory](const Meeting& m) {
    const Reduction how = made(about, m);
    for (const at::Tensor& tensor : memory) {
      if (tensor.numel() > 0) m.transport.all_reduce(out(tensor), how, m.wait);
    }
  });
}

Backend::WorkPtr Backend::allreduce_coalesced(Tensors& tensors,
                                              const c10d::AllreduceCoalescedOptions& opts) {
  return allreduce(tensors, opts);
}

Backend::WorkPtr Backend::reduce(Tensors& tensors, const c10d::ReduceOptions& opts) {
  only(tensors, "reduce");
  check_root(opts.rootRank, size_, "reduce");
  const int root = int(opts.rootRank);
  Call call = call_of(OpType::REDUCE, "reduce", tensors, opts);
  reduces(call, opts.reduceOp);
  call.root = root;
  const at::Tensor memory = borrow(tensors[0], Access::kWrite, "reduce");
  call.sends.assign(size_t(size_), 0);
  call.sends[size_t(root)] = memory.nbytes();
  call.receives.assign(size_t(size_), rank_ == root ? memory.nbytes() : 0);
  call.results = tensors;
  const Call about = call;
  return start(std::move(call), [this, about, memory, root](const Meeting& m) {
    std::vector<In> to(size_t(size_), In{});
    to[size_t(root)] = in(memory);
    m.transport.reduce_scatter(to, rank_ == root ? out(memory) : Out{}, made(about, m), m.largest,
                               m.wait);
  });
}

Backend::WorkPtr Backend::allgather(std::vector<Tensors>& outputs, Tensors& inputs,
                                    const c10d::AllgatherOptions& opts) {
  only(inputs, "all_gather");
  TORCH_CHECK_VALUE(outputs.size() == 1 && int(outputs[0].size()) == size_,
                    "all_gather: the list needs one output tensor for each of the ", size_,
                    " ranks");
  Call call = call_of(OpType::ALLGATHER, "all_gather", inputs, opts);
  check_dtypes(outputs[0], call.dtype, "all_gather");
  const at::Tensor mine = borrow_contiguous(inputs[0], Access::kRead, "all_gather");
  Tensors memory;
  for (const at::Tensor& tensor : outputs[0])
    memory.push_back(borrow_contiguous(tensor, Access::kWrite, "all_gather"));
  call.sends.assign(size_t(size_), mine.nbytes());
  call.receives = sizes(memory);
  call.priced_bytes = int64_t(bytes_of(outputs[0]));
  call.results = outputs[0];
  call.along = in(mine);
  return start(std::move(call), [mine, memory](const Meeting& m) {
    m.transport.gather(in(mine), outs(memory), -1, m.largest, m.wait);
  });
}

Backend::WorkPtr Backend::_allgather_base(at::Tensor& output, at::Tensor& input,
                                          const c10d::AllgatherOptions& opts) {
  Tensors outputs{output}, inputs{input};
  return allgather_into_tensor_coalesced(outputs, inputs, opts);
}

// One operation, as its name says. The outputs are lists by rank; by input if they do not fit that.
Backend::WorkPtr Backend::allgather_coalesced(std::vector<Tensors>& outputs, Tensors& inputs,
                                              const c10d::AllgatherOptions& opts) {
  constexpr const char* name = "all_gather_coalesced";
  const size_t ranks = size_t(size_), count = inputs.size();
  const auto lists = [&](size_t many, size_t each) {
    return outputs.size() == many && std::all_of(outputs.begin(), outputs.end(),
                                                 [&](auto& list) { return list.size() == each; });
  };
  const bool by_rank = lists(ranks, count);
  TORCH_CHECK_VALUE(by_rank || lists(count, ranks), name, ": the outputs need ", ranks,
                    " lists, one for each rank, of ", count, " tensors, one for each input");
  Call call = call_of(OpType::ALLGATHER_COALESCED, name, inputs, opts);
  std::vector<Tensors> to(count);
  Tensors from;
  for (size_t i = 0; i < count; ++i) {
    from.push_back(borrow_contiguous(inputs[i], Access::kRead, name));
    for (size_t r = 0; r < ranks; ++r) {
      const at::Tensor& output = by_rank ? outputs[r][i] : outputs[i][r];
      TORCH_CHECK_TYPE(output.scalar_type() == inputs[i].scalar_type(), name, ": an output of ",
                       output.scalar_type(), " for an input of ", inputs[i].scalar_type());
      TORCH_CHECK_VALUE(output.numel() == inputs[i].numel(), name, ": an output of ",
                        output.numel(), " elements for an input of ", inputs[i].numel());
      to[i].push_back(borrow_contiguous(output, Access::kWrite, name));
      call.results.push_back(output);
    }
  }
  call.shapes = hash_of(inputs);
  call.sends.assign(ranks, bytes_of(inputs));
  call.receives = call.sends;
  call.priced_bytes = int64_t(bytes_of(inputs)) * size_;
  return start(std::move(call), [to, from](const Meeting& m) {
    for (size_t i = 0; i < from.size(); ++i) {
      if (from[i].nbytes() > 0)
        m.transport.gather(in(from[i]), outs(to[i]), -1, from[i].nbytes(), m.wait);
    }
  });
}

Backend::WorkPtr Backend::allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                                          const c10d::AllgatherOptions& opts) {
  constexpr const char* name = "all_gather_into_tensor";
  TORCH_CHECK_VALUE(outputs.size() == inputs.size(), name, ": as many outputs as inputs");
  Call call = call_of(OpType::_ALLGATHER_BASE, name, inputs, opts);
  std::vector<Tensors> to;
  Tensors from;
  for (size_t i = 0; i < inputs.size(); ++i) {
    TORCH_CHECK_TYPE(outputs[i].scalar_type() == inputs[i].scalar_type(), name, ": an output of ",
                     outputs[i].scalar_type(), " for an input of ", inputs[i].scalar_type());
    TORCH_CHECK_VALUE(outputs[i].numel() == inputs[i].numel() * size_, name, ": an output of ",
                      outputs[i].numel(), " elements for ", size_, " inputs of ",
                      inputs[i].numel());
    from.push_back(borrow_contiguous(inputs[i], Access::kRead, name));
    to.push_back(pieces(borrow_contiguous(outputs[i], Access::kWrite, name), size_, name));
  }
  if (inputs.size() > 1) call.shapes = hash_of(inputs);
  call.sends.assign(size_t(size_), bytes_of(inputs));
  call.receives = call.sends;
  call.priced_bytes = int64_t(bytes_of(outputs));
  call.results = outputs;
  if (from.size() == 1) call.along = in(from[0]);
  return start(std::move(call), [to, from](const Meeting& m) {
    for (size_t i = 0; i < from.size(); ++i)
      m.transport.gather(in(from[i]), outs(to[i]), -1, from[i].nbytes(), m.wait);
  });
}

Backend::WorkPtr Backend::reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                                         const c10d::ReduceScatterOptions& opts) {
  only(outputs, "reduce_scatter");
  TORCH_CHECK_VALUE(inputs.size() == 1 && int(inputs[0].size()) == size_,
                    "reduce_scatter: the list needs one input tensor for each of the ", size_,
                    " ranks");
  Call call = call_of(OpType::REDUCE_SCATTER, "reduce_scatter", outputs, opts);
  check_dtypes(inputs[0], call.dtype, "reduce_scatter");
  reduces(call, opts.reduceOp);
  const at::Tensor mine = borrow_contiguous(outputs[0], Access::kWrite, "reduce_scatter");
  Tensors memory;
  for (const at::Tensor& tensor : inputs[0])
    memory.push_back(borrow_contiguous(tensor, Access::kRead, "reduce_scatter"));
  call.sends = sizes(memory);
  call.receives.assign(size_t(size_), mine.nbytes());
  call.priced_bytes = int64_t(bytes_of(inputs[0]));
  call.results = outputs;
  const Call about = call;
  return start(std::move(call), [about, mine, memory](const Meeting& m) {
    m.transport.reduce_scatter(ins(memory), out(mine), made(about, m), m.largest, m.wait);
  });
}

Backend::WorkPtr Backend::_reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                                               const c10d::ReduceScatterOptions& opts) {
  Tensors outputs{output}, inputs{input};
  return reduce_scatter_tensor_coalesced(outputs, inputs, opts);
}

Backend::WorkPtr Backend::reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                                          const c10d::ReduceScatterOptions& opts) {
  constexpr const char* name = "reduce_scatter_tensor";
  TORCH_CHECK_VALUE(outputs.size() == inputs.size(), name, ": as many outputs as inputs");
  Call call = call_of(OpType::_REDUCE_SCATTER_BASE, name, inputs, opts);
  check_dtypes(inputs, call.dtype, name);
  reduces(call, opts.reduceOp);
  Tensors to;
  std::vector<Tensors> from;
  for (size_t i = 0; i < inputs.size(); ++i) {
    TORCH_CHECK_TYPE(outputs[i].scalar_type() == inputs[i].scalar_type(), name, ": an output of ",
                     outputs[i].scalar_type(), " for an input of ", inputs[i].scalar_type());
    TORCH_CHECK_VALUE(outputs[i].numel() * size_ == inputs[i].numel(), name, ": an input of ",
                      inputs[i].numel(), " elements for ", size_, " outputs of ",
                      outputs[i].numel());
    to.push_back(borrow_contiguous(outputs[i], Access::kWrite, name));
    from.push_back(pieces(borrow_contiguous(inputs[i], Access::kRead, name), size_, name));
  }
  if (inputs.size() > 1) call.shapes = hash_of(inputs);
  call.sends.assign(size_t(size_), bytes_of(outputs));
  call.receives = call.sends;
  call.results = outputs;
  const Call about = call;
  return start(std::move(call), [about, to, from](const Meeting& m) {
    const Reduction how = made(about, m);
    for (size_t i = 0; i < to.size(); ++i)
      m.transport.reduce_scatter(ins(from[i]), out(to[i]), how, to[i].nbytes(), m.wait);
  });
}

}  // namespace trn
