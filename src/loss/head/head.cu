// The tied head on a GPU: softmax statistics, divergences, and gradients of the logits. A block owns a row of the
// vocabulary, which is read twice (the second time from the cache) and never stored as probabilities.
#include "common.cuh"
#include "divergence.cuh"

#ifdef ESLM_EMULATED
constexpr int THREADS = 64;  // fewer fibers to switch between
#else
constexpr int THREADS = 512;
#endif

// Numbers of a row's statistics: six of the student's, six of the teacher's, and two between them.
constexpr int ROW_STATS = 14;

// A row of logits among many; `rows` says where row i lies, null means at i.
struct Logits {
    const float* data;
    const uint32_t* rows;
    uint64_t stride;

    __device__ const float* row(uint32_t i) const { return data + (rows == nullptr ? i : rows[i]) * stride; }
};

struct Scan {
    float* out;  // [N, 14]: ops::head::RowStats, number after number
    Logits z, t; // student; teacher, or null data
    const uint32_t* targets;
    uint32_t v;
    float tau;
    uint32_t reverse_kl;
};

// Softmax sums relative to the row's maximum.
struct Sums {
    double sum, weighted, at_tau, weighted_at_tau;

    __device__ void write(float* out, float max, float target) const {
        const double log_sum = log(sum);
        out[0] = max;
        out[1] = static_cast<float>(log_sum);
        out[2] = static_cast<float>(log(at_tau));
        out[3] = static_cast<float>(log_sum + static_cast<double>(max) - static_cast<double>(target));
        out[4] = static_cast<float>(log_sum - weighted / sum);
        out[5] = static_cast<float>(log(at_tau) - weighted_at_tau / at_tau);
    }
};

__device__ inline float row_max(const float* z, uint32_t v) {
    float max = -INFINITY;
    for (uint32_t i = threadIdx.x; i < v; i += THREADS) max = larger(z[i], max);
    return block_max(max);
}

// Rounding can leave a divergence of equal distributions just below zero; a NaN must stay one.
__device__ inline float not_negative(double x) { return x < 0 ? 0.0f : static_cast<float>(x); }

__device__ inline void scan(const Scan& a) {
    const uint32_t row = blockIdx.x, target = a.targets[row];
    float* out = a.out + static_cast<size_t>(row) * ROW_STATS;
    const float* z = a.z.row(row);
    const float z_max = row_max(z, a.v), inverse = 1.0f / a.tau;
    float sum = 0, weighted = 0, at_tau = 0, weighted_at_tau = 0;
    if (a.t.data == nullptr) {
        for (uint32_t i = threadIdx.x; i < a.v; i += THREADS) {
            const float shifted = z[i] - z_max, e = expf(shifted);
            sum += e, weighted += shifted * e;
            if (a.tau != 1.0f) {
                const float s = shifted * inverse, p = expf(s);
                at_tau += p, weighted_at_tau += s * p;
            }
        }
        const double total = block_sum(static_cast<double>(sum)), moment = block_sum(static_cast<double>(weighted));
        const Sums sums{total, moment, a.tau == 1.0f ? total : block_sum(static_cast<double>(at_tau)),
                        a.tau == 1.0f ? moment : block_sum(static_cast<double>(weighted_at_tau))};
        if (threadIdx.x == 0) {
            sums.write(out, z_max, z[target]);
            for (int i = 6; i < ROW_STATS; ++i) out[i] = 0;
        }
        return;
    }
    const float* t = a.t.row(row);
    const float t_max = row_max(t, a.v);
    float t_sum = 0, t_weighted = 0, t_at_tau = 0, t_weighted_at_tau = 0, cross = 0, reverse = 0;
    for (uint32_t i = threadIdx.x; i < a.v; i += THREADS) {
        const float zs = z[i] - z_max, ts = t[i] - t_max, ez = expf(zs), et = expf(ts);
        sum += ez, weighted += zs * ez;
        t_sum += et, t_weighted += ts * et;
        const float p = a.tau == 1.0f ? ez : expf(zs * inverse), q = a.tau == 1.0f ? et : expf(ts * inverse);
        at_tau += p, t_at_tau += q;
        weighted_at_tau += p * (zs * inverse), t_weighted_at_tau += q * (ts * inverse);
        cross += q * ((ts - zs) * inverse);
        if (a.reverse_kl) reverse += p * ((zs - ts) * inverse);
    }
    const Sums student{block_sum(static_cast<double>(sum)), block_sum(static_cast<double>(weighted)),
                       block_sum(static_cast<double>(at_tau)), block_sum(static_cast<double>(weighted_at_tau))};
    const Sums teacher{block_sum(static_cast<double>(t_sum)), block_sum(static_cast<double>(t_weighted)),
                       block_sum(static_cast<double>(t_at_tau)), block_sum(static_cast<double>(t_weighted_at_tau))};
    const double crossed = block_sum(static_cast<double>(cross)), back = block_sum(static_cast<double>(reverse));
    if (threadIdx.x == 0) {
        student.write(out, z_max, z[target]);
        teacher.write(out + 6, t_max, t[target]);
        const double between = log(student.at_tau) - log(teacher.at_tau);
        out[12] = not_negative(crossed / teacher.at_tau + between);
        out[13] = a.reverse_kl ? not_negative(back / student.at_tau - between) : 0.0f;
    }
}

