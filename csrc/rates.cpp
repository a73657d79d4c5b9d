// Measured rates. Each is the best of several short slices: other work on the machine can only slow a slice down.
#include "rates.hpp"

#include <algorithm>
#include <chrono>
#include <random>
#include <vector>

namespace pyassemble {

namespace {

// work(count) does `count` units; returns the best units per second over slices of about five milliseconds.
template <class Work>
double best_rate(double seconds, Meter& meter, Work work) {
    using Clock = std::chrono::steady_clock;
    const auto elapsed = [](Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count(); };
    const Clock::time_point begin = Clock::now();
    std::int64_t count = 1;
    double best = 0.0;
    do {
        const Clock::time_point start = Clock::now();
        work(count);
        const double took = elapsed(start);
        if (took < 0.005) {
            count *= 2;
            best = std::max(best, took > 0.0025 ? static_cast<double>(count / 2) / took : 0.0);
        } else {
            best = std::max(best, static_cast<double>(count) / took);
        }
        meter.spend(std::int64_t{1} << 20);
    } while (elapsed(begin) < seconds || best == 0.0);
    return best;
}

}  // namespace

double multiply_add_rate(double seconds, Workspace& workspace) {
    double sink[8] = {0.5, 0.25, 0, 0, 0, 0, 0, 0};
    std::ptrdiff_t lanes = 0;
    const double rounds = best_rate(seconds, workspace.meter, [&](std::int64_t count) {
        sink[0] = 0.5;
        sink[1] = 0.25;
        lanes = workspace.kernels.multiply_add(count, sink);
    });
    return rounds * static_cast<double>(lanes);
}

double recurrence_rate(std::int32_t targets, std::int32_t sources, Arithmetic arithmetic, double seconds, Workspace& workspace) {
    const Arena::Scope scope(workspace.arena);
    std::mt19937_64 random(0);
    std::uniform_real_distribution<double> uniform(1e-3, 1.0);  // all positive: one group, nothing to skip
    std::vector<double> scores(static_cast<std::size_t>(targets) * static_cast<std::size_t>(sources));
    for (double& score : scores) score = uniform(random);
    const Problem problem = dense_problem(scores.data(), targets, sources, workspace);
    double sum = 0.0;
    const double solved = best_rate(seconds, workspace.meter, [&](std::int64_t count) {
        for (std::int64_t x = 0; x < count; ++x) sum += solve(problem, arithmetic, workspace);
    });
    // No kernel skips a cell: the exact one adds, estimates and compares each, and only leaves out divisions whose result
    // could not be the maximum. Padding lanes are not counted.
    const double n = targets;
    return sum > 0.0 ? solved * n * (n + 1.0) / 2.0 * sources : 0.0;
}

}  // namespace pyassemble
