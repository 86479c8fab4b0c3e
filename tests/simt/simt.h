// CUDA on the host: the kernels' own source runs as it is, one fiber per thread of a block, one block after the other.
//
// A fiber runs until it waits at a barrier or ends. Which of the waiting fibers goes on first is drawn from SIMT_SEED,
// so that a missing barrier shows as a wrong number under some seed. Shared memory is poisoned before every block, and
// a barrier that not all threads of a block reach, ended ones aside, ends the program with a message.
//
// Compile with -ffp-contract=off. Under AddressSanitizer fibers switch by swapcontext(), which it knows about;
// elsewhere by a few instructions, a hundred times faster.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define SHARED_MEMORY(name) unsigned char* name = simt::block->shared

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace simt {

constexpr std::size_t STACK = 128 << 10;

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
// What the calling convention lets a function keep across a call, and the place to go on at.
struct Context {
    void* stack_pointer = nullptr;

    void prepare(unsigned char* stack, void (*entry)()) {
        void** top = reinterpret_cast<void**>(stack + STACK);
        *--top = nullptr; // the entry expects a return address, and the stack that belongs to it
        *--top = reinterpret_cast<void*>(entry);
        top -= 6; // registers
        std::memset(top, 0, 6 * sizeof *top);
        stack_pointer = top;
    }
};
extern "C" void simt_switch(void** from, void* to);
asm(R"(
.pushsection .text
.weak simt_switch
.type simt_switch, @function
simt_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size simt_switch, . - simt_switch
.popsection
)");
inline void change(Context& from, Context& to) { simt_switch(&from.stack_pointer, to.stack_pointer); }
#else
struct Context {
    ucontext_t registers;

    void prepare(unsigned char* stack, void (*entry)()) {
        getcontext(&registers);
        registers.uc_stack.ss_sp = stack;
        registers.uc_stack.ss_size = STACK;
        registers.uc_link = nullptr;
        makecontext(&registers, entry, 0);
    }
};
inline void change(Context& from, Context& to) { swapcontext(&from.registers, &to.registers); }
#endif

enum class State { Ready, AtBarrier, AtWarp, Done };

struct Fiber {
    Context context;
    dim3 thread;
    unsigned lane = 0, warp = 0;
    State state = State::Ready;
    int vote = 0;             // what a barrier or a ballot counts
    unsigned mask = 0;        // lanes that a warp operation waits for
    std::uint64_t given = 0;  // value offered to the warp
    std::uint64_t values[32]; // values offered by all lanes, once they have met
    unsigned present = 0;     // lanes that offered one
    unsigned votes = 0;       // lanes that voted
};

struct Block {
    dim3 index, size, grid;
    unsigned char* shared = nullptr;
    std::vector<Fiber> fibers;
    Context scheduler;
    const std::function<void()>* kernel = nullptr;
    int votes = 0; // of the barrier that was passed last
};

inline thread_local Block* block = nullptr;
inline thread_local Fiber* fiber = nullptr;

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "simt: %s in block %u of %u\n", what, block->index.x, block->grid.x);
    std::abort();
}

inline std::uint64_t& seed() {
    static std::uint64_t value = std::getenv("SIMT_SEED") ? std::strtoull(std::getenv("SIMT_SEED"), nullptr, 0) : 0;
    return value;
}

inline void wait(State state) {
    fiber->state = state;
    change(fiber->context, block->scheduler);
}

inline int barrier(int vote) {
    fiber->vote = vote;
    wait(State::AtBarrier);
    return block->votes;
}

// Meet the lanes of `mask` of this warp, offering a value and a vote.
inline void meet(unsigned mask, std::uint64_t given, int vote) {
    if (!(mask >> fiber->lane & 1))
        fail("a lane calls a warp operation whose mask leaves it out");
    fiber->mask = mask;
    fiber->given = given;
    fiber->vote = vote;
    wait(State::AtWarp);
}

// Let go whoever waits for nobody any more; false if all that are left wait for each other.
inline bool release() {
    std::vector<Fiber>& fibers = block->fibers;
    bool any = false;
    unsigned waiting = 0, alive = 0;
    for (const Fiber& f : fibers) {
        alive += f.state != State::Done;
        waiting += f.state == State::AtBarrier;
    }
    if (alive == waiting) {
        block->votes = 0;
        for (Fiber& f : fibers)
            if (f.state == State::AtBarrier) {
                block->votes += f.vote != 0;
                f.state = State::Ready;
                any = true;
            }
        return any;
    }
    for (Fiber& f : fibers) {
        if (f.state != State::AtWarp)
            continue;
        std::vector<Fiber*> met;
        bool complete = true;
        for (std::size_t i = 32 * f.warp; i < fibers.size() && i < 32 * f.warp + 32; i++) {
            Fiber& other = fibers[i];
            if (!(f.mask >> other.lane & 1) || other.state == State::Done)
                continue;
            complete &= other.state == State::AtWarp && other.mask == f.mask;
            met.push_back(&other);
        }
        if (!complete)
            continue;
        for (Fiber* to : met) {
            to->present = to->votes = 0;
            for (Fiber* from : met) {
                to->values[from->lane] = from->given;
                to->present |= 1u << from->lane;
                to->votes |= from->vote ? 1u << from->lane : 0;
            }
        }
        for (Fiber* one : met)
            one->state = State::Ready;
        any = true;
    }
    return any;
}

