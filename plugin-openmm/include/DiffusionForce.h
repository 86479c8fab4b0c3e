/* The learned energy as an ordinary Force. */

#ifndef DIFFUSIM_OPENMM_DIFFUSION_FORCE_H
#define DIFFUSIM_OPENMM_DIFFUSION_FORCE_H

#include "ScoreModel.h"
#include "openmm/Force.h"

namespace diffusim_openmm {

/**
 * Potential energy kT₀ E and forces kT₀ s of a model, for any integrator and any platform; the core computes them. Of
 * several copies of a molecule it is the sum. The λ of a blend is a parameter of the Context, and ∂E/∂λ may be asked
 * for on platforms Reference and CPU.
 */
class DiffusionForce : public OpenMM::Force {
public:
    explicit DiffusionForce(const ScoreModel& model);

    const ScoreModel& getModel() const { return model; }
    /** Whether the masses of the System must be those of the model's particles (default true). */
    bool getCheckMasses() const { return checkMasses; }
    void setCheckMasses(bool check) { checkMasses = check; }
    /** Have ∂E/∂λ reported in States. */
    void addEnergyParameterDerivative(const std::string& name);
    bool hasEnergyParameterDerivative() const { return derivative; }
    bool usesPeriodicBoundaryConditions() const override { return model.getModel().is_periodic(); }

protected:
    OpenMM::ForceImpl* createImpl() const override;

private:
    ScoreModel model;
    bool checkMasses = true, derivative = false;
};

} // namespace diffusim_openmm

#endif
