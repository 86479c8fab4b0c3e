//! Second derivatives of a model's energy by central differences of its score: what stability and temperature need.

use super::{Frames, Outputs, ScoreModel, Scratch};
use crate::error::{Result, bail};
use crate::schedule::{BOLTZMANN, check_masses};

/// Displacement of a coordinate, nm: small against the width of the stiffest mode, large against rounding of the positions.
const DISPLACEMENT: f64 = 1e-4;
const ITERATIONS: usize = 60;
/// Coordinates moved in one batch: bounds the memory for large systems.
const MOVED_AT_ONCE: usize = 96;

/// Largest eigenvalue (1/nm²) of the Hessian −∇s over the given frames, by power iteration on Hessian–vector products.
///
/// A step τ is stable where τ times it stays below 2 (theory §2).
pub fn largest_curvature(model: &dyn ScoreModel, frames: Frames) -> Result<f64> {
    largest_eigenvalue(model, frames, &vec![1.0; model.n_particles()])
}

/// Largest eigenvalue (1/nm²) of D^½ (−∇s) D^½ over the given frames, in units of the greatest of the particles' `mobilities` D (in
/// any unit; 0 is frozen): the stiffest mode as particles that are not equally mobile feel it. At most the largest curvature.
///
/// A step that is τ for the most mobile particle is stable where τ times it stays below 2 (theory §2).
pub fn largest_mobile_curvature(model: &dyn ScoreModel, frames: Frames, mobilities: &[f64]) -> Result<f64> {
    let greatest = mobilities.iter().copied().fold(0.0, f64::max);
    let roots: Vec<f64> =
        mobilities.iter().map(|d| if *d > 0.0 { (d / greatest).sqrt() } else { 0.0 }).collect();
    largest_eigenvalue(model, frames, &roots)
}

/// Largest frequency (1/ps) of the modes over the given frames, for particles of `masses` (amu; 0 is frozen): its square is the
/// largest eigenvalue of kT₀ M^-½ (−∇s) M^-½, T₀ the `training_temperature`. 0 where no mode is bound.
///
/// A step Δt of Langevin dynamics is stable where Δt times it stays below 2 (theory §6).
pub fn largest_frequency(
    model: &dyn ScoreModel,
    frames: Frames,
    masses: &[f64],
    training_temperature: f64,
) -> Result<f64> {
    check_masses(masses)?;
    let lightest = masses.iter().copied().filter(|m| *m > 0.0).fold(f64::INFINITY, f64::min);
    let mobilities: Vec<f64> = masses.iter().map(|m| if *m > 0.0 { lightest / m } else { 0.0 }).collect();
    let curvature = largest_mobile_curvature(model, frames, &mobilities)?;
    Ok((BOLTZMANN * training_temperature * curvature.max(0.0) / lightest).sqrt())
}

/// That of R (−∇s) R, where R has the `roots`, at most 1, of the particles on its diagonal.
fn largest_eigenvalue(model: &dyn ScoreModel, frames: Frames, roots: &[f64]) -> Result<f64> {
    check(model, frames)?;
    // The eigenvalue of largest modulus; where that is negative, the spectrum is shifted so that the greatest one leads.
    let [greatest, least] = power_iteration(model, frames, roots, 0.0)?;
    let largest =
        if -least > greatest { power_iteration(model, frames, roots, -least)?[0] } else { greatest };
    if !largest.is_finite() {
        bail!(
            NotFinite,
            "the model's curvature is not finite at the given positions; start from frames like its training data"
        );
    }
    Ok(largest)
}

