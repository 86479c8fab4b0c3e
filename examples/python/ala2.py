"""Run a molecule from its model file: python ala2.py MODEL.safetensors [STEPS]"""

import sys

import diffusim


def main(path: str, n_steps: str = "100000") -> None:
    # The size of a step is the one the model recommends.
    simulation = diffusim.Simulation(path, temperature=300.0, friction_rate=10.0, seed=48291)  # K, 1/ps
    simulation.step(int(n_steps))
    for x, y, z in simulation.positions[0]:  # [n_replicas, n_particles, 3], nm
        print(f"{x:.20f} {y:.20f} {z:.20f}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except diffusim.DiffusimError as error:
        sys.exit(f"diffusim: {error}")
