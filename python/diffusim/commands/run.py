"""`diffusim run`: a trajectory from a model file."""

import json
import math
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from diffusim.dcd import DcdWriter
from diffusim.terminal import counted, describe_model, describe_step, fail, progress, say

CHECKPOINTS = 20  # per run
SWEEPS = ("sampler", "window", "tolerance")  # settings of the time-parallel sampler
LARGEST_SEED = 2**63 - 1  # as in diffusim.core, which the help does not wait for


class Adapter(StrEnum):
    leimkuhler_matthews = "leimkuhler-matthews"
    euler_maruyama = "euler-maruyama"
    heun = "heun"
    mala = "mala"
    langevin = "langevin"


class Sampler(StrEnum):
    sequential = "sequential"
    time_parallel = "time-parallel"
    auto = "auto"


class Engine(StrEnum):
    core = "core"
    openmm = "openmm"


@dataclass(frozen=True)
class Settings:
    """What the trajectory depends on, units as in diffusim.Simulation. None: the default of the model or engine."""

    temperature: float | None
    spring: float | None
    effective_step: float | None
    time_step: float | None
    friction: float | None
    replicas: int | None
    seed: int | None
    adapter: str | None
    every: int | None
    engine: str | None
    target_acceptance: float | None = None
    burn_in: int | None = None
    sampler: str | None = None
    window: int | None = None
    tolerance: float | None = None

    def completed(self, steps: int) -> "Settings":
        defaults = {"replicas": 1, "adapter": "leimkuhler-matthews", "every": min(1000, steps), "engine": "core"}
        chosen = {name: value for name, value in asdict(self).items() if value is not None}
        return Settings(**(dict.fromkeys(asdict(self)) | defaults | chosen))

    def continued(self, before: "Settings") -> "Settings":
        """Those of the interrupted run; fails where a flag says otherwise."""
        for f in fields(self):
            given, was = getattr(self, f.name), getattr(before, f.name)
            if given is not None and given != was:
                flag = _flag(f.name)
                fail(f"{flag} is {given}, and was {was} before; leave it out to continue, or start anew with --force.")
        return before


