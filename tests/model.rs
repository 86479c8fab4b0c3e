//! The `distance` network against JAX and against finite differences, and every way a model file can be wrong.

mod common;

use common::{description, fixture, network};
use diffusim::error::Error;
use diffusim::model::distance::{Hyperparameters, Tensors};
use diffusim::model::{Distance, Frames, Metadata, Model, Outputs, Scratch, curvature};
use safetensors::SafeTensors;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::HashMap;

fn numbers(value: &serde_json::Value) -> Vec<f64> {
    match value {
        serde_json::Value::Array(items) => items.iter().flat_map(numbers).collect(),
        other => vec![other.as_f64().unwrap()],
    }
}

/// The networks of tests/fixtures/make_distance_fixture.py.
const NETWORKS: [&str; 2] = ["distance_small", "distance_field"];

fn load(name: &str, noise_level: Option<f64>) -> Model {
    Model::load(&fixture(&format!("{name}.safetensors")), noise_level).unwrap()
}

/// A fixture's network itself, for its double-precision evaluation.
fn distance(name: &str, noise_level: f64) -> Distance {
    let bytes = std::fs::read(fixture(&format!("{name}.safetensors"))).unwrap();
    let metadata: Metadata = serde_json::from_str(load(name, None).metadata_json()).unwrap();
    let parameters: Hyperparameters = serde_json::from_value(metadata.hyperparameters).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |name: &str| -> Vec<f32> {
        let data = file.tensor(name).unwrap().data();
        data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let layers: Vec<(Vec<f32>, Vec<f32>)> = (0..=parameters.hidden.len())
        .map(|i| (tensor(&format!("layers.{i}.weight")), tensor(&format!("layers.{i}.bias"))))
        .collect();
    let (mean, spread) = (tensor("feature_mean"), tensor("feature_spread"));
    let tensors = Tensors {
        feature_mean: &mean,
        feature_spread: &spread,
        layers: layers.iter().map(|(w, b)| (&w[..], &b[..])).collect(),
    };
    let levels = metadata.noise_levels.unwrap();
    Distance::new(metadata.n_particles, &parameters, &tensors, [levels.min, levels.max], noise_level).unwrap()
}

fn largest_error(a: &[f64], b: &[f64]) -> f64 {
    let scale = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / scale
}

/// Energies and scores made by JAX in double precision (tests/fixtures/make_distance_fixture.py).
#[test]
fn network_equals_jax() {
    for name in NETWORKS {
        let text = std::fs::read_to_string(fixture(&format!("{name}.json"))).unwrap();
        equals(name, &serde_json::from_str(&text).unwrap());
    }
}

fn equals(name: &str, fixture_values: &serde_json::Value) {
    let positions = numbers(&fixture_values["positions"]);
    for case in fixture_values["cases"].as_array().unwrap() {
        let level = case["noise_level"].as_f64().unwrap();
        let (energies, scores) = (numbers(&case["energies"]), numbers(&case["scores"]));
        let n = positions.len() / energies.len();

        let precise = distance(name, level);
        let mut s = vec![0.0; positions.len()];
        let e: Vec<f64> = positions
            .chunks_exact(n)
            .zip(s.chunks_exact_mut(n))
            .map(|(x, s)| precise.evaluate_f64(x, s))
            .collect();
        assert!(largest_error(&e, &energies) < 1e-6 && largest_error(&s, &scores) < 1e-6);

        let model = load(name, Some(level));
        let (mut s, mut e) = (vec![0.0; positions.len()], vec![0.0; energies.len()]);
        let outputs = Outputs::energies(&mut s, &mut e);
        model.score().evaluate(Frames::open(&positions), outputs, &mut Scratch::default()).unwrap();
        assert!(largest_error(&s, &scores) < 1e-5, "{}", largest_error(&s, &scores));
        assert!(largest_error(&e, &energies) < 1e-5);
    }
}

#[test]
fn score_is_minus_the_gradient_in_double_precision() {
    for (name, noise_level) in NETWORKS.into_iter().zip([0.0021, 0.034]) {
        let network = distance(name, noise_level);
        let x: Vec<f64> = network_positions(name, 1);
        let mut score = vec![0.0; x.len()];
        network.evaluate_f64(&x, &mut score);
        let mut unused = vec![0.0; x.len()];
        let scale = score.iter().fold(0.0f64, |m, s| m.max(s.abs()));
        for i in 0..x.len() {
            // Fourth-order central difference.
            let mut energy = |h: f64| {
                let mut y = x.clone();
                y[i] += h;
                network.evaluate_f64(&y, &mut unused)
            };
            let h = 1e-5;
            let numeric =
                -(8.0 * (energy(h) - energy(-h)) - (energy(2.0 * h) - energy(-2.0 * h))) / (12.0 * h);
            assert!((numeric - score[i]).abs() < 1e-8 * scale, "{name} {i}: {numeric} {}", score[i]);
        }
    }
}

/// Coordinates of one or the other particle along each axis: the total force does not vanish.
#[test]
fn coordinates_are_an_external_field() {
    let network = distance("distance_field", 0.034);
    let x = network_positions("distance_field", 1);
    let mut score = vec![0.0; 6];
    network.evaluate_f64(&x, &mut score);
    let total: Vec<f64> = (0..3).map(|c| score[c] + score[3 + c]).collect();
    assert!(total.iter().all(|f| f.abs() > 1e-3), "{total:?}");
}

/// `n` frames around the start frames of a fixture.
fn network_positions(name: &str, n: usize) -> Vec<f64> {
    let model = load(name, None);
    let start = model.start_positions();
    (0..n * 3 * model.n_particles())
        .map(|i| start[i % start.len()] + 0.004 * diffusim::noise::normals(5, 0, i as u32, 9)[1] as f64)
        .collect()
}

/// Every batch size up to two full vectors and a bit: a frame's score has the same bits alone and among others.
#[test]
fn batches_have_the_bits_of_single_frames() {
    for name in NETWORKS {
        let model = load(name, None);
        let n = 3 * model.n_particles();
        let x = network_positions(name, 70);
        let mut scratch = Scratch::default();
        let (mut single, mut single_energy) = (vec![0.0; x.len()], vec![0.0; 70]);
        for f in 0..70 {
            let range = f * n..(f + 1) * n;
            let frame = Frames::open(&x[range.clone()]);
            let outputs = Outputs::energies(&mut single[range], &mut single_energy[f..f + 1]);
            model.score().evaluate(frame, outputs, &mut scratch).unwrap();
        }
        for frames in [1, 2, 3, 8, 9, 15, 16, 17, 31, 32, 33, 70] {
            let (mut scores, mut energies) = (vec![0.0; frames * n], vec![0.0; frames]);
            let outputs = Outputs::energies(&mut scores, &mut energies);
            model.score().evaluate(Frames::open(&x[..frames * n]), outputs, &mut scratch).unwrap();
            assert_eq!(scores, single[..frames * n], "{name}, {frames} frames");
            assert_eq!(energies, single_energy[..frames], "{name}, {frames} frames");
        }
    }
}

#[test]
fn energy_is_invariant_and_mirror_images_differ() {
    let network = distance("distance_small", 0.0021);
    let x = network_positions("distance_small", 1);
    let mut score = vec![0.0; x.len()];
    let energy = network.evaluate_f64(&x, &mut score);
    // Total force and torque vanish: invariance under translation and rotation.
    let (mut force, mut torque) = ([0.0; 3], [0.0; 3]);
    for (x, s) in x.chunks_exact(3).zip(score.chunks_exact(3)) {
        for c in 0..3 {
            let (a, b) = ((c + 1) % 3, (c + 2) % 3);
            force[c] += s[c];
            torque[c] += x[a] * s[b] - x[b] * s[a];
        }
    }
    let scale = score.iter().fold(0.0f64, |m, s| m.max(s.abs()));
    assert!(force.iter().chain(&torque).all(|f| f.abs() < 1e-12 * scale));
    let mirrored: Vec<f64> = x.iter().enumerate().map(|(i, x)| if i % 3 == 2 { -x } else { *x }).collect();
    assert!((network.evaluate_f64(&mirrored, &mut score) - energy).abs() > 1e-3);
}

#[test]
fn curvature_and_temperature_of_a_harmonic_model_are_exact() {
    let model = common::analytic("harmonic", 3, 273.0, json!({"stiffness": 510.0}));
    let x: Vec<f64> = (0..36).map(|i| 0.05 * diffusim::noise::normals(8, 0, i, 0)[0] as f64).collect();
    let largest = curvature::largest_curvature(&**model.score(), Frames::open(&x)).unwrap();
    assert!((largest / 510.0 - 1.0).abs() < 1e-6);
    // Where the strongest mode is a maximum, the stiffest one is still found.
    let saddle = |x: &[f64], s: &mut [f64], _: Option<&mut [f64]>| {
        x.iter().zip(s).enumerate().for_each(|(i, (x, s))| *s = -x * [12.0, -130.0, 1.7][i % 3]);
        Ok(())
    };
    let model_of_saddle = Model::callback(3, 273.0, Box::new(saddle)).unwrap();
    let largest = curvature::largest_curvature(&**model_of_saddle.score(), Frames::open(&x)).unwrap();
    assert!((largest / 12.0 - 1.0).abs() < 1e-3, "{largest}");
    // Springs of their own for three particles: ω² = kT₀ k/m of each, the second frozen, the third with the least stiff spring.
    let springs = |x: &[f64], s: &mut [f64], _: Option<&mut [f64]>| {
        x.iter().zip(s).enumerate().for_each(|(i, (x, s))| *s = -x * [150.0, 990.0, 70.0][i / 3 % 3]);
        Ok(())
    };
    let model_of_springs = Model::callback(3, 273.0, Box::new(springs)).unwrap();
    let frequency = |masses: [f64; 3]| {
        curvature::largest_frequency(&**model_of_springs.score(), Frames::open(&x), &masses, 273.0)
    };
    let kt = diffusim::schedule::BOLTZMANN * 273.0;
    for (masses, expected) in [([16.0, 0.0, 4.3], 70.0 / 4.3), ([16.0, 40.0, 12.0], 990.0 / 40.0)] {
        let found = frequency(masses).unwrap();
        assert!((found / f64::sqrt(kt * expected) - 1.0).abs() < 1e-3, "{found}");
    }
    assert_eq!(frequency([0.0; 3]).unwrap(), 0.0);
    assert!(
        frequency([16.0, f64::NAN, 4.3]).unwrap_err().to_string().contains("mass of particle 1 is NaN amu")
    );
    let many = common::analytic("harmonic", 70, 273.0, json!({"stiffness": 510.0}));
    let (laplacian, _) =
        curvature::laplacian_and_square(&**many.score(), Frames::open(&[0.01; 210])).unwrap();
    assert!((laplacian / (210.0 * 510.0) - 1.0).abs() < 1e-6);
    let (laplacian, square) = curvature::laplacian_and_square(&**model.score(), Frames::open(&x)).unwrap();
    assert!((laplacian / (36.0 * 510.0) - 1.0).abs() < 1e-6);
    let expected: f64 = x.iter().map(|x| (510.0 * x).powi(2)).sum();
    assert!((square / expected - 1.0).abs() < 1e-12);
}

/// The fixture's parts, to be spoilt one at a time. A tensor is (dtype, shape, bytes).
struct Parts {
    description: serde_json::Value,
    tensors: HashMap<String, (String, Vec<usize>, Vec<u8>)>,
}

impl Parts {
    fn read() -> Self {
        let bytes = std::fs::read(fixture("distance_small.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, ("F32".to_owned(), view.shape().to_vec(), view.data().to_vec())))
            .collect();
        Parts { description: serde_json::from_str(network().metadata_json()).unwrap(), tensors }
    }

    fn write(mut self) -> Vec<u8> {
        let mut data = Vec::new();
        let mut header = serde_json::Map::new();
        for (name, (dtype, shape, bytes)) in &self.tensors {
            let start = data.len();
            data.extend(bytes);
            header.insert(
                name.clone(),
                json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}),
            );
        }
        if self.description["weights_sha256"] != json!("kept") {
            let digest: String = Sha256::digest(&data).iter().map(|b| format!("{b:02x}")).collect();
            self.description["weights_sha256"] = json!(digest);
        }
        header.insert("__metadata__".into(), json!({"diffusim": self.description.to_string()}));
        let mut text = serde_json::to_vec(&header).unwrap();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text);
        bytes.extend(data);
        bytes
    }
}

