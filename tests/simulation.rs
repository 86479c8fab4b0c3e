//! Reproducibility, checkpoints, guards and options of a simulation.

mod common;

use common::{ADAPTERS, analytic, cliff, network, simulation, with_adapter};
use diffusim::adapter::Adapter;
use diffusim::error::Error;
use diffusim::model::curvature::largest_curvature;
use diffusim::model::{Frames, Model};
use diffusim::sampler::{Options, Simulation, StepSize};
use diffusim::schedule::{End, Mobility, SpringSchedule, TemperatureSchedule};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn options() -> Options {
    Options {
        step_size: StepSize::EffectiveStep(2.3e-7),
        seed: 0xfeed_beef_0077,
        allow_unstable: true,
        ..Options::default()
    }
}

/// Positions and, with adapters that have them, velocities.
fn state(s: &Simulation) -> Vec<f64> {
    [s.positions(), s.velocities().unwrap_or(&[])].concat()
}

#[test]
fn same_seed_same_trajectory_however_it_is_computed() {
    let model = network();
    for adapter in ADAPTERS {
        let batch = with_adapter(adapter, Options { n_replicas: 37, ..options() });
        let mut reference = simulation(&model, batch.clone());
        reference.step(450).unwrap();
        assert!(reference.positions().iter().all(|x| x.is_finite()));

        for n_threads in [1, 3] {
            let mut other = simulation(&model, Options { n_threads, ..batch.clone() });
            for n in [1, 199, 3, 247] {
                other.step(n).unwrap();
            }
            assert_eq!(state(&other), state(&reference), "{adapter:?}, {n_threads} threads, other slices");
        }
        // One replica of the batch, alone.
        let n = 3 * model.n_particles();
        for replica in [0, 20, 36] {
            let mut alone =
                simulation(&model, Options { n_replicas: 1, first_replica: replica as u32, ..batch.clone() });
            alone.step(450).unwrap();
            assert_eq!(alone.positions(), &reference.positions()[replica * n..][..n]);
        }
        // A bias of zero is no bias.
        let mut biased = simulation(&model, batch.clone());
        let zero = vec![0.0; biased.positions().len()];
        if !adapter.takes_bias() {
            let error = biased.step_biased(&zero).unwrap_err().to_string();
            assert!(error.contains("at both ends of each step"), "{error}");
        } else {
            (0..450).for_each(|_| biased.step_biased(&zero).unwrap());
            assert_eq!(biased.positions(), reference.positions());
        }

        let mut other_seed = simulation(&model, Options { seed: 1234, ..batch });
        other_seed.step(450).unwrap();
        assert!(other_seed.positions().iter().zip(reference.positions()).all(|(a, b)| a != b));
    }
}

#[test]
fn noise_is_keyed_by_particle_id() {
    let model = analytic("free", 3, 290.0, json!({}));
    let run = |ids: Option<Vec<u32>>| {
        let mut s = simulation(&model, Options { particle_ids: ids, ..options() });
        s.step(9).unwrap();
        s.positions().to_vec()
    };
    let (plain, permuted) = (run(None), run(Some(vec![2, 0, 1])));
    for (i, id) in [2, 0, 1].into_iter().enumerate() {
        assert_eq!(permuted[3 * i..][..3], plain[3 * id..][..3]);
    }
}

#[test]
fn checkpoints_continue_bit_for_bit() {
    let model = network();
    for adapter in ADAPTERS {
        let options = with_adapter(adapter, Options { n_replicas: 5, ..options() });
        let mut straight = simulation(&model, options.clone());
        straight.step(123).unwrap();
        let bytes = straight.checkpoint();
        assert_eq!(bytes.len(), straight.checkpoint_size());
        straight.step(321).unwrap();

        let mut resumed = simulation(&model, options.clone());
        resumed.step(7).unwrap();
        resumed.restore(&bytes).unwrap();
        assert_eq!(resumed.step_count(), 123);
        resumed.step(321).unwrap();
        assert_eq!(state(&resumed), state(&straight));
        assert!(resumed.step_factors().eq(straight.step_factors()));

        let counted = |s: &Simulation| (s.statistics().acceptance, s.statistics().step_factor);
        assert_eq!(counted(&resumed), counted(&straight));
        assert_eq!(counted(&resumed).0.is_some(), adapter == Adapter::Mala);

        let before = state(&resumed);
        for (words, bytes) in [
            ("no diffusim checkpoint", b"nonsense".to_vec()),
            ("cut short", bytes[..bytes.len() - 1].to_vec()),
            ("damaged", bytes.iter().enumerate().map(|(i, b)| if i == 99 { b ^ 4 } else { *b }).collect()),
        ] {
            let error = resumed.restore(&bytes).unwrap_err();
            assert!(matches!(&error, Error::InvalidCheckpoint(t) if t.contains(words)), "{words}: {error}");
        }
        let mut other = simulation(&model, Options { temperature: Some(333.0), ..options });
        assert!(
            other.restore(&bytes).unwrap_err().to_string().contains("another model or to other settings")
        );
        assert_eq!(state(&resumed), before);
    }
}

