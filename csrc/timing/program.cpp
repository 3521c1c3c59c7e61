#include "timing/program.h"

#include <algorithm>
#include <set>
#include <stdexcept>

namespace trn::timing {
namespace {

class Reader {
 public:
  explicit Reader(std::span<const std::int64_t> code) : code_(code) {}

  std::int64_t next() {
    if (at_ >= code_.size()) throw std::invalid_argument("timing: the encoded program ends early");
    return code_[at_++];
  }

  std::size_t below(std::size_t limit) {
    const std::int64_t value = next();
    if (value < 0 || static_cast<std::size_t>(value) >= limit) {
      throw std::invalid_argument("timing: an index of the encoded program is out of range");
    }
    return static_cast<std::size_t>(value);
  }

  std::size_t count() { return below(std::size_t{1} << 40); }

  bool at_end() const { return at_ == code_.size(); }

 private:
  std::span<const std::int64_t> code_;
  std::size_t at_ = 0;
};

AccessSpec read_access(Reader& in, const Encoded& program) {
  AccessSpec access{};
  access.write = in.next() != 0;
  access.buffer = in.below(program.buffers.size());
  access.part = in.next();
  const std::int64_t slots = program.buffers[access.buffer].slots;
  access.age = static_cast<std::int64_t>(in.below(static_cast<std::size_t>(slots)));
  access.terms.resize(in.count());
  for (Term& term : access.terms) {
    term.loop = in.below(program.loops);
    term.coefficient = in.next();
  }
  return access;
}

InstructionSpec read_instruction(Reader& in, const Encoded& program) {
  InstructionSpec i{};
  i.queue = static_cast<std::int64_t>(in.below(program.queues));
  for (auto* field :
       {&i.busy, &i.latency, &i.table, &i.ports, &i.engines, &i.engine_busy, &i.hbm_busy}) {
    *field = in.next();
  }
  if (i.engines < 0 || i.engines > program.constants.dma_engines) {
    throw std::invalid_argument("timing: a transfer asks for more DMA engines than there are");
  }
  i.accesses.resize(in.below(kMaxAccesses + 1));
  for (AccessSpec& access : i.accesses) {
    access = read_access(in, program);
  }
  return i;
}

// Fills the facts of the loop at `at` from its body. Returns the dynamic instructions of the node.
double gather(Encoded& program, std::size_t at, std::set<std::size_t>& queues,
              std::set<std::size_t>& buffers, std::set<std::size_t>& part_loops) {
  const Node& node = program.nodes[at];
  if (node.kind == NodeKind::kFresh || node.kind == NodeKind::kTake) {
    buffers.insert(node.index);
    return 0;
  }
  if (node.kind == NodeKind::kInstruction) {
    const InstructionSpec& i = program.instructions[node.index];
    queues.insert(static_cast<std::size_t>(i.queue));
    for (const AccessSpec& access : i.accesses) {
      buffers.insert(access.buffer);
      for (const Term& term : access.terms) {
        if (term.coefficient != 0) part_loops.insert(term.loop);
      }
    }
    return 1;
  }
  std::set<std::size_t> own_queues, own_buffers, own_part_loops;
  double instructions = 0;
  for (std::size_t k = at + 1; k <= at + node.length;) {
    instructions += gather(program, k, own_queues, own_buffers, own_part_loops);
    k += 1 + (program.nodes[k].kind == NodeKind::kLoop ? program.nodes[k].length : 0);
  }
  LoopFacts& facts = program.facts[at];
  facts.moves_parts = own_part_loops.contains(node.index);
  facts.instructions = instructions * static_cast<double>(node.trip);
  facts.queues.assign(own_queues.begin(), own_queues.end());
  facts.buffers.assign(own_buffers.begin(), own_buffers.end());
  queues.merge(own_queues);
  buffers.merge(own_buffers);
  part_loops.merge(own_part_loops);
  return facts.instructions;
}

void read_nodes(Reader& in, Encoded& program, std::size_t count) {
  program.nodes.resize(count);
  for (std::size_t k = 0; k < count; ++k) {
    Node& node = program.nodes[k];
    node.kind = static_cast<NodeKind>(in.below(kNodeKinds));
    const std::size_t limits[kNodeKinds] = {program.loops, program.instructions.size(),
                                            program.buffers.size(), program.buffers.size()};
    node.index = in.below(limits[static_cast<std::size_t>(node.kind)]);
    node.trip = in.next();
    if (node.kind == NodeKind::kTake &&
        (node.trip < 0 || static_cast<std::size_t>(node.trip) >= program.buffers.size())) {
      throw std::invalid_argument("timing: a buffer takes the memory of one that is not there");
    }
    node.length = in.count();
    if (node.length > count - k - 1) {
      throw std::invalid_argument("timing: a loop of the encoded program has no end");
    }
  }
}

}  // namespace

Encoded decode(std::span<const std::int64_t> code) {
  Reader in(code);
  Encoded program;
  if (in.next() != kEncoding) throw std::invalid_argument("timing: unknown encoding");
  program.queues = in.count();
  if (program.queues < kEngineQueues) throw std::invalid_argument("timing: an engine is missing");
  program.loops = in.count();
  program.buffers.resize(in.count());
  program.instructions.resize(in.count());
  const std::size_t nodes = in.count();
  Constants& c = program.constants;
  for (auto* field : {&c.semaphore, &c.dma_issue, &c.dma_start, &c.dma_completion, &c.table_load,
                      &c.dma_engines, &c.warm_up}) {
    *field = in.next();
  }
  for (BufferSpec& buffer : program.buffers) {
    buffer.parts = in.next();
    buffer.slots = in.next();
    buffer.ordered = in.next() != 0;
    buffer.memory = in.below(kMemories);
    buffer.bytes = in.next();
    buffer.first_region = program.regions;
    if (buffer.parts < 1 || buffer.slots < 1) throw std::invalid_argument("timing: empty buffer");
    program.regions += static_cast<std::size_t>(buffer.parts * buffer.slots);
  }
  for (InstructionSpec& i : program.instructions) i = read_instruction(in, program);
  read_nodes(in, program, nodes);
  if (!in.at_end()) throw std::invalid_argument("timing: the encoded program is too long");
  program.facts.resize(nodes);
  std::set<std::size_t> queues, buffers, part_loops;
  for (std::size_t k = 0; k < nodes;) {
    gather(program, k, queues, buffers, part_loops);
    k += 1 + (program.nodes[k].kind == NodeKind::kLoop ? program.nodes[k].length : 0);
  }
  return program;
}

}  // namespace trn::timing
