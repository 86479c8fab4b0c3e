#!/bin/sh
# Train examples/ala2/ala2.safetensors on the committed snapshots: 21 minutes of processor time. The Fokker-Planck term
# reaches up to the noise level that joins all basins, so that their populations at the lowest level are right too, and
# relative entropy makes the populations of simulations those of the snapshots.
set -eu
cd "$(dirname "$0")"
diffusim train snapshots.npz --topology ala2-heavy.pdb --temperature 300 --noise-min 0.00035 --fokker-planck-noise-max 0.08 \
    --relative-entropy-weight 0.1 --steps 25000 --patience 50 --seed 1 -o ala2.safetensors "$@"
