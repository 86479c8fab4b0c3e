/* XML of both classes. This is also how Python makes them (python/diffusim/openmm): the one way in is always tested. */

#include "Serialization.h"
#include "DiffusionForce.h"
#include "DiffusionIntegrator.h"
#include "openmm/OpenMMException.h"
#include "openmm/serialization/SerializationNode.h"
#include "openmm/serialization/SerializationProxy.h"
#include <memory>
#include <typeinfo>

using namespace OpenMM;

namespace diffusim_openmm {

namespace {
const int VERSION = 1;

void checkVersion(const SerializationNode& node) {
    const int version = node.getIntProperty("version");
    if (version != VERSION)
        throw OpenMMException("This XML was written by another diffusim: version " + std::to_string(version) +
                              " of its element, this one reads version " + std::to_string(VERSION));
}

class DiffusionIntegratorProxy : public SerializationProxy {
public:
    DiffusionIntegratorProxy() : SerializationProxy("DiffusionIntegrator") {}

    void serialize(const void* object, SerializationNode& node) const override {
        const auto& integrator = *static_cast<const DiffusionIntegrator*>(object);
        node.setIntProperty("version", VERSION);
        node.setDoubleProperty("temperature", integrator.getTemperature());
        node.setDoubleProperty("friction", integrator.getFriction());
        node.setDoubleProperty("stepSize", integrator.getRequestedStepSize());
        node.setDoubleProperty("spring", integrator.getRequestedSpring());
        node.setStringProperty("adapter", integrator.getAdapter());
        node.setStringProperty("sampler", integrator.getSampler());
        node.setLongProperty("window", static_cast<long long>(integrator.getWindow()));
        node.setDoubleProperty("tolerance", integrator.getTolerance());
        node.setDoubleProperty("targetAcceptance", integrator.getTargetAcceptance());
        node.setLongProperty("burnInSteps", integrator.getBurnInSteps());
        node.setStringProperty("device", integrator.getDevice());
        node.setStringProperty("matmulPrecision", integrator.getMatmulPrecision());
        node.setLongProperty("randomSeed", integrator.getRandomNumberSeed());
        node.setBoolProperty("checkMasses", integrator.getCheckMasses());
        node.setDoubleProperty("constraintTolerance", integrator.getConstraintTolerance());
        node.setIntProperty("integrationForceGroups", integrator.getIntegrationForceGroups());
        integrator.getModel().serialize(node);
    }

    void* deserialize(const SerializationNode& node) const override {
        checkVersion(node);
        auto integrator = std::make_unique<DiffusionIntegrator>(ScoreModel(node), node.getDoubleProperty("temperature"),
                                                                node.getDoubleProperty("friction"),
                                                                node.getDoubleProperty("stepSize", 0));
        if (node.getDoubleProperty("spring", 0) != 0)
            integrator->setSpring(node.getDoubleProperty("spring"));
        integrator->setAdapter(node.getStringProperty("adapter", integrator->getAdapter()));
        integrator->setSampler(node.getStringProperty("sampler", integrator->getSampler()),
                               static_cast<std::size_t>(node.getLongProperty("window", 0)),
                               node.getDoubleProperty("tolerance", -1));
        integrator->setBurnIn(node.getDoubleProperty("targetAcceptance", 0), node.getLongProperty("burnInSteps", 0));
        integrator->setDevice(node.getStringProperty("device", integrator->getDevice()));
        integrator->setMatmulPrecision(node.getStringProperty("matmulPrecision", integrator->getMatmulPrecision()));
        integrator->setRandomNumberSeed(node.getLongProperty("randomSeed", 0));
        integrator->setCheckMasses(node.getBoolProperty("checkMasses", true));
        integrator->setConstraintTolerance(
            node.getDoubleProperty("constraintTolerance", integrator->getConstraintTolerance()));
        integrator->setIntegrationForceGroups(
            node.getIntProperty("integrationForceGroups", integrator->getIntegrationForceGroups()));
        return static_cast<Integrator*>(integrator.release());
    }
};

class DiffusionForceProxy : public SerializationProxy {
public:
    DiffusionForceProxy() : SerializationProxy("DiffusionForce") {}

    void serialize(const void* object, SerializationNode& node) const override {
        const auto& force = *static_cast<const DiffusionForce*>(object);
        node.setIntProperty("version", VERSION);
        node.setStringProperty("name", force.getName());
        node.setIntProperty("forceGroup", force.getForceGroup());
        node.setBoolProperty("checkMasses", force.getCheckMasses());
        node.setBoolProperty("derivative", force.hasEnergyParameterDerivative());
        force.getModel().serialize(node);
    }

    void* deserialize(const SerializationNode& node) const override {
        checkVersion(node);
        auto force = std::make_unique<DiffusionForce>(ScoreModel(node));
        force->setName(node.getStringProperty("name", force->getName()));
        force->setForceGroup(node.getIntProperty("forceGroup", 0));
        force->setCheckMasses(node.getBoolProperty("checkMasses", true));
        if (node.getBoolProperty("derivative", false))
            force->addEnergyParameterDerivative(force->getModel().getLambdaParameter());
        return static_cast<Force*>(force.release());
    }
};
} // namespace

void registerSerializationProxies() {
    SerializationProxy::registerProxy(typeid(DiffusionIntegrator), new DiffusionIntegratorProxy());
    SerializationProxy::registerProxy(typeid(DiffusionForce), new DiffusionForceProxy());
}

} // namespace diffusim_openmm
