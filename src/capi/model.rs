//! `diffusim_model_*`

use super::*;
use crate::cell::Cell;
use crate::model::{Frames, Model, Outputs, ScoreModel, Scratch, curvature};
use crate::sampler::{SampleOptions, sample};
use std::ffi::c_void;
use std::path::Path;
use std::sync::Arc;

/// A score model. Immutable and safe to use from several threads; simulations keep what they need of it alive, so a model
/// may be freed while simulations run.
pub struct diffusim_model_t {
    pub(super) model: Arc<Model>,
    name: CString,
    metadata: CString,
    sha256: CString,
}

impl diffusim_model_t {
    fn put(mut model: Model, name: Option<&str>, out: &mut *mut diffusim_model_t) {
        if let Some(name) = name {
            model.rename(name);
        }
        let text = |s: &str| CString::new(s.replace('\0', " ")).unwrap_or_default();
        let handle = diffusim_model_t {
            name: text(model.name()),
            metadata: text(model.metadata_json()),
            sha256: text(model.sha256()),
            model: Arc::new(model),
        };
        *out = Box::into_raw(Box::new(handle));
    }
}

/// How a model is read. Fill with diffusim_model_options_init, then change what you need.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct diffusim_model_options_t {
    /// sizeof(diffusim_model_options_t)
    pub struct_size: usize,
    /// σ at which the score is read, nm; 0 = the level the model file names for simulations.
    pub noise_level: f64,
    /// What messages call the model, copied; NULL = the name of its file.
    pub name: *const c_char,
}

const MODEL_OPTIONS: diffusim_model_options_t = diffusim_model_options_t {
    struct_size: size_of::<diffusim_model_options_t>(),
    noise_level: 0.0,
    name: std::ptr::null(),
};

/// Fill `options` with the defaults; `size` is sizeof(diffusim_model_options_t).
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_options_init(
    options: *mut diffusim_model_options_t,
    size: usize,
) -> diffusim_status_t {
    guard(|| write_struct(options, size, MODEL_OPTIONS, "diffusim_model_options"))
}

/// The noise level and the name, where they were given.
unsafe fn convert<'a>(options: *const diffusim_model_options_t) -> Result<(Option<f64>, Option<&'a str>)> {
    let options = read_options(options, MODEL_OPTIONS, "diffusim_model_options")?;
    let name = if options.name.is_null() { None } else { Some(text(options.name, "name")?) };
    Ok(((options.noise_level != 0.0).then_some(options.noise_level), name))
}

/// Read the model file `path` (UTF-8); `options` may be NULL. The caller frees `*model` with diffusim_model_free.
///
/// Errors: DIFFUSIM_ERROR_IO, DIFFUSIM_ERROR_INVALID_MODEL (damaged, changed, unknown version or kind, wrong shapes or types,
/// weights that are not finite), DIFFUSIM_ERROR_INVALID_ARGUMENT (noise level outside the training's).
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_load(
    path: *const c_char,
    options: *const diffusim_model_options_t,
    model: *mut *mut diffusim_model_t,
) -> diffusim_status_t {
    guard(|| {
        let out = output(model, "model")?;
        let path = text(path, "path")?;
        let (noise_level, name) = convert(options)?;
        diffusim_model_t::put(Model::load(Path::new(path), noise_level)?, name, out);
        Ok(())
    })
}

/// As diffusim_model_load, from the `size` bytes of a model file in memory, which are copied.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_from_bytes(
    data: *const c_void,
    size: usize,
    options: *const diffusim_model_options_t,
    model: *mut *mut diffusim_model_t,
) -> diffusim_status_t {
    guard(|| {
        let out = output(model, "model")?;
        let bytes = slice(data.cast::<u8>(), size, "data")?;
        let (noise_level, name) = convert(options)?;
        diffusim_model_t::put(Model::from_bytes(bytes, noise_level)?, name, out);
        Ok(())
    })
}

/// An analytic model (kinds free, harmonic, double-well, mueller-brown, lennard-jones-cluster, dw4, gaussian-mixture) from the JSON description
/// that a model file would hold.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_from_json(
    metadata: *const c_char,
    model: *mut *mut diffusim_model_t,
) -> diffusim_status_t {
    guard(|| {
        let out = output(model, "model")?;
        diffusim_model_t::put(Model::from_json(text(metadata, "metadata")?)?, None, out);
        Ok(())
    })
}

