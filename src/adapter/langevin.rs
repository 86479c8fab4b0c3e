//! Langevin dynamics with velocities, by the middle scheme (theory 11; Zhang et al., J. Phys. Chem. A 123, 6056 (2019)):
//!
//!   v ← v + Δt kT₀ s(x)/m;   x ← x + ½Δt v;   v ← a v + √((1 − a²) kT/m) ξ, a = e^{−γΔt};   x ← x + ½Δt v.
//!
//! Its frames are those of BAOAB (Leimkuhler & Matthews, Appl. Math. Res. Express 2013, 34); one score a step, at the step's
//! beginning. Its third line is the harmonic adapter in velocity space: theory (5) for the velocity score −m v/kT.

use super::ParticleStep;

/// What a step needs besides each particle's [`ParticleStep`]: τ = kT₀Δt/(mγ) and √(2τυ) hold its mass and temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)] // kernels/adapter.cuh has the same
pub struct Inertia {
    /// Δt, ps
    pub time_step: f64,
    /// γ, 1/ps
    pub friction_rate: f64,
    /// a = e^{−γΔt}: what is left of a velocity after a step.
    pub decay: f64,
    /// √((1 − a²) kT/m) over √(2τυ), 1/ps
    pub noise_rate: f64,
}

impl Inertia {
    /// For a step of Δt (ps) at the friction rate γ (1/ps).
    pub fn new(time_step: f64, friction_rate: f64) -> Self {
        // 2τυ = 2ΔtkT/(mγ). Of libm, not of the machine's library: the same bits everywhere.
        let lost = -libm::expm1(-2.0 * friction_rate * time_step);
        Inertia {
            time_step,
            friction_rate,
            decay: libm::exp(-friction_rate * time_step),
            noise_rate: (lost * friction_rate / (2.0 * time_step)).sqrt(),
        }
    }

    /// Of particles that have no velocities.
    pub const NONE: Self = Inertia { time_step: 0.0, friction_rate: 0.0, decay: 0.0, noise_rate: 0.0 };

    /// The same at a time step of `scale` times this one.
    pub fn scaled(self, scale: f64) -> Self {
        if scale == 1.0 { self } else { Inertia::new(self.time_step * scale, self.friction_rate) }
    }

    /// A drift τ|s| of √(2τυ) is a kick of this many thermal speeds √(kT/m).
    pub fn kick_per_drift(self) -> f64 {
        (2.0 * self.friction_rate * self.time_step).sqrt()
    }
}

/// The middle scheme.
pub struct Langevin;

impl Langevin {
    /// New position (nm) and velocity (nm/ps) from those before, score (1/nm) and ξ_n.
    #[inline(always)]
    pub fn update_particle(
        position: [f64; 3],
        velocity: [f64; 3],
        score: [f64; 3],
        noise: [f32; 3],
        step: ParticleStep,
        inertia: Inertia,
    ) -> ([f64; 3], [f64; 3]) {
        let (kick, random) =
            (inertia.friction_rate * step.effective_step, inertia.noise_rate * step.noise_amplitude);
        let kicked: [f64; 3] = std::array::from_fn(|c| velocity[c] + kick * score[c]);
        let moved = std::array::from_fn(|c| inertia.decay * kicked[c] + random * noise[c] as f64);
        let half = 0.5 * inertia.time_step;
        (std::array::from_fn(|c| position[c] + half * (kicked[c] + moved[c])), moved)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{EulerMaruyama, Step};
    use super::*;
    use crate::schedule::BOLTZMANN;
    use proptest::prelude::*;

    proptest! {
        /// With the spring k_v = m/(2kT(1 − a)) and the ratio υ_v = (1 + a)/2, the step of theory (5) for the velocity score
        /// is the whole Ornstein–Uhlenbeck step: its precision is k_v/υ_v = m/(kT(1 − a²)), its offset (a − 1)v.
        #[test]
        fn harmonic_adapter_in_velocity_space_equals_ornstein_uhlenbeck(
            dt in 1e-4..3e-2f64, rate in 0.2..90.0f64, mass in 1.5..40.0f64,
            t0 in 250.0..320.0f64, temperature in 200.0..450.0f64,
            v in prop::array::uniform3(-3.0..3.0f64), s in prop::array::uniform3(-3e3..3e3f64),
            x in prop::array::uniform3(-9.0..9.0f64), xi in prop::array::uniform3(-5.0..5.0f32),
        ) {
            let (kt0, kt) = (BOLTZMANN * t0, BOLTZMANN * temperature);
            let tau = kt0 / (mass * rate) * dt;
            let step = ParticleStep { effective_step: tau, noise_amplitude: (2.0 * tau * temperature / t0).sqrt() };
            let inertia = Inertia::new(dt, rate);
            let (position, velocity) = Langevin::update_particle(x, v, s, xi, step, inertia);

            let a = (-rate * dt).exp();
            let (spring, ratio) = (mass / (2.0 * kt * -(-rate * dt).exp_m1()), 0.5 * (1.0 + a));
            let velocity_step = ParticleStep {
                effective_step: 0.5 / spring,
                noise_amplitude: (ratio / spring).sqrt(),
            };
            let kicked = std::array::from_fn(|c| v[c] + dt * kt0 * s[c] / mass);
            let velocity_score = kicked.map(|v| -mass * v / kt);
            let expected =
                EulerMaruyama::update_particle(kicked, velocity_score, xi, [f32::NAN; 3], velocity_step);
            for c in 0..3 {
                let scale = v[c].abs() + (dt * kt0 * s[c] / mass).abs() + 5.0 * (kt / mass).sqrt();
                prop_assert!((velocity[c] - expected[c]).abs() <= 16.0 * f64::EPSILON * scale);
                let moved = x[c] + 0.5 * dt * kicked[c] + 0.5 * dt * expected[c];
                prop_assert!((position[c] - moved).abs() <= 16.0 * f64::EPSILON * (x[c].abs() + dt * scale));
            }
        }
    }
}
