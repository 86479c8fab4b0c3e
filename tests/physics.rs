//! What simulations must sample: closed forms, no parameter of them equal to 1. Every test fixes its seed and states how many
//! standard errors it allows; errors come from independent replicas.

mod common;

use common::{analytic, assert_mean, mean_and_error, simulation};
use diffusim::adapter::Adapter;
use diffusim::model::Model;
use diffusim::sampler::{Options, StepSize};
use diffusim::schedule::{BOLTZMANN, Mobility};
use serde_json::json;
use std::sync::Arc;

const ADAPTERS: [Adapter; 3] = [Adapter::EulerMaruyama, Adapter::LeimkuhlerMatthews, Adapter::Heun];

/// ⟨Δx²⟩ = 6 D t per particle, with D = kT/(m γ): different masses, T ≠ T₀. Leimkuhler–Matthews shares half of its first and
/// last noise with the neighbouring intervals: n − ½ steps' worth over n steps.
#[test]
fn msd_is_six_d_t() {
    let model = analytic("free", 3, 283.0, json!({}));
    let masses = vec![2.3, 7.1, 15.9];
    let (temperature, rate, dt, n_steps, n_replicas) = (331.0, 3.7, 0.013, 40, 20_000);
    let counts = [n_steps as f64, n_steps as f64 - 0.5, n_steps as f64];
    for (adapter, effective) in ADAPTERS.into_iter().zip(counts) {
        let options = Options {
            temperature: Some(temperature),
            masses: Some(masses.clone()),
            mobility: Some(Mobility::FrictionRate(rate)),
            step_size: StepSize::TimeStep(dt),
            n_replicas,
            seed: 11,
            adapter,
            ..Options::default()
        };
        let mut s = simulation(&model, options);
        s.step(n_steps).unwrap();
        for (i, mass) in masses.iter().enumerate() {
            let d = BOLTZMANN * temperature / (mass * rate);
            let squares: Vec<f64> = s
                .positions()
                .chunks_exact(9)
                .map(|x| x[3 * i..3 * i + 3].iter().map(|x| x * x).sum())
                .collect();
            assert_mean(&format!("{adapter:?} particle {i}"), &squares, 6.0 * d * dt * effective, 4.0, 0.01);
        }
    }
    // Drag and diffusion coefficient, each in its own way.
    for (mobility, d) in [
        (Mobility::Drag(vec![41.0]), BOLTZMANN * temperature / 41.0),
        (Mobility::Diffusion(vec![0.0317]), 0.0317),
    ] {
        let options = Options {
            temperature: Some(temperature),
            mobility: Some(mobility.clone()),
            step_size: StepSize::TimeStep(dt),
            n_replicas,
            seed: 12,
            adapter: Adapter::EulerMaruyama,
            ..Options::default()
        };
        let mut s = simulation(&model, options);
        s.step(n_steps).unwrap();
        let squares: Vec<f64> =
            s.positions().chunks_exact(9).map(|x| x.iter().map(|x| x * x).sum::<f64>() / 3.0).collect();
        assert_mean(&format!("{mobility:?}"), &squares, 6.0 * d * dt * n_steps as f64, 4.0, 0.01);
    }
}

/// Variance of a harmonic coordinate, with z = τκ: (kT/κ)/(1 − z/2) under Euler–Maruyama, kT/κ under Leimkuhler–Matthews,
/// (kT/κ)(1 − z/2)/(1 − z/2 + z²/4) under Heun; here with z = 0.31 and 0.31·2.3/7.1 for two masses and T ≠ T₀.
#[test]
fn harmonic_variance_is_that_of_each_adapter() {
    let stiffness = 87.0; // kT₀/nm²
    let (t0, temperature) = (283.0, 331.0);
    let ratio = temperature / t0;
    let model = analytic("harmonic", 2, t0, json!({ "stiffness": stiffness }));
    let masses = vec![2.3, 7.1];
    let tau = 0.31 / stiffness;
    for adapter in ADAPTERS {
        let options = Options {
            temperature: Some(temperature),
            masses: Some(masses.clone()),
            mobility: Some(Mobility::FrictionRate(3.7)),
            step_size: StepSize::EffectiveStep(tau),
            n_replicas: 4000,
            seed: 21,
            adapter,
            ..Options::default()
        };
        let mut s = simulation(&model, options);
        s.step(200).unwrap();
        let mut variances = vec![vec![0.0; 4000]; 2];
        let n_samples = 40;
        for _ in 0..n_samples {
            s.step(11).unwrap();
            for (r, x) in s.positions().chunks_exact(6).enumerate() {
                for i in 0..2 {
                    variances[i][r] +=
                        x[3 * i..3 * i + 3].iter().map(|x| x * x).sum::<f64>() / (3 * n_samples) as f64;
                }
            }
        }
        for (i, mass) in masses.iter().enumerate() {
            let tau = tau * masses[0] / mass;
            let bias = match adapter {
                Adapter::EulerMaruyama => 1.0 / (1.0 - tau * stiffness / 2.0),
                Adapter::LeimkuhlerMatthews => 1.0,
                Adapter::Mala => 1.0,
                Adapter::Heun => {
                    let z = tau * stiffness;
                    (1.0 - z / 2.0) / (1.0 - z / 2.0 + z * z / 4.0)
                }
            };
            assert_mean(
                &format!("{adapter:?} particle {i}"),
                &variances[i],
                ratio / stiffness * bias,
                4.0,
                0.006,
            );
        }
    }
}

