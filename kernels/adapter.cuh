// What every step needs: the twin of src/adapter/mod.rs.
#pragma once

#include "lane.cuh"

// A position or a score, in double precision as on the CPU.
struct Point {
    double x[3];
};

// Three of the normals of one particle at one step.
struct Xi {
    float x[3];
};

// Spring of one particle at one step: tau, nm^2 (theory 2), and sqrt(2 tau upsilon), nm (theory 5).
struct ParticleStep {
    double effective_step;
    double noise_amplitude;
};

// What a step with velocities needs besides: the twin of src/adapter/langevin.rs. All zero for particles without.
struct Inertia {
    double time_step;     // ps
    double friction_rate; // 1/ps
    double decay;
    double noise_rate; // 1/ps
};