/// The caller's score function: from `positions` `[n_frames][n_particles][3]` in nm write `scores` of the same shape in 1/nm
/// and, unless `energies` is NULL, `energies` `[n_frames]` in kT₀. Any return value but 0 ends the run with
/// DIFFUSIM_ERROR_CALLBACK. It gets the frames of many replicas at once, from several threads, and must neither throw, nor
/// longjmp, nor use the simulation that calls it.
pub type diffusim_score_callback_t = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        positions: *const f64,
        n_frames: usize,
        n_particles: usize,
        scores: *mut f64,
        energies: *mut f64,
    ) -> i32,
>;

/// The caller vouches that its data may be used from the threads of a simulation.
struct UserData(*mut c_void);
unsafe impl Send for UserData {}
unsafe impl Sync for UserData {}

impl UserData {
    fn get(&self) -> *mut c_void {
        self.0
    }
}

/// A model of `n_particles` around the caller's `function`, whose energies are in kT at `training_temperature` K.
/// `user_data` is handed to every call and must outlive the model and its simulations.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_callback(
    n_particles: usize,
    function: diffusim_score_callback_t,
    user_data: *mut c_void,
    training_temperature: f64,
    model: *mut *mut diffusim_model_t,
) -> diffusim_status_t {
    guard(|| {
        let out = output(model, "model")?;
        let function = function.ok_or_else(|| null("function"))?;
        let user_data = UserData(user_data);
        let score = move |positions: &[f64], scores: &mut [f64], energies: Option<&mut [f64]>| {
            let energies = energies.map_or(std::ptr::null_mut(), |e| e.as_mut_ptr());
            let n_frames = positions.len() / (3 * n_particles);
            let status = function(
                user_data.get(),
                positions.as_ptr(),
                n_frames,
                n_particles,
                scores.as_mut_ptr(),
                energies,
            );
            match status {
                0 => Ok(()),
                status => {
                    Err(format!("the score callback returned {status}; the positions were left as they were"))
                }
            }
        };
        diffusim_model_t::put(
            Model::callback(n_particles, training_temperature, Box::new(score))?,
            None,
            out,
        );
        Ok(())
    })
}

/// `model`, moving only the given particles of a system of `n_particles_total`: `particles[i]` is where the model's particle i
/// is found. All others have zero score. `particles` holds diffusim_model_n_particles(model) indices. The metadata of the subset
/// stays that of `model`.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_subset(
    model: *const diffusim_model_t,
    n_particles_total: usize,
    particles: *const usize,
    subset: *mut *mut diffusim_model_t,
) -> diffusim_status_t {
    guard(|| {
        let out = output(subset, "subset")?;
        let model = &reference(model, "model")?.model;
        let particles = slice(particles, model.n_particles(), "particles")?;
        diffusim_model_t::put(model.subset(n_particles_total, particles)?, None, out);
        Ok(())
    })
}

/// A transferable model (kind `message-passing`) for `count` other particles, given by their `species` in order: element symbols
/// or names of beads, as the model file lists them. The caller frees `*other` with diffusim_model_free.
///
/// Errors: DIFFUSIM_ERROR_MISMATCH for a species the model does not know, DIFFUSIM_ERROR_UNSUPPORTED for a model that is made for
/// its own particles.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_for_species(
    model: *const diffusim_model_t,
    species: *const *const c_char,
    count: usize,
    other: *mut *mut diffusim_model_t,
) -> diffusim_status_t {
    guard(|| {
        let out = output(other, "other")?;
        let names = slice(species, count, "species")?.iter().map(|s| text(*s, "species"));
        let names = names.collect::<Result<Vec<_>>>()?;
        diffusim_model_t::put(reference(model, "model")?.model.for_species(&names)?, None, out);
        Ok(())
    })
}

/// Two models of the same particles as one: E = (1−λ)E_a + λE_b, in kT₀ (theory 7). At λ = 0 it is `a` and at λ = 1 `b`, to the
/// last bit. Particles, masses and start frames are those of `a`, or of `b` where `a` has none. `lambda` is where simulations of the
/// blend start; diffusim_simulation_set_lambda moves them. The blend keeps what it needs of `a` and `b`, which may be freed. The
/// caller frees `*model` with diffusim_model_free.
///
/// Errors: DIFFUSIM_ERROR_MISMATCH (another number of particles, another training temperature, only one of them periodic),
/// DIFFUSIM_ERROR_INVALID_ARGUMENT (lambda outside 0 to 1).
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_blend(
    a: *const diffusim_model_t,
    b: *const diffusim_model_t,
    lambda: f64,
    model: *mut *mut diffusim_model_t,
) -> diffusim_status_t {
    guard(|| {
        let out = output(model, "model")?;
        let (a, b) = (reference(a, "a")?, reference(b, "b")?);
        diffusim_model_t::put(Model::blend(&a.model, &b.model, lambda)?, None, out);
        Ok(())
    })
}

