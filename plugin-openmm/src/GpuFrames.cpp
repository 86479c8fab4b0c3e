#include "GpuFrames.h"
#include <dlfcn.h>
#include <map>
#include <mutex>

using namespace OpenMM;

namespace diffusim_openmm {

namespace {
const char* const PLATFORMS[] = {"CUDA", "OpenCL"};

/** The library for a platform, beside this one. */
std::string bridgeOf(const std::string& platform) {
    Dl_info self;
    std::string path = dladdr(reinterpret_cast<const void*>(&createGpuFrames), &self) ? self.dli_fname : "";
    return path.substr(0, path.rfind('/') + 1) + "libdiffusimOpenMM" + platform + ".so";
}

/** Load the library for a platform, once; why it cannot be, else empty. */
std::string load(const std::string& platform) {
    static std::mutex mutex;
    static std::map<std::string, std::string> outcomes;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto known = outcomes.find(platform);
    if (known != outcomes.end())
        return known->second;
    std::string& outcome = outcomes[platform];
    try {
        Platform::loadPluginLibrary(bridgeOf(platform));
    } catch (const std::exception& error) {
        outcome = error.what();
    }
    return outcome;
}
} // namespace

GpuFramesKernel* createGpuFrames(ContextImpl& context, Kernel& kernel, std::string& whyNot) {
    whyNot.clear();
    const std::string name = context.getPlatform().getName();
    for (const char* platform : PLATFORMS)
        if (name == platform) {
            whyNot = load(name);
            if (whyNot.empty())
                try {
                    kernel = context.getPlatform().createKernel(GpuFramesKernel::Name(), context);
                    return &kernel.getAs<GpuFramesKernel>();
                } catch (const std::exception& error) {
                    whyNot = error.what();
                }
            whyNot = "diffusim's library for OpenMM's platform " + name + " cannot be used: " + whyNot;
        }
    return nullptr;
}

} // namespace diffusim_openmm
