//! How frames are produced.

mod checkpoint;
mod domain;
mod jacobian;
mod options;
mod reverse;
mod sequential;
mod time_parallel;

pub use domain::Domain;
pub use jacobian::Jacobian;
pub use options::{Dynamics, Options, StepSize};
pub use reverse::{SampleOptions, sample};
pub use sequential::{Simulation, Statistics};
pub use time_parallel::{Sampler, Sweeps};
