//! `diffusim_simulation_*`

use super::model::{cell_from, diffusim_model_t};
use super::*;
use crate::adapter::Adapter;
use crate::backend::MatmulPrecision;
use crate::sampler::{Jacobian, Options, Sampler, Simulation, Statistics, StepSize};
use crate::schedule::{End, Mobility, NoiseSchedule, SpringSchedule, TemperatureSchedule};
use std::borrow::Cow;
use std::ffi::c_void;
use std::ptr;

/// Euler–Maruyama: the harmonic adapter as it is (theory 2).
pub const DIFFUSIM_EULER_MARUYAMA: i32 = 0;
/// Leimkuhler–Matthews: one score a step, equilibrium averages of order 2 (theory 10).
pub const DIFFUSIM_LEIMKUHLER_MATTHEWS: i32 = 1;
/// Heun: two scores a step, weak order 2; takes no bias (theory 9).
pub const DIFFUSIM_HEUN: i32 = 2;
/// Metropolis-adjusted Langevin: Euler–Maruyama proposals, accepted or rejected, so that the density has no error of the step;
/// needs a model that gives energies, takes no bias (theory 8).
pub const DIFFUSIM_MALA: i32 = 3;
/// Langevin dynamics with velocities, by the middle scheme: one score a step; needs masses, a friction rate and a time step
/// (theory 11).
pub const DIFFUSIM_LANGEVIN: i32 = 4;

/// One frame after the other.
pub const DIFFUSIM_SEQUENTIAL: i32 = 0;
/// Many frames at once: the sequential trajectory of the same seed, to a tolerance (theory 12). Adapters Euler–Maruyama and
/// Leimkuhler–Matthews, on the CPU.
pub const DIFFUSIM_TIME_PARALLEL: i32 = 1;
/// Time-parallel where every replica has at least two threads to itself and, over its first 32 sweeps, a step took fewer frames
/// than two thirds of those threads; else sequential. Decided by counts, so that it depends on `n_threads` and not on the clock.
pub const DIFFUSIM_AUTO: i32 = 2;

/// All of the slope of the score for up to 30 particles, its diagonal for more.
pub const DIFFUSIM_JACOBIAN_AUTO: i32 = 0;
/// Picard sweeps: nothing is known about the slope of the score.
pub const DIFFUSIM_JACOBIAN_IDENTITY: i32 = 1;
/// Quasi-Newton sweeps with the diagonal of the slope.
pub const DIFFUSIM_JACOBIAN_DIAGONAL: i32 = 2;
/// Quasi-Newton sweeps with all of it.
pub const DIFFUSIM_JACOBIAN_DENSE: i32 = 3;

/// Past its end a schedule keeps its last entry.
pub const DIFFUSIM_HOLD_LAST: i32 = 0;
/// Past its end a schedule starts again.
pub const DIFFUSIM_CYCLE: i32 = 1;

/// Replicas of one system, moved by a model. Belongs to one thread at a time.
pub struct diffusim_simulation_t(Exclusive<Simulation>);

