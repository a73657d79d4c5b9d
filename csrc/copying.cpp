#include "copying.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "parallel.hpp"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace pyassemble {

Crop::Crop(std::span<const std::int64_t> source_shape, std::span<const std::int64_t> target_shape, std::span<const std::int64_t> source_starts,
           std::span<const std::int64_t> target_starts, std::span<const std::int64_t> extents) {
    const std::size_t rank = extents.size();
    if (source_shape.size() != rank || target_shape.size() != rank || source_starts.size() != rank || target_starts.size() != rank)
        throw std::invalid_argument("shapes, starts and extents must have one number of dimensions");
    bool dense = true;  // the dimensions so far are whole in both arrays
    for (std::size_t d = rank; d-- > 0;) {
        const std::int64_t s = source_shape[d], t = target_shape[d], n = extents[d];
        if (n < 0 || source_starts[d] < 0 || target_starts[d] < 0 || n > s || source_starts[d] > s - n || n > t || target_starts[d] > t - n)
            throw std::invalid_argument("a region must lie within its array");
        // Checked first: a region that is not empty starts, and steps, below the number of elements.
        std::int64_t source_elements = 0, target_elements = 0;
        if (__builtin_mul_overflow(source_elements_, s, &source_elements) || __builtin_mul_overflow(target_elements_, t, &target_elements))
            throw std::invalid_argument("an array has too many elements");
        if (n > 0) {
            source_start_ += source_starts[d] * source_elements_;
            target_start_ += target_starts[d] * target_elements_;
        }
        if (dense) {
            run_ *= n;
            dense = n == s && n == t;
        } else if (n != 1) {  // a dimension of one step is none
            outer_.insert(outer_.begin(), Dimension{n, source_elements_, target_elements_});
            rows_ *= n;
        }
        source_elements_ = source_elements;
        target_elements_ = target_elements;
    }
}

Crop Crop::centre(std::span<const std::int64_t> source_shape, std::span<const std::int64_t> target_shape) {
    constexpr std::size_t kFew = 8;  // dimensions for which no memory is asked
    const std::size_t rank = source_shape.size();
    if (target_shape.size() != rank) throw std::invalid_argument("shapes must have one number of dimensions");
    std::int64_t few[3 * kFew];
    std::vector<std::int64_t> many(rank > kFew ? 3 * rank : 0);
    const std::span<std::int64_t> room = rank > kFew ? std::span(many) : std::span(few, 3 * rank);
    const auto source_starts = room.first(rank), target_starts = room.subspan(rank, rank), extents = room.last(rank);
    for (std::size_t d = 0; d < rank; ++d) {
        const std::int64_t s = source_shape[d], t = target_shape[d];
        if (s < 0 || t < 0) throw std::invalid_argument("sizes must not be negative");
        source_starts[d] = std::max<std::int64_t>(0, (s - t) / 2);
        target_starts[d] = std::max<std::int64_t>(0, (t - s) / 2);
        extents[d] = std::min(s, t);
    }
    return Crop(source_shape, target_shape, source_starts, target_starts, extents);
}

void Crop::Cursor::advance() {
    for (std::size_t d = index_.size(); d-- > 0;) {
        const Dimension& dimension = crop_.outer_[d];
        source_ += dimension.source_stride;
        target_ += dimension.target_stride;
        if (++index_[d] < dimension.extent) return;
        index_[d] = 0;
        source_ -= dimension.extent * dimension.source_stride;
        target_ -= dimension.extent * dimension.target_stride;
    }
}

std::size_t itemsize(Format format) {
    switch (format) {
        case Format::float16:
        case Format::bfloat16: return 2;
        case Format::float32: return 4;
        case Format::float64:
        case Format::int64: return 8;
    }
    throw std::invalid_argument("unknown format of numbers");
}

namespace {

// Bits of a number, and those of them that are all set where it is not finite: none where every number is.
template <class Bits, Bits exponent>
struct Test {
    static constexpr std::size_t kSize = sizeof(Bits);

