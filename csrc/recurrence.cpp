// The recurrence over groups: row by row, each row by the kernels of its group.
#include "recurrence.hpp"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace pyassemble {

static_assert(FLT_EVAL_METHOD == 0, "ties are decided in float64, not in wider registers");

void Roots::reserve(std::size_t length) {
    if (root_.size() > length) return;
    const std::size_t size = std::max(length + 1, root_.size() * 2);
    root_.resize(size);
    inverse_.resize(size);
    bound_.resize(size);
    infinity_.resize(size, std::numeric_limits<double>::infinity());
    for (std::size_t n = 0; n < size; ++n) {
        root_[n] = std::sqrt(static_cast<double>(n));
        inverse_[n] = n == 0 ? 0.0 : 1.0 / root_[n];
        // With u = 2^-53: fl(1/r) >= (1-u)/r, times (1+8u), rounded once more: at least (1+5u)/r.
        bound_[n] = inverse_[n] * (1.0 + 0x1p-50);
    }
}

namespace {

struct Row {
    std::int32_t group;
    std::int32_t position;  // in the group
};

// A group while its problem is being solved.
struct Part {
    const std::int32_t* columns;  // cells of D
    double* before;
    double* partial;
    bool contiguous;  // columns are neighbours: copies instead of gathers
};

struct Solver {
    // Cells of one source, in vectors, from which on vectors pay for the call.
    static constexpr std::ptrdiff_t kVectorized = 2;

    const Problem& problem;
    Workspace& workspace;
    Row* rows = nullptr;  // targets that are in a group
    Row* column_owner = nullptr;
    Part* parts = nullptr;
    std::ptrdiff_t row_count = 0;
    std::ptrdiff_t column_count = 0;
    // Cells of a row of D: for each source a zero, D[.][0], and then its columns that are in a group.
    std::int32_t* ends = nullptr;  // [source] the cell after its last
    std::ptrdiff_t source_count = 1;
    std::ptrdiff_t width = 0;

    Solver(const Problem& p, Workspace& w, Arithmetic arithmetic) : problem(p), workspace(w) {
        workspace.roots.reserve(static_cast<std::size_t>(problem.targets) + 1);
        Arena& arena = workspace.arena;
        rows = number(problem.targets, row_count, nullptr, [](const Group& g) { return g.targets; });
        auto* positions = arena.take<std::int32_t>(static_cast<std::size_t>(problem.sources));
        column_owner = number(problem.sources, column_count, positions, [](const Group& g) { return g.sources; });
        parts = arena.take<Part>(problem.groups.size());
        auto** next = arena.take<std::int32_t*>(problem.groups.size());
        for (std::size_t g = 0; g < problem.groups.size(); ++g) {
            const Group& group = problem.groups[g];
            const auto stride = static_cast<std::size_t>(group.stride);
            next[g] = arena.take<std::int32_t>(group.sources.size());
            parts[g].columns = next[g];
            parts[g].before = arena.take<double>(group.targets.size() * stride);
            parts[g].partial =
                arithmetic == Arithmetic::fast ? arena.take<double>(static_cast<std::size_t>(kRowsTogether) * stride) : nullptr;
        }
        source_count = std::max<std::ptrdiff_t>(1, static_cast<std::ptrdiff_t>(problem.starts.size()));
        ends = arena.take<std::int32_t>(static_cast<std::size_t>(source_count));
        std::int32_t cell = 0;
        std::ptrdiff_t j = 0;
        for (std::ptrdiff_t s = 0; s < source_count; ++s) {
            ++cell;
            const std::int32_t stop = s + 1 < source_count ? problem.starts[static_cast<std::size_t>(s) + 1] : problem.sources;
            for (; j < column_count && positions[j] < stop; ++j) *next[column_owner[j].group]++ = cell++;
            ends[s] = cell;
        }
        width = cell;
        for (std::size_t g = 0; g < problem.groups.size(); ++g) {
            const std::size_t count = problem.groups[g].sources.size();
            parts[g].contiguous = count == 0 || parts[g].columns[count - 1] - parts[g].columns[0] + 1 == static_cast<std::int32_t>(count);
        }
    }

