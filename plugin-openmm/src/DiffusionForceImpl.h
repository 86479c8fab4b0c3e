/* The learned energy in a Context. */

#ifndef DIFFUSIM_OPENMM_DIFFUSION_FORCE_IMPL_H
#define DIFFUSIM_OPENMM_DIFFUSION_FORCE_IMPL_H

#include "DiffusionForce.h"
#include "GpuFrames.h"
#include "openmm/internal/CustomCPPForceImpl.h"
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace diffusim_openmm {

class DiffusionForceImpl : public OpenMM::CustomCPPForceImpl {
public:
    explicit DiffusionForceImpl(const DiffusionForce& owner) : CustomCPPForceImpl(owner), owner(owner) {}

    const DiffusionForce& getOwner() const override { return owner; }
    void initialize(OpenMM::ContextImpl& context);
    double calcForcesAndEnergy(OpenMM::ContextImpl& context, bool includeForces, bool includeEnergy, int groups);
    std::map<std::string, double> getDefaultParameters();
    double computeForce(OpenMM::ContextImpl& context, const std::vector<OpenMM::Vec3>& positions,
                        std::vector<OpenMM::Vec3>& forces) override;
    /** While it is muted energy and forces are 0: an integrator that has the score already asks for the others. */
    void setMuted(bool mute) { muted = mute; }
    /** Copies of the molecule in the System. */
    std::size_t getNumCopies() const { return fitted.copies; }

private:
    const DiffusionForce& owner;
    FittedModel fitted;
    double evaluate(OpenMM::ContextImpl& context, const double* positions);
    double evaluateOnGpu(OpenMM::ContextImpl& context, bool includeForces, bool includeEnergy);
    bool isOnGpu();

    OpenMM::Kernel framesKernel;
    GpuFramesKernel* frames = nullptr;              // where the platform has one
    std::vector<double> positions;                  // on such a platform
    std::unique_ptr<diffusim::evaluator> evaluator; // where the core computes on the platform's GPU
    bool isPlaced = false;                          // it is known whether it does
    std::vector<double> cell;                       // of the evaluator
    std::vector<double> forces, energies;
    bool muted = false;
};

} // namespace diffusim_openmm

#endif
