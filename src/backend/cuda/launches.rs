//! Steps of models that take several launches for each: the `message-passing` network. The host's half of
//! kernels/launches.cuh.
//!
//! The launches of a step are those of the score (network.rs), one that gathers and checks it, and one that moves the
//! particles. Where a list of neighbours outgrows its room all steps stop, and the host makes more.

use super::network::{DeviceMessagePassing, Network, Part, THREADS, zeros};
use super::{
    CudaSlice, CudaStream, DeviceJob, DriverError, Gpu, METROPOLIS_BYTES, PushKernelArg, While, address,
    launch,
};
use crate::adapter::Adapter;
use crate::cell::Cell;
use crate::error::{Error, Result};
use crate::model::KernelModel;
use crate::model::kernel::MessagePassingArrays;
use std::sync::Arc;

/// `Launches` of kernels/launches.cuh; pointers are of the device.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct DeviceLaunches {
    job: u64,
    clock: u64,
    scores: u64,
    frozen: u64,
    ends: u64,
    end_scores: u64,
    ratios: u64,
    energies: u64,
    end_energies: u64,
    factors: u64,
    accepted: u64,
}

/// When a score is computed: `Stage` of kernels/launches.cuh.
#[derive(Clone, Copy)]
enum Stage {
    AtBeginning,
    AtEnd,
    Before,
}

/// A simulation of such a model.
pub(super) struct Launches {
    // Dropped in this order: its graphs before what they read.
    network: Network,
    steps: Steps,
    job: CudaSlice<DeviceJob>,
    scores: CudaSlice<f64>,
    _doubles: Vec<CudaSlice<f64>>,
    _indices: Vec<CudaSlice<u32>>,
}

/// What a step launches besides the network.
struct Steps {
    begin: Part,
    score: Part,
    r#move: Part,
    settle: Part,
    launches: DeviceLaunches,
    /// Where the positions lie, which is the same for all steps.
    positions: u64,
    adapter: Adapter,
}

const STEPS: &str = "taking steps";

impl Launches {
    pub(super) fn new(
        gpu: &Gpu,
        stream: &Arc<CudaStream>,
        model: &KernelModel,
        arrays: &MessagePassingArrays,
        n_replicas: usize,
        adapter: Adapter,
    ) -> Result<Self> {
        let n_all = model.n_particles * n_replicas;
        let decides = adapter == Adapter::Mala;
        let network = Network::new(gpu, stream, model, arrays, n_replicas)?;
        let (mut doubles, mut indices) = (Vec::new(), Vec::new());
        // 0 where the adapter has no use for it.
        let mut optional = |n: usize| if n == 0 { Ok(0) } else { zeros(&mut doubles, stream, n) };
        let of_ends = if adapter == Adapter::Heun || decides { 3 * n_all } else { 0 };
        let of_decisions = if decides { n_all } else { 0 };
        let per_frame = if decides { n_replicas } else { 0 };
        let scores = stream.alloc_zeros(3 * n_all).during("allocating its memory")?;
        let job = stream.clone_htod(&[DeviceJob::default()]).during("allocating its memory")?;
        let launches = DeviceLaunches {
            job: address(&job, stream),
            clock: network.model.list.clock,
            scores: address(&scores, stream),
            frozen: zeros(&mut indices, stream, n_replicas)?,
            ends: optional(of_ends)?,
            end_scores: optional(3 * of_decisions)?,
            ratios: optional(of_decisions)?,
            energies: optional(per_frame)?,
            end_energies: optional(per_frame)?,
            factors: optional(per_frame)?,
            accepted: zeros(&mut indices, stream, n_replicas)?,
        };
        let steps = Steps {
            begin: Part::each(&gpu.module, "step_begin", n_all)?,
            score: Part::of_scores(&gpu.module, "step_score", n_all)?,
            r#move: Part::each(&gpu.module, "step_move", n_all)?,
            settle: Part::new(
                &gpu.module,
                "step_settle",
                n_replicas.div_ceil(THREADS),
                THREADS,
                METROPOLIS_BYTES,
            )?,
            launches,
            positions: 0,
            adapter,
        };
        Ok(Launches { network, steps, job, scores, _doubles: doubles, _indices: indices })
    }

