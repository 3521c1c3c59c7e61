// Gives the recorder to Python, and finds the line of Python that launches.
#include "recorder.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string_view>
#include <unordered_map>

namespace py = pybind11;

namespace trn {
namespace {

// Numbers the source lines that launch. The GIL guards it.
class Sites {
 public:
  // Frames of files below these folders are skipped.
  void set_library(std::vector<std::string> folders) { library_ = std::move(folders); }

  // The innermost line outside the library, of the Python that runs on this thread.
  int32_t find() {
    if (!Py_IsInitialized()) return -1;
    py::gil_scoped_acquire gil;
    PyFrameObject* frame = PyThreadState_GetFrame(PyThreadState_Get());
    while (frame != nullptr) {
      PyCodeObject* code = PyFrame_GetCode(frame);
      if (mine(code)) {
        const int32_t number = number_of(code, PyFrame_GetLineNumber(frame));
        Py_DECREF(code);
        Py_DECREF(frame);
        return number;
      }
      Py_DECREF(code);
      PyFrameObject* back = PyFrame_GetBack(frame);
      Py_DECREF(frame);
      frame = back;
    }
    return -1;
  }

  py::list table() const {
    py::list out;
    for (const auto& [code, line] : sites_) {
      const auto* c = reinterpret_cast<PyCodeObject*>(code.ptr());
      out.append(py::make_tuple(py::reinterpret_borrow<py::str>(c->co_filename), line,
                                py::reinterpret_borrow<py::str>(c->co_name)));
    }
    return out;
  }

 private:
  bool mine(PyCodeObject* code) {
    const auto [known, fresh] = user_.try_emplace(code, false);
    if (!fresh) return known->second;
    kept_.push_back(py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(code)));
    const auto file = py::reinterpret_borrow<py::str>(code->co_filename).cast<std::string>();
    known->second = file.empty() || file[0] != '<';
    for (const std::string& folder : library_) known->second &= file.rfind(folder, 0) != 0;
    return known->second;
  }

  int32_t number_of(PyCodeObject* code, int line) {
    auto& lines = numbers_[code];
    const auto [known, fresh] = lines.try_emplace(line, int32_t(sites_.size()));
    if (fresh) {
      sites_.emplace_back(py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(code)),
                          line);
    }
    return known->second;
  }

  std::vector<std::string> library_;
  std::unordered_map<PyCodeObject*, bool> user_;
  std::vector<py::object> kept_;  // so that no address is used again
  std::unordered_map<PyCodeObject*, std::unordered_map<int, int32_t>> numbers_;
  std::vector<std::pair<py::object, int>> sites_;
};

Sites& sites() {
  static auto* all = new Sites;  // outlives the interpreter
  return *all;
}

int64_t number(const void* pointer) { return int64_t(reinterpret_cast<uintptr_t>(pointer)); }

// Rows of integers, in the order of torch_trn_emu/profiler/recording.py.
py::tuple rows(const Recording& recording) {
  py::list launches, scopes, blocks;
  std::unordered_map<const LaunchRow*, int64_t> numbers;
  py::list signatures;
  for (const LaunchRecord& r : recording.launches) {
    const auto [known, fresh] = numbers.try_emplace(r.launch.row, int64_t(numbers.size()));
    if (fresh) {
      const LaunchRow& row = *r.launch.row;
      signatures.append(py::make_tuple(row.op, row.signature, row.price.row, row.price.device_ns));
    }
    launches.append(py::make_tuple(known->second, int(r.launch.device), r.launch.stream,
                                   r.launch.host_ns, r.launch.dispatch_ns, r.launch.start_ns,
                                   r.launch.idle_ns, int(r.origin.phase), r.origin.scope,
                                   r.origin.node, r.origin.thread, number(r.origin.leaf),
                                   r.origin.next_node, r.origin.site));
  }
  for (const ScopeRecord& r : recording.scopes)
    scopes.append(py::make_tuple(r.thread, r.node, r.scope));
  for (const BlockRecord& r : recording.blocks) {
    blocks.append(
        py::make_tuple(number(r.block), r.bytes, r.launches, int(r.device), int(r.kind), r.size));
  }
  return py::make_tuple(signatures, launches, scopes, blocks, recording.left_out);
}

}  // namespace

void bind_recorder(py::module_& m) {
  m.def("start_recording", &recorder::start, py::arg("sites"), py::arg("limit"));
  m.def("stop_recording", [] { return rows(recorder::stop()); });
  m.def("enter_scope", [](int32_t scope, int phase) { recorder::enter(scope, Phase(phase)); });
  m.def("leave_scope", &recorder::leave);
  m.def("mark_blocks", [](const std::vector<uintptr_t>& blocks, int kind) {
    for (const uintptr_t block : blocks)
      recorder::mark(reinterpret_cast<const void*>(block), int8_t(kind));  // NOLINT
  });
  m.def("find_sites_outside", [](std::vector<std::string> folders) {
    sites().set_library(std::move(folders));
    recorder::set_site_finder([] { return sites().find(); });
  });
  m.def("sites", [] { return sites().table(); });
  m.def("host_ns", [](int device) { return SimulatedClock::host_ns(c10::DeviceIndex(device)); });
}

}  // namespace trn
