//! How frames are produced.

mod checkpoint;
mod domain;
mod options;
mod reverse;
mod sequential;

pub use domain::Domain;
pub use options::{Dynamics, Options, StepSize};
pub use reverse::{SampleOptions, sample};
pub use sequential::{Simulation, Statistics};
