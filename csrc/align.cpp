// Alignment in two levels over interned sequences.
#include "align.hpp"

#include <algorithm>

#include "problem.hpp"

namespace pyassemble {

double layer_score(const std::int64_t* source, const std::int64_t* target, std::int32_t rank) {
    double product = 1.0;
    for (std::int32_t d = 0; d < rank; ++d) {
        const auto s = static_cast<double>(source[d]);
        const auto t = static_cast<double>(target[d]);
        product *= s < t ? s / t : t / s;
    }
    return product;
}

LayerScores::LayerScores(const Interner& source, const Interner& target, Meter& meter) {
    tables_.resize(target.classes().size());
    std::size_t total = 0;
    for (std::size_t c = 0; c < tables_.size(); ++c) {
        const Interner::Class& mine = target.classes()[c];
        tables_[c].source_class = source.find_class(mine.kind, mine.rank);
        if (tables_[c].source_class < 0) continue;
        const Interner::Class& other = source.classes()[static_cast<std::size_t>(tables_[c].source_class)];
        tables_[c].offset = total;
        tables_[c].stride = static_cast<std::size_t>(other.count);
        total += static_cast<std::size_t>(mine.count) * static_cast<std::size_t>(other.count);
    }
    values_.resize(total);
    for (std::size_t c = 0; c < tables_.size(); ++c) {
        if (tables_[c].source_class < 0) continue;
        const Interner::Class& mine = target.classes()[c];
        const Interner::Class& other = source.classes()[static_cast<std::size_t>(tables_[c].source_class)];
        double* out = values_.data() + tables_[c].offset;
        for (std::int32_t t = 0; t < mine.count; ++t) {
            const std::int64_t* target_sizes = mine.sizes.data() + std::ptrdiff_t{t} * mine.rank;
            for (std::int32_t s = 0; s < other.count; ++s) {
                const double value = layer_score(other.sizes.data() + std::ptrdiff_t{s} * mine.rank, target_sizes, mine.rank);
                tiny_ |= value < kTiny;
                *out++ = value;
            }
            meter.spend(std::int64_t{other.count} * (mine.rank + 1) * 8);
        }
    }
}

// A score is a product of quotients, each the smaller size over the larger: it has the same bits both ways.
LayerScores::LayerScores(const LayerScores& scores, const Interner& source, const Interner& target)
    : tables_(target.classes().size()), values_(scores.values_.size()), tiny_(scores.tiny_) {
    constexpr std::size_t kTile = 8;
    for (std::size_t c = 0; c < scores.tables_.size(); ++c) {
        const ScoreTable& from = scores.tables_[c];
        if (from.source_class < 0) continue;
        const auto mine = static_cast<std::size_t>(from.source_class);
        const auto rows = static_cast<std::size_t>(target.classes()[mine].count);
        const auto columns = static_cast<std::size_t>(source.classes()[c].count);
        tables_[mine] = {static_cast<std::int32_t>(c), from.offset, columns};
        const double* in = scores.values_.data() + from.offset;
        double* out = values_.data() + from.offset;
        for (std::size_t row = 0; row < rows; row += kTile)
            for (std::size_t x = 0; x < columns; ++x)
                for (std::size_t r = row; r < std::min(rows, row + kTile); ++r) out[r * columns + x] = in[x * rows + r];
    }
}

namespace {

class Aligner {
public:
    Aligner(const Sequence& source, const Sequence& target, Workspace& workspace, Arithmetic arithmetic)
        : source_(source), target_(target), workspace_(workspace), layers_(source.interner(), target.interner(), workspace.meter) {
        score_blocks(arithmetic);
    }

    Problem top() { return problem(source_.layout(), target_.layout()); }

