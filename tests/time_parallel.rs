//! The time-parallel sampler gives the sequential trajectory of the same seed (theory 12).

mod common;

use common::{analytic, cliff, network, simulation};
use diffusim::adapter::Adapter;
use diffusim::error::Error;
use diffusim::model::Model;
use diffusim::sampler::{Jacobian, Options, Sampler, Simulation, StepSize};
use diffusim::schedule::{End, NoiseSchedule, SpringSchedule, TemperatureSchedule};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn ala2() -> Arc<Model> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/ala2/ala2.safetensors");
    Arc::new(Model::load(&path, None).unwrap())
}

fn cluster() -> Arc<Model> {
    analytic(
        "lennard-jones-cluster",
        13,
        290.0,
        json!({"well_depth": 1.0, "minimum_distance": 1.0, "stiffness": 0.9}),
    )
}

/// Corners and centre of an icosahedron: the ground state, at distance `r` from the centre.
fn icosahedron(r: f64) -> Vec<f64> {
    let golden = (1.0 + 5f64.sqrt()) / 2.0;
    let scale = r / (1.0 + golden * golden).sqrt();
    let mut x = vec![0.0; 3];
    for a in [-scale, scale] {
        for b in [-golden * scale, golden * scale] {
            x.extend([[0.0, a, b], [a, b, 0.0], [b, 0.0, a]].as_flattened());
        }
    }
    x
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Trajectories of both samplers from the same frame; the largest difference, the sequential simulation and the other.
fn compare(
    model: &Arc<Model>,
    options: Options,
    start: Option<&[f64]>,
    n: u64,
) -> (f64, Simulation, Simulation) {
    let (mut one, mut other) = (simulation(model, sequential(&options)), simulation(model, options));
    if let Some(start) = start {
        let all = start.repeat(one.options().n_replicas);
        one.set_positions(&all).unwrap();
        other.set_positions(&all).unwrap();
    }
    let mut worst: f64 = 0.0;
    for _ in 0..n.div_ceil(100) {
        one.step(100).unwrap();
        other.step(100).unwrap();
        worst = worst.max(largest_difference(one.positions(), other.positions()));
    }
    assert_eq!(one.step_count(), other.step_count());
    (worst, one, other)
}

fn options(tau: f64) -> Options {
    Options {
        step_size: StepSize::EffectiveStep(tau),
        seed: 0x5eed_0042,
        allow_unstable: true,
        n_threads: 1,
        sampler: Sampler::TimeParallel,
        tolerance: Some(1e-3 * (2.0 * tau).sqrt()),
        ..Options::default()
    }
}

/// The same, one frame after the other.
fn sequential(options: &Options) -> Options {
    Options {
        sampler: Sampler::Sequential,
        jacobian: Jacobian::Auto,
        window: None,
        tolerance: None,
        ..options.clone()
    }
}

const ADAPTERS: [Adapter; 2] = [Adapter::EulerMaruyama, Adapter::LeimkuhlerMatthews];
const JACOBIANS: [Jacobian; 3] = [Jacobian::Identity, Jacobian::Diagonal, Jacobian::Dense];

/// Where noise brings trajectories together, and over a few relaxation times of the cluster, where it drives them apart
/// (Lyapunov exponent 5.8 per unit of τ), frames agree to some tolerances; sweeps advance by more than one step.
#[test]
fn same_trajectory_within_the_tolerance() {
    let well = analytic("harmonic", 3, 290.0, json!({"stiffness": 41.0}));
    let double_well =
        analytic("double-well", 2, 290.0, json!({"barrier": 3.1, "half_width": 0.7, "stiffness": 23.0}));
    let mueller_brown = analytic("mueller-brown", 1, 290.0, json!({"kT": 23.0}));
    let start = icosahedron(0.95);
    let cases = [
        ("harmonic", well, 1.3e-3, None, 2000),
        ("double well", double_well, 3.7e-4, None, 2000),
        ("Müller–Brown", mueller_brown, 7e-4, Some(&[-0.55, 1.4, 0.3][..]), 2000),
        ("Lennard-Jones cluster", cluster(), 1.1e-4, Some(&start[..]), 1000),
        ("random network", network(), 2.3e-7, None, 600),
        ("alanine dipeptide", ala2(), 8.2e-7, None, 400),
    ];
    for (name, model, tau, start, n) in &cases {
        for adapter in ADAPTERS {
            for jacobian in JACOBIANS {
                for window in [7, 64] {
                    let options = Options { adapter, jacobian, window: Some(window), ..options(*tau) };
                    let tolerance = options.tolerance.unwrap();
                    let (worst, _, other) = compare(model, options, *start, *n);
                    let sweeps = other.statistics().sweeps;
                    println!(
                        "{name}, {adapter:?}, {jacobian:?}, window {window}: off by {:.2} tolerances, {:.2} steps per sweep, \
                         {:.1} evaluations per step",
                        worst / tolerance,
                        sweeps.steps_per_sweep().unwrap(),
                        sweeps.evaluations_per_step().unwrap()
                    );
                    assert!(worst < 10.0 * tolerance);
                    assert!(sweeps.steps >= *n && sweeps.steps <= *n + window as u64);
                    assert!(
                        sweeps.evaluations == window as u64 * sweeps.sweeps && sweeps.rounds == sweeps.sweeps
                    );
                    assert!(sweeps.steps_per_sweep().unwrap() > 1.2);
                }
            }
        }
    }
}

/// Nothing but frames that did not change by a bit is accepted: every sweep still brings one, whatever it knows of the slope.
#[test]
fn tolerance_zero_is_the_sequential_trajectory_bit_for_bit() {
    let start = icosahedron(0.95);
    for (model, tau, start) in
        [(cluster(), 2.1e-4, Some(&start[..])), (ala2(), 8.2e-7, None), (network(), 2.3e-7, None)]
    {
        for adapter in ADAPTERS {
            for jacobian in JACOBIANS {
                let options = Options {
                    adapter,
                    jacobian,
                    tolerance: Some(0.0),
                    window: Some(13),
                    n_replicas: 2,
                    ..options(tau)
                };
                let (worst, one, other) = compare(&model, options, start, 100);
                assert_eq!(worst, 0.0, "{adapter:?} {jacobian:?}");
                let (one, other) = (one.statistics(), other.statistics());
                assert!(other.sweeps.steps >= other.sweeps.sweeps && other.sweeps.rounds <= 2 * 100);
                assert!(one.sweeps.rounds == 0 && one.score_evaluations == 200);
                assert_eq!(other.score_evaluations, other.sweeps.evaluations);
            }
        }
    }
    // Picard's sweeps get to the bits of a network, whose single precision does not see the last ones of a position.
    let options = Options { jacobian: Jacobian::Identity, tolerance: Some(0.0), ..options(2.3e-7) };
    let (worst, _, other) = compare(&network(), options, None, 400);
    let per_sweep = other.statistics().sweeps.steps_per_sweep().unwrap();
    println!("to the last bit: {per_sweep} steps per sweep");
    assert!(worst == 0.0 && per_sweep > 5.0);
}

/// What a replica does depends on itself alone: not on other replicas, threads, or where calls end.
#[test]
fn same_seed_same_trajectory_however_it_is_computed() {
    let model = ala2();
    let options = Options { n_replicas: 3, window: Some(20), ..options(8.2e-7) };
    let mut reference = simulation(&model, options.clone());
    reference.step(150).unwrap();
    let mut sliced = simulation(&model, Options { n_threads: 3, ..options.clone() });
    for n in [1, 1, 1, 58, 0, 3, 86] {
        sliced.step(n).unwrap();
    }
    assert_eq!(sliced.positions(), reference.positions());
    let rounds = |s: &Simulation| s.statistics().sweeps.rounds;
    assert!(rounds(&sliced) <= rounds(&reference) + 3, "{} {}", rounds(&sliced), rounds(&reference));
    let mut alone = simulation(&model, Options { n_replicas: 1, first_replica: 2, ..options.clone() });
    alone.step(150).unwrap();
    assert_eq!(alone.positions(), &reference.positions()[60..]);
}

#[test]
fn checkpoints_continue_bit_for_bit() {
    for jacobian in JACOBIANS {
        let options = Options { n_replicas: 2, jacobian, ..options(8.2e-7) };
        let mut straight = simulation(&ala2(), options.clone());
        straight.step(37).unwrap();
        let bytes = straight.checkpoint();
        assert_eq!(bytes.len(), straight.checkpoint_size());
        straight.step(61).unwrap();

        let mut resumed = simulation(&ala2(), options.clone());
        resumed.step(5).unwrap();
        resumed.restore(&bytes).unwrap();
        assert_eq!(resumed.step_count(), 37);
        resumed.step(61).unwrap();
        assert_eq!(resumed.positions(), straight.positions());
        assert_eq!(resumed.checkpoint(), straight.checkpoint());

        for other in [
            Options { window: Some(63), ..options.clone() },
            Options { tolerance: Some(2e-6), ..options.clone() },
            sequential(&options),
        ] {
            let error = simulation(&ala2(), other).restore(&bytes).unwrap_err();
            assert!(matches!(&error, Error::InvalidCheckpoint(t) if t.contains("other settings")), "{error}");
        }
    }
}

/// Everything a step depends on is that of its number: schedules, temperature, masses, ids.
#[test]
fn schedules_frozen_particles_and_mobilities() {
    let model = ala2();
    let base = options(4.1e-7);
    let mut masses: Vec<f64> = (0..10).map(|i| 11.0 + i as f64).collect();
    masses[3] = 0.0;
    let friction = diffusim::schedule::Mobility::FrictionRate(31.0);
    let fixed = diffusim::schedule::Mobility::Diffusion((0..10).map(|i| 0.01 + 0.001 * i as f64).collect());
    let hot_to_cold: Vec<f64> = (0..150).map(|i| 390.0 - i as f64).collect();
    let temperatures = TemperatureSchedule::given(hot_to_cold, End::Hold).unwrap();
    let factors: Vec<f64> = (0..37).map(|i| 1.0 + 0.03 * i as f64).collect();
    for options in [
        Options { masses: Some(masses.clone()), mobility: Some(friction), ..base.clone() },
        Options { mobility: Some(fixed), temperature_schedule: Some(temperatures), ..base.clone() },
        Options {
            spring_schedule: SpringSchedule::given(factors.clone(), End::Cycle).unwrap(),
            noise_schedule: NoiseSchedule::given(vec![1.3, 0.4, 0.8], End::Cycle).unwrap(),
            particle_ids: Some((0..10).map(|i| 97 - 3 * i).collect()),
            ..base.clone()
        },
    ] {
        for jacobian in JACOBIANS {
            let options = Options { jacobian, n_replicas: 2, ..options.clone() };
            let tolerance = options.tolerance.unwrap();
            let (worst, one, other) = compare(&model, options, None, 300);
            println!("{jacobian:?}: off by {:.2} tolerances", worst / tolerance);
            assert!(worst < 5.0 * tolerance);
            assert!(
                one.dynamics().particles[3].effective_step > 0.0
                    || one.positions()[9..12] == other.positions()[9..12]
            );
            assert!(other.statistics().sweeps.steps_per_sweep().unwrap() > 1.2);
        }
    }
}

/// Where the sequential sampler fails, so does the other: with its sentence, at its step, keeping its frame.
#[test]
fn runaways_stop_as_they_do_sequentially() {
    for bad in [f64::NAN, f64::INFINITY, 1e9] {
        for n in [1, 7, 1000] {
            let options = Options { n_replicas: 3, tolerance: Some(0.0), window: Some(9), ..options(5e-5) };
            let [one, other] = [sequential(&options), options].map(|options| {
                let mut s = simulation(&cliff(bad), options);
                let start: Vec<f64> = (0..18).map(|i| 0.02 * i as f64).collect();
                s.set_positions(&start).unwrap();
                let error = loop {
                    if let Err(error) = s.step(n) {
                        break error;
                    }
                };
                let again = s.step(n);
                (error, again.err(), s.step_count(), s.positions().to_vec())
            });
            assert_eq!(one, other);
        }
    }
}

/// Guesses may leave the region that a score knows, and even fail it, where the trajectory itself does not.
#[test]
fn wild_guesses_do_no_harm() {
    for fails in [false, true] {
        let met = Arc::new(AtomicUsize::new(0));
        let counted = met.clone();
        let score = move |x: &[f64], s: &mut [f64], _: Option<&mut [f64]>| {
            for (x, s) in x.iter().zip(s) {
                if x.abs() > 0.5 {
                    counted.fetch_add(1, Ordering::Relaxed);
                    if fails {
                        return Err("out of range".into());
                    }
                }
                // A box with soft walls, which a guess does not see coming.
                *s = if x.abs() > 0.5 { f64::NAN } else { -4e4 * x.powi(3) * (x.abs() > 0.2) as u8 as f64 };
            }
            Ok(())
        };
        let model = Arc::new(Model::callback(2, 290.0, Box::new(score)).unwrap());
        let mut one = simulation(&model, sequential(&options(1e-4)));
        one.step(3000).unwrap();
        assert_eq!(met.load(Ordering::Relaxed), 0);
        let parallel = Options { window: Some(1500), ..options(1e-4) };
        let tolerance = parallel.tolerance.unwrap();
        let mut other = simulation(&model, parallel);
        other.step(3000).unwrap();
        let worst = largest_difference(one.positions(), other.positions());
        println!("{} wild frames, off by {:.2} tolerances", met.load(Ordering::Relaxed), worst / tolerance);
        assert!(met.load(Ordering::Relaxed) > 0 && worst < 10.0 * tolerance);
    }
    // Where the model fails on the trajectory itself, its own error ends the run.
    let fails = |_: &[f64], _: &mut [f64], _: Option<&mut [f64]>| Err("out of coffee".into());
    let model = Arc::new(Model::callback(2, 290.0, Box::new(fails)).unwrap());
    let mut s = simulation(&model, options(1e-4));
    assert_eq!(s.step(3).unwrap_err(), Error::Callback("out of coffee".into()));
    assert_eq!(s.step_count(), 0);
}

/// A bias is felt, and what was worked out without it is forgotten; so it is with new positions, steps and options.
#[test]
fn nothing_outdated_is_kept() {
    let model = ala2();
    let options =
        Options { tolerance: Some(0.0), jacobian: Jacobian::Dense, window: Some(6), ..options(8.2e-7) };
    let forces: Vec<f64> = (0..30).map(|i| 10.0 * (i as f64 - 11.0)).collect();
    let moved: Vec<f64> = model.start_positions()[30..60].to_vec();
    let [one, other] = [sequential(&options), options].map(|options| {
        let mut s = simulation(&model, options.clone());
        let mut seen = Vec::new();
        for _ in 0..3 {
            s.step(5).unwrap();
            s.step_biased(&forces).unwrap();
            seen.push(s.positions().to_vec());
        }
        s.step(5).unwrap();
        s.set_positions(&moved).unwrap();
        s.step(7).unwrap();
        seen.push(s.positions().to_vec());
        s.set_step_count(1234);
        s.step(7).unwrap();
        seen.push(s.positions().to_vec());
        s.reconfigure(Options { seed: 77, temperature: Some(331.0), ..options }).unwrap();
        s.step(7).unwrap();
        seen.push(s.positions().to_vec());
        seen
    });
    assert_eq!(one, other);
}

#[test]
fn the_last_step_number_is_not_overrun() {
    let well = analytic("harmonic", 2, 290.0, json!({"stiffness": 41.0}));
    let options = Options { tolerance: Some(0.0), ..options(1.3e-3) };
    let [one, other] = [sequential(&options), options].map(|options| {
        let mut s = simulation(&well, options);
        s.set_step_count(u64::MAX - 9);
        s.step(4).unwrap();
        s.step(5).unwrap();
        assert!(s.step(1).is_err() && s.step_count() == u64::MAX);
        s.positions().to_vec()
    });
    assert_eq!(one, other);
}

/// Auto compares counts, so that it decides alike on every machine with the same number of threads.
#[test]
fn auto_takes_what_pays() {
    let auto = |model: &Arc<Model>, options: Options| {
        let mut s = simulation(model, Options { sampler: Sampler::Auto, ..options });
        s.step(900).unwrap();
        s
    };
    let plain = |model: &Arc<Model>, options: Options| {
        let mut s = simulation(model, sequential(&options));
        s.step(900).unwrap();
        s
    };
    let well = analytic("harmonic", 3, 290.0, json!({"stiffness": 41.0}));
    // One thread, many replicas, or an adapter that windows do not know: sequential from the start.
    let one_thread = Options { n_threads: 1, ..options(1.3e-3) };
    let heun = Options { adapter: Adapter::Heun, n_threads: 8, ..options(1.3e-3) };
    let replicas = Options { n_replicas: 5, n_threads: 8, ..options(1.3e-3) };
    for options in [one_thread, heun, replicas] {
        let s = auto(&well, options.clone());
        assert_eq!(s.statistics().sweeps.rounds, 0);
        assert_eq!(s.positions(), plain(&well, options).positions());
    }
    // It pays for the well, not with Picard sweeps for stiff bonds, which then continue one by one.
    let eight = Options { n_threads: 8, ..options(1.3e-3) };
    let sweeps = auto(&well, eight).statistics().sweeps;
    assert!(sweeps.steps >= 900 && sweeps.sweeps < 100);
    let stiff =
        Options { n_threads: 8, jacobian: Jacobian::Identity, tolerance: Some(0.0), ..options(8.2e-7) };
    let s = auto(&ala2(), stiff.clone());
    assert_eq!(s.positions(), plain(&ala2(), stiff.clone()).positions());
    let sweeps = s.statistics().sweeps;
    assert!(sweeps.steps < 200 + 64, "{sweeps:?}");
    // Its decision belongs to a checkpoint.
    let mut resumed = simulation(&ala2(), Options { sampler: Sampler::Auto, ..stiff });
    resumed.restore(&s.checkpoint()).unwrap();
    resumed.step(50).unwrap();
    assert_eq!(resumed.statistics().sweeps.rounds, 0);
}

#[test]
fn what_cannot_be_done_is_one_clear_sentence() {
    let model = analytic("harmonic", 2, 290.0, json!({"stiffness": 30.0}));
    let (parallel, plain) = (options(1e-4), sequential(&options(1e-4)));
    let cases: [(&str, Options); 12] = [
        ("window is 0 frames; expected 2 or more", Options { window: Some(0), ..parallel.clone() }),
        ("window is 1 frames", Options { window: Some(1), ..parallel.clone() }),
        ("tolerance is -0.1 nm", Options { tolerance: Some(-0.1), ..parallel.clone() }),
        ("tolerance is NaN", Options { tolerance: Some(f64::NAN), ..parallel.clone() }),
        ("adapter Heun", Options { adapter: Adapter::Heun, ..parallel.clone() }),
        ("adapter Mala", Options { adapter: Adapter::Mala, ..parallel.clone() }),
        (
            "a window of 10000000000000 frames for 3 replicas of 2 particles takes 4",
            Options { window: Some(10_000_000_000_000), n_replicas: 3, ..parallel.clone() },
        ),
        ("do not fit into memory", Options { window: Some(usize::MAX), ..parallel.clone() }),
        ("window is 64 frames and the sampler is sequential", Options { window: Some(64), ..plain.clone() }),
        (
            "tolerance is 0.000001 nm and the sampler is sequential",
            Options { tolerance: Some(1e-6), ..plain.clone() },
        ),
        ("jacobian is Dense and the sampler", Options { jacobian: Jacobian::Dense, ..plain }),
        ("device 'cpu'", Options { device: "cuda:3".into(), ..parallel.clone() }),
    ];
    for (words, options) in cases {
        let error = Simulation::new(model.clone(), options.clone()).err().unwrap().to_string();
        assert!(error.contains(words), "expected '{words}' in: {error}");
        let mut other = simulation(&model, Options { n_replicas: options.n_replicas, ..self::options(1e-4) });
        let error = other.reconfigure(options).unwrap_err().to_string();
        assert!(error.contains(words), "expected '{words}' in: {error}");
    }
}
