// Alignment of two networks: the recurrence between their top-level elements, whose scores between blocks are values of the
// same recurrence between the layers of the blocks (DPIAT, arXiv 2212.13970).
#pragma once

#include <cstdint>
#include <vector>

#include "recurrence.hpp"
#include "sequence.hpp"

namespace pyassemble {

// Product over dimensions, in their order, of min(s/t, t/s).
double layer_score(const std::int64_t* source, const std::int64_t* target, std::int32_t rank);

// A table of scores between the members of a class of the target and those of a class of the source.
struct ScoreTable {
    std::int32_t source_class = -1;  // -1: nothing in the source scores against this class
    std::size_t offset = 0;          // into values
    std::size_t stride = 0;
};

// Scores between all distinct layers of two interners, class by class.
class LayerScores {
public:
    LayerScores(const Interner& source, const Interner& target, Meter& meter);

    // The same the other way round: `scores` has the target as its source and the source as its target.
    LayerScores(const LayerScores& scores, const Interner& source, const Interner& target);

    const ScoreTable& table(std::int32_t target_class) const { return tables_[static_cast<std::size_t>(target_class)]; }
    const double* values() const { return values_.data(); }
    bool tiny() const { return tiny_; }

private:
    std::vector<ScoreTable> tables_;  // [target class]
    std::vector<double> values_;
    bool tiny_ = false;
};

struct Alignment {
    double score = 0.0;
    std::vector<Pair> pairs;  // layers, in target order
};

Alignment align(const Sequence& source, const Sequence& target, Workspace& workspace);
double score(const Sequence& source, const Sequence& target, Workspace& workspace);
// out[target element * source elements + source element]
void score_matrix(const Sequence& source, const Sequence& target, Workspace& workspace, double* out);

}  // namespace pyassemble
