// See lane.h.
#include "lane.h"

#include <c10/util/thread_name.h>

#include <new>

namespace trn {

void Lane::post(std::function<void()> task) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (ending_) return;
  tasks_.push_back(std::move(task));
  if (!thread_.joinable()) thread_ = std::thread([this] { work(); });
  changed_.notify_all();
}

bool Lane::run_here(const std::function<void()>& task) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (busy_ || !tasks_.empty() || ending_) return false;
    busy_ = true;
  }
  struct Done {
    Lane& lane;
    ~Done() {
      std::lock_guard<std::mutex> lock(lane.mutex_);
      lane.busy_ = false;
      if (!lane.tasks_.empty()) lane.changed_.notify_all();
    }
  } done{*this};
  task();
  return true;
}

bool Lane::busy() {
  std::lock_guard<std::mutex> lock(mutex_);
  return busy_ || !tasks_.empty();
}

void Lane::work() {
  c10::setThreadName("trn_collectives");
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return ending_ || (!busy_ && !tasks_.empty()); });
    if (ending_) return;
    std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    busy_ = true;
    lock.unlock();
    task();
    task = nullptr;  // what it holds goes before the lane counts as idle
    lock.lock();
    busy_ = false;
  }
}

void Lane::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
  tasks_.clear();
}

void Lane::forget() {
  new std::thread(std::move(thread_));  // never joined: its destructor would end the process
  ending_ = true;
}

}  // namespace trn
