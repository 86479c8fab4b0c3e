"""DiffusionIntegrator and DiffusionForce: the plugin's classes, made through the XML that it also writes."""

import base64
import json
import operator
from collections.abc import Sequence
from ctypes import c_char_p, c_int64
from xml.etree import ElementTree

import numpy as np
import openmm
from openmm import app, unit

from diffusim._library import DiffusimError, Status
from diffusim.core import ADAPTERS, LARGEST_SEED, Model
from diffusim.openmm import _plugin
from diffusim.openmm._system import ModelLike, check_topology, checked_copies, checked_indices, checked_path

LAMBDA = "diffusim_lambda"  # parameter of a Context


class DiffusionIntegrator(openmm.Integrator):
    """Overdamped dynamics under a learned score (theory 2, 10); arguments and units as of openmm.LangevinIntegrator.

    The model replaces the force field. Forces of the System, in the groups of `setIntegrationForceGroups`, act on top
    of it as a bias (theory 6); without any, `step(n)` runs in the core at its full speed. Velocities have no meaning,
    but with the adapter "langevin", whose velocities are the Context's: until they are set they are drawn, at the first
    step, from the density of the temperature.
    The potential energy of a State is the learned energy plus that of the bias, as minimisation, replica exchange and
    simulated tempering need it; `getModelEnergy` gives the learned one. (In a CompoundIntegrator it is that of the
    System's Forces alone: add a DiffusionForce. One with the same model is never a bias.)

    A System of several copies of the molecule, one after the other, is moved as a batch; the copies feel nothing of
    each other but through Forces. Copy r moves as replica r of diffusim.Simulation.

    A fixed seed gives the trajectory of diffusim.Simulation, bit for bit on the platforms Reference and CPU. On CUDA
    the score is computed on its GPU, and frames and forces that act as a bias stay there; on OpenCL and other platforms
    they pass through the host. CUDA and OpenCL show the same trajectory, rounded to their precision, where no bias was
    rounded.
    Seed and step of the noise are kept in checkpoints, and in States with integratorParameters=True. A Context that
    goes on from a State a second time takes new noise, so that walkers which share a State are independent; from a
    checkpoint it takes the same.
    """

    def __init__(
        self,
        model: ModelLike,
        temperature: unit.Quantity | float,
        frictionCoeff: unit.Quantity | float,
        stepSize: unit.Quantity | float | None = None,
        *,
        spring: unit.Quantity | float | None = None,
        adapter: str = "leimkuhler-matthews",
        particles: Sequence[int] | None = None,
        topology: app.Topology | None = None,
        device: str = "auto",
        seed: int = 0,
        checkMasses: bool = True,
        copies: int | None = None,
        lambdaName: str = LAMBDA,
        sampler: str = "sequential",
        window: int | None = None,
        tolerance: unit.Quantity | float | None = None,
        targetAcceptance: float | None = None,
        burnInSteps: int = 0,
        matmulPrecision: str = "highest",
    ):
        """
        model          model file, its bytes, or a diffusim.Model, also a blend of two
        temperature    kelvin
        frictionCoeff  friction rate, 1/ps: particles diffuse with D = kT/(m frictionCoeff)
        stepSize       ps; without it and `spring`, the step that the model recommends
        spring         1/nm^2, in place of stepSize: stiffness of the harmonic adapter of the most mobile particle
        adapter        "leimkuhler-matthews", "euler-maruyama"; "langevin", which has velocities (theory 11) and needs a
                       stepSize; or, without bias: "heun", "mala" (Metropolis)
        particles      indices of the model's particles, in its order, in the System (where there are copies: in each);
                       by default the model moves them all
        topology       if given, its elements must be the model's (`check_topology`)
        device         where the core computes: "cpu", or "cuda", "cuda:1" and so on for a GPU; "auto" is the GPU of
                       OpenMM's platform CUDA and "cpu" on all others, "cuda" that GPU, else the first
        seed           of the noise; 0 = a fresh one for every Context
        checkMasses    whether the System's masses must be the model's, which tells a wrong order of particles
        copies         copies of the molecule in the System; by default as many as its particles make (a periodic model
                       or one with `particles`: one), with a warning where these are several
        lambdaName     the parameter of the Context that the lambda of a blend follows (theory 7): a DiffusionForce of
                       the same blend defines it, or any other Force; without one lambda stays as it is
        sampler        "sequential"; "time-parallel": step(n) takes many steps at once, to a tolerance, if no Force is
                       a bias (theory 12); "auto": that where it pays. Frames that are worked out
                       beyond the end of a call are kept for the next one
        window, tolerance   of "time-parallel": frames that a sweep works on, and by how much a final frame may still
                       change, nm; by default those of diffusim.Simulation
        targetAcceptance, burnInSteps   of "mala": in so many first steps the step of each copy is tuned to this
                       acceptance (0.6 is a good one), and then kept
        matmulPrecision   "highest": the same bits on every device; on a GPU also "high": faster, on its tensor cores,
                       nearly as accurate, with bits that only such GPUs have (docs/gpu.md)

        A mass of 0 freezes a particle. Raises openmm.OpenMMException; what does not fit the System is found when the
        Context is created.
        """
        if stepSize is not None and spring is not None:
            raise ValueError("stepSize and spring are two ways to say the same; give one of them")
        if not isinstance(adapter, str):
            raise TypeError(f"adapter is {adapter!r}; expected {' or '.join(map(repr, ADAPTERS))}")
        if topology is not None:
            check_topology(model, topology, particles, copies)
        node = _element("Integrator", model, particles, copies, lambdaName, type="DiffusionIntegrator")
        node.set("temperature", _text(temperature, unit.kelvin))
        node.set("friction", _text(frictionCoeff, unit.picosecond**-1))
        for name, value, its_unit in (
            ("stepSize", stepSize, unit.picosecond),
            ("spring", spring, unit.nanometer**-2),
        ):
            if value is not None:
                node.set(name, text := _text(value, its_unit))
                if not float(text) > 0:
                    raise ValueError(f"{name} is {value}; expected a positive number")
        node.set("adapter", adapter)
        node.set("sampler", sampler)
        if window is not None:
            if operator.index(window) < 2:
                raise ValueError(f"window is {window} frames; expected 2 or more")
            node.set("window", str(window))
        if tolerance is not None:
            node.set("tolerance", text := _text(tolerance, unit.nanometer))
            if not float(text) >= 0:
                raise ValueError(f"tolerance is {tolerance}; expected 0 or a positive number")
        if targetAcceptance is not None:
            node.set("targetAcceptance", repr(float(targetAcceptance)))
            if targetAcceptance == 0:  # which the plugin would read as "not given"
                raise DiffusimError("target acceptance is 0; expected a number between 0 and 1, such as 0.6")
        node.set("burnInSteps", str(operator.index(burnInSteps)))
        node.set("device", device)
        node.set("matmulPrecision", matmulPrecision)
        node.set("randomSeed", str(_checked_seed(seed)))
        node.set("checkMasses", str(int(checkMasses)))
        self.this = openmm.XmlSerializer._deserializeIntegrator(ElementTree.tostring(node, encoding="unicode")).this

    def getTemperature(self) -> unit.Quantity:
        """Temperature of the heat bath, K."""
        return _plugin.get("get_temperature", self) * unit.kelvin

    def setTemperature(self, temperature: unit.Quantity | float) -> None:
        """Set the temperature of the heat bath (K). The spring stays; the drift does too, and the noise changes."""
        _plugin.call("set_temperature", self, _value(temperature, unit.kelvin))

    def getFriction(self) -> unit.Quantity:
        """Friction rate, 1/ps."""
        return _plugin.get("get_friction", self) / unit.picosecond

    def setFriction(self, coeff: unit.Quantity | float) -> None:
        """Set the friction rate (1/ps)."""
        _plugin.call("set_friction", self, _value(coeff, unit.picosecond**-1))

    def getSpring(self) -> unit.Quantity:
        """Stiffness of the harmonic adapter of the most mobile particle, the softest, 1/nm^2."""
        return _plugin.get("get_spring", self) / unit.nanometer**2

    def setSpring(self, spring: unit.Quantity | float) -> None:
        """Set the step by its spring (1/nm^2); `getStepSize` follows."""
        _plugin.call("set_spring", self, _value(spring, unit.nanometer**-2))

    def getAdapter(self) -> str:
        """How a step is taken, by the names of the constructor."""
        return _plugin.get("get_adapter", self, c_char_p).decode()

    def getSampler(self) -> str:
        """How many steps are taken: "sequential", "time-parallel" or "auto"."""
        return _plugin.get("get_sampler", self, c_char_p).decode()

    def getStepsPerSweep(self) -> float:
        """Steps that became final in a time-parallel sweep, on average since the Context was created."""
        return _plugin.get("get_steps_per_sweep", self)

    def getDevice(self) -> str:
        """Where the core computes, as it was set."""
        return _plugin.get("get_device", self, c_char_p).decode()

    def getMatmulPrecision(self) -> str:
        """How products of matrices are computed, as it was set."""
        return _plugin.get("get_matmul_precision", self, c_char_p).decode()

    def getRandomNumberSeed(self) -> int:
        """The seed as it was set; 0 = a fresh one for every Context."""
        return _plugin.get("get_seed", self, c_int64)

    def setRandomNumberSeed(self, seed: int) -> None:
        """Set the seed of the noise; it holds from the next step on, also after a checkpoint was loaded."""
        _plugin.call("set_seed", self, _checked_seed(seed))

    def getSeedInUse(self) -> int:
        """The seed of the noise: the one that was set, drawn, or loaded with a checkpoint."""
        return _plugin.get("get_seed_in_use", self, c_int64)

    def getNumCopies(self) -> int:
        """Copies of the molecule in the Context's System."""
        return _plugin.get("get_num_copies", self, c_int64)

    def getModelEnergy(self) -> unit.Quantity:
        """Learned energy of the Context's positions, kJ/mol; of several copies the sum."""
        energies = self.getModelEnergies()
        return sum(energies._value) * energies.unit

    def getModelEnergies(self) -> unit.Quantity:
        """Learned energy of every copy of the molecule at the Context's positions, [copies], kJ/mol."""
        energies = np.empty(self.getNumCopies())
        _plugin.call("compute_model_energies", self, energies.ctypes.data)
        return energies * unit.kilojoule_per_mole

    def getLargestScore(self) -> unit.Quantity:
        """Largest component of the score since the Context was created, 1/nm."""
        return _plugin.get("get_largest_score", self) / unit.nanometer

    def getAcceptance(self) -> float:
        """Fraction of the proposals of "mala" that were accepted: after burn-in, once it is over."""
        return _plugin.get("get_acceptance", self)

    def getStepFactors(self) -> np.ndarray:
        """What burn-in has made of the effective step of each copy of the molecule, [copies]; 1 without a burn-in."""
        factors = np.empty(self.getNumCopies())
        _plugin.call("get_step_factors", self, factors.ctypes.data)
        return factors

    def getLastStatus(self) -> Status | None:
        """How the last step() ended: None, or the status of the error it raised, as of diffusim.DiffusimError.

        After Status.NOT_FINITE the Context holds the last good frame.
        """
        status = _plugin.get("get_last_status", self, c_int64)
        return Status(status) if status else None

    def getConfigurationalTemperature(self) -> unit.Quantity:
        """T0 |s|^2 / (-div s) at the Context's positions, K: the temperature on average, where there is no bias."""
        return _plugin.get("compute_configurational_temperature", self) * unit.kelvin

    def computeSystemTemperature(self) -> unit.Quantity:
        """What StateDataReporter reports as temperature, K: with the adapter "langevin" that of the velocities (of all
        particles, three degrees of freedom each), else the configurational one, as there are no velocities.
        """
        return _plugin.get("compute_system_temperature", self) * unit.kelvin