    /// Start the steps of `job`, whose positions are those that the device has, or were `sent` anew.
    pub(super) fn enqueue(
        &mut self,
        stream: &Arc<CudaStream>,
        job: DeviceJob,
        cell: Option<&Cell>,
        sent: bool,
    ) -> Result<()> {
        stream.memcpy_htod(&[job], &mut self.job).during(STEPS)?;
        self.steps.positions = job.positions;
        let Launches { network, steps, .. } = self;
        let begin = |model: &_| steps.launch(stream, &steps.begin, model, Stage::AtBeginning);
        network.list(stream, job.positions, cell, sent, begin)?;
        begin(&network.model).during(STEPS)?;
        if steps.adapter == Adapter::Mala {
            steps.evaluate(network, stream, Stage::Before).during(STEPS)?;
            steps.launch(stream, &steps.settle, &network.model, Stage::Before).during(STEPS)?;
        }
        network.run(stream, 0, job.n_steps, STEPS, |network, stream| steps.step(network, stream))
    }

    /// How a step is taken, in words.
    pub(super) fn status(&self) -> String {
        let score = self.network.n_launches() + 1;
        let n_launches = match self.steps.adapter {
            Adapter::Heun => 2 * (score + 1),
            Adapter::Mala => score + 3,
            _ => score + 1,
        };
        format!("{n_launches} launches a step, {}", self.network.how())
    }

    /// As [`Network::had_room`], of steps.
    pub(super) fn had_room(&mut self, stream: &Arc<CudaStream>) -> Result<bool> {
        self.network.had_room(stream, STEPS)
    }

    /// What is said where steps cannot be taken again.
    pub(super) fn out_of_room(&self) -> Error {
        Error::Device(
            "particles came closer than the GPU had room for in its lists of neighbors, and the enqueued steps were not taken; \
             there is more room now, so go on from the last good frame"
                .into(),
        )
    }

    /// The score of a particle, numbered through all frames, where a step failed.
    pub(super) fn score(&self, stream: &Arc<CudaStream>, particle: usize) -> Result<[f64; 3]> {
        let mut score = [0.0; 3];
        stream
            .memcpy_dtoh(&self.scores.slice(3 * particle..3 * particle + 3), &mut score)
            .and_then(|()| stream.synchronize())
            .during(STEPS)?;
        Ok(score)
    }
}

impl Steps {
    /// The launches of one step.
    fn step(&self, network: &Network, stream: &Arc<CudaStream>) -> std::result::Result<(), DriverError> {
        let model = &network.model;
        if self.adapter == Adapter::Mala {
            self.launch(stream, &self.score, model, Stage::AtBeginning)?;
        } else {
            self.evaluate(network, stream, Stage::AtBeginning)?;
        }
        self.launch(stream, &self.r#move, model, Stage::AtBeginning)?;
        match self.adapter {
            Adapter::Heun => {
                self.evaluate(network, stream, Stage::AtEnd)?;
                self.launch(stream, &self.r#move, model, Stage::AtEnd)
            }
            Adapter::Mala => {
                self.evaluate(network, stream, Stage::AtEnd)?;
                self.launch(stream, &self.settle, model, Stage::AtEnd)
            }
            _ => Ok(()),
        }
    }

    /// The score, and whether it is sound.
    fn evaluate(
        &self,
        network: &Network,
        stream: &Arc<CudaStream>,
        stage: Stage,
    ) -> std::result::Result<(), DriverError> {
        let positions = match stage {
            Stage::AtEnd => self.launches.ends,
            Stage::AtBeginning | Stage::Before => self.positions,
        };
        network.launch(stream, positions, self.adapter == Adapter::Mala)?;
        self.launch(stream, &self.score, &network.model, stage)
    }

    fn launch(
        &self,
        stream: &Arc<CudaStream>,
        part: &Part,
        model: &DeviceMessagePassing,
        stage: Stage,
    ) -> std::result::Result<(), DriverError> {
        let stage = stage as u32;
        launch(stream, part, |arguments| arguments.arg(&self.launches).arg(model).arg(&stage))
    }
}
