// See launches_of_steps.h.
#include "launches_of_steps.h"

#include "runtime/listing.h"

#include <mutex>
#include <unordered_map>

namespace trn {

// Of 1,024 signatures; then all are forgotten, and found again.
Programs programs_of(const SignatureHash& signature, const std::function<void()>& steps) {
  constexpr size_t most = 1024;
  static std::mutex mutex;
  static auto* all = new std::unordered_map<uint64_t, Programs>;  // outlives static destruction
  {
    const std::lock_guard lock(mutex);
    const auto found = all->find(signature.value());
    if (found != all->end()) return found->second;
  }
  auto made = std::make_shared<const std::vector<LaunchRow*>>(launches_of(steps));
  const std::lock_guard lock(mutex);
  if (all->size() >= most) all->clear();
  return all->insert_or_assign(signature.value(), std::move(made)).first->second;
}

void launch_all(const Programs& programs, c10::DeviceIndex device) {
  Ledger& ledger = Ledger::of(device);
  for (LaunchRow* row : *programs) ledger.launch(row);
}

}  // namespace trn
