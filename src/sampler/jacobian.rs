//! What a sweep of the time-parallel sampler knows about the slope of the score, D ≈ ∂s/∂x, symmetric as that of an energy.
//!
//! The noise is the probe: consecutive frames of the trajectory differ by about √(2τ) ξ, so that the least-squares fit of
//! s(x_{n+1}) − s(x_n) on x_{n+1} − x_n over the last frames tends to the mean slope there. It costs no evaluation. In units in
//! which every coordinate has τ = 1 the step's own Jacobian is 1 + D; its eigenvalues are held within [0, 1], where sweeps are
//! stable (theory 12).

use crate::adapter::ParticleStep;

/// Which part of the slope of the score the time-parallel sampler estimates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Jacobian {
    /// All of it for up to 30 particles, where it costs less than a score; the diagonal for more.
    #[default]
    Auto,
    /// None: Picard sweeps.
    Identity,
    /// The diagonal.
    Diagonal,
    /// All of it.
    Dense,
}

/// Coordinates up to which [`Jacobian::Auto`] is dense.
const MAX_DENSE: usize = 90;
/// Frames remembered, in numbers of coordinates, and at least.
const MEMORY: (f64, f64) = (3.0, 24.0);
/// Frames after which the estimate is renewed, in numbers of coordinates.
const RENEWAL: u64 = 2;
/// Added to the diagonal of the normal equations, relative to its mean: until as many frames as coordinates are known.
const RIDGE: f64 = 1e-2;
/// Off-diagonal elements that need no rotation: eigenvalues of order 1 are wanted to a few per cent.
const NEGLIGIBLE: f64 = 1e-4;

impl Jacobian {
    /// For frames of `n` coordinates.
    fn resolved(self, n: usize) -> Self {
        match self {
            Jacobian::Auto if n <= MAX_DENSE => Jacobian::Dense,
            Jacobian::Auto => Jacobian::Diagonal,
            other => other,
        }
    }

    /// Numbers that an [`Estimate`] for frames of `n` coordinates remembers; `None` for more than can be counted.
    pub(super) fn size(self, n: usize) -> Option<usize> {
        match self.resolved(n) {
            Jacobian::Dense => n.checked_mul(n)?.checked_mul(4),
            Jacobian::Diagonal => n.checked_mul(4),
            _ => Some(0),
        }
    }
}

/// The slope D, 1/nm², as it is known so far.
pub(super) struct Estimate {
    kind: Jacobian,
    /// √τ of each coordinate, nm; 0 if frozen.
    roots: Vec<f64>,
    /// Sums over the remembered frames of Δx Δxᵀ and Δs Δxᵀ, in units of τ; D, 1/nm²; eigenvectors of D in units of τ, in rows.
    sums: [Vec<f64>; 2],
    slope: Vec<f64>,
    basis: Vec<f64>,
    /// Factor on τ at which the Jacobian is within [0, 1].
    drift: f64,
    /// Differences seen, and those since the last renewal.
    seen: [u64; 2],
    work: [Vec<f64>; 2],
    scaled: [Vec<f64>; 2],
}

impl Estimate {
    pub(super) fn new(kind: Jacobian, particles: &[ParticleStep]) -> Self {
        let n = 3 * particles.len();
        let kind = kind.resolved(n);
        let len = kind.size(n).expect("checked against memory") / 4;
        let zeros = || vec![0.0; len];
        let mut estimate = Estimate {
            kind,
            roots: particles.iter().flat_map(|p| [p.effective_step.sqrt(); 3]).collect(),
            sums: [zeros(), zeros()],
            slope: zeros(),
            basis: zeros(),
            drift: 1.0,
            seen: [0; 2],
            work: [zeros(), zeros()],
            scaled: [vec![0.0; n], vec![0.0; n]],
        };
        estimate.forget();
        estimate
    }

