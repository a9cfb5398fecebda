// A thread pool for short work: the caller takes part, chunks are claimed one by one, waits spin briefly, then sleep.
//
// A stage ends when its chunks are done, not when every thread has come by: a worker that the operating system has
// taken off its core holds up the one chunk it was computing, and later skips the stages it missed. Who computes a
// chunk never changes its result.
#pragma once

#include <atomic>
#include <cstdint>

namespace gs {

struct Stage {
  alignas(64) std::atomic<int> claimed{0};
  alignas(64) std::atomic<int> done{0};
};

// The threads inside one `run`. Every thread makes the same sequence of calls.
//
// A late thread may run the code between two stages after others have gone on, so that code must write nothing the
// others use; whatever it computed is then unused, because the stages it missed have no chunks left to claim.
class Team {
 public:
  // Calls body(i) for i in [0, count), shared among the threads, and returns when all are done.
  template <class Body>
  void share(int count, const Body& body) {
    if (size == 1) {
      for (int i = 0; i < count; i++) body(i);
      return;
    }
    Stage& stage = next_stage();
    int mine = 0;
    for (int i = stage.claimed.fetch_add(1, std::memory_order_relaxed); i < count;
         i = stage.claimed.fetch_add(1, std::memory_order_relaxed), mine++)
      body(i);
    finish(stage, mine, count);
  }

  int rank = 0;
  int size = 1;

 private:
  friend class Pool;

  Stage& next_stage();
  static void finish(Stage& stage, int mine, int count);

  Stage* stages_ = nullptr;
  int used_ = 0;
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
