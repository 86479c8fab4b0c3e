//! The `distance` network: pair distances and signed dihedral features → dense network → energy, one network per molecule.
//!
//! With ε = `softening`, ℓ = `signed_length` and σ the noise level fixed at load (theory §9):
//! * pair features rᵢⱼ = √(‖xᵢ − xⱼ‖² + ε²) for i < j in lexicographic order;
//! * for each of `coordinates`, (i, c), the coordinate xᵢ_c itself: a field that breaks all symmetry. A single particle has no
//!   pairs, and the axes that `coordinates` leaves out of it feel no score: they diffuse freely;
//! * for each quadruplet (a, b, c, d), with bonds b₁ = x_b − x_a, b₂ = x_c − x_b, b₃ = x_d − x_c of softened lengths lₖ and
//!   n = b₂ × b₃: S = b₁·n / (l₁l₂l₃) and C = (b₁ × b₂)·n / (l₁l₂²l₃). S changes sign under reflection, so mirror images
//!   differ; both are smooth everywhere, collinear bonds included;
//! * f = (feature − mean) / √(spread² + s²), s = σ for lengths (pairs and coordinates) and σ/ℓ for signed features;
//! * h = silu(h W + b) from [f, embedding of σ], E = harmonic · ½ Σ_lengths f² + h W + b.
//!
//! The embedding is constant once σ is fixed and is folded into the first bias. The same formulas run for one frame
//! (vectorised over the units of a layer) and for batches (one frame per SIMD lane) and add in the same order, so a frame's
//! score has the same bits either way.

use super::dense::{Dense, Layer, SingleFrame, UnitMajor};
use super::kernel::{DistanceArrays, Kernel, LayerArrays};
use super::{Frames, KernelModel, Outputs, ScoreModel, Scratch};
use crate::error::{Result, bail};
use crate::lane::{CacheLine, Number, Packed};
use pulp::{Arch, Simd, WithSimd};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Wider layers are a damaged file.
const MAX_WIDTH: usize = 1 << 16;

/// Hyper-parameters, as in the model file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hyperparameters {
    /// Units of each hidden layer.
    pub hidden: Vec<usize>,
    /// Activation; `"silu"`.
    pub activation: String,
    /// Particle and axis (0, 1, 2) of the coordinates that are features.
    #[serde(default)]
    pub coordinates: Vec<[usize; 2]>,
    /// Particle indices of the signed features.
    pub quadruplets: Vec<[usize; 4]>,
    /// ε, nm.
    pub softening: f64,
    /// ℓ, nm: a displacement of ℓ changes a signed feature by about one.
    pub signed_length: f64,
    /// Weight of the harmonic term.
    pub harmonic: f64,
    /// K: the embedding of σ has 2K + 1 entries.
    pub n_frequencies: usize,
}

/// One normalised input of the network: f = (feature − mean) · inverse_spread.
#[derive(Clone, Copy)]
struct Normalisation {
    mean: f32,
    inverse_spread: f32,
}

/// What a noise level is turned into.
struct Conditioning {
    /// σ_min and σ_max of the training, nm.
    noise_range: [f64; 2],
    /// Pairs and coordinates: features that are lengths.
    n_lengths: usize,
    n_frequencies: usize,
    signed_length: f64,
    feature_mean: Vec<f32>,
    feature_spread: Vec<f32>,
    /// Rows of the first layer's weight that the embedding of σ meets, `[2K + 1][n_out]`.
    embedding_weight: Vec<f32>,
    /// Of the first layer, `[n_out]`.
    bias: Vec<f32>,
}

impl Conditioning {
    fn normalisation(&self, noise_level: f64) -> Vec<Normalisation> {
        let features = self.feature_mean.iter().zip(&self.feature_spread).enumerate();
        features
            .map(|(i, (mean, spread))| {
                let s = if i < self.n_lengths { noise_level } else { noise_level / self.signed_length };
                let spread = *spread as f64;
                Normalisation { mean: *mean, inverse_spread: (1.0 / (spread * spread + s * s).sqrt()) as f32 }
            })
            .collect()
    }

