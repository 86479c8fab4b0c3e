//! The `message-passing` network against JAX, finite differences and its symmetries.

mod common;

use common::{fixture, simulation};
use diffusim::adapter::Adapter;
use diffusim::cell::Cell;
use diffusim::error::Error;
use diffusim::model::message_passing::Hyperparameters;
use diffusim::model::{Frames, MessagePassing, Metadata, Model, Outputs, Scratch};
use diffusim::noise::normals;
use diffusim::sampler::{Domain, Options, Sampler, StepSize};
use diffusim::schedule::Mobility;
use safetensors::SafeTensors;
use std::sync::{Arc, Barrier, Mutex};

const FIXTURES: [&str; 2] = ["message_passing_open", "message_passing_periodic"];

fn model(name: &str) -> Arc<Model> {
    Arc::new(Model::load(&fixture(&format!("{name}.safetensors")), None).unwrap())
}

/// The fixture's network itself, for its double-precision evaluation.
fn network(name: &str, noise_level: f64) -> MessagePassing {
    let bytes = std::fs::read(fixture(&format!("{name}.safetensors"))).unwrap();
    let metadata: Metadata = serde_json::from_str(model(name).metadata_json()).unwrap();
    let parameters: Hyperparameters = serde_json::from_value(metadata.hyperparameters).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let species: Vec<&str> = metadata.particles.iter().map(|p| p.species()).collect();
    let tensor = |name: &str, _: &[usize]| {
        let data = file.tensor(name).unwrap().data();
        Ok(data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    };
    let levels = metadata.noise_levels.unwrap();
    let range = [levels.min, levels.max];
    MessagePassing::new(&parameters, &species, metadata.periodic, &tensor, range, noise_level).unwrap()
}

fn numbers(value: &serde_json::Value) -> Vec<f64> {
    match value {
        serde_json::Value::Array(items) => items.iter().flat_map(numbers).collect(),
        other => vec![other.as_f64().unwrap()],
    }
}

fn largest_error(a: &[f64], b: &[f64]) -> f64 {
    let scale = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / scale
}

fn energy_and_score(network: &MessagePassing, x: &[f64], cell: Option<&Cell>) -> (f64, Vec<f64>) {
    let mut scores = vec![f64::NAN; x.len()];
    let energy = network.evaluate_f64(Frames { positions: x, cell }, &mut scores, &mut [0.0; 9]).unwrap();
    (energy, scores)
}

fn evaluate(model: &Model, x: &[f64], cell: Option<&Cell>) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let n_frames = x.len() / (3 * model.n_particles());
    let (mut s, mut e, mut w) =
        (vec![f64::NAN; x.len()], vec![f64::NAN; n_frames], vec![f64::NAN; 9 * n_frames]);
    let outputs = Outputs { scores: &mut s, energies: Some(&mut e), virials: Some(&mut w) };
    model.score().evaluate(Frames { positions: x, cell }, outputs, &mut Scratch::default()).unwrap();
    (s, e, w)
}

fn start(model: &Model) -> Vec<f64> {
    model.start_positions()[..3 * model.n_particles()].to_vec()
}

/// Energies and scores made by JAX in double precision (tests/fixtures/make_message_passing_fixture.py). What is left in
/// double precision is the error of the tabulated filters.
#[test]
fn network_equals_jax() {
    for name in FIXTURES {
        let text = std::fs::read_to_string(fixture(&format!("{name}.json"))).unwrap();
        let values: serde_json::Value = serde_json::from_str(&text).unwrap();
        let positions = numbers(&values["positions"]);
        for case in values["cases"].as_array().unwrap() {
            let level = case["noise_level"].as_f64().unwrap();
            let (energies, scores) = (numbers(&case["energies"]), numbers(&case["scores"]));
            let n = positions.len() / energies.len();
            let model = Model::load(&fixture(&format!("{name}.safetensors")), Some(level)).unwrap();
            let cell = model.start_cell();
            let precise = network(name, level);
            let (mut s, mut e) = (Vec::new(), Vec::new());
            for x in positions.chunks_exact(n) {
                let (energy, scores) = energy_and_score(&precise, x, cell);
                e.push(energy);
                s.extend(scores);
            }
            println!("{name}: {:.1e} {:.1e}", largest_error(&e, &energies), largest_error(&s, &scores));
            assert!(largest_error(&e, &energies) < 1e-6 && largest_error(&s, &scores) < 8e-6);
            let (s, e, _) = evaluate(&model, &positions, cell);
            println!("{name}: {:.1e} {:.1e}", largest_error(&e, &energies), largest_error(&s, &scores));
            assert!(largest_error(&e, &energies) < 1e-5 && largest_error(&s, &scores) < 1e-5);
        }
    }
}