    /// Know nothing again.
    pub(super) fn forget(&mut self) {
        for array in self.sums.iter_mut().chain([&mut self.slope, &mut self.basis]) {
            array.fill(0.0);
        }
        if self.kind == Jacobian::Dense {
            let n = self.roots.len();
            (0..n).for_each(|i| self.basis[i * n + i] = 1.0);
        }
        self.drift = 1.0;
        self.seen = [0; 2];
    }

    /// D v, 1/nm: by how much the score changes where x changes by v.
    pub(super) fn apply(&self, v: &[f64], out: &mut [f64]) {
        match self.kind {
            Jacobian::Dense => {
                out.fill(0.0);
                for (v, row) in v.iter().zip(self.slope.chunks_exact(v.len())) {
                    out.iter_mut().zip(row).for_each(|(out, d)| *out += d * v);
                }
            }
            Jacobian::Diagonal => {
                out.iter_mut().zip(v.iter().zip(&self.slope)).for_each(|(out, (v, d))| *out = d * v);
            }
            _ => out.fill(0.0),
        }
    }

    /// The factor on τ to use at a step whose schedule has `drift`: no greater than that for which D was held in its bounds.
    pub(super) fn bounded(&self, drift: f64) -> f64 {
        drift.min(self.drift)
    }

    /// Learn from two consecutive frames and their scores.
    pub(super) fn learn(&mut self, x: [&[f64]; 2], s: [&[f64]; 2]) {
        if self.kind == Jacobian::Identity {
            return;
        }
        let n = self.roots.len();
        let [dx, ds] = &mut self.scaled;
        for i in 0..n {
            let root = self.roots[i];
            dx[i] = if root > 0.0 { (x[1][i] - x[0][i]) / root } else { 0.0 };
            ds[i] = (s[1][i] - s[0][i]) * root;
        }
        let keep = 1.0 - 1.0 / (MEMORY.0 * n as f64).max(MEMORY.1);
        for (sums, left) in self.sums.iter_mut().zip([&*dx, &*ds]) {
            if self.kind == Jacobian::Diagonal {
                for (sum, (a, b)) in sums.iter_mut().zip(left.iter().zip(&*dx)) {
                    *sum = keep * *sum + a * b;
                }
            } else {
                for (row, a) in sums.chunks_exact_mut(n).zip(left) {
                    row.iter_mut().zip(&*dx).for_each(|(sum, b)| *sum = keep * *sum + a * b);
                }
            }
        }
        self.seen = self.seen.map(|seen| seen + 1);
    }

    /// Renew D, if enough was learned, within the bounds at factor `drift` on τ: early on often, later seldom.
    pub(super) fn renew(&mut self, drift: f64) {
        let n = self.roots.len();
        if self.kind == Jacobian::Identity || self.seen[1] <= (self.seen[0] / 4).min(RENEWAL * n as u64) {
            return;
        }
        self.seen[1] = 0;
        self.drift = drift;
        let bounds = |h: f64| if h.is_finite() { h.clamp(-1.0 / drift, 0.0) } else { 0.0 };
        let inverse = |root: f64| if root > 0.0 { 1.0 / root } else { 0.0 };
        if self.kind == Jacobian::Diagonal {
            for i in 0..n {
                self.slope[i] = bounds(self.sums[1][i] / self.sums[0][i]) * inverse(self.roots[i]).powi(2);
            }
            return;
        }
        let [fit, rotated] = &mut self.work;
        let ridge = RIDGE * (0..n).map(|i| self.sums[0][i * n + i]).sum::<f64>() / n as f64;
        if !(ridge > 0.0 && ridge.is_finite()) {
            return;
        }
        // The fit, in the rows of `fit`, then its symmetric part, seen from the eigenvectors of the last one.
        rotated.copy_from_slice(&self.sums[0]);
        (0..n).for_each(|i| rotated[i * n + i] += ridge);
        cholesky(rotated, n);
        fit.copy_from_slice(&self.sums[1]);
        fit.chunks_exact_mut(n).for_each(|row| solve(rotated, row));
        for i in 0..n {
            for j in 0..i {
                let mean = 0.5 * (fit[i * n + j] + fit[j * n + i]);
                (fit[i * n + j], fit[j * n + i]) = (mean, mean);
            }
        }
        if !fit.iter().all(|h| h.is_finite()) {
            return;
        }
        multiply(&self.basis, fit, rotated, n); // V H
        transpose(rotated, n); // H Vᵀ
        multiply(&self.basis, rotated, fit, n); // V H Vᵀ
        diagonalise(fit, &mut self.basis, n);
        self.slope.fill(0.0);
        for (k, v) in self.basis.chunks_exact(n).enumerate() {
            let eigenvalue = bounds(fit[k * n + k]);
            for (row, a) in self.slope.chunks_exact_mut(n).zip(v) {
                row.iter_mut().zip(v).for_each(|(d, b)| *d += eigenvalue * a * b);
            }
        }
        for i in 0..n {
            for j in 0..n {
                self.slope[i * n + j] *= inverse(self.roots[i]) * inverse(self.roots[j]);
            }
        }
    }

