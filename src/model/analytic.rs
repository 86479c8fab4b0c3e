//! Potentials whose score and energy are exact: the yardsticks. All energies are in kT₀, all lengths in nm.

use super::{Frames, Outputs, ScoreModel, Scratch};
use crate::error::{Result, bail};
use serde::{Deserialize, Serialize};

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
}

/// A [`Potential`] of a number of particles.
#[derive(Clone, Debug)]
pub struct Analytic {
    n_particles: usize,
    potential: Potential,
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
        match potential {
            Potential::Free {} => {}
            Potential::Harmonic { stiffness } => positive("stiffness", stiffness)?,
            Potential::DoubleWell { barrier, half_width, stiffness } => {
                positive("barrier", barrier)?;
                positive("half_width", half_width)?;
                positive("stiffness", stiffness)?;
            }
            Potential::MuellerBrown { kt } => positive("kT", kt)?,
            Potential::LennardJonesCluster { well_depth, minimum_distance, stiffness } => {
                positive("well_depth", well_depth)?;
                positive("minimum_distance", minimum_distance)?;
                positive("stiffness", stiffness)?;
            }
            Potential::Dw4 { linear, quadratic, quartic, distance } => {
                if n_particles != 4 {
                    bail!(InvalidModel, "a dw4 model has 4 particles, this one claims {n_particles}");
                }
                if !(linear.is_finite() && quadratic.is_finite()) {
                    bail!(InvalidModel, "hyper-parameters of the dw4 model must be finite");
                }
                positive("quartic", quartic)?;
                positive("distance", distance)?;
            }
        }
        Ok(Analytic { n_particles, potential })
    }

    /// Energy of one frame; its gradient is *subtracted* from `score`, which starts at zero.
    fn frame(&self, x: &[f64], score: &mut [f64]) -> f64 {
        match self.potential {
            Potential::Free {} => 0.0,
            Potential::Harmonic { stiffness } => {
                let mut energy = 0.0;
                for (s, x) in score.iter_mut().zip(x) {
                    *s = -stiffness * x;
                    energy += 0.5 * stiffness * x * x;
                }
                energy
            }
            Potential::DoubleWell { barrier, half_width, stiffness } => each(x, score, |[x, y, z]| {
                let u = x / half_width;
                let w = u * u - 1.0;
                (
                    barrier * w * w + 0.5 * stiffness * (y * y + z * z),
                    [4.0 * barrier * u * w / half_width, stiffness * y, stiffness * z],
                )
            }),
            Potential::MuellerBrown { kt } => each(x, score, |[x, y, _]| {
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
                    let e = height / kt * (a * dx * dx + b * dx * dy + c * dy * dy).exp();
                    energy += e;
                    gx += e * (2.0 * a * dx + b * dy);
                    gy += e * (b * dx + 2.0 * c * dy);
                }
                (energy, [gx, gy, 0.0])
            }),
            Potential::LennardJonesCluster { well_depth, minimum_distance, stiffness } => {
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
            Potential::Dw4 { linear, quadratic, quartic, distance } => pairs::<2>(x, score, |r2| {
                let r = r2.sqrt();
                let d = r - distance;
                (
                    d * (linear + d * (quadratic + d * d * quartic)),
                    (linear + d * (2.0 * quadratic + 4.0 * quartic * d * d)) / r,
                )
            }),
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

    fn preferred_batch(&self) -> usize {
        (256 / self.n_particles).max(1)
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
