//! Steps of models that take several launches for each: the `message-passing` network, and blends of two models. The host's
//! half of kernels/launches.cuh.
//!
//! The launches of a step are those of the score (network.rs, source.rs), one that gathers and checks it, and one that moves
//! the particles. Where a list of neighbours outgrows its room all steps stop, and the host makes more; of a blend, whose models
//! are evaluated one after the other, it makes more before the step goes on.

use super::network::{Clock, Network, Part, zeros};
use super::source::Blend;
use super::{
    CudaSlice, CudaStream, DeviceJob, DeviceRepr, DriverError, Gpu, METROPOLIS_BYTES, PushKernelArg, While,
    address, launch,
};
use crate::adapter::Adapter;
use crate::cell::Cell;
use crate::error::{Error, Result};
use crate::model::KernelModel;
use crate::model::kernel::Kernel;
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
    model: Model,
    steps: Steps,
    job: CudaSlice<DeviceJob>,
    scores: CudaSlice<f64>,
    _clock: Option<CudaSlice<Clock>>,
    _doubles: Vec<CudaSlice<f64>>,
    _indices: Vec<CudaSlice<u32>>,
}

/// What scores come from.
enum Model {
    Network(Box<Network>),
    Blend(Box<Blend>),
}

/// What a step launches besides the score.
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
        n_replicas: usize,
        adapter: Adapter,
    ) -> Result<Self> {
        let n_all = model.n_particles * n_replicas;
        let decides = adapter == Adapter::Mala;
        let memory = "allocating its memory";
        let mut own_clock = None;
        let (model, clock, suffix) = match &model.kernel {
            Kernel::MessagePassing(arrays) => {
                let network = Network::new(gpu, stream, model, arrays, n_replicas)?;
                let clock = network.model.list.clock;
                (Model::Network(Box::new(network)), clock, "")
            }
            Kernel::Blend(parts) => {
                let blend = Blend::new(gpu, stream, parts, n_replicas)?;
                let clock = own_clock.insert(stream.clone_htod(&[Clock::default()]).during(memory)?);
                (Model::Blend(Box::new(blend)), address(clock, stream), "_blend")
            }
            Kernel::Analytic { .. } | Kernel::Distance(_) => unreachable!("takes one launch for many steps"),
        };
        let (mut doubles, mut indices) = (Vec::new(), Vec::new());
        // 0 where the adapter has no use for it.
        let mut optional = |n: usize| if n == 0 { Ok(0) } else { zeros(&mut doubles, stream, n) };
        let of_ends = if adapter == Adapter::Heun || decides { 3 * n_all } else { 0 };
        let of_decisions = if decides { n_all } else { 0 };
        let per_frame = if decides { n_replicas } else { 0 };
        let scores = stream.alloc_zeros(3 * n_all).during(memory)?;
        let job = stream.clone_htod(&[DeviceJob::default()]).during(memory)?;
        let launches = DeviceLaunches {
            job: address(&job, stream),
            clock,
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
        let each = |name: &str, n: usize| Part::each(&gpu.module, &format!("{name}{suffix}"), n);
        let steps = Steps {
            begin: each("step_begin", n_all)?,
            score: Part::of_scores(&gpu.module, &format!("step_score{suffix}"), n_all)?,
            r#move: each("step_move", n_all)?,
            settle: Part { shared: METROPOLIS_BYTES, ..each("step_settle", n_replicas)? },
            launches,
            positions: 0,
            adapter,
        };
        Ok(Launches { model, steps, job, scores, _clock: own_clock, _doubles: doubles, _indices: indices })
    }

    /// Start the steps of `job`, whose positions are those that the device has, or were `sent` anew; of a blend, at this λ.
    pub(super) fn enqueue(
        &mut self,
        stream: &Arc<CudaStream>,
        job: DeviceJob,
        cell: Option<&Cell>,
        lambda: Option<f64>,
        sent: bool,
    ) -> Result<()> {
        stream.memcpy_htod(&[job], &mut self.job).during(STEPS)?;
        let Launches { model, steps, .. } = self;
        steps.positions = job.positions;
        match model {
            Model::Network(network) => steps.of_network(network, stream, cell, sent, job.n_steps),
            Model::Blend(blend) => {
                blend.lambda = lambda.unwrap_or_default();
                steps.of_blend(blend, stream, cell, job.n_steps)
            }
        }
    }

    /// How a step is taken, in words.
    pub(super) fn status(&self) -> String {
        let (score, how) = match &self.model {
            Model::Network(network) => (network.n_launches() + 1, network.how()),
            Model::Blend(blend) => (blend.n_launches() + 1, "one model of the blend after the other".into()),
        };
        let n_launches = match self.steps.adapter {
            Adapter::Heun => 2 * (score + 1),
            Adapter::Mala => score + 3,
            _ => score + 1,
        };
        format!("{n_launches} launches a step, {how}")
    }

    /// As [`Network::had_room`], of steps. A blend has made room already.
    pub(super) fn had_room(&mut self, stream: &Arc<CudaStream>) -> Result<bool> {
        match &mut self.model {
            Model::Network(network) => network.had_room(stream, STEPS),
            Model::Blend(_) => Ok(true),
        }
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
    /// So many steps of the network, as a graph where those are not switched off.
    fn of_network(
        &self,
        network: &mut Network,
        stream: &Arc<CudaStream>,
        cell: Option<&Cell>,
        sent: bool,
        n_steps: u64,
    ) -> Result<()> {
        let with_energies = self.adapter == Adapter::Mala;
        let begin = |model: &_| self.launch(stream, &self.begin, model, Stage::AtBeginning);
        network.list(stream, self.positions, cell, sent, begin)?;
        begin(&network.model).during(STEPS)?;
        if with_energies {
            network
                .launch(stream, self.positions, true)
                .and_then(|()| self.launch(stream, &self.score, &network.model, Stage::Before))
                .and_then(|()| self.launch(stream, &self.settle, &network.model, Stage::Before))
                .during(STEPS)?;
        }
        network.run(stream, (self.positions, with_energies), n_steps, STEPS, |network, stream| {
            self.step(
                |stage| network.launch(stream, self.at(stage), with_energies),
                |part, stage| self.launch(stream, part, &network.model, stage),
            )
        })
    }

    /// The same of a blend, whose models replay graphs of their own.
    fn of_blend(
        &self,
        blend: &mut Blend,
        stream: &Arc<CudaStream>,
        cell: Option<&Cell>,
        n_steps: u64,
    ) -> Result<()> {
        let with_energies = self.adapter == Adapter::Mala;
        let model = &blend.device(stream);
        let launch = |part: &Part, stage| self.launch(stream, part, model, stage).during(STEPS);
        let mut evaluate = |stage| blend.enqueue(stream, self.at(stage), cell, with_energies, STEPS);
        launch(&self.begin, Stage::AtBeginning)?;
        if with_energies {
            evaluate(Stage::Before)?;
            launch(&self.score, Stage::Before)?;
            launch(&self.settle, Stage::Before)?;
        }
        (0..n_steps).try_for_each(|_| self.step(&mut evaluate, launch))
    }

    /// One step: what is launched for it, besides what makes the score.
    fn step<E>(
        &self,
        mut evaluate: impl FnMut(Stage) -> std::result::Result<(), E>,
        launch: impl Fn(&Part, Stage) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        if self.adapter != Adapter::Mala {
            evaluate(Stage::AtBeginning)?;
        }
        launch(&self.score, Stage::AtBeginning)?;
        launch(&self.r#move, Stage::AtBeginning)?;
        let last = match self.adapter {
            Adapter::Heun => &self.r#move,
            Adapter::Mala => &self.settle,
            _ => return Ok(()),
        };
        evaluate(Stage::AtEnd)?;
        launch(&self.score, Stage::AtEnd)?;
        launch(last, Stage::AtEnd)
    }

    /// Where the positions lie of which the score is computed.
    fn at(&self, stage: Stage) -> u64 {
        match stage {
            Stage::AtEnd => self.launches.ends,
            Stage::AtBeginning | Stage::Before => self.positions,
        }
    }

    fn launch(
        &self,
        stream: &Arc<CudaStream>,
        part: &Part,
        model: &impl DeviceRepr,
        stage: Stage,
    ) -> std::result::Result<(), DriverError> {
        let stage = stage as u32;
        launch(stream, part, |arguments| arguments.arg(&self.launches).arg(model).arg(&stage))
    }
}