#[test]
fn a_file_put_together_from_its_parts_loads() {
    Model::from_bytes(&Parts::read().write(), None).unwrap();
}

/// Each way to spoil the file, and words the message must hold.
#[test]
fn spoilt_files_are_errors_that_name_the_offender() {
    type Spoil = fn(&mut Parts);
    let cases: [(&str, Spoil); 36] = [
        ("n_frequencies", |p| p.description["hyperparameters"]["n_frequencies"] = json!(1u64 << 40)),
        ("feature_mean of the model has 3", |p| {
            p.tensors.get_mut("feature_mean").unwrap().1 = vec![3];
            p.tensors.get_mut("feature_mean").unwrap().2.truncate(12);
        }),
        ("expected 1 columns", |p| p.description["hyperparameters"]["hidden"] = json!([])),
        ("expected 0 columns", |p| p.description["hyperparameters"]["hidden"] = json!([0])),
        ("harmonic", |p| p.description["hyperparameters"]["harmonic"] = json!(-0.5)),
        ("no finite score", |p| p.description["hyperparameters"]["harmonic"] = json!(1e300)),
        ("unknown field `cutoff`", |p| p.description["hyperparameters"]["cutoff"] = json!(0.9)),
        ("version 7", |p| p.description["format_version"] = json!(7)),
        ("no format_version", |p| p.description = json!({})),
        ("n_particles", |p| p.description["n_particles"] = json!(0)),
        ("at most 2048", |p| {
            p.description["n_particles"] = json!(1_000_000);
            p.description["particles"] = json!([]);
            p.description["bonds"] = json!([]);
            p.description["bond_ranges"] = json!([]);
        }),
        ("expected 1 to", |p| p.description["n_particles"] = json!(u64::MAX)),
        ("describes 5 particles", |p| p.description["n_particles"] = json!(6)),
        ("incomplete", |p| p.description["training_temperature"] = json!("hot")),
        ("training_temperature is -3", |p| p.description["training_temperature"] = json!(-3.0)),
        ("kind 'telepathy'", |p| p.description["kind"] = json!("telepathy")),
        ("length unit 'furlong'", |p| p.description["length_unit"] = json!("furlong")),
        ("periodic", |p| p.description["periodic"] = json!(true)),
        ("noise_levels", |p| p.description["noise_levels"] = json!(null)),
        ("noise levels of the model are", |p| p.description["noise_levels"]["min"] = json!(0.0)),
        ("activation 'relu'", |p| p.description["hyperparameters"]["activation"] = json!("relu")),
        ("softening", |p| p.description["hyperparameters"]["softening"] = json!(0.0)),
        ("quadruplet [0, 1, 2, 99]", |p| {
            p.description["hyperparameters"]["quadruplets"] = json!([[0, 1, 2, 99]])
        }),
        ("coordinate [1, 3]", |p| p.description["hyperparameters"]["coordinates"] = json!([[1, 2], [1, 3]])),
        ("listed once", |p| p.description["hyperparameters"]["coordinates"] = json!([[1, 2], [1, 2]])),
        ("one particle has no distances", |p| {
            p.description["n_particles"] = json!(1);
            p.description["particles"].as_array_mut().unwrap().truncate(1);
            p.description["bonds"] = json!([]);
            p.description["bond_ranges"] = json!([]);
        }),
        ("hyper-parameters", |p| p.description["hyperparameters"] = json!({"hidden": "many"})),
        ("layers.4.weight is missing", |p| {
            p.description["hyperparameters"]["hidden"] = json!([24, 16, 20, 1])
        }),
        ("bond [0, 44]", |p| p.description["bonds"] = json!([[0, 44]])),
        ("mass -12", |p| p.description["particles"][2]["mass"] = json!(-12.0)),
        ("feature_mean is missing", |p| drop(p.tensors.remove("feature_mean"))),
        ("feature_mean is F64; expected F32", |p| {
            let (dtype, shape, bytes) = p.tensors.get_mut("feature_mean").unwrap();
            *dtype = "F64".into();
            *bytes = vec![0; 8 * shape[0]];
        }),
        ("start_positions has shape", |p| {
            let (_, shape, _) = p.tensors.get_mut("start_positions").unwrap();
            *shape = vec![shape.iter().product()];
        }),
        ("feature_spread[1] of the model is 0", |p| {
            p.tensors.get_mut("feature_spread").unwrap().2[4..8].fill(0);
        }),
        ("layers.1.weight holds NaN at position 3", |p| {
            p.tensors.get_mut("layers.1.weight").unwrap().2[12..16].copy_from_slice(&f32::NAN.to_le_bytes());
        }),
        ("weights were changed", |p| p.description["weights_sha256"] = json!("kept")),
    ];
    for (words, spoil) in cases {
        let mut parts = Parts::read();
        spoil(&mut parts);
        match Model::from_bytes(&parts.write(), None) {
            Err(Error::InvalidModel(text)) => assert!(text.contains(words), "expected '{words}' in: {text}"),
            Err(other) => panic!("{words}: {other:?}"),
            Ok(_) => panic!("{words}: loaded"),
        }
    }
}

