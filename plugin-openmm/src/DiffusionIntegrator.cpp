#include "DiffusionIntegrator.h"
#include "DiffusionForceImpl.h"
#include "GpuFrames.h"
#include "base64.h"
#include "messages.h"
#include "openmm/AndersenThermostat.h"
#include "openmm/CMMotionRemover.h"
#include "openmm/MonteCarloAnisotropicBarostat.h"
#include "openmm/MonteCarloBarostat.h"
#include "openmm/MonteCarloFlexibleBarostat.h"
#include "openmm/MonteCarloMembraneBarostat.h"
#include "openmm/NonbondedForce.h"
#include "openmm/OpenMMException.h"
#include "openmm/VerletIntegrator.h"
#include "openmm/internal/ForceImpl.h"
#include "openmm/internal/OSRngSeed.h"
#include "openmm/kernels.h"
#include "openmm/serialization/SerializationNode.h"
#include <algorithm>
#include <istream>
#include <ostream>
#include <random>

using namespace OpenMM;
using namespace std::string_literals;

namespace diffusim_openmm {

namespace {
// Steps on the GPU between two looks at how they went, at which the last good frame comes to the host.
const std::uint64_t STEPS_PER_LOOK = 200;

const char CHECKPOINT_TAG[8] = {'D', 'I', 'F', 'F', 'U', 'S', 'I', '2'};

struct Choice {
    const char* name;
    int32_t value;
};
const Choice ADAPTERS[] = {{"leimkuhler-matthews", DIFFUSIM_LEIMKUHLER_MATTHEWS},
                           {"euler-maruyama", DIFFUSIM_EULER_MARUYAMA},
                           {"heun", DIFFUSIM_HEUN},
                           {"mala", DIFFUSIM_MALA},
                           {"langevin", DIFFUSIM_LANGEVIN}};
const Choice SAMPLERS[] = {
    {"sequential", DIFFUSIM_SEQUENTIAL}, {"time-parallel", DIFFUSIM_TIME_PARALLEL}, {"auto", DIFFUSIM_AUTO}};

template <std::size_t n>
std::int32_t valueOf(const char* what, const std::string& name, const Choice (&choices)[n]) {
    std::string known;
    for (const Choice& choice : choices) {
        if (name == choice.name)
            return choice.value;
        known += (known.empty() ? "'" : &choice == std::end(choices) - 1 ? " or '" : ", '") + (choice.name + "'"s);
    }
    throw OpenMMException("The "s + what + " '" + name + "' is not known; expected " + known);
}

template <std::size_t n>
std::string nameOf(std::int32_t value, const Choice (&choices)[n]) {
    return std::find_if(std::begin(choices), std::end(choices),
                        [value](const Choice& choice) { return choice.value == value; })
        ->name;
}

template <class... Types>
bool isAnyOf(const Force& force) {
    return (... || (dynamic_cast<const Types*>(&force) != nullptr));
}

bool isBarostat(const Force& force) {
    return isAnyOf<MonteCarloBarostat, MonteCarloAnisotropicBarostat, MonteCarloFlexibleBarostat,
                   MonteCarloMembraneBarostat>(force);
}

bool isPeriodic(const Force& force) {
    try {
        return force.usesPeriodicBoundaryConditions();
    } catch (const OpenMMException&) { // the Force does not say
        return false;
    }
}

/** One of the seeds that follow from `seed`. */
std::int64_t branchOf(std::int64_t seed, std::uint32_t branch) {
    std::seed_seq sequence{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32), branch};
    std::uint32_t words[2];
    sequence.generate(words, words + 2);
    return static_cast<std::int64_t>(words[0] | static_cast<std::uint64_t>(words[1] >> 1) << 32);
}

/** Throw if the System asks for what learned dynamics cannot do. */
void checkSystem(const System& system) {
    const std::string prefix = "DiffusionIntegrator cannot run this System: ";
    if (system.getNumConstraints() > 0) {
        int a, b;
        double distance;
        system.getConstraintParameters(0, a, b, distance);
        throw OpenMMException(prefix + "it has " + std::to_string(system.getNumConstraints()) +
                              " constraints (the first between particles " + std::to_string(a) + " and " +
                              std::to_string(b) +
                              "), and the model moves every particle freely. Build the System with constraints=None "
                              "and rigidWater=False.");
    }
    for (int i = 0; i < system.getNumParticles(); i++)
        if (system.isVirtualSite(i))
            throw OpenMMException(prefix + "particle " + std::to_string(i) +
                                  " is a virtual site. Use a System without virtual sites.");
    for (int i = 0; i < system.getNumForces(); i++) {
        const Force& force = system.getForce(i);
        if (isBarostat(force))
            throw OpenMMException(prefix + "its " + force.getName() +
                                  " changes the volume, and the model knows only that of its snapshots. Remove the "
                                  "barostat; the volume stays as it is.");
        if (isAnyOf<AndersenThermostat>(force))
            throw OpenMMException(prefix + "its " + force.getName() +
                                  " acts on velocities, and this integrator keeps the temperature by itself. Remove "
                                  "it.");
    }
}
} // namespace

