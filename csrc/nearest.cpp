// The most similar networks of a zoo, found without aligning those that cannot be among them.
//
// Every network has an upper bound on its similarity, at first one that costs next to nothing. Whichever network has the
// highest bound is looked at more closely, which lowers it, until its similarity is known. When the highest bound is below
// the k-th best similarity, all networks that could be among the nearest have been compared, and hardly any other.
#include <algorithm>
#include <cmath>
#include <mutex>

#include "block_table.hpp"
#include "bounds.hpp"
#include "parallel.hpp"
#include "sources.hpp"
#include "zoo.hpp"

namespace pyassemble {

namespace {

// Bounds are sums in another order than what they bound.
constexpr double kSlack = 1.0 + 1e-9;

double no_blocks(std::int32_t, std::int32_t) { return 0.0; }

double solved(const Layout& source, const Layout& target, const LayerScores& layers, const auto& block_score, Workspace& workspace) {
    const Arena::Scope scope(workspace.arena);
    return solve(make_problem(source, target, layers, block_score, workspace), Arithmetic::fast, workspace);
}

}  // namespace

class Zoo::Search {
public:
    Search(const Zoo& zoo, const Sequence& query, std::size_t k, Similarity similarity, std::vector<Workspace>& workspaces)
        : zoo_(zoo),
          query_(query),
          k_(k),
          similarity_(similarity),
          workspaces_(workspaces),
          to_zoo_(query.interner(), zoo.interner_, workspaces[0].meter),
          to_query_(to_zoo_, zoo.interner_, query.interner()),
          bounds_(zoo.interner_, query, to_zoo_),
          to_query_blocks_(zoo.interner_.blocks().size(), query.interner().blocks().size()),
          to_zoo_blocks_(zoo.interner_.blocks().size(), query.interner().blocks().size()),
          block_bounds_(zoo.interner_.blocks().size(), 2 * query.interner().blocks().size()) {
        for (std::int32_t b = 0; b < static_cast<std::int32_t>(query.interner().blocks().size()); ++b)
            query_sources_.add(b, block_members(b, query.interner()), query.interner());
        query_sources_.close(query.interner());
    }

    std::vector<Neighbour> run(std::size_t& aligned) {
        const auto workers = static_cast<unsigned>(workspaces_.size());
        for (std::int32_t i = 0; i < zoo_.size(); ++i)
            if (network(i).original == i) candidates_.push_back({i, Known::nothing, {}});
        waiting_.resize(candidates_.size());
        constexpr std::size_t kTogether = 256;
        parallel_for((candidates_.size() + kTogether - 1) / kTogether, workers, [&](std::size_t task, unsigned worker) {
            const std::size_t end = std::min(candidates_.size(), (task + 1) * kTogether);
            for (std::size_t i = task * kTogether; i < end; ++i) {
                const Network& n = network(candidates_[i].network);
                waiting_[i] = {combined(bounds_.loose(n.layers), n), static_cast<std::int32_t>(i)};
            }
            workspaces_[worker].meter.spend(std::int64_t{kTogether} * 64);
        });
        std::ranges::make_heap(waiting_, later);
        parallel_for(workers, workers, [&](std::size_t, unsigned worker) { work(workspaces_[worker]); });
        aligned = aligned_;
        std::ranges::sort(found_, better);
        return std::move(found_);
    }

private:
    enum class Known : std::uint8_t { nothing, layers, blocks, to_query };

    struct Candidate {
        std::int32_t network;
        Known known;
        Directions values;  // bounds, or exact as far as known
    };

    struct Waiting {
        double bound;
        std::int32_t candidate;
    };

    static bool later(const Waiting& a, const Waiting& b) { return a.bound != b.bound ? a.bound < b.bound : a.candidate > b.candidate; }

    const Network& network(std::int32_t i) const { return zoo_.networks_[static_cast<std::size_t>(i)]; }

    static bool better(const Neighbour& a, const Neighbour& b) {
        return a.similarity != b.similarity ? a.similarity > b.similarity : a.network < b.network;
    }

    double combined(const Directions& d, const Network& n) const {
        if (n.scored == 0 || query_.num_scored() == 0) return 0.0;
        const double forward = d.to_query / static_cast<double>(query_.num_scored());
        return similarity_ == Similarity::directed ? forward : std::sqrt(forward * d.to_zoo / static_cast<double>(n.scored));
    }

    // Takes candidates until none is left that could be among the nearest; what another worker holds, it will finish itself.
    void work(Workspace& workspace) {
        std::unique_lock lock(mutex_);
        while (!waiting_.empty() && !hopeless(waiting_.front().bound)) {
            std::ranges::pop_heap(waiting_, later);
            const Waiting taken = waiting_.back();
            waiting_.pop_back();
            lock.unlock();
            bool exact = false;
            Candidate& candidate = candidates_[static_cast<std::size_t>(taken.candidate)];
            try {
                exact = look_closer(candidate, workspace);
            } catch (...) {
                lock.lock();
                waiting_.clear();  // the other workers need not go on
                throw;
            }
            const double value = combined(candidate.values, network(candidate.network));
            lock.lock();
            if (exact) {
                offer(candidate.network, value);
            } else if (!hopeless(value)) {
                waiting_.push_back({std::min(value, taken.bound), taken.candidate});
                std::ranges::push_heap(waiting_, later);
            }
        }
    }

    // Below the k-th best so far, by more than bounds may be off.
    bool hopeless(double bound) const { return found_.size() == k_ && bound * kSlack < found_.front().similarity; }

    void offer(std::int32_t original, double similarity) {
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
    }

