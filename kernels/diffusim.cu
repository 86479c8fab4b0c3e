// The kernels of this library: one for the analytic potentials, one of the distance network for each number of frames
// that a block may work on and each precision, and those of which the message-passing network takes several launches
// for a step. kernels/make_ptx.py compiles this file into diffusim.ptx.
#include "analytic.cuh"
#include "distance.cuh"
#include "distance_high.cuh"
#include "message_passing.cuh"

#define KERNEL(NAME, MODEL)                                                                                            \
    extern "C" __global__ void __launch_bounds__(512, 1) NAME(Job job, MODEL model) {                                  \
        SHARED_MEMORY(shared);                                                                                         \
        advance(job, model, job.scratch ? job.scratch + blockIdx.x * job.scratch_bytes : shared);                      \
    }

// A part of a step.
#define PART(NAME, ...)                                                                                                \
    extern "C" __global__ void __launch_bounds__(256, 2)                                                               \
        NAME(Launches launches, MessagePassing model, unsigned stage, unsigned block) {                                \
        (void)launches, (void)stage, (void)block;                                                                      \
        __VA_ARGS__                                                                                                    \
    }

#if defined(__CUDACC__) // else tests/simt/simt.h says how
#define SHARED_MEMORY(name) extern __shared__ __align__(32) unsigned char name[]
#endif

typedef Distance<1, 1, 1> Distance1;
typedef Distance<8, 8, 4> Distance8;
typedef Distance<32, 8, 4> Distance32;
typedef DistanceHigh<8> DistanceHigh8;
typedef DistanceHigh<32> DistanceHigh32;

KERNEL(advance_analytic, Analytic)
KERNEL(advance_distance_1, Distance1)
KERNEL(advance_distance_8, Distance8)
KERNEL(advance_distance_32, Distance32)
KERNEL(advance_distance_high_8, DistanceHigh8)
KERNEL(advance_distance_high_32, DistanceHigh32)

PART(step_begin, begin_steps(launches, model);)
PART(neighbor_boxes, SHARED_MEMORY(shared); model.list.fill_boxes(launches.at(stage), *launches.clock, shared);)
PART(neighbor_list, const unsigned i = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
     if (i < model.n_all()) model.list.find(i, *launches.clock);)
PART(message_passing_forward, SHARED_MEMORY(shared); model.forward(launches.at(stage), block, shared);)
PART(message_passing_backward, SHARED_MEMORY(shared); model.backward(block, shared);)
PART(step_score, SHARED_MEMORY(shared); check_scores(launches, model, stage, shared);)
PART(step_move, move_particles(launches, model, stage);)
PART(step_settle, SHARED_MEMORY(shared); settle_proposals(launches, model, stage, shared);)