    /// Numbers that [`Estimate::write`] writes.
    pub(super) fn n_numbers(&self) -> usize {
        HEAD + self.sums[0].len() * 4
    }

    /// Everything known, for checkpoints.
    pub(super) fn write(&self, to: &mut Vec<f64>) {
        to.extend([self.drift, f64::from_bits(self.seen[0]), f64::from_bits(self.seen[1])]);
        for array in [&self.sums[0], &self.sums[1], &self.slope, &self.basis] {
            to.extend(array);
        }
    }

    /// The inverse of [`Estimate::write`]; what is left of `from`.
    pub(super) fn read<'a>(&mut self, from: &'a [f64]) -> &'a [f64] {
        let (head, mut from) = from.split_at(HEAD);
        self.drift = head[0];
        self.seen = [head[1].to_bits(), head[2].to_bits()];
        for array in self.sums.iter_mut().chain([&mut self.slope, &mut self.basis]) {
            let (own, rest) = from.split_at(array.len());
            array.copy_from_slice(own);
            from = rest;
        }
        from
    }
}

/// Numbers that [`Estimate::write`] writes beside the arrays.
const HEAD: usize = 3;

/// The lower factor of a positive definite matrix, in its place.
fn cholesky(a: &mut [f64], n: usize) {
    for i in 0..n {
        let (above, row) = a.split_at_mut(i * n);
        for j in 0..i {
            let other = &above[j * n..];
            let sum: f64 = (0..j).map(|k| row[k] * other[k]).sum();
            row[j] = (row[j] - sum) / other[j];
        }
        let sum: f64 = row[..i].iter().map(|l| l * l).sum();
        row[i] = (row[i] - sum).sqrt();
    }
}

/// x with L Lᵀ x = b, in the place of b.
fn solve(l: &[f64], b: &mut [f64]) {
    let n = b.len();
    for i in 0..n {
        let sum: f64 = (0..i).map(|k| l[i * n + k] * b[k]).sum();
        b[i] = (b[i] - sum) / l[i * n + i];
    }
    for i in (0..n).rev() {
        b[i] /= l[i * n + i];
        let x = b[i];
        (0..i).for_each(|k| b[k] -= l[i * n + k] * x);
    }
}

/// out = a b
fn multiply(a: &[f64], b: &[f64], out: &mut [f64], n: usize) {
    out.fill(0.0);
    for (out, a) in out.chunks_exact_mut(n).zip(a.chunks_exact(n)) {
        for (a, row) in a.iter().zip(b.chunks_exact(n)) {
            out.iter_mut().zip(row).for_each(|(out, b)| *out += a * b);
        }
    }
}

fn transpose(a: &mut [f64], n: usize) {
    for i in 0..n {
        (0..i).for_each(|j| a.swap(i * n + j, j * n + i));
    }
}

