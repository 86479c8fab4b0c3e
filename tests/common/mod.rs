//! What several test programs share.
#![allow(dead_code)]

use diffusim::adapter::Adapter;
use diffusim::model::Model;
use diffusim::sampler::{Options, Simulation, StepSize};
use diffusim::schedule::Mobility;
use std::path::PathBuf;
use std::sync::Arc;

/// The root of the repository; DIFFUSIM_ROOT where tests run on another machine than they were built on.
pub fn root() -> PathBuf {
    std::env::var_os("DIFFUSIM_ROOT").map_or(env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

pub fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

/// Every adapter there is.
pub const ADAPTERS: [Adapter; 5] =
    [Adapter::EulerMaruyama, Adapter::LeimkuhlerMatthews, Adapter::Heun, Adapter::Mala, Adapter::Langevin];

/// `options` for steps of `adapter`, which for some takes more: of Langevin, a step of 0.00021 ps at 3.7 /ps.
pub fn with_adapter(adapter: Adapter, options: Options) -> Options {
    match adapter {
        Adapter::Langevin => Options {
            adapter,
            mobility: Some(Mobility::FrictionRate(3.7)),
            step_size: StepSize::TimeStep(2.1e-4),
            ..options
        },
        Adapter::Mala => Options { adapter, target_acceptance: Some(0.73), burn_in_steps: 300, ..options },
        _ => Options { adapter, ..options },
    }
}

/// The small random `distance` network.
pub fn network() -> Arc<Model> {
    Arc::new(Model::load(&fixture("distance_small.safetensors"), None).unwrap())
}

pub fn description(
    kind: &str,
    n_particles: usize,
    training_temperature: f64,
    hyperparameters: serde_json::Value,
) -> String {
    serde_json::json!({
        "format_version": 1, "kind": kind, "n_particles": n_particles, "length_unit": "nm",
        "training_temperature": training_temperature, "hyperparameters": hyperparameters,
    })
    .to_string()
}

/// An analytic model.
pub fn analytic(
    kind: &str,
    n_particles: usize,
    training_temperature: f64,
    hyperparameters: serde_json::Value,
) -> Arc<Model> {
    Arc::new(
        Model::from_json(&description(kind, n_particles, training_temperature, hyperparameters)).unwrap(),
    )
}

pub fn simulation(model: &Arc<Model>, options: Options) -> Simulation {
    Simulation::new(model.clone(), options).unwrap()
}

/// Mean and standard error of independent numbers.
pub fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

/// Fails unless `values`, independent samples, have the mean `expected` within `n_errors` standard errors, and unless those
/// errors are small enough (`precision`, relative) to tell.
pub fn assert_mean(what: &str, values: &[f64], expected: f64, n_errors: f64, precision: f64) {
    let (mean, error) = mean_and_error(values);
    println!("{what}: {mean:.5} ± {error:.5}, expected {expected:.5}");
    assert!(error < precision * expected.abs(), "{what}: error {error} is too large to tell");
    assert!((mean - expected).abs() < n_errors * error, "{what}: {mean} ± {error}, expected {expected}");
}

/// A score that turns bad at |x| > 1.7 on a drifting particle.
pub fn cliff(bad: f64) -> Arc<Model> {
    let score = move |x: &[f64], s: &mut [f64], _: Option<&mut [f64]>| {
        for (x, s) in x.iter().zip(s) {
            *s = if *x > 1.7 { bad } else { 40.0 };
        }
        Ok(())
    };
    Arc::new(Model::callback(2, 290.0, Box::new(score)).unwrap())
}
