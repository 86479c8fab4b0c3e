//! Potentials whose score and energy are exact: the yardsticks. All energies are in kT₀, all lengths in nm.

use super::kernel::Kernel;
use super::{Frames, KernelModel, Outputs, ScoreModel, Scratch};
use crate::error::{Result, bail};
use crate::lane::{exp_double, ln_double};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// An analytic potential; serialised as `kind` and `hyperparameters` of a model file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "hyperparameters", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Potential {
    /// E = 0: free diffusion.
    Free {},
    /// E = ½ κ Σ ‖x‖² about the origin.
    Harmonic {
        /// κ, kT₀/nm²
        stiffness: f64,
    },
    /// E = Σ h ((x/a)² − 1)² + ½ κ (y² + z²)
    DoubleWell {
        /// h, kT₀
        barrier: f64,
        /// a, nm
        half_width: f64,
        /// κ, kT₀/nm²
        stiffness: f64,
    },
    /// The Müller–Brown surface of x and y (Theor. Chim. Acta 53, 75), z free.
    MuellerBrown {
        /// The surface's energies are divided by this.
        #[serde(rename = "kT")]
        kt: f64,
    },
    /// Lennard-Jones cluster in a harmonic trap about its own centre:
    /// E = Σ_{i<j} ε[(r_m/r)¹² − 2(r_m/r)⁶] + ½ κ Σ ‖x − x̄‖²
    LennardJonesCluster {
        /// ε, kT₀
        well_depth: f64,
        /// r_m, nm
        minimum_distance: f64,
        /// κ, kT₀/nm²
        stiffness: f64,
    },
    /// Four particles in the plane (Köhler et al., arXiv:2006.02425): E = Σ_{i<j} a(r−r₀) + b(r−r₀)² + c(r−r₀)⁴, z free.
    Dw4 {
        /// a, kT₀/nm
        linear: f64,
        /// b, kT₀/nm²
        quadratic: f64,
        /// c, kT₀/nm⁴
        quartic: f64,
        /// r₀, nm
        distance: f64,
    },
    /// E = −ln Σ_k w_k N(x; μ_k, spread_k²): a density whose blur by any noise level is known, spread² + σ².
    GaussianMixture {
        /// At least one.
        components: Vec<Component>,
    },
}

/// One term of [`Potential::GaussianMixture`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// w, relative to the others'
    pub weight: f64,
    /// μ, `[n_particles][3]`, nm
    pub mean: Vec<[f64; 3]>,
    /// Standard deviation along each axis, nm
    pub spread: [f64; 3],
}

impl Component {
    /// spread² + σ²
    fn variances(&self, noise_level: f64) -> [f64; 3] {
        self.spread.map(|s| s.powi(2) + noise_level.powi(2))
    }

    /// ln w N(x; μ, spread² + σ²) up to a constant.
    fn logarithm(&self, x: &[f64], noise_level: f64) -> f64 {
        let variances = self.variances(noise_level);
        let logarithms = variances.map(f64::ln);
        let mut sum = self.weight.ln();
        for (x, mean) in x.as_chunks::<3>().0.iter().zip(&self.mean) {
            for c in 0..3 {
                sum -= 0.5 * ((x[c] - mean[c]).powi(2) / variances[c] + logarithms[c]);
            }
        }
        sum
    }
}

/// A [`Potential`] of a number of particles.
#[derive(Clone, Debug)]
pub struct Analytic {
    n_particles: usize,
    potential: Potential,
    /// σ, nm; 0 unless the potential's blur is known.
    noise_level: f64,
}

impl Analytic {
    /// `potential` acting on `n_particles`; single-particle potentials act on each of them.
    pub fn new(n_particles: usize, potential: Potential) -> Result<Self> {
        let positive = |name: &str, value: f64| {
            if !(value > 0.0 && value.is_finite()) {
                bail!(
                    InvalidModel,
                    "hyper-parameter {name} of the model is {value}; expected a positive number"
                );
            }
            Ok(())
        };
        match &potential {
            Potential::Free {} => {}
            Potential::Harmonic { stiffness } => positive("stiffness", *stiffness)?,
            Potential::DoubleWell { barrier, half_width, stiffness } => {
                positive("barrier", *barrier)?;
                positive("half_width", *half_width)?;
                positive("stiffness", *stiffness)?;
            }
            Potential::MuellerBrown { kt } => positive("kT", *kt)?,
            Potential::LennardJonesCluster { well_depth, minimum_distance, stiffness } => {
                positive("well_depth", *well_depth)?;
                positive("minimum_distance", *minimum_distance)?;
                positive("stiffness", *stiffness)?;
            }
            Potential::Dw4 { linear, quadratic, quartic, distance } => {
                if n_particles != 4 {
                    bail!(InvalidModel, "a dw4 model has 4 particles, this one claims {n_particles}");
                }
                if !(linear.is_finite() && quadratic.is_finite()) {
                    bail!(InvalidModel, "hyper-parameters of the dw4 model must be finite");
                }
                positive("quartic", *quartic)?;
                positive("distance", *distance)?;
            }
            Potential::GaussianMixture { components } => {
                if components.is_empty() {
                    bail!(InvalidModel, "a gaussian-mixture model needs at least one component");
                }
                for component in components {
                    positive("weight", component.weight)?;
                    component.spread.iter().try_for_each(|s| positive("spread", *s))?;
                    let n = component.mean.len();
                    if n != n_particles || component.mean.iter().flatten().any(|x| !x.is_finite()) {
                        bail!(
                            InvalidModel,
                            "a mean of the gaussian-mixture model has {n} particles; expected {n_particles}, \
                             all numbers finite"
                        );
                    }
                }
            }
        }
        Ok(Analytic { n_particles, potential, noise_level: 0.0 })
    }

