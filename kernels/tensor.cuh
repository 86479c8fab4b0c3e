// Products of a matrix of half precision with one of single precision on tensor cores, which take both factors in half
// precision, multiply them exactly and add in single precision.
//
// What is multiplied is split in two halves, x = high + low / SPLIT, which keeps 22 bits of it and more: 2^-36 of 1
// where it is small. Beyond 65504, where half precision ends, the product is not a number.
//
// How a tensor core rounds its sums is not specified: those that Fasi, Higham, Mikaitis & Pranesh (PeerJ Comput. Sci.
// 7, e330, 2021) measured align a few terms with the largest of them and cut off what is below, fewer bits on Volta
// than later. So this is the one place whose bits differ from one kind of GPU to another.
#pragma once

#include "lane.cuh"

// The bits of a number of half precision.
typedef unsigned short Half;

const float SPLIT = 2048.0f;

// Depth of a tile: terms that are added at once.
const unsigned DEPTH = 16;
// Rows and columns of matrices are padded to a multiple of this.
const unsigned PADDING = 32;
// What a row of weights is longer, so that the rows of a tile begin in different banks.
const unsigned SKEW = 8;

DIFFUSIM_FN unsigned padded(unsigned n) { return (n + PADDING - 1) / PADDING * PADDING; }

#if defined(__CUDACC__) // else tests/simt/simt.h has the same
DIFFUSIM_FN Half into_half(float x) {
    Half half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
    return half;
}
DIFFUSIM_FN float from_half(Half half) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
    return x;
}

// A warp's tiles: DEPTH columns of ROWS weights, DEPTH rows of COLUMNS numbers, and their ROWS x COLUMNS sums. Weights
// lie by columns where TRANSPOSED, all else by rows; `pitch` is from one to the next. All lanes call together.
template <unsigned ROWS, unsigned COLUMNS, bool TRANSPOSED>
struct Tensor;

#define DIFFUSIM_EIGHT(KIND, x)                                                                                        \
    KIND(x[0]), KIND(x[1]), KIND(x[2]), KIND(x[3]), KIND(x[4]), KIND(x[5]), KIND(x[6]), KIND(x[7])
#define DIFFUSIM_TENSOR(ROWS, COLUMNS, TRANSPOSED, SHAPE, LAYOUT)                                                      \
    template <>                                                                                                        \
    struct Tensor<ROWS, COLUMNS, TRANSPOSED> {                                                                         \
        struct Weights {                                                                                               \
            unsigned x[8];                                                                                             \
        };                                                                                                             \
        struct Numbers {                                                                                               \
            unsigned x[8];                                                                                             \
        };                                                                                                             \
        struct Sums {                                                                                                  \
            float x[8];                                                                                                \
        };                                                                                                             \
        static DIFFUSIM_MEMBER Weights weights(const Half* at, unsigned pitch) {                                       \
            Weights w;                                                                                                 \
            asm volatile("wmma.load.a.sync.aligned." LAYOUT "." SHAPE ".f16 {%0,%1,%2,%3,%4,%5,%6,%7}, [%8], %9;"      \
                         : DIFFUSIM_EIGHT("=r", w.x)                                                                   \
                         : "l"(at), "r"(pitch)                                                                         \
                         : "memory");                                                                                  \
            return w;                                                                                                  \
        }                                                                                                              \
        static DIFFUSIM_MEMBER Numbers numbers(const Half* at, unsigned pitch) {                                       \
            Numbers n;                                                                                                 \
            asm volatile("wmma.load.b.sync.aligned.row." SHAPE ".f16 {%0,%1,%2,%3,%4,%5,%6,%7}, [%8], %9;"             \
                         : DIFFUSIM_EIGHT("=r", n.x)                                                                   \
                         : "l"(at), "r"(pitch)                                                                         \
                         : "memory");                                                                                  \
            return n;                                                                                                  \
        }                                                                                                              \
        /* sums += w n */                                                                                              \
        static DIFFUSIM_MEMBER void add(Sums& sums, const Weights& w, const Numbers& n) {                              \
            asm("wmma.mma.sync.aligned." LAYOUT ".row." SHAPE ".f32.f32 {%0,%1,%2,%3,%4,%5,%6,%7}, "                   \
                "{%8,%9,%10,%11,%12,%13,%14,%15}, {%16,%17,%18,%19,%20,%21,%22,%23}, "                                 \
                "{%0,%1,%2,%3,%4,%5,%6,%7};"                                                                           \
                : DIFFUSIM_EIGHT("+f", sums.x)                                                                         \
                : DIFFUSIM_EIGHT("r", w.x), DIFFUSIM_EIGHT("r", n.x));                                                 \
        }                                                                                                              \
        static DIFFUSIM_MEMBER void store(const Sums& sums, float* at, unsigned pitch) {                               \
            asm volatile("wmma.store.d.sync.aligned.row." SHAPE ".f32 [%0], {%1,%2,%3,%4,%5,%6,%7,%8}, %9;"            \
                         :                                                                                             \
                         : "l"(at), DIFFUSIM_EIGHT("f", sums.x), "r"(pitch)                                            \
                         : "memory");                                                                                  \
        }                                                                                                              \
    }