    // Lowers the bounds of a candidate; returns whether they are its exact values now.
    bool look_closer(Candidate& candidate, Workspace& workspace) {
        const Network& n = network(candidate.network);
        Directions& values = candidate.values;
        switch (candidate.known) {
            case Known::nothing:
                values = bounds_.tight(n.layers, workspace.arena);
                // Where there are no two blocks to pair, bounds on their scores are bounds on nothing.
                candidate.known = has_blocks(n.layout) && has_blocks(query_.layout()) ? Known::layers : Known::blocks;
                return false;
            case Known::layers:
                bound_blocks(n, workspace);
                values.to_query = std::min(values.to_query, bound_to_query(n, workspace));
                if (similarity_ == Similarity::symmetric) values.to_zoo = std::min(values.to_zoo, bound_to_zoo(n, workspace));
                candidate.known = Known::blocks;
                return false;
            case Known::blocks:
                values.to_query = exact_to_query(n, workspace);
                candidate.known = Known::to_query;
                return similarity_ == Similarity::directed;
            case Known::to_query: break;
        }
        values.to_zoo = exact_to_zoo(n, workspace);
        return true;
    }

    static bool has_blocks(const Layout& layout) { return layout.find(Interner::kBlocks) != nullptr; }

    std::span<const std::int32_t> blocks_of(const Network& n) const { return n.layout.members_of(*n.layout.find(Interner::kBlocks)); }

    void bound_blocks(const Network& n, Workspace& workspace) {
        const std::size_t columns = query_.interner().blocks().size();
        std::vector<Directions> bounds(columns);
        std::vector<double> row(2 * columns);
        for (const std::int32_t b : blocks_of(n)) {
            if (block_bounds_.known(b)) continue;
            std::ranges::fill(bounds, Directions{});
            bounds_.blocks(zoo_.block_layers_[static_cast<std::size_t>(b)], workspace.arena, bounds.data());
            for (std::size_t t = 0; t < columns; ++t) {
                row[t] = bounds[t].to_query;
                row[columns + t] = bounds[t].to_zoo;
            }
            block_bounds_.set(b, row.data());
            workspace.meter.spend(static_cast<std::int64_t>(columns) * 64);
        }
    }

    double bound_to_query(const Network& n, Workspace& workspace) const {
        return solved(n.layout, query_.layout(), to_query_, [&](std::int32_t t, std::int32_t s) { return block_bounds_.get(s, t); }, workspace);
    }

    double bound_to_zoo(const Network& n, Workspace& workspace) const {
        const auto columns = static_cast<std::int32_t>(query_.interner().blocks().size());
        return solved(query_.layout(), n.layout, to_zoo_, [&](std::int32_t t, std::int32_t s) { return block_bounds_.get(t, columns + s); }, workspace);
    }

    double exact_to_query(const Network& n, Workspace& workspace) {
        if (has_blocks(n.layout)) score_to_query(n, workspace);
        return solved(n.layout, query_.layout(), to_query_, [&](std::int32_t t, std::int32_t s) { return to_query_blocks_.get(s, t); }, workspace);
    }

    double exact_to_zoo(const Network& n, Workspace& workspace) {
        if (has_blocks(n.layout)) score_to_zoo(n, workspace);
        return solved(query_.layout(), n.layout, to_zoo_, [&](std::int32_t t, std::int32_t s) { return to_zoo_blocks_.get(t, s); }, workspace);
    }

    // Scores of the network's blocks as sources for the query's.
    void score_to_query(const Network& n, Workspace& workspace) {
        std::vector<std::int32_t> missing;
        for (const std::int32_t b : blocks_of(n))
            if (!to_query_blocks_.known(b)) missing.push_back(b);
        std::ranges::sort(missing);
        missing.erase(std::ranges::unique(missing).begin(), missing.end());
        Sources sources;
        for (std::size_t x = 0; x < missing.size(); ++x) sources.add(static_cast<std::int32_t>(x), block_members(missing[x], zoo_.interner_), zoo_.interner_);
        sources.close(zoo_.interner_);
        const std::vector<Layout>& targets = query_.interner().blocks();
        std::vector<double> scores(targets.size() * missing.size());
        for (std::size_t t = 0; t < targets.size(); ++t) sources.solve(targets[t], to_query_, no_blocks, workspace, scores.data() + t * missing.size());
        std::vector<double> row(targets.size());
        for (std::size_t x = 0; x < missing.size(); ++x) {
            for (std::size_t t = 0; t < targets.size(); ++t) row[t] = scores[t * missing.size() + x];
            to_query_blocks_.set(missing[x], row.data());
        }
    }

    // Scores of the query's blocks as sources for the network's.
    void score_to_zoo(const Network& n, Workspace& workspace) {
        std::vector<double> row(query_.interner().blocks().size());
        for (const std::int32_t b : blocks_of(n)) {
            if (to_zoo_blocks_.known(b)) continue;
            query_sources_.solve(zoo_.interner_.blocks()[static_cast<std::size_t>(b)], to_zoo_, no_blocks, workspace, row.data());
            to_zoo_blocks_.set(b, row.data());
        }
    }

    const Zoo& zoo_;
    const Sequence& query_;
    const std::size_t k_;
    const Similarity similarity_;
    std::vector<Workspace>& workspaces_;
    const LayerScores to_zoo_;    // [zoo layer][query layer]
    const LayerScores to_query_;  // [query layer][zoo layer]
    const Bounds bounds_;
    BlockTable to_query_blocks_, to_zoo_blocks_;  // [zoo block][query block]
    BlockTable block_bounds_;                     // the same, twice as wide: on the first, then on the second
    Sources query_sources_;                       // blocks

    std::vector<Candidate> candidates_;  // each is changed by the worker that has taken it

    std::mutex mutex_;  // of all below
    std::vector<Waiting> waiting_;  // a heap
    std::vector<Neighbour> found_;  // a heap
    std::size_t aligned_ = 0;
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