    /// Of each component of a mixture: ln w, the variances, their logarithms, the means.
    fn mixture(&self) -> Vec<f64> {
        let Potential::GaussianMixture { components } = &self.potential else { return Vec::new() };
        let row = |component: &Component| {
            let variances = component.variances(self.noise_level);
            let numbers = [component.weight.ln()].into_iter().chain(variances).chain(variances.map(f64::ln));
            numbers.chain(component.mean.iter().flatten().copied()).collect::<Vec<f64>>()
        };
        components.iter().flat_map(row).collect()
    }

    /// The same density blurred to σ (nm), where that is known.
    pub fn blurred(&self, noise_level: f64) -> Option<Self> {
        matches!(self.potential, Potential::GaussianMixture { .. })
            .then(|| Analytic { noise_level, ..self.clone() })
    }

    /// Largest eigenvalue (1/nm²) of the Hessian over all positions, where it is bounded and known. Of a mixture it is at most
    /// that of its narrowest component, which a frame deep in that one attains.
    pub fn largest_curvature(&self) -> Option<f64> {
        match &self.potential {
            Potential::Harmonic { stiffness } => Some(*stiffness),
            Potential::GaussianMixture { components } => {
                let narrowest = components.iter().flat_map(|c| c.spread).fold(f64::INFINITY, f64::min);
                Some(1.0 / (narrowest.powi(2) + self.noise_level.powi(2)))
            }
            _ => None,
        }
    }

    /// Energy of one frame; its gradient is *subtracted* from `score`, which starts at zero.
    fn frame(&self, x: &[f64], score: &mut [f64]) -> f64 {
        match &self.potential {
            Potential::Free {} => 0.0,
            &Potential::Harmonic { stiffness } => {
                let mut energy = 0.0;
                for (s, x) in score.iter_mut().zip(x) {
                    *s = -stiffness * x;
                    energy += 0.5 * stiffness * x * x;
                }
                energy
            }
            &Potential::DoubleWell { barrier, half_width, stiffness } => each(x, score, |[x, y, z]| {
                let u = x / half_width;
                let w = u * u - 1.0;
                (
                    barrier * w * w + 0.5 * stiffness * (y * y + z * z),
                    [4.0 * barrier * u * w / half_width, stiffness * y, stiffness * z],
                )
            }),
            &Potential::MuellerBrown { kt } => each(x, score, |[x, y, _]| {
                const TERMS: [[f64; 6]; 4] = [
                    // A, a, b, c, x₀, y₀
                    [-200.0, -1.0, 0.0, -10.0, 1.0, 0.0],
                    [-100.0, -1.0, 0.0, -10.0, 0.0, 0.5],
                    [-170.0, -6.5, 11.0, -6.5, -0.5, 1.5],
                    [15.0, 0.7, 0.6, 0.7, -1.0, 1.0],
                ];
                let (mut energy, mut gx, mut gy) = (0.0, 0.0, 0.0);
                for [height, a, b, c, x0, y0] in TERMS {
                    let (dx, dy) = (x - x0, y - y0);
                    let e = height / kt * exp_double(a * dx * dx + b * dx * dy + c * dy * dy);
                    energy += e;
                    gx += e * (2.0 * a * dx + b * dy);
                    gy += e * (b * dx + 2.0 * c * dy);
                }
                (energy, [gx, gy, 0.0])
            }),
            &Potential::LennardJonesCluster { well_depth, minimum_distance, stiffness } => {
                let mut energy = pairs::<3>(x, score, |r2| {
                    let inverse = minimum_distance * minimum_distance / r2;
                    let sixth = inverse * inverse * inverse;
                    (
                        well_depth * (sixth * sixth - 2.0 * sixth),
                        12.0 * well_depth * (sixth - sixth * sixth) / r2,
                    )
                });
                let n = self.n_particles as f64;
                let mut centre = [0.0; 3];
                for x in x.chunks_exact(3) {
                    (0..3).for_each(|c| centre[c] += x[c] / n);
                }
                for (i, (s, x)) in score.iter_mut().zip(x).enumerate() {
                    let d = x - centre[i % 3];
                    energy += 0.5 * stiffness * d * d;
                    *s -= stiffness * d;
                }
                energy
            }
            &Potential::Dw4 { linear, quadratic, quartic, distance } => pairs::<2>(x, score, |r2| {
                let r = r2.sqrt();
                let d = r - distance;
                (
                    d * (linear + d * (quadratic + d * d * quartic)),
                    (linear + d * (2.0 * quadratic + 4.0 * quartic * d * d)) / r,
                )
            }),
            Potential::GaussianMixture { components } => {
                let logarithm = |component: &Component| component.logarithm(x, self.noise_level);
                let greatest = components.iter().map(logarithm).fold(f64::NEG_INFINITY, f64::max);
                let mut total = 0.0;
                for component in components {
                    let variances = component.variances(self.noise_level);
                    let weight = exp_double(logarithm(component) - greatest);
                    total += weight;
                    for (i, (s, x)) in score.iter_mut().zip(x).enumerate() {
                        *s -= weight * (x - component.mean[i / 3][i % 3]) / variances[i % 3];
                    }
                }
                score.iter_mut().for_each(|s| *s /= total);
                -(greatest + ln_double(total))
            }
        }
    }
}

