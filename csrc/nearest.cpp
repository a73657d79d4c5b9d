// The most similar networks of a zoo, found without aligning those that cannot be among them.
//
// Upper bounds on D(source -> target), class by class of layers that may score against each other. A run of l targets over one
// source is worth (S_1 + ... + S_l) / sqrt(l), a sum of scores at most, and every target is in one run at most:
//
//   (a)  D <= sum over targets of the best score that any source layer of the class gives them.
//
// With b the best score that a source layer gives any target, its run is worth at most b * sqrt(l); the lengths l of all runs
// add up to at most n targets, so by Cauchy and Schwarz
//
//   (b)  D <= sqrt(n * sum over sources of b^2).
//
// Both hold across the two levels of blocks: a run of blocks is worth the sum of its blocks' values over sqrt(l), to which the
// same two steps apply again. Classes add up, since a layer is paired within its class only.
#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>

#include "parallel.hpp"
#include "problem.hpp"
#include "zoo.hpp"

namespace pyassemble {

namespace {

// Scores that are computed when first asked for, by any thread. Memory that is never touched is never given by the system.
class LazyScores {
public:
    LazyScores(std::size_t rows, std::size_t columns) : columns_(columns) {
        if (rows == 0 || columns == 0) return;
        bits_.reset(static_cast<std::uint64_t*>(std::calloc(rows * columns, sizeof(std::uint64_t))));
        if (bits_ == nullptr) throw std::bad_alloc();
    }

    template <class Compute>
    double get(std::int32_t row, std::int32_t column, const Compute& compute) const {
        // Zero is "not known yet"; two threads may compute the same value, and then store the same bits.
        std::atomic_ref<std::uint64_t> bits(bits_.get()[static_cast<std::size_t>(row) * columns_ + static_cast<std::size_t>(column)]);
        const std::uint64_t known = bits.load(std::memory_order_relaxed);
        if (known != 0) return std::bit_cast<double>(~known);
        const double value = compute();
        bits.store(~std::bit_cast<std::uint64_t>(value), std::memory_order_relaxed);
        return value;
    }

private:
    struct Free {
        void operator()(std::uint64_t* p) const { std::free(p); }
    };
    std::unique_ptr<std::uint64_t, Free> bits_;
    std::size_t columns_;
};

// Bounds are sums in another order than what they bound.
constexpr double kSlack = 1.0 + 1e-9;
// Scores below 1e-154 vanish when they are squared, while what they bound does not: more than they could add to (b).
constexpr double kVanished = 1e-140;

double cauchy_schwarz(double targets, double squares) { return std::sqrt(targets * squares) + kVanished; }

}  // namespace

class Zoo::Search {
public:
    Search(const Zoo& zoo, const Sequence& query, std::size_t k, Similarity similarity, std::vector<Workspace>& workspaces)
        : zoo_(zoo),
          query_(query),
          k_(k),
          similarity_(similarity),
          workspaces_(workspaces),
          workers_(static_cast<unsigned>(workspaces.size())),
          to_query_(zoo.interner_, query.interner(), workspaces[0].meter),
          to_zoo_(query.interner(), zoo.interner_, workspaces[0].meter),
          query_blocks_(query.interner().blocks().size(), zoo.interner_.blocks().size()),
          zoo_blocks_(zoo.interner_.blocks().size(), query.interner().blocks().size()) {
        std::vector<std::int32_t> elements;
        for (const Sequence::Element& e : query.elements()) elements.push_back(e.is_block ? kFirstBlock - e.id : e.id);
        query_layers_ = count_layers(elements, query.interner());
        query_count_.resize(zoo.interner_.classes().size());
        best_.resize(zoo.interner_.classes().size());
        for (std::size_t c = 0; c < best_.size(); ++c) {
            const ScoreTable& table = to_zoo_.table(static_cast<std::int32_t>(c));
            if (table.source_class < 0) continue;
            best_[c].resize(static_cast<std::size_t>(zoo.interner_.classes()[c].count));
            for (std::size_t m = 0; m < best_[c].size(); ++m) {
                const double* row = to_zoo_.values() + table.offset + m * table.stride;
                best_[c][m] = *std::max_element(row, row + table.stride);
            }
            for (const LayerCount& layer : query_layers_)
                if (layer.klass == table.source_class) query_count_[c] += layer.count;
        }
    }

