// Copies of rectangular regions between dense arrays, many at once, and a look at whether numbers are finite.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace pyassemble {

// A rectangular region of one row-major array and one of the same extents in another.
class Crop {
public:
    // Throws std::invalid_argument unless the regions lie within the shapes.
    Crop(std::span<const std::int64_t> source_shape, std::span<const std::int64_t> target_shape, std::span<const std::int64_t> source_starts,
         std::span<const std::int64_t> target_starts, std::span<const std::int64_t> extents);

    // The middle of both arrays, as much as the smaller has in each dimension (SPEC 1.5).
    static Crop centre(std::span<const std::int64_t> source_shape, std::span<const std::int64_t> target_shape);

    std::int64_t elements() const { return rows_ * run_; }
    std::int64_t rows() const { return rows_; }
    std::int64_t run() const { return run_; }  // elements of a row, which lie next to each other in both arrays
    std::int64_t source_elements() const { return source_elements_; }
    std::int64_t target_elements() const { return target_elements_; }

    // Walks from row to row.
    class Cursor;
    Cursor first_row() const;

private:
    struct Dimension {
        std::int64_t extent, source_stride, target_stride;
    };
    std::vector<Dimension> outer_;  // all but those that a run covers
    std::int64_t source_start_ = 0, target_start_ = 0;
    std::int64_t source_elements_ = 1, target_elements_ = 1;
    std::int64_t rows_ = 1, run_ = 1;
};

class Crop::Cursor {
public:
    // Elements from the start of the source, and of the target, to the start of the row.
    std::int64_t source() const { return source_; }
    std::int64_t target() const { return target_; }
    void advance();

private:
    friend class Crop;
    explicit Cursor(const Crop& crop)
        : crop_(crop), source_(crop.source_start_), target_(crop.target_start_), index_(crop.outer_.size()) {}

    const Crop& crop_;
    std::int64_t source_, target_;
    std::vector<std::int64_t> index_;
};

inline Crop::Cursor Crop::first_row() const { return Cursor(*this); }

// What the elements of an array are. A floating-point number is not finite if all bits of its exponent are set.
enum class Format { float16, bfloat16, float32, float64, int64 };

std::size_t itemsize(Format format);

struct Copy {
    Crop crop;
    const std::byte* source;
    std::byte* target;
    Format format;
    std::size_t saved;  // bytes from the start of the place of saving to this copy's piece of it

    std::size_t bytes() const { return static_cast<std::size_t>(crop.elements()) * itemsize(format); }
};

// Many copies that are made together, or not at all.
class Copies {
public:
    static constexpr std::size_t kAlignment = 64;  // bytes, of the pieces in the place of saving: a cache line

    void add(Crop crop, const std::byte* source, std::byte* target, Format format);

    std::span<const Copy> all() const { return copies_; }
    std::size_t saved_bytes() const { return saved_bytes_; }  // room that they need to save what they overwrite
    std::int64_t elements() const { return elements_; }       // that they write

    // Whether no two targets share memory, and no target shares any with a source.
    bool disjoint() const;

    // Saves what each target region holds and writes the source region into it, in one pass over memory.
    //
    // Source arrays must be finite as wholes. Those that a copy reads as wholes are looked at while they are copied; if a
    // number turns out not to be finite, all targets are put back. Returns the position of a copy with such a source, or
    // their number if all went well. Copies must be disjoint, and `saved` must lie apart from them, on a cache line. At most
    // `workers` threads share the work; the result does not depend on their number.
    std::size_t save_and_write(std::byte* saved, unsigned workers) const;

private:
    std::vector<Copy> copies_;
    std::size_t saved_bytes_ = 0;
    std::int64_t elements_ = 0;
};

struct Numbers {
    const std::byte* data;
    std::size_t count;
};

// The first array that holds a NaN or an infinity, or arrays.size().
std::size_t first_nonfinite(std::span<const Numbers> arrays, Format format);

}  // namespace pyassemble
