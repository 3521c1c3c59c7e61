// Python's side of compiled graphs: runs host code on trn tensors.
#include "host_alias.h"
#include "list_passes.h"
#include "observers.h"
#include "on_meta.h"
#include "product_roles.h"
#include "runtime/generator.h"
#include "runtime/graph_schedule.h"
#include "runtime/ledger.h"
#include "weight_copies.h"

#include <c10/core/SafePyObject.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Device.h>
#include <torch/csrc/Generator.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/python_cpp_function.h>
#include <torch/csrc/autograd/python_variable.h>

#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace py = pybind11;

namespace trn {
namespace {

// How the arguments and results of one compiled graph lie on devices. Built once, run every call.
class HostGraph {
 public:
  // device          the core that runs it: its pool serves the host code's allocations
  // written         whether an input is written in place
  // result_devices  the core of each result, -1 for the host
  // returned_inputs the input that a result may be, or -1
  // draws           the host code draws from the default generator: then from the core's
  HostGraph(int device, std::vector<bool> written, std::vector<int> result_devices,
            std::vector<int> returned_inputs, bool draws)
      : device_(c10::DeviceIndex(device)),
        written_(std::move(written)),
        result_devices_(std::move(result_devices)),
        returned_inputs_(std::move(returned_inputs)),
        draws_(draws) {}

  // Calls `host_code` with a list of host aliases of `inputs`, which is emptied as compiled graphs
  // do, and gives the results on their devices. One launch of `row` on success.
  py::list run(const py::object& host_code, const py::list& inputs, LaunchRow* row) const {
    return run_then(host_code, inputs, [&] {
      if (row != nullptr) Ledger::of(device_).launch(row);
    });
  }

  // The same of a graph with collectives: each step is the row of a launch, None for the issue of
  // the next collective, or the number of one that is waited for.
  py::list run_scheduled(const py::object& host_code, const py::list& inputs,
                         const py::list& steps) const {
    std::vector<GraphStep> all;
    for (const py::handle step : steps) {
      if (step.is_none())
        all.push_back({GraphStep::kIssue, nullptr, 0});
      else if (py::isinstance<py::int_>(step))
        all.push_back({GraphStep::kWait, nullptr, step.cast<int64_t>()});
      else
        all.push_back({GraphStep::kLaunch, step.cast<LaunchRow*>(), 0});
    }
    GraphSchedule schedule(device_, std::move(all));
    return run_then(host_code, inputs, [&] { schedule.finish(); });
  }

 private:
  template <class Then>
  py::list run_then(const py::object& host_code, const py::list& inputs, Then then) const {
    if (in_forked_child()) throw_forked_child();
    const std::vector<py::object> originals = inputs_returned(inputs);
    py::list lent = aliases_of(inputs);
    const std::vector<py::object> aliases = inputs_returned(lent);
    py::object results;
    {
      InHbm pool(device_);
      std::optional<DefaultGeneratorSwap> swap;
      if (draws_) {
        py::gil_scoped_release wait;
        swap.emplace(device_);
      }
      results = py::reinterpret_steal<py::object>(PyObject_CallOneArg(host_code.ptr(), lent.ptr()));
      if (!results) throw py::error_already_set();
    }
    then();
    return take_all_back(results, originals, aliases);
  }

  std::vector<py::object> inputs_returned(const py::list& inputs) const {
    std::vector<py::object> kept;
    kept.reserve(returned_inputs_.size());
    for (const int input : returned_inputs_)
      kept.push_back(input >= 0 ? py::object(inputs[size_t(input)]) : py::object());
    return kept;
  }

  py::list aliases_of(const py::list& inputs) const {
    const auto count = PyList_GET_SIZE(inputs.ptr());
    py::list lent{size_t(count)};
    for (Py_ssize_t i = 0; i < count; ++i) {
      PyObject* item = PyList_GET_ITEM(inputs.ptr(), i);
      PyObject* alias = nullptr;
      if (THPVariable_Check(item) && THPVariable_Unpack(item).device().type() == kTrn) {
        const bool written = size_t(i) < written_.size() && written_[size_t(i)];
        alias = THPVariable_Wrap(
            host_alias(THPVariable_Unpack(item), written ? Access::kWrite : Access::kRead));
        if (alias == nullptr) throw py::error_already_set();
      } else {
        alias = Py_NewRef(item);
      }
      PyList_SET_ITEM(lent.ptr(), i, alias);
    }
    if (PyList_SetSlice(inputs.ptr(), 0, count, nullptr) != 0) throw py::error_already_set();
    return lent;
  }