    std::vector<Neighbour> run(std::size_t& aligned) {
        struct Candidate {
            std::int32_t network;
            double bound;
        };
        const auto by_bound = [](const Candidate& a, const Candidate& b) { return a.bound != b.bound ? a.bound > b.bound : a.network < b.network; };
        std::vector<Candidate> candidates;
        for (std::int32_t i = 0; i < zoo_.size(); ++i)
            if (zoo_.networks_[static_cast<std::size_t>(i)].original == i) candidates.push_back({i, 0.0});
        constexpr std::size_t kTogether = 256;
        parallel_for((candidates.size() + kTogether - 1) / kTogether, workers_, [&](std::size_t task, unsigned worker) {
            const std::size_t end = std::min(candidates.size(), (task + 1) * kTogether);
            for (std::size_t i = task * kTogether; i < end; ++i) {
                const Network& n = network(candidates[i].network);
                candidates[i].bound = combined(loose_bound(n), n);
            }
            workspaces_[worker].meter.spend(std::int64_t{kTogether} * 64);
        });
        std::ranges::sort(candidates, by_bound);

        // The likeliest first, by the tighter bound: they raise the bar that the others must reach.
        const std::size_t likely = std::min(candidates.size(), std::max<std::size_t>(1024, 4 * k_));
        parallel_for(likely, workers_, [&](std::size_t i, unsigned) {
            const Network& n = network(candidates[i].network);
            candidates[i].bound = std::min(candidates[i].bound, combined(tight_bound(n), n));
        });
        std::sort(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(likely), by_bound);
        parallel_for(candidates.size(), workers_, [&](std::size_t i, unsigned worker) {
            const Candidate& candidate = candidates[i];
            if (hopeless(candidate.bound)) return;
            const Network& n = network(candidate.network);
            Directions values = tight_bound(n);
            if (hopeless(combined(values, n))) return;
            // One direction may be enough to tell.
            values.to_query = exact_to_query(n, workspaces_[worker]);
            if (similarity_ == Similarity::symmetric) {
                if (hopeless(combined(values, n))) return;
                values.to_zoo = exact_to_zoo(n, workspaces_[worker]);
            }
            offer(candidate.network, combined(values, n));
        });
        aligned = aligned_;
        std::ranges::sort(found_, better);
        return std::move(found_);
    }

private:
    const Network& network(std::int32_t i) const { return zoo_.networks_[static_cast<std::size_t>(i)]; }

    static bool better(const Neighbour& a, const Neighbour& b) {
        return a.similarity != b.similarity ? a.similarity > b.similarity : a.network < b.network;
    }

    bool hopeless(double bound) const { return bound * kSlack < bar_.load(std::memory_order_relaxed); }

    void offer(std::int32_t original, double similarity) {
        const std::lock_guard lock(mutex_);
        ++aligned_;
        for (std::int32_t i = original; i >= 0; i = network(i).next_equal) {
            const Neighbour neighbour{i, similarity};
            if (found_.size() == k_ && !better(neighbour, found_.front())) continue;
            if (found_.size() == k_) {
                std::ranges::pop_heap(found_, better);
                found_.pop_back();
            }
            found_.push_back(neighbour);
            std::ranges::push_heap(found_, better);  // the worst in front
        }
        if (found_.size() == k_) bar_.store(found_.front().similarity, std::memory_order_relaxed);
    }

    // D(zoo network -> query) and D(query -> zoo network), or bounds on them.
    struct Directions {
        double to_query = 0.0;
        double to_zoo = 0.0;
    };

    double combined(const Directions& d, const Network& n) const {
        if (n.scored == 0 || query_.num_scored() == 0) return 0.0;
        const double forward = d.to_query / static_cast<double>(query_.num_scored());
        return similarity_ == Similarity::directed ? forward : std::sqrt(forward * d.to_zoo / static_cast<double>(n.scored));
    }

    // (a) and (b) with the best score that each zoo layer gets from any layer of the query.
    Directions loose_bound(const Network& n) const {
        Directions bound;
        for_each_class(n, [&](std::size_t c, std::span<const LayerCount> layers) {
            double sum = 0.0;
            double squares = 0.0;
            double count = 0.0;
            for (const LayerCount& layer : layers) {
                const double best = best_[c][static_cast<std::size_t>(layer.member)];
                sum += layer.count * best;
                squares += layer.count * best * best;
                count += layer.count;
            }
            const double queries = query_count_[c];
            bound.to_query += std::min(queries, cauchy_schwarz(queries, squares));
            bound.to_zoo += std::min(sum, cauchy_schwarz(count, queries));
        });
        return bound;
    }

