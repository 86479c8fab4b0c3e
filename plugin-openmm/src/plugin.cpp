/* What is seen from outside the library: OpenMM's two entry points, and the accessors that Python reaches by ctypes.
 *
 * An accessor takes the address of an OpenMM object, returns 0 or, after a failure, 1, and lets no exception out. */

#include "DiffusionForce.h"
#include "DiffusionIntegrator.h"
#include "Serialization.h"
#include "messages.h"
#include "openmm/OpenMMException.h"
#include <algorithm>

using namespace OpenMM;
using namespace diffusim_openmm;

namespace {
thread_local std::string lastError;

template <class Body>
int guard(Body&& body) {
    try {
        body();
        return 0;
    } catch (const std::exception& error) {
        lastError = error.what();
    } catch (...) {
        lastError = "an unknown C++ exception was thrown";
    }
    return 1;
}

DiffusionIntegrator& cast(Integrator* integrator) {
    auto* ours = dynamic_cast<DiffusionIntegrator*>(integrator);
    if (ours == nullptr)
        throw OpenMMException("This Integrator is not a DiffusionIntegrator");
    return *ours;
}

DiffusionForce& cast(Force* force) {
    auto* ours = dynamic_cast<DiffusionForce*>(force);
    if (ours == nullptr)
        throw OpenMMException("This Force is not a DiffusionForce");
    return *ours;
}
} // namespace

extern "C" {

// Both must exist in every plugin: OpenMM looks them up with dlsym(), which falls through to what a library depends on.
void registerPlatforms() {}

void registerKernelFactories() {
    diffusim::check_abi();
    registerSerializationProxies();
}

const char* diffusim_openmm_last_error() { return lastError.c_str(); }

void diffusim_openmm_set_message_handler(MessageHandler handler) { setMessageHandler(handler); }

int diffusim_openmm_is_integrator(Integrator* integrator) {
    return dynamic_cast<DiffusionIntegrator*>(integrator) != nullptr;
}

int diffusim_openmm_is_force(Force* force) { return dynamic_cast<DiffusionForce*>(force) != nullptr; }

int diffusim_openmm_add_energy_parameter_derivative(Force* force, const char* name) {
    return guard([=] { cast(force).addEnergyParameterDerivative(name); });
}

int diffusim_openmm_get_temperature(Integrator* integrator, double* kelvin) {
    return guard([=] { *kelvin = cast(integrator).getTemperature(); });
}

int diffusim_openmm_set_temperature(Integrator* integrator, double kelvin) {
    return guard([=] { cast(integrator).setTemperature(kelvin); });
}

int diffusim_openmm_get_friction(Integrator* integrator, double* rate) {
    return guard([=] { *rate = cast(integrator).getFriction(); });
}

int diffusim_openmm_set_friction(Integrator* integrator, double rate) {
    return guard([=] { cast(integrator).setFriction(rate); });
}

int diffusim_openmm_get_spring(Integrator* integrator, double* spring) {
    return guard([=] { *spring = cast(integrator).getSpring(); });
}

int diffusim_openmm_set_spring(Integrator* integrator, double spring) {
    return guard([=] { cast(integrator).setSpring(spring); });
}

int diffusim_openmm_get_adapter(Integrator* integrator, const char** name) {
    static thread_local std::string adapter;
    return guard([=] {
        adapter = cast(integrator).getAdapter();
        *name = adapter.c_str();
    });
}

int diffusim_openmm_get_sampler(Integrator* integrator, const char** name) {
    static thread_local std::string sampler;
    return guard([=] {
        sampler = cast(integrator).getSampler();
        *name = sampler.c_str();
    });
}

int diffusim_openmm_get_device(Integrator* integrator, const char** name) {
    static thread_local std::string device;
    return guard([=] {
        device = cast(integrator).getDevice();
        *name = device.c_str();
    });
}

int diffusim_openmm_get_matmul_precision(Integrator* integrator, const char** name) {
    static thread_local std::string precision;
    return guard([=] {
        precision = cast(integrator).getMatmulPrecision();
        *name = precision.c_str();
    });
}

int diffusim_openmm_get_seed(Integrator* integrator, int64_t* seed) {
    return guard([=] { *seed = cast(integrator).getRandomNumberSeed(); });
}

int diffusim_openmm_set_seed(Integrator* integrator, int64_t seed) {
    return guard([=] { cast(integrator).setRandomNumberSeed(seed); });
}

int diffusim_openmm_get_seed_in_use(Integrator* integrator, int64_t* seed) {
    return guard([=] { *seed = cast(integrator).getSeedInUse(); });
}

int diffusim_openmm_get_num_copies(Integrator* integrator, int64_t* copies) {
    return guard([=] { *copies = static_cast<int64_t>(cast(integrator).getNumCopies()); });
}

// `energies` has room for as many numbers as there are copies.
int diffusim_openmm_compute_model_energies(Integrator* integrator, double* energies) {
    return guard([=] {
        const std::vector<double> computed = cast(integrator).computeModelEnergies();
        std::copy(computed.begin(), computed.end(), energies);
    });
}

int diffusim_openmm_compute_configurational_temperature(Integrator* integrator, double* kelvin) {
    return guard([=] { *kelvin = cast(integrator).computeConfigurationalTemperature(); });
}

int diffusim_openmm_compute_system_temperature(Integrator* integrator, double* kelvin) {
    return guard([=] { *kelvin = cast(integrator).computeSystemTemperature(); });
}

int diffusim_openmm_get_largest_score(Integrator* integrator, double* score) {
    return guard([=] { *score = cast(integrator).getLargestScore(); });
}

int diffusim_openmm_get_steps_per_sweep(Integrator* integrator, double* steps) {
    return guard([=] { *steps = cast(integrator).getStepsPerSweep(); });
}

int diffusim_openmm_get_acceptance(Integrator* integrator, double* fraction) {
    return guard([=] { *fraction = cast(integrator).getAcceptance(); });
}

// `factors` has room for as many numbers as there are copies.
int diffusim_openmm_get_step_factors(Integrator* integrator, double* factors) {
    return guard([=] {
        const std::vector<double> known = cast(integrator).getStepFactors();
        std::copy(known.begin(), known.end(), factors);
    });
}

int diffusim_openmm_get_last_status(Integrator* integrator, int64_t* status) {
    return guard([=] { *status = cast(integrator).getLastStatus(); });
}

} // extern "C"
