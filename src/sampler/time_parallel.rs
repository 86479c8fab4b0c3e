//! A stretch of trajectory at once, its frames the fixed point of theory (12): the sequential trajectory of the same noise.
//!
//! Each replica has a window of frames x_0 … x_W, the first of them final. A sweep takes the scores of all as one batch, and with
//! F_n the adapter's step from frame n, its noise included, goes through the window once:
//!
//!   x'_0 = x_0,   x'_{n+1} = F_n(x_n) + J_n (x'_n − x_n),   J_n = 1 + τ_n D,
//!
//! with D ≈ ∂s/∂x from [`Estimate`], 0 for Picard's method. Where x'_n = x_n to the last bit the correction is zero, so after sweep
//! j the first j frames are exactly those of the sequential sampler, whatever D: a window takes at most W sweeps. Frame n+1 is
//! accepted when x_0 … x_n have all changed by no more than the tolerance: it then misses F_n(x'_n) by |(J_n − ∂F_n) (x'_n − x_n)|,
//! at a stable step about the tolerance. The window slides past what was accepted and is refilled with guesses.
//!
//! What a replica does depends on itself alone, not on where calls end: frames beyond the end of a call are kept for the next.

use super::jacobian::{Estimate, Jacobian};
use crate::adapter::{Adapter, EulerMaruyama, LeimkuhlerMatthews, ParticleStep, Step};
use crate::backend::{Backend, Failure, Job, Placement, is_sound, runaway};
use crate::error::{Result, bail};
use crate::model::Frames;
use crate::noise::Noise;
use pulp::Arch;

/// Frames of a window move by at most this many noise amplitudes a step until they are known to do otherwise.
const CLAMP: f64 = 8.0;
/// Sweeps after which [`Sampler::Auto`] decides.
const TRIAL: u64 = 32;
/// What a frame of a sweep costs besides its score, relative to it.
const OVERHEAD: f64 = 1.5;

/// How a trajectory is produced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sampler {
    /// One frame after the other.
    #[default]
    Sequential,
    /// Many frames at once, to a tolerance (theory 12).
    TimeParallel,
    /// Time-parallel where the frames that a step takes, counted over the first sweeps of each replica, are fewer than the
    /// threads that it has to itself; else sequential.
    Auto,
}

/// What the time-parallel sampler has done: what it costs and what it gains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sweeps {
    /// Batches of scores.
    pub rounds: u64,
    /// Sweeps through windows: one for each replica that took part in a round.
    pub sweeps: u64,
    /// Steps accepted in them.
    pub steps: u64,
    /// Frames evaluated in them.
    pub evaluations: u64,
}

impl Sweeps {
    /// Steps of one replica that a round brings.
    pub fn steps_per_sweep(&self) -> Option<f64> {
        (self.sweeps > 0).then(|| self.steps as f64 / self.sweeps as f64)
    }

    /// Frames evaluated for each step, of which the sequential sampler takes 1.
    pub fn evaluations_per_step(&self) -> Option<f64> {
        (self.steps > 0).then(|| self.evaluations as f64 / self.steps as f64)
    }
}

impl std::ops::Add for Sweeps {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Sweeps {
            rounds: self.rounds + other.rounds,
            sweeps: self.sweeps + other.sweeps,
            steps: self.steps + other.steps,
            evaluations: self.evaluations + other.evaluations,
        }
    }
}

/// The windows of all replicas.
pub(super) struct Windows {
    windows: Vec<Window>,
    tolerance: f64,
    /// With [`Sampler::Auto`], threads for each replica.
    capacity: Option<f64>,
    positions: Vec<f64>,
    scores: Vec<f64>,
    pub(super) counts: Sweeps,
    pub(super) largest_score: f64,
}

