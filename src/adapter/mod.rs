//! The harmonic adapter: how one frame is drawn given the last. One file per step, one `update_particle` each.

mod em;
mod heun;
mod langevin;
mod leimkuhler_matthews;
mod mala;

pub use em::EulerMaruyama;
pub use heun::Heun;
pub use langevin::{Inertia, Langevin};
pub use leimkuhler_matthews::LeimkuhlerMatthews;
pub use mala::{BurnIn, Tuning, log_proposal_ratio};

/// Spring of one particle at one step, in the form the update needs.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)] // kernels/adapter.cuh has the same
pub struct ParticleStep {
    /// τ = β/(2k), nm² (theory 2)
    pub effective_step: f64,
    /// √(2 τ υ), nm (theory 5)
    pub noise_amplitude: f64,
}

impl ParticleStep {
    /// With the factors of schedules.
    #[inline(always)]
    pub fn scaled(self, drift: f64, noise: f64) -> Self {
        ParticleStep {
            effective_step: self.effective_step * drift,
            noise_amplitude: self.noise_amplitude * noise,
        }
    }
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

/// A step of a particle that may have a velocity: what the loop over steps is written for.
pub trait Move {
    /// Whether the update uses ξ_{n+1}.
    const NEXT_NOISE: bool;
    /// As [`Step::CORRECTS`].
    const CORRECTS: bool;
    /// Whether `velocity` is the particle's; of no account otherwise.
    const HAS_VELOCITIES: bool;

    /// Move a particle by its score (1/nm) and noise; `inertia` is given to those that have velocities.
    fn move_particle(
        position: &mut [f64; 3],
        velocity: &mut [f64; 3],
        score: [f64; 3],
        noise: [f32; 3],
        next_noise: [f32; 3],
        step: ParticleStep,
        inertia: Inertia,
    );
}

impl<A: Step> Move for A {
    const NEXT_NOISE: bool = A::NEXT_NOISE;
    const CORRECTS: bool = A::CORRECTS;
    const HAS_VELOCITIES: bool = false;

    #[inline(always)]
    fn move_particle(
        position: &mut [f64; 3],
        _velocity: &mut [f64; 3],
        score: [f64; 3],
        noise: [f32; 3],
        next_noise: [f32; 3],
        step: ParticleStep,
        _inertia: Inertia,
    ) {
        *position = A::update_particle(*position, score, noise, next_noise, step);
    }
}

impl Move for Langevin {
    const NEXT_NOISE: bool = false;
    const CORRECTS: bool = false;
    const HAS_VELOCITIES: bool = true;

    #[inline(always)]
    fn move_particle(
        position: &mut [f64; 3],
        velocity: &mut [f64; 3],
        score: [f64; 3],
        noise: [f32; 3],
        _next_noise: [f32; 3],
        step: ParticleStep,
        inertia: Inertia,
    ) {
        (*position, *velocity) = Langevin::update_particle(*position, *velocity, score, noise, step, inertia);
    }
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
    /// Theory (11): velocities, kicked by the score; one score a step, frames of order 2.
    Langevin,
}

impl Adapter {
    /// Scores that a step needs.
    pub fn scores_per_step(self) -> u64 {
        match self {
            Adapter::EulerMaruyama | Adapter::LeimkuhlerMatthews | Adapter::Mala | Adapter::Langevin => 1,
            Adapter::Heun => 2,
        }
    }

    /// Whether a step can do with the bias forces at its beginning, which are all that an engine gives.
    pub fn takes_bias(self) -> bool {
        matches!(self, Adapter::EulerMaruyama | Adapter::LeimkuhlerMatthews | Adapter::Langevin)
    }

    /// Whether particles have velocities.
    pub fn has_velocities(self) -> bool {
        self == Adapter::Langevin
    }
}
