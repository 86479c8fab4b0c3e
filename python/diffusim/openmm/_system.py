"""Topology and System of a model's own molecule, and whether a Topology is that of a model."""

import operator
import os
from collections.abc import Sequence

import openmm
from openmm import app

from diffusim._library import DiffusimError
from diffusim.core import Model

ModelLike = Model | bytes | str | os.PathLike


def topology(model: ModelLike, copies: int = 1) -> app.Topology:
    """Atoms, residues and bonds as the model file names them, each of `copies` in a chain of its own.

    DiffusimError if the file names no particles.
    """
    metadata = _described(model).metadata
    result = app.Topology()
    for _ in range(checked_copies(copies)):
        chain = result.addChain()
        residue = None
        previous = None
        atoms = []
        for particle in metadata["particles"]:
            if particle["residue_index"] != previous:
                previous = particle["residue_index"]
                residue = result.addResidue(particle["residue"], chain)
            atoms.append(result.addAtom(particle["name"], _element(particle["element"]), residue))
        for i, j in metadata.get("bonds", []):
            result.addBond(atoms[i], atoms[j])
    return result


def system(model: ModelLike, copies: int = 1) -> openmm.System:
    """A System of the model's particles and masses, `copies` times one after the other, with no Force, in the box of a
    periodic model's start frames.

    DiffusimError if the file names no particles.
    """
    model = _described(model)
    result = openmm.System()
    for particle in model.metadata["particles"] * checked_copies(copies):
        result.addParticle(particle["mass"])
    if model.is_periodic:
        result.setDefaultPeriodicBoxVectors(*model.start_cell)
    return result


def check_topology(
    model: ModelLike, topology: app.Topology, particles: Sequence[int] | None = None, copies: int | None = None
) -> None:
    """DiffusimError naming the first atom of `topology` whose element is not the model's; arguments as of
    `DiffusionIntegrator`.
    """
    model = as_model(model)
    atoms = list(topology.atoms())
    if copies is None:  # as the plugin counts them
        whole = particles is None and not model.is_periodic and len(atoms) % model.n_particles == 0
        copies = max(1, len(atoms) // model.n_particles) if whole else 1
    if len(atoms) % checked_copies(copies):
        raise DiffusimError(f"the topology has {len(atoms)} atoms, which is not {copies} copies of equally many")
    n = len(atoms) // copies
    if particles is not None:
        model = model.subset(n, checked_indices(particles))
    for copy in range(copies):
        own = atoms[copy * n : (copy + 1) * n]
        try:
            model.check_particles([atom.element and atom.element.symbol for atom in own], [atom.name for atom in own])
        except DiffusimError as error:
            if copies == 1:
                raise
            raise DiffusimError(
                f"copy {copy} (atoms {copy * n} to {copy * n + n - 1}): {error}", error.status
            ) from None


def checked_indices(particles: Sequence[int]) -> list[int]:
    """`particles` as a list; ValueError if there are none or one is negative, TypeError if one is no integer."""
    indices = [operator.index(index) for index in particles]
    if not indices:
        raise ValueError("particles is empty; expected the indices of the model's particles, or None for all")
    for place, index in enumerate(indices):
        if index < 0:
            raise ValueError(f"particles[{place}] is {index}; expected an index in the System, which starts at 0")
    return indices


def checked_copies(copies: int) -> int:
    """`copies`; ValueError unless it is positive, TypeError if it is no integer."""
    if operator.index(copies) < 1:
        raise ValueError(f"copies is {copies}; expected a positive number")
    return operator.index(copies)


def checked_path(model: str | os.PathLike) -> str:
    """The path of a model file; TypeError if `model` is none."""
    try:
        return os.fspath(model)
    except TypeError:
        raise TypeError(
            f"model is {model!r}; expected a model file, its bytes, or a diffusim.Model. It comes first, before the "
            "temperature"
        ) from None


def as_model(model: ModelLike) -> Model:
    """The model, read if it is a file name or the bytes of a file."""
    if isinstance(model, Model):
        return model
    return Model.from_bytes(model) if isinstance(model, bytes) else Model(checked_path(model))


def _described(model: ModelLike) -> Model:
    model = as_model(model)
    if not model.metadata.get("particles"):
        raise DiffusimError(
            f"{model.name} does not say what its particles are. Build a Topology and a System of {model.n_particles} "
            "particles yourself and give them to openmm.app.Simulation with a DiffusionIntegrator."
        )
    return model


def _element(symbol: str) -> app.Element | None:
    try:
        return app.Element.getBySymbol(symbol)
    except KeyError:  # a bead
        return None
