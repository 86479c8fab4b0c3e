//! Metropolis-adjusted Langevin: the step of theory (2) is a proposal, accepted with the probability of theory (8),
//! min{1, exp[(E(x) − E(x'))/υ] q(x|x')/q(x'|x)}, else the frame stays.

use super::ParticleStep;
use crate::lane::exp_double;

/// The fraction of proposals that is wanted, and the steps that find the spring for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BurnIn {
    /// Wanted probability of acceptance, in (0, 1).
    pub target_acceptance: f64,
    /// Number of the first step at which the spring is frozen.
    pub n_steps: u64,
}

/// What burn-in has made of the step of one replica: a factor f on τ (the spring is k/f), which moves by
///
///   ln f ← ln f + (α_n − target)/√(n + 1)
///
/// after proposal n of acceptance probability α_n (Robbins & Monro, Ann. Math. Statist. 22, 400 (1951)); what is frozen is
/// the mean of ln f over the second half (Polyak & Juditsky, SIAM J. Control Optim. 30, 838 (1992)). It depends on the
/// replica's own proposals alone, so that its trajectory is the same in any company.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)] // kernels/mala.cuh has the same
pub struct Tuning {
    /// ln f of the next step.
    pub log_factor: f64,
    /// Sum of ln f over the second half of burn-in so far.
    pub sum: f64,
    /// Steps in that sum.
    pub count: f64,
}

/// |ln f| at most: a spring softer or stiffer by 10⁶ is no tuning any more.
const LARGEST: f64 = 13.8;

impl Tuning {
    /// f
    pub fn factor(&self) -> f64 {
        if self.log_factor == 0.0 { 1.0 } else { exp_double(self.log_factor) }
    }

    /// Learn from the proposal at `step`, whose probability of acceptance was min{1, exp `log_probability`}; NaN is none.
    pub fn learn(&mut self, burn_in: BurnIn, step: u64, log_probability: f64) {
        let half = burn_in.n_steps / 2;
        if step >= burn_in.n_steps {
            return;
        }
        if step <= half {
            (self.sum, self.count) = (0.0, 0.0);
        }
        let probability = if log_probability.is_nan() { 0.0 } else { exp_double(log_probability.min(0.0)) };
        let gain = 1.0 / (step as f64 + 1.0).sqrt();
        self.log_factor += gain * (probability - burn_in.target_acceptance);
        self.log_factor = self.log_factor.clamp(-LARGEST, LARGEST);
        if step >= half {
            self.sum += self.log_factor;
            self.count += 1.0;
        }
        if step + 1 == burn_in.n_steps {
            self.log_factor = self.sum / self.count;
        }
    }
}

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

    /// A proposal of acceptance probability e^{−f/3} is accepted with the probability 0.71 at f = −3 ln 0.71.
    #[test]
    fn tuning_finds_the_step_of_the_target_and_keeps_it() {
        let burn_in = BurnIn { target_acceptance: 0.71, n_steps: 4000 };
        let mut tuning = Tuning::default();
        for step in 0..4000 {
            tuning.learn(burn_in, step, -tuning.factor() / 3.0);
        }
        let frozen = tuning;
        assert!((frozen.factor() / (-3.0 * 0.71f64.ln()) - 1.0).abs() < 1e-3, "{}", frozen.factor());
        assert_eq!(frozen.count, 2000.0);
        tuning.learn(burn_in, 4000, -9.0);
        assert_eq!(tuning, frozen);
        // What has no limit stops at one: never and always accepted, and a probability that is no number.
        for (log_probability, end) in [(f64::NEG_INFINITY, -LARGEST), (f64::NAN, -LARGEST), (0.7, LARGEST)] {
            let mut tuning = Tuning::default();
            (0..9000)
                .for_each(|step| tuning.learn(BurnIn { n_steps: 9000, ..burn_in }, step, log_probability));
            assert!((tuning.log_factor - end).abs() < 1e-9, "{}", tuning.log_factor);
        }
        // A burn-in of one step is a mean over that step.
        let mut tuning = Tuning::default();
        tuning.learn(BurnIn { n_steps: 1, ..burn_in }, 0, 0.0);
        assert!((tuning.log_factor - 0.29).abs() < 1e-15);
    }

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