  py::list take_all_back(const py::object& results, const std::vector<py::object>& originals,
                         const std::vector<py::object>& aliases) const {
    const auto items = py::reinterpret_steal<py::object>(
        PySequence_Fast(results.ptr(), "a compiled graph returns a sequence"));
    if (!items) throw py::error_already_set();
    const auto count = PySequence_Fast_GET_SIZE(items.ptr());
    py::list out{size_t(count)};
    for (Py_ssize_t i = 0; i < count; ++i) {
      PyObject* item = PySequence_Fast_GET_ITEM(items.ptr(), i);
      PyObject* made = nullptr;
      if (size_t(i) < aliases.size() && aliases[size_t(i)].ptr() == item) {
        made = Py_NewRef(originals[size_t(i)].ptr());
      } else if (THPVariable_Check(item) && size_t(i) < result_devices_.size()) {
        made = THPVariable_Wrap(device_tensor_of(THPVariable_Unpack(item), device_of(size_t(i))));
        if (made == nullptr) throw py::error_already_set();
      } else {
        made = Py_NewRef(item);
      }
      PyList_SET_ITEM(out.ptr(), i, made);
    }
    return out;
  }

  c10::Device device_of(size_t result) const {
    const int index = result_devices_[result];
    return index < 0 ? c10::Device(kCpu) : c10::Device(kTrn, c10::DeviceIndex(index));
  }

