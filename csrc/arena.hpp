// Scratch memory that is reused: allocation is moving a pointer, release is moving it back.
//
// Fresh pages cost more than most of the computations they would serve, hence no allocation per block pair.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

namespace pyassemble {

class Arena {
public:
    // Uninitialized room for `count` values, on a cache line of its own.
    template <class T>
    T* take(std::size_t count) {
        static_assert(std::is_trivially_destructible_v<T> && std::is_trivially_copyable_v<T>);
        if (count > (std::numeric_limits<std::size_t>::max() / 2) / sizeof(T)) throw std::bad_alloc();
        return static_cast<T*>(take_bytes(count * sizeof(T)));
    }

    // Everything taken while a Scope lives is given back when it ends.
    class Scope {
    public:
        explicit Scope(Arena& arena) : arena_(arena), chunk_(arena.chunk_), used_(arena.used_) {}
        ~Scope() {
            arena_.chunk_ = chunk_;
            arena_.used_ = used_;
            if constexpr (kSeparate) arena_.chunks_.erase(arena_.chunks_.begin() + static_cast<std::ptrdiff_t>(chunk_), arena_.chunks_.end());
        }
        Scope(const Scope&) = delete;
        Scope& operator=(const Scope&) = delete;

    private:
        Arena& arena_;
        std::size_t chunk_;
        std::size_t used_;
    };

private:
    // AddressSanitizer sees past the end of what operator new gave out, not past the end of a part of it.
#if defined(__SANITIZE_ADDRESS__)
    static constexpr bool kSeparate = true;
#else
    static constexpr bool kSeparate = false;
#endif
    static constexpr std::size_t kLine = 64;
    static constexpr std::size_t kChunk = std::size_t{1} << 16;

    struct Free {
        void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t{kLine}); }
    };
    struct Chunk {
        std::unique_ptr<std::byte, Free> memory;
        std::size_t size;
    };

    void* take_bytes(std::size_t bytes) {
        if constexpr (kSeparate) {
            chunks_.push_back(Chunk{nullptr, bytes});
            chunks_.back().memory.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{kLine})));
            chunk_ = chunks_.size();
            return chunks_.back().memory.get();
        }
        bytes = (bytes + kLine - 1) / kLine * kLine;
        while (chunk_ < chunks_.size() && chunks_[chunk_].size - used_ < bytes) {
            ++chunk_;
            used_ = 0;
        }
        if (chunk_ == chunks_.size()) {
            const std::size_t grown = chunks_.empty() ? kChunk : 2 * chunks_.back().size;
            // A request that is large on its own is not a reason to grow everything after it.
            const std::size_t size = bytes > kChunk * 16 ? bytes : (grown > kChunk * 64 ? kChunk * 64 : grown);
            const std::size_t room = size > bytes ? size : bytes;
            chunks_.push_back(Chunk{nullptr, 0});
            chunks_.back().memory.reset(static_cast<std::byte*>(::operator new(room, std::align_val_t{kLine})));
            chunks_.back().size = room;
            used_ = 0;
        }
        void* p = chunks_[chunk_].memory.get() + used_;
        used_ += bytes;
        return p;
    }

    std::vector<Chunk> chunks_;
    std::size_t chunk_ = 0;
    std::size_t used_ = 0;
};

}  // namespace pyassemble