KERNEL(head_scan, THREADS, Scan, scan)

// What a row's scan says of it.
struct Stats {
    const float* data;     // [N, 14]
    const uint32_t* rows;  // as for logits

    __device__ const float* row(uint32_t i) const { return data + (rows == nullptr ? i : rows[i]) * static_cast<size_t>(ROW_STATS); }
};

struct Taught {
    float* sums;  // [k, 2]: D and G of each row
    Logits z, t;
    Stats stats;
    uint32_t v;
    uint32_t divergence;
    float share;
    float tau;
};

template <typename Entry>
__device__ inline void add_up(const Taught& a, Entry entry) {
    const uint32_t row = blockIdx.x;
    const float *z = a.z.row(row), *t = a.t.row(row), *s = a.stats.row(row);
    const float inverse = 1.0f / a.tau;
    float value = 0, gradient = 0;
    for (uint32_t i = threadIdx.x; i < a.v; i += THREADS) {
        const Term term = entry.at((z[i] - s[0]) * inverse - s[2], (t[i] - s[6]) * inverse - s[8]);
        value += term.value, gradient += term.g;
    }
    const double d = block_sum(static_cast<double>(value)), g = block_sum(static_cast<double>(gradient));
    if (threadIdx.x == 0) {
        a.sums[2 * row] = not_negative(d);
        a.sums[2 * row + 1] = static_cast<float>(g);
    }
}

__device__ inline void divergence_sums(const Taught& a) {
    with_divergence(a.divergence, a.share, [&](auto entry) { add_up(a, entry); });
}

KERNEL(head_divergence_sums, THREADS, Taught, divergence_sums)

struct Gradient {
    void* dz;                // [k, stride], zero from v on
    Logits z, t;             // t with null data: no dense teacher
    Stats stats;
    const uint32_t* targets; // by the rows of the statistics
    const float* weights;    // [k]
    const float* sums;       // [k, 2], or null: forward KL needs none
    // A sparse signal, by the rows of the statistics: ids[starts[i]..starts[i + 1]] are those of row i; null without one.
    const uint32_t* starts;
    const uint32_t* ids;     // of a row ascending
    const float* g;          // of each id
    const float* rest;       // [k, 2]: h of everything else, and G
    uint64_t stride;
    uint32_t v;
    uint32_t divergence;
    float share, lambda, tau;
};

template <typename T, typename Entry>
__device__ inline void taught_row(const Gradient& a, Entry entry, float ce, float scale) {
    const uint32_t row = blockIdx.x;
    T* dz = static_cast<T*>(a.dz) + row * a.stride;
    const float *z = a.z.row(row), *t = a.t.row(row), *s = a.stats.row(row);
    const float inverse = 1.0f / a.tau, total = a.sums == nullptr ? 0.0f : a.sums[2 * row + 1];
    const uint32_t target = a.targets[a.stats.rows == nullptr ? row : a.stats.rows[row]];
    for (uint32_t i = threadIdx.x; i < a.v; i += THREADS) {
        const float p = expf(z[i] - s[0] - s[1]);
        const float log_p = (z[i] - s[0]) * inverse - s[2], log_q = (t[i] - s[6]) * inverse - s[8];
        const float d = gradient_of(entry, log_p, log_q, total);
        store(dz + i, ce * (i == target ? p - 1.0f : p) + scale * d);
    }
}

