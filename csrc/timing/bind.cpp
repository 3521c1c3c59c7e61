// Gives the scheduler to Python. Compiled with the bindings, the only part that knows Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>

#include "timing/graph.h"
#include "timing/program.h"
#include "timing/schedule.h"

namespace trn::timing {
namespace py = pybind11;

namespace {

std::span<const std::int64_t> words_of(const py::buffer_info& info) {
  if (info.itemsize != sizeof(std::int64_t) || info.ndim != 1) {
    throw py::value_error("timing: programs and graphs are arrays of int64");
  }
  return {static_cast<const std::int64_t*>(info.ptr), static_cast<std::size_t>(info.size)};
}

// Schedules the program in `code`, without the GIL.
Schedule scheduled(const py::buffer& code, Options options) {
  const py::buffer_info info = code.request();
  const std::span<const std::int64_t> words = words_of(info);
  py::gil_scoped_release unlocked;
  return schedule(words, options);
}

py::list totals_of(const std::vector<Totals>& instructions) {
  py::list out;
  for (const Totals& t : instructions) out.append(py::make_tuple(t.count, t.busy, t.wait, t.span));
  return out;
}

py::list spans_of(const Lane& lane) {
  py::list out;
  for (const Span& s : lane.spans()) {
    out.append(py::make_tuple(s.instruction, s.alike, s.start, s.end, s.busy, s.count));
  }
  return out;
}

// Reads the words that torch_trn_emu/timing/graph.py writes.
class GraphReader {
 public:
  explicit GraphReader(std::span<const std::int64_t> words) : words_(words) {}

  void read(Graph& graph) {
    for (std::int64_t& bytes : graph.capacity) bytes = next();
    graph.ordered.resize(count());
    for (char& ordered : graph.ordered) ordered = next() != 0;
    graph.repeats.resize(count());
    for (Repeat& r : graph.repeats) r = Repeat{count(), count(), count()};
    graph.parts.resize(count());
    for (Part& p : graph.parts) {
      p.program = count();
      if (p.program >= graph.programs.size()) throw py::value_error("timing: no such program");
      p.links.resize(count());
      for (Link& link : p.links) {
        link.buffer = count();
        link.tensor = count();
        const std::int64_t flags = next();
        link.reads = (flags & 1) != 0;
        link.writes = (flags & 2) != 0;
      }
    }
  }

 private:
  std::int64_t next() {
    if (at_ >= words_.size()) throw py::value_error("timing: the graph ends early");
    return words_[at_++];
  }

  std::size_t count() {
    const std::int64_t value = next();
    if (value < 0 || value > (std::int64_t{1} << 40)) throw py::value_error("timing: no count");
    return static_cast<std::size_t>(value);
  }

  std::span<const std::int64_t> words_;
  std::size_t at_ = 0;
};

constexpr char kProgram[] = "torch_trn_emu.timing.program";

// A decoded program as a capsule, which may outlive pybind11's own types when Python ends.
py::object decoded(const py::buffer& code) {
  const py::buffer_info info = code.request();
  auto program = std::make_unique<Encoded>(decode(words_of(info)));
  py::capsule made(program.get(), kProgram, [](void* held) { delete static_cast<Encoded*>(held); });
  program.release();
  return made;
}

py::tuple schedule_graph(const py::list& programs, const py::buffer& words, bool extrapolate,
                         std::size_t lane_limit) {
  Graph graph;
  for (const py::handle& held : programs) {
    const void* program = PyCapsule_GetPointer(held.ptr(), kProgram);
    if (program == nullptr) throw py::error_already_set();
    graph.programs.push_back(static_cast<const Encoded*>(program));
  }
  const py::buffer_info info = words.request();
  GraphReader(words_of(info)).read(graph);
  GraphSchedule s;
  {
    py::gil_scoped_release unlocked;
    s = schedule(graph, {extrapolate, 0, lane_limit});
  }
  py::list parts, sums, lanes;
  for (const PartTimes& t : s.parts) parts.append(py::make_tuple(t.start, t.end, t.added));
  for (const ProgramSums& p : s.programs) {
    sums.append(py::make_tuple(p.parts, totals_of(p.instructions), p.dma_engine_busy, p.hbm_busy,
                               p.table_loads, p.simulated));
  }
  for (const std::vector<Lane>& of_part : s.lanes) {
    py::list queues;
    for (const Lane& lane : of_part) queues.append(spans_of(lane));
    lanes.append(queues);
  }
  return py::make_tuple(s.total, parts, sums, lanes);
}

}  // namespace

void bind_timing(py::module_& m) {
  m.def("decode_program", &decoded, py::arg("code"),
        "An encoded program as `schedule_graph` takes it.");
  m.def("schedule_graph", &schedule_graph, py::arg("programs"), py::arg("words"),
        py::arg("extrapolate") = true, py::arg("lane_limit") = 0,
        "Schedule the programs of a graph as one; see torch_trn_emu/timing/graph.py.");
  m.def(
      "schedule",
      [](const py::buffer& code, bool extrapolate, std::size_t trace_limit) {
        const Schedule s = scheduled(code, {extrapolate, trace_limit, 0});
        py::list records;
        for (const Record& r : s.records) {
          records.append(py::make_tuple(r.instruction, r.start, r.end));
        }
        return py::make_tuple(s.total, totals_of(s.instructions), s.dma_engine_busy, s.hbm_busy,
                              s.table_loads, s.simulated, records);
      },
      py::arg("code"), py::arg("extrapolate") = true, py::arg("trace_limit") = 0,
      "Schedule an encoded program; see torch_trn_emu/timing.");
  m.def(
      "schedule_lanes",
      [](const py::buffer& code, std::size_t limit) {
        py::list lanes;
        for (const Lane& lane : scheduled(code, {false, 0, limit}).lanes) {
          lanes.append(spans_of(lane));
        }
        return lanes;
      },
      py::arg("code"), py::arg("limit"),
      "The spans of each queue of an encoded program, merged to at most twice `limit`.");
}

}  // namespace trn::timing
