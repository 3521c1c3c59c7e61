// The kernels for any machine: four lanes, no intrinsics. Also picks the table in use.
#include <type_traits>

#include "isa.h"
#include "kernels.h"

#define TRN_NAMESPACE plain
#define TRN_ISA 0
#define TRN_LANES 4
#define TRN_BF16 0
#include "kernels.inc"

namespace trn::numerics {

const Kernels& kernels() {
#if defined(__x86_64__)
  switch (isa()) {
    case Isa::plain:
      break;
    case Isa::avx2:
      return avx2::kernels;
    case Isa::avx512:
      return avx512::kernels;
    case Isa::avx512_bf16:
      return avx512_bf16::kernels;
  }
#endif
  return plain::kernels;
}

}  // namespace trn::numerics
