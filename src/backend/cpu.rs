//! Advancing batches of replicas on the CPU: score → adapter → positions, in place, nothing allocated per step.

use crate::adapter::{Adapter, EulerMaruyama, LeimkuhlerMatthews, ParticleStep, Step};
use crate::cell::Cell;
use crate::error::Error;
use crate::model::{Frames, Outputs, ScoreModel, Scratch};
use crate::noise::Noise;
use pulp::Arch;
use rayon::prelude::*;

/// A drift of this many noise amplitudes in one step is a particle running away, at any spring: at the stability limit of
/// theory §2 the two are equal in size.
const RUNAWAY: f64 = 100.0;

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
    /// Seed of the noise.
    pub seed: u64,
    /// Number of the first step.
    pub first_step: u64,
    /// Steps to take.
    pub n_steps: u64,
    /// Added to the score (1/nm), `[n_replicas][n_particles][3]`, for a single step.
    pub bias: Option<&'a [f64]>,
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
        /// The offending score, 1/nm.
        score: f64,
        /// The frame's positions, of which that is the score.
        positions: Vec<f64>,
    },
    /// The model itself failed.
    Model(Error),
}

/// Replicas that are evaluated together, with their work space.
pub struct Chunk {
    scores: Vec<f64>,
    noise: Noise,
    next_noise: Noise,
    /// Seed and step for which `noise` holds ξ.
    noise_at: Option<(u64, u64)>,
    replicas: Vec<u32>,
    particles: Vec<u32>,
    scratch: Scratch,
    /// Largest |score| met, 1/nm.
    pub largest_score: f64,
}

impl Chunk {
    /// Of the replicas numbered `replicas`, whose particles have the noise ids `particle_ids`.
    pub fn new(replicas: std::ops::Range<u32>, particle_ids: &[u32]) -> Self {
        let n = replicas.len() * particle_ids.len();
        Chunk {
            scores: vec![0.0; 3 * n],
            noise: Noise::with_len(n),
            next_noise: Noise::with_len(n),
            noise_at: None,
            replicas: replicas.clone().flat_map(|r| particle_ids.iter().map(move |_| r)).collect(),
            particles: replicas.flat_map(|_| particle_ids.iter().copied()).collect(),
            scratch: Scratch::default(),
            largest_score: 0.0,
        }
    }

    fn advance<A: Step>(
        &mut self,
        job: &Job,
        arch: Arch,
        positions: &mut [f64],
        bias: Option<&[f64]>,
    ) -> Result<(), Failure> {
        let n_particles = job.particles.len();
        for step in job.first_step..job.first_step + job.n_steps {
            let frames = Frames { positions, cell: job.cell };
            job.model
                .evaluate(frames, Outputs::scores(&mut self.scores), &mut self.scratch)
                .map_err(Failure::Model)?;
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
            let (drift, noise) = (job.factors)(step);
            if !self.is_sound(job, drift) {
                return Err(self.failure(job, step, drift, positions));
            }
            let frames =
                positions.chunks_exact_mut(3 * n_particles).zip(self.scores.chunks_exact(3 * n_particles));
            for (frame, (x, s)) in frames.enumerate() {
                for (particle, base) in job.particles.iter().enumerate() {
                    let step = ParticleStep {
                        effective_step: base.effective_step * drift,
                        noise_amplitude: base.noise_amplitude * noise,
                    };
                    let x: &mut [f64; 3] = x[3 * particle..].first_chunk_mut().expect("three coordinates");
                    let s: &[f64; 3] = s[3 * particle..].first_chunk().expect("three coordinates");
                    let i = frame * n_particles + particle;
                    *x = A::update_particle(*x, *s, self.noise.get(i), self.next_noise.get(i), step);
                }
            }
            if A::NEXT_NOISE {
                std::mem::swap(&mut self.noise, &mut self.next_noise);
                self.noise_at = Some((job.seed, step + 1));
            }
        }
        Ok(())
    }

    /// Whether every score is finite and no drift a runaway's; keeps the largest score.
    fn is_sound(&mut self, job: &Job, drift: f64) -> bool {
        let limit = RUNAWAY / drift.sqrt();
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
    fn failure(&self, job: &Job, step: u64, drift: f64, positions: &[f64]) -> Failure {
        let n = job.particles.len();
        let limit = RUNAWAY / drift.sqrt();
        let scores = self.scores.as_chunks::<3>().0;
        let fails = |i: usize| {
            let base = job.particles[i % n];
            let allowed =
                |s: &f64| base.effective_step * s.abs() <= limit * base.noise_amplitude && s.is_finite();
            !scores[i].iter().all(allowed)
        };
        let i = (0..scores.len()).find(|i| fails(*i)).unwrap_or(0);
        let worst = |a: &&f64, b: &&f64| a.abs().total_cmp(&b.abs()); // NaN is the largest of all
        Failure::Score {
            frame: i / n,
            particle: i % n,
            step,
            score: *scores[i].iter().max_by(worst).expect("three coordinates"),
            positions: positions[i / n * 3 * n..][..3 * n].to_vec(),
        }
    }
}

/// Replicas of each chunk: as many as the model likes to see at once, but no core idle.
pub fn replicas_per_chunk(preferred_batch: usize, n_replicas: usize, n_threads: usize) -> usize {
    n_replicas.div_ceil(n_threads).clamp(1, preferred_batch.max(1))
}

/// Take the steps of `job` with all replicas, `positions` `[n_replicas][n_particles][3]` in chunks.
///
/// On a failure some replicas have been moved and others have not: the caller restores the last good frame.
pub fn advance(job: &Job, chunks: &mut [Chunk], positions: &mut [f64]) -> Result<(), Failure> {
    let arch = Arch::new();
    let run = |chunk: &mut Chunk, positions: &mut [f64], bias: Option<&[f64]>| match job.adapter {
        Adapter::EulerMaruyama => chunk.advance::<EulerMaruyama>(job, arch, positions, bias),
        Adapter::LeimkuhlerMatthews => chunk.advance::<LeimkuhlerMatthews>(job, arch, positions, bias),
    };
    if let [chunk] = chunks {
        return run(chunk, positions, job.bias);
    }
    let size = chunks[0].scores.len();
    chunks
        .par_iter_mut()
        .zip(positions.par_chunks_mut(size))
        .enumerate()
        .map(|(i, (chunk, positions))| {
            let bias = job.bias.map(|b| &b[i * size..][..positions.len()]);
            run(chunk, positions, bias).map_err(|failure| match failure {
                Failure::Score { frame, particle, step, score, positions } => Failure::Score {
                    frame: frame + i * size / (3 * job.particles.len()),
                    particle,
                    step,
                    score,
                    positions,
                },
                other => other,
            })
        })
        .reduce(|| Ok(()), earlier)
}

/// Of two outcomes the failure at the earlier step, so that what is reported and restored does not depend on threads.
fn earlier(a: Result<(), Failure>, b: Result<(), Failure>) -> Result<(), Failure> {
    let step = |outcome: &Result<(), Failure>| match outcome {
        Ok(()) => u64::MAX,
        Err(Failure::Model(_)) => 0,
        Err(Failure::Score { step, .. }) => *step,
    };
    if step(&b) < step(&a) { b } else { a }
}
