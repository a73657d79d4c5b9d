// Random regions of random arrays, copied together and looked at, against loops over indices; meant to run under sanitizers.
//
// Usage: fuzz_copying [iterations] [seed]. Exits with 1 at the first difference and prints how to repeat it.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <utility>
#include <vector>

#include "copying.hpp"

namespace {

using namespace pyassemble;
using Random = std::mt19937_64;
using Index = std::vector<std::int64_t>;

std::int64_t pick(Random& random, std::int64_t low, std::int64_t high) { return std::uniform_int_distribution<std::int64_t>(low, high)(random); }

std::size_t count(const Index& shape) {
    std::int64_t n = 1;
    for (const std::int64_t size : shape) n *= size;
    return static_cast<std::size_t>(n);
}

std::size_t offset(const Index& shape, const Index& starts, const Index& at) {
    std::int64_t flat = 0;
    for (std::size_t d = 0; d < shape.size(); ++d) flat = flat * shape[d] + starts[d] + at[d];
    return static_cast<std::size_t>(flat);
}

bool next(Index& at, const Index& extents) {
    for (std::size_t d = at.size(); d-- > 0;) {
        if (++at[d] < extents[d]) return true;
        at[d] = 0;
    }
    return false;
}

// Room that starts on a cache line and ends where its memory ends.
struct Place {
    explicit Place(std::size_t bytes) : memory(static_cast<std::byte*>(::operator new(bytes, kLine)), Free{}), start(memory.get()) {}

