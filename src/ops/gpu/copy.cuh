// Copies from global to shared memory that run while the threads go on (PTX's cp.async).
//
// A thread's copies since its last commit are a group. A copy may be read once its thread has waited for its group and,
// by other threads, once they have met at a barrier after that.
#pragma once
#include "common.cuh"

#ifdef ESLM_EMULATED
namespace emulator {

// The emulator lands a copy at the latest moment that is allowed, or with the threads' order reversed at once: the one
// shows a wait that is missing, the other a copy over what is still to be read.
struct Copy {
    void* to;
    const void* from;
    size_t bytes;
    void land() const { from ? std::memcpy(to, from, bytes) : std::memset(to, 0, bytes); }
};
struct Copies {
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> groups;
};
inline Copies& copies() {
    static std::vector<Copies> all(1024);
    return all[threadIdx.x];
}

}  // namespace emulator
#endif

// Starts a copy of BYTES (4, 8 or 16, the alignment of both sides), or of zeros if not `valid`; `from` is then not read.
template <int BYTES>
__device__ inline void start_copy(void* to, const void* from, bool valid) {
#ifdef ESLM_EMULATED
    if (reinterpret_cast<uintptr_t>(to) % BYTES != 0 || (valid && reinterpret_cast<uintptr_t>(from) % BYTES != 0)) {
        emulator::fail("a copy's address is not aligned");
    }
    emulator::Copy copy{to, valid ? from : nullptr, BYTES};
    if (emulator::state.reversed) {
        copy.land();
    } else {
        emulator::copies().open.push_back(copy);
    }
#else
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    const int bytes = valid ? BYTES : 0;
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(BYTES), "r"(bytes)
                     : "memory");
    }
#endif
}

__device__ inline void commit_copies() {
#ifdef ESLM_EMULATED
    emulator::Copies& mine = emulator::copies();
    mine.groups.push_back(mine.open);
    mine.open.clear();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all but the last LEFT groups of this thread.
template <int LEFT>
__device__ inline void wait_for_copies() {
#ifdef ESLM_EMULATED
    std::vector<std::vector<emulator::Copy>>& groups = emulator::copies().groups;
    while (groups.size() > LEFT) {
        for (const emulator::Copy& copy : groups.front()) copy.land();
        groups.erase(groups.begin());
    }
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}