/// At fixed D (theory 5) the drift spring stiffens to υk while the noise spring stays: the sampled temperature is the same.
#[test]
fn temperature_is_right_at_fixed_diffusion_too() {
    let model = analytic("harmonic", 1, 283.0, json!({ "stiffness": 87.0 }));
    let options = Options {
        temperature: Some(410.0),
        mobility: Some(Mobility::Diffusion(vec![0.0317])),
        step_size: StepSize::TimeStep(0.11),
        n_replicas: 30_000,
        seed: 22,
        ..Options::default()
    };
    let mut s = simulation(&model, options);
    s.step(100).unwrap();
    let squares: Vec<f64> =
        s.positions().chunks_exact(3).map(|x| x.iter().map(|x| x * x).sum::<f64>() / 3.0).collect();
    assert_mean("variance", &squares, 410.0 / 283.0 / 87.0, 4.0, 0.006);
}

/// ∫ g e^{−E/υ} / ∫ e^{−E/υ}
fn average(energy: impl Fn(f64) -> f64, ratio: f64, half_range: f64, g: impl Fn(f64) -> f64) -> f64 {
    let n = 200_000;
    let (mut numerator, mut denominator) = (0.0, 0.0);
    for i in 0..n {
        let x = half_range * (2.0 * (i as f64 + 0.5) / n as f64 - 1.0);
        let w = (-energy(x) / ratio).exp();
        numerator += w * g(x);
        denominator += w;
    }
    numerator / denominator
}

/// Every coordinate in E = c x⁴: the error of ⟨x²⟩ is of first order in τ under Euler–Maruyama, of second under Heun, and
/// much smaller under Leimkuhler–Matthews.
#[test]
fn weak_orders_are_one_and_two_and_leimkuhler_matthews_is_better() {
    let c = 0.27;
    let quartic = move |x: &[f64], s: &mut [f64], _: Option<&mut [f64]>| {
        x.iter().zip(s).for_each(|(x, s)| *s = -4.0 * c * x * x * x);
        Ok(())
    };
    let model = Arc::new(Model::callback(40, 290.0, Box::new(quartic)).unwrap());
    let exact = average(|x| c * x.powi(4), 1.0, 4.0, |x| x * x);
    let bias = |adapter, tau: f64| {
        let options = Options {
            step_size: StepSize::EffectiveStep(tau),
            n_replicas: 256,
            seed: 31,
            adapter,
            ..Options::default()
        };
        let mut s = simulation(&model, options);
        s.step((4.0 / tau) as u64).unwrap();
        let mut squares = vec![0.0; 256];
        let n_samples = 600;
        for _ in 0..n_samples {
            s.step((0.25 / tau) as u64).unwrap();
            for (r, x) in s.positions().chunks_exact(120).enumerate() {
                squares[r] += x.iter().map(|x| x * x).sum::<f64>() / (120 * n_samples) as f64;
            }
        }
        let (mean, error) = mean_and_error(&squares);
        println!("{adapter:?} τ = {tau}: bias {:.5} ± {error:.5}", mean - exact);
        (mean - exact, error)
    };
    let ((coarse, e1), (fine, e2)) = (bias(Adapter::EulerMaruyama, 0.1), bias(Adapter::EulerMaruyama, 0.05));
    // Halving τ halves the bias; the next order in τ moves the ratio from 2 by some ten per cent.
    let (ratio, error) =
        (coarse / fine, coarse / fine * ((e1 / coarse).powi(2) + (e2 / fine).powi(2)).sqrt());
    println!("ratio {ratio:.3} ± {error:.3}");
    assert!((ratio - 2.0).abs() < 0.35 + 3.0 * error && error < 0.15);
    let (better, error) = bias(Adapter::LeimkuhlerMatthews, 0.1);
    assert!(better.abs() + 3.0 * error < coarse / 4.0);
    // Heun's second order: a quarter with half the step, and somewhat less with the next order in τ.
    let ((coarse, e1), (fine, e2)) = (bias(Adapter::Heun, 0.1), bias(Adapter::Heun, 0.05));
    let ratio = coarse / fine;
    let error = ratio * ((e1 / coarse).powi(2) + (e2 / fine).powi(2)).sqrt();
    println!("ratio {ratio:.3} ± {error:.3}");
    assert!(ratio - 3.0 * error < 4.8 && ratio + 3.0 * error > 4.0 && error < 1.0);
}

