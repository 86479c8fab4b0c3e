//! Criterion benchmarks of the core: noise, the score network, whole steps. `cargo bench`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use diffusim::lane::CacheLine;
use diffusim::model::{Frames, Model, Outputs, Scratch};
use diffusim::noise::Noise;
use diffusim::sampler::{Options, Simulation, StepSize};
use pulp::{Arch, Simd, WithSimd};
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

fn model() -> Arc<Model> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/ala2/ala2.safetensors");
    Arc::new(Model::load(&path, None).expect("the model of the demo"))
}

/// What the hardware gives one core: fused multiply–adds on registers, and reading weights that do not fit into L1.
struct Peak<'a> {
    weights: &'a [f32],
    repeats: usize,
}

impl WithSimd for Peak<'_> {
    type Output = f32;
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let mut sums = [simd.splat_f32s(0.0); 12];
        let factor = simd.splat_f32s(black_box(0.999));
        for _ in 0..self.repeats {
            if self.weights.is_empty() {
                for sum in &mut sums {
                    *sum = simd.mul_add_f32s(*sum, factor, factor);
                }
            }
            let rows = S::as_simd_f32s(self.weights).0.as_chunks::<12>().0;
            for row in rows {
                for (sum, w) in sums.iter_mut().zip(row) {
                    *sum = simd.mul_add_f32s(*w, factor, *sum);
                }
            }
        }
        let mut total = 0.0;
        for sum in sums {
            total += simd.reduce_sum_f32s(sum);
        }
        total
    }
}

fn roofline(c: &mut Criterion) {
    let mut group = c.benchmark_group("roofline, one core");
    let lanes = Arch::new().dispatch(Lanes) as u64;
    group.throughput(Throughput::Elements(1000 * 12 * lanes));
    group.bench_function("fused multiply-adds", |b| {
        b.iter(|| Arch::new().dispatch(Peak { weights: &[], repeats: black_box(1000) }))
    });
    // As large as the weights of the demo's network and their transposes.
    let buffer = CacheLine::buffer(2 * 84_000);
    let weights: &[f32] = bytemuck::cast_slice(&buffer);
    group.throughput(Throughput::Bytes(size_of_val(weights) as u64));
    group.bench_function("reading the weights", |b| {
        b.iter(|| Arch::new().dispatch(Peak { weights: black_box(weights), repeats: 1 }))
    });
}

/// Single-precision lanes of the machine's vectors.
struct Lanes;
impl WithSimd for Lanes {
    type Output = usize;
    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

fn noise(c: &mut Criterion) {
    let n = 4096;
    let (replicas, particles): (Vec<u32>, Vec<u32>) = (0..n).map(|i| (i / 10, i % 10)).unzip();
    let mut noise = Noise::with_len(n as usize);
    let mut group = c.benchmark_group("noise");
    group.throughput(Throughput::Elements(3 * n as u64));
    group.bench_function("normals", |b| {
        b.iter(|| noise.fill(Arch::new(), 7, &replicas, &particles, black_box(99)))
    });
}

fn score(c: &mut Criterion) {
    let model = model();
    let n = 3 * model.n_particles();
    let mut group = c.benchmark_group("score");
    for frames in [1, 8, 32, 1024] {
        let x: Vec<f64> = model.start_positions().iter().copied().cycle().take(frames * n).collect();
        let (mut s, mut scratch) = (vec![0.0; x.len()], Scratch::default());
        group.throughput(Throughput::Elements(frames as u64));
        group.bench_function(format!("{frames} frames, one core"), |b| {
            b.iter(|| {
                let frames = Frames::open(black_box(&x));
                model.score().evaluate(frames, Outputs::scores(&mut s), &mut scratch)
            })
        });
    }
}

fn step(c: &mut Criterion) {
    let model = model();
    let mut group = c.benchmark_group("step");
    for n_replicas in [1, 1000] {
        let options =
            Options { n_replicas, step_size: StepSize::EffectiveStep(1e-9), seed: 3, ..Options::default() };
        let mut simulation = Simulation::new(model.clone(), options).expect("valid");
        group.throughput(Throughput::Elements(100 * n_replicas as u64));
        group.bench_function(format!("100 steps of {n_replicas}"), |b| b.iter(|| simulation.step(100)));
    }
}

criterion_group!(benches, roofline, noise, score, step);
criterion_main!(benches);
