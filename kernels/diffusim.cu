// The kernels of this library: one for the analytic potentials, one of the distance network for each number of frames
// that a block may work on, and one of the message-passing network. kernels/make_ptx.py compiles this file into
// diffusim.ptx.
#include "analytic.cuh"
#include "distance.cuh"
#include "message_passing.cuh"

#define KERNEL(NAME, MODEL)                                                                                            \
    extern "C" __global__ void __launch_bounds__(512, 1) NAME(Job job, MODEL model) {                                  \
        SHARED_MEMORY(shared);                                                                                         \
        advance(job, model, job.scratch ? job.scratch + blockIdx.x * job.scratch_bytes : shared);                      \
    }

#if defined(__CUDACC__) // else tests/simt/simt.h says how
#define SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]
#endif

typedef Distance<1, 1, 1> Distance1;
typedef Distance<8, 8, 4> Distance8;
typedef Distance<32, 8, 4> Distance32;

KERNEL(advance_analytic, Analytic)
KERNEL(advance_distance_1, Distance1)
KERNEL(advance_distance_8, Distance8)
KERNEL(advance_distance_32, Distance32)
KERNEL(advance_message_passing, MessagePassing)