/// What a simulation is told besides its model. Fill with diffusim_simulation_options_init, then change what you need.
///
/// The size of a step is given by at most one of `spring`, `effective_step` and `time_step`; with none, the model file's
/// recommendation is taken. At most one of `friction_rate`, `drag` and `diffusion_coefficient` says how mobile particles are;
/// without any, all particles take the same step and steps have no physical time.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct diffusim_simulation_options_t {
    /// sizeof(diffusim_simulation_options_t)
    pub struct_size: usize,
    /// K; 0 = the training temperature.
    pub temperature: f64,
    /// k = 1/(2 D Δt) of the most mobile particle, 1/nm²; D is that at the training temperature or, where the diffusion
    /// coefficient is given, at `temperature` (theory 5); 0 = not given.
    pub spring: f64,
    /// τ = 1/(2k) = D Δt of the most mobile particle, nm²; 0 = not given.
    pub effective_step: f64,
    /// Δt, ps; needs a mobility; 0 = not given.
    pub time_step: f64,
    /// γ, 1/ps: D = kT/(m γ); 0 = not given.
    pub friction_rate: f64,
    /// ζ, amu/ps: D = kT/ζ; 0 = not given.
    pub drag: f64,
    /// D at `temperature`, nm²/ps; 0 = not given.
    pub diffusion_coefficient: f64,
    /// amu, `[n_particles]`, copied; NULL = the model's (which only `friction_rate` needs). A mass of 0 freezes its particle.
    pub masses: *const f64,
    /// Seed of the noise. The same seed gives the same trajectory.
    pub seed: u64,
    /// Copies of the system; 1 by default.
    pub n_replicas: usize,
    /// Number of the first replica, for the noise and the start frame.
    pub first_replica: u32,
    /// DIFFUSIM_LEIMKUHLER_MATTHEWS (default), DIFFUSIM_EULER_MARUYAMA, DIFFUSIM_HEUN, DIFFUSIM_MALA or DIFFUSIM_LANGEVIN.
    pub adapter: i32,
    /// Ids that key the noise of each particle, `[n_particles]`, copied; NULL = 0, 1, 2, …
    pub particle_ids: *const u32,
    /// Factors on the spring, one per step, copied; NULL = 1.
    pub spring_schedule: *const f64,
    /// Length of `spring_schedule`.
    pub n_spring_schedule: usize,
    /// Temperatures in K, one per step, copied, in place of `temperature`; NULL = none.
    pub temperature_schedule: *const f64,
    /// Length of `temperature_schedule`.
    pub n_temperature_schedule: usize,
    /// DIFFUSIM_HOLD_LAST (default) or DIFFUSIM_CYCLE.
    pub schedule_end: i32,
    /// Not 0: run although τ times the model's largest curvature is 2 or more, and from frames outside the snapshots' bonds.
    pub allow_unstable: i32,
    /// "cpu", or "cuda", "cuda:1" and so on for a GPU, which gives the same positions, bit for bit; "auto" is "cpu". NULL = "auto".
    pub device: *const c_char,
    /// Threads; 0 = one per core.
    pub n_threads: usize,
    /// ζ of each particle, amu/ps, `[n_particles]`, copied, in place of `drag`; NULL = not given.
    pub drags: *const f64,
    /// D of each particle, nm²/ps, `[n_particles]`, copied, in place of `diffusion_coefficient`; NULL = not given.
    pub diffusion_coefficients: *const f64,
    /// β_n of a noise schedule, one per step, copied; NULL = 1.
    pub noise_schedule: *const f64,
    /// Length of `noise_schedule`.
    pub n_noise_schedule: usize,
    /// With DIFFUSIM_MALA: the acceptance, between 0 and 1, that the step of each replica is tuned to during burn-in; 0 = none.
    pub target_acceptance: f64,
    /// Steps of that tuning, from step 0; after them the steps stay as they are. 0 = none.
    pub burn_in_steps: u64,
    /// DIFFUSIM_SEQUENTIAL (default), DIFFUSIM_TIME_PARALLEL or DIFFUSIM_AUTO. A biased step is always sequential. With the first,
    /// `jacobian`, `window` and `tolerance` may not be given.
    pub sampler: i32,
    /// For time-parallel sweeps: DIFFUSIM_JACOBIAN_AUTO (default), _IDENTITY, _DIAGONAL or _DENSE.
    pub jacobian: i32,
    /// Frames of each replica that a time-parallel sweep works on, at least 2; 0 = not given, which is 64.
    pub window: usize,
    /// By how much a frame may still change for the one after it to be final, nm, 0 = not by a bit; -1 = not given, which is 1e-6.
    pub tolerance: f64,
    /// CUcontext of the caller, of the GPU that `device` names, in which the simulation runs: it is left as current or not as it was and
    /// is never destroyed; it must outlive the simulation. NULL = the GPU's primary context.
    pub cuda_context: *mut c_void,
    /// CUstream of that context, on which everything is enqueued; NULL = its default stream.
    pub cuda_stream: *mut c_void,
    /// "highest": the same bits on every device; on a GPU also "high": on its tensor cores, each number split in two of half
    /// precision, nearly as accurate, with bits that only GPUs of that kind have; for models of kind distance whose hidden weights
    /// are bfloat16. NULL = "highest".
    pub matmul_precision: *const c_char,
}

const OPTIONS: diffusim_simulation_options_t = diffusim_simulation_options_t {
    struct_size: size_of::<diffusim_simulation_options_t>(),
    temperature: 0.0,
    spring: 0.0,
    effective_step: 0.0,
    time_step: 0.0,
    friction_rate: 0.0,
    drag: 0.0,
    diffusion_coefficient: 0.0,
    masses: ptr::null(),
    seed: 0,
    n_replicas: 1,
    first_replica: 0,
    adapter: DIFFUSIM_LEIMKUHLER_MATTHEWS,
    particle_ids: ptr::null(),
    spring_schedule: ptr::null(),
    n_spring_schedule: 0,
    temperature_schedule: ptr::null(),
    n_temperature_schedule: 0,
    schedule_end: DIFFUSIM_HOLD_LAST,
    allow_unstable: 0,
    device: ptr::null(),
    n_threads: 0,
    drags: ptr::null(),
    diffusion_coefficients: ptr::null(),
    noise_schedule: ptr::null(),
    n_noise_schedule: 0,
    target_acceptance: 0.0,
    burn_in_steps: 0,
    sampler: DIFFUSIM_SEQUENTIAL,
    jacobian: DIFFUSIM_JACOBIAN_AUTO,
    window: 0,
    tolerance: -1.0,
    cuda_context: ptr::null_mut(),
    cuda_stream: ptr::null_mut(),
    matmul_precision: ptr::null(),
};

