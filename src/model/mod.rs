//! What a score is: the [`ScoreModel`] trait, one file per kind, and the model file.

mod analytic;
mod blend;
pub mod callback;
pub mod curvature;
mod dense;
pub mod distance;
mod file;
pub mod kernel;
pub mod message_passing;
mod subset;

pub use analytic::{Analytic, Potential};
pub use blend::{Blend, check_lambda};
pub use callback::Callback;
pub use distance::Distance;
pub use file::{FORMAT_VERSION, Metadata, Model, NoiseLevels, Particle};
pub use kernel::KernelModel;
pub use message_passing::{MessagePassing, Others};
pub use subset::Subset;

use crate::cell::Cell;
use crate::error::{Result, bail};
use crate::lane::CacheLine;
use std::sync::Arc;

/// What is evaluated: a batch of frames.
#[derive(Clone, Copy)]
pub struct Frames<'a> {
    /// `[n_frames][n_particles][3]`, nm
    pub positions: &'a [f64],
    /// The cell of all of them, for periodic models.
    pub cell: Option<&'a Cell>,
}

impl<'a> Frames<'a> {
    /// Frames in open space.
    pub fn open(positions: &'a [f64]) -> Self {
        Frames { positions, cell: None }
    }
}

/// Where the results go.
pub struct Outputs<'a> {
    /// s = −∇E, `[n_frames][n_particles][3]`, 1/nm
    pub scores: &'a mut [f64],
    /// E, `[n_frames]`, kT₀
    pub energies: Option<&'a mut [f64]>,
    /// W_ab = −∂E/∂ε_ab under x_a → x_a + ε_ab x_b of positions and cell, `[n_frames][3][3]`, kT₀: Σ x_b s_a in open space.
    pub virials: Option<&'a mut [f64]>,
}

impl<'a> Outputs<'a> {
    /// Scores alone.
    pub fn scores(scores: &'a mut [f64]) -> Self {
        Outputs { scores, energies: None, virials: None }
    }

    /// Scores and energies.
    pub fn energies(scores: &'a mut [f64], energies: &'a mut [f64]) -> Self {
        Outputs { scores, energies: Some(energies), virials: None }
    }

    /// The virials of frames in open space, from their scores.
    fn fill_open_virials(&mut self, positions: &[f64], n_particles: usize) {
        let Some(virials) = &mut self.virials else { return };
        let n = 3 * n_particles;
        let frames = positions.chunks_exact(n).zip(self.scores.chunks_exact(n));
        for ((x, s), virial) in frames.zip(virials.as_chunks_mut::<9>().0) {
            *virial = [0.0; 9];
            for (x, s) in x.as_chunks::<3>().0.iter().zip(s.as_chunks::<3>().0) {
                for (i, w) in virial.iter_mut().enumerate() {
                    *w += s[i / 3] * x[i % 3];
                }
            }
        }
    }
}

/// A learned or given density p(x) ∝ exp(−E(x)) of `n_particles` particles in three dimensions.
pub trait ScoreModel: Send + Sync {
    /// Particles in a frame.
    fn n_particles(&self) -> usize;

    /// Scores of a batch of frames, whose cell has passed [`ScoreModel::check_cell`], and what else `outputs` asks for.
    /// A frame's result does not depend on the other frames of the batch, to the last bit.
    fn evaluate(&self, frames: Frames, outputs: Outputs, scratch: &mut Scratch) -> Result<()>;

    /// Whether the model can be evaluated in this cell, or without one.
    fn check_cell(&self, cell: Option<&Cell>) -> Result<()> {
        if let Some(cell) = cell {
            bail!(
                Mismatch,
                "the model knows no periodic cell, and one of {:?} nm was given; run it without a cell",
                cell.vectors()
            );
        }
        Ok(())
    }

    /// The model as its kernel reads it; what has no kernel, in words, if it runs on the CPU only.
    fn kernel(&self) -> std::result::Result<KernelModel, &'static str>;

    /// λ of a blend.
    fn lambda(&self) -> Option<f64> {
        None
    }

    /// Frames that are cheapest to evaluate together.
    fn preferred_batch(&self) -> usize {
        1
    }

    /// Threads that a single frame can make use of: those of the pool that [`ScoreModel::evaluate`] is called from, if any.
    fn threads_per_frame(&self) -> usize {
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
    pub(crate) message_passing: message_passing::Workspace<f32>,
    /// Of the particles of a domain.
    pub(crate) species: Vec<u16>,
    /// For models that wrap another one.
    pub(crate) inner: Option<Box<Scratch>>,
    /// For models that wrap two.
    pub(crate) second: Option<Box<Scratch>>,
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