    /// The first layer's bias with the embedding of σ folded in.
    fn first_bias(&self, noise_level: f64) -> Vec<f32> {
        let [min, max] = self.noise_range;
        let embedding = embed((noise_level / min).ln() / (max / min).ln(), self.n_frequencies);
        let n_out = self.bias.len();
        (0..n_out)
            .map(|o| {
                let rows = embedding.iter().enumerate();
                let constant: f64 = rows.map(|(j, e)| e * self.embedding_weight[j * n_out + o] as f64).sum();
                (self.bias[o] as f64 + constant) as f32
            })
            .collect()
    }
}

/// The network at one noise level. Clones share the weights.
#[derive(Clone)]
pub struct Distance {
    n_particles: usize,
    coordinates: Vec<[usize; 2]>,
    quadruplets: Vec<[usize; 4]>,
    softening_squared: f32,
    harmonic: f32,
    conditioning: Arc<Conditioning>,
    normalisation: Vec<Normalisation>,
    /// Hidden layers; the first has the embedding of σ folded into its bias.
    layers: Vec<Layer>,
    output_weight: Vec<f32>,
    output_bias: f32,
    arch: Arch,
}

/// The arrays of a model file that make a network: features as in the module's documentation, weights `[n_in][n_out]`.
pub struct Tensors<'a> {
    /// `[F]`
    pub feature_mean: &'a [f32],
    /// `[F]`, positive
    pub feature_spread: &'a [f32],
    /// Weight and bias of each layer, the last one with a single output.
    pub layers: Vec<(&'a [f32], &'a [f32])>,
}

impl Distance {
    /// Network of `n_particles` at `noise_level` (nm), trained on noise levels `[min, max]` (nm).
    pub fn new(
        n_particles: usize,
        parameters: &Hyperparameters,
        tensors: &Tensors,
        noise_range: [f64; 2],
        noise_level: f64,
    ) -> Result<Self> {
        let [min, max] = noise_range;
        if !(min * 0.999..=max * 1.001).contains(&noise_level) {
            bail!(
                InvalidArgument,
                "noise level {noise_level} nm is outside the range {min} to {max} nm this model was trained on"
            );
        }
        if parameters.activation != "silu" {
            bail!(
                InvalidModel,
                "activation '{}' of the model is unknown; expected 'silu'",
                parameters.activation
            );
        }
        for (name, value) in
            [("softening", parameters.softening), ("signed_length", parameters.signed_length)]
        {
            if !((1e-6..1e6).contains(&value)) {
                bail!(
                    InvalidModel,
                    "hyper-parameter {name} of the model is {value}; expected a positive length in nm"
                );
            }
        }
        for (k, c) in parameters.coordinates.iter().enumerate() {
            if c[0] >= n_particles || c[1] >= 3 || parameters.coordinates[..k].contains(c) {
                bail!(
                    InvalidModel,
                    "coordinate {c:?} of the model must be a particle below {n_particles} and an axis below 3, listed once"
                );
            }
        }
        for q in &parameters.quadruplets {
            if q.iter().any(|&i| i >= n_particles) || (0..4).any(|i| q[..i].contains(&q[i])) {
                bail!(
                    InvalidModel,
                    "quadruplet {q:?} of the model must be four different particles below {n_particles}"
                );
            }
        }
        if !(parameters.harmonic >= 0.0 && parameters.harmonic.is_finite()) {
            bail!(
                InvalidModel,
                "hyper-parameter harmonic of the model is {}; expected 0 or more",
                parameters.harmonic
            );
        }
        if parameters.hidden.is_empty() || parameters.hidden.iter().any(|w| !(1..=MAX_WIDTH).contains(w)) {
            bail!(
                InvalidModel,
                "hidden layers of the model are {:?}; expected at least one, each of 1 to {MAX_WIDTH} units",
                parameters.hidden
            );
        }
        if parameters.n_frequencies > MAX_WIDTH {
            bail!(
                InvalidModel,
                "n_frequencies of the model is {}; expected at most {MAX_WIDTH}",
                parameters.n_frequencies
            );
        }
        let n_pairs = n_particles * (n_particles - 1) / 2;
        let n_lengths = n_pairs + parameters.coordinates.len();
        let n_features = n_lengths + 2 * parameters.quadruplets.len();
        let widths: Vec<usize> = std::iter::once(n_features + 2 * parameters.n_frequencies + 1)
            .chain(parameters.hidden.iter().copied())
            .chain([1])
            .collect();
        let expect = |name: &str, found: usize, wanted: usize| {
            if found != wanted {
                bail!(InvalidModel, "tensor {name} of the model has {found} numbers; expected {wanted}");
            }
            Ok(())
        };
        expect("feature_mean", tensors.feature_mean.len(), n_features)?;
        expect("feature_spread", tensors.feature_spread.len(), n_features)?;
        expect("layers", tensors.layers.len(), widths.len() - 1)?;
        for (i, (weight, bias)) in tensors.layers.iter().enumerate() {
            expect(&format!("layers.{i}.weight"), weight.len(), widths[i] * widths[i + 1])?;
            expect(&format!("layers.{i}.bias"), bias.len(), widths[i + 1])?;
        }
        if let Some(i) = tensors.feature_spread.iter().position(|s| *s <= 0.0 || s.is_nan()) {
            bail!(
                InvalidModel,
                "feature_spread[{i}] of the model is {}; expected > 0",
                tensors.feature_spread[i]
            );
        }

        let n_hidden = parameters.hidden.len();
        let (first_weight, first_bias) = tensors.layers[0];
        let conditioning = Conditioning {
            noise_range,
            n_lengths,
            n_frequencies: parameters.n_frequencies,
            signed_length: parameters.signed_length,
            feature_mean: tensors.feature_mean.to_vec(),
            feature_spread: tensors.feature_spread.to_vec(),
            embedding_weight: first_weight[n_features * widths[1]..].to_vec(),
            bias: first_bias.to_vec(),
        };
        let layers = (0..n_hidden)
            .map(|l| {
                let (weight, bias) = tensors.layers[l];
                let n_in = if l == 0 { n_features } else { widths[l] };
                let n_out = widths[l + 1];
                Layer::new(n_in, n_out, |i, o| weight[i * n_out + o], |o| bias[o])
            })
            .collect();
        let (output_weight, output_bias) = tensors.layers[n_hidden];
        let network = Distance {
            n_particles,
            coordinates: parameters.coordinates.clone(),
            quadruplets: parameters.quadruplets.clone(),
            softening_squared: (parameters.softening * parameters.softening) as f32,
            harmonic: parameters.harmonic as f32,
            normalisation: Vec::new(),
            conditioning: Arc::new(conditioning),
            layers,
            output_weight: output_weight.to_vec(),
            output_bias: output_bias[0],
            arch: Arch::new(),
        };
        Ok(network.at(noise_level))
    }