/// Fill `options` with the defaults; `size` is sizeof(diffusim_simulation_options_t).
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_options_init(
    options: *mut diffusim_simulation_options_t,
    size: usize,
) -> diffusim_status_t {
    guard(|| write_struct(options, size, OPTIONS, "diffusim_simulation_options"))
}

pub(super) unsafe fn convert(c: *const diffusim_simulation_options_t, n_particles: usize) -> Result<Options> {
    let c = read_options(c, OPTIONS, "diffusim_simulation_options")?;
    let given = |x: f64| (x != 0.0).then_some(x);
    let array = |pointer: *const f64, len: usize, name: &str| -> Result<Option<Vec<f64>>> {
        if pointer.is_null() && len == 0 { Ok(None) } else { Ok(Some(slice(pointer, len, name)?.to_vec())) }
    };
    let one_of = |names: &str, given: &[bool]| {
        if given.iter().filter(|g| **g).count() > 1 {
            bail!(InvalidArgument, "more than one of {names} was given; give one and leave the others 0");
        }
        Ok(())
    };
    one_of(
        "spring, effective_step and time_step",
        &[c.spring, c.effective_step, c.time_step].map(|x| x != 0.0),
    )?;
    one_of(
        "friction_rate, drag, drags, diffusion_coefficient and diffusion_coefficients",
        &[
            c.friction_rate != 0.0,
            c.drag != 0.0,
            !c.drags.is_null(),
            c.diffusion_coefficient != 0.0,
            !c.diffusion_coefficients.is_null(),
        ],
    )?;
    let each = |pointer: *const f64, name: &str| -> Result<Option<Vec<f64>>> {
        if pointer.is_null() { Ok(None) } else { Ok(Some(slice(pointer, n_particles, name)?.to_vec())) }
    };
    let end = match c.schedule_end {
        DIFFUSIM_HOLD_LAST => End::Hold,
        DIFFUSIM_CYCLE => End::Cycle,
        other => {
            bail!(InvalidArgument, "schedule_end is {other}; expected DIFFUSIM_HOLD_LAST or DIFFUSIM_CYCLE")
        }
    };
    let adapter = match c.adapter {
        DIFFUSIM_EULER_MARUYAMA => Adapter::EulerMaruyama,
        DIFFUSIM_LEIMKUHLER_MATTHEWS => Adapter::LeimkuhlerMatthews,
        DIFFUSIM_HEUN => Adapter::Heun,
        DIFFUSIM_MALA => Adapter::Mala,
        DIFFUSIM_LANGEVIN => Adapter::Langevin,
        other => bail!(
            InvalidArgument,
            "adapter is {other}; expected DIFFUSIM_EULER_MARUYAMA, DIFFUSIM_LEIMKUHLER_MATTHEWS, DIFFUSIM_HEUN, DIFFUSIM_MALA or \
             DIFFUSIM_LANGEVIN"
        ),
    };
    let spring_schedule = array(c.spring_schedule, c.n_spring_schedule, "spring_schedule")?;
    let noise_schedule = array(c.noise_schedule, c.n_noise_schedule, "noise_schedule")?;
    let temperature_schedule =
        array(c.temperature_schedule, c.n_temperature_schedule, "temperature_schedule")?;
    Ok(Options {
        temperature: given(c.temperature),
        step_size: given(c.spring)
            .map(StepSize::Spring)
            .or(given(c.effective_step).map(StepSize::EffectiveStep))
            .or(given(c.time_step).map(StepSize::TimeStep))
            .unwrap_or_default(),
        mobility: given(c.friction_rate)
            .map(Mobility::FrictionRate)
            .or(given(c.drag).map(|drag| Mobility::Drag(vec![drag])))
            .or(each(c.drags, "drags")?.map(Mobility::Drag))
            .or(given(c.diffusion_coefficient).map(|d| Mobility::Diffusion(vec![d])))
            .or(each(c.diffusion_coefficients, "diffusion_coefficients")?.map(Mobility::Diffusion)),
        masses: each(c.masses, "masses")?,
        seed: c.seed,
        n_replicas: c.n_replicas,
        first_replica: c.first_replica,
        particle_ids: if c.particle_ids.is_null() {
            None
        } else {
            Some(slice(c.particle_ids, n_particles, "particle_ids")?.to_vec())
        },
        adapter,
        spring_schedule: spring_schedule
            .map_or(Ok(SpringSchedule::constant()), |f| SpringSchedule::given(f, end))?,
        noise_schedule: noise_schedule
            .map_or(Ok(NoiseSchedule::constant()), |b| NoiseSchedule::given(b, end))?,
        temperature_schedule: temperature_schedule.map(|t| TemperatureSchedule::given(t, end)).transpose()?,
        device: if c.device.is_null() { "auto".into() } else { text(c.device, "device")?.into() },
        n_threads: c.n_threads,
        allow_unstable: c.allow_unstable != 0,
        target_acceptance: given(c.target_acceptance),
        burn_in_steps: c.burn_in_steps,
        sampler: match c.sampler {
            DIFFUSIM_SEQUENTIAL => Sampler::Sequential,
            DIFFUSIM_TIME_PARALLEL => Sampler::TimeParallel,
            DIFFUSIM_AUTO => Sampler::Auto,
            other => bail!(
                InvalidArgument,
                "sampler is {other}; expected DIFFUSIM_SEQUENTIAL, DIFFUSIM_TIME_PARALLEL or DIFFUSIM_AUTO"
            ),
        },
        jacobian: match c.jacobian {
            DIFFUSIM_JACOBIAN_AUTO => Jacobian::Auto,
            DIFFUSIM_JACOBIAN_IDENTITY => Jacobian::Identity,
            DIFFUSIM_JACOBIAN_DIAGONAL => Jacobian::Diagonal,
            DIFFUSIM_JACOBIAN_DENSE => Jacobian::Dense,
            other => bail!(
                InvalidArgument,
                "jacobian is {other}; expected DIFFUSIM_JACOBIAN_AUTO, DIFFUSIM_JACOBIAN_IDENTITY, DIFFUSIM_JACOBIAN_DIAGONAL \
                 or DIFFUSIM_JACOBIAN_DENSE"
            ),
        },
        window: (c.window != 0).then_some(c.window),
        tolerance: (c.tolerance != -1.0).then_some(c.tolerance),
        attachment: evaluator::attachment(c.cuda_context, c.cuda_stream)?,
        matmul_precision: if c.matmul_precision.is_null() {
            MatmulPrecision::default()
        } else {
            MatmulPrecision::parse(text(c.matmul_precision, "matmul_precision")?)?
        },
    })
}