/// What is asked of the sampler.
pub(super) struct Request<'a> {
    pub(super) sampler: Sampler,
    pub(super) window: usize,
    pub(super) tolerance: f64,
    pub(super) jacobian: Jacobian,
    pub(super) adapter: Adapter,
    /// Of one replica.
    pub(super) particles: &'a [ParticleStep],
    pub(super) n_replicas: usize,
    pub(super) n_threads: usize,
    /// Whether the device evaluates batches of frames.
    pub(super) on_cpu: bool,
}

impl Windows {
    /// `None` where the sequential sampler is to be used.
    pub(super) fn open(request: &Request) -> Result<Option<Self>> {
        let Request { sampler, window, tolerance, jacobian, adapter, particles, n_replicas, .. } = *request;
        if sampler == Sampler::Sequential {
            return Ok(None);
        }
        if window < 2 {
            bail!(InvalidArgument, "window is {window} frames; expected 2 or more");
        }
        if !(tolerance >= 0.0 && tolerance.is_finite()) {
            bail!(
                InvalidArgument,
                "tolerance is {tolerance} nm; expected 0 (to the last bit) or a positive number"
            );
        }
        let supported = matches!(adapter, Adapter::EulerMaruyama | Adapter::LeimkuhlerMatthews);
        let capacity = request.n_threads as f64 / n_replicas as f64;
        if sampler == Sampler::Auto && !(supported && request.on_cpu && capacity >= 2.0) {
            return Ok(None);
        }
        if !supported {
            bail!(
                Unsupported,
                "sampler time-parallel cannot take the steps of the adapter {adapter:?}; use LeimkuhlerMatthews or \
                 EulerMaruyama, or the sequential sampler"
            );
        }
        if !request.on_cpu {
            bail!(
                Unsupported,
                "sampler time-parallel runs on the CPU only; use device 'cpu', or the sequential sampler"
            );
        }
        // Window, its copy and its scores; what the slope is estimated from.
        let n = 3 * particles.len();
        let bytes = || -> Option<usize> {
            let frames = window.checked_add(4)?.checked_mul(3 * n)?;
            frames.checked_add(jacobian.size(n)?.checked_mul(2)?)?.checked_mul(n_replicas)?.checked_mul(8)
        };
        if bytes().is_none_or(|bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_err()) {
            let size = 24e-9 * window as f64 * n as f64 * n_replicas as f64;
            bail!(
                InvalidArgument,
                "a window of {window} frames for {n_replicas} replicas of {} particles takes {size:.3} GB, which do not fit \
                 into memory; use a shorter window",
                particles.len()
            );
        }
        Ok(Some(Windows {
            windows: (0..n_replicas).map(|_| Window::new(window, jacobian, particles)).collect(),
            tolerance,
            capacity: (sampler == Sampler::Auto).then_some(capacity),
            positions: Vec::with_capacity(n_replicas * window * n),
            scores: Vec::with_capacity(n_replicas * window * n),
            counts: Sweeps::default(),
            largest_score: 0.0,
        }))
    }

    /// Start anew from whatever positions come next.
    pub(super) fn forget(&mut self) {
        self.windows.iter_mut().for_each(Window::forget);
    }

    /// Whether steps from number `step` on are those of the sequential sampler, because windows did not pay.
    pub(super) fn give_way(&mut self, step: u64) -> bool {
        let given_way = |w: &Window| w.sequential && !(w.filled && w.ahead_to() > step);
        let all = self.windows.iter().all(given_way);
        if all {
            self.windows.iter_mut().for_each(Window::empty);
        }
        all
    }

