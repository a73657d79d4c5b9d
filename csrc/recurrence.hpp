// One level of the recurrence (DPIAT, arXiv 2212.13970): targets i, sources j, scores S >= 0, D[0][.] = D[.][0] = 0,
//
//     D[i][j] = max( D[i][j-1], D[i-1][j], max over k = i .. 1 of (S[k][j] + ... + S[i][j]) / sqrt(i-k+1) + D[k-1][j-1] ).
//
// Ties: D[i-1][j] replaces D[i][j-1], and a run replaces the best so far, only if strictly greater; k is tried downward.
//
// Most scores are zero, because only layers of one kind score against each other. The layers of both sides therefore fall
// into groups such that S = 0 outside them, and each group is a small dense problem. What this skips changes neither values
// nor pairs. Below, floating-point addition, division and root are monotone, c + 0 = c, and D grows along rows and columns.
//
//  1. A run ending at a target i with S[i][j] = 0 never wins. k = i: its value is D[i-1][j-1] <= D[i-1][j]. k < i: the run
//     k .. i-1 has the same sum over a smaller root, so its value is no less, and D[i-1][j] is no less than that.
//  2. A run starting at a target k with S[k][j] = 0, k < i, never wins: k+1 .. i has the same sum over a smaller root, and
//     D[k][j-1] >= D[k-1][j-1]; it was tried earlier and wins ties.
//     So in column j only targets of the group of j start and end runs, and adding only their scores gives the same sums in
//     the same order. Lengths come from the original positions.
//  3. A column without scores copies the column before it (no run wins, D[i-1][j] = D[i-1][j-1] <= D[i][j-1]), and walking
//     back passes it to the left: it is dropped.
//  4. A row without scores copies the row above. Walking back from it moves left while D[i][j-1] = D[i][j], then up. Going up
//     at once moves left in the row above over the same values, to the same place: it is dropped.
//
// The table holds values only. Walking back asks at each cell which of the alternatives, in the order of the ties, has the
// cell's value: the first that has it is the one that the recurrence took.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "arena.hpp"
#include "kernels.hpp"
#include "meter.hpp"

namespace pyassemble {

// Targets and sources that may score against each other; scores outside of groups are zero. Every target and every source
// is in at most one group.
struct Group {
    std::span<const std::int32_t> targets;  // positions, ascending
    std::span<const std::int32_t> sources;  // positions, ascending
    double* scores;                         // [target * stride + source], padding zero
    std::ptrdiff_t stride;                  // sources.size() rounded up to the vector width
};

struct Problem {
    std::int32_t targets = 0;
    std::int32_t sources = 0;
    std::span<const Group> groups;
    bool tiny = false;  // some positive score may be below kTiny
    // Where each of several independent sources starts among the columns, the first at 0; empty for a single one. They share
    // the work that a target row costs however few columns there are.
    std::span<const std::int32_t> starts = {};
};

// Below this, c / root might leave the normal numbers and the estimate of the exact kernel its proof.
inline constexpr double kTiny = 0x1p-960;

enum class Arithmetic { exact, fast };  // fast: any order of operations, for values without pairs

struct Pair {
    std::int32_t target;
    std::int32_t source;
    friend bool operator==(const Pair&, const Pair&) = default;
};

// Roots of lengths, and bounds on their reciprocals.
class Roots {
public:
    void reserve(std::size_t length);
    const double* root() const { return root_.data(); }
    const double* inverse() const { return inverse_.data(); }
    const double* bound(bool tiny) const { return tiny ? infinity_.data() : bound_.data(); }

private:
    std::vector<double> root_, inverse_, bound_, infinity_;
};

// What a computation carries along: kernels, scratch memory, tables, the meter. One per thread.
class Workspace {
public:
    explicit Workspace(const Kernels& k, Meter m = {}) : kernels(k), meter(m) {}
    const Kernels& kernels;
    Meter meter;
    Arena arena;
    Roots roots;

    std::ptrdiff_t padded(std::size_t columns) const {
        const auto width = static_cast<std::size_t>(kernels.width);
        return static_cast<std::ptrdiff_t>((columns + width - 1) / width * width);
    }
};

// D[n][m].
double solve(const Problem& problem, Arithmetic arithmetic, Workspace& workspace);

// D[n][m] of each source of `problem.starts`, the same bits as solve() gives for it alone.
void solve_each(const Problem& problem, Arithmetic arithmetic, Workspace& workspace, double* values);

// D[n][m] in exact arithmetic; appends the pairs, in target order.
double solve_pairs(const Problem& problem, Workspace& workspace, std::vector<Pair>& pairs);

// The groups of a dense matrix of scores, row = target: the connected components of its positive entries. The arena must
// keep its memory while the problem is in use.
Problem dense_problem(const double* scores, std::int32_t targets, std::int32_t sources, Workspace& workspace);

}  // namespace pyassemble
