// Validation and interning of sequences.
#include "sequence.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace pyassemble {

namespace {

std::size_t hash(std::span<const std::int64_t> key) {
    std::uint64_t h = 0x9e3779b97f4a7c15u + key.size();
    for (const std::int64_t value : key) {
        h = (h ^ static_cast<std::uint64_t>(value)) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
    }
    return static_cast<std::size_t>(h);
}

}  // namespace

std::span<const std::int64_t> KeyTable::operator[](std::int32_t id) const {
    const auto i = static_cast<std::size_t>(id);
    return {pool_.data() + offsets_[i], offsets_[i + 1] - offsets_[i]};
}

std::size_t KeyTable::slot(std::span<const std::int64_t> key) const {
    const std::size_t mask = slots_.size() - 1;
    std::size_t at = hash(key) & mask;
    while (slots_[at] >= 0 && !std::ranges::equal((*this)[slots_[at]], key)) at = (at + 1) & mask;
    return at;
}

void KeyTable::grow() {
    slots_.assign(std::max<std::size_t>(64, slots_.size() * 2), -1);
    for (std::int32_t id = 0; id < size(); ++id) slots_[slot((*this)[id])] = id;
}

std::int32_t KeyTable::find(std::span<const std::int64_t> key) const { return slots_.empty() ? -1 : slots_[slot(key)]; }

std::int32_t KeyTable::intern(std::span<const std::int64_t> key) {
    if (offsets_.size() * 2 > slots_.size()) grow();
    std::int32_t& id = slots_[slot(key)];
    if (id < 0) {
        id = size();
        pool_.insert(pool_.end(), key.begin(), key.end());
        offsets_.push_back(pool_.size());
    }
    return id;
}

const Layout::Section* Layout::find(std::int32_t klass) const {
    for (const Section& section : sections)
        if (section.klass == klass) return &section;
    return nullptr;
}

std::span<const std::int32_t> Layout::positions_of(const Section& s) const {
    return std::span(positions).subspan(static_cast<std::size_t>(s.begin), static_cast<std::size_t>(s.end - s.begin));
}

std::span<const std::int32_t> Layout::members_of(const Section& s) const {
    return std::span(members).subspan(static_cast<std::size_t>(s.begin), static_cast<std::size_t>(s.end - s.begin));
}

std::int32_t Interner::find_class(std::int32_t kind, std::int32_t rank) const {
    const std::int64_t key[]{kind, rank};
    return class_keys_.find(key);
}

std::int32_t Interner::layer(std::int32_t kind, std::span<const std::int64_t> sizes) {
    key_.assign(1, kind);
    key_.insert(key_.end(), sizes.begin(), sizes.end());
    const std::int32_t id = layer_keys_.intern(key_);
    if (static_cast<std::size_t>(id) == layers_.size()) {
        const std::int64_t class_key[]{kind, static_cast<std::int64_t>(sizes.size())};
        const std::int32_t klass = class_keys_.intern(class_key);
        if (static_cast<std::size_t>(klass) == classes_.size())
            classes_.push_back(Class{kind, static_cast<std::int32_t>(sizes.size()), {}, 0});
        Class& c = classes_[static_cast<std::size_t>(klass)];
        c.sizes.insert(c.sizes.end(), sizes.begin(), sizes.end());
        layers_.push_back(Layer{klass, c.count++});
    }
    return id;
}

std::int32_t Interner::block(std::span<const std::int32_t> layers) {
    key_.assign(layers.begin(), layers.end());
    const std::int32_t id = block_keys_.intern(key_);
    if (static_cast<std::size_t>(id) == blocks_.size()) {
        std::vector<Layer> members;
        members.reserve(layers.size());
        for (const std::int32_t l : layers) members.push_back(l < 0 ? Layer{kUnscored, 0} : (*this)[l]);
        blocks_.push_back(layout(members));
    }
    return id;
}

Layout Interner::layout(std::span<const Layer> members) const {
    Layout layout;
    layout.length = static_cast<std::int32_t>(members.size());
    std::vector<std::int32_t> order;
    order.reserve(members.size());
    for (std::size_t i = 0; i < members.size(); ++i)
        if (members[i].klass != kUnscored) order.push_back(static_cast<std::int32_t>(i));
    const auto klass = [&](std::int32_t i) { return members[static_cast<std::size_t>(i)].klass; };
    std::ranges::stable_sort(order, {}, klass);
    for (const std::int32_t i : order) {
        const auto at = static_cast<std::int32_t>(layout.positions.size());
        if (layout.sections.empty() || layout.sections.back().klass != klass(i))
            layout.sections.push_back({klass(i), at, at});
        ++layout.sections.back().end;
        layout.positions.push_back(i);
        layout.members.push_back(members[static_cast<std::size_t>(i)].member);
    }
    return layout;
}

