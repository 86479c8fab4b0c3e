//! Weights of the distance network as kernels/distance_high.cuh has them: in half precision, times a power of two that brings the
//! largest of all into its upper range.

use crate::error::{Result, bail};
use crate::model::kernel::{DistanceArrays, LayerArrays};

/// As in kernels/tensor.cuh.
const PADDING: usize = 32;
const SKEW: usize = 8;
/// The largest weight is brought to between half of this and all of it.
const LARGEST: f64 = 32768.0;
/// Half precision is spaced by this below [`LEAST_NORMAL`], which is then 2⁻³⁸ of the largest weight.
const LEAST: f64 = 1.0 / 16_777_216.0;
const LEAST_NORMAL: f64 = 1.0 / 16_384.0;

pub(super) struct TensorWeights {
    /// Of all layers.
    pub(super) halves: Vec<u16>,
    /// `weight` counts into `halves`.
    pub(super) layers: Vec<LayerArrays>,
    /// What makes sums of products with `halves` those with the weights.
    pub(super) unscale: f32,
}

/// A number with padding.
pub(super) fn padded(n: u32) -> usize {
    (n as usize).next_multiple_of(PADDING)
}

/// From one row of numbers of so many frames to the next.
pub(super) fn pitch(frames: usize) -> usize {
    if frames.is_multiple_of(32) { frames + SKEW } else { frames }
}

/// Halves that the weights of a layer take.
pub(super) fn room(layer: &LayerArrays) -> usize {
    padded(layer.n_in) * (padded(layer.n_out) + SKEW)
}

impl TensorWeights {
    pub(super) fn new(arrays: &DistanceArrays) -> Result<Self> {
        let weights = |layer: &LayerArrays| {
            let n = (layer.n_in * layer.n_out) as usize;
            &arrays.numbers[layer.weight as usize..][..n]
        };
        let all = arrays.layers.iter().flat_map(weights);
        let largest = all.fold(0.0_f64, |largest, w| largest.max(f64::from(w.abs())));
        // A power of two rounds nothing.
        let scale = if largest > 0.0 { LARGEST / 2.0_f64.powi(exponent(largest) + 1) } else { 1.0 };
        let mut halves = Vec::new();
        let mut layers = Vec::new();
        for (l, layer) in arrays.layers.iter().enumerate() {
            layers.push(LayerArrays { weight: halves.len() as u32, ..*layer });
            let (n_out, stride) = (layer.n_out as usize, padded(layer.n_out) + SKEW);
            let mut rows = vec![0; room(layer)];
            for (row, weights) in rows.chunks_exact_mut(stride).zip(weights(layer).chunks_exact(n_out)) {
                for (to, w) in row.iter_mut().zip(weights) {
                    let Some(half) = half(f64::from(*w) * scale) else {
                        bail!(
                            Unsupported,
                            "matmul_precision 'high' needs hidden weights of bfloat16, and layer {l} of this model \
                             has {w}; use 'highest'"
                        );
                    };
                    *to = half;
                }
            }
            halves.extend(rows);
        }
        Ok(TensorWeights { halves, layers, unscale: (1.0 / scale) as f32 })
    }
}

/// e where |x| is between 2ᵉ and 2ᵉ⁺¹; x is a normal number.
fn exponent(x: f64) -> i32 {
    (x.to_bits() >> 52 & 0x7FF) as i32 - 1023
}

/// The bits of `x` in half precision, if that holds it; what is below its normal numbers is rounded.
fn half(x: f64) -> Option<u16> {
    let size = x.abs();
    let bits = if size < LEAST_NORMAL {
        (size / LEAST).round_ties_even() as u16
    } else {
        let e = exponent(size);
        let n = size / 2.0_f64.powi(e - 10); // 1024 to 2047
        if e > 15 || n.fract() != 0.0 {
            return None;
        }
        (((e + 14) as u16) << 10) + n as u16
    };
    Some(bits | u16::from(x.is_sign_negative()) << 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(half: u16) -> f64 {
        let (e, rest) = (i32::from(half >> 10 & 31), f64::from(half & 1023));
        let size = if e == 0 { rest * LEAST } else { (1024.0 + rest) * 2.0_f64.powi(e - 25) };
        if half >> 15 == 1 { -size } else { size }
    }

    #[test]
    fn halves_are_what_they_stand_for() {
        for bits in 0..0x7C00 {
            assert_eq!(half(value(bits)), Some(bits));
            assert_eq!(half(value(bits | 0x8000)), Some(bits | 0x8000));
        }
        for (x, expected) in
            [(65536.0, None), (1.0 + 1.0 / 2048.0, None), (0.4 * LEAST, Some(0)), (f64::NAN, None)]
        {
            assert_eq!(half(x), expected);
        }
    }

    /// Layers of 3 x 5 and 5 x 2 weights: w(i) for the i-th.
    fn arrays(w: impl Fn(usize) -> f32) -> DistanceArrays {
        let layer = |n_in, n_out, weight| LayerArrays { n_in, n_out, weight, ..LayerArrays::default() };
        DistanceArrays {
            numbers: (0..25).map(w).collect(),
            layers: vec![layer(3, 5, 0), layer(5, 2, 15)],
            ..DistanceArrays::default()
        }
    }

    #[test]
    fn weights_of_any_size_are_held() {
        for power in [-100, -20, 0, 17, 90] {
            let weight = |i: usize| [1.5, -0.25, 3.0e-5, 0.0][i % 4] * 2.0_f32.powi(power);
            let truncated = |i| f32::from_bits(weight(i).to_bits() & 0xFFFF_0000);
            let high = TensorWeights::new(&arrays(truncated)).unwrap();
            for (layer, first) in high.layers.iter().zip([0, 15]) {
                for i in 0..layer.n_in as usize {
                    for o in 0..layer.n_out as usize {
                        let half = high.halves[layer.weight as usize + i * (PADDING + SKEW) + o];
                        let expected = truncated(first + i * layer.n_out as usize + o);
                        assert_eq!((value(half) * f64::from(high.unscale)) as f32, expected, "2^{power}");
                    }
                }
            }
            let places = high.halves.iter().filter(|half| **half & 0x7FFF != 0).count();
            assert_eq!(places, (0..25).filter(|i| truncated(*i) != 0.0).count());
        }
    }

    #[test]
    fn weights_of_more_bits_are_refused() {
        let error = |w: f32| TensorWeights::new(&arrays(|i| if i == 17 { w } else { 0.5 })).err().unwrap();
        for w in [0.1, f32::NAN, f32::INFINITY] {
            let sentence = format!(
                "matmul_precision 'high' needs hidden weights of bfloat16, and layer 1 of this model has {w}; use 'highest'"
            );
            assert_eq!(error(w).to_string(), sentence);
        }
    }
}
