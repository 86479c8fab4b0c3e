//! Where arithmetic runs: one file per device, each of which takes the same steps.

pub mod cpu;
pub mod cuda;
pub mod threads;

use crate::adapter::{Adapter, BurnIn, Inertia, ParticleStep, Tuning};
use crate::cell::Cell;
use crate::error::{Error, Result, bail};
use crate::model::{Frames, ScoreModel};
use std::ops::Range;
use std::sync::Arc;

/// A drift of this many noise amplitudes in one step is a particle running away, at any spring: at the stability limit of
/// theory §2 the two are equal in size. The same number is in kernels/advance.cuh.
const RUNAWAY: f64 = 100.0;

/// What a simulation may run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The cores of this machine.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl Device {
    /// `cpu`, `cuda` (the first GPU), `cuda:1`, …, or `auto`, which is the CPU: a GPU is used where it is asked for by name.
    pub fn parse(name: &str) -> Result<Self> {
        let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?;
        match (name, name.strip_prefix("cuda:").map(number)) {
            ("auto" | "cpu", _) => Ok(Device::Cpu),
            ("cuda", _) => Ok(Device::Cuda(0)),
            (_, Some(Some(index))) => Ok(Device::Cuda(index)),
            _ => {
                bail!(
                    InvalidArgument,
                    "device '{name}' is unknown; expected 'auto', 'cpu', 'cuda', or 'cuda:1' and so on for further GPUs"
                )
            }
        }
    }

    /// What this device is, in words; an error, in one sentence, if it cannot be used here.
    pub fn describe(self) -> Result<String> {
        match self {
            Device::Cpu => {
                let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
                Ok(format!("cpu: {cores} cores, {:?}", pulp::Arch::new()))
            }
            Device::Cuda(index) => cuda::describe(index),
        }
    }
}

/// How products of matrices are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MatmulPrecision {
    /// In single precision, with the same bits on every device.
    #[default]
    Highest,
    /// On a GPU's tensor cores, each number split in two of half precision: nearly as accurate, with bits of that kind of GPU.
    High,
}

impl MatmulPrecision {
    /// `highest` or `high`.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "highest" => Ok(MatmulPrecision::Highest),
            "high" => Ok(MatmulPrecision::High),
            _ => bail!(InvalidArgument, "matmul_precision '{name}' is unknown; expected 'highest' or 'high'"),
        }
    }

    /// Refuse tensor cores where there are none.
    pub fn check(self, device: Device, name: &str) -> Result<()> {
        if self == MatmulPrecision::High && device == Device::Cpu {
            bail!(
                InvalidArgument,
                "matmul_precision 'high' is for the tensor cores of GPUs and device is '{name}'; expected device 'cuda', or \
                 'cuda:1' and so on, else matmul_precision 'highest'"
            );
        }
        Ok(())
    }
}

/// A CUDA context and a stream in it that belong to the caller, as the driver's handles: the simulation runs there. They must outlive
/// it; stream 0 is the context's default stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// `CUcontext`
    pub context: usize,
    /// `CUstream`
    pub stream: usize,
}

/// The replicas of a simulation and where they are moved; whatever else changes, the backend stays.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// Where arithmetic runs.
    pub device: Device,
    /// Threads on the CPU.
    pub n_threads: usize,
    /// Numbers of the replicas, for the noise.
    pub replicas: Range<u32>,
    /// Ids that key the noise of each particle.
    pub particle_ids: Vec<u32>,
    /// The step, for which work space is laid out.
    pub adapter: Adapter,
    /// Of products of matrices, on GPUs.
    pub matmul_precision: MatmulPrecision,
    /// Of the caller, for GPUs.
    pub attachment: Option<Attachment>,
}

/// What moves the particles over some consecutive steps.
pub struct Job<'a> {
    /// The score.
    pub model: &'a dyn ScoreModel,
    /// The cell of all frames, for periodic models.
    pub cell: Option<&'a Cell>,
    /// The step.
    pub adapter: Adapter,
    /// Base step of each particle, before schedules.
    pub particles: &'a [ParticleStep],
    /// Factors of schedules at a step: on τ and on the noise amplitude.
    pub factors: &'a (dyn Fn(u64) -> (f64, f64) + Sync),
    /// With adapters that have velocities, at the schedules' unit factors.
    pub inertia: Option<Inertia>,
    /// With adapters whose steps are tuned.
    pub burn_in: Option<BurnIn>,
    /// Seed of the noise.
    pub seed: u64,
    /// Number of the first step.
    pub first_step: u64,
    /// Steps to take.
    pub n_steps: u64,
    /// Added to the score (1/nm), `[n_replicas][n_particles][3]`, for a single step.
    pub bias: Option<&'a [f64]>,
    /// Whether the replicas are as the last call left them, so that a device may go on with its own copy.
    pub continues: bool,
}

/// What steps change.
pub struct Replicas<'a> {
    /// nm, `[n_replicas][n_particles][3]`.
    pub positions: &'a mut [f64],
    /// nm/ps, of the same shape; empty where the adapter has none.
    pub velocities: &'a mut [f64],
    /// `[n_replicas]`; empty without a burn-in.
    pub tunings: &'a mut [Tuning],
}

impl<'a> Replicas<'a> {
    /// Of adapters that have neither velocities nor tunings.
    pub fn at(positions: &'a mut [f64]) -> Self {
        Replicas { positions, velocities: &mut [], tunings: &mut [] }
    }
}

/// Why a run stopped.
pub enum Failure {
    /// The score of this particle was not finite, or its drift a runaway's.
    Score {
        /// Frame within the whole batch of replicas.
        frame: usize,
        /// Particle of that frame.
        particle: usize,
        /// The step that could not be taken.
        step: u64,
        /// 1 if it was the score at the step's end that failed, else 0.
        stage: u32,
        /// The offending score, 1/nm.
        score: f64,
        /// The frame's positions, of which that is the score.
        positions: Vec<f64>,
    },
    /// The model or the device itself failed.
    Other(Error),
}

