//! `diffusim_evaluator_*`

use super::model::{cell_from, diffusim_model_t};
use super::*;
use crate::backend::cuda::Evaluator;
use crate::backend::{Attachment, Device};
use std::ffi::c_void;
use std::ptr;

/// Scores and energies of frames that lie on a GPU, as a program computes them that moves the particles itself: nothing passes
/// through the host. What diffusim_model_evaluate gives on the CPU, bit for bit. Belongs to one thread at a time.
pub struct diffusim_evaluator_t(Exclusive<Evaluator>);

/// Where and how much an evaluator evaluates. Fill with diffusim_evaluator_options_init, then change what you need.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct diffusim_evaluator_options_t {
    /// sizeof(diffusim_evaluator_options_t)
    pub struct_size: usize,
    /// Frames that are evaluated at a time; 1 by default.
    pub n_frames: usize,
    /// "cuda", "cuda:1" and so on. NULL = "cuda", the first GPU.
    pub device: *const c_char,
    /// As in diffusim_simulation_options_t: CUcontext of the caller, of that GPU; NULL = the GPU's primary context.
    pub cuda_context: *mut c_void,
    /// As in diffusim_simulation_options_t: CUstream of that context; NULL = its default stream.
    pub cuda_stream: *mut c_void,
}

const EVALUATOR_OPTIONS: diffusim_evaluator_options_t = diffusim_evaluator_options_t {
    struct_size: size_of::<diffusim_evaluator_options_t>(),
    n_frames: 1,
    device: ptr::null(),
    cuda_context: ptr::null_mut(),
    cuda_stream: ptr::null_mut(),
};

/// Fill `options` with the defaults; `size` is sizeof(diffusim_evaluator_options_t).
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_evaluator_options_init(
    options: *mut diffusim_evaluator_options_t,
    size: usize,
) -> diffusim_status_t {
    guard(|| write_struct(options, size, EVALUATOR_OPTIONS, "diffusim_evaluator_options"))
}

/// Create an evaluator of `model`; `options` may be NULL. It keeps what it needs of the model, which may be freed. A periodic model
/// starts with the cell of its start frames. The caller frees `*evaluator` with diffusim_evaluator_free.
///
/// Errors: DIFFUSIM_ERROR_UNSUPPORTED (no such GPU, "cpu", a model that has no kernel: a callback, a blend of blends),
/// DIFFUSIM_ERROR_INVALID_ARGUMENT, DIFFUSIM_ERROR_DEVICE.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_evaluator_create(
    model: *const diffusim_model_t,
    options: *const diffusim_evaluator_options_t,
    evaluator: *mut *mut diffusim_evaluator_t,
) -> diffusim_status_t {
    guard(|| {
        let out = output(evaluator, "evaluator")?;
        let model = &reference(model, "model")?.model;
        let options = read_options(options, EVALUATOR_OPTIONS, "diffusim_evaluator_options")?;
        let name = if options.device.is_null() { "cuda" } else { text(options.device, "device")? };
        let Device::Cuda(index) = Device::parse(name)? else {
            bail!(
                Unsupported,
                "an evaluator is for frames on a GPU, and device is '{name}'; expected 'cuda', 'cuda:1' and so on. On the CPU \
                 diffusim_model_evaluate does it"
            );
        };
        let attachment = attachment(options.cuda_context, options.cuda_stream)?;
        let (score, cell) = (model.score().clone(), model.start_cell().cloned());
        let made = Evaluator::new(score, cell, options.n_frames, index, attachment)?;
        *out = Box::into_raw(Box::new(diffusim_evaluator_t(Exclusive::new(made))));
        Ok(())
    })
}

/// What a caller lends of CUDA, if anything.
pub(super) fn attachment(context: *mut c_void, stream: *mut c_void) -> Result<Option<Attachment>> {
    if context.is_null() && !stream.is_null() {
        bail!(InvalidArgument, "cuda_stream was given without the cuda_context it belongs to; give both");
    }
    Ok((!context.is_null()).then(|| Attachment { context: context.addr(), stream: stream.addr() }))
}

/// Free an evaluator; NULL is ignored. Waits for what was enqueued.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_evaluator_free(evaluator: *mut diffusim_evaluator_t) {
    if !evaluator.is_null() {
        guard(|| {
            drop(Box::from_raw(evaluator));
            Ok(())
        });
    }
}

