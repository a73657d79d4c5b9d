// Work shared between a few threads that live for one call: nothing stays behind that a fork could break.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace pyassemble {

// Calls work(task, worker) for every task < tasks, each once, in any order; worker < workers numbers the calling threads, and
// worker 0 is the caller's own thread. The first exception stops the rest and is thrown again here.
template <class Work>
void parallel_for(std::size_t tasks, unsigned workers, const Work& work) {
    std::atomic<std::size_t> next{0};
    std::exception_ptr error;
    std::mutex error_mutex;
    const auto run = [&](unsigned worker) noexcept {
        try {
            for (std::size_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) work(task, worker);
        } catch (...) {
            next.store(tasks, std::memory_order_relaxed);
            const std::lock_guard lock(error_mutex);
            if (!error) error = std::current_exception();
        }
    };
    std::vector<std::jthread> threads;  // joins at the end of its scope, also when a thread cannot be started
    for (unsigned worker = 1; worker < workers && worker < tasks; ++worker) {
        try {
            threads.emplace_back(run, worker);
        } catch (const std::system_error&) {
            break;  // the machine gives no more threads: fewer do the work
        }
    }
    run(0);
    threads.clear();
    if (error) std::rethrow_exception(error);
}

}  // namespace pyassemble
