#include "ScoreModel.h"
#include "base64.h"
#include "messages.h"
#include "openmm/OpenMMException.h"
#include "units.h"
#include <algorithm>

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
    const int number = node.getIntProperty("copies", 0);
    if (number < 0)
        throw OpenMMException("copies is " + std::to_string(number) +
                              "; expected a positive number, or 0 for as many as the System has particles for");
    copies = static_cast<std::size_t>(number);
    for (const SerializationNode& particle : node.getChildNode("Particles").getChildren())
        particles.push_back(particle.getLongProperty("index"));
}

void ScoreModel::serialize(SerializationNode& node) const {
    node.setIntProperty("copies", static_cast<int>(copies));
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

bool ScoreModel::equals(const ScoreModel& other) const {
    return model->sha256() == other.model->sha256() && noiseLevel == other.noiseLevel && particles == other.particles;
}

std::size_t ScoreModel::copiesIn(std::size_t numParticles) const {
    if (copies != 0) {
        if (numParticles % copies != 0)
            throw OpenMMException("The System has " + std::to_string(numParticles) + " particles, which is not " +
                                  std::to_string(copies) + " copies of equally many; give copies=" +
                                  std::to_string(std::max<std::size_t>(1, numParticles / model->n_particles())) +
                                  ", or as many particles to each");
        return copies;
    }
    const std::size_t n = model->n_particles();
    // In a periodic box a larger System is more likely one that the model is to be made larger for.
    if (!particles.empty() || model->is_periodic() || numParticles <= n || numParticles % n != 0)
        return 1;
    const std::size_t number = numParticles / n;
    warn("the System's " + std::to_string(numParticles) + " particles are taken for " + std::to_string(number) +
         " copies of the molecule of " + model->name() +
         ", which feel nothing of each other. Say so with copies=" + std::to_string(number));
    return number;
}

FittedModel ScoreModel::fit(const System& system, bool checkMasses) const {
    const int total = system.getNumParticles();
    FittedModel fitted{model, copiesIn(static_cast<std::size_t>(total))};
    const std::size_t n = static_cast<std::size_t>(total) / fitted.copies;
    if (!particles.empty())
        fitted.model = std::make_shared<diffusim::model>(model->subset(n, particles));
    fitted.model->check_particles(std::vector<const char*>(n, nullptr)); // their number
    std::vector<double> masses(n);
    for (std::size_t i = 0; i < n; i++)
        masses[i] = system.getParticleMass(static_cast<int>(i));
    if (checkMasses)
        fitted.model->check_masses(masses);
    for (int i = 0; i < total; i++) {
        const double mass = system.getParticleMass(i), first = masses[i % n];
        if (mass != first)
            throw OpenMMException("Particle " + std::to_string(i % n) + " of copy " + std::to_string(i / n) +
                                  " (particle " + std::to_string(i) + " of the System) weighs " + shortText(mass) +
                                  " amu, and that of copy 0 " + shortText(first) +
                                  " amu. The copies of a molecule must be alike: reorder the System");
    }
    return fitted;
}

std::vector<double> FittedModel::computeEnergies(const std::vector<Vec3>& positions, const double* cell) const {
    std::vector<double> scores(3 * positions.size()), energies(copies);
    model->evaluate(model->is_periodic() ? cell : nullptr, coordinates(positions), copies, scores.data(),
                    energies.data(), nullptr);
    for (double& energy : energies)
        energy *= energyUnit(*model);
    return energies;
}

double FittedModel::computeTemperature(const std::vector<Vec3>& positions) const {
    if (model->is_periodic())
        throw OpenMMException("The configurational temperature is not computed for a periodic model: " + model->name());
    return model->configurational_temperature(coordinates(positions), copies);
}

} // namespace diffusim_openmm
