// Layer norm on a GPU, and RMS norm, which has no shift and whose mean is 0. A warp owns a row; the gradients of scale and
// shift are sums over rows, taken in pieces of fixed size that a second kernel adds up in order (../matmul/matmul.cu).
//
// Rows of the residual stream are f32 whatever comes out. Heads of queries and keys are of the format of activations.
#include "common.cuh"

struct Forward {
    void* out;           // [N, D]
    float* stats;        // [N, 2]: mean and reciprocal standard deviation
    const void* x;       // [N, D]
    const float* w;      // [D]
    const float* b;      // [D], or null: RMS norm
    uint32_t n, d;
    float eps;
    uint32_t replay;     // whether the statistics are given and only the output is formed
};

constexpr int ROWS = 8;  // rows, so warps, of a block

template <typename T, typename In, int V>
__device__ inline void forward_row(const Forward& a, uint32_t row) {
    const uint32_t lane = threadIdx.x % WARP;
    const In* x = static_cast<const In*>(a.x) + static_cast<size_t>(row) * a.d;
    T* out = static_cast<T*>(a.out) + static_cast<size_t>(row) * a.d;
    float mean, rstd, at[V], w[V], b[V];
    if (a.replay) {
        mean = a.stats[2 * row], rstd = a.stats[2 * row + 1];
    } else {
        float sum = 0, squares = 0;
        if (a.b != nullptr) {
            for (uint32_t i = lane * V; i < a.d; i += WARP * V) {
                load<V>(at, x + i);
                for (int v = 0; v < V; ++v) sum += at[v];
            }
            sum = warp_sum(sum);
        }
        mean = sum / a.d;
        for (uint32_t i = lane * V; i < a.d; i += WARP * V) {
            load<V>(at, x + i);
            for (int v = 0; v < V; ++v) squares += (at[v] - mean) * (at[v] - mean);
        }
        rstd = 1.0f / sqrtf(warp_sum(squares) / a.d + a.eps);
        if (lane == 0) a.stats[2 * row] = mean, a.stats[2 * row + 1] = rstd;
    }
    for (uint32_t i = lane * V; i < a.d; i += WARP * V) {
        load<V>(at, x + i), load<V>(w, a.w + i);
        for (int v = 0; v < V; ++v) at[v] = (at[v] - mean) * rstd * w[v];
        if (a.b != nullptr) {
            load<V>(b, a.b + i);
            for (int v = 0; v < V; ++v) at[v] += b[v];
        }
        store<V>(out + i, at);
    }
}

template <typename T, typename In>
__device__ inline void forward(const Forward& a) {
    const uint32_t row = blockIdx.x * ROWS + threadIdx.x / WARP;
    if (row >= a.n) return;
    if (a.d % 4 == 0) {
        forward_row<T, In, 4>(a, row);
    } else {
        forward_row<T, In, 1>(a, row);
    }
}

KERNEL(layer_norm_forward_f32, ROWS * WARP, Forward, forward<float, float>)
KERNEL(layer_norm_forward_bf16, ROWS * WARP, Forward, forward<bf16, float>)
KERNEL(layer_norm_forward_all_bf16, ROWS * WARP, Forward, forward<bf16, bf16>)

struct Backward {
    void* dx;            // [N, D], added to
    const void* dy;      // [N, D]
    const void* x;       // [N, D], of the format of dx
    const float* stats;  // [N, 2]
    const float* w;      // [D]
    uint32_t n, d;
    uint32_t centred;    // whether there is a mean, which RMS norm has not
};

template <typename T, typename In, int V>
__device__ inline void backward_row(const Backward& a, uint32_t row) {
    const uint32_t lane = threadIdx.x % WARP;
    const size_t start = static_cast<size_t>(row) * a.d;
    const T* dy = static_cast<const T*>(a.dy) + start;
    const In* x = static_cast<const In*>(a.x) + start;
    In* dx = static_cast<In*>(a.dx) + start;
    const float mean = a.stats[2 * row], rstd = a.stats[2 * row + 1];
    float g[V], at[V], w[V], old[V], sum = 0, along = 0;
    for (uint32_t i = lane * V; i < a.d; i += WARP * V) {
        load<V>(g, dy + i), load<V>(at, x + i), load<V>(w, a.w + i);
        for (int v = 0; v < V; ++v) {
            sum += g[v] * w[v];
            along += g[v] * w[v] * (at[v] - mean) * rstd;
        }
    }
    sum = a.centred ? warp_sum(sum) / a.d : 0.0f, along = warp_sum(along) / a.d;
    for (uint32_t i = lane * V; i < a.d; i += WARP * V) {
        load<V>(g, dy + i), load<V>(at, x + i), load<V>(w, a.w + i), load<V>(old, dx + i);
        for (int v = 0; v < V; ++v) old[v] += (g[v] * w[v] - sum - (at[v] - mean) * rstd * along) * rstd;
        store<V>(dx + i, old);
    }
}

template <typename T, typename In>
__device__ inline void backward(const Backward& a) {
    const uint32_t row = blockIdx.x * ROWS + threadIdx.x / WARP;
    if (row >= a.n) return;
    if (a.d % 4 == 0) {
        backward_row<T, In, 4>(a, row);
    } else {
        backward_row<T, In, 1>(a, row);
    }
}

KERNEL(layer_norm_backward_f32, ROWS * WARP, Backward, backward<float, float>)
KERNEL(layer_norm_backward_bf16, ROWS * WARP, Backward, backward<bf16, float>)
KERNEL(layer_norm_backward_all_bf16, ROWS * WARP, Backward, backward<bf16, bf16>)