/// Version 1 had no count of proposals: it is begun anew.
#[test]
fn checkpoints_of_the_first_version_are_read() {
    use sha2::{Digest, Sha256};
    let options = with_adapter(Adapter::Mala, Options { n_replicas: 2, ..options() });
    let mut straight = simulation(&network(), options.clone());
    straight.step(90).unwrap();
    let rewritten = |version: u8, cut: usize| {
        let mut bytes = straight.checkpoint();
        bytes[8] = version;
        bytes.truncate(bytes.len() - 32 - cut);
        let digest = Sha256::digest(&bytes);
        bytes.extend(digest);
        bytes
    };
    let (first, unknown) = (rewritten(1, 16), rewritten(3, 0));
    straight.step(50).unwrap();
    let mut resumed = simulation(&network(), options);
    resumed.restore(&first).unwrap();
    assert_eq!(resumed.statistics().acceptance, None);
    resumed.step(50).unwrap();
    assert_eq!(state(&resumed), state(&straight));
    let error = resumed.restore(&unknown).unwrap_err().to_string();
    assert!(error.contains("checkpoint version 3 is unknown; this library reads versions 1 to 2"), "{error}");
}

#[test]
fn runaways_stop_with_the_last_good_frame() {
    for bad in [f64::NAN, f64::INFINITY, 1e9] {
        for biased in [false, true] {
            let options = Options { step_size: StepSize::EffectiveStep(5e-5), n_replicas: 3, ..options() };
            let mut s = simulation(&cliff(bad), options);
            let zero = vec![0.0; 18];
            let error = loop {
                let outcome = if biased { s.step_biased(&zero) } else { s.step(1_000) };
                match outcome {
                    Ok(()) => assert!(s.step_count() < 100_000),
                    Err(error) => break error,
                }
            };
            let text = error.to_string();
            assert!(
                matches!(error, Error::NotFinite(_)) && text.contains("replica") && text.contains("particle"),
                "{text}"
            );
            assert!(text.contains(&format!("last good frame (step {})", s.step_count())), "{text}");
            // Good means: a score was computed there and was sound.
            assert!(s.positions().iter().all(|x| *x <= 1.7), "{bad} {biased}");
            assert!(s.positions().iter().any(|x| *x > 1.0));
        }
    }
}

#[test]
fn a_molecule_torn_apart_is_named() {
    let model = network();
    let mut torn = model.start_positions()[..15].to_vec();
    torn[0] += 40.0;
    let mut s = simulation(&model, Options { step_size: StepSize::EffectiveStep(0.5), ..options() });
    s.set_positions(&torn).unwrap();
    let text = s.step(5_000).unwrap_err().to_string();
    assert!(text.contains("bond") && text.contains("training data"), "{text}");
}

#[test]
fn callback_errors_stop_the_run() {
    let fails = |_: &[f64], _: &mut [f64], _: Option<&mut [f64]>| Err("out of coffee".into());
    let model = Arc::new(Model::callback(2, 290.0, Box::new(fails)).unwrap());
    let mut s = simulation(&model, options());
    assert_eq!(s.step(3).unwrap_err(), Error::Callback("out of coffee".into()));
}

#[test]
fn mass_zero_is_frozen() {
    let model = analytic("harmonic", 2, 290.0, json!({"stiffness": 30.0}));
    let masses = Some(vec![0.0, 7.7]);
    let mobility = Some(Mobility::FrictionRate(3.0));
    let mut s =
        simulation(&model, Options { masses, mobility, step_size: StepSize::TimeStep(1e-3), ..options() });
    s.set_positions(&[0.5; 6]).unwrap();
    s.step(10).unwrap();
    assert_eq!(s.positions()[..3], [0.5; 3]);
    assert!(s.positions()[3..].iter().all(|x| *x != 0.5));
}

/// Theory (3–5): every way to say the same step gives the same steps.
#[test]
fn spring_effective_step_and_time_step_agree() {
    let model = analytic("free", 2, 270.0, json!({}));
    let masses = vec![2.9, 11.3];
    let (temperature, rate, dt) = (Some(351.0), 4.3, 0.0037);
    let kt0 = diffusim::schedule::BOLTZMANN * 270.0;
    let tau = kt0 / (2.9 * rate) * dt;
    let make = |step_size, mobility| {
        let options = Options { temperature, masses: Some(masses.clone()), step_size, mobility, ..options() };
        simulation(&model, options).dynamics().clone()
    };
    let by_time = make(StepSize::TimeStep(dt), Some(Mobility::FrictionRate(rate)));
    assert!((by_time.effective_step / tau - 1.0).abs() < 1e-14);
    assert!((by_time.particles[1].effective_step / (kt0 / (11.3 * rate) * dt) - 1.0).abs() < 1e-14);
    let noise = (2.0 * tau).sqrt() * by_time.factors(3).1;
    assert!((noise / (2.0 * tau * 351.0 / 270.0).sqrt() - 1.0).abs() < 1e-14);
    for step_size in [StepSize::Spring(0.5 / tau), StepSize::EffectiveStep(tau)] {
        let other = make(step_size, Some(Mobility::FrictionRate(rate)));
        assert!((other.time_step.unwrap() / dt - 1.0).abs() < 1e-14);
        assert!(
            (other.particles[1].effective_step / by_time.particles[1].effective_step - 1.0).abs() < 1e-14
        );
    }
    // A diffusion coefficient is meant at the simulation's temperature: the noise has 2DΔt, the drift DΔt T₀/T.
    let d = 0.0123;
    let given = make(StepSize::TimeStep(dt), Some(Mobility::Diffusion(vec![d])));
    assert!(
        (given.particles[0].noise_amplitude * given.factors(0).1 / (2.0 * d * dt).sqrt() - 1.0).abs() < 1e-14
    );
    assert!(
        (given.particles[0].effective_step * given.factors(0).0 / (d * dt * 270.0 / 351.0) - 1.0).abs()
            < 1e-14
    );
    assert_eq!(given.time_step, Some(dt));
}

