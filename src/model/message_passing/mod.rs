//! The `message-passing` network: particles exchange messages with their neighbours; the energy is a sum over particles.
//!
//! A network of the PaiNN kind (Schütt et al., arXiv:2102.03150), for any number of particles of known species, in open space
//! or in a periodic cell. Particle i has scalar features s_i `[F]` and vector features v_i `[3][F]`. With d = x_j − x_i, r = |d|,
//! n = d/r, the cutoff c and e the embedding of the noise level σ (theory §9):
//! * basis bₖ(r) = exp(−½((r − kw)/w)²), k = 0 … R−1, w = c/(R−1); envelope f(r) = 1 − 28u⁶ + 48u⁷ − 21u⁸, u = r/c;
//! * filters W = f(r) dense([b(r), e]);
//! * at first s_i = embedding of the species, v_i = 0;
//! * message: p_j = dense([s_j, e]) in parts, s_i += Σ_j p_j W_ij, v_i += Σ_j n p′_j W′_ij + v_j p″_j W″_ij (the last not in the
//!   first block);
//! * update: g = dense([s_i, √(1 + |V v_i|²), e]) in parts, s_i += g + g′ (Uv·Vv) + g* (Tv·(Uv × Vv)), v_i += g″ Uv (not in the
//!   last block). The term with g* is there in a `chiral` network only: it changes sign under reflection;
//! * E = Σ_i [silu(s_i A + a), s_i] B + b + Σ_{i<j} f(r) (d_ij²/(r² + (10σ)²))⁶, the last term keeping particles apart where
//!   there were no data.
//!
//! Once σ is fixed the embedding is folded into biases, the filters are tabulated ([`filter`]), and the messages of the first
//! block depend on the species alone. Vectors of the machine run along the features, so a frame's score has the same bits alone
//! and in a batch; sums over neighbours go in the order of their numbers, so it does not depend on when the list was built.

mod dense;
mod evaluate;
mod filter;

pub use evaluate::Others;
pub(crate) use evaluate::Workspace;

use super::distance::embed;
use super::kernel::{BlockArrays, Kernel, MessagePassingArrays, push};
use super::{Frames, KernelModel, Outputs, ScoreModel, Scratch};
use crate::cell::Cell;
use crate::error::{Result, bail};
use crate::lane::CacheLine;
use dense::{Dense, TwoLayers};
use filter::{Filter, envelope, tabulate};
use pulp::Arch;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Wider networks are a damaged file.
const MAX_WIDTH: usize = 512;
const MAX_BLOCKS: usize = 8;
const MAX_SPECIES: usize = 256;
/// Noise levels by which the repulsion is softened.
const SOFTENING: f64 = 10.0;

/// Hyper-parameters, as in the model file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hyperparameters {
    /// Element symbols, or names of beads.
    pub species: Vec<String>,
    /// c, nm.
    pub cutoff: f64,
    /// F, a multiple of 16.
    pub width: usize,
    /// Blocks of message and update.
    pub n_blocks: usize,
    /// R
    pub n_radial: usize,
    /// Hidden units of the filters.
    pub radial_width: usize,
    /// Whether mirror images may differ.
    pub chiral: bool,
    /// d_ij for every two species, nm; 0 for none.
    pub repulsion: Vec<Vec<f64>>,
    /// K: the embedding of σ has 2K + 1 entries.
    pub n_frequencies: usize,
}

/// Gives the tensor of a name and a shape.
pub type Tensors<'a> = dyn Fn(&str, &[usize]) -> Result<Vec<f32>> + 'a;

/// What the messages of a block are made from.
enum Message {
    /// Of each species, `[n_species][2F]`.
    First(Vec<CacheLine>),
    /// Dense layers on s.
    Later(Box<TwoLayers>),
}

struct Block {
    filter: Filter,
    message: Message,
    /// U, V and, in a chiral network, T side by side.
    mix: Dense,
    mix_back: Dense,
    update: TwoLayers,
}

/// The network at one noise level, for any particles.
struct Network {
    species: Vec<String>,
    cutoff: f64,
    width: usize,
    chiral: bool,
    /// `[n_species][F]`
    embedding: Vec<CacheLine>,
    blocks: Vec<Block>,
    readout: Dense,
    readout_back: Dense,
    /// Of the hidden units, then of s.
    output_weight: Vec<CacheLine>,
    output_bias: f32,
    n_knots: usize,
    /// d², `[n_species][n_species]`, nm²
    repulsion: Vec<f32>,
    softening_squared: f32,
    arch: Arch,
}

