// The host's products of float32 keep all of it on trn: `torch.set_float32_matmul_precision` lets
// oneDNN round operands to bfloat16 where the processor multiplies those faster, but on trn the
// precision policy alone decides.
#pragma once

namespace trn {

// While one exists, oneDNN multiplies float32 as it is given. Costs a look-up where it already
// does.
class Float32Products {
 public:
  Float32Products();
  ~Float32Products();
  Float32Products(const Float32Products&) = delete;
  Float32Products& operator=(const Float32Products&) = delete;

 private:
  bool holds_;
};

}  // namespace trn