#[test]
fn schedules_scale_drift_and_noise() {
    let model = analytic("free", 1, 270.0, json!({}));
    let options = Options {
        spring_schedule: SpringSchedule::given(vec![1.0, 4.0], End::Hold).unwrap(),
        temperature_schedule: Some(TemperatureSchedule::given(vec![270.0, 540.0], End::Cycle).unwrap()),
        ..options()
    };
    let dynamics = simulation(&model, options).dynamics().clone();
    assert_eq!(dynamics.factors(0), (1.0, 1.0));
    assert_eq!(dynamics.factors(1), (0.25, 0.5f64.sqrt()));
    assert_eq!(dynamics.factors(2), (0.25, 0.5));
}

#[test]
fn wrong_options_are_one_clear_sentence() {
    let model = analytic("harmonic", 2, 290.0, json!({"stiffness": 30.0}));
    let cases: [(&str, Options); 15] = [
        ("n_threads is 5000", Options { n_threads: 5000, ..options() }),
        ("particle id 7 was given twice", Options { particle_ids: Some(vec![7, 7]), ..options() }),
        ("first_replica 4294967295", Options { first_replica: u32::MAX, ..options() }),
        ("recommends no step", Options { step_size: StepSize::Recommended, ..options() }),
        ("spring is -2", Options { step_size: StepSize::Spring(-2.0), ..options() }),
        ("needs a friction rate", Options { step_size: StepSize::TimeStep(0.1), ..options() }),
        ("temperature is 0", Options { temperature: Some(0.0), ..options() }),
        ("n_replicas is 0", Options { n_replicas: 0, ..options() }),
        ("do not fit into memory", Options { n_replicas: u32::MAX as usize, ..options() }),
        ("3 masses were given for 2", Options { masses: Some(vec![1.5; 3]), ..options() }),
        ("mass of particle 1 is -1", Options { masses: Some(vec![1.5, -1.0]), ..options() }),
        ("all particles are frozen", Options { masses: Some(vec![0.0; 2]), ..options() }),
        ("knows the masses of 0 of 2", Options { mobility: Some(Mobility::FrictionRate(2.0)), ..options() }),
        ("device 'cuda:77'", Options { device: "cuda:77".into(), ..options() }),
        ("device 'abacus' is unknown", Options { device: "abacus".into(), ..options() }),
    ];
    for (words, options) in cases {
        let model = if words.contains("memory") {
            analytic("free", 1 << 24, 290.0, json!({}))
        } else {
            model.clone()
        };
        let error = Simulation::new(model, options).err().unwrap().to_string();
        assert!(error.contains(words), "expected '{words}' in: {error}");
    }
    let mut s = simulation(&model, options());
    assert!(
        s.set_positions(&[0.1; 5])
            .unwrap_err()
            .to_string()
            .contains("expected 1 replicas × 2 particles × 3 = 6")
    );
    assert!(s.set_positions(&[f64::NAN; 6]).unwrap_err().to_string().contains("position of particle 0"));
    assert!(s.step_biased(&[0.1; 7]).unwrap_err().to_string().contains("forces holds 7"));
}

#[test]
fn a_spring_too_soft_is_refused_with_the_limit() {
    let mut description: serde_json::Value =
        serde_json::from_str(&common::description("harmonic", 2, 290.0, json!({"stiffness": 600.0})))
            .unwrap();
    description["largest_curvature"] = json!(600.0);
    description["recommended_effective_step"] = json!(6e-4);
    let model = Arc::new(Model::from_json(&description.to_string()).unwrap());
    let soft = Options { step_size: StepSize::Spring(149.0), allow_unstable: false, ..options() };
    let error = Simulation::new(model.clone(), soft.clone()).err().unwrap();
    assert!(
        matches!(error, Error::Unstable(_)) && error.to_string().contains("needs more than 150"),
        "{error}"
    );
    let firm = Options { step_size: StepSize::Spring(151.0), ..soft.clone() };
    Simulation::new(model.clone(), firm.clone()).unwrap();
    Simulation::new(model.clone(), Options { allow_unstable: true, ..soft }).unwrap();
    // A schedule that softens the spring later is seen at once.
    let later = SpringSchedule::given(vec![1.0, 0.9], End::Hold).unwrap();
    assert!(Simulation::new(model, Options { spring_schedule: later, ..firm }).is_err());
}

#[test]
fn reconfigure_keeps_positions_and_steps() {
    let model = network();
    let mut s = simulation(&model, Options { n_replicas: 2, ..options() });
    s.step(20).unwrap();
    let (before, largest) = (s.positions().to_vec(), s.statistics().largest_score);
    s.reconfigure(Options {
        n_replicas: 2,
        temperature: Some(411.0),
        adapter: Adapter::EulerMaruyama,
        ..options()
    })
    .unwrap();
    assert_eq!((s.positions(), s.step_count()), (&before[..], 20));
    assert_eq!(s.statistics().temperature, 411.0);
    assert!(s.statistics().largest_score == largest && largest > 0.0);
    assert!(
        s.reconfigure(Options { n_replicas: 3, ..options() })
            .unwrap_err()
            .to_string()
            .contains("cannot become 3")
    );
    let overflow = Options { n_replicas: 2, first_replica: u32::MAX - 1, ..options() };
    assert!(s.reconfigure(overflow).unwrap_err().to_string().contains("first_replica"));
    s.step(5).unwrap();
    assert_eq!(s.statistics().score_evaluations, 50);
}