/// Free a model; NULL is ignored.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_free(model: *mut diffusim_model_t) {
    if !model.is_null() {
        guard(|| {
            drop(Box::from_raw(model));
            Ok(())
        });
    }
}

/// Particles of a frame; 0 for NULL.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_n_particles(model: *const diffusim_model_t) -> usize {
    model.as_ref().map_or(0, |m| m.model.n_particles())
}

/// What messages call the model. Lives as long as the model.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_name(
    model: *const diffusim_model_t,
    name: *mut *const c_char,
) -> diffusim_status_t {
    guard(|| {
        let out = output(name, "name")?;
        *out = reference(model, "model")?.name.as_ptr();
        Ok(())
    })
}

/// The model's description: atoms, units, temperature, noise levels, provenance, as JSON. Lives as long as the model.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_metadata(
    model: *const diffusim_model_t,
    json: *mut *const c_char,
) -> diffusim_status_t {
    guard(|| {
        let out = output(json, "json")?;
        *out = reference(model, "model")?.metadata.as_ptr();
        Ok(())
    })
}

/// sha256 of the model file (of the JSON description where there is no file), in hexadecimal. Lives as long as the model.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_sha256(
    model: *const diffusim_model_t,
    hex: *mut *const c_char,
) -> diffusim_status_t {
    guard(|| {
        let out = output(hex, "hex")?;
        *out = reference(model, "model")?.sha256.as_ptr();
        Ok(())
    })
}

/// The model file's bytes, to embed it elsewhere. They live as long as the model.
///
/// Errors: DIFFUSIM_ERROR_INVALID_ARGUMENT for a model that came from no file.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_bytes(
    model: *const diffusim_model_t,
    data: *mut *const c_void,
    size: *mut usize,
) -> diffusim_status_t {
    guard(|| {
        let (data, size) = (output(data, "data")?, output(size, "size")?);
        let model = &reference(model, "model")?.model;
        let Some(bytes) = model.bytes() else {
            bail!(InvalidArgument, "{} was not read from a model file and has no bytes", model.name());
        };
        *data = bytes.as_ptr().cast();
        *size = bytes.len();
        Ok(())
    })
}

/// T₀ of the training snapshots, K.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_training_temperature(
    model: *const diffusim_model_t,
    temperature: *mut f64,
) -> diffusim_status_t {
    guard(|| {
        let out = output(temperature, "temperature")?;
        *out = reference(model, "model")?.model.metadata().training_temperature;
        Ok(())
    })
}

/// Masses in amu into `masses` `[n_particles]`; `count` is its length.
///
/// Errors: DIFFUSIM_ERROR_INVALID_ARGUMENT where the model does not know them all.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_masses(
    model: *const diffusim_model_t,
    masses: *mut f64,
    count: usize,
) -> diffusim_status_t {
    guard(|| {
        let known = reference(model, "model")?.model.masses()?;
        if count != known.len() {
            bail!(InvalidArgument, "masses has room for {count} numbers; expected {}", known.len());
        }
        slice_mut(masses, count, "masses")?.copy_from_slice(&known);
        Ok(())
    })
}

/// Frames to start from, `[*n_frames][n_particles][3]` in nm; `*n_frames` may be 0. They live as long as the model.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_start_positions(
    model: *const diffusim_model_t,
    n_frames: *mut usize,
    positions: *mut *const f64,
) -> diffusim_status_t {
    guard(|| {
        let (n_frames, positions) = (output(n_frames, "n_frames")?, output(positions, "positions")?);
        let model = &reference(model, "model")?.model;
        *n_frames = model.start_positions().len() / (3 * model.n_particles());
        *positions = model.start_positions().as_ptr();
        Ok(())
    })
}

/// Whether the model lives in a periodic cell: 1, or 0, also for NULL.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_is_periodic(model: *const diffusim_model_t) -> i32 {
    model.as_ref().map_or(0, |m| m.model.metadata().periodic.into())
}

