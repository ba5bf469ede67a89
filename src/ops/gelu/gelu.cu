// GELU in its tanh form on a GPU, four numbers a thread.
#include "gelu.cuh"

struct Gelu {
    void* y;        // forward: the output; backward: dy, which becomes the gradient with respect to x
    const void* x;  // [n]
    uint64_t n;
};

struct Value {
    static constexpr bool reads = false;
    __device__ static float at(float, float x) { return gelu::value(x); }
};

struct Gradient {
    static constexpr bool reads = true;
    __device__ static float at(float dy, float x) { return dy * gelu::slope(x); }
};

template <typename T, typename Of>
__device__ inline void elementwise(const Gelu& a) {
    const uint64_t first = (static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
    T* y = static_cast<T*>(a.y);
    const T* x = static_cast<const T*>(a.x);
    if (first + 4 <= a.n) {
        float at[4], dy[4] = {0, 0, 0, 0};
        load<4>(at, x + first);
        if constexpr (Of::reads) load<4>(dy, y + first);
        for (int v = 0; v < 4; ++v) at[v] = Of::at(dy[v], at[v]);
        store<4>(y + first, at);
        return;
    }
    for (uint64_t i = first; i < a.n; ++i) store(y + i, Of::at(Of::reads ? load(y + i) : 0.0f, load(x + i)));
}

KERNEL(gelu_forward_f32, 256, Gelu, elementwise<float, Value>)
KERNEL(gelu_forward_bf16, 256, Gelu, elementwise<bf16, Value>)
KERNEL(gelu_backward_f32, 256, Gelu, elementwise<float, Gradient>)
KERNEL(gelu_backward_bf16, 256, Gelu, elementwise<bf16, Gradient>)
