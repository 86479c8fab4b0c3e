#![doc = include_str!("../README.md")]

pub mod adapter;
pub mod backend;
mod capi;
pub mod cell;
pub mod error;
pub mod lane;
pub mod model;
pub mod noise;
pub mod sampler;
pub mod schedule;

/// Version of this library.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
