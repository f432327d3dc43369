// Which row loops run: the widest that this processor has, or the one asked for by name.
#include "rows.h"

#include <atomic>
#include <cstring>

namespace medisseg {
namespace {

bool runs_here(const RowKernels* kernels) {
  if (kernels == nullptr) return false;
#if defined(__x86_64__) || defined(__i386__)
  if (std::strcmp(kernels->name, "avx512") == 0) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
  }
  // Every processor with AVX2 has F16C; GCC before 11 cannot ask for it.
  if (std::strcmp(kernels->name, "avx2") == 0) return __builtin_cpu_supports("avx2");
#endif
  return true;
}

const RowKernels* candidate(int i) {
  const RowKernels* all[] = {avx512_rows(), avx2_rows(), neon_rows(), scalar_rows()};
  return runs_here(all[i]) ? all[i] : nullptr;
}

const RowKernels* widest() {
  for (int i = 0; i < 4; ++i) {
    if (const RowKernels* kernels = candidate(i)) return kernels;
  }
  return scalar_rows();
}

std::atomic<const RowKernels*>& current() {
  static std::atomic<const RowKernels*> kernels{widest()};
  return kernels;
}

}  // namespace

const RowKernels& rows() { return *current().load(std::memory_order_relaxed); }

bool use_rows(const char* name) {
  for (int i = 0; i < 4; ++i) {
    const RowKernels* kernels = candidate(i);
    if (kernels != nullptr && std::strcmp(kernels->name, name) == 0) {
      current() = kernels;
      return true;
    }
  }
  return false;
}

int available_rows(const char* names[4]) {
  int count = 0;
  for (int i = 0; i < 4; ++i) {
    if (const RowKernels* kernels = candidate(i)) names[count++] = kernels->name;
  }
  return count;
}

}  // namespace medisseg
