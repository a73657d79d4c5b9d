// Random matrices and sequences, solved by every instruction set and by a textbook recurrence; meant to run under sanitizers.
//
// Usage: fuzz_align [iterations] [seed]. Exits with 1 at the first difference and prints how to repeat it.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "align.hpp"
#include "dispatch.hpp"

namespace {

using namespace pyassemble;

using Random = std::mt19937_64;

int pick(Random& random, int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); }

struct Result {
    double value = 0.0;
    std::vector<Pair> pairs;
    bool operator==(const Result& other) const {
        return std::memcmp(&value, &other.value, sizeof value) == 0 && pairs == other.pairs;
    }
};

// The recurrence as it is defined: a full table, nothing skipped.
Result textbook(const std::vector<double>& s, int n, int m) {
    const auto at = [m](int i, int j) { return static_cast<std::size_t>(i) * static_cast<std::size_t>(m + 1) + static_cast<std::size_t>(j); };
    const auto score = [&](int i, int j) { return s[static_cast<std::size_t>(i - 1) * static_cast<std::size_t>(m) + static_cast<std::size_t>(j - 1)]; };
    std::vector<double> d(at(n, m) + 1, 0.0);
    std::vector<int> move(d.size(), 0);
    for (int i = 1; i <= n; ++i) {
        for (int j = 1; j <= m; ++j) {
            double best = d[at(i, j - 1)];
            int how = 0;
            if (d[at(i - 1, j)] > best) {
                best = d[at(i - 1, j)];
                how = -1;
            }
            double c = 0.0;
            for (int k = i; k >= 1; --k) {
                c += score(k, j);
                const double v = c / std::sqrt(static_cast<double>(i - k + 1));
                if (v + d[at(k - 1, j - 1)] > best) {
                    best = v + d[at(k - 1, j - 1)];
                    how = k;
                }
            }
            d[at(i, j)] = best;
            move[at(i, j)] = how;
        }
    }
    Result result{d[at(n, m)], {}};
    for (int i = n, j = m; i > 0 && j > 0;) {
        const int how = move[at(i, j)];
        if (how == 0) {
            --j;
        } else if (how < 0) {
            --i;
        } else {
            for (int x = i; x >= how; --x)
                if (score(x, j) > 0.0) result.pairs.insert(result.pairs.begin(), Pair{x - 1, j - 1});
            i = how - 1;
            --j;
        }
    }
    return result;
}

struct Net {
    std::vector<std::int32_t> kinds;
    std::vector<std::int64_t> size_offsets{0}, sizes, element_offsets{0};
    std::vector<std::uint8_t> is_block;
    Sequence::Arrays arrays() const { return {kinds, size_offsets, sizes, element_offsets, is_block}; }
};

Net random_net(Random& random) {
    Net net;
    const int elements = pick(random, 0, 14);
    for (int e = 0; e < elements; ++e) {
        const bool block = pick(random, 0, 2) > 0;
        const int layers = block ? pick(random, 1, 10) : 1;
        for (int l = 0; l < layers; ++l) {
            net.kinds.push_back(pick(random, -1, 2));
            const int rank = pick(random, 0, 2);
            for (int d = 0; d < rank; ++d) net.sizes.push_back(std::int64_t{1} << pick(random, 0, 3));
            net.size_offsets.push_back(static_cast<std::int64_t>(net.sizes.size()));
        }
        net.element_offsets.push_back(static_cast<std::int64_t>(net.kinds.size()));
        net.is_block.push_back(block);
    }
    return net;
}

double textbook_score(const Net& a, std::size_t s, const Net& b, std::size_t t) {
    if (a.kinds[s] < 0 || a.kinds[s] != b.kinds[t]) return 0.0;
    const std::int64_t rank = a.size_offsets[s + 1] - a.size_offsets[s];
    if (rank != b.size_offsets[t + 1] - b.size_offsets[t]) return 0.0;
    double product = 1.0;
    for (std::int64_t d = 0; d < rank; ++d) {
        const auto x = static_cast<double>(a.sizes[static_cast<std::size_t>(a.size_offsets[s] + d)]);
        const auto y = static_cast<double>(b.sizes[static_cast<std::size_t>(b.size_offsets[t] + d)]);
        product *= std::fmin(x / y, y / x);
    }
    return product;
}

Result textbook_block(const Net& a, std::size_t s, const Net& b, std::size_t t) {
    const auto m = static_cast<int>(a.element_offsets[s + 1] - a.element_offsets[s]);
    const auto n = static_cast<int>(b.element_offsets[t + 1] - b.element_offsets[t]);
    std::vector<double> scores;
    for (int i = 0; i < n; ++i)
        for (int j = 0; j < m; ++j)
            scores.push_back(textbook_score(a, static_cast<std::size_t>(a.element_offsets[s] + j), b, static_cast<std::size_t>(b.element_offsets[t] + i)));
    if (!a.is_block[s]) return {scores[0], {{0, 0}}};
    return textbook(scores, n, m);
}