/// The cell of the frames to start from, `cell` `[3][3]` in nm, rows are lattice vectors.
///
/// Errors: DIFFUSIM_ERROR_INVALID_ARGUMENT where the model has none.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_start_cell(
    model: *const diffusim_model_t,
    cell: *mut f64,
) -> diffusim_status_t {
    guard(|| {
        let out = slice_mut(cell, 9, "cell")?;
        let model = &reference(model, "model")?.model;
        let Some(cell) = model.start_cell() else {
            bail!(InvalidArgument, "{} has no cell of its own", model.name());
        };
        out.copy_from_slice(cell.vectors().as_flattened());
        Ok(())
    })
}

/// Whether `masses` `[count]` (amu) of an engine are those of the model's particles, in order, within 0.6 amu; 0 passes.
///
/// Errors: DIFFUSIM_ERROR_MISMATCH, naming the first particle that differs.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_check_masses(
    model: *const diffusim_model_t,
    masses: *const f64,
    count: usize,
) -> diffusim_status_t {
    guard(|| reference(model, "model")?.model.check_masses(slice(masses, count, "masses")?))
}

/// Whether the `elements` `[count]` (symbols; NULL entries are not compared) of an engine's particles are those of the model.
/// `names` `[count]`, which may be NULL, is only used to name particles in the message.
///
/// Errors: DIFFUSIM_ERROR_MISMATCH, naming the first particle that differs.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_check_particles(
    model: *const diffusim_model_t,
    count: usize,
    elements: *const *const c_char,
    names: *const *const c_char,
) -> diffusim_status_t {
    guard(|| {
        let model = &reference(model, "model")?.model;
        let strings = |array: &[*const c_char], name: &str| {
            array
                .iter()
                .map(|s| if s.is_null() { Ok(None) } else { text(*s, name).map(Some) })
                .collect::<Result<Vec<_>>>()
        };
        let elements = strings(slice(elements, count, "elements")?, "elements")?;
        let names =
            if names.is_null() { Vec::new() } else { strings(slice(names, count, "names")?, "names")? };
        model.check_particles(&elements, &names)
    })
}

unsafe fn frames<'a>(model: &Model, positions: *const f64, n_frames: usize) -> Result<&'a [f64]> {
    let Some(len) = n_frames.checked_mul(3 * model.n_particles()) else {
        bail!(
            InvalidArgument,
            "{n_frames} frames of {} particles do not fit into memory",
            model.n_particles()
        );
    };
    slice(positions, len, "positions")
}

/// A cell from `[3][3]` numbers, NULL for none.
pub(super) unsafe fn cell_from(cell: *const f64) -> Result<Option<Cell>> {
    if cell.is_null() {
        return Ok(None);
    }
    let rows = slice(cell, 9, "cell")?;
    Ok(Some(Cell::new(std::array::from_fn(|k| std::array::from_fn(|c| rows[3 * k + c])))?))
}

/// Frames in the model's own cell, if it has one.
unsafe fn own_frames<'a>(model: &'a Model, positions: *const f64, n_frames: usize) -> Result<Frames<'a>> {
    model.score().check_cell(model.start_cell())?;
    Ok(Frames { positions: frames(model, positions, n_frames)?, cell: model.start_cell() })
}

/// Scores and, unless `energies` is NULL, energies of `n_frames` frames: `positions` and `scores` `[n_frames][n_particles][3]`
/// in nm and 1/nm, `energies` `[n_frames]` in kT₀. A periodic model is evaluated in its own cell.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_evaluate(
    model: *const diffusim_model_t,
    positions: *const f64,
    n_frames: usize,
    scores: *mut f64,
    energies: *mut f64,
) -> diffusim_status_t {
    guard(|| {
        let model = &reference(model, "model")?.model;
        let frames = own_frames(model, positions, n_frames)?;
        evaluate(model, frames, n_frames, scores, energies, std::ptr::null_mut())
    })
}

/// As diffusim_model_evaluate, in a given `cell` `[3][3]` in nm (rows are lattice vectors), or in open space where `cell` is NULL;
/// and, unless `virials` is NULL, virials −∂E/∂ε_ab under x_a → x_a + ε_ab x_b of positions and cell, `[n_frames][3][3]` in kT₀.
///
/// Errors: DIFFUSIM_ERROR_MISMATCH for a periodic model without a cell, another model with one, and a cell that is too small for
/// the model's cutoff.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_evaluate_in_cell(
    model: *const diffusim_model_t,
    cell: *const f64,
    positions: *const f64,
    n_frames: usize,
    scores: *mut f64,
    energies: *mut f64,
    virials: *mut f64,
) -> diffusim_status_t {
    guard(|| {
        let model = &reference(model, "model")?.model;
        let cell = cell_from(cell)?;
        model.score().check_cell(cell.as_ref())?;
        let frames = Frames { positions: frames(model, positions, n_frames)?, cell: cell.as_ref() };
        evaluate(model, frames, n_frames, scores, energies, virials)
    })
}

