//! A model on a GPU, without a simulation: scores and energies of frames that a caller's kernels have put there, for whatever
//! the caller does with them. The host's half of kernels/evaluate.cuh.

use super::network::{Network, Part};
use super::{
    Attachment, CallersContext, CudaSlice, CudaStream, Gpu, MatmulPrecision, OnStream, Ours, Persistent,
    Plan, PushKernelArg, Task, While, address, kernel_of, launch, open, probe,
};
use crate::cell::Cell;
use crate::error::{Result, bail};
use crate::model::kernel::Kernel;
use crate::model::{KernelModel, ScoreModel};
use std::sync::Arc;

/// `Evaluation` of kernels/evaluate.cuh; pointers are of the device.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct DeviceEvaluation {
    positions: u64,
    scores: u64,
    energies: u64,
    scratch: u64,
    scratch_bytes: u64,
    n_frames: u32,
    n_particles: u32,
}

/// A model, and on a GPU the arrays of a number of frames.
pub struct Evaluator {
    model: Arc<dyn ScoreModel>,
    cell: Option<Cell>,
    held: Ours<Held>,
}

/// What an evaluator holds of its GPU.
struct Held {
    // Dropped in this order: buffers and kernel before the stream, the stream before the context.
    work: Work,
    positions: CudaSlice<f64>,
    scores: CudaSlice<f64>,
    energies: CudaSlice<f64>,
    stream: Arc<CudaStream>,
    _gpu: Arc<Gpu>,
    n_particles: usize,
}

/// How frames are evaluated.
enum Work {
    /// In one launch.
    Persistent(Box<Persistent>),
    /// In those of the network, one before, and one after.
    Launches { network: Box<Network>, begin: Part, end: Part },
}

impl OnStream for Held {
    fn stream(&self) -> &CudaStream {
        &self.stream
    }
}

const WHAT: &str = "evaluating frames";

impl Evaluator {
    /// For `n_frames` frames at a time on GPU `index`, in `cell` to begin with.
    pub fn new(
        model: Arc<dyn ScoreModel>,
        cell: Option<Cell>,
        n_frames: usize,
        index: usize,
        attachment: Option<Attachment>,
    ) -> Result<Self> {
        if n_frames == 0 || n_frames.saturating_mul(model.n_particles()) > u32::MAX as usize {
            bail!(
                InvalidArgument,
                "n_frames is {n_frames}; expected at least one, and less than 2³² particles in all"
            );
        }
        let kernel = kernel_of(&*model, index)?;
        probe(index)?;
        let _callers = CallersContext::keep();
        let held = Ours::new(Held::new(&kernel, n_frames, index, attachment)?);
        Ok(Evaluator { model, cell, held })
    }

    /// Frames that are evaluated at a time.
    pub fn n_frames(&self) -> usize {
        self.held.look().energies.len()
    }

    /// The cell of all frames from now on.
    pub fn set_cell(&mut self, cell: Option<Cell>) -> Result<()> {
        self.model.check_cell(cell.as_ref())?;
        self.cell = cell;
        Ok(())
    }

    /// Where the frames are to be put on the device, `[n_frames][n_particles][3]`, nm; zero at first.
    pub fn device_positions(&self) -> u64 {
        let held = self.held.look();
        address(&held.positions, &held.stream)
    }

    /// Where their scores are found, of the same shape, 1/nm.
    pub fn device_scores(&self) -> u64 {
        let held = self.held.look();
        address(&held.scores, &held.stream)
    }

    /// Where their energies are found, `[n_frames]`, kT₀.
    pub fn device_energies(&self) -> u64 {
        let held = self.held.look();
        address(&held.energies, &held.stream)
    }

    /// Start the evaluation of what lies at [`Evaluator::device_positions`]; energies only if asked for. Does not wait, unless there
    /// are lists of neighbours: then until it is known that they had room.
    pub fn enqueue(&mut self, with_energies: bool) -> Result<()> {
        self.model.check_cell(self.cell.as_ref())?;
        let held = self.held.get()?;
        let _callers = CallersContext::keep();
        held.enqueue(self.cell.as_ref(), with_energies)
    }

    /// Wait for what was enqueued.
    pub fn synchronize(&mut self) -> Result<()> {
        let held = self.held.get()?;
        let _callers = CallersContext::keep();
        held.stream.synchronize().during(WHAT)
    }

    /// Wait, and fetch the energies of the last evaluation that was asked for them.
    pub fn fetch_energies(&mut self, energies: &mut [f64]) -> Result<()> {
        let held = self.held.get()?;
        let _callers = CallersContext::keep();
        held.stream
            .memcpy_dtoh(&held.energies, energies)
            .and_then(|()| held.stream.synchronize())
            .during(WHAT)
    }
}

impl Held {
    fn new(
        model: &KernelModel,
        n_frames: usize,
        index: usize,
        attachment: Option<Attachment>,
    ) -> Result<Self> {
        let (gpu, stream) = open(index, attachment)?;
        let n_particles = model.n_particles;
        let n_all = n_frames * n_particles;
        let work = match (
            &model.kernel,
            Plan::new(&gpu, model, n_frames, Task::Evaluation, MatmulPrecision::Highest),
        ) {
            (Kernel::MessagePassing(arrays), _) => Work::Launches {
                network: Box::new(Network::new(&gpu, &stream, model, arrays, n_frames)?),
                begin: Part::each(&gpu.module, "evaluation_begin", n_all)?,
                end: Part::of_scores(&gpu.module, "evaluation_end", n_all)?,
            },
            (_, Some(plan)) => {
                let n_blocks = n_frames.div_ceil(plan.frames).min(plan.n_running(&gpu));
                Work::Persistent(Box::new(Persistent::new(&gpu, &stream, model, &plan, n_blocks)?))
            }
            (_, None) => unreachable!("all others have a plan"),
        };
        let zeros = |n: usize| stream.alloc_zeros::<f64>(n).during("allocating its memory");
        let (positions, scores, energies) = (zeros(3 * n_all)?, zeros(3 * n_all)?, zeros(n_frames)?);
        Ok(Held { work, positions, scores, energies, stream, _gpu: gpu, n_particles })
    }

    fn enqueue(&mut self, cell: Option<&Cell>, with_energies: bool) -> Result<()> {
        let stream = &self.stream;
        let job = DeviceEvaluation {
            positions: address(&self.positions, stream),
            scores: address(&self.scores, stream),
            energies: if with_energies { address(&self.energies, stream) } else { 0 },
            scratch: 0,
            scratch_bytes: 0,
            n_frames: self.energies.len() as u32,
            n_particles: self.n_particles as u32,
        };
        let (network, begin, end) = match &mut self.work {
            Work::Persistent(work) => {
                let (scratch, scratch_bytes) = work.scratch(stream);
                return work.launch(stream, &DeviceEvaluation { scratch, scratch_bytes, ..job }).during(WHAT);
            }
            Work::Launches { network, begin, end } => (network, begin, end),
        };
        loop {
            let begun = |model: &_| launch(stream, begin, |arguments| arguments.arg(&job).arg(model));
            network.list(stream, job.positions, cell, false, begun)?;
            network.run(stream, with_energies.into(), 1, WHAT, |network, stream| {
                let model = &network.model;
                launch(stream, begin, |arguments| arguments.arg(&job).arg(model))?;
                network.launch(stream, job.positions, with_energies)?;
                launch(stream, end, |arguments| arguments.arg(&job).arg(model))
            })?;
            if !network.may_lack_room() || network.had_room(stream, WHAT)? {
                return Ok(());
            }
        }
    }
}
