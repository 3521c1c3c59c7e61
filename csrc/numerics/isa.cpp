// Detects the host's instruction set once.
#include "isa.h"

namespace trn::numerics {
namespace {

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::plain;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return Isa::avx2;
  return __builtin_cpu_supports("avx512bf16") ? Isa::avx512_bf16 : Isa::avx512;
#else
  return Isa::plain;
#endif
}

Isa highest = Isa::avx512_bf16;

}  // namespace

Isa isa() {
  static const Isa host = detect();
  return host < highest ? host : highest;
}

void limit_isa(Isa limit) { highest = limit; }

}  // namespace trn::numerics
