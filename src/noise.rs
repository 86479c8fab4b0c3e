//! Leaf: standard normals ξ as a pure function of (seed, replica, particle id, step).
//!
//! Philox4x32-10 (Salmon et al., SC'11; the Random123 block function) followed by Box–Muller. Only integer operations and
//! IEEE +, −, ×, fused multiply–add and square root are used, each correctly rounded, so that every instruction set,
//! C++ compiler and GPU gives the same bits. `kernels/noise.cuh` is the twin of this file, function by function.

use crate::lane::{Number, PackedWord, Word, word_to_float};
use pulp::{Arch, Simd, WithSimd};

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// The Philox4x32-10 block function: ten rounds over `counter` with `key`.
#[inline(always)]
pub fn philox<W: Word>(mut counter: [W; 4], mut key: [u32; 2]) -> [W; 4] {
    for _ in 0..10 {
        let (low0, high0) = counter[0].widening_mul(MULTIPLIER[0]);
        let (low1, high1) = counter[2].widening_mul(MULTIPLIER[1]);
        let keys = [low0.constant(key[0]), low0.constant(key[1])];
        counter = [high1 ^ counter[1] ^ keys[0], low1, high0 ^ counter[3] ^ keys[1], low0];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// √(−2 ln u) for u = (word + ½)/2³², in (0, 1]: a Rayleigh variate of at most 6.8.
#[inline(always)]
fn radius<W: Word>(word: W) -> W::Float {
    const SQRT_HALF: u32 = 0x3F35_04F3;
    const ONE: u32 = 0x3F80_0000;
    // Polynomial of Cephes logf for ln(1 + f)/f³ + ... on √½ ≤ 1 + f < √2.
    const C: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_8e-1,
        -1.242_014_1e-1,
        1.424_932_2e-1,
        -1.666_805_7e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    let x = word_to_float(word);
    let u = x.mul_add(x.constant(1.0 / 4_294_967_296.0), x.constant(0.5 / 4_294_967_296.0));
    // u = 2^e (1 + f); the offset makes the mantissa run over [√½, √2).
    let bits = word.bits_of(u) + word.constant(ONE - SQRT_HALF);
    let shift = word.constant(0x4B00_0000); // 2²³ as a float
    let e = (bits.shr(23) ^ shift).as_float() - x.constant(8_388_608.0 + 127.0);
    let f = ((bits & word.constant(0x007F_FFFF)) + word.constant(SQRT_HALF)).as_float() - x.constant(1.0);
    let z = f * f;
    let mut p = x.constant(C[0]);
    for c in &C[1..] {
        p = p.mul_add(f, x.constant(*c));
    }
    let p = e.mul_add(x.constant(-2.121_944_4e-4), f * (z * p));
    let p = z.mul_add(x.constant(-0.5), p);
    let ln = e.mul_add(x.constant(0.693_359_4), f + p);
    (ln * x.constant(-2.0)).sqrt()
}

/// Cosine and sine of a uniform angle: the two top bits choose the quadrant, the others the angle in [−π/4, π/4].
#[inline(always)]
fn direction<W: Word>(word: W) -> [W::Float; 2] {
    const QUARTER: f32 = std::f32::consts::FRAC_PI_4;
    let x = word_to_float(word.shl(2));
    let t = x.mul_add(x.constant(2.0 * QUARTER / 4_294_967_296.0), x.constant(-QUARTER));
    let z = t * t;
    let s = z.mul_add(x.constant(-1.951_529_6e-4), x.constant(8.332_161e-3));
    let s = s.mul_add(z, x.constant(-1.666_665_5e-1));
    let s = (s * z).mul_add(t, t);
    let c = z.mul_add(x.constant(2.443_315_7e-5), x.constant(-1.388_731_6e-3));
    let c = c.mul_add(z, x.constant(4.166_664_6e-2));
    let c = (c * z).mul_add(z, z.mul_add(x.constant(-0.5), x.constant(1.0)));
    // Rotate by the quadrant without branches: swap sine and cosine if it is odd, then set the signs.
    let (s, c) = (word.bits_of(s), word.bits_of(c));
    let quadrant = word.shr(30);
    let odd = quadrant & word.constant(1);
    let swap = (s ^ c) & odd.widening_mul(u32::MAX).0;
    let next = quadrant + word.constant(1);
    let cosine = (c ^ swap) ^ (next & word.constant(2)).shl(30);
    let sine = (s ^ swap) ^ (quadrant & word.constant(2)).shl(30);
    [cosine.as_float(), sine.as_float()]
}

/// Four independent standard normals from one Philox block.
#[inline(always)]
fn box_muller<W: Word>(block: [W; 4]) -> [W::Float; 4] {
    let (r, s) = (radius(block[0]), radius(block[2]));
    let ([a, b], [c, d]) = (direction(block[1]), direction(block[3]));
    [r * a, r * b, s * c, s * d]
}

#[inline(always)]
fn halves(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}

/// The four standard normals of one particle at one step: x, y, z and a spare.
pub fn normals(seed: u64, replica: u32, particle: u32, step: u64) -> [f32; 4] {
    let [low, high] = halves(step);
    box_muller(philox([low, high, particle, replica], halves(seed)))
}

/// A uniform number in (0, 1) of one replica at one step, from the block of a particle that no system has.
pub fn uniform(seed: u64, replica: u32, step: u64) -> f64 {
    let [low, high] = halves(step);
    (philox([low, high, u32::MAX, replica], halves(seed))[0] as f64 + 0.5) / 4_294_967_296.0
}

/// Normals for many particles at one step, one row per coordinate.
#[derive(Clone, Debug, Default)]
pub struct Noise {
    rows: [Vec<f32>; 3],
}

impl Noise {
    /// Room for `n` particles (of all frames together).
    pub fn with_len(n: usize) -> Self {
        Noise { rows: std::array::from_fn(|_| vec![0.0; n]) }
    }

    /// ξ of entry `i`.
    #[inline(always)]
    pub fn get(&self, i: usize) -> [f32; 3] {
        [self.rows[0][i], self.rows[1][i], self.rows[2][i]]
    }

    /// Write the normals of `step` for entries (`replicas[i]`, `particles[i]`); all three have the same length.
    pub fn fill(&mut self, arch: Arch, seed: u64, replicas: &[u32], particles: &[u32], step: u64) {
        arch.dispatch(Fill { noise: self, seed, replicas, particles, step });
    }
}

struct Fill<'a> {
    noise: &'a mut Noise,
    seed: u64,
    replicas: &'a [u32],
    particles: &'a [u32],
    step: u64,
}

impl WithSimd for Fill<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let zero = PackedWord::zero(simd);
        let [low, high] = halves(self.step).map(|w| zero.constant(w));
        let key = halves(self.seed);
        let [x, y, z] = &mut self.noise.rows;
        let n = S::F32_LANES;
        for (((replicas, particles), x), (y, z)) in self
            .replicas
            .chunks(n)
            .zip(self.particles.chunks(n))
            .zip(x.chunks_mut(n))
            .zip(y.chunks_mut(n).zip(z.chunks_mut(n)))
        {
            let counter = [low, high, PackedWord::load(simd, particles), PackedWord::load(simd, replicas)];
            let [a, b, c, _] = box_muller(philox(counter, key));
            simd.partial_store_f32s(x, a.stored());
            simd.partial_store_f32s(y, b.stored());
            simd.partial_store_f32s(z, c.stored());
        }
    }
}
