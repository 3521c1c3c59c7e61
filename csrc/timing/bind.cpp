// Gives the scheduler to Python. Compiled with the bindings, the only part that knows Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "timing/schedule.h"

namespace trn::timing {
namespace py = pybind11;

namespace {

// Schedules the program in `code`, without the GIL.
Schedule scheduled(const py::buffer& code, Options options) {
  const py::buffer_info info = code.request();
  if (info.itemsize != sizeof(std::int64_t) || info.ndim != 1) {
    throw py::value_error("timing.schedule: the program is an array of int64");
  }
  const std::span<const std::int64_t> words(static_cast<const std::int64_t*>(info.ptr),
                                            static_cast<std::size_t>(info.size));
  py::gil_scoped_release unlocked;
  return schedule(words, options);
}

}  // namespace

void bind_timing(py::module_& m) {
  m.def(
      "schedule",
      [](const py::buffer& code, bool extrapolate, std::size_t trace_limit) {
        const Schedule s = scheduled(code, {extrapolate, trace_limit, 0});
        py::list instructions, records;
        for (const Totals& t : s.instructions) {
          instructions.append(py::make_tuple(t.count, t.busy, t.wait, t.span));
        }
        for (const Record& r : s.records) {
          records.append(py::make_tuple(r.instruction, r.start, r.end));
        }
        return py::make_tuple(s.total, instructions, s.dma_engine_busy, s.hbm_busy, s.table_loads,
                              s.simulated, records);
      },
      py::arg("code"), py::arg("extrapolate") = true, py::arg("trace_limit") = 0,
      "Schedule an encoded program; see torch_trn_emu/timing.");
  m.def(
      "schedule_lanes",
      [](const py::buffer& code, std::size_t limit) {
        py::list lanes;
        for (const Lane& lane : scheduled(code, {false, 0, limit}).lanes) {
          py::list spans;
          for (const Span& s : lane.spans()) {
            spans.append(py::make_tuple(s.instruction, s.alike, s.start, s.end, s.busy, s.count));
          }
          lanes.append(spans);
        }
        return lanes;
      },
      py::arg("code"), py::arg("limit"),
      "The spans of each queue of an encoded program, merged to at most twice `limit`.");
}

}  // namespace trn::timing
