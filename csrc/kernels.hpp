// The inner loops of the recurrence as a table of functions, one table per instruction set.
//
// This header is all that the files compiled with special flags share with the rest. It holds plain data and no inline
// function: an inline function compiled with AVX-512 could be the copy that the linker keeps for everybody.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pyassemble {

// The part of the recurrence that one group of mutually scorable layers sees (see recurrence.hpp): dense, packed rows.
struct Band {
    const double* scores;         // [row * stride + column] the score S, zero in the padding
    const double* before;         // [row * stride + column] D[target - 1][source - 1]
    const std::int32_t* targets;  // [row] position of the row in the target, ascending
    const double* root;           // [length] sqrt(length), correctly rounded
    const double* bound;          // [length] slightly more than 1 / sqrt(length), or infinity (see Roots)
    const double* inverse;        // [length] 1 / sqrt(length)
    std::ptrdiff_t stride;        // columns, padded to a multiple of the vector width
};

// Doubles that a vector may read past the end of a row of D.
inline constexpr std::size_t kOverhang = 8;

// Target rows that the values-only kernel handles together: they share the loads of `scores` and `before`.
inline constexpr std::ptrdiff_t kRowsTogether = 4;

struct Kernels {
    const char* name;
    std::ptrdiff_t width;  // doubles per vector

    // best[column] = max(best[column], every run ending at `row`), each value in the exact order of operations.
    void (*exact_row)(const Band& band, std::ptrdiff_t row, double* best);

    // partial[r * stride + column] = max over k <= row of the runs k .. row + r, for r < count <= kRowsTogether.
    void (*value_rows)(const Band& band, std::ptrdiff_t row, std::ptrdiff_t count, double* partial);

    // best[column] = max(best[column], partial of this row, the runs k .. row for k > first), first = start of its block.
    void (*value_finish)(const Band& band, std::ptrdiff_t first, std::ptrdiff_t row, const double* partial, double* best);

    // before[x] = d[x - 1], best[x] = d[x] for x < stride; reads whole vectors.
    void (*begin_row)(const double* d, double* before, double* best, std::ptrdiff_t stride);

    // d[x] = best[x] for x < from_best, then d[x] = max(d[-1], ..., d[x]) for x < count.
    void (*end_row)(double* d, const double* best, std::ptrdiff_t from_best, std::ptrdiff_t count);

    // Performs `rounds` rounds of independent multiply-adds, returns how many lanes one round holds.
    std::ptrdiff_t (*multiply_add)(std::int64_t rounds, double* sink);
};

extern const Kernels kScalarKernels;
#if defined(__x86_64__)
extern const Kernels kSse2Kernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

}  // namespace pyassemble
