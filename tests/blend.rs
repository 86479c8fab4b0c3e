//! Two models as one (theory 7): values, densities and free energy derivatives of wells in closed form, λ as state, errors.

mod common;

use common::{analytic, assert_mean, description, network, simulation};
use diffusim::error::Error;
use diffusim::model::{Frames, Model, Outputs, Scratch};
use diffusim::sampler::{Options, Simulation, StepSize};
use serde_json::json;
use std::sync::Arc;

const N: usize = 2;
const STIFFNESS: f64 = 40.0;
const SPREAD: [f64; 3] = [0.13, 0.21, 0.17];
const MEAN: [[f64; 3]; N] = [[0.31, -0.12, 0.07], [0.05, 0.22, -0.4]];

/// A harmonic well about the origin, and one Gaussian elsewhere.
fn wells(lambda: f64) -> Arc<Model> {
    let a = analytic("harmonic", N, 280.0, json!({ "stiffness": STIFFNESS }));
    let component = json!({ "weight": 2.7, "mean": MEAN, "spread": SPREAD });
    let b = analytic("gaussian-mixture", N, 280.0, json!({ "components": [component] }));
    Arc::new(Model::blend(&a, &b, lambda).unwrap())
}

/// Mean and variance of a coordinate at λ, where the blend is harmonic.
fn exact(lambda: f64, particle: usize, c: usize) -> (f64, f64) {
    let stiff = 1.0 / SPREAD[c].powi(2);
    let precision = (1.0 - lambda) * STIFFNESS + lambda * stiff;
    (lambda * stiff * MEAN[particle][c] / precision, 1.0 / precision)
}

fn evaluate(model: &Model, x: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let frames = x.len() / (3 * model.n_particles());
    let (mut s, mut e, mut w) = (vec![0.0; x.len()], vec![0.0; frames], vec![0.0; 9 * frames]);
    let outputs = Outputs { scores: &mut s, energies: Some(&mut e), virials: Some(&mut w) };
    model.score().evaluate(Frames::open(x), outputs, &mut Scratch::default()).unwrap();
    (s, e, w)
}

#[test]
fn a_blend_is_the_weighted_sum_and_its_ends_are_the_models() {
    let a = network();
    let b = analytic("harmonic", 5, a.metadata().training_temperature, json!({ "stiffness": 300.0 }));
    let x = &a.start_positions()[..2 * 15];
    let (sa, ea, wa) = evaluate(&a, x);
    let (sb, eb, wb) = evaluate(&b, x);
    for lambda in [0.0, 0.37, 1.0] {
        let blend = Model::blend(&a, &b, lambda).unwrap();
        let (s, e, w) = evaluate(&blend, x);
        for (found, [from_a, from_b]) in [(s, [&sa, &sb]), (e, [&ea, &eb]), (w, [&wa, &wb])] {
            for ((found, a), b) in found.iter().zip(from_a).zip(from_b) {
                let expected = (1.0 - lambda) * a + lambda * b;
                assert!((found - expected).abs() <= 1e-12 * (a.abs() + b.abs()), "{lambda}");
                assert!(lambda == 0.37 || *found == expected, "{lambda}: not the model itself");
            }
        }
        let mut energies = [[0.0; 2]; 2];
        blend.as_blend().unwrap().component_energies(Frames::open(x), &mut energies).unwrap();
        assert_eq!(energies, [[ea[0], eb[0]], [ea[1], eb[1]]]);
    }
    // What a network is known by stays known; bonds that only one of them knows are not checked.
    let blend = Model::blend(&b, &a, 0.37).unwrap();
    assert_eq!(blend.start_positions(), a.start_positions());
    assert_eq!(blend.masses().unwrap(), a.masses().unwrap());
    assert!(blend.metadata().bonds.is_empty() && blend.noise_level() == a.noise_level());
    let same = Model::blend(&a, &network(), 0.37).unwrap();
    assert_eq!(same.metadata().bonds, a.metadata().bonds);
    assert_eq!(same.metadata().largest_curvature, a.metadata().largest_curvature);
}

