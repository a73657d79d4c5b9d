// The table of networks, and all pairs of them.
#include "zoo.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <tuple>

#include "dispatch.hpp"
#include "parallel.hpp"
#include "sources.hpp"

namespace pyassemble {

namespace {

[[noreturn]] void reject(const std::string& message) { throw std::invalid_argument(message); }

void check_offsets(const char* name, std::span<const std::int64_t> offsets, std::size_t length) {
    const std::string n = name;
    if (offsets.empty() || offsets.front() != 0) reject(n + " must start at 0");
    for (std::size_t i = 1; i < offsets.size(); ++i)
        if (offsets[i] < offsets[i - 1]) reject(n + " decreases at index " + std::to_string(i));
    if (offsets.back() != static_cast<std::int64_t>(length))
        reject(n + " must end at " + std::to_string(length) + ", not " + std::to_string(offsets.back()));
}

template <class T>
std::span<const T> part(std::span<const T> values, std::span<const std::int64_t> offsets, std::size_t i) {
    return values.subspan(static_cast<std::size_t>(offsets[i]), static_cast<std::size_t>(offsets[i + 1] - offsets[i]));
}

}  // namespace

void Zoo::check(const Tables& tables) const {
    check_offsets("size_offsets", tables.size_offsets, tables.sizes.size());
    check_offsets("block_offsets", tables.block_offsets, tables.block_layers.size());
    check_offsets("network_offsets", tables.network_offsets, tables.network_elements.size());
    const std::size_t layers = layer_ids_.size() + tables.layer_kinds.size();
    const std::size_t blocks = block_ids_.size() + tables.block_offsets.size() - 1;
    constexpr auto kMost = static_cast<std::size_t>(INT32_MAX) - 2;
    if (layers > kMost || blocks > kMost || networks_.size() + tables.network_offsets.size() > kMost) reject("too many networks");
    if (tables.size_offsets.size() != tables.layer_kinds.size() + 1) reject("size_offsets must have one entry more than layer_kinds");
    for (const std::int32_t kind : tables.layer_kinds)
        if (kind < 0) reject("kinds of layers must not be negative");
    for (const std::int64_t size : tables.sizes)
        if (size <= 0) reject("sizes must be positive, not " + std::to_string(size));
    for (const std::int32_t layer : tables.block_layers)
        if (layer < Interner::kUnscored || layer >= static_cast<std::int64_t>(layers)) reject("a block names layer " + std::to_string(layer) + ", which is not in the tables");
    for (std::size_t b = 0; b + 1 < tables.block_offsets.size(); ++b)
        if (tables.block_offsets[b] == tables.block_offsets[b + 1]) reject("block " + std::to_string(b) + " is empty");
    for (const std::int32_t e : tables.network_elements)
        if (e >= 0 ? e >= static_cast<std::int64_t>(layers) : e <= kFirstBlock && kFirstBlock - std::int64_t{e} >= static_cast<std::int64_t>(blocks))
            reject("a network names element " + std::to_string(e) + ", which is not in the tables");
}

void Zoo::extend(const Tables& tables) {
    check(tables);
    for (std::size_t i = 0; i < tables.layer_kinds.size(); ++i)
        layer_ids_.push_back(interner_.layer(tables.layer_kinds[i], part(tables.sizes, tables.size_offsets, i)));
    std::vector<std::int32_t> ids;
    for (std::size_t b = 0; b + 1 < tables.block_offsets.size(); ++b) {
        ids.clear();
        for (const std::int32_t layer : part(tables.block_layers, tables.block_offsets, b))
            ids.push_back(layer < 0 ? Interner::kUnscored : layer_ids_[static_cast<std::size_t>(layer)]);
        block_ids_.push_back(interner_.block(ids));
        if (static_cast<std::size_t>(block_ids_.back()) == block_layers_.size()) {
            const std::int32_t block = kFirstBlock - block_ids_.back();
            block_layers_.push_back(count_layers({&block, 1}, interner_));
        }
    }
    for (std::size_t n = 0; n + 1 < tables.network_offsets.size(); ++n) {
        ids.clear();
        for (const std::int32_t e : part(tables.network_elements, tables.network_offsets, n)) {
            if (e >= 0)
                ids.push_back(layer_ids_[static_cast<std::size_t>(e)]);
            else
                ids.push_back(e == Interner::kUnscored ? e : kFirstBlock - block_ids_[static_cast<std::size_t>(kFirstBlock - e)]);
        }
        add_network(ids);
    }
}

void Zoo::add_network(std::span<const std::int32_t> elements) {
    const auto number = static_cast<std::int32_t>(networks_.size());
    const std::vector<std::int64_t> key(elements.begin(), elements.end());
    const auto id = static_cast<std::size_t>(network_keys_.intern(key));
    Network network;
    network.original = number;
    if (id < last_equal_.size()) {
        Network& last = networks_[static_cast<std::size_t>(last_equal_[id])];
        network.original = last.original;
        network.scored = last.scored;
        last.next_equal = number;
        last_equal_[id] = number;
    } else {
        last_equal_.push_back(number);
        network.elements.assign(elements.begin(), elements.end());
        network.layout = interner_.layout(members(elements, interner_));
        network.layers = count_layers(elements, interner_);
        for (const LayerCount& layer : network.layers) network.scored += layer.count;
    }
    networks_.push_back(std::move(network));
}

std::vector<LayerCount> count_layers(std::span<const std::int32_t> elements, const Interner& interner) {
    std::vector<LayerCount> counts;
    const auto add = [&](bool in_block, std::int32_t layer) {
        if (layer >= 0) counts.push_back({in_block, interner[layer].klass, interner[layer].member, 1});
    };
    for (const std::int32_t e : elements) {
        if (e > Zoo::kFirstBlock) {
            add(false, e);
            continue;
        }
        for (const std::int64_t layer : interner.block_key(Zoo::kFirstBlock - e)) add(true, static_cast<std::int32_t>(layer));
    }
    const auto key = [](const LayerCount& c) { return std::tuple(c.in_block, c.klass, c.member); };
    std::ranges::sort(counts, {}, key);
    std::size_t kept = 0;
    for (const LayerCount& c : counts) {
        if (kept > 0 && key(counts[kept - 1]) == key(c))
            ++counts[kept - 1].count;
        else
            counts[kept++] = c;
    }
    counts.resize(kept);
    return counts;
}

// Target networks that are scored against the whole zoo together, and what they share.
class Zoo::Batch {
public:
    explicit Batch(const Zoo& zoo) : zoo_(zoo) {}

