// What the kernels share: number formats, reductions, and how a kernel is declared.
//
// Every kernel takes one struct, whose twin with #[repr(C)] stands in the op's cuda.rs. Every sum of floats has one order, and
// the only atomics count integers, so that a run is the same bits again. ESLM_EMULATED compiles the same source for the host, where the
// tests run it (emulator.h).
#pragma once

#ifdef ESLM_EMULATED
#include "emulator.h"
#else
#include <cuda_bf16.h>
#include <stdint.h>

// Declares a kernel for blocks of at most `threads` threads: `body` is a device function of one struct of arguments.
#define KERNEL(name, threads, Args, ...)                                                   \
    extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Args args) { \
        __VA_ARGS__(args);                                                                 \
    }

// Shared memory whose size the launch decides.
#define DYNAMIC_SHARED(T, name)                                  \
    extern __shared__ __align__(16) unsigned char shared_bytes[]; \
    T* name = reinterpret_cast<T*>(shared_bytes)
#endif

// A bf16 number in memory; arithmetic is f32.
struct bf16 {
    uint16_t bits;
};

__device__ inline float widen(bf16 x) {
#ifdef ESLM_EMULATED
    return emulator::from_bits(static_cast<uint32_t>(x.bits) << 16);
#else
    return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
#endif
}

// Rounds to the nearest bf16, ties to even.
__device__ inline bf16 narrow(float x) {
#ifdef ESLM_EMULATED
    return bf16{emulator::to_bf16(x)};
#else
    return bf16{__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#endif
}

__device__ inline float load(const float* p) { return *p; }
__device__ inline float load(const bf16* p) { return widen(*p); }
__device__ inline void store(float* p, float x) { *p = x; }
__device__ inline void store(bf16* p, float x) { *p = narrow(x); }

// Two bf16 in a register, the one at the lower address in the lower half.
__device__ inline uint32_t pack(bf16 low, bf16 high) {
    return static_cast<uint32_t>(low.bits) | (static_cast<uint32_t>(high.bits) << 16);
}
__device__ inline uint32_t pack(float low, float high) { return pack(narrow(low), narrow(high)); }

// V numbers at once: one access of 4 V or 2 V bytes. V is 1 or 4; for 4 the address is a multiple of their size.
template <int V>
__device__ inline void load(float (&x)[V], const float* p) {
    if constexpr (V == 4) {
        float4 four = *reinterpret_cast<const float4*>(p);
        x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
    } else {
        x[0] = *p;
    }
}
template <int V>
__device__ inline void load(float (&x)[V], const bf16* p) {
    if constexpr (V == 4) {
        uint2 four = *reinterpret_cast<const uint2*>(p);
        x[0] = widen(bf16{static_cast<uint16_t>(four.x)}), x[1] = widen(bf16{static_cast<uint16_t>(four.x >> 16)});
        x[2] = widen(bf16{static_cast<uint16_t>(four.y)}), x[3] = widen(bf16{static_cast<uint16_t>(four.y >> 16)});
    } else {
        x[0] = widen(*p);
    }
}
template <int V>
__device__ inline void store(float* p, const float (&x)[V]) {
    if constexpr (V == 4) {
        *reinterpret_cast<float4*>(p) = float4{x[0], x[1], x[2], x[3]};
    } else {
        *p = x[0];
    }
}
template <int V>
__device__ inline void store(bf16* p, const float (&x)[V]) {
    if constexpr (V == 4) {
        *reinterpret_cast<uint2*>(p) = uint2{pack(x[0], x[1]), pack(x[2], x[3])};
    } else {
        *p = narrow(x[0]);
    }
}

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ inline float warp_sum(float x) {
    for (int by = WARP / 2; by > 0; by /= 2) x += __shfl_xor_sync(ALL_LANES, x, by);
    return x;
}
// The larger; a NaN wins, so that it reaches whoever checks.
__device__ inline float larger(float a, float b) { return a > b || a != a ? a : b; }
__device__ inline float warp_max(float x) {
    for (int by = WARP / 2; by > 0; by /= 2) x = larger(x, __shfl_xor_sync(ALL_LANES, x, by));
    return x;
}
__device__ inline double warp_sum(double x) {
    for (int by = WARP / 2; by > 0; by /= 2) x += __shfl_xor_sync(ALL_LANES, x, by);
    return x;
}

// The sum over a block of at most 1024 threads, a multiple of 32, for every thread.
template <typename T>
__device__ inline T block_sum(T x) {
    __shared__ T parts[WARP];
    x = warp_sum(x);
    __syncthreads();  // the parts of the sum before this one have been read
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    T sum = 0;
    for (unsigned w = 0; w < blockDim.x / WARP; ++w) sum += parts[w];
    return sum;
}
__device__ inline float block_max(float x) {
    __shared__ float parts[WARP];
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    float max = parts[0];
    for (unsigned w = 1; w < blockDim.x / WARP; ++w) max = larger(max, parts[w]);
    return max;
}
