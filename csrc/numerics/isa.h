// Which instruction set the fast kernels use; chosen at run time. A new one is a level here and a
// kernels_<level>.cpp.
#pragma once

namespace trn::numerics {

// Each level has what those before it have. avx512 is F, BW, DQ and VL; avx512_bf16 adds VDPBF16PS,
// amx_bf16 the tiles of AMX and TDPBF16PS.
enum class Isa : int { plain, avx2, avx512, avx512_bf16, amx_bf16 };

// The fastest level of this host; with a limit, the highest that both have.
Isa isa();

// Holds the kernels to a level: tests compare levels bit for bit. Call while no kernel runs.
void limit_isa(Isa limit);

}  // namespace trn::numerics
