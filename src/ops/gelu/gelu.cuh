// GELU in its tanh form and its slope, of one number.
#pragma once
#include "common.cuh"

namespace gelu {

constexpr float C = 0.79788456080286536f;  // sqrt(2 / pi)
constexpr float CUBIC = 0.044715f;

// tanh(u) = 1 - 2 / (e^2u + 1): finite for every u.
__device__ inline float tanh_of(float u) { return 1.0f - 2.0f / (__expf(2.0f * u) + 1.0f); }

__device__ inline float value(float x) { return 0.5f * x * (1.0f + tanh_of(C * (x + CUBIC * x * x * x))); }

__device__ inline float slope(float x) {
    const float t = tanh_of(C * (x + CUBIC * x * x * x));
    const float inner = C * (1.0f + 3.0f * CUBIC * x * x);
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner;
}

}  // namespace gelu