  c10::DeviceIndex device_;
  std::vector<bool> written_;
  std::vector<int> result_devices_, returned_inputs_;
  bool draws_;
};

bool is_parameter(const c10::TensorImpl* tensor) {
  PyObject* object = tensor->pyobj_slot()->load_pyobj();
  return object != nullptr && ParameterClass != nullptr &&
         PyType_IsSubtype(Py_TYPE(object), reinterpret_cast<PyTypeObject*>(ParameterClass)) != 0;
}

bool has_observer() {
  const py::gil_scoped_acquire gil;
  using Modes = c10::impl::TorchDispatchModeTLS;
  for (int64_t i = 0; i < Modes::stack_len(); ++i)
    if (py::hasattr(Modes::get_stack_at(i)->ptr(getPyInterpreter()), "sees_launches")) return true;
  return false;
}

// Python shows a node of autograd by its type: those of products have the attributes of torch's.
void show_product_nodes() {
  for (const ProductNode& node : product_nodes()) {
    const auto shown =
        py::reinterpret_steal<py::object>(torch::autograd::functionToPyObject(node.torchs));
    torch::autograd::registerCppFunction(node.type, Py_TYPE(shown.ptr()));
  }
}

PyObject* repr_by_attribute(PyObject* self) {
  return PyObject_CallMethod(self, "__repr__", nullptr);
}

PyObject* str_by_attribute(PyObject* self) { return PyObject_CallMethod(self, "__str__", nullptr); }

// Types of torch._C may not be changed from Python: `value` stands for the attribute from now on.
void set_type_attribute(const py::type& kind, const std::string& name, const py::object& value) {
  auto* type = reinterpret_cast<PyTypeObject*>(kind.ptr());
  if (PyDict_SetItemString(type->tp_dict, name.c_str(), value.ptr()) != 0)
    throw py::error_already_set();
  if (name == "__repr__") type->tp_repr = &repr_by_attribute;
  if (name == "__str__") type->tp_str = &str_by_attribute;
  PyType_Modified(type);
}

// The device under the name that a script for CUDA gives it.
c10::Device as_cuda(PyObject* device) {
  const c10::Device found = reinterpret_cast<THPDevice*>(device)->device;
  return found.is_privateuseone() ? c10::Device(c10::kCUDA, found.index()) : found;
}

PyObject* compare_devices(PyObject* a, PyObject* b, int op) {
  if (!THPDevice_Check(a) || !THPDevice_Check(b) || (op != Py_EQ && op != Py_NE))
    Py_RETURN_NOTIMPLEMENTED;
  return PyBool_FromLong((as_cuda(a) == as_cuda(b)) == (op == Py_EQ));
}

Py_hash_t hash_device(PyObject* device) {
  constexpr auto most = size_t(std::numeric_limits<Py_hash_t>::max());
  return Py_hash_t(std::hash<c10::Device>{}(as_cuda(device)) % most);
}

// In Python trn:0 and cuda:0 are one device from now on.
void equate_devices_with_cuda() {
  THPDeviceType.tp_richcompare = &compare_devices;
  THPDeviceType.tp_hash = &hash_device;
  PyType_Modified(&THPDeviceType);
}

struct Constructor {
  newfunc make;
  PyObject* translate;  // (args, kwargs) -> (args, kwargs); lives as long as the process
};

std::unordered_map<PyTypeObject*, Constructor>& constructors() {
  static std::unordered_map<PyTypeObject*, Constructor> all;
  return all;
}

PyObject* make_translated(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  PyTypeObject* base = type;
  while (constructors().count(base) == 0) base = base->tp_base;
  const Constructor& constructor = constructors().at(base);
  const auto made = py::reinterpret_steal<py::object>(PyObject_CallFunctionObjArgs(
      constructor.translate, args, kwargs == nullptr ? Py_None : kwargs, nullptr));
  PyObject* to = nullptr;
  PyObject* named = nullptr;
  if (!made || PyArg_ParseTuple(made.ptr(), "O!O!", &PyTuple_Type, &to, &PyDict_Type, &named) == 0)
    return nullptr;
  return constructor.make(type, to, named);
}

// Lets `translate` change the arguments of a constructor; the type stays the same object.
void translate_constructor(const py::type& kind, const py::function& translate) {
  auto* type = reinterpret_cast<PyTypeObject*>(kind.ptr());
  TORCH_CHECK(constructors().count(type) == 0, "its constructor is translated already");
  constructors()[type] = {type->tp_new, translate.inc_ref().ptr()};
  type->tp_new = &make_translated;
}

}  // namespace

void bind_graphs(py::module_& m) {
  set_parameter_test(&is_parameter);
  set_observer_test(&has_observer);
  show_product_nodes();
  m.def("set_type_attribute", &set_type_attribute);
  m.def("translate_constructor", &translate_constructor);
  m.def("equate_devices_with_cuda", &equate_devices_with_cuda);
  m.def("role_of", [](py::handle a, py::handle b) {
    if (!THPVariable_Check(a.ptr()) || !THPVariable_Check(b.ptr()))
      throw py::type_error("role_of takes two tensors");
    const ProductRole role = role_of(THPVariable_Unpack(a.ptr()), THPVariable_Unpack(b.ptr()));
    return std::pair(int(role.matmul_class), role.weight);
  });
  m.def("is_weight", [](py::handle tensor) {
    if (!THPVariable_Check(tensor.ptr())) throw py::type_error("is_weight takes a tensor");
    return is_weight(THPVariable_Unpack(tensor.ptr()));
  });
  py::class_<LaunchRow>(m, "LaunchRow");
  py::class_<HostGraph>(m, "HostGraph")
      .def(py::init<int, std::vector<bool>, std::vector<int>, std::vector<int>, bool>(),
           py::arg("device"), py::arg("written"), py::arg("result_devices"),
           py::arg("returned_inputs"), py::arg("draws"))
      .def("run", &HostGraph::run, py::arg("host_code"), py::arg("inputs"),
           py::arg("row").none(true) = nullptr)
      .def("run_scheduled", &HostGraph::run_scheduled, py::arg("host_code"), py::arg("inputs"),
           py::arg("steps"));
  m.def("host_alias", [](py::handle tensor) {
    if (!THPVariable_Check(tensor.ptr())) throw py::type_error("host_alias takes a tensor");
    return py::reinterpret_steal<py::object>(
        THPVariable_Wrap(host_alias(THPVariable_Unpack(tensor.ptr()), Access::kWrite)));
  });
  m.def("collect_list_passes", &collect_list_passes, py::arg("on"),
        py::call_guard<py::gil_scoped_release>());
  m.def("list_passes_kept", &list_passes_kept);
  m.def("clear_casts_of_meta", &clear_casts_of_meta);
  m.def("weight_copies", [] {
    const CopyCounts counts = copy_counts();
    return std::tuple(counts.copies, counts.bytes, counts.uses);
  });
  m.def(
      "add_graph_row",
      [](int device, std::string name, std::string signature, uint64_t key, int64_t device_ns,
         int64_t dispatch_ns, int64_t price_row, bool blocks) {
        Price price{device_ns, price_row, false, blocks, dispatch_ns};
        return Ledger::of(c10::DeviceIndex(device))
            .add_priced(key, LaunchRow{std::move(name), std::move(signature), 0, price});
      },
      py::arg("device"), py::arg("name"), py::arg("signature"), py::arg("key"),
      py::arg("device_ns"), py::arg("dispatch_ns"), py::arg("price_row"), py::arg("blocks"),
      py::return_value_policy::reference);
  m.def(
      "launch_graph",
      [](int device, LaunchRow* row, int64_t times) {
        for (int64_t i = 0; i < times; ++i) Ledger::of(c10::DeviceIndex(device)).launch(row);
      },
      py::arg("device"), py::arg("row"), py::arg("times"));
}

}  // namespace trn