    /// The same network read at another noise level.
    fn at(&self, noise_level: f64) -> Self {
        let mut network = self.clone();
        let bias = self.conditioning.first_bias(noise_level);
        network.normalisation = self.conditioning.normalisation(noise_level);
        network.layers[0] = self.layers[0].with_bias(|o| bias[o]);
        network
    }

    fn n_pairs(&self) -> usize {
        self.n_particles * (self.n_particles - 1) / 2
    }

    /// Coordinate `i` of a frame as the network sees it: from the first particle on, for precision, where all features are
    /// differences.
    #[inline(always)]
    fn local(&self, frame: &[f64], i: usize) -> f64 {
        if self.coordinates.is_empty() { frame[i] - frame[i % 3] } else { frame[i] }
    }

    /// Energy (kT₀) and score (1/nm) of one frame in double precision: the same formulas, for tests and diagnostics.
    pub fn evaluate_f64(&self, positions: &[f64], scores: &mut [f64]) -> f64 {
        let sizes = Sizes::of(self, 1);
        let mut memory = vec![0.0; sizes.total];
        let work = Workspace::split(&mut memory, sizes);
        for (i, to) in work.positions[..positions.len()].iter_mut().enumerate() {
            *to = self.local(positions, i);
        }
        let [energy] = self.frames::<f64, _, 1>(0.0, UnitMajor::<1, 4, 4>, work, true);
        for (s, g) in scores.iter_mut().zip(&memory[sizes.positions..]) {
            *s = -g;
        }
        energy
    }