    /// Take the steps of `job`, as [`Backend::advance`] does.
    pub(super) fn advance(
        &mut self,
        job: &Job,
        placement: &Placement,
        backend: &mut dyn Backend,
        positions: &mut [f64],
    ) -> std::result::Result<u64, Failure> {
        let n = 3 * job.particles.len();
        let arch = Arch::new();
        let place = Place { job, arch, particle_ids: &placement.particle_ids };
        let frames = positions.chunks_exact(n).zip(placement.replicas.clone());
        for (window, (x, replica)) in self.windows.iter_mut().zip(frames) {
            window.start(&place, x, replica);
        }
        // The earliest failure ends the run, and of several at one step that of the first replica.
        let end = job.first_step + job.n_steps;
        let mut failed: Option<(u64, usize, Failure)> = None;
        loop {
            let wanted = |i: usize, w: &Window| match failed {
                None => w.ahead_to() < end,
                Some((step, replica, _)) => w.ahead_to() < step || (i < replica && w.ahead_to() == step),
            };
            self.positions.clear();
            for (i, window) in self.windows.iter_mut().enumerate() {
                window.takes_part = wanted(i, window);
                if window.takes_part {
                    window.slide(&place);
                    self.positions.extend_from_slice(window.evaluated());
                }
            }
            if self.positions.is_empty() {
                break;
            }
            self.scores.resize(self.positions.len(), 0.0);
            let frames = Frames { positions: &self.positions, cell: job.cell };
            if backend.scores(job.model, frames, &mut self.scores).is_err() {
                self.score_first_frames(job, backend)?;
            }
            self.counts.rounds += 1;
            self.counts.evaluations += (self.positions.len() / n) as u64;
            let mut rest = &self.scores[..];
            for (i, window) in self.windows.iter_mut().enumerate().filter(|(_, w)| w.takes_part) {
                let (scores, others) = rest.split_at(window.evaluated().len());
                rest = others;
                if let Some(failure) = window.failure(&place, i, scores) {
                    if failed.as_ref().is_none_or(|(step, ..)| window.step <= *step) {
                        failed = Some((window.step, i, failure));
                    }
                    continue;
                }
                window.sweep(&place, scores, self.tolerance);
                window.judge(self.capacity);
                self.counts.sweeps += 1;
                self.counts.steps += window.accepted as u64;
                self.largest_score = self.largest_score.max(window.largest_score);
            }
        }
        if let Some((.., failure)) = failed {
            return Err(failure);
        }
        for (window, x) in self.windows.iter().zip(positions.chunks_exact_mut(n)) {
            x.copy_from_slice(window.frame((end - window.step) as usize));
        }
        Ok(0)
    }

    /// After a failure of the model, which may be due to a guess: only what the sequential sampler would evaluate.
    fn score_first_frames(
        &mut self,
        job: &Job,
        backend: &mut dyn Backend,
    ) -> std::result::Result<(), Failure> {
        let n = 3 * job.particles.len();
        self.scores.fill(f64::NAN);
        let mut first = 0;
        for window in self.windows.iter().filter(|w| w.takes_part) {
            let frames = Frames { positions: window.frame(0), cell: job.cell };
            backend.scores(job.model, frames, &mut self.scores[first..][..n]).map_err(Failure::Other)?;
            first += window.evaluated().len();
        }
        Ok(())
    }

    /// Everything that the next positions depend on, for checkpoints: [`Windows::n_numbers`] numbers.
    pub(super) fn numbers(&self) -> Vec<f64> {
        let mut numbers = Vec::with_capacity(self.n_numbers());
        self.windows.iter().for_each(|w| w.write(&mut numbers));
        numbers
    }

    pub(super) fn n_numbers(&self) -> usize {
        self.windows.iter().map(Window::n_numbers).sum()
    }

    /// The inverse of [`Windows::numbers`].
    pub(super) fn restore(&mut self, mut numbers: &[f64]) {
        self.windows.iter_mut().for_each(|w| numbers = w.read(numbers));
    }
}

/// What all windows share.
struct Place<'a> {
    job: &'a Job<'a>,
    arch: Arch,
    particle_ids: &'a [u32],
}

/// The noise of one replica, step after step.
struct Stream {
    noise: Noise,
    next_noise: Noise,
    /// Step of which `noise` is.
    at: Option<u64>,
    /// Number of the replica, for each particle.
    replicas: Vec<u32>,
}

