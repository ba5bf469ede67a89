// Activations of an MLP on a GPU, four numbers a thread; gated ones take gate and up in one pass, forward and backward.
#include "../gelu/gelu.cuh"
#include "common.cuh"

struct Activation {
    void* out;        // forward: y [N, F]; backward: the gradient with respect to x [N, W]
    const void* x;    // [N, W]: W is F, or 2 F of a gated one, gate beside up
    const void* dy;   // [N, F], in the backward
    uint32_t n, f;
    uint32_t kind;    // which function, as in cuda.rs
    uint32_t gated;
    uint32_t across;  // threads of a row: F / V
};

enum Kind : uint32_t { GELU_TANH, GELU, RELU, SILU };

// The normal distribution's function; of far negative numbers as exact as of others.
__device__ inline float normal(float x) { return 0.5f * erfcf(-0.70710678118654752f * x); }
// 1 / (1 + e^-x): 0 and 1 where e^-x is infinite and 0.
__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ inline float value(uint32_t kind, float x) {
    switch (kind) {
        case GELU_TANH: return gelu::value(x);
        case GELU: return x * normal(x);
        case RELU: return x < 0.0f ? 0.0f : x;  // a NaN stays
        default: return x * sigmoid(x);
    }
}

__device__ inline float slope(uint32_t kind, float x) {
    switch (kind) {
        case GELU_TANH: return gelu::slope(x);
        case GELU: return normal(x) + x * 0.39894228040143268f * expf(-0.5f * x * x);  // 1 / sqrt(2 pi)
        case RELU: return x > 0.0f ? 1.0f : 0.0f;
        default: {
            const float s = sigmoid(x);
            return s * (1.0f + x * (1.0f - s));
        }
    }
}

// Which numbers a thread has: V of a row from a column on. False beyond the last.
template <int V>
__device__ inline bool place(const Activation& a, size_t& row, uint32_t& column) {
    const uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    row = i / a.across, column = static_cast<uint32_t>(i % a.across) * V;
    return row < a.n;
}

template <typename T, int V>
__device__ inline void forward_by(const Activation& a) {
    size_t row;
    uint32_t column;
    if (!place<V>(a, row, column)) return;
    const T* x = static_cast<const T*>(a.x) + row * (a.gated ? 2 : 1) * a.f + column;
    float at[V], up[V];
    load<V>(at, x);
    for (int v = 0; v < V; ++v) at[v] = value(a.kind, at[v]);
    if (a.gated) {
        load<V>(up, x + a.f);
        for (int v = 0; v < V; ++v) at[v] *= up[v];
    }
    store<V>(static_cast<T*>(a.out) + row * a.f + column, at);
}

template <typename T, int V>
__device__ inline void backward_by(const Activation& a) {
    size_t row;
    uint32_t column;
    if (!place<V>(a, row, column)) return;
    const size_t from = row * (a.gated ? 2 : 1) * a.f + column;
    const T* x = static_cast<const T*>(a.x) + from;
    T* dx = static_cast<T*>(a.out) + from;
    float at[V], dy[V], d[V], up[V];
    load<V>(at, x), load<V>(dy, static_cast<const T*>(a.dy) + row * a.f + column);
    for (int v = 0; v < V; ++v) d[v] = dy[v] * slope(a.kind, at[v]);
    if (a.gated) {
        load<V>(up, x + a.f);
        for (int v = 0; v < V; ++v) d[v] *= up[v], dy[v] *= value(a.kind, at[v]);
        store<V>(dx + a.f, dy);
    }
    store<V>(dx, d);
}

template <typename T>
__device__ inline void forward(const Activation& a) {
    if (a.f % 4 == 0) {
        forward_by<T, 4>(a);
    } else {
        forward_by<T, 1>(a);
    }
}

template <typename T>
__device__ inline void backward(const Activation& a) {
    if (a.f % 4 == 0) {
        backward_by<T, 4>(a);
    } else {
        backward_by<T, 1>(a);
    }
}

KERNEL(activation_forward_f32, 256, Activation, forward<float>)
KERNEL(activation_forward_bf16, 256, Activation, forward<bf16>)
KERNEL(activation_backward_f32, 256, Activation, backward<float>)
KERNEL(activation_backward_bf16, 256, Activation, backward<bf16>)