/// The network and the particles it acts on.
pub struct MessagePassing {
    network: Arc<Network>,
    /// Species of each particle.
    species: Vec<u16>,
    periodic: bool,
}

impl MessagePassing {
    /// Network of `particles` (their species by name) at `noise_level` (nm), trained on noise levels `[min, max]` (nm), in a
    /// periodic cell or in open space.
    pub fn new(
        parameters: &Hyperparameters,
        particles: &[&str],
        periodic: bool,
        tensor: &Tensors,
        noise_range: [f64; 2],
        noise_level: f64,
    ) -> Result<Self> {
        let network = Arc::new(Network::new(parameters, tensor, noise_range, noise_level)?);
        MessagePassing { network, species: Vec::new(), periodic }.with_particles(particles)
    }

    /// The same network for other particles, given by their species.
    pub fn with_particles(&self, particles: &[&str]) -> Result<Self> {
        let known = &self.network.species;
        let find = |(i, name): (usize, &&str)| match known.iter().position(|s| s.eq_ignore_ascii_case(name)) {
            Some(species) => Ok(species as u16),
            None => bail!(
                Mismatch,
                "particle {i} is '{name}', a species the model was not trained on; it knows {}",
                known.join(", ")
            ),
        };
        let species = particles.iter().enumerate().map(find).collect::<Result<Vec<u16>>>()?;
        Ok(MessagePassing { network: self.network.clone(), species, periodic: self.periodic })
    }

    /// Knots on which the filters are tabulated.
    pub fn n_knots(&self) -> usize {
        self.network.n_knots
    }

    /// nm; particles further apart do not feel each other in one block.
    pub fn cutoff(&self) -> f64 {
        self.network.cutoff
    }

    /// Numbers of a particle that [`Others::exchange`] moves at most.
    pub fn exchange_width(&self) -> usize {
        evaluate::exchange_width(&self.network)
    }

    /// Energy (kT₀), scores (1/nm) and virial (kT₀) of one frame in double precision: the same formulas, for tests.
    pub fn evaluate_f64(&self, frame: Frames, scores: &mut [f64], virial: &mut [f64; 9]) -> Result<f64> {
        let mut workspace = Workspace::<f64>::default();
        workspace.frame(&self.network, &self.species, 0, frame, None, scores, true)?;
        *virial = sum(&workspace.virials);
        Ok(workspace.energies.iter().sum())
    }

    /// One process's part of a system that several share: `types` gives each particle as the index of one of this model's, and
    /// the first `n_owned` are the process's own, the others those within the cutoff of one of them, once each, at `positions`
    /// `[n][3]` (nm) as their owners have them. Scores `[n_owned][3]` (1/nm) and, where asked for, `energies` `[n_owned]` and
    /// virials `[n_owned]` (kT₀) have the bits of an evaluation of the whole in which particles stand in the order of their `ids`.
    pub fn evaluate_domain(
        &self,
        frame: Frames,
        types: &[u32],
        others: Others,
        scores: &mut [f64],
        energies: Option<&mut [f64]>,
        virials: Option<&mut [[f64; 9]]>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let Scratch { message_passing: workspace, species, .. } = scratch;
        species.clear();
        species.extend(types.iter().map(|t| self.species[*t as usize]));
        workspace.frame(&self.network, species, 0, frame, Some(others), scores, virials.is_some())?;
        if let Some(energies) = energies {
            energies.iter_mut().zip(&workspace.energies).for_each(|(to, e)| *to = f64::from(*e));
        }
        if let Some(virials) = virials {
            virials.copy_from_slice(&workspace.virials);
        }
        Ok(())
    }
}

/// Of the virials of particles, in their order.
fn sum(virials: &[[f64; 9]]) -> [f64; 9] {
    virials.iter().fold([0.0; 9], |sum, w| std::array::from_fn(|k| sum[k] + w[k]))
}