impl Stream {
    /// The adapter's step number `step` from frame `x` with its score `s`.
    fn draw<A: Step>(&mut self, place: &Place, step: u64, x: &[f64], s: &[f64], to: &mut [f64]) {
        let job = place.job;
        let Stream { noise, next_noise, at, replicas } = self;
        if *at != Some(step) {
            noise.fill(place.arch, job.seed, replicas, place.particle_ids, step);
        }
        if A::NEXT_NOISE {
            next_noise.fill(place.arch, job.seed, replicas, place.particle_ids, step.wrapping_add(1));
        }
        let (drift, amplitude) = (job.factors)(step);
        let frame = x.as_chunks::<3>().0.iter().zip(s.as_chunks::<3>().0);
        for (p, (to, (x, s))) in to.as_chunks_mut::<3>().0.iter_mut().zip(frame).enumerate() {
            let step = job.particles[p].scaled(drift, amplitude);
            *to = A::update_particle(*x, *s, noise.get(p), next_noise.get(p), step);
        }
        *at = Some(step);
        if A::NEXT_NOISE {
            std::mem::swap(noise, next_noise);
            *at = Some(step.wrapping_add(1));
        }
    }
}

/// The window of one replica.
struct Window {
    /// W + 1 frames, of which the last is not evaluated.
    frames: Vec<f64>,
    /// Number of the first frame.
    step: u64,
    /// Frames after the first that are final.
    accepted: usize,
    /// Whether `frames` are those of a trajectory.
    filled: bool,
    /// Whether windows did not pay: frames are then evaluated one at a time.
    sequential: bool,
    /// Sweeps and steps on which that is decided.
    trial: [u64; 2],
    /// Of the round that is under way.
    takes_part: bool,
    /// The last frame that had a sound score, and that score: what guesses start from.
    known: [Vec<f64>; 2],
    estimate: Estimate,
    largest_score: f64,
    stream: Stream,
    /// x_n, x'_{n+1}, x'_n − x_n, and a product with D.
    old: Vec<f64>,
    new: Vec<f64>,
    change: Vec<f64>,
    product: Vec<f64>,
}

impl Window {
    fn new(size: usize, jacobian: Jacobian, particles: &[ParticleStep]) -> Self {
        let zeros = || vec![0.0; 3 * particles.len()];
        let noise = || Noise::with_len(particles.len());
        let replicas = vec![0; particles.len()];
        Window {
            frames: vec![0.0; (size + 1) * 3 * particles.len()],
            step: 0,
            accepted: 0,
            filled: false,
            sequential: false,
            trial: [0; 2],
            takes_part: false,
            known: [zeros(), zeros()],
            estimate: Estimate::new(jacobian, particles),
            largest_score: 0.0,
            stream: Stream { noise: noise(), next_noise: noise(), at: None, replicas },
            old: zeros(),
            new: zeros(),
            change: zeros(),
            product: zeros(),
        }
    }

    fn frame(&self, i: usize) -> &[f64] {
        let n = self.old.len();
        &self.frames[i * n..][..n]
    }

    /// Frames that are evaluated in one sweep.
    fn width(&self) -> usize {
        if self.sequential { 1 } else { self.frames.len() / self.old.len() - 1 }
    }

    /// Those frames.
    fn evaluated(&self) -> &[f64] {
        &self.frames[..self.width() * self.old.len()]
    }

    /// Number of the last final frame.
    fn ahead_to(&self) -> u64 {
        self.step + self.accepted as u64
    }

    /// Let go of the frames, and keep what was decided.
    fn empty(&mut self) {
        self.filled = false;
        self.stream.at = None;
    }

    fn forget(&mut self) {
        self.empty();
        self.sequential = false;
        self.trial = [0; 2];
        self.estimate.forget();
    }

    /// Begin at frame `x` of the job's first step, unless there is a window that has it.
    fn start(&mut self, place: &Place, x: &[f64], replica: u32) {
        self.stream.replicas.fill(replica);
        if self.filled {
            return;
        }
        self.filled = true;
        self.step = place.job.first_step;
        self.accepted = 0;
        self.frames[..x.len()].copy_from_slice(x);
        self.known[0].copy_from_slice(x);
        self.known[1].fill(0.0);
        self.refill(place, 1);
    }

