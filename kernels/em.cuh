// Euler-Maruyama: x_{n+1} = x_n + tau s(x_n) + sqrt(2 tau upsilon) xi_n (theory 2, 5). The twin of src/adapter/em.rs.
#pragma once

#include "adapter.cuh"

struct EulerMaruyama {
    static DIFFUSIM_MEMBER Point update_particle(Point position, Point score, Xi noise, Xi, ParticleStep step) {
        Point moved;
        for (int c = 0; c < 3; c++)
            moved.x[c] = position.x[c] + (step.effective_step * score.x[c] + step.noise_amplitude * (double)noise.x[c]);
        return moved;
    }
};
