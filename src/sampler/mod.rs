//! How frames are produced.

mod checkpoint;
mod options;
mod sequential;

pub use options::{Dynamics, Options, StepSize};
pub use sequential::{Simulation, Statistics};
