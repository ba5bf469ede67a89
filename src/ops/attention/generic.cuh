// Attention for any number format and any head up to 256 wide, on CUDA cores. A warp owns four rows; its lanes own the 32
// rows of a tile for scores and then the head's dimensions for sums, so scores pass through shared memory in between.
#pragma once

namespace generic {

constexpr int OWN = 4, WARPS = 8, THREADS = WARPS * WARP;
constexpr int BLOCK = OWN * WARPS;  // rows that a block owns
constexpr int TILE = WARP;          // rows that it meets at a time

// Rows of one head, as f32: shared memory holds a warp's own with the four numbers of a dimension side by side, and a tile's
// with an odd stride, so that lanes find them in different banks. Dimensions beyond the head's are zeros.
template <int PARTS>
struct Head {
    static constexpr int DIM = PARTS * WARP, LINE = DIM + 1;

    template <int V, typename T, typename Row, typename Place>
    __device__ static void stage(int rows, const T* from, size_t stride, int dim, int count, Row row, Place place) {
#pragma unroll 2
        for (int i = threadIdx.x; i < rows * (DIM / V); i += THREADS) {
            const int r = i / (DIM / V), at = i % (DIM / V) * V;
            float x[V] = {};
            if (r < count && at < dim) load<V>(x, from + row(r) * stride + at);
#pragma unroll
            for (int v = 0; v < V; ++v) *place(r, at + v) = x[v];
        }
    }
    template <typename T, typename Row>
    __device__ static void stage_own(float* own, const T* from, size_t stride, int dim, int count, Row row) {
        auto place = [=](int r, int at) { return own + (r / OWN * DIM + at) * OWN + r % OWN; };
        if (dim % 4 == 0) {
            stage<4>(BLOCK, from, stride, dim, count, row, place);
        } else {
            stage<1>(BLOCK, from, stride, dim, count, row, place);
        }
    }
    template <typename T, typename Row>
    __device__ static void stage_tile(float* tile, const T* from, size_t stride, int dim, int count, Row row) {
        auto place = [=](int r, int at) { return tile + r * LINE + at; };
        if (dim % 4 == 0) {
            stage<4>(TILE, from, stride, dim, count, row, place);
        } else {
            stage<1>(TILE, from, stride, dim, count, row, place);
        }
    }
    // Products of the warp's rows with the lane's row of the tile.
    __device__ static void products(float (&s)[OWN], const float* own, const float* tile, int dim) {
        for (int r = 0; r < OWN; ++r) s[r] = 0;
        const float* mine = tile + threadIdx.x % WARP * LINE;
#pragma unroll 4
        for (int i = 0; i < dim; ++i) {
            const float4 four = *reinterpret_cast<const float4*>(own + i * OWN);
            s[0] += four.x * mine[i], s[1] += four.y * mine[i], s[2] += four.z * mine[i], s[3] += four.w * mine[i];
        }
    }
    // Adds the tile's rows, weighted; lane l has dimensions l, l + 32 and so on.
    __device__ static void add(float (&sums)[OWN][PARTS], const float* weights, const float* tile) {
#pragma unroll 4
        for (int c = 0; c < TILE; ++c) {
            const float4 four = *reinterpret_cast<const float4*>(weights + c * OWN);
#pragma unroll
            for (int m = 0; m < PARTS; ++m) {
                const float x = tile[c * LINE + m * WARP + threadIdx.x % WARP];
                sums[0][m] += four.x * x, sums[1][m] += four.y * x, sums[2][m] += four.z * x, sums[3][m] += four.w * x;
            }
        }
    }
    template <typename T>
    __device__ static void write(T* to, const float (&sums)[PARTS], float factor, int dim) {
#pragma unroll
        for (int m = 0; m < PARTS; ++m) {
            const int at = m * WARP + threadIdx.x % WARP;
            if (at < dim) store(to + at, sums[m] * factor);
        }
    }
};

// Hands the lanes' weights to the whole warp.
__device__ inline void share_weights(float* weights, const float (&p)[OWN]) {
    *reinterpret_cast<float4*>(weights + threadIdx.x % WARP * OWN) = float4{p[0], p[1], p[2], p[3]};
}

template <typename T, int PARTS>
__device__ inline void forward_of(const Forward& a) {
    using H = Head<PARTS>;
    DYNAMIC_SHARED(float, shared);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, dim = a.dim;
    float* own = shared;
    float* weights = own + BLOCK * H::DIM;
    float* key_tile = weights + BLOCK * TILE;
    float* value_tile = key_tile + TILE * H::LINE;
    const float* my_own = own + warp * OWN * H::DIM;
    float* my_weights = weights + warp * OWN * TILE;

    const auto [head, tile] = place_of_queries(a.tiles, a.context);
    const uint32_t first_row = head / a.heads * a.context;
    const Columns c = columns(head % a.heads, a.heads, a.kv_heads, a.dim);
    const T* rows = static_cast<const T*>(a.qkv) + first_row * c.stride;
    const int context = a.context, window = a.window, start = tile * BLOCK, end = min(context, start + BLOCK);
    H::stage_own(own, rows + start * c.stride + c.q, c.stride, dim, end - start,
                 [](int r) { return static_cast<size_t>(r); });

    const int first = start + warp * OWN;  // of the warp's queries
    float sums[OWN][PARTS] = {}, max_of[OWN], sum_of[OWN];
    for (int r = 0; r < OWN; ++r) max_of[r] = LOWEST, sum_of[r] = 0;
    for (int at = max(0, start + 1 - window) / TILE * TILE; at < end; at += TILE) {
        __syncthreads();  // the tile before this one has been read
        auto row = [=](int r) { return static_cast<size_t>(at + r); };
        H::stage_tile(key_tile, rows + c.k, c.stride, dim, context - at, row);
        H::stage_tile(value_tile, rows + c.v, c.stride, dim, context - at, row);
        __syncthreads();
        if (at > first + OWN - 1 || at + TILE + window <= first + 1) continue;
        float p[OWN];
        H::products(p, my_own, key_tile, dim);
#pragma unroll
        for (int r = 0; r < OWN; ++r) {
            const int before = first + r - at - lane;  // from the key to the query
            const float score = before >= 0 && before < window ? p[r] * a.scale : -INFINITY;
            const float max = larger(max_of[r], warp_max(score));
            const float shrink = expf(max_of[r] - max);
            p[r] = expf(score - max);
            sum_of[r] = sum_of[r] * shrink + warp_sum(p[r]);
            max_of[r] = max;
            for (int m = 0; m < PARTS; ++m) sums[r][m] *= shrink;
        }
        share_weights(my_weights, p);
        __syncwarp();
        H::add(sums, my_weights, value_tile);
    }
#pragma unroll
    for (int r = 0; r < OWN; ++r) {
        if (first + r >= end) continue;
        T* out = static_cast<T*>(a.out) + (first_row + first + r) * c.queries + c.q;
        H::write(out, sums[r], 1.0f / sum_of[r], dim);
        if (lane == 0) a.lse[static_cast<size_t>(head) * a.context + first + r] = max_of[r] + logf(sum_of[r]);
    }
}

template <typename T>
__device__ inline void forward(const Forward& a) {
    if (a.dim <= 32) {
        forward_of<T, 1>(a);
    } else if (a.dim <= 64) {
        forward_of<T, 2>(a);
    } else {
        forward_of<T, 4>(a);
    }
}

// dQ of the block's queries.
template <typename T, int PARTS>
__device__ inline void queries_of(const Backward& a) {
    using H = Head<PARTS>;
    DYNAMIC_SHARED(float, shared);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, dim = a.dim;
    float* q_own = shared;
    float* dout_own = q_own + BLOCK * H::DIM;
    float* weights = dout_own + BLOCK * H::DIM;
    float* key_tile = weights + BLOCK * TILE;
    float* value_tile = key_tile + TILE * H::LINE;
    const int mine = warp * OWN;
    float* my_weights = weights + mine * TILE;

    const auto [head, tile] = place_of_queries(a.tiles, a.context);
    const uint32_t b = head / a.heads, first_row = b * a.context;
    const uint32_t start = start_of(a.queries, b, a.context) + tile * BLOCK, all = start_of(a.queries, b + 1, a.context);
    if (start >= all) return;
    const int count = min(BLOCK, static_cast<int>(all - start));
    const Columns c = columns(head % a.heads, a.heads, a.kv_heads, a.dim);
    const T* qkv = static_cast<const T*>(a.qkv);
    const T* sequence = qkv + first_row * c.stride;
    auto row = [&](int r) { return static_cast<size_t>(row_at(a.queries, start + r)); };
    H::stage_own(q_own, qkv + c.q, c.stride, dim, count, row);
    H::stage_own(dout_own, static_cast<const T*>(a.dout) + start * c.queries + c.q, c.queries, dim, count,
                 [](int r) { return static_cast<size_t>(r); });

    int position[OWN];
    float lse[OWN], delta[OWN], sums[OWN][PARTS] = {};
#pragma unroll
    for (int r = 0; r < OWN; ++r) {
        const uint32_t query = start + min(mine + r, count - 1);
        const float* stats = a.stats + 2 * (static_cast<size_t>(head % a.heads) * a.count + query);
        position[r] = row_at(a.queries, query) - first_row;
        lse[r] = stats[0], delta[r] = stats[1];
    }
    const int context = a.context, window = a.window, end = row_at(a.queries, start + count - 1) - first_row + 1;
    const int earliest = row_at(a.queries, start) - first_row + 1 - window;  // key that the block's first query sees
    for (int at = max(0, earliest) / TILE * TILE; at < end; at += TILE) {
        __syncthreads();
        auto key = [=](int r) { return static_cast<size_t>(at + r); };
        H::stage_tile(key_tile, sequence + c.k, c.stride, dim, context - at, key);
        H::stage_tile(value_tile, sequence + c.v, c.stride, dim, context - at, key);
        __syncthreads();
        if (at > position[OWN - 1] || at + TILE + window <= position[0] + 1) continue;
        float p[OWN], dp[OWN];
        H::products(p, q_own + mine * H::DIM, key_tile, dim);
        H::products(dp, dout_own + mine * H::DIM, value_tile, dim);
#pragma unroll
        for (int r = 0; r < OWN; ++r) {
            const int before = position[r] - at - lane;
            const bool seen = before >= 0 && before < window;
            p[r] = seen ? expf(p[r] * a.scale - lse[r]) * (dp[r] - delta[r]) : 0.0f;
        }
        share_weights(my_weights, p);
        __syncwarp();
        H::add(sums, my_weights, key_tile);
    }
#pragma unroll
    for (int r = 0; r < OWN; ++r) {
        if (mine + r >= count) continue;
        T* dq = static_cast<T*>(a.dq) + (start + mine + r) * c.queries + c.q;
        H::write(dq, sums[r], a.scale, dim);
    }
}

template <typename T>
__device__ inline void queries(const Backward& a) {
    if (a.dim <= 32) {
        queries_of<T, 1>(a);
    } else if (a.dim <= 64) {
        queries_of<T, 2>(a);
    } else {
        queries_of<T, 4>(a);
    }
}

// dK and dV of the block's keys: sums over the heads of queries that share them, one after the other.
template <typename T, int PARTS>
__device__ inline void keys_of(const Backward& a) {
    using H = Head<PARTS>;
    DYNAMIC_SHARED(float, shared);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, dim = a.dim;
    float* k_own = shared;
    float* v_own = k_own + BLOCK * H::DIM;
    float* weights = v_own + BLOCK * H::DIM;
    float* q_tile = weights + 2 * BLOCK * TILE;
    float* dout_tile = q_tile + TILE * H::LINE;
    const int mine = warp * OWN;
    float* my_p = weights + 2 * mine * TILE;
    float* my_ds = my_p + OWN * TILE;

    const auto [head, tile] = place(a.tiles, a.context);
    const uint32_t b = head / a.kv_heads, share = a.heads / a.kv_heads, first_head = head % a.kv_heads * share;
    const uint32_t start = start_of(a.keys, b, a.context) + tile * BLOCK, all = start_of(a.keys, b + 1, a.context);
    if (start >= all) return;
    const int count = min(BLOCK, static_cast<int>(all - start));
    const Columns c = columns(first_head, a.heads, a.kv_heads, a.dim);
    const T* qkv = static_cast<const T*>(a.qkv);
    auto row = [&](int r) { return static_cast<size_t>(row_at(a.keys, start + r)); };
    H::stage_own(k_own, qkv + c.k, c.stride, dim, count, row);
    H::stage_own(v_own, qkv + c.v, c.stride, dim, count, row);

    uint32_t key[OWN];
    float dk[OWN][PARTS] = {}, dv[OWN][PARTS] = {};
#pragma unroll
    for (int r = 0; r < OWN; ++r) key[r] = row_at(a.keys, start + min(mine + r, count - 1));
    // The queries that see the first of these keys, or a later one.
    const uint32_t queries_from = start_of(a.queries, b, a.context), queries_to = start_of(a.queries, b + 1, a.context);
    const uint32_t begin = first_not_before(a.queries, row_at(a.keys, start), queries_from, queries_to);
    const uint32_t end = first_not_before(a.queries, row_at(a.keys, start + count - 1) + a.window, begin, queries_to);
    for (uint32_t h = first_head; h < first_head + share; ++h) {
        const T* q = qkv + h * a.dim;
        const T* dout = static_cast<const T*>(a.dout) + h * a.dim;
        for (uint32_t at = begin; at < end; at += TILE) {
            __syncthreads();
            H::stage_tile(q_tile, q, c.stride, dim, end - at,
                          [&](int r) { return static_cast<size_t>(row_at(a.queries, at + r)); });
            H::stage_tile(dout_tile, dout, c.queries, dim, end - at, [&](int r) { return static_cast<size_t>(at + r); });
            __syncthreads();
            const bool valid = at + lane < end;
            const uint32_t query = valid ? at + lane : at;
            const uint32_t query_row = row_at(a.queries, query);
            const float* stats = a.stats + 2 * (static_cast<size_t>(h) * a.count + query);
            const float lse = stats[0], delta = stats[1];
            float p[OWN], ds[OWN];
            H::products(p, k_own + mine * H::DIM, q_tile, dim);
            H::products(ds, v_own + mine * H::DIM, dout_tile, dim);
#pragma unroll
            for (int r = 0; r < OWN; ++r) {
                const bool seen = valid && key[r] <= query_row && query_row - key[r] < a.window;
                p[r] = seen ? expf(p[r] * a.scale - lse) : 0.0f;
                ds[r] = p[r] * (ds[r] - delta);
            }
            share_weights(my_p, p);
            share_weights(my_ds, ds);
            __syncwarp();
            H::add(dk, my_ds, q_tile);
            H::add(dv, my_p, dout_tile);
        }
    }
#pragma unroll
    for (int r = 0; r < OWN; ++r) {
        if (mine + r >= count) continue;
        T* dkv = static_cast<T*>(a.dkv) + (start + mine + r) * 2 * c.keys + (c.k - c.queries);
        H::write(dkv, dk[r], a.scale, dim);
        H::write(dkv + c.keys, dv[r], 1.0f, dim);
    }
}

template <typename T>
__device__ inline void keys(const Backward& a) {
    if (a.dim <= 32) {
        keys_of<T, 1>(a);
    } else if (a.dim <= 64) {
        keys_of<T, 2>(a);
    } else {
        keys_of<T, 4>(a);
    }
}

}  // namespace generic