/// Noise that was computed for a step that failed is not taken for that of another step.
#[test]
fn a_failed_step_leaves_no_noise_behind() {
    let options = Options { step_size: StepSize::EffectiveStep(5e-5), ..options() };
    let mut s = simulation(&cliff(f64::NAN), options);
    s.step(100).unwrap();
    let checkpoint = s.checkpoint();
    s.step(10).unwrap();
    let expected = s.positions().to_vec();
    s.set_step_count(500);
    s.set_positions(&[2.0; 6]).unwrap();
    s.step(1).unwrap_err();
    s.restore(&checkpoint).unwrap();
    s.step(10).unwrap();
    assert_eq!(s.positions(), expected);
}

/// However often a run fails at the same place, what is kept is a frame that has been seen to be good.
#[test]
fn failing_again_keeps_a_good_frame() {
    let options = Options { step_size: StepSize::EffectiveStep(5e-5), n_replicas: 2, ..options() };
    for n in [1, 7, 1000] {
        let mut s = simulation(&cliff(f64::NAN), options.clone());
        while s.step(n).is_ok() {}
        for _ in 0..5 {
            if s.step(n).is_err() {
                assert!(s.positions().iter().all(|x| *x <= 1.7), "{n}");
            }
        }
    }
}

/// Of several replicas that fail, the earliest decides what is reported and restored.
#[test]
fn the_earliest_failure_counts() {
    let score = |x: &[f64], s: &mut [f64], _: Option<&mut [f64]>| {
        x.iter().zip(s).for_each(|(x, s)| *s = if *x > 1.7 { f64::NAN } else { 40.0 });
        Ok(())
    };
    let model = Arc::new(Model::callback(1, 290.0, Box::new(score)).unwrap());
    let options =
        Options { step_size: StepSize::EffectiveStep(1e-3), n_replicas: 2, n_threads: 2, ..options() };
    let mut s = simulation(&model, options);
    s.set_positions(&[0.9, 0.9, 0.9, 1.3, 1.3, 1.3]).unwrap();
    let text = s.step(150).unwrap_err().to_string();
    assert!(text.contains("replica 1"), "{text}");
}

#[test]
fn a_bias_that_is_not_finite_is_named() {
    let mut s = simulation(&network(), options());
    let mut forces = vec![0.0; 15];
    forces[7] = f64::NAN;
    let text = s.step_biased(&forces).unwrap_err().to_string();
    assert!(text.contains("bias force on particle 2") && s.step_count() == 0, "{text}");
}

#[test]
fn the_last_step_number_is_not_overrun() {
    let mut s = simulation(&analytic("free", 1, 290.0, json!({})), options());
    s.set_step_count(u64::MAX);
    assert!(s.step_biased(&[0.0; 3]).unwrap_err().to_string().contains("exceed"));
    assert!(s.step(1).is_err());
    assert_eq!(s.step_count(), u64::MAX);
}

/// Wells of bounded curvature know theirs; of other models the curvature is asked for when a run fails.
#[test]
fn springs_too_soft_for_models_without_metadata_are_named_too() {
    let harmonic = analytic("harmonic", 2, 290.0, json!({"stiffness": 600.0}));
    let narrow = json!({"weight": 1.3, "mean": [[0.9, 0.2, -0.4]], "spread": [0.05, 0.08, 0.11]});
    let wide = json!({"weight": 2.1, "mean": [[-0.9, 0.1, 0.3]], "spread": [0.2, 0.3, 0.25]});
    let mixture = analytic("gaussian-mixture", 1, 290.0, json!({"components": [narrow, wide]}));
    assert_eq!(harmonic.metadata().largest_curvature, Some(600.0));
    let bound = mixture.metadata().largest_curvature.unwrap();
    assert!((bound - 400.0).abs() < 1e-9);
    let measured = |x: &[f64]| largest_curvature(&**mixture.score(), Frames::open(x)).unwrap();
    assert!((measured(&[0.9, 0.2, -0.4]) / bound - 1.0).abs() < 1e-5);
    assert!((measured(&[-0.9, 0.1, 0.3]) * 0.04 - 1.0).abs() < 1e-5);
    assert!(measured(&[0.1, 0.15, 0.0]) < bound);
    for (model, spring) in [(&harmonic, 149.0), (&mixture, 99.0)] {
        let soft = Options { step_size: StepSize::Spring(spring), allow_unstable: false, ..options() };
        assert!(matches!(Simulation::new(model.clone(), soft), Err(Error::Unstable(_))));
    }

    let spring = |x: &[f64], scores: &mut [f64], _: Option<&mut [f64]>| {
        scores.iter_mut().zip(x).for_each(|(s, x)| *s = -70.0 * x);
        Ok(())
    };
    let model = Arc::new(Model::callback(2, 290.0, Box::new(spring)).unwrap());
    let soft = Options { step_size: StepSize::EffectiveStep(0.03), n_replicas: 3, ..options() };
    let error = simulation(&model, soft.clone()).step(10_000).unwrap_err();
    let expected = "The spring 16.67 /nm² is too soft for the stiffest mode there (70 /nm²), which needs more than 17.5.";
    assert!(matches!(error, Error::NotFinite(_)) && error.to_string().ends_with(expected), "{error}");
    // Not where something else went wrong.
    let firm = Options { step_size: StepSize::EffectiveStep(0.02), ..soft };
    let error = simulation(&model, firm).step_biased(&[1e7; 18]).unwrap_err().to_string();
    assert!(
        error.ends_with(
            "Use a stiffer spring (a smaller time step), or start from a frame like the training data."
        ),
        "{error}"
    );
}

