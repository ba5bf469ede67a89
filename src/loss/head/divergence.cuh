// Divergences in log space, entry by entry: the twin of src/loss/divergence.rs, where they are derived.
#pragma once
#include "common.cuh"

// An entry's term of D, and g.
struct Term {
    float value, g;
};

// m = share x + (1 - share) y, seen from x and from y.
struct Blend {
    float share, rest;

    __device__ explicit Blend(float of) {
        share = fminf(fmaxf(of, 1e-30f), 1.0f - 1.1920929e-7f);
        rest = 1.0f - share;
    }
    // ln m/x and ln m/y from ln x and ln y.
    __device__ void logs(float x, float y, float& of_x, float& of_y) const {
        const float d = x - y;
        const float high = d >= 0 ? share : rest, low = d >= 0 ? rest : share;
        const float m = logf(high + low * expf(-fabsf(d)));  // relative to the larger of the two
        of_x = d >= 0 ? m : m - d;
        of_y = d >= 0 ? m + d : m;
    }
};

struct ForwardKl {
    __device__ Term at(float a, float b) const {
        const float p = expf(a), q = expf(b);
        return {q * (b - a) + (p - q), p - q};
    }
};

struct ReverseKl {
    __device__ Term at(float a, float b) const {
        const float p = expf(a), q = expf(b), g = p * (a - b);
        return {g - (p - q), g};
    }
};

struct Jsd {
    Blend m;  // the share is the teacher's
    __device__ Term at(float a, float b) const {
        float of_q, of_p;
        m.logs(b, a, of_q, of_p);
        const float g = -m.rest * expf(a) * of_p;
        return {g - m.share * expf(b) * of_q, g};
    }
};

struct SkewKl {
    Blend m;  // the share is the teacher's
    __device__ Term at(float a, float b) const {
        const float p = expf(a), q = expf(b);
        float of_q, of_p;
        m.logs(b, a, of_q, of_p);
        return {m.rest * (p - q) - q * of_q, m.rest * p * (1.0f - expf(-of_q))};
    }
};

struct SkewReverseKl {
    Blend m;  // the share is the student's
    __device__ Term at(float a, float b) const {
        const float p = expf(a), q = expf(b);
        float of_p, of_q;
        m.logs(a, b, of_p, of_q);
        return {-m.rest * (p - q) - p * of_p, p * (m.share * (1.0f - expf(-of_p)) - of_p)};
    }
};

struct TotalVariation {
    __device__ Term at(float a, float b) const {
        const float p = expf(a), q = expf(b), half = a > b ? 0.5f : -0.5f;
        return {0.5f * fabsf(p - q), a == b ? 0.0f : half * p};
    }
};

// The gradient of a row by its logits, over the temperature: g - p G.
template <typename Entry>
__device__ inline float gradient_of(const Entry& entry, float a, float b, float total) {
    return entry.at(a, b).g - expf(a) * total;
}
// p and q both sum to 1, so G is 0.
__device__ inline float gradient_of(const ForwardKl&, float a, float b, float) { return expf(a) - expf(b); }

// Runs `walk` with the formulas of a divergence. The numbers are those of the table in src/loss/divergence.rs, whose tests
// read these lines.
template <typename Walk>
__device__ inline void with_divergence(uint32_t divergence, float share, Walk walk) {
    switch (divergence) {
        case 0: walk(ForwardKl{}); break;
        case 1: walk(ReverseKl{}); break;
        case 2: walk(Jsd{Blend(share)}); break;
        case 3: walk(SkewKl{Blend(share)}); break;
        case 4: walk(SkewReverseKl{Blend(share)}); break;
        case 5: walk(TotalVariation{}); break;
    }
}
