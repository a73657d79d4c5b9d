// The inner loops with AVX2 and FMA3: four doubles. Compiled with flags of its own, called only where the CPU has both.
#include <immintrin.h>

#include "recurrence_kernel.hpp"

namespace pyassemble {
namespace {

struct Avx2 {
    using Vec = __m256d;
    static constexpr std::ptrdiff_t kWidth = 4;
    static constexpr int kExactTile = 2;
    static constexpr int kValueTile = 1;

    static Vec load(const double* p) { return _mm256_loadu_pd(p); }
    static void store(double* p, Vec v) { _mm256_storeu_pd(p, v); }
    static Vec set1(double v) { return _mm256_set1_pd(v); }
    static Vec add(Vec a, Vec b) { return _mm256_add_pd(a, b); }
    static Vec div(Vec a, Vec b) { return _mm256_div_pd(a, b); }
    static Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_pd(a, b, c); }
    static Vec max(Vec a, Vec b) { return _mm256_max_pd(a, b); }
    static bool any_greater(Vec a, Vec b) { return _mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_GT_OQ)) != 0; }
    static Vec prefix_max(Vec v) {
        v = _mm256_max_pd(v, _mm256_permute_pd(v, 0b0000));                  // pairs
        return _mm256_max_pd(v, _mm256_permute4x64_pd(v, 0b01010100));       // lane 1 into lanes 2 and 3
    }
    static Vec last(Vec v) { return _mm256_permute4x64_pd(v, 0b11111111); }
};

}  // namespace

constinit const Kernels kAvx2Kernels = make_kernels<Avx2>("avx2");

}  // namespace pyassemble