/// Create a simulation of `model`; `options` may be NULL. Replica number r starts from the model's start frame r mod n_frames,
/// or from zeros if it has none. The caller frees `*simulation` with diffusim_simulation_free.
///
/// Errors: DIFFUSIM_ERROR_INVALID_ARGUMENT, DIFFUSIM_ERROR_UNSTABLE (spring too soft), DIFFUSIM_ERROR_UNSUPPORTED (device), DIFFUSIM_ERROR_DEVICE.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_create(
    model: *const diffusim_model_t,
    options: *const diffusim_simulation_options_t,
    simulation: *mut *mut diffusim_simulation_t,
) -> diffusim_status_t {
    guard(|| {
        let out = output(simulation, "simulation")?;
        let model = reference(model, "model")?.model.clone();
        let options = convert(options, model.n_particles())?;
        let simulation = Simulation::new(model, options)?;
        *out = Box::into_raw(Box::new(diffusim_simulation_t(Exclusive::new(simulation))));
        Ok(())
    })
}

/// Free a simulation; NULL is ignored.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_free(simulation: *mut diffusim_simulation_t) {
    if !simulation.is_null() {
        guard(|| {
            drop(Box::from_raw(simulation));
            Ok(())
        });
    }
}

/// Run `body` on a simulation that is not in use and that no panic has gone through, after its enqueued steps.
unsafe fn with(
    simulation: *const diffusim_simulation_t,
    body: impl FnOnce(&mut Simulation) -> Result<()>,
) -> diffusim_status_t {
    with_ahead(simulation, |s| {
        s.synchronize()?;
        body(s)
    })
}

/// As `with`, not waiting for enqueued steps.
unsafe fn with_ahead(
    simulation: *const diffusim_simulation_t,
    body: impl FnOnce(&mut Simulation) -> Result<()>,
) -> diffusim_status_t {
    match reference(simulation, "simulation") {
        Ok(handle) => handle.0.with("simulation", body),
        Err(error) => guard(|| Err(error)),
    }
}

/// Give a simulation new options; positions and step count stay, and so must the number of replicas.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_reconfigure(
    simulation: *mut diffusim_simulation_t,
    options: *const diffusim_simulation_options_t,
) -> diffusim_status_t {
    with(simulation, |s| {
        let options = convert(options, s.model().n_particles())?;
        s.reconfigure(options)
    })
}

