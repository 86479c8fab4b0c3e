// The kernels of this library, for steps and for evaluations without one: one for the analytic potentials, one of the
// distance network for each number of frames that a block may work on and each precision, and those of which the
// message-passing network takes several launches. kernels/make_ptx.py compiles this file into diffusim.ptx.
#include "analytic.cuh"
#include "blend.cuh"
#include "distance.cuh"
#include "distance_high.cuh"
#include "message_passing.cuh"

// advance(Job) or evaluate(Evaluation) of a model.
#define KERNEL(VERB, JOB, NAME, MODEL)                                                                                 \
    extern "C" __global__ void __launch_bounds__(512, 1) VERB##_##NAME(JOB job, MODEL model) {                         \
        SHARED_MEMORY(shared);                                                                                         \
        VERB(job, model, job.scratch ? job.scratch + blockIdx.x * job.scratch_bytes : shared);                         \
    }
#define STEPS(NAME, MODEL) KERNEL(advance, Job, NAME, MODEL)
#define KERNELS(NAME, MODEL)                                                                                           \
    STEPS(NAME, MODEL)                                                                                                 \
    KERNEL(evaluate, Evaluation, NAME, MODEL)

// A part of a score, of a step, of an evaluation.
#define PART(NAME, PARAMETERS, ...)                                                                                    \
    extern "C" __global__ void __launch_bounds__(256, 2) NAME PARAMETERS { __VA_ARGS__ }
#define OF_SCORE(NAME, ...) PART(NAME, (MessagePassing model, const Point* positions), (void)positions; __VA_ARGS__)
#define OF_BLOCK(NAME, ...)                                                                                            \
    PART(NAME, (MessagePassing model, const Point* positions, unsigned block), (void)positions; __VA_ARGS__)
#define OF_STEP(NAME, ...)                                                                                             \
    PART(NAME, (Launches launches, MessagePassing model, unsigned stage), (void)stage; __VA_ARGS__)                    \
    PART(NAME##_blend, (Launches launches, Blend model, unsigned stage), (void)stage; __VA_ARGS__)
#define OF_EVALUATION(NAME, ...) PART(NAME, (Evaluation job, MessagePassing model), __VA_ARGS__)
#define OF_BLEND(NAME, ...) PART(NAME, (Evaluation job, Blend model), __VA_ARGS__)

#if defined(__CUDACC__) // else tests/simt/simt.h says how
#define SHARED_MEMORY(name) extern __shared__ __align__(32) unsigned char name[]
#endif

typedef Distance<1, 1, 1> Distance1;
typedef Distance<8, 8, 4> Distance8;
typedef Distance<32, 8, 4> Distance32;
typedef DistanceHigh<8> DistanceHigh8;
typedef DistanceHigh<32> DistanceHigh32;

KERNELS(analytic, Analytic)
KERNELS(distance_1, Distance1)
KERNELS(distance_8, Distance8)
KERNELS(distance_32, Distance32)
STEPS(distance_high_8, DistanceHigh8)
STEPS(distance_high_32, DistanceHigh32)

OF_SCORE(neighbor_boxes, SHARED_MEMORY(shared); model.list.fill_boxes(positions, shared);)
OF_SCORE(neighbor_list, const unsigned i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
         if (i < model.n_all()) model.list.find(i);)
OF_BLOCK(message_passing_forward, SHARED_MEMORY(shared); model.forward(positions, block, shared);)
OF_BLOCK(message_passing_backward, SHARED_MEMORY(shared); model.backward(block, shared);)

OF_STEP(step_begin, begin_steps(launches, model);)
OF_STEP(step_score, SHARED_MEMORY(shared); check_scores(launches, model, stage, shared);)
OF_STEP(step_move, move_particles(launches, model, stage);)
OF_STEP(step_settle, SHARED_MEMORY(shared); settle_proposals(launches, model, stage, shared);)

OF_EVALUATION(evaluation_begin, begin_evaluation(job, model);)
OF_EVALUATION(evaluation_end, SHARED_MEMORY(shared); finish_evaluation(job, model, shared);)
OF_BLEND(evaluation_blend, blend_frames(job, model);)
