//! What simulations must sample: closed forms, no parameter of them equal to 1. Every test fixes its seed and states how many
//! standard errors it allows; errors come from independent replicas.

mod common;

use common::{analytic, assert_mean, mean_and_error, simulation};
use diffusim::adapter::Adapter;
use diffusim::model::Model;
use diffusim::sampler::{Options, Simulation, StepSize};
use diffusim::schedule::{BOLTZMANN, End, Mobility, NoiseSchedule, SpringSchedule, TemperatureSchedule};
use serde_json::json;
use std::sync::Arc;

/// What theory says of an adapter. Every test of `ROWS` is one of all adapters.
struct Row {
    adapter: Adapter,
    /// Variance of a harmonic coordinate over kT/κ, with z = τκ.
    harmonic: fn(f64) -> f64,
    /// How the covariance of a harmonic coordinate goes on; None where the step is not linear.
    anneal: Option<fn(&mut Covariance, Anneal)>,
    /// Size of a step in the quartic well, and the order of its error there; None: no error.
    quartic: (f64, Option<f64>),
    /// Step in the double well, nm², of no visible error.
    fine: f64,
}

/// ⟨x²⟩, ⟨xw⟩ and ⟨w²⟩, w being what the adapter remembers: the noise before, or the velocity.
#[derive(Default)]
struct Covariance {
    xx: f64,
    xw: f64,
    ww: f64,
}

/// One step for [`Row::anneal`]: τκ of the drift, 2τυ of the noise; and γΔt, Δt, kT/m, (ωΔt)².
struct Anneal {
    z: f64,
    noise: f64,
    inertia: [f64; 4],
}

const ROWS: [Row; 5] = [
    Row {
        adapter: Adapter::EulerMaruyama,
        harmonic: |z| 1.0 / (1.0 - z / 2.0),
        anneal: Some(|c, s| c.xx = (1.0 - s.z).powi(2) * c.xx + s.noise),
        quartic: (0.1, Some(1.0)),
        fine: 4e-5,
    },
    Row {
        adapter: Adapter::LeimkuhlerMatthews,
        harmonic: |_| 1.0,
        // w: the noise that two steps share.
        anneal: Some(|c, s| {
            c.xx = (1.0 - s.z).powi(2) * c.xx + (1.0 - s.z) * s.noise.sqrt() * c.xw + 0.5 * s.noise;
            c.xw = 0.5 * s.noise.sqrt();
        }),
        quartic: (0.14, Some(2.0)),
        fine: 6e-4,
    },
    Row {
        adapter: Adapter::Heun,
        harmonic: |z| (1.0 - z / 2.0) / (1.0 - z / 2.0 + z * z / 4.0),
        anneal: Some(|c, s| {
            c.xx = (1.0 - s.z + s.z * s.z / 2.0).powi(2) * c.xx + (1.0 - s.z / 2.0).powi(2) * s.noise;
        }),
        quartic: (0.1, Some(2.0)),
        fine: 2e-4,
    },
    Row { adapter: Adapter::Mala, harmonic: |_| 1.0, anneal: None, quartic: (0.05, None), fine: 6e-4 },
    // Of the middle scheme, Zhang et al., J. Phys. Chem. A 123, 6056 (2019).
    Row {
        adapter: Adapter::Langevin,
        harmonic: |_| 1.0,
        // w: the velocity times Δt, here in three sub-steps: kick, half drift and noise, half drift.
        anneal: Some(|c, s| {
            let [friction, dt, speed, omega] = s.inertia;
            let a = (-friction).exp();
            c.ww += -2.0 * omega * c.xw + omega * omega * c.xx;
            c.xw -= omega * c.xx;
            c.xx += c.xw + 0.25 * c.ww;
            c.xw = a * (c.xw + 0.5 * c.ww);
            c.ww = a * a * c.ww + (1.0 - a * a) * speed * dt * dt;
            c.xx += c.xw + 0.25 * c.ww;
            c.xw += 0.5 * c.ww;
        }),
        quartic: (0.5, Some(2.0)),
        fine: 6e-4,
    },
];

