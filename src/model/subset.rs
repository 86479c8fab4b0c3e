//! A model that acts on some of the particles of a larger system; the others feel no score.

use super::{Frames, KernelModel, Outputs, ScoreModel, Scratch};
use crate::cell::Cell;
use crate::error::{Result, bail};
use std::sync::Arc;

/// `inner`, embedded in `n_particles` particles.
pub struct Subset {
    inner: Arc<dyn ScoreModel>,
    n_particles: usize,
    /// Where each of the inner model's particles is found.
    particles: Vec<usize>,
}

impl Subset {
    /// `particles[i]` is the inner model's particle i in the system of `n_particles`.
    pub fn new(inner: Arc<dyn ScoreModel>, n_particles: usize, particles: &[usize]) -> Result<Self> {
        if particles.len() != inner.n_particles() {
            bail!(
                Mismatch,
                "particles names {} particles, but the model moves {}; name each of them once, in the model's order",
                particles.len(),
                inner.n_particles()
            );
        }
        let mut seen = vec![false; n_particles];
        for (i, &p) in particles.iter().enumerate() {
            if p >= n_particles {
                bail!(Mismatch, "particles[{i}] is {p}, but the system has only {n_particles} particles");
            }
            if std::mem::replace(&mut seen[p], true) {
                bail!(Mismatch, "particles[{i}] names particle {p} a second time");
            }
        }
        Ok(Subset { inner, n_particles, particles: particles.to_vec() })
    }
}

impl ScoreModel for Subset {
    fn n_particles(&self) -> usize {
        self.n_particles
    }

    fn evaluate(&self, frames: Frames, outputs: Outputs, scratch: &mut Scratch) -> Result<()> {
        let Frames { positions, cell } = frames;
        let Outputs { scores, energies, virials } = outputs;
        let (outer, inner) = (3 * self.n_particles, 3 * self.particles.len());
        let n_frames = positions.len() / outer;
        let Scratch { frames, inner: inner_scratch, .. } = scratch;
        frames.resize(2 * n_frames * inner, 0.0);
        let (inner_positions, inner_scores) = frames.split_at_mut(n_frames * inner);
        for (from, to) in positions.chunks_exact(outer).zip(inner_positions.chunks_exact_mut(inner)) {
            for (to, p) in to.chunks_exact_mut(3).zip(&self.particles) {
                to.copy_from_slice(&from[3 * p..3 * p + 3]);
            }
        }
        self.inner.evaluate(
            Frames { positions: inner_positions, cell },
            Outputs { scores: inner_scores, energies, virials },
            inner_scratch.get_or_insert_default(),
        )?;
        scores.fill(0.0);
        for (to, from) in scores.chunks_exact_mut(outer).zip(inner_scores.chunks_exact(inner)) {
            for (from, p) in from.chunks_exact(3).zip(&self.particles) {
                to[3 * p..3 * p + 3].copy_from_slice(from);
            }
        }
        Ok(())
    }

    fn kernel(&self) -> std::result::Result<KernelModel, &'static str> {
        Ok(self.inner.kernel()?.within(&self.particles, self.n_particles))
    }

    fn lambda(&self) -> Option<f64> {
        self.inner.lambda()
    }

    fn check_cell(&self, cell: Option<&Cell>) -> Result<()> {
        self.inner.check_cell(cell)
    }

    fn preferred_batch(&self) -> usize {
        self.inner.preferred_batch()
    }

    fn threads_per_frame(&self) -> usize {
        self.inner.threads_per_frame()
    }
}
