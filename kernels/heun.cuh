// Heun: Euler-Maruyama, and again from x_n with the mean of the scores at both ends (theory 9). The twin of
// src/adapter/heun.rs.
#pragma once

#include "em.cuh"

struct Heun {
    static DIFFUSIM_MEMBER Point update_particle(Point position, Point score, Xi noise, ParticleStep step) {
        return EulerMaruyama::update_particle(position, score, noise, noise, step);
    }

    static DIFFUSIM_MEMBER Point mean(Point score, Point end_score) {
        Point s;
        for (int c = 0; c < 3; c++)
            s.x[c] = 0.5 * (score.x[c] + end_score.x[c]);
        return s;
    }
};
