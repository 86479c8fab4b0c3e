//! A model on a GPU, without a simulation: scores and energies of frames that a caller's kernels have put there, for whatever
//! the caller does with them.

use super::network::Part;
use super::source::{Blend, DeviceEvaluation, Source};
use super::{
    Attachment, CallersContext, CudaSlice, CudaStream, Gpu, OnStream, Ours, PushKernelArg, While, address,
    kernel_of, launch, open, probe,
};
use crate::cell::Cell;
use crate::error::{Result, bail};
use crate::model::kernel::Kernel;
use crate::model::{KernelModel, ScoreModel, check_lambda};
use std::sync::Arc;

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
    stream: Arc<CudaStream>,
    _gpu: Arc<Gpu>,
}

/// What is evaluated.
enum Work {
    Single(Box<Source>),
    /// Two models, and where their blend goes.
    Blend {
        of: Box<Blend>,
        part: Part,
        scores: CudaSlice<f64>,
        energies: CudaSlice<f64>,
    },
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
        let held = Ours::new(Held::new(&kernel, model.lambda(), n_frames, index, attachment)?);
        Ok(Evaluator { model, cell, held })
    }

    /// Frames that are evaluated at a time.
    pub fn n_frames(&self) -> usize {
        self.held.look().energies().len()
    }

    /// The cell of all frames from now on.
    pub fn set_cell(&mut self, cell: Option<Cell>) -> Result<()> {
        self.model.check_cell(cell.as_ref())?;
        self.cell = cell;
        Ok(())
    }

    /// λ of a blend from now on.
    pub fn set_lambda(&mut self, lambda: f64) -> Result<()> {
        let held = self.held.get()?;
        let Work::Blend { of, .. } = &mut held.work else {
            bail!(InvalidArgument, "the evaluator is of one model; lambda is that of a blend of two");
        };
        of.lambda = check_lambda(lambda)?;
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
        address(held.scores(), &held.stream)
    }

    /// Where their energies are found, `[n_frames]`, kT₀.
    pub fn device_energies(&self) -> u64 {
        let held = self.held.look();
        address(held.energies(), &held.stream)
    }

    /// Start the evaluation of what lies at [`Evaluator::device_positions`]; energies only if asked for. Does not wait, unless there
    /// are lists of neighbours: then until it is known that they had room, or, where all pairs are listed, the first time.
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
            .memcpy_dtoh(held.energies(), energies)
            .and_then(|()| held.stream.synchronize())
            .during(WHAT)
    }
}

impl Held {
    fn new(
        model: &KernelModel,
        lambda: Option<f64>,
        n_frames: usize,
        index: usize,
        attachment: Option<Attachment>,
    ) -> Result<Self> {
        let (gpu, stream) = open(index, attachment)?;
        let n_all = n_frames * model.n_particles;
        let zeros = |n: usize| stream.alloc_zeros::<f64>(n).during("allocating its memory");
        let work = match &model.kernel {
            Kernel::Blend(parts) => {
                let mut of = Box::new(Blend::new(&gpu, &stream, parts, n_frames)?);
                of.lambda = lambda.unwrap_or_default();
                let part = Part::each(&gpu.module, "evaluation_blend", n_all)?;
                Work::Blend { of, part, scores: zeros(3 * n_all)?, energies: zeros(n_frames)? }
            }
            _ => Work::Single(Box::new(Source::new(&gpu, &stream, model, n_frames)?)),
        };
        let positions = zeros(3 * n_all)?;
        Ok(Held { work, positions, stream, _gpu: gpu })
    }

    fn scores(&self) -> &CudaSlice<f64> {
        match &self.work {
            Work::Single(source) => source.scores(),
            Work::Blend { scores, .. } => scores,
        }
    }

    fn energies(&self) -> &CudaSlice<f64> {
        match &self.work {
            Work::Single(source) => source.energies(),
            Work::Blend { energies, .. } => energies,
        }
    }

    fn enqueue(&mut self, cell: Option<&Cell>, with_energies: bool) -> Result<()> {
        let stream = &self.stream;
        let positions = address(&self.positions, stream);
        let (of, part, scores, energies) = match &mut self.work {
            Work::Single(source) => return source.enqueue(stream, positions, cell, with_energies, WHAT),
            Work::Blend { of, part, scores, energies } => (of, part, scores, energies),
        };
        of.enqueue(stream, positions, cell, with_energies, WHAT)?;
        let job = DeviceEvaluation::new(stream, positions, scores, energies, with_energies);
        let blend = of.device(stream);
        launch(stream, part, |arguments| arguments.arg(&job).arg(&blend)).during(WHAT)
    }
}