namespace {

[[noreturn]] void reject(const std::string& message) { throw std::invalid_argument(message); }

void check_offsets(const char* name, std::span<const std::int64_t> offsets, std::size_t parts, const char* of, std::size_t length) {
    const std::string n = name;
    if (offsets.size() != parts + 1)
        reject(n + " must have " + std::to_string(parts + 1) + " entries, not " + std::to_string(offsets.size()));
    if (offsets.front() != 0) reject(n + " must start at 0, not " + std::to_string(offsets.front()));
    for (std::size_t i = 0; i < parts; ++i)
        if (offsets[i + 1] < offsets[i]) reject(n + " decreases at index " + std::to_string(i + 1));
    if (offsets.back() != static_cast<std::int64_t>(length))
        reject(n + " must end at " + std::to_string(length) + ", the number of " + of + ", not " + std::to_string(offsets.back()));
}

}  // namespace

Sequence::Sequence(const Arrays& arrays, std::shared_ptr<Interner> interner) {
    const std::size_t count = arrays.kinds.size();
    if (count > static_cast<std::size_t>(INT32_MAX) - 1) reject("too many layers");
    check_offsets("size_offsets", arrays.size_offsets, count, "sizes", arrays.sizes.size());
    check_offsets("element_offsets", arrays.element_offsets, arrays.is_block.size(), "layers", count);
    for (std::size_t i = 0; i < count; ++i) {
        if (arrays.kinds[i] < -1) reject("kind of layer " + std::to_string(i) + " must be -1 or more, not " + std::to_string(arrays.kinds[i]));
        if (arrays.kinds[i] < 0) continue;
        for (std::int64_t x = arrays.size_offsets[i]; x < arrays.size_offsets[i + 1]; ++x) {
            const std::int64_t size = arrays.sizes[static_cast<std::size_t>(x)];
            if (size <= 0) reject("sizes of layer " + std::to_string(i) + " must be positive, not " + std::to_string(size));
        }
    }
    for (std::size_t e = 0; e < arrays.is_block.size(); ++e) {
        const std::int64_t layers = arrays.element_offsets[e + 1] - arrays.element_offsets[e];
        if (layers == 0) reject("element " + std::to_string(e) + " is empty");
        if (arrays.is_block[e] == 0 && layers != 1)
            reject("element " + std::to_string(e) + " is no block but holds " + std::to_string(layers) + " layers");
    }

    num_layers_ = static_cast<std::int32_t>(count);
    std::vector<std::int32_t> ids(count, Interner::kUnscored);
    for (std::size_t i = 0; i < count; ++i) {
        if (arrays.kinds[i] < 0) continue;
        const auto begin = static_cast<std::size_t>(arrays.size_offsets[i]);
        const auto end = static_cast<std::size_t>(arrays.size_offsets[i + 1]);
        ids[i] = interner->layer(arrays.kinds[i], arrays.sizes.subspan(begin, end - begin));
        ++num_scored_;
    }
    std::vector<Interner::Layer> top;
    elements_.reserve(arrays.is_block.size());
    top.reserve(arrays.is_block.size());
    for (std::size_t e = 0; e < arrays.is_block.size(); ++e) {
        const auto start = static_cast<std::size_t>(arrays.element_offsets[e]);
        const auto stop = static_cast<std::size_t>(arrays.element_offsets[e + 1]);
        const bool is_block = arrays.is_block[e] != 0;
        const std::int32_t id = is_block ? interner->block(std::span<const std::int32_t>(ids).subspan(start, stop - start)) : ids[start];
        elements_.push_back({static_cast<std::int32_t>(start), static_cast<std::int32_t>(stop), is_block, id});
        if (is_block)
            top.push_back({Interner::kBlocks, id});
        else
            top.push_back(id < 0 ? Interner::Layer{Interner::kUnscored, 0} : (*interner)[id]);
    }
    layout_ = interner->layout(top);
    interner_ = std::move(interner);
}

}  // namespace pyassemble