/// Every truncation, and a byte changed anywhere, is an error or (in free text of the description) harmless: never a panic.
#[test]
fn damaged_bytes_never_panic() {
    let bytes = std::fs::read(fixture("distance_small.safetensors")).unwrap();
    for length in (0..bytes.len()).step_by(7) {
        assert!(Model::from_bytes(&bytes[..length], None).is_err(), "{length} bytes");
    }
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for i in (0..header).chain((header..bytes.len()).step_by(11)) {
        for flip in [1, 0x20, 0x80] {
            let mut damaged = bytes.clone();
            damaged[i] ^= flip;
            let outcome = Model::from_bytes(&damaged, None);
            assert!(i < header || outcome.is_err(), "byte {i} of the weights changed unnoticed");
        }
    }
    let mut huge = bytes.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(Model::from_bytes(&huge, None).is_err());
}

#[test]
fn a_network_needs_layers() {
    for hidden in [vec![], vec![0], vec![4, 1 << 40]] {
        let parameters = Hyperparameters {
            hidden,
            activation: "silu".into(),
            coordinates: Vec::new(),
            quadruplets: Vec::new(),
            softening: 0.01,
            signed_length: 0.1,
            harmonic: 0.3,
            n_frequencies: 2,
        };
        let tensors = Tensors { feature_mean: &[0.1], feature_spread: &[0.1], layers: Vec::new() };
        let error = Distance::new(2, &parameters, &tensors, [1e-3, 0.1], 1e-2).err().unwrap().to_string();
        assert!(error.contains("hidden layers"), "{error}");
    }
}

