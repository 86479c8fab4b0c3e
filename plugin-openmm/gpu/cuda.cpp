/* libdiffusimOpenMMCUDA.so: the kernel for OpenMM's platform CUDA. */

#include "GpuFrames.h"
#include "openmm/cuda/CudaContext.h"

using namespace OpenMM;
using namespace diffusim_openmm;

extern "C" void registerPlatforms() {}

extern "C" void registerKernelFactories() {
    registerFactory("CUDA", [](std::string name, const Platform& platform, ContextImpl& context) -> KernelImpl* {
        // With several GPUs the first is the one that integrates.
        CudaContext& cu = *static_cast<CudaPlatform::PlatformData*>(context.getPlatformData())->contexts[0];
        GpuFramesKernel::Gpu gpu{cu.getDeviceIndex(), cu.getContext(), cu.getCurrentStream()};
        return new GpuFrames(name, platform, cu, std::make_unique<const GpuFramesKernel::Gpu>(gpu));
    });
}
