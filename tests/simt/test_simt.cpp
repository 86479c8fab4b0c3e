// The host's CUDA by itself: barriers, warps, shared memory, tensor cores, and what it says about broken kernels. The
// first argument names a broken kernel to run, which must end the program.
#include "simt.h"

#include "../../kernels/tensor.cuh"

#include <string>

namespace {

int failures = 0;

void expect(bool holds, const char* what) {
    if (!holds) {
        std::fprintf(stderr, "%s\n", what);
        failures++;
    }
}

// Sum of a block through warps and shared memory, then over blocks with an atomic.
__global__ void add_up(const int* values, int n, int* total) {
    SHARED_MEMORY(shared);
    int* of_warps = reinterpret_cast<int*>(shared);
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    int value = i < n ? values[i] : 0;
    for (unsigned by = 16; by > 0; by /= 2)
        value += __shfl_down_sync(~0u, value, by);
    if (threadIdx.x % 32 == 0)
        of_warps[threadIdx.x / 32] = value;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (unsigned warp = 1; warp < blockDim.x / 32; warp++)
            value += of_warps[warp];
        atomicAdd(total, value);
    }
}

// What lanes see of each other, where some of them have left and the others are in two groups.
__global__ void look_around(unsigned* seen) {
    const unsigned lane = threadIdx.x;
    if (lane >= 24)
        return;
    const unsigned group = lane < 8 ? 0xFFu : 0xFFFF00u;
    const unsigned odd = __ballot_sync(group, lane % 2), across = __shfl_xor_sync(group, lane, 1);
    const unsigned first = __shfl_sync(group, lane, lane < 8 ? 3 : 9), before = __shfl_up_sync(group, lane, 1);
    seen[lane] = odd ^ across << 24;
    seen[32 + lane] = first + 100 * before;
    __syncwarp(group);
    seen[64 + lane] = static_cast<unsigned>(__syncthreads_count(lane % 3 == 0));
}

__global__ void half_at_a_barrier(int* out) {
    if (threadIdx.x < 16)
        __syncthreads();
    else
        out[threadIdx.x] = __shfl_sync(~0u, 1, 0); // of lanes that wait elsewhere
}

__global__ void not_in_its_mask(int* out) { out[threadIdx.x] = __shfl_sync(1u, 1, 0); }

__global__ void no_barrier(int* out) {
    SHARED_MEMORY(shared);
    int* place = reinterpret_cast<int*>(shared);
    place[threadIdx.x] = static_cast<int>(threadIdx.x);
    out[threadIdx.x] = place[blockDim.x - 1 - threadIdx.x];
}

// [n_rows][n_terms] weights by numbers of FRAMES frames, all in memory of its own.
template <unsigned FRAMES, bool TRANSPOSED>
__global__ void multiply_all(const Half* weights, unsigned pitch, unsigned n_rows, unsigned n_terms, const float* x,
                             float* sums) {
    SHARED_MEMORY(shared);
    Half* high = reinterpret_cast<Half*>(shared);
    const Split<FRAMES> split = {high, high + n_terms * Split<FRAMES>::PITCH};
    for (unsigned i = threadIdx.x; i < n_terms * FRAMES; i += blockDim.x)
        split.set(i / FRAMES, i % FRAMES, x[i]);
    __syncthreads();
    multiply<FRAMES, TRANSPOSED>(weights, pitch, n_rows, n_terms, split, sums);
}

// Tiles that are not where tiles may be.
__global__ void unaligned_tile(int* out) { Tensor<16, 16, false>::weights(reinterpret_cast<Half*>(out) + 8, 16); }

__global__ void unlike_tiles(int* out) {
    Tensor<16, 16, false>::weights(reinterpret_cast<Half*>(out) + threadIdx.x / 16 * 16, 16);
}

template <class... Parameters, class... Arguments>
void run(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, std::size_t shared, Arguments... arguments) {
    simt::launch([&] { kernel(arguments...); }, {blocks}, {threads}, shared);
}

// Numbers that repeat.
struct Random {
    std::uint64_t state = 88172645463325252ull;

    double operator()() { // -1 to 1
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return static_cast<double>(static_cast<std::int64_t>(state)) / 9223372036854775808.0;
    }
};