/// Set the positions of all replicas: `positions` `[n_replicas][n_particles][3]` in nm, `n_values` numbers of `dtype`
/// (DIFFUSIM_FLOAT32 or DIFFUSIM_FLOAT64).
///
/// Errors: DIFFUSIM_ERROR_MISMATCH where a bond is far outside its range in the snapshots (wrong units, another order of atoms),
/// naming it.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_set_positions(
    simulation: *mut diffusim_simulation_t,
    positions: *const c_void,
    dtype: i32,
    n_values: usize,
) -> diffusim_status_t {
    with(simulation, |s| s.set_positions(&numbers(positions, dtype, n_values, "positions")?))
}

/// Read the positions of all replicas: `positions` `[n_replicas][n_particles][3]` in nm has room for `n_values` numbers of
/// `dtype`.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_get_positions(
    simulation: *const diffusim_simulation_t,
    positions: *mut c_void,
    dtype: i32,
    n_values: usize,
) -> diffusim_status_t {
    with(simulation, |s| write_numbers(s.positions(), positions, dtype, n_values, "positions"))
}

/// Set the velocities of all replicas: `velocities` `[n_replicas][n_particles][3]` in nm/ps, `n_values` numbers of `dtype`
/// (DIFFUSIM_FLOAT32 or DIFFUSIM_FLOAT64). With DIFFUSIM_LANGEVIN only, whose velocities start as diffusim_simulation_draw_velocities
/// draws them.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_set_velocities(
    simulation: *mut diffusim_simulation_t,
    velocities: *const c_void,
    dtype: i32,
    n_values: usize,
) -> diffusim_status_t {
    with(simulation, |s| s.set_velocities(&numbers(velocities, dtype, n_values, "velocities")?))
}

/// Read the velocities of all replicas: `velocities` `[n_replicas][n_particles][3]` in nm/ps has room for `n_values` numbers of
/// `dtype`. They are those after the last step's noise: kicked at the frame before, half a step ahead of positions (theory 11).
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_get_velocities(
    simulation: *const diffusim_simulation_t,
    velocities: *mut c_void,
    dtype: i32,
    n_values: usize,
) -> diffusim_status_t {
    with(simulation, |s| write_numbers(s.velocities()?, velocities, dtype, n_values, "velocities"))
}

/// Draw all velocities anew from the Maxwell–Boltzmann density of the temperature: a function of seed, replica, particle and step.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_draw_velocities(
    simulation: *mut diffusim_simulation_t,
) -> diffusim_status_t {
    with(simulation, |s| s.draw_velocities())
}

/// What burn-in has made of the effective step of each replica, `factors` `[n_replicas]`, which has room for `n_values` numbers; 1
/// without a burn-in.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_get_step_factors(
    simulation: *const diffusim_simulation_t,
    factors: *mut f64,
    n_values: usize,
) -> diffusim_status_t {
    with(simulation, |s| {
        let known: Vec<f64> = s.step_factors().collect();
        write_numbers(&known, factors.cast(), DIFFUSIM_FLOAT64, n_values, "factors")
    })
}

/// The positions of all replicas in place: `*positions` `[n_replicas][n_particles][3]` in nm. They live as long as the simulation and
/// change when it does; they must not be written to.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_view_positions(
    simulation: *const diffusim_simulation_t,
    positions: *mut *const f64,
) -> diffusim_status_t {
    with(simulation, |s| {
        *output(positions, "positions")? = s.positions().as_ptr();
        Ok(())
    })
}

/// `n` numbers of `dtype`, in double precision.
unsafe fn numbers<'a>(from: *const c_void, dtype: i32, n: usize, name: &str) -> Result<Cow<'a, [f64]>> {
    match dtype {
        DIFFUSIM_FLOAT64 => Ok(slice(from.cast(), n, name)?.into()),
        DIFFUSIM_FLOAT32 => {
            let single: &[f32] = slice(from.cast(), n, name)?;
            Ok(single.iter().map(|x| *x as f64).collect())
        }
        other => Err(unknown_dtype(other)),
    }
}

/// Write numbers `to` where there is room for `n` of `dtype`.
unsafe fn write_numbers(from: &[f64], to: *mut c_void, dtype: i32, n: usize, name: &str) -> Result<()> {
    if n != from.len() {
        bail!(InvalidArgument, "{name} has room for {n} numbers; expected {}", from.len());
    }
    match dtype {
        DIFFUSIM_FLOAT64 => slice_mut(to.cast(), n, name)?.copy_from_slice(from),
        DIFFUSIM_FLOAT32 => {
            let to: &mut [f32] = slice_mut(to.cast(), n, name)?;
            to.iter_mut().zip(from).for_each(|(to, x)| *to = *x as f32);
        }
        other => return Err(unknown_dtype(other)),
    }
    Ok(())
}

