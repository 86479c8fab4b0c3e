"""What a training leaves open is chosen here from the snapshots: noise levels, widths, signed features, symmetries."""

from dataclasses import replace
from math import lcm, sqrt

import numpy as np

from diffusim import model_file
from diffusim.snapshots import Snapshots, nearest_distances
from diffusim.training.config import AUTO, Permutation, Quadruplet, SettingsError, TrainingSettings

WIDTH, MOST_WIDTH = 64, 384  # layers are multiples of the first, up to the second
MESSAGE_WIDTHS = (32, 32)
SECOND_SHELL = 2.5  # distances to the nearest neighbour
SMALL = 32  # particles that all see each other
# The third derivatives of a message-passing network take XLA minutes to compile, and for two blocks it may crash.
FOKKER_PLANCK_WEIGHTS = {"distance": 0.05, "message-passing": 0.0}
DISTANCE_BATCH = 512  # frames
CHAINS = 2  # per blurred frame of a step
BATCH_PARTICLES = 8192  # of the other kinds, whose cost grows with the particles
LEAST_VOLUME_SPREAD = 1e-5  # of ln V; single precision gives 1e-7
FLAT = 0.02  # a centre whose signed volume has either sign in more than this fraction of the frames inverts


def complete(settings: TrainingSettings, snapshots: Snapshots) -> TrainingSettings:
    """`settings` with everything chosen, checked against the snapshots. Raises SettingsError.

    noise_min is 0.2 of the stiffest pair distance's spread: the blur then adds at most 8 % to any pair's variance
    (2 sigma^2, theory (18)). noise_max covers the softest one, so that the blurred molecule has one basin. Layers are
    64 sqrt(n_particles) wide, which is what sufficed for 4 to 10 particles.
    """
    n = snapshots.n_particles
    if settings.start_from is not None:
        settings = _as_started(settings, snapshots)
    if settings.model == "distance" and snapshots.cells is not None:
        raise SettingsError(
            "--periodic needs --model message-passing: the distance network knows one molecule and no cell."
        )
    settings = _with_noise_levels(settings, snapshots)
    if settings.hidden is None:
        width = min(max(WIDTH * round(sqrt(n)), WIDTH), MOST_WIDTH)
        settings = replace(settings, hidden=3 * (width,) if settings.model == "distance" else MESSAGE_WIDTHS)
    if settings.model == "message-passing":
        settings = _with_cutoff(settings, snapshots)
        if len(set(settings.hidden)) > 1:
            widths = "-".join(map(str, settings.hidden))
            raise SettingsError(f"--hidden is {widths}; the blocks of a message-passing model are equally wide: 32-32.")
    if settings.batch is None:
        frames = DISTANCE_BATCH if settings.model == "distance" else 2 * (BATCH_PARTICLES // (2 * n))
        settings = replace(settings, batch=min(max(frames, 16), DISTANCE_BATCH))
    if settings.chains is None:
        settings = replace(settings, chains=CHAINS * settings.batch)
    if settings.pressure is not None:
        _check_volumes(settings, snapshots)
    if settings.fokker_planck_weight is None:
        settings = replace(settings, fokker_planck_weight=FOKKER_PLANCK_WEIGHTS[settings.model])
    if settings.quadruplets is None:
        settings = replace(settings, quadruplets=choose_quadruplets(snapshots))
    if settings.symmetries == AUTO:
        settings = replace(settings, symmetries=choose_symmetries(snapshots))
    for quadruplet in settings.quadruplets:
        if len(quadruplet) != 4 or len(set(quadruplet)) != 4 or not all(0 <= i < n for i in quadruplet):
            raise SettingsError(
                f"--quadruplets names {'-'.join(map(str, quadruplet))}; expected four different particles 0 to {n - 1}."
            )
    for permutation in settings.symmetries:
        _check_symmetry(permutation, snapshots)
    return settings


def _as_started(settings: TrainingSettings, snapshots: Snapshots) -> TrainingSettings:
    """The settings of the network that training starts from, which is of the same particles."""
    file = settings.start_from
    try:
        start = model_file.read(file)
    except FileNotFoundError:
        raise SettingsError(f"--start-from {file}: there is no such file.") from None
    shape, noise = start.hyperparameters, start.noise_levels
    if start.kind == "distance":
        theirs = {"hidden": tuple(shape["hidden"]), "quadruplets": tuple(map(tuple, shape["quadruplets"]))}
        ours, learned = (
            [p.element or p.name for p in particles] for particles in (snapshots.particles, start.particles)
        )
        if ours != learned:
            raise SettingsError(
                f"--start-from {file} is of {len(learned)} particles, {' '.join(learned)}, the snapshots are of "
                f"{len(ours)}, {' '.join(ours)}. Start from a model of the same particles in the same order."
            )
    elif start.kind == "message-passing":
        theirs = {"hidden": (shape["width"],) * shape["n_blocks"], "cutoff": shape["cutoff"]}
    else:
        raise SettingsError(f"--start-from {file} is an analytic model, {start.kind}, which has no weights to train.")
    theirs |= {"noise_min": noise.min, "noise_max": noise.max}
    for name, value in theirs.items():
        ours = getattr(settings, name)
        if ours not in (None, value):
            raise SettingsError(
                f"--{name.replace('_', '-')} is {_as_flag(ours)}, but --start-from {file} has {_as_flag(value)}. "
                "Leave it out."
            )
    return replace(settings, model=start.kind, **theirs)


def _as_flag(value: object) -> str:
    """A setting as it is written on the command line: 192-192-192, or 0-1-3-4,1-3-4-6."""
    if not isinstance(value, tuple):
        return str(value)
    return ("," if value and isinstance(value[0], tuple) else "-").join(map(_as_flag, value)) or "none"


def _with_noise_levels(settings: TrainingSettings, snapshots: Snapshots) -> TrainingSettings:
    if settings.noise_min is None or settings.noise_max is None:
        least, greatest = _noise_range(settings, snapshots)
        if settings.noise_min is None:
            settings = replace(settings, noise_min=_one_digit(least))
        if settings.noise_max is None:
            settings = replace(settings, noise_max=max(_one_digit(greatest), 20 * settings.noise_min))
    if settings.noise_simulation is None:
        settings = replace(settings, noise_simulation=settings.noise_min)
    if settings.noise_max <= settings.noise_min:
        raise SettingsError(
            f"--noise-max is {settings.noise_max:g} nm; expected more than --noise-min, {settings.noise_min:g} nm."
        )
    highest = settings.fokker_planck_noise_max
    if highest is not None and not settings.noise_min < highest <= settings.noise_max:
        raise SettingsError(
            f"--fokker-planck-noise-max is {highest:g} nm; expected a value above --noise-min, "
            f"{settings.noise_min:g} nm, and up to --noise-max, {settings.noise_max:g} nm."
        )
    if not settings.noise_min <= settings.noise_simulation <= settings.noise_max:
        raise SettingsError(
            f"--noise-simulation is {settings.noise_simulation:g} nm; expected a value within the trained range "
            f"{settings.noise_min:g} to {settings.noise_max:g} nm."
        )
    return settings


def _with_cutoff(settings: TrainingSettings, snapshots: Snapshots) -> TrainingSettings:
    """The cutoff: the whole of a small molecule, else the second shell of neighbours; at most half of a cell."""
    if snapshots.cells is None:
        if settings.cutoff is not None:
            return settings
        if snapshots.n_particles <= SMALL:
            reach = 1.1 * 2 * float(np.linalg.norm(snapshots.positions, axis=-1).max())
        else:
            reach = SECOND_SHELL * float(nearest_distances(snapshots.positions).mean())
        return replace(settings, cutoff=_two_digits(reach))
    heights = 1 / np.linalg.norm(np.linalg.inv(snapshots.cells), axis=1)  # of the cell between its faces
    largest = float(heights.min()) / 2
    if settings.cutoff is None:
        nearest = float(nearest_distances(snapshots.positions, snapshots.cells).mean())
        return replace(settings, cutoff=_two_digits(min(SECOND_SHELL * nearest, 0.99 * largest)))
    if settings.cutoff > largest:
        raise SettingsError(
            f"--cutoff is {settings.cutoff:g} nm; expected at most half the least height of the cell, {largest:.3g} nm."
        )
    return settings


def _check_volumes(settings: TrainingSettings, snapshots: Snapshots) -> None:
    if snapshots.cells is None:
        raise SettingsError("--pressure is of periodic snapshots: add --periodic, or leave it out.")
    spread = float(np.log(np.abs(np.linalg.det(snapshots.cells.astype(float)))).std())
    if spread < LEAST_VOLUME_SPREAD:
        raise SettingsError(
            f"--pressure is {settings.pressure:g} bar, but all cells have the same volume (ln V spreads by "
            f"{spread:.1g}): take snapshots of a run with a barostat, or leave it out."
        )


def _noise_range(settings: TrainingSettings, snapshots: Snapshots) -> tuple[float, float]:
    """Noise levels, nm, from well below the stiffest distance's spread to where nothing of the structure is left."""
    if snapshots.cells is not None:  # a fluid: from its nearest neighbours
        nearest = nearest_distances(snapshots.positions, snapshots.cells)
        return 0.2 * float(nearest.std()), float(nearest.mean())
    spreads = snapshots.pair_spreads()
    stiffest = float(spreads.min())
    if settings.noise_min is None and stiffest < 1e-4:
        i, j = (k[int(spreads.argmin())] for k in np.triu_indices(snapshots.n_particles, 1))
        raise SettingsError(
            f"the distance {snapshots.label(i)} to {snapshots.label(j)} is constrained: it spreads by only "
            f"{stiffest:.1g} nm. Leave one of the two out with --select (constrained hydrogens: --select "
            "'not element H'), or set --noise-min."
        )
    return 0.2 * stiffest, 1.2 * float(spreads.max())


def choose_quadruplets(snapshots: Snapshots) -> tuple[Quadruplet, ...]:
    """Signed features from the bonds: a proper dihedral per central bond, a chirality per centre of >= 3 neighbours.

    A dihedral takes, on each side, the neighbour with most bonds, then the heaviest, then the first. A centre with its
    three first neighbours in that order gives (neighbour, centre, neighbour, neighbour), whose S is its signed volume.
    """
    neighbours = snapshots.neighbours()

    def ranked(atoms):
        return sorted(atoms, key=lambda i: (-len(neighbours[i]), -snapshots.particles[i].mass, i))

    dihedrals = []
    for b, c in snapshots.bonds:
        left = [i for i in ranked(neighbours[b]) if i != c]
        right = [i for i in ranked(neighbours[c]) if i not in (b, *left[:1])]
        if left and right:
            dihedrals.append((left[0], b, c, right[0]))
    centres = []
    for centre, around in enumerate(neighbours):
        if len(around) >= 3:
            first, second, third = ranked(around)[:3]
            centres.append((first, centre, second, third))
    return tuple(dihedrals + centres)


def choose_symmetries(snapshots: Snapshots) -> tuple[Permutation, ...]:
    """Permutations of equivalent end atoms that a rotation about bonds can bring about, from the bonds.

    Ends of the same element on one centre are equivalent. Their even permutations keep the centre's handedness (the
    cycles of a methyl's hydrogens); an odd one (the two hydrogens of a methylene) makes a mirror image of it and is
    left out, unless the snapshots show that the centre is flat (a carboxylate) or inverts.
    """
    neighbours = snapshots.neighbours()
    found = []
    for centre, around in enumerate(neighbours):
        kinds: dict[str, list[int]] = {}
        for i in around:
            if neighbours[i] == [centre]:
                kinds.setdefault(snapshots.particles[i].element or snapshots.particles[i].name, []).append(i)
        for ends in kinds.values():
            if len(ends) < 2:
                continue
            if len(around) <= 2 or (len(around) == 3 and _inverts(snapshots, centre, around)):
                found += [((ends[0], other),) for other in ends[1:]]
            else:
                found += [((ends[0], *pair),) for pair in zip(ends[1:], ends[2:], strict=False)]
    return tuple(found)


def _inverts(snapshots: Snapshots, centre: int, around: list[int]) -> bool:
    a, b, c = (snapshots.positions[:, i] - snapshots.positions[:, centre] for i in around)
    positive = float(np.mean(np.sum(a * np.cross(b, c), axis=-1) > 0))
    return FLAT < positive < 1 - FLAT


def permutation_table(permutation: Permutation, n_particles: int) -> np.ndarray:
    """The powers of a permutation in cycles, [order, n_particles]: particle i becomes what table[power, i] was."""
    once = np.arange(n_particles)
    for cycle in permutation:
        once[list(cycle)] = np.roll(cycle, -1)
    table = [np.arange(n_particles)]
    for _ in range(lcm(*(len(cycle) for cycle in permutation)) - 1):
        table.append(once[table[-1]])
    return np.array(table)


def _check_symmetry(permutation: Permutation, snapshots: Snapshots) -> None:
    """SettingsError unless the permutation maps like onto like, bonds onto bonds, and keeps every chiral centre."""
    n = snapshots.n_particles
    text = "+".join("-".join(map(str, cycle)) for cycle in permutation)
    moved = [i for cycle in permutation for i in cycle]
    if (
        not moved
        or len(set(moved)) < len(moved)
        or not all(0 <= i < n for i in moved)
        or min(map(len, permutation)) < 2
    ):
        raise SettingsError(f"--symmetries has {text}; expected cycles of different particles 0 to {n - 1}.")
    images = permutation_table(permutation, n)[1]
    for i in moved:
        before, after = snapshots.particles[i], snapshots.particles[images[i]]
        if (before.element or before.name) != (after.element or after.name):
            raise SettingsError(
                f"--symmetries {text} exchanges {snapshots.label(i)} and {snapshots.label(int(images[i]))}, which are "
                "not equivalent: they differ in element. Leave it out."
            )
    mapped = {tuple(sorted((int(images[i]), int(images[j])))) for i, j in snapshots.bonds}
    if mapped != set(snapshots.bonds):
        i, j = min(mapped - set(snapshots.bonds))
        raise SettingsError(
            f"--symmetries {text} moves a bond to where none is, {snapshots.label(i)} to {snapshots.label(j)}. "
            "Permute the whole equivalent groups, cycles joined with '+'."
        )
    neighbours = snapshots.neighbours()
    for centre, around in enumerate(neighbours):
        if images[centre] != centre or len(around) < 3 or (len(around) == 3 and _inverts(snapshots, centre, around)):
            continue
        if _is_odd([around.index(int(images[i])) for i in around]):
            raise SettingsError(
                f"--symmetries {text} turns {snapshots.label(centre)} into its mirror image, which no motion of the "
                "molecule does. Leave it out."
            )


def _is_odd(permutation: list[int]) -> bool:
    return sum(a > b for i, a in enumerate(permutation) for b in permutation[i + 1 :]) % 2 == 1


def _two_digits(x: float) -> float:
    return float(f"{x:.1e}")


def _one_digit(x: float) -> float:
    return float(f"{x:.0e}")
