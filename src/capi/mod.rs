//! The C API: every `extern "C"` and every raw pointer of the library.
//!
//! Conventions, held by every function here (see also include/diffusim.h):
//! * the return value is a status; outputs are written only on success; `diffusim_last_error()` has the sentence;
//! * handles are made through an out-pointer and freed by `*_free`, which accepts NULL; every other NULL is an error;
//! * outputs must not overlap inputs;
//! * every body runs inside [`guard`], so no panic crosses the boundary; a handle that a panic went through is poisoned;
//! * option structs start with `struct_size` and only grow; enums cross as `int32_t` and unknown values are errors.
#![allow(non_camel_case_types, clippy::missing_safety_doc, unsafe_op_in_unsafe_fn)]

mod conversions;
mod device;
mod domain;
mod evaluator;
mod model;
mod simulation;

use crate::error::{Error, Result, bail};
use std::cell::{RefCell, UnsafeCell};
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

/// Status of a call: DIFFUSIM_OK or one of DIFFUSIM_ERROR_*.
pub type diffusim_status_t = i32;

/// Success.
pub const DIFFUSIM_OK: i32 = 0;
/// An argument is outside its range, NULL, or contradicts another.
pub const DIFFUSIM_ERROR_INVALID_ARGUMENT: i32 = 1;
/// The model file cannot be used.
pub const DIFFUSIM_ERROR_INVALID_MODEL: i32 = 2;
/// The model and the particles it is asked to move do not fit.
pub const DIFFUSIM_ERROR_MISMATCH: i32 = 3;
/// The step is too coarse for the model.
pub const DIFFUSIM_ERROR_UNSTABLE: i32 = 4;
/// The score stopped being finite or a particle ran away; the last good frame was kept.
pub const DIFFUSIM_ERROR_NOT_FINITE: i32 = 5;
/// A checkpoint cannot be used.
pub const DIFFUSIM_ERROR_INVALID_CHECKPOINT: i32 = 6;
/// This build or this machine does not have what was asked for.
pub const DIFFUSIM_ERROR_UNSUPPORTED: i32 = 7;
/// A file cannot be read or written.
pub const DIFFUSIM_ERROR_IO: i32 = 8;
/// The caller's score function failed.
pub const DIFFUSIM_ERROR_CALLBACK: i32 = 9;
/// A defect of diffusim; the handle involved can only be freed.
pub const DIFFUSIM_ERROR_INTERNAL: i32 = 10;
/// The GPU or its driver failed.
pub const DIFFUSIM_ERROR_DEVICE: i32 = 11;

/// Version of this header.
pub const DIFFUSIM_VERSION_MAJOR: i32 = 0;
/// Version of this header.
pub const DIFFUSIM_VERSION_MINOR: i32 = 1;
/// Version of this header.
pub const DIFFUSIM_VERSION_PATCH: i32 = 0;
/// Grows when a function or a field is added; programs need at least the one they were compiled with.
pub const DIFFUSIM_ABI_VERSION: i32 = 1;

/// The decimal number in `text`.
const fn parse(text: &str) -> i32 {
    let (mut value, mut i) = (0, 0);
    while i < text.len() {
        value = 10 * value + (text.as_bytes()[i] - b'0') as i32;
        i += 1;
    }
    value
}
const _: () = assert!(parse(env!("CARGO_PKG_VERSION_MAJOR")) == DIFFUSIM_VERSION_MAJOR);
const _: () = assert!(parse(env!("CARGO_PKG_VERSION_MINOR")) == DIFFUSIM_VERSION_MINOR);
const _: () = assert!(parse(env!("CARGO_PKG_VERSION_PATCH")) == DIFFUSIM_VERSION_PATCH);

/// Arrays of `float`.
pub const DIFFUSIM_FLOAT32: i32 = 0;
/// Arrays of `double`.
pub const DIFFUSIM_FLOAT64: i32 = 1;

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

