//! Advancing batches of replicas on the CPU: score → adapter → positions, in place, nothing allocated per step.

use super::threads::{self, Threads};
use super::{Backend, Failure, Job, Placement, Replicas};
use crate::adapter::{
    Adapter, EulerMaruyama, Heun, Inertia, Langevin, LeimkuhlerMatthews, Move, ParticleStep, Tuning,
    log_proposal_ratio,
};
use crate::error::Result;
use crate::lane::ln_double;
use crate::model::{Frames, Outputs, ScoreModel, Scratch};
use crate::noise::{Noise, uniform};
use pulp::Arch;
use rayon::iter::{Either, repeat_n};
use rayon::prelude::*;

/// How many proposals were accepted, or what went wrong.
type Outcome = std::result::Result<u64, Failure>;

/// What schedules make of a step.
#[derive(Clone, Copy)]
struct Factors {
    drift: f64,
    noise: f64,
    inertia: Inertia,
}

impl Factors {
    #[inline(always)]
    fn at(job: &Job, step: u64) -> Self {
        let (drift, noise) = (job.factors)(step);
        Factors { drift, noise, inertia: job.inertia.map_or(Inertia::NONE, |inertia| inertia.scaled(drift)) }
    }

    /// With τ `factor` times as large.
    fn tuned(self, factor: f64) -> Self {
        Factors { drift: self.drift * factor, noise: self.noise * factor.sqrt(), ..self }
    }

    #[inline(always)]
    fn of(self, base: &ParticleStep) -> ParticleStep {
        base.scaled(self.drift, self.noise)
    }

    /// The largest sound drift in base noise amplitudes; where there are velocities, kick in thermal speeds.
    #[inline(always)]
    fn runaway(self) -> f64 {
        let limit = super::runaway(self.drift);
        if self.inertia.time_step > 0.0 { limit / self.inertia.kick_per_drift() } else { limit }
    }
}

/// Replicas that are evaluated together, with their work space.
struct Chunk {
    scores: Vec<f64>,
    /// Positions and scores at the end of a step that is taken again or may be rejected; empty for other adapters.
    ends: [Vec<f64>; 2],
    /// Energies of the frames and of their proposals, where those decide.
    energies: [Vec<f64>; 2],
    noise: Noise,
    next_noise: Noise,
    /// Seed and step for which `noise` holds ξ.
    noise_at: Option<(u64, u64)>,
    replicas: Vec<u32>,
    particles: Vec<u32>,
    scratch: Scratch,
    largest_score: f64,
}

impl Chunk {
    /// Of the replicas numbered `replicas`, whose particles have the noise ids `particle_ids`.
    fn new(replicas: std::ops::Range<u32>, particle_ids: &[u32]) -> Self {
        let n = replicas.len() * particle_ids.len();
        Chunk {
            scores: vec![0.0; 3 * n],
            ends: Default::default(),
            energies: Default::default(),
            noise: Noise::with_len(n),
            next_noise: Noise::with_len(n),
            noise_at: None,
            replicas: replicas.clone().flat_map(|r| particle_ids.iter().map(move |_| r)).collect(),
            particles: replicas.flat_map(|_| particle_ids.iter().copied()).collect(),
            scratch: Scratch::default(),
            largest_score: 0.0,
        }
    }

    fn advance<A: Move>(
        &mut self,
        job: &Job,
        arch: Arch,
        replicas: Replicas,
        bias: Option<&[f64]>,
    ) -> Outcome {
        let Replicas { positions, velocities, .. } = replicas;
        for step in job.first_step..job.first_step + job.n_steps {
            let frames = Frames { positions, cell: job.cell };
            job.model
                .evaluate(frames, Outputs::scores(&mut self.scores), &mut self.scratch)
                .map_err(Failure::Other)?;
            if let Some(bias) = bias {
                self.scores.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
            }
            if self.noise_at != Some((job.seed, step)) {
                self.noise.fill(arch, job.seed, &self.replicas, &self.particles, step);
                self.noise_at = Some((job.seed, step));
            }
            if A::NEXT_NOISE {
                self.next_noise.fill(arch, job.seed, &self.replicas, &self.particles, step + 1);
            }
            let factors = Factors::at(job, step);
            if !self.is_sound(job, factors) {
                return Err(self.failure(job, step, 0, factors, positions));
            }
            if A::CORRECTS {
                self.correct::<A>(job, factors, positions).map_err(Failure::Other)?;
                if !self.is_sound(job, factors) {
                    return Err(self.failure(job, step, 1, factors, positions));
                }
            }
            self.update::<A>(job, |_| factors, positions, velocities);
            if A::NEXT_NOISE {
                std::mem::swap(&mut self.noise, &mut self.next_noise);
                self.noise_at = Some((job.seed, step + 1));
            }
        }
        Ok(0)
    }

