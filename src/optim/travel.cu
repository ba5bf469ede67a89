// The sum of what processes have of a piece, in the order of a tree, where the piece is owned.
#include "common.cuh"

struct Sum {
    float* own;           // this process's part, and then the sum
    const float* others;  // [size - 1, n]: the parts of the other processes, by rank
    uint64_t n;
    uint32_t rank;
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