fn set_last_error(text: &str) {
    let text: String = text.chars().map(|c| if c == '\0' { ' ' } else { c }).collect();
    LAST_ERROR.with_borrow_mut(|last| *last = CString::new(text).unwrap_or_default());
}

/// Run the body of a C function: errors and panics become a status and a sentence.
fn guard(body: impl FnOnce() -> Result<()>) -> diffusim_status_t {
    let outcome = catch_unwind(AssertUnwindSafe(body));
    let error = match outcome {
        Ok(Ok(())) => return DIFFUSIM_OK,
        Ok(Err(error)) => error,
        Err(panic) => {
            let what = panic
                .downcast_ref::<&str>()
                .map(|s| s.to_string())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            set_last_error(&format!("diffusim has a defect ({what}); please report it"));
            return DIFFUSIM_ERROR_INTERNAL;
        }
    };
    set_last_error(&error.to_string());
    match error {
        Error::InvalidArgument(_) => DIFFUSIM_ERROR_INVALID_ARGUMENT,
        Error::InvalidModel(_) => DIFFUSIM_ERROR_INVALID_MODEL,
        Error::Mismatch(_) => DIFFUSIM_ERROR_MISMATCH,
        Error::Unstable(_) => DIFFUSIM_ERROR_UNSTABLE,
        Error::NotFinite(_) => DIFFUSIM_ERROR_NOT_FINITE,
        Error::InvalidCheckpoint(_) => DIFFUSIM_ERROR_INVALID_CHECKPOINT,
        Error::Unsupported(_) => DIFFUSIM_ERROR_UNSUPPORTED,
        Error::Io(_) => DIFFUSIM_ERROR_IO,
        Error::Callback(_) => DIFFUSIM_ERROR_CALLBACK,
        Error::Device(_) => DIFFUSIM_ERROR_DEVICE,
    }
}

/// What a handle holds that changes: it belongs to one call at a time.
struct Exclusive<T> {
    value: UnsafeCell<T>,
    /// A call is under way.
    busy: AtomicBool,
    /// A panic went through it.
    poisoned: AtomicBool,
}

impl<T> Exclusive<T> {
    fn new(value: T) -> Self {
        Exclusive {
            value: UnsafeCell::new(value),
            busy: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
        }
    }

    /// Run `body` on the value, called `name` in messages, unless it is in use or a panic has gone through it.
    unsafe fn with(&self, name: &str, body: impl FnOnce(&mut T) -> Result<()>) -> diffusim_status_t {
        if self.poisoned.load(Ordering::Relaxed) {
            set_last_error(&format!(
                "this {name} can only be freed: an earlier call on it met a defect of diffusim"
            ));
            return DIFFUSIM_ERROR_INTERNAL;
        }
        if self.busy.swap(true, Ordering::Acquire) {
            return guard(|| {
                bail!(
                    InvalidArgument,
                    "the {name} is in use, by another thread or by the caller of this callback"
                )
            });
        }
        let status = guard(|| body(&mut *self.value.get()));
        if status == DIFFUSIM_ERROR_INTERNAL {
            self.poisoned.store(true, Ordering::Relaxed);
        }
        self.busy.store(false, Ordering::Release);
        status
    }
}

fn null(name: &str) -> Error {
    Error::InvalidArgument(format!("argument {name} is NULL"))
}

unsafe fn reference<'a, T>(pointer: *const T, name: &str) -> Result<&'a T> {
    check_slice(pointer, 1, name)?;
    Ok(&*pointer)
}

unsafe fn output<'a, T>(pointer: *mut T, name: &str) -> Result<&'a mut T> {
    check_slice(pointer, 1, name)?;
    Ok(&mut *pointer)
}

/// A slice from pointer and length; an empty one may be NULL.
unsafe fn slice<'a, T>(pointer: *const T, len: usize, name: &str) -> Result<&'a [T]> {
    check_slice(pointer, len, name)?;
    Ok(if len == 0 { &[] } else { std::slice::from_raw_parts(pointer, len) })
}

