// See rendezvous.h.
#include "rendezvous.h"

#include "collectives/segment.h"

#include <c10/util/Exception.h>

#include <unistd.h>

#include <climits>
#include <cstring>
#include <fstream>

namespace trn {
namespace {

using collectives::Failure;
using collectives::Segment;
using Store = c10::intrusive_ptr<c10d::Store>;

// Two processes with the same text can open each other's descriptors.
std::string host_of_this_process() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string boot;
  std::getline(file, boot);
  char space[64] = {};
  const ssize_t length = readlink("/proc/self/ns/pid", space, sizeof space - 1);
  if (boot.empty() || length <= 0) return "";
  return boot + " " + space + " " + std::to_string(getuid());
}

void put(const Store& store, const std::string& key, const std::string& value) {
  store->set(key, std::vector<uint8_t>(value.begin(), value.end()));
}

std::string take(const Store& store, const std::string& key) {
  const std::vector<uint8_t> value = store->get(key);
  return std::string(value.begin(), value.end());
}

// Why the ranks cannot share memory; empty if they can. Every rank gets the same answer.
std::string reason_against(const Store& store, int rank, int size) {
  if (size > collectives::kMaxRanks)
    return "the group has more than " + std::to_string(collectives::kMaxRanks) + " ranks";
  put(store, "host/" + std::to_string(rank), host_of_this_process());
  const std::string first = take(store, "host/0");
  if (first.empty()) return "/proc is not readable";
  for (int r = 1; r < size; ++r) {
    if (take(store, "host/" + std::to_string(r)) != first)
      return "rank " + std::to_string(r) + " is on another host, in another container or of " +
             "another user than rank 0";
  }
  return "";
}

// The segment that all ranks have joined, or null with `reason`.
std::unique_ptr<Segment> share(const Store& store, int rank, int size, std::string& reason) {
  std::unique_ptr<Segment> segment;
  std::string mine = "joined";
  try {
    if (rank == 0) {
      segment = Segment::create(size);
      put(store, "segment", std::to_string(getpid()) + " " + std::to_string(segment->descriptor()));
    } else {
      const std::string place = take(store, "segment");
      const size_t space = place.find(' ');
      if (space == std::string::npos) throw Failure("rank 0 could not make the memory");
      segment = Segment::open(size, std::stoi(place), std::stoi(place.substr(space + 1)));
    }
    segment->join(rank);
  } catch (const Failure& failure) {
    if (rank == 0) put(store, "segment", "none");
    mine = failure.what();
  }
  put(store, "member/" + std::to_string(rank), mine);
  for (int r = 0; r < size; ++r) {
    const std::string member = take(store, "member/" + std::to_string(r));
    if (member != "joined" && reason.empty()) reason = "rank " + std::to_string(r) + ": " + member;
  }
  if (segment != nullptr) segment->close_descriptor();
  return reason.empty() ? std::move(segment) : nullptr;
}

}  // namespace

CollectiveHooks& collective_hooks() {
  static auto* hooks = new CollectiveHooks;  // outlives threads
  return *hooks;
}

std::unique_ptr<collectives::Transport> meet(const Store& store, int rank, int size,
                                             std::chrono::milliseconds timeout) {
  if (size == 1) return collectives::alone();
  const CollectiveHooks& hooks = collective_hooks();
  std::string reason;
  if (hooks.transport != "gloo") {
    reason = reason_against(store, rank, size);
    if (reason.empty()) {
      if (auto segment = share(store, rank, size, reason))
        return collectives::over(std::move(segment), rank, size);
    }
    if (hooks.transport == "shm") {
      C10_THROW_ERROR(DistBackendError,
                      "TRN_EMU_TRANSPORT=shm: the ranks cannot share memory: " + reason +
                          ". Unset the variable: ranks then communicate over gloo.");
    }
  }
  return over_gloo(hooks.make_gloo(store, rank, size, timeout));
}

}  // namespace trn
