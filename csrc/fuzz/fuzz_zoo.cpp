// Random zoos: every row and every ranking against score() of the single pairs, bit for bit, with one thread and with four;
// meant to run under AddressSanitizer and under ThreadSanitizer.
//
// Usage: fuzz_zoo [iterations] [seed]. Exits with 1 at the first difference and prints how to repeat it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <stdexcept>
#include <thread>
#include <type_traits>
#include <vector>

#include "align.hpp"
#include "dispatch.hpp"
#include "zoo.hpp"

namespace {

using namespace pyassemble;

using Random = std::mt19937_64;

int pick(Random& random, int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); }

void require(bool good, const char* what) {
    if (!good) throw std::runtime_error(what);
}

bool same_bits(double a, double b) { return std::memcmp(&a, &b, sizeof a) == 0; }

struct Tables {
    std::vector<std::int32_t> layer_kinds, block_layers, network_elements;
    std::vector<std::int64_t> size_offsets{0}, sizes, block_offsets{0}, network_offsets{0};
    Zoo::Tables spans() const { return {layer_kinds, size_offsets, sizes, block_offsets, block_layers, network_offsets, network_elements}; }
};

struct Net {
    std::vector<std::int32_t> kinds;
    std::vector<std::int64_t> size_offsets{0}, sizes, element_offsets{0};
    std::vector<std::uint8_t> is_block;
    Sequence sequence() const { return Sequence(Sequence::Arrays{kinds, size_offsets, sizes, element_offsets, is_block}); }
};

// Makes tables, part by part, and remembers the networks in the form that score() takes.
class Maker {
public:
    explicit Maker(Random& random) : random_(random) {}

    std::vector<Net> networks;

    Tables part() {
        Tables tables;
        // Sizes and kinds are few, so that the same layers and blocks come under several numbers.
        for (int l = pick(random_, 0, 8); l > 0; --l) {
            layers_.push_back({pick(random_, 0, 2), {}});
            for (int d = pick(random_, 0, 2); d > 0; --d) layers_.back().sizes.push_back(pick(random_, 0, 9) ? std::int64_t{1} << pick(random_, 0, 3) : 3);
            tables.layer_kinds.push_back(layers_.back().kind);
            tables.sizes.insert(tables.sizes.end(), layers_.back().sizes.begin(), layers_.back().sizes.end());
            tables.size_offsets.push_back(static_cast<std::int64_t>(tables.sizes.size()));
        }
        for (int b = pick(random_, 0, 5); b > 0; --b) {
            blocks_.emplace_back();
            for (int l = pick(random_, 1, 9); l > 0; --l) blocks_.back().push_back(random_layer());
            tables.block_layers.insert(tables.block_layers.end(), blocks_.back().begin(), blocks_.back().end());
            tables.block_offsets.push_back(static_cast<std::int64_t>(tables.block_layers.size()));
        }
        for (int n = pick(random_, 0, 12); n > 0; --n) {
            if (!elements_.empty() && pick(random_, 0, 4) == 0) {
                elements_.push_back(elements_[static_cast<std::size_t>(pick(random_, 0, static_cast<int>(elements_.size()) - 1))]);
            } else {
                elements_.emplace_back();
                const bool single = pick(random_, 0, 4) == 0;
                for (int e = single ? 1 : pick(random_, 0, 12); e > 0; --e) {
                    const bool block = !blocks_.empty() && pick(random_, 0, 2) > 0;
                    elements_.back().push_back(block ? Zoo::kFirstBlock - pick(random_, 0, static_cast<int>(blocks_.size()) - 1) : random_layer());
                }
            }
            const std::vector<std::int32_t>& elements = elements_.back();
            tables.network_elements.insert(tables.network_elements.end(), elements.begin(), elements.end());
            tables.network_offsets.push_back(static_cast<std::int64_t>(tables.network_elements.size()));
            networks.push_back(flatten(elements));
        }
        return tables;
    }

private:
    struct Layer {
        std::int32_t kind;
        std::vector<std::int64_t> sizes;
    };

