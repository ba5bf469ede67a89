// What several processes need of a GPU: the sum of what they have of a piece, in the order of a tree, where the piece is
// owned; and copies of many pieces at once.
#include "common.cuh"

struct Sum {
    float* own;           // this process's part, and then the sum
    const float* others;  // [size - 1, n]: the parts of the other processes, in their order
    uint64_t n;
    uint32_t rank;  // this process's place in that order
    uint32_t size;
};

// A binary counter carries: trees of equal height join at once, and what is left joins from the right.
__device__ inline void sum(const Sum& a) {
    const uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= a.n) return;
    float pile[32];
    uint32_t top = 0;
    for (uint32_t r = 0; r < a.size; ++r) {
        const uint64_t row = r < a.rank ? r : r - 1;
        float x = r == a.rank ? a.own[i] : a.others[row * a.n + i];
        for (uint32_t full = r; full & 1; full >>= 1) x = pile[--top] + x;
        pile[top++] = x;
    }
    while (top > 1) {
        --top;
        pile[top - 1] = pile[top - 1] + pile[top];
    }
    a.own[i] = pile[0];
}

KERNEL(tree_sum, 256, Sum, sum)

struct Copies {
    const uint64_t* table;  // [blocks in y, 3]: from where, to where, how many
};

__device__ inline void copy(const Copies& a) {
    const uint64_t* row = a.table + 3 * static_cast<uint64_t>(blockIdx.y);
    const float* from = reinterpret_cast<const float*>(row[0]);
    float* to = reinterpret_cast<float*>(row[1]);
    const uint64_t stride = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < row[2]; i += stride) {
        to[i] = from[i];
    }
}

KERNEL(copy_many, 256, Copies, copy)