class DiffusionForce(openmm.Force):
    """The learned energy kT0 E, a potential of mean force at the training temperature, as a Force on any platform."""

    def __init__(
        self,
        model: ModelLike,
        particles: Sequence[int] | None = None,
        *,
        checkMasses: bool = True,
        copies: int | None = None,
        lambdaName: str = LAMBDA,
    ):
        """Arguments as of `DiffusionIntegrator`; the energy of several copies is the sum, and the lambda of a blend is
        the parameter `lambdaName` of the Context, 0 to 1.
        """
        node = _element("Force", model, particles, copies, lambdaName, type="DiffusionForce")
        node.set("checkMasses", str(int(checkMasses)))
        self.this = openmm.XmlSerializer._deserializeForce(ElementTree.tostring(node, encoding="unicode")).this

    def addEnergyParameterDerivative(self, name: str = LAMBDA) -> None:
        """Have States report dE/dlambda of a blend, kJ/mol: getState(parameterDerivatives=True), on the platforms
        Reference and CPU.
        """
        _plugin.call("add_energy_parameter_derivative", self, name.encode())


def cast(thing: openmm.Integrator | openmm.Force) -> DiffusionIntegrator | DiffusionForce:
    """Give an object that OpenMM returns as plain Integrator or Force, as after reading XML or from a
    CompoundIntegrator, its class and methods back. TypeError if it is neither of ours.
    """
    for base, kind, ours in (
        (openmm.Integrator, "integrator", DiffusionIntegrator),
        (openmm.Force, "force", DiffusionForce),
    ):
        if isinstance(thing, base) and _plugin.is_ours(kind, thing):
            thing.__class__ = ours
            return thing
    raise TypeError(f"{thing!r} is neither a DiffusionIntegrator nor a DiffusionForce")


