#include "pool.h"

#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace gs {
namespace {

constexpr int kSpins = 4000;  // about 40 us of `pause` before a wait goes to sleep
constexpr int kMaxStages = 4096;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `value` is no longer `old`; whoever makes the awaited change notifies.
template <class T>
void wait_change(std::atomic<T>& value, T old) {
  for (int i = 0; i < kSpins; i++) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

Stage& Team::next_stage() {
  if (used_ == kMaxStages) std::abort();
  return stages_[used_++];
}

void Team::finish(Stage& stage, int mine, int count) {
  if (mine > 0 && stage.done.fetch_add(mine, std::memory_order_acq_rel) + mine == count) {
    stage.done.notify_all();
    return;
  }
  for (int done = stage.done.load(std::memory_order_acquire); done != count;
       done = stage.done.load(std::memory_order_acquire))
    wait_change(stage.done, done);
}

class Pool {
 public:
  explicit Pool(int size) : size_(size), owner_(getpid()) {
    for (int rank = 1; rank < size; rank++) workers_.emplace_back([this, rank] { serve(rank); });
  }

  ~Pool() {
    if (getpid() != owner_) {  // after a fork the workers do not exist in this process
      for (auto& worker : workers_) worker.detach();
      return;
    }
    stop_ = true;
    start_.fetch_add(1, std::memory_order_release);
    start_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  bool serves(int size) const { return size_ == size && getpid() == owner_; }

  // Workers that have not woken by the time the work is done are not waited for.
  void run(Work work, void* argument) {
    work_ = work;
    argument_ = argument;
    for (int i = 0; i < used_; i++) {
      stages_[i].claimed.store(0, std::memory_order_relaxed);
      stages_[i].done.store(0, std::memory_order_relaxed);
    }
    inside_.store(0, std::memory_order_release);
    start_.fetch_add(1, std::memory_order_release);
    start_.notify_all();
    used_ = take_part(0);
    for (int inside = inside_.fetch_or(kClosed) | kClosed; inside != kClosed; inside = inside_.load())
      wait_change(inside_, inside);
  }

 private:
  static constexpr int kClosed = 1 << 30;

  int take_part(int rank) {
    Team team;
    team.rank = rank;
    team.size = size_;
    team.stages_ = stages_.get();
    work_(team, argument_);
    return team.used_;
  }

  bool enter() {
    int inside = inside_.load();
    while (!(inside & kClosed))
      if (inside_.compare_exchange_weak(inside, inside + 1)) return true;
    return false;
  }

  void serve(int rank) {
    uint32_t seen = 0;
    while (true) {
      wait_change(start_, seen);
      seen = start_.load(std::memory_order_acquire);
      if (stop_) return;
      if (!enter()) continue;
      take_part(rank);
      inside_.fetch_sub(1);
      inside_.notify_one();
    }
  }

  const int size_;
  const pid_t owner_;
  std::vector<std::thread> workers_;
  Work work_ = nullptr;
  void* argument_ = nullptr;
  std::unique_ptr<Stage[]> stages_ = std::make_unique<Stage[]>(kMaxStages);
  int used_ = 0;
  alignas(64) std::atomic<uint32_t> start_{0};
  alignas(64) std::atomic<int> inside_{kClosed};  // workers taking part, and whether no more may
  std::atomic<bool> stop_{false};
};

namespace {
std::mutex lock;
int wanted = 1;
std::unique_ptr<Pool> pool;
}  // namespace

void set_threads(int threads) {
  std::lock_guard<std::mutex> held(lock);
  wanted = threads < 1 ? 1 : threads;
  pool.reset();
}

int threads() { return wanted; }

void run(Work work, void* argument, int threads) {
  if (threads <= 1 || wanted == 1) {
    Team team;
    work(team, argument);
    return;
  }
  std::lock_guard<std::mutex> held(lock);
  if (!pool || !pool->serves(wanted)) pool = std::make_unique<Pool>(wanted);
  pool->run(work, argument);
}

}  // namespace gs
