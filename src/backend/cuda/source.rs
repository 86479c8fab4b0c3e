//! A model on a GPU, and the scores and energies that it makes of frames which lie there; two of them as a blend. The host's half
//! of kernels/evaluate.cuh and kernels/blend.cuh.

use super::network::{Network, Part};
use super::{
    CudaSlice, CudaStream, Gpu, MatmulPrecision, Persistent, Plan, PushKernelArg, Task, While, address,
    launch,
};
use crate::cell::Cell;
use crate::error::Result;
use crate::model::KernelModel;
use crate::model::kernel::Kernel;
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

impl DeviceEvaluation {
    /// Of what lies at `positions`; energies only if asked for.
    pub(super) fn new(
        stream: &CudaStream,
        positions: u64,
        scores: &CudaSlice<f64>,
        energies: &CudaSlice<f64>,
        with_energies: bool,
    ) -> Self {
        let n_frames = energies.len();
        DeviceEvaluation {
            positions,
            scores: address(scores, stream),
            energies: if with_energies { address(energies, stream) } else { 0 },
            scratch: 0,
            scratch_bytes: 0,
            n_frames: n_frames as u32,
            n_particles: (scores.len() / (3 * n_frames)) as u32,
        }
    }
}

/// `Blend` of kernels/blend.cuh.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct DeviceBlend {
    scores: [u64; 2],
    energies: [u64; 2],
    lambda: f64,
}

/// A model that is no blend, for a number of frames.
pub(super) struct Source {
    work: Work,
    scores: CudaSlice<f64>,
    energies: CudaSlice<f64>,
}

/// How frames are evaluated.
enum Work {
    /// In one launch.
    Persistent(Box<Persistent>),
    /// In those of the network, one before, and one after.
    Launches { network: Box<Network>, begin: Part, end: Part },
}

impl Source {
    pub(super) fn new(
        gpu: &Gpu,
        stream: &Arc<CudaStream>,
        model: &KernelModel,
        n_frames: usize,
    ) -> Result<Self> {
        let n_all = n_frames * model.n_particles;
        let plan = Plan::new(gpu, model, n_frames, Task::Evaluation, MatmulPrecision::Highest);
        let work = match (&model.kernel, plan) {
            (Kernel::MessagePassing(arrays), _) => Work::Launches {
                network: Box::new(Network::new(gpu, stream, model, arrays, n_frames)?),
                begin: Part::each(&gpu.module, "evaluation_begin", n_all)?,
                end: Part::of_scores(&gpu.module, "evaluation_end", n_all)?,
            },
            (_, Some(plan)) => {
                let n_blocks = n_frames.div_ceil(plan.frames).min(plan.n_running(gpu));
                Work::Persistent(Box::new(Persistent::new(gpu, stream, model, &plan, n_blocks)?))
            }
            (_, None) => unreachable!("all others that are no blends have a plan"),
        };
        let zeros = |n: usize| stream.alloc_zeros::<f64>(n).during("allocating its memory");
        let (scores, energies) = (zeros(3 * n_all)?, zeros(n_frames)?);
        Ok(Source { work, scores, energies })
    }

    /// Where the scores are, `[n_frames][n_particles][3]`, 1/nm.
    pub(super) fn scores(&self) -> &CudaSlice<f64> {
        &self.scores
    }

    /// Where the energies are, `[n_frames]`, kT₀.
    pub(super) fn energies(&self) -> &CudaSlice<f64> {
        &self.energies
    }

    /// How many launches an evaluation takes.
    fn n_launches(&self) -> u32 {
        match &self.work {
            Work::Persistent(_) => 1,
            Work::Launches { network, .. } => network.n_launches() + 2,
        }
    }

    /// Start the evaluation of what lies at `positions`. Does not wait, unless there are lists of neighbours: then until it is known
    /// that they had room, or, where all pairs are listed, the first time.
    pub(super) fn enqueue(
        &mut self,
        stream: &Arc<CudaStream>,
        positions: u64,
        cell: Option<&Cell>,
        with_energies: bool,
        what: &str,
    ) -> Result<()> {
        let job = DeviceEvaluation::new(stream, positions, &self.scores, &self.energies, with_energies);
        let (network, begin, end) = match &mut self.work {
            Work::Persistent(work) => {
                let (scratch, scratch_bytes) = work.scratch(stream);
                return work.launch(stream, &DeviceEvaluation { scratch, scratch_bytes, ..job }).during(what);
            }
            Work::Launches { network, begin, end } => (network, begin, end),
        };
        loop {
            let begun = |model: &_| launch(stream, begin, |arguments| arguments.arg(&job).arg(model));
            network.list(stream, positions, cell, false, begun)?;
            network.run(stream, (positions, with_energies), 1, what, |network, stream| {
                let model = &network.model;
                launch(stream, begin, |arguments| arguments.arg(&job).arg(model))?;
                network.launch(stream, positions, with_energies)?;
                launch(stream, end, |arguments| arguments.arg(&job).arg(model))
            })?;
            if !network.may_lack_room() || network.had_room(stream, what)? {
                return Ok(());
            }
        }
    }
}

/// Two models, of which each is evaluated into arrays of its own.
pub(super) struct Blend {
    sources: [Source; 2],
    pub(super) lambda: f64,
}

impl Blend {
    pub(super) fn new(
        gpu: &Gpu,
        stream: &Arc<CudaStream>,
        parts: &[KernelModel; 2],
        n_frames: usize,
    ) -> Result<Self> {
        let [a, b] = parts.each_ref().map(|part| Source::new(gpu, stream, part, n_frames));
        Ok(Blend { sources: [a?, b?], lambda: 0.0 })
    }

    /// As [`Source::enqueue`], of those that count at this λ.
    pub(super) fn enqueue(
        &mut self,
        stream: &Arc<CudaStream>,
        positions: u64,
        cell: Option<&Cell>,
        with_energies: bool,
        what: &str,
    ) -> Result<()> {
        let [a, b] = &mut self.sources;
        if self.lambda != 1.0 {
            a.enqueue(stream, positions, cell, with_energies, what)?;
        }
        if self.lambda != 0.0 {
            b.enqueue(stream, positions, cell, with_energies, what)?;
        }
        Ok(())
    }

    /// How many launches that takes between 0 and 1.
    pub(super) fn n_launches(&self) -> u32 {
        self.sources.iter().map(Source::n_launches).sum()
    }

    /// As kernels read it.
    pub(super) fn device(&self, stream: &CudaStream) -> DeviceBlend {
        let sources = self.sources.each_ref();
        DeviceBlend {
            scores: sources.map(|source| address(&source.scores, stream)),
            energies: sources.map(|source| address(&source.energies, stream)),
            lambda: self.lambda,
        }
    }
}
