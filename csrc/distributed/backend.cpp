// See backend.h. How a call is compared, run and timed; what becomes of a group that fails.
#include "backend.h"

#include "param_comms.h"
#include "reduce.h"
#include "rendezvous.h"
#include "runtime/collective_clock.h"
#include "runtime/graph_schedule.h"
#include "runtime/stream.h"

#include <c10/core/ScalarType.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <set>
#include <sstream>

namespace trn {
namespace {

std::mutex all_mutex;
std::set<collectives::Transport*>& all_transports() {
  static auto* all = new std::set<collectives::Transport*>;
  return *all;
}

// Cheap, since every call does it: no streams.
std::string describe(const char* name, uint64_t sequence, int32_t dtype, uint64_t elements,
                     int32_t reduce, int32_t root) {
  std::string text;
  text.reserve(64);
  text.append(name).append(" #").append(std::to_string(sequence)).append(" ");
  text.append(c10::getDtypeNames(c10::ScalarType(dtype)).first);
  text.append("[").append(std::to_string(elements)).append("]");
  if (reduce >= 0) text.append(" ").append(name_of(c10d::ReduceOp::RedOpType(reduce)));
  if (root >= 0) text.append(" root ").append(std::to_string(root));
  return text;
}

std::vector<int64_t> ranks_of_world(const BackendOptions& options, int size) {
  const auto& given = options.global_ranks_in_group;
  if (!given.empty()) return {given.begin(), given.end()};
  std::vector<int64_t> all(size_t(size), 0);
  std::iota(all.begin(), all.end(), 0);
  return all;
}

}  // namespace

// Followed by what the rank sends to each and what it expects from each, in bytes.
struct Backend::Header {
  uint64_t sequence;
  int64_t arrival_ns;
  uint64_t elements, shapes;
  double factor;
  int32_t op, dtype, reduce, root;
  char name[32];

