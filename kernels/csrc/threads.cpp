#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace medisseg {
namespace {

// More threads than this cost more to wake than a frame has work for.
constexpr int kUsefulThreads = 8;

int core_count() {
#ifdef __linux__
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int default_count() {
  int cores = core_count();
  if (const char* wanted = std::getenv("OMP_NUM_THREADS")) {
    const int count = std::atoi(wanted);
    if (count > 0) cores = std::min(cores, count);
  }
  return std::clamp(cores, 1, kUsefulThreads);
}

class Pool {
 public:
  explicit Pool(int threads) {
    try {
      for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
    } catch (const std::system_error&) {
      // The system gives no more threads: those that started, and the caller, do the work.
    }
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  void run(int rows, int chunk, const std::function<void(int, int)>& body) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      body_ = &body;
      rows_ = rows;
      chunk_ = chunk;
      next_.store(0, std::memory_order_relaxed);
      ++job_;
    }
    wake_.notify_all();
    drain(body, rows, chunk);
    std::unique_lock<std::mutex> lock(mutex_);
    body_ = nullptr;  // late wakers find no work
    done_.wait(lock, [this] { return active_ == 0; });
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  void drain(const std::function<void(int, int)>& body, int rows, int chunk) {
    try {
      for (int begin; (begin = next_.fetch_add(chunk)) < rows;) {
        body(begin, std::min(begin + chunk, rows));
      }
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex_);
      error_ = std::current_exception();
    }
  }

  void work() {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      wake_.wait(lock, [&] { return stop_ || (job_ != seen && body_ != nullptr); });
      if (stop_) return;
      seen = job_;
      const auto* body = body_;
      const int rows = rows_, chunk = chunk_;
      ++active_;
      lock.unlock();
      drain(*body, rows, chunk);
      lock.lock();
      if (--active_ == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  const std::function<void(int, int)>* body_ = nullptr;
  int rows_ = 0, chunk_ = 0, active_ = 0;
  uint64_t job_ = 0;
  bool stop_ = false;
  std::exception_ptr error_;
  std::atomic<int> next_{0};
};

struct Shared {
  std::mutex busy;  // one loop at a time owns the pool
  Pool* pool = nullptr;
  int count = default_count();
};

// Leaked on purpose: joining threads from a static destructor can hang an exiting interpreter, and
// in a forked child the parent's threads do not exist, so there is nothing to join.
Shared* shared = nullptr;

void renew() { shared = new Shared; }

Shared& state() {
  static const bool once = [] {
    renew();
    pthread_atfork(nullptr, nullptr, [] {
      const int count = shared->count;
      renew();
      shared->count = count;
    });
    return true;
  }();
  static_cast<void>(once);
  return *shared;
}

}  // namespace

int thread_count() { return state().count; }

void set_thread_count(int count) {
  Shared& mine = state();
  std::lock_guard<std::mutex> lock(mine.busy);
  delete mine.pool;
  mine.pool = nullptr;
  mine.count = std::clamp(count, 1, core_count());
}

void parallel_rows(int rows, int grain, const std::function<void(int, int)>& body) {
  Shared& mine = state();
  std::unique_lock<std::mutex> lock(mine.busy, std::try_to_lock);
  if (!lock.owns_lock() || mine.count == 1 || rows <= grain) {
    if (rows > 0) body(0, rows);
    return;
  }
  if (mine.pool == nullptr) mine.pool = new Pool(mine.count);
  // Two ranges a thread even out unequal cores without starving the caches.
  mine.pool->run(rows, std::max(grain, (rows + 2 * mine.count - 1) / (2 * mine.count)), body);
}

}  // namespace medisseg
