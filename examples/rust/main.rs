//! Run a molecule from its model file: cargo run --release --example rust MODEL.safetensors [STEPS]

use diffusim::model::Model;
use diffusim::sampler::{Options, Simulation};
use diffusim::schedule::Mobility;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

fn run(path: &str, n_steps: &str) -> Result<(), Box<dyn Error>> {
    let model = Arc::new(Model::load(Path::new(path), None)?);
    let options = Options {
        temperature: Some(300.0), // K; the size of a step is the one the model recommends
        mobility: Some(Mobility::FrictionRate(10.0)), // 1/ps
        seed: 48291,
        ..Options::default()
    };
    let mut simulation = Simulation::new(model, options)?;
    simulation.step(n_steps.parse()?)?;

    // [n_particles][3], nm
    for r in simulation.positions().chunks(3) {
        println!("{:.20} {:.20} {:.20}", r[0], r[1], r[2]);
    }
    Ok(())
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let outcome = match &arguments[1..] {
        [path] => run(path, "100000"),
        [path, n_steps] => run(path, n_steps),
        _ => Err("usage: MODEL.safetensors [STEPS]".into()),
    };
    if let Err(error) = outcome {
        eprintln!("diffusim: {error}");
        std::process::exit(1);
    }
}
