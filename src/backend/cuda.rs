//! NVIDIA GPUs, through the driver that is found at run time: nothing here needs a toolkit, and a machine without a driver
//! gets a sentence.
//!
//! One launch takes all steps of a [`Job`], or a step takes several ([`launches`]); `kernels/advance.cuh` and
//! `kernels/launches.cuh` are twins of the loop in `cpu.rs`, and add in the same order: positions have the bits of the CPU's.
//! An [`Evaluator`] takes no steps. This is the only file that knows cudarc.

mod evaluator;
mod image;
mod launches;
mod network;
mod source;
mod tensor;

pub use evaluator::Evaluator;

use super::{Attachment, Backend, Failure, Job, MatmulPrecision, Placement, Replicas};
use crate::adapter::{Adapter, Inertia, ParticleStep, Tuning};
use crate::error::{Error, Result, bail};
use crate::model::kernel::{BlockArrays, DistanceArrays, Kernel, LayerArrays};
use crate::model::{Frames, KernelModel, ScoreModel};
use cudarc::driver::sys::{CUdevice_attribute, CUfunction_attribute_enum, CUresult};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaGraph, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr,
    DriverError, LaunchArgs, LaunchConfig, PushKernelArg, ValidAsZeroBits, result, sys,
};
use cudarc::nvrtc::{Ptx, sys as nvrtc};
use launches::Launches;
use network::{Network, Part};
use std::ffi::CString;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use tensor::TensorWeights;

/// CUDA 12.0, the first to read PTX 8.0.
const LEAST_DRIVER: i32 = 12_000;
/// Volta: the PTX is for compute_70.
const LEAST_CAPABILITY: (i32, i32) = (7, 0);
/// As in the kernels' launch bounds.
const MAX_THREADS: usize = 512;
const WARP: usize = 32;

/// Kernels of the distance network: name, how many frames a block works on and a thread holds at least, and roughly what a step
/// of such a block costs, by the estimate in kernels/distance.cuh.
const DISTANCE_KERNELS: [(&str, usize, usize, usize); 3] =
    [("distance_1", 1, 1, 1), ("distance_8", 8, 4, 2), ("distance_32", 32, 4, 7)];
/// The same with products on tensor cores, for steps of eight frames and more; costs by the estimate in kernels/distance_high.cuh.
const HIGH_KERNELS: [(&str, usize, usize, usize); 2] =
    [("distance_high_8", 8, 4, 1), ("distance_high_32", 32, 4, 3)];
const ANALYTIC_KERNEL: &str = "analytic";

/// What is done with a model, for which the kernels above have a prefix.
#[derive(Clone, Copy)]
enum Task {
    Steps(Adapter),
    /// Scores and energies.
    Evaluation,
}

impl Task {
    const PREFIXES: [&str; 2] = ["advance", "evaluate"];

    fn kernel(self, name: &str) -> String {
        let [steps, evaluation] = Self::PREFIXES;
        let prefix = if matches!(self, Task::Steps(_)) { steps } else { evaluation };
        format!("{prefix}_{name}")
    }

    /// Whether energies may be asked for.
    fn has_energies(self) -> bool {
        matches!(self, Task::Steps(Adapter::Mala) | Task::Evaluation)
    }
}

// ---- what kernels and host have in common -------------------------------------------------------------------------------

/// `Factors` of kernels/advance.cuh.
#[derive(Clone, Copy, PartialEq)]
#[repr(C)]
struct Factors {
    drift: f64,
    noise: f64,
    inertia: Inertia,
}

/// `Report` of kernels/advance.cuh.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Report {
    largest_score: f64,
    score: f64,
    step: u64,
    frame: u32,
    particle: u32,
    accepted: u32,
    stage: u32,
}

/// `Report::step` where all steps were taken.
const NONE: u64 = u64::MAX;
/// `Report::particle` where the energy failed.
const NONE_OF_THEM: u32 = u32::MAX;

/// `Job` of kernels/advance.cuh; pointers are of the device.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct DeviceJob {
    positions: u64,
    velocities: u64,
    tunings: u64,
    bias: u64,
    particles: u64,
    factors: u64,
    particle_ids: u64,
    reports: u64,
    scratch: u64,
    scratch_bytes: u64,
    seed: u64,
    first_step: u64,
    n_steps: u64,
    bias_scale: f64,
    target_acceptance: f64,
    burn_in_steps: u64,
    n_replicas: u32,
    n_particles: u32,
    first_replica: u32,
    adapter: u32,
    adds_up: u32,
    padding: u32,
}

/// `Analytic` of kernels/analytic.cuh.
#[derive(Clone, Copy)]
#[repr(C)]
struct DeviceAnalytic {
    members: u64,
    places: u64,
    mixture: u64,
    /// Part of the work space, which the kernel finds.
    logarithms: u64,
    parameters: [f64; 4],
    n_members: u32,
    n_particles: u32,
    potential: u32,
    n_components: u32,
    frames_per_block: u32,
}

/// `Distance` of kernels/distance.cuh.
#[derive(Clone, Copy)]
#[repr(C)]
struct DeviceDistance {
    numbers: u64,
    layers: u64,
    members: u64,
    places: u64,
    quadruplets: u64,
    pairs: u64,
    coordinates: u64,
    n_members: u32,
    n_particles: u32,
    n_quadruplets: u32,
    n_coordinates: u32,
    n_layers: u32,
    n_resident: u32,
    widest: u32,
    n_slopes: u32,
    mean: u32,
    inverse_spread: u32,
    output_weight: u32,
    softening_squared: f32,
    harmonic: f32,
    output_bias: f32,
    unscale: f32,
    halves: u64,
    /// Parts of the work space, which the kernel finds.
    parts: [u64; 9],
}

/// `Steps` of kernels/advance.cuh: six pointers.
const STEPS_BYTES: usize = 48;
/// `Metropolis` of kernels/advance.cuh: six pointers and a number.
const METROPOLIS_BYTES: usize = 56;
/// `Dense` of kernels/distance.cuh: two pointers and four numbers.
const DENSE_BYTES: usize = 32;

