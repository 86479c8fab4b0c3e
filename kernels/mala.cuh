// Metropolis-adjusted Langevin (theory 8): Euler-Maruyama proposals. The twin of src/adapter/mala.rs.
#pragma once

#include "em.cuh"

// ln q(x|x') - ln q(x'|x) of one particle, from position and score before and after the proposal.
DIFFUSIM_FN double log_proposal_ratio(Point position, Point score, Point proposed, Point proposed_score,
                                      ParticleStep step) {
    if (step.noise_amplitude == 0.0)
        return 0.0; // frozen
    double sum = 0.0;
    for (int c = 0; c < 3; c++) {
        double moved = proposed.x[c] - position.x[c];
        double forward = moved - step.effective_step * score.x[c];
        double backward = moved + step.effective_step * proposed_score.x[c];
        sum += forward * forward - backward * backward;
    }
    return sum / (2.0 * step.noise_amplitude * step.noise_amplitude);
}