unsafe fn slice_mut<'a, T>(pointer: *mut T, len: usize, name: &str) -> Result<&'a mut [T]> {
    check_slice(pointer, len, name)?;
    Ok(if len == 0 { &mut [] } else { std::slice::from_raw_parts_mut(pointer, len) })
}

fn check_slice<T>(pointer: *const T, len: usize, name: &str) -> Result<()> {
    if len == 0 {
        return Ok(());
    }
    if pointer.is_null() {
        return Err(null(name));
    }
    if !pointer.is_aligned() {
        bail!(InvalidArgument, "argument {name} is not aligned to {} bytes", align_of::<T>());
    }
    if len.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
        bail!(InvalidArgument, "argument {name} cannot hold {len} entries");
    }
    Ok(())
}

/// An error if an input and an output share memory.
fn check_apart<T, U>(input: &[T], output: *const U, len: usize, name: &str) -> Result<()> {
    check_apart_from(input, output, len, name, "positions")
}

/// The same, where `other` is what argument `name` overlaps.
fn check_apart_from<T, U>(input: &[T], output: *const U, len: usize, name: &str, other: &str) -> Result<()> {
    let input = input.as_ptr_range();
    let output = output.addr()..output.addr().saturating_add(len * size_of::<U>());
    if input.start.addr() < output.end && output.start < input.end.addr() {
        bail!(InvalidArgument, "argument {name} overlaps the {other}; give it memory of its own");
    }
    Ok(())
}

unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<&'a str> {
    if pointer.is_null() {
        return Err(null(name));
    }
    CStr::from_ptr(pointer)
        .to_str()
        .map_err(|_| Error::InvalidArgument(format!("argument {name} is not UTF-8")))
}

/// An option struct of the caller, who may have been compiled with an older and shorter one: what it lacks is default.
unsafe fn read_options<T: Copy>(pointer: *const T, defaults: T, name: &str) -> Result<T> {
    if pointer.is_null() {
        return Ok(defaults);
    }
    let size = *reference(pointer.cast::<usize>(), name)?;
    if size < size_of::<usize>() || size > size_of::<T>() {
        bail!(
            InvalidArgument,
            "{name}.struct_size is {size}; expected at most {}. Initialise the struct with {name}_init of this version",
            size_of::<T>()
        );
    }
    let mut options = defaults;
    std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), (&raw mut options).cast::<u8>(), size);
    Ok(options)
}

/// The other way round: as much of `value` as fits into the caller's struct of `size` bytes.
unsafe fn write_struct<T: Copy>(pointer: *mut T, size: usize, value: T, name: &str) -> Result<()> {
    check_slice(pointer.cast::<usize>(), 1, name)?;
    if size < size_of::<usize>() {
        bail!(InvalidArgument, "{name}: a struct of {size} bytes cannot hold its own size");
    }
    let n = size.min(size_of::<T>());
    std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), pointer.cast::<u8>(), n);
    *pointer.cast::<usize>() = n;
    Ok(())
}

/// Version of the library, such as "0.1.0"; static.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub extern "C" fn diffusim_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// DIFFUSIM_ABI_VERSION of the library; compare with that of the header: the library's must not be smaller.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub extern "C" fn diffusim_abi_version() -> i32 {
    DIFFUSIM_ABI_VERSION
}

/// The sentence that belongs to the last failed call on this thread: what was wrong, with which value, what to do.
/// Never NULL; valid until the next failure on this thread.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub extern "C" fn diffusim_last_error() -> *const c_char {
    LAST_ERROR.with_borrow(|last| last.as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_a_status() {
        assert_eq!(guard(|| panic!("seven")), DIFFUSIM_ERROR_INTERNAL);
        let text = unsafe { CStr::from_ptr(diffusim_last_error()) };
        assert!(text.to_str().unwrap().contains("seven"));
    }
}