impl Network {
    fn new(
        parameters: &Hyperparameters,
        tensor: &Tensors,
        [min, max]: [f64; 2],
        noise_level: f64,
    ) -> Result<Self> {
        parameters.check()?;
        if !(min >= 1e-9 && max > min && max <= 1e3) {
            bail!(
                InvalidModel,
                "noise levels of the model are {min} to {max} nm; expected 0 < min < max, both reasonable"
            );
        }
        if !(min * 0.999..=max * 1.001).contains(&noise_level) {
            bail!(
                InvalidArgument,
                "noise level {noise_level} nm is outside the range {min} to {max} nm this model was trained on"
            );
        }
        let Hyperparameters { cutoff, width: f, n_blocks, n_radial, radial_width, chiral, .. } = *parameters;
        let n_species = parameters.species.len();
        let e = embed((noise_level / min).ln() / (max / min).ln(), parameters.n_frequencies);
        // A first layer on `n_in` inputs and the embedding, which is constant and goes into the bias.
        let first = |name: &str, n_in: usize, n_out: usize| -> Result<(Vec<f32>, Vec<f32>)> {
            let weight = tensor(&format!("{name}.0.weight"), &[n_in + e.len(), n_out])?;
            let bias = tensor(&format!("{name}.0.bias"), &[n_out])?;
            let folded = |o: usize| {
                e.iter().enumerate().map(|(j, e)| e * weight[(n_in + j) * n_out + o] as f64).sum::<f64>()
            };
            let bias = (0..n_out).map(|o| (bias[o] as f64 + folded(o)) as f32).collect();
            Ok((weight[..n_in * n_out].to_vec(), bias))
        };
        let layer = |n_in, n_out, weight: &[f32], bias: &[f32]| {
            Dense::new(n_in, n_out, |i, o| weight[i * n_out + o], |o| bias.get(o).copied().unwrap_or(0.0))
        };
        let second = |name: &str, n_in: usize, n_out: usize| -> Result<(Vec<f32>, Vec<f32>)> {
            let weight = tensor(&format!("{name}.1.weight"), &[n_in, n_out])?;
            Ok((weight, tensor(&format!("{name}.1.bias"), &[n_out])?))
        };
        let two_layers = |name: &str, n_in: usize, hidden: usize, n_out: usize| -> Result<TwoLayers> {
            let (a, b) = (first(name, n_in, hidden)?, second(name, hidden, n_out)?);
            Ok(TwoLayers::new(layer(n_in, hidden, &a.0, &a.1), layer(hidden, n_out, &b.0, &b.1)))
        };

        let embedding = tensor("embedding", &[n_species, f])?;
        let mut exact: Vec<(usize, Box<filter::Exact>)> = Vec::new();
        let mut parts = Vec::new();
        for b in 0..n_blocks {
            let n_message = if b == 0 { 2 } else { 3 };
            let name = format!("blocks.{b}.filter");
            let layers = (first(&name, n_radial, radial_width)?, second(&name, radial_width, n_message * f)?);
            exact.push((
                n_message * f,
                Box::new(move |r, out| exact_filter(cutoff, n_radial, &layers.0, &layers.1, r, out)),
            ));
            let name = format!("blocks.{b}.message");
            let message = if b == 0 {
                let (a, b) = (first(&name, f, f)?, second(&name, f, 2 * f)?);
                let mut rows = CacheLine::buffer(n_species * 2 * f);
                let numbers: &mut [f32] = bytemuck::cast_slice_mut(&mut rows);
                for (x, y) in embedding.chunks_exact(f).zip(numbers.chunks_exact_mut(2 * f)) {
                    let x: Vec<f64> = x.iter().map(|x| *x as f64).collect();
                    let [hidden, _] = exact_layer(&x, &vec![0.0; f], &a);
                    let silu: Vec<f64> = hidden.iter().map(|h| h / (1.0 + (-h).exp())).collect();
                    let [out, _] = exact_layer(&silu, &vec![0.0; f], &b);
                    y.iter_mut().zip(out).for_each(|(y, out)| *y = out as f32);
                }
                Message::First(rows)
            } else {
                Message::Later(Box::new(two_layers(&name, f, f, 3 * f)?))
            };
            let n_mixed = if chiral { 3 } else { 2 };
            let mix = layer(f, n_mixed * f, &tensor(&format!("blocks.{b}.mix"), &[f, n_mixed * f])?, &[]);
            let n_gates = n_mixed + usize::from(b + 1 < n_blocks);
            let update = two_layers(&format!("blocks.{b}.update"), 2 * f, f, n_gates * f)?;
            parts.push((message, mix, update));
        }
        let (filters, n_knots) = tabulate(cutoff, &exact)?;
        let blocks = parts
            .into_iter()
            .zip(filters)
            .map(|((message, mix, update), filter)| {
                let mix_back = mix.transposed();
                Block { filter, message, mix, mix_back, update }
            })
            .collect();
        let (weight, bias) = first("readout", f, f)?;
        let readout = layer(f, f, &weight, &bias);
        let lines = |numbers: &[f32]| {
            let mut lines = CacheLine::buffer(numbers.len());
            bytemuck::cast_slice_mut(&mut lines)[..numbers.len()].copy_from_slice(numbers);
            lines
        };
        Ok(Network {
            species: parameters.species.clone(),
            cutoff,
            width: f,
            chiral,
            embedding: lines(&embedding),
            blocks,
            readout_back: readout.transposed(),
            readout,
            output_weight: lines(&tensor("readout.1.weight", &[2 * f, 1])?),
            output_bias: tensor("readout.1.bias", &[1])?[0],
            n_knots,
            repulsion: parameters.repulsion.iter().flatten().map(|d| (d * d) as f32).collect(),
            softening_squared: (SOFTENING * noise_level).powi(2) as f32,
            arch: Arch::new(),
        })
    }
}

