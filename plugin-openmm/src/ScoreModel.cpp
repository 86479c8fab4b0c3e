#include "ScoreModel.h"
#include "base64.h"
#include "openmm/OpenMMException.h"
#include "units.h"

using namespace OpenMM;

namespace diffusim_openmm {

ScoreModel::ScoreModel(const std::string& path, double noiseLevel)
    : model(std::make_shared<diffusim::model>(diffusim::model::load(path, noiseLevel))), noiseLevel(noiseLevel) {}

// <Model file="base64"/>, <Model description="JSON"/> for analytic models, or <Model path="file name"/>.
ScoreModel::ScoreModel(const SerializationNode& node) {
    const SerializationNode& source = node.getChildNode("Model");
    noiseLevel = source.getDoubleProperty("noiseLevel", 0);
    if (source.hasProperty("file")) {
        const std::string bytes = decodeBase64(source.getStringProperty("file"));
        model = std::make_shared<diffusim::model>(diffusim::model::from_bytes(
            bytes.data(), bytes.size(), noiseLevel, source.getStringProperty("name", "model")));
    } else if (source.hasProperty("description"))
        model = std::make_shared<diffusim::model>(diffusim::model::from_json(source.getStringProperty("description")));
    else
        model = std::make_shared<diffusim::model>(diffusim::model::load(source.getStringProperty("path"), noiseLevel));
    for (const SerializationNode& particle : node.getChildNode("Particles").getChildren())
        particles.push_back(particle.getLongProperty("index"));
}

void ScoreModel::serialize(SerializationNode& node) const {
    SerializationNode& source = node.createChildNode("Model");
    source.setDoubleProperty("noiseLevel", noiseLevel);
    try {
        source.setStringProperty("file", encodeBase64(model->bytes()));
        source.setStringProperty("name", model->name());
    } catch (const diffusim::error&) { // an analytic model has no file
        source.setStringProperty("description", model->metadata());
    }
    SerializationNode& list = node.createChildNode("Particles");
    for (std::size_t index : particles)
        list.createChildNode("Particle").setLongProperty("index", static_cast<long long>(index));
}

std::shared_ptr<const diffusim::model> ScoreModel::fit(const System& system, bool checkMasses) const {
    const std::size_t n = system.getNumParticles();
    std::shared_ptr<const diffusim::model> fitted = model;
    if (!particles.empty())
        fitted = std::make_shared<diffusim::model>(model->subset(n, particles));
    fitted->check_particles(std::vector<const char*>(n, nullptr)); // their number
    if (checkMasses) {
        std::vector<double> masses(n);
        for (std::size_t i = 0; i < n; i++)
            masses[i] = system.getParticleMass(i);
        fitted->check_masses(masses);
    }
    return fitted;
}

std::vector<double> ScoreModel::gather(const std::vector<Vec3>& positions) const {
    std::vector<double> gathered;
    gathered.reserve(3 * model->n_particles());
    for (std::size_t i = 0; i < model->n_particles(); i++) {
        const Vec3& x = positions[particles.empty() ? i : particles[i]];
        gathered.insert(gathered.end(), {x[0], x[1], x[2]});
    }
    return gathered;
}

double ScoreModel::computeEnergy(const std::vector<Vec3>& positions, const double* cell) const {
    const std::vector<double> frame = gather(positions);
    std::vector<double> scores(frame.size());
    double energy = 0;
    model->evaluate(model->is_periodic() ? cell : nullptr, frame.data(), 1, scores.data(), &energy, nullptr);
    return energyUnit(*model) * energy;
}

double ScoreModel::computeTemperature(const std::vector<Vec3>& positions) const {
    if (model->is_periodic())
        throw OpenMMException("The configurational temperature is not computed for a periodic model: " + model->name());
    return model->configurational_temperature(gather(positions).data(), 1);
}

} // namespace diffusim_openmm
