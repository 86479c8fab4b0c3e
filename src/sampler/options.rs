//! What a user asks for, and what it means for each particle (theory 3–5).

use super::{Jacobian, Sampler};
use crate::adapter::{Adapter, BurnIn, Inertia, ParticleStep};
use crate::backend::{Attachment, MatmulPrecision};
use crate::error::{Result, bail, brief};
use crate::model::curvature::{largest_curvature, largest_mobile_curvature};
use crate::model::{Frames, Model};
use crate::schedule::{
    BOLTZMANN, End, Mobility, NoiseSchedule, SpringSchedule, TemperatureSchedule, check_masses,
};

/// The size of a step, said in one of its equivalent ways. With different particles it is that of the most mobile one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum StepSize {
    /// The model file's `recommended_effective_step`.
    #[default]
    Recommended,
    /// k, 1/nm².
    Spring(f64),
    /// τ, nm².
    EffectiveStep(f64),
    /// Δt, ps; needs a [`Mobility`].
    TimeStep(f64),
}

/// Everything a simulation is told besides its model.
#[derive(Clone, Debug)]
pub struct Options {
    /// K; the training temperature if `None`.
    pub temperature: Option<f64>,
    /// Size of a step.
    pub step_size: StepSize,
    /// Sets the ratio of the steps of different particles and the physical time of a step.
    pub mobility: Option<Mobility>,
    /// amu; the model's if `None`. Mass 0 freezes a particle.
    pub masses: Option<Vec<f64>>,
    /// Seed of the noise.
    pub seed: u64,
    /// Copies of the system that run side by side.
    pub n_replicas: usize,
    /// Number of the first replica, for the noise and the start frame.
    pub first_replica: u32,
    /// Ids that key the noise of each particle; 0, 1, … if `None`.
    pub particle_ids: Option<Vec<u32>>,
    /// How a step is taken.
    pub adapter: Adapter,
    /// Factors on k.
    pub spring_schedule: SpringSchedule,
    /// β_n.
    pub noise_schedule: NoiseSchedule,
    /// Temperatures, in place of `temperature`.
    pub temperature_schedule: Option<TemperatureSchedule>,
    /// `auto` or `cpu`, `cuda` or `cuda:0`, `cuda:1`, …; see [`Device::parse`](crate::backend::Device::parse).
    pub device: String,
    /// 0: one thread per core.
    pub n_threads: usize,
    /// Run although τ times the model's largest curvature is 2 or more, and from frames outside the snapshots' bonds.
    pub allow_unstable: bool,
    /// With [`Adapter::Mala`]: the acceptance that the spring of each replica is tuned to.
    pub target_acceptance: Option<f64>,
    /// Steps of that tuning, from step 0; the spring is frozen at their end.
    pub burn_in_steps: u64,
    /// How the trajectory is produced: the same but for the tolerance.
    pub sampler: Sampler,
    /// Frames of each replica that the time-parallel sampler works on at once; 64 if `None`.
    pub window: Option<usize>,
    /// By how much a frame may still change, in the last sweep but one, for the next to be final, nm; 0: to the last bit; 1e-6 if
    /// `None`.
    pub tolerance: Option<f64>,
    /// What the sweeps know about the slope of the score.
    pub jacobian: Jacobian,
    /// Run in a CUDA context and on a stream of the caller; needs a `device` that names its GPU.
    pub attachment: Option<Attachment>,
    /// Of a network's products of matrices; [`MatmulPrecision::High`] needs a `device` that is a GPU.
    pub matmul_precision: MatmulPrecision,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            temperature: None,
            step_size: StepSize::default(),
            mobility: None,
            masses: None,
            seed: 0,
            n_replicas: 1,
            first_replica: 0,
            particle_ids: None,
            adapter: Adapter::default(),
            spring_schedule: SpringSchedule::constant(),
            noise_schedule: NoiseSchedule::constant(),
            temperature_schedule: None,
            device: "auto".into(),
            n_threads: 0,
            allow_unstable: false,
            target_acceptance: None,
            burn_in_steps: 0,
            sampler: Sampler::default(),
            window: None,
            tolerance: None,
            jacobian: Jacobian::default(),
            attachment: None,
            matmul_precision: MatmulPrecision::default(),
        }
    }
}