DiffusionIntegrator::DiffusionIntegrator(const ScoreModel& model, double temperature, double frictionCoeff,
                                         double stepSize)
    : model(model), settings{} {
    setConstraintTolerance(1e-5);
    apply({temperature, frictionCoeff, stepSize, 0, DIFFUSIM_LEIMKUHLER_MATTHEWS});
}

// ---- settings ------------------------------------------------------------------------------------------------------

diffusim::simulation_options DiffusionIntegrator::options(const Settings& settings) const {
    diffusim::simulation_options options;
    options.temperature = settings.temperature;
    options.friction_rate = settings.friction;
    options.time_step = settings.stepSize;
    options.spring = settings.spring;
    options.adapter = settings.adapter;
    options.sampler = settings.sampler;
    options.window = settings.window;
    options.tolerance = settings.tolerance;
    options.target_acceptance = settings.targetAcceptance;
    options.burn_in_steps = static_cast<std::uint64_t>(settings.burnInSteps);
    options.seed = static_cast<uint64_t>(seedInUse);
    options.masses = masses.empty() ? nullptr : masses.data();
    options.n_replicas = fitted.copies;
    options.device = device.c_str();
    options.matmul_precision = matmulPrecision.c_str();
    if (attached) {
        options.device = attachedDevice.c_str();
        options.cuda_context = frames->getGpu()->context;
        options.cuda_stream = frames->getGpu()->stream;
    }
    return options;
}

/** Whether the core is to compute on the platform's GPU, in its context. */
void DiffusionIntegrator::attach() {
    const GpuFramesKernel::Gpu* gpu = frames ? frames->getGpu() : nullptr;
    attachedDevice = gpu ? "cuda:" + std::to_string(gpu->index) : "";
    attached = gpu && (device == "auto" || device == "cuda" || device == attachedDevice);
}

void DiffusionIntegrator::apply(const Settings& next) {
    if (!(next.temperature > 0 && next.friction > 0)) // to the core, 0 means that they were not given
        throw OpenMMException("The temperature is " + shortText(next.temperature) + " K and the friction " +
                              shortText(next.friction) + " /ps; expected positive numbers");
    if (simulation) {
        simulation->reconfigure(options(next));
        timeStep = next.stepSize != 0 ? next.stepSize : simulation->statistics().time_step;
    }
    settings = next;
}

void DiffusionIntegrator::setTemperature(double kelvin) {
    Settings next = settings;
    next.temperature = kelvin;
    apply(next);
    if (simulation)
        warnOfTemperature();
}

void DiffusionIntegrator::warnOfTemperature() const {
    const double trained = model.getModel().training_temperature();
    if (std::abs(settings.temperature - trained) > 1e-9 * trained)
        warn("the model was trained at " + shortText(trained) + " K and is simulated at " +
             shortText(settings.temperature) + " K: its energy, which is a free energy at " + shortText(trained) +
             " K, is taken to be the same at that temperature");
}

void DiffusionIntegrator::setFriction(double rate) {
    Settings next = settings;
    next.friction = rate;
    apply(next);
}

void DiffusionIntegrator::setStepSize(double size) {
    Settings next = settings;
    next.stepSize = size;
    next.spring = 0;
    apply(next);
}

void DiffusionIntegrator::setSpring(double spring) {
    Settings next = settings;
    next.spring = spring;
    next.stepSize = 0;
    apply(next);
}

void DiffusionIntegrator::setAdapter(const std::string& name) {
    Settings next = settings;
    next.adapter = valueOf("adapter", name, ADAPTERS);
    apply(next);
    coreVelocities.clear(); // the core may have drawn others
}

std::string DiffusionIntegrator::getAdapter() const { return nameOf(settings.adapter, ADAPTERS); }

