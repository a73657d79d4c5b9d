// Upper bounds from counts of layers.
#include "bounds.hpp"

#include <algorithm>

namespace pyassemble {

namespace {

// Scores below 1e-154 vanish when they are squared, while what they bound does not: more than they could add to (b).
constexpr double kVanished = 1e-140;

double cauchy_schwarz(double targets, double squares) { return std::sqrt(targets * squares) + kVanished; }

// What (a) and (b) need of one side: for each layer, how often it occurs and the best score that it gets.
struct Side {
    double sum = 0.0;
    double squares = 0.0;
    double count = 0.0;

    void add(double times, double best) {
        sum += times * best;
        squares += times * best * best;
        count += times;
    }
};

double bound(const Side& source, const Side& target) { return std::min(target.sum, cauchy_schwarz(target.count, source.squares)); }

void add_bounds(const Side& zoo, const Side& query, Directions& bounds) {
    bounds.to_query += bound(zoo, query);
    bounds.to_zoo += bound(query, zoo);
}

}  // namespace

void Bounds::add(const LayerCount& layer, Part& part) {
    part.layers.push_back(layer);
    part.count += layer.count;
}

Bounds::Bounds(const Interner& zoo, const Sequence& query, const LayerScores& to_zoo) : to_zoo_(to_zoo), classes_(zoo.classes().size()) {
    std::vector<ClassParts*> of_query(query.interner().classes().size());
    for (std::size_t c = 0; c < classes_.size(); ++c) {
        const std::int32_t mine = to_zoo.table(static_cast<std::int32_t>(c)).source_class;
        if (mine >= 0) of_query[static_cast<std::size_t>(mine)] = &classes_[c];
    }
    std::vector<std::int32_t> elements;
    for (const Sequence::Element& e : query.elements()) elements.push_back(e.is_block ? Zoo::kFirstBlock - e.id : e.id);
    for (const LayerCount& layer : count_layers(elements, query.interner()))
        if (ClassParts* parts = of_query[static_cast<std::size_t>(layer.klass)]) add(layer, parts->places[layer.in_block]);
    for (std::size_t b = 0; b < query.interner().blocks().size(); ++b) {
        const std::int32_t block = Zoo::kFirstBlock - static_cast<std::int32_t>(b);
        for (const LayerCount& layer : count_layers({&block, 1}, query.interner())) {
            ClassParts* parts = of_query[static_cast<std::size_t>(layer.klass)];
            if (parts == nullptr) continue;
            if (parts->blocks.empty() || parts->blocks.back().block != static_cast<std::int32_t>(b)) parts->blocks.push_back({static_cast<std::int32_t>(b), {}, 0.0});
            add(layer, parts->blocks.back());
        }
    }
    for (std::size_t c = 0; c < classes_.size(); ++c) {
        const ScoreTable& table = to_zoo.table(static_cast<std::int32_t>(c));
        for (std::size_t place = 0; place < 2; ++place) {
            const Part& part = classes_[c].places[place];
            if (part.layers.empty()) continue;
            std::vector<double>& best = classes_[c].best[place];
            best.resize(static_cast<std::size_t>(zoo.classes()[c].count));
            for (std::size_t m = 0; m < best.size(); ++m) {
                const double* row = to_zoo.values() + table.offset + m * table.stride;
                for (const LayerCount& layer : part.layers) best[m] = std::max(best[m], row[layer.member]);
            }
        }
    }
}

// Calls visit(class, place, its layers) for the groups of layers whose class the query has too.
template <class Visit>
void Bounds::for_each_group(std::span<const LayerCount> layers, const Visit& visit) const {
    for (std::size_t begin = 0, end = 0; begin < layers.size(); begin = end) {
        const LayerCount& first = layers[begin];
        while (end < layers.size() && layers[end].klass == first.klass && layers[end].in_block == first.in_block) ++end;
        const auto klass = static_cast<std::size_t>(first.klass);
        if (!classes_[klass].places[first.in_block].layers.empty()) visit(klass, static_cast<std::size_t>(first.in_block), layers.subspan(begin, end - begin));
    }
}

// The best score that each of the query's layers of the class gets from a group: [member].
const double* Bounds::column_best(std::size_t klass, std::span<const LayerCount> group, Arena& arena) const {
    const ScoreTable& table = to_zoo_.table(static_cast<std::int32_t>(klass));
    auto* best = arena.take<double>(table.stride);
    std::fill_n(best, table.stride, 0.0);
    for (const LayerCount& layer : group) {
        const double* row = to_zoo_.values() + table.offset + static_cast<std::size_t>(layer.member) * table.stride;
        for (std::size_t x = 0; x < table.stride; ++x) best[x] = best[x] > row[x] ? best[x] : row[x];
    }
    return best;
}

Directions Bounds::loose(std::span<const LayerCount> network) const {
    Directions bounds;
    for_each_group(network, [&](std::size_t klass, std::size_t place, std::span<const LayerCount> group) {
        const std::vector<double>& best = classes_[klass].best[place];
        Side theirs, mine;
        for (const LayerCount& layer : group) theirs.add(layer.count, best[static_cast<std::size_t>(layer.member)]);
        mine.add(classes_[klass].places[place].count, 1.0);
        add_bounds(theirs, mine, bounds);
    });
    return bounds;
}

Directions Bounds::tight(std::span<const LayerCount> network, Arena& arena) const {
    Directions bounds;
    for_each_group(network, [&](std::size_t klass, std::size_t place, std::span<const LayerCount> group) {
        const Arena::Scope scope(arena);
        const double* columns = column_best(klass, group, arena);
        const std::vector<double>& best = classes_[klass].best[place];
        Side theirs, mine;
        for (const LayerCount& layer : group) theirs.add(layer.count, best[static_cast<std::size_t>(layer.member)]);
        for (const LayerCount& layer : classes_[klass].places[place].layers) mine.add(layer.count, columns[layer.member]);
        add_bounds(theirs, mine, bounds);
    });
    return bounds;
}

void Bounds::blocks(std::span<const LayerCount> block, Arena& arena, Directions* bounds) const {
    for_each_group(block, [&](std::size_t klass, std::size_t, std::span<const LayerCount> group) {
        const Arena::Scope scope(arena);
        const double* columns = column_best(klass, group, arena);
        const ScoreTable& table = to_zoo_.table(static_cast<std::int32_t>(klass));
        for (const Part& part : classes_[klass].blocks) {
            Side theirs, mine;
            for (const LayerCount& layer : group) {
                const double* row = to_zoo_.values() + table.offset + static_cast<std::size_t>(layer.member) * table.stride;
                double best = 0.0;
                for (const LayerCount& other : part.layers) best = best > row[other.member] ? best : row[other.member];
                theirs.add(layer.count, best);
            }
            for (const LayerCount& layer : part.layers) mine.add(layer.count, columns[layer.member]);
            add_bounds(theirs, mine, bounds[part.block]);
        }
    });
}

}  // namespace pyassemble
