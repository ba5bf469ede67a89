// Attention for bf16 and heads of 64 on tensor cores. A warp owns 16 rows of a tile, or two times 16; its scores stay in
// registers, where, rounded to bf16, they are the left factor of the product that follows. The other side's rows come a
// tile at a time through two stages of shared memory: while one is read, the next is copied into the other.
#pragma once
#include "copy.cuh"
#include "mma.cuh"

namespace flash {

constexpr int DIM = 64, WARPS = 4, THREADS = WARPS * WARP;
constexpr int TILE = 64;               // rows of a tile
constexpr int LINE = DIM + 8;          // of shared memory: rows of a matrix of 8 x 8 lie in different banks
constexpr int STAGE = 2 * TILE * LINE;  // two tiles: keys and values, or queries and dout
constexpr int STEPS = DIM / 16, WIDE = DIM / 8;  // of a product along the head, and over it
constexpr float LOG2_E = 1.4426950408889634f;

// 2^x to two units in the last place; below 2^-126 it is zero.
__device__ inline float power_of_2(float x) {
#ifdef ESLM_EMULATED
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// Starts copies of `count` rows of a head to a tile, with zeros after them: eight threads for a row. Where rows are looked
// up in a list, all look-ups are under way before the first is waited for.
template <int ROWS, typename Row>
__device__ inline void fetch(bf16* tile, const bf16* from, size_t stride, int count, Row row) {
    constexpr int ACROSS = DIM / 8, DOWN = THREADS / ACROSS, EACH = ROWS / DOWN;
    const int first = threadIdx.x / ACROSS, at = threadIdx.x % ACROSS * 8;
    size_t rows[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) rows[i] = first + i * DOWN < count ? row(first + i * DOWN) : 0;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int r = first + i * DOWN;
        start_copy<16>(tile + r * LINE + at, from + rows[i] * stride + at, r < count);
    }
}

// 16 rows as a left factor.
__device__ inline void load_left(uint32_t (&left)[STEPS][4], const bf16* rows) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int s = 0; s < STEPS; ++s) load_matrices<false>(left[s], rows + lane % 16 * LINE + 16 * s + lane / 16 * 8);
}

// c[m] += left[m] · rowsᵀ for 8 N rows of a tile: scores.
template <int M, int N>
__device__ inline void add_scores(float (&c)[M][N][4], const uint32_t (&left)[M][STEPS][4], const bf16* rows) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t r[4];
            load_matrices<false>(r, rows + (8 * n + lane % 8 + lane / 16 * 8) * LINE + 16 * s + lane / 8 % 2 * 8);
            const uint32_t low[2] = {r[0], r[1]}, high[2] = {r[2], r[3]};
#pragma unroll
            for (int m = 0; m < M; ++m) mma(c[m][n], left[m][s], low), mma(c[m][n + 1], left[m][s], high);
        }
    }
}

// c[m] += bf16(weights[m]) · rows for 8 N rows of a tile: weighted sums of them.
template <int M, int N>
__device__ inline void add_weighted(float (&c)[M][WIDE][4], const float (&weights)[M][N][4], const bf16* rows) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        uint32_t left[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m) {
            const float(&w)[N][4] = weights[m];
            left[m][0] = pack(w[n][0], w[n][1]), left[m][1] = pack(w[n][2], w[n][3]);
            left[m][2] = pack(w[n + 1][0], w[n + 1][1]), left[m][3] = pack(w[n + 1][2], w[n + 1][3]);
        }
#pragma unroll
        for (int i = 0; i < WIDE; i += 2) {
            uint32_t r[4];
            load_matrices<true>(r, rows + (8 * n + lane % 16) * LINE + 8 * i + lane / 16 * 8);
            const uint32_t low[2] = {r[0], r[1]}, high[2] = {r[2], r[3]};
#pragma unroll
            for (int m = 0; m < M; ++m) mma(c[m][i], left[m], low), mma(c[m][i + 1], left[m], high);
        }
    }
}

