//! What a simulation may run on.

use super::{diffusim_status_t, guard, output, text};
use crate::backend::{self, Device};
use crate::error::{Error, Result};
use std::cell::RefCell;
use std::ffi::{CString, c_char};

thread_local! {
    static DESCRIPTION: RefCell<CString> = RefCell::default();
}

/// Describe the device of a name that diffusim_simulation_options_t::device takes, such as
/// "cuda:0: NVIDIA H100, compute capability 9.0, 79 GiB, CUDA graphs on, kernels: PTX". A GPU is started for that, and the kernels
/// are loaded. The text is valid until the next call on this thread.
///
/// Errors: DIFFUSIM_ERROR_INVALID_ARGUMENT (no such name), DIFFUSIM_ERROR_UNSUPPORTED (it cannot be used here; the sentence says
/// why), DIFFUSIM_ERROR_DEVICE (it failed).
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_device_describe(
    device: *const c_char,
    description: *mut *const c_char,
) -> diffusim_status_t {
    guard(|| {
        let out = output(description, "description")?;
        *out = kept(Device::parse(text(device, "device")?)?.describe()?)?;
        Ok(())
    })
}

/// Where `words` are kept until the next call on this thread.
pub(super) fn kept(words: String) -> Result<*const c_char> {
    let words = CString::new(words).map_err(|e| Error::Device(e.to_string()))?;
    Ok(DESCRIPTION.with_borrow_mut(|last| {
        *last = words;
        last.as_ptr()
    }))
}

/// Number of GPUs: "cuda:0", "cuda:1" and so on; 0 where there is no driver.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_device_count(n_gpus: *mut usize) -> diffusim_status_t {
    guard(|| {
        *output(n_gpus, "n_gpus")? = backend::cuda::count();
        Ok(())
    })
}