DIFFUSIM_TENSOR(32, 8, false, "m32n8k16", "row");
DIFFUSIM_TENSOR(32, 8, true, "m32n8k16", "col");
DIFFUSIM_TENSOR(16, 16, false, "m16n16k16", "row");
DIFFUSIM_TENSOR(16, 16, true, "m16n16k16", "col");
#undef DIFFUSIM_TENSOR
#undef DIFFUSIM_EIGHT
#endif

// Numbers of FRAMES frames, [n][PITCH], split in two.
template <unsigned FRAMES>
struct Split {
    // A tile's rows begin in different banks.
    static const unsigned PITCH = FRAMES % 32 == 0 ? FRAMES + SKEW : FRAMES;
    Half* high;
    Half* low;

    DIFFUSIM_MEMBER void set(unsigned row, unsigned frame, float x) const {
        const Half half = into_half(x);
        high[row * PITCH + frame] = half;
        low[row * PITCH + frame] = into_half((x - from_half(half)) * SPLIT);
    }
};

// sums[r][frame] = sum over i < n_terms of weight(r, i) x[i][frame] for the `n_rows` rows, by the warps of a block.
// weight(r, i) is at r * pitch + i or, if TRANSPOSED, at i * pitch + r. Both numbers are padded; `sums` has Split's
// pitch.
template <unsigned FRAMES, bool TRANSPOSED>
DIFFUSIM_FN void multiply(const Half* weight, unsigned pitch, unsigned n_rows, unsigned n_terms, Split<FRAMES> x,
                          float* sums) {
    const unsigned COLUMNS = FRAMES < 16 ? 8 : 16, ROWS = 256 / COLUMNS, TILES = FRAMES / COLUMNS;
    const unsigned PITCH = Split<FRAMES>::PITCH;
    typedef Tensor<ROWS, COLUMNS, TRANSPOSED> Tile;
    for (unsigned r = threadIdx.x / 32 * ROWS; r < n_rows; r += blockDim.x / 32 * ROWS) {
        typename Tile::Sums high[TILES] = {}, low[TILES] = {};
        for (unsigned i = 0; i < n_terms; i += DEPTH) {
            const unsigned at = TRANSPOSED ? i * pitch + r : r * pitch + i;
            const typename Tile::Weights w = Tile::weights(weight + at, pitch);
            for (unsigned t = 0; t < TILES; t++) {
                Tile::add(high[t], w, Tile::numbers(x.high + i * PITCH + t * COLUMNS, PITCH));
                Tile::add(low[t], w, Tile::numbers(x.low + i * PITCH + t * COLUMNS, PITCH));
            }
        }
        for (unsigned t = 0; t < TILES; t++) {
            for (unsigned k = 0; k < 8; k++)
                high[t].x[k] = fused(low[t].x[k], 1.0f / SPLIT, high[t].x[k]);
            Tile::store(high[t], sums + r * PITCH + t * COLUMNS, PITCH);
        }
    }
}
