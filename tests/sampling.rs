//! Reverse diffusion against densities whose blur is known in closed form.

mod common;

use common::{analytic, assert_mean, description, network};
use diffusim::error::Error;
use diffusim::model::{Frames, Model, Outputs, ScoreModel, Scratch};
use diffusim::noise::normals;
use diffusim::sampler::{SampleOptions, sample};
use serde_json::json;

/// A mixture of Gaussians, read at `levels` = [least, greatest].
fn mixture(n_particles: usize, levels: [f64; 2], components: serde_json::Value) -> Model {
    let text = description("gaussian-mixture", n_particles, 290.0, json!({ "components": components }));
    let mut text: serde_json::Value = serde_json::from_str(&text).unwrap();
    let [min, max] = levels;
    text["noise_levels"] = json!({"min": min, "max": max, "simulation": min});
    Model::from_json(&text.to_string()).unwrap()
}

fn draw(model: &Model, options: &SampleOptions, n_frames: usize) -> Vec<f64> {
    let mut positions = vec![0.0; n_frames * 3 * model.n_particles()];
    sample(model, options, &mut positions).unwrap();
    positions
}

/// The flow of N(0, s²) takes x at σ to x √((s² + σ'²)/(s² + σ²)) at σ'; Heun's error falls with the square of the steps.
#[test]
fn flow_of_a_gaussian_is_that_of_its_closed_form_to_second_order() {
    let (spread, levels) = ([0.03, 0.4, 2.1], [0.02, 7.0]);
    let model = mixture(2, levels, json!([{"weight": 1.3, "mean": ([[0.0; 3]; 2]), "spread": spread}]));
    let error = |n_steps: usize| {
        let options = SampleOptions {
            seed: 5,
            n_steps,
            start_level: Some(levels[1]),
            corrector_steps: 0,
            ..SampleOptions::default()
        };
        let mut worst: f64 = 0.0;
        for (i, x) in draw(&model, &options, 9).iter().enumerate() {
            let xi = normals(5, (i / 6) as u32, (i / 3 % 2) as u32, 1 << 63)[i % 3] as f64;
            let [least, greatest] = levels.map(|l: f64| f64::powi(spread[i % 3], 2) + l * l);
            let expected = levels[1] * xi * (least / greatest).sqrt();
            worst = worst.max((x / expected - 1.0).abs());
        }
        worst
    };
    let (coarse, fine) = (error(32), error(64));
    println!("relative error with 32 and 64 steps: {coarse:.2e} {fine:.2e}");
    assert!(coarse < 0.02 && (coarse / fine - 4.0).abs() < 0.8);
}

/// Weights, means and variances of a mixture of narrow and wide, near and far.
#[test]
fn a_mixture_is_sampled_exactly() {
    let sigma = 0.05;
    let components = json!([
        {"weight": 0.62, "mean": [[0.7, -0.3, 0.2]], "spread": [0.11, 0.31, 0.07]},
        {"weight": 0.38, "mean": [[-0.9, 0.5, 0.4]], "spread": [0.23, 0.05, 0.4]},
    ]);
    let model = mixture(1, [sigma, 150.0], components);
    let options = SampleOptions {
        seed: 7,
        n_steps: 96,
        start_level: Some(150.0),
        corrector_steps: 40,
        ..SampleOptions::default()
    };
    let n = 20_000;
    let frames = draw(&model, &options, n);
    let frames = frames.as_chunks::<3>().0;
    let first: Vec<f64> = frames.iter().map(|x| f64::from(u8::from(x[0] > 0.05))).collect();
    // The components overlap at x = 0.05 by less than 1e-4 of the frames.
    assert_mean("weight", &first, 0.62, 4.0, 0.006);
    for (side, mean, spread) in
        [(1.0, [0.7, -0.3, 0.2], [0.11, 0.31, 0.07]), (0.0, [-0.9, 0.5, 0.4], [0.23, 0.05, 0.4])]
    {
        for c in 0..3 {
            let here = || frames.iter().zip(&first).filter(|(_, f)| **f == side).map(|(x, _)| x[c] - mean[c]);
            let variance: f64 = f64::powi(spread[c], 2) + sigma * sigma;
            assert_mean("variance", &here().map(|d| d * d).collect::<Vec<_>>(), variance, 4.0, 0.02);
            let shifted: Vec<f64> = here().map(|d| d + 1.0).collect();
            assert_mean("1 + mean", &shifted, 1.0, 4.0, 0.01);
        }
    }
}