    /// Move the window to the last frame that was accepted.
    fn slide(&mut self, place: &Place) {
        if self.accepted > 0 {
            let n = self.old.len();
            let left = self.frames.len() / n - self.accepted;
            self.frames.copy_within(self.accepted * n.., 0);
            self.step = self.ahead_to();
            self.accepted = 0;
            if !self.sequential {
                self.refill(place, left);
            }
        }
    }

    /// Guess the frames from number `first` of the window on.
    fn refill(&mut self, place: &Place, first: usize) {
        let n = self.old.len();
        for i in first..self.frames.len() / n {
            match place.job.adapter {
                Adapter::EulerMaruyama => self.guess::<EulerMaruyama>(place, i - 1),
                _ => self.guess::<LeimkuhlerMatthews>(place, i - 1),
            }
            self.clamp(place, i - 1);
            self.frames[i * n..][..n].copy_from_slice(&self.new);
        }
    }

    /// A step from frame `i` with the score that D leads to expect there, into `new`.
    fn guess<A: Step>(&mut self, place: &Place, i: usize) {
        let Window { frames, known, estimate, stream, new, change, product, .. } = self;
        let x = &frames[i * new.len()..][..new.len()];
        for (change, (x, known)) in change.iter_mut().zip(x.iter().zip(&known[0])) {
            *change = x - known;
        }
        estimate.apply(change, product);
        product.iter_mut().zip(&known[1]).for_each(|(score, known)| *score += known);
        stream.draw::<A>(place, self.step.wrapping_add(i as u64), x, product, new);
    }

    /// Keep `new` within reach of frame `i`; whether it was.
    fn clamp(&mut self, place: &Place, i: usize) -> bool {
        let amplitude = (place.job.factors)(self.step.wrapping_add(i as u64)).1;
        let n = self.new.len();
        let from = self.frames[i * n..][..n].as_chunks::<3>().0;
        let mut within = true;
        for ((x, new), particle) in from.iter().zip(self.new.as_chunks_mut::<3>().0).zip(place.job.particles)
        {
            let reach = CLAMP * particle.noise_amplitude * amplitude;
            for c in 0..3 {
                let moved = new[c] - x[c];
                if moved.is_nan() || moved.abs() > reach {
                    within = false;
                    new[c] = if moved.is_nan() { x[c] } else { x[c] + reach.copysign(moved) };
                }
            }
        }
        within
    }

    /// The failure of the first frame, which is final, if its score is not sound.
    fn failure(&self, place: &Place, replica: usize, scores: &[f64]) -> Option<Failure> {
        let limit = runaway((place.job.factors)(self.step).0);
        let scores = &scores[..self.old.len()];
        Failure::find(replica, scores, place.job.particles, limit, self.step, self.frame(0))
    }

    /// One sweep, with the scores of [`Window::evaluated`], the first of which is sound.
    fn sweep(&mut self, place: &Place, scores: &[f64], tolerance: f64) {
        match place.job.adapter {
            Adapter::EulerMaruyama => self.sweep_by::<EulerMaruyama>(place, scores, tolerance),
            _ => self.sweep_by::<LeimkuhlerMatthews>(place, scores, tolerance),
        }
    }

