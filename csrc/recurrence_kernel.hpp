// The inner loops of the recurrence, written once over a vector type V.
//
// V offers Vec, kWidth, load, store, set1, add, mul, div, fma (contracted or not), max and any_greater. Everything here has
// internal linkage: each instruction set gets its own copy, and none leaks into code compiled for the baseline.
//
// A run of targets k .. i ends at source j with the value (DPIAT, arXiv 2212.13970)
//     (S[k][j] + ... + S[i][j]) / sqrt(i - k + 1) + D[k - 1][j - 1].
// It needs rows before i only, so the lanes of a vector are neighbouring sources j.
#pragma once

#include "kernels.hpp"

namespace pyassemble {
namespace {

// Exact values. A division costs about ten times a multiply-add, so it is done only where its result could matter.
//
// Let q = fl(c / root), x = fl(q + d) the value wanted, e = fl(c * bound + d) (or fl(fl(c * bound) + d)) its estimate. With
// u = 2^-53, bound >= (1 + 5u) / root, so c * bound >= (1 + 5u) c / root >= q wherever c / root is a normal number, even
// after one more rounding, which loses at most a factor 1 - u. Rounding is monotone, hence e >= x: if e does not exceed the
// best so far, neither does x. Where c / root might not be normal, the caller passes bound = infinity: then e is infinite
// (the division is done) or, for c = 0, NaN (compares as false), and x = d = D[k - 1][j - 1] <= D[i - 1][j] <= best.
template <class V, int C>
inline void exact_tile(const Band& band, std::ptrdiff_t row, std::ptrdiff_t column, double* best_out) {
    using Vec = typename V::Vec;
    const std::ptrdiff_t stride = band.stride;
    const double* s = band.scores + row * stride + column;
    const double* d = band.before + row * stride + column;
    const std::int32_t* targets = band.targets;
    const std::ptrdiff_t end = static_cast<std::ptrdiff_t>(targets[row]) + 1;
    Vec c[C];
    Vec best[C];
    for (int x = 0; x < C; ++x) {  // length 1: its root is 1, nothing to divide
        c[x] = V::load(s + x * V::kWidth);
        best[x] = V::max(V::load(best_out + column + x * V::kWidth), V::add(c[x], V::load(d + x * V::kWidth)));
    }
    for (std::ptrdiff_t k = row - 1; k >= 0; --k) {
        s -= stride;
        d -= stride;
        const std::ptrdiff_t length = end - targets[k];
        const Vec bound = V::set1(band.bound[length]);
        for (int x = 0; x < C; ++x) {
            const Vec before = V::load(d + x * V::kWidth);
            c[x] = V::add(c[x], V::load(s + x * V::kWidth));
            if (__builtin_expect(V::any_greater(V::fma(c[x], bound, before), best[x]), 0)) {
                best[x] = V::max(best[x], V::add(V::div(c[x], V::set1(band.root[length])), before));
            }
        }
    }
    for (int x = 0; x < C; ++x) V::store(best_out + column + x * V::kWidth, best[x]);
}

template <class V>
void exact_row(const Band& band, std::ptrdiff_t row, double* best) {
    std::ptrdiff_t column = 0;
    for (; column + V::kExactTile * V::kWidth <= band.stride; column += V::kExactTile * V::kWidth)
        exact_tile<V, V::kExactTile>(band, row, column, best);
    for (; column < band.stride; column += V::kWidth) exact_tile<V, 1>(band, row, column, best);
}

// Values only: R target rows at once, so that one load of S and D serves R cells, and a product instead of the division.
template <class V, int R, int C>
inline void value_tile(const Band& band, std::ptrdiff_t row, std::ptrdiff_t column, double* partial) {
    using Vec = typename V::Vec;
    const std::ptrdiff_t stride = band.stride;
    const std::int32_t* targets = band.targets;
    const double* s = band.scores + row * stride + column;
    const double* d = band.before + row * stride + column;
    const double* inverse[R];
    Vec c[R][C];
    Vec best[R][C];
    for (int r = 0; r < R; ++r) {
        inverse[r] = band.inverse + targets[row + r] + 1;
        for (int x = 0; x < C; ++x) {
            c[r][x] = r == 0 ? V::set1(0.0) : V::add(c[r - (r > 0)][x], V::load(s + r * stride + x * V::kWidth));
            best[r][x] = V::set1(0.0);
        }
    }
    for (std::ptrdiff_t k = row; k >= 0; --k) {
        Vec score[C];
        Vec before[C];
        for (int x = 0; x < C; ++x) {
            score[x] = V::load(s + x * V::kWidth);
            before[x] = V::load(d + x * V::kWidth);
        }
        const std::ptrdiff_t start = targets[k];
        for (int r = 0; r < R; ++r) {
            const Vec factor = V::set1(inverse[r][-start]);
            for (int x = 0; x < C; ++x) {
                c[r][x] = V::add(c[r][x], score[x]);
                best[r][x] = V::max(best[r][x], V::fma(c[r][x], factor, before[x]));
            }
        }
        s -= stride;
        d -= stride;
    }
    for (int r = 0; r < R; ++r)
        for (int x = 0; x < C; ++x) V::store(partial + r * stride + column + x * V::kWidth, best[r][x]);
}

template <class V, int R>
inline void value_band(const Band& band, std::ptrdiff_t row, double* partial) {
    std::ptrdiff_t column = 0;
    for (; column + V::kValueTile * V::kWidth <= band.stride; column += V::kValueTile * V::kWidth)
        value_tile<V, R, V::kValueTile>(band, row, column, partial);
    for (; column < band.stride; column += V::kWidth) value_tile<V, R, 1>(band, row, column, partial);
}

template <class V>
void value_rows(const Band& band, std::ptrdiff_t row, std::ptrdiff_t count, double* partial) {
    static_assert(kRowsTogether == 4);
    switch (count) {
        case 1: return value_band<V, 1>(band, row, partial);
        case 2: return value_band<V, 2>(band, row, partial);
        case 3: return value_band<V, 3>(band, row, partial);
        default: return value_band<V, 4>(band, row, partial);
    }
}

// The runs that start inside the block of rows: at most kRowsTogether - 1 of them.
template <class V>
void value_finish(const Band& band, std::ptrdiff_t first, std::ptrdiff_t row, const double* partial, double* best) {
    using Vec = typename V::Vec;
    const std::ptrdiff_t stride = band.stride;
    const double* inverse = band.inverse + band.targets[row] + 1;
    for (std::ptrdiff_t column = 0; column < stride; column += V::kWidth) {
        Vec c = V::set1(0.0);
        Vec b = V::max(V::load(best + column), V::load(partial + (row - first) * stride + column));
        for (std::ptrdiff_t k = row; k > first; --k) {
            c = V::add(c, V::load(band.scores + k * stride + column));
            const Vec factor = V::set1(inverse[-static_cast<std::ptrdiff_t>(band.targets[k])]);
            b = V::max(b, V::fma(c, factor, V::load(band.before + k * stride + column)));
        }
        V::store(best + column, b);
    }
}

// Both ends of a row work in whole vectors even where a plain copy would do: a load that spans two narrower stores stalls.
template <class V>
void begin_row(const double* d, double* before, double* best, std::ptrdiff_t stride) {
    for (std::ptrdiff_t x = 0; x < stride; x += V::kWidth) {
        V::store(before + x, V::load(d + x - 1));
        V::store(best + x, V::load(d + x));
    }
}

template <class V>
void end_row(double* d, const double* best, std::ptrdiff_t from_best, std::ptrdiff_t count) {
    std::ptrdiff_t j = 0;
    double top = d[-1];
    const auto sweep = [&](const double* in, std::ptrdiff_t end) {
        if constexpr (V::kWidth > 1) {
            typename V::Vec carry = V::set1(top);
            for (; j + V::kWidth <= end; j += V::kWidth) {
                const typename V::Vec values = V::prefix_max(V::load(in + j));
                V::store(d + j, V::max(values, carry));
                carry = V::max(V::last(values), carry);  // the only step that waits for the one before
            }
            top = j > 0 ? d[j - 1] : top;
        }
        for (; j < end; ++j) {
            top = in[j] > top ? in[j] : top;
            d[j] = top;
        }
    };
    sweep(best, from_best);
    sweep(d, count);
}

// Enough accumulators to cover the latency of a multiply-add on two pipes, few enough to stay in sixteen registers.
template <class V>
std::ptrdiff_t multiply_add(std::int64_t rounds, double* sink) {
    using Vec = typename V::Vec;
    constexpr int kChains = 12;
    Vec chain[kChains];
    for (int x = 0; x < kChains; ++x) chain[x] = V::set1(static_cast<double>(x));
    Vec factor = V::set1(sink[0]);
    Vec term = V::set1(sink[1]);
    for (std::int64_t round = 0; round < rounds; ++round)
        for (int x = 0; x < kChains; ++x) chain[x] = V::fma(chain[x], factor, term);
    Vec sum = chain[0];
    for (int x = 1; x < kChains; ++x) sum = V::add(sum, chain[x]);
    V::store(sink, sum);  // room for the widest vector
    return kChains * V::kWidth;
}

template <class V>
constexpr Kernels make_kernels(const char* name) {
    return Kernels{name,         V::kWidth,     exact_row<V>, value_rows<V>, value_finish<V>,
                   begin_row<V>, end_row<V>, multiply_add<V>};
}

}  // namespace
}  // namespace pyassemble