    /// Move every particle, by `scores` and noise, with the factors of this step for each frame.
    fn update<A: Move>(
        &self,
        job: &Job,
        factors: impl Fn(usize) -> Factors,
        positions: &mut [f64],
        velocities: &mut [f64],
    ) {
        let n_particles = job.particles.len();
        let frames =
            positions.chunks_exact_mut(3 * n_particles).zip(self.scores.chunks_exact(3 * n_particles));
        for (frame, (x, s)) in frames.enumerate() {
            let factors = factors(frame);
            for (particle, base) in job.particles.iter().enumerate() {
                let x: &mut [f64; 3] = x[3 * particle..].first_chunk_mut().expect("three coordinates");
                let s: &[f64; 3] = s[3 * particle..].first_chunk().expect("three coordinates");
                let i = frame * n_particles + particle;
                let mut none = [0.0; 3];
                let v: &mut [f64; 3] = if A::HAS_VELOCITIES {
                    velocities[3 * i..].first_chunk_mut().expect("three coordinates")
                } else {
                    &mut none
                };
                let next = if A::NEXT_NOISE { self.next_noise.get(i) } else { [0.0; 3] };
                A::move_particle(x, v, *s, self.noise.get(i), next, factors.of(base), factors.inertia);
            }
        }
    }

    /// Make `scores` the mean of those at both ends of the step.
    fn correct<A: Move>(&mut self, job: &Job, factors: Factors, positions: &[f64]) -> Result<()> {
        let [mut ends, mut end_scores] = std::mem::take(&mut self.ends);
        ends.clear();
        ends.extend_from_slice(positions);
        end_scores.resize(positions.len(), 0.0);
        self.update::<A>(job, |_| factors, &mut ends, &mut []);
        let frames = Frames { positions: &ends, cell: job.cell };
        job.model.evaluate(frames, Outputs::scores(&mut end_scores), &mut self.scratch)?;
        self.scores.iter_mut().zip(&end_scores).for_each(|(s, end)| *s = 0.5 * (*s + end));
        self.ends = [ends, end_scores];
        Ok(())
    }

    /// As [`Chunk::advance`], each step a proposal that is accepted or rejected (theory 8).
    fn metropolis(&mut self, job: &Job, arch: Arch, replicas: Replicas) -> Outcome {
        let Replicas { positions, tunings, .. } = replicas;
        let n_particles = job.particles.len();
        let n = 3 * n_particles;
        let mut accepted = 0;
        self.noise_at = None; // whatever way this ends
        let [mut energies, mut end_energies] = std::mem::take(&mut self.energies);
        let [mut ends, mut end_scores] = std::mem::take(&mut self.ends);
        for energies in [&mut energies, &mut end_energies] {
            energies.clear();
            energies.resize(positions.len() / n, f64::NAN); // stays where a caller's function writes none
        }
        end_scores.resize(positions.len(), 0.0);
        let frames = Frames { positions, cell: job.cell };
        let outputs = Outputs::energies(&mut self.scores, &mut energies);
        job.model.evaluate(frames, outputs, &mut self.scratch).map_err(Failure::Other)?;
        for step in job.first_step..job.first_step + job.n_steps {
            let factors = Factors::at(job, step);
            if !self.is_sound(job, factors) {
                return Err(self.failure(job, step, 0, factors, positions));
            }
            let tuned = |tunings: &[Tuning], frame: usize| match tunings.get(frame) {
                Some(tuning) => factors.tuned(tuning.factor()),
                None => factors,
            };
            if let Some(i) = energies.iter().position(|e| !e.is_finite()) {
                return Err(Failure::energy(self.replicas[i * n_particles], energies[i]));
            }
            self.noise.fill(arch, job.seed, &self.replicas, &self.particles, step);
            ends.clear();
            ends.extend_from_slice(positions);
            self.update::<EulerMaruyama>(job, |frame| tuned(tunings, frame), &mut ends, &mut []);
            let frames = Frames { positions: &ends, cell: job.cell };
            let outputs = Outputs::energies(&mut end_scores, &mut end_energies);
            job.model.evaluate(frames, outputs, &mut self.scratch).map_err(Failure::Other)?;
            for frame in 0..energies.len() {
                let range = frame * n..(frame + 1) * n;
                let factors = tuned(tunings, frame);
                let (mut logarithm, mut per_energy) = (0.0, 0.0);
                for (particle, base) in job.particles.iter().enumerate() {
                    let step = factors.of(base);
                    let of = |array: &[f64]| -> [f64; 3] {
                        *array[range.start + 3 * particle..].first_chunk().expect("three coordinates")
                    };
                    logarithm +=
                        log_proposal_ratio(of(positions), of(&self.scores), of(&ends), of(&end_scores), step);
                    if step.noise_amplitude > 0.0 {
                        per_energy = 2.0 * step.effective_step / step.noise_amplitude.powi(2); // 1/υ
                    }
                }
                logarithm += per_energy * (energies[frame] - end_energies[frame]);
                if let (Some(burn_in), Some(tuning)) = (job.burn_in, tunings.get_mut(frame)) {
                    tuning.learn(burn_in, step, logarithm);
                }
                let replica = self.replicas[frame * n_particles];
                // False for NaN: a proposal without a finite energy is never accepted.
                if ln_double(uniform(job.seed, replica, step)) < logarithm {
                    positions[range.clone()].copy_from_slice(&ends[range.clone()]);
                    self.scores[range.clone()].copy_from_slice(&end_scores[range]);
                    energies[frame] = end_energies[frame];
                    accepted += 1;
                }
            }
        }
        self.ends = [ends, end_scores];
        self.energies = [energies, end_energies];
        Ok(accepted)
    }

