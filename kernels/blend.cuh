// Two models as one: the twin of src/model/blend.rs. Each has been evaluated before, into arrays of its own.
#pragma once

#include "evaluate.cuh"

struct Blend {
    const double* scores[2];   // [n_frames][n_particles][3], 1/nm
    const double* energies[2]; // [n_frames], kT_0; of use where they were asked for
    double lambda;

    // At the ends one of the two, to the last bit; the other may be anything.
    DIFFUSIM_MEMBER double of(double a, double b) const {
        return lambda == 0.0 ? a : lambda == 1.0 ? b : (1.0 - lambda) * a + lambda * b;
    }

    // ---- what launches.cuh asks for

    DIFFUSIM_MEMBER void notice(unsigned, Point, bool) const {}
    DIFFUSIM_MEMBER double energy(unsigned frame) const { return of(energies[0][frame], energies[1][frame]); }
    DIFFUSIM_MEMBER Point score(unsigned particle, Point*) const {
        Point s;
        for (int c = 0; c < 3; c++)
            s.x[c] = of(scores[0][3 * (size_t)particle + c], scores[1][3 * (size_t)particle + c]);
        return s;
    }
};

// The results of an evaluation, by one thread for each particle.
DIFFUSIM_FN void blend_frames(const Evaluation& job, const Blend& blend) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < job.n_all())
        reinterpret_cast<Point*>(job.scores)[i] = blend.score(i, nullptr);
    if (job.energies && i < job.n_frames)
        job.energies[i] = blend.energy(i);
}