    /// Gradient (left in `work.gradient`) and, if asked for, energy of `G` numbers' worth of frames.
    #[inline(always)]
    fn frames<T: Number, D: Dense<T>, const G: usize>(
        &self,
        zero: T,
        dense: D,
        work: Workspace<T::Stored>,
        with_energy: bool,
    ) -> [T; G] {
        let Workspace { positions, gradient, features, inverse_lengths, slopes, mut input, mut output } =
            work;
        let pairs = || (0..self.n_particles).flat_map(|i| (i + 1..self.n_particles).map(move |j| (i, j)));
        let n_pairs = self.n_pairs();
        let n_lengths = n_pairs + self.coordinates.len();

        // Features; square roots and reciprocals in loops of their own, for vectors.
        let soft = zero.constant(self.softening_squared);
        for (p, (i, j)) in pairs().enumerate() {
            for g in 0..G {
                let d = difference(at::<T, G>(zero, positions, i, g), at::<T, G>(zero, positions, j, g));
                features[p * G + g] = (dot(d, d) + soft).stored();
            }
        }
        let lengths = features[..n_pairs * G].chunks_exact_mut(G);
        for ((lengths, inverses), norm) in
            lengths.zip(inverse_lengths.chunks_exact_mut(G)).zip(&self.normalisation)
        {
            for (feature, inverse) in lengths.iter_mut().zip(inverses) {
                let length = zero.load(*feature).sqrt();
                *inverse = length.recip().stored();
                *feature = norm.apply(length).stored();
            }
        }
        for (f, [particle, axis]) in (n_pairs..).zip(&self.coordinates) {
            for g in 0..G {
                let x = zero.load(positions[(3 * particle + axis) * G + g]);
                features[f * G + g] = self.normalisation[f].apply(x).stored();
            }
        }
        let inverse_bonds = &mut inverse_lengths[n_pairs * G..];
        for (q, quadruplet) in self.quadruplets.iter().enumerate() {
            let f = n_lengths + 2 * q;
            for g in 0..G {
                let b = bonds(quadruplet.map(|i| at::<T, G>(zero, positions, i, g)));
                let inverse = b.map(|v| (dot(v, v) + soft).sqrt().recip());
                for (k, inverse) in inverse.iter().enumerate() {
                    inverse_bonds[(3 * q + k) * G + g] = inverse.stored();
                }
                let bonds = Bonds::new(b, inverse);
                features[f * G + g] = self.normalisation[f].apply(bonds.sine()).stored();
                features[(f + 1) * G + g] = self.normalisation[f + 1].apply(bonds.cosine()).stored();
            }
        }

        // Forward: activations run through `input`, their slopes are kept.
        let one = zero.constant(1.0);
        let mut slope_at = 0;
        for (l, layer) in self.layers.iter().enumerate() {
            dense.forward(zero, layer, if l == 0 { &*features } else { &*input }, output);
            let n = layer.n_out * G;
            for (z, slope) in output[..n].iter_mut().zip(&mut slopes[slope_at..]) {
                let x = zero.load(*z);
                let sigmoid = ((-x).exp() + one).recip();
                let silu = x * sigmoid;
                *z = silu.stored();
                *slope = (one - sigmoid).mul_add(silu, sigmoid).stored();
            }
            slope_at += n;
            std::mem::swap(&mut input, &mut output);
        }
        let mut energy = [zero.constant(self.output_bias); G];
        if with_energy {
            for (o, w) in self.output_weight.iter().enumerate() {
                for (g, e) in energy.iter_mut().enumerate() {
                    *e = zero.load(input[o * G + g]).mul_add(zero.constant(*w), *e);
                }
            }
            let half = zero.constant(0.5 * self.harmonic);
            for p in 0..n_lengths {
                for (g, e) in energy.iter_mut().enumerate() {
                    let f = zero.load(features[p * G + g]);
                    *e = (f * half).mul_add(f, *e);
                }
            }
        }

        // Backward: from the output weights to ∂E/∂feature in `output`.
        for (o, w) in self.output_weight.iter().enumerate() {
            for g in 0..G {
                input[o * G + g] = zero.constant(*w).stored();
            }
        }
        for layer in self.layers.iter().rev() {
            let n = layer.n_out * G;
            slope_at -= n;
            for (d, slope) in input[..n].iter_mut().zip(&slopes[slope_at..]) {
                *d = (zero.load(*d) * zero.load(*slope)).stored();
            }
            dense.backward(zero, layer, input, output);
            std::mem::swap(&mut input, &mut output);
        }

        // From features to particles.
        gradient.fill(zero.stored());
        let harmonic = zero.constant(self.harmonic);
        for g in 0..G {
            let mut p = 0;
            for i in 0..self.n_particles {
                let x_i = at::<T, G>(zero, positions, i, g);
                let mut sum = at::<T, G>(zero, gradient, i, g);
                for j in i + 1..self.n_particles {
                    let slope = zero.load(features[p * G + g]).mul_add(harmonic, zero.load(input[p * G + g]))
                        * zero.constant(self.normalisation[p].inverse_spread)
                        * zero.load(inverse_lengths[p * G + g]);
                    let force = scaled(difference(x_i, at::<T, G>(zero, positions, j, g)), slope);
                    sum = [sum[0] + force[0], sum[1] + force[1], sum[2] + force[2]];
                    add::<T, G>(zero, gradient, j, g, scaled(force, -one));
                    p += 1;
                }
                put::<T, G>(gradient, i, g, sum);
            }
        }
        for (f, [particle, axis]) in (n_pairs..).zip(&self.coordinates) {
            for g in 0..G {
                let slope = zero.load(features[f * G + g]).mul_add(harmonic, zero.load(input[f * G + g]));
                let slope = slope * zero.constant(self.normalisation[f].inverse_spread);
                let place = &mut gradient[(3 * particle + axis) * G + g];
                *place = (zero.load(*place) + slope).stored();
            }
        }
        for (q, quadruplet) in self.quadruplets.iter().enumerate() {
            let f = n_lengths + 2 * q;
            for g in 0..G {
                let inverse =
                    std::array::from_fn(|k| zero.load(inverse_lengths[(n_pairs + 3 * q + k) * G + g]));
                let bonds = Bonds::new(bonds(quadruplet.map(|i| at::<T, G>(zero, positions, i, g))), inverse);
                let slope = |f: usize| {
                    zero.load(input[f * G + g]) * zero.constant(self.normalisation[f].inverse_spread)
                };
                let [g1, g2, g3] = bonds.gradient(slope(f), slope(f + 1));
                let [a, b, c, d] = *quadruplet;
                add::<T, G>(zero, gradient, a, g, scaled(g1, -one));
                add::<T, G>(zero, gradient, b, g, difference(g1, g2));
                add::<T, G>(zero, gradient, c, g, difference(g2, g3));
                add::<T, G>(zero, gradient, d, g, g3);
            }
        }
        energy
    }
}