    std::int32_t random_layer() { return pick(random_, -1, static_cast<int>(layers_.size()) - 1); }

    Net flatten(const std::vector<std::int32_t>& elements) const {
        Net net;
        const auto add = [&](std::int32_t number) {
            net.kinds.push_back(number < 0 ? -1 : layers_[static_cast<std::size_t>(number)].kind);
            if (number >= 0) {
                const std::vector<std::int64_t>& sizes = layers_[static_cast<std::size_t>(number)].sizes;
                net.sizes.insert(net.sizes.end(), sizes.begin(), sizes.end());
            }
            net.size_offsets.push_back(static_cast<std::int64_t>(net.sizes.size()));
        };
        for (const std::int32_t e : elements) {
            net.is_block.push_back(e <= Zoo::kFirstBlock);
            if (e > Zoo::kFirstBlock)
                add(e);
            else
                for (const std::int32_t number : blocks_[static_cast<std::size_t>(Zoo::kFirstBlock - e)]) add(number);
            net.element_offsets.push_back(static_cast<std::int64_t>(net.kinds.size()));
        }
        return net;
    }

    Random& random_;
    std::vector<Layer> layers_;
    std::vector<std::vector<std::int32_t>> blocks_;
    std::vector<std::vector<std::int32_t>> elements_;
};

double directed(const Sequence& source, const Sequence& target, Workspace& workspace) {
    return target.num_scored() == 0 ? 0.0 : score(source, target, workspace) / target.num_scored();
}

double symmetric(const Sequence& source, const Sequence& target, Workspace& workspace) {
    if (source.num_scored() == 0) return 0.0;
    return std::sqrt(directed(source, target, workspace) * score(target, source, workspace) / source.num_scored());
}

void check_rows(Random& random, const Zoo& zoo, const std::vector<Sequence>& sequences) {
    Workspace workspace(active_kernels());
    const auto n = static_cast<std::int32_t>(sequences.size());
    const std::int32_t first = pick(random, 0, n);
    const std::int32_t last = pick(random, first, n);
    for (const unsigned workers : {1U, 4U}) {
        for (const std::size_t memory : {std::size_t{0}, std::size_t{4096}, std::size_t{1} << 30}) {
            std::vector<double> out(static_cast<std::size_t>(last - first) * sequences.size(), -1.0);
            zoo.directed_rows(first, last, out.data(), memory, Run{workers});
            const double* value = out.data();
            for (std::int32_t i = first; i < last; ++i)
                for (const Sequence& source : sequences)
                    require(same_bits(*value++, directed(source, sequences[static_cast<std::size_t>(i)], workspace)), "directed_rows");
        }
    }
}

void check_nearest(Random& random, const Zoo& zoo, const std::vector<Sequence>& sequences, const Sequence& query) {
    Workspace workspace(active_kernels());
    for (const Similarity similarity : {Similarity::directed, Similarity::symmetric}) {
        std::vector<Neighbour> expected;
        for (std::size_t i = 0; i < sequences.size(); ++i)
            expected.push_back({static_cast<std::int32_t>(i),
                                similarity == Similarity::directed ? directed(sequences[i], query, workspace) : symmetric(sequences[i], query, workspace)});
        std::ranges::stable_sort(expected, std::ranges::greater{}, &Neighbour::similarity);
        const std::size_t ks[] = {0, 1, static_cast<std::size_t>(pick(random, 1, 8)), sequences.size(), sequences.size() + 3};
        for (const std::size_t k : ks) {
            const auto check = [&](unsigned workers) {
                std::size_t aligned = SIZE_MAX;
                const std::vector<Neighbour> found = zoo.nearest(query, k, similarity, Run{workers}, &aligned);
                if (found.size() != std::min(k, expected.size()) || aligned > expected.size()) return false;
                return std::ranges::equal(found, std::span(expected).first(found.size()), [](const Neighbour& a, const Neighbour& b) {
                    return a.network == b.network && same_bits(a.similarity, b.similarity);
                });
            };
            require(check(1), "nearest, one thread");
            require(check(4), "nearest, four threads");
            bool other = false;
            std::jthread thread([&] { other = check(2); });
            require(check(2), "nearest beside another");
            thread.join();
            require(other, "the other nearest");
        }
    }
}

