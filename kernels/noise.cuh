// Standard normals as a pure function of (seed, replica, particle id, step): the twin of src/noise.rs, function by
// function.
//
// Only integer operations and correctly rounded +, -, *, fma and sqrt, so that nvcc (--fmad=false), g++
// (-ffp-contract=off) and Rust give the same bits. Plain C++: it also compiles for the host.
#pragma once

#include "lane.cuh"

struct Block {
    unsigned word[4];
};
struct Normals {
    float xi[4];
};

// Philox4x32-10: ten rounds over counter with key.
DIFFUSIM_FN Block philox(Block c, unsigned key0, unsigned key1) {
    for (int round = 0; round < 10; round++) {
        unsigned long long p0 = 0xD2511F53ull * c.word[0], p1 = 0xCD9E8D57ull * c.word[2];
        c = Block{{(unsigned)(p1 >> 32) ^ c.word[1] ^ key0, (unsigned)p1, (unsigned)(p0 >> 32) ^ c.word[3] ^ key1,
                   (unsigned)p0}};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return c;
}

// sqrt(-2 ln u), u = (word + 1/2)/2^32 in (0, 1].
DIFFUSIM_FN float radius(unsigned word) {
    const unsigned sqrt_half = 0x3F3504F3u, one = 0x3F800000u;
    float u = fused(word_to_float(word), 1.0f / 4294967296.0f, 0.5f / 4294967296.0f);
    unsigned bits = from_float(u) + (one - sqrt_half); // u = 2^e (1 + f), the mantissa over [sqrt(1/2), sqrt(2))
    float e = into_float((bits >> 23) ^ 0x4B000000u) - (8388608.0f + 127.0f);
    float f = into_float((bits & 0x007FFFFFu) + sqrt_half) - 1.0f;
    float z = f * f;
    float p = 7.0376836e-2f;
    p = fused(p, f, -1.151461e-1f);
    p = fused(p, f, 1.1676998e-1f);
    p = fused(p, f, -1.2420141e-1f);
    p = fused(p, f, 1.4249322e-1f);
    p = fused(p, f, -1.6668057e-1f);
    p = fused(p, f, 2.0000714e-1f);
    p = fused(p, f, -2.4999994e-1f);
    p = fused(p, f, 3.333333e-1f);
    p = fused(e, -2.1219444e-4f, f * (z * p));
    p = fused(z, -0.5f, p);
    float ln = fused(e, 0.6933594f, f + p);
    return root(ln * -2.0f);
}

// Cosine and sine of a uniform angle: the top bits choose the quadrant, the others the angle in [-pi/4, pi/4].
DIFFUSIM_FN void direction(unsigned word, float* cosine, float* sine) {
    const float quarter = 0.785398163397448309616f;
    float t = fused(word_to_float(word << 2), 2.0f * quarter / 4294967296.0f, -quarter);
    float z = t * t;
    float s = fused(z, -1.9515296e-4f, 8.332161e-3f);
    s = fused(s, z, -1.6666655e-1f);
    s = fused(s * z, t, t);
    float c = fused(z, 2.4433157e-5f, -1.3887316e-3f);
    c = fused(c, z, 4.1666646e-2f);
    c = fused(c * z, z, fused(z, -0.5f, 1.0f));
    unsigned quadrant = word >> 30;
    unsigned swap = (from_float(s) ^ from_float(c)) & (0u - (quadrant & 1u));
    *cosine = into_float((from_float(c) ^ swap) ^ (((quadrant + 1u) & 2u) << 30));
    *sine = into_float((from_float(s) ^ swap) ^ ((quadrant & 2u) << 30));
}

// The four standard normals of one particle at one step: x, y, z and a spare.
DIFFUSIM_FN Normals normals(unsigned long long seed, unsigned replica, unsigned particle, unsigned long long step) {
    Block b = philox(Block{{(unsigned)step, (unsigned)(step >> 32), particle, replica}}, (unsigned)seed,
                     (unsigned)(seed >> 32));
    float r = radius(b.word[0]), s = radius(b.word[2]), c0, s0, c1, s1;
    direction(b.word[1], &c0, &s0);
    direction(b.word[3], &c1, &s1);
    return Normals{{r * c0, r * s0, s * c1, s * s1}};
}

// A uniform number in (0, 1) of one replica at one step, from the block of a particle that no system has.
DIFFUSIM_FN double uniform(unsigned long long seed, unsigned replica, unsigned long long step) {
    Block b =
        philox(Block{{(unsigned)step, (unsigned)(step >> 32), ~0u, replica}}, (unsigned)seed, (unsigned)(seed >> 32));
    return ((double)b.word[0] + 0.5) / 4294967296.0;
}