// What a product of matrices is against double precision, relative to the sum of its terms' sizes.
template <unsigned FRAMES, bool TRANSPOSED>
double error_of_products() {
    const unsigned n_rows = 96, n_terms = 64, pitch = (TRANSPOSED ? n_rows : n_terms) + SKEW;
    Random random;
    std::vector<float> x(n_terms * FRAMES), sums(n_rows * Split<FRAMES>::PITCH);
    for (float& number : x)
        number = static_cast<float>(random() * std::exp2(14 * random() - 6));
    alignas(32) static Half weights[(96 + SKEW) * 96];
    for (Half& weight : weights)
        weight = into_half(static_cast<float>(30000 * random()));
    float* aligned = nullptr;
    if (posix_memalign(reinterpret_cast<void**>(&aligned), 32, sums.size() * sizeof(float)))
        return INFINITY;
    run(multiply_all<FRAMES, TRANSPOSED>, 1, 160, 4 * n_terms * Split<FRAMES>::PITCH, weights, pitch, n_rows, n_terms,
        x.data(), aligned);
    double largest = 0;
    for (unsigned row = 0; row < n_rows; row++)
        for (unsigned frame = 0; frame < FRAMES; frame++) {
            double sum = 0, size = 0;
            for (unsigned i = 0; i < n_terms; i++) {
                const double weight = from_half(weights[TRANSPOSED ? i * pitch + row : row * pitch + i]);
                sum += weight * x[i * FRAMES + frame];
                size += std::fabs(weight * x[i * FRAMES + frame]);
            }
            const double error = std::fabs(aligned[row * Split<FRAMES>::PITCH + frame] - sum) / size;
            largest = error > largest || std::isnan(error) ? error : largest;
        }
    std::free(aligned);
    return largest;
}

void tensor_cores() {
    for (unsigned half = 0; half < 0x10000; half++) {
        const float x = from_half(static_cast<Half>(half));
        expect(std::isnan(x) || into_half(x) == half, "a half is not itself");
        const float beyond = from_half(static_cast<Half>(half + 1));
        if (half % 0x8000 >= 0x7BFF)
            continue;
        // Ties go to even.
        const float middle = 0.5f * (x + beyond);
        expect(into_half(middle) == half + half % 2, "the middle of two halves is rounded to the odd one");
        expect(into_half(std::nextafter(middle, 0.0f)) == half, "not rounded to the nearest half");
        expect(into_half(std::nextafter(middle, 2 * middle)) == half + 1, "not rounded to the nearest half");
    }
    expect(into_half(65519.9f) == 0x7BFF && into_half(65520.0f) == 0x7C00 && into_half(-1e9f) == 0xFC00, "no infinity");

    const double terms[] = {1.0, std::exp2(-24), std::exp2(-24), -std::exp2(-24)}; // all below the last bit of 1
    expect(simt::cut_off_sum(terms, 4) == 1.0f, "bits below the last were kept");
    const double more[] = {1.5, 0.75, -std::exp2(-23)}; // 2.25 less a bit that 2.25 does not have
    expect(simt::cut_off_sum(more, 3) == std::nextafter(2.25f, 0.0f), "a sum was not cut off");
    const double wild[] = {1.0, INFINITY};
    expect(std::isinf(simt::cut_off_sum(wild, 2)), "infinity was lost");

    // Of 64 terms, each cut off by up to 1.2e-7 of the sum so far.
    const double limit = 1e-6;
    expect(error_of_products<8, false>() < limit && error_of_products<8, true>() < limit,
           "8 frames: inaccurate products");
    expect(error_of_products<32, false>() < limit && error_of_products<32, true>() < limit,
           "32 frames: inaccurate products");
}

} // namespace

int main(int argc, char** argv) {
    const std::string broken = argc > 1 ? argv[1] : "";
    int out[64] = {};
    if (broken == "half_at_a_barrier")
        run(half_at_a_barrier, 1, 32, 0, out);
    if (broken == "not_in_its_mask")
        run(not_in_its_mask, 1, 32, 0, out);
    alignas(32) static int tiles[512];
    if (broken == "unaligned_tile")
        run(unaligned_tile, 1, 32, 0, tiles);
    if (broken == "unlike_tiles")
        run(unlike_tiles, 1, 32, 0, tiles);
    if (!broken.empty())
        return 0;
    tensor_cores();

    for (simt::seed() = 0; simt::seed() < 20; simt::seed()++) {
        std::vector<int> values(1000);
        int sum = 0, total = 0;
        for (int i = 0; i < 1000; i++)
            sum += values[i] = i * i % 77;
        run(add_up, 8, 128, 16, values.data(), 1000, &total);
        expect(total == sum, "add_up: wrong sum");

        unsigned seen[96] = {};
        run(look_around, 1, 32, 0, seen);
        for (unsigned lane = 0; lane < 24; lane++) {
            const unsigned odd = 0xAAAAAAu & (lane < 8 ? 0xFFu : 0xFFFF00u), first = lane < 8 ? 0 : 8;
            expect(seen[lane] == (odd ^ (lane ^ 1) << 24), "look_around: wrong ballot or xor");
            const unsigned before = lane == first ? lane : lane - 1;
            expect(seen[32 + lane] == (lane < 8 ? 3 : 9) + 100 * before, "look_around: wrong lane");
            expect(seen[64 + lane] == 8, "look_around: wrong count");
        }
    }

    // A missing barrier shows.
    int wrong = 0;
    for (simt::seed() = 0; simt::seed() < 20; simt::seed()++) {
        run(no_barrier, 1, 64, sizeof out, out);
        for (int i = 0; i < 64; i++)
            wrong += out[i] != 63 - i;
    }
    expect(wrong > 0, "no_barrier: went unseen");
    return failures != 0;
}