/// At fixed D a colder moment means a larger drift (theory 5), and β scales the step: both are seen by the stability check.
#[test]
fn stability_is_checked_over_whole_schedules() {
    let mut description: serde_json::Value =
        serde_json::from_str(&common::description("harmonic", 2, 300.0, json!({"stiffness": 600.0})))
            .unwrap();
    description["largest_curvature"] = json!(600.0);
    let model = Arc::new(Model::from_json(&description.to_string()).unwrap());
    let base =
        Options { step_size: StepSize::EffectiveStep(1.0 / 600.0), allow_unstable: false, ..options() };
    Simulation::new(model.clone(), base.clone()).unwrap();
    let beta = diffusim::schedule::NoiseSchedule::given(vec![1.0, 2.1], End::Hold).unwrap();
    assert!(Simulation::new(model.clone(), Options { noise_schedule: beta, ..base.clone() }).is_err());
    let annealing = TemperatureSchedule::given(vec![900.0, 140.0], End::Hold).unwrap();
    let at_fixed_diffusion = Options {
        temperature_schedule: Some(annealing.clone()),
        mobility: Some(Mobility::Diffusion(vec![0.4])),
        ..base.clone()
    };
    assert!(Simulation::new(model.clone(), at_fixed_diffusion).is_err());
    Simulation::new(model, Options { temperature_schedule: Some(annealing), ..base }).unwrap();
}

/// The sentence names the schedule, the value and the step it is for.
#[test]
fn schedules_without_values_or_with_bad_ones_are_refused() {
    for (values, words) in [
        (vec![], "schedule is empty; give at least one value"),
        (vec![300.0, -2.5], "has -2.5 at step 1; expected a positive number"),
        (vec![f64::NAN, 300.0], "has NaN at step 0; expected a positive number"),
    ] {
        let error = TemperatureSchedule::given(values.clone(), End::Hold).unwrap_err().to_string();
        assert!(error.contains("temperature") && error.contains(words), "{error}");
        let error = SpringSchedule::given(values, End::Cycle).unwrap_err().to_string();
        assert!(error.contains("spring") && error.contains(words), "{error}");
    }
}

/// k = 1/(2DΔt) with the D that was given, whatever the temperature; each particle may have its own.
#[test]
fn spring_of_a_given_diffusion_coefficient() {
    let model = analytic("free", 2, 270.0, json!({}));
    let spring = diffusim::schedule::spring_from_time_step(0.1, 0.02, 1.0).unwrap();
    let make = |step_size, mobility| {
        let options = Options { temperature: Some(405.0), step_size, mobility: Some(mobility), ..options() };
        simulation(&model, options)
    };
    let by_spring = make(StepSize::Spring(spring), Mobility::Diffusion(vec![0.005, 0.02]));
    assert!((by_spring.statistics().time_step.unwrap() / 0.1 - 1.0).abs() < 1e-14);
    let by_time = make(StepSize::TimeStep(0.1), Mobility::Diffusion(vec![0.005, 0.02]));
    let (drift, noise) = by_time.dynamics().factors(0);
    for (i, d) in [0.005, 0.02].into_iter().enumerate() {
        let particle = by_time.dynamics().particles[i];
        assert!((particle.noise_amplitude * noise / (2.0 * d * 0.1f64).sqrt() - 1.0).abs() < 1e-14);
        assert!((particle.effective_step * drift / (d * 0.1 / 1.5) - 1.0).abs() < 1e-14);
    }
    let drags = make(StepSize::TimeStep(0.1), Mobility::Drag(vec![31.0, 62.0]));
    assert_eq!(
        drags.dynamics().particles[0].effective_step,
        2.0 * drags.dynamics().particles[1].effective_step
    );
    let wrong = Options { mobility: Some(Mobility::Drag(vec![2.0; 3])), ..options() };
    assert!(Simulation::new(model, wrong).err().unwrap().to_string().contains("3 drags"));
}

#[test]
fn a_checkpoint_of_another_noise_level_is_refused() {
    let level =
        |sigma| Arc::new(Model::load(&common::fixture("distance_small.safetensors"), Some(sigma)).unwrap());
    let options = Options { step_size: StepSize::EffectiveStep(1e-9), ..options() };
    let bytes = simulation(&level(0.0021), options.clone()).checkpoint();
    assert!(simulation(&level(0.0022), options.clone()).restore(&bytes).is_err());
    simulation(&level(0.0021), options).restore(&bytes).unwrap();
}

#[test]
fn subsets_wait_for_positions() {
    let model = Arc::new(network().subset(8, &[6, 0, 3, 1, 4]).unwrap());
    let mut s = simulation(&model, options());
    assert!(s.step(1).unwrap_err().to_string().contains("set the positions first"));
    // A checkpoint brings them, if it has any.
    let without = s.checkpoint();
    let start = network().start_positions().to_vec();
    let mut placed = vec![0.7; 24];
    for (i, at) in [6, 0, 3, 1, 4].into_iter().enumerate() {
        placed[3 * at..][..3].copy_from_slice(&start[3 * i..][..3]);
    }
    s.set_positions(&placed).unwrap();
    s.step(3).unwrap();
    let mut resumed = simulation(&model, options());
    resumed.restore(&without).unwrap();
    assert!(resumed.step(1).unwrap_err().to_string().contains("set the positions first"));
    resumed.restore(&s.checkpoint()).unwrap();
    s.step(2).unwrap();
    resumed.step(2).unwrap();
    assert_eq!(resumed.positions(), s.positions());
}

