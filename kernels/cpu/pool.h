// A thread pool for short work: the caller takes part, chunks are claimed one by one, waits spin briefly, then sleep.
//
// Who computes a chunk never changes its result. Because chunks are claimed and not dealt out, a worker that the
// operating system has taken off its core holds up one chunk only.
#pragma once

#include <atomic>
#include <cstdint>

namespace gs {

class Team;

// The threads inside one `Pool::run`. Every thread must make the same sequence of calls.
class Team {
 public:
  // Calls body(i) for i in [0, count), shared among the threads, and returns when all are done.
  template <class Body>
  void share(int count, const Body& body) {
    if (size == 1) {
      for (int i = 0; i < count; i++) body(i);
      return;
    }
    std::atomic<int>& next = cursor_[stage_ % kCursors].value;
    for (int i = next.fetch_add(1, std::memory_order_relaxed); i < count;
         i = next.fetch_add(1, std::memory_order_relaxed))
      body(i);
    barrier();
  }

  int rank;
  int size;

 private:
  friend class Pool;
  struct alignas(64) Cursor {
    std::atomic<int> value{0};
  };
  static constexpr int kCursors = 4;

  void barrier();

  Cursor* cursor_;
  struct Gate* gate_;
  uint32_t stage_ = 0;
};

using Work = void (*)(Team& team, void* argument);

// Runs work on every thread; `threads` is capped by the size set. Not reentrant: one caller at a time (it locks).
void run(Work work, void* argument, int threads);
void set_threads(int threads);
int threads();

template <class Body>
void parallel(int max_threads, const Body& body) {
  run([](Team& team, void* argument) { (*static_cast<const Body*>(argument))(team); },
      const_cast<void*>(static_cast<const void*>(&body)), max_threads);
}

}  // namespace gs
