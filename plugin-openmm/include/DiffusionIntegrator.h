/* Overdamped dynamics under a learned score, for OpenMM: the step itself is the core's (theory 2, 6, 10). */

#ifndef DIFFUSIM_OPENMM_DIFFUSION_INTEGRATOR_H
#define DIFFUSIM_OPENMM_DIFFUSION_INTEGRATOR_H

#include "DiffusionForce.h"
#include "ScoreModel.h"
#include "openmm/Integrator.h"
#include "openmm/Kernel.h"
#include "openmm/internal/ContextImpl.h"
#include <cstdint>
#include <iosfwd>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace diffusim_openmm {

class DiffusionForceImpl;
class GpuFramesKernel;

/**
 * Moves the particles of a System by the score of a model. The model replaces the force field: whatever Forces the
 * System has, in the groups of getIntegrationForceGroups(), act on top of it as a bias. Without any, step(n) is one
 * call into the core. A System of several copies of the molecule is moved as a batch: copy r as replica r of the core.
 *
 * The Context's potential energy is the learned one and that of the Forces, in the lowest of the integration force
 * groups, unless this integrator is part of a CompoundIntegrator, whose others might not want it. A DiffusionForce with
 * the same model and particles is that energy too, never a bias.
 *
 * The core computes the score and the step, on the device of setDevice(). On the platform CUDA that is its GPU, in its
 * context, and frames stay there. The core keeps positions in double precision, of which a Context in single or mixed
 * precision shows the rounding: the same seed gives the trajectory of every other door of diffusim bit for bit, unless
 * forces that act as a bias were rounded.
 *
 * The dynamics is overdamped, velocities have no meaning and are left alone, but with the adapter "langevin", whose
 * velocities are the Context's (those that nobody has set are drawn at the first step). Failures throw diffusim::error
 * or OpenMM::OpenMMException.
 */
class DiffusionIntegrator : public OpenMM::Integrator {
public:
    /**
     * @param model           the score, and which particles it moves
     * @param temperature     in K
     * @param frictionCoeff   friction rate in 1/ps, as of LangevinIntegrator: D = kT/(m frictionCoeff)
     * @param stepSize        in ps; 0 = the step that the model recommends
     */
    DiffusionIntegrator(const ScoreModel& model, double temperature, double frictionCoeff, double stepSize = 0);

    const ScoreModel& getModel() const { return model; }
    /** K */
    double getTemperature() const { return settings.temperature; }
    void setTemperature(double kelvin);
    /** 1/ps */
    double getFriction() const { return settings.friction; }
    void setFriction(double rate);
    /** ps. Where the step was given as a spring it follows from the masses of the System, and before there is a Context
       from those of the model. */
    double getStepSize() const override;
    void setStepSize(double size) override;
    /** Stiffness of the harmonic adapter of the most mobile particle, in 1/nm². */
    double getSpring() const;
    /** Set the step by its spring; the step size follows. */
    void setSpring(double spring);
    /** The step as it was set: the step size in ps, the spring in 1/nm², or, both being 0, as the model recommends. */
    double getRequestedStepSize() const { return settings.stepSize; }
    double getRequestedSpring() const { return settings.spring; }
    /** "leimkuhler-matthews" (default), "euler-maruyama", "langevin", or, without bias, "heun" or "mala". */
    std::string getAdapter() const;
    void setAdapter(const std::string& name);
    /**
     * How the core takes many steps: one after the other ("sequential", the default), many at once to a tolerance
     * ("time-parallel", theory 12; in step(n), where no Force is a bias), or whichever is faster ("auto").
     *
     * @param window      frames that a sweep works on; 0 = the core's default
     * @param tolerance   by how much a final frame may still change, in nm; -1 = the core's default
     */
    void setSampler(const std::string& name, std::size_t window = 0, double tolerance = -1);
    std::string getSampler() const;
    std::size_t getWindow() const { return settings.window; }
    double getTolerance() const { return settings.tolerance; }
    /** Time-parallel: steps that became final in a sweep, on average; 0 before the first. */
    double getStepsPerSweep() const;
    /**
     * With the adapter "mala": tune the step of each copy to an acceptance, between 0 and 1, in the first `steps`
     * steps, and keep it from then on. A simulation does so by the number of its step, which checkpoints and States
     * hold.
     *
     * @param targetAcceptance  such as 0.6; 0, and no steps = none
     */
    void setBurnIn(double targetAcceptance, std::int64_t steps);
    double getTargetAcceptance() const { return settings.targetAcceptance; }
    std::int64_t getBurnInSteps() const { return settings.burnInSteps; }
    /** What burn-in has made of the effective step of each copy; 1 without one. */
    std::vector<double> getStepFactors() const;
    /** Where the core computes: "auto" (default: the GPU of the platform CUDA, else the CPU), "cpu", "cuda" (that GPU,
       else the first), "cuda:1", … */
    const std::string& getDevice() const { return device; }
    void setDevice(const std::string& name);
    /** Products of matrices: "highest" (default), with the same bits on every device, or, on a GPU, "high": on its
       tensor cores, nearly as accurate, with bits that only such GPUs have. */
    const std::string& getMatmulPrecision() const { return matmulPrecision; }
    void setMatmulPrecision(const std::string& name);
    /** Whether the masses of the System must be those of the model's particles (default true). */
    bool getCheckMasses() const { return checkMasses; }
    void setCheckMasses(bool check) { checkMasses = check; }
    /** The seed as it was set; 0 = a fresh one is drawn when a Context is created. */
    std::int64_t getRandomNumberSeed() const { return seed; }
    void setRandomNumberSeed(std::int64_t value);
    /** The seed that the noise comes from: the one that was set, drawn, or read from a checkpoint. */
    std::int64_t getSeedInUse() const { return seedInUse; }

