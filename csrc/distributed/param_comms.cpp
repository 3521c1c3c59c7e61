// See param_comms.h.
#include "param_comms.h"

#include <ATen/record_function.h>
#include <torch/csrc/distributed/c10d/ParamCommsUtils.hpp>

#include <algorithm>
#include <memory>
#include <tuple>
#include <utility>

namespace trn {
namespace {

using Tensors = std::vector<at::Tensor>;
using Name = std::tuple<std::string, std::string>;  // of a group, and its description

int64_t count(const Tensors& tensors) {
  int64_t elements = 0;
  for (const at::Tensor& tensor : tensors) elements += tensor.numel();
  return elements;
}

// As ProcessGroupNCCL names it, by whose names tools look.
std::string name_of(c10d::OpType op) {
  switch (op) {
    case c10d::OpType::ALLGATHER:
    case c10d::OpType::ALLGATHER_COALESCED:
      return "all_gather";
    case c10d::OpType::ALLTOALL:
    case c10d::OpType::ALLTOALL_BASE:
      return "all_to_all";
    default: {
      std::string name = c10d::opTypeToString(op);
      std::transform(name.begin(), name.end(), name.begin(),
                     [](unsigned char c) { return char(std::tolower(c)); });
      return name;
    }
  }
}

// The distance between the ranks; -1 if they have no common one.
int stride_of(const std::vector<int64_t>& ranks) {
  const int64_t stride = ranks.size() > 1 ? ranks[1] - ranks[0] : 1;
  for (size_t i = 1; i < ranks.size(); ++i)
    if (ranks[i] - ranks[i - 1] != stride) return -1;
  return int(stride);
}

void record(std::shared_ptr<torch::ParamCommsDebugInfo> info, const Name& group, uint64_t sequence,
            bool is_message, const Tensors& inputs) {
  info->setSequenceInfo(int64_t(sequence), is_message);
  const std::vector<c10::IValue> values = {
      inputs,
      std::tuple<int64_t, bool>(int64_t(sequence), is_message),
      group,
      int64_t(info->getRank()),
      info->getCollectiveName(),
      int64_t(info->getWorldSize()),
      info->isAsynchronizedOp(),
  };
  const c10::DebugInfoGuard metadata(c10::DebugInfoKind::PARAM_COMMS_INFO, std::move(info));
  const c10::ArrayRef<const c10::IValue> inputs_of_event(values.data(), values.size());
  RECORD_FUNCTION(at::kParamCommsCallName, inputs_of_event);
}

}  // namespace

void record_param_comms(const Call& call, uint64_t sequence, const std::string& group,
                        const std::string& description, const std::vector<int64_t>& ranks, int rank,
                        int peer) {
  if (!at::hasCallbacks()) return;
  const Name name(group, description);
  auto info = std::make_shared<torch::ParamCommsDebugInfo>(
      name, int(ranks[size_t(peer < 0 ? rank : peer)]), name_of(call.op), count(call.inputs),
      count(call.results), call.dtype, std::vector<int64_t>{}, std::vector<int64_t>{},
      int(ranks[0]), stride_of(ranks), int(ranks.size()), call.async);
  record(std::move(info), name, sequence, peer >= 0, call.inputs);
}

void record_wait(int rank, uint64_t sequence, const Tensors& results) {
  if (!at::hasCallbacks()) return;
  auto info = std::make_shared<torch::ParamCommsDebugInfo>(
      Name{}, rank, "wait", 0, 0, results.empty() ? at::kByte : results[0].scalar_type(),
      std::vector<int64_t>{}, std::vector<int64_t>{}, -1, -1, -1, false);
  record(std::move(info), Name{}, sequence, false, {});
}

}  // namespace trn
