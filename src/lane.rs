//! Leaf: numbers that may be one value or one value per SIMD lane.
//!
//! Formulas are written once over [`Number`] (and [`Word`] for bit manipulation) and used for `f32`, for [`Packed`] lanes of
//! whatever instruction set the machine has, and for `f64` where tests want precision. Every operation is correctly
//! rounded, hence a lane of a vector holds the same bits as the scalar computation, on every instruction set.

use pulp::Simd;
use std::ops::{Add, BitAnd, BitXor, Mul, Neg, Sub};

/// A real number, or a vector of them. `self` serves as the token from which constants are made.
pub trait Number:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Neg<Output = Self>
{
    /// How the number lies in memory.
    type Stored: Copy;
    /// `x` in every lane.
    fn constant(self, x: f32) -> Self;
    /// From memory.
    fn load(self, stored: Self::Stored) -> Self;
    /// To memory.
    fn stored(self) -> Self::Stored;
    /// `self · factor + addend`, rounded once.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// `1 / self`.
    fn recip(self) -> Self;
    /// Exponential; in single precision within 1 ulp and saturating beyond ±87.
    fn exp(self) -> Self;
}

/// A 32-bit word, or a vector of them, with wrapping arithmetic; the bits of [`Word::Float`].
pub trait Word: Copy + Add<Output = Self> + BitAnd<Output = Self> + BitXor<Output = Self> {
    /// The single-precision number with as many lanes.
    type Float: Number;
    /// `x` in every lane.
    fn constant(self, x: u32) -> Self;
    /// Low and high halves of the 64-bit product.
    fn widening_mul(self, factor: u32) -> (Self, Self);
    /// Shift towards the high bits.
    fn shl(self, n: u32) -> Self;
    /// Shift towards the low bits.
    fn shr(self, n: u32) -> Self;
    /// The float with these bits.
    fn as_float(self) -> Self::Float;
    /// The bits of `x`.
    fn bits_of(self, x: Self::Float) -> Self;
}

/// 2²³: adding it puts an integer below 2²³ into the low mantissa bits.
const MANTISSA: u32 = 0x4B00_0000;

/// The word as a number, rounded once to nearest.
#[inline(always)]
pub fn word_to_float<W: Word>(w: W) -> W::Float {
    let bias = w.constant(MANTISSA);
    let shift = bias.as_float();
    let high = (w.shr(16) ^ bias).as_float() - shift;
    let low = ((w & w.constant(0xFFFF)) ^ bias).as_float() - shift;
    high.mul_add(shift.constant(65536.0), low)
}

/// Exponential by reduction to |r| ≤ ½ ln 2 and a polynomial of degree 6 (coefficients of Cephes `expf`).
#[inline(always)]
fn exp_single<W: Word>(x: W::Float, clamped: W::Float, w: W) -> W::Float {
    const C: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    let round = x.constant(12_582_912.0); // 1.5·2²³
    let shifted = clamped.mul_add(x.constant(std::f32::consts::LOG2_E), round);
    let n = shifted - round;
    let r = n.mul_add(x.constant(-0.693_359_4), clamped);
    let r = n.mul_add(x.constant(2.121_944_4e-4), r);
    let mut p = x.constant(C[0]);
    for c in &C[1..] {
        p = p.mul_add(r, x.constant(*c));
    }
    let p = p.mul_add(r * r, r) + x.constant(1.0);
    (w.bits_of(p) + w.bits_of(shifted).shl(23)).as_float()
}

/// Exponential in double precision within 2 ulp, 0 below −708 and infinite beyond 709, with the same bits on every machine and in
/// kernels/lane.cuh: x = n ln 2 + r and the series of exp(r).
pub fn exp_double(x: f64) -> f64 {
    if x < -708.0 {
        return 0.0;
    }
    if x > 709.0 {
        return f64::INFINITY;
    }
    const FACTORIALS: [f64; 12] = [
        6_227_020_800.0,
        479_001_600.0,
        39_916_800.0,
        3_628_800.0,
        362_880.0,
        40_320.0,
        5_040.0,
        720.0,
        120.0,
        24.0,
        6.0,
        2.0,
    ];
    let shifted = x * std::f64::consts::LOG2_E + 6_755_399_441_055_744.0; // 1.5·2⁵²
    let n = shifted - 6_755_399_441_055_744.0;
    let r = (x - n * LN_2[0]) - n * LN_2[1];
    let mut p = 1.0 / FACTORIALS[0];
    for k in &FACTORIALS[1..] {
        p = p * r + 1.0 / k;
    }
    let p = p * (r * r) + r;
    (p + 1.0) * f64::from_bits((shifted.to_bits() << 52).wrapping_add(1.0f64.to_bits()))
}