unsafe fn evaluate(
    model: &Model,
    frames: Frames,
    n_frames: usize,
    scores: *mut f64,
    energies: *mut f64,
    virials: *mut f64,
) -> Result<()> {
    thread_local! {
        /// Kept between calls: lists of neighbours may still be good. Results do not depend on it.
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    let positions = frames.positions;
    check_apart(positions, scores, positions.len(), "scores")?;
    check_apart(positions, energies, n_frames, "energies")?;
    check_apart(positions, virials, 9 * n_frames, "virials")?;
    let optional = |pointer: *mut f64, len: usize, name: &str| {
        if pointer.is_null() { Ok(None) } else { slice_mut(pointer, len, name).map(Some) }
    };
    let outputs = Outputs {
        scores: slice_mut(scores, positions.len(), "scores")?,
        energies: optional(energies, n_frames, "energies")?,
        virials: optional(virials, 9 * n_frames, "virials")?,
    };
    // A callback may evaluate another model.
    SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
        Ok(mut scratch) => model.score().evaluate(frames, outputs, &mut scratch),
        Err(_) => model.score().evaluate(frames, outputs, &mut Scratch::default()),
    })
}

/// Energies of the two models of a blend, whatever its λ: `positions` `[n_frames][n_particles][3]` in nm, `energies`
/// `[n_frames][2]` in kT₀, E_a and E_b of each frame. They give ∂E/∂λ = E_b − E_a and the energy (1−λ')E_a + λ'E_b at every λ'
/// (theory 7). `cell` as in diffusim_model_evaluate_in_cell.
///
/// Errors: DIFFUSIM_ERROR_INVALID_ARGUMENT for a model that is no blend, DIFFUSIM_ERROR_UNSUPPORTED where one of the two gives no
/// energies, DIFFUSIM_ERROR_MISMATCH (cell).
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_component_energies(
    model: *const diffusim_model_t,
    cell: *const f64,
    positions: *const f64,
    n_frames: usize,
    energies: *mut f64,
) -> diffusim_status_t {
    guard(|| {
        let model = &reference(model, "model")?.model;
        let blend = model.as_blend()?;
        let cell = cell_from(cell)?;
        blend.check_cell(cell.as_ref())?;
        let positions = frames(model, positions, n_frames)?;
        check_apart(positions, energies, 2 * n_frames, "energies")?;
        let energies = slice_mut(energies, 2 * n_frames, "energies")?;
        let mut pairs = vec![[0.0; 2]; n_frames];
        blend.component_energies(Frames { positions, cell: cell.as_ref() }, &mut pairs)?;
        energies.copy_from_slice(pairs.as_flattened());
        Ok(())
    })
}

/// Largest eigenvalue (1/nm²) of −∇s over `n_frames` frames `[n_frames][n_particles][3]` in nm, by power iteration: a step is
/// stable while τ times it stays below 2 (theory §2).
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_largest_curvature(
    model: *const diffusim_model_t,
    positions: *const f64,
    n_frames: usize,
    curvature: *mut f64,
) -> diffusim_status_t {
    guard(|| {
        let out = output(curvature, "curvature")?;
        let model = &reference(model, "model")?.model;
        let frames = own_frames(model, positions, n_frames)?;
        *out = curvature::largest_curvature(&**model.score(), frames)?;
        Ok(())
    })
}

/// Largest frequency (1/ps) of the modes over `n_frames` frames `[n_frames][n_particles][3]` in nm, for particles of `masses`
/// `[n_particles]` in amu, 0 = frozen; NULL = the model's: a step Δt of DIFFUSIM_LANGEVIN is stable while Δt times it stays below 2
/// (theory 11). 0 where no mode is bound.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_largest_frequency(
    model: *const diffusim_model_t,
    masses: *const f64,
    positions: *const f64,
    n_frames: usize,
    frequency: *mut f64,
) -> diffusim_status_t {
    guard(|| {
        let out = output(frequency, "frequency")?;
        let model = &reference(model, "model")?.model;
        let frames = own_frames(model, positions, n_frames)?;
        let masses = if masses.is_null() {
            model.masses()?
        } else {
            slice(masses, model.n_particles(), "masses")?.to_vec()
        };
        let temperature = model.metadata().training_temperature;
        *out = curvature::largest_frequency(&**model.score(), frames, &masses, temperature)?;
        Ok(())
    })
}

