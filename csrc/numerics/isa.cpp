// Detects the host's instruction set once.
#include "isa.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace trn::numerics {
namespace {

#if defined(__x86_64__)
// Linux gives the registers of AMX to a process that asks for them.
bool has_tiles() {
#if defined(__linux__)
  constexpr unsigned bf16_bit = 22, tile_bit = 24;
  constexpr int request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  return (d >> bf16_bit & 1) != 0 && (d >> tile_bit & 1) != 0 &&
         syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}
#endif

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::plain;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return Isa::avx2;
  if (!__builtin_cpu_supports("avx512bf16")) return Isa::avx512;
  return has_tiles() ? Isa::amx_bf16 : Isa::avx512_bf16;
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
Isa highest = Isa::amx_bf16;

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
