//! A score that the caller computes.

use super::{Frames, Outputs, ScoreModel, Scratch};
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

    fn evaluate(&self, frames: Frames, mut outputs: Outputs, _: &mut Scratch) -> Result<()> {
        let Outputs { scores, energies, .. } = &mut outputs;
        (self.function)(frames.positions, scores, energies.as_deref_mut()).map_err(Error::Callback)?;
        outputs.fill_open_virials(frames.positions, self.n_particles);
        Ok(())
    }

    /// Calling is what costs.
    fn preferred_batch(&self) -> usize {
        1024
    }
}
