#include "DiffusionForce.h"
#include "DiffusionForceImpl.h"
#include "messages.h"
#include "openmm/OpenMMException.h"
#include "openmm/internal/ContextImpl.h"
#include "openmm/reference/ReferencePlatform.h"
#include "units.h"
#include <algorithm>
#include <numeric>

using namespace OpenMM;

namespace diffusim_openmm {

void DiffusionForceImpl::initialize(ContextImpl& context) {
    std::string whyNot; // which the integrator tells
    frames = createGpuFrames(context, framesKernel, whyNot);
    if (!frames)
        CustomCPPForceImpl::initialize(context);
    fitted = owner.getModel().fit(context.getSystem(), owner.getCheckMasses());
    forces.resize(3 * context.getSystem().getNumParticles());
    energies.resize(fitted.copies);
    if (owner.hasEnergyParameterDerivative() && dynamic_cast<ReferencePlatform*>(&context.getPlatform()) == nullptr)
        throw OpenMMException("DiffusionForce reports the derivative by " + owner.getModel().getLambdaParameter() +
                              " on the platforms Reference and CPU, and this is " + context.getPlatform().getName() +
                              ". Leave addEnergyParameterDerivative() out, or use one of those");
}

std::map<std::string, double> DiffusionForceImpl::getDefaultParameters() {
    const ScoreModel& model = owner.getModel();
    if (model.getLambdaParameter().empty())
        return {};
    return {{model.getLambdaParameter(), model.getLambda()}};
}

// OpenMM's own way would fetch the positions from a GPU also where nothing is asked for.
double DiffusionForceImpl::calcForcesAndEnergy(ContextImpl& context, bool includeForces, bool includeEnergy,
                                               int groups) {
    if (muted || !(groups >> owner.getForceGroup() & 1))
        return 0;
    if (!frames)
        return CustomCPPForceImpl::calcForcesAndEnergy(context, includeForces, includeEnergy, groups);
    if (isOnGpu())
        return evaluateOnGpu(context, includeForces, includeEnergy);
    frames->readPositions(positions);
    const double energy = evaluate(context, positions.data());
    if (includeForces)
        frames->addForces(forces, 1.0);
    return energy;
}

/** Whether the core computes on the platform's GPU: where it can, which is found out when something is asked for. */
bool DiffusionForceImpl::isOnGpu() {
    const GpuFramesKernel::Gpu* gpu = frames->getGpu();
    if (isPlaced || !gpu)
        return evaluator != nullptr;
    const std::string device = "cuda:" + std::to_string(gpu->index);
    diffusim::evaluator_options options;
    options.n_frames = fitted.copies;
    options.device = device.c_str();
    options.cuda_context = gpu->context;
    options.cuda_stream = gpu->stream;
    try {
        evaluator = std::make_unique<diffusim::evaluator>(*fitted.model, options);
    } catch (const diffusim::error& error) {
        if (error.status() != DIFFUSIM_ERROR_UNSUPPORTED)
            throw;
        warn(
            std::string("the learned energy is computed on the CPU, and positions and forces pass through the host: ") +
            error.what());
    }
    isPlaced = true;
    return evaluator != nullptr;
}

/** As evaluate(), of what the Context holds, whose forces it adds to. Nobody waits, but for an energy. */
double DiffusionForceImpl::evaluateOnGpu(ContextImpl& context, bool includeForces, bool includeEnergy) {
    fitted.follow(context, [this](double lambda) { evaluator->set_lambda(lambda); });
    const double unit = energyUnit(*fitted.model);
    if (fitted.model->is_periodic()) {
        Vec3 box[3];
        context.getPeriodicBoxVectors(box[0], box[1], box[2]);
        const std::vector<double> current(&box[0][0], &box[0][0] + 9);
        if (cell != current)
            evaluator->set_cell(current.data());
        cell = current;
    }
    frames->readPositions(evaluator->device_positions());
    evaluator->enqueue(includeEnergy);
    if (includeForces)
        frames->addForces(evaluator->device_scores(), unit);
    if (!includeEnergy)
        return 0;
    energies = evaluator->energies();
    return unit * std::accumulate(energies.begin(), energies.end(), 0.0);
}

double DiffusionForceImpl::computeForce(ContextImpl& context, const std::vector<Vec3>& positions,
                                        std::vector<Vec3>& result) {
    if (muted) {
        std::fill(result.begin(), result.end(), Vec3());
        return 0;
    }
    if (owner.hasEnergyParameterDerivative()) {
        Vec3 box[3];
        context.getPeriodicBoxVectors(box[0], box[1], box[2]);
        fitted.follow(context);
        auto* platform = static_cast<ReferencePlatform::PlatformData*>(context.getPlatformData());
        (*platform->energyParameterDerivatives)[fitted.parameter] +=
            fitted.computeLambdaDerivative(positions, &box[0][0]);
    }
    const double energy = evaluate(context, coordinates(positions));
    std::copy(forces.begin(), forces.end(), &result[0][0]);
    return energy;
}

/** The energy at `positions`, kJ/mol, and its forces. */
double DiffusionForceImpl::evaluate(ContextImpl& context, const double* positions) {
    fitted.follow(context);
    const diffusim::model& model = *fitted.model;
    Vec3 box[3];
    context.getPeriodicBoxVectors(box[0], box[1], box[2]);
    model.evaluate(model.is_periodic() ? &box[0][0] : nullptr, positions, fitted.copies, forces.data(), energies.data(),
                   nullptr);
    const double unit = energyUnit(model);
    for (double& force : forces)
        force *= unit;
    return unit * std::accumulate(energies.begin(), energies.end(), 0.0);
}

DiffusionForce::DiffusionForce(const ScoreModel& model) : model(model) { setName("DiffusionForce"); }

void DiffusionForce::addEnergyParameterDerivative(const std::string& name) {
    const std::string& known = model.getLambdaParameter();
    if (known.empty() || name != known)
        throw OpenMMException("DiffusionForce has no derivative by '" + name + "'; " +
                              (known.empty() ? model.getModel().name() + " is no blend of two models"
                                             : "that of its blend is by '" + known + "'"));
    derivative = true;
}

ForceImpl* DiffusionForce::createImpl() const { return new DiffusionForceImpl(*this); }

} // namespace diffusim_openmm