#[test]
fn score_is_minus_the_gradient_in_double_precision() {
    for name in FIXTURES {
        let (network, model) = (network(name, 0.0021), model(name));
        let (x, cell) = (start(&model), model.start_cell());
        let (_, score) = energy_and_score(&network, &x, cell);
        let scale = score.iter().fold(0.0f64, |m, s| m.max(s.abs()));
        for i in 0..x.len() {
            let energy = |h: f64| {
                let mut y = x.clone();
                y[i] += h;
                energy_and_score(&network, &y, cell).0
            };
            let h = 1e-5;
            let numeric =
                -(8.0 * (energy(h) - energy(-h)) - (energy(2.0 * h) - energy(-2.0 * h))) / (12.0 * h);
            assert!((numeric - score[i]).abs() < 1e-7 * scale, "{name} {i}: {numeric} {}", score[i]);
        }
    }
}

/// −∂E/∂ε under x → x + ε x of positions and cell, by finite strain.
#[test]
fn virial_is_the_derivative_by_strain() {
    for name in FIXTURES {
        let (network, model) = (network(name, 0.0021), model(name));
        let (x, cell) = (start(&model), model.start_cell());
        let mut virial = [f64::NAN; 9];
        network.evaluate_f64(Frames { positions: &x, cell }, &mut vec![0.0; x.len()], &mut virial).unwrap();
        let scale = virial.iter().fold(0.0f64, |m, w| m.max(w.abs()));
        for ab in 0..9 {
            let energy = |strain: f64| {
                let strained = |x: [f64; 3]| {
                    let mut y = x;
                    y[ab / 3] += strain * x[ab % 3];
                    y
                };
                let y: Vec<f64> = x.as_chunks::<3>().0.iter().flat_map(|x| strained(*x)).collect();
                let cell = cell.map(|c| Cell::new(c.vectors().map(strained)).unwrap());
                energy_and_score(&network, &y, cell.as_ref()).0
            };
            let numeric = -(energy(1e-5) - energy(-1e-5)) / 2e-5;
            assert!((numeric - virial[ab]).abs() < 1e-6 * scale, "{name} {ab}: {numeric} {}", virial[ab]);
        }
        let (_, _, single) = evaluate(&model, &x, cell);
        assert!(largest_error(&single, &virial) < 1e-5);
    }
}

/// A rotation by Rodrigues' formula, then a shift.
fn moved(x: &[f64], axis: [f64; 3], angle: f64, shift: [f64; 3]) -> Vec<f64> {
    let length = axis.iter().map(|a| a * a).sum::<f64>().sqrt();
    let k = axis.map(|a| a / length);
    let rotate = |v: &[f64; 3]| {
        let along = k[0] * v[0] + k[1] * v[1] + k[2] * v[2];
        let cross = [k[1] * v[2] - k[2] * v[1], k[2] * v[0] - k[0] * v[2], k[0] * v[1] - k[1] * v[0]];
        std::array::from_fn::<f64, 3, _>(|c| {
            v[c] * angle.cos() + cross[c] * angle.sin() + k[c] * along * (1.0 - angle.cos()) + shift[c]
        })
    };
    x.as_chunks::<3>().0.iter().flat_map(rotate).collect()
}