def run(
    model: Annotated[Path, typer.Argument(help="Model file (.safetensors).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Trajectory to write (.dcd).")] = Path(
        "trajectory.dcd"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Steps of each replica, in all.")] = 100_000,
    temperature: Annotated[float | None, typer.Option(help="K.  [default: the training temperature]")] = None,
    spring: Annotated[float | None, typer.Option(help="Step size as a spring, 1/nm².  [default: the model's]")] = None,
    effective_step: Annotated[float | None, typer.Option(help="Step size as τ, nm².")] = None,
    time_step: Annotated[float | None, typer.Option(help="Step size in ps; needs --friction.")] = None,
    friction: Annotated[float | None, typer.Option(help="Friction rate, 1/ps; OpenMM's default is 10.")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Copies side by side.  [default: 1]")] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=1, max=LARGEST_SEED, help="Of the noise; same seed, same trajectory.  [default: fresh]"),
    ] = None,
    adapter: Annotated[
        Adapter | None, typer.Option(help="How a step is taken.  [default: leimkuhler-matthews]")
    ] = None,
    target_acceptance: Annotated[
        float | None, typer.Option(help="With --adapter mala: tune the step to this acceptance in --burn-in steps.")
    ] = None,
    burn_in: Annotated[int | None, typer.Option(min=1, help="Steps of that tuning, from the first.")] = None,
    every: Annotated[
        int | None, typer.Option(min=1, help="Steps between saved frames, at most --steps.  [default: 1000]")
    ] = None,
    engine: Annotated[Engine | None, typer.Option(help="What runs the steps.  [default: core]")] = None,
    sampler: Annotated[
        Sampler | None,
        typer.Option(help="time-parallel: many frames at once, the same trajectory.  [default: sequential]"),
    ] = None,
    window: Annotated[int | None, typer.Option(min=2, help="Frames at once, with --sampler.  [default: 64]")] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="What a frame may still change, nm, with --sampler.  [default: 1e-6]")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where the score is computed: cpu, cuda, cuda:1, …; auto is cpu.")
    ] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue an earlier run, bit for bit.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the trajectory.")] = False,
) -> None:
    """Run a simulation and write its trajectory (DCD, and a PDB with its topology).

    With several replicas each saved step is that many frames in a row. A checkpoint is written beside the trajectory,
    on Ctrl-C and the SIGTERM of a queue, too; --resume continues from it, also to more steps than were asked for first.
    """
    settings = Settings(
        temperature, spring, effective_step, time_step, friction, replicas, seed,
        adapter and adapter.value, every, engine and engine.value, target_acceptance, burn_in,
        sampler and sampler.value, window, tolerance,
    )  # fmt: skip
    checkpoint = output.with_suffix(".checkpoint")
    _check_output(output, checkpoint, resume, force)
    _check_step(settings)

    from diffusim._library import DiffusimError, Status
    from diffusim.core import Model

    loaded = Model(model)
    saved = _Checkpoint.read(checkpoint) if resume else None
    settings = settings.continued(saved.settings) if saved else settings.completed(steps)
    if settings.every > steps:
        fail(f"--every is {settings.every:,}, more than the {steps:,} of --steps: no frame would be saved. Lower it.")
    if saved and saved.model != loaded.sha256:
        fail(
            f"{model} is not the model of the earlier run (sha256 {loaded.sha256[:12]}…, and was {saved.model[:12]}…). "
            "Continue with that one, or start anew with --force."
        )
    machine = (_OpenMM if settings.engine == "openmm" else _Core)(loaded, settings, device)
    done = 0
    if saved:
        machine.restore(saved.state)
        done = saved.steps
        if done >= steps:
            fail(f"{output} has {done:,} steps already; ask for more with --steps.")
    settings = Settings(**(asdict(settings) | {"seed": machine.seed}))

    say("model", describe_model(loaded, str(model)))
    say("step", machine.describe_step())
    say("engine", f"{machine.name}   seed {machine.seed}" + (f"   from step {done:,}" if done else ""))
    trained = loaded.training_temperature
    if settings.temperature not in (None, trained):
        say(
            "warning",
            f"trained at {trained:g} K, run at {settings.temperature:g} K: the learned free energy stays that of "
            f"{trained:g} K and only the noise is scaled, which is right as far as it does not change with temperature",
            "yellow",
        )
    topology = write_topology(loaded, output.with_suffix(".pdb"))
    if not saved:
        checkpoint.unlink(missing_ok=True)
    try:
        trajectory = DcdWriter(
            output, loaded.n_particles, settings.every, machine.time_step(), keep=saved.frames if saved else 0
        )
    except ValueError as error:
        fail(f"{error}, and its checkpoint was written after them; start anew with --force.")
    per_checkpoint = settings.every * max(1, -(-(steps - done) // (settings.every * CHECKPOINTS)))

    def record(always: bool = False) -> None:
        """The frame that was reached, unless it is written already or none is due, and a checkpoint likewise."""
        nonlocal done
        with _uninterrupted():
            done = machine.step_count()
            if due := trajectory.n_frames < settings.replicas * (done // settings.every):
                trajectory.write(machine.positions())
            if always or due and done % per_checkpoint == 0:
                _Checkpoint(settings, loaded.sha256, done, trajectory.n_frames, machine.checkpoint()).write(checkpoint)

    label = f"{settings.replicas:,} × {steps - done:,} steps" if settings.replicas > 1 else f"{steps - done:,} steps"
    unit = "replica-steps" if settings.replicas > 1 else "steps"
    try:
        if not saved:
            record(always=True)
        with progress("running", label, settings.replicas * (steps - done), unit) as advance:
            while done < steps:
                n = min(settings.every - done % settings.every, steps - done)
                machine.step(n)
                record()
                advance(n * settings.replicas)
        record(always=True)
    except KeyboardInterrupt:
        record(always=True)
        trajectory.close()
        fail(f"interrupted at step {done:,}; the same command with --resume continues.")
    except OSError as error:
        with suppress(OSError):  # what could not be written still cannot
            trajectory.close()
        again = " Make room, and continue with --resume." if checkpoint.exists() else ""
        fail(f"{output} and its checkpoint cannot be written, at step {done:,}: {error.strerror}.{again}")
    except DiffusimError as error:
        trajectory.close()
        if error.status is not Status.NOT_FINITE:
            raise
        rescue = output.with_suffix(".rescue.npz")
        np.savez(rescue, positions=machine.positions(), step=machine.step_count())
        fail(f"{error} That frame is in {rescue}; the trajectory until then in {output}.")
    trajectory.close()
    if work := machine.work():
        say("sampler", work)
    say(
        "wrote", f"{output}   {counted(trajectory.n_frames, 'frame')}" + (f"   topology {topology}" if topology else "")
    )
    if outcome := machine.outcome():
        say("", outcome)
    say("", f"{checkpoint}   continue with --resume --steps N")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the end of this, so that a frame and what counts it are written together."""
    came = False

    def note(*_) -> None:
        nonlocal came
        came = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            raise KeyboardInterrupt


def _check_output(output: Path, checkpoint: Path, resume: bool, force: bool) -> None:
    if output.suffix != ".dcd":
        fail(f"--output is {output}; expected a name that ends in .dcd.")
    if not output.parent.is_dir():
        fail(f"--output is {output}, and there is no directory {output.parent}. Make it first.")
    if resume and not (checkpoint.exists() and output.exists()):
        fail(f"--resume needs {output} and {checkpoint}, and there is no {checkpoint if output.exists() else output}.")
    for path in (output, checkpoint, output.with_suffix(".pdb")):
        if path.is_dir():
            fail(f"{path} is a directory, and the run would write a file there. Choose another --output.")
    if output.exists() and not (resume or force):
        fail(f"{output} exists. Continue it with --resume, replace it with --force, or choose another --output.")


def _check_step(settings: Settings) -> None:
    sizes = ("spring", "effective_step", "time_step")
    for name in ("temperature", "friction", *sizes):
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            fail(f"{_flag(name)} is {value}; expected a positive number.")
    given = [_flag(name) for name in sizes if getattr(settings, name) is not None]
    if len(given) > 1:
        fail(f"{given[0]} and {given[1]} are two ways to say how large a step is; give one of them.")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _outcome(
    n_values: int,
    acceptance: float | None,
    step_factor: float | None = None,
    kinetic_temperature: float | None = None,
) -> str:
    if acceptance is not None:
        return f"acceptance {acceptance:.3f}" + (f"   step {step_factor:.3g} × the given one" if step_factor else "")
    if kinetic_temperature is not None:
        spread = 100 * math.sqrt(2 / n_values)
        return f"kinetic temperature of the last frame {kinetic_temperature:.4g} K, which varies by {spread:.2g} %"
    return ""


class _Core:
    """Steps in the Rust core."""

    name = "core"

    def __init__(self, model, settings: Settings, device: str):
        from diffusim.core import Simulation

        self._simulation = Simulation(
            model,
            settings.temperature,
            spring=settings.spring,
            effective_step=settings.effective_step,
            time_step=settings.time_step,
            friction_rate=settings.friction,
            seed=settings.seed,
            n_replicas=settings.replicas,
            adapter=settings.adapter,
            device=device,
            target_acceptance=settings.target_acceptance,
            burn_in_steps=settings.burn_in or 0,
            **{name: value for name in SWEEPS if (value := getattr(settings, name)) is not None},
        )
        self.seed = self._simulation.seed
        self.step = self._simulation.step
        self.checkpoint = self._simulation.checkpoint
        self.restore = self._simulation.restore

    def describe_step(self) -> str:
        return describe_step(self._simulation.statistics, self._simulation.adapter)

    def work(self) -> str | None:
        """What the time-parallel sampler did."""
        done = self._simulation.statistics
        if not done.rounds:
            return None
        return (
            f"time-parallel   {done.steps_per_sweep:.1f} steps a round ({done.rounds:,}), "
            f"{done.evaluations_per_step:.1f} scores a step"
        )

    def time_step(self) -> float:
        """ps; 0 where the steps have no physical time."""
        return self._simulation.statistics.time_step or 0.0

    def outcome(self) -> str:
        """What else there is to say about the steps."""
        s = self._simulation.statistics
        return _outcome(self._simulation.positions.size, s.acceptance, s.step_factor, s.kinetic_temperature)

    def positions(self) -> np.ndarray:
        return self._simulation.positions

    def step_count(self) -> int:
        return self._simulation.step_count


class _OpenMM:
    """Steps through openmm.app.Simulation; replicas are copies of the molecule, and every particle has the mobility
    kT/(m friction).
    """

    def __init__(self, model, settings: Settings, device: str):
        try:
            import openmm
            from openmm import unit

            import diffusim.openmm
        except ImportError as error:
            fail(f"--engine openmm cannot start: {error}")
        if settings.effective_step is not None:
            fail("--effective-step is for --engine core; OpenMM takes --spring, or --friction and --time-step.")
        given = {
            "temperature": settings.temperature,
            "spring": settings.spring,
            "stepSize": settings.time_step,
            "targetAcceptance": settings.target_acceptance,
            "burnInSteps": settings.burn_in,
            **{name: getattr(settings, name) for name in SWEEPS},
        }
        if settings.friction is not None:
            given["frictionCoeff"] = settings.friction / unit.picosecond
        self._unit = unit
        self._failure = openmm.OpenMMException
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the model was trained at")  # `run` says so for every engine
            self._simulation = diffusim.openmm.simulation(
                model,
                **{name: value for name, value in given.items() if value is not None},
                adapter=settings.adapter,
                device=device,
                seed=0 if settings.seed is None else settings.seed,
                copies=settings.replicas,
            )
        self._replicas = settings.replicas
        self._tuned = settings.target_acceptance is not None
        self._context = self._simulation.context
        self._integrator = self._context.getIntegrator()
        self.seed = self._integrator.getSeedInUse()
        self.name = f"OpenMM {openmm.__version__}, platform {self._context.getPlatform().getName()}"
        self.checkpoint = self._context.createCheckpoint
        self.restore = self._context.loadCheckpoint

    def step(self, n_steps: int) -> None:
        """DiffusimError as from the core: OpenMM hands on its sentence, and the integrator its status."""
        from diffusim._library import DiffusimError

        try:
            self._simulation.step(n_steps)
        except self._failure as error:
            raise DiffusimError(str(error), self._integrator.getLastStatus()) from None

    def describe_step(self) -> str:
        spring = self._integrator.getSpring().value_in_unit(self._unit.nanometer**-2)
        return f"spring k = {spring:.3g} /nm²  ⇔  τ = {0.5 / spring:.2g} nm² = {self.time_step():.3g} ps"

    def work(self) -> str | None:
        steps = self._integrator.getStepsPerSweep()
        return f"time-parallel   {steps:.1f} steps a round" if steps else None

    def time_step(self) -> float:
        return self._integrator.getStepSize().value_in_unit(self._unit.picosecond)

    def outcome(self) -> str:
        adapter = self._integrator.getAdapter()
        temperature = self._integrator.computeSystemTemperature() if adapter == "langevin" else None
        return _outcome(
            self.positions().size,
            self._integrator.getAcceptance() if adapter == "mala" else None,
            float(np.exp(np.mean(np.log(self._integrator.getStepFactors())))) if self._tuned else None,
            kinetic_temperature=temperature and temperature.value_in_unit(self._unit.kelvin),
        )

    def positions(self) -> np.ndarray:
        state = self._context.getState(positions=True)
        positions = state.getPositions(asNumpy=True).value_in_unit(self._unit.nanometer)
        return positions.reshape(self._replicas, -1, 3)

    def step_count(self) -> int:
        return self._context.getStepCount()


@dataclass(frozen=True)
class _Checkpoint:
    """Where a run is: its settings, the sha256 of its model, steps done, frames written, and the engine's own state."""

    settings: Settings
    model: str
    steps: int
    frames: int
    state: bytes

    def write(self, path: Path) -> None:
        from diffusim.model_file import replace

        head = asdict(self)
        state = head.pop("state")
        replace(path, json.dumps(head).encode() + b"\n" + state)

    @classmethod
    def read(cls, path: Path) -> "_Checkpoint":
        head, _, state = path.read_bytes().partition(b"\n")
        try:
            values = json.loads(head)
            return cls(Settings(**values["settings"]), values["model"], values["steps"], values["frames"], state)
        except (ValueError, KeyError, TypeError):
            fail(f"{path} is no checkpoint of 'diffusim run'. Start anew with --force.")


def write_topology(model, path: Path) -> Path | None:
    """The model's particles and bonds as a PDB, at its first start frame; None for models without either."""
    if not model.metadata.get("particles") or not len(model.start_positions):
        return None
    from openmm.app import PDBFile
    from openmm.unit import nanometer

    import diffusim.openmm

    with open(path, "w") as file:
        PDBFile.writeFile(diffusim.openmm.topology(model), model.start_positions[0] * nanometer, file)
    return path
