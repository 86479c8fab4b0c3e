//! One frame after the other, many replicas at once.

use super::checkpoint;
use super::options::{Dynamics, Options};
use super::time_parallel::{Request, Sampler, Sweeps, Windows};
use crate::adapter::{Adapter, Tuning};
use crate::backend::{self, Backend, Device, Failure, Job, Placement, Replicas, threads};
use crate::cell::Cell;
use crate::error::{Error, Result, bail, brief};
use crate::model::curvature::largest_mobile_curvature;
use crate::model::{Frames, Model, Outputs, ScoreModel, Scratch};
use crate::noise::normals;
use crate::schedule::BOLTZMANN;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Steps between copies of the last good frame.
const STEPS_PER_COPY: u64 = 200;
/// Positions and their copies, scores, bias, noise and its keys of one particle of one replica.
const BYTES_PER_PARTICLE: usize = 3 * 8 * 5 + 3 * 4 * 2 + 8;
/// Velocities and their copies.
const BYTES_PER_VELOCITY: usize = 3 * 8 * 3;

/// What steps change: see [`Replicas`].
#[derive(Default)]
struct State {
    positions: Vec<f64>,
    velocities: Vec<f64>,
    tunings: Vec<Tuning>,
}

impl Clone for State {
    fn clone(&self) -> Self {
        let mut copy = State::default();
        copy.clone_from(self);
        copy
    }

    /// Without allocation where there is room.
    fn clone_from(&mut self, from: &Self) {
        self.positions.clone_from(&from.positions);
        self.velocities.clone_from(&from.velocities);
        self.tunings.clone_from(&from.tunings);
    }
}

impl State {
    fn replicas(&mut self) -> Replicas<'_> {
        Replicas {
            positions: &mut self.positions,
            velocities: &mut self.velocities,
            tunings: &mut self.tunings,
        }
    }

    /// How many numbers it is.
    fn len(&self) -> usize {
        self.positions.len() + self.velocities.len() + 3 * self.tunings.len()
    }

    fn numbers(&self) -> impl Iterator<Item = f64> {
        let tunings = self.tunings.iter().flat_map(|t| [t.log_factor, t.sum, t.count]);
        self.positions.iter().chain(&self.velocities).copied().chain(tunings)
    }

    fn numbers_mut(&mut self) -> impl Iterator<Item = &mut f64> {
        let tunings = self.tunings.iter_mut().flat_map(|t| [&mut t.log_factor, &mut t.sum, &mut t.count]);
        self.positions.iter_mut().chain(&mut self.velocities).chain(tunings)
    }
}

/// Replicas of one system, moved by a learned score.
pub struct Simulation {
    model: Arc<Model>,
    /// The model's score, or that of a blend at another λ.
    score: Arc<dyn ScoreModel>,
    /// λ, where the model is a blend.
    lambda: Option<f64>,
    options: Options,
    dynamics: Dynamics,
    state: State,
    cell: Option<Cell>,
    step: u64,
    score_evaluations: u64,
    /// Proposals made and accepted.
    proposals: [u64; 2],
    placement: Placement,
    backend: Box<dyn Backend>,
    /// With the time-parallel sampler.
    windows: Option<Windows>,
    /// What it did before it was given new options, and the largest score that it met.
    swept: (Sweeps, f64),
    /// Whether `state` is what the last step left.
    continues: bool,
    /// Steps that were enqueued and that nobody has waited for yet; `step` and `positions` are those before them.
    ahead: u64,
    /// A frame that a score has been computed for, and the one after it that awaits its score.
    last_good: [(u64, State); 2],
    bias: Vec<f64>,
    /// A network far from its data, as at the origin, means nothing; other models may start there.
    has_positions: bool,
}

/// Lengths a frame may start with, relative to the least and the greatest of the snapshots.
const BOND_MARGIN: [f64; 2] = [0.7, 1.4];

fn bond_length(x: &[f64], [i, j]: [usize; 2]) -> f64 {
    (0..3).map(|c| (x[3 * i + c] - x[3 * j + c]).powi(2)).sum::<f64>().sqrt()
}

/// Where the forces beside the model are, if there are any.
#[derive(Clone, Copy, PartialEq)]
enum Bias {
    None,
    OnHost,
    OnDevice,
}

