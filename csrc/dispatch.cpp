// Run-time choice of the instruction set.
#include "dispatch.hpp"

#include <atomic>
#include <stdexcept>

namespace pyassemble {

std::vector<const Kernels*> available_kernels() {
    std::vector<const Kernels*> found{&kScalarKernels};
#if defined(__x86_64__)
    __builtin_cpu_init();
    found.push_back(&kSse2Kernels);
    // __builtin_cpu_supports also asks whether the operating system saves the wide registers.
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&kAvx2Kernels);
    if (__builtin_cpu_supports("avx512f")) found.push_back(&kAvx512Kernels);
#endif
    return found;
}

namespace {

std::atomic<const Kernels*>& active() {
    static std::atomic<const Kernels*> kernels{available_kernels().back()};
    return kernels;
}

}  // namespace

const Kernels& active_kernels() { return *active().load(std::memory_order_relaxed); }

void activate_kernels(const std::string& name) {
    std::string known;
    for (const Kernels* kernels : available_kernels()) {
        if (name == kernels->name) {
            active().store(kernels, std::memory_order_relaxed);
            return;
        }
        known += (known.empty() ? "" : ", ") + std::string(kernels->name);
    }
    throw std::invalid_argument("unknown instruction set '" + name + "'; known: " + known);
}

}  // namespace pyassemble
