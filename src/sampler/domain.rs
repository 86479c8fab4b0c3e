//! One process's part of a system that several processes share, as in LAMMPS: particles of its own, and those around them that
//! others own. The caller keeps the positions and moves what the processes exchange.

use super::options::{Dynamics, Options};
use super::sequential::{Statistics, what_failed};
use super::time_parallel::{Sampler, Sweeps};
use crate::adapter::ParticleStep;
use crate::backend::cpu::Cpu;
use crate::backend::threads::{self, Threads};
use crate::backend::{Backend, Device, Failure, Job, MatmulPrecision, Placement, Replicas};
use crate::cell::Cell;
use crate::error::{Error, Result, bail};
use crate::model::{Frames, KernelModel, MessagePassing, Model, Others, Outputs, ScoreModel, Scratch};
use crate::schedule::BOLTZMANN;
use std::sync::Arc;

/// Particles of a model whose energy is a sum over particles and reaches only so far (kind `message-passing`).
///
/// Results are those of the whole system for the process's own particles, to the last bit: sums over neighbours go in the order of
/// their ids, and what depends on the neighbours of neighbours is computed by their owners and exchanged. A step depends on the
/// particle's id alone, not on who owns it.
pub struct Domain {
    /// With one particle of each type.
    model: Arc<Model>,
    network: Arc<MessagePassing>,
    motion: Option<(Options, Dynamics)>,
    threads: Option<Threads>,
    n_threads: usize,
    cell: Option<Cell>,
    types: Vec<u32>,
    /// Of all particles, the own ones first.
    ids: Vec<u32>,
    n_owned: usize,
    scratch: Scratch,
    /// Of the particles of its own.
    particles: Vec<ParticleStep>,
    bias: Vec<f64>,
    backend: Option<Cpu>,
    step: u64,
    score_evaluations: u64,
    largest_score: f64,
}

/// Scores that are known already, in place of a model.
struct Known<'a>(&'a [f64]);

impl ScoreModel for Known<'_> {
    fn n_particles(&self) -> usize {
        self.0.len() / 3
    }

    fn evaluate(&self, _: Frames, outputs: Outputs, _: &mut Scratch) -> Result<()> {
        outputs.scores.copy_from_slice(self.0);
        Ok(())
    }

    fn kernel(&self) -> std::result::Result<KernelModel, &'static str> {
        Err("domains")
    }
}

impl Domain {
    /// For particles of `types`, species by name; `options`, with masses and mobilities by type, say how they move. Without
    /// options the domain only evaluates.
    pub fn new(model: &Model, types: &[&str], options: Option<Options>) -> Result<Self> {
        let model = Arc::new(model.for_species(types)?);
        let Some(network) = model.transferable().cloned() else {
            bail!(Unsupported, "{} cannot be shared out over processes", model.name());
        };
        let mut domain = Domain {
            model,
            network,
            motion: None,
            threads: None,
            n_threads: 1,
            cell: None,
            types: Vec::new(),
            ids: Vec::new(),
            n_owned: 0,
            scratch: Scratch::default(),
            particles: Vec::new(),
            bias: Vec::new(),
            backend: None,
            step: 0,
            score_evaluations: 0,
            largest_score: 0.0,
        };
        if let Some(options) = options {
            domain.reconfigure(options)?;
        }
        Ok(domain)
    }

    /// New temperature, step, seed, …; the particles stay.
    pub fn reconfigure(&mut self, options: Options) -> Result<()> {
        let dynamics = Dynamics::new(&self.model, &options)?;
        if !options.adapter.takes_bias() {
            bail!(
                Unsupported,
                "adapter {:?} needs more than the scores at the beginning of a step, which is all that a domain has; use \
                 LeimkuhlerMatthews, EulerMaruyama or Langevin",
                options.adapter
            );
        }
        if options.sampler == Sampler::TimeParallel {
            bail!(Unsupported, "a domain takes one step after the other; use the sequential sampler");
        }
        if options.n_replicas != 1 || options.particle_ids.is_some() {
            bail!(InvalidArgument, "a domain has one replica, and its particles come with their ids");
        }
        if Device::parse(&options.device)? != Device::Cpu {
            bail!(Unsupported, "domains run on the CPU only, and device '{}' was given", options.device);
        }
        options.matmul_precision.check(Device::Cpu, &options.device)?;
        self.n_threads = threads::count(options.n_threads)?;
        self.threads = if self.n_threads > 1 { Some(Threads::start(self.n_threads)?) } else { None };
        self.motion = Some((options, dynamics));
        self.place();
        Ok(())
    }