/// Metropolis (theory 8) has no error of the step, where Euler–Maruyama's is plain: a double well at a spring so soft that its
/// proposals are often rejected, at T ≠ T₀ and with two mobilities.
#[test]
fn metropolis_is_exact_where_euler_maruyama_is_biased() {
    let (h, a, kappa, ratio) = (2.1, 0.37, 95.0, 1.3);
    let model = analytic("double-well", 2, 283.0, json!({"barrier": h, "half_width": a, "stiffness": kappa}));
    let energy = |x: f64| h * ((x / a).powi(2) - 1.0).powi(2);
    let moments = |adapter| {
        let n_replicas = 1000;
        let options = Options {
            temperature: Some(283.0 * ratio),
            masses: Some(vec![2.3, 7.1]),
            mobility: Some(Mobility::FrictionRate(3.7)),
            step_size: StepSize::EffectiveStep(2.5e-3),
            n_replicas,
            seed: 43,
            adapter,
            ..Options::default()
        };
        let mut s = simulation(&model, options);
        let start: Vec<f64> = (0..6 * n_replicas)
            .map(|i| {
                if i % 3 > 0 {
                    0.0
                } else if i / 6 % 2 == 0 {
                    a
                } else {
                    -a
                }
            })
            .collect();
        s.set_positions(&start).unwrap();
        s.step(400).unwrap();
        let (mut squares, mut transverse) = (vec![0.0; n_replicas], vec![0.0; n_replicas]);
        let n_samples = 100;
        for _ in 0..n_samples {
            s.step(15).unwrap();
            for (r, x) in s.positions().as_chunks::<6>().0.iter().enumerate() {
                squares[r] += x[0] * x[0] / n_samples as f64;
                transverse[r] += 0.5 * (x[1] * x[1] + x[2] * x[2]) / n_samples as f64;
            }
        }
        (squares, transverse, s.statistics().acceptance)
    };
    let exact = average(energy, ratio, 4.0 * a, |x| x * x);
    let (squares, transverse, acceptance) = moments(Adapter::Mala);
    println!("acceptance {acceptance:?}");
    assert!((0.2..0.99).contains(&acceptance.unwrap()));
    assert_mean("⟨x²⟩", &squares, exact, 4.0, 0.01);
    assert_mean("⟨y²⟩", &transverse, ratio / kappa, 4.0, 0.01);
    let (squares, transverse, acceptance) = moments(Adapter::EulerMaruyama);
    assert_eq!(acceptance, None);
    for (biased, exact) in [(squares, exact), (transverse, ratio / kappa)] {
        let (mean, error) = mean_and_error(&biased);
        println!("Euler–Maruyama {mean:.5} ± {error:.5}, exact {exact:.5}");
        assert!((mean - exact).abs() > 8.0 * error);
    }
}

