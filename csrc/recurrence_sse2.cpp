// The inner loops with SSE2, which every x86-64 processor has: two doubles, no fused multiply-add.
#include <emmintrin.h>

#include "recurrence_kernel.hpp"

namespace pyassemble {
namespace {

struct Sse2 {
    using Vec = __m128d;
    static constexpr std::ptrdiff_t kWidth = 2;
    static constexpr int kExactTile = 2;
    static constexpr int kValueTile = 1;

    static Vec load(const double* p) { return _mm_loadu_pd(p); }
    static void store(double* p, Vec v) { _mm_storeu_pd(p, v); }
    static Vec set1(double v) { return _mm_set1_pd(v); }
    static Vec add(Vec a, Vec b) { return _mm_add_pd(a, b); }
    static Vec div(Vec a, Vec b) { return _mm_div_pd(a, b); }
    static Vec fma(Vec a, Vec b, Vec c) { return _mm_add_pd(_mm_mul_pd(a, b), c); }
    static Vec max(Vec a, Vec b) { return _mm_max_pd(a, b); }
    static bool any_greater(Vec a, Vec b) { return _mm_movemask_pd(_mm_cmpgt_pd(a, b)) != 0; }
    static Vec prefix_max(Vec v) { return _mm_max_pd(v, _mm_unpacklo_pd(v, v)); }
    static Vec last(Vec v) { return _mm_unpackhi_pd(v, v); }
};

}  // namespace

constinit const Kernels kSse2Kernels = make_kernels<Sse2>("sse2");

}  // namespace pyassemble
