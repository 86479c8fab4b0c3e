// Leimkuhler-Matthews: x_{n+1} = x_n + tau s(x_n) + sqrt(2 tau upsilon) (xi_n + xi_{n+1})/2 (theory 10). The twin of
// src/adapter/leimkuhler_matthews.rs.
#pragma once

#include "em.cuh"

struct LeimkuhlerMatthews {
    static DIFFUSIM_MEMBER Point update_particle(Point position, Point score, Xi noise, Xi next_noise,
                                                 ParticleStep step) {
        Xi mean;
        for (int c = 0; c < 3; c++)
            mean.x[c] = 0.5f * (noise.x[c] + next_noise.x[c]);
        return EulerMaruyama::update_particle(position, score, mean, mean, step);
    }
};