/// Where the options put the replicas, checking every one of them.
fn placement(model: &Model, options: &Options) -> Result<Placement> {
    let n = model.n_particles();
    if options.n_replicas == 0 || options.n_replicas > u32::MAX as usize {
        bail!(InvalidArgument, "n_replicas is {}; expected 1 to {}", options.n_replicas, u32::MAX);
    }
    let Some(end) = options.first_replica.checked_add(options.n_replicas as u32) else {
        bail!(InvalidArgument, "first_replica {} + n_replicas exceeds 2³²", options.first_replica);
    };
    let ids: Vec<u32> = match &options.particle_ids {
        Some(ids) if ids.len() != n => {
            bail!(InvalidArgument, "{} particle ids were given for {n} particles", ids.len())
        }
        Some(ids) => ids.clone(),
        None => (0..n as u32).collect(),
    };
    let mut sorted = ids.clone();
    sorted.sort_unstable();
    if let Some(twice) = sorted.windows(2).find(|w| w[0] == w[1]) {
        bail!(
            InvalidArgument,
            "particle id {} was given twice; particles with one id would move alike",
            twice[0]
        );
    }
    let n_threads = threads::count(options.n_threads)?;
    let device = Device::parse(&options.device)?;
    if options.attachment.is_some() && device == Device::Cpu {
        bail!(
            InvalidArgument,
            "a CUDA context was given and device is '{}'; expected 'cuda', or 'cuda:1' and so on for the GPU of that context",
            options.device
        );
    }
    options.matmul_precision.check(device, &options.device)?;
    Ok(Placement {
        device,
        n_threads,
        replicas: options.first_replica..end,
        particle_ids: ids,
        adapter: options.adapter,
        matmul_precision: options.matmul_precision,
        attachment: options.attachment,
    })
}

/// What the time-parallel sampler needs, if that is what was asked for.
fn windows(dynamics: &Dynamics, options: &Options, placement: &Placement) -> Result<Option<Windows>> {
    Windows::open(&Request {
        sampler: options.sampler,
        window: options.frames_at_once(),
        tolerance: options.change_allowed(),
        jacobian: options.jacobian,
        adapter: options.adapter,
        particles: &dynamics.particles,
        n_replicas: options.n_replicas,
        n_threads: placement.n_threads,
        on_cpu: placement.device == Device::Cpu,
    })
}

/// What a simulation has done so far, and what its next step is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Statistics {
    /// Steps taken.
    pub steps: u64,
    /// Frames whose score was computed.
    pub score_evaluations: u64,
    /// Largest |component| of any score, 1/nm.
    pub largest_score: f64,
    /// Fraction of the proposals that were accepted, with [`Adapter::Mala`](crate::adapter::Adapter::Mala); of those after burn-in
    /// once it is over.
    pub acceptance: Option<f64>,
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
    /// What burn-in has made of τ: the geometric mean of the replicas' factors.
    pub step_factor: Option<f64>,
    /// ½ Σ m v², kJ/mol, mean over replicas; with velocities.
    pub kinetic_energy: Option<f64>,
    /// The temperature of which that is the mean, K, with three degrees of freedom for each particle that is not frozen.
    pub kinetic_temperature: Option<f64>,
    /// What the time-parallel sampler did.
    pub sweeps: Sweeps,
}

/// In words, why a step with this score could not be taken.
pub(super) fn what_failed(score: f64) -> String {
    if score.is_finite() {
        format!("a particle ran away (score {} /nm)", brief(score))
    } else {
        "score is not finite".into()
    }
}

impl Simulation {
    /// Replica number r starts from the model's start frame r mod n_frames, or from zeros if it has none.
    pub fn new(model: Arc<Model>, options: Options) -> Result<Self> {
        let dynamics = Dynamics::new(&model, &options)?;
        let n = model.n_particles();
        let per_particle =
            BYTES_PER_PARTICLE + if options.adapter.has_velocities() { BYTES_PER_VELOCITY } else { 0 };
        let memory = options.n_replicas.checked_mul(per_particle * n);
        if memory.is_none_or(|bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_err()) {
            bail!(InvalidArgument, "{} replicas of {n} particles do not fit into memory", options.n_replicas);
        }
        let len = options.n_replicas * 3 * n;
        let mut positions = vec![0.0; len];
        let start = model.start_positions();
        if !start.is_empty() {
            let first = options.first_replica as usize % (start.len() / (3 * n));
            let frames = start.chunks_exact(3 * n).cycle().skip(first);
            for (x, from) in positions.chunks_exact_mut(3 * n).zip(frames) {
                x.copy_from_slice(from);
            }
        }
        let placement = placement(&model, &options)?;
        let mut simulation = Simulation {
            windows: windows(&dynamics, &options, &placement)?,
            swept: Default::default(),
            last_good: Default::default(),
            cell: model.start_cell().cloned(),
            has_positions: !start.is_empty() || model.noise_level().is_none(),
            backend: backend::open(model.score(), &placement, 0.0)?,
            placement,
            continues: false,
            ahead: 0,
            score: model.score().clone(),
            lambda: model.as_blend().ok().map(|blend| blend.lambda()),
            model,
            dynamics,
            state: State { positions, ..State::default() },
            step: 0,
            score_evaluations: 0,
            proposals: [0; 2],
            bias: Vec::new(),
            options,
        };
        simulation.fit_state();
        simulation.forget_last_good();
        Ok(simulation)
    }