/// υ = T/T₀ samples p^{1/υ} (theory 5): moments of a double well against quadrature, hotter and colder.
#[test]
fn temperature_ratio_samples_the_power_of_the_density() {
    let (h, a, kappa) = (2.1, 0.37, 95.0);
    let model = analytic("double-well", 3, 283.0, json!({"barrier": h, "half_width": a, "stiffness": kappa}));
    let energy = |x: f64| h * ((x / a).powi(2) - 1.0).powi(2);
    for ratio in [0.7, 1.6] {
        let options = Options {
            temperature: Some(283.0 * ratio),
            step_size: StepSize::EffectiveStep(8e-4),
            n_replicas: 1500,
            seed: 42 + (10.0 * ratio) as u64,
            ..Options::default()
        };
        let mut s = simulation(&model, options);
        let start: Vec<f64> = (0..1500 * 9)
            .map(|i| {
                if i % 3 > 0 {
                    0.0
                } else if i % 2 == 0 {
                    a
                } else {
                    -a
                }
            })
            .collect();
        s.set_positions(&start).unwrap();
        s.step(1500).unwrap();
        let (mut squares, mut centre, mut transverse) = (vec![0.0; 1500], vec![0.0; 1500], vec![0.0; 1500]);
        let n_samples = 60;
        for _ in 0..n_samples {
            s.step(50).unwrap();
            for (r, frame) in s.positions().chunks_exact(9).enumerate() {
                for x in frame.chunks_exact(3) {
                    let weight = 1.0 / (3 * n_samples) as f64;
                    squares[r] += weight * x[0] * x[0];
                    centre[r] += weight * f64::from(u8::from(x[0].abs() < 0.4 * a));
                    transverse[r] += weight * 0.5 * (x[1] * x[1] + x[2] * x[2]);
                }
            }
        }
        let indicator = |x: f64| f64::from(u8::from(x.abs() < 0.4 * a));
        assert_mean("⟨x²⟩", &squares, average(energy, ratio, 4.0 * a, |x| x * x), 4.0, 0.01);
        assert_mean("P(|x| < 0.4a)", &centre, average(energy, ratio, 4.0 * a, indicator), 4.0, 0.05);
        assert_mean("⟨y²⟩", &transverse, ratio / kappa, 4.0, 0.01);
    }
}