#[test]
fn statistics_follow_the_schedules() {
    let model = analytic("free", 1, 270.0, json!({}));
    let options = Options {
        spring_schedule: SpringSchedule::given(vec![1.0, 4.0], End::Hold).unwrap(),
        temperature_schedule: Some(TemperatureSchedule::given(vec![540.0, 290.0], End::Hold).unwrap()),
        ..options()
    };
    let mut s = simulation(&model, options);
    s.step(3).unwrap();
    assert_eq!((s.statistics().temperature, s.statistics().effective_step), (290.0, 2.3e-7 / 4.0));
}

#[test]
fn frames_unlike_the_snapshots_are_refused() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/ala2/ala2.safetensors");
    let mut s = simulation(&Arc::new(Model::load(&path, None).unwrap()), Options::default());
    let good = s.positions().to_vec();
    let tenfold: Vec<f64> = good.iter().map(|x| 10.0 * x).collect();
    let mut swapped = good.clone(); // two carbons at the ends
    (0..3).for_each(|c| swapped.swap(c, 27 + c));
    for bad in [&tenfold, &swapped, &vec![0.0; 30]] {
        let error = s.set_positions(bad).unwrap_err();
        assert!(
            matches!(&error, Error::Mismatch(t) if t.contains("bond") && t.contains("snapshots")),
            "{error}"
        );
    }
    assert_eq!(s.positions(), good);
    s.set_positions(&good).unwrap();
}

/// A caller's function that writes no energies cannot decide a proposal.
#[test]
fn metropolis_refuses_a_model_without_energies() {
    let no_energies = |_: &[f64], s: &mut [f64], _: Option<&mut [f64]>| {
        s.fill(0.5);
        Ok(())
    };
    let model = Arc::new(Model::callback(2, 290.0, Box::new(no_energies)).unwrap());
    let mut s = simulation(&model, Options { adapter: Adapter::Mala, ..options() });
    let error = s.step(3).unwrap_err();
    assert!(matches!(&error, Error::Unsupported(t) if t.contains("Metropolis steps need one")), "{error}");
    assert_eq!(s.step_count(), 0);
}

/// Two particles in a harmonic well that fails once as many evaluations as the counter says are done.
fn failing_well() -> (Arc<Model>, Arc<AtomicUsize>) {
    let left = Arc::new(AtomicUsize::new(usize::MAX));
    let countdown = left.clone();
    let score = move |x: &[f64], s: &mut [f64], energies: Option<&mut [f64]>| {
        if countdown.fetch_sub(1, Ordering::Relaxed) == 0 {
            return Err("out of coffee".into());
        }
        x.iter().zip(s).for_each(|(x, s)| *s = -30.0 * x);
        let frames = energies.into_iter().flatten().zip(x.chunks_exact(6));
        frames.for_each(|(e, x)| *e = 15.0 * x.iter().map(|x| x * x).sum::<f64>());
        Ok(())
    };
    (Arc::new(Model::callback(2, 290.0, Box::new(score)).unwrap()), left)
}

/// Whatever steps were tried and failed, and by which adapter, a step finds the noise of its number.
#[test]
fn a_failed_run_leaves_the_noise_as_it_was() {
    let (model, left) = failing_well();
    let options = || Options { masses: Some(vec![2.3, 7.1]), ..options() };
    let mut undisturbed = simulation(&model, options());
    undisturbed.step(8).unwrap();
    for adapter in ADAPTERS {
        let mut s = simulation(&model, options());
        s.step(5).unwrap();
        s.reconfigure(with_adapter(adapter, options())).unwrap();
        left.store(4, Ordering::Relaxed);
        assert_eq!(s.step(10).unwrap_err(), Error::Callback("out of coffee".into()));
        left.store(usize::MAX, Ordering::Relaxed);
        assert_eq!((s.step_count(), s.statistics().acceptance), (5, None));
        s.reconfigure(options()).unwrap();
        s.step(3).unwrap();
        assert_eq!(s.positions(), undisturbed.positions(), "{adapter:?}");
    }
}