/// Configurational temperature T₀ ⟨‖s‖²⟩/⟨−∇·s⟩ (K) over `n_frames` frames `[n_frames][n_particles][3]` in nm.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_configurational_temperature(
    model: *const diffusim_model_t,
    positions: *const f64,
    n_frames: usize,
    temperature: *mut f64,
) -> diffusim_status_t {
    guard(|| {
        let out = output(temperature, "temperature")?;
        let model = &reference(model, "model")?.model;
        let frames = own_frames(model, positions, n_frames)?;
        let (laplacian, square) = curvature::laplacian_and_square(&**model.score(), frames)?;
        *out = model.metadata().training_temperature * square / laplacian;
        Ok(())
    })
}

/// How independent frames are drawn. Fill with diffusim_sample_options_init, then change what you need.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct diffusim_sample_options_t {
    /// sizeof(diffusim_sample_options_t)
    pub struct_size: usize,
    /// Seed of the noise. A frame depends on the seed and on its number alone.
    pub seed: u64,
    /// Number of the first frame.
    pub first_frame: u32,
    /// Steps of reverse diffusion, two scores each; 32 by default.
    pub n_steps: u32,
    /// σ at which frames start, nm; 0 = half the greatest noise level of the training.
    pub start_level: f64,
    /// Langevin steps at the end; 100 by default.
    pub corrector_steps: u64,
    /// Threads; 0 = one per core.
    pub n_threads: usize,
}

fn sample_options() -> diffusim_sample_options_t {
    let defaults = SampleOptions::default();
    diffusim_sample_options_t {
        struct_size: size_of::<diffusim_sample_options_t>(),
        seed: defaults.seed,
        first_frame: defaults.first_frame,
        n_steps: defaults.n_steps as u32,
        start_level: 0.0,
        corrector_steps: defaults.corrector_steps,
        n_threads: defaults.n_threads,
    }
}

/// Fill `options` with the defaults; `size` is sizeof(diffusim_sample_options_t).
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_sample_options_init(
    options: *mut diffusim_sample_options_t,
    size: usize,
) -> diffusim_status_t {
    guard(|| write_struct(options, size, sample_options(), "diffusim_sample_options"))
}

/// Draw `n_frames` equilibrium frames by reverse diffusion, from the training's noise down to the level at which the model is
/// read: `positions` `[n_frames][n_particles][3]` in nm. `options` may be NULL. Frame f starts from the model's start frame
/// f mod n_start_frames, blurred by `start_level`: basins that lie farther apart keep the populations of the start frames.
///
/// Errors: DIFFUSIM_ERROR_UNSUPPORTED (a model of one density, or a subset), DIFFUSIM_ERROR_INVALID_ARGUMENT,
/// DIFFUSIM_ERROR_NOT_FINITE (naming frame, particle and noise level).
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_model_sample(
    model: *const diffusim_model_t,
    options: *const diffusim_sample_options_t,
    positions: *mut f64,
    n_frames: usize,
) -> diffusim_status_t {
    guard(|| {
        let model = &reference(model, "model")?.model;
        let c = read_options(options, sample_options(), "diffusim_sample_options")?;
        let options = SampleOptions {
            seed: c.seed,
            first_frame: c.first_frame,
            n_steps: c.n_steps as usize,
            start_level: (c.start_level != 0.0).then_some(c.start_level),
            corrector_steps: c.corrector_steps,
            n_threads: c.n_threads,
        };
        let mut drawn = Vec::new();
        let len = n_frames.checked_mul(3 * model.n_particles());
        let Some(len) = len.filter(|len| drawn.try_reserve_exact(*len).is_ok()) else {
            bail!(InvalidArgument, "{n_frames} frames do not fit into memory");
        };
        check_slice(positions, len, "positions")?;
        drawn.resize(len, 0.0);
        sample(model, &options, &mut drawn)?;
        slice_mut(positions, len, "positions")?.copy_from_slice(&drawn);
        Ok(())
    })
}