    // Owners of the positions that are in a group, in order; `positions` receives them.
    template <class Members>
    Row* number(std::int32_t length, std::ptrdiff_t& count, std::int32_t* positions, Members members) {
        Arena& arena = workspace.arena;
        const auto size = static_cast<std::size_t>(length);
        Row* owners = arena.take<Row>(size);
        std::fill_n(owners, size, Row{-1, 0});
        for (std::size_t g = 0; g < problem.groups.size(); ++g) {
            std::int32_t position = 0;
            for (const std::int32_t i : members(problem.groups[g])) owners[i] = Row{static_cast<std::int32_t>(g), position++};
        }
        Row* kept = owners;
        for (std::size_t i = 0; i < size; ++i) {
            if (owners[i].group < 0) continue;
            if (positions != nullptr) positions[kept - owners] = static_cast<std::int32_t>(i);
            *kept++ = owners[i];
        }
        count = kept - owners;
        return owners;
    }

    Band band(std::size_t g) const {
        const Group& group = problem.groups[g];
        const Roots& roots = workspace.roots;
        return Band{group.scores, parts[g].before, group.targets.data(), roots.root(), roots.bound(problem.tiny),
                    roots.inverse(), group.stride};
    }

    // Turns row i-1 of D into row i, in place. `best` has room for the widest group.
    void advance(Row row, Arithmetic arithmetic, double* d, double* best) {
        const auto g = static_cast<std::size_t>(row.group);
        const Group& group = problem.groups[g];
        const Part& part = parts[g];
        const auto count = static_cast<std::ptrdiff_t>(group.sources.size());
        const std::int32_t* columns = part.columns;
        double* before = part.before + row.position * group.stride;
        const Kernels& kernels = workspace.kernels;
        if (part.contiguous) {
            // Padding takes values of D too. They are harmless: before <= best, and their scores are zero.
            kernels.begin_row(d + columns[0], before, best, group.stride);
        } else {
            for (std::ptrdiff_t x = 0; x < count; ++x) {
                before[x] = d[columns[x] - 1];
                best[x] = d[columns[x]];
            }
            std::fill(before + count, before + group.stride, 0.0);
            std::fill(best + count, best + group.stride, 0.0);
        }
        const Band data = band(g);
        if (arithmetic == Arithmetic::exact) {
            kernels.exact_row(data, row.position, best);
            workspace.meter.spend((row.position + 1) * group.stride);
        } else {
            const std::ptrdiff_t first = row.position / kRowsTogether * kRowsTogether;
            if (first == row.position) {
                const auto left = static_cast<std::ptrdiff_t>(group.targets.size()) - first;
                const std::ptrdiff_t together = std::min(left, kRowsTogether);
                kernels.value_rows(data, first, together, part.partial);
                workspace.meter.spend(together * (row.position + 1) * group.stride);
            }
            kernels.value_finish(data, first, row.position, part.partial, best);
        }

        // D[i][j-1] enters here: the best of each column, or that of any column before it.
        if (source_count > 1) {
            for (std::ptrdiff_t x = 0; x < count; ++x) d[columns[x]] = best[x];
            spread_each(d);
            return;
        }
        std::ptrdiff_t from_best = count;
        if (!part.contiguous) {
            for (std::ptrdiff_t x = 0; x < count; ++x) d[columns[x]] = best[x];
            from_best = 0;
        }
        kernels.end_row(d + columns[0], best, from_best, width - columns[0]);
    }

    // end_row() for every source by itself. The chains of short ones do not wait for each other.
    void spread_each(double* d) const {
        std::ptrdiff_t cell = 0;
        for (std::ptrdiff_t s = 0; s < source_count; ++s) {
            ++cell;
            if (ends[s] - cell >= kVectorized * workspace.kernels.width) {
                workspace.kernels.end_row(d + cell, d, 0, ends[s] - cell);
                cell = ends[s];
                continue;
            }
            double reached = 0.0;
            for (; cell < ends[s]; ++cell) {
                reached = d[cell] > reached ? d[cell] : reached;
                d[cell] = reached;
            }
        }
    }