/// The density of E_λ and ⟨∂E/∂λ⟩ in it, while λ moves and stops at three places.
#[test]
fn density_and_derivative_at_each_lambda_are_those_of_the_blended_wells() {
    const REPLICAS: usize = 400;
    let options = Options {
        step_size: StepSize::EffectiveStep(0.004),
        seed: 812,
        n_replicas: REPLICAS,
        ..Options::default()
    };
    let mut s = simulation(&wells(0.9), options);
    for lambda in [0.0, 0.35, 0.8] {
        s.set_lambda(lambda).unwrap();
        s.step(60).unwrap();
        let mut means = vec![[0.0; 3 * N]; REPLICAS];
        let mut squares = vec![[0.0; 3 * N]; REPLICAS];
        let mut derivatives = vec![0.0; REPLICAS];
        const FRAMES: usize = 60;
        for _ in 0..FRAMES {
            s.step(8).unwrap();
            let mut energies = vec![[0.0; 2]; REPLICAS];
            s.component_energies(&mut energies).unwrap();
            for (r, x) in s.positions().chunks_exact(3 * N).enumerate() {
                derivatives[r] += (energies[r][1] - energies[r][0]) / FRAMES as f64;
                for (i, x) in x.iter().enumerate() {
                    let (mean, _) = exact(lambda, i / 3, i % 3);
                    means[r][i] += (1.0 + x) / FRAMES as f64; // shifted, so that none is near zero
                    squares[r][i] += (x - mean).powi(2) / FRAMES as f64;
                }
            }
        }
        let mut expected = -f64::ln(2.7);
        for i in 0..3 * N {
            let (mean, variance) = exact(lambda, i / 3, i % 3);
            let column = |of: &[[f64; 3 * N]]| of.iter().map(|v| v[i]).collect::<Vec<_>>();
            assert_mean(&format!("1 + mean {i} at {lambda}"), &column(&means), 1.0 + mean, 4.0, 0.01);
            assert_mean(&format!("variance {i} at {lambda}"), &column(&squares), variance, 4.0, 0.02);
            let v = SPREAD[i % 3].powi(2);
            expected += 0.5 * ((variance + (mean - MEAN[i / 3][i % 3]).powi(2)) / v + v.ln());
            expected -= 0.5 * STIFFNESS * (variance + mean * mean);
        }
        assert_mean(&format!("dE/dλ at {lambda}"), &derivatives, expected, 4.0, 0.05);
    }
}

#[test]
fn lambda_is_state_that_checkpoints_keep() {
    let options =
        Options { step_size: StepSize::EffectiveStep(0.004), seed: 77, n_replicas: 3, ..Options::default() };
    let mut s = simulation(&wells(0.2), options.clone());
    let mut made_there = simulation(&wells(0.7), options.clone());
    s.set_lambda(0.7).unwrap();
    for s in [&mut s, &mut made_there] {
        s.step(50).unwrap();
    }
    assert_eq!(s.positions(), made_there.positions());
    s.set_lambda(0.43).unwrap();
    let checkpoint = s.checkpoint();
    assert_eq!(checkpoint.len(), s.checkpoint_size());
    s.step(50).unwrap();
    made_there.restore(&checkpoint).unwrap();
    assert_eq!(made_there.lambda(), Some(0.43));
    made_there.step(50).unwrap();
    assert_eq!(s.positions(), made_there.positions());
    // Another pair of models is another simulation.
    let a = analytic("harmonic", N, 280.0, json!({ "stiffness": STIFFNESS }));
    let b = analytic("harmonic", N, 280.0, json!({ "stiffness": 70.0 }));
    let other = Arc::new(Model::blend(&a, &b, 0.43).unwrap());
    let error = simulation(&other, options).restore(&checkpoint).unwrap_err();
    assert!(matches!(error, Error::InvalidCheckpoint(_)), "{error}");
    assert_ne!(wells(0.1).sha256(), other.sha256());
    assert_eq!(wells(0.1).sha256(), wells(0.2).sha256());
}

