//! Steps allocate nothing once a simulation has warmed up.

mod common;

use common::{ADAPTERS, network, simulation, with_adapter};
use diffusim::sampler::{Options, StepSize};
use std::alloc::{GlobalAlloc, Layout, System};
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
    for (n_replicas, allowed) in [(1, 0), (16, 0), (300, 50)] {
        let options = Options {
            step_size: StepSize::EffectiveStep(1e-9),
            allow_unstable: true,
            n_replicas,
            n_threads: if n_replicas > 16 { 2 } else { 1 },
            ..Options::default()
        };
        let mut s = simulation(&network(), options);
        let bias = vec![0.1; s.positions().len()];
        s.step(10).unwrap();
        s.step_biased(&bias).unwrap();
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        s.step(20_000 / n_replicas as u64).unwrap();
        s.step_biased(&bias).unwrap();
        let count = ALLOCATIONS.load(Ordering::Relaxed) - before;
        assert!(count <= allowed, "{n_replicas} replicas: {count} allocations");
    }
    for adapter in ADAPTERS {
        let options =
            Options { step_size: StepSize::EffectiveStep(1e-9), allow_unstable: true, ..Options::default() };
        let mut s = simulation(&network(), with_adapter(adapter, Options { n_threads: 1, ..options }));
        s.step(10).unwrap();
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        s.step(700).unwrap();
        assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0, "{adapter:?}");
    }
}