#[test]
fn energy_is_invariant_and_scores_turn_with_the_frame() {
    let (axis, angle, shift) = ([0.3, -1.2, 0.7], 0.83, [0.31, -0.42, 0.57]);
    for name in FIXTURES {
        let (network, model) = (network(name, 0.0021), model(name));
        let (x, cell) = (start(&model), model.start_cell());
        let (energy, score) = energy_and_score(&network, &x, cell);
        let turned_cell = cell.map(|c| {
            let rows = moved(c.vectors().as_flattened(), axis, angle, [0.0; 3]);
            Cell::new(std::array::from_fn(|k| std::array::from_fn(|c| rows[3 * k + c]))).unwrap()
        });
        let (turned_energy, turned) =
            energy_and_score(&network, &moved(&x, axis, angle, shift), turned_cell.as_ref());
        assert!((turned_energy - energy).abs() < 1e-10 * energy.abs());
        assert!(largest_error(&turned, &moved(&score, axis, angle, [0.0; 3])) < 1e-9);
    }
}

/// The chiral network tells mirror images apart, the plain one does not.
#[test]
fn mirror_images() {
    for (name, chiral) in [(FIXTURES[0], true), (FIXTURES[1], false)] {
        let (network, model) = (network(name, 0.0021), model(name));
        let mirror =
            |x: &[f64]| x.iter().enumerate().map(|(i, x)| if i % 3 == 1 { -x } else { *x }).collect();
        let x = start(&model);
        let (energy, score) = energy_and_score(&network, &x, model.start_cell());
        let mirrored: Vec<f64> = mirror(&x);
        let cell = model.start_cell().map(|c| Cell::new(c.vectors().map(|v| [v[0], -v[1], v[2]])).unwrap());
        let (other, other_score) = energy_and_score(&network, &mirrored, cell.as_ref());
        let difference = (other - energy).abs();
        assert_eq!(difference > 1e-3, chiral, "{name}: {energy} {other}");
        if !chiral {
            assert!(difference < 1e-10 * energy.abs());
            assert!(largest_error(&other_score, &mirror(&score)) < 1e-9);
        }
    }
}

/// Particles in another order, through `for_species`.
#[test]
fn permuted_particles_have_permuted_scores() {
    for name in FIXTURES {
        let model = model(name);
        let (x, cell, n) = (start(&model), model.start_cell(), model.n_particles());
        let order: Vec<usize> = (0..n).map(|i| (5 * i + 3) % n).collect();
        let species: Vec<&str> = order.iter().map(|i| model.metadata().particles[*i].species()).collect();
        let permuted_model = model.for_species(&species).unwrap();
        let permute = |x: &[f64]| -> Vec<f64> {
            order.iter().flat_map(|i| x[3 * i..3 * i + 3].iter().copied()).collect()
        };
        let (score, energy, _) = evaluate(&model, &x, cell);
        let (permuted, permuted_energy, _) = evaluate(&permuted_model, &permute(&x), cell);
        assert!(largest_error(&permuted, &permute(&score)) < 2e-6);
        assert!((permuted_energy[0] - energy[0]).abs() < 2e-6 * energy[0].abs());
        let masses = permuted_model.masses().unwrap();
        assert_eq!(masses[0], model.masses().unwrap()[order[0]]);
    }
}

