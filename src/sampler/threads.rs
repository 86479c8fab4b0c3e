//! The threads that a sampler's chunks are spread over.

use crate::error::{Error, Result, bail};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// More threads than any machine has cores are a mistake.
const MAX_THREADS: usize = 1024;

/// The number that was asked for; one per core for 0.
pub(super) fn count(n_threads: usize) -> Result<usize> {
    if n_threads > MAX_THREADS {
        bail!(InvalidArgument, "n_threads is {n_threads}; expected 0 (one per core) to {MAX_THREADS}");
    }
    Ok(match n_threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    })
}

/// A thread pool, good for the process that started it: after a fork() the child has none of its threads.
pub(super) struct Threads {
    pub process: u32,
    pub pool: ThreadPool,
}

impl Threads {
    pub fn start(n: usize) -> Result<Self> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(n)
            .build()
            .map_err(|e| Error::InvalidArgument(format!("{n} threads cannot be started: {e}")))?;
        Ok(Threads { process: std::process::id(), pool })
    }
}