/// Jacobi rotations of the symmetric `a`, which becomes nearly diagonal, and of the rows of `basis` with it.
fn diagonalise(a: &mut [f64], basis: &mut [f64], n: usize) {
    for _ in 0..10 {
        let mut rotated = false;
        for p in 0..n {
            for q in p + 1..n {
                let off = a[p * n + q];
                if off.abs() <= NEGLIGIBLE {
                    continue;
                }
                rotated = true;
                let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * off);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                for k in 0..n {
                    let (x, y) = (a[k * n + p], a[k * n + q]);
                    (a[k * n + p], a[k * n + q]) = (c * x - s * y, s * x + c * y);
                }
                for rows in [&mut *a, &mut *basis] {
                    let (above, below) = rows.split_at_mut(q * n);
                    for (x, y) in above[p * n..][..n].iter_mut().zip(&mut below[..n]) {
                        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
                    }
                }
            }
        }
        if !rotated {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::normals;

    fn random(n: usize, key: u32) -> Vec<f64> {
        (0..n).map(|i| normals(17, key, i as u32, 3)[0] as f64).collect()
    }

    /// The least-squares fit of a linear score is its matrix, whatever the steps of the coordinates.
    #[test]
    fn slope_of_a_linear_score_is_found_and_held_in_its_bounds() {
        let n = 6;
        let steps = [0.3e-3, 1.7e-3].map(|tau| ParticleStep { effective_step: tau, noise_amplitude: 0.1 });
        // −D = Q diag(λ) Qᵀ in units of τ, with one λ beyond each bound.
        let mut q = random(n * n, 5);
        for i in 0..n {
            for j in 0..i {
                let dot: f64 = (0..n).map(|k| q[i * n + k] * q[j * n + k]).sum();
                (0..n).for_each(|k| q[i * n + k] -= dot * q[j * n + k]);
            }
            let norm = (0..n).map(|k| q[i * n + k].powi(2)).sum::<f64>().sqrt();
            (0..n).for_each(|k| q[i * n + k] /= norm);
        }
        let eigenvalues: [f64; 6] = [-1.4, -0.8, -0.5, -0.3, -0.05, 0.2];
        let matrix = |bounds: [f64; 2]| -> Vec<f64> {
            let tau = |i: usize| steps[i / 3].effective_step;
            (0..n * n)
                .map(|ij| {
                    let (i, j) = (ij / n, ij % n);
                    let h: f64 = (0..n)
                        .map(|k| eigenvalues[k].clamp(bounds[0], bounds[1]) * q[k * n + i] * q[k * n + j])
                        .sum();
                    h / (tau(i) * tau(j)).sqrt()
                })
                .collect()
        };
        let exact = matrix([f64::MIN, f64::MAX]);
        let mut estimate = Estimate::new(Jacobian::Auto, &steps);
        for key in 0..4000 {
            let dx: Vec<f64> =
                random(n, 100 + key).iter().enumerate().map(|(i, xi)| xi * 0.02 * (i + 2) as f64).collect();
            let ds: Vec<f64> =
                exact.chunks_exact(n).map(|row| row.iter().zip(&dx).map(|(a, b)| a * b).sum()).collect();
            let zero = vec![0.0; n];
            estimate.learn([&zero, &dx], [&zero, &ds]);
            estimate.renew(1.3);
        }
        for (found, expected) in estimate.slope.iter().zip(matrix([-1.0 / 1.3, 0.0])) {
            assert!((found - expected).abs() < 0.03 / steps[0].effective_step, "{found} {expected}");
        }
        let mut saved = Vec::new();
        estimate.write(&mut saved);
        assert_eq!(saved.len(), estimate.n_numbers());
        let mut other = Estimate::new(Jacobian::Dense, &steps);
        assert!(other.read(&saved).is_empty());
        assert_eq!(other.slope, estimate.slope);
    }
}
