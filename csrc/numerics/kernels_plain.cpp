// The kernels for any machine: four lanes, no intrinsics.
#include <type_traits>
#include <utility>

#include "kernels.h"

#define TRN_NAMESPACE plain
#define TRN_ISA 0
#define TRN_LANES 4
#include "kernels-inl.h"
