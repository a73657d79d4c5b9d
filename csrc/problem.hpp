// From two layouts to the recurrence's problem: the groups are the classes that both sides have.
#pragma once

#include <cstdint>
#include <span>

#include "align.hpp"
#include "recurrence.hpp"
#include "sequence.hpp"

namespace pyassemble {

// block_score(target block, source block) is the score between two blocks; it is asked for top-level layouts only. The scores
// lie in the workspace's arena, which must keep its memory while the problem is in use.
template <class BlockScore>
Problem make_problem(const Layout& source, const Layout& target, const LayerScores& layers, const BlockScore& block_score, Workspace& workspace,
                     std::span<const std::int32_t> starts = {}) {
    Arena& arena = workspace.arena;
    auto* groups = arena.take<Group>(target.sections.size());
    std::size_t count = 0;
    for (const Layout::Section& section : target.sections) {
        const bool is_blocks = section.klass == Interner::kBlocks;
        const ScoreTable table = is_blocks ? ScoreTable{Interner::kBlocks, 0, 0} : layers.table(section.klass);
        if (table.source_class < 0) continue;
        const Layout::Section* other = source.find(table.source_class);
        if (other == nullptr) continue;
        Group& group = groups[count++];
        group = Group{target.positions_of(section), source.positions_of(*other), nullptr, 0};
        group.stride = workspace.padded(group.sources.size());
        const auto stride = static_cast<std::size_t>(group.stride);
        group.scores = arena.take<double>(group.targets.size() * stride);
        const std::span<const std::int32_t> columns = source.members_of(*other);
        double* out = group.scores;
        for (const std::int32_t member : target.members_of(section)) {
            std::size_t x = 0;
            if (is_blocks) {
                for (const std::int32_t column : columns) out[x++] = block_score(member, column);
            } else {
                const double* row = layers.values() + table.offset + static_cast<std::size_t>(member) * table.stride;
                for (const std::int32_t column : columns) out[x++] = row[column];
            }
            for (; x < stride; ++x) out[x] = 0.0;
            out += stride;
        }
        workspace.meter.spend(static_cast<std::int64_t>(group.targets.size() * stride));
    }
    return Problem{target.length, source.length, {groups, count}, layers.tiny(), starts};
}

}  // namespace pyassemble
