// Shares torch's thread pool with the framework-free kernels.
#pragma once

namespace trn {

void share_thread_pool();  // once, at load

}  // namespace trn
