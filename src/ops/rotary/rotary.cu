// Rotary positions on a GPU, in place: a thread turns V pairs of a head. Angles come as cosines and sines in f32, whatever
// the format of the heads.
#include "common.cuh"

struct Rotary {
    void* x;               // [N, W]
    const float* cos;      // [positions, half]
    const float* sin;      // [positions, half]
    const uint32_t* rows;  // [N]: which rows of sequences these are; null: all, in order
    uint32_t n, width;     // N, W
    uint32_t column;       // at which the first head begins
    uint32_t heads, dim;   // so many, of that width
    uint32_t half;         // pairs of a head; columns from 2 half on stay
    uint32_t context;      // rows of a sequence
    int32_t shift;         // from the position in a sequence to the row of cos and sin
    float sign;            // -1 turns back
};

template <typename T, int V>
__device__ inline void rotate_by(const Rotary& a) {
    const uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const uint32_t across = a.half / V, pair = static_cast<uint32_t>(i % across) * V;
    const uint64_t which = i / across;  // of all heads
    const uint32_t head = static_cast<uint32_t>(which % a.heads);
    const uint64_t row = which / a.heads;
    if (row >= a.n) return;
    const uint32_t position = (a.rows != nullptr ? a.rows[row] : static_cast<uint32_t>(row)) % a.context + a.shift;
    T* low = static_cast<T*>(a.x) + row * a.width + a.column + static_cast<size_t>(head) * a.dim + pair;
    T* high = low + a.half;
    const size_t angle = static_cast<size_t>(position) * a.half + pair;
    float x[V], y[V], c[V], s[V];
    load<V>(x, low), load<V>(y, high), load<V>(c, a.cos + angle), load<V>(s, a.sin + angle);
    for (int v = 0; v < V; ++v) {
        const float first = x[v], second = y[v], sine = a.sign * s[v];
        x[v] = first * c[v] - second * sine;
        y[v] = second * c[v] + first * sine;
    }
    store<V>(low, x), store<V>(high, y);
}

KERNEL(rotary_f32, 256, Rotary, rotate_by<float, 1>)
KERNEL(rotary_bf16, 256, Rotary, rotate_by<bf16, 1>)
// Where every head, half and row begins at a multiple of four numbers.
KERNEL(rotary_fours_f32, 256, Rotary, rotate_by<float, 4>)
KERNEL(rotary_fours_bf16, 256, Rotary, rotate_by<bf16, 4>)
