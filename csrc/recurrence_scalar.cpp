// The inner loops one double at a time, for processors without a vector unit that is handled here.
#include "recurrence_kernel.hpp"

namespace pyassemble {
namespace {

struct Scalar {
    using Vec = double;
    static constexpr std::ptrdiff_t kWidth = 1;
    static constexpr int kExactTile = 4;
    static constexpr int kValueTile = 1;

    static Vec load(const double* p) { return *p; }
    static void store(double* p, Vec v) { *p = v; }
    static Vec set1(double v) { return v; }
    static Vec add(Vec a, Vec b) { return a + b; }
    static Vec div(Vec a, Vec b) { return a / b; }
    static Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
    static Vec max(Vec a, Vec b) { return b > a ? b : a; }
    static bool any_greater(Vec a, Vec b) { return a > b; }
};

}  // namespace

constinit const Kernels kScalarKernels = make_kernels<Scalar>("scalar");

}  // namespace pyassemble
