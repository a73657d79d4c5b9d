// Random regions of random arrays, copied and looked at, against loops over indices; meant to run under sanitizers.
//
// Usage: fuzz_copying [iterations] [seed]. Exits with 1 at the first difference and prints how to repeat it.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
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

// Arrays end where their memory ends, so that a sanitizer sees every byte too far.
template <class T>
bool check_copy(Random& random) {
    const auto rank = static_cast<std::size_t>(pick(random, 0, 4));
    Index extents(rank), source_shape(rank), target_shape(rank), source_starts(rank), target_starts(rank);
    for (std::size_t d = 0; d < rank; ++d) {
        const bool last = d + 1 == rank;
        extents[d] = last && pick(random, 0, 3) == 0 ? pick(random, 100, 50000) : pick(random, 0, 6);
        source_starts[d] = pick(random, 0, 1) * pick(random, 0, 3);
        target_starts[d] = pick(random, 0, 1) * pick(random, 0, 3);
        source_shape[d] = source_starts[d] + extents[d] + pick(random, 0, 1) * pick(random, 0, 3);
        target_shape[d] = target_starts[d] + extents[d] + pick(random, 0, 1) * pick(random, 0, 3);
    }
    const Crop crop(source_shape, target_shape, source_starts, target_starts, extents);
    if (static_cast<std::size_t>(crop.elements()) != count(extents)) return false;
    std::vector<T> source(count(source_shape)), target(count(target_shape)), saved(count(extents));
    for (T& x : source) x = static_cast<T>(random());
    for (T& x : target) x = static_cast<T>(random());
    std::vector<T> expected = target, held;
    if (count(extents) > 0) {
        Index at(rank, 0);
        do {
            T& place = expected[offset(target_shape, target_starts, at)];
            held.push_back(place);
            place = source[offset(source_shape, source_starts, at)];
        } while (next(at, extents));
    }
    const Copy copy{&crop, reinterpret_cast<const std::byte*>(source.data()), reinterpret_cast<std::byte*>(target.data()),
                    reinterpret_cast<std::byte*>(saved.data()), sizeof(T)};
    save_and_copy({&copy, 1});
    return target == expected && saved == held;
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
    return first_nonfinite(numbers, FloatFormat::float32) == expected;
}

}  // namespace

int main(int argc, char** argv) {
    const long iterations = argc > 1 ? std::atol(argv[1]) : 1000;
    const unsigned long seed = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 0;
    for (long i = 0; i < iterations; ++i) {
        Random random(seed + static_cast<unsigned long>(i));
        if (!check_copy<std::uint8_t>(random) || !check_copy<std::uint16_t>(random) || !check_copy<std::uint32_t>(random) ||
            !check_copy<std::uint64_t>(random) || !check_finite(random)) {
            std::printf("difference: fuzz_copying 1 %lu\n", seed + static_cast<unsigned long>(i));
            return 1;
        }
    }
    std::printf("%ld iterations, no difference\n", iterations);
    return 0;
}