impl Normalisation {
    #[inline(always)]
    fn apply<T: Number>(&self, feature: T) -> T {
        (feature - feature.constant(self.mean)) * feature.constant(self.inverse_spread)
    }
}

type Vector<T> = [T; 3];

#[inline(always)]
fn at<T: Number, const G: usize>(zero: T, array: &[T::Stored], i: usize, g: usize) -> Vector<T> {
    let at = |c: usize| array[(3 * i + c) * G + g];
    [zero.load(at(0)), zero.load(at(1)), zero.load(at(2))]
}

#[inline(always)]
fn add<T: Number, const G: usize>(zero: T, array: &mut [T::Stored], i: usize, g: usize, v: Vector<T>) {
    for (c, v) in v.into_iter().enumerate() {
        let place = &mut array[(3 * i + c) * G + g];
        *place = (zero.load(*place) + v).stored();
    }
}

#[inline(always)]
fn put<T: Number, const G: usize>(array: &mut [T::Stored], i: usize, g: usize, v: Vector<T>) {
    for (c, v) in v.into_iter().enumerate() {
        array[(3 * i + c) * G + g] = v.stored();
    }
}

#[inline(always)]
fn difference<T: Number>(a: Vector<T>, b: Vector<T>) -> Vector<T> {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

#[inline(always)]
fn scaled<T: Number>(a: Vector<T>, s: T) -> Vector<T> {
    [a[0] * s, a[1] * s, a[2] * s]
}

/// a·s + b
#[inline(always)]
fn axpy<T: Number>(a: Vector<T>, s: T, b: Vector<T>) -> Vector<T> {
    [a[0].mul_add(s, b[0]), a[1].mul_add(s, b[1]), a[2].mul_add(s, b[2])]
}

#[inline(always)]
fn dot<T: Number>(a: Vector<T>, b: Vector<T>) -> T {
    a[2].mul_add(b[2], a[1].mul_add(b[1], a[0] * b[0]))
}

#[inline(always)]
fn cross<T: Number>(a: Vector<T>, b: Vector<T>) -> Vector<T> {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

#[inline(always)]
fn bonds<T: Number>([a, b, c, d]: [Vector<T>; 4]) -> [Vector<T>; 3] {
    [difference(b, a), difference(c, b), difference(d, c)]
}

/// The three bonds of a quadruplet and what both of its features share.
struct Bonds<T> {
    b: [Vector<T>; 3],
    /// 1/lₖ
    inverse: [T; 3],
    /// b₂ × b₃
    n: Vector<T>,
}

impl<T: Number> Bonds<T> {
    #[inline(always)]
    fn new(b: [Vector<T>; 3], inverse: [T; 3]) -> Self {
        Bonds { b, inverse, n: cross(b[1], b[2]) }
    }

    /// 1/(l₁l₂l₃)
    #[inline(always)]
    fn volume(&self) -> T {
        self.inverse[0] * self.inverse[1] * self.inverse[2]
    }

    /// S = b₁·n / (l₁l₂l₃)
    #[inline(always)]
    fn sine(&self) -> T {
        dot(self.b[0], self.n) * self.volume()
    }

    /// C = (b₁ × b₂)·n / (l₁l₂²l₃)
    #[inline(always)]
    fn cosine(&self) -> T {
        dot(cross(self.b[0], self.b[1]), self.n) * self.volume() * self.inverse[1]
    }

    /// ∂(ws S + wc C)/∂bₖ
    #[inline(always)]
    fn gradient(&self, ws: T, wc: T) -> [Vector<T>; 3] {
        let [b1, b2, b3] = self.b;
        let m = cross(b1, b2);
        let s = ws * self.volume();
        let c = wc * self.volume() * self.inverse[1];
        let (ws, wc) = (ws * self.sine(), wc * self.cosine());
        // (b₁ × b₂)·(b₂ × b₃) = (b₁·b₂)(b₂·b₃) − (b₁·b₃)(b₂·b₂)
        let (p, q, r, t) = (dot(b1, b2), dot(b2, b3), dot(b1, b3), dot(b2, b2));
        let direct = [
            axpy(self.n, s, scaled(axpy(b3, -t, scaled(b2, q)), c)),
            axpy(cross(b3, b1), s, scaled(axpy(b2, -(r + r), axpy(b3, p, scaled(b1, q))), c)),
            axpy(m, s, scaled(axpy(b1, -t, scaled(b2, p)), c)),
        ];
        // 1/lₖ appears once in S and C, twice in C for k = 2.
        let powers = [ws + wc, ws + wc + wc, ws + wc];
        std::array::from_fn(|k| axpy(self.b[k], -(powers[k] * self.inverse[k] * self.inverse[k]), direct[k]))
    }
}

/// Lengths of the arrays of a [`Workspace`], in numbers.
#[derive(Clone, Copy)]
struct Sizes {
    positions: usize,
    features: usize,
    lengths: usize,
    slopes: usize,
    widest: usize,
    total: usize,
}

impl Sizes {
    fn of(model: &Distance, groups: usize) -> Self {
        // Whole cache lines, so that every array is aligned.
        let round = |n: usize| (n * groups).next_multiple_of(CacheLine::LEN);
        let features = round(model.normalisation.len());
        let widest = model.layers.iter().flat_map(|l| [l.n_in, l.stride]).max().unwrap_or(0);
        let mut sizes = Sizes {
            positions: round(3 * model.n_particles),
            features,
            lengths: round(model.n_pairs() + 3 * model.quadruplets.len()),
            slopes: round(model.layers.iter().map(|l| l.n_out).sum()),
            widest: round(widest.max(model.output_weight.len())),
            total: 0,
        };
        sizes.total = 2 * sizes.positions + sizes.features + sizes.lengths + sizes.slopes + 2 * sizes.widest;
        sizes
    }
}

/// The arrays one evaluation works on; layout `[index][group]`.
struct Workspace<'a, N> {
    positions: &'a mut [N],
    gradient: &'a mut [N],
    features: &'a mut [N],
    inverse_lengths: &'a mut [N],
    slopes: &'a mut [N],
    input: &'a mut [N],
    output: &'a mut [N],
}

impl<'a, N> Workspace<'a, N> {
    fn split(memory: &'a mut [N], sizes: Sizes) -> Self {
        let (positions, rest) = memory.split_at_mut(sizes.positions);
        let (gradient, rest) = rest.split_at_mut(sizes.positions);
        let (features, rest) = rest.split_at_mut(sizes.features);
        let (inverse_lengths, rest) = rest.split_at_mut(sizes.lengths);
        let (slopes, rest) = rest.split_at_mut(sizes.slopes);
        let (input, rest) = rest.split_at_mut(sizes.widest);
        let (output, _) = rest.split_at_mut(sizes.widest);
        Workspace { positions, gradient, features, inverse_lengths, slopes, input, output }
    }
}

/// A batch of frames, to be evaluated with the machine's instruction set.
struct Batch<'a> {
    model: &'a Distance,
    positions: &'a [f64],
    scores: &'a mut [f64],
    energies: Option<&'a mut [f64]>,
    scratch: &'a mut Scratch,
}