template <typename T>
__device__ inline void gradient(const Gradient& a) {
    const uint32_t row = blockIdx.x;
    T* dz = static_cast<T*>(a.dz) + row * a.stride;
    for (uint32_t i = a.v + threadIdx.x; i < a.stride; i += THREADS) store(dz + i, 0.0f);
    const float ce = a.weights[row] * (1.0f - a.lambda), scale = a.weights[row] * a.lambda * a.tau;
    if (a.t.data != nullptr) {
        with_divergence(a.divergence, a.share, [&](auto entry) { taught_row<T>(a, entry, ce, scale); });
        return;
    }
    const float *z = a.z.row(row), *s = a.stats.row(row);
    const uint32_t target = a.targets[a.stats.rows == nullptr ? row : a.stats.rows[row]];
    if (a.starts == nullptr) {
        for (uint32_t i = threadIdx.x; i < a.v; i += THREADS) {
            const float p = expf(z[i] - s[0] - s[1]);
            store(dz + i, ce * (i == target ? p - 1.0f : p));
        }
        return;
    }
    const uint32_t said = a.stats.rows == nullptr ? row : a.stats.rows[row];
    const float inverse = 1.0f / a.tau, total = a.rest[2 * said + 1], outside = a.rest[2 * said] - total;
    for (uint32_t i = threadIdx.x; i < a.v; i += THREADS) {
        const float p = expf(z[i] - s[0] - s[1]), p_tau = a.tau == 1.0f ? p : expf((z[i] - s[0]) * inverse - s[2]);
        store(dz + i, ce * (i == target ? p - 1.0f : p) + scale * outside * p_tau);
    }
    __syncthreads();
    // Written anew: beside a large h of the rest, what the ids have would drown in rounding.
    for (uint32_t at = a.starts[said] + threadIdx.x; at < a.starts[said + 1]; at += THREADS) {
        const uint32_t i = a.ids[at];
        const float p = expf(z[i] - s[0] - s[1]), p_tau = expf((z[i] - s[0]) * inverse - s[2]);
        store(dz + i, ce * (i == target ? p - 1.0f : p) + scale * (a.g[at] - p_tau * total));
    }
}

KERNEL(head_gradient_f32, THREADS, Gradient, gradient<float>)
KERNEL(head_gradient_bf16, THREADS, Gradient, gradient<bf16>)

// What a sparse signal says of rows: ids[starts[i]..starts[i + 1]] are those of row i.
struct Hear {
    float* stats;           // [N, 14], into which the teacher's half is written
    Logits z;
    const uint32_t* starts; // [N + 1]
    const uint32_t* ids;
    const float* says;      // of each id: ln q, or the share of the draws
    const float* outside;   // [N]: ln q of everything else, -infinity where that is nothing; null for draws
    const float* said;      // [N, 3]: the teacher's cross-entropy, its entropy, and that at tau
    float* g;               // of each id; null where nothing is learned
    float* rest;            // [N, 2]: h of everything else, and G
    float* sums;            // [N, 2]: D and G
    uint32_t divergence;
    float share, tau;
    uint32_t kl, reverse_kl;
};

struct Row {
    float value, h, g;
};

// D, h of everything else and G: the twin of `bucketed` in sparse.rs. With `g`, that of each id is written.
template <typename Entry>
__device__ inline Row buckets(const Hear& a, Entry entry, float* g) {
    const uint32_t row = blockIdx.x;
    const float *z = a.z.row(row), *s = a.stats + static_cast<size_t>(row) * ROW_STATS;
    double value = 0, total = 0, inside = 0;
    for (uint32_t at = a.starts[row] + threadIdx.x; at < a.starts[row + 1]; at += blockDim.x) {
        const float log_p = (z[a.ids[at]] - s[0]) / a.tau - s[2];
        const Term term = entry.at(log_p, a.says[at]);
        value += static_cast<double>(term.value), total += static_cast<double>(term.g);
        inside += exp(static_cast<double>(log_p));
        if (g != nullptr) g[at] = term.g;
    }
    value = block_sum(value), total = block_sum(total), inside = block_sum(inside);
    float h = 0;
    if (a.outside[row] > -INFINITY) {
        // What 1 - sum p is known to, at least.
        const double left = 1.0 - inside, outside = left > 1.1920929e-7 ? left : 1.1920929e-7;
        const Term term = entry.at(static_cast<float>(log(outside)), a.outside[row]);
        value += static_cast<double>(term.value), total += static_cast<double>(term.g);
        h = static_cast<float>(static_cast<double>(term.g) / outside);
    }
    return {not_negative(value), h, static_cast<float>(total)};
}