/// Images of particles, and whole copies of the cell, change nothing.
#[test]
fn images_are_alike() {
    let name = FIXTURES[1];
    let (network, model) = (network(name, 0.0021), model(name));
    let (x, cell) = (start(&model), model.start_cell().unwrap());
    let (energy, score) = energy_and_score(&network, &x, Some(cell));
    let shifted: Vec<f64> = x
        .as_chunks::<3>()
        .0
        .iter()
        .enumerate()
        .flat_map(|(i, x)| {
            let t = cell.translation([i as i32 % 5 - 2, 3 - i as i32 % 4, i as i32 % 3]);
            [x[0] + t[0], x[1] + t[1], x[2] + t[2]]
        })
        .collect();
    let (images, images_score) = energy_and_score(&network, &shifted, Some(cell));
    assert!((images - energy).abs() < 1e-10 * energy.abs());
    assert!(largest_error(&images_score, &score) < 1e-9);
    // Twice the cell, twice the energy.
    let [a, b, c] = *cell.vectors();
    let double = Cell::new([a, b.map(|x| 2.0 * x), c]).unwrap();
    let mut both = x.clone();
    both.extend(x.iter().enumerate().map(|(i, x)| x + b[i % 3]));
    let species: Vec<&str> = model.metadata().particles.iter().map(|p| p.species()).collect();
    let doubled = network.with_particles(&[&species[..], &species[..]].concat()).unwrap();
    let (twice, twice_score) = energy_and_score(&doubled, &both, Some(&double));
    assert!((twice - 2.0 * energy).abs() < 1e-10 * energy.abs());
    assert!(largest_error(&twice_score[..x.len()], &score) < 1e-9);
}

/// Bits do not depend on the rest of the batch, nor on when the neighbours were listed.
#[test]
fn bits_do_not_depend_on_batch_or_history() {
    for name in FIXTURES {
        let model = model(name);
        let n = 3 * model.n_particles();
        let cell = model.start_cell();
        let x: Vec<f64> = (0..7 * n)
            .map(|i| model.start_positions()[i % (2 * n)] + 0.01 * normals(4, 0, i as u32, 2)[0] as f64)
            .collect();
        let (batch, energies, virials) = evaluate(&model, &x, cell);
        let mut scratch = Scratch::default();
        for (f, x) in x.chunks_exact(n).enumerate() {
            // The list of this scratch stems from an earlier frame wherever it is still good.
            let (mut s, mut e, mut w) = (vec![0.0; n], [0.0], [0.0; 9]);
            let outputs = Outputs { scores: &mut s, energies: Some(&mut e), virials: Some(&mut w) };
            model.score().evaluate(Frames { positions: x, cell }, outputs, &mut scratch).unwrap();
            assert_eq!(s, batch[f * n..][..n]);
            assert_eq!(e[0], energies[f]);
            assert_eq!(w, virials[9 * f..][..9]);
        }
    }
}

fn options(n_replicas: usize, n_threads: usize) -> Options {
    Options {
        step_size: StepSize::EffectiveStep(1e-8),
        allow_unstable: true,
        n_replicas,
        n_threads,
        seed: 77,
        ..Options::default()
    }
}

#[test]
fn same_seed_same_trajectory_and_checkpoints_continue() {
    for name in FIXTURES {
        let model = model(name);
        let n = 3 * model.n_particles();
        let mut many = simulation(&model, options(6, 2));
        many.step(300).unwrap();
        let mut one = simulation(&model, options(1, 1));
        one.step(120).unwrap();
        let checkpoint = one.checkpoint();
        one.step(180).unwrap();
        assert_eq!(one.positions(), &many.positions()[..n]);
        let mut other = simulation(&model, options(1, 1));
        other.restore(&checkpoint).unwrap();
        other.step(180).unwrap();
        assert_eq!(one.positions(), other.positions());
    }
}