    static bool nonfinite(const std::byte* data) {
        Bits bits;
        std::memcpy(&bits, data, sizeof(Bits));
        return exponent != 0 && (bits & exponent) == exponent;
    }
};

// Calls work.operator()<Test>() with the test of a format.
template <class Work>
auto with_test(Format format, Work&& work) {
    switch (format) {
        case Format::float16: return work.template operator()<Test<std::uint16_t, 0x7C00>>();
        case Format::bfloat16: return work.template operator()<Test<std::uint16_t, 0x7F80>>();
        case Format::float32: return work.template operator()<Test<std::uint32_t, 0x7F800000>>();
        case Format::float64: return work.template operator()<Test<std::uint64_t, 0x7FF0000000000000>>();
        case Format::int64: return work.template operator()<Test<std::uint64_t, 0>>();
    }
    throw std::invalid_argument("unknown format of numbers");
}

// Reads whole arrays without a branch: compilers make it vectors.
template <class Test>
bool holds_nonfinite(const std::byte* data, std::size_t bytes) {
    unsigned found = 0;
    for (std::size_t at = 0; at < bytes; at += Test::kSize) found |= Test::nonfinite(data + at);
    return found != 0;
}

// Sixteen bytes on their way. To a place of saving they go past the cache: what is saved is not read again soon, no line is
// fetched only to be overwritten, and none that is needed is driven out.
#if defined(__SSE2__)
using Vector = __m128i;
Vector load(const std::byte* from) { return _mm_loadu_si128(reinterpret_cast<const Vector*>(from)); }
void store(std::byte* to, Vector vector) { _mm_storeu_si128(reinterpret_cast<Vector*>(to), vector); }
void stream(std::byte* to, Vector vector) { _mm_stream_si128(reinterpret_cast<Vector*>(to), vector); }
void finish_streams() { _mm_sfence(); }
#else
struct Vector {
    std::byte bytes[16];
};
Vector load(const std::byte* from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof(Vector));
    return vector;
}
void store(std::byte* to, Vector vector) { std::memcpy(to, &vector, sizeof(Vector)); }
void stream(std::byte* to, Vector vector) { store(to, vector); }
void finish_streams() {}
#endif

constexpr std::size_t kVector = 16, kLine = 64;

// Saves a row and writes over it; whether a number of the source is not finite.
template <class Test>
bool save_and_write_row(std::byte* saved, std::byte* target, const std::byte* source, std::size_t bytes) {
    unsigned found = 0;
    std::size_t at = 0;
    if (reinterpret_cast<std::uintptr_t>(saved) % kVector == 0) {
        for (; at + kLine <= bytes; at += kLine) {
            const Vector a = load(target + at), b = load(target + at + 16), c = load(target + at + 32), d = load(target + at + 48);
            const Vector e = load(source + at), f = load(source + at + 16), g = load(source + at + 32), h = load(source + at + 48);
            found |= holds_nonfinite<Test>(source + at, kLine);
            stream(saved + at, a), stream(saved + at + 16, b), stream(saved + at + 32, c), stream(saved + at + 48, d);
            store(target + at, e), store(target + at + 16, f), store(target + at + 32, g), store(target + at + 48, h);
        }
        for (; at + kVector <= bytes; at += kVector) {
            const Vector a = load(target + at), e = load(source + at);
            found |= holds_nonfinite<Test>(source + at, kVector);
            stream(saved + at, a);
            store(target + at, e);
        }
    }
    found |= holds_nonfinite<Test>(source + at, bytes - at);
    std::memcpy(saved + at, target + at, bytes - at);
    std::memcpy(target + at, source + at, bytes - at);
    return found != 0;
}

template <class Test>
bool save_and_write(const Copy& copy, std::byte* saved) {
    if (copy.crop.elements() == 0) return false;
    constexpr auto size = static_cast<std::int64_t>(Test::kSize);
    const auto bytes = static_cast<std::size_t>(copy.crop.run() * size);
    saved += copy.saved;
    bool found = false;
    Crop::Cursor cursor = copy.crop.first_row();
    for (std::int64_t row = 0; row < copy.crop.rows(); ++row, cursor.advance(), saved += bytes)
        found |= save_and_write_row<Test>(saved, copy.target + cursor.target() * size, copy.source + cursor.source() * size, bytes);
    return found;
}

void put_back(const Copy& copy, const std::byte* saved) {
    if (copy.crop.elements() == 0) return;
    const auto size = static_cast<std::int64_t>(itemsize(copy.format));
    const auto bytes = static_cast<std::size_t>(copy.crop.run() * size);
    saved += copy.saved;
    Crop::Cursor cursor = copy.crop.first_row();
    for (std::int64_t row = 0; row < copy.crop.rows(); ++row, cursor.advance(), saved += bytes)
        std::memcpy(copy.target + cursor.target() * size, saved, bytes);
}