inline void run_fiber() {
    (*block->kernel)();
    wait(State::Done);
    fail("an ended fiber was woken");
}

// Run `kernel` once for every thread of a grid.
inline void launch(const std::function<void()>& kernel, dim3 grid, dim3 size, std::size_t shared_bytes) {
    const unsigned n = size.x * size.y * size.z;
    const std::unique_ptr<unsigned char[]> stacks(new unsigned char[n * STACK]);
    // Exactly as long as asked for, so that AddressSanitizer sees what lies beyond it.
    void* shared = nullptr;
    if (posix_memalign(&shared, 32, shared_bytes))
        fail("there is no memory");
    Block here;
    here.size = size;
    here.grid = grid;
    here.kernel = &kernel;
    here.shared = static_cast<unsigned char*>(shared);
    here.fibers.resize(n);
    block = &here;
    std::uint64_t random = seed() * 0x9E3779B97F4A7C15ull;
    std::vector<unsigned> order(n);
    for (here.index.x = 0; here.index.x < grid.x; here.index.x++) {
        std::memset(shared, 0xFF, shared_bytes);
        for (unsigned i = 0; i < n; i++) {
            Fiber& f = here.fibers[i];
            f.thread = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
            f.lane = i % 32;
            f.warp = i / 32;
            f.state = State::Ready;
            f.context.prepare(stacks.get() + i * STACK, run_fiber);
            order[i] = i;
        }
        for (unsigned done = 0; done < n;) {
            for (unsigned i = n; random && i > 1; i--) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                std::swap(order[i - 1], order[random % i]);
            }
            for (unsigned i : order) {
                fiber = &here.fibers[i];
                if (fiber->state != State::Ready)
                    continue;
                change(here.scheduler, fiber->context);
                done += fiber->state == State::Done;
            }
            if (done < n && !release())
                fail("some threads wait at a barrier that others do not reach");
        }
    }
    block = nullptr;
    fiber = nullptr;
    std::free(shared);
}

// Call a kernel with the arguments of cuLaunchKernel: one pointer for each.
template <class... Parameters, std::size_t... Index>
void call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<Index...>) {
    kernel(*static_cast<std::remove_reference_t<Parameters>*>(arguments[Index])...);
}
template <class... Parameters>
void launch(void (*kernel)(Parameters...), void** arguments, dim3 grid, dim3 size, std::size_t shared_bytes) {
    launch([&] { call(kernel, arguments, std::index_sequence_for<Parameters...>{}); }, grid, size, shared_bytes);
}

template <class T>
std::uint64_t to_bits(T value) {
    static_assert(sizeof value <= 8, "warps exchange up to eight bytes");
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
}

template <class T>
T from_bits(std::uint64_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <class T>
T from_lane(unsigned mask, T value, unsigned lane) {
    meet(mask, to_bits(value), 0);
    if (lane < 32 && fiber->present >> lane & 1)
        std::memcpy(&value, &fiber->values[lane], sizeof value);
    return value;
}

} // namespace simt

#define threadIdx (simt::fiber->thread)
#define blockIdx (simt::block->index)
#define blockDim (simt::block->size)
#define gridDim (simt::block->grid)

inline void __syncthreads() { simt::barrier(0); }
inline int __syncthreads_or(int vote) { return simt::barrier(vote) != 0; }
inline int __syncthreads_count(int vote) { return simt::barrier(vote); }
inline void __syncwarp(unsigned mask = ~0u) { simt::meet(mask, 0, 0); }
inline unsigned __ballot_sync(unsigned mask, int vote) {
    simt::meet(mask, 0, vote);
    return simt::fiber->votes;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
    return simt::from_lane(mask, value, static_cast<unsigned>(lane) % 32);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip) {
    return simt::from_lane(mask, value, simt::fiber->lane ^ static_cast<unsigned>(flip));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
    return simt::from_lane(mask, value, simt::fiber->lane + by);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by) {
    return simt::from_lane(mask, value, simt::fiber->lane - by);
}

// Fibers give way at barriers only, so that plain operations are atomic.
template <class T>
T atomicAdd(T* place, T value) {
    const T before = *place;
    *place += value;
    return before;
}
template <class T>
T atomicMin(T* place, T value) {
    const T before = *place;
    *place = value < before ? value : before;
    return before;
}
template <class T>
T atomicMax(T* place, T value) {
    const T before = *place;
    *place = value > before ? value : before;
    return before;
}

