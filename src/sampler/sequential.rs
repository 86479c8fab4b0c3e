//! One frame after the other, many replicas at once.

use super::checkpoint;
use super::options::{Dynamics, Options};
use crate::backend::cpu::{self, Chunk, Failure, Job};
use crate::error::{Error, Result, bail};
use crate::model::{Model, Scratch};
use crate::schedule::BOLTZMANN;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::Arc;

/// Steps between copies of the last good frame.
const STEPS_PER_COPY: u64 = 200;

/// Replicas of one system, moved by a learned score.
pub struct Simulation {
    model: Arc<Model>,
    options: Options,
    dynamics: Dynamics,
    /// `[n_replicas][n_particles][3]`, nm
    positions: Vec<f64>,
    step: u64,
    score_evaluations: u64,
    chunks: Vec<Chunk>,
    threads: Option<ThreadPool>,
    /// A frame that a score has been computed for, and the one after it that awaits its score.
    last_good: [(u64, Vec<f64>); 2],
    bias: Vec<f64>,
}

/// What a simulation has done so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Statistics {
    /// Steps taken.
    pub steps: u64,
    /// Frames whose score was computed.
    pub score_evaluations: u64,
    /// Largest |component| of any score, 1/nm.
    pub largest_score: f64,
    /// τ, nm², of the most mobile particle.
    pub effective_step: f64,
    /// Δt, ps, where a mobility was given.
    pub time_step: Option<f64>,
    /// K.
    pub temperature: f64,
    /// D, nm²/ps, of the most mobile particle, where a mobility was given.
    pub diffusion_coefficient: Option<f64>,
    /// Largest stable τ, nm², where the model states its largest curvature.
    pub stability_limit: Option<f64>,
}

impl Simulation {
    /// Replica r starts from the model's start frame r mod n_frames, or from zeros if it has none.
    pub fn new(model: Arc<Model>, options: Options) -> Result<Self> {
        let dynamics = Dynamics::new(&model, &options)?;
        let n = model.n_particles();
        if options.n_replicas == 0 || options.n_replicas > u32::MAX as usize {
            bail!(InvalidArgument, "n_replicas is {}; expected 1 to {}", options.n_replicas, u32::MAX);
        }
        let Some(len) = options.n_replicas.checked_mul(3 * n).filter(|l| *l <= isize::MAX as usize / 64)
        else {
            bail!(InvalidArgument, "{} replicas of {n} particles do not fit into memory", options.n_replicas);
        };
        if options.first_replica.checked_add(options.n_replicas as u32).is_none() {
            bail!(InvalidArgument, "first_replica {} + n_replicas exceeds 2³²", options.first_replica);
        }
        let mut positions = vec![0.0; len];
        let start = model.start_positions();
        if !start.is_empty() {
            for (x, from) in positions.chunks_exact_mut(3 * n).zip(start.chunks_exact(3 * n).cycle()) {
                x.copy_from_slice(from);
            }
        }
        let mut simulation = Simulation {
            last_good: [(0, positions.clone()), (0, positions.clone())],
            model,
            dynamics,
            positions,
            step: 0,
            score_evaluations: 0,
            chunks: Vec::new(),
            threads: None,
            bias: Vec::new(),
            options,
        };
        simulation.build_chunks()?;
        Ok(simulation)
    }

    fn build_chunks(&mut self) -> Result<()> {
        let options = &self.options;
        let n = self.model.n_particles();
        let ids: Vec<u32> = match &options.particle_ids {
            Some(ids) if ids.len() != n => {
                bail!(InvalidArgument, "{} particle ids were given for {n} particles", ids.len())
            }
            Some(ids) => ids.clone(),
            None => (0..n as u32).collect(),
        };
        let n_threads = match options.n_threads {
            0 => rayon::current_num_threads(),
            n => n,
        };
        if options.n_threads == 0 {
            self.threads = None;
        } else if self.threads.as_ref().is_none_or(|t| t.current_num_threads() != n_threads) {
            let pool = ThreadPoolBuilder::new()
                .num_threads(n_threads)
                .build()
                .map_err(|e| Error::InvalidArgument(format!("{n_threads} threads cannot be started: {e}")))?;
            self.threads = Some(pool);
        }
        let size =
            cpu::replicas_per_chunk(self.model.score().preferred_batch(), options.n_replicas, n_threads)
                as u32;
        let end = options.first_replica + options.n_replicas as u32;
        self.chunks = (options.first_replica..end)
            .step_by(size as usize)
            .map(|first| Chunk::new(first..end.min(first.saturating_add(size)), &ids))
            .collect();
        Ok(())
    }

