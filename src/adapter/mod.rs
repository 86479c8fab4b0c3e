//! The harmonic adapter: how one frame is drawn given the last. One file per step, one `update_particle` each.

mod em;
mod heun;
mod leimkuhler_matthews;
mod mala;

pub use em::EulerMaruyama;
pub use heun::Heun;
pub use leimkuhler_matthews::LeimkuhlerMatthews;
pub use mala::log_proposal_ratio;

/// Spring of one particle at one step, in the form the update needs.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)] // kernels/adapter.cuh has the same
pub struct ParticleStep {
    /// τ = β/(2k), nm² (theory 2)
    pub effective_step: f64,
    /// √(2 τ υ), nm (theory 5)
    pub noise_amplitude: f64,
}

/// A step x_n → x_{n+1} of one particle.
pub trait Step {
    /// Whether the update uses ξ_{n+1}.
    const NEXT_NOISE: bool;

    /// Whether the step is taken again, from x_n, with the mean of the scores at both of its ends.
    const CORRECTS: bool = false;

    /// New position (nm) from position, score (1/nm), ξ_n and, where it is used, ξ_{n+1}.
    fn update_particle(
        position: [f64; 3],
        score: [f64; 3],
        noise: [f32; 3],
        next_noise: [f32; 3],
        step: ParticleStep,
    ) -> [f64; 3];
}

/// Which step to take. kernels/advance.cuh has the same numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Adapter {
    /// Theory (2): the harmonic adapter as it is, weak order 1.
    EulerMaruyama,
    /// Theory (10): one score a step, equilibrium averages of order 2.
    #[default]
    LeimkuhlerMatthews,
    /// Theory (9): two scores a step, weak order 2.
    Heun,
    /// Theory (8): Euler–Maruyama proposals, accepted or rejected, so that no step biases the density.
    Mala,
}

impl Adapter {
    /// Scores that a step needs.
    pub fn scores_per_step(self) -> u64 {
        match self {
            Adapter::EulerMaruyama | Adapter::LeimkuhlerMatthews | Adapter::Mala => 1,
            Adapter::Heun => 2,
        }
    }

    /// Whether a step can do with the bias forces at its beginning, which are all that an engine gives.
    pub fn takes_bias(self) -> bool {
        matches!(self, Adapter::EulerMaruyama | Adapter::LeimkuhlerMatthews)
    }
}
