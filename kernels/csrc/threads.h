// A small pool of threads for loops over rows; it survives fork(), as in data loaders' workers.
#pragma once

#include <cstdint>
#include <functional>

namespace medisseg {

int thread_count();
void set_thread_count(int count);  // 1: everything runs in the calling thread

// Calls body(begin, end) over disjoint ranges that cover [0, rows). Ranges hold at least `grain`
// rows; when another caller holds the pool, the loop runs in the calling thread alone.
void parallel_rows(int rows, int grain, const std::function<void(int, int)>& body);

}  // namespace medisseg