void DiffusionIntegrator::setSampler(const std::string& name, std::size_t window, double tolerance) {
    Settings next = settings;
    next.sampler = valueOf("sampler", name, SAMPLERS);
    next.window = window;
    next.tolerance = tolerance;
    apply(next);
}

std::string DiffusionIntegrator::getSampler() const { return nameOf(settings.sampler, SAMPLERS); }

void DiffusionIntegrator::setBurnIn(double targetAcceptance, std::int64_t steps) {
    if (steps < 0)
        throw OpenMMException("The steps of burn-in are " + std::to_string(steps) + "; expected 0 or more");
    Settings next = settings;
    next.targetAcceptance = targetAcceptance;
    next.burnInSteps = steps;
    apply(next);
}

void DiffusionIntegrator::setDevice(const std::string& name) {
    const std::string previous = device;
    device = name;
    attach();
    try {
        apply(settings);
    } catch (...) {
        device = previous;
        attach();
        throw;
    }
}

void DiffusionIntegrator::setMatmulPrecision(const std::string& name) {
    const std::string previous = matmulPrecision;
    matmulPrecision = name;
    try {
        apply(settings);
    } catch (...) {
        matmulPrecision = previous;
        throw;
    }
}

void DiffusionIntegrator::setRandomNumberSeed(std::int64_t value) {
    if (value < 0)
        throw OpenMMException("The random number seed is " + std::to_string(value) +
                              "; expected a positive number, or 0 to have one drawn");
    seed = value;
    if (simulation)
        continueNoise(seed == 0 ? static_cast<uint32_t>(osrngseed()) : seed, simulation->step_count());
}

void DiffusionIntegrator::continueNoise(std::int64_t seed, std::int64_t step) {
    seedInUse = seed;
    simulation->reconfigure(options(settings));
    simulation->set_step_count(static_cast<uint64_t>(step));
}

diffusim_statistics_t DiffusionIntegrator::statistics() const {
    if (simulation)
        return simulation->statistics();
    try { // as it will be if the System has the model's masses
        diffusim::simulation_options options = this->options(settings);
        options.device = options.matmul_precision = nullptr; // the step is the same with all of them
        return diffusim::simulation(model.getModel(), options).statistics();
    } catch (const diffusim::error& error) {
        throw OpenMMException(std::string("The step is not known before there is a Context: ") + error.what());
    }
}

double DiffusionIntegrator::getStepSize() const {
    return settings.stepSize != 0 ? settings.stepSize : statistics().time_step;
}

double DiffusionIntegrator::getSpring() const { return settings.spring != 0 ? settings.spring : statistics().spring; }

// ---- what can be asked

ContextImpl& DiffusionIntegrator::bound() const {
    if (!simulation)
        throw OpenMMException("This Integrator is not bound to a context!");
    if (!hasPositions)
        throw OpenMMException("Particle positions have not been set");
    return *context;
}

std::size_t DiffusionIntegrator::getNumCopies() const {
    if (!simulation)
        throw OpenMMException("This Integrator is not bound to a context!");
    return fitted.copies;
}

void DiffusionIntegrator::followLambda() {
    if (!simulation)
        return;
    fitted.follow(*context, [this](double lambda) {
        settle(); // the core would wait, and its error would leave the Context behind
        simulation->set_lambda(lambda);
    });
}

std::vector<double> DiffusionIntegrator::computeModelEnergies() {
    std::vector<Vec3> current;
    Vec3 box[3];
    bound().getPositions(current);
    followLambda();
    context->getPeriodicBoxVectors(box[0], box[1], box[2]);
    return fitted.computeEnergies(current, &box[0][0]);
}

double DiffusionIntegrator::computeConfigurationalTemperature() {
    std::vector<Vec3> current;
    bound().getPositions(current);
    followLambda();
    return fitted.computeTemperature(current);
}

double DiffusionIntegrator::computeSystemTemperature() {
    if (!isInertial())
        return computeConfigurationalTemperature();
    bound();
    if (!hasVelocities)
        return 0;
    importVelocities();
    return simulation->statistics().kinetic_temperature;
}

double DiffusionIntegrator::computeKineticEnergy() {
    if (!simulation || !isInertial() || !hasVelocities) // as long as nothing has been drawn the Context's are 0
        return 0;
    importVelocities();
    return simulation->statistics().kinetic_energy * static_cast<double>(fitted.copies); // of the core, their mean
}