/// Natural logarithm in double precision of a positive normal number, within 2 ulp, with the same bits on every machine and in
/// kernels/lane.cuh: x = 2ᵉm with m in [√½, √2) and the series of 2 artanh((m − 1)/(m + 1)). What is not a number or infinite
/// stays so.
pub fn ln_double(x: f64) -> f64 {
    if x.is_nan() || x > f64::MAX {
        return x;
    }
    const SQRT_HALF: u64 = std::f64::consts::FRAC_1_SQRT_2.to_bits();
    let bits = x.to_bits().wrapping_add(1.0f64.to_bits() - SQRT_HALF);
    let e = ((bits >> 52) as i32 - 1023) as f64;
    let m = f64::from_bits((bits & 0x000F_FFFF_FFFF_FFFF) + SQRT_HALF);
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let mut p = 1.0 / 23.0;
    for k in (3..22).rev().step_by(2) {
        p = p * z + 1.0 / k as f64;
    }
    let p = (s + s) * (p * z) + e * LN_2[1];
    e * LN_2[0] + ((s + s) + p)
}

/// ln 2 in two parts, the first of 32 bits.
const LN_2: [f64; 2] = [0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10];

impl Number for f32 {
    type Stored = f32;
    #[inline(always)]
    fn constant(self, x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn load(self, stored: f32) -> f32 {
        stored
    }
    #[inline(always)]
    fn stored(self) -> f32 {
        self
    }
    #[inline(always)]
    fn mul_add(self, factor: f32, addend: f32) -> f32 {
        f32::mul_add(self, factor, addend)
    }
    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn recip(self) -> f32 {
        1.0 / self
    }
    #[inline(always)]
    fn exp(self) -> f32 {
        exp_single(self, self.clamp(-87.0, 87.0), 0u32)
    }
}

impl Number for f64 {
    type Stored = f64;
    #[inline(always)]
    fn constant(self, x: f32) -> f64 {
        x as f64
    }
    #[inline(always)]
    fn load(self, stored: f64) -> f64 {
        stored
    }
    #[inline(always)]
    fn stored(self) -> f64 {
        self
    }
    #[inline(always)]
    fn mul_add(self, factor: f64, addend: f64) -> f64 {
        f64::mul_add(self, factor, addend)
    }
    #[inline(always)]
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }
    #[inline(always)]
    fn recip(self) -> f64 {
        1.0 / self
    }
    #[inline(always)]
    fn exp(self) -> f64 {
        f64::exp(self)
    }
}

impl Word for u32 {
    type Float = f32;
    #[inline(always)]
    fn constant(self, x: u32) -> u32 {
        x
    }
    #[inline(always)]
    fn widening_mul(self, factor: u32) -> (u32, u32) {
        let product = self as u64 * factor as u64;
        (product as u32, (product >> 32) as u32)
    }
    #[inline(always)]
    fn shl(self, n: u32) -> u32 {
        self << n
    }
    #[inline(always)]
    fn shr(self, n: u32) -> u32 {
        self >> n
    }
    #[inline(always)]
    fn as_float(self) -> f32 {
        f32::from_bits(self)
    }
    #[inline(always)]
    fn bits_of(self, x: f32) -> u32 {
        x.to_bits()
    }
}

/// One single-precision number per lane of the instruction set `S`.
#[derive(Clone, Copy)]
pub struct Packed<S: Simd> {
    simd: S,
    value: S::f32s,
}

impl<S: Simd> Packed<S> {
    /// Zero in every lane.
    #[inline(always)]
    pub fn zero(simd: S) -> Self {
        Packed { simd, value: simd.splat_f32s(0.0) }
    }
}

macro_rules! lanewise {
    ($packed:ident, $($trait:ident $method:ident $op:ident),*) => {$(
        impl<S: Simd> $trait for $packed<S> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                $packed { value: self.simd.$op(self.value, other.value), ..self }
            }
        }
    )*};
}
lanewise!(Packed, Add add add_f32s, Sub sub sub_f32s, Mul mul mul_f32s);

impl<S: Simd> Neg for Packed<S> {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        Packed { value: self.simd.neg_f32s(self.value), ..self }
    }
}

