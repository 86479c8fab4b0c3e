/* GpuFramesKernel over OpenMM's ComputeContext: one source for CUDA and OpenCL. */

#ifndef DIFFUSIM_OPENMM_GPU_GPU_FRAMES_H
#define DIFFUSIM_OPENMM_GPU_GPU_FRAMES_H

#include "../src/GpuFrames.h"
#include "openmm/KernelFactory.h"
#include "openmm/common/ComputeArray.h"
#include "openmm/common/ComputeContext.h"
#include <memory>
#include <string>
#include <vector>

namespace diffusim_openmm {

class GpuFrames : public GpuFramesKernel {
public:
    /** @param gpu   of CUDA; else null */
    GpuFrames(std::string name, const OpenMM::Platform& platform, OpenMM::ComputeContext& cc,
              std::unique_ptr<const Gpu> gpu);

    const Gpu* getGpu() const override { return gpu.get(); }
    void importPositions(CoreArray core) override;
    void readPositions(CoreArray core) override;
    void exportPositions(CoreArray core) override;
    void importVelocities(CoreArray core) override;
    void exportVelocities(CoreArray core) override;
    void readForces(CoreArray core) override;
    void addForces(CoreArray core, double unit) override;
    void reorder(CoreArray positions) override;

private:
    /** Which way an array on the host is copied. */
    enum Copies { TO_GPU = 1, FROM_GPU = 2 };

    void compile();
    void updateCells();
    void setBox(OpenMM::ComputeKernel& kernel, int firstArgument);
    void takePositions(CoreArray core, bool keep);
    void import(OpenMM::ComputeKernel& kernel, int coreArgument, CoreArray core, bool keep);
    void execute(OpenMM::ComputeKernel& kernel, int coreArgument, CoreArray core, int copies);

    OpenMM::ComputeContext& cc;
    std::unique_ptr<const Gpu> gpu;
    OpenMM::ComputeArray staged; // a core's array that is on the host
    OpenMM::ComputeArray cells;
    std::vector<OpenMM::mm_int4> knownCells; // that `cells` holds
    OpenMM::ComputeKernel takePositionsKernel, givePositionsKernel, takeVelocitiesKernel, giveVelocitiesKernel,
        takeForcesKernel, giveForcesKernel;
};

/** Register a factory that makes a kernel for every Context on `platform`; `make` gives it. */
template <class Make>
class GpuFramesFactory : public OpenMM::KernelFactory {
public:
    explicit GpuFramesFactory(Make make) : make(make) {}
    OpenMM::KernelImpl* createKernelImpl(std::string name, const OpenMM::Platform& platform,
                                         OpenMM::ContextImpl& context) const override {
        return make(name, platform, context);
    }

private:
    Make make;
};

/** Throws unless this is the OpenMM that the library was built for. */
void checkVersion();

template <class Make>
void registerFactory(const std::string& platform, Make make) {
    checkVersion();
    OpenMM::Platform::getPlatformByName(platform).registerKernelFactory(GpuFramesKernel::Name(),
                                                                        new GpuFramesFactory<Make>(make));
}

} // namespace diffusim_openmm

#endif
