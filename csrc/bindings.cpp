// What Python sees of the C++ side. The only file that includes Python.
#include "aten/accelerated.h"
#include "aten/host_pool.h"
#include "aten/missing_dtypes.h"
#include "aten/product_roles.h"
#include "aten/rounding_mode.h"
#include "runtime/allocator.h"
#include "runtime/device.h"
#include "runtime/generator.h"
#include "runtime/graph.h"
#include "runtime/hbm.h"
#include "runtime/hooks.h"
#include "runtime/host.h"
#include "runtime/ledger.h"
#include "runtime/listing.h"
#include "runtime/profiler_stubs.h"
#include "runtime/stream.h"

#include "numerics/isa.h"

#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/Generator.h>
#include <torch/csrc/utils/device_lazy_init.h>

namespace py = pybind11;

namespace trn::timing {
void bind_timing(py::module_& m);  // timing/bind.cpp
}

namespace trn {
void bind_recorder(py::module_& m);     // runtime/bind.cpp
void bind_graphs(py::module_& m);       // aten/bind.cpp
void bind_distributed(py::module_& m);  // distributed/bind.cpp
namespace {

// torch's errors become the Python exceptions that torch's own functions raise, without the C++
// stack.
void translate(std::exception_ptr error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const c10::Error&) {
    torch::translate_exception_to_python(error);
  }
}

py::dict memory_stats(int device) {
  const HbmStats s = hbm(device).stats();
  py::dict out;
  out["capacity_bytes"] = s.capacity;
  out["allocated_bytes"] = s.allocated;
  out["allocated_bytes_peak"] = s.allocated_peak;
  out["reserved_bytes"] = s.reserved;
  out["reserved_bytes_peak"] = s.reserved_peak;
  out["allocated_bytes_total"] = s.total_allocated;
  out["freed_bytes_total"] = s.total_freed;
  out["blocks"] = s.blocks;
  out["blocks_peak"] = s.blocks_peak;
  out["allocations"] = s.allocations;
  out["frees"] = s.frees;
  out["ooms"] = s.ooms;
  out["retries"] = s.retries;
  return out;
}

// (address, bytes, bytes of a block, [whether each block is live]) of what the pool holds.
py::list memory_segments(int device) {
  py::list rows;
  for (const HbmSegment& segment : hbm(device).segments()) {
    py::list live;
    for (const bool block : segment.live) live.append(block);
    rows.append(py::make_tuple(segment.address, segment.bytes, segment.block_bytes, live));
  }
  return rows;
}

void bind_device(py::module_& m) {
  m.def(
      "configure",
      [](std::string name, int device_count, size_t hbm_bytes, int64_t dispatch_ns,
         const std::string& host) {
        choose_host(host);
        configure({std::move(name), device_count, hbm_bytes, dispatch_ns});
      },
      py::arg("name"), py::arg("device_count"), py::arg("hbm_bytes"), py::arg("dispatch_ns"),
      py::arg("host") = "cpu");
  m.def("set_missing_dtypes", &set_missing_dtypes);
  m.def("register_accelerated", &register_accelerated, py::arg("names"));
  m.def("answer_to_cuda_profiler", &answer_to_cuda_profiler);
  m.def(
      "set_graph_hooks",
      [](std::function<void(int64_t)> begin, std::function<void(int64_t)> end,
         std::function<void(int64_t)> replay, std::function<void(int64_t)> reset,
         std::function<void(int64_t, const std::string&)> dump) {
        set_graph_hooks({std::move(begin), std::move(end), std::move(replay), std::move(reset),
                         std::move(dump)});
      },
      py::arg("begin"), py::arg("end"), py::arg("replay"), py::arg("reset"), py::arg("dump"));
  m.def("limit_isa", [](int level) { numerics::limit_isa(numerics::Isa(level)); });
  m.def("isa", [] { return int(numerics::isa()); });
  m.def("device_count", &device_count);
  m.def("current_device", &current_device);
  m.def("check_index", [](int64_t device) { check_index(device); });
  m.def("exchange_device", [](int64_t device) {
    check_index(device);
    return int(exchange_device(c10::DeviceIndex(device)));
  });
  m.def("hbm_in_use", &hbm_in_use);
  m.def("memory_stats", &memory_stats);
  m.def("live_blocks", [](int device, size_t limit) { return hbm(device).live_blocks(limit); });
  m.def("memory_segments", &memory_segments);
  m.def("memory_limit", [](int device) { return hbm(device).limit(); });
  m.def("set_memory_limit", [](int device, size_t bytes) { hbm(device).set_limit(bytes); });
  m.def("reset_peak", [](int device) { hbm(device).reset_peak(); });
  m.def("reset_accumulated", [](int device) { hbm(device).reset_accumulated(); });
  m.def("empty_cache", [] { device_allocator()->emptyCache(); });
  m.def("assume_host_memory",
        [](std::optional<size_t> bytes) { assume_host_memory(bytes.value_or(SIZE_MAX)); });
  m.def("is_in_bad_fork", [] { return torch::utils::is_device_in_bad_fork(kTrn); });
  m.def("register_fork_handler", [] { torch::utils::register_fork_handler_for_device_init(kTrn); });
  m.def("default_generator", [](int device) {
    return py::reinterpret_steal<py::object>(
        THPGenerator_Wrap(default_generator(c10::DeviceIndex(device))));
  });
}

bool finalizing() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

// Never throws: an error in the price must not break the user's operator.
Price ask(const py::function& price, const PricedCall& call) {
  if (!Py_IsInitialized() || finalizing()) return {};
  py::gil_scoped_acquire gil;
  py::error_scope kept;
  try {
    const auto [ns, row, free, blocks] = price(call.op, call.arguments, call.results, call.policy)
                                             .cast<std::tuple<int64_t, int64_t, bool, bool>>();
    return {ns, row, free, blocks};
  } catch (py::error_already_set& error) {
    if (error.matches(PyExc_KeyboardInterrupt))
      PyErr_SetInterrupt();  // again, where it can be raised: no kernel is half done
    else
      error.discard_as_unraisable("pricing an operator");
  } catch (const std::exception&) {  // a result that is no price
  }
  return {};
}

void bind_ledger(py::module_& m) {
  m.def("launches", [](int device) {
    std::vector<std::tuple<std::string, std::string, int64_t, int64_t, int64_t>> out;
    for (LaunchRow& row : Ledger::of(c10::DeviceIndex(device)).rows()) {
      out.emplace_back(std::move(row.op), std::move(row.signature), row.launches,
                       row.price.device_ns, row.price.row);
    }
    return out;
  });
  m.def("pause_ledger", [](bool paused) { return Ledger::pause(paused); });
  m.def("list_launches", [](bool listing) {
    std::vector<std::tuple<std::string, int64_t, int64_t>> out;
    for (const LaunchRow& row : list_launches(listing)) {
      if (!row.price.free) out.emplace_back(row.op, row.price.device_ns, row.price.row);
    }
    return out;
  });
  m.def("core_times", [](int device) {
    const CoreTimes times = Ledger::of(c10::DeviceIndex(device)).times();
    return std::tuple(times.dispatch_ns, times.busy_ns, times.idle_ns);
  });
  m.def("set_pricer", [](py::function price) {
    auto* kept = new py::function(std::move(price));  // outlives the interpreter
    set_pricer([kept](const PricedCall& call) { return ask(*kept, call); });
  });
  m.def("reset_launches", [](int device) { Ledger::of(c10::DeviceIndex(device)).reset(); });
  m.def("synchronize", [](int device) { SimulatedClock::synchronize(c10::DeviceIndex(device)); });
}

void bind_policy(py::module_& m) {
  m.def("policy_names", &policy_names);
  m.def("operand_format_names", &operand_format_names);
  m.def("operand_formats", [](int policy, int matmul_class, int weight) {
    const OperandFormats f = formats_of(Policy(policy), {MatmulClass(matmul_class), weight});
    return std::pair(int(f.first), int(f.second));
  });
  m.def("current_policy", [] { return int(current_policy()); });
  m.def("set_process_policy", [](int policy) { set_process_policy(Policy(policy)); });
  m.def("exchange_thread_policy", &exchange_thread_policy);
  m.def("set_stochastic_rounding", &set_stochastic_rounding, py::arg("enabled"), py::arg("seed"));
  m.def("restart_rounding", &restart_rounding, py::arg("seed"));
}

}  // namespace
}  // namespace trn

PYBIND11_MODULE(_C, m) {
  m.doc() = "The C++ side of torch_trn_emu.";
  py::register_local_exception_translator(&trn::translate);
  trn::install_allocators();
  trn::share_thread_pool();
  trn::register_hooks();
  torch::utils::set_requires_device_init(trn::kTrn, true);
  trn::bind_device(m);
  trn::bind_ledger(m);
  trn::bind_recorder(m);
  trn::bind_policy(m);
  trn::bind_graphs(m);
  trn::bind_distributed(m);
  trn::timing::bind_timing(m);
}
