// Langevin dynamics with velocities, by the middle scheme (theory 11). The twin of src/adapter/langevin.rs.
#pragma once

#include "adapter.cuh"

struct Langevin {
    static DIFFUSIM_MEMBER void update_particle(Point& position, Point& velocity, Point score, Xi noise,
                                                ParticleStep step, Inertia inertia) {
        const double kick = inertia.friction_rate * step.effective_step;
        const double random = inertia.noise_rate * step.noise_amplitude, half = 0.5 * inertia.time_step;
        for (int c = 0; c < 3; c++) {
            double kicked = velocity.x[c] + kick * score.x[c];
            double moved = inertia.decay * kicked + random * (double)noise.x[c];
            position.x[c] = position.x[c] + half * (kicked + moved);
            velocity.x[c] = moved;
        }
    }
};