#[test]
fn cells_are_checked() {
    let (open, periodic) = (model(FIXTURES[0]), model(FIXTURES[1]));
    let mut s = simulation(&open, options(1, 1));
    let cell = periodic.start_cell().unwrap().clone();
    let error = s.set_cell(Some(cell.clone())).unwrap_err().to_string();
    assert!(error.contains("open space") && error.contains("1.1299"), "{error}");
    let mut s = simulation(&periodic, options(1, 1));
    assert!(s.set_cell(None).unwrap_err().to_string().contains("none was given"));
    let small = Cell::rectangular([1.3, 1.05, 1.4]).unwrap();
    let error = s.set_cell(Some(small)).unwrap_err().to_string();
    assert!(error.contains("1.05") && error.contains("1.1 nm"), "{error}");
    assert_eq!(s.cell(), Some(&cell));
    // Another system has no cell until it is given one, and a checkpoint belongs to its cell.
    let pair = Arc::new(periodic.for_species(&["C", "N"]).unwrap());
    let mut s = simulation(&pair, options(1, 1));
    s.set_positions(&[0.0, 0.0, 0.0, 0.31, 0.0, 0.0]).unwrap();
    assert!(s.step(1).unwrap_err().to_string().contains("none was given"));
    s.set_cell(Some(cell)).unwrap();
    s.step(1).unwrap();
    let checkpoint = s.checkpoint();
    s.set_cell(Some(Cell::rectangular([1.3, 1.3, 1.4]).unwrap())).unwrap();
    assert!(s.restore(&checkpoint).unwrap_err().to_string().contains("belongs to another model"));
}

#[test]
fn unknown_species_are_named() {
    let model = model(FIXTURES[0]);
    let error = model.for_species(&["C", "C", "Xe"]).err().unwrap().to_string();
    assert!(error.contains("particle 2 is 'Xe'") && error.contains("C, N, CG1"), "{error}");
    assert!(
        common::network().for_species(&["C"]).err().unwrap().to_string().contains("cannot be given others")
    );
}

/// Eight copies of the periodic fixture's cell, jiggled, and the cell around them.
fn eight_cells(model: &Model) -> (Arc<Model>, Vec<f64>, Cell) {
    let cell = model.start_cell().unwrap();
    let x = start(model);
    let mut all = Vec::new();
    for n in 0..8 {
        let t = cell.translation([n & 1, n >> 1 & 1, n >> 2]);
        all.extend(x.iter().enumerate().map(|(i, x)| x + t[i % 3]));
    }
    for (i, x) in all.iter_mut().enumerate() {
        *x += 0.01 * normals(9, 0, i as u32, 3)[0] as f64;
    }
    let own: Vec<&str> = model.metadata().particles.iter().map(|p| p.species()).collect();
    let whole = model.for_species(&own.repeat(8)).unwrap();
    (Arc::new(whole), all, Cell::new(cell.vectors().map(|v| v.map(|x| 2.0 * x))).unwrap())
}

/// The threads of a frame that is shared out over them do not show in its bits.
#[test]
fn large_frames_have_the_same_bits_on_any_number_of_threads() {
    let (model, x, cell) = eight_cells(&model(FIXTURES[1]));
    assert!(model.n_particles() > 128);
    let positions: Vec<Vec<f64>> = [1, 2, 3]
        .into_iter()
        .map(|n_threads| {
            let mut s = simulation(&model, options(1, n_threads));
            s.set_cell(Some(cell.clone())).unwrap();
            s.set_positions(&x).unwrap();
            s.step(20).unwrap();
            s.positions().to_vec()
        })
        .collect();
    assert_ne!(positions[0], x);
    assert_eq!(positions[0], positions[1]);
    assert_eq!(positions[0], positions[2]);
}

/// Numbers of the particles of slab `part` of `n_parts`, in no order, and of the others that have an image within `reach` of one.
fn slab(x: &[f64], cell: &Cell, reach: f64, part: usize, n_parts: usize) -> (Vec<u32>, usize) {
    let particles = x.as_chunks::<3>().0;
    let is_own = |x: [f64; 3]| (cell.fractional(cell.wrap(x))[0] * n_parts as f64) as usize == part;
    let (mut own, others): (Vec<u32>, Vec<u32>) =
        (0..particles.len() as u32).partition(|i| is_own(particles[*i as usize]));
    own.sort_by_key(|i| i * 37 % 101);
    let n_owned = own.len();
    let near = |i: u32, j: u32| {
        let d = std::array::from_fn(|c| particles[i as usize][c] - particles[j as usize][c]);
        cell.minimum_image(d).iter().map(|d| d * d).sum::<f64>() < reach * reach
    };
    let near_others: Vec<u32> =
        others.into_iter().rev().filter(|i| own.iter().any(|j| near(*i, *j))).collect();
    own.extend(near_others);
    (own, n_owned)
}