// The twin of `drawn` in sparse.rs.
__device__ inline Row draws(const Hear& a, float* g) {
    const uint32_t row = blockIdx.x;
    const float *z = a.z.row(row), *s = a.stats + static_cast<size_t>(row) * ROW_STATS;
    double cross = 0;
    for (uint32_t at = a.starts[row] + threadIdx.x; at < a.starts[row + 1]; at += blockDim.x) {
        const float log_p = (z[a.ids[at]] - s[0]) / a.tau - s[2];
        cross -= static_cast<double>(a.says[at]) * static_cast<double>(log_p);
        if (g != nullptr) g[at] = -a.says[at];
    }
    return {static_cast<float>(block_sum(cross) - static_cast<double>(a.said[3 * row + 2])), 0.0f, -1.0f};
}

__device__ inline void hear(const Hear& a) {
    const uint32_t row = blockIdx.x;
    float kl = 0, reverse = 0;
    if (a.kl) kl = a.outside == nullptr ? draws(a, nullptr).value : buckets(a, ForwardKl{}, nullptr).value;
    if (a.reverse_kl && a.outside != nullptr) reverse = buckets(a, ReverseKl{}, nullptr).value;
    if (a.g != nullptr) {
        Row of{};
        if (a.outside == nullptr) {
            of = draws(a, a.g);
        } else {
            with_divergence(a.divergence, a.share, [&](auto entry) { of = buckets(a, entry, a.g); });
        }
        if (threadIdx.x == 0) {
            a.rest[2 * row] = of.h, a.rest[2 * row + 1] = of.g;
            a.sums[2 * row] = of.value, a.sums[2 * row + 1] = of.g;
        }
    }
    if (threadIdx.x != 0) return;
    float* out = a.stats + static_cast<size_t>(row) * ROW_STATS;
    out[6] = out[7] = out[8] = 0;
    for (int i = 0; i < 3; ++i) out[9 + i] = a.said[3 * row + i];
    out[12] = kl, out[13] = reverse;
}

KERNEL(head_hear, 128, Hear, hear)

// Chunks of entries whose sums a block holds: more entries make longer chunks.
constexpr uint32_t CHUNKS = 512;

struct Draw {
    uint32_t* ids;           // [N, draws]
    const double* uniforms;  // [N, draws], in [0, 1)
    Logits t;
    uint32_t v, draws;
    float tau;
};

// Draws by inversion: ids[i] is where the cumulative distribution passes uniforms[i]. A warp adds up a chunk; a thread looks
// for the chunk of its draw and walks it. The twin of `drawn` in reduce.rs.
__device__ inline void draw(const Draw& a) {
    __shared__ double until[CHUNKS];
    __shared__ uint32_t final_chunk;
    const uint32_t row = blockIdx.x, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const float* t = a.t.row(row);
    const float max = row_max(t, a.v), inverse = 1.0f / a.tau;
    const uint32_t length = ((a.v + CHUNKS - 1) / CHUNKS + WARP - 1) / WARP * WARP, chunks = (a.v + length - 1) / length;
    for (uint32_t c = warp; c < chunks; c += THREADS / WARP) {
        float sum = 0;
        for (uint32_t i = c * length + lane; i < a.v && i < (c + 1) * length; i += WARP) sum += expf((t[i] - max) * inverse);
        sum = warp_sum(sum);
        if (lane == 0) until[c] = static_cast<double>(sum);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0;
        uint32_t last = 0;
        for (uint32_t c = 0; c < chunks; ++c) {
            if (until[c] > 0) last = c;
            total += until[c];
            until[c] = total;
        }
        final_chunk = last;
    }
    __syncthreads();
    const double total = until[chunks - 1];
    for (uint32_t d = threadIdx.x; d < a.draws; d += THREADS) {
        const size_t at = static_cast<size_t>(row) * a.draws + d;
        const double u = a.uniforms[at] * total;
        uint32_t chunk = 0, high = final_chunk;
        while (chunk < high) {
            const uint32_t middle = (chunk + high) / 2;
            if (u < until[middle]) high = middle;
            else chunk = middle + 1;
        }
        // What rounding leaves over is of the last entry that has any mass.
        uint32_t id = chunk * length;
        double sum = chunk == 0 ? 0.0 : until[chunk - 1];
        for (uint32_t i = id; i < a.v && i < (chunk + 1) * length; ++i) {
            const float mass = expf((t[i] - max) * inverse);
            if (mass == 0.0f) continue;
            id = i;
            sum += static_cast<double>(mass);
            if (u < sum) break;
        }
        a.ids[at] = id;
    }
}

