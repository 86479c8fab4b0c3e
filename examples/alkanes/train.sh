#!/bin/sh
# Train butane.safetensors and octane.safetensors on exact snapshots; octane takes sixteen minutes of processor time.
set -eu
cd "$(dirname "$0")"
for alkane in butane octane; do
    python make_reference.py snapshots $alkane --out ../../out/alkanes
done
diffusim train ../../out/alkanes/butane.npz --topology butane.pdb --temperature 300 --hidden 96-96-96 --steps 25000 \
    --patience 50 --noise-min 0.0004 --fokker-planck-weight 0.5 --torsion-share 0.5 --seed 1 -o butane.safetensors "$@"
diffusim train ../../out/alkanes/octane.npz --topology octane.pdb --temperature 300 --hidden 192-192-192 --steps 20000 \
    --patience 50 --noise-min 0.0004 --fokker-planck-noise-max 0.1 --torsion-share 0.5 --relative-entropy-weight 0.1 \
    --seed 1 -o octane.safetensors "$@"