struct Extent {
    const std::byte *start, *stop;
};

Extent extent(const std::byte* start, std::int64_t elements, Format format) {
    return {start, start + static_cast<std::size_t>(elements) * itemsize(format)};
}

}  // namespace

void Copies::add(Crop crop, const std::byte* source, std::byte* target, Format format) {
    copies_.push_back({std::move(crop), source, target, format, saved_bytes_});
    saved_bytes_ += (copies_.back().bytes() + kAlignment - 1) / kAlignment * kAlignment;
    elements_ += copies_.back().crop.elements();
}

bool Copies::disjoint() const {
    std::vector<Extent> targets;
    targets.reserve(copies_.size());
    for (const Copy& copy : copies_)
        if (copy.crop.target_elements() > 0) targets.push_back(extent(copy.target, copy.crop.target_elements(), copy.format));
    std::ranges::sort(targets, {}, &Extent::start);
    for (std::size_t i = 1; i < targets.size(); ++i)
        if (targets[i].start < targets[i - 1].stop) return false;
    return std::ranges::all_of(copies_, [&](const Copy& copy) {
        const Extent source = extent(copy.source, copy.crop.source_elements(), copy.format);
        const auto above = std::ranges::lower_bound(targets, source.stop, {}, &Extent::start);
        return source.start == source.stop || above == targets.begin() || (above - 1)->stop <= source.start;
    });
}

std::size_t Copies::save_and_write(std::byte* saved, unsigned workers) const {
    const auto is_whole = [](const Copy& copy) { return copy.crop.elements() == copy.crop.source_elements(); };
    for (std::size_t i = 0; i < copies_.size(); ++i) {
        const Copy& copy = copies_[i];
        // One source may serve a run of targets.
        if (is_whole(copy) || (i > 0 && !is_whole(copies_[i - 1]) && copies_[i - 1].source == copy.source)) continue;
        const Numbers numbers{copy.source, static_cast<std::size_t>(copy.crop.source_elements())};
        if (first_nonfinite({&numbers, 1}, copy.format) == 0) return i;
    }
    // Stretches of copies, shared out in order: all before one that was begun were begun too, so the first bad source that is
    // found is the first there is, whatever the number of threads.
    constexpr std::size_t kTurns = 16;  // of each thread, so that none waits long for the last
    const std::size_t stretch_bytes = saved_bytes_ / (kTurns * std::max(workers, 1u));
    std::vector<std::size_t> starts{0};
    for (std::size_t i = 0, bytes = 0; i < copies_.size(); ++i) {
        bytes += copies_[i].bytes();
        if (bytes <= stretch_bytes && i + 1 < copies_.size()) continue;
        starts.push_back(i + 1);
        bytes = 0;
    }
    std::vector<std::size_t> done(starts.size() - 1);  // copies of each stretch that were made
    std::atomic<std::size_t> bad{copies_.size()};
    parallel_for(done.size(), workers, [&](std::size_t stretch, unsigned) {
        for (std::size_t i = starts[stretch]; i < starts[stretch + 1] && i < bad.load(std::memory_order_relaxed); ++i, ++done[stretch]) {
            const Copy& copy = copies_[i];
            const bool found = with_test(copy.format, [&]<class Test>() { return pyassemble::save_and_write<Test>(copy, saved); });
            if (!found) continue;
            for (std::size_t known = bad.load(); i < known && !bad.compare_exchange_weak(known, i);) {}
        }
        finish_streams();
    });
    if (bad == copies_.size()) return bad;
    for (std::size_t stretch = 0; stretch < done.size(); ++stretch)
        for (std::size_t i = starts[stretch]; i < starts[stretch] + done[stretch]; ++i) put_back(copies_[i], saved);
    return bad;
}

std::size_t first_nonfinite(std::span<const Numbers> arrays, Format format) {
    return with_test(format, [&]<class Test>() {
        const auto found = std::ranges::find_if(arrays, [](const Numbers& array) { return holds_nonfinite<Test>(array.data, array.count * Test::kSize); });
        return static_cast<std::size_t>(found - arrays.begin());
    });
}

}  // namespace pyassemble
