// See graph.h. Checked on torch 2.13.0.
#include "graph.h"

#include <ATen/core/GraphImplInterface.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <utility>

namespace trn {
namespace {

GraphHooks& hooks() {
  static auto* all = new GraphHooks;  // holds Python functions: outlives the interpreter
  return *all;
}

std::atomic<int64_t> captured_now{0};  // the number of the graph; 0 while there is none

class Graph final : public at::GraphImplInterface {
 public:
  explicit Graph(const at::GraphImplArgs&) {}
  ~Graph() override { Graph::reset(); }
  void capture_begin(at::MempoolId_t pool, at::GraphCaptureMode) override {
    TORCH_CHECK(!captured_, "This graph already holds a capture: reset() it first.");
    if (pool != at::MempoolId_t{0, 0}) pool_ = pool;
    hooks().begin(number_);
    capturing_ = true;
    captured_now = number_;
  }
  void capture_end() override {
    TORCH_CHECK(capturing_, "No capture to end: capture_begin() first.");
    stop();
    hooks().end(number_);
    captured_ = true;
  }
  void instantiate() override { check_captured(); }  // what was captured is what runs
  void replay() override {
    check_captured();
    hooks().replay(number_);
  }
  void reset() override {
    const bool holds = captured_ || capturing_;
    captured_ = false;
    if (capturing_) stop();
    if (holds) hooks().reset(number_);
  }
  at::MempoolId_t pool() const override { return pool_; }
  void enable_debug_mode() override {}
  void debug_dump(const std::string& path) override {
    check_captured();
    hooks().dump(number_, path);
  }

 private:
  void stop() {
    capturing_ = false;
    captured_now = 0;
  }
  void check_captured() const {
    TORCH_CHECK(captured_, "This graph holds no capture: capture_begin() and capture_end() first.");
  }
  static int64_t next_number() {
    static std::atomic<int64_t> next{1};
    return next++;
  }

  const int64_t number_ = next_number();
  at::MempoolId_t pool_{0, uint64_t(number_)};
  bool captured_ = false, capturing_ = false;
};

}  // namespace

bool capturing() { return captured_now != 0; }

void set_graph_hooks(GraphHooks given) {
  hooks() = std::move(given);
  auto* registry = at::GraphImplRegistry();
  if (!registry->Has("TRN")) {
    registry->Register("TRN", [](const at::GraphImplArgs& args) {
      return std::unique_ptr<at::GraphImplInterface>(std::make_unique<Graph>(args));
    });
  }
}

}  // namespace trn
