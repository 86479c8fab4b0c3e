//! Independent equilibrium frames by reverse diffusion (theory §9): from the data blurred by a large σ down to σ_MD.
//!
//! Blurring is x = x₀ + σξ, whose probability flow dx/dσ = −σ s(x, σ) (Song et al., arXiv:2011.13456) carries the density of
//! each σ into that of every other. It is integrated by Heun's method in σ (Karras et al., arXiv:2206.00364), exact where σ
//! is large against the data, on levels in geometric progression (theory 19):
//!
//!   y = x + (σ_n − σ_{n+1}) σ_n s(x, σ_n),
//!   x ← x + ½ (σ_n − σ_{n+1}) [σ_n s(x, σ_n) + σ_{n+1} s(y, σ_{n+1})].
//!
//! Frame f starts as the model's start frame f mod n_frames plus σ_0 ξ, a draw from exactly the density of that level; basins
//! that σ_0 does not join keep the populations of the start frames. Langevin steps (theory 10) at σ_MD follow: they take the
//! errors of the flow out of what is fast, bonds and angles.

use crate::adapter::{Adapter, ParticleStep};
use crate::backend::{self, Device, Failure, Job, MatmulPrecision, Placement, Replicas, threads};
use crate::error::{Error, Result, bail, brief};
use crate::model::{Frames, Model, Outputs, ScoreModel, Scratch};
use crate::noise::normals;
use rayon::prelude::*;
use std::sync::Arc;

/// Steps of the noise that no simulation of the same seed reaches.
const FIRST_STEP: u64 = 1 << 63;
/// More levels than any integration needs are a mistake.
const MAX_STEPS: usize = 100_000;
/// τ of the corrector in units of σ² for a model that recommends no step: no blurred density curves more than 1/σ².
const SAFE_STEP: f64 = 0.2;
/// A flow that moves a coordinate by this many σ in one step has left the region of the data.
const RUNAWAY: f64 = 1e4;

/// What reverse diffusion is told besides its model.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleOptions {
    /// Seed of the noise.
    pub seed: u64,
    /// Number of the first frame; a frame depends on its number and the seed alone.
    pub first_frame: u32,
    /// Steps of the flow, two scores each.
    pub n_steps: usize,
    /// σ at which frames start, nm; half the greatest of the training if `None`, for at the ends of its range a network is
    /// least accurate.
    pub start_level: Option<f64>,
    /// Langevin steps at the end.
    pub corrector_steps: u64,
    /// 0: one thread per core.
    pub n_threads: usize,
}

impl Default for SampleOptions {
    fn default() -> Self {
        SampleOptions {
            seed: 0,
            first_frame: 0,
            n_steps: 32,
            start_level: None,
            corrector_steps: 100,
            n_threads: 0,
        }
    }
}

/// Fill `positions`, `[n_frames][n_particles][3]` in nm, with frames numbered from `options.first_frame`. Those of a model
/// that knows no origin are centred.
pub fn sample(model: &Model, options: &SampleOptions, positions: &mut [f64]) -> Result<()> {
    let n = 3 * model.n_particles();
    if !positions.len().is_multiple_of(n) {
        bail!(
            InvalidArgument,
            "positions holds {} numbers; expected a multiple of {} particles × 3",
            positions.len(),
            model.n_particles()
        );
    }
    let n_frames = positions.len() / n;
    let Some(end) = u32::try_from(n_frames).ok().and_then(|k| options.first_frame.checked_add(k)) else {
        bail!(InvalidArgument, "first_frame {} + {n_frames} frames exceeds 2³²", options.first_frame);
    };
    let levels = levels(model, options)?;
    let n_threads = threads::count(options.n_threads)?;
    if n_frames == 0 {
        return Ok(());
    }
    let size = threads::frames_per_chunk(model.score().preferred_batch(), n_frames, n_threads);
    let run = |(i, positions): (usize, &mut [f64])| {
        let first = options.first_frame + (i * size) as u32;
        let frames = first..end.min(first.saturating_add(size as u32));
        descend(model, options, &levels, frames.clone(), positions)?;
        correct(model, options, frames, positions)?;
        if model.score().is_translation_invariant() {
            positions.chunks_exact_mut(n).for_each(centre);
        }
        Ok(())
    };
    // Whatever the threads do, the failure that is reported is that of the first frames.
    let outcomes: Vec<Result<()>> = threads::Threads::start(n_threads.min(n_frames.div_ceil(size)))?
        .run(|| positions.par_chunks_mut(size * n).enumerate().map(run).collect())?;
    outcomes.into_iter().collect()
}

/// One noise level and the score there.
type Level = (f64, Arc<dyn ScoreModel>);