#[test]
fn noise_level_outside_the_training_is_refused() {
    let error = Model::load(&fixture("distance_small.safetensors"), Some(3.0)).err().unwrap();
    assert!(matches!(&error, Error::InvalidArgument(t) if t.contains("noise level 3 nm")), "{error}");
}

/// What the file says of stiffness and step holds for its own noise level; at another they are measured.
#[test]
fn another_noise_level_has_another_stiffness() {
    let load = |level| Model::load(&fixture("distance_small.safetensors"), Some(level)).unwrap();
    let (fine, coarse) = (load(0.0009), load(0.02));
    let curvature = |m: &Model| m.metadata().largest_curvature.unwrap();
    assert!(curvature(&fine) != curvature(&coarse));
    let x = &fine.start_positions()[..15 * (fine.start_positions().len() / 15).min(32)];
    let measured = curvature::largest_curvature(&**coarse.score(), Frames::open(x)).unwrap();
    assert!((curvature(&coarse) / measured - 1.0).abs() < 1e-12);
}

#[test]
fn analytic_hyperparameters_are_checked() {
    for (words, kind, n, hyperparameters) in [
        ("stiffness of the model is -1", "harmonic", 2, json!({"stiffness": -1.0})),
        ("kind 'harmonic'", "harmonic", 2, json!({"stifness": 2.0})),
        (
            "dw4 model has 4",
            "dw4",
            3,
            json!({"linear": 0.0, "quadratic": -4.0, "quartic": 0.9, "distance": 4.0}),
        ),
        ("needs its weights", "distance", 3, json!({})),
    ] {
        let error =
            Model::from_json(&description(kind, n, 290.0, hyperparameters)).err().unwrap().to_string();
        assert!(error.contains(words), "expected '{words}' in: {error}");
    }
}

