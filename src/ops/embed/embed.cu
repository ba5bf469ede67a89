// Embedding, its gradient, and rows gathered and scattered. A block owns a row of the result; where several rows add up to
// one, it takes them in their order, so no atomics and no other order.
#include "common.cuh"

struct Lookup {
    float* out;          // [N, D]
    const void* wte;     // [V, D], f32 or bf16
    const float* wpe;    // [P, D], from the first position on; null: positions are not learned
    const uint32_t* tokens;  // [N]
    uint32_t d, context;
};

template <int V, typename T>
__device__ inline void look_up_row(const Lookup& a) {
    const uint32_t row = blockIdx.x;
    const T* token = static_cast<const T*>(a.wte) + static_cast<size_t>(a.tokens[row]) * a.d;
    const float* position = a.wpe == nullptr ? nullptr : a.wpe + static_cast<size_t>(row % a.context) * a.d;
    float* out = a.out + static_cast<size_t>(row) * a.d;
    for (uint32_t i = threadIdx.x * V; i < a.d; i += blockDim.x * V) {
        float x[V], y[V];
        load<V>(x, token + i);
        if (position != nullptr) {
            load<V>(y, position + i);
            for (int v = 0; v < V; ++v) x[v] += y[v];
        }
        store<V>(out + i, x);
    }
}

template <typename T>
__device__ inline void look_up(const Lookup& a) {
    if (a.d % 4 == 0) {
        look_up_row<4, T>(a);
    } else {
        look_up_row<1, T>(a);
    }
}

KERNEL(embed_forward_f32, 256, Lookup, look_up<float>)
KERNEL(embed_forward_bf16, 256, Lookup, look_up<bf16>)

struct Segments {
    float* out;             // [.., D], added to
    const float* d;         // [N, D]
    const uint32_t* ids;    // [S]: row of `out` of each segment
    const uint32_t* starts; // [S + 1]: where the segment's rows begin in `rows`
    const uint32_t* rows;   // [N]: rows of `d`, ascending within a segment
    uint32_t width;
};

// out[id] += the sum of the segment's rows.
__device__ inline void add_segments(const Segments& a) {
    const uint32_t first = a.starts[blockIdx.x], last = a.starts[blockIdx.x + 1];
    float* out = a.out + static_cast<size_t>(a.ids[blockIdx.x]) * a.width;
    for (uint32_t i = threadIdx.x; i < a.width; i += blockDim.x) {
        float sum = 0;
        for (uint32_t r = first; r < last; ++r) sum += a.d[static_cast<size_t>(a.rows[r]) * a.width + i];
        out[i] += sum;
    }
}

KERNEL(embed_add_segments, 256, Segments, add_segments)

struct Positions {
    float* out;      // [T, D], added to
    const float* d;  // [B, T, D]
    uint32_t batch, n;  // n = T D
};

__device__ inline void add_positions(const Positions& a) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.n) return;
    float sum = 0;
    for (uint32_t b = 0; b < a.batch; ++b) sum += a.d[static_cast<size_t>(b) * a.n + i];
    a.out[i] += sum;
}

KERNEL(embed_add_positions, 256, Positions, add_positions)

struct Rows {
    void* dst;
    const void* src;
    const uint32_t* rows;  // [k]
    uint32_t width;        // numbers of a row, of 2 bytes in a gather
};

// dst[i] = src[rows[i]], whatever the numbers are.
template <typename Unit>
__device__ inline void copy_row(Unit* dst, const Unit* src, uint32_t n) {
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) dst[i] = src[i];
}

__device__ inline void gather_rows(const Rows& a) {
    const size_t to = static_cast<size_t>(blockIdx.x) * a.width, from = static_cast<size_t>(a.rows[blockIdx.x]) * a.width;
    uint16_t* dst = static_cast<uint16_t*>(a.dst) + to;
    const uint16_t* src = static_cast<const uint16_t*>(a.src) + from;
    if (a.width % 8 == 0) {
        copy_row(reinterpret_cast<uint4*>(dst), reinterpret_cast<const uint4*>(src), a.width / 8);
    } else {
        copy_row(dst, src, a.width);
    }
}

KERNEL(gather, 128, Rows, gather_rows)

// dst[rows[i]] += src[i]; no row is named twice.
template <typename T>
__device__ inline void scatter_add_row(const Rows& a) {
    T* dst = static_cast<T*>(a.dst) + static_cast<size_t>(a.rows[blockIdx.x]) * a.width;
    const T* src = static_cast<const T*>(a.src) + static_cast<size_t>(blockIdx.x) * a.width;
    for (uint32_t i = threadIdx.x; i < a.width; i += blockDim.x) store(dst + i, load(dst + i) + load(src + i));
}

KERNEL(scatter_add_f32, 128, Rows, scatter_add_row<float>)
KERNEL(scatter_add_bf16, 128, Rows, scatter_add_row<bf16>)

struct Norms {
    double* out;     // [N]
    const float* x;  // [N, D]
    uint32_t n, d;
};

// Squared Euclidean norms of rows, a warp each.
__device__ inline void square_rows(const Norms& a) {
    const uint32_t row = (blockIdx.x * blockDim.x + threadIdx.x) / WARP, lane = threadIdx.x % WARP;
    if (row >= a.n) return;
    const float* x = a.x + static_cast<size_t>(row) * a.d;
    float sum = 0;
    for (uint32_t i = lane; i < a.d; i += WARP) sum += x[i] * x[i];
    sum = warp_sum(sum);
    if (lane == 0) a.out[row] = sum;
}

KERNEL(row_squares, 256, Norms, square_rows)