/// What a velocity is: drawn from the seed, known and set, none where the mass is 0, kept with the last good frame.
#[test]
fn velocities_are_state() {
    let masses = vec![2.3, 0.0, 15.9];
    let model = analytic("harmonic", 3, 283.0, json!({"stiffness": 30.0}));
    let of = |n_replicas, first_replica, seed| {
        let options = Options {
            masses: Some(masses.clone()),
            temperature: Some(331.0),
            n_replicas,
            first_replica,
            seed,
            ..options()
        };
        simulation(&model, with_adapter(Adapter::Langevin, options))
    };
    let mut s = of(4000, 0, 17);
    let drawn = s.velocities().unwrap().to_vec();
    let kt = diffusim::schedule::BOLTZMANN * 331.0;
    for (i, mass) in masses.iter().enumerate() {
        let squares: Vec<f64> =
            drawn.chunks_exact(9).map(|v| v[3 * i..][..3].iter().map(|v| v * v).sum::<f64>() / 3.0).collect();
        match *mass {
            0.0 => assert!(squares.iter().all(|v| *v == 0.0)),
            mass => common::assert_mean("⟨v²⟩", &squares, kt / mass, 4.0, 0.02),
        }
    }
    // Of each replica whatever its company, of each seed and each step its own.
    assert_eq!(of(1, 7, 17).velocities().unwrap(), &drawn[63..72]);
    assert_ne!(of(1, 7, 18).velocities().unwrap(), &drawn[63..72]);
    s.draw_velocities().unwrap();
    assert_eq!(s.velocities().unwrap(), drawn);
    s.step(3).unwrap();
    assert_eq!(s.positions()[3..6], [0.0; 3]);
    s.draw_velocities().unwrap();
    assert!(s.velocities().unwrap().iter().zip(&drawn).all(|(a, b)| a != b || *b == 0.0));

    // Set, at the frame where they were: the same trajectory.
    let (mut other, positions) = (of(4000, 0, 17), s.positions().to_vec());
    other.set_positions(&positions).unwrap();
    other.set_velocities(s.velocities().unwrap()).unwrap();
    other.set_step_count(3);
    s.step(5).unwrap();
    other.step(5).unwrap();
    assert_eq!(state(&s), state(&other));

    let mut wrong = vec![0.1; 36_000];
    let error = s.set_velocities(&wrong).unwrap_err().to_string();
    assert!(
        error.contains("velocity of particle 1 (replica 0) is 0.1; expected 0, as its mass is 0"),
        "{error}"
    );
    wrong[0] = f64::INFINITY;
    assert!(s.set_velocities(&wrong).unwrap_err().to_string().contains("expected finite numbers in nm/ps"));
    assert!(s.set_velocities(&[0.0; 9]).unwrap_err().to_string().contains("velocities holds 9"));

    // An adapter without velocities has none, and one that gets them draws them.
    let plain = Options { masses: Some(masses.clone()), n_replicas: 4000, ..options() };
    s.reconfigure(plain.clone()).unwrap();
    for error in [s.set_velocities(&drawn).unwrap_err(), s.draw_velocities().unwrap_err()] {
        assert!(error.to_string().contains("adapter LeimkuhlerMatthews has no velocities"), "{error}");
    }
    assert_eq!(s.statistics().kinetic_energy, None);
    s.reconfigure(with_adapter(Adapter::Langevin, plain)).unwrap();
    assert!(s.velocities().unwrap()[0] != 0.0 && s.statistics().kinetic_energy.unwrap() > 0.0);
    // A particle that is frozen later stops.
    let frozen = Options { masses: Some(vec![0.0, 3.1, 3.1]), n_replicas: 4000, ..options() };
    s.reconfigure(with_adapter(Adapter::Langevin, frozen)).unwrap();
    let before = s.positions().to_vec();
    s.step(2).unwrap();
    assert_eq!((&s.positions()[..3], &s.velocities().unwrap()[..3]), (&before[..3], &[0.0; 3][..]));
}

/// A run that fails comes back with the velocities of the last good frame, and goes on as from there.
#[test]
fn velocities_are_kept_with_the_last_good_frame() {
    for bad in [f64::NAN, 1e9] {
        let options = Options { masses: Some(vec![2.3, 7.1]), n_replicas: 3, ..options() };
        let mut s = simulation(&cliff(bad), with_adapter(Adapter::Langevin, options.clone()));
        let error = loop {
            if let Err(error) = s.step(150) {
                break error;
            }
            assert!(s.step_count() < 100_000);
        };
        assert!(matches!(&error, Error::NotFinite(t) if t.contains("last good frame")), "{error}");
        let (kept, step) = (state(&s), s.step_count());
        assert!(s.positions().iter().all(|x| *x <= 1.7));
        let mut again = simulation(&cliff(bad), with_adapter(Adapter::Langevin, options));
        again.step(step).unwrap();
        assert_eq!(state(&again), kept);
    }
}

#[test]
fn langevin_says_what_it_needs() {
    let mut description: serde_json::Value =
        serde_json::from_str(&common::description("harmonic", 2, 290.0, json!({"stiffness": 600.0})))
            .unwrap();
    description["largest_curvature"] = json!(600.0);
    description["particles"] = json!([{"element": "C", "name": "A", "residue": "X", "residue_index": 0, "mass": 4.1}, {"element": "C", "name": "B", "residue": "X", "residue_index": 0, "mass": 12.0}]);
    let model = Arc::new(Model::from_json(&description.to_string()).unwrap());
    let base = with_adapter(Adapter::Langevin, Options { allow_unstable: false, ..options() });
    Simulation::new(model.clone(), base.clone()).unwrap();
    // ω = √(kT₀ κ/m) = 18.78 /ps of the lighter particle: 2/ω = 0.1065 ps.
    let with = |step_size| Options { step_size, ..base.clone() };
    let moving = |mobility| Options { mobility, ..base.clone() };
    for (words, options) in [
        ("velocities, which a friction rate slows down, and was given none", moving(None)),
        ("was given a drag", moving(Some(Mobility::Drag(vec![3.0])))),
        ("was given a diffusion coefficient", moving(Some(Mobility::Diffusion(vec![3.0])))),
        ("friction rate is 0 /ps", moving(Some(Mobility::FrictionRate(0.0)))),
        (
            "was given a spring; give the time step (ps); a tenth of the fastest period of",
            with(StepSize::Spring(3e5)),
        ),
        ("was given an effective step", with(StepSize::EffectiveStep(3e-7))),
        (
            "was given none; give the time step (ps); a tenth of the fastest period of",
            with(StepSize::Recommended),
        ),
        ("is 0.03345 ps", with(StepSize::Recommended)),
        ("time step 0.107 ps is too long", with(StepSize::TimeStep(0.107))),
        ("needs less than 0.1065 ps", with(StepSize::TimeStep(0.107))),
        ("mass of particle 1 is -2 amu", Options { masses: Some(vec![2.0, -2.0]), ..base.clone() }),
        ("device 'cuda", Options { device: "cuda".into(), ..base.clone() }),
    ] {
        let error = Simulation::new(model.clone(), options).err().unwrap().to_string();
        assert!(error.contains(words), "expected '{words}' in: {error}");
    }
    let s = simulation(&model, with(StepSize::TimeStep(0.106)));
    // In τ = DΔt, of the lighter particle as well.
    let d = diffusim::schedule::BOLTZMANN * 290.0 / (4.1 * 3.7);
    assert!((s.statistics().stability_limit.unwrap() / (d * 0.10650) - 1.0).abs() < 1e-3);
    // A spring schedule and β_n scale the time step, and are seen.
    let longer = diffusim::schedule::NoiseSchedule::given(vec![0.9, 1.1], End::Hold).unwrap();
    assert!(
        Simulation::new(model.clone(), Options { noise_schedule: longer, ..with(StepSize::TimeStep(0.1)) })
            .is_err()
    );
    // Without masses there is no velocity.
    let unknown = analytic("harmonic", 2, 290.0, json!({"stiffness": 600.0}));
    let error = Simulation::new(unknown, base).err().unwrap().to_string();
    assert!(error.contains("knows the masses of 0 of 2"), "{error}");
}

