// See named_errors.h. A wording that host kernels use is a row of kWordings.
#include "named_errors.h"

#include "runtime/device_name.h"

#include <string>
#include <string_view>
#include <typeinfo>
#include <utility>

namespace trn {
namespace {

using Pair = std::pair<std::string_view, std::string_view>;

constexpr Pair kWordings[] = {
    {" on the CPU device", " on trn"},
    {" on the CPU", " on trn"},
    {" on CPU", " on trn"},
    {" for CPU backend", " on trn"},
    {"mixed dtype (CPU)", "mixed dtype (trn)"},
    {"MKL FFT", "FFT on trn"},
};

// These mean the host: an operand that belongs there.
constexpr std::string_view kMeansHost[] = {"be on CPU", "and on CPU", "CPU tensor", "CPU int64"};

constexpr std::string_view kLacksFormat = "\" not implemented for '";
constexpr std::string_view kLacksKernel = "Could not run '";

bool contains(std::string_view text, std::string_view part) { return text.find(part) != text.npos; }

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != text.npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
}

std::string named(std::string_view wording) {
  std::string text(wording);
  replace_all(text, "trn", device_name());
  return text;
}

// "histogram_cpu" not implemented for 'Long'
std::string lacks_format(std::string text, const char* op) {
  const size_t name_end = text.find(kLacksFormat);
  const size_t begin = name_end + kLacksFormat.size();
  const std::string format = text.substr(begin, text.find('\'', begin) - begin);
  const size_t name_begin = text.rfind('"', name_end - 1);
  std::string kernel = text.substr(name_begin + 1, name_end - name_begin - 1);
  for (const std::string_view part : {"_vml_cpu", "_cpu_kernel", "_cpu"}) {
    if (const size_t at = kernel.find(part); at != kernel.npos) kernel.erase(at, part.size());
  }
  const bool half = format == "Half" || format == "BFloat16" || format == "ComplexHalf" ||
                    format.rfind("Float8", 0) == 0;
  return std::string(op) + ": \"" + kernel + "\" not implemented for '" + format + "' on " +
         device_name() +
         (half ? ". Compute it in float32 (complex64 for complex numbers) and cast the result."
               : "");
}

std::string as_trns(std::string text, const char* op) {
  if (contains(text, kLacksFormat)) return lacks_format(std::move(text), op);
  if (contains(text, kLacksKernel) && contains(text, "backend")) {
    return std::string(op) + " is not implemented on " + device_name() +
           " for these arguments: the host has no kernel of it. Move the tensors to a device that "
           "has one, or use other operators.";
  }
  for (const std::string_view part : kMeansHost) {
    if (contains(text, part)) return text;
  }
  for (const auto& [from, to] : kWordings) replace_all(text, from, named(to));
  return text;
}

template <class... Kinds>
void throw_same_kind(const c10::Error& error, const std::string& text) {
  const c10::SourceLocation here{__func__, __FILE__, uint32_t(__LINE__)};
  ((typeid(error) == typeid(Kinds) ? throw Kinds(here, text) : void()), ...);
}

}  // namespace

void rethrow_as_trns(const c10::Error& error, const char* op) {
  const std::string text = as_trns(error.msg(), op);
  if (text == error.msg()) throw;
  throw_same_kind<c10::NotImplementedError, c10::ValueError, c10::TypeError, c10::IndexError,
                  c10::LinAlgError, c10::Error>(error, text);
  throw;
}

}  // namespace trn
