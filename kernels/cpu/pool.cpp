#include "pool.h"

#include <unistd.h>

#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace gs {
namespace {

constexpr int kSpins = 4000;  // about 40 us of `pause` before a wait goes to sleep

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `value` is no longer `old`.
void wait_change(std::atomic<uint32_t>& value, uint32_t old) {
  for (int i = 0; i < kSpins; i++) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

struct Gate {
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<uint32_t> generation{0};
};

// The last thread to arrive clears the cursor of the stage before this one, which nobody can still be reading.
void Team::barrier() {
  const uint32_t generation = gate_->generation.load(std::memory_order_acquire);
  if (gate_->arrived.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
    cursor_[(stage_ + kCursors - 1) % kCursors].value.store(0, std::memory_order_relaxed);
    gate_->arrived.store(0, std::memory_order_relaxed);
    gate_->generation.store(generation + 1, std::memory_order_release);
    gate_->generation.notify_all();
  } else {
    wait_change(gate_->generation, generation);
  }
  stage_++;
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

  void run(Work work, void* argument) {
    work_ = work;
    argument_ = argument;
    for (auto& cursor : cursors_) cursor.value.store(0, std::memory_order_relaxed);
    running_.store(size_ - 1, std::memory_order_relaxed);
    start_.fetch_add(1, std::memory_order_release);
    start_.notify_all();
    enter(0);
    for (uint32_t left = running_.load(std::memory_order_acquire); left != 0;
         left = running_.load(std::memory_order_acquire))
      wait_change(running_, left);
  }

 private:
  void enter(int rank) {
    Team team;
    team.rank = rank;
    team.size = size_;
    team.cursor_ = cursors_;
    team.gate_ = &gate_;
    work_(team, argument_);
  }

  void serve(int rank) {
    uint32_t seen = 0;
    while (true) {
      wait_change(start_, seen);
      seen = start_.load(std::memory_order_acquire);
      if (stop_) return;
      enter(rank);
      if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
    }
  }

  const int size_;
  const pid_t owner_;
  std::vector<std::thread> workers_;
  Work work_ = nullptr;
  void* argument_ = nullptr;
  Team::Cursor cursors_[Team::kCursors];
  Gate gate_;
  alignas(64) std::atomic<uint32_t> start_{0};
  alignas(64) std::atomic<uint32_t> running_{0};
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
    team.rank = 0;
    team.size = 1;
    work(team, argument);
    return;
  }
  std::lock_guard<std::mutex> held(lock);
  if (!pool || !pool->serves(wanted)) pool = std::make_unique<Pool>(wanted);
  pool->run(work, argument);
}

}  // namespace gs