impl Options {
    /// Refuse what [`Adapter::Langevin`] cannot take; `hint` names a time step that it can.
    fn check_langevin(&self, hint: impl Fn() -> String) -> Result<()> {
        if !matches!(self.mobility, Some(Mobility::FrictionRate(_))) {
            bail!(
                InvalidArgument,
                "adapter Langevin has velocities, which a friction rate slows down, and was given {}; give the friction \
                 rate (1/ps)",
                match self.mobility {
                    Some(Mobility::Drag(_)) => "a drag",
                    Some(Mobility::Diffusion(_)) => "a diffusion coefficient",
                    _ => "none",
                }
            );
        }
        let given = match self.step_size {
            StepSize::TimeStep(_) => return Ok(()),
            StepSize::Spring(_) => "a spring",
            StepSize::EffectiveStep(_) => "an effective step",
            StepSize::Recommended => "none",
        };
        bail!(
            InvalidArgument,
            "adapter Langevin takes its step as a time step, and was given {given}; give the time step (ps){}",
            hint()
        )
    }

    /// Refuse what only the time-parallel sampler has, where that is not asked for.
    fn check_sampler(&self) -> Result<()> {
        if self.sampler != Sampler::Sequential {
            return Ok(());
        }
        let given = [
            ("window", self.window.map(|frames| format!("{frames} frames"))),
            ("tolerance", self.tolerance.map(|tolerance| format!("{tolerance} nm"))),
            ("jacobian", (self.jacobian != Jacobian::default()).then(|| format!("{:?}", self.jacobian))),
        ];
        if let Some((name, Some(value))) = given.iter().find(|(_, value)| value.is_some()) {
            bail!(
                InvalidArgument,
                "{name} is {value} and the sampler is sequential, which has none; use the sampler time-parallel or auto, or \
                 leave {name} out"
            );
        }
        Ok(())
    }

    /// [`Options::window`], or what it is if not given.
    pub(super) fn frames_at_once(&self) -> usize {
        self.window.unwrap_or(64)
    }

    /// [`Options::tolerance`], or what it is if not given, nm.
    pub(super) fn change_allowed(&self) -> f64 {
        self.tolerance.unwrap_or(1e-6)
    }

    /// What burn-in is to find, if anything.
    fn burn_in(&self) -> Result<Option<BurnIn>> {
        let (target, steps) = (self.target_acceptance, self.burn_in_steps);
        match target {
            None if steps == 0 => Ok(None),
            None => {
                bail!(
                    InvalidArgument,
                    "burn-in of {steps} steps was asked for and no target acceptance; give both, or neither"
                )
            }
            Some(target) if !(target > 0.0 && target < 1.0) => {
                bail!(
                    InvalidArgument,
                    "target acceptance is {target}; expected a number between 0 and 1, such as 0.6"
                )
            }
            Some(target) if self.adapter != Adapter::Mala => {
                bail!(
                    InvalidArgument,
                    "target acceptance {target} is for adapter Mala, and adapter {:?} rejects no step; leave it out, or use \
                     Mala",
                    self.adapter
                )
            }
            Some(target) if steps == 0 => {
                bail!(
                    InvalidArgument,
                    "target acceptance {target} was asked for and no burn-in; give the steps of burn-in, some thousands, in \
                     which the spring is tuned"
                )
            }
            Some(target_acceptance) => Ok(Some(BurnIn { target_acceptance, n_steps: steps })),
        }
    }
}

/// The options, worked out for a model.
#[derive(Clone, Debug)]
pub struct Dynamics {
    /// Base step of each particle; schedules multiply it.
    pub particles: Vec<ParticleStep>,
    /// τ of the most mobile particle, nm², at the schedules' unit factors: D(T₀)Δt at fixed friction, DΔt at fixed D.
    pub effective_step: f64,
    /// Δt in ps, where a mobility is known.
    pub time_step: Option<f64>,
    /// D of the most mobile particle in nm²/ps, where a mobility is known.
    pub diffusion_coefficient: Option<f64>,
    /// Mass of each particle, amu, where its motion has any: 0 is frozen.
    pub masses: Vec<f64>,
    /// With [`Adapter::Langevin`], at the schedules' unit factors.
    pub inertia: Option<Inertia>,
    /// How the step is tuned, if it is.
    pub burn_in: Option<BurnIn>,
    /// Of the fastest mode, 1/ps, where the bound on it was not enough.
    frequency: Option<f64>,
    /// Of the stiffest mode as the particles feel it, 1/nm², where the model's largest curvature was not enough.
    felt_curvature: Option<f64>,
    training_temperature: f64,
    fixed_diffusion: bool,
    spring_schedule: SpringSchedule,
    noise_schedule: NoiseSchedule,
    temperature_schedule: TemperatureSchedule,
}