impl Network {
    /// As the kernel reads it, for particles of these species.
    fn arrays(&self, species: &[u16]) -> MessagePassingArrays {
        let floats = |lines: &[CacheLine]| bytemuck::cast_slice::<_, f32>(lines).to_vec();
        let mut numbers = Vec::new();
        let block = |block: &Block| BlockArrays {
            filter: push(&mut numbers, block.filter.table().iter().copied()),
            rows: match &block.message {
                Message::First(rows) => push(&mut numbers, floats(rows)),
                Message::Later(_) => 0,
            },
            message: match &block.message {
                Message::First(_) => Default::default(),
                Message::Later(layers) => layers.arrays(&mut numbers),
            },
            mix: block.mix.arrays(&mut numbers),
            update: block.update.arrays(&mut numbers),
        };
        let blocks = self.blocks.iter().map(block).collect();
        MessagePassingArrays {
            blocks,
            species: species.iter().map(|s| u32::from(*s)).collect(),
            width: self.width as u32,
            n_mixed: if self.chiral { 3 } else { 2 },
            n_species: self.species.len() as u32,
            n_knots: self.n_knots as u32,
            embedding: push(&mut numbers, floats(&self.embedding)),
            repulsion: push(&mut numbers, self.repulsion.iter().copied()),
            output_weight: push(&mut numbers, floats(&self.output_weight)),
            readout: self.readout.arrays(&mut numbers),
            output_bias: self.output_bias,
            softening_squared: self.softening_squared,
            cutoff: self.cutoff as f32,
            density: ((self.n_knots - 1) as f64 / self.cutoff) as f32,
            numbers,
        }
    }
}

/// y = x W + b and its derivative by what x has the derivative `dx` by.
fn exact_layer(x: &[f64], dx: &[f64], (weight, bias): &(Vec<f32>, Vec<f32>)) -> [Vec<f64>; 2] {
    let mut y: Vec<f64> = bias.iter().map(|b| *b as f64).collect();
    let mut dy = vec![0.0; y.len()];
    for ((x, dx), row) in x.iter().zip(dx).zip(weight.chunks_exact(bias.len())) {
        for ((y, dy), w) in y.iter_mut().zip(&mut dy).zip(row) {
            *y += x * *w as f64;
            *dy += dx * *w as f64;
        }
    }
    [y, dy]
}

/// All channels of a block's filter at the distance `r`, then their slopes.
fn exact_filter(
    cutoff: f64,
    n_radial: usize,
    first: &(Vec<f32>, Vec<f32>),
    second: &(Vec<f32>, Vec<f32>),
    r: f64,
    out: &mut [f64],
) {
    let spacing = cutoff / (n_radial - 1) as f64;
    let (basis, slopes): (Vec<f64>, Vec<f64>) = (0..n_radial)
        .map(|k| {
            let z = r / spacing - k as f64;
            let b = (-0.5 * z * z).exp();
            (b, -z * b / spacing)
        })
        .unzip();
    let [mut hidden, mut hidden_slopes] = exact_layer(&basis, &slopes, first);
    for (h, slope) in hidden.iter_mut().zip(&mut hidden_slopes) {
        let sigmoid = 1.0 / (1.0 + (-*h).exp());
        *slope *= sigmoid * (1.0 + *h * (1.0 - sigmoid));
        *h *= sigmoid;
    }
    let [values, slopes] = exact_layer(&hidden, &hidden_slopes, second);
    let [f, f_slope] = envelope((r / cutoff).min(1.0));
    let n = values.len();
    for (c, (w, dw)) in values.into_iter().zip(slopes).enumerate() {
        out[c] = f * w;
        out[n + c] = f * dw + f_slope / cutoff * w;
    }
}