/// Sum over particles of a potential that returns energy and gradient.
fn each(x: &[f64], score: &mut [f64], potential: impl Fn([f64; 3]) -> (f64, [f64; 3])) -> f64 {
    let mut energy = 0.0;
    for (x, s) in x.chunks_exact(3).zip(score.chunks_exact_mut(3)) {
        let (e, gradient) = potential([x[0], x[1], x[2]]);
        energy += e;
        (0..3).for_each(|c| s[c] = -gradient[c]);
    }
    energy
}

/// Sum over pairs of a potential of r² that returns energy and (dE/dr)/r; the first `DIM` coordinates count.
fn pairs<const DIM: usize>(x: &[f64], score: &mut [f64], potential: impl Fn(f64) -> (f64, f64)) -> f64 {
    let n = x.len() / 3;
    let mut energy = 0.0;
    for i in 0..n {
        for j in i + 1..n {
            let d: [f64; DIM] = std::array::from_fn(|c| x[3 * i + c] - x[3 * j + c]);
            let (e, slope) = potential(d.iter().map(|d| d * d).sum());
            energy += e;
            for (c, d) in d.iter().enumerate() {
                score[3 * i + c] -= slope * d;
                score[3 * j + c] += slope * d;
            }
        }
    }
    energy
}

impl ScoreModel for Analytic {
    fn n_particles(&self) -> usize {
        self.n_particles
    }

    fn evaluate(&self, frames: Frames, mut outputs: Outputs, _: &mut Scratch) -> Result<()> {
        outputs.scores.fill(0.0);
        let n = 3 * self.n_particles;
        let both = frames.positions.chunks_exact(n).zip(outputs.scores.chunks_exact_mut(n));
        for (i, (x, s)) in both.enumerate() {
            let energy = self.frame(x, s);
            if let Some(energies) = &mut outputs.energies {
                energies[i] = energy;
            }
        }
        outputs.fill_open_virials(frames.positions, self.n_particles);
        Ok(())
    }

