// See accelerated.h. The twins' schemas are aten's, so that a change of torch changes both.
#include "accelerated.h"

#include "redispatch.h"

#include <memory>
#include <unordered_map>

namespace trn {
namespace {

constexpr auto kTrnKey = c10::DispatchKey::PrivateUse1;

struct Twins {
  std::unordered_map<c10::OperatorName, c10::OperatorHandle> of;
  std::unique_ptr<torch::Library> schemas, kernels;
};

Twins& twins() {
  static auto* all = new Twins;  // registrations last as long as the process
  return *all;
}

c10::OperatorName aten_name(const std::string& name) {
  const size_t dot = name.find('.');
  const std::string overload = dot == std::string::npos ? "" : name.substr(dot + 1);
  return {"aten::" + name.substr(0, dot), overload};
}

}  // namespace

void register_accelerated(const std::vector<std::string>& names) {
  Twins& all = twins();
  TORCH_CHECK(all.schemas == nullptr, "accelerated operators are registered once");
  using torch::Library;
  all.schemas =
      std::make_unique<Library>(Library::FRAGMENT, "trn", std::nullopt, __FILE__, __LINE__);
  all.kernels = std::make_unique<Library>(Library::IMPL, "aten", kTrnKey, __FILE__, __LINE__);
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag, at::Tag::flexible_layout};
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const std::string& name : names) {
    const c10::OperatorName origin = aten_name(name);
    const c10::OperatorHandle op =
        dispatcher.findSchemaOrThrow(origin.name.c_str(), origin.overload_name.c_str());
    const std::string twin = "trn::" + origin.name.substr(sizeof("aten::") - 1);
    all.schemas->def(op.schema().cloneWithName(twin, origin.overload_name), tags);
    all.of.emplace(origin,
                   dispatcher.findSchemaOrThrow(twin.c_str(), origin.overload_name.c_str()));
    if (!op.hasKernelForDispatchKey(kTrnKey)) all.kernels->impl(name.c_str(), host_kernel());
  }
}

std::optional<c10::OperatorHandle> twin_of(const c10::OperatorName& name) {
  const auto found = twins().of.find(name);
  if (found == twins().of.end()) return std::nullopt;
  return found->second;
}

}  // namespace trn