// Writes the first `count` of a warp's 16 rows, times a factor for rows g and one for rows g + 8; through shared memory,
// so that a row leaves in accesses of 16 bytes.
__device__ inline void write_rows(bf16* to, size_t stride, int count, const float (&c)[WIDE][4], float upper, float lower,
                                  bf16* scratch) {
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < WIDE; ++i) {
        bf16* at = scratch + g * LINE + 8 * i + 2 * t;
        *reinterpret_cast<uint32_t*>(at) = pack(c[i][0] * upper, c[i][1] * upper);
        *reinterpret_cast<uint32_t*>(at + 8 * LINE) = pack(c[i][2] * lower, c[i][3] * lower);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int r = 4 * i + lane / 8, at = lane % 8 * 8;
        if (r < count) {
            *reinterpret_cast<uint4*>(to + r * stride + at) = *reinterpret_cast<const uint4*>(scratch + r * LINE + at);
        }
    }
}

// A block owns 128 queries, a warp 32 of them.
__device__ inline void forward(const Forward& a) {
    constexpr int M = 2, OWN = 16 * M, QUERIES = OWN * WARPS, N = TILE / 8;
    static_assert(QUERIES * LINE == STAGE, "the queries pass through the second stage");
    DYNAMIC_SHARED(bf16, shared);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const auto [head, tile] = place_of_queries(a.tiles, a.context);
    const size_t first_row = static_cast<size_t>(head / a.heads) * a.context;
    const Columns c = columns(head % a.heads, a.heads, a.kv_heads, DIM);
    const bf16* rows = static_cast<const bf16*>(a.qkv) + first_row * c.stride;
    const int context = a.context, window = a.window, start = tile * QUERIES, first = start + warp * OWN;
    const int begin = max(0, start + 1 - window) / TILE * TILE;
    auto fetch_keys = [&](int at) {
        bf16* stage = shared + (at - begin) / TILE % 2 * STAGE;
        auto row = [=](int r) { return static_cast<size_t>(at + r); };
        fetch<TILE>(stage, rows + c.k, c.stride, context - at, row);
        fetch<TILE>(stage + TILE * LINE, rows + c.v, c.stride, context - at, row);
        commit_copies();
    };
    fetch<QUERIES>(shared + STAGE, rows + c.q, c.stride, context - start,
                   [=](int r) { return static_cast<size_t>(start + r); });
    fetch_keys(begin);
    wait_for_copies<0>();
    __syncthreads();
    uint32_t queries[M][STEPS][4];
    for (int m = 0; m < M; ++m) load_left(queries[m], shared + STAGE + (warp * OWN + 16 * m) * LINE);

    // Of rows g and g + 8 of each 16; a sum is the lane's share of it.
    float out[M][WIDE][4] = {}, max_of[M][2], sum_of[M][2];
    for (int m = 0; m < M; ++m) max_of[m][0] = max_of[m][1] = LOWEST, sum_of[m][0] = sum_of[m][1] = 0;
    const float scale = a.scale * LOG2_E;
    const int end = min(context, start + QUERIES);
    for (int at = begin; at < end; at += TILE) {
        wait_for_copies<0>();
        __syncthreads();  // this tile is there for all, and the one before it has been read
        if (at + TILE < end) fetch_keys(at + TILE);
        if (at >= first + OWN || first >= context || at + TILE + window <= first + 1) continue;
        const bf16* stage = shared + (at - begin) / TILE % 2 * STAGE;
        float p[M][N][4] = {};
        add_scores(p, queries, stage);
        if (at + TILE - 1 > first || at + window < first + OWN) {
            // Rows after the last of the sequence come out of zeros and are not written.
#pragma unroll
            for (int m = 0; m < M; ++m)
#pragma unroll
                for (int n = 0; n < N; ++n)
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int before = first + 16 * m + g + i / 2 * 8 - (at + 8 * n + 2 * t + i % 2);
                        if (before < 0 || before >= window) p[m][n][i] = -INFINITY;
                    }
        }
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float max = max_of[m][half];
#pragma unroll
                for (int n = 0; n < N; ++n) max = fmaxf(max, fmaxf(p[m][n][2 * half], p[m][n][2 * half + 1]));
                max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, 1));
                max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, 2));
                const float shrink = power_of_2((max_of[m][half] - max) * scale), from = max * scale;
                float sum = 0;