fn unknown_dtype(dtype: i32) -> Error {
    Error::InvalidArgument(format!("dtype is {dtype}; expected DIFFUSIM_FLOAT32 or DIFFUSIM_FLOAT64"))
}

/// Set the periodic cell of all replicas, `cell` `[3][3]` in nm, rows are lattice vectors; NULL for none. Positions stay, and need
/// not be wrapped. A simulation starts with the cell of the model's start frames.
///
/// Errors: DIFFUSIM_ERROR_MISMATCH for a periodic model without a cell, another model with one, and a cell that is too small for
/// the model's cutoff.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_set_cell(
    simulation: *mut diffusim_simulation_t,
    cell: *const f64,
) -> diffusim_status_t {
    with(simulation, |s| s.set_cell(cell_from(cell)?))
}

/// The periodic cell, `cell` `[3][3]` in nm; `*is_periodic` is 0, and `cell` zero, where there is none.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_get_cell(
    simulation: *const diffusim_simulation_t,
    cell: *mut f64,
    is_periodic: *mut i32,
) -> diffusim_status_t {
    with(simulation, |s| {
        let (cell, is_periodic) = (slice_mut(cell, 9, "cell")?, output(is_periodic, "is_periodic")?);
        *is_periodic = s.cell().is_some().into();
        cell.fill(0.0);
        if let Some(known) = s.cell() {
            cell.copy_from_slice(known.vectors().as_flattened());
        }
        Ok(())
    })
}

/// Take `n_steps` steps with every replica. On DIFFUSIM_ERROR_NOT_FINITE and DIFFUSIM_ERROR_CALLBACK the positions are those
/// of the last good frame and the step count is its number.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_step(
    simulation: *mut diffusim_simulation_t,
    n_steps: u64,
) -> diffusim_status_t {
    with(simulation, |s| s.step(n_steps))
}

/// Take one step under the model and, on top of it, `forces` `[n_replicas][n_particles][3]` in kJ/(mol nm) at the current
/// positions: the density exp(−(U + V)/kT) is sampled (theory 6). `n_values` is the length of `forces`.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_step_biased(
    simulation: *mut diffusim_simulation_t,
    forces: *const f64,
    n_values: usize,
) -> diffusim_status_t {
    with(simulation, |s| s.step_biased(slice(forces, n_values, "forces")?))
}

/// Start `n_steps` steps on the GPU's stream, and do not wait: the next other call on the simulation waits, fetches the positions
/// and, if the steps failed, fails. With `with_forces` not 0, one step under the model and the forces that lie at
/// diffusim_simulation_device_forces. A blend of models with lists of neighbours waits until it is known that they had room.
///
/// Errors: DIFFUSIM_ERROR_UNSUPPORTED on the CPU; those of diffusim_simulation_step, with the frame before all enqueued steps as the
/// last good one.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_enqueue(
    simulation: *mut diffusim_simulation_t,
    n_steps: u64,
    with_forces: i32,
) -> diffusim_status_t {
    with_ahead(simulation, |s| s.enqueue(n_steps, with_forces != 0))
}

/// Wait for the steps of diffusim_simulation_enqueue; their errors are told here.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_synchronize(
    simulation: *mut diffusim_simulation_t,
) -> diffusim_status_t {
    with(simulation, |_| Ok(()))
}

/// Where the positions lie on the GPU (a CUdeviceptr): double `[n_replicas][n_particles][3]`, nm, good until the simulation is
/// reconfigured or freed. Who writes there, on the simulation's stream, moves the particles for the steps enqueued next.
///
/// Errors: DIFFUSIM_ERROR_UNSUPPORTED on the CPU.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_device_positions(
    simulation: *mut diffusim_simulation_t,
    positions: *mut u64,
) -> diffusim_status_t {
    with_ahead(simulation, |s| {
        *output(positions, "positions")? = s.device_positions()?;
        Ok(())
    })
}

/// Where the velocities lie on the GPU (a CUdeviceptr): double `[n_replicas][n_particles][3]`, nm/ps, as
/// diffusim_simulation_device_positions.
///
/// Errors: DIFFUSIM_ERROR_UNSUPPORTED on the CPU; DIFFUSIM_ERROR_INVALID_ARGUMENT with adapters that have no velocities.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_device_velocities(
    simulation: *mut diffusim_simulation_t,
    velocities: *mut u64,
) -> diffusim_status_t {
    with_ahead(simulation, |s| {
        *output(velocities, "velocities")? = s.device_velocities()?;
        Ok(())
    })
}

