// Tensor cores: products of bf16 tiles with f32 sums, and the loads of their operands from shared memory.
//
// Layouts are those of PTX's mma.m16n8k16: with g = lane / 4 and t = lane % 4,
//   A [16, 16]: a[0] = (g, 2t..2t+1), a[1] = (g + 8, 2t..), a[2] = (g, 2t + 8..), a[3] = (g + 8, 2t + 8..)
//   B [16, 8]:  b[0] = (2t..2t+1, g), b[1] = (2t + 8..2t + 9, g)
//   C [16, 8]:  c[0], c[1] = (g, 2t), (g, 2t + 1), c[2], c[3] = (g + 8, 2t), (g + 8, 2t + 1)
// so the C of two neighbouring products, packed, is the A of the next: probabilities never leave registers.
#pragma once
#include "common.cuh"

// c += a · b.
__device__ inline void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef ESLM_EMULATED
    struct Factors {
        const uint32_t *a, *b;
    } mine{a, b};
    Factors** all = emulator::exchange(&mine);
    auto half = [](uint32_t pair, int high) { return emulator::from_bits((high ? pair >> 16 : pair & 0xffff) << 16); };
    const int g = emulator::lane() / 4, t = emulator::lane() % 4;
    for (int i = 0; i < 4; ++i) {
        const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
        for (int k = 0; k < 16; ++k) {
            const uint32_t left = all[4 * (row % 8) + (k % 8) / 2]->a[row / 8 + 2 * (k / 8)];
            const uint32_t right = all[4 * column + (k % 8) / 2]->b[k / 8];
            c[i] += half(left, k % 2) * half(right, k % 2);
        }
    }
    __syncwarp();  // the factors have been read
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four 8 x 8 matrices from shared memory: lane l gives the address of row l % 8 of matrix l / 8, 16 bytes each, and
// receives of matrix i the elements (l / 4, 2 (l % 4)) and the next, or with `Transposed` (2 (l % 4), l / 4) and the one
// below.
template <bool Transposed>
__device__ inline void load_matrices(uint32_t (&r)[4], const bf16* row) {
#ifdef ESLM_EMULATED
    const bf16* rows[emulator::LANES];
    const bf16** all = emulator::exchange(row);
    for (unsigned l = 0; l < emulator::LANES; ++l) rows[l] = all[l];
    const int g = emulator::lane() / 4, t = emulator::lane() % 4;
    for (int i = 0; i < 4; ++i) {
        r[i] = Transposed ? pack(rows[8 * i + 2 * t][g], rows[8 * i + 2 * t + 1][g])
                          : pack(rows[8 * i + g][2 * t], rows[8 * i + g][2 * t + 1]);
    }
#else
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    if constexpr (Transposed) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address));
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address));
    }
#endif
}