    fn kernel(&self) -> std::result::Result<KernelModel, &'static str> {
        let (potential, parameters) = match self.potential {
            Potential::GaussianMixture { .. } => (6, [0.0; 4]),
            Potential::Free {} => (0, [0.0; 4]),
            Potential::Harmonic { stiffness } => (1, [stiffness, 0.0, 0.0, 0.0]),
            Potential::DoubleWell { barrier, half_width, stiffness } => {
                (2, [barrier, half_width, stiffness, 0.0])
            }
            Potential::MuellerBrown { kt } => (3, [kt, 0.0, 0.0, 0.0]),
            Potential::LennardJonesCluster { well_depth, minimum_distance, stiffness } => {
                (4, [well_depth, minimum_distance, stiffness, 0.0])
            }
            Potential::Dw4 { linear, quadratic, quartic, distance } => {
                (5, [linear, quadratic, quartic, distance])
            }
        };
        Ok(KernelModel {
            kernel: Kernel::Analytic { potential, parameters, mixture: self.mixture() },
            members: (0..self.n_particles as u32).collect(),
            n_particles: self.n_particles,
        })
    }

    fn preferred_batch(&self) -> usize {
        (256 / self.n_particles).max(1)
    }

    fn at_noise_level(&self, noise_level: f64) -> Option<Arc<dyn ScoreModel>> {
        Some(Arc::new(self.blurred(noise_level)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_minus_the_gradient_of_the_energy() {
        let cases = [
            (3, Potential::Free {}),
            (2, Potential::Harmonic { stiffness: 37.0 }),
            (2, Potential::DoubleWell { barrier: 3.1, half_width: 0.7, stiffness: 5.5 }),
            (2, Potential::MuellerBrown { kt: 23.0 }),
            (5, Potential::LennardJonesCluster { well_depth: 1.7, minimum_distance: 0.9, stiffness: 0.6 }),
            (4, Potential::Dw4 { linear: 0.3, quadratic: -4.0, quartic: 0.9, distance: 4.0 }),
            (2, Potential::GaussianMixture { components: mixture() }),
        ];
        let mut scratch = Scratch::default();
        for (n, potential) in cases {
            let model = Analytic::new(n, potential.clone()).unwrap();
            let x: Vec<f64> =
                (0..3 * n).map(|i| 0.9 * (i as f64 * 1.7).sin() + 0.35 * i as f64 % 1.3).collect();
            let mut score = vec![0.0; x.len()];
            model.evaluate(Frames::open(&x), Outputs::scores(&mut score), &mut scratch).unwrap();
            let mut energy_at = |i: usize, h: f64| {
                let (mut y, mut e, mut s) = (x.clone(), [0.0], vec![0.0; x.len()]);
                y[i] += h;
                model.evaluate(Frames::open(&y), Outputs::energies(&mut s, &mut e), &mut scratch).unwrap();
                e[0]
            };
            for i in 0..x.len() {
                let h = 1e-5;
                let numeric = (energy_at(i, -h) - energy_at(i, h)) / (2.0 * h);
                let scale = score.iter().fold(1.0f64, |m, s| m.max(s.abs()));
                assert!(
                    (numeric - score[i]).abs() < 1e-7 * scale,
                    "{potential:?} {i}: {numeric} {}",
                    score[i]
                );
            }
        }
    }

    fn mixture() -> Vec<Component> {
        vec![
            Component {
                weight: 2.3,
                mean: vec![[0.4, -0.2, 0.7], [0.1, 0.9, -0.3]],
                spread: [0.6, 0.9, 1.4],
            },
            Component {
                weight: 0.7,
                mean: vec![[-0.5, 0.3, 0.2], [0.8, -0.6, 0.5]],
                spread: [1.1, 0.5, 0.8],
            },
        ]
    }

    /// At σ the mixture is that of components with spread² + σ².
    #[test]
    fn a_blurred_mixture_is_the_mixture_of_blurred_components() {
        let sigma = 0.37;
        let model = Analytic::new(2, Potential::GaussianMixture { components: mixture() }).unwrap();
        let blurred = mixture()
            .into_iter()
            .map(|c| Component { spread: c.spread.map(|s| (s * s + sigma * sigma).sqrt()), ..c })
            .collect();
        let other = Analytic::new(2, Potential::GaussianMixture { components: blurred }).unwrap();
        let x = [0.3, -1.1, 0.6, 0.2, 0.7, -0.4];
        let evaluate = |model: &dyn ScoreModel| {
            let (mut score, mut energy) = ([0.0; 6], [0.0]);
            let outputs = Outputs::energies(&mut score, &mut energy);
            model.evaluate(Frames::open(&x), outputs, &mut Scratch::default()).unwrap();
            (score, energy[0])
        };
        let (score, energy) = evaluate(&*model.at_noise_level(sigma).unwrap());
        let (expected, expected_energy) = evaluate(&other);
        assert!((energy - expected_energy).abs() < 1e-12);
        assert!(score.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12));
    }

    #[test]
    fn mueller_brown_has_its_known_minimum() {
        let model = Analytic::new(1, Potential::MuellerBrown { kt: 2.0 }).unwrap();
        let (mut score, mut energy) = ([0.0; 3], [0.0]);
        let at = [-0.558_223_6, 1.441_725_8, 0.0];
        let outputs = Outputs::energies(&mut score, &mut energy);
        model.evaluate(Frames::open(&at), outputs, &mut Scratch::default()).unwrap();
        assert!((energy[0] * 2.0 + 146.699_517).abs() < 1e-5, "{}", energy[0]);
        assert!(score.iter().all(|s| s.abs() < 1e-3));
    }
}