/// Largest frequency, 1/ps, that the model's largest curvature (1/nm², in kT₀) allows particles of these masses: that of the
/// lightest, a bound from above.
fn bound_on_frequency(model: &Model, curvature: f64, masses: &[f64]) -> f64 {
    let lightest = masses.iter().copied().filter(|m| *m > 0.0).fold(f64::INFINITY, f64::min);
    (BOLTZMANN * model.metadata().training_temperature * curvature / lightest).sqrt()
}

/// Start frames that [`felt_share`] looks at.
const FRAMES_MEASURED: usize = 16;

/// What is left of the largest curvature where the particles have these mobilities, relative to the most mobile one: measured at start
/// frames, and good for the model's largest curvature, which more frames than those may show. `None` where nothing is gained.
fn felt_share(model: &Model, mobilities: &[f64]) -> Option<f64> {
    if mobilities.iter().all(|d| *d == mobilities[0]) {
        return None;
    }
    let n = 3 * model.n_particles();
    let start = model.start_positions();
    let stride = (start.len() / n).div_ceil(FRAMES_MEASURED).max(1);
    let positions: Vec<f64> = start.chunks_exact(n).step_by(stride).flatten().copied().collect();
    let frames = Frames { positions: &positions, cell: model.start_cell() };
    let felt = largest_mobile_curvature(&**model.score(), frames, mobilities).ok()?;
    let share = felt / largest_curvature(&**model.score(), frames).ok()?;
    (share > 0.0 && share < 1.0).then_some(share)
}

/// Largest frequency of the modes themselves, and in words where it is from; where it cannot be measured it is the bound.
fn fastest_mode(model: &Model, curvature: f64, masses: &[f64]) -> (f64, &'static str) {
    let bound = bound_on_frequency(model, curvature, masses);
    let mobilities: Vec<f64> = masses.iter().map(|m| if *m > 0.0 { 1.0 / m } else { 0.0 }).collect();
    match felt_share(model, &mobilities) {
        Some(share) => (share.sqrt() * bound, "all masses counted, at its start frames"),
        None => (bound, "were it all of the lightest particle"),
    }
}