double DiffusionIntegrator::getLargestScore() const { return simulation ? simulation->statistics().largest_score : 0; }

double DiffusionIntegrator::getStepsPerSweep() const {
    return simulation ? simulation->statistics().steps_per_sweep : 0;
}

double DiffusionIntegrator::getAcceptance() const { return simulation ? simulation->statistics().acceptance : 0; }

std::vector<double> DiffusionIntegrator::getStepFactors() const {
    if (!simulation)
        throw OpenMMException("This Integrator is not bound to a context!");
    return simulation->step_factors();
}

// ---- life in a Context

void DiffusionIntegrator::initialize(ContextImpl& contextRef) {
    if (owner != nullptr && &contextRef.getOwner() != owner)
        throw OpenMMException("This Integrator is already bound to a context");
    try {
        bind(contextRef);
    } catch (...) { // the Context, whose things these are, goes
        cleanup();
        throw;
    }
}

void DiffusionIntegrator::bind(ContextImpl& contextRef) {
    const System& system = contextRef.getSystem();
    checkSystem(system);
    fitted = model.fit(system, checkMasses);
    masses.resize(system.getNumParticles() / fitted.copies);
    for (std::size_t i = 0; i < masses.size(); i++)
        masses[i] = system.getParticleMass(static_cast<int>(i));
    seedInUse = seed == 0 ? static_cast<uint32_t>(osrngseed()) : seed;
    usedNoise.clear();
    std::string whyNot;
    frames = createGpuFrames(contextRef, framesKernel, whyNot);
    if (!whyNot.empty())
        warn(whyNot + ". Positions, and forces that act as a bias, pass through the host at every step");
    attach();
    try {
        simulation = std::make_unique<diffusim::simulation>(*fitted.model, options(settings));
    } catch (const diffusim::error& error) {
        const bool mayMove = device == "auto" && matmulPrecision == "highest";
        if (!attached || !mayMove || error.status() != DIFFUSIM_ERROR_UNSUPPORTED)
            throw;
        warn("the score is computed on the CPU, and positions pass through the host at every step: "s + error.what());
        attached = false;
        simulation = std::make_unique<diffusim::simulation>(*fitted.model, options(settings));
    }
    timeStep = settings.stepSize != 0 ? settings.stepSize : simulation->statistics().time_step;
    enqueued = 0;
    findLearnedEnergy(contextRef);
    platformKernel = contextRef.getPlatform().createKernel(IntegrateVerletStepKernel::Name(), contextRef);
    platformKernel.getAs<IntegrateVerletStepKernel>().initialize(system, VerletIntegrator(0.001));
    context = &contextRef;
    owner = &contextRef.getOwner();
    hasPositions = hasVelocities = hasMotionRemover = loadsUndrawn = false;
    positionsAreNew = velocitiesAreNew = false;
    cell.clear();
    corePositions.clear();
    coreVelocities.clear();
    coreForces.resize(3 * system.getNumParticles());

    inform("noise seed " + std::to_string(seedInUse));
    warnOfTemperature();
    bool periodic = false, nonbonded = false;
    for (int i = 0; i < system.getNumForces(); i++) {
        const Force& force = system.getForce(i);
        if (isAnyOf<CMMotionRemover>(force)) {
            hasMotionRemover = true;
            if (!isInertial())
                warn(force.getName() + " acts on velocities and does nothing here: overdamped particles have none, and "
                                       "the centre of mass diffuses");
            continue;
        }
        if (!(getIntegrationForceGroups() >> force.getForceGroup() & 1))
            continue;
        periodic |= isPeriodic(force);
        nonbonded |= isAnyOf<NonbondedForce>(force);
    }
    if (const std::string bias = biasForces(); !bias.empty())
        inform("forces that act as a bias on top of the learned score: " + bias);
    if (nonbonded)
        warn("the System has a NonbondedForce, which acts on top of the learned score. The score replaces the force "
             "field: remove the force field's Forces, or leave their groups out with setIntegrationForceGroups()");
    if (periodic && !model.getModel().is_periodic())
        warn("the System is periodic and the model is not: the model sees coordinates as they are, so keep its "
             "molecule whole and write trajectories with enforcePeriodicBox=False");
}

void DiffusionIntegrator::cleanup() {
    simulation.reset();
    frames = nullptr;
    framesKernel = Kernel();
    attached = false;
    platformKernel = Kernel();
}