    // Pairs between two blocks, counted from their first layers; each distinct pair of blocks is walked back once.
    const std::vector<Pair>& block_pairs(std::int32_t source, std::int32_t target) {
        const std::size_t cell = static_cast<std::size_t>(target) * source_blocks().size() + static_cast<std::size_t>(source);
        const auto found = std::ranges::find(walked_, cell, &Walked::cell);
        if (found != walked_.end()) return found->pairs;
        const Arena::Scope scope(workspace_.arena);
        walked_.push_back(Walked{cell, {}});
        solve_pairs(problem(source_blocks()[static_cast<std::size_t>(source)], target_blocks()[static_cast<std::size_t>(target)]),
                    workspace_, walked_.back().pairs);
        return walked_.back().pairs;
    }

    double element_score(const Sequence::Element& s, const Sequence::Element& t) const {
        if (s.is_block != t.is_block || s.id < 0 || t.id < 0) return 0.0;
        if (s.is_block) return blocks_[static_cast<std::size_t>(t.id) * source_blocks().size() + static_cast<std::size_t>(s.id)];
        const Interner::Layer layer = target_.interner()[t.id];
        const Interner::Layer other = source_.interner()[s.id];
        const ScoreTable& table = layers_.table(layer.klass);
        if (table.source_class != other.klass) return 0.0;
        return layers_.values()[table.offset + static_cast<std::size_t>(layer.member) * table.stride + static_cast<std::size_t>(other.member)];
    }

private:
    struct Walked {
        std::size_t cell;
        std::vector<Pair> pairs;
    };

    const std::vector<Layout>& source_blocks() const { return source_.interner().blocks(); }
    const std::vector<Layout>& target_blocks() const { return target_.interner().blocks(); }

    void score_blocks(Arithmetic arithmetic) {
        blocks_.resize(source_blocks().size() * target_blocks().size());
        double* out = blocks_.data();
        for (const Layout& t : target_blocks()) {
            for (const Layout& s : source_blocks()) {
                const Arena::Scope scope(workspace_.arena);
                *out++ = solve(problem(s, t), arithmetic, workspace_);
            }
        }
    }

    Problem problem(const Layout& source, const Layout& target) {
        const auto block_score = [this](std::int32_t t, std::int32_t s) {
            return blocks_[static_cast<std::size_t>(t) * source_blocks().size() + static_cast<std::size_t>(s)];
        };
        return make_problem(source, target, layers_, block_score, workspace_);
    }

    const Sequence& source_;
    const Sequence& target_;
    Workspace& workspace_;
    LayerScores layers_;
    std::vector<double> blocks_;  // [target block][source block]
    std::vector<Walked> walked_;
};

}  // namespace

Alignment align(const Sequence& source, const Sequence& target, Workspace& workspace) {
    const Arena::Scope scope(workspace.arena);
    Aligner aligner(source, target, workspace, Arithmetic::exact);
    std::vector<Pair> elements;
    Alignment alignment;
    alignment.score = solve_pairs(aligner.top(), workspace, elements);
    for (const Pair pair : elements) {
        const Sequence::Element& t = target.elements()[static_cast<std::size_t>(pair.target)];
        const Sequence::Element& s = source.elements()[static_cast<std::size_t>(pair.source)];
        if (!t.is_block) {
            alignment.pairs.push_back({t.start, s.start});
            continue;
        }
        for (const Pair inner : aligner.block_pairs(s.id, t.id))
            alignment.pairs.push_back({t.start + inner.target, s.start + inner.source});
    }
    return alignment;
}

double score(const Sequence& source, const Sequence& target, Workspace& workspace) {
    const Arena::Scope scope(workspace.arena);
    Aligner aligner(source, target, workspace, Arithmetic::fast);
    return solve(aligner.top(), Arithmetic::fast, workspace);
}

void score_matrix(const Sequence& source, const Sequence& target, Workspace& workspace, double* out) {
    const Arena::Scope scope(workspace.arena);
    const Aligner aligner(source, target, workspace, Arithmetic::exact);
    for (const Sequence::Element& t : target.elements())
        for (const Sequence::Element& s : source.elements()) *out++ = aligner.element_score(s, t);
}

}  // namespace pyassemble