impl<S: Simd> Number for Packed<S> {
    type Stored = S::f32s;
    #[inline(always)]
    fn constant(self, x: f32) -> Self {
        Packed { value: self.simd.splat_f32s(x), ..self }
    }
    #[inline(always)]
    fn load(self, stored: S::f32s) -> Self {
        Packed { value: stored, ..self }
    }
    #[inline(always)]
    fn stored(self) -> S::f32s {
        self.value
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        Packed { value: self.simd.mul_add_f32s(self.value, factor.value, addend.value), ..self }
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        Packed { value: self.simd.sqrt_f32s(self.value), ..self }
    }
    #[inline(always)]
    fn recip(self) -> Self {
        Packed { value: self.simd.div_f32s(self.simd.splat_f32s(1.0), self.value), ..self }
    }
    #[inline(always)]
    fn exp(self) -> Self {
        let low = self.simd.max_f32s(self.value, self.simd.splat_f32s(-87.0));
        let clamped = self.simd.min_f32s(low, self.simd.splat_f32s(87.0));
        exp_single(self, self.load(clamped), PackedWord::zero(self.simd))
    }
}

/// One 32-bit word per lane of the instruction set `S`.
#[derive(Clone, Copy)]
pub struct PackedWord<S: Simd> {
    simd: S,
    value: S::u32s,
}

impl<S: Simd> PackedWord<S> {
    /// Zero in every lane.
    #[inline(always)]
    pub fn zero(simd: S) -> Self {
        PackedWord { simd, value: simd.splat_u32s(0) }
    }
    /// These words.
    #[inline(always)]
    pub fn from_vector(simd: S, value: S::u32s) -> Self {
        PackedWord { simd, value }
    }
    /// Up to one lane's worth of words; missing lanes are zero.
    #[inline(always)]
    pub fn load(simd: S, words: &[u32]) -> Self {
        PackedWord { simd, value: simd.partial_load_u32s(words) }
    }
}

lanewise!(PackedWord, Add add add_u32s, BitAnd bitand and_u32s, BitXor bitxor xor_u32s);

impl<S: Simd> Word for PackedWord<S> {
    type Float = Packed<S>;
    #[inline(always)]
    fn constant(self, x: u32) -> Self {
        PackedWord { value: self.simd.splat_u32s(x), ..self }
    }
    #[inline(always)]
    fn widening_mul(self, factor: u32) -> (Self, Self) {
        let (low, high) = self.simd.widening_mul_u32s(self.value, self.simd.splat_u32s(factor));
        (PackedWord { value: low, ..self }, PackedWord { value: high, ..self })
    }
    #[inline(always)]
    fn shl(self, n: u32) -> Self {
        let n = self.simd.splat_u32s(n);
        PackedWord { value: self.simd.wrapping_dyn_shl_u32s(self.value, n), ..self }
    }
    #[inline(always)]
    fn shr(self, n: u32) -> Self {
        let n = self.simd.splat_u32s(n);
        PackedWord { value: self.simd.wrapping_dyn_shr_u32s(self.value, n), ..self }
    }
    #[inline(always)]
    fn as_float(self) -> Packed<S> {
        Packed { simd: self.simd, value: self.simd.transmute_f32s_u32s(self.value) }
    }
    #[inline(always)]
    fn bits_of(self, x: Packed<S>) -> Self {
        PackedWord { value: self.simd.transmute_u32s_f32s(x.value), ..self }
    }
}

/// A single number in which a computation can be done: `f32`, or `f64` where precision is wanted.
pub trait Real: Number<Stored = Self> + PartialOrd + Default + Send + Sync + 'static {
    /// Rounded to nearest.
    fn from_f64(x: f64) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
}

impl Real for f32 {
    #[inline(always)]
    fn from_f64(x: f64) -> f32 {
        x as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self as f64
    }
}