/// Where to put forces for diffusim_simulation_enqueue (a CUdeviceptr): double `[n_replicas][n_particles][3]`, kJ/(mol nm), zero at
/// first, good until the simulation is reconfigured or freed.
///
/// Errors: DIFFUSIM_ERROR_UNSUPPORTED on the CPU.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_device_forces(
    simulation: *mut diffusim_simulation_t,
    forces: *mut u64,
) -> diffusim_status_t {
    with_ahead(simulation, |s| {
        *output(forces, "forces")? = s.device_forces()?;
        Ok(())
    })
}

/// How steps are taken, and on a GPU how long the last ones took by the clock of the host and what was loaded as the kernels, such
/// as "cuda:0, 6 launches a step, replayed as a CUDA graph; the last 200 took 12.30 us each; kernels: PTX". The text is valid until
/// the next call on this thread that gives one.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_device_status(
    simulation: *mut diffusim_simulation_t,
    status: *mut *const c_char,
) -> diffusim_status_t {
    with(simulation, |s| {
        *output(status, "status")? = device::kept(s.device_status())?;
        Ok(())
    })
}

/// Number of the next step: the steps taken, unless it was set.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_get_step(
    simulation: *const diffusim_simulation_t,
    step: *mut u64,
) -> diffusim_status_t {
    with(simulation, |s| {
        *output(step, "step")? = s.step_count();
        Ok(())
    })
}

/// Set the number of the next step, from which the noise continues.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_set_step(
    simulation: *mut diffusim_simulation_t,
    step: u64,
) -> diffusim_status_t {
    with(simulation, |s| {
        s.set_step_count(step);
        Ok(())
    })
}

/// Scores of the current frames, `[n_replicas][n_particles][3]` in 1/nm, `n_values` numbers; and, unless `energies` is NULL,
/// their energies `[n_replicas]` in kT₀.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_evaluate(
    simulation: *const diffusim_simulation_t,
    scores: *mut f64,
    n_values: usize,
    energies: *mut f64,
) -> diffusim_status_t {
    with(simulation, |s| {
        if n_values != s.positions().len() {
            bail!(
                InvalidArgument,
                "scores has room for {n_values} numbers; expected {}",
                s.positions().len()
            );
        }
        let scores = slice_mut(scores, n_values, "scores")?;
        let n_replicas = s.options().n_replicas;
        let energies =
            if energies.is_null() { None } else { Some(slice_mut(energies, n_replicas, "energies")?) };
        s.evaluate(scores, energies)
    })
}

/// Continue a simulation of a blend (diffusim_model_blend) at another `lambda`, 0 to 1; positions and step count stay. λ is part of
/// the simulation's state: checkpoints hold it.
///
/// Errors: DIFFUSIM_ERROR_INVALID_ARGUMENT for a lambda outside 0 to 1, and for a model that is no blend.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_set_lambda(
    simulation: *mut diffusim_simulation_t,
    lambda: f64,
) -> diffusim_status_t {
    with(simulation, |s| s.set_lambda(lambda))
}

/// λ of a simulation of a blend.
///
/// Errors: DIFFUSIM_ERROR_INVALID_ARGUMENT for a model that is no blend.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_get_lambda(
    simulation: *const diffusim_simulation_t,
    lambda: *mut f64,
) -> diffusim_status_t {
    with(simulation, |s| {
        let out = output(lambda, "lambda")?;
        s.model().as_blend()?;
        *out = s.lambda().unwrap_or_default();
        Ok(())
    })
}

/// As diffusim_model_component_energies, of the current frames: `energies` `[n_replicas][2]` in kT₀; `n_values` is the length of
/// `energies`.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_component_energies(
    simulation: *const diffusim_simulation_t,
    energies: *mut f64,
    n_values: usize,
) -> diffusim_status_t {
    with(simulation, |s| {
        let n_replicas = s.options().n_replicas;
        if n_values != 2 * n_replicas {
            bail!(
                InvalidArgument,
                "energies has room for {n_values} numbers; expected 2 for each of {n_replicas} replicas"
            );
        }
        let mut pairs = vec![[0.0; 2]; n_replicas];
        s.component_energies(&mut pairs)?;
        slice_mut(energies, n_values, "energies")?.copy_from_slice(pairs.as_flattened());
        Ok(())
    })
}

