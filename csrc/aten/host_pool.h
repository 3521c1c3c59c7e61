// Lends torch's thread pool to the framework-free kernels.
#pragma once

namespace trn {

void lend_thread_pool();  // once, at load

}  // namespace trn
