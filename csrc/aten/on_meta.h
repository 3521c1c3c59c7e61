// Operators of `meta` tensors while an estimate runs, where the device has others than torch's:
// torch.autocast("trn"), whose kernels cast tensors of the device alone, and products that fold a
// batch of rows (folding.cpp). No key of `meta` leads to either.
#pragma once

namespace trn {

// Drops the casts of weights that this thread keeps, as torch does where a region ends.
void clear_casts_of_meta() noexcept;

}  // namespace trn
