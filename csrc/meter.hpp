// Lets long computations be interrupted: work is metered, and now and then a callback may throw to stop it.
#pragma once

#include <chrono>
#include <cstdint>

namespace pyassemble {

class Meter {
public:
    using Check = void (*)(void* context);

    Meter() = default;  // never interrupts
    Meter(Check check, void* context) : check_(check), context_(context), left_(kCellsPerLook), last_(Clock::now()) {}

    // Call it between pieces of work; may throw whatever the callback throws.
    void spend(std::int64_t cells) {
        left_ -= cells;
        if (left_ < 0) look();
    }

private:
    using Clock = std::chrono::steady_clock;
    // Looking at the clock is cheap, the callback may wait for a lock that another thread holds for milliseconds.
    static constexpr std::int64_t kCellsPerLook = 1 << 19;
    static constexpr std::chrono::milliseconds kPause{50};

    void look() {
        left_ = kCellsPerLook;
        if (check_ == nullptr) return;
        const Clock::time_point now = Clock::now();
        if (now - last_ < kPause) return;
        check_(context_);
        last_ = Clock::now();
    }

    Check check_ = nullptr;
    void* context_ = nullptr;
    std::int64_t left_ = kCellsPerLook;
    Clock::time_point last_;
};

}  // namespace pyassemble
