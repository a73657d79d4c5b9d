// The inner loops with AVX-512F: eight doubles. Compiled with flags of its own, called only where the CPU has it.
// GCC 12 takes the deliberately undefined operands inside its own AVX-512 header for mistakes.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "recurrence_kernel.hpp"

namespace pyassemble {
namespace {

struct Avx512 {
    using Vec = __m512d;
    static constexpr std::ptrdiff_t kWidth = 8;
    static constexpr int kExactTile = 2;
    static constexpr int kValueTile = 2;

    static Vec load(const double* p) { return _mm512_loadu_pd(p); }
    static void store(double* p, Vec v) { _mm512_storeu_pd(p, v); }
    static Vec set1(double v) { return _mm512_set1_pd(v); }
    static Vec add(Vec a, Vec b) { return _mm512_add_pd(a, b); }
    static Vec div(Vec a, Vec b) { return _mm512_div_pd(a, b); }
    static Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_pd(a, b, c); }
    static Vec max(Vec a, Vec b) { return _mm512_max_pd(a, b); }
    static bool any_greater(Vec a, Vec b) { return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ) != 0; }
    static Vec prefix_max(Vec v) {
        v = _mm512_max_pd(v, _mm512_permute_pd(v, 0));
        v = _mm512_max_pd(v, _mm512_permutex_pd(v, 0b01010100));
        return _mm512_max_pd(v, _mm512_permutexvar_pd(_mm512_set_epi64(3, 3, 3, 3, 3, 2, 1, 0), v));
    }
    static Vec last(Vec v) { return _mm512_permutexvar_pd(_mm512_set1_epi64(7), v); }
};

}  // namespace

constinit const Kernels kAvx512Kernels = make_kernels<Avx512>("avx512");

}  // namespace pyassemble
