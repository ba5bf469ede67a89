// What stands around the products of cuBLAS: factors rounded to bf16, biases, and sums over rows.
#include "common.cuh"

struct Round {
    bf16* out;       // [rows, cols]
    const float* x;  // row i begins at i * stride
    uint32_t rows, cols;
    uint64_t stride;
};

__device__ inline void round_rows(const Round& a) {
    const float* x = a.x + blockIdx.x * a.stride;
    bf16* out = a.out + static_cast<size_t>(blockIdx.x) * a.cols;
    if (a.cols % 4 == 0 && a.stride % 4 == 0) {
        float at[4];
        for (uint32_t i = threadIdx.x * 4; i < a.cols; i += blockDim.x * 4) {
            load<4>(at, x + i);
            store<4>(out + i, at);
        }
    } else {
        for (uint32_t i = threadIdx.x; i < a.cols; i += blockDim.x) out[i] = narrow(x[i]);
    }
}

KERNEL(round_to_bf16, 256, Round, round_rows)

struct Bias {
    void* out;              // [N, M]
    const void* y;          // [N, M]: the product
    const float* bias;      // [M]
    const float* residual;  // [N, M], or null
    uint64_t n;             // N M
    uint32_t m;
};

// out = y + bias, plus the residual if there is one. `out` may be `y`.
template <typename Out, typename In, int V>
__device__ inline void add_bias_by(const Bias& a) {
    const uint64_t i = (static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V;
    if (i >= a.n) return;
    float y[V], bias[V], residual[V];
    load<V>(y, static_cast<const In*>(a.y) + i);
    load<V>(bias, a.bias + i % a.m);
    for (int v = 0; v < V; ++v) y[v] += bias[v];
    if (a.residual != nullptr) {
        load<V>(residual, a.residual + i);
        for (int v = 0; v < V; ++v) y[v] += residual[v];
    }
    store<V>(static_cast<Out*>(a.out) + i, y);
}

template <typename Out, typename In>
__device__ inline void add_bias(const Bias& a) {
    if (a.m % 4 == 0) {
        add_bias_by<Out, In, 4>(a);
    } else {
        // As many threads as for groups of four, so each has four numbers one by one.
        const uint64_t first = (static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
        for (uint64_t i = first; i < min(first + 4, a.n); ++i) {
            float y = load(static_cast<const In*>(a.y) + i) + a.bias[i % a.m];
            if (a.residual != nullptr) y += a.residual[i];
            store(static_cast<Out*>(a.out) + i, y);
        }
    }
}

KERNEL(add_bias_f32, 256, Bias, add_bias<float, float>)
KERNEL(add_bias_bf16, 256, Bias, add_bias<bf16, bf16>)
// Onto the f32 residual, whose sum is f32 again.
KERNEL(add_bias_onto_bf16, 256, Bias, add_bias<float, bf16>)

struct Columns {
    float* parts;        // [chunks, kinds, M]
    const void* d;       // [N, M]
    const void* x;       // [N, M]: inputs of a norm, or null
    const float* stats;  // [N, 2]: its statistics
    uint32_t n, m;
    uint32_t rows;       // of a chunk
    uint32_t kinds;      // 2 beside a norm with a shift, else 1
};

// Sums of d over the rows of a chunk. Beside a norm those of d times the normalised x come first, and those of d after
// them only where it has a shift.
template <typename T, typename In>
__device__ inline void sum_columns(const Columns& a) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= a.m) return;
    const uint32_t first = blockIdx.y * a.rows, last = min(first + a.rows, a.n);
    const T* d = static_cast<const T*>(a.d);
    const In* x = static_cast<const In*>(a.x);
    float sum = 0, along = 0;
    for (uint32_t row = first; row < last; ++row) {
        const size_t at = static_cast<size_t>(row) * a.m + column;
        const float g = load(d + at);
        sum += g;
        if (x != nullptr) along += g * (load(x + at) - a.stats[2 * row]) * a.stats[2 * row + 1];
    }
    float* parts = a.parts + static_cast<size_t>(a.kinds * blockIdx.y) * a.m + column;
    parts[0] = x != nullptr ? along : sum;
    if (a.kinds == 2) parts[a.m] = sum;
}

KERNEL(sum_columns_f32, 128, Columns, sum_columns<float, float>)
KERNEL(sum_columns_bf16, 128, Columns, sum_columns<bf16, float>)
KERNEL(sum_columns_all_bf16, 128, Columns, sum_columns<bf16, bf16>)

struct AddParts {
    float* first;        // [M], added to: what parts [.., 0, M] add up to
    float* second;       // [M] or null: what parts [.., 1, M] add up to
    const float* parts;
    uint32_t chunks, m;
};

__device__ inline void add_up(const AddParts& a) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= a.m) return;
    const size_t kinds = a.second == nullptr ? 1 : 2;
    float first = 0, second = 0;
    for (uint32_t c = 0; c < a.chunks; ++c) {
        first += a.parts[kinds * c * a.m + column];
        if (kinds == 2) second += a.parts[(kinds * c + 1) * a.m + column];
    }
    a.first[column] += first;
    if (kinds == 2) a.second[column] += second;
}

KERNEL(add_parts, 128, AddParts, add_up)
