#include "threads.hpp"

#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace graftlm {
namespace {

// The entry point compilers emit for `#pragma omp parallel`; libgomp, libomp and Intel's all have it.
using Parallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);

std::atomic<bool> forked{false};

Parallel find_openmp() {
#if defined(_WIN32)
  return nullptr;
#else
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
  return reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#endif
}

Parallel openmp() {
  static const Parallel found = find_openmp();
  return found;
}

struct Tasks {
  int64_t count;
  void (*body)(void*, int64_t);
  void* context;
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  std::exception_ptr error;

  Tasks(int64_t n, void (*f)(void*, int64_t), void* c) : count(n), body(f), context(c) {}

  void work() noexcept {
    try {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(context, i);
    } catch (...) {
      next = count;
      std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
    }
  }
};

}  // namespace

void parallel_for(int64_t count, int threads, void (*body)(void*, int64_t), void* context) {
  Tasks tasks(count, body, context);
  if (threads > count) threads = int(count);
  if (threads <= 1 || forked) {
    tasks.work();
  } else if (Parallel parallel = openmp()) {
    parallel([](void* t) { static_cast<Tasks*>(t)->work(); }, &tasks, unsigned(threads), 0);
  } else {
    std::vector<std::thread> helpers;
    for (int i = 1; i < threads; i++) helpers.emplace_back([&] { tasks.work(); });
    tasks.work();
    for (std::thread& helper : helpers) helper.join();
  }
  if (tasks.error) std::rethrow_exception(tasks.error);
}

const char* thread_runtime() {
  if (forked) return "serial";
  return openmp() ? "openmp" : "threads";
}

}  // namespace graftlm