#[test]
fn engines_particles_are_compared_with_the_models() {
    let model = network();
    let particles = &model.metadata().particles;
    let masses: Vec<f64> = particles.iter().map(|p| p.mass).collect();
    model.check_masses(&masses).unwrap();
    let count = model.check_masses(&masses[1..]).unwrap_err().to_string();
    assert!(count.contains("moves 5 particles and the System has 4"), "{count}");
    let mut wrong = masses.clone();
    wrong[3] += 2.0;
    assert!(model.check_masses(&wrong).unwrap_err().to_string().contains("particle 3 is"));
    wrong[3] = 0.0;
    model.check_masses(&wrong).unwrap();

    let elements: Vec<Option<&str>> = particles.iter().map(|p| Some(p.element.as_str())).collect();
    model.check_particles(&elements, &[]).unwrap();
    let mut swapped = elements.clone();
    swapped[1] = Some("S");
    let error = model.check_particles(&swapped, &[None, Some("SG")]).unwrap_err().to_string();
    assert!(error.contains("particle 1 is") && error.contains("SG (sulfur) in the System"), "{error}");
}

#[test]
fn a_subset_moves_only_its_particles() {
    let model = network();
    let particles = [6, 0, 3, 1, 4];
    let subset = model.subset(8, &particles).unwrap();
    let small = network_positions("distance_small", 2);
    let mut large = vec![9.0; 2 * 24];
    for f in 0..2 {
        for (i, p) in particles.iter().enumerate() {
            large[24 * f + 3 * p..][..3].copy_from_slice(&small[15 * f + 3 * i..][..3]);
        }
    }
    let (mut inner, mut outer) = (vec![0.0; 30], vec![f64::NAN; 48]);
    let mut scratch = Scratch::default();
    model.score().evaluate(Frames::open(&small), Outputs::scores(&mut inner), &mut scratch).unwrap();
    subset.score().evaluate(Frames::open(&large), Outputs::scores(&mut outer), &mut scratch).unwrap();
    for f in 0..2 {
        for p in 0..8 {
            let expected = particles
                .iter()
                .position(|q| *q == p)
                .map_or(&[0.0; 3][..], |i| &inner[15 * f + 3 * i..][..3]);
            assert_eq!(&outer[24 * f + 3 * p..][..3], expected);
        }
    }
    for (words, wrong) in [("only 8", [0, 1, 2, 3, 8]), ("second time", [0, 1, 2, 3, 3])] {
        assert!(model.subset(8, &wrong).err().unwrap().to_string().contains(words));
    }
    assert!(model.subset(8, &[0]).err().unwrap().to_string().contains("names 1 particles"));
    assert!(subset.masses().unwrap_err().to_string().contains("5 of 8"));
    let nested = subset.subset(9, &[8, 7, 6, 5, 4, 3, 2, 1]).unwrap();
    assert!(nested.masses().unwrap_err().to_string().contains("5 of 9"));
    assert!(model.subset(1 << 50, &particles).is_err());
}