void fuzz_zoo(Random& random) {
    Zoo zoo;
    Maker maker(random);
    for (int parts = pick(random, 1, 3); parts > 0; --parts) zoo.extend(maker.part().spans());
    std::vector<Sequence> sequences;
    for (const Net& net : maker.networks) sequences.push_back(net.sequence());
    require(zoo.size() == static_cast<std::int32_t>(sequences.size()), "size");
    for (std::int32_t i = 0; i < zoo.size(); ++i) require(zoo.scored(i) == sequences[static_cast<std::size_t>(i)].num_scored(), "scored");
    check_rows(random, zoo, sequences);
    const std::size_t known = maker.networks.size();
    while (maker.networks.size() == known) maker.part();
    check_nearest(random, zoo, sequences, maker.networks.back().sequence());
    if (!sequences.empty()) check_nearest(random, zoo, sequences, sequences.front());
}

// Tables that may contradict each other: refused with an exception and without a trace, or good enough to compute on.
void fuzz_tables(Random& random) {
    Zoo zoo;
    Maker maker(random);
    zoo.extend(maker.part().spans());
    Tables tables = maker.part();
    for (int changes = pick(random, 1, 3); changes > 0; --changes) {
        const auto change = [&](auto& array) {
            using Value = typename std::remove_reference_t<decltype(array)>::value_type;
            const Value extreme[] = {std::numeric_limits<Value>::min(), std::numeric_limits<Value>::max()};
            const Value value = pick(random, 0, 3) ? static_cast<Value>(pick(random, -20, 40)) : extreme[random() % 2];
            switch (pick(random, 0, 2)) {
                case 0: array.push_back(value); break;
                case 1: if (!array.empty()) array.pop_back(); break;
                default: if (!array.empty()) array[random() % array.size()] = value;
            }
        };
        switch (pick(random, 0, 6)) {
            case 0: change(tables.layer_kinds); break;
            case 1: change(tables.size_offsets); break;
            case 2: change(tables.sizes); break;
            case 3: change(tables.block_offsets); break;
            case 4: change(tables.block_layers); break;
            case 5: change(tables.network_offsets); break;
            default: change(tables.network_elements);
        }
    }
    const std::int32_t networks = zoo.size();
    const std::int32_t blocks = zoo.blocks();
    try {
        zoo.extend(tables.spans());
    } catch (const std::invalid_argument&) {
        require(zoo.size() == networks && zoo.blocks() == blocks, "a refused extension left something behind");
    }
    std::vector<double> out(static_cast<std::size_t>(zoo.size()) * static_cast<std::size_t>(zoo.size()));
    zoo.directed_rows(0, zoo.size(), out.data(), 0, Run{});
    for (const double value : out) require(value >= 0.0 && value <= 1.0 + 1e-12, "a similarity outside of [0, 1]");
}

}  // namespace

int main(int argc, char** argv) {
    const long iterations = argc > 1 ? std::atol(argv[1]) : 200;
    const unsigned long long seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
    for (long x = 0; x < iterations; ++x) {
        Random random(seed + static_cast<unsigned long long>(x));
        try {
            fuzz_zoo(random);
            fuzz_tables(random);
        } catch (const std::exception& error) {
            std::fprintf(stderr, "difference: %s; repeat with: fuzz_zoo 1 %llu\n", error.what(), seed + static_cast<unsigned long long>(x));
            return 1;
        }
    }
    std::printf("%ld iterations, no difference\n", iterations);
    return 0;
}
