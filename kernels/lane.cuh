// Arithmetic that gives the same bits everywhere: the twin of src/lane.rs.
//
// Only integer operations and correctly rounded +, -, *, /, fma and sqrt are used, so that nvcc and NVRTC
// (--fmad=false), g++
// (-ffp-contract=off) and Rust agree to the last bit. Plain C++: it also compiles for the host.
#pragma once

#if defined(__CUDACC__)
#define DIFFUSIM_FN __device__ __forceinline__
#define DIFFUSIM_MEMBER __device__ __forceinline__
#define DIFFUSIM_CALL __device__ __noinline__
#define DIFFUSIM_UNROLL _Pragma("unroll 8")
DIFFUSIM_FN float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DIFFUSIM_FN float root(float a) { return __fsqrt_rn(a); }
DIFFUSIM_FN double root(double a) { return __dsqrt_rn(a); }
DIFFUSIM_FN unsigned ones(unsigned w) { return __popc(w); }
DIFFUSIM_FN float into_float(unsigned w) { return __uint_as_float(w); }
DIFFUSIM_FN unsigned from_float(float x) { return __float_as_uint(x); }
DIFFUSIM_FN unsigned long long from_double(double x) { return __double_as_longlong(x); }
DIFFUSIM_FN double into_double(unsigned long long w) { return __longlong_as_double(w); }
#else
#define DIFFUSIM_FN static inline
#define DIFFUSIM_MEMBER inline
#define DIFFUSIM_CALL static
#define DIFFUSIM_UNROLL
DIFFUSIM_FN float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DIFFUSIM_FN float root(float a) { return __builtin_sqrtf(a); }
DIFFUSIM_FN double root(double a) { return __builtin_sqrt(a); }
DIFFUSIM_FN unsigned ones(unsigned w) { return __builtin_popcount(w); }
DIFFUSIM_FN float into_float(unsigned w) {
    float x;
    __builtin_memcpy(&x, &w, sizeof x);
    return x;
}
DIFFUSIM_FN unsigned from_float(float x) {
    unsigned w;
    __builtin_memcpy(&w, &x, sizeof w);
    return w;
}
DIFFUSIM_FN unsigned long long from_double(double x) {
    unsigned long long w;
    __builtin_memcpy(&w, &x, sizeof w);
    return w;
}
DIFFUSIM_FN double into_double(unsigned long long w) {
    double x;
    __builtin_memcpy(&x, &w, sizeof x);
    return x;
}
#endif

// The word as a number, rounded once to nearest.
DIFFUSIM_FN float word_to_float(unsigned w) {
    const float shift = 8388608.0f; // 2^23: an integer below it goes into the low mantissa bits
    float high = into_float((w >> 16) ^ 0x4B000000u) - shift;
    float low = into_float((w & 0xFFFFu) ^ 0x4B000000u) - shift;
    return fused(high, 65536.0f, low);
}

// Exponential within 1 ulp, saturating beyond +-87: reduction to |r| <= ln(2)/2 and a polynomial of degree 6.
DIFFUSIM_FN float exp_single(float x) {
    float clamped = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x;
    const float round = 12582912.0f; // 1.5 * 2^23
    float shifted = fused(clamped, 1.44269504f, round);
    float n = shifted - round;
    float r = fused(n, -0.6933594f, clamped);
    r = fused(n, 2.1219444e-4f, r);
    float p = 1.9875691e-4f;
    p = fused(p, r, 1.3982e-3f);
    p = fused(p, r, 8.333452e-3f);
    p = fused(p, r, 4.1665796e-2f);
    p = fused(p, r, 1.6666665e-1f);
    p = fused(p, r, 0.5f);
    p = fused(p, r * r, r) + 1.0f;
    return into_float(from_float(p) + (from_float(shifted) << 23));
}

// Exponential in double precision within 2 ulp, 0 below -708 and infinite beyond 709: x = n ln 2 + r and the series of
// exp(r).
DIFFUSIM_FN double exp_double(double x) {
    if (x < -708.0)
        return 0.0;
    if (x > 709.0)
        return into_double(0x7FF0000000000000ull);
    const double round = 6755399441055744.0; // 1.5 * 2^52
    double shifted = x * 1.4426950408889634 + round;
    double n = shifted - round;
    double r = (x - n * 0.6931471803691238) - n * 1.9082149292705877e-10;
    double p = 1.0 / 6227020800.0; // 1/13!
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * (r * r) + r;
    return (p + 1.0) * into_double((from_double(shifted) << 52) + 0x3FF0000000000000ull);
}

// Natural logarithm in double precision of a positive normal number, within 2 ulp: x = 2^e m with m in
// [sqrt(1/2), sqrt(2)) and the series of 2 artanh((m - 1)/(m + 1)). What is not a number or infinite stays so.
DIFFUSIM_FN double ln_double(double x) {
    if (!(x <= 1.7976931348623157e308))
        return x;
    const unsigned long long sqrt_half = 0x3FE6A09E667F3BCDull, one = 0x3FF0000000000000ull;
    unsigned long long bits = from_double(x) + (one - sqrt_half);
    double e = (double)((int)(bits >> 52) - 1023);
    double m = into_double((bits & 0x000FFFFFFFFFFFFFull) + sqrt_half);
    double s = (m - 1.0) / (m + 1.0), z = s * s;
    double p = 1.0 / 23.0;
    p = p * z + 1.0 / 21.0;
    p = p * z + 1.0 / 19.0;
    p = p * z + 1.0 / 17.0;
    p = p * z + 1.0 / 15.0;
    p = p * z + 1.0 / 13.0;
    p = p * z + 1.0 / 11.0;
    p = p * z + 1.0 / 9.0;
    p = p * z + 1.0 / 7.0;
    p = p * z + 1.0 / 5.0;
    p = p * z + 1.0 / 3.0;
    p = (s + s) * (p * z) + e * 1.9082149292705877e-10;
    return e * 0.6931471803691238 + ((s + s) + p);
}