// Safety: plain numbers in the layout of C, every bit pattern of which is valid.
unsafe impl DeviceRepr for Factors {}
unsafe impl DeviceRepr for Report {}
unsafe impl DeviceRepr for DeviceJob {}
unsafe impl DeviceRepr for DeviceAnalytic {}
unsafe impl DeviceRepr for DeviceDistance {}
unsafe impl DeviceRepr for ParticleStep {}
unsafe impl DeviceRepr for Tuning {}
unsafe impl DeviceRepr for launches::DeviceLaunches {}
unsafe impl DeviceRepr for network::Clock {}
unsafe impl DeviceRepr for network::DeviceMessagePassing {}
unsafe impl DeviceRepr for network::Space {}
unsafe impl DeviceRepr for source::DeviceBlend {}
unsafe impl DeviceRepr for source::DeviceEvaluation {}
unsafe impl DeviceRepr for LayerArrays {}
unsafe impl DeviceRepr for BlockArrays {}

/// Bytes of the work space of a block, part by part: the twin of `carve` in kernels/advance.cuh.
struct Workspace {
    bytes: usize,
}

impl Workspace {
    /// What `evaluate` or `advance` needs for `frames` frames of `n_particles`.
    fn new(task: Task, frames: usize, n_particles: usize) -> Self {
        match task {
            Task::Steps(adapter) => Self::of_steps(frames, n_particles, adapter),
            Task::Evaluation => Workspace { bytes: 0 }.part(frames * n_particles, 24),
        }
    }

    fn of_steps(frames: usize, n_particles: usize, adapter: Adapter) -> Self {
        let n = frames * n_particles;
        let steps = Workspace { bytes: 0 }.part(1, 4).part(1, 8).part(1, STEPS_BYTES);
        let steps = steps.part(n, 24).part(n, 24).part(n, 12);
        match adapter {
            Adapter::EulerMaruyama | Adapter::LeimkuhlerMatthews => steps,
            Adapter::Heun | Adapter::Langevin => steps.part(n, 24),
            Adapter::Mala => {
                let ends = steps.part(n, 24).part(1, METROPOLIS_BYTES).part(n, 24).part(n, 8);
                ends.part(frames, 8).part(frames, 8).part(frames, 8).part(frames, 4)
            }
        }
    }

    /// And the analytic potentials.
    fn and_analytic(self, frames: usize, n_components: usize) -> Self {
        self.part(frames * n_components, 8)
    }

    /// And the distance network.
    fn and_distance(
        self,
        frames: usize,
        n_members: usize,
        arrays: &DistanceArrays,
        with_energy: bool,
        precision: MatmulPrecision,
    ) -> Self {
        let (n_pairs, n_quadruplets) = (arrays.pairs.len() / 2, arrays.quadruplets.len() / 4);
        let widest = widest(arrays, precision);
        let pitch = match precision {
            MatmulPrecision::Highest => frames,
            MatmulPrecision::High => tensor::pitch(frames),
        };
        let scores = self
            .part(2 * arrays.layers.len(), DENSE_BYTES)
            .part(3 * n_members * frames, 4)
            .part((n_pairs + arrays.coordinates.len() / 2 + 2 * n_quadruplets) * frames, 4)
            .part(n_pairs * frames, 4)
            .part(9 * n_quadruplets * frames, 4)
            .part(n_slopes(arrays) * frames, 4)
            .part(widest * pitch, 4)
            .part(widest * pitch, 4);
        if with_energy { scores.part((widest + 1) * frames, 4) } else { scores }
    }

    fn part(self, count: usize, size: usize) -> Self {
        Workspace { bytes: self.bytes + (count * size).next_multiple_of(32) }
    }
}

fn widest(arrays: &DistanceArrays, precision: MatmulPrecision) -> usize {
    let widest = arrays.layers.iter().map(|l| l.n_in.max(l.n_out)).max().unwrap_or(0);
    match precision {
        MatmulPrecision::Highest => widest as usize,
        MatmulPrecision::High => tensor::padded(widest),
    }
}

fn n_slopes(arrays: &DistanceArrays) -> usize {
    arrays.layers.iter().rev().skip(1).map(|l| l.n_out as usize).sum()
}

// ---- the driver -----------------------------------------------------------------------------------------------------

fn driver_error(what: &str, error: DriverError) -> Error {
    let hint = match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => "; use fewer replicas, or a GPU with more memory",
        _ => "",
    };
    Error::Device(format!("the GPU failed while {what}: {:?}{hint}", error.0))
}

/// Gives `Result`s of the driver a sentence.
trait While<T> {
    fn during(self, what: &str) -> Result<T>;
}

impl<T> While<T> for std::result::Result<T, DriverError> {
    fn during(self, what: &str) -> Result<T> {
        self.map_err(|error| driver_error(what, error))
    }
}

/// Check that GPU `index` can be used; nothing is started on it.
fn probe(index: usize) -> Result<sys::CUdevice> {
    let name = format!("device 'cuda:{index}'");
    // Safety: this only tries to load the library; every other call would panic without it.
    if !unsafe { sys::is_culib_present() } {
        bail!(
            Unsupported,
            "{name} needs NVIDIA's driver, and there is no libcuda on this machine; install it, or use device 'cpu'"
        );
    }
    let unusable = |error: DriverError| {
        Error::Unsupported(format!(
            "{name} cannot be used: NVIDIA's driver is here but does not start ({:?}); look at nvidia-smi, or use device 'cpu'",
            error.0
        ))
    };
    result::init().map_err(unusable)?;
    let mut version = 0;
    // Safety: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(unusable)?;
    if version < LEAST_DRIVER {
        bail!(
            Unsupported,
            "{name} cannot be used: NVIDIA's driver is for CUDA {}.{}; expected 12.0 or later, so update it, or use device 'cpu'",
            version / 1000,
            version % 1000 / 10
        );
    }
    let count = result::device::get_count().map_err(unusable)? as usize;
    if index >= count {
        bail!(
            Unsupported,
            "{name} is not there: this machine has {}; use one of them, or device 'cpu'",
            match count {
                0 => "no GPU".into(),
                1 => "one GPU, 'cuda:0'".into(),
                n => format!("{n} GPUs, 'cuda:0' to 'cuda:{}'", n - 1),
            }
        );
    }
    let device = result::device::get(index as i32).map_err(unusable)?;
    let capability = capability(device).map_err(unusable)?;
    if capability < LEAST_CAPABILITY {
        bail!(
            Unsupported,
            "{name} has compute capability {}.{}; expected 7.0 (Volta) or later, so use another one, or device 'cpu'",
            capability.0,
            capability.1
        );
    }
    Ok(device)
}

