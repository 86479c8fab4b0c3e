#include "DiffusionForce.h"
#include "openmm/internal/ContextImpl.h"
#include "openmm/internal/CustomCPPForceImpl.h"
#include "units.h"

using namespace OpenMM;

namespace diffusim_openmm {

namespace {
class DiffusionForceImpl : public CustomCPPForceImpl {
public:
    explicit DiffusionForceImpl(const DiffusionForce& owner) : CustomCPPForceImpl(owner), owner(owner) {}

    const DiffusionForce& getOwner() const override { return owner; }

    void initialize(ContextImpl& context) {
        CustomCPPForceImpl::initialize(context);
        model = owner.getModel().fit(context.getSystem(), owner.getCheckMasses());
        frame.resize(3 * model->n_particles());
        scores.resize(frame.size());
    }

    double computeForce(ContextImpl& context, const std::vector<Vec3>& positions, std::vector<Vec3>& forces) override {
        for (std::size_t i = 0; i < frame.size(); i++)
            frame[i] = positions[i / 3][i % 3];
        double energy = 0;
        Vec3 box[3];
        context.getPeriodicBoxVectors(box[0], box[1], box[2]);
        model->evaluate(model->is_periodic() ? &box[0][0] : nullptr, frame.data(), 1, scores.data(), &energy, nullptr);
        const double unit = energyUnit(*model);
        for (std::size_t i = 0; i < frame.size(); i++)
            forces[i / 3][i % 3] = unit * scores[i];
        return unit * energy;
    }

private:
    const DiffusionForce& owner;
    std::shared_ptr<const diffusim::model> model;
    std::vector<double> frame, scores;
};
} // namespace

DiffusionForce::DiffusionForce(const ScoreModel& model) : model(model) { setName("DiffusionForce"); }

ForceImpl* DiffusionForce::createImpl() const { return new DiffusionForceImpl(*this); }

} // namespace diffusim_openmm