/// What a simulation has done and what its next step is; quantities that are not known are 0.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct diffusim_statistics_t {
    /// sizeof(diffusim_statistics_t), set by the caller
    pub struct_size: usize,
    /// Number of the next step.
    pub steps: u64,
    /// Frames whose score was computed.
    pub score_evaluations: u64,
    /// Largest |component| of any score so far, 1/nm.
    pub largest_score: f64,
    /// k of the most mobile particle, 1/nm².
    pub spring: f64,
    /// τ of the most mobile particle, nm².
    pub effective_step: f64,
    /// Δt, ps.
    pub time_step: f64,
    /// K.
    pub temperature: f64,
    /// D of the most mobile particle, nm²/ps.
    pub diffusion_coefficient: f64,
    /// Largest stable τ, nm².
    pub stability_limit: f64,
    /// Seed of the noise, which a checkpoint brings along.
    pub seed: u64,
    /// Fraction of the proposals that were accepted, after burn-in once that is over; 0 unless the adapter is DIFFUSIM_MALA.
    pub acceptance: f64,
    /// What burn-in has made of the effective step: the geometric mean of the replicas' factors.
    pub step_factor: f64,
    /// ½ Σ m v², kJ/mol, mean over replicas, with DIFFUSIM_LANGEVIN.
    pub kinetic_energy: f64,
    /// The temperature of that, K, with three degrees of freedom for each particle that is not frozen.
    pub kinetic_temperature: f64,
    /// Time-parallel: batches of scores.
    pub rounds: u64,
    /// Time-parallel: sweeps through the window of one replica, so many in each round as replicas took part.
    pub sweeps: u64,
    /// Time-parallel: steps that became final in a sweep, on average; 0 before the first.
    pub steps_per_sweep: f64,
    /// Time-parallel: frames evaluated for each such step; the sequential sampler takes 1.
    pub evaluations_per_step: f64,
}

/// Fill `statistics`, whose `struct_size` the caller has set to sizeof(diffusim_statistics_t).
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_statistics(
    simulation: *const diffusim_simulation_t,
    statistics: *mut diffusim_statistics_t,
) -> diffusim_status_t {
    with(simulation, |s| write_statistics(statistics, s.statistics(), s.options().seed))
}

pub(super) unsafe fn write_statistics(
    statistics: *mut diffusim_statistics_t,
    known: Statistics,
    seed: u64,
) -> Result<()> {
    let size = *reference(statistics.cast::<usize>(), "statistics")?;
    let value = diffusim_statistics_t {
        struct_size: size,
        steps: known.steps,
        score_evaluations: known.score_evaluations,
        largest_score: known.largest_score,
        spring: 0.5 / known.effective_step,
        effective_step: known.effective_step,
        time_step: known.time_step.unwrap_or(0.0),
        temperature: known.temperature,
        diffusion_coefficient: known.diffusion_coefficient.unwrap_or(0.0),
        stability_limit: known.stability_limit.unwrap_or(0.0),
        seed,
        acceptance: known.acceptance.unwrap_or(0.0),
        step_factor: known.step_factor.unwrap_or(0.0),
        kinetic_energy: known.kinetic_energy.unwrap_or(0.0),
        kinetic_temperature: known.kinetic_temperature.unwrap_or(0.0),
        rounds: known.sweeps.rounds,
        sweeps: known.sweeps.sweeps,
        steps_per_sweep: known.sweeps.steps_per_sweep().unwrap_or(0.0),
        evaluations_per_step: known.sweeps.evaluations_per_step().unwrap_or(0.0),
    };
    write_struct(statistics, size, value, "diffusim_statistics")
}

/// Bytes of a checkpoint.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_checkpoint_size(
    simulation: *const diffusim_simulation_t,
    size: *mut usize,
) -> diffusim_status_t {
    with(simulation, |s| {
        *output(size, "size")? = s.checkpoint_size();
        Ok(())
    })
}

/// Write a checkpoint into `data`, which has room for `size` = diffusim_simulation_checkpoint_size bytes: all that is needed
/// to continue bit for bit in a simulation of the same model and options.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_checkpoint(
    simulation: *const diffusim_simulation_t,
    data: *mut c_void,
    size: usize,
) -> diffusim_status_t {
    with(simulation, |s| {
        if size != s.checkpoint_size() {
            bail!(
                InvalidArgument,
                "data has room for {size} bytes; a checkpoint has {}",
                s.checkpoint_size()
            );
        }
        slice_mut(data.cast::<u8>(), size, "data")?.copy_from_slice(&s.checkpoint());
        Ok(())
    })
}

/// Continue from a checkpoint of `size` bytes, with its seed: a later diffusim_simulation_reconfigure sets the seed of its own
/// options again.
///
/// Errors: DIFFUSIM_ERROR_INVALID_CHECKPOINT (damaged, or of another model or other options); the simulation is unchanged.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_simulation_restore(
    simulation: *mut diffusim_simulation_t,
    data: *const c_void,
    size: usize,
) -> diffusim_status_t {
    with(simulation, |s| s.restore(slice(data.cast::<u8>(), size, "data")?))
}
