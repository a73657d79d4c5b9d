// A value for each pair of a zoo's block and a query's block, computed row by row when first needed, by any thread.
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace pyassemble {

class BlockTable {
public:
    // Memory that is never touched is never given by the system.
    BlockTable(std::size_t rows, std::size_t columns) : columns_(columns), cells_(zeros<std::uint64_t>(rows * columns)), known_(zeros<std::uint8_t>(rows)) {}

    std::size_t columns() const { return columns_; }

    // Whether the row has been set; then it may be read.
    bool known(std::int32_t row) const { return std::atomic_ref(known_.get()[row]).load(std::memory_order_acquire) != 0; }

    // Two threads may set the same row at once: they found the same bits.
    void set(std::int32_t row, const double* values) {
        for (std::size_t x = 0; x < columns_; ++x) cell(row, x).store(std::bit_cast<std::uint64_t>(values[x]), std::memory_order_relaxed);
        std::atomic_ref(known_.get()[row]).store(1, std::memory_order_release);
    }

    double get(std::int32_t row, std::int32_t column) const {
        return std::bit_cast<double>(cell(row, static_cast<std::size_t>(column)).load(std::memory_order_relaxed));
    }

private:
    struct Free {
        void operator()(void* p) const { std::free(p); }
    };
    template <class T>
    using Memory = std::unique_ptr<T[], Free>;

    template <class T>
    static Memory<T> zeros(std::size_t count) {
        if (count == 0) return {};
        auto* p = static_cast<T*>(std::calloc(count, sizeof(T)));
        if (p == nullptr) throw std::bad_alloc();
        return Memory<T>(p);
    }

    std::atomic_ref<std::uint64_t> cell(std::int32_t row, std::size_t column) const {
        return std::atomic_ref(cells_.get()[static_cast<std::size_t>(row) * columns_ + column]);
    }

    std::size_t columns_;
    Memory<std::uint64_t> cells_;
    Memory<std::uint8_t> known_;
};

}  // namespace pyassemble