// Tensor cores: what kernels/tensor.cuh has for a GPU.
inline unsigned short into_half(float x) {
    const unsigned sign = std::signbit(x) ? 0x8000u : 0;
    const float size = std::fabs(x);
    if (!(size < 65520.0f))
        return static_cast<unsigned short>(sign | (std::isnan(x) ? 0x7FFFu : 0x7C00u));
    int exponent = -100; // of 0, for which there is none
    if (size > 0.0f)
        std::frexp(size, &exponent);
    const int spacing = std::max(exponent - 11, -24);
    const unsigned n = static_cast<unsigned>(std::nearbyint(std::ldexp(size, -spacing)));
    return static_cast<unsigned short>(sign | (n + (static_cast<unsigned>(spacing + 24) << 10)));
}
inline float from_half(unsigned short half) {
    const int exponent = half >> 10 & 31, rest = half & 1023;
    const float infinite = rest ? NAN : INFINITY;
    const float size = exponent == 31
                           ? infinite
                           : static_cast<float>(std::ldexp(exponent ? 1024 + rest : rest, std::max(exponent, 1) - 25));
    return half >> 15 ? -size : size;
}

namespace simt {

// A sum as the tensor cores of Volta add it up, the coarsest there are: terms are aligned with the largest of them, and
// what is below the last of its 24 bits is cut off, before they are added and after.
inline float cut_off_sum(const double* terms, int n) {
    double largest = 0.0, sum = 0.0;
    for (int i = 0; i < n; i++) {
        largest = std::max(largest, std::fabs(terms[i]));
        sum += terms[i];
    }
    if (largest == 0.0 || !std::isfinite(sum))
        return static_cast<float>(sum);
    constexpr std::uint64_t EXPONENT = 0x7FFull << 52, CUT_OFF = (1ull << 29) - 1;
    // 2^23 / 2^e and its inverse, where 2^e is what `largest` begins with.
    const double scale = 8388608.0 / from_bits<double>(to_bits(largest) & EXPONENT);
    sum = 0.0;
    for (int i = 0; i < n; i++)
        sum += static_cast<double>(static_cast<std::int64_t>(terms[i] * scale));
    return static_cast<float>(from_bits<double>(to_bits(sum / scale) & ~CUT_OFF));
}

// All lanes name the same tile, whose place and pitch are multiples of 32 and 16 bytes.
template <class T>
void meet_at(const T* tile, unsigned pitch) {
    if (to_bits(tile) % 32 || pitch * sizeof(T) % 16)
        fail("a tile of a tensor core is not aligned");
    meet(~0u, to_bits(tile), 0);
    for (unsigned lane = 0; lane < 32; lane++)
        if (!(fiber->present >> lane & 1) || fiber->values[lane] != to_bits(tile))
            fail("the lanes of a warp do not name the same tile");
}

} // namespace simt

// Tiles are read when they are multiplied; no barrier is between that and when they are loaded.
template <unsigned ROWS, unsigned COLUMNS, bool TRANSPOSED>
struct Tensor {
    struct Weights {
        const unsigned short* at;
        unsigned pitch;
    };
    struct Numbers {
        const unsigned short* at;
        unsigned pitch;
    };
    struct Sums {
        float x[8];
    };
    static Weights weights(const unsigned short* at, unsigned pitch) {
        return simt::meet_at(at, pitch), Weights{at, pitch};
    }
    static Numbers numbers(const unsigned short* at, unsigned pitch) {
        return simt::meet_at(at, pitch), Numbers{at, pitch};
    }
    static void add(Sums& sums, const Weights& w, const Numbers& n) {
        for (unsigned k = 0; k < 8; k++) {
            const unsigned row = (8 * simt::fiber->lane + k) / COLUMNS, column = (8 * simt::fiber->lane + k) % COLUMNS;
            for (unsigned i = 0; i < 16; i += 4) {
                double terms[5] = {sums.x[k]};
                for (unsigned j = i; j < i + 4; j++)
                    terms[1 + j - i] = double{from_half(w.at[TRANSPOSED ? j * w.pitch + row : row * w.pitch + j])} *
                                       double{from_half(n.at[j * n.pitch + column])};
                sums.x[k] = simt::cut_off_sum(terms, 5);
            }
        }
    }
    static void store(const Sums& sums, float* at, unsigned pitch) {
        simt::meet_at(at, pitch);
        for (unsigned k = 0; k < 8; k++) {
            const unsigned i = 8 * simt::fiber->lane + k;
            at[i / COLUMNS * pitch + i % COLUMNS] = sums.x[k];
        }
    }
};