/// Where domains that run at the same time find each other's rows.
struct Board {
    rows: Mutex<Vec<f32>>,
    barrier: Barrier,
}

impl Board {
    /// Rows of `width` numbers of particles `ids`, of which the first `n_owned` are known.
    fn exchange(&self, ids: &[u32], n_owned: usize, rows: &mut [f32], width: usize) {
        let at = |i: u32| i as usize * width..(i as usize + 1) * width;
        let (own, others) = rows.split_at_mut(n_owned * width);
        for (i, row) in ids.iter().zip(own.chunks_exact(width)) {
            self.rows.lock().unwrap()[at(*i)].copy_from_slice(row);
        }
        self.barrier.wait();
        for (i, row) in ids[n_owned..].iter().zip(others.chunks_exact_mut(width)) {
            row.copy_from_slice(&self.rows.lock().unwrap()[at(*i)]);
        }
        self.barrier.wait();
    }
}

/// Scores, energies, virials and steps of domains have the bits of the whole, also where one has nothing, and on several threads.
#[test]
fn domains_are_parts_of_the_whole() {
    for adapter in [Adapter::LeimkuhlerMatthews, Adapter::Langevin] {
        for n_threads in [1, 3] {
            domains_with(adapter, n_threads);
        }
    }
    assert!(Domain::new(&common::network(), &["C"], None).is_err());
    for (refused, words) in [
        (
            Options { adapter: Adapter::Heun, ..options(1, 1) },
            "LeimkuhlerMatthews, EulerMaruyama or Langevin",
        ),
        (Options { sampler: Sampler::TimeParallel, ..options(1, 1) }, "sequential sampler"),
        (Options { device: "cuda".into(), ..options(1, 1) }, "CPU only"),
        (options(2, 1), "one replica"),
    ] {
        let error = Domain::new(&model(FIXTURES[1]), &["C"], Some(refused)).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    }
    // What an exchange fails with, and a cell that was forgotten.
    let mut domain = Domain::new(&model(FIXTURES[1]), &["C"], None).unwrap();
    domain.set_particles(&[0, 0], &[3, 1], 1).unwrap();
    let mut fails = |_: &mut [f32], _| Err(Error::Callback("seven".into()));
    let (x, mut scores) = ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.0; 3]);
    let mut failure = |domain: &mut Domain| {
        domain.evaluate(&x, &mut fails, &mut scores, None, None).unwrap_err().to_string()
    };
    assert!(failure(&mut domain).contains("none was given"));
    domain.set_cell(Some(Cell::rectangular([1.3, 1.7, 1.9]).unwrap())).unwrap();
    assert_eq!(failure(&mut domain), "seven");
    let error = domain.set_particles(&[0, 0, 0], &[3, 1, 3], 1).unwrap_err().to_string();
    assert!(error.contains("particle id 3 is there twice"), "{error}");
}

