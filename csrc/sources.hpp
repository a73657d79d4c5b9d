// Many sources against one target: some together are one problem of the recurrence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "problem.hpp"
#include "zoo.hpp"

namespace pyassemble {

// Elements as members of a layout, interned in `interner`.
inline std::vector<Interner::Layer> members(std::span<const std::int32_t> elements, const Interner& interner) {
    std::vector<Interner::Layer> found;
    found.reserve(elements.size());
    for (const std::int32_t e : elements) {
        if (e >= 0)
            found.push_back(interner[e]);
        else
            found.push_back(e == Interner::kUnscored ? Interner::Layer{Interner::kUnscored, 0} : Interner::Layer{Interner::kBlocks, Zoo::kFirstBlock - e});
    }
    return found;
}

// The layers of an interned block.
inline std::vector<Interner::Layer> block_members(std::int32_t block, const Interner& interner) {
    std::vector<std::int32_t> layers;
    for (const std::int64_t layer : interner.block_key(block)) layers.push_back(static_cast<std::int32_t>(layer));
    return members(layers, interner);
}

// Blocks, or networks, as sources side by side: some together are one problem of the recurrence.
class Sources {
public:
    // `number` says where the value of this source goes.
    void add(std::int32_t number, std::span<const Interner::Layer> members, const Interner& interner) {
        if (members_.size() + members.size() > kColumns) close(interner);
        numbers_.push_back(number);
        starts_.push_back(static_cast<std::int32_t>(members_.size()));
        members_.insert(members_.end(), members.begin(), members.end());
    }

    // To be called after the last add().
    void close(const Interner& interner) {
        if (!numbers_.empty()) chunks_.push_back({interner.layout(members_), std::move(starts_), std::move(numbers_)});
        members_.clear();
        starts_.clear();
        numbers_.clear();
    }

    // values[number] = D(source -> target) of each.
    template <class BlockScore>
    void solve(const Layout& target, const LayerScores& layers, const BlockScore& block_score, Workspace& workspace, double* values) const {
        std::vector<double> found;
        for (const Chunk& chunk : chunks_) {
            const Arena::Scope scope(workspace.arena);
            found.resize(chunk.numbers.size());
            solve_each(make_problem(chunk.layout, target, layers, block_score, workspace, chunk.starts), Arithmetic::fast, workspace, found.data());
            for (std::size_t i = 0; i < found.size(); ++i) values[chunk.numbers[i]] = found[i];
        }
    }

private:
    // Columns of one problem: enough that the cost of a row does not show, few enough for the first-level cache.
    static constexpr std::size_t kColumns = 512;

    struct Chunk {
        Layout layout;
        std::vector<std::int32_t> starts;
        std::vector<std::int32_t> numbers;
    };
    std::vector<Chunk> chunks_;
    std::vector<Interner::Layer> members_;
    std::vector<std::int32_t> starts_, numbers_;
};

}  // namespace pyassemble