  const uint64_t* sends() const { return reinterpret_cast<const uint64_t*>(this + 1); }
  uint64_t* sends() { return reinterpret_cast<uint64_t*>(this + 1); }
};

Backend::Backend(c10::intrusive_ptr<c10d::Store> store, int rank, int size,
                 c10::intrusive_ptr<BackendOptions> options)
    : c10d::Backend(rank, size),
      store_(std::move(store)),
      options_(std::move(options)),
      transport_(meet(store_, rank, size, options_->timeout)),
      owner_(getpid()),
      ranks_(ranks_of_world(*options_, size)) {
  transport_->set_number(global(rank));
  std::lock_guard<std::mutex> lock(all_mutex);
  all_transports().insert(transport_.get());
}

Backend::~Backend() {
  {
    std::lock_guard<std::mutex> lock(all_mutex);
    all_transports().erase(transport_.get());
  }
  ended_ = true;
  const bool forked = getpid() != owner_;
  if (!forked && busy() && transport_->name() == std::string("gloo")) transport_->abort("");
  const auto end_lanes = [&] {
    forked ? lane_.forget() : lane_.stop();
    for (auto* lanes : {&senders_, &receivers_}) {
      for (auto& [peer, lane] : *lanes) forked ? lane.forget() : lane.stop();
    }
  };
  if (auto& without_python = collective_hooks().without_python)
    without_python(end_lanes);
  else
    end_lanes();
}

bool Backend::busy() {
  bool any = lane_.busy();
  for (auto* lanes : {&senders_, &receivers_}) {
    for (auto& [peer, lane] : *lanes) any |= lane.busy();
  }
  return any;
}

void Backend::end_all(const std::string& reason) {
  std::lock_guard<std::mutex> lock(all_mutex);
  for (auto* transport : all_transports()) transport->leave(reason);
}

std::string Backend::title(const char* op, uint64_t sequence) const {
  std::ostringstream out;
  out << op << " #" << sequence << " of group " << group();
  return out.str();
}

std::string Backend::group() const {
  const std::string& described = getGroupDesc();
  return !described.empty() && described != "undefined" ? described : options_->group_name;
}

// `op` stays valid, and `ranks` are those of the group or two.
CollectivePrice Backend::price(std::string_view op, int64_t bytes,
                               const std::vector<int64_t>& ranks, bool in_graph) {
  auto& ask = collective_hooks().price;
  if (!ask) return {};
  const std::tuple key(op, bytes, ranks.front(), ranks.back(), in_graph);
  {
    std::lock_guard<std::mutex> lock(prices_mutex_);
    if (const auto known = prices_.find(key); known != prices_.end()) return known->second;
  }
  const CollectivePrice found =
      ask(op.data(), bytes, ranks, in_graph);  // takes the GIL: no lock held
  std::lock_guard<std::mutex> lock(prices_mutex_);
  return prices_[key] = found;
}

void Backend::check_usable() const {
  TORCH_CHECK(getpid() == owner_,
              "this process was forked after its process group was made, and cannot use it: call ",
              "init_process_group in the child, or start it with the 'spawn' method");
  if (ended_)
    C10_THROW_ERROR(DistBackendError,
                    "the process group has been shut down or aborted: make a new one");
}

c10::intrusive_ptr<Work> Backend::keep(c10::intrusive_ptr<Work> work) {
  if (coalesced_) coalesced_->push_back(work);
  return work;
}

collectives::Patience Backend::patience(std::chrono::milliseconds timeout, bool here) const {
  if (timeout == c10d::kUnsetTimeout) timeout = options_->timeout;
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  return [this, deadline, timeout, here] {
    if (here && collective_hooks().check_interrupt) collective_hooks().check_interrupt();
    if (ended_) throw collectives::Failure("the group was shut down meanwhile");
    if (std::chrono::steady_clock::now() < deadline) return;
    std::ostringstream text;  // scripts written for gloo look for " timeout "
    const std::string late = transport_->late_ranks();
    text << "the timeout of " << double(timeout.count()) / 1e3 << " s has passed"
         << (late.empty() ? "" : ", and " + late + " did not come")
         << ". A rank that waits for something else first, as for a message that is "
            "sent after this call, or a rank that never makes the call, has this effect"
         << transport_->describe_ranks();
    throw collectives::Failure(text.str());
  };
}

void Backend::fail(const std::string& what, const std::string& why, bool known) {
  broken_ = true;
  const std::string text = what + ": rank " + std::to_string(global(rank_)) + " of " +
                           std::to_string(size_) + " ranks: " + why;
  if (!known)
    transport_->abort("stopped: " + what + " failed on rank " + std::to_string(global(rank_)) +
                      ": " + why.substr(0, why.find('\n')));
  C10_THROW_ERROR(DistBackendError, text);
}

std::vector<std::byte> Backend::header_of(const Call& call, uint64_t sequence,
                                          int64_t arrival_ns) const {
  const size_t n = size_t(size_);
  std::vector<std::byte> bytes(sizeof(Header) + 2 * n * sizeof(uint64_t));
  auto* header = new (bytes.data()) Header{};
  header->sequence = sequence;
  header->arrival_ns = arrival_ns;
  header->elements = uint64_t(call.elements);
  header->shapes = call.shapes;
  header->op = int32_t(call.op);
  header->dtype = int32_t(call.dtype);
  header->reduce = call.reduces ? int32_t(call.reduce.op_) : -1;
  header->root = call.root;
  std::strncpy(header->name, call.name, sizeof header->name - 1);
  header->factor = call.factor;
  for (size_t r = 0; r < n; ++r) {
    header->sends()[r] = r < call.sends.size() ? call.sends[r] : 0;
    header->sends()[n + r] = r < call.receives.size() ? call.receives[r] : 0;
  }
  return bytes;
}

std::vector<const Backend::Header*> Backend::compare(const Call& call,
                                                     const std::vector<std::byte>& all, size_t each,
                                                     Meeting& meeting) const {
  const size_t n = size_t(size_);
  std::vector<const Header*> headers;
  for (size_t r = 0; r < n; ++r)
    headers.push_back(reinterpret_cast<const Header*>(all.data() + r * each));
  const Header& first = *headers[0];
  const char* differs = nullptr;
  for (size_t a = 0; a < n && differs == nullptr; ++a) {
    const Header& h = *headers[a];
    if (h.op != first.op || std::strncmp(h.name, first.name, sizeof h.name) != 0)
      differs = "the ranks call different operations";
    else if (h.sequence != first.sequence)
      differs = "the ranks have made different numbers of calls";
    else if (h.dtype != first.dtype)
      differs = "the dtypes differ";
    else if (h.reduce != first.reduce)
      differs = "the reduce operations differ";
    else if (h.root != first.root)
      differs = "the roots differ";
    else if (h.shapes != first.shapes)
      differs = "the shapes of the coalesced tensors differ";
  }
  for (size_t a = 0; a < n && differs == nullptr; ++a) {
    for (size_t b = 0; b < n && differs == nullptr; ++b) {
      const size_t sent = size_t(headers[a]->sends()[b]);
      if (sent != size_t(headers[b]->sends()[n + a]))
        differs = "what one rank sends is not what another expects in size";
      meeting.largest = std::max(meeting.largest, sent);
    }
  }
  if (call.reduces && call.reduce.op_ == c10d::ReduceOp::PREMUL_SUM) {
    for (const Header* h : headers) meeting.factors.push_back(h->factor);
  }
  if (differs == nullptr) return headers;
  std::ostringstream out;
  out << "mismatched collectives: " << differs
      << ". All ranks of a group must make the same calls in the same order, with tensors that fit";
  for (size_t r = 0; r < n; ++r) {
    const Header& h = *headers[r];
    out << "\n  rank " << global(int(r)) << ": "
        << describe(h.name, h.sequence, h.dtype, h.elements, h.reduce, h.root);
  }
  throw collectives::Mismatch(out.str());
}

Backend::WorkPtr Backend::start(Call call, Move move) {
  check_usable();
  GraphSchedule* const graph = GraphSchedule::current();
  if (graph && call.device && call.device->is_cpu())  // its tensors lie on the host
    call.device = c10::Device(kTrn, graph->device());
  const bool timed = call.device && call.device->is_privateuseone();
  const CollectivePrice cost =
      timed ? price(call.name, call.priced_bytes, ranks_, graph != nullptr) : CollectivePrice{};
  const c10::Device device = call.device.value_or(c10::Device(c10::kCPU));
  if (estimated_ns_) {
    *estimated_ns_ += cost.ns;
    auto work = c10::make_intrusive<Work>(rank_, call.op, sequence_.load(), device, call.results);
    work->done(nullptr);
    return keep(std::move(work));
  }
  const uint64_t sequence = ++sequence_;
  const int64_t arrival_ns = !timed  ? 0
                             : graph ? graph->arrive()
                                     : CollectiveClock::issue(current_stream(device.index()));
  auto work = c10::make_intrusive<Work>(rank_, call.op, sequence, device, call.results,
                                        profiler_title(call.name), call.inputs);
  if (graph && timed && !graph->empty()) {
    work->leave_to_schedule();
    graph->issued([work] { return work->ends(); });
  }
  record_param_comms(call, sequence, options_->group_name, getGroupDesc(), ranks_, rank_);
  call.results.clear();
  call.inputs.clear();
  const bool async = call.async || coalesced_;
  auto shared = std::make_shared<Call>(std::move(call));
  auto task = [this, shared, sequence, arrival_ns, cost, move = std::move(move), work](bool here) {
    try {
      run(*shared, sequence, arrival_ns, cost, move, *work, here);
    } catch (...) {
      if (shared->device && shared->device->is_privateuseone())
        CollectiveClock::ended(shared->device->index(), arrival_ns, nullptr);
      work->failed(std::current_exception());
    }
  };
  const bool over_gloo = transport_->name() == std::string("gloo");
  if (async || over_gloo || !lane_.run_here([&] { task(true); }))
    lane_.post([task] { task(false); });
  if (async) return keep(std::move(work));
  work->block();
  return nullptr;
}

void Backend::run(const Call& call, uint64_t sequence, int64_t arrival_ns, CollectivePrice cost,
                  const Move& move, Work& work, bool here) {
  const auto what = [&] { return title(call.name, sequence); };
  const int32_t reduce = call.reduces ? int32_t(call.reduce.op_) : -1;
  std::string mine = describe(call.name, sequence, int32_t(call.dtype), uint64_t(call.elements),
                              reduce, call.root);
  try {
    if (broken_) throw collectives::Failure("an earlier operation of the group failed");
    const auto wait = patience(call.timeout, here);
    transport_->announce(sequence, mine);
    if (call.along) transport_->send_along(*call.along);
    const auto header = header_of(call, sequence, arrival_ns);
    std::vector<std::byte> all(header.size() * size_t(size_));
    transport_->headers(header, all.data(), wait);
    Meeting meeting{*transport_, wait, 0, {}};
    auto ended = std::make_shared<Collective>();
    ended->arrival_ns = arrival_ns;
    ended->start_ns = queue_ns_;
    for (const Header* h : compare(call, all, header.size(), meeting)) {
      ended->arrivals_ns.push_back(h->arrival_ns);
      ended->start_ns = std::max(ended->start_ns, h->arrival_ns);
    }
    move(meeting);
    transport_->announce_end();
    queue_ns_ = ended->end_ns = ended->start_ns + cost.ns;
    ended->row = cost.row;
    ended->group = group();
    ended->sequence = sequence;
    ended->what = std::move(mine);
    if (call.device && call.device->is_privateuseone())
      CollectiveClock::ended(call.device->index(), arrival_ns, ended);
    work.done(std::move(ended));
  } catch (const collectives::Mismatch& mismatch) {
    fail(what(), mismatch.what(), true);
  } catch (const collectives::Failure& failure) {
    fail(what(), failure.what());
  } catch (const c10::Error&) {
    broken_ = true;
    transport_->abort("stopped: " + what() + " failed on rank " + std::to_string(global(rank_)));
    throw;
  } catch (...) {  // an interrupt
    broken_ = true;
    transport_->abort("stopped: rank " + std::to_string(global(rank_)) + " was interrupted in " +
                      what());
    throw;
  }
}

void Backend::startCoalescing() {
  check_usable();
  if (!coalesced_) coalesced_.emplace();
}

Backend::WorkPtr Backend::endCoalescing() {
  std::vector<c10::intrusive_ptr<Work>> parts;
  if (coalesced_) parts = std::move(*coalesced_);
  coalesced_.reset();
  deliver_own();
  c10::Device device(c10::kCPU);
  for (const auto& part : parts) device = part->device();
  return c10::make_intrusive<Work>(rank_, device, std::move(parts));
}

void Backend::start_time_estimate() {
  estimated_ns_ = 0;
  startCoalescing();
}

double Backend::end_time_estimate() {
  const int64_t ns = estimated_ns_.value_or(0);
  estimated_ns_.reset();
  coalesced_.reset();
  return double(ns) / 1e3;
}

// The ranks meet under a key of their parent, the number of its splits and themselves: the name of
// the new group differs between ranks that know different numbers of groups.
c10::intrusive_ptr<c10d::Backend> Backend::split(const c10::intrusive_ptr<c10d::Store>&,
                                                 const std::vector<int>& ranks,
                                                 const c10::intrusive_ptr<Options>& opts) {
  check_usable();
  const uint64_t number = splits_++;
  const auto mine = std::find(ranks.begin(), ranks.end(), rank_);
  if (mine == ranks.end()) return nullptr;
  auto options = c10::make_intrusive<BackendOptions>(opts ? opts->timeout : options_->timeout);
  std::ostringstream key;
  key << "split/" << number;
  for (const int rank : ranks) {
    key << "/" << rank;
    options->global_ranks_in_group.push_back(uint64_t(global(rank)));
  }
  if (opts) {
    options->group_name = opts->group_name;
    options->group_desc = opts->group_desc;
  }
  auto store = c10::make_intrusive<c10d::PrefixStore>(key.str(), store_);
  return c10::make_intrusive<Backend>(store, int(mine - ranks.begin()), int(ranks.size()), options);
}

c10d::ErrorType Backend::getError() {
  return broken_ ? c10d::ErrorType::COMM_ERROR : c10d::ErrorType::SUCCESS;
}

void Backend::abort() {
  if (getpid() != owner_ || ended_.exchange(true)) return;
  transport_->abort("stopped: rank " + std::to_string(global(rank_)) +
                    " aborted the group (ProcessGroup.abort)");
}

void Backend::shutdown() {
  if (getpid() != owner_ || ended_.exchange(true)) return;
  transport_->leave("");
}

}  // namespace trn