    static constexpr std::align_val_t kLine{Copies::kAlignment};
    struct Free {
        void operator()(std::byte* bytes) const { ::operator delete(bytes, kLine); }
    };
    std::unique_ptr<std::byte, Free> memory;
    std::byte* start;
};

struct Region {
    Index source_shape, target_shape, source_starts, target_starts, extents;
};

Region centre(Random& random) {
    Region region;
    const auto rank = pick(random, 0, 10) == 0 ? 9 : pick(random, 0, 4);
    for (std::int64_t d = 0; d < rank; ++d) {
        const std::int64_t s = rank > 4 ? pick(random, 1, 2) : pick(random, 0, 7), t = rank > 4 ? pick(random, 1, 2) : pick(random, 0, 7);
        const std::int64_t wide = d + 1 == rank && pick(random, 0, 3) == 0 ? pick(random, 10, 3000) : 0;
        region.source_shape.push_back(s + wide);
        region.target_shape.push_back(t + wide);
        region.source_starts.push_back(std::max<std::int64_t>(0, (s - t) / 2));
        region.target_starts.push_back(std::max<std::int64_t>(0, (t - s) / 2));
        region.extents.push_back(std::min(s, t) + wide);
    }
    return region;
}

Region anywhere(Random& random) {
    Region region;
    const auto rank = pick(random, 0, 4);
    for (std::int64_t d = 0; d < rank; ++d) {
        region.extents.push_back(d + 1 == rank && pick(random, 0, 3) == 0 ? pick(random, 100, 50000) : pick(random, 0, 6));
        region.source_starts.push_back(pick(random, 0, 1) * pick(random, 0, 3));
        region.target_starts.push_back(pick(random, 0, 1) * pick(random, 0, 3));
        region.source_shape.push_back(region.source_starts.back() + region.extents.back() + pick(random, 0, 1) * pick(random, 0, 3));
        region.target_shape.push_back(region.target_starts.back() + region.extents.back() + pick(random, 0, 1) * pick(random, 0, 3));
    }
    return region;
}

bool finite(const std::byte* data, Format format) {
    const auto exponent_full = [&]<class Bits>(Bits exponent) {
        Bits bits;
        std::memcpy(&bits, data, sizeof bits);
        return (bits & exponent) == exponent;
    };
    switch (format) {
        case Format::float16: return !exponent_full(std::uint16_t{0x7C00});
        case Format::bfloat16: return !exponent_full(std::uint16_t{0x7F80});
        case Format::float32: return !exponent_full(std::uint32_t{0x7F800000});
        case Format::float64: return !exponent_full(std::uint64_t{0x7FF0000000000000});
        case Format::int64: return true;
    }
    return false;
}

struct Array {
    std::vector<std::byte> before, expected, now, source;
    Region region;
    Format format;
    bool good = true;
};

// Several arrays at once: all are written and what they held is saved, or one that is not finite is found and all are as they were.
bool check_copies(Random& random) {
    constexpr Format kFormats[] = {Format::float16, Format::bfloat16, Format::float32, Format::float64, Format::int64};
    std::vector<Array> arrays(static_cast<std::size_t>(pick(random, 0, 4)));
    Copies copies;
    std::vector<std::vector<std::byte>> held;
    for (Array& array : arrays) {
        const bool centred = pick(random, 0, 1) == 1;
        array.region = centred ? centre(random) : anywhere(random);
        array.format = kFormats[pick(random, 0, 4)];
        const Region& r = array.region;
        const std::size_t size = itemsize(array.format);
        array.source.resize(count(r.source_shape) * size);
        array.before.resize(count(r.target_shape) * size);
        for (std::byte& x : array.source) x = static_cast<std::byte>(random());
        for (std::byte& x : array.before) x = static_cast<std::byte>(random());
        const bool spoiled = pick(random, 0, 9) == 0;
        for (std::size_t at = 0; at < array.source.size(); at += size) {
            if (!finite(&array.source[at], array.format) && !(spoiled && pick(random, 0, 9) == 0)) std::memset(&array.source[at], 0, size);
            array.good &= finite(&array.source[at], array.format);
        }
        array.now = array.expected = array.before;
        std::vector<std::byte>& saved = held.emplace_back();
        if (count(r.extents) > 0) {
            Index at(r.extents.size(), 0);
            do {
                std::byte* place = &array.expected[offset(r.target_shape, r.target_starts, at) * size];
                saved.insert(saved.end(), place, place + size);
                std::memcpy(place, &array.source[offset(r.source_shape, r.source_starts, at) * size], size);
            } while (next(at, r.extents));
        }
        Crop crop = centred ? Crop::centre(r.source_shape, r.target_shape)
                            : Crop(r.source_shape, r.target_shape, r.source_starts, r.target_starts, r.extents);
        if (static_cast<std::size_t>(crop.elements()) != count(r.extents)) return false;
        copies.add(std::move(crop), array.source.data(), array.now.data(), array.format);
    }
    Place place(copies.saved_bytes());
    if (!copies.disjoint()) return false;
    const std::size_t written = copies.save_and_write(place.start, static_cast<unsigned>(pick(random, 1, 3)));
    const bool good = std::ranges::all_of(arrays, &Array::good);
    if (good != (written == arrays.size()) || (!good && arrays[written].good)) return false;
    for (std::size_t i = 0; i < arrays.size(); ++i) {
        if (arrays[i].now != (good ? arrays[i].expected : arrays[i].before)) return false;
        if (good && !held[i].empty() && std::memcmp(place.start + copies.all()[i].saved, held[i].data(), held[i].size()) != 0) return false;
    }
    return true;
}

// Arrays anywhere in one piece of memory.
bool check_disjoint(Random& random) {
    std::vector<std::byte> memory(300);
    struct Span {
        std::int64_t start, stop;
        bool is_target;
    };
    std::vector<Span> spans;
    Copies copies;
    for (std::int64_t i = pick(random, 0, 4); i > 0; --i) {
        const Index source_shape{pick(random, 0, 6)}, target_shape{pick(random, 0, 6)};
        const std::int64_t source = pick(random, 0, 250), target = pick(random, 0, 250);
        copies.add(Crop::centre(source_shape, target_shape), memory.data() + source, memory.data() + target, Format::float64);
        spans.push_back({source, source + 8 * source_shape[0], false});
        spans.push_back({target, target + 8 * target_shape[0], true});
    }
    bool expected = true;
    for (std::size_t a = 0; a < spans.size(); ++a)
        for (std::size_t b = 0; b < spans.size(); ++b)
            if (a != b && (spans[a].is_target || spans[b].is_target) && std::max(spans[a].start, spans[b].start) < std::min(spans[a].stop, spans[b].stop))
                expected = false;
    return copies.disjoint() == expected;
}

bool check_finite(Random& random) {
    std::vector<std::vector<std::uint32_t>> arrays(static_cast<std::size_t>(pick(random, 0, 4)));
    std::vector<Numbers> numbers;
    std::size_t expected = arrays.size();
    for (std::size_t a = 0; a < arrays.size(); ++a) {
        arrays[a].resize(static_cast<std::size_t>(pick(random, 0, 70)));
        for (std::uint32_t& bits : arrays[a]) {
            bits = static_cast<std::uint32_t>(random()) & ~(pick(random, 0, 60) ? 0x00800000u : 0u);
            float value;
            std::memcpy(&value, &bits, sizeof value);
            if (value - value != 0.0F && expected == arrays.size()) expected = a;
        }
        numbers.push_back({reinterpret_cast<const std::byte*>(arrays[a].data()), arrays[a].size()});
    }
    return first_nonfinite(numbers, Format::float32) == expected;
}

}  // namespace

int main(int argc, char** argv) {
    const long iterations = argc > 1 ? std::atol(argv[1]) : 1000;
    const unsigned long seed = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 0;
    for (long i = 0; i < iterations; ++i) {
        Random random(seed + static_cast<unsigned long>(i));
        if (!check_copies(random) || !check_disjoint(random) || !check_finite(random)) {
            std::printf("difference: fuzz_copying 1 %lu\n", seed + static_cast<unsigned long>(i));
            return 1;
        }
    }
    std::printf("%ld iterations, no difference\n", iterations);
    return 0;
}