/// σ_0 … σ_MD in geometric progression.
fn levels(model: &Model, options: &SampleOptions) -> Result<Vec<Level>> {
    let name = model.name();
    let (Some(range), Some(last)) = (model.metadata().noise_levels, model.noise_level()) else {
        bail!(
            Unsupported,
            "{name} knows one density and no noise levels, which reverse diffusion needs; sample it by a simulation"
        );
    };
    let first = options.start_level.unwrap_or((0.5 * range.max).max(last));
    if !(first >= last && first <= range.max * 1.001) {
        bail!(
            InvalidArgument,
            "start level {first} nm is outside the range {last} (where {name} is read) to {} nm (the greatest of its \
             training)",
            range.max
        );
    }
    if !(1..=MAX_STEPS).contains(&options.n_steps) {
        bail!(InvalidArgument, "n_steps is {}; expected 1 to {MAX_STEPS}", options.n_steps);
    }
    (0..=options.n_steps)
        .map(|i| {
            let level = first * (last / first).powf(i as f64 / options.n_steps as f64);
            match model.score().at_noise_level(level) {
                Some(score) => Ok((level, score)),
                None => bail!(
                    Unsupported,
                    "{name} can be read at one noise level only; reverse diffusion needs the model itself, not a part \
                     of a larger system"
                ),
            }
        })
        .collect()
}

/// From blurred start frames down all levels.
fn descend(
    model: &Model,
    options: &SampleOptions,
    levels: &[Level],
    numbers: std::ops::Range<u32>,
    positions: &mut [f64],
) -> Result<()> {
    let n = 3 * model.n_particles();
    let starts = model.start_positions();
    for (frame, x) in numbers.clone().zip(positions.chunks_exact_mut(n)) {
        match starts.len() / n {
            0 => x.fill(0.0),
            n_starts => x.copy_from_slice(&starts[frame as usize % n_starts * n..][..n]),
        }
        for (particle, x) in x.chunks_exact_mut(3).enumerate() {
            let xi = normals(options.seed, frame, particle as u32, FIRST_STEP);
            x.iter_mut().zip(xi).for_each(|(x, xi)| *x += levels[0].0 * xi as f64);
        }
    }
    let mut scratch = Scratch::default();
    let (mut scores, mut predicted_scores) = (vec![0.0; positions.len()], vec![0.0; positions.len()]);
    let mut predicted = vec![0.0; positions.len()];
    let mut evaluate = |(level, model): &Level, positions: &[f64], scores: &mut [f64]| {
        model.evaluate(Frames::open(positions), Outputs::scores(scores), &mut scratch)?;
        match scores.iter().position(|s| !s.is_finite() || s.abs() * level >= RUNAWAY) {
            Some(i) => Err(failure(numbers.start as usize + i / n, i % n / 3, *level, scores[i])),
            None => Ok(()),
        }
    };
    for pair in levels.windows(2) {
        let [from, to] = [pair[0].0, pair[1].0];
        evaluate(&pair[0], positions, &mut scores)?;
        for ((y, x), s) in predicted.iter_mut().zip(&*positions).zip(&scores) {
            *y = x + (from - to) * from * s;
        }
        evaluate(&pair[1], &predicted, &mut predicted_scores)?;
        for ((x, s), t) in positions.iter_mut().zip(&scores).zip(&predicted_scores) {
            *x += 0.5 * (from - to) * (from * s + to * t);
        }
    }
    Ok(())
}

/// Langevin steps at σ_MD.
fn correct(
    model: &Model,
    options: &SampleOptions,
    numbers: std::ops::Range<u32>,
    positions: &mut [f64],
) -> Result<()> {
    let n_particles = model.n_particles();
    let level = model.noise_level().expect("checked with the levels");
    let tau = model.metadata().recommended_effective_step.unwrap_or(SAFE_STEP * level * level);
    let step = ParticleStep { effective_step: tau, noise_amplitude: (2.0 * tau).sqrt() };
    let placement = Placement {
        device: Device::Cpu,
        n_threads: 1,
        replicas: numbers.clone(),
        particle_ids: (0..n_particles as u32).collect(),
        adapter: Adapter::LeimkuhlerMatthews,
        matmul_precision: MatmulPrecision::Highest,
        attachment: None,
    };
    let job = Job {
        model: &**model.score(),
        cell: None,
        adapter: placement.adapter,
        particles: &vec![step; n_particles],
        factors: &|_| (1.0, 1.0),
        inertia: None,
        burn_in: None,
        seed: options.seed,
        first_step: FIRST_STEP + 1,
        n_steps: options.corrector_steps,
        bias: None,
        continues: false,
    };
    let outcome = backend::open(model.score(), &placement, 0.0)?.advance(&job, Replicas::at(positions));
    outcome.map(drop).map_err(|f| match f {
        Failure::Other(error) => error,
        Failure::Score { frame, particle, score, .. } => {
            failure(numbers.start as usize + frame, particle, level, score)
        }
    })
}

fn failure(frame: usize, particle: usize, level: f64, score: f64) -> Error {
    Error::NotFinite(format!(
        "frame {frame} left the region of the training data: the score of particle {particle} is {} /nm at noise \
         level {} nm. Take more steps or a lower start level; if neither helps, the training of the large noise \
         levels failed",
        brief(score),
        brief(level)
    ))
}

/// Move the frame's centre to the origin.
fn centre(x: &mut [f64]) {
    let n = (x.len() / 3) as f64;
    let mut mean = [0.0; 3];
    for x in x.chunks_exact(3) {
        (0..3).for_each(|c| mean[c] += x[c] / n);
    }
    x.iter_mut().enumerate().for_each(|(i, x)| *x -= mean[i % 3]);
}