Result textbook_align(const Net& a, const Net& b) {
    std::vector<double> scores;
    for (std::size_t t = 0; t < b.is_block.size(); ++t)
        for (std::size_t s = 0; s < a.is_block.size(); ++s)
            scores.push_back(a.is_block[s] == b.is_block[t] ? textbook_block(a, s, b, t).value : 0.0);
    const Result top = textbook(scores, static_cast<int>(b.is_block.size()), static_cast<int>(a.is_block.size()));
    Result result{top.value, {}};
    for (const Pair pair : top.pairs) {
        const auto s = static_cast<std::size_t>(pair.source);
        const auto t = static_cast<std::size_t>(pair.target);
        for (const Pair inner : textbook_block(a, s, b, t).pairs)
            result.pairs.push_back({static_cast<std::int32_t>(b.element_offsets[t]) + inner.target, static_cast<std::int32_t>(a.element_offsets[s]) + inner.source});
    }
    return result;
}

void require(bool good, const char* what) {
    if (!good) throw std::runtime_error(what);
}

bool close(double a, double b) { return std::fabs(a - b) <= 1e-12 * b; }

void fuzz_matrix(Random& random) {
    const int n = pick(random, 0, 40);
    const int m = pick(random, 0, 40);
    static const std::vector<std::vector<double>> palettes = {
        {0.0, 0.25, 0.5, 1.0}, {0, 0, 0, 0, 0, 0, 0, 0, 0, 1.0 / 3, 1.0}, {0, 5e-324, 1e-320, 1e-308, 1e-290, 1.0}, {1.0}, {0, 1e-3, 1e300}, {0.0}};
    const int mode = pick(random, 0, static_cast<int>(palettes.size()));
    std::vector<double> scores(static_cast<std::size_t>(n) * static_cast<std::size_t>(m));
    std::uniform_real_distribution<double> uniform(0.0, 1.0);
    for (double& score : scores) {
        if (mode == static_cast<int>(palettes.size())) {
            score = uniform(random);
        } else {
            const std::vector<double>& palette = palettes[static_cast<std::size_t>(mode)];
            score = palette[static_cast<std::size_t>(pick(random, 0, static_cast<int>(palette.size()) - 1))];
        }
    }
    const Result expected = textbook(scores, n, m);
    for (const Kernels* kernels : available_kernels()) {
        Workspace workspace(*kernels);
        Result result;
        const Problem problem = dense_problem(scores.data(), n, m, workspace);
        result.value = solve_pairs(problem, workspace, result.pairs);
        require(result == expected, kernels->name);
        require(solve(problem, Arithmetic::exact, workspace) == expected.value, kernels->name);
        require(close(solve(problem, Arithmetic::fast, workspace), expected.value), kernels->name);
    }
}

void fuzz_align(Random& random) {
    const Net a = random_net(random);
    const Net b = random_net(random);
    const auto shared = std::make_shared<Interner>();
    const Sequence source(a.arrays());
    const Sequence target(b.arrays());
    const Sequence source_shared(a.arrays(), shared);
    const Sequence target_shared(b.arrays(), shared);
    const Result expected = textbook_align(a, b);
    for (const Kernels* kernels : available_kernels()) {
        Workspace workspace(*kernels);
        const Alignment own = align(source, target, workspace);
        require(Result{own.score, own.pairs} == expected, kernels->name);
        const Alignment one = align(source_shared, target_shared, workspace);
        require(Result{one.score, one.pairs} == expected, kernels->name);
        require(close(score(source, target, workspace), expected.value), kernels->name);
    }
}

// Arrays that may contradict each other: rejected with an exception, or good enough to compute on.
void fuzz_arrays(Random& random) {
    Net net = random_net(random);
    const int changes = pick(random, 1, 3);
    for (int c = 0; c < changes; ++c) {
        std::vector<std::int64_t>* arrays[] = {&net.size_offsets, &net.sizes, &net.element_offsets};
        std::vector<std::int64_t>& array = *arrays[pick(random, 0, 2)];
        switch (pick(random, 0, 3)) {
            case 0: array.push_back(pick(random, -2, 60)); break;
            case 1: if (!array.empty()) array.pop_back(); break;
            case 2: if (!array.empty()) array[random() % array.size()] = pick(random, 0, 3) ? pick(random, -3, 60) : INT64_MIN; break;
            default: net.kinds.push_back(pick(random, -5, 2));
        }
    }
    try {
        const Sequence sequence(net.arrays());
        Workspace workspace(active_kernels());
        align(sequence, sequence, workspace);
    } catch (const std::invalid_argument&) {
    }
}

}  // namespace

int main(int argc, char** argv) {
    const long iterations = argc > 1 ? std::atol(argv[1]) : 2000;
    const unsigned long long seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
    for (long x = 0; x < iterations; ++x) {
        Random random(seed + static_cast<unsigned long long>(x));
        try {
            fuzz_matrix(random);
            fuzz_align(random);
            fuzz_arrays(random);
        } catch (const std::exception& error) {
            std::fprintf(stderr, "difference: %s; repeat with: fuzz_align 1 %llu\n", error.what(), seed + static_cast<unsigned long long>(x));
            return 1;
        }
    }
    std::printf("%ld iterations, no difference\n", iterations);
    return 0;
}
