// Running tasks on the threads PyTorch already has.
//
// The tasks go to the OpenMP runtime that PyTorch brought into the process, found by name when first
// needed, instead of one of our own: its idle workers spin for milliseconds after each PyTorch
// operation, and a second pool would share the cores with them (measured: twice the time on two
// cores). Nothing is linked, so it cannot be a second copy of the runtime either. Where there is
// none (macOS, Windows), and in a forked child, whose inherited pool would hang, see threads.cpp.
#pragma once
#include <cstdint>

namespace graftlm {

// Calls body(context, i) once for each i in [0, tasks), on up to `threads` threads, in any order.
// An exception in one of them is thrown again here.
void parallel_for(int64_t tasks, int threads, void (*body)(void*, int64_t), void* context);

template <class Body>
void parallel_for(int64_t tasks, int threads, Body&& body) {
  auto call = [](void* context, int64_t i) { (*static_cast<Body*>(context))(i); };
  parallel_for(tasks, threads, +call, const_cast<void*>(static_cast<const void*>(&body)));
}

// "openmp" (PyTorch's), "threads" (started for each call) or "serial".
const char* thread_runtime();

}  // namespace graftlm
