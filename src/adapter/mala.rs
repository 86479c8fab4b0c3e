//! Metropolis-adjusted Langevin: the step of theory (2) is a proposal, accepted with the probability of theory (8),
//! min{1, exp[(E(x) − E(x'))/υ] q(x|x')/q(x'|x)}, else the frame stays.

use super::ParticleStep;

/// ln q(x|x') − ln q(x'|x) of one particle, from position and score before and after the proposal.
#[inline(always)]
pub fn log_proposal_ratio(
    position: [f64; 3],
    score: [f64; 3],
    proposed: [f64; 3],
    proposed_score: [f64; 3],
    step: ParticleStep,
) -> f64 {
    if step.noise_amplitude == 0.0 {
        return 0.0; // frozen
    }
    let mut sum = 0.0;
    for c in 0..3 {
        let moved = proposed[c] - position[c];
        let forward = moved - step.effective_step * score[c];
        let backward = moved + step.effective_step * proposed_score[c];
        sum += forward * forward - backward * backward;
    }
    sum / (2.0 * step.noise_amplitude * step.noise_amplitude)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the densities written out.
    #[test]
    fn ratio_is_that_of_the_two_gaussians() {
        let (x, s, y, t) = ([0.3, -0.7, 1.1], [2.0, -3.1, 0.4], [0.5, -0.9, 0.8], [-1.7, 0.6, 2.9]);
        let step = ParticleStep { effective_step: 0.07, noise_amplitude: 0.43 };
        let log_density = |from: [f64; 3], score: [f64; 3], to: [f64; 3]| -> f64 {
            (0..3).map(|c| -0.5 * ((to[c] - (from[c] + 0.07 * score[c])) / 0.43).powi(2)).sum()
        };
        let expected = log_density(y, t, x) - log_density(x, s, y);
        assert!((log_proposal_ratio(x, s, y, t, step) - expected).abs() < 1e-13);
    }
}
