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

// Where VDPBF16PS is no faster than two float32 products in its time, as on Intel's cores, rounded
// operands are multiplied in float32: measured on a Xeon of model 207, products of 256 to 1024 take
// 0.60 to 0.77 of the time.
Isa fastest_of(Isa host) {
#if defined(__x86_64__)
  if (host == Isa::avx512_bf16 && __builtin_cpu_is("intel")) return Isa::avx512;
#endif
  return host;
}

bool limited = false;
Isa highest = Isa::avx512_bf16;

}  // namespace

Isa isa() {
  static const Isa host = detect(), fastest = fastest_of(host);
  if (!limited) return fastest;
  return host < highest ? host : highest;
}

void limit_isa(Isa limit) {
  highest = limit;
  limited = true;
}

}  // namespace trn::numerics