unsafe fn with(
    evaluator: *const diffusim_evaluator_t,
    body: impl FnOnce(&mut Evaluator) -> Result<()>,
) -> diffusim_status_t {
    match reference(evaluator, "evaluator") {
        Ok(handle) => handle.0.with("evaluator", body),
        Err(error) => guard(|| Err(error)),
    }
}

/// Set the periodic cell of all frames that are enqueued from now on, as diffusim_simulation_set_cell.
///
/// Errors: DIFFUSIM_ERROR_MISMATCH.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_evaluator_set_cell(
    evaluator: *mut diffusim_evaluator_t,
    cell: *const f64,
) -> diffusim_status_t {
    with(evaluator, |e| e.set_cell(cell_from(cell)?))
}

/// Evaluate a blend (diffusim_model_blend) at another `lambda`, 0 to 1, from now on.
///
/// Errors: DIFFUSIM_ERROR_INVALID_ARGUMENT for a lambda outside 0 to 1, and for a model that is no blend.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_evaluator_set_lambda(
    evaluator: *mut diffusim_evaluator_t,
    lambda: f64,
) -> diffusim_status_t {
    with(evaluator, |e| e.set_lambda(lambda))
}

/// Where to put the frames (a CUdeviceptr): double `[n_frames][n_particles][3]`, nm, zero at first. This and the arrays of results
/// are good until the evaluator is freed; kernels of the caller on the same stream find them in the order of the stream.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_evaluator_device_positions(
    evaluator: *mut diffusim_evaluator_t,
    positions: *mut u64,
) -> diffusim_status_t {
    with(evaluator, |e| {
        *output(positions, "positions")? = e.device_positions();
        Ok(())
    })
}

/// Where their scores are found (a CUdeviceptr): double `[n_frames][n_particles][3]`, 1/nm. Forces are kT₀ times as large.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_evaluator_device_scores(
    evaluator: *mut diffusim_evaluator_t,
    scores: *mut u64,
) -> diffusim_status_t {
    with(evaluator, |e| {
        *output(scores, "scores")? = e.device_scores();
        Ok(())
    })
}

/// Where their energies are found (a CUdeviceptr): double `[n_frames]`, kT₀.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_evaluator_device_energies(
    evaluator: *mut diffusim_evaluator_t,
    energies: *mut u64,
) -> diffusim_status_t {
    with(evaluator, |e| {
        *output(energies, "energies")? = e.device_energies();
        Ok(())
    })
}

/// Start the evaluation of the frames that lie at diffusim_evaluator_device_positions: of their scores and, with `with_energies` not
/// 0, of their energies. Does not wait; but a `message-passing` model of more than 64 particles, or in a periodic cell, waits until it
/// is known that its lists of neighbours had room, and does it again with more where they had not. A smaller one in open space waits the
/// first time, when its pairs are listed.
///
/// Errors: DIFFUSIM_ERROR_DEVICE; DIFFUSIM_ERROR_NOT_FINITE and DIFFUSIM_ERROR_MISMATCH as diffusim_model_evaluate.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_evaluator_enqueue(
    evaluator: *mut diffusim_evaluator_t,
    with_energies: i32,
) -> diffusim_status_t {
    with(evaluator, |e| e.enqueue(with_energies != 0))
}

/// Wait for all that was enqueued.
///
/// Errors: DIFFUSIM_ERROR_DEVICE.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_evaluator_synchronize(
    evaluator: *mut diffusim_evaluator_t,
) -> diffusim_status_t {
    with(evaluator, |e| e.synchronize())
}

/// Wait, and read the energies that were asked for last: `energies` `[n_frames]` in kT₀ has room for `n_values` numbers.
///
/// Errors: DIFFUSIM_ERROR_INVALID_ARGUMENT, DIFFUSIM_ERROR_DEVICE.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_evaluator_get_energies(
    evaluator: *mut diffusim_evaluator_t,
    energies: *mut f64,
    n_values: usize,
) -> diffusim_status_t {
    with(evaluator, |e| {
        if n_values != e.n_frames() {
            bail!(InvalidArgument, "energies has room for {n_values} numbers; expected {}", e.n_frames());
        }
        e.fetch_energies(slice_mut(energies, n_values, "energies")?)
    })
}