// The platforms of GPUs finish setting up a Context when an integrator's kernel is initialised. This one needs no
// kernel, so it has the Verlet integrator's initialised, and never executed.
std::vector<std::string> DiffusionIntegrator::getKernelNames() {
    return {IntegrateVerletStepKernel::Name(), CalcCustomCPPForceKernel::Name()};
}

void DiffusionIntegrator::findLearnedEnergy(ContextImpl& contextRef) {
    learnedEnergy.clear();
    for (ForceImpl* impl : contextRef.getForceImpls())
        if (auto* ours = dynamic_cast<DiffusionForceImpl*>(impl);
            ours && ours->getOwner().getModel().equals(model) && ours->getNumCopies() == fitted.copies)
            learnedEnergy.push_back(ours);
    if (!learnedEnergy.empty() || &contextRef.getIntegrator() != this)
        return;
    ScoreModel resolved = model;
    resolved.setCopies(fitted.copies);
    ownEnergy = std::make_unique<DiffusionForce>(resolved);
    ownEnergy->setCheckMasses(checkMasses);
    int group = 0;
    while (group < 31 && !(getIntegrationForceGroups() >> group & 1))
        group++;
    ownEnergy->setForceGroup(group);
    auto impl = std::make_unique<DiffusionForceImpl>(*ownEnergy);
    impl->initialize(contextRef);
    learnedEnergy.push_back(impl.get());
    contextRef.getForceImpls().push_back(impl.release()); // which the Context deletes
}

void DiffusionIntegrator::stateChanged(State::DataType changed) {
    if (changed == State::Positions)
        hasPositions = positionsAreNew = true;
    if (changed == State::Velocities) {
        velocitiesAreNew = true;
        hasVelocities = !loadsUndrawn;
        loadsUndrawn = false;
    }
    if (changed == State::Parameters)
        guard([this] { followLambda(); });
}

/** A Force that was added to the System later than the Context was created has no part in it. */
void DiffusionIntegrator::refuseUnknownForces() const {
    const System& system = context->getSystem();
    const std::vector<ForceImpl*>& impls = context->getForceImpls();
    for (int i = 0; i < system.getNumForces(); i++) {
        const Force* force = &system.getForce(i);
        if (std::none_of(impls.begin(), impls.end(),
                         [force](const ForceImpl* impl) { return &impl->getOwner() == force; }))
            throw OpenMMException("The System's " + force->getName() +
                                  " came after the Context was created and would "
                                  "not act. Call context.reinitialize(preserveState=True) after adding it");
    }
}

/** Names of the Forces that act as a bias; empty if there are none. */
std::string DiffusionIntegrator::biasForces() const {
    const int groups = getIntegrationForceGroups();
    std::string names;
    for (const ForceImpl* impl : context->getForceImpls()) {
        const Force& force = impl->getOwner();
        if ((groups >> force.getForceGroup() & 1) && !isAnyOf<CMMotionRemover>(force) &&
            std::find(learnedEnergy.begin(), learnedEnergy.end(), impl) == learnedEnergy.end())
            names += (names.empty() ? "" : ", ") + force.getName();
    }
    return names;
}

void DiffusionIntegrator::followBox() {
    if (!model.getModel().is_periodic())
        return;
    Vec3 box[3];
    context->getPeriodicBoxVectors(box[0], box[1], box[2]);
    const double* current = &box[0][0];
    if (cell.size() == 9 && std::equal(cell.begin(), cell.end(), current))
        return;
    settle(); // as in followLambda()
    simulation->set_cell(current);
    cell.assign(current, current + 9);
}

/** Give the simulation the Context's positions, unless it has them. */
void DiffusionIntegrator::importPositions() {
    if (attached && !corePositions.empty())
        simulation->get_positions(corePositions);
    if (!frames) {
        context->getPositions(positions);
        imported.assign(coordinates(positions), coordinates(positions) + coreForces.size());
    } else {
        imported = corePositions;
        frames->importPositions(imported);
    }
    if (imported == corePositions)
        return;
    corePositions = imported;
    try {
        simulation->set_positions(corePositions);
    } catch (...) {
        corePositions.clear();
        throw;
    }
}