/// The virial of a distance network in open space against the energy of strained frames.
#[test]
fn virial_is_the_derivative_by_strain() {
    let model = network();
    let n = 3 * model.n_particles();
    let x = network_positions("distance_small", 2);
    let (mut scores, mut virials) = (vec![0.0; 2 * n], vec![f64::NAN; 18]);
    let outputs = Outputs { scores: &mut scores, energies: None, virials: Some(&mut virials) };
    model.score().evaluate(Frames::open(&x), outputs, &mut Scratch::default()).unwrap();
    let precise = distance("distance_small", model.noise_level().unwrap());
    let scale = virials.iter().fold(0.0f64, |m, w| m.max(w.abs()));
    for (f, x) in x.chunks_exact(n).enumerate() {
        for ab in 0..9 {
            let energy = |strain: f64| {
                let mut y = x.to_vec();
                for i in 0..n / 3 {
                    y[3 * i + ab / 3] += strain * x[3 * i + ab % 3];
                }
                precise.evaluate_f64(&y, &mut vec![0.0; n])
            };
            let numeric = -(energy(1e-6) - energy(-1e-6)) / 2e-6;
            assert!((numeric - virials[9 * f + ab]).abs() < 1e-4 * scale, "{f} {ab}: {numeric}");
        }
    }
}

#[test]
fn a_model_without_a_cell_refuses_one() {
    let cell = diffusim::cell::Cell::rectangular([2.1, 2.2, 2.3]).unwrap();
    let mut simulation = common::simulation(&network(), Default::default());
    let error = simulation.set_cell(Some(cell)).unwrap_err().to_string();
    assert!(error.contains("no periodic cell") && error.contains("2.2"), "{error}");
}