/// A bias adds to the learned force (theory 6): a constant force on a free particle that starts at rest.
#[test]
fn a_bias_kicks_velocities() {
    let (mass, rate, dt, force) = (2.3, 3.7, 0.013, 25.0);
    let model = analytic("free", 1, 283.0, json!({}));
    let n_replicas = 4000;
    let options = Options {
        masses: Some(vec![mass]),
        mobility: Some(Mobility::FrictionRate(rate)),
        step_size: StepSize::TimeStep(dt),
        adapter: Adapter::Langevin,
        n_replicas,
        ..options()
    };
    let mut s = simulation(&model, options);
    s.set_velocities(&vec![0.0; 3 * n_replicas]).unwrap();
    let forces: Vec<f64> = (0..3 * n_replicas).map(|i| if i % 3 == 1 { force } else { 0.0 }).collect();
    let (mut x, mut v) = (0.0, 0.0);
    for _ in 0..40 {
        s.step_biased(&forces).unwrap();
        let kicked = v + force / mass * dt;
        v = kicked * (-rate * dt).exp();
        x += 0.5 * dt * (kicked + v);
    }
    let mean = |of: &[f64]| of.iter().skip(1).step_by(3).copied().collect::<Vec<_>>();
    common::assert_mean("⟨v⟩", &mean(s.velocities().unwrap()), v, 4.0, 0.01);
    common::assert_mean("⟨x⟩", &mean(s.positions()), x, 4.0, 0.01);
}

/// What burn-in learns is kept with the last good frame, and frozen at its end; acceptance is then counted anew.
#[test]
fn tunings_are_state() {
    let (model, left) = failing_well();
    let options = Options {
        step_size: StepSize::EffectiveStep(2.3e-3),
        target_acceptance: Some(0.71),
        burn_in_steps: 470,
        adapter: Adapter::Mala,
        n_replicas: 3,
        ..options()
    };
    let factors = |s: &Simulation| s.step_factors().collect::<Vec<_>>();
    let mut undisturbed = simulation(&model, options.clone());
    assert_eq!(factors(&undisturbed), [1.0; 3]);
    undisturbed.step(310).unwrap();
    let mut s = simulation(&model, options.clone());
    s.step(110).unwrap();
    let before = factors(&s);
    assert!(before.iter().all(|f| *f > 1.0));
    left.store(30, Ordering::Relaxed);
    s.step(200).unwrap_err();
    left.store(usize::MAX, Ordering::Relaxed);
    assert_eq!((s.step_count(), factors(&s)), (110, before));
    s.step(200).unwrap();
    assert_eq!((state(&s), factors(&s)), (state(&undisturbed), factors(&undisturbed)));

    // Steps 310 to 469 belong to burn-in, however they are asked for.
    s.step(400).unwrap();
    let frozen = factors(&s);
    let mean = frozen.iter().map(|f| f.ln()).sum::<f64>() / 3.0;
    assert!((s.statistics().step_factor.unwrap() / mean.exp() - 1.0).abs() < 1e-14);
    undisturbed.step(160).unwrap();
    assert_eq!(factors(&undisturbed), frozen);
    s.step(5000).unwrap();
    assert_eq!(factors(&s), frozen);
    assert!((s.statistics().acceptance.unwrap() - 0.71).abs() < 0.05);
    // A new temperature keeps them, a simulation without burn-in has none.
    s.reconfigure(Options { temperature: Some(311.0), ..options.clone() }).unwrap();
    assert_eq!(factors(&s), frozen);
    s.reconfigure(Options { target_acceptance: None, burn_in_steps: 0, ..options.clone() }).unwrap();
    assert_eq!((factors(&s), s.statistics().step_factor), (vec![1.0; 3], None));

    for (words, wrong) in [
        ("target acceptance is 1;", Options { target_acceptance: Some(1.0), ..options.clone() }),
        ("target acceptance is -0.2;", Options { target_acceptance: Some(-0.2), ..options.clone() }),
        ("target acceptance is NaN;", Options { target_acceptance: Some(f64::NAN), ..options.clone() }),
        ("0.71 was asked for and no burn-in", Options { burn_in_steps: 0, ..options.clone() }),
        (
            "burn-in of 470 steps was asked for and no target",
            Options { target_acceptance: None, ..options.clone() },
        ),
        ("adapter Heun rejects no step", Options { adapter: Adapter::Heun, ..options }),
    ] {
        let error = Simulation::new(model.clone(), wrong).err().unwrap().to_string();
        assert!(error.contains(words), "expected '{words}' in: {error}");
    }
}
