//! Second derivatives of a model's energy by central differences of its score: what stability and temperature need.

use super::{ScoreModel, Scratch};
use crate::error::{Result, bail};

/// Displacement of a coordinate, nm: small against the width of the stiffest mode, large against rounding of the positions.
const DISPLACEMENT: f64 = 1e-4;
const ITERATIONS: usize = 60;

/// Largest eigenvalue (1/nm²) of the Hessian −∇s over the given frames, by power iteration on Hessian–vector products.
///
/// A step τ is stable where τ times it stays below 2 (theory §2).
pub fn largest_curvature(model: &dyn ScoreModel, positions: &[f64]) -> Result<f64> {
    let n = check(model, positions)?;
    let mut scratch = Scratch::default();
    let mut direction: Vec<f64> =
        (0..positions.len()).map(|i| crate::noise::normals(0, 0, i as u32, 0)[0] as f64).collect();
    let (mut shifted, mut plus, mut minus) =
        (positions.to_vec(), vec![0.0; positions.len()], vec![0.0; positions.len()]);
    let mut largest = 0.0;
    for _ in 0..ITERATIONS {
        for v in direction.chunks_exact_mut(n) {
            let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
            if norm > 0.0 {
                v.iter_mut().for_each(|v| *v /= norm);
            }
        }
        for (sign, scores) in [(DISPLACEMENT, &mut plus), (-DISPLACEMENT, &mut minus)] {
            for ((y, x), v) in shifted.iter_mut().zip(positions).zip(&direction) {
                *y = x + sign * v;
            }
            model.evaluate(&shifted, scores, None, &mut scratch)?;
        }
        largest = 0.0f64;
        for ((v, plus), minus) in
            direction.chunks_exact_mut(n).zip(plus.chunks_exact(n)).zip(minus.chunks_exact(n))
        {
            let mut rayleigh = 0.0;
            for ((v, plus), minus) in v.iter_mut().zip(plus).zip(minus) {
                let product = (minus - plus) / (2.0 * DISPLACEMENT);
                rayleigh += *v * product;
                *v = product;
            }
            largest = largest.max(rayleigh);
        }
    }
    if !largest.is_finite() {
        bail!(
            NotFinite,
            "the model's curvature is not finite at the given positions; start from frames like its training data"
        );
    }
    Ok(largest)
}

/// −∇·s (1/nm²) summed over the given frames, and ‖s‖² likewise: their ratio is T₀ over the configurational temperature
/// (Rugh, Phys. Rev. Lett. 78, 772), T = T₀ ⟨‖s‖²⟩/⟨−∇·s⟩.
pub fn laplacian_and_square(model: &dyn ScoreModel, positions: &[f64]) -> Result<(f64, f64)> {
    let n = check(model, positions)?;
    let mut scratch = Scratch::default();
    let (mut laplacian, mut square) = (0.0, 0.0);
    // Each frame becomes a batch: itself, then every coordinate moved up and down.
    let mut batch = vec![0.0; (2 * n + 1) * n];
    let mut scores = vec![0.0; batch.len()];
    for x in positions.chunks_exact(n) {
        for (i, frame) in batch.chunks_exact_mut(n).enumerate() {
            frame.copy_from_slice(x);
            if i > 0 {
                frame[(i - 1) / 2] += if i % 2 == 1 { DISPLACEMENT } else { -DISPLACEMENT };
            }
        }
        model.evaluate(&batch, &mut scores, None, &mut scratch)?;
        square += scores[..n].iter().map(|s| s * s).sum::<f64>();
        for c in 0..n {
            let (plus, minus) = (scores[(2 * c + 1) * n + c], scores[(2 * c + 2) * n + c]);
            laplacian += (minus - plus) / (2.0 * DISPLACEMENT);
        }
    }
    Ok((laplacian, square))
}

fn check(model: &dyn ScoreModel, positions: &[f64]) -> Result<usize> {
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