impl Batch<'_> {
    #[inline(always)]
    fn single<S: Simd>(&mut self, simd: S, first: usize, n_frames: usize) {
        let model = self.model;
        let sizes = Sizes::of(model, 1);
        let n = 3 * model.n_particles;
        let memory = self.scratch.single(sizes.total);
        for f in first..first + n_frames {
            let (x, s) = (&self.positions[f * n..][..n], &mut self.scores[f * n..][..n]);
            let work = Workspace::split(memory, sizes);
            for (i, to) in work.positions[..n].iter_mut().enumerate() {
                *to = model.local(x, i) as f32;
            }
            let [energy] = model.frames::<f32, _, 1>(0.0, SingleFrame(simd), work, self.energies.is_some());
            for (s, g) in s.iter_mut().zip(&memory[sizes.positions..]) {
                *s = -*g as f64;
            }
            if let Some(energies) = &mut self.energies {
                energies[f] = energy as f64;
            }
        }
    }

    /// Up to `G` vectors' worth of frames, starting at `first`.
    #[inline(always)]
    fn lanes<S: Simd, const G: usize, const OUTPUTS: usize, const INPUTS: usize>(
        &mut self,
        simd: S,
        first: usize,
        n_frames: usize,
    ) {
        let model = self.model;
        let sizes = Sizes::of(model, G);
        let n = 3 * model.n_particles;
        let memory = self.scratch.single(sizes.total * S::F32_LANES);
        let width = G * S::F32_LANES;
        for frame in 0..width {
            let x = &self.positions[(first + frame.min(n_frames - 1)) * n..][..n];
            for i in 0..n {
                memory[i * width + frame] = model.local(x, i) as f32;
            }
        }
        let work = Workspace::split(S::as_mut_simd_f32s(memory).0, sizes);
        let energy = model.frames::<_, _, G>(
            Packed::zero(simd),
            UnitMajor::<G, OUTPUTS, INPUTS>,
            work,
            self.energies.is_some(),
        );
        let gradient = &memory[sizes.positions * S::F32_LANES..];
        for frame in 0..n_frames {
            for (i, s) in self.scores[(first + frame) * n..][..n].iter_mut().enumerate() {
                *s = -gradient[i * width + frame] as f64;
            }
        }
        if let Some(energies) = &mut self.energies {
            for (group, chunk) in
                energy.into_iter().zip(energies[first..first + n_frames].chunks_mut(S::F32_LANES))
            {
                let mut values = [0.0; 64];
                simd.partial_store_f32s(&mut values, group.stored());
                for (e, v) in chunk.iter_mut().zip(values) {
                    *e = v as f64;
                }
            }
        }
    }
}