    /// New temperature, step, seed, … ; positions and step count stay, and so must the number of replicas.
    pub fn reconfigure(&mut self, options: Options) -> Result<()> {
        if options.n_replicas != self.options.n_replicas {
            bail!(
                InvalidArgument,
                "n_replicas was {} and cannot become {}; create another simulation",
                self.options.n_replicas,
                options.n_replicas
            );
        }
        let dynamics = Dynamics::new(&self.model, &options)?;
        let largest_score = self.largest_score();
        let previous = std::mem::replace(&mut self.options, options);
        if let Err(error) = self.build_chunks() {
            self.options = previous;
            return Err(error);
        }
        self.chunks[0].largest_score = largest_score;
        self.dynamics = dynamics;
        Ok(())
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The options as given.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// What the options mean for each particle.
    pub fn dynamics(&self) -> &Dynamics {
        &self.dynamics
    }

    /// `[n_replicas][n_particles][3]`, nm.
    pub fn positions(&self) -> &[f64] {
        &self.positions
    }

    /// Set all positions, `[n_replicas][n_particles][3]`, nm.
    pub fn set_positions(&mut self, positions: &[f64]) -> Result<()> {
        self.expect_len("positions", positions.len())?;
        if let Some(i) = positions.iter().position(|x| !x.is_finite()) {
            let n = self.model.n_particles();
            bail!(
                InvalidArgument,
                "position of particle {} (replica {}) is {}; expected finite numbers in nm",
                i / 3 % n,
                i / 3 / n,
                positions[i]
            );
        }
        self.positions.copy_from_slice(positions);
        self.forget_last_good();
        Ok(())
    }

    fn forget_last_good(&mut self) {
        for (step, positions) in &mut self.last_good {
            *step = self.step;
            positions.copy_from_slice(&self.positions);
        }
    }

    fn expect_len(&self, name: &str, found: usize) -> Result<()> {
        if found != self.positions.len() {
            bail!(
                InvalidArgument,
                "{name} holds {found} numbers; expected {} replicas × {} particles × 3 = {}",
                self.options.n_replicas,
                self.model.n_particles(),
                self.positions.len()
            );
        }
        Ok(())
    }

    /// Number of the next step, which is also the noise's.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// Continue the noise from `step`.
    pub fn set_step_count(&mut self, step: u64) {
        self.step = step;
        self.forget_last_good();
    }

    /// Take `n_steps` steps. On [`Error::NotFinite`] positions and step count are those of the last good frame.
    pub fn step(&mut self, n_steps: u64) -> Result<()> {
        let Some(end) = self.step.checked_add(n_steps) else {
            bail!(InvalidArgument, "{n_steps} steps after step {} exceed 2⁶⁴", self.step);
        };
        while self.step < end {
            self.advance((end - self.step).min(STEPS_PER_COPY), false)?;
        }
        Ok(())
    }

    /// Take one step under the model *and* the given forces, `[n_replicas][n_particles][3]`, kJ/(mol nm) (theory 6).
    pub fn step_biased(&mut self, forces: &[f64]) -> Result<()> {
        self.expect_len("forces", forces.len())?;
        let beta = 1.0 / (BOLTZMANN * self.model.metadata().training_temperature);
        self.bias.clear();
        self.bias.extend(forces.iter().map(|f| f * beta));
        self.advance(1, true)
    }

    fn advance(&mut self, n_steps: u64, biased: bool) -> Result<()> {
        // What was moved last has had no score computed yet, so the frame before it is kept as well.
        if self.last_good[1].0 != self.step {
            self.last_good.swap(0, 1);
            self.last_good[1].0 = self.step;
            self.last_good[1].1.copy_from_slice(&self.positions);
        }
        let dynamics = &self.dynamics;
        let job = Job {
            model: &**self.model.score(),
            adapter: self.options.adapter,
            particles: &dynamics.particles,
            factors: &|step| dynamics.factors(step),
            seed: self.options.seed,
            first_step: self.step,
            n_steps,
            bias: biased.then_some(&self.bias),
        };
        let (chunks, positions) = (&mut self.chunks, &mut self.positions);
        let outcome = match &self.threads {
            Some(pool) if chunks.len() > 1 => pool.install(|| cpu::advance(&job, chunks, positions)),
            _ => cpu::advance(&job, chunks, positions),
        };
        match outcome {
            Ok(()) => {
                self.step += n_steps;
                self.score_evaluations += n_steps * self.options.n_replicas as u64;
                Ok(())
            }
            Err(failure) => {
                let first_step_failed = matches!(failure, Failure::Score { step, .. } if step == self.step);
                let (step, good) = &self.last_good[if first_step_failed { 0 } else { 1 }];
                self.positions.copy_from_slice(good);
                self.step = *step;
                Err(match failure {
                    Failure::Model(error) => error,
                    Failure::Score { frame, particle, step, score, positions } => {
                        self.describe(frame, particle, step, score, &positions)
                    }
                })
            }
        }
    }

    fn describe(&self, frame: usize, particle: usize, step: u64, score: f64, positions: &[f64]) -> Error {
        let metadata = self.model.metadata();
        let what = if score.is_finite() {
            format!("a particle ran away (score {score:.3e} /nm)")
        } else {
            "score is not finite".into()
        };
        let mut text = format!(
            "{what} at step {step} (replica {}, particle {particle}). The last good frame (step {}) was kept.",
            self.options.first_replica as usize + frame,
            self.step
        );
        // The bond furthest outside what the snapshots knew, if any.
        let worst = metadata
            .bonds
            .iter()
            .zip(&metadata.bond_ranges)
            .map(|([i, j], [least, greatest])| {
                let length =
                    (0..3).map(|c| (positions[3 * i + c] - positions[3 * j + c]).powi(2)).sum::<f64>().sqrt();
                (i, j, length, *least, *greatest)
            })
            .filter(|(_, _, length, least, greatest)| !(least..=greatest).contains(&length))
            .max_by(|a, b| (a.2 / a.4).total_cmp(&(b.2 / b.4)));
        if let Some((i, j, length, least, greatest)) = worst {
            text += &format!(
                " The molecule had left the region of the training data: bond {i}–{j} was {length:.3} nm, \
                 in the snapshots {least:.3} to {greatest:.3}."
            );
        }
        text += " Use a stiffer spring (a smaller time step), or start from a frame like the training data.";
        Error::NotFinite(text)
    }

    fn largest_score(&self) -> f64 {
        self.chunks.iter().map(|c| c.largest_score).fold(0.0, f64::max)
    }

    /// What was done so far.
    pub fn statistics(&self) -> Statistics {
        Statistics {
            steps: self.step,
            score_evaluations: self.score_evaluations,
            largest_score: self.largest_score(),
            effective_step: self.dynamics.effective_step,
            time_step: self.dynamics.time_step,
            temperature: self.dynamics.temperature,
            diffusion_coefficient: self.dynamics.diffusion_coefficient,
            stability_limit: self.model.metadata().largest_curvature.map(|c| 2.0 / c),
        }
    }

    /// Scores (1/nm) of the current frames and, if asked for, their energies (kT₀).
    pub fn evaluate(&self, scores: &mut [f64], energies: Option<&mut [f64]>) -> Result<()> {
        self.expect_len("scores", scores.len())?;
        if energies.as_ref().is_some_and(|e| e.len() != self.options.n_replicas) {
            bail!(
                InvalidArgument,
                "energies must hold one number for each of {} replicas",
                self.options.n_replicas
            );
        }
        self.model.score().evaluate(&self.positions, scores, energies, &mut Scratch::default())
    }

    /// Everything needed to continue bit for bit, in a simulation of the same model and options.
    pub fn checkpoint(&self) -> Vec<u8> {
        checkpoint::write(self.step, self.options.seed, &self.fingerprint(), &self.positions)
    }

    /// Bytes of a checkpoint.
    pub fn checkpoint_size(&self) -> usize {
        checkpoint::size(self.positions.len())
    }

    /// Continue from [`Simulation::checkpoint`].
    pub fn restore(&mut self, bytes: &[u8]) -> Result<()> {
        let (step, seed) = checkpoint::read(bytes, &self.fingerprint(), &mut self.positions)?;
        self.step = step;
        self.options.seed = seed;
        self.forget_last_good();
        Ok(())
    }

    /// Model and dynamics, as far as the next positions depend on them.
    fn fingerprint(&self) -> String {
        format!(
            "{} {:?} {:?} {} {:?}",
            self.model.sha256(),
            self.dynamics,
            self.options.adapter,
            self.options.first_replica,
            self.options.particle_ids
        )
    }
}
