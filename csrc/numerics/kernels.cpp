// Picks the kernels of the instruction set in use.
#include "kernels.h"

#include "isa.h"

namespace trn::numerics {

const Kernels& kernels() {
#if defined(__x86_64__)
  static const Kernels with_bf16 = [] {
    Kernels table = avx512::kernels;
    table.gemm_bf16 = avx512_bf16::gemm_bf16;
    table.gemm_taps = avx512_bf16::gemm_taps;
    return table;
  }();
  static const Kernels with_tiles = [] {
    Kernels table = avx512::kernels;
    table.gemm_bf16 = amx_bf16::gemm_bf16;
    table.gemm_taps = amx_bf16::gemm_taps;
    table.begin_bf16 = amx_bf16::begin;
    table.end_bf16 = amx_bf16::end;
    table.pair_tile_rows = amx_bf16::tile_rows;
    table.pairs_by_steps = false;
    return table;
  }();
  switch (isa()) {
    case Isa::plain:
      break;
    case Isa::avx2:
      return avx2::kernels;
    case Isa::avx512:
      return avx512::kernels;
    case Isa::avx512_bf16:
      return with_bf16;
    case Isa::amx_bf16:
      return with_tiles;
  }
#endif
  return plain::kernels;
}

}  // namespace trn::numerics