    /// How far around its own particles a domain needs to know others, nm.
    pub fn reach(&self) -> f64 {
        self.network.cutoff()
    }

    /// The cell of the whole system, or open space, from now on.
    pub fn set_cell(&mut self, cell: Option<Cell>) -> Result<()> {
        self.network.check_cell(cell.as_ref())?;
        self.cell = cell;
        Ok(())
    }

    /// The particles from now on: `types` as indices, and `ids`, their numbers in the whole system, which key their noise and
    /// order sums. The first `n_owned` are the domain's own.
    pub fn set_particles(&mut self, types: &[u32], ids: &[u32], n_owned: usize) -> Result<()> {
        let n_types = self.model.n_particles();
        if let Some(i) = types.iter().position(|t| *t as usize >= n_types) {
            bail!(InvalidArgument, "particle {i} is of type {}; expected 0 to {}", types[i], n_types - 1);
        }
        if ids.len() != types.len() {
            bail!(
                InvalidArgument,
                "{} types and {} ids were given; expected one of each",
                types.len(),
                ids.len()
            );
        }
        if n_owned > types.len() {
            bail!(InvalidArgument, "{n_owned} particles are the domain's own, of {} in all", types.len());
        }
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!(
                InvalidArgument,
                "particle id {} is there twice; list each particle once, its periodic images are found",
                pair[0]
            );
        }
        self.types.clear();
        self.types.extend_from_slice(types);
        self.ids.clear();
        self.ids.extend_from_slice(ids);
        self.n_owned = n_owned;
        self.place();
        Ok(())
    }

    /// What moves the particles must be made anew.
    fn place(&mut self) {
        self.largest_score = self.largest_score.max(self.backend.as_ref().map_or(0.0, |b| b.largest_score()));
        self.backend = None;
        self.particles.clear();
        if let Some((_, dynamics)) = &self.motion {
            let own = &self.types[..self.n_owned];
            self.particles.extend(own.iter().map(|t| dynamics.particles[*t as usize]));
        }
    }

    /// Scores `[n_owned][3]` (1/nm) of the own particles and, where asked for, their energies and virials (kT₀), with everybody at
    /// `positions` `[n][3]` (nm), as their owners have them. Each process evaluates at the same time, and each time that it calls
    /// `exchange` with rows of so many numbers, of which the own particles' are filled, it wants those of the others from their
    /// owners.
    pub fn evaluate(
        &mut self,
        positions: &[f64],
        exchange: &mut dyn FnMut(&mut [f32], usize) -> Result<()>,
        scores: &mut [f64],
        energies: Option<&mut [f64]>,
        virials: Option<&mut [[f64; 9]]>,
    ) -> Result<()> {
        let (n, n_owned) = (self.types.len(), self.n_owned);
        let lengths = [
            ("positions", positions.len(), 3 * n),
            ("scores", scores.len(), 3 * n_owned),
            ("energies", energies.as_ref().map_or(n_owned, |e| e.len()), n_owned),
            ("virials", virials.as_ref().map_or(n_owned, |v| v.len()), n_owned),
        ];
        if let Some((name, found, expected)) = lengths.iter().find(|(_, found, expected)| found != expected) {
            bail!(InvalidArgument, "{name} holds {found} numbers; expected {expected}");
        }
        self.network.check_cell(self.cell.as_ref())?;
        let Domain { network, cell, types, ids, scratch, threads, n_threads, .. } = self;
        let others = Others {
            n_owned,
            ids,
            exchange,
            n_threads: *n_threads,
            run: &mut |work| match threads {
                Some(threads) => threads.run(work),
                None => {
                    work();
                    Ok(())
                }
            },
        };
        let frame = Frames { positions, cell: cell.as_ref() };
        network.evaluate_domain(frame, types, others, scores, energies, virials, scratch)?;
        self.score_evaluations += 1;
        Ok(())
    }

    /// Step number `step` of the own particles: `positions` `[n_owned][3]` in nm, in place, by their `scores` (1/nm) and the
    /// `forces` that act beside the model, kJ/(mol nm). `velocities`, nm/ps, are theirs with adapters that have some, and empty
    /// otherwise. On an error nothing has moved.
    pub fn step(
        &mut self,
        step: u64,
        scores: &[f64],
        forces: Option<&[f64]>,
        positions: &mut [f64],
        velocities: &mut [f64],
    ) -> Result<()> {
        let Some((options, dynamics)) = &self.motion else {
            bail!(
                InvalidArgument,
                "this domain was made without options and only evaluates; create it with some"
            );
        };
        let n = 3 * self.n_owned;
        for (name, found, expected) in [
            ("positions", positions.len(), n),
            ("scores", scores.len(), n),
            ("forces", forces.map_or(n, |f| f.len()), n),
            ("velocities", velocities.len(), if options.adapter.has_velocities() { n } else { 0 }),
        ] {
            if found != expected {
                bail!(InvalidArgument, "{name} holds {found} numbers; expected {expected}");
            }
        }
        let Some(next) = step.checked_add(1) else {
            bail!(InvalidArgument, "step number {step} has none after it; expected less than 2⁶⁴ − 1");
        };
        if let Some(i) = forces.and_then(|forces| forces.iter().position(|f| !f.is_finite())) {
            bail!(
                InvalidArgument,
                "the bias force on particle id {} is {} at step {step}; look at the forces that act beside the model",
                self.ids[i / 3],
                forces.expect("found there")[i]
            );
        }
        self.step = next;
        if n == 0 {
            return Ok(());
        }
        if let Some(forces) = forces {
            let beta = 1.0 / (BOLTZMANN * self.model.metadata().training_temperature);
            self.bias.clear();
            self.bias.extend(forces.iter().map(|f| f * beta));
        }
        let known = Known(scores);
        let placement = || Placement {
            device: Device::Cpu,
            n_threads: 1,
            replicas: 0..1,
            particle_ids: self.ids[..self.n_owned].to_vec(),
            adapter: options.adapter,
            matmul_precision: MatmulPrecision::Highest,
            attachment: None,
        };
        if self.backend.is_none() {
            self.backend = Some(Cpu::new(&known, &placement(), self.largest_score)?);
        }
        let job = Job {
            model: &known,
            cell: None,
            adapter: options.adapter,
            particles: &self.particles,
            factors: &|step| dynamics.factors(step),
            inertia: dynamics.inertia,
            burn_in: None,
            seed: options.seed,
            first_step: step,
            n_steps: 1,
            bias: forces.map(|_| &self.bias[..]),
            continues: false,
        };
        let backend = self.backend.as_mut().expect("just made");
        let replicas = Replicas { positions, velocities, tunings: &mut [] };
        backend.advance(&job, replicas).map(drop).map_err(|failure| match failure {
            Failure::Other(error) => error,
            Failure::Score { particle, score, .. } => Error::NotFinite(format!(
                "{} at step {step} (particle id {}). Nobody was moved. Use a stiffer spring (a smaller time step), or start from a \
                 frame like the training data.",
                what_failed(score),
                self.ids[particle]
            )),
        })
    }

    /// What was done so far, by this process.
    pub fn statistics(&self) -> Result<Statistics> {
        let Some((_, dynamics)) = &self.motion else {
            bail!(InvalidArgument, "this domain was made without options and takes no steps");
        };
        let backend = self.backend.as_ref().map_or(0.0, |b| b.largest_score());
        Ok(Statistics {
            steps: self.step,
            score_evaluations: self.score_evaluations,
            largest_score: self.largest_score.max(backend),
            acceptance: None,
            effective_step: dynamics.effective_step * dynamics.scale(self.step),
            time_step: dynamics.time_step.map(|dt| dt * dynamics.scale(self.step)),
            temperature: dynamics.temperature(self.step),
            diffusion_coefficient: dynamics.diffusion_coefficient,
            stability_limit: dynamics.stability_limit(&self.model),
            step_factor: None,
            kinetic_energy: None,
            kinetic_temperature: None,
            sweeps: Sweeps::default(),
        })
    }

    /// Particles of its own.
    pub fn n_owned(&self) -> usize {
        self.n_owned
    }

    /// Particles in all.
    pub fn n_particles(&self) -> usize {
        self.types.len()
    }

    /// Numbers of a particle that an exchange moves at most.
    pub fn exchange_width(&self) -> usize {
        self.network.exchange_width()
    }

    /// Seed of the noise; 0 without options.
    pub fn seed(&self) -> u64 {
        self.motion.as_ref().map_or(0, |(options, _)| options.seed)
    }
}
