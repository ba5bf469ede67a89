// Causal attention on a GPU, FlashAttention's way (Dao, arXiv 2307.08691): scores are formed a tile at a time and never
// reach memory, and the backward forms them again from the kept log-sum-exp. dQ and dK, dV are kernels of their own, each
// with one owner for every sum, so nothing is added by atomics.
//
// Two sets of kernels: generic.cuh takes f32 or bf16 and any head up to 256 wide, flash.cuh takes bf16 and heads of 64 on
// tensor cores. Several heads of queries may share one of keys and values; the block that owns some of the latter takes
// the former in turn. The queries and the keys of a backward are lists of rows, ascending: a query sees the keys of its sequence
// whose row is not after its own, so the visible part of a list is found by its rows alone.
#include "common.cuh"

// The rows that take part: all B T, or those of a list.
struct Rows {
    const uint32_t* rows;    // [k], ascending over all sequences; null: every row
    const uint32_t* starts;  // [B + 1], where the rows of each sequence start in the list
};

__device__ inline uint32_t row_at(const Rows& list, uint32_t i) { return list.rows ? list.rows[i] : i; }
// Where the rows of sequence `b` start.
__device__ inline uint32_t start_of(const Rows& list, uint32_t b, uint32_t context) {
    return list.rows ? list.starts[b] : b * context;
}
// The first entry in from..to whose row is not before `row`, or `to`.
__device__ inline uint32_t first_not_before(const Rows& list, uint32_t row, uint32_t from, uint32_t to) {
    if (!list.rows) return row < from ? from : row < to ? row : to;
    while (from < to) {
        const uint32_t middle = from + (to - from) / 2;
        if (list.rows[middle] < row) {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    return from;
}

// Which tile of which head a block owns. Blocks start in the order of their index, so tiles with much work come first and
// the last to end are short; but only over as many heads as keep their keys and values in the second-level cache (16 MiB
// in bf16 with heads of 64), before it is the next heads' turn.
struct Place {
    uint32_t head, tile;
};
__device__ inline Place place(uint32_t tiles, uint32_t context) {
    const uint32_t together = max(1u, (1u << 16) / context), all = gridDim.x / tiles;
    const uint32_t first = blockIdx.x / (together * tiles) * together, heads = min(together, all - first);
    const uint32_t at = blockIdx.x - first * tiles;
    return {first + at % heads, at / heads};
}
// Of queries the last tile sees most keys; of keys the first is seen by most queries.
__device__ inline Place place_of_queries(uint32_t tiles, uint32_t context) {
    const Place p = place(tiles, context);
    return {p.head, tiles - 1 - p.tile};
}

// Where a head's queries, keys and values lie in a row of qkv: Q + 2 K numbers, of H and G heads.
struct Columns {
    size_t queries, keys, stride;  // Q, K, Q + 2 K
    uint32_t q, k, v;              // where the head's begin
};
__device__ inline Columns columns(uint32_t head, uint32_t heads, uint32_t kv_heads, uint32_t dim) {
    const uint32_t queries = heads * dim, keys = kv_heads * dim, shared = head / (heads / kv_heads) * dim;
    return {queries, keys, static_cast<size_t>(queries) + 2 * keys, head * dim, queries + shared, queries + keys + shared};
}

// Where a running maximum starts: below every score, and finite, so that rows of which a whole tile is masked stay numbers.
constexpr float LOWEST = -1e30f;

struct Forward {
    void* out;        // [B T, Q]
    float* lse;       // [B, H, T]
    const void* qkv;  // [B T, Q + 2 K]
    uint32_t context, heads, kv_heads, dim;
    uint32_t tiles;   // of queries, of a sequence
    uint32_t window;  // positions that a query sees, its own the last of them
    float scale;
};

struct Statistics {
    float* stats;          // [H, k, 2]: log-sum-exp and sum(dout * out) of each query
    const void* out;       // [B T, Q]
    const void* dout;      // [k, Q]
    const float* lse;      // [B, H, T]
    const uint32_t* rows;  // [k], or null
    uint32_t count;        // k
    uint32_t context, heads, dim;
};

struct Backward {
    void* dq;            // [k, Q]
    void* dkv;           // [m, 2 K] for the m rows of `keys`
    const void* qkv;     // [B T, Q + 2 K]
    const void* dout;    // [k, Q]
    const float* stats;  // [H, k, 2]
    Rows queries, keys;  // those that carry gradient; every query meets the keys of all rows before it
    uint32_t count;      // k
    uint32_t context, heads, kv_heads, dim;
    uint32_t tiles;      // of the rows that blocks own, of a sequence
    uint32_t window;     // positions that a query sees, its own the last of them
    float scale;
};

// What a query's gradient needs beside the vectors: eight lanes for each query and head.
constexpr int GROUP = 8;

template <typename T, int V>
__device__ inline float share_of_product(const T* a, const T* b, uint32_t dim) {
    float x[V], y[V], sum = 0;
    for (uint32_t i = threadIdx.x % GROUP * V; i < dim; i += GROUP * V) {
        load<V>(x, a + i), load<V>(y, b + i);
        for (int v = 0; v < V; ++v) sum += x[v] * y[v];
    }
    return sum;
}

template <typename T>
__device__ inline void statistics(const Statistics& a) {
    const uint64_t pair = (static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / GROUP;
    const bool valid = pair < static_cast<uint64_t>(a.count) * a.heads;
    const uint32_t query = valid ? pair / a.heads : 0, head = pair % a.heads;
    const uint32_t row = a.rows ? a.rows[query] : query;
    const size_t width = static_cast<size_t>(a.heads) * a.dim;
    const T* out = static_cast<const T*>(a.out) + row * width + head * a.dim;
    const T* dout = static_cast<const T*>(a.dout) + query * width + head * a.dim;
    float sum = a.dim % 4 == 0 ? share_of_product<T, 4>(out, dout, a.dim) : share_of_product<T, 1>(out, dout, a.dim);
    for (int by = GROUP / 2; by > 0; by /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, by);
    if (valid && threadIdx.x % GROUP == 0) {
        const size_t lse = (static_cast<size_t>(row / a.context) * a.heads + head) * a.context + row % a.context;
        float* stats = a.stats + 2 * (static_cast<size_t>(head) * a.count + query);
        stats[0] = a.lse[lse], stats[1] = sum;
    }
}

KERNEL(attention_statistics_f32, 256, Statistics, statistics<float>)
KERNEL(attention_statistics_bf16, 256, Statistics, statistics<bf16>)

#include "generic.cuh"

KERNEL(attention_forward_f32, generic::THREADS, Forward, generic::forward<float>)
KERNEL(attention_forward_bf16, generic::THREADS, Forward, generic::forward<bf16>)
KERNEL(attention_queries_f32, generic::THREADS, Backward, generic::queries<float>)
KERNEL(attention_queries_bf16, generic::THREADS, Backward, generic::queries<bf16>)
KERNEL(attention_keys_f32, generic::THREADS, Backward, generic::keys<float>)
KERNEL(attention_keys_bf16, generic::THREADS, Backward, generic::keys<bf16>)
// Heads wider than 128: kernels of their own, since they take more registers.
KERNEL(attention_forward_wide_f32, generic::THREADS, Forward, generic::forward_of<float, 8>)
KERNEL(attention_forward_wide_bf16, generic::THREADS, Forward, generic::forward_of<bf16, 8>)
KERNEL(attention_queries_wide_f32, generic::THREADS, Backward, generic::queries_of<float, 8>)
KERNEL(attention_queries_wide_bf16, generic::THREADS, Backward, generic::queries_of<bf16, 8>)
KERNEL(attention_keys_wide_f32, generic::THREADS, Backward, generic::keys_of<float, 8>)
KERNEL(attention_keys_wide_bf16, generic::THREADS, Backward, generic::keys_of<bf16, 8>)

#include "flash.cuh"

KERNEL(attention_forward_flash, flash::THREADS, Forward, flash::forward)
KERNEL(attention_queries_flash, flash::THREADS, Backward, flash::queries)
KERNEL(attention_keys_flash, flash::THREADS, Backward, flash::keys)