KERNEL(head_draw, THREADS, Draw, draw)

struct Top {
    uint32_t* ids;   // [N, K], ascending
    float* logits;   // [N, K]
    Logits t;
    uint32_t v, k;
};

// Bits whose order as integers is that of the floats.
__device__ inline uint32_t ordered(float x) {
#ifdef ESLM_EMULATED
    const uint32_t bits = emulator::to_bits(x);
#else
    const uint32_t bits = __float_as_uint(x);
#endif
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Exact selection of the K largest, of equal ones the lower ids: a radix select, eight bits a round, then one ordered walk.
__device__ inline void top(const Top& a) {
    constexpr int WARPS = THREADS / WARP;
    __shared__ uint32_t counts[256], found[2], before[WARPS + 1];
    const uint32_t row = blockIdx.x, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const float* t = a.t.row(row);
    uint32_t prefix = 0, left = a.k;  // the K-th largest begins with `prefix`; so many of those that do are taken
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (uint32_t i = threadIdx.x; i < 256; i += THREADS) counts[i] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < a.v; i += THREADS) {
            const uint32_t key = ordered(t[i]);
            if (shift == 24 || key >> (shift + 8) == prefix >> (shift + 8)) atomicAdd(&counts[(key >> shift) & 255], 1u);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            uint32_t digit = 255, above = 0;
            while (above + counts[digit] < left) above += counts[digit--];
            found[0] = prefix | digit << shift;
            found[1] = left - above;
        }
        __syncthreads();
        prefix = found[0], left = found[1];
    }
    // `left` of those equal to the K-th are taken, the first ones; every id is visited in order.
    uint32_t taken = 0, equals = 0;
    for (uint32_t start = 0; start < a.v; start += THREADS) {
        const uint32_t i = start + threadIdx.x;
        const bool inside = i < a.v;
        const uint32_t key = inside ? ordered(t[i]) : 0;
        const bool equal = inside && key == prefix;
        // How many equal ones come before this one, then how many that are taken.
        const unsigned same = __ballot_sync(ALL_LANES, equal);
        if (lane == 0) before[warp] = __popc(same);
        __syncthreads();
        uint32_t rank = equals + __popc(same & ((1u << lane) - 1)), all_equal = 0;
        for (uint32_t w = 0; w < WARPS; ++w) {
            if (w < warp) rank += before[w];
            all_equal += before[w];
        }
        __syncthreads();
        const bool take = inside && (key > prefix || (equal && rank < left));
        const unsigned chosen = __ballot_sync(ALL_LANES, take);
        if (lane == 0) before[warp] = __popc(chosen);
        __syncthreads();
        uint32_t place = taken + __popc(chosen & ((1u << lane) - 1)), all_taken = 0;
        for (uint32_t w = 0; w < WARPS; ++w) {
            if (w < warp) place += before[w];
            all_taken += before[w];
        }
        __syncthreads();
        if (take) {
            a.ids[static_cast<size_t>(row) * a.k + place] = i;
            a.logits[static_cast<size_t>(row) * a.k + place] = t[i];
        }
        taken += all_taken, equals += all_equal;
    }
}

KERNEL(head_top, THREADS, Top, top)