/// Greatest and least, over the frames, of the leading eigenvalue of R (−∇s) R + shift, less the shift.
fn power_iteration(model: &dyn ScoreModel, frames: Frames, roots: &[f64], shift: f64) -> Result<[f64; 2]> {
    let Frames { positions, cell } = frames;
    let n = 3 * model.n_particles();
    let mut scratch = Scratch::default();
    let mut direction: Vec<f64> =
        (0..positions.len()).map(|i| crate::noise::normals(0, 0, i as u32, 0)[0] as f64).collect();
    let mut shifted = positions.to_vec();
    let (mut plus, mut minus) = (vec![0.0; positions.len()], vec![0.0; positions.len()]);
    let mut extremes = [0.0; 2];
    for _ in 0..ITERATIONS {
        for v in direction.chunks_exact_mut(n) {
            let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
            if norm > 0.0 {
                v.iter_mut().for_each(|v| *v /= norm);
            }
        }
        for (sign, scores) in [(DISPLACEMENT, &mut plus), (-DISPLACEMENT, &mut minus)] {
            let roots = roots.iter().flat_map(|r| [r; 3]).cycle();
            for (((y, x), v), r) in shifted.iter_mut().zip(positions).zip(&direction).zip(roots) {
                *y = x + sign * (r * v);
            }
            let shifted = Frames { positions: &shifted, cell };
            model.evaluate(shifted, Outputs::scores(scores), &mut scratch)?;
        }
        extremes = [f64::NEG_INFINITY, f64::INFINITY];
        for ((v, plus), minus) in
            direction.chunks_exact_mut(n).zip(plus.chunks_exact(n)).zip(minus.chunks_exact(n))
        {
            let mut rayleigh = 0.0;
            for (((v, plus), minus), r) in
                v.iter_mut().zip(plus).zip(minus).zip(roots.iter().flat_map(|r| [r; 3]))
            {
                let product = r * ((minus - plus) / (2.0 * DISPLACEMENT));
                rayleigh += *v * product;
                *v = product + shift * *v;
            }
            extremes = [extremes[0].max(rayleigh), extremes[1].min(rayleigh)];
        }
    }
    Ok(extremes)
}

/// −∇·s (1/nm²) summed over the given frames, and ‖s‖² likewise: their ratio is T₀ over the configurational temperature
/// (Rugh, Phys. Rev. Lett. 78, 772), T = T₀ ⟨‖s‖²⟩/⟨−∇·s⟩.
pub fn laplacian_and_square(model: &dyn ScoreModel, frames: Frames) -> Result<(f64, f64)> {
    let n = check(model, frames)?;
    let Frames { positions, cell } = frames;
    let mut scratch = Scratch::default();
    let (mut laplacian, mut square) = (0.0, 0.0);
    // Each frame becomes batches of some coordinates moved up and down.
    let per_batch = n.min(MOVED_AT_ONCE);
    let mut batch = vec![0.0; 2 * per_batch * n];
    let mut scores = vec![0.0; batch.len()];
    for x in positions.chunks_exact(n) {
        model.evaluate(Frames { positions: x, cell }, Outputs::scores(&mut scores[..n]), &mut scratch)?;
        square += scores[..n].iter().map(|s| s * s).sum::<f64>();
        for first in (0..n).step_by(per_batch) {
            let moved = per_batch.min(n - first);
            for (i, frame) in batch.chunks_exact_mut(n).take(2 * moved).enumerate() {
                frame.copy_from_slice(x);
                frame[first + i / 2] += if i % 2 == 0 { DISPLACEMENT } else { -DISPLACEMENT };
            }
            let shifted = Frames { positions: &batch[..2 * moved * n], cell };
            model.evaluate(shifted, Outputs::scores(&mut scores[..2 * moved * n]), &mut scratch)?;
            for c in 0..moved {
                let (plus, minus) = (scores[2 * c * n + first + c], scores[(2 * c + 1) * n + first + c]);
                laplacian += (minus - plus) / (2.0 * DISPLACEMENT);
            }
        }
    }
    Ok((laplacian, square))
}

fn check(model: &dyn ScoreModel, Frames { positions, cell }: Frames) -> Result<usize> {
    model.check_cell(cell)?;
    let n = 3 * model.n_particles();
    if positions.is_empty() || !positions.len().is_multiple_of(n) {
        bail!(
            InvalidArgument,
            "positions holds {} numbers; expected a multiple of {n}, at least one frame of {} particles",
            positions.len(),
            model.n_particles()
        );
    }
    Ok(n)
}