fn domains_with(adapter: Adapter, n_threads: usize) {
    let mut options = options(1, n_threads);
    options.adapter = adapter;
    if adapter == Adapter::Langevin {
        options.step_size = StepSize::TimeStep(0.0017);
        options.mobility = Some(Mobility::FrictionRate(3.1));
    }
    let file = model(FIXTURES[1]);
    let (model, mut x, cell) = eight_cells(&file);
    let known = |name: &str| if name == "C" { 0 } else { 1 };
    let types: Vec<u32> = model.metadata().particles.iter().map(|p| known(p.species())).collect();
    let mut whole = simulation(&model, options.clone());
    whole.set_cell(Some(cell.clone())).unwrap();
    whole.set_positions(&x).unwrap();
    let has_velocities = adapter == Adapter::Langevin;
    let mut velocities = if has_velocities { whole.velocities().unwrap().to_vec() } else { Vec::new() };
    const PARTS: usize = 3;
    let mut domains: Vec<Domain> = (0..=PARTS) // and one that owns nothing
        .map(|_| {
            let mut domain = Domain::new(&file, &["C", "N"], Some(options.clone())).unwrap();
            domain.set_cell(Some(cell.clone())).unwrap();
            domain
        })
        .collect();
    let reach = domains[0].reach();
    assert_eq!(reach, 0.55);
    let widest = domains[0].exchange_width();
    let board = Board { rows: Mutex::new(vec![0.0; widest * types.len()]), barrier: Barrier::new(PARTS + 1) };
    for step in 0..4 {
        let (scores, energies, virial) = evaluate(&model, &x, Some(&cell));
        let parts: Vec<_> = (0..PARTS).map(|d| slab(&x, &cell, reach, d, PARTS)).collect();
        let nothing = (Vec::new(), 0);
        let found: Vec<_> = std::thread::scope(|scope| {
            let evaluate = |(domain, (ids, n_owned)): (&mut Domain, &(Vec<u32>, usize))| {
                let of = |i: &u32| types[*i as usize];
                domain.set_particles(&ids.iter().map(of).collect::<Vec<_>>(), ids, *n_owned).unwrap();
                let at: Vec<f64> = ids.iter().flat_map(|i| x.as_chunks::<3>().0[*i as usize]).collect();
                let (mut s, mut e) = (vec![f64::NAN; 3 * n_owned], vec![f64::NAN; *n_owned]);
                let mut w = vec![[f64::NAN; 9]; *n_owned];
                let mut n_exchanges = 0;
                let mut exchange = |rows: &mut [f32], width: usize| {
                    n_exchanges += 1;
                    assert!(width <= widest && rows.len() == width * ids.len());
                    board.exchange(ids, *n_owned, rows, width);
                    Ok(())
                };
                domain.evaluate(&at, &mut exchange, &mut s, Some(&mut e), Some(&mut w)).unwrap();
                assert_eq!(n_exchanges, 5, "of three blocks");
                (s, e, w)
            };
            let running: Vec<_> = domains
                .iter_mut()
                .zip(parts.iter().chain([&nothing]))
                .map(|both| scope.spawn(move || evaluate(both)))
                .collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let (mut all_energies, mut all_virials) =
            (vec![f64::NAN; types.len()], vec![[f64::NAN; 9]; types.len()]);
        for ((ids, n_owned), (s, e, w)) in parts.iter().zip(&found) {
            assert!(0 < *n_owned && *n_owned < types.len() && *n_owned < ids.len());
            for (k, i) in ids[..*n_owned].iter().map(|i| *i as usize).enumerate() {
                assert_eq!(s[3 * k..][..3], scores[3 * i..][..3]);
                (all_energies[i], all_virials[i]) = (e[k], w[k]);
            }
        }
        // The core adds them up in this order.
        assert_eq!(all_energies.iter().sum::<f64>(), energies[0]);
        let sum = |k: usize| all_virials.iter().fold(0.0, |sum, w| sum + w[k]);
        assert_eq!((0..9).map(sum).collect::<Vec<_>>(), virial);
        for ((domain, (ids, n_owned)), (s, ..)) in domains.iter_mut().zip(&parts).zip(&found) {
            let own = &ids[..*n_owned];
            let of = |array: &[f64]| -> Vec<f64> {
                own.iter().flat_map(|i| array.iter().skip(3 * *i as usize).take(3).copied()).collect()
            };
            let (mut moved, mut own_velocities) = (of(&x), of(&velocities));
            domain.step(step, s, None, &mut moved, &mut own_velocities).unwrap();
            for (i, to) in own.iter().zip(own_velocities.as_chunks::<3>().0) {
                velocities[3 * *i as usize..][..3].copy_from_slice(to);
            }
            for (i, to) in own.iter().zip(moved.as_chunks::<3>().0) {
                x[3 * *i as usize..][..3].copy_from_slice(to);
            }
        }
        whole.step(1).unwrap();
        assert_eq!(x, whole.positions());
    }
}
