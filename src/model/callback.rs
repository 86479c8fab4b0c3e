//! A score that the caller computes.

use super::{ScoreModel, Scratch};
use crate::error::{Error, Result};

/// `(positions [n_frames][n_particles][3], scores, energies if wanted)`; an error text ends the run.
pub type Function =
    dyn Fn(&[f64], &mut [f64], Option<&mut [f64]>) -> std::result::Result<(), String> + Send + Sync;

/// A model around the caller's function, which may be called from several threads at once.
pub struct Callback {
    n_particles: usize,
    function: Box<Function>,
}

impl Callback {
    /// Of `n_particles` particles.
    pub fn new(n_particles: usize, function: Box<Function>) -> Self {
        Callback { n_particles, function }
    }
}

impl ScoreModel for Callback {
    fn n_particles(&self) -> usize {
        self.n_particles
    }

    fn evaluate(
        &self,
        positions: &[f64],
        scores: &mut [f64],
        energies: Option<&mut [f64]>,
        _: &mut Scratch,
    ) -> Result<()> {
        (self.function)(positions, scores, energies).map_err(Error::Callback)
    }

    /// Calling is what costs.
    fn preferred_batch(&self) -> usize {
        1024
    }
}
