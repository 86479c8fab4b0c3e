/* libdiffusimOpenMMOpenCL.so: the kernel for OpenMM's platform OpenCL, on which the core computes on the host. */

#include "GpuFrames.h"
#include "openmm/opencl/OpenCLPlatform.h"

using namespace OpenMM;
using namespace diffusim_openmm;

extern "C" void registerPlatforms() {}

extern "C" void registerKernelFactories() {
    registerFactory("OpenCL", [](std::string name, const Platform& platform, ContextImpl& context) -> KernelImpl* {
        OpenCLContext* cl = static_cast<OpenCLPlatform::PlatformData*>(context.getPlatformData())->contexts[0];
        // Its header needs Khronos's, which the wheel does not carry. A ComputeContext is its first and only base.
        return new GpuFrames(name, platform, *reinterpret_cast<ComputeContext*>(cl), nullptr);
    });
}
