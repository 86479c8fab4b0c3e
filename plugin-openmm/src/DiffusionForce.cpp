#include "DiffusionForce.h"
#include "DiffusionForceImpl.h"
#include "openmm/internal/ContextImpl.h"
#include "units.h"
#include <algorithm>
#include <numeric>

using namespace OpenMM;

namespace diffusim_openmm {

void DiffusionForceImpl::initialize(ContextImpl& context) {
    CustomCPPForceImpl::initialize(context);
    fitted = owner.getModel().fit(context.getSystem(), owner.getCheckMasses());
    scores.resize(3 * context.getSystem().getNumParticles());
    energies.resize(fitted.copies);
}

double DiffusionForceImpl::computeForce(ContextImpl& context, const std::vector<Vec3>& positions,
                                        std::vector<Vec3>& forces) {
    if (muted) {
        std::fill(forces.begin(), forces.end(), Vec3());
        return 0;
    }
    const diffusim::model& model = *fitted.model;
    Vec3 box[3];
    context.getPeriodicBoxVectors(box[0], box[1], box[2]);
    model.evaluate(model.is_periodic() ? &box[0][0] : nullptr, coordinates(positions), fitted.copies, scores.data(),
                   energies.data(), nullptr);
    const double unit = energyUnit(model);
    for (std::size_t i = 0; i < scores.size(); i++)
        forces[i / 3][i % 3] = unit * scores[i];
    return unit * std::accumulate(energies.begin(), energies.end(), 0.0);
}

DiffusionForce::DiffusionForce(const ScoreModel& model) : model(model) { setName("DiffusionForce"); }

ForceImpl* DiffusionForce::createImpl() const { return new DiffusionForceImpl(*this); }

} // namespace diffusim_openmm