#[test]
fn a_part_of_a_system_can_be_blended() {
    let blend = wells(0.3).subset(4, &[3, 1]).unwrap();
    let x: Vec<f64> = (0..12).map(|i| 0.1 * (i as f64).sin()).collect();
    let inner: Vec<f64> = [&x[9..12], &x[3..6]].concat();
    let (inside, energy, _) = evaluate(&wells(0.3), &inner);
    let (s, e, _) = evaluate(&blend, &x);
    assert_eq!(e, energy);
    assert_eq!([&s[9..12], &s[3..6]].concat(), inside);
    assert_eq!([&s[0..3], &s[6..9]].concat(), [0.0; 6]);
    let options = Options { step_size: StepSize::EffectiveStep(0.004), ..Options::default() };
    simulation(&Arc::new(blend), options).set_lambda(0.9).unwrap();
}

#[test]
fn what_cannot_be_blended_is_refused_in_a_sentence() {
    let a = analytic("harmonic", N, 280.0, json!({ "stiffness": STIFFNESS }));
    let say = |b: &Arc<Model>, lambda| Model::blend(&a, b, lambda).err().unwrap().to_string();
    let three = analytic("harmonic", 3, 280.0, json!({ "stiffness": STIFFNESS }));
    assert!(say(&three, 0.5).contains("move 2 and 3 particles"));
    let hot = analytic("harmonic", N, 310.0, json!({ "stiffness": STIFFNESS }));
    assert!(say(&hot, 0.5).contains("trained at 280 K and harmonic at 310 K"), "{}", say(&hot, 0.5));
    for (lambda, text) in [(1.3, "lambda is 1.3"), (-0.01, "lambda is -0.01"), (f64::NAN, "lambda is NaN")] {
        assert!(say(&a, lambda).contains(text) && say(&a, lambda).contains("expected 0"));
    }
    let periodic = Model::load(&common::fixture("message_passing_periodic.safetensors"), None).unwrap();
    let n = periodic.n_particles();
    let t0 = periodic.metadata().training_temperature;
    let open = analytic("harmonic", n, t0, json!({ "stiffness": STIFFNESS }));
    let error = Model::blend(&open, &Arc::new(periodic), 0.5).err().unwrap().to_string();
    assert!(error.contains("lives in a periodic cell and harmonic does not"), "{error}");

    let options = Options { step_size: StepSize::EffectiveStep(0.004), ..Options::default() };
    let mut s = simulation(&a, options.clone());
    assert!(s.set_lambda(0.5).unwrap_err().to_string().contains("harmonic is one model and has no lambda"));
    assert_eq!(s.lambda(), None);
    let mut s = simulation(&wells(0.5), options.clone());
    assert!(s.set_lambda(2.0).unwrap_err().to_string().contains("lambda is 2;"));
    assert_eq!(s.lambda(), Some(0.5));
    assert!(s.component_energies(&mut []).unwrap_err().to_string().contains("expected 1 replicas"));
    assert!(wells(0.5).score().kernel().is_ok());
    let nested = Model::blend(&wells(0.5), &wells(0.2), 0.3).unwrap();
    assert_eq!(nested.score().kernel().err(), Some("blends of blends"));
    let json = description("blend", N, 280.0, json!({}));
    assert!(Model::from_json(&json).is_err());

    // A function that writes no energies.
    let silent = |_: &[f64], scores: &mut [f64], _: Option<&mut [f64]>| {
        scores.fill(0.0);
        Ok(())
    };
    let silent = Arc::new(Model::callback(N, 280.0, Box::new(silent)).unwrap());
    let blend = Arc::new(Model::blend(&a, &silent, 0.5).unwrap());
    let s = Simulation::new(blend.clone(), options).unwrap();
    let error = s.component_energies(&mut [[0.0; 2]]).unwrap_err().to_string();
    assert!(error.contains("the second model of the blend gives no energy of frame 0"), "{error}");
    let (_, energy, _) = evaluate(&blend, &[0.1; 6]);
    assert!(energy[0].is_nan());
}