impl WithSimd for Batch<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let n_frames = self.positions.len() / (3 * self.model.n_particles);
        let mut first = 0;
        while first < n_frames {
            let rest = n_frames - first;
            // Lanes left empty cost as much as full ones: few frames are faster one by one.
            let few = 2 * S::F32_LANES / 5;
            let n =
                if rest <= S::F32_LANES + few { rest.min(S::F32_LANES) } else { rest.min(2 * S::F32_LANES) };
            match (n > S::F32_LANES, S::REGISTER_COUNT >= 32) {
                _ if n <= few || S::F32_LANES == 1 => self.single(simd, first, n),
                (true, true) => self.lanes::<S, 2, 12, 6>(simd, first, n),
                (true, false) => self.lanes::<S, 2, 6, 2>(simd, first, n),
                (false, true) => self.lanes::<S, 1, 16, 8>(simd, first, n),
                (false, false) => self.lanes::<S, 1, 8, 4>(simd, first, n),
            }
            first += n;
        }
    }
}

impl ScoreModel for Distance {
    fn n_particles(&self) -> usize {
        self.n_particles
    }

    fn evaluate(&self, frames: Frames, mut outputs: Outputs, scratch: &mut Scratch) -> Result<()> {
        let Outputs { scores, energies, .. } = &mut outputs;
        let positions = frames.positions;
        self.arch.dispatch(Batch {
            model: self,
            positions,
            scores,
            energies: energies.as_deref_mut(),
            scratch,
        });
        outputs.fill_open_virials(positions, self.n_particles);
        Ok(())
    }

