// Networks as alignment sees them: sequences of layers, some grouped into blocks, with equal layers and blocks known as such.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace pyassemble {

// Numbers distinct keys (spans of integers) in the order of their first appearance.
class KeyTable {
public:
    std::int32_t intern(std::span<const std::int64_t> key);      // existing or new number
    std::int32_t find(std::span<const std::int64_t> key) const;  // -1 if absent
    std::span<const std::int64_t> operator[](std::int32_t id) const;
    std::int32_t size() const { return static_cast<std::int32_t>(offsets_.size()) - 1; }

private:
    std::size_t slot(std::span<const std::int64_t> key) const;
    void grow();

    std::vector<std::int64_t> pool_;
    std::vector<std::size_t> offsets_{0};
    std::vector<std::int32_t> slots_;  // open addressing, -1 = free
};

// A sequence sorted by what its members may be paired with: all positions of one class are neighbours.
struct Layout {
    struct Section {
        std::int32_t klass;
        std::int32_t begin, end;  // into positions and members
    };
    std::int32_t length = 0;
    std::vector<Section> sections;
    std::vector<std::int32_t> positions;  // ascending within a section
    std::vector<std::int32_t> members;    // index of the layer within its class

    const Section* find(std::int32_t klass) const;
    std::span<const std::int32_t> positions_of(const Section& s) const;
    std::span<const std::int32_t> members_of(const Section& s) const;
};

// Knows equal layers and equal blocks, so that each pair of them is scored once. Several sequences may share one.
class Interner {
public:
    static constexpr std::int32_t kUnscored = -1;       // layer without weight
    static constexpr std::int32_t kBlocks = INT32_MAX;  // the class of all blocks

    // Layers score against each other only within one class: same kind, same number of dimensions.
    struct Class {
        std::int32_t kind;
        std::int32_t rank;
        std::vector<std::int64_t> sizes;  // [member * rank + dimension]
        std::int32_t count = 0;
    };
    struct Layer {
        std::int32_t klass;
        std::int32_t member;
    };

    std::int32_t layer(std::int32_t kind, std::span<const std::int64_t> sizes);
    std::int32_t block(std::span<const std::int32_t> layers);

    Layer operator[](std::int32_t layer) const { return layers_[static_cast<std::size_t>(layer)]; }
    const std::vector<Class>& classes() const { return classes_; }
    std::int32_t find_class(std::int32_t kind, std::int32_t rank) const;
    const std::vector<Layout>& blocks() const { return blocks_; }
    std::int32_t layers() const { return static_cast<std::int32_t>(layers_.size()); }
    // What was interned: a layer's kind and sizes, a block's layers.
    std::span<const std::int64_t> layer_key(std::int32_t layer) const { return layer_keys_[layer]; }
    std::span<const std::int64_t> block_key(std::int32_t block) const { return block_keys_[block]; }
    Layout layout(std::span<const Layer> members) const;

private:
    KeyTable layer_keys_, class_keys_, block_keys_;
    std::vector<Layer> layers_;
    std::vector<Class> classes_;
    std::vector<Layout> blocks_;
    std::vector<std::int64_t> key_;
};

// One standardized network; see the Python stub for the arrays. Immutable.
class Sequence {
public:
    struct Arrays {
        std::span<const std::int32_t> kinds;
        std::span<const std::int64_t> size_offsets;
        std::span<const std::int64_t> sizes;
        std::span<const std::int64_t> element_offsets;
        std::span<const std::uint8_t> is_block;
    };
    struct Element {
        std::int32_t start, stop;
        bool is_block;
        std::int32_t id;  // of the block or of the layer
    };

    // Throws std::invalid_argument where the arrays contradict each other.
    explicit Sequence(const Arrays& arrays, std::shared_ptr<Interner> interner = std::make_shared<Interner>());

    std::int32_t num_layers() const { return num_layers_; }
    std::int32_t num_scored() const { return num_scored_; }
    const std::vector<Element>& elements() const { return elements_; }
    const Layout& layout() const { return layout_; }
    const Interner& interner() const { return *interner_; }

private:
    std::shared_ptr<const Interner> interner_;
    std::int32_t num_layers_ = 0;
    std::int32_t num_scored_ = 0;
    std::vector<Element> elements_;
    Layout layout_;
};

}  // namespace pyassemble