/** Give the simulation the Context's velocities, unless it has them; draw them if nobody has set them. */
void DiffusionIntegrator::importVelocities() {
    if (!hasVelocities) {
        simulation->draw_velocities();
        exportVelocities();
        return;
    }
    if (attached && !coreVelocities.empty())
        simulation->get_velocities(coreVelocities);
    if (!frames) {
        context->getVelocities(velocities);
        imported.assign(coordinates(velocities), coordinates(velocities) + coreForces.size());
    } else {
        imported = coreVelocities;
        frames->importVelocities(imported);
    }
    if (imported == coreVelocities)
        return;
    coreVelocities.clear();
    simulation->set_velocities(imported);
    coreVelocities = imported;
}

void DiffusionIntegrator::importFrame() {
    if (!attached || positionsAreNew)
        importPositions();
    if (isInertial() && (!attached || velocitiesAreNew || !hasVelocities))
        importVelocities();
    positionsAreNew = velocitiesAreNew = false;
    if (!attached)
        return;
    frames->importPositions(simulation->device_positions()); // what Forces and other integrators have moved
    if (isInertial())
        frames->importVelocities(simulation->device_velocities());
}

void DiffusionIntegrator::exportVelocities() {
    coreVelocities.resize(coreForces.size());
    simulation->get_velocities(coreVelocities);
    if (frames)
        frames->exportVelocities(coreVelocities);
    else {
        velocities.resize(coreVelocities.size() / 3);
        std::copy(coreVelocities.begin(), coreVelocities.end(), &velocities[0][0]);
        context->setVelocities(velocities);
    }
    hasVelocities = true;
}

/** Give the Context the frame of the simulation, whose clock is at `firstStep` there. */
void DiffusionIntegrator::exportFrame(std::uint64_t firstStep) {
    if (attached) {
        frames->exportPositions(simulation->device_positions());
        if (isInertial())
            frames->exportVelocities(simulation->device_velocities());
        frames->reorder(simulation->device_positions());
    } else {
        simulation->get_positions(corePositions);
        if (frames)
            frames->exportPositions(corePositions);
        else {
            std::copy(corePositions.begin(), corePositions.end(), &positions[0][0]);
            context->setPositions(positions);
        }
        if (isInertial())
            exportVelocities();
        if (frames)
            frames->reorder(corePositions);
    }
    moveClock(static_cast<std::int64_t>(simulation->step_count() - firstStep));
    std::uint64_t& used = usedNoise[seedInUse];
    used = std::max(used, simulation->step_count());
}

void DiffusionIntegrator::moveClock(std::int64_t steps) {
    context->setTime(context->getTime() + static_cast<double>(steps) * timeStep);
    context->setStepCount(context->getStepCount() + steps);
}

void DiffusionIntegrator::step(int steps) {
    lastStatus = DIFFUSIM_ERROR_INVALID_ARGUMENT; // unless something else goes wrong, or nothing
    bound();
    guard([this] { settle(); });
    if (steps < 0)
        throw OpenMMException("step() was asked for " + std::to_string(steps) + " steps; expected 0 or more");
    refuseUnknownForces();
    const std::string bias = biasForces();
    if (bias.empty() && !(isInertial() && hasMotionRemover))
        advance(steps, false);
    else if (settings.adapter == DIFFUSIM_HEUN || settings.adapter == DIFFUSIM_MALA)
        throw OpenMMException(
            "The adapter '" + getAdapter() + "' takes no bias, and the System has " + bias +
            ". Use 'leimkuhler-matthews', 'euler-maruyama' or 'langevin', remove the Forces, or leave their groups out "
            "with setIntegrationForceGroups()");
    else if (!bias.empty() && settings.sampler == DIFFUSIM_TIME_PARALLEL)
        throw OpenMMException("The sampler 'time-parallel' takes many steps at once, and the System has " + bias +
                              ", evaluated at every one. Use 'sequential' or 'auto', remove the Forces, or leave their "
                              "groups out with setIntegrationForceGroups()");
    else
        for (int i = 0; i < steps; i++) {
            context->updateContextState();
            if (!bias.empty())
                computeBias();
            advance(1, !bias.empty());
        }
    guard([this] { settle(); });
    lastStatus = DIFFUSIM_OK;
}

void DiffusionIntegrator::computeBias() {
    const auto mute = [this](bool muted) {
        for (DiffusionForceImpl* impl : learnedEnergy)
            impl->setMuted(muted);
    };
    mute(true);
    try {
        context->calcForcesAndEnergy(true, false, getIntegrationForceGroups());
    } catch (...) {
        mute(false);
        throw;
    }
    mute(false);
    if (attached)
        return; // they are read where they are
    if (frames)
        return frames->readForces(coreForces);
    context->getForces(forces);
    std::copy(&forces[0][0], &forces[0][0] + coreForces.size(), coreForces.begin());
}

