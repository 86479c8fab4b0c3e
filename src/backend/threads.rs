//! The threads that a batch of frames is spread over.

use crate::error::{Error, Result, bail};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// More threads than any machine has cores are a mistake.
const MAX_THREADS: usize = 1024;

/// The number that was asked for; one per core for 0.
pub fn count(n_threads: usize) -> Result<usize> {
    if n_threads > MAX_THREADS {
        bail!(InvalidArgument, "n_threads is {n_threads}; expected 0 (one per core) to {MAX_THREADS}");
    }
    Ok(match n_threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    })
}

/// Frames of each chunk: as many as the model likes to see at once, but no core idle.
pub fn frames_per_chunk(preferred_batch: usize, n_frames: usize, n_threads: usize) -> usize {
    n_frames.div_ceil(n_threads).clamp(1, preferred_batch.max(1))
}

/// A thread pool, good for the process that started it: after a fork() the child has none of its threads.
pub struct Threads {
    process: u32,
    pool: ThreadPool,
}

impl Threads {
    /// Start `n` of them.
    pub fn start(n: usize) -> Result<Self> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(n)
            .build()
            .map_err(|e| Error::InvalidArgument(format!("{n} threads cannot be started: {e}")))?;
        Ok(Threads { process: std::process::id(), pool })
    }

    /// What `work` gives, its parallel iterators run by these threads, which are started again in a child made by fork().
    pub fn run<R: Send>(&mut self, work: impl FnOnce() -> R + Send) -> Result<R> {
        if self.process != std::process::id() {
            let started = Threads::start(self.pool.current_num_threads())?;
            std::mem::forget(std::mem::replace(self, started)); // its threads cannot be joined from here
        }
        Ok(self.pool.install(work))
    }
}
