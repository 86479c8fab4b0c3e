/* A score model as objects of OpenMM hold it: shared between copies, and written into their XML. */

#ifndef DIFFUSIM_OPENMM_SCORE_MODEL_H
#define DIFFUSIM_OPENMM_SCORE_MODEL_H

#include "diffusim.hpp"
#include "openmm/System.h"
#include "openmm/Vec3.h"
#include "openmm/internal/ContextImpl.h"
#include "openmm/serialization/SerializationNode.h"
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace diffusim_openmm {

/** [n][3], which is how Vec3s lie in memory. */
inline const double* coordinates(const std::vector<OpenMM::Vec3>& vectors) {
    return reinterpret_cast<const double*>(vectors.data());
}

/** A model as one of every copy of the molecule that a System holds, and their number. */
struct FittedModel {
    std::shared_ptr<const diffusim::model> model;
    std::size_t copies = 1;
    /** Of a blend: its two models, its λ, and the parameter of a Context that λ follows, where the Context has it. */
    std::vector<std::shared_ptr<const diffusim::model>> parts = {};
    double lambda = 0;
    std::string parameter = {};

    /**
     * Take λ of a blend from the Context.
     *
     * @param send   told first if it is another than before; where it throws, λ stays as it was
     * @throws OpenMM::OpenMMException if it is not from 0 to 1
     */
    void follow(const OpenMM::ContextImpl& context, const std::function<void(double)>& send = nullptr);
    /** ∂E/∂λ of a blend at a System's positions (nm), kJ/mol, summed over all copies; `cell` as below. */
    double computeLambdaDerivative(const std::vector<OpenMM::Vec3>& positions, const double* cell) const;

    /**
     * The learned energy (kJ/mol) of every copy at a System's positions (nm).
     *
     * @param cell   its periodic box [3][3] (nm), which only a periodic model looks at
     */
    std::vector<double> computeEnergies(const std::vector<OpenMM::Vec3>& positions, const double* cell) const;
    /**
     * The configurational temperature (K) of the learned energy at a System's positions (nm), over all copies.
     *
     * @throws OpenMM::OpenMMException for a periodic model
     */
    double computeTemperature(const std::vector<OpenMM::Vec3>& positions) const;
};

/** Where a model comes from: a file, a description, or two other models of which it is the blend (theory 7). */
class ModelSource {
public:
    explicit ModelSource(const std::string& path, double noiseLevel);
    /** From the element <Model>. */
    explicit ModelSource(const OpenMM::SerializationNode& node);
    void serialize(OpenMM::SerializationNode& node) const;

    std::shared_ptr<const diffusim::model> model;
    double noiseLevel = 0;          // nm
    std::vector<ModelSource> parts; // of a blend: two
    double lambda = 0;
    std::string parameter; // the parameter of a Context that λ follows
};

/**
 * A model of n particles, and which particles of a System they are. The System holds a number of copies of the
 * molecule, one after the other and with equally many particles each; within a copy, particle particles[i] is the
 * model's i-th. `particles` may be empty: then a copy is exactly the model's particles, in its order.
 */
class ScoreModel {
public:
    /**
     * @param path         a model file
     * @param noiseLevel   noise level at which the score is read, in nm; 0 = the one the file names for simulations
     */
    explicit ScoreModel(const std::string& path, double noiseLevel = 0);
    /** The model, and the particles it moves, from the children <Model> and <Particles> of an XML element. */
    explicit ScoreModel(const OpenMM::SerializationNode& node);
    /** Write <Model>, with the model file embedded, and <Particles>. */
    void serialize(OpenMM::SerializationNode& node) const;

    const diffusim::model& getModel() const { return *source.model; }
    /** Of a blend: the parameter of a Context that its λ follows, and where λ starts; else empty. */
    const std::string& getLambdaParameter() const { return source.parameter; }
    double getLambda() const { return source.lambda; }
    const std::vector<std::size_t>& getParticles() const { return particles; }
    void setParticles(const std::vector<std::size_t>& indices) { particles = indices; }
    /** Copies of the molecule in the System; 0 = as many as it has particles for. */
    std::size_t getCopies() const { return copies; }
    void setCopies(std::size_t number) { copies = number; }
    /** Whether `other` gives the same energy of the same particles. */
    bool equals(const ScoreModel& other) const;

    /**
     * The model as one of all particles of each copy in `system`; those it does not move have zero score.
     *
     * @param checkMasses   whether the masses must be those of the model's particles
     * @throws diffusim::error or OpenMM::OpenMMException if it does not fit: the numbers of particles, or the first
     *         copy and particle that differ
     */
    FittedModel fit(const OpenMM::System& system, bool checkMasses) const;

private:
    std::size_t copiesIn(std::size_t numParticles) const;

    ModelSource source;
    std::vector<std::size_t> particles;
    std::size_t copies = 0;
};

} // namespace diffusim_openmm

#endif