/** Keep the status of an error of the core, and say which copy a replica is. */
template <class Body>
void DiffusionIntegrator::guard(Body&& body) {
    try {
        body();
    } catch (const diffusim::error& error) {
        lastStatus = error.status();
        if (fitted.copies == 1)
            throw;
        const std::string n = std::to_string(masses.size());
        throw diffusim::error(error.status(), (std::string(error.what()) +
                                               " (Replica r is copy r of the molecule: its "
                                               "first particle is particle " +
                                               n + " r of the System.)")
                                                  .c_str());
    }
}

void DiffusionIntegrator::advance(int steps, bool biased) {
    if (steps <= 0)
        return;
    guard([=] {
        followLambda(); // also where a Force or a checkpoint has set it
        followBox();
        if (attached && (biased || (isInertial() && hasMotionRemover)))
            return enqueue(biased);
        importFrame();
        const std::uint64_t firstStep = simulation->step_count();
        try {
            if (biased)
                simulation->step_biased(coreForces);
            else
                simulation->step(static_cast<std::uint64_t>(steps));
        } catch (const diffusim::error&) { // the core has gone back to the last good frame
            exportFrame(firstStep);
            throw;
        }
        exportFrame(firstStep);
    });
}

/** Start one step on the platform's GPU, under the forces that the Context has computed last if there is a bias. */
void DiffusionIntegrator::enqueue(bool biased) {
    if (enqueued >= STEPS_PER_LOOK || positionsAreNew || velocitiesAreNew)
        settle();
    if (enqueued == 0)
        firstEnqueued = simulation->step_count();
    importFrame();
    if (biased)
        frames->readForces(simulation->device_forces());
    try {
        simulation->enqueue(1, biased);
    } catch (const diffusim::error&) { // the core has gone back to the last good frame
        const std::uint64_t reached = firstEnqueued + enqueued;
        enqueued = 0;
        exportFrame(reached);
        throw;
    }
    enqueued++;
    frames->exportPositions(simulation->device_positions());
    if (isInertial())
        frames->exportVelocities(simulation->device_velocities());
    frames->reorder(simulation->device_positions());
    moveClock(1);
}

/** Wait for what was enqueued, and tell how it went. */
void DiffusionIntegrator::settle() {
    if (enqueued == 0)
        return;
    const std::uint64_t reached = firstEnqueued + enqueued;
    enqueued = 0;
    try {
        simulation->synchronize();
    } catch (const diffusim::error&) {
        exportFrame(reached);
        throw;
    }
    std::uint64_t& used = usedNoise[seedInUse];
    used = std::max(used, reached);
}

// ---- checkpoints: OpenMM keeps the positions, time and step of the Context; the noise is here, and what else the core
// has

/** Whether the core goes on from more than positions, velocities and noise: from tuned steps, counts, or frames ahead.
 */
bool DiffusionIntegrator::needsMoreState() const {
    return settings.adapter == DIFFUSIM_MALA || settings.sampler != DIFFUSIM_SEQUENTIAL;
}

void DiffusionIntegrator::createCheckpoint(std::ostream& stream) const {
    const std::uint64_t step = simulation->step_count();
    const std::string hash = model.getModel().sha256();
    stream.write(CHECKPOINT_TAG, sizeof CHECKPOINT_TAG);
    stream.write(hash.data(), static_cast<std::streamsize>(hash.size()));
    stream.write(reinterpret_cast<const char*>(&seedInUse), sizeof seedInUse);
    stream.write(reinterpret_cast<const char*>(&step), sizeof step);
    stream.put(static_cast<char>(hasVelocities));
    std::vector<unsigned char> core;
    if (needsMoreState() || frames) // a GPU's Context has the rounding of what the core holds
        core = simulation->checkpoint();
    const std::uint64_t size = core.size();
    stream.write(reinterpret_cast<const char*>(&size), sizeof size);
    stream.write(reinterpret_cast<const char*>(core.data()), static_cast<std::streamsize>(size));
}