fn capability(device: sys::CUdevice) -> std::result::Result<(i32, i32), DriverError> {
    // Safety: `device` is of this driver.
    let get = |attribute| unsafe { result::device::get_attribute(device, attribute) };
    Ok((
        get(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        get(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    ))
}

/// How many GPUs there are.
pub fn count() -> usize {
    // Safety: this only tries to load the library; every other call would panic without it.
    if !unsafe { sys::is_culib_present() } {
        return 0;
    }
    result::init().and_then(|()| result::device::get_count()).map_or(0, |n| n.max(0) as usize)
}

/// GPU `index` in words. It is started, and the kernels are loaded, to see whether they can be.
pub(super) fn describe(index: usize) -> Result<String> {
    let device = probe(index)?;
    let _callers = CallersContext::keep();
    let gpu = Gpu::attach(index)?;
    let text = || -> std::result::Result<String, DriverError> {
        let (major, minor) = capability(device)?;
        // Safety: `device` is of this driver.
        let memory = unsafe { result::device::total_mem(device) }?;
        let name = result::device::get_name(device)?;
        let graphs = if network::records() { "on" } else { "off" };
        Ok(format!(
            "cuda:{index}: {name}, compute capability {major}.{minor}, {} GiB, CUDA graphs {graphs}, kernels: {}",
            memory >> 30,
            gpu.image
        ))
    };
    text().during("being asked what it is")
}

/// Version of the NVRTC that the dynamic linker finds, or that the process has loaded already; else why there is none.
fn compiler_version() -> std::result::Result<(i32, i32), String> {
    // Safety: this only tries to load the library; every other call would panic without it.
    if !unsafe { nvrtc::is_culib_present() } {
        return Err("there is no libnvrtc that the dynamic linker finds".into());
    }
    let (mut major, mut minor) = (0, 0);
    // Safety: writes two integers.
    let result = unsafe { nvrtc::nvrtcVersion(&mut major, &mut minor) };
    if result != nvrtc::nvrtcResult::NVRTC_SUCCESS {
        return Err(format!("NVRTC does not tell its version: {result:?}"));
    }
    Ok((major, minor))
}

/// The kernels, compiled by NVRTC, which is there, with these options; else why not.
fn cubin(options: &[String]) -> std::result::Result<Vec<u8>, String> {
    let terminated = |text: &str| CString::new(text).expect("no text here has a NUL");
    let names = image::SOURCES.map(|(name, _)| terminated(name));
    let texts = image::SOURCES.map(|(_, text)| terminated(text));
    let options: Vec<CString> = options.iter().map(|option| terminated(option)).collect();
    let compile = || {
        let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
        let (headers, includes) = (pointers(&texts[1..]), pointers(&names[1..]));
        let (options, n) = (pointers(&options), headers.len() as i32);
        let done = |result: nvrtc::nvrtcResult| match result {
            nvrtc::nvrtcResult::NVRTC_SUCCESS => Ok(()),
            _ => Err(format!("NVRTC fails: {result:?}")),
        };
        let mut program = std::ptr::null_mut();
        // Safety: all texts end with a NUL and live until the end, and every buffer has the size that NVRTC asks for.
        unsafe {
            let (source, name) = (texts[0].as_ptr(), names[0].as_ptr());
            done(nvrtc::nvrtcCreateProgram(
                &mut program,
                source,
                name,
                n,
                headers.as_ptr(),
                includes.as_ptr(),
            ))?;
            let compiled = nvrtc::nvrtcCompileProgram(program, options.len() as i32, options.as_ptr());
            let image = done(compiled).map_err(|failure| {
                let mut size = 0;
                let _ = nvrtc::nvrtcGetProgramLogSize(program, &mut size);
                let mut log = vec![0_u8; size];
                if size > 0 {
                    let _ = nvrtc::nvrtcGetProgramLog(program, log.as_mut_ptr().cast());
                }
                let log = String::from_utf8_lossy(&log);
                let line = log
                    .lines()
                    .find(|line| line.contains("error"))
                    .unwrap_or_default()
                    .trim_matches(['\0', ' ']);
                format!("{failure} {line}").trim_end().to_string()
            });
            let image = image.and_then(|()| {
                let mut size = 0;
                done(nvrtc::nvrtcGetCUBINSize(program, &mut size))?;
                let mut image = vec![0_u8; size];
                done(nvrtc::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()))?;
                Ok(image)
            });
            let _ = nvrtc::nvrtcDestroyProgram(&mut program);
            image
        }
    };
    // NVRTC leaves its thread in the locale C.
    std::thread::scope(|scope| scope.spawn(compile).join()).unwrap_or_else(|_| Err("NVRTC fails".into()))
}

/// The context that was current on this thread, which is made current again at the end: a caller's work with the driver goes on as
/// if nothing had happened.
struct CallersContext(sys::CUcontext);

impl CallersContext {
    /// Before any other call; the driver is there.
    fn keep() -> Self {
        CallersContext(result::ctx::get_current().ok().flatten().unwrap_or(std::ptr::null_mut()))
    }
}

impl Drop for CallersContext {
    fn drop(&mut self) {
        // Safety: it was current when `keep` asked, and nothing here destroys a context of the caller's.
        let _ = unsafe { result::ctx::set_current(self.0) };
    }
}

/// A GPU with the kernels loaded, shared by the simulations that use it and let go with the last of them.
struct Gpu {
    n_multiprocessors: usize,
    /// Shared memory that a block may use.
    shared_bytes: usize,
    /// What was loaded as the kernels, in words.
    image: String,
    // Dropped in this order: the module lives in the context.
    module: Arc<CudaModule>,
    context: Arc<CudaContext>,
}

impl Gpu {
    /// GPU `index`, which has passed [`probe`].
    fn attach(index: usize) -> Result<Arc<Self>> {
        /// Of each process, as a GPU cannot be used across fork(), and number.
        static ATTACHED: Mutex<Vec<(u32, usize, Weak<Gpu>)>> = Mutex::new(Vec::new());
        let mut attached = ATTACHED.lock().unwrap_or_else(PoisonError::into_inner);
        let process = std::process::id();
        let known = attached.iter().find(|(p, i, _)| (*p, *i) == (process, index));
        if let Some(gpu) = known.and_then(|(_, _, gpu)| gpu.upgrade()) {
            return Ok(gpu);
        }
        let gpu = Arc::new(Self::start(index)?);
        attached.retain(|(_, _, gpu)| gpu.strong_count() > 0);
        attached.push((process, index, Arc::downgrade(&gpu)));
        Ok(gpu)
    }

    fn start(index: usize) -> Result<Self> {
        Self::load(CudaContext::new(index).during("starting")?)
    }

    /// GPU `index`, which has passed [`probe`], in a context of the caller's, which is current afterwards.
    fn borrow(index: usize, context: sys::CUcontext) -> Result<Self> {
        let place = || -> std::result::Result<_, DriverError> {
            let mut device = 0;
            // Safety: the caller vouches for its context; this writes one integer.
            unsafe {
                result::ctx::set_current(context)?;
                sys::cuCtxGetDevice(&mut device).result()?;
            }
            Ok((device, result::device::get(index as i32)?))
        };
        let (device, named) = place().during("looking at the CUDA context that was given")?;
        if device != named {
            bail!(
                InvalidArgument,
                "the CUDA context that was given is of another GPU than device 'cuda:{index}'; expected 'cuda:{device}'"
            );
        }
        // Safety: as above.
        let context = unsafe { CudaContext::from_raw_context(index, device, context) }.during("starting")?;
        // The last holder would destroy the caller's context: this one never lets go. It is a few words of memory.
        std::mem::forget(context.clone());
        Self::load(context)
    }

    fn load(context: Arc<CudaContext>) -> Result<Self> {
        // Safety: every buffer is used on the one stream of its simulation.
        unsafe { context.disable_event_tracking() };
        let get = |attribute| context.attribute(attribute).during("being asked what it is");
        let n_multiprocessors = get(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let shared = get(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let capability = (
            get(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            get(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let image::Loaded { module, words } = image::load(&context, capability)?;
        let models = DISTANCE_KERNELS.map(|kernel| kernel.0).into_iter().chain([ANALYTIC_KERNEL]);
        let with_prefix = models.flat_map(|name| Task::PREFIXES.map(|prefix| format!("{prefix}_{name}")));
        let high = HIGH_KERNELS.map(|kernel| format!("advance_{}", kernel.0));
        for name in with_prefix.chain(high).chain(Network::LARGE.map(String::from)) {
            let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            module
                .load_function(&name)
                .and_then(|function| function.set_attribute(attribute, shared))
                .during("loading the kernels")?;
        }
        Ok(Gpu { n_multiprocessors, shared_bytes: shared as usize, image: words, module, context })
    }
}

// ---- a simulation on the GPU --------------------------------------------------------------------------------------------

/// A model as the argument of its kernel, and the buffers that its pointers point to.
struct DeviceModel {
    argument: Argument,
    _mixture: Option<CudaSlice<f64>>,
    _numbers: Option<CudaSlice<f32>>,
    _layers: Option<CudaSlice<LayerArrays>>,
    _halves: Option<CudaSlice<u16>>,
    _indices: Vec<CudaSlice<u32>>,
}

enum Argument {
    Analytic(DeviceAnalytic),
    Distance(Box<DeviceDistance>),
}

/// How steps are taken.
enum Work {
    /// One launch takes many.
    Persistent(Box<Persistent>),
    /// Each takes several launches.
    Launches(Box<Launches>),
}

/// A kernel that takes many steps, or evaluates, in one launch.
struct Persistent {
    model: DeviceModel,
    scratch: Option<CudaSlice<u8>>,
    scratch_bytes: usize,
    precision: MatmulPrecision,
    kernel: CudaFunction,
    launch: LaunchConfig,
}

/// All replicas of a simulation on one GPU.
pub struct Cuda {
    index: usize,
    held: Ours<Held>,
}

/// Something of a GPU that works on a stream.
trait OnStream {
    fn stream(&self) -> &CudaStream;
}

/// What is held of a GPU, let go of in its context and by the process that holds it: a child made by fork() can do nothing with a
/// GPU of its parent, not even let go of it.
struct Ours<T: OnStream> {
    /// Taken out by drop, which has the caller's context to keep.
    held: Option<T>,
    process: u32,
}

impl<T: OnStream> Ours<T> {
    fn new(held: T) -> Self {
        Ours { held: Some(held), process: std::process::id() }
    }

    /// What is held, where this process may use it.
    fn get(&mut self) -> Result<&mut T> {
        if self.process != std::process::id() {
            bail!(
                Device,
                "a GPU cannot be used across fork(); create the simulation in the process that runs it, or use device 'cpu'"
            );
        }
        Ok(self.held.as_mut().expect("there until dropped"))
    }

    /// The same, to look at.
    fn look(&self) -> &T {
        self.held.as_ref().expect("there until dropped")
    }
}

impl<T: OnStream> Drop for Ours<T> {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        if self.process != std::process::id() {
            return std::mem::forget(held);
        }
        let callers = CallersContext::keep();
        // Also makes its context current, in which its buffers are freed. An error here has nobody left to tell it to.
        let _ = held.stream().synchronize();
        drop(held);
        drop(callers);
    }
}

impl OnStream for Held {
    fn stream(&self) -> &CudaStream {
        &self.stream
    }
}

/// GPU `index`, which has passed [`probe`], and a stream of its own there, or a caller's.
fn open(index: usize, attachment: Option<Attachment>) -> Result<(Arc<Gpu>, Arc<CudaStream>)> {
    let Some(Attachment { context, stream }) = attachment else {
        let gpu = Gpu::attach(index)?;
        let stream = gpu.context.new_stream().during("making a stream")?;
        return Ok((gpu, stream));
    };
    let gpu = Arc::new(Gpu::borrow(index, context as sys::CUcontext)?);
    // Safety: the caller vouches for its stream.
    let stream = unsafe { gpu.context.wrap_borrowed_stream(stream as sys::CUstream) };
    Ok((gpu, stream))
}

/// A model as its kernel reads it, where it has one.
fn kernel_of(model: &dyn ScoreModel, index: usize) -> Result<KernelModel> {
    model.kernel().map_err(|what| {
        Error::Unsupported(format!("device 'cuda:{index}' has no kernel for {what}; use device 'cpu'"))
    })
}

/// What a simulation holds of its GPU.
struct Held {
    // Dropped in this order: buffers and kernel before the stream, the stream before the context.
    work: Work,
    positions: CudaSlice<f64>,
    velocities: Option<CudaSlice<f64>>,
    tunings: Option<CudaSlice<Tuning>>,
    bias: Option<CudaSlice<f64>>,
    particles: CudaSlice<ParticleStep>,
    factors: CudaSlice<Factors>,
    particle_ids: CudaSlice<u32>,
    reports: CudaSlice<Report>,
    stream: Arc<CudaStream>,
    gpu: Arc<Gpu>,
    first_replica: u32,
    n_replicas: u32,
    n_particles: usize,
    /// What `particles` and `factors` hold on the device.
    sent_particles: Vec<ParticleStep>,
    sent_factors: Vec<Factors>,
    host_reports: Vec<Report>,
    largest_score: f64,
    /// Launches were made whose reports have not been fetched.
    is_ahead: bool,
    /// The caller knows where the positions are, and may have written there.
    is_exposed: bool,
    watch: Watch,
}

/// How long steps take by the clock of the host, from when they are enqueued until they have been fetched.
#[derive(Default)]
struct Watch {
    running: Option<(Instant, u64)>,
    last: Option<(Duration, u64)>,
}

impl Watch {
    fn enqueued(&mut self, n_steps: u64) {
        self.running.get_or_insert((Instant::now(), 0)).1 += n_steps;
    }

    fn fetched(&mut self) {
        self.last = self.running.take().map(|(start, n_steps)| (start.elapsed(), n_steps)).or(self.last);
    }
}

/// How the replicas are laid out over blocks.
struct Plan {
    kernel: String,
    frames: usize,
    n_threads: usize,
    workspace: usize,
    /// Whether the work space is in shared memory.
    shared: bool,
    /// Layers that are kept in shared memory too, and their bytes.
    resident: (usize, usize),
    precision: MatmulPrecision,
}

/// Blocks on a multiprocessor at a time are counted up to here.
const MOST_BLOCKS: usize = 4;

impl Plan {
    /// Shared memory of a block.
    fn shared_bytes(&self) -> usize {
        if self.shared { self.workspace + self.resident.1 } else { 0 }
    }

    /// Blocks that run at a time.
    fn n_running(&self, gpu: &Gpu) -> usize {
        let each = gpu.shared_bytes / self.shared_bytes().max(1);
        gpu.n_multiprocessors * each.clamp(1, MOST_BLOCKS)
    }

    /// `None` for models that take several launches.
    fn new(
        gpu: &Gpu,
        model: &KernelModel,
        n_replicas: usize,
        task: Task,
        precision: MatmulPrecision,
    ) -> Option<Self> {
        let own = |frames: usize| Workspace::new(task, frames, model.n_particles);
        let whole_warps = |n: usize| n.next_multiple_of(WARP).clamp(WARP, MAX_THREADS);
        Some(match &model.kernel {
            Kernel::MessagePassing(_) | Kernel::Blend(_) => return None,
            Kernel::Analytic { .. } => {
                let n_components = model.n_components();
                // Full warps, but no multiprocessor idle.
                let frames = (4 * WARP / model.n_particles).clamp(1, 4 * WARP);
                let frames = frames.min(n_replicas.div_ceil(gpu.n_multiprocessors));
                let workspace = own(frames).and_analytic(frames, n_components).bytes;
                Plan {
                    kernel: task.kernel(ANALYTIC_KERNEL),
                    frames,
                    n_threads: whole_warps(frames * model.n_particles),
                    workspace,
                    shared: workspace <= gpu.shared_bytes,
                    resident: (0, 0),
                    precision,
                }
            }
            Kernel::Distance(arrays) => {
                let kernels = match precision {
                    MatmulPrecision::Highest => &DISTANCE_KERNELS[..],
                    MatmulPrecision::High => &HIGH_KERNELS,
                };
                let workspace = |frames: usize| {
                    let n_members = model.members.len();
                    own(frames).and_distance(frames, n_members, arrays, task.has_energies(), precision).bytes
                };
                // As many blocks as there are multiprocessors run at a time. Where no work space fits, the smallest does best.
                let cost = |(_, frames, _, cost): &(&str, usize, usize, usize)| {
                    n_replicas.div_ceil(*frames).div_ceil(gpu.n_multiprocessors) * cost
                };
                let (kernel, frames, tile, _) = *kernels
                    .iter()
                    .filter(|kernel| workspace(kernel.1) <= gpu.shared_bytes)
                    .min_by_key(|kernel| cost(kernel))
                    .unwrap_or(&kernels[0]);
                let workspace = workspace(frames);
                let shared = workspace <= gpu.shared_bytes;
                let mut resident = (0, 0);
                for layer in &arrays.layers {
                    let bytes = resident.1
                        + match precision {
                            MatmulPrecision::Highest => 4 * layer.n_in as usize * (layer.n_out as usize | 1),
                            MatmulPrecision::High => 2 * tensor::room(layer),
                        };
                    if !shared || workspace + bytes > gpu.shared_bytes {
                        break;
                    }
                    resident = (resident.0 + 1, bytes);
                }
                // Every thread gets as many sums of the widest layer as any other.
                let sums = widest(arrays, precision) * (frames / tile);
                let n_threads = whole_warps(sums.div_ceil(sums.div_ceil(MAX_THREADS)));
                let kernel = task.kernel(kernel);
                Plan { kernel, frames, n_threads, workspace, shared, resident, precision }
            }
        })
    }
}

impl Cuda {
    /// For `model` on GPU `index`.
    pub fn new(
        model: &dyn ScoreModel,
        placement: &Placement,
        index: usize,
        largest_score: f64,
    ) -> Result<Self> {
        let model = kernel_of(model, index)?;
        if placement.matmul_precision == MatmulPrecision::High && !matches!(model.kernel, Kernel::Distance(_))
        {
            bail!(
                Unsupported,
                "matmul_precision 'high' serves models of kind distance, and this is none; use 'highest'"
            );
        }
        probe(index)?;
        let _callers = CallersContext::keep();
        Ok(Cuda { index, held: Ours::new(Held::new(&model, placement, index, largest_score)?) })
    }
}

impl Held {
    fn new(model: &KernelModel, placement: &Placement, index: usize, largest_score: f64) -> Result<Self> {
        let (gpu, stream) = open(index, placement.attachment)?;
        let (n_replicas, n_particles) = (placement.replicas.len(), model.n_particles);
        let task = Task::Steps(placement.adapter);
        let plan = Plan::new(&gpu, model, n_replicas, task, placement.matmul_precision);
        let (work, n_reports) = match plan {
            None => {
                let launches = Launches::new(&gpu, &stream, model, n_replicas, placement.adapter)?;
                (Work::Launches(Box::new(launches)), n_replicas)
            }
            Some(plan) => {
                let n_blocks = n_replicas.div_ceil(plan.frames);
                let work = Persistent::new(&gpu, &stream, model, &plan, n_blocks)?;
                (Work::Persistent(Box::new(work)), n_blocks)
            }
        };
        let buffers = || -> std::result::Result<_, DriverError> {
            Ok((
                stream.alloc_zeros::<f64>(3 * n_particles * n_replicas)?,
                // Safety: written before they are read.
                unsafe { stream.alloc::<ParticleStep>(n_particles) }?,
                unsafe { stream.alloc::<Factors>(1) }?,
                stream.clone_htod(&placement.particle_ids)?,
                unsafe { stream.alloc::<Report>(n_reports) }?,
            ))
        };
        let (positions, particles, factors, particle_ids, reports) =
            buffers().during("allocating its memory")?;
        Ok(Held {
            work,
            positions,
            velocities: None,
            tunings: None,
            bias: None,
            particles,
            factors,
            particle_ids,
            reports,
            stream,
            gpu,
            first_replica: placement.replicas.start,
            n_replicas: n_replicas as u32,
            n_particles,
            sent_particles: Vec::new(),
            sent_factors: Vec::new(),
            host_reports: vec![Report::default(); n_reports],
            largest_score,
            is_ahead: false,
            is_exposed: false,
            watch: Watch::default(),
        })
    }

    /// Send what has changed, and launch; `scale` is that of forces which are on the device.
    fn enqueue(&mut self, job: &Job, replicas: &Replicas, scale: Option<f64>) -> Result<()> {
        self.watch.enqueued(job.n_steps);
        let device_job = self.prepare(job, replicas, scale).during("taking steps")?;
        match &mut self.work {
            Work::Persistent(work) => {
                let (scratch, scratch_bytes) = work.scratch(&self.stream);
                let device_job = DeviceJob { scratch, scratch_bytes, ..device_job };
                work.launch(&self.stream, &device_job).during("taking steps")?;
            }
            Work::Launches(work) => {
                work.enqueue(&self.stream, device_job, job.cell, job.model.lambda(), !job.continues)?
            }
        }
        self.is_ahead = true;
        Ok(())
    }

    /// Send what has changed; the job as the device has it.
    fn prepare(
        &mut self,
        job: &Job,
        replicas: &Replicas,
        scale: Option<f64>,
    ) -> std::result::Result<DeviceJob, DriverError> {
        if !job.continues {
            self.send(replicas)?;
        }
        let stream = &self.stream;
        if self.sent_particles != job.particles {
            stream.memcpy_htod(job.particles, &mut self.particles)?;
            self.sent_particles.clear();
            self.sent_particles.extend(job.particles);
        }
        let factors = (job.first_step..job.first_step + job.n_steps).map(|step| {
            let (drift, noise) = (job.factors)(step);
            let inertia = job.inertia.map_or(Inertia::NONE, |inertia| inertia.scaled(drift));
            Factors { drift, noise, inertia }
        });
        let sent = self.sent_factors.iter().copied();
        if self.sent_factors.len() < job.n_steps as usize
            || !factors.clone().eq(sent.take(job.n_steps as usize))
        {
            self.sent_factors.clear();
            self.sent_factors.extend(factors);
            if self.factors.len() < self.sent_factors.len() {
                // Safety: written on the next line.
                self.factors = unsafe { stream.alloc(self.sent_factors.len()) }?;
            }
            stream.memcpy_htod(&self.sent_factors, &mut self.factors)?;
        }
        if self.bias.is_none() && (job.bias.is_some() || scale.is_some()) {
            self.bias = Some(stream.alloc_zeros(replicas.positions.len())?);
        }
        if let (Some(bias), Some(buffer)) = (job.bias, &mut self.bias) {
            stream.memcpy_htod(bias, buffer)?;
        }
        let bias = self.bias.as_ref().filter(|_| job.bias.is_some() || scale.is_some());

        Ok(DeviceJob {
            positions: address(&self.positions, stream),
            velocities: self.velocities.as_ref().map_or(0, |v| address(v, stream)),
            tunings: self
                .tunings
                .as_ref()
                .filter(|_| job.burn_in.is_some())
                .map_or(0, |t| address(t, stream)),
            bias: bias.map_or(0, |b| address(b, stream)),
            particles: address(&self.particles, stream),
            factors: address(&self.factors, stream),
            particle_ids: address(&self.particle_ids, stream),
            reports: address(&self.reports, stream),
            scratch: 0,
            scratch_bytes: 0,
            seed: job.seed,
            first_step: job.first_step,
            n_steps: job.n_steps,
            bias_scale: scale.unwrap_or(1.0),
            target_acceptance: job.burn_in.map_or(0.0, |b| b.target_acceptance),
            burn_in_steps: job.burn_in.map_or(0, |b| b.n_steps),
            n_replicas: self.n_replicas,
            n_particles: self.n_particles as u32,
            first_replica: self.first_replica,
            adapter: job.adapter as u32,
            adds_up: self.is_ahead.into(),
            padding: 0,
        })
    }

    /// Put the replicas on the device.
    fn send(&mut self, replicas: &Replicas) -> std::result::Result<(), DriverError> {
        let stream = &self.stream;
        stream.memcpy_htod(replicas.positions, &mut self.positions)?;
        if !replicas.velocities.is_empty() {
            if self.velocities.is_none() {
                self.velocities = Some(stream.alloc_zeros(replicas.velocities.len())?);
            }
            stream.memcpy_htod(replicas.velocities, self.velocities.as_mut().expect("allocated"))?;
        }
        if !replicas.tunings.is_empty() {
            if self.tunings.is_none() {
                // Safety: written on the next line.
                self.tunings = Some(unsafe { stream.alloc(replicas.tunings.len()) }?);
            }
            stream.memcpy_htod(replicas.tunings, self.tunings.as_mut().expect("allocated"))?;
        }
        Ok(())
    }

    /// Fetch replicas and reports.
    fn fetch(&mut self, replicas: &mut Replicas) -> std::result::Result<(), DriverError> {
        self.is_ahead = false;
        self.stream.memcpy_dtoh(&self.positions, replicas.positions)?;
        if let Some(velocities) = self.velocities.as_ref().filter(|_| !replicas.velocities.is_empty()) {
            self.stream.memcpy_dtoh(velocities, replicas.velocities)?;
        }
        if let Some(tunings) = self.tunings.as_ref().filter(|_| !replicas.tunings.is_empty()) {
            self.stream.memcpy_dtoh(tunings, replicas.tunings)?;
        }
        self.stream.memcpy_dtoh(&self.reports, &mut self.host_reports)?;
        self.stream.synchronize()
    }

    /// Wait; whether the steps could be taken at all.
    fn had_room(&mut self) -> Result<bool> {
        match &mut self.work {
            Work::Persistent(_) => Ok(true),
            Work::Launches(work) => {
                let had_room = work.had_room(&self.stream)?;
                self.is_ahead &= had_room;
                Ok(had_room)
            }
        }
    }

    /// What has arrived is not known.
    fn failed(&mut self, error: Error) -> Error {
        self.sent_particles.clear();
        self.sent_factors.clear();
        self.is_ahead = false;
        error
    }
}

impl Persistent {
    fn new(
        gpu: &Gpu,
        stream: &Arc<CudaStream>,
        model: &KernelModel,
        plan: &Plan,
        n_blocks: usize,
    ) -> Result<Self> {
        let high = match &model.kernel {
            Kernel::Distance(arrays) if plan.precision == MatmulPrecision::High => {
                Some(TensorWeights::new(arrays)?)
            }
            _ => None,
        };
        let kernel = gpu.module.load_function(&plan.kernel).during("loading the kernels")?;
        let scratch = match plan.shared {
            true => None,
            // Safety: written before it is read.
            false => Some(
                unsafe { stream.alloc::<u8>(n_blocks * plan.workspace) }.during("allocating its memory")?,
            ),
        };
        Ok(Persistent {
            model: DeviceModel::new(stream, model, plan, high.as_ref()).during("allocating its memory")?,
            scratch,
            scratch_bytes: plan.workspace,
            precision: plan.precision,
            kernel,
            launch: LaunchConfig {
                grid_dim: (n_blocks as u32, 1, 1),
                block_dim: (plan.n_threads as u32, 1, 1),
                shared_mem_bytes: plan.shared_bytes() as u32,
            },
        })
    }

    /// Where the work space lies that is not in shared memory, and its bytes for each block.
    fn scratch(&self, stream: &CudaStream) -> (u64, u64) {
        (self.scratch.as_ref().map_or(0, |s| address(s, stream)), self.scratch_bytes as u64)
    }

    /// Launch the kernel on a job of its own kind.
    fn launch(
        &self,
        stream: &Arc<CudaStream>,
        job: &impl DeviceRepr,
    ) -> std::result::Result<(), DriverError> {
        let mut launch = stream.launch_builder(&self.kernel);
        launch.arg(job);
        match &self.model.argument {
            Argument::Analytic(model) => launch.arg(model),
            Argument::Distance(model) => launch.arg(&**model),
        };
        // Safety: the arguments are those of the kernel, field by field, and every buffer is as long as the kernel reads it.
        unsafe { launch.launch(self.launch) }.map(drop)
    }
}

/// Launch one kernel of those that a score, a step or an evaluation takes, with the arguments that `push` gives it.
fn launch<'a>(
    stream: &'a Arc<CudaStream>,
    part: &'a Part,
    push: impl for<'b> FnOnce(&'b mut LaunchArgs<'a>) -> &'b mut LaunchArgs<'a>,
) -> std::result::Result<(), DriverError> {
    let mut launch = stream.launch_builder(&part.function);
    let _ = push(&mut launch);
    let size = LaunchConfig {
        grid_dim: (part.n_blocks as u32, 1, 1),
        block_dim: (part.n_threads as u32, 1, 1),
        shared_mem_bytes: part.shared as u32,
    };
    // Safety: the arguments are those of the kernel, field by field, and every buffer is as long as the kernel reads it.
    unsafe { launch.launch(size) }.map(drop)
}

/// Launches that were recorded, to be replayed at once.
struct Graph(CudaGraph);

// Safety: the driver's graphs may be used by any thread, by one at a time, as their simulation is.
unsafe impl Send for Graph {}

impl Graph {
    /// What `work` launches on `stream`, which has nothing else to do.
    fn record(
        stream: &Arc<CudaStream>,
        work: impl FnOnce() -> std::result::Result<(), DriverError>,
    ) -> std::result::Result<Option<Self>, DriverError> {
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        let done = work();
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0))?;
        done.map(|()| graph.map(Graph))
    }

    fn replay(&self, stream: &CudaStream) -> std::result::Result<(), DriverError> {
        stream.context().bind_to_thread()?;
        // Safety: both live, in the same context, which is current on this thread.
        unsafe { result::graph::launch(self.0.cu_graph_exec(), stream.cu_stream()) }
    }
}

impl Cuda {
    /// Do something that waits for the GPU.
    fn waited<T>(&mut self, work: impl FnOnce(&mut Held) -> Result<T>) -> Result<T> {
        let held = self.held.get()?;
        let _callers = CallersContext::keep();
        work(held).map_err(|error| held.failed(error))
    }
}

impl Backend for Cuda {
    fn advance(&mut self, job: &Job, replicas: Replicas) -> std::result::Result<u64, Failure> {
        self.enqueue(job, &replicas, None).map_err(Failure::Other)?;
        // What the steps began from is still here, unless the caller wrote to the device.
        while !self.waited(|held| Ok(held.had_room()? || held.is_exposed)).map_err(Failure::Other)? {
            self.enqueue(&Job { continues: false, ..*job }, &replicas, None).map_err(Failure::Other)?;
        }
        self.fetch(replicas)
    }

    fn enqueue(&mut self, job: &Job, replicas: &Replicas, scale: Option<f64>) -> Result<()> {
        let held = self.held.get()?;
        let _callers = CallersContext::keep();
        held.enqueue(job, replicas, scale).map_err(|error| held.failed(error))
    }

    fn device_positions(&mut self, replicas: Option<&Replicas>) -> Result<u64> {
        let held = self.held.get()?;
        let _callers = CallersContext::keep();
        if let Some(replicas) = replicas {
            held.send(replicas).during("taking positions")?;
        }
        held.is_exposed = true;
        Ok(address(&held.positions, &held.stream))
    }

    fn device_forces(&mut self) -> Result<u64> {
        let held = self.held.get()?;
        let _callers = CallersContext::keep();
        let n = held.positions.len();
        let forces = match held.bias.take() {
            Some(forces) => forces,
            None => held.stream.alloc_zeros(n).during("allocating its memory")?,
        };
        Ok(address(held.bias.insert(forces), &held.stream))
    }

    fn device_velocities(&mut self) -> Result<u64> {
        let held = self.held.get()?;
        let Some(velocities) = &held.velocities else {
            bail!(InvalidArgument, "the replicas have no velocities on the GPU");
        };
        Ok(address(velocities, &held.stream))
    }

    fn fetch(&mut self, mut replicas: Replicas) -> std::result::Result<u64, Failure> {
        let held = self.held.get().map_err(Failure::Other)?;
        let _callers = CallersContext::keep();
        let fetched = held.had_room().and_then(|had_room| match (had_room, &held.work) {
            (false, Work::Launches(work)) => Err(work.out_of_room()),
            _ => held.fetch(&mut replicas).during("taking steps"),
        });
        held.watch.fetched();
        fetched.map_err(|error| Failure::Other(held.failed(error)))?;
        let largest = held.host_reports.iter().map(|r| r.largest_score);
        held.largest_score = largest.fold(held.largest_score, f64::max);
        let failed = held.host_reports.iter().filter(|r| r.step != NONE);
        let Some(first) = failed.min_by_key(|r| (r.step, r.stage, r.frame, r.particle)) else {
            return Ok(held.host_reports.iter().map(|r| u64::from(r.accepted)).sum());
        };
        if first.particle == NONE_OF_THEM {
            return Err(Failure::energy(held.first_replica + first.frame, first.score));
        }
        let (frame, particle) = (first.frame as usize, first.particle as usize);
        let score = match &held.work {
            Work::Persistent(_) => first.score,
            Work::Launches(work) => work
                .score(&held.stream, frame * held.n_particles + particle)
                .map(|score| super::worst(&score))
                .map_err(Failure::Other)?,
        };
        Err(Failure::Score {
            frame,
            particle,
            step: first.step,
            stage: first.stage,
            score,
            positions: replicas.positions[3 * held.n_particles * frame..][..3 * held.n_particles].to_vec(),
        })
    }

    fn scores(&mut self, _: &dyn ScoreModel, _: Frames, _: &mut [f64]) -> Result<()> {
        bail!(
            Unsupported,
            "device 'cuda:{}' evaluates no frames outside of steps; use device 'cpu'",
            self.index
        )
    }

    fn largest_score(&self) -> f64 {
        self.held.look().largest_score
    }

    fn status(&self) -> String {
        let held = self.held.look();
        let how = match &held.work {
            Work::Persistent(work) => match work.precision {
                MatmulPrecision::Highest => "one launch for many steps".into(),
                MatmulPrecision::High => "one launch for many steps, matmul_precision 'high'".into(),
            },
            Work::Launches(work) => work.status(),
        };
        let took = held.watch.last.map(|(took, n_steps)| {
            format!("; the last {n_steps} took {:.2} us each", 1e6 * took.as_secs_f64() / n_steps as f64)
        });
        format!("cuda:{}, {how}{}; kernels: {}", self.index, took.unwrap_or_default(), held.gpu.image)
    }
}

/// Where a buffer lies on the device.
fn address<T>(buffer: &CudaSlice<T>, stream: &CudaStream) -> u64 {
    buffer.device_ptr(stream).0
}

/// Place of each particle of the system among those of the model.
fn places(model: &KernelModel) -> Vec<u32> {
    let mut places = vec![u32::MAX; model.n_particles];
    for (place, member) in model.members.iter().enumerate() {
        places[*member as usize] = place as u32;
    }
    places
}

impl DeviceModel {
    fn new(
        stream: &Arc<CudaStream>,
        model: &KernelModel,
        plan: &Plan,
        high: Option<&TensorWeights>,
    ) -> std::result::Result<Self, DriverError> {
        // An empty array still needs an address.
        let send = |values: &[u32]| stream.clone_htod(if values.is_empty() { &[0][..] } else { values });
        let (members, places) = (send(&model.members)?, send(&places(model))?);
        let (n_members, n_particles) = (model.members.len() as u32, model.n_particles as u32);
        Ok(match &model.kernel {
            Kernel::Analytic { potential, parameters, mixture } => {
                let mixture = stream.clone_htod(if mixture.is_empty() { &[0.0][..] } else { mixture })?;
                DeviceModel {
                    argument: Argument::Analytic(DeviceAnalytic {
                        members: address(&members, stream),
                        places: address(&places, stream),
                        mixture: address(&mixture, stream),
                        logarithms: 0,
                        parameters: *parameters,
                        n_members,
                        n_particles,
                        potential: *potential,
                        n_components: model.n_components() as u32,
                        frames_per_block: plan.frames as u32,
                    }),
                    _mixture: Some(mixture),
                    _numbers: None,
                    _layers: None,
                    _halves: None,
                    _indices: vec![members, places],
                }
            }
            Kernel::MessagePassing(_) | Kernel::Blend(_) => unreachable!("takes several launches"),
            Kernel::Distance(arrays) => {
                let numbers = stream.clone_htod(&arrays.numbers)?;
                let layers = stream.clone_htod(high.map_or(&arrays.layers, |high| &high.layers))?;
                let halves = high.map(|high| stream.clone_htod(&high.halves)).transpose()?;
                let (quadruplets, pairs) = (send(&arrays.quadruplets)?, send(&arrays.pairs)?);
                let coordinates = send(&arrays.coordinates)?;
                let argument = DeviceDistance {
                    numbers: address(&numbers, stream),
                    layers: address(&layers, stream),
                    members: address(&members, stream),
                    places: address(&places, stream),
                    quadruplets: address(&quadruplets, stream),
                    pairs: address(&pairs, stream),
                    coordinates: address(&coordinates, stream),
                    n_members,
                    n_particles,
                    n_quadruplets: (arrays.quadruplets.len() / 4) as u32,
                    n_coordinates: (arrays.coordinates.len() / 2) as u32,
                    n_layers: arrays.layers.len() as u32,
                    n_resident: plan.resident.0 as u32,
                    widest: widest(arrays, plan.precision) as u32,
                    n_slopes: n_slopes(arrays) as u32,
                    mean: arrays.mean,
                    inverse_spread: arrays.inverse_spread,
                    output_weight: arrays.output_weight,
                    softening_squared: arrays.softening_squared,
                    harmonic: arrays.harmonic,
                    output_bias: arrays.output_bias,
                    unscale: high.map_or(1.0, |high| high.unscale),
                    halves: halves.as_ref().map_or(0, |h| address(h, stream)),
                    parts: [0; 9],
                };
                DeviceModel {
                    argument: Argument::Distance(Box::new(argument)),
                    _mixture: None,
                    _numbers: Some(numbers),
                    _layers: Some(layers),
                    _halves: halves,
                    _indices: vec![members, places, quadruplets, pairs, coordinates],
                }
            }
        })
    }
}