impl Hyperparameters {
    fn check(&self) -> Result<()> {
        let n = self.species.len();
        if !(1..=MAX_SPECIES).contains(&n) {
            bail!(InvalidModel, "the model lists {n} species; expected 1 to {MAX_SPECIES}");
        }
        if let Some(i) =
            (0..n).find(|&i| self.species[..i].iter().any(|s| s.eq_ignore_ascii_case(&self.species[i])))
        {
            bail!(InvalidModel, "the model lists species '{}' twice", self.species[i]);
        }
        if !((1e-3..1e3).contains(&self.cutoff)) {
            bail!(
                InvalidModel,
                "hyper-parameter cutoff of the model is {}; expected a length in nm",
                self.cutoff
            );
        }
        if self.width == 0 || !self.width.is_multiple_of(CacheLine::LEN) || self.width > MAX_WIDTH {
            bail!(
                InvalidModel,
                "hyper-parameter width of the model is {}; expected a multiple of {} up to {MAX_WIDTH}",
                self.width,
                CacheLine::LEN
            );
        }
        for (name, value, least, most) in [
            ("n_blocks", self.n_blocks, 1, MAX_BLOCKS),
            ("n_radial", self.n_radial, 2, MAX_WIDTH),
            ("radial_width", self.radial_width, 1, MAX_WIDTH),
            ("n_frequencies", self.n_frequencies, 0, MAX_WIDTH),
        ] {
            if !(least..=most).contains(&value) {
                bail!(
                    InvalidModel,
                    "hyper-parameter {name} of the model is {value}; expected {least} to {most}"
                );
            }
        }
        let symmetric = self.repulsion.len() == n
            && self.repulsion.iter().all(|row| row.len() == n)
            && (0..n).all(|i| (0..i).all(|j| self.repulsion[i][j] == self.repulsion[j][i]));
        let in_range = |d: &f64| (0.0..=self.cutoff).contains(d);
        if !symmetric || !self.repulsion.iter().flatten().all(in_range) {
            bail!(
                InvalidModel,
                "hyper-parameter repulsion of the model is {:?}; expected a symmetric table of lengths (nm) below the cutoff, \
                 one row for each of {n} species",
                self.repulsion
            );
        }
        Ok(())
    }
}

impl ScoreModel for MessagePassing {
    fn n_particles(&self) -> usize {
        self.species.len()
    }

    fn evaluate(&self, frames: Frames, outputs: Outputs, scratch: &mut Scratch) -> Result<()> {
        let n = 3 * self.species.len();
        let Outputs { scores, mut energies, mut virials } = outputs;
        let both = frames.positions.chunks_exact(n).zip(scores.chunks_exact_mut(n));
        for (f, (positions, scores)) in both.enumerate() {
            let frame = Frames { positions, cell: frames.cell };
            let workspace = &mut scratch.message_passing;
            workspace.frame(&self.network, &self.species, f, frame, None, scores, virials.is_some())?;
            if let Some(energies) = &mut energies {
                energies[f] = workspace.energies[..n / 3].iter().map(|e| f64::from(*e)).sum();
            }
            if let Some(virials) = &mut virials {
                virials.as_chunks_mut().0[f] = sum(&workspace.virials);
            }
        }
        Ok(())
    }

    fn check_cell(&self, cell: Option<&Cell>) -> Result<()> {
        let range = self.network.cutoff;
        match cell {
            None if self.periodic => bail!(
                Mismatch,
                "the model was trained in a periodic cell and none was given; set the cell of the system"
            ),
            Some(cell) if !self.periodic => bail!(
                Mismatch,
                "the model was trained in open space, and a periodic cell of {:?} nm was given; run it without a cell",
                cell.vectors()
            ),
            // Smaller cells would be computed rightly, but a fluid that feels itself is not the one of the snapshots.
            Some(cell) if cell.widths().iter().any(|w| *w < 2.0 * range) => bail!(
                Mismatch,
                "the cell is {:?} nm wide; the model's cutoff of {range} nm needs twice that, {} nm, in every direction",
                cell.widths(),
                2.0 * range
            ),
            _ => Ok(()),
        }
    }

    fn kernel(&self) -> std::result::Result<KernelModel, &'static str> {
        Ok(KernelModel {
            kernel: Kernel::MessagePassing(self.network.arrays(&self.species)),
            members: (0..self.species.len() as u32).collect(),
            n_particles: self.species.len(),
        })
    }

    fn preferred_batch(&self) -> usize {
        (256 / self.species.len()).clamp(1, 32)
    }

    fn threads_per_frame(&self) -> usize {
        self.species.len().div_ceil(evaluate::PER_TASK)
    }
}