/// Populations, relaxation and mean first-passage times of the Müller–Brown surface against its generator on a grid
/// (tests/fixtures/make_mueller_brown.py). D = kT = 23 there, so τ = 23 Δt.
#[test]
fn mueller_brown_kinetics_are_those_of_its_generator() {
    let text = std::fs::read_to_string(common::fixture("mueller_brown.json")).unwrap();
    let exact: serde_json::Value = serde_json::from_str(&text).unwrap();
    let exact = |key: &str| exact[key].as_f64().unwrap();
    let model = analytic("mueller-brown", 1, 290.0, json!({"kT": 23.0}));
    let (a, b) = ([-0.558, 1.442], [0.623, 0.028]);
    let n_replicas = 1200;
    let dt = 4e-5;
    let options =
        Options { step_size: StepSize::EffectiveStep(23.0 * dt), n_replicas, seed: 51, ..Options::default() };
    let mut s = simulation(&model, options);
    let start: Vec<f64> = (0..n_replicas)
        .flat_map(|r| {
            let [x, y] = if r % 4 == 0 { b } else { a };
            [x, y, 0.0]
        })
        .collect();
    s.set_positions(&start).unwrap();
    s.step((0.8 / dt) as u64).unwrap();

    // Equilibrium averages, and C(2 lag) = C(lag) e^{−lag/t₁} once the faster modes are gone.
    let lag = 0.1;
    let (mut low, mut energy, mut relation, mut scale) =
        (vec![0.0; n_replicas], vec![0.0; n_replicas], vec![0.0; n_replicas], 0.0);
    let frame =
        |s: &diffusim::sampler::Simulation| s.positions().chunks_exact(3).map(|x| x[1]).collect::<Vec<_>>();
    let decay = (-lag / exact("timescale_1")).exp();
    let n_origins = 6;
    let (mut scores, mut energies) = (vec![0.0; 3 * n_replicas], vec![0.0; n_replicas]);
    let mean_y = {
        let ys = frame(&s);
        ys.iter().sum::<f64>() / ys.len() as f64
    };
    for _ in 0..n_origins {
        let mut y = Vec::new();
        for _ in 0..3 {
            y.push(frame(&s));
            s.evaluate(&mut scores, Some(&mut energies)).unwrap();
            for r in 0..n_replicas {
                low[r] += f64::from(u8::from(y.last().unwrap()[r] < 0.75)) / (3 * n_origins) as f64;
                energy[r] += energies[r] / (3 * n_origins) as f64;
            }
            s.step((lag / dt) as u64).unwrap();
        }
        for r in 0..n_replicas {
            let d: Vec<f64> = (0..3).map(|k| y[k][r] - mean_y).collect();
            relation[r] += d[0] * (d[2] - decay * d[1]) / n_origins as f64;
            scale += d[0] * d[1] / (n_origins * n_replicas) as f64;
        }
    }
    assert_mean("P(y < 0.75)", &low, exact("low_y"), 4.0, 0.04);
    assert_mean("⟨U⟩/kT", &energy, exact("mean_energy"), 4.0, 0.01);
    let (mean, error) = mean_and_error(&relation);
    println!("C(2 lag) − C(lag) e^(−lag/t₁) = {:.4} ± {:.4} C(lag)", mean / scale, error / scale);
    assert!(mean.abs() < 4.0 * error && error < 0.03 * scale);

    // First passage, from equilibrium within one circle to the other; whoever arrives is sent back, and arrivals are counted.
    let inside = |x: &[f64], [cx, cy]: [f64; 2]| (x[0] - cx).powi(2) + (x[1] - cy).powi(2) < 0.04;
    for (name, from, to, duration) in [("mfpt_a_to_b", a, b, 1.6), ("mfpt_b_to_a", b, a, 0.5)] {
        let origins: Vec<[f64; 3]> =
            s.positions().as_chunks::<3>().0.iter().copied().filter(|x| inside(x, from)).collect();
        let mut origin = origins.iter().cycle();
        let start: Vec<f64> = origin.by_ref().take(n_replicas).flatten().copied().collect();
        s.set_positions(&start).unwrap();
        let mut arrivals = vec![0.0; n_replicas];
        for _ in 0..(duration / dt) as u64 {
            s.step(1).unwrap();
            if s.positions().chunks_exact(3).any(|x| inside(x, to)) {
                let mut x = s.positions().to_vec();
                for (n, x) in arrivals.iter_mut().zip(x.chunks_exact_mut(3)).filter(|(_, x)| inside(x, to)) {
                    *n += 1.0 / duration;
                    x.copy_from_slice(origin.next().unwrap());
                }
                s.set_positions(&x).unwrap();
            }
        }
        assert_mean(&format!("1/{name}"), &arrivals, 1.0 / exact(name), 4.0, 0.03);
        s.step((0.8 / dt) as u64).unwrap();
    }
}

/// ⟨x·∇E⟩ = d for the d = 3(N − 1) confined coordinates, whatever the parameters.
#[test]
fn lj13_virial_is_36() {
    let model = analytic(
        "lennard-jones-cluster",
        13,
        290.0,
        json!({"well_depth": 1.3, "minimum_distance": 0.31, "stiffness": 250.0}),
    );
    let n_replicas = 512;
    let options =
        Options { step_size: StepSize::EffectiveStep(4e-6), n_replicas, seed: 61, ..Options::default() };
    let mut s = simulation(&model, options);
    // Centre and vertices of an icosahedron.
    let golden = (1.0 + 5f64.sqrt()) / 2.0;
    let mut cluster = vec![[0.0; 3]];
    for i in 0..3 {
        for (p, q) in [(1.0, golden), (1.0, -golden), (-1.0, golden), (-1.0, -golden)] {
            let mut v = [0.0; 3];
            (v[i], v[(i + 1) % 3]) = (p, q);
            cluster.push(v.map(|x| 0.31 * x / (1.0 + golden * golden).sqrt()));
        }
    }
    let start: Vec<f64> = (0..n_replicas).flat_map(|_| cluster.iter().flatten().copied()).collect();
    s.set_positions(&start).unwrap();
    s.step(12_000).unwrap();
    let mut virial = vec![0.0; n_replicas];
    let mut scores = vec![0.0; start.len()];
    let n_samples = 600;
    for _ in 0..n_samples {
        s.step(30).unwrap();
        s.evaluate(&mut scores, None).unwrap();
        for (v, (x, s)) in virial.iter_mut().zip(s.positions().chunks_exact(39).zip(scores.chunks_exact(39)))
        {
            *v -= x.iter().zip(s).map(|(x, s)| x * s).sum::<f64>() / n_samples as f64;
        }
    }
    assert_mean("virial", &virial, 36.0, 4.0, 0.01);
}