/// ⟨Δx²⟩ = 6 D t per particle, with D = kT/(m γ): different masses, T ≠ T₀. Leimkuhler–Matthews shares half of its first and
/// last noise with the neighbouring intervals: n − ½ steps' worth over n steps. A particle with a velocity goes Δt times the
/// trapezoid sum of v_0 … v_n, whose covariance is (kT/m) a^{|i−j|}: for Δt → 0 that is 6 D (t − (1 − e^{−γt})/γ).
#[test]
fn msd_is_six_d_t() {
    let model = analytic("free", 3, 283.0, json!({}));
    let masses = vec![2.3, 7.1, 15.9];
    let (temperature, rate, dt, n_steps, n_replicas) = (331.0, 3.7, 0.13, 17, 20_000);
    for Row { adapter, .. } in ROWS {
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
        let n = n_steps as usize;
        let effective = match adapter {
            Adapter::LeimkuhlerMatthews => n as f64 - 0.5,
            Adapter::Langevin => {
                let weight = |i: usize| if i == 0 || i == n { 0.5 } else { 1.0 };
                let pair =
                    |i: usize, j: usize| weight(i) * weight(j) * (-rate * dt * i.abs_diff(j) as f64).exp();
                0.5 * rate * dt * (0..=n).flat_map(|i| (0..=n).map(move |j| pair(i, j))).sum::<f64>()
            }
            _ => n as f64,
        };
        for (i, mass) in masses.iter().enumerate() {
            let d = BOLTZMANN * temperature / (mass * rate);
            let squares: Vec<f64> = s
                .positions()
                .chunks_exact(9)
                .map(|x| x[3 * i..3 * i + 3].iter().map(|x| x * x).sum())
                .collect();
            assert_mean(&format!("{adapter:?} particle {i}"), &squares, 6.0 * d * dt * effective, 4.0, 0.01);
        }
        if adapter == Adapter::Langevin {
            // Equipartition, and the continuous limit, from which Δt γ/2 coth(Δt γ/2) separates the scheme at long times.
            let statistics = s.statistics();
            assert!(
                (statistics.kinetic_temperature.unwrap() / temperature - 1.0).abs()
                    < 4.0 * (2.0f64 / 180_000.0).sqrt()
            );
            let energy = 4.5 * BOLTZMANN * statistics.kinetic_temperature.unwrap();
            assert!((statistics.kinetic_energy.unwrap() / energy - 1.0).abs() < 1e-12);
            let t = dt * n as f64;
            let limit = (t - (1.0 - (-rate * t).exp()) / rate) / dt;
            assert!((effective / limit - 1.0).abs() < 0.03, "{effective} {limit}");
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

/// Both ways to give a mobility (theory 5): at fixed friction the noise has the temperature; at fixed D the drift has it.
fn mobilities(adapter: Adapter, friction: f64, diffusion: f64) -> Vec<Mobility> {
    let fixed_friction = Mobility::FrictionRate(friction);
    match adapter {
        Adapter::Langevin => vec![fixed_friction],
        _ => vec![fixed_friction, Mobility::Diffusion(vec![diffusion])],
    }
}

/// Variance of a harmonic coordinate at T ≠ T₀ and a coarse step, z = τκ = 0.31 and 0.31·2.3/7.1 for two masses at fixed friction
/// and 0.31 T₀/T at fixed D; with velocities (ωΔt)² = 0.8 and 0.26, where also ⟨v²⟩ = kT/m and ⟨xv⟩ = ½Δt kT/m.
#[test]
fn harmonic_variance_is_that_of_each_adapter() {
    let stiffness = 87.0; // kT₀/nm²
    let (t0, temperature, rate) = (283.0, 331.0, 27.3);
    let ratio = temperature / t0;
    let model = analytic("harmonic", 2, t0, json!({ "stiffness": stiffness }));
    let masses = [2.3, 7.1];
    let tau = 0.31 / stiffness;
    let d = BOLTZMANN * t0 / (masses[0] * rate);
    for Row { adapter, harmonic, .. } in ROWS {
        for mobility in mobilities(adapter, rate, d) {
            let n_replicas = 3000;
            let options = Options {
                temperature: Some(temperature),
                masses: Some(masses.into()),
                mobility: Some(mobility.clone()),
                step_size: StepSize::TimeStep(tau / d),
                n_replicas,
                seed: 21,
                adapter,
                ..Options::default()
            };
            let mut s = simulation(&model, options);
            s.step(150).unwrap();
            let [mut variances, mut speeds, mut products] = [(); 3].map(|()| vec![vec![0.0; n_replicas]; 2]);
            let n_samples = 40;
            for _ in 0..n_samples {
                s.step(11).unwrap();
                let none = vec![0.0; s.positions().len()];
                let velocities = s.velocities().unwrap_or(&none);
                for (j, (x, v)) in s.positions().iter().zip(velocities).enumerate() {
                    let (r, i, weight) = (j / 6, j / 3 % 2, 1.0 / (3 * n_samples) as f64);
                    variances[i][r] += weight * x * x;
                    speeds[i][r] += weight * v * v;
                    products[i][r] += weight * x * v;
                }
            }
            for (i, mass) in masses.iter().enumerate() {
                let z = match mobility {
                    Mobility::FrictionRate(_) => tau * stiffness * masses[0] / mass,
                    _ => tau * stiffness / ratio,
                };
                let what = format!("{adapter:?} particle {i} {mobility:?}");
                assert_mean(&what, &variances[i], ratio / stiffness * harmonic(z), 4.0, 0.006);
                if adapter == Adapter::Langevin {
                    let square = BOLTZMANN * temperature / mass;
                    assert_mean("⟨v²⟩", &speeds[i], square, 4.0, 0.006);
                    assert_mean("⟨xv⟩", &products[i], 0.5 * tau / d * square, 4.0, 0.03);
                }
            }
        }
    }
}

/// Early hot, late cold, with a spring that stiffens and β_n that cycles: at every step of the schedules the variance of a harmonic
/// coordinate is that of the adapter's own recursion, and at the end that of the last temperature.
#[test]
fn annealing_follows_the_recursion_of_each_adapter() {
    let (stiffness, t0, mass, rate) = (87.0, 283.0, 2.3, 19.0);
    let model = analytic("harmonic", 10, t0, json!({ "stiffness": stiffness }));
    let n_steps = 60;
    let temperatures: Vec<f64> =
        (0..n_steps).map(|i| t0 * 3.1 * (0.2f64).powf(i as f64 / (n_steps - 1) as f64)).collect();
    let springs: Vec<f64> = (0..n_steps).map(|i| 1.0 + 0.02 * i as f64).collect();
    let tau = 0.34 / stiffness;
    let d = BOLTZMANN * t0 / (mass * rate);
    let dt = tau / d;
    for Row { adapter, harmonic, anneal, .. } in ROWS {
        for mobility in mobilities(adapter, rate, d) {
            let n_replicas = 2500;
            let fixed_diffusion = matches!(mobility, Mobility::Diffusion(_));
            let options = Options {
                masses: Some(vec![mass; 10]),
                mobility: Some(mobility),
                step_size: StepSize::TimeStep(dt),
                temperature_schedule: Some(
                    TemperatureSchedule::given(temperatures.clone(), End::Hold).unwrap(),
                ),
                spring_schedule: SpringSchedule::given(springs.clone(), End::Hold).unwrap(),
                noise_schedule: NoiseSchedule::given(vec![0.9, 0.6], End::Cycle).unwrap(),
                n_replicas,
                seed: 25,
                adapter,
                ..Options::default()
            };
            let mut s = simulation(&model, options);
            let squares = |s: &Simulation| -> Vec<f64> {
                s.positions().chunks_exact(30).map(|x| x.iter().map(|x| x * x).sum::<f64>() / 30.0).collect()
            };
            // Velocities are drawn; the noise before is 0.
            let drawn = BOLTZMANN * temperatures[0] / mass * dt * dt;
            let mut c = Covariance { ww: drawn, ..Covariance::default() };
            let mut last = (1.0, 1.0);
            for (n, t) in temperatures.iter().enumerate() {
                s.step(1).unwrap();
                let (scale, ratio) = ([0.9, 0.6][n % 2] / springs[n], t / t0);
                let (drift, noise) =
                    if fixed_diffusion { (scale / ratio, scale) } else { (scale, scale * ratio) };
                last = (tau * stiffness * drift, ratio);
                let Some(anneal) = anneal else { continue };
                // ww is of w = v Δt_n, and Δt_n changes.
                let (now, then) =
                    (scale * dt, n.checked_sub(1).map_or(dt, |m| [0.9, 0.6][m % 2] / springs[m] * dt));
                if adapter == Adapter::Langevin {
                    c.ww *= (now / then).powi(2);
                    c.xw *= now / then;
                }
                let speed = BOLTZMANN * t / mass;
                let omega = BOLTZMANN * t0 * stiffness / mass * now * now;
                anneal(
                    &mut c,
                    Anneal { z: last.0, noise: 2.0 * tau * noise, inertia: [rate * now, now, speed, omega] },
                );
                if n % 12 == 11 || n == 0 {
                    assert_mean(&format!("{adapter:?} step {n}"), &squares(&s), c.xx, 4.0, 0.01);
                }
            }
            // Held: at 0.62 T₀.
            s.step(100).unwrap();
            assert!((last.1 - 0.62).abs() < 1e-12);
            if anneal.is_none() {
                assert_mean(
                    &format!("{adapter:?} at the end"),
                    &squares(&s),
                    last.1 / stiffness * harmonic(last.0),
                    4.0,
                    0.01,
                );
            }
        }
    }
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

/// Every coordinate in E = c x⁴: the error of ⟨x²⟩ at two steps has the order of the adapter, and is least with one score a step
/// under Leimkuhler–Matthews; under Metropolis there is none.
#[test]
fn quartic_bias_has_the_order_of_each_adapter() {
    let c = 0.27;
    let quartic = move |x: &[f64], s: &mut [f64], energies: Option<&mut [f64]>| {
        x.iter().zip(s).for_each(|(x, s)| *s = -4.0 * c * x * x * x);
        for (e, x) in energies.into_iter().flatten().zip(x.chunks_exact(120)) {
            *e = x.iter().map(|x| c * x.powi(4)).sum();
        }
        Ok(())
    };
    let model = Arc::new(Model::callback(40, 290.0, Box::new(quartic)).unwrap());
    let exact = average(|x| c * x.powi(4), 1.0, 4.0, |x| x * x);
    let mass = 2.3;
    let frequency = (BOLTZMANN * 290.0 * 2.1 / mass).sqrt(); // of the mean curvature, 12 c ⟨x²⟩ = 2.1
    let bias = |adapter: Adapter, size: f64, n_samples: usize| {
        // τ, or ωΔt at γΔt = ωΔt/2.
        let (mobility, step_size, interval) = match adapter {
            Adapter::Langevin => (
                Some(Mobility::FrictionRate(0.5 * frequency)),
                StepSize::TimeStep(size / frequency),
                1.5 / size,
            ),
            _ => (None, StepSize::EffectiveStep(size), 0.25 / size),
        };
        let n_replicas = 256;
        let options = Options {
            masses: Some(vec![mass; 40]),
            mobility,
            step_size,
            n_replicas,
            seed: 31,
            adapter,
            ..Options::default()
        };
        let mut s = simulation(&model, options);
        s.step(16 * interval as u64).unwrap();
        let mut squares = vec![0.0; n_replicas];
        for _ in 0..n_samples {
            s.step(interval as u64).unwrap();
            for (r, x) in s.positions().chunks_exact(120).enumerate() {
                squares[r] += x.iter().map(|x| x * x).sum::<f64>() / (120 * n_samples) as f64;
            }
        }
        let (mean, error) = mean_and_error(&squares);
        println!("{adapter:?} at {size}: bias {:.5} ± {error:.5}", mean - exact);
        (mean - exact, error)
    };
    for Row { adapter, quartic: (size, order), .. } in ROWS {
        let n_samples = match adapter {
            Adapter::LeimkuhlerMatthews => [1300, 3400],
            _ => [400, 700],
        };
        let (coarse, e1) = bias(adapter, size, n_samples[0]);
        let Some(order) = order else {
            assert!(coarse.abs() < 4.0 * e1 && e1 < 7e-4, "{adapter:?}");
            continue;
        };
        let (fine, e2) = bias(adapter, size / 2.0, n_samples[1]);
        // The next order in the step moves the measured one by some tenths.
        let measured = (coarse / fine).log2();
        let error = ((e1 / coarse).powi(2) + (e2 / fine).powi(2)).sqrt() / std::f64::consts::LN_2;
        println!("{adapter:?}: order {measured:.2} ± {error:.2}");
        assert!((measured - order).abs() < 0.3 + 2.0 * error && error < 0.35, "{adapter:?}");
        // With one score a step and τ = 0.1, the error of Euler–Maruyama is 0.011.
        assert!(adapter != Adapter::LeimkuhlerMatthews || coarse.abs() + 3.0 * e1 < 0.011 / 3.0);
    }
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

/// υ = T/T₀ samples p^{1/υ} (theory 5), whatever the adapter and whichever mobility is given: moments of a double well against
/// quadrature, hotter and colder, the colder after annealing.
#[test]
fn temperature_ratio_samples_the_power_of_the_density() {
    let (h, a, kappa, t0, mass) = (2.1, 0.37, 95.0, 283.0, 2.9);
    let model = analytic("double-well", 3, t0, json!({"barrier": h, "half_width": a, "stiffness": kappa}));
    let energy = |x: f64| h * ((x / a).powi(2) - 1.0).powi(2);
    let indicator = |x: f64| f64::from(u8::from(x.abs() < 0.4 * a));
    let rate = 41.0;
    let d = BOLTZMANN * t0 / (mass * rate);
    for Row { adapter, fine, .. } in ROWS {
        for (mobility, ratio) in mobilities(adapter, rate, d).into_iter().zip([0.7, 1.6]) {
            let n_replicas = 1500;
            let temperatures = match ratio {
                0.7 => (0..100).map(|n| t0 * (ratio + (2.0 - ratio) * (1.0 - n as f64 / 99.0))).collect(),
                _ => vec![t0 * ratio],
            };
            let options = Options {
                temperature_schedule: Some(TemperatureSchedule::given(temperatures, End::Hold).unwrap()),
                masses: Some(vec![mass; 3]),
                mobility: Some(mobility.clone()),
                step_size: StepSize::TimeStep(fine / d),
                n_replicas,
                seed: 42 + (10.0 * ratio) as u64,
                adapter,
                ..Options::default()
            };
            let mut s = simulation(&model, options);
            // Particles at ±a in turn: no barrier need be crossed.
            let start: Vec<f64> = (0..n_replicas * 9)
                .map(|i| match (i % 3, i / 3 % 2) {
                    (0, 0) => a,
                    (0, _) => -a,
                    _ => 0.0,
                })
                .collect();
            s.set_positions(&start).unwrap();
            s.step((0.2 / fine) as u64).unwrap();
            let [mut squares, mut centre, mut transverse] = [(); 3].map(|()| vec![0.0; n_replicas]);
            let n_samples = 25;
            for _ in 0..n_samples {
                s.step((0.012 / fine) as u64).unwrap();
                for (r, frame) in s.positions().chunks_exact(9).enumerate() {
                    for x in frame.chunks_exact(3) {
                        let weight = 1.0 / (3 * n_samples) as f64;
                        squares[r] += weight * x[0] * x[0];
                        centre[r] += weight * indicator(x[0]);
                        transverse[r] += weight * 0.5 * (x[1] * x[1] + x[2] * x[2]);
                    }
                }
            }
            let expected = |g: &dyn Fn(f64) -> f64| average(energy, ratio, 4.0 * a, g);
            println!("{adapter:?} {mobility:?} υ = {ratio}");
            assert_mean("⟨x²⟩", &squares, expected(&|x| x * x), 4.0, 0.006);
            assert_mean("P(|x| < 0.4a)", &centre, expected(&indicator), 4.0, 0.05);
            assert_mean("⟨y²⟩", &transverse, ratio / kappa, 4.0, 0.006);
        }
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

/// ⟨x·∇E⟩ = d for the d = 3(N − 1) confined coordinates, whatever the parameters: at a fine step, and under Metropolis also at
/// five times that, where Euler–Maruyama is visibly off, and at the step that burn-in finds.
#[test]
fn lj13_virial_is_36() {
    let model = analytic(
        "lennard-jones-cluster",
        13,
        290.0,
        json!({"well_depth": 1.3, "minimum_distance": 0.31, "stiffness": 250.0}),
    );
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
    let n_replicas = 512;
    let start: Vec<f64> = (0..n_replicas).flat_map(|_| cluster.iter().flatten().copied()).collect();
    let virial = |adapter, tau: f64, target_acceptance: Option<f64>| {
        let options = Options {
            step_size: StepSize::EffectiveStep(tau),
            n_replicas,
            seed: 61,
            adapter,
            target_acceptance,
            burn_in_steps: if target_acceptance.is_some() { 800 } else { 0 },
            ..Options::default()
        };
        let mut s = simulation(&model, options);
        s.set_positions(&start).unwrap();
        // Over as long a time at each step; burn-in makes 4e-6 about 3.6e-5.
        let tau = if target_acceptance.is_some() { 2e-5 } else { tau };
        s.step((0.048 / tau) as u64).unwrap();
        let mut virial = vec![0.0; n_replicas];
        let mut scores = vec![0.0; start.len()];
        let n_samples = 150;
        for _ in 0..n_samples {
            s.step((4.8e-4 / tau) as u64).unwrap();
            s.evaluate(&mut scores, None).unwrap();
            let frames = s.positions().chunks_exact(39).zip(scores.chunks_exact(39));
            for (v, (x, s)) in virial.iter_mut().zip(frames) {
                *v -= x.iter().zip(s).map(|(x, s)| x * s).sum::<f64>() / n_samples as f64;
            }
        }
        println!("{adapter:?} {:?} {:?}", s.statistics().acceptance, s.statistics().step_factor);
        (virial, s.statistics())
    };
    for (adapter, tau) in [(Adapter::LeimkuhlerMatthews, 4e-6), (Adapter::Mala, 2e-5)] {
        assert_mean(&format!("{adapter:?}"), &virial(adapter, tau, None).0, 36.0, 4.0, 0.012);
    }
    let (mean, error) = mean_and_error(&virial(Adapter::EulerMaruyama, 2e-5, None).0);
    println!("Euler–Maruyama {mean:.3} ± {error:.3}");
    assert!(mean - 36.0 > 4.0 * error);
    let (tuned, statistics) = virial(Adapter::Mala, 4e-6, Some(0.574));
    assert_mean("tuned", &tuned, 36.0, 4.0, 0.012);
    assert!((statistics.acceptance.unwrap() - 0.574).abs() < 0.01);
    assert!(statistics.step_factor.unwrap() > 6.0);
}

/// On the learned energy of alanine dipeptide: Metropolis at twice the recommended step, and Langevin at 4 fs, give the mean energy
/// and the spread of the stiffest bond that a small step gives, and Euler–Maruyama at twice the recommended step does not.
#[test]
fn a_learned_energy_is_sampled_at_coarse_steps() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/ala2/ala2.safetensors");
    let model = Arc::new(Model::load(&path, None).unwrap());
    let recommended = model.metadata().recommended_effective_step.unwrap();
    let n_replicas = 128;
    let run = |adapter, tau: f64| {
        let options = Options {
            step_size: match adapter {
                Adapter::Langevin => StepSize::TimeStep(0.004),
                _ => StepSize::EffectiveStep(tau),
            },
            mobility: Some(Mobility::FrictionRate(10.0)),
            n_replicas,
            seed: 71,
            adapter,
            ..Options::default()
        };
        let mut s = simulation(&model, options);
        let steps = |multiple: f64| (multiple * recommended / tau) as u64;
        s.step(steps(500.0)).unwrap();
        let n_samples = 40;
        let mut energies = vec![0.0; n_replicas];
        let mut energy = vec![0.0; n_replicas];
        let mut lengths = vec![[0.0; 2]; n_replicas];
        let mut scores = vec![0.0; s.positions().len()];
        for _ in 0..n_samples {
            s.step(steps(30.0)).unwrap();
            s.evaluate(&mut scores, Some(&mut energy)).unwrap();
            for (r, x) in s.positions().chunks_exact(30).enumerate() {
                energies[r] += energy[r] / n_samples as f64;
                let [i, j] = [6, 7]; // C=O of the alanine
                let length = (0..3).map(|c| (x[3 * i + c] - x[3 * j + c]).powi(2)).sum::<f64>().sqrt();
                lengths[r][0] += length / n_samples as f64;
                lengths[r][1] += length * length / n_samples as f64;
            }
        }
        let mean = lengths.iter().map(|l| l[0]).sum::<f64>() / n_replicas as f64;
        let spreads = lengths.iter().map(|l| l[1] - 2.0 * mean * l[0] + mean * mean).collect::<Vec<_>>();
        println!("{adapter:?} at {:.2}: acceptance {:?}", tau / recommended, s.statistics().acceptance);
        if let Some(temperature) = s.statistics().kinetic_temperature {
            // One frame of n_replicas × 30 velocities.
            let error = (2.0 / (30 * n_replicas) as f64).sqrt();
            println!("kinetic temperature {temperature:.1} ± {:.1} K", 300.0 * error);
            assert!((temperature / 300.0 - 1.0).abs() < 4.0 * error);
        }
        [energies, spreads].map(|values| mean_and_error(&values))
    };
    let exact = run(Adapter::LeimkuhlerMatthews, 0.25 * recommended);
    let metropolis = run(Adapter::Mala, 2.0 * recommended);
    let langevin = run(Adapter::Langevin, 1.5 * recommended); // as many steps
    let biased = run(Adapter::EulerMaruyama, 2.0 * recommended);
    for (what, i) in [("mean energy / kT₀", 0), ("variance of the stiffest bond / nm²", 1)] {
        let (exact, biased) = (exact[i], biased[i]);
        let error = |other: (f64, f64)| (exact.1 * exact.1 + other.1 * other.1).sqrt();
        println!("{what}: {exact:?}; Euler–Maruyama {biased:?}");
        assert!(biased.0 - exact.0 > 6.0 * error(biased), "{what}");
        for (adapter, found) in [("Metropolis", metropolis[i]), ("Langevin", langevin[i])] {
            println!("{adapter} {found:?}");
            assert!((found.0 - exact.0).abs() < 4.0 * error(found), "{what}, {adapter}");
        }
    }
}
