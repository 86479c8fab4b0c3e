/* Frames on OpenMM's platforms of GPUs. The kernel is implemented in gpu/, in a library of its own for each platform,
 * which is loaded where a Context is on that platform. */

#ifndef DIFFUSIM_OPENMM_GPU_FRAMES_H
#define DIFFUSIM_OPENMM_GPU_FRAMES_H

#include "openmm/Kernel.h"
#include "openmm/KernelImpl.h"
#include "openmm/Platform.h"
#include "openmm/internal/ContextImpl.h"
#include <cstdint>
#include <string>
#include <vector>

namespace diffusim_openmm {

/** What the core holds, double [n][3] in the System's order: on the platform's GPU, or on the host. */
struct CoreArray {
    CoreArray(std::uint64_t device) : device(device) {}
    CoreArray(std::vector<double>& host) : host(&host) {}
    /** A vector may be empty yet. */
    bool isFilled() const { return !host || !host->empty(); }

    std::uint64_t device = 0; // CUdeviceptr, of the platform's context and stream
    std::vector<double>* host = nullptr;
};

/**
 * Between what a Context holds on its GPU (in its precision, in an order of atoms of its own, each in a periodic cell
 * of its own) and the arrays of the core. The core's are the original and the Context's their rounding: a coordinate is
 * taken from the Context only where it is another than that.
 *
 * Nothing waits for the GPU, but where an array is on the host.
 */
class GpuFramesKernel : public OpenMM::KernelImpl {
public:
    static std::string Name() { return "DiffusimGpuFrames"; }
    GpuFramesKernel(std::string name, const OpenMM::Platform& platform) : KernelImpl(name, platform) {}

    /** Of CUDA: what the core needs to compute in the platform's own context. */
    struct Gpu {
        int index;
        void* context; // CUcontext
        void* stream;  // CUstream
    };
    /** Null where the core cannot compute on the platform's GPU. */
    virtual const Gpu* getGpu() const = 0;

    /** nm. A vector that is empty is given everything. */
    virtual void importPositions(CoreArray core) = 0;
    /** nm; everything, whatever the core has. */
    virtual void readPositions(CoreArray core) = 0;
    virtual void exportPositions(CoreArray core) = 0;
    /** nm/ps. A vector that is empty is given everything. */
    virtual void importVelocities(CoreArray core) = 0;
    virtual void exportVelocities(CoreArray core) = 0;
    /** kJ/(mol nm); those that the Context has computed last. */
    virtual void readForces(CoreArray core) = 0;
    /** To those that the Context is computing: `unit` kJ/(mol nm) times the core's. */
    virtual void addForces(CoreArray core, double unit) = 0;
    /** Let the Context order its atoms anew where it is time to; the positions are those that were exported last. */
    virtual void reorder(CoreArray positions) = 0;
};

/**
 * The kernel for a Context; null where its platform has none.
 *
 * @param kernel   owns it
 * @param whyNot   why there is none although the platform should have one; else empty
 */
GpuFramesKernel* createGpuFrames(OpenMM::ContextImpl& context, OpenMM::Kernel& kernel, std::string& whyNot);

} // namespace diffusim_openmm

#endif
