//! Leimkuhler–Matthews: x_{n+1} = x_n + τ s(x_n) + √(2τυ) ½(ξ_n + ξ_{n+1}) (theory 10; Appl. Math. Res. Express 2013, 34).

use super::{EulerMaruyama, ParticleStep, Step};

/// The step of theory (10).
pub struct LeimkuhlerMatthews;

impl Step for LeimkuhlerMatthews {
    const NEXT_NOISE: bool = true;

    #[inline(always)]
    fn update_particle(
        position: [f64; 3],
        score: [f64; 3],
        noise: [f32; 3],
        next_noise: [f32; 3],
        step: ParticleStep,
    ) -> [f64; 3] {
        let mean = std::array::from_fn(|c| 0.5 * (noise[c] + next_noise[c]));
        EulerMaruyama::update_particle(position, score, mean, mean, step)
    }
}
