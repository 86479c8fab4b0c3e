//! Heun: y = x_n + τ s(x_n) + √(2τυ) ξ_n, then x_{n+1} = x_n + τ ½[s(x_n) + s(y)] + √(2τυ) ξ_n (theory 9).

use super::{EulerMaruyama, ParticleStep, Step};

/// Both stages of theory (9): Euler–Maruyama, the second time with the mean of both scores.
pub struct Heun;

impl Step for Heun {
    const NEXT_NOISE: bool = false;
    const CORRECTS: bool = true;

    #[inline(always)]
    fn update_particle(
        position: [f64; 3],
        score: [f64; 3],
        noise: [f32; 3],
        next_noise: [f32; 3],
        step: ParticleStep,
    ) -> [f64; 3] {
        EulerMaruyama::update_particle(position, score, noise, next_noise, step)
    }
}
