// A thread that works through tasks in order. It starts with its first task.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace trn {

class Lane {
 public:
  Lane() = default;
  ~Lane() { stop(); }
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  void post(std::function<void()> task);
  // Runs the task here if nothing is queued or running; false if something is.
  bool run_here(const std::function<void()>& task);
  bool busy();
  // Ends the thread after the task in progress; what is queued is dropped.
  void stop();
  // In a forked child the thread does not exist: forget it.
  void forget();

 private:
  void work();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool busy_ = false, ending_ = false;
  std::thread thread_;
};

}  // namespace trn
