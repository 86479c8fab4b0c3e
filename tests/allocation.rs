//! Steps allocate nothing once a simulation has warmed up.

mod common;

use common::{ADAPTERS, network, simulation, with_adapter};
use diffusim::model::Model;
use diffusim::sampler::{Jacobian, Options, Sampler, StepSize};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test, so that no other allocates meanwhile. Handing work to threads may allocate once in many calls, a step never.
#[test]
fn steps_allocate_nothing() {
    let [network, blend] = [network(), network()];
    let blend = Arc::new(Model::blend(&blend, &network, 0.37).unwrap());
    let base = || Options {
        step_size: StepSize::EffectiveStep(1e-9),
        allow_unstable: true,
        n_threads: 1,
        ..Options::default()
    };
    let plain = [(&network, 1, 0), (&network, 16, 0), (&network, 300, 50), (&blend, 16, 0)].map(
        |(model, n_replicas, allowed)| {
            let n_threads = if n_replicas > 16 { 2 } else { 1 };
            (model, Options { n_replicas, n_threads, ..base() }, allowed)
        },
    );
    let adapters =
        ADAPTERS.map(|adapter| (&network, with_adapter(adapter, Options { n_replicas: 7, ..base() }), 0));
    for (model, options, allowed) in plain.into_iter().chain(adapters) {
        let (n_replicas, adapter) = (options.n_replicas, options.adapter);
        let mut s = simulation(model, options);
        let bias = adapter.takes_bias().then(|| vec![0.1; s.positions().len()]);
        s.step(10).unwrap();
        if let Some(bias) = &bias {
            s.step_biased(bias).unwrap();
        }
        let count = || {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            s.step(20_000 / n_replicas as u64).unwrap();
            if let Some(bias) = &bias {
                s.step_biased(bias).unwrap();
            }
            ALLOCATIONS.load(Ordering::Relaxed) - before
        };
        // The thread that waits for this test allocates once, at any time; a step would do it again.
        let count = std::iter::repeat_with(count).take(2).min().unwrap();
        assert!(
            count <= allowed,
            "{adapter:?}, {n_replicas} replicas of {}: {count} allocations",
            model.name()
        );
    }
    for jacobian in [Jacobian::Diagonal, Jacobian::Dense] {
        let options = Options {
            step_size: StepSize::EffectiveStep(1e-7),
            allow_unstable: true,
            n_replicas: 3,
            n_threads: 1,
            sampler: Sampler::TimeParallel,
            jacobian,
            ..Options::default()
        };
        let mut s = simulation(&network, options);
        s.step(10).unwrap();
        let count = || {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            s.step(1_000).unwrap();
            ALLOCATIONS.load(Ordering::Relaxed) - before
        };
        assert_eq!(std::iter::repeat_with(count).take(2).min(), Some(0), "sweeps, {jacobian:?}");
    }
}
