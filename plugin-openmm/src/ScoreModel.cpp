#include "ScoreModel.h"
#include "base64.h"
#include "messages.h"
#include "openmm/OpenMMException.h"
#include "units.h"
#include <algorithm>
#include <map>

using namespace OpenMM;

namespace diffusim_openmm {

ModelSource::ModelSource(const std::string& path, double noiseLevel)
    : model(std::make_shared<diffusim::model>(diffusim::model::load(path, noiseLevel))), noiseLevel(noiseLevel) {}

// <Model file="base64"/>, <Model description="JSON"/> for analytic models, <Model path="file name"/>, or, for a blend,
// <Model lambda="0.3" parameter="its name"> with two models within.
ModelSource::ModelSource(const SerializationNode& node) : noiseLevel(node.getDoubleProperty("noiseLevel", 0)) {
    if (node.hasProperty("file")) {
        const std::string bytes = decodeBase64(node.getStringProperty("file"));
        model = std::make_shared<diffusim::model>(diffusim::model::from_bytes(bytes.data(), bytes.size(), noiseLevel,
                                                                              node.getStringProperty("name", "model")));
    } else if (node.hasProperty("description"))
        model = std::make_shared<diffusim::model>(diffusim::model::from_json(node.getStringProperty("description")));
    else if (node.hasProperty("lambda")) {
        for (const SerializationNode& part : node.getChildren())
            parts.emplace_back(part);
        if (parts.size() != 2)
            throw OpenMMException("The XML of a blend holds " + std::to_string(parts.size()) + " models; expected 2");
        lambda = node.getDoubleProperty("lambda");
        parameter = node.getStringProperty("parameter");
        model = std::make_shared<diffusim::model>(diffusim::model::blend(*parts[0].model, *parts[1].model, lambda));
    } else
        model = std::make_shared<diffusim::model>(diffusim::model::load(node.getStringProperty("path"), noiseLevel));
}

void ModelSource::serialize(SerializationNode& node) const {
    node.setDoubleProperty("noiseLevel", noiseLevel);
    if (!parts.empty()) {
        node.setDoubleProperty("lambda", lambda);
        node.setStringProperty("parameter", parameter);
        for (const ModelSource& part : parts)
            part.serialize(node.createChildNode("Model"));
        return;
    }
    try {
        node.setStringProperty("file", encodeBase64(model->bytes()));
        node.setStringProperty("name", model->name());
    } catch (const diffusim::error&) { // an analytic model has no file
        node.setStringProperty("description", model->metadata());
    }
}

ScoreModel::ScoreModel(const std::string& path, double noiseLevel) : source(path, noiseLevel) {}

ScoreModel::ScoreModel(const SerializationNode& node) : source(node.getChildNode("Model")) {
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
    source.serialize(node.createChildNode("Model"));
    SerializationNode& list = node.createChildNode("Particles");
    for (std::size_t index : particles)
        list.createChildNode("Particle").setLongProperty("index", static_cast<long long>(index));
}

bool ScoreModel::equals(const ScoreModel& other) const {
    return getModel().sha256() == other.getModel().sha256() && source.noiseLevel == other.source.noiseLevel &&
           source.parameter == other.source.parameter && particles == other.particles;
}

std::size_t ScoreModel::copiesIn(std::size_t numParticles) const {
    if (copies != 0) {
        if (numParticles % copies != 0)
            throw OpenMMException("The System has " + std::to_string(numParticles) + " particles, which is not " +
                                  std::to_string(copies) + " copies of equally many; give copies=" +
                                  std::to_string(std::max<std::size_t>(1, numParticles / getModel().n_particles())) +
                                  ", or as many particles to each");
        return copies;
    }
    const std::size_t n = getModel().n_particles();
    // In a periodic box a larger System is more likely one that the model is to be made larger for.
    if (!particles.empty() || getModel().is_periodic() || numParticles <= n || numParticles % n != 0)
        return 1;
    const std::size_t number = numParticles / n;
    warn("the System's " + std::to_string(numParticles) + " particles are taken for " + std::to_string(number) +
         " copies of the molecule of " + getModel().name() +
         ", which feel nothing of each other. Say so with copies=" + std::to_string(number));
    return number;
}

FittedModel ScoreModel::fit(const System& system, bool checkMasses) const {
    const int total = system.getNumParticles();
    FittedModel fitted{source.model, copiesIn(static_cast<std::size_t>(total))};
    const std::size_t n = static_cast<std::size_t>(total) / fitted.copies;
    const auto within = [&](const std::shared_ptr<const diffusim::model>& model) {
        return particles.empty() ? model : std::make_shared<const diffusim::model>(model->subset(n, particles));
    };
    fitted.model = within(source.model);
    for (const ModelSource& part : source.parts)
        fitted.parts.push_back(within(part.model));
    fitted.lambda = source.lambda;
    fitted.parameter = source.parameter;
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

void FittedModel::follow(const ContextImpl& context, const std::function<void(double)>& send) {
    if (parts.empty())
        return;
    const std::map<std::string, double>& parameters = context.getParameters();
    const auto found = parameters.find(parameter);
    if (found == parameters.end() || found->second == lambda)
        return;
    std::shared_ptr<const diffusim::model> next;
    try {
        next = std::make_shared<diffusim::model>(diffusim::model::blend(*parts[0], *parts[1], found->second));
    } catch (const diffusim::error& error) {
        throw OpenMMException("The parameter " + parameter + " of the Context cannot be that of " + model->name() +
                              ": " + error.what());
    }
    if (send)
        send(found->second);
    model = next;
    lambda = found->second;
}

double FittedModel::computeLambdaDerivative(const std::vector<Vec3>& positions, const double* cell) const {
    std::vector<double> energies(2 * copies);
    model->component_energies(coordinates(positions), copies, energies.data(), model->is_periodic() ? cell : nullptr);
    double derivative = 0;
    for (std::size_t i = 0; i < copies; i++)
        derivative += energies[2 * i + 1] - energies[2 * i];
    return energyUnit(*model) * derivative;
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