    /// Whether every score is finite and no drift a runaway's; keeps the largest score.
    fn is_sound(&mut self, job: &Job, factors: Factors) -> bool {
        let limit = factors.runaway();
        let (mut sound, mut largest) = (true, self.largest_score);
        for scores in self.scores.chunks_exact(3 * job.particles.len()) {
            for (s, base) in scores.as_chunks::<3>().0.iter().zip(job.particles) {
                let worst = s[0].abs().max(s[1].abs()).max(s[2].abs());
                largest = largest.max(worst);
                // A maximum passes over NaN, a sum does not.
                sound &= (s[0] + s[1] + s[2]).is_finite()
                    && base.effective_step * worst <= limit * base.noise_amplitude;
            }
        }
        self.largest_score = largest;
        sound
    }

    /// Name the first particle that failed.
    fn failure(&self, job: &Job, step: u64, stage: u32, factors: Factors, positions: &[f64]) -> Failure {
        let n = 3 * job.particles.len();
        let mut frames = self.scores.chunks_exact(n).zip(positions.chunks_exact(n)).enumerate();
        let failure = |(frame, (scores, positions)): (usize, (&[f64], &[f64]))| {
            Failure::find(frame, scores, job.particles, factors.runaway(), step, positions)
        };
        // A sum of finite scores may overflow.
        let overflow = || Failure::Score {
            frame: 0,
            particle: 0,
            step,
            stage,
            score: self.scores[0],
            positions: positions[..n].to_vec(),
        };
        frames.find_map(failure).unwrap_or_else(overflow).at_stage(stage)
    }
}

/// All replicas, in chunks.
pub struct Cpu {
    chunks: Vec<Chunk>,
    threads: Option<Threads>,
    /// For batches that are no replicas: one work space for each thread, which start when they are first needed.
    batch: (Vec<Scratch>, Option<Threads>),
}

impl Cpu {
    /// For `model` on the threads of `placement`.
    pub fn new(model: &dyn ScoreModel, placement: &Placement, largest_score: f64) -> Result<Self> {
        let Placement { n_threads, replicas, particle_ids, .. } = placement;
        let size = threads::frames_per_chunk(model.preferred_batch(), replicas.len(), *n_threads) as u32;
        let chunk =
            |first: u32| Chunk::new(first..replicas.end.min(first.saturating_add(size)), particle_ids);
        let mut chunks: Vec<Chunk> = replicas.clone().step_by(size as usize).map(chunk).collect();
        chunks[0].largest_score = largest_score;
        let batch = ((0..*n_threads).map(|_| Scratch::default()).collect(), None);
        let n_threads = chunks.len().saturating_mul(model.threads_per_frame()).min(*n_threads);
        let threads = if n_threads == 1 { None } else { Some(Threads::start(n_threads)?) };
        Ok(Cpu { chunks, threads, batch })
    }
}

