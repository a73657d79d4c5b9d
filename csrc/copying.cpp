#include "copying.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace pyassemble {

namespace {

// Copies past the cache to memory that is not read again soon: no line is fetched only to be overwritten, none that is
// needed is driven out.
void stream(std::byte* to, const std::byte* from, std::size_t bytes) {
#if defined(__SSE2__)
    const std::size_t head = (16 - reinterpret_cast<std::uintptr_t>(to) % 16) % 16;
    if (bytes >= 4096) {
        std::memcpy(to, from, head);
        to += head, from += head, bytes -= head;
        for (; bytes >= 64; to += 64, from += 64, bytes -= 64) {
            const auto* in = reinterpret_cast<const __m128i*>(from);
            auto* out = reinterpret_cast<__m128i*>(to);
            const __m128i a = _mm_loadu_si128(in), b = _mm_loadu_si128(in + 1), c = _mm_loadu_si128(in + 2), d = _mm_loadu_si128(in + 3);
            _mm_stream_si128(out, a);
            _mm_stream_si128(out + 1, b);
            _mm_stream_si128(out + 2, c);
            _mm_stream_si128(out + 3, d);
        }
    }
#endif
    std::memcpy(to, from, bytes);
}

void finish_streams() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

constexpr std::size_t kPiece = 128 << 10;  // bytes; a second-level cache holds more

}  // namespace

Crop::Crop(std::span<const std::int64_t> source_shape, std::span<const std::int64_t> target_shape, std::span<const std::int64_t> source_starts,
           std::span<const std::int64_t> target_starts, std::span<const std::int64_t> extents) {
    const std::size_t rank = extents.size();
    if (source_shape.size() != rank || target_shape.size() != rank || source_starts.size() != rank || target_starts.size() != rank)
        throw std::invalid_argument("shapes, starts and extents must have one number of dimensions");
    bool dense = true;  // the dimensions so far are whole in both arrays
    std::int64_t source_stride = 1, target_stride = 1;
    for (std::size_t d = rank; d-- > 0;) {
        const std::int64_t s = source_shape[d], t = target_shape[d], n = extents[d];
        if (n < 0 || source_starts[d] < 0 || target_starts[d] < 0 || n > s || source_starts[d] > s - n || n > t || target_starts[d] > t - n)
            throw std::invalid_argument("a region must lie within its array");
        source_start_ += source_starts[d] * source_stride;
        target_start_ += target_starts[d] * target_stride;
        if (dense) {
            run_ *= n;
            dense = n == s && n == t;
        } else {
            outer_.insert(outer_.begin(), Dimension{n, source_stride, target_stride});
            rows_ *= n;
        }
        if (__builtin_mul_overflow(source_stride, s, &source_stride) || __builtin_mul_overflow(target_stride, t, &target_stride))
            throw std::invalid_argument("an array has too many elements");
    }
    // A dimension of one step is none.
    std::erase_if(outer_, [](const Dimension& dimension) { return dimension.extent == 1; });
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

void save_and_copy(std::span<const Copy> copies) {
    for (const Copy& copy : copies) {
        const auto size = static_cast<std::int64_t>(copy.itemsize);
        const auto bytes = static_cast<std::size_t>(copy.crop->run() * size);
        // Pieces that stay in the cache between being saved and being overwritten.
        const std::size_t step = std::max<std::size_t>(1, std::min(kPiece, bytes));
        std::byte* saved = copy.saved;
        Crop::Cursor cursor = copy.crop->first_row();
        for (std::int64_t row = 0; row < copy.crop->rows(); ++row, cursor.advance()) {
            std::byte* target = copy.target + cursor.target() * size;
            const std::byte* source = copy.source + cursor.source() * size;
            for (std::size_t at = 0; at < bytes; at += step) {
                const std::size_t piece = std::min(step, bytes - at);
                stream(saved + at, target + at, piece);
                std::memcpy(target + at, source + at, piece);
            }
            saved += bytes;
        }
    }
    finish_streams();
}

namespace {

// A number is not finite if all bits of its exponent are set. Reads whole arrays without a branch: compilers make it vectors.
template <class Bits, Bits exponent>
bool holds_nonfinite(const std::byte* data, std::size_t count) {
    Bits found = 0;
    for (std::size_t i = 0; i < count; ++i) {
        Bits bits;
        std::memcpy(&bits, data + i * sizeof(Bits), sizeof(Bits));
        found = static_cast<Bits>(found | ((bits & exponent) == exponent));
    }
    return found != 0;
}

auto test_of(FloatFormat format) {
    switch (format) {
        case FloatFormat::float16: return &holds_nonfinite<std::uint16_t, 0x7C00>;
        case FloatFormat::bfloat16: return &holds_nonfinite<std::uint16_t, 0x7F80>;
        case FloatFormat::float32: return &holds_nonfinite<std::uint32_t, 0x7F800000>;
        case FloatFormat::float64: return &holds_nonfinite<std::uint64_t, 0x7FF0000000000000>;
    }
    throw std::invalid_argument("unknown format of numbers");
}

}  // namespace

std::size_t first_nonfinite(std::span<const Numbers> arrays, FloatFormat format) {
    const auto holds_nonfinite = test_of(format);
    return static_cast<std::size_t>(
        std::ranges::find_if(arrays, [&](const Numbers& array) { return holds_nonfinite(array.data, array.count); }) - arrays.begin());
}

}  // namespace pyassemble
