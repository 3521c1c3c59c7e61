// See list_pieces.h.
#include "list_pieces.h"

#include <ATen/Parallel.h>
#include <ATen/ThreadLocalState.h>

#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <utility>

namespace trn {
namespace {

using c10::IValue;
using torch::jit::Stack;

constexpr int64_t kPieceBytes = 256 << 10;  // of a tensor; chosen by measurement

// A stretch of the tensors of one place in the lists.
struct ListPiece {
  size_t index;
  int64_t begin, elements;
};

std::vector<ListPiece> pieces_of(const ListPasses& all) {
  const int64_t most = kPieceBytes / int64_t(all.operands[0].host.element_size());
  std::vector<ListPiece> out;
  for (size_t index = 0; index < all.elements.size(); ++index) {
    for (int64_t begin = 0; begin < all.elements[index]; begin += most)
      out.push_back({index, begin, std::min(most, all.elements[index] - begin)});
  }
  return out;
}

// A view of a stretch of an operand's memory, which moves from piece to piece.
class ListWindow {
 public:
  explicit ListWindow(const at::Tensor& host)
      : first_(host.storage_offset()),
        impl_(c10::make_intrusive<c10::TensorImpl>(c10::Storage(host.storage()), host.key_set(),
                                                   host.dtype())),
        list_({at::Tensor(impl_)}) {}
  void move(const ListPiece& piece) {
    const int64_t stride = 1;
    impl_->set_sizes_and_strides({&piece.elements, 1}, {&stride, 1}, first_ + piece.begin);
  }
  const c10::List<at::Tensor>& list() const { return list_; }
  void take(const ListWindow& from) {
    std::memcpy(impl_->mutable_data(), from.impl_->data(),
                size_t(impl_->numel()) * impl_->itemsize());
  }

 private:
  const int64_t first_;
  c10::intrusive_ptr<c10::TensorImpl> impl_;
  c10::List<at::Tensor> list_;
};

// The arguments of one pass at one place of the lists.
Stack arguments_at(const ListPass& pass, size_t index,
                   std::unordered_map<uint32_t, ListWindow>& windows) {
  Stack out;
  size_t list = 0, other = 0;
  for (const bool is_list : pass.is_list) {
    if (is_list) {
      // In place on the results, where there are some, which hold the first argument by then.
      const auto& members = list == 0 && pass.copies ? pass.members.back() : pass.members[list];
      out.push_back(windows.at(members[index]).list());
      ++list;
      continue;
    }
    const IValue& value = pass.others[other++];
    if (!value.isList()) {
      out.push_back(value);
      continue;
    }
    c10::impl::GenericList one(value.toList().elementType());
    one.push_back(value.toListRef()[index]);
    out.push_back(std::move(one));
  }
  return out;
}

void run_pieces(const ListPasses& all, const std::vector<ListPiece>& pieces, int64_t begin,
                int64_t end) {
  std::unordered_map<uint32_t, ListWindow> windows;
  std::vector<Stack> arguments;
  Stack stack;
  for (int64_t p = begin; p < end; ++p) {
    const ListPiece& piece = pieces[size_t(p)];
    if (p == begin || pieces[size_t(p - 1)].index != piece.index) {
      windows.clear();
      arguments.clear();
      for (const ListPass& pass : all.passes) {
        for (const auto& members : pass.members)
          windows.try_emplace(members[piece.index], all.operands[members[piece.index]].host);
        arguments.push_back(arguments_at(pass, piece.index, windows));
      }
    }
    for (auto& [number, window] : windows) window.move(piece);
    for (size_t i = 0; i < all.passes.size(); ++i) {
      const ListPass& pass = all.passes[i];
      if (pass.copies)
        windows.at(pass.members.back()[piece.index]).take(windows.at(pass.members[0][piece.index]));
      stack = arguments[i];
      pass.op.redispatchBoxed(pass.keys, &stack);
    }
  }
}

}  // namespace

void run_in_pieces(const ListPasses& all) {
  const std::vector<ListPiece> pieces = pieces_of(all);
  std::vector<int64_t> ends;  // of the threads' stretches, of about as many elements
  int64_t total = 0, seen = 0;
  for (const ListPiece& piece : pieces) total += piece.elements;
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  for (size_t p = 0; p < pieces.size(); ++p) {
    seen += pieces[p].elements;
    if (seen * threads >= total * int64_t(ends.size() + 1)) ends.push_back(int64_t(p) + 1);
  }
  // The step's end may stand within modes and transforms, which have seen these calls.
  c10::impl::PODLocalDispatchKeySet keys{};
  keys.set_excluded(c10::autograd_dispatch_keyset_with_ADInplaceOrView |
                    c10::autocast_dispatch_keyset);
  const c10::impl::ForceDispatchKeyGuard only_the_host{c10::impl::LocalDispatchKeySet(keys)};
  const at::ThreadLocalState state;
  at::parallel_for(0, int64_t(ends.size()), 1, [&](int64_t first, int64_t last) {
    const at::ThreadLocalStateGuard same_state(state);
    for (int64_t t = first; t < last; ++t)
      run_pieces(all, pieces, t == 0 ? 0 : ends[size_t(t - 1)], ends[size_t(t)]);
  });
}

}  // namespace trn