    void add(std::int32_t network) {
        std::vector<std::int32_t> elements;
        for (const std::int32_t e : zoo_.networks_[static_cast<std::size_t>(network)].elements) {
            if (e >= 0) {
                elements.push_back(layer(e));
            } else if (e == Interner::kUnscored) {
                elements.push_back(e);
            } else {
                std::vector<std::int32_t> layers;
                for (const std::int64_t l : zoo_.interner_.block_key(kFirstBlock - e)) layers.push_back(l < 0 ? Interner::kUnscored : layer(static_cast<std::int32_t>(l)));
                elements.push_back(kFirstBlock - interner_.block(layers));
            }
        }
        targets_.push_back({network, interner_.layout(members(elements, interner_))});
    }

    std::size_t bytes() const {
        std::size_t scores = interner_.blocks().size() * zoo_.interner_.blocks().size();
        for (const Interner::Class& mine : interner_.classes()) {
            const std::int32_t other = zoo_.interner_.find_class(mine.kind, mine.rank);
            scores += static_cast<std::size_t>(mine.count) * static_cast<std::size_t>(zoo_.interner_.classes()[static_cast<std::size_t>(other)].count);
        }
        return scores * sizeof(double);
    }

    // write(target network, row): row[j] = D(j -> target) for each j that is an original.
    template <class Write>
    void solve_all(std::vector<Workspace>& workspaces, const Sources& blocks, const Sources& networks, const Write& write) const {
        const LayerScores layers(zoo_.interner_, interner_, workspaces[0].meter);
        const auto workers = static_cast<unsigned>(workspaces.size());
        const std::vector<Layout>& targets = interner_.blocks();
        const std::size_t stride = zoo_.interner_.blocks().size();
        std::vector<double> scores(targets.size() * stride);
        const auto none = [](std::int32_t, std::int32_t) { return 0.0; };
        parallel_for(targets.size(), workers, [&](std::size_t t, unsigned worker) {
            blocks.solve(targets[t], layers, none, workspaces[worker], scores.data() + t * stride);
        });
        const auto block_score = [&](std::int32_t t, std::int32_t s) { return scores[static_cast<std::size_t>(t) * stride + static_cast<std::size_t>(s)]; };
        parallel_for(targets_.size(), workers, [&](std::size_t t, unsigned worker) {
            std::vector<double> row(zoo_.networks_.size());
            networks.solve(targets_[t].layout, layers, block_score, workspaces[worker], row.data());
            write(targets_[t].network, row);
        });
    }

private:
    struct Target {
        std::int32_t network;
        Layout layout;
    };