/// The largest drift of particles that do not run away, in base noise amplitudes, at factor `drift` of the schedules.
pub fn runaway(drift: f64) -> f64 {
    RUNAWAY / drift.sqrt()
}

/// Whether every score of a frame is finite and no base drift more than `limit` base noise amplitudes.
pub fn is_sound(scores: &[f64], particles: &[ParticleStep], limit: f64) -> bool {
    scores.as_chunks::<3>().0.iter().zip(particles).all(|(s, base)| is_allowed(*s, base, limit))
}

impl Failure {
    /// The energy of `replica` is not finite where it decides.
    fn energy(replica: u32, energy: f64) -> Self {
        Failure::Other(Error::Unsupported(format!(
            "the energy of replica {replica} is {energy}, and Metropolis steps need one; use a model that gives energies, or \
             another adapter"
        )))
    }

    /// The same, of this stage of the step.
    fn at_stage(mut self, at: u32) -> Self {
        if let Failure::Score { stage, .. } = &mut self {
            *stage = at;
        }
        self
    }

    /// The first particle of a frame whose score is not sound.
    pub fn find(
        frame: usize,
        scores: &[f64],
        particles: &[ParticleStep],
        limit: f64,
        step: u64,
        positions: &[f64],
    ) -> Option<Self> {
        let scores = scores.as_chunks::<3>().0;
        let particle = scores.iter().zip(particles).position(|(s, base)| !is_allowed(*s, base, limit))?;
        let score = worst(&scores[particle]);
        Some(Failure::Score { frame, particle, step, stage: 0, score, positions: positions.to_vec() })
    }
}

/// The component that a failure is reported with: the largest, NaN being the largest of all.
fn worst(score: &[f64; 3]) -> f64 {
    *score.iter().max_by(|a, b| a.abs().total_cmp(&b.abs())).expect("three coordinates")
}

fn is_allowed(score: [f64; 3], base: &ParticleStep, limit: f64) -> bool {
    score.iter().all(|s| base.effective_step * s.abs() <= limit * base.noise_amplitude && s.is_finite())
}

/// A device that holds the replicas of one simulation.
pub trait Backend: Send {
    /// Take the steps of `job` with all replicas; how many proposals were accepted, 0 with adapters that make none.
    ///
    /// On a failure some replicas have been moved and others have not: the caller restores the last good frame.
    fn advance(&mut self, job: &Job, replicas: Replicas) -> std::result::Result<u64, Failure>;

    /// Scores of a batch of any number of frames, with all threads; what the samplers need that take many frames at once.
    fn scores(&mut self, model: &dyn ScoreModel, frames: Frames, scores: &mut [f64]) -> Result<()>;

    /// Largest |score| met, 1/nm.
    fn largest_score(&self) -> f64;

    /// How steps are taken, in words, and on a GPU how long the last ones took.
    fn status(&self) -> String {
        "cpu".into()
    }

    /// Start the steps of `job` from `replicas`, or where the device is if it continues, and do not wait; [`Backend::fetch`]
    /// tells what became of them. `scale` times the forces at [`Backend::device_forces`] is added to the score (1/nm), if given.
    fn enqueue(&mut self, _job: &Job, _replicas: &Replicas, _scale: Option<f64>) -> Result<()> {
        Err(only_on_a_gpu())
    }

    /// Wait for what was enqueued since the last time, and fetch the replicas: as [`Backend::advance`] for all of those steps.
    fn fetch(&mut self, _replicas: Replicas) -> std::result::Result<u64, Failure> {
        Err(Failure::Other(only_on_a_gpu()))
    }

    /// Where the positions lie on the device; everything is set to `replicas` first, if given.
    fn device_positions(&mut self, _replicas: Option<&Replicas>) -> Result<u64> {
        Err(only_on_a_gpu())
    }

    /// Where forces may be put on the device, of the shape of the positions; zero at first.
    fn device_forces(&mut self) -> Result<u64> {
        Err(only_on_a_gpu())
    }

    /// Where the velocities lie on the device, beside [`Backend::device_positions`].
    fn device_velocities(&mut self) -> Result<u64> {
        Err(only_on_a_gpu())
    }
}

fn only_on_a_gpu() -> Error {
    Error::Unsupported(
        "the simulation runs on the CPU, which has no queue and no memory of its own; use device 'cuda'"
            .into(),
    )
}

/// A backend for `model` that has met scores of up to `largest_score` (1/nm) before.
pub fn open(
    model: &Arc<dyn ScoreModel>,
    placement: &Placement,
    largest_score: f64,
) -> Result<Box<dyn Backend>> {
    Ok(match placement.device {
        Device::Cpu => Box::new(cpu::Cpu::new(&**model, placement, largest_score)?),
        Device::Cuda(index) => Box::new(cuda::Cuda::new(&**model, placement, index, largest_score)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        for (name, device) in [
            ("auto", Device::Cpu),
            ("cpu", Device::Cpu),
            ("cuda", Device::Cuda(0)),
            ("cuda:0", Device::Cuda(0)),
            ("cuda:17", Device::Cuda(17)),
        ] {
            assert_eq!(Device::parse(name), Ok(device));
        }
        for name in [
            "",
            "gpu",
            "CUDA",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:1.5",
            "cuda 1",
            "cuda:99999999999999999999",
        ] {
            assert!(
                Device::parse(name).unwrap_err().to_string().contains("expected 'auto', 'cpu', 'cuda'"),
                "{name}"
            );
        }
    }
}
