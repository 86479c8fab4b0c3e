//! Euler–Maruyama, which *is* the harmonic adapter: x_{n+1} = x_n + τ s(x_n) + √(2τυ) ξ_n (theory 2, 5).

use super::{ParticleStep, Step};

/// The step of theory (2).
pub struct EulerMaruyama;

impl Step for EulerMaruyama {
    const NEXT_NOISE: bool = false;

    #[inline(always)]
    fn update_particle(
        position: [f64; 3],
        score: [f64; 3],
        noise: [f32; 3],
        _next_noise: [f32; 3],
        step: ParticleStep,
    ) -> [f64; 3] {
        std::array::from_fn(|c| {
            position[c] + (step.effective_step * score[c] + step.noise_amplitude * noise[c] as f64)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Theory (1), sampled as it is written: a Gaussian of precision k_a/β around x_n, moved by the offset (β/2k_a) s.
    fn harmonic_adapter(x: f64, s: f64, xi: f32, beta: f64, spring: f64) -> f64 {
        let precision = spring / beta;
        let offset = beta / (2.0 * spring) * s;
        (x + offset) + xi as f64 / precision.sqrt()
    }

    proptest! {
        #[test]
        fn harmonic_adapter_equals_euler_maruyama(
            beta in 1e-4..0.9f64, dt in 1e-6..3e-3f64, d in 1e-3..0.7f64,
            x in prop::array::uniform3(-9.0..9.0f64), s in prop::array::uniform3(-3e3..3e3f64),
            xi in prop::array::uniform3(-5.0..5.0f32),
        ) {
            let spring = beta / (2.0 * d * dt); // theory (4)
            let tau = d * dt;
            let step = ParticleStep { effective_step: tau, noise_amplitude: (2.0 * tau).sqrt() };
            let moved = EulerMaruyama::update_particle(x, s, xi, [f32::NAN; 3], step);
            for c in 0..3 {
                let expected = harmonic_adapter(x[c], s[c], xi[c], beta, spring);
                let scale = x[c].abs() + (tau * s[c]).abs() + 5.0 * step.noise_amplitude;
                prop_assert!((moved[c] - expected).abs() <= 4.0 * f64::EPSILON * scale);
            }
        }
    }
}
