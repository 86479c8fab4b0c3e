//! ξ: known answers of Random123, an independent implementation, every instruction set, the C++ twin, and statistics.

use diffusim::noise::{Noise, normals, philox};
use proptest::prelude::*;
use std::process::Command;

#[test]
fn philox_gives_the_known_answers_of_random123() {
    for (counter, key, answer) in [
        ([0; 4], [0; 2], [0x6627_e8d5u32, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([!0; 4], [!0; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ] {
        assert_eq!(philox(counter, key), answer);
    }
}

proptest! {
    #[test]
    fn philox_equals_rand_philox(counter: [u32; 4], key: [u32; 2]) {
        prop_assert_eq!(philox(counter, key), rand_philox::philox4x32_10(counter, key));
    }

    /// Lengths that are no multiple of any vector, arbitrary ids.
    #[test]
    fn vectors_have_the_bits_of_the_scalar(seed: u64, step: u64, ids in prop::collection::vec(any::<[u32; 2]>(), 1..70)) {
        let (replicas, particles): (Vec<u32>, Vec<u32>) = ids.iter().map(|[r, p]| (*r, *p)).unzip();
        for arch in architectures() {
            let mut noise = Noise::with_len(ids.len());
            noise.fill(arch, seed, &replicas, &particles, step);
            for (i, [r, p]) in ids.iter().enumerate() {
                let expected = normals(seed, *r, *p, step);
                prop_assert_eq!(noise.get(i).map(f32::to_bits), [expected[0], expected[1], expected[2]].map(f32::to_bits));
            }
        }
    }
}

/// Every instruction set this machine has.
fn architectures() -> Vec<pulp::Arch> {
    #[allow(unused_mut)]
    let mut all = vec![pulp::Arch::Scalar];
    #[cfg(target_arch = "x86_64")]
    {
        all.extend(pulp::x86::V3::try_new().map(pulp::Arch::V3));
        all.extend(pulp::x86::V4::try_new().map(pulp::Arch::V4));
    }
    all
}

#[test]
fn cpp_twin_has_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("main.cpp"), folder.path().join("main"));
    let n = 200_000u32;
    std::fs::write(
        &source,
        format!(
            r#"#include "noise.cuh"
            #include <cstdio>
            int main() {{
                unsigned long long hash = 14695981039346656037ull;
                for (unsigned i = 0; i < {n}u; i++) {{
                    Normals xi = normals(0x123456789abcdef0ull, i % 7, i, 0xfffffffffull + i / 3);
                    for (float x : xi.xi) hash = (hash ^ from_float(x)) * 1099511628211ull;
                }}
                std::printf("%llx", hash);
            }}"#
        ),
    )
    .unwrap();
    let compiler = std::env::var("CXX").unwrap_or("g++".into());
    let built = Command::new(compiler)
        .args(["-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels"))
        .args([&source, "-o".as_ref() as &std::path::Path, &program].map(|p| p as &std::path::Path))
        .status()
        .unwrap();
    assert!(built.success());
    let printed = String::from_utf8(Command::new(program).output().unwrap().stdout).unwrap();
    let mut hash = 14_695_981_039_346_656_037u64;
    for i in 0..n {
        for x in normals(0x1234_5678_9abc_def0, i % 7, i, 0xf_ffff_ffff + (i / 3) as u64) {
            hash = (hash ^ x.to_bits() as u64).wrapping_mul(1_099_511_628_211);
        }
    }
    assert_eq!(printed, format!("{hash:x}"));
}

/// 8 million normals: moments within 5 standard errors, no correlation between neighbours in any of the four arguments,
/// and the tail of a Gaussian.
#[test]
fn noise_is_standard_normal_and_independent() {
    let n = 2_000_000u32;
    let (mut m, mut tail) = ([0.0f64; 4], 0u64);
    let mut correlation = [0.0f64; 5];
    for i in 0..n {
        let xi = normals(77, 3, i, 1_000_003).map(f64::from);
        for x in xi {
            (0..4).for_each(|k| m[k] += x.powi(k as i32 + 1));
            tail += (x.abs() > 4.0) as u64;
        }
        let x = xi[0];
        for (c, other) in correlation.iter_mut().zip([
            xi[1],
            xi[2],
            normals(78, 3, i, 1_000_003)[0] as f64,
            normals(77, 4, i, 1_000_003)[0] as f64,
            normals(77, 3, i, 1_000_004)[0] as f64,
        ]) {
            *c += x * other;
        }
    }
    let count = 4.0 * n as f64;
    for (k, (expected, variance)) in
        [(0.0, 1.0), (1.0, 2.0), (0.0, 15.0), (3.0, 96.0)].into_iter().enumerate()
    {
        let z = (m[k] / count - expected) / (variance / count).sqrt();
        assert!(z.abs() < 5.0, "moment {}: {z:.1} standard errors", k + 1);
    }
    for c in correlation {
        assert!((c / (n as f64).sqrt()).abs() < 5.0, "{correlation:?}");
    }
    let expected = 6.334e-5 * count;
    assert!((tail as f64 - expected).abs() < 5.0 * expected.sqrt(), "{tail} beyond 4, expected {expected}");
}