    fn kernel(&self) -> std::result::Result<KernelModel, &'static str> {
        let mut arrays = DistanceArrays {
            quadruplets: self.quadruplets.iter().flatten().map(|i| *i as u32).collect(),
            pairs: (0..self.n_particles as u32)
                .flat_map(|i| (i + 1..self.n_particles as u32).flat_map(move |j| [i, j]))
                .collect(),
            coordinates: self.coordinates.iter().flatten().map(|i| *i as u32).collect(),
            softening_squared: self.softening_squared,
            harmonic: self.harmonic,
            output_bias: self.output_bias,
            ..DistanceArrays::default()
        };
        arrays.mean = arrays.push(self.normalisation.iter().map(|n| n.mean));
        arrays.inverse_spread = arrays.push(self.normalisation.iter().map(|n| n.inverse_spread));
        arrays.output_weight = arrays.push(self.output_weight.iter().copied());
        for layer in &self.layers {
            let (weight, bias) = layer.unpadded();
            let column = |o: usize| weight.iter().skip(o).step_by(layer.n_out).copied();
            let layer = LayerArrays {
                n_in: layer.n_in as u32,
                n_out: layer.n_out as u32,
                weight: arrays.push(weight.iter().copied()),
                bias: arrays.push(bias.iter().copied()),
                transposed: arrays.push((0..layer.n_out).flat_map(column)),
            };
            arrays.layers.push(layer);
        }
        if u32::try_from(arrays.numbers.len()).is_err() {
            return Err("networks of 2³² and more weights"); // the offsets have wrapped around
        }
        Ok(KernelModel {
            kernel: Kernel::Distance(arrays),
            members: (0..self.n_particles as u32).collect(),
            n_particles: self.n_particles,
        })
    }

    fn preferred_batch(&self) -> usize {
        32
    }

    fn at_noise_level(&self, noise_level: f64) -> Option<Arc<dyn ScoreModel>> {
        Some(Arc::new(self.at(noise_level)))
    }

    fn is_translation_invariant(&self) -> bool {
        self.coordinates.is_empty()
    }
}

/// Embedding of t = ln(σ/σ_min)/ln(σ_max/σ_min): 2t − 1, then sines and cosines of kπt/2, k = 1..=n.
pub(super) fn embed(t: f64, n: usize) -> Vec<f64> {
    let angle = |k: usize| k as f64 * std::f64::consts::FRAC_PI_2 * t;
    std::iter::once(2.0 * t - 1.0)
        .chain((1..=n).map(|k| angle(k).sin()))
        .chain((1..=n).map(|k| angle(k).cos()))
        .collect()
}