    double* best_buffer() {
        std::ptrdiff_t widest = 0;
        for (const Group& group : problem.groups) widest = std::max(widest, group.stride);
        return workspace.arena.take<double>(static_cast<std::size_t>(widest));
    }

    // Walks back from the last cell. d: (row_count + 1) rows of column_count + 1 values.
    void trace(const double* d, std::vector<Pair>& pairs) const {
        const std::size_t start = pairs.size();
        const std::ptrdiff_t stride = column_count + 1;
        std::ptrdiff_t i = row_count;
        std::ptrdiff_t j = column_count;
        while (i > 0 && j > 0) {
            const double value = d[i * stride + j];
            if (value == d[i * stride + j - 1]) {
                --j;
            } else if (value == d[(i - 1) * stride + j]) {
                --i;
            } else {
                const Row column = column_owner[j - 1];
                const auto run = static_cast<std::ptrdiff_t>(walk_run(rows[i - 1], column, value, pairs));
                // Rows of other groups lie between those of the run; back to the row before the run's first.
                while (rows[i - 1].group != column.group || rows[i - 1].position != run) --i;
                --i;
                --j;
            }
        }
        std::reverse(pairs.begin() + static_cast<std::ptrdiff_t>(start), pairs.end());
    }

    // Appends the pairs of the run that ends at `row` in `column` with this value; returns its first row in the group.
    std::int32_t walk_run(Row row, Row column, double value, std::vector<Pair>& pairs) const {
        if (row.group != column.group) throw std::logic_error("recurrence: a run ends outside its group");
        const auto g = static_cast<std::size_t>(row.group);
        const Band data = band(g);
        const Group& group = problem.groups[g];
        double c = 0.0;
        for (std::int32_t k = row.position; k >= 0; --k) {
            const std::ptrdiff_t cell = k * data.stride + column.position;
            c += data.scores[cell];
            const double v = c / data.root[data.targets[row.position] - data.targets[k] + 1];
            if (v + data.before[cell] != value) continue;
            for (std::int32_t x = row.position; x >= k; --x)
                if (data.scores[x * data.stride + column.position] > 0.0)
                    pairs.push_back(Pair{data.targets[x], group.sources[static_cast<std::size_t>(column.position)]});
            return k;
        }
        throw std::logic_error("recurrence: no run has the value of its cell");
    }
};

// Vectors read past the end of a row of D: infinities there keep before <= best in the padding.
void fill_overhang(double* end) { std::fill_n(end, kOverhang, std::numeric_limits<double>::infinity()); }

// Room for `height` rows of D, the first of them filled with zeros.
double* first_row(std::size_t width, std::size_t height, Arena& arena) {
    double* d = arena.take<double>(width * height + kOverhang);
    std::fill_n(d, width, 0.0);
    fill_overhang(d + width);
    return d;
}

}  // namespace

double solve(const Problem& problem, Arithmetic arithmetic, Workspace& workspace) {
    double value = 0.0;
    solve_each(problem, arithmetic, workspace, &value);
    return value;
}

void solve_each(const Problem& problem, Arithmetic arithmetic, Workspace& workspace, double* values) {
    const Arena::Scope scope(workspace.arena);
    Solver solver(problem, workspace, arithmetic);
    if (solver.row_count == 0 || solver.column_count == 0) {
        std::fill_n(values, solver.source_count, 0.0);
        return;
    }
    double* d = first_row(static_cast<std::size_t>(solver.width), 1, workspace.arena);
    double* best = solver.best_buffer();
    for (std::ptrdiff_t i = 0; i < solver.row_count; ++i) solver.advance(solver.rows[i], arithmetic, d, best);
    for (std::ptrdiff_t s = 0; s < solver.source_count; ++s) values[s] = d[solver.ends[s] - 1];
}

double solve_pairs(const Problem& problem, Workspace& workspace, std::vector<Pair>& pairs) {
    const Arena::Scope scope(workspace.arena);
    Solver solver(problem, workspace, Arithmetic::exact);
    if (solver.row_count == 0 || solver.column_count == 0) return 0.0;
    const auto width = static_cast<std::size_t>(solver.width);
    const auto height = static_cast<std::size_t>(solver.row_count) + 1;
    double* best = solver.best_buffer();
    double* const table = first_row(width, height, workspace.arena);
    double* d = table;
    for (std::ptrdiff_t i = 0; i < solver.row_count; ++i) {
        std::memcpy(d + width, d, width * sizeof(double));
        d += width;
        fill_overhang(d + width);
        solver.advance(solver.rows[i], Arithmetic::exact, d, best);
        workspace.meter.spend(static_cast<std::int64_t>(width));
    }
    solver.trace(table, pairs);
    return d[width - 1];
}