#pragma unroll
                for (int n = 0; n < N; ++n)
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i) {
                        p[m][n][i] = power_of_2(p[m][n][i] * scale - from);
                        sum += p[m][n][i];
                    }
                max_of[m][half] = max;
                sum_of[m][half] = sum_of[m][half] * shrink + sum;
#pragma unroll
                for (int i = 0; i < WIDE; ++i) out[m][i][2 * half] *= shrink, out[m][i][2 * half + 1] *= shrink;
            }
        add_weighted(out, p, stage + TILE * LINE);
    }
    __syncthreads();  // shared memory has been read
#pragma unroll
    for (int m = 0; m < M; ++m) {
        float factor[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float sum = sum_of[m][half];
            sum += __shfl_xor_sync(ALL_LANES, sum, 1);
            sum += __shfl_xor_sync(ALL_LANES, sum, 2);
            factor[half] = 1.0f / sum;
            const int query = first + 16 * m + g + 8 * half;
            if (t == 0 && query < context) {
                a.lse[static_cast<size_t>(head) * context + query] = max_of[m][half] * a.scale + logf(sum);
            }
        }
        const int from = first + 16 * m;
        bf16* to = static_cast<bf16*>(a.out) + (first_row + from) * c.queries + c.q;
        write_rows(to, c.queries, context - from, out[m], factor[0], factor[1], shared + (warp * OWN + 16 * m) * LINE);
    }
}

// dQ of the block's 64 queries.
__device__ inline void queries(const Backward& a) {
    constexpr int OWN = 16, N = TILE / 8;
    DYNAMIC_SHARED(bf16, shared);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, mine = warp * OWN;
    const auto [head, tile] = place_of_queries(a.tiles, a.context);
    const uint32_t b = head / a.heads;
    const uint32_t start = start_of(a.queries, b, a.context) + tile * TILE, all = start_of(a.queries, b + 1, a.context);
    if (start >= all) return;
    const int count = min(TILE, static_cast<int>(all - start));
    const uint32_t first_row = b * a.context;
    const Columns c = columns(head % a.heads, a.heads, a.kv_heads, DIM);
    const bf16* qkv = static_cast<const bf16*>(a.qkv);
    const bf16* sequence = qkv + first_row * c.stride;
    const bf16* dout = static_cast<const bf16*>(a.dout) + start * c.queries + c.q;
    auto position = [&](int r) { return static_cast<int>(row_at(a.queries, start + min(r, count - 1)) - first_row); };
    const int context = a.context, window = a.window, end = position(count - 1) + 1;
    const int begin = max(0, position(0) + 1 - window) / TILE * TILE;
    auto fetch_keys = [&](int at) {
        bf16* stage = shared + (at - begin) / TILE % 2 * STAGE;
        auto row = [=](int r) { return static_cast<size_t>(at + r); };
        fetch<TILE>(stage, sequence + c.k, c.stride, context - at, row);
        fetch<TILE>(stage + TILE * LINE, sequence + c.v, c.stride, context - at, row);
        commit_copies();
    };
    fetch<TILE>(shared + STAGE, qkv + c.q, c.stride, count,
                [&](int r) { return static_cast<size_t>(row_at(a.queries, start + r)); });
    fetch<TILE>(shared + STAGE + TILE * LINE, dout, c.queries, count, [](int r) { return static_cast<size_t>(r); });
    fetch_keys(begin);
    wait_for_copies<0>();
    __syncthreads();
    uint32_t left_q[1][STEPS][4], left_dout[1][STEPS][4];
    load_left(left_q[0], shared + STAGE + mine * LINE);
    load_left(left_dout[0], shared + STAGE + (TILE + mine) * LINE);

    const int positions[2] = {position(mine + g), position(mine + g + 8)};
    const int first = position(mine), last = position(mine + OWN - 1);
    float lse[2], delta[2], dq[1][WIDE][4] = {};
    for (int half = 0; half < 2; ++half) {
        const size_t query = start + min(mine + g + 8 * half, count - 1);
        const float2 stats = reinterpret_cast<const float2*>(a.stats)[head % a.heads * static_cast<size_t>(a.count) + query];
        lse[half] = stats.x * LOG2_E, delta[half] = stats.y;
    }
    const float scale = a.scale * LOG2_E;
    for (int at = begin; at < end; at += TILE) {
        wait_for_copies<0>();
        __syncthreads();
        if (at + TILE < end) fetch_keys(at + TILE);
        if (at > last || mine >= count || at + TILE + window <= first + 1) continue;
        const bf16* stage = shared + (at - begin) / TILE % 2 * STAGE;
        float s[1][N][4] = {}, dp[1][N][4] = {};
        add_scores(s, left_q, stage);
        add_scores(dp, left_dout, stage + TILE * LINE);
        if (at + TILE - 1 > first || at + window <= last) {
#pragma unroll
            for (int n = 0; n < N; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int before = positions[i / 2] - (at + 8 * n + 2 * t + i % 2);
                    if (before < 0 || before >= window) s[0][n][i] = -INFINITY;
                }
        }
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                s[0][n][i] = power_of_2(s[0][n][i] * scale - lse[i / 2]) * (dp[0][n][i] - delta[i / 2]);
            }
        add_weighted(dq, s, stage);
    }
    __syncthreads();
    bf16* to = static_cast<bf16*>(a.dq) + (start + mine) * c.queries + c.q;
    write_rows(to, c.queries, count - mine, dq[0], a.scale, a.scale, shared + mine * LINE);
}

