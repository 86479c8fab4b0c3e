/* In place of libdiffusimOpenMMOpenCL.so: OpenMM's platform OpenCL as if the core could compute on its GPU, as it does
 * on CUDA. The core's GPU is that of tests/simt, whose memory is the host's and whose streams wait until they are
 * synchronised. */

#include "gpu/GpuFrames.h"
#include "openmm/opencl/OpenCLPlatform.h"
#include <cstdlib>

using namespace OpenMM;
using namespace diffusim_openmm;

extern "C" {
int cuInit(unsigned);
int cuCtxCreate_v2(void** context, unsigned flags, int device);
int cuCtxDestroy_v2(void* context);
int cuCtxPushCurrent_v2(void* context);
int cuCtxPopCurrent_v2(void** context);
int cuStreamSynchronize(void* stream);
}

namespace {
void check(int result) {
    if (result != 0)
        std::abort();
}

class AttachedFrames : public GpuFrames {
public:
    AttachedFrames(std::string name, const Platform& platform, ComputeContext& cc, std::unique_ptr<const Gpu> gpu)
        : GpuFrames(name, platform, cc, std::move(gpu)), n(3 * static_cast<std::size_t>(cc.getNumAtoms())) {}
    ~AttachedFrames() { check(cuCtxDestroy_v2(getGpu()->context)); }

    void importPositions(CoreArray core) override {
        by(core, [this](CoreArray array) { GpuFrames::importPositions(array); });
    }
    void readPositions(CoreArray core) override {
        by(core, [this](CoreArray array) { GpuFrames::readPositions(array); });
    }
    void exportPositions(CoreArray core) override {
        by(core, [this](CoreArray array) { GpuFrames::exportPositions(array); });
    }
    void importVelocities(CoreArray core) override {
        by(core, [this](CoreArray array) { GpuFrames::importVelocities(array); });
    }
    void exportVelocities(CoreArray core) override {
        by(core, [this](CoreArray array) { GpuFrames::exportVelocities(array); });
    }
    void readForces(CoreArray core) override {
        by(core, [this](CoreArray array) { GpuFrames::readForces(array); });
    }
    void addForces(CoreArray core, double unit) override {
        by(core, [this, unit](CoreArray array) { GpuFrames::addForces(array, unit); });
    }

private:
    template <class Transfer>
    void by(CoreArray core, Transfer transfer) {
        if (core.host)
            return transfer(core);
        void* popped;
        check(cuCtxPushCurrent_v2(getGpu()->context));
        check(cuStreamSynchronize(getGpu()->stream));
        check(cuCtxPopCurrent_v2(&popped));
        double* array = reinterpret_cast<double*>(core.device);
        std::vector<double> copy(array, array + n);
        transfer(copy);
        std::copy(copy.begin(), copy.end(), array);
    }

    std::size_t n;
};
} // namespace

extern "C" void registerPlatforms() {}

extern "C" void registerKernelFactories() {
    registerFactory("OpenCL", [](std::string name, const Platform& platform, ContextImpl& context) -> KernelImpl* {
        OpenCLContext* cl = static_cast<OpenCLPlatform::PlatformData*>(context.getPlatformData())->contexts[0];
        GpuFramesKernel::Gpu gpu{0, nullptr, nullptr};
        void* popped;
        check(cuInit(0));
        check(cuCtxCreate_v2(&gpu.context, 0, 0));
        check(cuCtxPopCurrent_v2(&popped));
        return new AttachedFrames(name, platform, *reinterpret_cast<ComputeContext*>(cl),
                                  std::make_unique<const GpuFramesKernel::Gpu>(gpu));
    });
}