impl Dynamics {
    /// Work out steps for `model`, checking every option.
    pub fn new(model: &Model, options: &Options) -> Result<Self> {
        let n = model.n_particles();
        let metadata = model.metadata();
        let t0 = metadata.training_temperature;
        let temperature_schedule = match (&options.temperature_schedule, options.temperature) {
            (Some(_), Some(t)) => {
                bail!(
                    InvalidArgument,
                    "both temperature {t} K and a temperature schedule were given; give one"
                )
            }
            (Some(schedule), None) => schedule.clone(),
            (None, given) => {
                let t = given.unwrap_or(t0);
                if !(t > 0.0 && t.is_finite()) {
                    bail!(InvalidArgument, "temperature is {t} K; expected a positive number");
                }
                TemperatureSchedule::given(vec![t], End::Hold)?
            }
        };
        let temperature = temperature_schedule.temperature(0);
        if options.adapter.has_velocities() {
            let masses = || options.masses.clone().map_or_else(|| model.masses(), Ok);
            options.check_langevin(|| match (metadata.largest_curvature, masses()) {
                (Some(curvature), Ok(masses)) if masses.iter().any(|m| *m > 0.0) => {
                    let tenth = 0.2 * std::f64::consts::PI / fastest_mode(model, curvature, &masses).0;
                    format!("; a tenth of the fastest period of {} is {} ps", model.name(), brief(tenth))
                }
                _ => String::new(),
            })?;
        }
        let burn_in = options.burn_in()?;
        options.check_sampler()?;

        let masses = match &options.masses {
            Some(masses) if masses.len() != n => {
                bail!(InvalidArgument, "{} masses were given for {n} particles", masses.len())
            }
            Some(masses) => masses.clone(),
            None if matches!(options.mobility, Some(Mobility::FrictionRate(_))) => model.masses()?,
            None => vec![1.0; n],
        };
        check_masses(&masses)?;
        // D of each particle, nm²/ps: at T₀, or where D itself is given, at T. Without a mobility only the ratios, all 1, count.
        let fixed_diffusion = matches!(options.mobility, Some(Mobility::Diffusion(_)));
        let equal = Mobility::Diffusion(vec![1.0]);
        let mobility = options.mobility.as_ref().unwrap_or(&equal);
        mobility.check_count(n)?;
        let diffusion = masses
            .iter()
            .enumerate()
            .map(|(i, m)| if *m == 0.0 { Ok(0.0) } else { mobility.diffusion_coefficient(i, t0, *m) })
            .collect::<Result<Vec<f64>>>()?;
        let largest = diffusion.iter().copied().fold(0.0, f64::max);
        if largest == 0.0 {
            bail!(InvalidArgument, "all particles are frozen (mass 0); nothing would move");
        }

        let positive = |name: &str, value: f64, unit: &str| {
            if !(value > 0.0 && value.is_finite()) {
                bail!(InvalidArgument, "{name} is {value} {unit}; expected a positive number");
            }
            Ok(value)
        };
        let effective_step = match options.step_size {
            StepSize::Spring(k) => 0.5 / positive("spring", k, "/nm²")?,
            StepSize::EffectiveStep(tau) => positive("effective step", tau, "nm²")?,
            StepSize::TimeStep(dt) => {
                if options.mobility.is_none() {
                    bail!(
                        InvalidArgument,
                        "a time step of {dt} ps needs a friction rate, a drag or a diffusion coefficient; \
                         give one, or give the spring"
                    );
                }
                positive("time step", dt, "ps")? * largest
            }
            StepSize::Recommended => match metadata.recommended_effective_step {
                Some(tau) => tau,
                None => bail!(
                    InvalidArgument,
                    "{} recommends no step; give a spring, an effective step or a time step",
                    model.name()
                ),
            },
        };
        let time_step = options.mobility.as_ref().map(|_| match options.step_size {
            StepSize::TimeStep(dt) => dt, // to the last digit what was asked for
            _ => effective_step / largest,
        });
        let mut dynamics = Dynamics {
            particles: diffusion
                .iter()
                .map(|d| {
                    let tau = effective_step * (d / largest);
                    ParticleStep { effective_step: tau, noise_amplitude: (2.0 * tau).sqrt() }
                })
                .collect(),
            effective_step,
            time_step,
            diffusion_coefficient: options
                .mobility
                .as_ref()
                .map(|_| if fixed_diffusion { largest } else { largest * temperature / t0 }),
            inertia: match (&options.mobility, time_step) {
                (Some(Mobility::FrictionRate(rate)), Some(dt)) if options.adapter.has_velocities() => {
                    Some(Inertia::new(dt, *rate))
                }
                _ => None,
            },
            burn_in,
            masses,
            frequency: None,
            felt_curvature: None,
            training_temperature: t0,
            fixed_diffusion,
            spring_schedule: options.spring_schedule.clone(),
            noise_schedule: options.noise_schedule.clone(),
            temperature_schedule,
        };
        if !options.allow_unstable {
            dynamics.check_stability(model, options)?;
        }
        Ok(dynamics)
    }

    /// Refuse a step that is, at some time of the schedules, too coarse for the model's stiffest mode (theory §2).
    fn check_stability(&mut self, model: &Model, options: &Options) -> Result<()> {
        let metadata = model.metadata();
        let Some(curvature) = metadata.largest_curvature else { return Ok(()) };
        // Bounded from above: the largest β, the softest spring and the coldest moment, taken together.
        let mut drift = self.effective_step * self.noise_schedule.greatest() / self.spring_schedule.softest();
        if self.fixed_diffusion {
            drift *= self.training_temperature / self.temperature_schedule.coldest();
        }
        if let Some(inertia) = self.inertia {
            let time_step = inertia.time_step * drift / self.effective_step;
            if time_step * bound_on_frequency(model, curvature, &self.masses) < 2.0 {
                return Ok(());
            }
            let (frequency, how) = fastest_mode(model, curvature, &self.masses);
            self.frequency = Some(frequency);
            if time_step * frequency >= 2.0 {
                bail!(
                    Unstable,
                    "time step {} ps is too long for {}: the frequency of its fastest mode (stiffness {} /nm², {how}) is up to {} \
                     /ps, which needs less than {} ps; a tenth of that period is {} ps",
                    brief(time_step),
                    model.name(),
                    brief(curvature),
                    brief(frequency),
                    brief(2.0 / frequency),
                    brief(0.2 * std::f64::consts::PI / frequency)
                );
            }
            return Ok(());
        }
        if drift * curvature < 2.0 {
            return Ok(());
        }
        let mobilities: Vec<f64> = self.particles.iter().map(|p| p.effective_step).collect();
        let share = felt_share(model, &mobilities);
        let felt = curvature * share.unwrap_or(1.0);
        self.felt_curvature = Some(felt);
        if drift * felt < 2.0 {
            return Ok(());
        }
        let how = share.map_or("", |_| ", all mobilities counted, at its start frames");
        let name = model.name();
        let stiffest = format!("its stiffest mode ({} /nm²{how}) needs", brief(felt));
        let recommended = metadata.recommended_effective_step;
        let time_of = |tau: f64| self.time_step.map(|dt| dt * tau / self.effective_step);
        if let (StepSize::TimeStep(_), Some(dt), Some(longest)) =
            (options.step_size, time_of(drift), time_of(2.0 / felt))
        {
            let mut advice = recommended
                .and_then(time_of)
                .map_or(String::new(), |dt| format!("; the model recommends {} ps", brief(dt)));
            if matches!(options.mobility, Some(Mobility::FrictionRate(_)))
                && dt * bound_on_frequency(model, curvature, &self.masses) < 1.0
            {
                advice += &format!(
                    ". Steps without velocities are that short; with adapter Langevin {} ps is stable",
                    brief(dt)
                );
            }
            bail!(
                Unstable,
                "a time step of {} ps (τ = {} nm², spring {} /nm²) is too long for {name}: {stiffest} less than {} ps{advice}",
                brief(dt),
                brief(drift),
                brief(0.5 / drift),
                brief(longest)
            );
        }
        let with_step =
            |tau: f64| time_of(tau).map_or(String::new(), |dt| format!(", a time step of {} ps", brief(dt)));
        let advice = recommended.map_or(String::new(), |tau| {
            format!("; the model recommends {}{}", brief(0.5 / tau), with_step(tau))
        });
        bail!(
            Unstable,
            "spring {} /nm² (τ = {} nm²{}) is too soft for {name}: {stiffest} more than {}{advice}",
            brief(0.5 / drift),
            brief(drift),
            with_step(drift),
            brief(felt / 4.0)
        )
    }

