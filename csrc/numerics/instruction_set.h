// The instruction set that the kernels are compiled for, which kernels_<isa>.cpp defines before it
// includes them: TRN_NAMESPACE, TRN_ISA (0 plain, 2 AVX2, 512 AVX-512) and TRN_LANES. Their names
// are of one file each (an anonymous namespace), so that nothing is shared between two sets.
#pragma once

#include <type_traits>
#include <utility>

#include "kernels.h"

#ifndef TRN_NAMESPACE  // a header that is compiled alone
#define TRN_NAMESPACE plain
#define TRN_ISA 0
#define TRN_LANES 4
#endif