    // The same with the best score that each query layer gets from this network.
    Directions tight_bound(const Network& n) const {
        Directions bound;
        for_each_class(n, [&](std::size_t c, std::span<const LayerCount> layers) {
            double zoo_sum = 0.0;
            double zoo_squares = 0.0;
            double zoo_count = 0.0;
            for (const LayerCount& layer : layers) {
                const double best = best_[c][static_cast<std::size_t>(layer.member)];
                zoo_sum += layer.count * best;
                zoo_squares += layer.count * best * best;
                zoo_count += layer.count;
            }
            const std::int32_t query_class = to_zoo_.table(static_cast<std::int32_t>(c)).source_class;
            const ScoreTable& table = to_query_.table(query_class);
            double sum = 0.0;
            double squares = 0.0;
            for (const LayerCount& mine : query_layers_) {
                if (mine.klass != query_class) continue;
                const double* row = to_query_.values() + table.offset + static_cast<std::size_t>(mine.member) * table.stride;
                double best = 0.0;
                for (const LayerCount& layer : layers) best = std::max(best, row[layer.member]);
                sum += mine.count * best;
                squares += mine.count * best * best;
            }
            bound.to_query += std::min(sum, cauchy_schwarz(query_count_[c], zoo_squares));
            bound.to_zoo += std::min(zoo_sum, cauchy_schwarz(zoo_count, squares));
        });
        return bound;
    }

    // Calls visit(class, its layers) for the classes that the query has too.
    template <class Visit>
    void for_each_class(const Network& n, const Visit& visit) const {
        for (std::size_t begin = 0, end = 0; begin < n.layers.size(); begin = end) {
            while (end < n.layers.size() && n.layers[end].klass == n.layers[begin].klass) ++end;
            const auto c = static_cast<std::size_t>(n.layers[begin].klass);
            if (!best_[c].empty()) visit(c, std::span(n.layers).subspan(begin, end - begin));
        }
    }

    static double solved(const Layout& source, const Layout& target, const LayerScores& layers, const auto& block_score, Workspace& workspace) {
        const Arena::Scope scope(workspace.arena);
        return solve(make_problem(source, target, layers, block_score, workspace), Arithmetic::fast, workspace);
    }

    static double no_blocks(std::int32_t, std::int32_t) { return 0.0; }

    double exact_to_query(const Network& n, Workspace& workspace) const {
        const auto block_score = [&](std::int32_t t, std::int32_t s) {
            return query_blocks_.get(t, s, [&] { return solved(zoo_block(s), query_block(t), to_query_, no_blocks, workspace); });
        };
        return solved(n.layout, query_.layout(), to_query_, block_score, workspace);
    }

    double exact_to_zoo(const Network& n, Workspace& workspace) const {
        const auto block_score = [&](std::int32_t t, std::int32_t s) {
            return zoo_blocks_.get(t, s, [&] { return solved(query_block(s), zoo_block(t), to_zoo_, no_blocks, workspace); });
        };
        return solved(query_.layout(), n.layout, to_zoo_, block_score, workspace);
    }

    const Layout& query_block(std::int32_t b) const { return query_.interner().blocks()[static_cast<std::size_t>(b)]; }
    const Layout& zoo_block(std::int32_t b) const { return zoo_.interner_.blocks()[static_cast<std::size_t>(b)]; }

    const Zoo& zoo_;
    const Sequence& query_;
    const std::size_t k_;
    const Similarity similarity_;
    std::vector<Workspace>& workspaces_;
    const unsigned workers_;
    const LayerScores to_query_;  // [query layer][zoo layer]
    const LayerScores to_zoo_;    // [zoo layer][query layer]
    const LazyScores query_blocks_, zoo_blocks_;
    std::vector<LayerCount> query_layers_;
    std::vector<std::int32_t> query_count_;   // [zoo class] scored layers of the query
    std::vector<std::vector<double>> best_;  // [zoo class][member] best score of any query layer

    std::mutex mutex_;
    std::vector<Neighbour> found_;
    std::size_t aligned_ = 0;
    std::atomic<double> bar_{-1.0};
};

std::vector<Neighbour> Zoo::nearest(const Sequence& query, std::size_t k, Similarity similarity, const Run& run, std::size_t* aligned) const {
    std::size_t count = 0;
    std::vector<Neighbour> found;
    if (k > 0) {
        std::vector<Workspace> workspaces = make_workspaces(run);
        found = Search(*this, query, std::min(k, networks_.size()), similarity, workspaces).run(count);
    }
    if (aligned != nullptr) *aligned = count;
    return found;
}

}  // namespace pyassemble