    /// Largest stable τ, nm², where the model states its largest curvature.
    pub fn stability_limit(&self, model: &Model) -> Option<f64> {
        let curvature = model.metadata().largest_curvature?;
        Some(match self.inertia {
            None => 2.0 / self.felt_curvature.unwrap_or(curvature),
            Some(inertia) => {
                let bound = || bound_on_frequency(model, curvature, &self.masses);
                let longest = 2.0 / self.frequency.unwrap_or_else(bound);
                self.effective_step * longest / inertia.time_step
            }
        })
    }

    /// √(kT/m) of particle `i` at `temperature` K, nm/ps; 0 if it is frozen.
    pub fn thermal_speed(&self, i: usize, temperature: f64) -> f64 {
        if self.masses[i] == 0.0 { 0.0 } else { (BOLTZMANN * temperature / self.masses[i]).sqrt() }
    }

    /// Temperature at `step`, K.
    pub fn temperature(&self, step: u64) -> f64 {
        self.temperature_schedule.temperature(step)
    }

    /// What the schedules multiply τ and Δt by at `step`: β_n k_0/k_n.
    pub fn scale(&self, step: u64) -> f64 {
        self.noise_schedule.noise_scale(step) / self.spring_schedule.factor(step)
    }

    /// Factors on drift and noise amplitude of every particle at `step` (theory 5): at fixed friction the noise grows with the
    /// temperature; at fixed D the drift shrinks instead, its spring stiffens to υk.
    pub fn factors(&self, step: u64) -> (f64, f64) {
        let scale = self.scale(step);
        let ratio = self.temperature(step) / self.training_temperature;
        if self.fixed_diffusion { (scale / ratio, scale.sqrt()) } else { (scale, (scale * ratio).sqrt()) }
    }

    /// Everything the next positions depend on, for checkpoints.
    pub(super) fn hash(&self, hash: &mut sha2::Sha256) {
        use sha2::Digest;
        let mut number = |x: f64| hash.update(x.to_le_bytes());
        for particle in &self.particles {
            number(particle.effective_step);
            number(particle.noise_amplitude);
        }
        if let Some(inertia) = self.inertia {
            number(inertia.friction_rate);
            number(inertia.time_step);
        }
        if let Some(burn_in) = self.burn_in {
            number(burn_in.target_acceptance);
            number(burn_in.n_steps as f64);
        }
        number(self.training_temperature);
        number(f64::from(u8::from(self.fixed_diffusion)));
        for (values, cycles) in [
            self.spring_schedule.entries(),
            self.noise_schedule.entries(),
            self.temperature_schedule.entries(),
        ] {
            number(values.len() as f64);
            number(f64::from(u8::from(cycles)));
            values.iter().for_each(|v| number(*v));
        }
    }
}