    /** Copies of the molecule in the Context's System. */
    std::size_t getNumCopies() const;
    /** The learned energy of every copy at the Context's positions, in kJ/mol. */
    std::vector<double> computeModelEnergies();
    /** The configurational temperature of the learned energy at the Context's positions, in K. */
    double computeConfigurationalTemperature();
    /** With the adapter "langevin" the temperature of the velocities, else the configurational one, in K. */
    double computeSystemTemperature();
    /** Largest |component| of any score since the Context was created, in 1/nm. */
    double getLargestScore() const;
    /** Fraction of the proposals of "mala" that were accepted: after burn-in, once it is over; 0 before the first. */
    double getAcceptance() const;
    /** How the last step() ended: DIFFUSIM_OK, or the DIFFUSIM_ERROR_* of the error it threw. */
    std::int32_t getLastStatus() const { return lastStatus; }

    void step(int steps) override;

protected:
    void initialize(OpenMM::ContextImpl& context) override;
    void cleanup() override;
    std::vector<std::string> getKernelNames() override;
    void stateChanged(OpenMM::State::DataType changed) override;
    double computeKineticEnergy() override;
    bool kineticEnergyRequiresForce() const override { return false; }
    void createCheckpoint(std::ostream& stream) const override;
    void loadCheckpoint(std::istream& stream) override;
    void serializeParameters(OpenMM::SerializationNode& node) const override;
    void deserializeParameters(const OpenMM::SerializationNode& node) override;

private:
    /** What the core is told. Of stepSize and spring at most one is not 0. */
    struct Settings {
        double temperature, friction, stepSize, spring;
        int32_t adapter, sampler = DIFFUSIM_SEQUENTIAL;
        std::size_t window = 0;
        double tolerance = -1;
        double targetAcceptance = 0;
        std::int64_t burnInSteps = 0;
    };

    diffusim::simulation_options options(const Settings& settings) const;
    void apply(const Settings& next);
    void warnOfTemperature() const;
    void continueNoise(std::int64_t seed, std::int64_t step);
    diffusim_statistics_t statistics() const;
    OpenMM::ContextImpl& bound() const;
    void findLearnedEnergy(OpenMM::ContextImpl& context);
    void refuseUnknownForces() const;
    std::string biasForces() const;
    void followLambda();
    void computeBias();
    bool isInertial() const { return settings.adapter == DIFFUSIM_LANGEVIN; }
    bool needsMoreState() const;
    void bind(OpenMM::ContextImpl& context);
    void attach();
    void followBox();
    void importPositions();
    void importVelocities();
    void importFrame();
    void exportVelocities();
    void exportFrame(std::uint64_t firstStep);
    void moveClock(std::int64_t steps);
    void advance(int steps, bool biased);
    void enqueue(bool biased);
    void settle();
    template <class Body>
    void guard(Body&& body);

    ScoreModel model;
    Settings settings;
    bool checkMasses = true;
    std::string device = "auto", matmulPrecision = "highest";
    std::int64_t seed = 0, seedInUse = 0;
    std::int32_t lastStatus = DIFFUSIM_OK;

    // While there is a Context.
    OpenMM::Kernel platformKernel;
    OpenMM::Kernel framesKernel;
    GpuFramesKernel* frames = nullptr; // where the platform has one
    bool attached = false;             // the core computes in the context of the platform's GPU
    std::string attachedDevice;
    FittedModel fitted;
    std::unique_ptr<diffusim::simulation> simulation;
    std::unique_ptr<DiffusionForce> ownEnergy;       // of an impl that the System does not know
    std::vector<DiffusionForceImpl*> learnedEnergy;  // the impls of the Context that are not bias
    std::map<std::int64_t, std::uint64_t> usedNoise; // for each seed, the first step whose noise has not been used
    std::vector<double> masses;
    bool hasPositions = false, hasVelocities = false, hasMotionRemover = false;
    bool loadsUndrawn = false; // a checkpoint is being loaded whose velocities were yet to be drawn
    bool positionsAreNew = false, velocitiesAreNew = false; // were set since the last step
    double timeStep = 0;                                    // ps
    std::uint64_t enqueued = 0, firstEnqueued = 0; // steps that nobody has waited for, and the first one's number
    std::vector<double> cell, imported;
    std::vector<OpenMM::Vec3> positions, forces;
    std::vector<double> corePositions, coreForces; // the positions the simulation holds, unless `hasPositions` is false
    std::vector<OpenMM::Vec3> velocities;
    std::vector<double> coreVelocities; // those that the simulation holds, where they are known
};

} // namespace diffusim_openmm

#endif