/// Two steps are far too few for a narrow Gaussian; the Langevin steps at the end make its variance right.
#[test]
fn corrector_repairs_what_is_fast() {
    let model =
        mixture(1, [0.05, 40.0], json!([{"weight": 1.0, "mean": ([[0.0; 3]]), "spread": ([0.02; 3])}]));
    let options = |corrector_steps| SampleOptions {
        seed: 3,
        n_steps: 2,
        start_level: Some(40.0),
        corrector_steps,
        ..SampleOptions::default()
    };
    let squares = |k| draw(&model, &options(k), 8_000).iter().map(|x| x * x).collect::<Vec<_>>();
    let expected = 0.02f64.powi(2) + 0.05f64.powi(2);
    assert!(common::mean_and_error(&squares(0)).0 > 2.0 * expected);
    assert_mean("variance", &squares(120), expected, 4.0, 0.02);
}

#[test]
fn a_frame_depends_on_seed_and_number_alone() {
    let model = network();
    let n = 3 * model.n_particles();
    let options = SampleOptions { seed: 99, n_steps: 5, corrector_steps: 7, ..SampleOptions::default() };
    let all = draw(&model, &options, 75);
    assert!(all.iter().all(|x| x.is_finite()));
    for n_threads in [1, 3] {
        assert_eq!(draw(&model, &SampleOptions { n_threads, ..options.clone() }, 75), all);
    }
    for first in [0, 31, 74] {
        let alone = draw(&model, &SampleOptions { first_frame: first as u32, ..options.clone() }, 1);
        assert_eq!(alone, all[first * n..][..n]);
    }
    let other = draw(&model, &SampleOptions { seed: 100, ..options }, 75);
    assert!(other.iter().zip(&all).all(|(a, b)| a != b));
    for frame in all.chunks_exact(n) {
        for c in 0..3 {
            assert!(frame.iter().skip(c).step_by(3).sum::<f64>().abs() < 1e-12, "frames are centred");
        }
    }
}

/// Sharing weights changes no bit.
#[test]
fn a_network_at_another_level_is_the_one_loaded_there() {
    let model = network();
    let levels = model.metadata().noise_levels.unwrap();
    let level = (levels.min * levels.max).sqrt();
    let loaded = Model::load(&common::fixture("distance_small.safetensors"), Some(level)).unwrap();
    let shared = model.score().at_noise_level(level).unwrap();
    let evaluate = |score: &dyn ScoreModel| {
        let x = &model.start_positions()[..3 * model.n_particles()];
        let (mut scores, mut energy) = (vec![0.0; x.len()], [0.0]);
        let outputs = Outputs::energies(&mut scores, &mut energy);
        score.evaluate(Frames::open(x), outputs, &mut Scratch::default()).unwrap();
        (scores, energy)
    };
    assert_eq!(evaluate(&*shared), evaluate(&**loaded.score()));
    assert_ne!(evaluate(&*shared), evaluate(&**model.score()));
}

#[test]
fn what_cannot_be_sampled_is_one_clear_sentence() {
    let fails = |model: &Model, options: SampleOptions, n_values: usize| {
        sample(model, &options, &mut vec![0.0; n_values]).unwrap_err()
    };
    let default = SampleOptions::default;
    let model =
        mixture(1, [0.05, 40.0], json!([{"weight": 1.0, "mean": ([[0.0; 3]]), "spread": ([0.02; 3])}]));
    let far =
        mixture(1, [0.05, 40.0], json!([{"weight": 1.0, "mean": ([[1e200; 3]]), "spread": ([0.02; 3])}]));
    let cases = [
        ("expected a multiple of 1 particles × 3", fails(&model, default(), 4)),
        ("n_steps is 0", fails(&model, SampleOptions { n_steps: 0, ..default() }, 3)),
        (
            "start level 41 nm is outside",
            fails(&model, SampleOptions { start_level: Some(41.0), ..default() }, 3),
        ),
        ("start level NaN", fails(&model, SampleOptions { start_level: Some(f64::NAN), ..default() }, 3)),
        ("first_frame 4294967295", fails(&model, SampleOptions { first_frame: u32::MAX, ..default() }, 3)),
        ("n_threads is 5000", fails(&model, SampleOptions { n_threads: 5000, ..default() }, 3)),
        (
            "knows one density",
            fails(&analytic("harmonic", 1, 290.0, json!({"stiffness": 3.0})), default(), 3),
        ),
        (
            "not a part of a larger system",
            fails(&network().subset(8, &[6, 0, 3, 1, 4]).unwrap(), default(), 24),
        ),
    ];
    for (words, error) in cases {
        assert!(error.to_string().contains(words), "expected '{words}' in: {error}");
    }
    let lost = fails(&far, default(), 6);
    assert!(
        matches!(&lost, Error::NotFinite(t) if t.contains("frame 0") && t.contains("particle 0")),
        "{lost}"
    );
}