impl Real for f64 {
    #[inline(always)]
    fn from_f64(x: f64) -> f64 {
        x
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
}

/// Numbers whose lanes run along an array, such as the features of a particle, so that sums go across lanes.
///
/// Arrays come in whole rows of [`CacheLine::LEN`] numbers. Sums over them are taken row by row and then by halves of a row,
/// which gives the same bits for every number of lanes.
pub trait Lanes: Number {
    /// Numbers in a vector; divides [`CacheLine::LEN`].
    const LANES: usize;
    /// One of them.
    type Scalar: Real;
    /// As many single-precision weights.
    type Weights: Copy;
    /// `x` in every lane.
    fn splat(self, x: Self::Scalar) -> Self;
    /// Weights, widened where needed.
    fn widen(self, weights: Self::Weights) -> Self;
    /// Weights in vectors.
    fn weights(array: &[f32]) -> &[Self::Weights];
    /// An array in vectors.
    fn vectors(array: &[Self::Scalar]) -> &[Self::Stored];
    /// An array in vectors.
    fn vectors_mut(array: &mut [Self::Scalar]) -> &mut [Self::Stored];
    /// Sum of the numbers of one row, held in `row[..LEN / LANES]`.
    fn sum(row: [Self; CacheLine::LEN]) -> Self::Scalar;
}

impl Lanes for f64 {
    const LANES: usize = 1;
    type Scalar = f64;
    type Weights = f32;
    #[inline(always)]
    fn splat(self, x: f64) -> f64 {
        x
    }
    #[inline(always)]
    fn widen(self, weights: f32) -> f64 {
        weights as f64
    }
    #[inline(always)]
    fn weights(array: &[f32]) -> &[f32] {
        array
    }
    #[inline(always)]
    fn vectors(array: &[f64]) -> &[f64] {
        array
    }
    #[inline(always)]
    fn vectors_mut(array: &mut [f64]) -> &mut [f64] {
        array
    }
    #[inline(always)]
    fn sum(row: [f64; CacheLine::LEN]) -> f64 {
        row.iter().sum()
    }
}

impl<S: Simd> Lanes for Packed<S> {
    const LANES: usize = S::F32_LANES;
    type Scalar = f32;
    type Weights = S::f32s;
    #[inline(always)]
    fn splat(self, x: f32) -> Self {
        self.constant(x)
    }
    #[inline(always)]
    fn widen(self, weights: S::f32s) -> Self {
        self.load(weights)
    }
    #[inline(always)]
    fn weights(array: &[f32]) -> &[S::f32s] {
        S::as_simd_f32s(array).0
    }
    #[inline(always)]
    fn vectors(array: &[f32]) -> &[S::f32s] {
        S::as_simd_f32s(array).0
    }
    #[inline(always)]
    fn vectors_mut(array: &mut [f32]) -> &mut [S::f32s] {
        S::as_mut_simd_f32s(array).0
    }
    #[inline(always)]
    fn sum(row: [Self; CacheLine::LEN]) -> f32 {
        let mut row = row;
        let mut n = CacheLine::LEN / Self::LANES;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                row[i] = row[i] + row[i + n];
            }
        }
        let mut line = [0.0; CacheLine::LEN];
        S::as_mut_simd_f32s(&mut line).0[0] = row[0].value;
        let mut n = Self::LANES;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                line[i] += line[i + n];
            }
        }
        line[0]
    }
}

/// A cache line of single-precision numbers: buffers made of it are aligned for every instruction set.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct CacheLine(pub [f32; CacheLine::LEN]);

impl CacheLine {
    /// Numbers in a line.
    pub const LEN: usize = 16;

    /// A zeroed buffer of at least `n` numbers.
    pub fn buffer(n: usize) -> Vec<CacheLine> {
        vec![CacheLine([0.0; Self::LEN]); n.div_ceil(Self::LEN)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_one_ulp_over_its_range() {
        let mut worst = 0.0f64;
        for i in 0..2_000_000 {
            let x = -87.0 + 174.0 * (i as f32 / 2e6);
            let exact = (x as f64).exp();
            let ulp = f32::from_bits((exact as f32).to_bits() + 1) as f64 - (exact as f32) as f64;
            worst = worst.max((Number::exp(x) as f64 - exact).abs() / ulp);
        }
        assert!(worst < 1.1, "{worst} ulp");
    }

    /// Against the library's functions, themselves right to about half an ulp.
    #[test]
    fn double_precision_functions_are_within_two_ulp() {
        let ulps = |a: f64, b: f64| (a.to_bits() as i64 - b.to_bits() as i64).unsigned_abs();
        for i in 0..200_000 {
            let x = -707.9 + 1416.8 * (i as f64 / 2e5);
            assert!(ulps(exp_double(x), x.exp()) <= 2, "exp({x:e})");
            let y = exp_double(x);
            // Near one the logarithm is as exact as its argument.
            assert!(ulps(ln_double(y), y.ln()) <= 2, "ln({y:e})");
            let near = 0.6 + 0.9 * (i as f64 / 2e5);
            assert!(ulps(ln_double(near), near.ln()) <= 2, "ln({near:e})");
        }
        assert_eq!([exp_double(0.0), ln_double(1.0), exp_double(-1e9)], [1.0, 0.0, 0.0]);
        assert!(exp_double(f64::NAN).is_nan() && ln_double(f64::NAN).is_nan());
        assert_eq!([exp_double(1e9), ln_double(f64::INFINITY)], [f64::INFINITY; 2]);
    }

    #[test]
    fn words_convert_to_the_nearest_float() {
        for w in [0u32, 1, 0xFFFF, 0x10000, 16_777_217, 0x7FFF_FFFF, 0x8000_0001, u32::MAX] {
            assert_eq!(word_to_float(w), w as f32);
        }
    }
}
