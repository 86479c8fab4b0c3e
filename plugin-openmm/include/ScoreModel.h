/* A score model as objects of OpenMM hold it: shared between copies, and written into their XML. */

#ifndef DIFFUSIM_OPENMM_SCORE_MODEL_H
#define DIFFUSIM_OPENMM_SCORE_MODEL_H

#include "diffusim.hpp"
#include "openmm/System.h"
#include "openmm/Vec3.h"
#include "openmm/serialization/SerializationNode.h"
#include <memory>
#include <string>
#include <vector>

namespace diffusim_openmm {

/**
 * A model of n particles, of which System particle particles[i] is the i-th. `particles` may be empty: then the System
 * has exactly the model's particles, in its order.
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

    const diffusim::model& getModel() const { return *model; }
    const std::vector<std::size_t>& getParticles() const { return particles; }
    void setParticles(const std::vector<std::size_t>& indices) { particles = indices; }

    /**
     * The model as one of all particles of `system`; those it does not move have zero score.
     *
     * @param checkMasses   whether the masses must be those of the model's particles
     * @throws diffusim::error if it does not fit: the numbers of particles, or the first particle that differs
     */
    std::shared_ptr<const diffusim::model> fit(const OpenMM::System& system, bool checkMasses) const;
    /**
     * The learned energy (kJ/mol) of a System's positions (nm).
     *
     * @param cell   its periodic box [3][3] (nm), which only a periodic model looks at
     */
    double computeEnergy(const std::vector<OpenMM::Vec3>& positions, const double* cell) const;
    /**
     * The configurational temperature (K) of the learned energy at a System's positions (nm).
     *
     * @throws OpenMM::OpenMMException for a periodic model
     */
    double computeTemperature(const std::vector<OpenMM::Vec3>& positions) const;

private:
    std::vector<double> gather(const std::vector<OpenMM::Vec3>& positions) const;

    std::shared_ptr<const diffusim::model> model;
    std::vector<std::size_t> particles;
    double noiseLevel = 0;
};

} // namespace diffusim_openmm

#endif
