// The encoded Program, unpacked. The layout is that of torch_trn_emu/timing/encode.py.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace trn::timing {

constexpr std::int64_t kEncoding = 4;  // version of the layout
constexpr int kPorts = 2;
constexpr std::int64_t kTensorQueue = 0;
constexpr std::size_t kEngineQueues = 5;  // the first queues; the others are of DMA
constexpr std::size_t kMemories = 3;      // HBM, SBUF, PSUM
constexpr std::size_t kMaxAccesses = 16;  // of one instruction

struct Constants {
  std::int64_t semaphore, dma_issue, dma_start, dma_completion, table_load, dma_engines;
  std::int64_t warm_up;  // of the Tensor engine, at half duty; 0 if it does not throttle
};

struct BufferSpec {
  std::int64_t parts, slots;
  bool ordered;        // write after read and write after write wait; not so in HBM, but in place
  std::size_t memory;  // 0 HBM, 1 SBUF, 2 PSUM
  std::int64_t bytes;  // per partition, of all parts and slots; on chip
  std::size_t first_region;
};

struct Term {
  std::size_t loop;
  std::int64_t coefficient;
};

struct AccessSpec {
  bool write;
  std::size_t buffer;
  std::int64_t part;
  std::int64_t age;  // slots back from the current one
  std::vector<Term> terms;
};

struct InstructionSpec {
  std::int64_t queue, busy, latency, table, ports;
  std::int64_t engines, engine_busy, hbm_busy;  // of a DMA; engines is 0 for the others
  std::vector<AccessSpec> accesses;
};

enum class NodeKind : std::int64_t { kLoop = 0, kInstruction = 1, kFresh = 2, kTake = 3 };
constexpr std::size_t kNodeKinds = 4;

struct Node {
  NodeKind kind;
  std::size_t index;   // loop counter, instruction or buffer
  std::int64_t trip;   // of a loop; of a take the buffer that is taken
  std::size_t length;  // nodes in a loop's body
};

// What a loop touches, found once.
struct LoopFacts {
  bool moves_parts = false;  // the counter chooses a part: iterations differ
  double instructions = 0;   // dynamic, of the whole loop
  std::vector<std::size_t> queues, buffers;
};

struct Encoded {
  Constants constants{};
  std::size_t queues = 0, loops = 0, regions = 0;
  std::vector<BufferSpec> buffers;
  std::vector<InstructionSpec> instructions;
  std::vector<Node> nodes;
  std::vector<LoopFacts> facts;  // by node index; empty entries for what is not a loop
};

// Throws std::invalid_argument for a malformed encoding.
Encoded decode(std::span<const std::int64_t> code);

}  // namespace trn::timing