    std::int32_t layer(std::int32_t id) {
        const std::span<const std::int64_t> key = zoo_.interner_.layer_key(id);
        return interner_.layer(static_cast<std::int32_t>(key[0]), key.subspan(1));
    }

    const Zoo& zoo_;
    Interner interner_;
    std::vector<Target> targets_;
};

std::vector<Workspace> make_workspaces(const Run& run) {
    std::vector<Workspace> workspaces;
    workspaces.reserve(run.workers);
    // Only the calling thread may ask whether to go on.
    for (unsigned w = 0; w < std::max(1U, run.workers); ++w) workspaces.emplace_back(active_kernels(), w == 0 ? Meter(run.check, run.context) : Meter());
    return workspaces;
}

void Zoo::directed_rows(std::int32_t first, std::int32_t last, double* out, std::size_t memory, const Run& run) const {
    if (first < 0 || last < first || last > size()) throw std::out_of_range("rows must lie within the zoo");
    const std::size_t columns = networks_.size();
    const auto row_of = [&](std::int32_t i) { return out + static_cast<std::size_t>(i - first) * columns; };
    std::vector<Workspace> workspaces = make_workspaces(run);

    // Equal targets have equal rows: the first in range is solved, the others copy it.
    std::vector<std::int32_t> in_range;  // the first in range of each
    std::vector<std::int32_t> leader(columns, -1);
    for (std::int32_t i = first; i < last; ++i) {
        std::int32_t& mine = leader[static_cast<std::size_t>(networks_[static_cast<std::size_t>(i)].original)];
        if (mine < 0) in_range.push_back(mine = i);
    }
    const auto write = [&](std::int32_t original, const std::vector<double>& row) {
        const Network& target = networks_[static_cast<std::size_t>(original)];
        double* to = row_of(leader[static_cast<std::size_t>(original)]);
        for (std::size_t j = 0; j < columns; ++j)
            to[j] = target.scored == 0 ? 0.0 : row[static_cast<std::size_t>(networks_[j].original)] / static_cast<double>(target.scored);
    };
    Sources blocks, networks;
    for (std::int32_t b = 0; b < this->blocks(); ++b) blocks.add(b, block_members(b, interner_), interner_);
    blocks.close(interner_);
    for (std::int32_t j = 0; j < size(); ++j) {
        const Network& network = networks_[static_cast<std::size_t>(j)];
        if (network.original == j) networks.add(j, members(network.elements, interner_), interner_);
    }
    networks.close(interner_);

    for (std::size_t next = 0; next < in_range.size();) {
        Batch batch(*this);
        do {
            batch.add(networks_[static_cast<std::size_t>(in_range[next++])].original);
        } while (next < in_range.size() && batch.bytes() < memory);
        batch.solve_all(workspaces, blocks, networks, write);
    }
    for (std::int32_t i = first; i < last; ++i) {
        const std::int32_t from = leader[static_cast<std::size_t>(networks_[static_cast<std::size_t>(i)].original)];
        if (from != i) std::copy_n(row_of(from), columns, row_of(i));
    }
}

}  // namespace pyassemble
