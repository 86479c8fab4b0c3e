// The host's CUDA by itself: barriers, warps, shared memory, and what it says about broken kernels. The first argument
// names a broken kernel to run, which must end the program.
#include "simt.h"

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

template <class... Parameters, class... Arguments>
void run(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, std::size_t shared, Arguments... arguments) {
    simt::launch([&] { kernel(arguments...); }, {blocks}, {threads}, shared);
}

} // namespace

int main(int argc, char** argv) {
    const std::string broken = argc > 1 ? argv[1] : "";
    int out[64] = {};
    if (broken == "half_at_a_barrier")
        run(half_at_a_barrier, 1, 32, 0, out);
    if (broken == "not_in_its_mask")
        run(not_in_its_mask, 1, 32, 0, out);
    if (!broken.empty())
        return 0;

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
