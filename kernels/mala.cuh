// Metropolis-adjusted Langevin (theory 8): Euler-Maruyama proposals. The twin of src/adapter/mala.rs.
#pragma once

#include "em.cuh"

// What burn-in has made of the step of one replica: a factor f on tau.
struct Tuning {
    double log_factor;
    double sum;
    double count;

    DIFFUSIM_MEMBER double factor() const { return log_factor == 0.0 ? 1.0 : exp_double(log_factor); }

    // Learn from the proposal at `step`, whose probability of acceptance was min{1, exp(log_probability)}; NaN is none.
    DIFFUSIM_MEMBER void learn(double target, unsigned long long n_steps, unsigned long long step,
                               double log_probability) {
        const double largest = 13.8;
        if (step >= n_steps)
            return;
        if (step <= n_steps / 2)
            sum = count = 0.0;
        double probability = log_probability != log_probability ? 0.0 : exp_double(fmin(log_probability, 0.0));
        double gain = 1.0 / root((double)step + 1.0);
        log_factor += gain * (probability - target);
        log_factor = log_factor < -largest ? -largest : log_factor > largest ? largest : log_factor;
        if (step >= n_steps / 2) {
            sum += log_factor;
            count += 1.0;
        }
        if (step + 1 == n_steps)
            log_factor = sum / count;
    }
};

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