def _element(
    tag: str, model: ModelLike, particles: Sequence[int] | None, copies: int | None, parameter: str, **attributes
) -> ElementTree.Element:
    """<Integrator> or <Force> with its children <Model> and <Particles>, as the plugin reads them."""
    if not parameter:
        raise ValueError("lambdaName is empty; expected the name of a parameter of the Context")
    node = ElementTree.Element(
        tag, version="1", copies=str(0 if copies is None else checked_copies(copies)), **attributes
    )
    node.append(_source(model, parameter))
    listed = ElementTree.SubElement(node, "Particles")
    for index in checked_indices(particles) if particles is not None else ():
        ElementTree.SubElement(listed, "Particle", index=str(index))
    return node


def _source(model: ModelLike, parameter: str) -> ElementTree.Element:
    """<Model>, with two of them inside where it is a blend."""
    source = ElementTree.Element("Model")
    if isinstance(model, bytes):
        source.set("file", base64.b64encode(model).decode())
    elif not isinstance(model, Model):
        source.set("path", checked_path(model))
    elif model.parts:
        source.set("lambda", repr(model.metadata["hyperparameters"]["lambda"]))
        source.set("parameter", parameter)
        source.extend(_source(part, parameter) for part in model.parts)
    elif model.metadata["kind"] == "callback":
        raise ValueError(
            f"the model {model.name} is a Python function, which a System cannot hold. Use diffusim.Simulation, or "
            "give its forces to openmm.PythonForce."
        )
    else:
        if model.noise_level is not None:
            source.set("noiseLevel", repr(model.noise_level))
        try:
            source.set("file", base64.b64encode(model.bytes).decode())
        except DiffusimError:  # an analytic model that came from no file
            source.set("description", json.dumps(model.metadata))
    return source


def _checked_seed(seed: int) -> int:
    seed = operator.index(seed)
    if not 0 <= seed <= LARGEST_SEED:
        raise openmm.OpenMMException(
            f"seed is {seed}; expected a positive number, or 0 for a fresh one; the largest is {LARGEST_SEED}"
        )
    return seed


def _value(quantity: unit.Quantity | float, its_unit: unit.Unit) -> float:
    return float(quantity.value_in_unit(its_unit) if unit.is_quantity(quantity) else quantity)


def _text(quantity: unit.Quantity | float, its_unit: unit.Unit) -> str:
    return repr(_value(quantity, its_unit))
