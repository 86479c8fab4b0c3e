//! Two models as one: E_λ = (1−λ)E_A + λE_B (theory 7).

use super::kernel::Kernel;
use super::{Frames, KernelModel, Outputs, ScoreModel, Scratch};
use crate::cell::Cell;
use crate::error::{Result, bail};
use std::sync::Arc;

/// The blend of two models of the same particles at one λ.
#[derive(Clone)]
pub struct Blend {
    parts: [Arc<dyn ScoreModel>; 2],
    lambda: f64,
}

/// λ, if it is one.
pub fn check_lambda(lambda: f64) -> Result<f64> {
    if !(0.0..=1.0).contains(&lambda) {
        bail!(InvalidArgument, "lambda is {lambda}; expected 0 (the first model) to 1 (the second)");
    }
    Ok(lambda)
}

impl Blend {
    /// `parts` are A, which is the blend at λ = 0, and B, which it is at λ = 1.
    pub fn new(parts: [Arc<dyn ScoreModel>; 2], lambda: f64) -> Result<Self> {
        let [a, b] = [parts[0].n_particles(), parts[1].n_particles()];
        if a != b {
            bail!(
                Mismatch,
                "the models to be blended move {a} and {b} particles; expected two models of the same particles in the \
                 same order"
            );
        }
        Blend { parts, lambda: 0.0 }.at(lambda)
    }

    /// The same two models at another λ, sharing the weights.
    pub fn at(&self, lambda: f64) -> Result<Self> {
        Ok(Blend { lambda: check_lambda(lambda)?, ..self.clone() })
    }

    /// λ
    pub fn lambda(&self) -> f64 {
        self.lambda
    }

    /// E_A and E_B, `[n_frames][2]`, kT₀, which do not depend on λ: ∂E/∂λ = E_B − E_A, and E_λ' = (1−λ')E_A + λ'E_B.
    pub fn component_energies(&self, frames: Frames, energies: &mut [[f64; 2]]) -> Result<()> {
        let mut scores = vec![0.0; frames.positions.len()];
        let mut column = vec![0.0; energies.len()];
        for (part, model) in self.parts.iter().enumerate() {
            column.fill(f64::NAN); // stays where a caller's function writes none
            model.evaluate(frames, Outputs::energies(&mut scores, &mut column), &mut Scratch::default())?;
            if let Some(frame) = column.iter().position(|e| e.is_nan()) {
                bail!(
                    Unsupported,
                    "the {} model of the blend gives no energy of frame {frame}; blend models that give energies",
                    ["first", "second"][part]
                );
            }
            energies.iter_mut().zip(&column).for_each(|(e, c)| e[part] = *c);
        }
        Ok(())
    }
}

impl ScoreModel for Blend {
    fn n_particles(&self) -> usize {
        self.parts[0].n_particles()
    }

    /// At λ = 0 and λ = 1 the other model is not evaluated: the result is that of the one, to the last bit.
    fn evaluate(&self, frames: Frames, outputs: Outputs, scratch: &mut Scratch) -> Result<()> {
        let [a, b] = &self.parts;
        let Scratch { frames: results, inner, second, .. } = scratch;
        if self.lambda == 0.0 {
            return a.evaluate(frames, outputs, inner.get_or_insert_default());
        }
        if self.lambda == 1.0 {
            return b.evaluate(frames, outputs, second.get_or_insert_default());
        }
        let Outputs { scores, mut energies, mut virials } = outputs;
        let n_frames = frames.positions.len() / (3 * self.n_particles());
        results.resize(scores.len() + 10 * n_frames, 0.0);
        let (b_scores, rest) = results.split_at_mut(scores.len());
        let (b_energies, b_virials) = rest.split_at_mut(n_frames);
        if let Some(energies) = &mut energies {
            // stays where a caller's function writes none
            energies.fill(f64::NAN);
            b_energies.fill(f64::NAN);
        }
        let outputs = Outputs {
            scores: &mut *scores,
            energies: energies.as_deref_mut(),
            virials: virials.as_deref_mut(),
        };
        a.evaluate(frames, outputs, inner.get_or_insert_default())?;
        let outputs = Outputs {
            scores: &mut *b_scores,
            energies: energies.is_some().then_some(&mut *b_energies),
            virials: virials.is_some().then_some(&mut *b_virials),
        };
        b.evaluate(frames, outputs, second.get_or_insert_default())?;
        let mix = |a: &mut [f64], b: &[f64]| {
            a.iter_mut().zip(b).for_each(|(a, b)| *a = (1.0 - self.lambda) * *a + self.lambda * b);
        };
        mix(scores, b_scores);
        if let Some(energies) = energies {
            mix(energies, b_energies);
        }
        if let Some(virials) = virials {
            mix(virials, b_virials);
        }
        Ok(())
    }

    fn check_cell(&self, cell: Option<&Cell>) -> Result<()> {
        self.parts.iter().try_for_each(|part| part.check_cell(cell))
    }

    fn kernel(&self) -> std::result::Result<KernelModel, &'static str> {
        let parts = [self.parts[0].kernel()?, self.parts[1].kernel()?];
        if parts.iter().any(|part| matches!(part.kernel, Kernel::Blend(_))) {
            return Err("blends of blends");
        }
        let n_particles = self.n_particles();
        let members = (0..n_particles as u32).collect();
        Ok(KernelModel { kernel: Kernel::Blend(Box::new(parts)), members, n_particles })
    }

    fn lambda(&self) -> Option<f64> {
        Some(self.lambda)
    }

    fn preferred_batch(&self) -> usize {
        self.parts.iter().map(|part| part.preferred_batch()).max().unwrap_or(1)
    }

    fn threads_per_frame(&self) -> usize {
        self.parts.iter().map(|part| part.threads_per_frame()).max().unwrap_or(1)
    }

    fn is_translation_invariant(&self) -> bool {
        self.parts.iter().all(|part| part.is_translation_invariant())
    }
}
