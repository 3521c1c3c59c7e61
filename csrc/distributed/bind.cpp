// Gives the backend to Python, and what it asks of Python to the backend.
#include "backend.h"
#include "hooks.h"

#include "runtime/collective_clock.h"

#include <pybind11/chrono.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>

namespace py = pybind11;

namespace trn {
namespace {

using Store = c10::intrusive_ptr<c10d::Store>;

// Ctrl-C, on the thread that Python gives it to.
void check_interrupt() {
  if (!Py_IsInitialized()) return;
  py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() == 0) return;
  python_error error;
  error.persist();
  throw error;
}

void without_python(const std::function<void()>& wait) {
  if (!Py_IsInitialized() || PyGILState_Check() == 0) return wait();
  py::gil_scoped_release released;
  wait();
}

CollectivePrice ask(const py::function& price, const char* op, int64_t bytes,
                    const std::vector<int64_t>& ranks, bool in_graph) {
  py::gil_scoped_acquire gil;
  const auto [ns, row] = price(op, bytes, ranks, in_graph).cast<std::pair<int64_t, int64_t>>();
  return {ns, row};
}

void bind_hooks(py::module_& m) {
  auto& hooks = collective_hooks();
  hooks.check_interrupt = &check_interrupt;
  hooks.without_python = &without_python;
  m.def("set_transport", [](std::string name) { collective_hooks().transport = std::move(name); });
  m.def("set_backend_name", [](std::string name) { collective_hooks().backend = std::move(name); });
  m.def("set_collective_pricer", [](py::function price) {
    auto* kept = new py::function(std::move(price));  // outlives the interpreter
    collective_hooks().price = [kept](const char* op, int64_t bytes,
                                      const std::vector<int64_t>& ranks, bool in_graph) {
      return ask(*kept, op, bytes, ranks, in_graph);
    };
  });
  m.def("set_gloo_maker", [](py::function make) {
    auto* kept = new py::function(std::move(make));
    collective_hooks().make_gloo = [kept](Store store, int rank, int size,
                                          std::chrono::milliseconds timeout) {
      py::gil_scoped_acquire gil;
      return (*kept)(store, rank, size, timeout).cast<c10::intrusive_ptr<c10d::Backend>>();
    };
  });
  m.def("end_groups", &Backend::end_all, py::call_guard<py::gil_scoped_release>());
  // (row, count, active_ns, exposed_ns)
  m.def("collective_rows", [](int device) {
    std::vector<std::tuple<int64_t, int64_t, int64_t, int64_t>> rows;
    for (const auto& [row, t] : CollectiveClock::rows(c10::DeviceIndex(device)))
      rows.emplace_back(row, t.count, t.active_ns, t.exposed_ns);
    return rows;
  });
  m.def(
      "start_collective_log",
      [](int device, size_t limit) { CollectiveClock::start_log(c10::DeviceIndex(device), limit); },
      py::arg("device"), py::arg("limit"));
  // In the order of torch_trn_emu/profiler/communication.py.
  m.def("stop_collective_log", [](int device) {
    py::list rows;
    for (const auto& c : CollectiveClock::stop_log(c10::DeviceIndex(device)))
      rows.append(py::make_tuple(c->row, c->group, c->sequence, c->what, c->arrivals_ns,
                                 c->arrival_ns, c->start_ns, c->end_ns, c->exposed_ns));
    return rows;
  });
}

}  // namespace

// Needs torch.distributed to be there: its classes are the bases.
void bind_distributed(py::module_& m) {
  bind_hooks(m);
  m.def("bind_backend", [](py::module_ into) {
    if (py::hasattr(into, "ProcessGroupTrn")) return;
    py::module_::import("torch._C._distributed_c10d");
    py::class_<BackendOptions, c10::intrusive_ptr<BackendOptions>, c10d::Backend::Options> options(
        into, "Options");
    options.def(py::init<std::chrono::milliseconds>(), py::arg("timeout") = kBackendDefaultTimeout)
        .def_readwrite("is_high_priority_stream", &BackendOptions::is_high_priority_stream)
        .def_readwrite("split_from", &BackendOptions::split_from)
        .def_readwrite("split_color", &BackendOptions::split_color)
        .def("__copy__",
             [](const BackendOptions& o) { return c10::make_intrusive<BackendOptions>(o); })
        .def("__deepcopy__", [](const BackendOptions& o, const py::dict&) {
          return c10::make_intrusive<BackendOptions>(o);
        });
    const auto free = py::call_guard<py::gil_scoped_release>();
    py::class_<Backend, c10::intrusive_ptr<Backend>, c10d::Backend>(into, "ProcessGroupTrn")
        .def(py::init([](Store store, int rank, int size, c10::intrusive_ptr<BackendOptions> opts) {
               return c10::make_intrusive<Backend>(std::move(store), rank, size, std::move(opts));
             }),
             py::arg("store"), py::arg("rank"), py::arg("size"), py::arg("options"), free)
        .def_property_readonly("options", &Backend::options)
        .def_property_readonly("transport", &Backend::transport)
        .def("get_error", &Backend::getError, free)
        .def("_start_time_estimate", &Backend::start_time_estimate)
        .def("_end_time_estimate", &Backend::end_time_estimate)
        .def("perform_nocolor_split", [](Backend&, const py::object&) {})
        .def("eager_connect_single_device", [](Backend&, const py::object&) {})
        .def("_set_default_timeout", &Backend::setTimeout, py::arg("timeout"))
        .def("abort", &Backend::abort, free)
        .def("shutdown", &Backend::shutdown, free);
  });
}

}  // namespace trn