    fn sweep_by<A: Step>(&mut self, place: &Place, scores: &[f64], tolerance: f64) {
        let Job { particles, factors, .. } = *place.job;
        let (n, width) = (self.old.len(), self.width());
        self.old.copy_from_slice(&self.frames[..n]);
        self.change.fill(0.0);
        self.stream.at = None;
        // Whether the frames so far are those of the last sweep: to the last bit, to the tolerance.
        let (mut exact, mut converged, mut sound) = (true, true, true);
        for (i, s) in scores.chunks_exact(n).enumerate() {
            // Here `old` is x_i, x'_i is in the place of frame i, and `change` their difference.
            let step = self.step.wrapping_add(i as u64);
            if sound {
                self.stream.draw::<A>(place, step, &self.old, s, &mut self.new);
                self.known[0].copy_from_slice(&self.old);
                self.known[1].copy_from_slice(s);
                if !exact {
                    self.estimate.apply(&self.change, &mut self.product);
                    let drift = self.estimate.bounded(factors(step).0);
                    for c in 0..n {
                        let tau = drift * particles[c / 3].effective_step;
                        self.new[c] += self.change[c] + tau * self.product[c];
                    }
                }
            } else {
                exact = false;
                self.guess::<A>(place, i);
            }
            let within = exact || self.clamp(place, i);
            converged &= sound && within;
            if converged {
                self.accepted = i + 1;
                self.largest_score = s.iter().fold(self.largest_score, |largest, s| largest.max(s.abs()));
            }
            if i + 1 < width {
                let next = &self.frames[(i + 1) * n..][..n];
                let next_scores = &scores[(i + 1) * n..][..n];
                let limit = runaway(factors(step.wrapping_add(1)).0);
                sound = is_sound(next_scores, particles, limit);
                if converged && sound {
                    self.estimate.learn([&self.old, next], [s, next_scores]);
                }
                let mut largest: f64 = 0.0;
                for (change, (new, x)) in self.change.iter_mut().zip(self.new.iter().zip(next)) {
                    *change = new - x;
                    largest = largest.max(change.abs());
                }
                exact &= largest == 0.0;
                converged &= largest <= tolerance;
                self.old.copy_from_slice(next);
            }
            self.frames[(i + 1) * n..][..n].copy_from_slice(&self.new);
        }
        // No frame has a number that does not exist.
        self.accepted = self.accepted.min((u64::MAX - self.step).try_into().unwrap_or(usize::MAX));
        self.stream.at = None;
        self.estimate.renew(factors(self.step).0);
    }

    /// With [`Sampler::Auto`], whether to go on so.
    fn judge(&mut self, capacity: Option<f64>) {
        let Some(capacity) = capacity.filter(|_| !self.sequential) else { return };
        self.trial[0] += 1;
        self.trial[1] += self.accepted as u64;
        if self.trial[0] == TRIAL {
            let per_step = (self.trial[0] * self.width() as u64) as f64 / self.trial[1] as f64;
            self.sequential = OVERHEAD * per_step > capacity;
        }
    }

    fn n_numbers(&self) -> usize {
        HEAD + self.frames.len() + 2 * self.old.len() + self.estimate.n_numbers()
    }

    fn write(&self, to: &mut Vec<f64>) {
        let flag = |b: bool| f64::from(u8::from(b));
        to.extend([flag(self.filled), flag(self.sequential)]);
        let words = [self.step, self.accepted as u64, self.trial[0], self.trial[1]];
        to.extend(words.map(f64::from_bits));
        to.extend(self.frames.iter().chain(&self.known[0]).chain(&self.known[1]));
        self.estimate.write(to);
    }

    /// The inverse of [`Window::write`]; what is left of `from`.
    fn read<'a>(&mut self, from: &'a [f64]) -> &'a [f64] {
        let (head, mut from) = from.split_at(HEAD);
        self.filled = head[0] == 1.0;
        self.sequential = head[1] == 1.0;
        self.step = head[2].to_bits();
        self.accepted = head[3].to_bits() as usize;
        self.trial = [head[4].to_bits(), head[5].to_bits()];
        self.stream.at = None;
        let [known, score] = &mut self.known;
        for array in [&mut self.frames, known, score] {
            let (own, rest) = from.split_at(array.len());
            array.copy_from_slice(own);
            from = rest;
        }
        self.estimate.read(from)
    }
}

/// Numbers that [`Window::write`] writes beside the arrays.
const HEAD: usize = 6;
