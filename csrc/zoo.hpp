// Many networks at once: layers and blocks that several share are scored once for all of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "align.hpp"
#include "meter.hpp"
#include "sequence.hpp"

namespace pyassemble {

// How a long computation is run: on how many threads, and what the calling thread asks now and then (it may throw).
struct Run {
    unsigned workers = 1;
    Meter::Check check = nullptr;
    void* context = nullptr;
};

enum class Similarity { directed, symmetric };  // directed: from the zoo's network to the query

struct Neighbour {
    std::int32_t network;
    double similarity;
};

// How often a layer occurs in a network, inside of blocks or outside of them.
struct LayerCount {
    bool in_block;
    std::int32_t klass;
    std::int32_t member;
    std::int32_t count;
};

// Distinct scored layers, sorted by place, class and member. Elements as in Zoo::Tables, numbered by the interner.
std::vector<LayerCount> count_layers(std::span<const std::int32_t> elements, const Interner& interner);

std::vector<Workspace> make_workspaces(const Run& run);

class Zoo {
public:
    // Networks in terms of numbered layers and blocks. Elements of blocks and networks: a layer's number, or kUnscored; in
    // networks also kFirstBlock - b for block b.
    struct Tables {
        std::span<const std::int32_t> layer_kinds;
        std::span<const std::int64_t> size_offsets;  // one more than layers
        std::span<const std::int64_t> sizes;
        std::span<const std::int64_t> block_offsets;  // one more than blocks
        std::span<const std::int32_t> block_layers;
        std::span<const std::int64_t> network_offsets;  // one more than networks
        std::span<const std::int32_t> network_elements;
    };
    static constexpr std::int32_t kFirstBlock = -2;

    // Adds layers, blocks and networks; numbers go on from those already there. Throws std::invalid_argument, and changes
    // nothing, where the tables contradict each other.
    void extend(const Tables& tables);

    std::int32_t size() const { return static_cast<std::int32_t>(networks_.size()); }
    std::int32_t blocks() const { return static_cast<std::int32_t>(interner_.blocks().size()); }
    std::int32_t scored(std::int32_t network) const { return networks_.at(static_cast<std::size_t>(network)).scored; }

    // out[(i - first) * size() + j] = directed(network j -> network i) for first <= i < last; 0 where either has no scored
    // layer. `memory`: bytes for tables of scores, at least those that one target needs.
    void directed_rows(std::int32_t first, std::int32_t last, double* out, std::size_t memory, const Run& run) const;

    // The k most similar networks, most similar first, ties by number; exact. Networks whose upper bound cannot reach the
    // k-th are not aligned; `aligned` receives how many were.
    std::vector<Neighbour> nearest(const Sequence& query, std::size_t k, Similarity similarity, const Run& run, std::size_t* aligned = nullptr) const;

private:
    struct Network {
        std::vector<std::int32_t> elements;  // interned layers and blocks, in the manner of Tables
        Layout layout;
        std::vector<LayerCount> layers;
        std::int32_t scored = 0;
        std::int32_t original = 0;    // the first network of the same elements
        std::int32_t next_equal = -1;  // the next one
    };
    class Batch;
    class Search;

    void check(const Tables& tables) const;
    void add_network(std::span<const std::int32_t> elements);

    Interner interner_;
    std::vector<std::int32_t> layer_ids_;  // [number in the tables]: interned
    std::vector<std::int32_t> block_ids_;
    std::vector<std::vector<LayerCount>> block_layers_;  // [interned block]
    KeyTable network_keys_;
    std::vector<std::int32_t> last_equal_;  // [network key]
    std::vector<Network> networks_;
};

}  // namespace pyassemble