    /// Give the adapter what it moves besides positions, and take what it does not; whether anything changed.
    fn fit_state(&mut self) -> bool {
        let mut changed = false;
        let (wanted, n_replicas) = (self.options.adapter.has_velocities(), self.options.n_replicas);
        if wanted == self.state.velocities.is_empty() {
            changed = true;
            self.state.velocities.clear();
            if wanted {
                self.state.velocities.resize(self.state.positions.len(), 0.0);
                self.write_thermal_velocities();
            }
        }
        let velocities = self.state.velocities.as_chunks_mut::<3>().0.iter_mut();
        for (v, mass) in velocities.zip(self.dynamics.masses.iter().cycle()) {
            if *mass == 0.0 && *v != [0.0; 3] {
                changed = true;
                *v = [0.0; 3];
            }
        }
        let n_tunings = if self.dynamics.burn_in.is_some() { n_replicas } else { 0 };
        if n_tunings != self.state.tunings.len() {
            changed = true;
            self.state.tunings.clear();
            self.state.tunings.resize(n_tunings, Tuning::default());
        }
        changed
    }

    /// Maxwell–Boltzmann velocities of the temperature and the noise of this step, by numbers that no step takes.
    fn write_thermal_velocities(&mut self) {
        let n = self.model.n_particles();
        let temperature = self.dynamics.temperature(self.step);
        for (i, v) in self.state.velocities.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let replica = self.placement.replicas.start + (i / n) as u32;
            let xi =
                normals(self.options.seed, replica, self.placement.particle_ids[i % n], u64::MAX - self.step);
            let speed = self.dynamics.thermal_speed(i % n, temperature);
            *v = std::array::from_fn(|c| speed * xi[c] as f64);
        }
    }

    /// New temperature, step, seed, … ; positions and step count stay, and so must the number of replicas.
    pub fn reconfigure(&mut self, options: Options) -> Result<()> {
        self.synchronize()?;
        if options.n_replicas != self.options.n_replicas {
            bail!(
                InvalidArgument,
                "n_replicas was {} and cannot become {}; create another simulation",
                self.options.n_replicas,
                options.n_replicas
            );
        }
        let dynamics = Dynamics::new(&self.model, &options)?;
        let placement = placement(&self.model, &options)?;
        let windows = windows(&dynamics, &options, &placement)?;
        if placement != self.placement {
            self.backend = backend::open(&self.score, &placement, self.backend.largest_score())?;
            self.placement = placement;
            self.continues = false;
        }
        self.swept = self.swept();
        self.windows = windows;
        self.options = options;
        self.dynamics = dynamics;
        if self.fit_state() {
            self.forget_last_good();
        }
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
        &self.state.positions
    }

    /// Set all positions, `[n_replicas][n_particles][3]`, nm.
    pub fn set_positions(&mut self, positions: &[f64]) -> Result<()> {
        self.synchronize()?;
        self.expect_len("positions", positions.len())?;
        if let Some(i) = positions.iter().position(|x| !x.is_finite()) {
            let n = self.model.n_particles();
            bail!(
                InvalidArgument,
                "position of particle {} (replica {}) is {}; expected finite numbers in nm",
                i / 3 % n,
                self.options.first_replica as usize + i / 3 / n,
                positions[i]
            );
        }
        self.check_bonds(positions)?;
        self.state.positions.copy_from_slice(positions);
        self.has_positions = true;
        self.forget_last_good();
        Ok(())
    }

    /// `[n_replicas][n_particles][3]`, nm/ps; an error with adapters that have none. They are those after the last step's
    /// noise (theory 11), and drawn from the density of the temperature at first.
    pub fn velocities(&self) -> Result<&[f64]> {
        if !self.options.adapter.has_velocities() {
            bail!(
                InvalidArgument,
                "adapter {:?} has no velocities; use adapter Langevin",
                self.options.adapter
            );
        }
        Ok(&self.state.velocities)
    }

    /// Set all velocities, `[n_replicas][n_particles][3]`, nm/ps.
    pub fn set_velocities(&mut self, velocities: &[f64]) -> Result<()> {
        self.velocities()?;
        self.expect_len("velocities", velocities.len())?;
        let n = self.model.n_particles();
        let wrong = |i: &usize| {
            !velocities[*i].is_finite() || velocities[*i] != 0.0 && self.dynamics.masses[i / 3 % n] == 0.0
        };
        if let Some(i) = (0..velocities.len()).find(wrong) {
            bail!(
                InvalidArgument,
                "velocity of particle {} (replica {}) is {}; expected {}",
                i / 3 % n,
                self.options.first_replica as usize + i / 3 / n,
                velocities[i],
                if velocities[i].is_finite() {
                    "0, as its mass is 0, which freezes it"
                } else {
                    "finite numbers in nm/ps"
                }
            );
        }
        self.state.velocities.copy_from_slice(velocities);
        self.forget_last_good();
        Ok(())
    }

    /// Draw all velocities anew from the density of the temperature (Maxwell–Boltzmann): a function of seed, replica, particle
    /// and step, as all noise is.
    pub fn draw_velocities(&mut self) -> Result<()> {
        self.velocities()?;
        self.write_thermal_velocities();
        self.forget_last_good();
        Ok(())
    }

    /// What burn-in has made of τ of each replica, or 1.
    pub fn step_factors(&self) -> impl Iterator<Item = f64> {
        let tuning = |r: usize| self.state.tunings.get(r).map_or(1.0, Tuning::factor);
        (0..self.options.n_replicas).map(tuning)
    }

    /// A learned score means nothing far from the snapshots: refuse frames in which a bond is far outside their range, as it is
    /// with wrong units or another order of atoms.
    fn check_bonds(&self, positions: &[f64]) -> Result<()> {
        let metadata = self.model.metadata();
        if self.options.allow_unstable {
            return Ok(());
        }
        let frames = positions.chunks_exact(3 * self.model.n_particles());
        for (replica, x) in (self.options.first_replica..).zip(frames) {
            for (bond, [least, greatest]) in metadata.bonds.iter().zip(&metadata.bond_ranges) {
                let length = bond_length(x, *bond);
                if !(BOND_MARGIN[0] * least..=BOND_MARGIN[1] * greatest).contains(&length) {
                    bail!(
                        Mismatch,
                        "{} does not know this frame: bond {}–{} (replica {replica}) is {length:.3} nm, in the snapshots \
                         {least:.3} to {greatest:.3}. Are the positions in nm, the molecule whole, the atoms in the model's \
                         order?",
                        self.model.name(),
                        bond[0],
                        bond[1]
                    );
                }
            }
        }
        Ok(())
    }

    /// The positions or the step are not what a run led to.
    fn forget_last_good(&mut self) {
        self.continues = false;
        self.ahead = 0;
        self.forget_windows();
        for (step, state) in &mut self.last_good {
            *step = self.step;
            state.clone_from(&self.state);
        }
    }

    /// What the time-parallel sampler has worked out ahead no longer follows.
    fn forget_windows(&mut self) {
        if let Some(windows) = &mut self.windows {
            windows.forget();
        }
    }

    /// What the time-parallel sampler did, under these options and before, and its largest score.
    fn swept(&self) -> (Sweeps, f64) {
        let (sweeps, largest_score) = self.swept;
        match &self.windows {
            None => self.swept,
            Some(windows) => (sweeps + windows.counts, largest_score.max(windows.largest_score)),
        }
    }

    fn expect_len(&self, name: &str, found: usize) -> Result<()> {
        if found != self.state.positions.len() {
            bail!(
                InvalidArgument,
                "{name} holds {found} numbers; expected {} replicas × {} particles × 3 = {}",
                self.options.n_replicas,
                self.model.n_particles(),
                self.state.positions.len()
            );
        }
        Ok(())
    }

    /// The cell of all replicas.
    pub fn cell(&self) -> Option<&Cell> {
        self.cell.as_ref()
    }

    /// Set the cell, which a periodic model needs and no other takes; positions stay.
    pub fn set_cell(&mut self, cell: Option<Cell>) -> Result<()> {
        self.synchronize()?;
        self.score.check_cell(cell.as_ref())?;
        if cell != self.cell {
            self.cell = cell;
            self.forget_windows();
        }
        Ok(())
    }

    /// λ of a blend, `None` for other models.
    pub fn lambda(&self) -> Option<f64> {
        self.lambda
    }

    /// Continue with a blend at another λ, of 0 to 1; positions and step count stay, and checkpoints keep it.
    pub fn set_lambda(&mut self, lambda: f64) -> Result<()> {
        self.synchronize()?;
        let blend = self.model.as_blend()?.at(lambda)?;
        self.score = Arc::new(blend);
        self.lambda = Some(lambda);
        self.continues = false;
        self.forget_windows();
        Ok(())
    }

    /// Energies of the two models of a blend at the current frames, `[n_replicas][2]`, kT₀
    /// ([`Blend::component_energies`](crate::model::Blend::component_energies)).
    pub fn component_energies(&self, energies: &mut [[f64; 2]]) -> Result<()> {
        let blend = self.model.as_blend()?;
        if energies.len() != self.options.n_replicas {
            bail!(
                InvalidArgument,
                "energies has room for {} frames; expected {} replicas",
                energies.len(),
                self.options.n_replicas
            );
        }
        blend.check_cell(self.cell.as_ref())?;
        blend.component_energies(
            Frames { positions: &self.state.positions, cell: self.cell.as_ref() },
            energies,
        )
    }

    /// Number of the next step, which is also the noise's.
    pub fn step_count(&self) -> u64 {
        self.step + self.ahead
    }

    /// Continue the noise from `step`.
    pub fn set_step_count(&mut self, step: u64) {
        self.step = step;
        self.forget_last_good();
    }

    /// Take `n_steps` steps. On [`Error::NotFinite`] positions and step count are those of the last good frame.
    pub fn step(&mut self, n_steps: u64) -> Result<()> {
        self.synchronize()?;
        let Some(end) = self.step.checked_add(n_steps) else {
            bail!(InvalidArgument, "{n_steps} steps after step {} exceed 2⁶⁴", self.step);
        };
        while self.step < end {
            // Acceptance is counted anew after burn-in.
            let burn_in =
                self.dynamics.burn_in.map_or(0, |burn_in| burn_in.n_steps.saturating_sub(self.step));
            let most = if burn_in > 0 { STEPS_PER_COPY.min(burn_in) } else { STEPS_PER_COPY };
            self.advance((end - self.step).min(most), false)?;
        }
        Ok(())
    }

    /// Start `n_steps` steps on the GPU's stream and do not wait, nor fetch positions: everything else, and a failure of these steps,
    /// is known after [`Simulation::synchronize`]. With `biased`, one step under the model and the forces at
    /// [`Simulation::device_forces`].
    ///
    /// A replica that fails stays where it is; the last good frame is the one before all enqueued steps.
    pub fn enqueue(&mut self, n_steps: u64, biased: bool) -> Result<()> {
        if biased && n_steps != 1 {
            bail!(InvalidArgument, "{n_steps} steps were enqueued under one set of forces; expected 1");
        }
        if biased {
            self.check_takes_bias()?;
        }
        if let Some(burn_in) = self.dynamics.burn_in.filter(|b| self.step_count() < b.n_steps) {
            bail!(
                InvalidArgument,
                "steps were enqueued at step {} of a burn-in of {}; take those of burn-in without the queue",
                self.step_count(),
                burn_in.n_steps
            );
        }
        let mut left = n_steps;
        while left > 0 {
            let n = left.min(STEPS_PER_COPY);
            self.take(n, if biased { Bias::OnDevice } else { Bias::None }, false)?;
            left -= n;
        }
        Ok(())
    }

    /// Wait for enqueued steps and fetch what they led to. The error is that of the steps.
    pub fn synchronize(&mut self) -> Result<()> {
        match std::mem::take(&mut self.ahead) {
            0 => Ok(()),
            n_steps => {
                let outcome = self.backend.fetch(self.state.replicas());
                self.settle(n_steps, outcome)
            }
        }
    }

    /// Where the positions lie on the GPU, `[n_replicas][n_particles][3]` in nm, double precision: good until the simulation is
    /// reconfigured. Who writes there, on the simulation's stream, moves the particles for the steps that are enqueued next.
    pub fn device_positions(&mut self) -> Result<u64> {
        self.check_has_positions()?;
        let replicas = (!self.continues).then(|| self.state.replicas());
        let place = self.backend.device_positions(replicas.as_ref())?;
        self.continues = true;
        Ok(place)
    }

    /// Where the velocities lie on the GPU, as [`Simulation::device_positions`], nm/ps; an error with adapters that have none.
    pub fn device_velocities(&mut self) -> Result<u64> {
        self.velocities()?;
        self.device_positions()?;
        self.backend.device_velocities()
    }

    /// How steps are taken, in words, and on a GPU how long the last ones took.
    pub fn device_status(&self) -> String {
        self.backend.status()
    }

    /// Where to put forces for [`Simulation::enqueue`] on the GPU, `[n_replicas][n_particles][3]` in kJ/(mol nm), double
    /// precision: zero at first, good until the simulation is reconfigured.
    pub fn device_forces(&mut self) -> Result<u64> {
        self.backend.device_forces()
    }

    /// Take one step under the model *and* the given forces, `[n_replicas][n_particles][3]`, kJ/(mol nm) (theory 6).
    pub fn step_biased(&mut self, forces: &[f64]) -> Result<()> {
        self.synchronize()?;
        self.expect_len("forces", forces.len())?;
        if let Some(i) = forces.iter().position(|f| !f.is_finite()) {
            let n = self.model.n_particles();
            bail!(
                InvalidArgument,
                "the bias force on particle {} (replica {}) is {} at step {}; look at the forces that act beside the model",
                i / 3 % n,
                self.options.first_replica as usize + i / 3 / n,
                forces[i],
                self.step
            );
        }
        self.check_takes_bias()?;
        let beta = 1.0 / (BOLTZMANN * self.model.metadata().training_temperature);
        self.bias.clear();
        self.bias.extend(forces.iter().map(|f| f * beta));
        self.advance(1, true)
    }

    fn check_takes_bias(&self) -> Result<()> {
        if !self.options.adapter.takes_bias() {
            bail!(
                InvalidArgument,
                "adapter {:?} needs the bias at both ends of each step and has its forces at one; use \
                 LeimkuhlerMatthews or EulerMaruyama",
                self.options.adapter
            );
        }
        Ok(())
    }

    fn check_has_positions(&self) -> Result<()> {
        if !self.has_positions {
            bail!(
                InvalidArgument,
                "{} has no frame to start from here; set the positions first",
                self.model.name()
            );
        }
        Ok(())
    }

    fn advance(&mut self, n_steps: u64, biased: bool) -> Result<()> {
        self.take(n_steps, if biased { Bias::OnHost } else { Bias::None }, true)
    }

    /// Take steps, or only start them.
    fn take(&mut self, n_steps: u64, bias: Bias, waits: bool) -> Result<()> {
        self.check_has_positions()?;
        self.score.check_cell(self.cell.as_ref())?;
        let first_step = self.step + self.ahead;
        if first_step.checked_add(n_steps).is_none() {
            bail!(InvalidArgument, "{n_steps} steps after step {first_step} exceed 2⁶⁴");
        }
        // What was moved last has had no score computed yet, so the frame before it is kept as well.
        if self.ahead == 0 && self.last_good[1].0 != self.step {
            self.last_good.swap(0, 1);
            self.last_good[1].0 = self.step;
            self.last_good[1].1.clone_from(&self.state);
        }
        let dynamics = &self.dynamics;
        if dynamics.burn_in.is_some_and(|burn_in| burn_in.n_steps == self.step) {
            self.proposals = [0; 2];
        }
        let job = Job {
            model: &*self.score,
            cell: self.cell.as_ref(),
            adapter: self.options.adapter,
            particles: &dynamics.particles,
            factors: &|step| dynamics.factors(step),
            inertia: dynamics.inertia,
            burn_in: dynamics.burn_in,
            seed: self.options.seed,
            first_step,
            n_steps,
            bias: (bias == Bias::OnHost).then_some(&self.bias),
            continues: self.continues,
        };
        if waits {
            // A single biased step is sequential by nature, and what was worked out ahead does not follow it.
            let biased = bias != Bias::None;
            let gives_way = |windows: &mut Windows| biased || windows.give_way(first_step);
            let windows = self.windows.as_mut().and_then(|windows| (!gives_way(windows)).then_some(windows));
            let in_windows = windows.is_some();
            let outcome = match windows {
                Some(windows) => {
                    windows.advance(&job, &self.placement, &mut *self.backend, &mut self.state.positions)
                }
                None => self.backend.advance(&job, self.state.replicas()),
            };
            if in_windows && outcome.is_ok() {
                self.step += n_steps;
                self.continues = true;
                return Ok(());
            }
            if biased && outcome.is_ok() {
                self.forget_windows();
            }
            return self.settle(n_steps, outcome);
        }
        let beta = 1.0 / (BOLTZMANN * self.model.metadata().training_temperature);
        match self.backend.enqueue(&job, &self.state.replicas(), (bias == Bias::OnDevice).then_some(beta)) {
            Ok(()) => {
                self.ahead += n_steps;
                self.continues = true;
                Ok(())
            }
            Err(error) => {
                self.ahead = 0; // what was enqueued before is given up as well
                self.settle(n_steps, Err(Failure::Other(error)))
            }
        }
    }

    /// What became of the last `n_steps` steps.
    fn settle(&mut self, n_steps: u64, outcome: std::result::Result<u64, Failure>) -> Result<()> {
        match outcome {
            Ok(accepted) => {
                self.step += n_steps;
                self.continues = true;
                let n_replicas = self.options.n_replicas as u64;
                if self.options.adapter == Adapter::Mala {
                    self.proposals[0] += n_steps * n_replicas;
                    self.proposals[1] += accepted;
                }
                self.score_evaluations += n_steps * self.options.adapter.scores_per_step() * n_replicas;
                Ok(())
            }
            Err(failure) => {
                let first_step_failed = matches!(failure, Failure::Score { step, .. } if step == self.step);
                let (step, good) = &self.last_good[if first_step_failed { 0 } else { 1 }];
                self.step = *step;
                self.state.clone_from(good);
                self.forget_last_good();
                Err(match failure {
                    Failure::Other(error) => error,
                    Failure::Score { frame, particle, step, score, positions, .. } => {
                        self.describe(frame, particle, step, score, &positions)
                    }
                })
            }
        }
    }

    fn describe(&self, frame: usize, particle: usize, step: u64, score: f64, positions: &[f64]) -> Error {
        let metadata = self.model.metadata();
        let mut text = format!(
            "{} at step {step} (replica {}, particle {particle}). The last good frame (step {}) was kept.",
            what_failed(score),
            self.options.first_replica as usize + frame,
            self.step
        );
        // The bond furthest outside what the snapshots knew, if any.
        let worst = metadata
            .bonds
            .iter()
            .zip(&metadata.bond_ranges)
            .map(|([i, j], [least, greatest])| (i, j, bond_length(positions, [*i, *j]), *least, *greatest))
            .filter(|(_, _, length, least, greatest)| length < least || length > greatest)
            .max_by(|a, b| (a.2 / a.4).max(a.3 / a.2).total_cmp(&(b.2 / b.4).max(b.3 / b.2)));
        if let Some((i, j, length, least, greatest)) = worst {
            text += &format!(
                " The molecule had left the region of the training data: bond {i}–{j} was {length:.3} nm, \
                 in the snapshots {least:.3} to {greatest:.3}."
            );
        }
        text += &match self.softness(frame) {
            Some(curvature) => format!(
                " The spring {} /nm² is too soft for the stiffest mode there ({} /nm²), which needs more than {}.",
                brief(0.5 / self.statistics().effective_step),
                brief(curvature),
                brief(curvature / 4.0)
            ),
            None => {
                " Use a stiffer spring (a smaller time step), or start from a frame like the training data."
                    .into()
            }
        };
        Error::NotFinite(text)
    }

    /// Largest curvature of the current frame as its particles feel it, if it makes the step unstable (theory §2). Models that state theirs are checked before
    /// anything moves; of the others it is asked only now, when it costs nothing that matters.
    fn softness(&self, frame: usize) -> Option<f64> {
        if self.options.adapter.has_velocities() {
            return None; // its step has another limit
        }
        let n = 3 * self.model.n_particles();
        let positions = &self.state.positions[frame * n..][..n];
        let frames = Frames { positions, cell: self.cell.as_ref() };
        let mobilities: Vec<f64> = self.dynamics.particles.iter().map(|p| p.effective_step).collect();
        let curvature = largest_mobile_curvature(&*self.score, frames, &mobilities).ok()?;
        (self.statistics().effective_step * curvature >= 2.0).then_some(curvature)
    }

    /// What was done so far.
    pub fn statistics(&self) -> Statistics {
        let kinetic_energy = self.options.adapter.has_velocities().then(|| {
            let velocities = self.state.velocities.as_chunks::<3>().0.iter();
            let of = |(v, mass): (&[f64; 3], &f64)| 0.5 * mass * (v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
            velocities.zip(self.dynamics.masses.iter().cycle()).map(of).sum::<f64>()
                / self.options.n_replicas as f64
        });
        let (sweeps, largest_score) = self.swept();
        Statistics {
            steps: self.step,
            score_evaluations: self.score_evaluations + sweeps.evaluations,
            largest_score: self.backend.largest_score().max(largest_score),
            acceptance: (self.options.adapter == Adapter::Mala && self.proposals[0] > 0)
                .then(|| self.proposals[1] as f64 / self.proposals[0] as f64),
            effective_step: self.dynamics.effective_step * self.dynamics.scale(self.step),
            time_step: self.dynamics.time_step.map(|dt| dt * self.dynamics.scale(self.step)),
            temperature: self.dynamics.temperature(self.step),
            diffusion_coefficient: self.dynamics.diffusion_coefficient,
            stability_limit: self.dynamics.stability_limit(&self.model),
            step_factor: self.dynamics.burn_in.map(|_| {
                let sum: f64 = self.state.tunings.iter().map(|tuning| tuning.log_factor).sum();
                (sum / self.options.n_replicas as f64).exp()
            }),
            kinetic_energy,
            kinetic_temperature: kinetic_energy.map(|energy| {
                let n_moving = self.dynamics.masses.iter().filter(|m| **m > 0.0).count();
                2.0 * energy / (3.0 * n_moving as f64 * BOLTZMANN)
            }),
            sweeps,
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
        self.score.check_cell(self.cell.as_ref())?;
        let frames = Frames { positions: &self.state.positions, cell: self.cell.as_ref() };
        let outputs = Outputs { scores, energies, virials: None };
        self.score.evaluate(frames, outputs, &mut Scratch::default())
    }

    /// Everything needed to continue bit for bit, in a simulation of the same model and options: λ of a blend belongs to it.
    pub fn checkpoint(&self) -> Vec<u8> {
        let ahead = self.windows.as_ref().map_or(Vec::new(), Windows::numbers);
        let numbers = self.state.numbers().chain(self.lambda).chain(ahead);
        let numbers = numbers.chain(self.counted().iter().map(|n| *n as f64));
        checkpoint::write(self.step, self.options.seed, &self.fingerprint(), numbers)
    }

    /// The counts that go into a checkpoint.
    fn counted(&self) -> &[u64] {
        if self.options.adapter == Adapter::Mala { &self.proposals } else { &[] }
    }

    /// Bytes of a checkpoint.
    pub fn checkpoint_size(&self) -> usize {
        let ahead = self.windows.as_ref().map_or(0, Windows::n_numbers);
        checkpoint::size(self.state.len() + self.lambda.iter().len() + ahead + self.counted().len())
    }

    /// Continue from [`Simulation::checkpoint`].
    pub fn restore(&mut self, bytes: &[u8]) -> Result<()> {
        self.synchronize()?;
        let (fingerprint, mut lambda) = (self.fingerprint(), self.lambda);
        let mut ahead = vec![0.0; self.windows.as_ref().map_or(0, Windows::n_numbers)];
        let mut counts = vec![0.0; self.counted().len()];
        let n = self.state.len() + lambda.iter().len() + ahead.len() + counts.len();
        let n_new = counts.len();
        let hint = match self.options.sampler {
            Sampler::Auto => {
                ", with as many threads: the sampler auto decides by their number whether it takes many frames at once. A \
                 sampler that is named, sequential or time-parallel, does not depend on it"
            }
            _ => "",
        };
        let numbers = self.state.numbers_mut().chain(&mut lambda).chain(&mut ahead).chain(&mut counts);
        let (step, seed) = checkpoint::read(bytes, &fingerprint, n, n_new, hint, numbers)?;
        self.proposals = std::array::from_fn(|i| counts.get(i).map_or(0, |n| *n as u64));
        if let Some(lambda) = lambda {
            self.set_lambda(lambda)?;
        }
        self.step = step;
        self.options.seed = seed;
        self.has_positions |= self.state.positions.iter().any(|x| *x != 0.0);
        self.forget_last_good();
        if let Some(windows) = &mut self.windows {
            windows.restore(&ahead);
        }
        Ok(())
    }

    /// sha256 of model and dynamics, as far as the next positions depend on them.
    fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.model.sha256());
        hash.update(self.model.noise_level().unwrap_or(0.0).to_le_bytes());
        hash.update([self.options.adapter as u8]);
        if let Some(cell) = &self.cell {
            cell.vectors().iter().flatten().for_each(|x| hash.update(x.to_le_bytes()));
        }
        self.dynamics.hash(&mut hash);
        if self.windows.is_some() {
            hash.update([self.options.sampler as u8, self.options.jacobian as u8]);
            hash.update((self.options.frames_at_once() as u64).to_le_bytes());
            hash.update(self.options.change_allowed().to_le_bytes());
        }
        hash.update(self.options.first_replica.to_le_bytes());
        if let Some(ids) =
            self.options.particle_ids.as_ref().filter(|ids| !ids.iter().copied().eq(0..ids.len() as u32))
        {
            ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
        }
        hash.finalize().into()
    }
}
