// Upper bounds on D between the networks of a zoo and a query, from how often each layer occurs.
//
// A run of l targets over one source is worth (S_1 + ... + S_l) / sqrt(l), a sum of scores at most, and every target is in
// one run at most:
//
//   (a)  D <= sum over targets of the best score that any source layer gives them.
//
// With b the best score that a source layer gives any target, its run is worth at most b * sqrt(l); the lengths l of all runs
// add up to at most n targets, so by Cauchy and Schwarz
//
//   (b)  D <= sqrt(n * sum over sources of b^2).
//
// Both hold across the two levels of blocks: a run of blocks is worth the sum of its blocks' values over sqrt(l), to which the
// same two steps apply again. A layer is paired within its class only, and layers of blocks with layers of blocks only: the
// bounds of these groups add up.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "align.hpp"
#include "zoo.hpp"

namespace pyassemble {

// D(zoo's side -> query's side) and D(query's side -> zoo's side), or bounds on them.
struct Directions {
    double to_query = 0.0;
    double to_zoo = 0.0;
};

class Bounds {
public:
    // `to_zoo`: scores with the query as source. All arguments must outlive this.
    Bounds(const Interner& zoo, const Sequence& query, const LayerScores& to_zoo);

    // For a network with these layers, by the best scores that its layers get from any layer of the query.
    Directions loose(std::span<const LayerCount> network) const;

    // The same, and by the best scores that the query's layers get from this network.
    Directions tight(std::span<const LayerCount> network, Arena& arena) const;

    // For a block with these layers and each block of the query: bounds[query block].
    void blocks(std::span<const LayerCount> block, Arena& arena, Directions* bounds) const;

private:
    // The query's layers of one class, in one of its blocks or in one place.
    struct Part {
        std::int32_t block;
        std::vector<LayerCount> layers;
        double count = 0.0;
    };
    struct ClassParts {
        std::array<Part, 2> places;  // outside of blocks, and in any block
        std::vector<Part> blocks;
        std::array<std::vector<double>, 2> best;  // [place][member of the zoo's class] best score of any of its layers
    };

    static void add(const LayerCount& layer, Part& part);
    template <class Visit>
    void for_each_group(std::span<const LayerCount> layers, const Visit& visit) const;
    const double* column_best(std::size_t klass, std::span<const LayerCount> group, Arena& arena) const;

    const LayerScores& to_zoo_;
    std::vector<ClassParts> classes_;  // [class of the zoo]
};

}  // namespace pyassemble
