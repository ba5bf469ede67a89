// Runs kernels on the host, so that they can be tested where there is no GPU.
//
// A block's threads are fibers on one thread of the host, switched at barriers and warp operations. These are honoured as
// the GPU does: a block or warp that cannot go on is reported, not left hanging. The order in which fibers run can be
// reversed, which shows reads of shared memory that lack a barrier before them.
#pragma once
#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>

#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __restrict__
#define __launch_bounds__(...)
#define KERNEL(name, threads, Args, ...)             \
    extern "C" void name(const void* raw) {          \
        emulator::within(threads);                   \
        __VA_ARGS__(*static_cast<const Args*>(raw)); \
    }
#ifndef INFINITY
#define INFINITY __builtin_inff()
#endif
#define DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(emulator::dynamic_shared())

struct uint2 { uint32_t x, y; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
struct dim3 { unsigned x = 0, y = 0, z = 0; };
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

inline float from_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline uint32_t to_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline uint16_t to_bf16(float x) {
    uint32_t bits = to_bits(x);
    if (x != x) return static_cast<uint16_t>((bits >> 16) | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Fibers that wait for each other: all of a block, or the 32 of a warp.
struct Barrier {
    unsigned members = 0, arrived = 0;
    uint64_t generation = 0;
    void release() {
        arrived = 0;
        ++generation;
    }
};

// Entered through its context, left and entered again by jumps: these save no signal mask, so no call of the system.
struct Fiber {
    ucontext_t context;
    jmp_buf place;
    std::vector<unsigned char> stack;
    bool begun = false, done = true;
};

constexpr unsigned LANES = 32;
// Filled with this before a block begins: what a kernel forgot to write is seen.
constexpr unsigned char JUNK = 0xA5;

struct State {
    std::vector<Fiber> fibers;
    std::vector<Barrier> warps;
    Barrier block;
    jmp_buf scheduler;
    unsigned current = 0, threads = 0;
    bool reversed = false;
    uint64_t moves = 0;  // barriers passed and fibers ended: without any, nobody can go on
    void (*kernel)(const void*) = nullptr;
    const void* args = nullptr;
    std::vector<unsigned char> shared;
    // What lanes hand each other in a warp operation.
    std::vector<uint64_t> slots;
    char error[256] = {0};
};
inline State state;

inline void fail(const char* what) {
    if (state.error[0] == 0) std::snprintf(state.error, sizeof(state.error), "%s", what);
}

inline void within(unsigned threads) {
    if (state.threads > threads) fail("more threads than the kernel was declared for");
}

inline unsigned char* dynamic_shared() {
    return state.shared.data() + (16 - reinterpret_cast<uintptr_t>(state.shared.data()) % 16) % 16;
}

inline void yield() {
    if (_setjmp(state.fibers[state.current].place) == 0) _longjmp(state.scheduler, 1);
}

inline void enter(Fiber& fiber) {
    if (_setjmp(state.scheduler) != 0) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
}

inline void wait(Barrier& barrier) {
    uint64_t generation = barrier.generation;
    if (++barrier.arrived == barrier.members) {
        ++state.moves;
        barrier.release();
        return;
    }
    while (barrier.generation == generation) yield();
}

inline void leave(Barrier& barrier) {
    --barrier.members;
    if (barrier.members > 0 && barrier.arrived == barrier.members) barrier.release();
}

inline unsigned lane() { return threadIdx.x % LANES; }
inline unsigned warp() { return threadIdx.x / LANES; }

// Every lane of the warp gives a value and sees those of all: valid until the next exchange's first barrier.
template <typename T>
inline T* exchange(T value) {
    static_assert(sizeof(T) <= 8, "a lane gives at most 8 bytes");
    wait(state.warps[warp()]);  // the values before these have been read
    T* slots = reinterpret_cast<T*>(state.slots.data() + warp() * LANES);
    slots[lane()] = value;
    wait(state.warps[warp()]);
    return slots;
}

inline void body() {
    state.kernel(state.args);
    Fiber& fiber = state.fibers[state.current];
    fiber.done = true;
    ++state.moves;
    leave(state.block);
    leave(state.warps[warp()]);
    _longjmp(state.scheduler, 1);
}

inline void run_block() {
    const unsigned n = state.threads;
    constexpr size_t STACK = 128 << 10;
    if (state.fibers.size() < n) state.fibers.resize(n);
    state.warps.assign((n + LANES - 1) / LANES, Barrier{});
    state.block = Barrier{n, 0, 0};
    state.slots.assign(state.warps.size() * LANES, 0);
    std::memset(state.shared.data(), JUNK, state.shared.size());
    for (unsigned i = 0; i < n; ++i) {
        Fiber& fiber = state.fibers[i];
        ++state.warps[i / LANES].members;
        fiber.stack.resize(STACK);
        fiber.begun = fiber.done = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, body, 0);
    }
    unsigned left = n;
    while (left > 0) {
        uint64_t before = state.moves;
        left = 0;
        for (unsigned i = 0; i < n; ++i) {
            state.current = state.reversed ? n - 1 - i : i;
            Fiber& fiber = state.fibers[state.current];
            if (fiber.done) continue;
            threadIdx = dim3{state.current, 0, 0};
            enter(fiber);
            left += fiber.done ? 0 : 1;
        }
        if (left > 0 && state.moves == before) {
            fail("threads wait at different barriers");
            return;
        }
    }
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait(emulator::state.block); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulator::wait(emulator::state.warps[emulator::warp()]); }

template <typename T>
inline T __shfl_xor_sync(unsigned, T value, int by) {
    return emulator::exchange(value)[emulator::lane() ^ static_cast<unsigned>(by)];
}
template <typename T>
inline T __shfl_sync(unsigned, T value, int from) {
    return emulator::exchange(value)[static_cast<unsigned>(from) % emulator::LANES];
}
template <typename T>
inline T __shfl_up_sync(unsigned, T value, unsigned by) {
    T* all = emulator::exchange(value);
    return emulator::lane() >= by ? all[emulator::lane() - by] : value;
}
inline unsigned __ballot_sync(unsigned, int predicate) {
    unsigned bits = 0;
    int* all = emulator::exchange(predicate);
    for (unsigned l = 0; l < emulator::LANES; ++l) bits |= (all[l] ? 1u : 0u) << l;
    return bits;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline float __expf(float x) { return std::exp(x); }
inline uint32_t atomicAdd(uint32_t* at, uint32_t by) {
    const uint32_t old = *at;
    *at += by;
    return old;
}
template <typename T>
inline T min(T a, T b) { return a < b ? a : b; }
template <typename T>
inline T max(T a, T b) { return a > b ? a : b; }

// Runs a grid; 0, or 1 with a message.
extern "C" inline __attribute__((used)) int eslm_emulate(void (*kernel)(const void*), const unsigned* grid, unsigned threads,
                                                       unsigned shared, const void* args, int reversed, char* message) {
    using emulator::state;
    state.kernel = kernel;
    state.args = args;
    state.threads = threads;
    state.reversed = reversed != 0;
    state.error[0] = 0;
    state.shared.resize(shared + 32);
    gridDim = dim3{grid[0], grid[1], grid[2]};
    blockDim = dim3{threads, 1, 1};
    if (threads == 0 || threads > 1024) emulator::fail("a block has 1 to 1024 threads");
    for (unsigned z = 0; z < grid[2]; ++z)
        for (unsigned y = 0; y < grid[1]; ++y)
            for (unsigned x = 0; x < grid[0] && state.error[0] == 0; ++x) {
                blockIdx = dim3{x, y, z};
                emulator::run_block();
            }
    std::memcpy(message, state.error, sizeof(state.error));
    return state.error[0] == 0 ? 0 : 1;
}
