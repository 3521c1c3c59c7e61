// The arguments of a call as a key, as text for people and as JSON.
#include "ledger.h"

#include <cmath>
#include <cstring>
#include <sstream>
#include <utility>

namespace trn {
namespace {

void describe(std::ostream& out, const c10::IValue& value) {
  if (value.isTensor()) {
    const at::Tensor& tensor = value.toTensor();
    if (!tensor.defined()) {
      out << "None";
      return;
    }
    out << c10::toString(tensor.scalar_type());
    if (tensor.layout() == at::kStrided && !tensor.is_nested()) out << tensor.sizes();
  } else if (value.isList()) {
    out << "[";
    const char* separator = "";
    for (const c10::IValue& element : value.toListRef()) {
      out << std::exchange(separator, ", ");
      describe(out, element);
    }
    out << "]";
  } else if (value.isGenerator() || value.isStorage()) {
    out << value.tagKind();
  } else {
    out << value;
  }
}

template <class List, class Write>
void separated(std::ostream& out, const List& list, const char* between, Write write) {
  const char* separator = "";
  for (const auto& element : list) {
    out << std::exchange(separator, between);
    write(element);
  }
}

void write_json(std::ostream& out, const std::string& text) {
  out << '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') out << '\\';
    out << (uint8_t(c) < 0x20 ? ' ' : c);
  }
  out << '"';
}

void write_json(std::ostream& out, double number) {
  if (std::isnan(number)) {
    out << "NaN";
  } else if (std::isinf(number)) {
    out << (number < 0 ? "-Infinity" : "Infinity");
  } else {
    out << number;
  }
}

void write_json(std::ostream& out, const at::Tensor& tensor) {
  if (!tensor.defined()) {
    out << "null";
    return;
  }
  const bool plain = tensor.layout() == at::kStrided && !tensor.is_nested();
  const auto integers = [&](at::IntArrayRef list) {
    separated(out, list, ",", [&](int64_t i) { out << i; });
  };
  out << "{\"t\":\"" << (plain ? c10::toString(tensor.scalar_type()) : "sparse") << "\",\"s\":[";
  if (plain) integers(tensor.sizes());
  out << "],\"d\":[";
  if (plain) integers(tensor.strides());
  out << "],\"c\":" << int(tensor.device().type() != kTrn) << "}";
}

void write_json(std::ostream& out, const c10::IValue& value) {
  if (value.isTensor()) {
    write_json(out, value.toTensor());
  } else if (value.isInt()) {
    out << value.toInt();
  } else if (value.isBool()) {
    out << (value.toBool() ? "true" : "false");
  } else if (value.isDouble()) {
    write_json(out, value.toDouble());
  } else if (value.isString()) {
    write_json(out, value.toStringRef());
  } else if (value.isList() || value.isTuple()) {
    out << "[";
    const auto write = [&](const c10::IValue& element) { write_json(out, element); };
    if (value.isList()) {
      separated(out, value.toListRef(), ",", write);
    } else {
      separated(out, value.toTupleRef().elements(), ",", write);
    }
    out << "]";
  } else {
    out << "null";
  }
}

}  // namespace

CallText::CallText(const std::vector<c10::IValue>& values) {
  std::ostringstream people, machine;
  machine.precision(17);
  people << "(";
  separated(people, values, ", ", [&](const c10::IValue& value) { describe(people, value); });
  people << ")";
  machine << "[";
  separated(machine, values, ",", [&](const c10::IValue& value) { write_json(machine, value); });
  machine << "]";
  signature = people.str();
  json = machine.str();
}

void SignatureHash::add(const at::Tensor& tensor) noexcept {
  if constexpr (!kPricing) return;
  if (!tensor.defined()) return add(uint64_t{0xff});
  auto* impl = tensor.unsafeGetTensorImpl();
  add(uint64_t(impl->dtype().toScalarType()) | uint64_t(impl->device_type()) << 8);
  if (tensor.is_nested() || tensor.layout() != at::kStrided)
    return add(uint64_t(tensor.layout()) << 8);
  add(uint64_t(impl->is_contiguous()));
  for (int64_t size : impl->sizes()) add(uint64_t(size));
  if (!impl->is_contiguous()) {
    for (int64_t stride : impl->strides()) add(uint64_t(stride));
  }
}

void SignatureHash::add(const c10::IValue& value) noexcept {
  if constexpr (!kPricing) return;
  if (value.isTensor()) return add(value.toTensor());
  if (value.isInt()) return add(uint64_t(value.toInt()));
  if (value.isBool()) return add(uint64_t(value.toBool()) + 2);
  if (value.isNone()) return add(uint64_t{1} << 63);
  if (value.isDouble()) {
    const double number = value.toDouble();
    uint64_t bits = 0;
    std::memcpy(&bits, &number, sizeof bits);
    return add(bits);
  }
  if (value.isList()) {
    for (const c10::IValue& element : value.toListRef()) add(element);
    return add(uint64_t(value.toListRef().size()) << 32);
  }
  if (value.isString()) return add(std::hash<std::string>{}(value.toStringRef()));
  add(uint64_t{7});
}

void SignatureHash::add_number(double value) noexcept {
  constexpr double most = 16;
  const bool tells = std::abs(value) <= most && 2 * value == std::trunc(2 * value);
  if (tells)
    add(uint64_t(2 * (value + most)) + 8);
  else if (std::isinf(value))
    add(value < 0 ? uint64_t{2} : uint64_t{3});
  else
    add(std::isnan(value) ? uint64_t{1} : uint64_t{4});
}

void SignatureHash::add_number(const c10::IValue& value) noexcept {
  if constexpr (!kPricing) return;
  if (value.isList()) {
    for (const c10::IValue& element : value.toListRef()) add_number(element);
    return add(uint64_t(value.toListRef().size()) << 32);
  }
  add(uint64_t(value.isNone()) | uint64_t(value.isInt()) << 1 | uint64_t(value.isBool()) << 2 |
      uint64_t(value.isDouble()) << 3);
  if (value.isDouble()) add_number(value.toDouble());
  if (value.isInt()) add_number(double(value.toInt()));
  if (value.isBool()) add_number(double(value.toBool()));
}

}  // namespace trn