void DiffusionIntegrator::loadCheckpoint(std::istream& stream) {
    char tag[sizeof CHECKPOINT_TAG] = {};
    std::string hash = model.getModel().sha256(), storedHash(hash.size(), ' ');
    std::int64_t storedSeed = 0, storedStep = 0;
    stream.read(tag, sizeof tag);
    stream.read(&storedHash[0], static_cast<std::streamsize>(storedHash.size()));
    stream.read(reinterpret_cast<char*>(&storedSeed), sizeof storedSeed);
    stream.read(reinterpret_cast<char*>(&storedStep), sizeof storedStep);
    const bool storedVelocities = stream.get() == 1;
    std::uint64_t size = 0;
    stream.read(reinterpret_cast<char*>(&size), sizeof size);
    const bool readable = stream && std::equal(std::begin(tag), std::end(tag), CHECKPOINT_TAG);
    std::vector<unsigned char> core;
    for (std::uint64_t i = 0; readable && stream && i < size; i++) // a wrong size asks for no memory
        core.push_back(static_cast<unsigned char>(stream.get()));
    if (!readable || !stream)
        throw OpenMMException(
            "The checkpoint was not written with a DiffusionIntegrator of this version, or was cut short");
    if (hash != storedHash)
        throw OpenMMException("The checkpoint was written with another model (sha256 " + storedHash +
                              "), and this DiffusionIntegrator has " + model.getModel().name() + " (" + hash + ")");
    if (needsMoreState() && core.empty())
        throw OpenMMException(
            "The checkpoint was written with another adapter or sampler. Create the integrator as it was "
            "then, or load a State, which goes on from positions and noise");
    continueNoise(storedSeed, storedStep);
    corePositions.clear();
    coreVelocities.clear();
    if (needsMoreState() || (frames && !core.empty()))
        try {
            simulation->restore(core);
            corePositions.resize(coreForces.size());
            simulation->get_positions(corePositions);
            if (isInertial() && storedVelocities) {
                coreVelocities.resize(coreForces.size());
                simulation->get_velocities(coreVelocities);
            }
        } catch (const diffusim::error& error) {
            if (needsMoreState() || error.status() != DIFFUSIM_ERROR_INVALID_CHECKPOINT)
                throw;
            inform("the trajectory goes on from the positions that the platform rounded: "s + error.what());
        }
    hasPositions = positionsAreNew = velocitiesAreNew = true;
    hasVelocities = storedVelocities;
    loadsUndrawn = !storedVelocities;
}

void DiffusionIntegrator::serializeParameters(SerializationNode& node) const {
    node.setLongProperty("noiseSeed", seedInUse);
    node.setLongProperty("noiseStep", static_cast<long long>(simulation->step_count()));
    node.setBoolProperty("hasVelocities", hasVelocities);
    if (settings.targetAcceptance != 0) {
        const std::vector<unsigned char> core = simulation->checkpoint();
        node.setStringProperty("tunedSteps", encodeBase64(std::string(core.begin(), core.end())));
    }
}

void DiffusionIntegrator::deserializeParameters(const SerializationNode& node) {
    if (!node.hasProperty("noiseSeed")) { // the State of another integrator, as after an equilibration
        inform("the State was saved with another integrator; the noise goes on with seed " + std::to_string(seedInUse));
        return;
    }
    std::int64_t seed = node.getLongProperty("noiseSeed");
    const std::int64_t step = node.getLongProperty("noiseStep");
    // Replica exchange has many walkers start from one State: in a Context that has gone on from there already, the
    // same noise again would couple them. The next such walker has another seed, which its own States hand on.
    const auto used = usedNoise.find(seed);
    if (used != usedNoise.end() && used->second > static_cast<std::uint64_t>(step)) {
        const std::int64_t first = seed;
        for (std::uint32_t branch = 1; usedNoise.count(seed) != 0; branch++)
            seed = branchOf(first, branch);
        inform("this Context has gone on from that State before, with noise seed " + std::to_string(first) +
               "; this time it does with seed " + std::to_string(seed));
    }
    if (settings.targetAcceptance != 0)
        try {
            const std::string core = decodeBase64(node.getStringProperty("tunedSteps", ""));
            simulation->restore({core.begin(), core.end()});
            corePositions.clear(); // it has those of the State now, and the Context may not
        } catch (const diffusim::error& error) {
            if (error.status() != DIFFUSIM_ERROR_INVALID_CHECKPOINT)
                throw;
            inform("the State has no steps tuned for these settings, and those of this Context stay: "s + error.what());
        }
    continueNoise(seed, step);
    if (!node.getBoolProperty("hasVelocities", true))
        hasVelocities = false; // those of the State, if it has any, are 0, and are yet to be drawn
}

} // namespace diffusim_openmm
