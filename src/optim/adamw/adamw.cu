// AdamW on a GPU: decay, moments, step and the zeroing of the gradient in one pass; and sums of squares for the norm.
#include "common.cuh"

struct Update {
    float* p;
    float* g;  // left at zero
    float* m;
    float* v;
    uint64_t n;
    float scale;  // multiplies the gradient
    float keep;   // multiplies the parameter: 1 - lr wd, or 1
    float beta1, beta2;
    float root_correction;  // 1 / sqrt(1 - beta2^t)
    float rate;             // lr / (1 - beta1^t)
    float eps;
};

template <int V>
__device__ inline void update_at(const Update& a, uint64_t i) {
    float p[V], g[V], m[V], v[V];
    const float none[V] = {};
    load<V>(p, a.p + i), load<V>(g, a.g + i), load<V>(m, a.m + i), load<V>(v, a.v + i);
    for (int e = 0; e < V; ++e) {
        const float scaled = g[e] * a.scale;
        m[e] += (1.0f - a.beta1) * (scaled - m[e]);
        v[e] = a.beta2 * v[e] + (1.0f - a.beta2) * scaled * scaled;
        p[e] = p[e] * a.keep - a.rate * m[e] / (sqrtf(v[e]) * a.root_correction + a.eps);
    }
    store<V>(a.p + i, p), store<V>(a.m + i, m), store<V>(a.v + i, v), store<V>(a.g + i, none);
}

__device__ inline void update(const Update& a) {
    const uint64_t first = (static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
    if (first + 4 <= a.n) {
        update_at<4>(a, first);
    } else {
        for (uint64_t i = first; i < a.n; ++i) update_at<1>(a, i);
    }
}

KERNEL(adamw_update, 256, Update, update)

struct Squares {
    double* parts;   // one per block
    const float* g;
    uint64_t n;
    uint64_t piece;  // elements of a sum
};

// A block's share of the sum of squares of its piece, in f64: the square of any finite f32 is finite there.
__device__ inline void square(const Squares& a) {
    double sum = 0;
    const uint64_t begin = blockIdx.y * a.piece;
    const uint64_t end = begin + a.piece < a.n ? begin + a.piece : a.n;
    const uint64_t stride = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    const uint64_t first = begin + static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    for (uint64_t i = first; i < end; i += stride) {
        sum += static_cast<double>(a.g[i]) * a.g[i];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) a.parts[blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

KERNEL(sum_of_squares, 256, Squares, square)
