//! What a score is: the [`ScoreModel`] trait, one file per kind, and the model file.

mod analytic;
pub mod callback;
pub mod curvature;
mod dense;
pub mod distance;
mod file;
mod subset;

pub use analytic::{Analytic, Potential};
pub use callback::Callback;
pub use distance::Distance;
pub use file::{FORMAT_VERSION, Metadata, Model, NoiseLevels, Particle};
pub use subset::Subset;

use crate::error::Result;
use crate::lane::CacheLine;
use std::sync::Arc;

/// A learned or given density p(x) ∝ exp(−E(x)) of `n_particles` particles in three dimensions.
pub trait ScoreModel: Send + Sync {
    /// Particles in a frame.
    fn n_particles(&self) -> usize;

    /// Scores s = −∇E of a batch of frames, and their energies where `energies` is given.
    ///
    /// `positions` and `scores`: `[n_frames][n_particles][3]`, nm and 1/nm; `energies`: `[n_frames]`, kT₀.
    /// A frame's result does not depend on the other frames of the batch, to the last bit.
    fn evaluate(
        &self,
        positions: &[f64],
        scores: &mut [f64],
        energies: Option<&mut [f64]>,
        scratch: &mut Scratch,
    ) -> Result<()>;

    /// Frames that are cheapest to evaluate together.
    fn preferred_batch(&self) -> usize {
        1
    }

    /// The same density blurred to another σ (nm) of the training's range, sharing the weights (theory §9); `None` for a
    /// model of one density.
    fn at_noise_level(&self, _noise_level: f64) -> Option<Arc<dyn ScoreModel>> {
        None
    }

    /// Whether a frame moved as a whole has the same energy.
    fn is_translation_invariant(&self) -> bool {
        false
    }
}

/// Work space of one thread: it grows to what the model needs and is then reused, so that no step allocates.
#[derive(Default)]
pub struct Scratch {
    single: Vec<CacheLine>,
    /// For models that work on a copy of the frames.
    pub(crate) frames: Vec<f64>,
    /// For models that wrap another one.
    pub(crate) inner: Option<Box<Scratch>>,
}

impl Scratch {
    /// At least `n` single-precision numbers, aligned for every instruction set; contents are left over from earlier.
    pub(crate) fn single(&mut self, n: usize) -> &mut [f32] {
        if self.single.len() * CacheLine::LEN < n {
            self.single = CacheLine::buffer(n);
        }
        &mut bytemuck::cast_slice_mut(&mut self.single)[..n]
    }
}