// dK and dV of the block's 64 keys. Scores are transposed: a warp's 16 rows are keys. Tiles of queries come head by head, of
// those that share the keys.
__device__ inline void keys(const Backward& a) {
    constexpr int OWN = 16, PART = 32, N = PART / 8;  // queries taken at a time: more would not fit in registers
    DYNAMIC_SHARED(bf16, shared);
    float2* stats = reinterpret_cast<float2*>(shared + 2 * STAGE);  // two stages of TILE
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, mine = warp * OWN;
    const auto [head, tile] = place(a.tiles, a.context);
    const uint32_t b = head / a.kv_heads, share = a.heads / a.kv_heads, first_head = head % a.kv_heads * share;
    const uint32_t start = start_of(a.keys, b, a.context) + tile * TILE, all = start_of(a.keys, b + 1, a.context);
    if (start >= all) return;
    const int count = min(TILE, static_cast<int>(all - start));
    const Columns c = columns(first_head, a.heads, a.kv_heads, DIM);
    const bf16* qkv = static_cast<const bf16*>(a.qkv);
    const float2* all_stats = reinterpret_cast<const float2*>(a.stats);
    auto key = [&](int r) { return row_at(a.keys, start + min(r, count - 1)); };
    const uint32_t all_queries = start_of(a.queries, b + 1, a.context);
    const uint32_t begin = first_not_before(a.queries, key(0), start_of(a.queries, b, a.context), all_queries);
    const uint32_t end = first_not_before(a.queries, key(count - 1) + a.window, begin, all_queries);
    auto fetch_queries = [&](int to, uint32_t h, uint32_t at) {
        const int left = end - at;
        bf16* stage = shared + to * STAGE;
        const bf16* dout = static_cast<const bf16*>(a.dout) + h * DIM;
        fetch<TILE>(stage, qkv + h * DIM, c.stride, left,
                    [&](int r) { return static_cast<size_t>(row_at(a.queries, at + r)); });
        fetch<TILE>(stage + TILE * LINE, dout, c.queries, left, [&](int r) { return static_cast<size_t>(at + r); });
        // Beyond the last query a probability is 1 and its dout zero, which adds nothing.
        const int r = threadIdx.x;
        const float2* from = all_stats + static_cast<size_t>(h) * a.count + at + r;
        if (r < TILE) start_copy<8>(stats + to * TILE + r, r < left ? from : all_stats, r < left);
        commit_copies();
    };
    auto row = [&](int r) { return static_cast<size_t>(row_at(a.keys, start + r)); };
    fetch<TILE>(shared + STAGE, qkv + c.k, c.stride, count, row);
    fetch<TILE>(shared + STAGE + TILE * LINE, qkv + c.v, c.stride, count, row);
    commit_copies();
    if (begin < end) fetch_queries(0, first_head, begin);
    wait_for_copies<0>();
    __syncthreads();
    uint32_t left_k[1][STEPS][4], left_v[1][STEPS][4];
    load_left(left_k[0], shared + STAGE + mine * LINE);
    load_left(left_v[0], shared + STAGE + (TILE + mine) * LINE);

    const uint32_t keys[2] = {key(mine + g), key(mine + g + 8)}, first = key(mine), last = key(mine + OWN - 1);
    float dk[1][WIDE][4] = {}, dv[1][WIDE][4] = {};
    const float scale = a.scale * LOG2_E;
    uint32_t next_head = first_head, next = begin;
    for (int from = 0; begin < end && next_head < first_head + share; from = 1 - from) {
        wait_for_copies<0>();
        __syncthreads();
        const uint32_t at = next;
        next += TILE;
        if (next >= end) next = begin, ++next_head;
        if (next_head < first_head + share) fetch_queries(1 - from, next_head, next);
        if (mine >= count) continue;
        const uint32_t latest = row_at(a.queries, min(at + TILE, end) - 1);
        const bool masked = row_at(a.queries, at) < last || latest - first >= a.window;
#pragma unroll 1
        for (int part = 0; part < TILE; part += PART) {
            const bf16* q_rows = shared + from * STAGE + part * LINE;
            const bf16* dout_rows = q_rows + TILE * LINE;
            float p[1][N][4] = {}, ds[1][N][4] = {};
            add_scores(p, left_k, q_rows);
            add_scores(ds, left_v, dout_rows);
            if (masked) {
#pragma unroll
                for (int n = 0; n < N; ++n)
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        const uint32_t query = row_at(a.queries, min(at + part + 8 * n + 2 * t + i, end - 1));
                        // Of keys after the query the difference is larger than any window.
                        if (query - keys[0] >= a.window) p[0][n][i] = -INFINITY;
                        if (query - keys[1] >= a.window) p[0][n][2 + i] = -INFINITY;
                    }
            }
#pragma unroll
            for (int n = 0; n < N; ++n) {
                // Log-sum-exp and delta of two neighbouring queries.
                const float4 two = *reinterpret_cast<const float4*>(stats + from * TILE + part + 8 * n + 2 * t);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float lse = (i % 2 ? two.z : two.x) * LOG2_E, delta = i % 2 ? two.w : two.y;
                    p[0][n][i] = power_of_2(p[0][n][i] * scale - lse);
                    ds[0][n][i] = p[0][n][i] * (ds[0][n][i] - delta);
                }
            }
            add_weighted(dv, p, dout_rows);
            add_weighted(dk, ds, q_rows);
        }
    }
    __syncthreads();
    bf16* to = static_cast<bf16*>(a.dkv) + (start + mine) * 2 * c.keys + (c.k - c.queries);
    bf16* scratch = shared + mine * LINE;
    write_rows(to, 2 * c.keys, count - mine, dk[0], a.scale, a.scale, scratch);
    write_rows(to + c.keys, 2 * c.keys, count - mine, dv[0], 1.0f, 1.0f, scratch);
}

}  // namespace flash