Problem dense_problem(const double* scores, std::int32_t targets, std::int32_t sources, Workspace& workspace) {
    Arena& arena = workspace.arena;
    const auto n = static_cast<std::size_t>(targets);
    const auto m = static_cast<std::size_t>(sources);
    Problem problem{targets, sources, {}, false};

    // Union-find over targets 0 .. n-1 and sources n .. n+m-1.
    auto* parent = arena.take<std::int32_t>(n + m);
    for (std::size_t v = 0; v < n + m; ++v) parent[v] = static_cast<std::int32_t>(v);
    const auto find = [parent](std::int32_t v) {
        while (parent[v] != v) v = parent[v] = parent[parent[v]];
        return v;
    };
    for (std::size_t i = 0; i < n; ++i) {
        std::int32_t root = find(static_cast<std::int32_t>(i));
        for (std::size_t j = 0; j < m; ++j) {
            const double score = scores[i * m + j];
            if (score == 0.0) continue;
            problem.tiny |= score < kTiny;
            const std::int32_t other = find(static_cast<std::int32_t>(n + j));
            if (other != root) parent[other] = root;
        }
        workspace.meter.spend(sources);
    }

    // Members of each component, in order; a component of one vertex has no scores.
    auto* size = arena.take<std::int32_t>(2 * (n + m));  // [2 v]: targets, [2 v + 1]: sources of the component of root v
    std::fill_n(size, 2 * (n + m), 0);
    for (std::size_t v = 0; v < n + m; ++v) ++size[2 * static_cast<std::size_t>(find(static_cast<std::int32_t>(v))) + (v >= n)];
    auto* label = arena.take<std::int32_t>(n + m);
    std::size_t count = 0;
    for (std::size_t v = 0; v < n + m; ++v)
        label[v] = size[2 * v] > 0 && size[2 * v + 1] > 0 ? static_cast<std::int32_t>(count++) : -1;
    auto* groups = arena.take<Group>(count);
    auto** target_members = arena.take<std::int32_t*>(count);
    auto** source_members = arena.take<std::int32_t*>(count);
    for (std::size_t v = 0; v < n + m; ++v) {
        if (label[v] < 0) continue;
        const auto g = static_cast<std::size_t>(label[v]);
        const auto p = static_cast<std::size_t>(size[2 * v]);
        const auto q = static_cast<std::size_t>(size[2 * v + 1]);
        target_members[g] = arena.take<std::int32_t>(p);
        source_members[g] = arena.take<std::int32_t>(q);
        groups[g] = Group{{target_members[g], p}, {source_members[g], q}, nullptr, workspace.padded(q)};
    }
    for (std::size_t v = 0; v < n + m; ++v) {
        const std::int32_t g = label[static_cast<std::size_t>(find(static_cast<std::int32_t>(v)))];
        if (g < 0) continue;
        if (v < n)
            *target_members[g]++ = static_cast<std::int32_t>(v);
        else
            *source_members[g]++ = static_cast<std::int32_t>(v - n);
    }
    for (std::size_t g = 0; g < count; ++g) {
        Group& group = groups[g];
        const auto stride = static_cast<std::size_t>(group.stride);
        group.scores = arena.take<double>(group.targets.size() * stride);
        double* out = group.scores;
        for (const std::int32_t i : group.targets) {
            const double* row = scores + static_cast<std::size_t>(i) * m;
            std::size_t x = 0;
            for (const std::int32_t j : group.sources) out[x++] = row[j];
            for (; x < stride; ++x) out[x] = 0.0;
            out += stride;
        }
        workspace.meter.spend(static_cast<std::int64_t>(group.targets.size() * stride));
    }
    problem.groups = {groups, count};
    return problem;
}

}  // namespace pyassemble