impl Backend for Cpu {
    fn advance(&mut self, job: &Job, replicas: Replicas) -> Outcome {
        let Cpu { chunks, threads, .. } = self;
        match threads {
            Some(threads) => threads.run(|| advance(job, chunks, replicas)).map_err(Failure::Other)?,
            None => advance(job, chunks, replicas),
        }
    }

    fn scores(&mut self, model: &dyn ScoreModel, frames: Frames, scores: &mut [f64]) -> Result<()> {
        let n = 3 * model.n_particles();
        let (scratches, threads) = &mut self.batch;
        let share = n * (scores.len() / n).div_ceil(scratches.len()).max(1);
        let size = n * model.preferred_batch().max(1);
        let run = |((positions, scores), scratch): ((&[f64], &mut [f64]), &mut Scratch)| {
            positions.chunks(size).zip(scores.chunks_mut(size)).try_for_each(|(positions, scores)| {
                model.evaluate(Frames { positions, cell: frames.cell }, Outputs::scores(scores), scratch)
            })
        };
        if scratches.len() == 1 || scores.len() <= share {
            return run(((frames.positions, scores), &mut scratches[0]));
        }
        if threads.is_none() {
            *threads = Some(Threads::start(scratches.len())?);
        }
        let each = || {
            let shares = frames.positions.par_chunks(share).zip(scores.par_chunks_mut(share));
            // Of several errors the first, whatever the threads do.
            shares.zip(scratches).map(run).reduce(|| Ok(()), |a, b| a.and(b))
        };
        threads.as_mut().expect("started").run(each)?
    }

    fn largest_score(&self) -> f64 {
        self.chunks.iter().map(|c| c.largest_score).fold(0.0, f64::max)
    }
}

fn advance(job: &Job, chunks: &mut [Chunk], replicas: Replicas) -> Outcome {
    let arch = Arch::new();
    let run = |chunk: &mut Chunk, replicas: Replicas, bias: Option<&[f64]>| match job.adapter {
        Adapter::EulerMaruyama => chunk.advance::<EulerMaruyama>(job, arch, replicas, bias),
        Adapter::LeimkuhlerMatthews => chunk.advance::<LeimkuhlerMatthews>(job, arch, replicas, bias),
        Adapter::Heun => chunk.advance::<Heun>(job, arch, replicas, bias),
        Adapter::Langevin => chunk.advance::<Langevin>(job, arch, replicas, bias),
        Adapter::Mala => chunk.metropolis(job, arch, replicas),
    };
    if let [chunk] = chunks {
        return run(chunk, replicas, job.bias);
    }
    let (n, size) = (chunks.len(), chunks[0].scores.len());
    let n_frames = size / (3 * job.particles.len());
    let Replicas { positions, velocities, tunings } = replicas;
    chunks
        .par_iter_mut()
        .zip(positions.par_chunks_mut(size))
        .zip(parts(velocities, size, n).zip(parts(tunings, n_frames, n)))
        .enumerate()
        .map(|(i, ((chunk, positions), (velocities, tunings)))| {
            let bias = job.bias.map(|b| &b[i * size..][..positions.len()]);
            let replicas = Replicas { positions, velocities, tunings };
            run(chunk, replicas, bias).map_err(|failure| match failure {
                Failure::Score { frame, particle, step, stage, score, positions } => {
                    Failure::Score { frame: frame + i * n_frames, particle, step, stage, score, positions }
                }
                other => other,
            })
        })
        .reduce(|| Ok(0), together)
}

/// `n` parts of `size` elements, the last perhaps shorter; empty ones of what is empty.
fn parts<T: Send>(whole: &mut [T], size: usize, n: usize) -> impl IndexedParallelIterator<Item = &mut [T]> {
    match whole {
        [] => Either::Left(repeat_n((), n).map(|()| -> &mut [T] { &mut [] })),
        _ => Either::Right(whole.par_chunks_mut(size)),
    }
}

/// Of two failures the earlier one, so that what is reported and restored does not depend on threads.
fn together(a: Outcome, b: Outcome) -> Outcome {
    let time = |failure: &Failure| match failure {
        Failure::Other(_) => (0, 0),
        Failure::Score { step, stage, .. } => (*step, *stage),
    };
    match (a, b) {
        (Ok(a), Ok(b)) => Ok(a + b),
        (Err(a), Err(b)) => Err(if time(&b) < time(&a) { b } else { a }),
        (Err(failure), _) | (_, Err(failure)) => Err(failure),
    }
}
