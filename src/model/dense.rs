//! Dense layers, forward and backward, for one frame and for batches: the same bits either way, on every instruction set.
//!
//! One frame vectorises over the units of a layer, a batch has one frame per SIMD lane. Forward, an output is summed over the
//! inputs in their order. Backward, the derivative by an input is a sum over the outputs in [`CacheLine::LEN`] partial sums
//! that are then added by halves: so both passes read the weights as they lie, and one copy of them stays in the cache.

use crate::lane::{CacheLine, Number};
use pulp::Simd;

/// A dense layer y = x W + b, its rows padded to whole cache lines.
pub struct Layer {
    /// Inputs.
    pub n_in: usize,
    /// Outputs.
    pub n_out: usize,
    /// Outputs with padding; arrays over them must have room for these.
    pub stride: usize,
    /// `[n_in][stride]`
    weight: Vec<CacheLine>,
    /// `[stride]`
    bias: Vec<CacheLine>,
}

impl Layer {
    /// From functions of (input, output) and of the output.
    pub fn new(
        n_in: usize,
        n_out: usize,
        weight: impl Fn(usize, usize) -> f32,
        bias: impl Fn(usize) -> f32,
    ) -> Self {
        let stride = n_out.next_multiple_of(CacheLine::LEN);
        let mut layer = Layer {
            n_in,
            n_out,
            stride,
            weight: CacheLine::buffer(n_in * stride),
            bias: CacheLine::buffer(stride),
        };
        let rows: &mut [f32] = bytemuck::cast_slice_mut(&mut layer.weight);
        for (i, row) in rows.chunks_exact_mut(stride).enumerate() {
            for (o, w) in row[..n_out].iter_mut().enumerate() {
                *w = weight(i, o);
            }
        }
        let biases: &mut [f32] = bytemuck::cast_slice_mut(&mut layer.bias);
        for (o, b) in biases[..n_out].iter_mut().enumerate() {
            *b = bias(o);
        }
        layer
    }

    fn weight(&self) -> &[f32] {
        bytemuck::cast_slice(&self.weight)
    }

    fn bias(&self) -> &[f32] {
        bytemuck::cast_slice(&self.bias)
    }

    /// The rows of `N` inputs from `first` on, in cache lines.
    #[inline(always)]
    fn rows<const N: usize>(&self, first: usize) -> [&[CacheLine]; N] {
        let lines = self.stride / CacheLine::LEN;
        std::array::from_fn(|r| &self.weight[(first + r) * lines..][..lines])
    }
}

/// The two passes through a layer.
pub trait Dense<T: Number>: Copy {
    /// y = x W + b. `y` has room for the padded outputs.
    fn forward(self, zero: T, layer: &Layer, x: &[T::Stored], y: &mut [T::Stored]);

    /// x = W y, from derivatives by the outputs to derivatives by the inputs. Padded outputs in `y` are overwritten.
    fn backward(self, zero: T, layer: &Layer, y: &mut [T::Stored], x: &mut [T::Stored]);
}

/// Levels of the tree that adds the partial sums.
const LEVELS: usize = CacheLine::LEN.ilog2() as usize;

/// Units outermost, `G` groups of frames for each: a tile of `TILE` sums stays in registers.
#[derive(Clone, Copy)]
pub struct UnitMajor<const G: usize, const TILE: usize>;

impl<const G: usize, const TILE: usize> UnitMajor<G, TILE> {
    #[inline(always)]
    fn outputs<T: Number, const N: usize>(
        zero: T,
        layer: &Layer,
        o: usize,
        x: &[T::Stored],
        y: &mut [T::Stored],
    ) {
        let bias: &[f32; N] = layer.bias()[o..].first_chunk().expect("padded");
        let mut sums: [[T; G]; N] = bias.map(|b| [zero.constant(b); G]);
        for (x, row) in x.chunks_exact(G).zip(layer.weight().chunks_exact(layer.stride)) {
            let row: &[f32; N] = row[o..].first_chunk().expect("padded");
            let x: [T; G] = std::array::from_fn(|g| zero.load(x[g]));
            for (sum, w) in sums.iter_mut().zip(row) {
                let w = zero.constant(*w);
                for (sum, x) in sum.iter_mut().zip(x) {
                    *sum = w.mul_add(x, *sum);
                }
            }
        }
        for (y, sum) in y[o * G..].chunks_exact_mut(G).zip(sums) {
            for (y, s) in y.iter_mut().zip(sum) {
                *y = s.stored();
            }
        }
    }

    #[inline(always)]
    fn inputs<T: Number, const N: usize>(
        zero: T,
        layer: &Layer,
        first: usize,
        y: &[T::Stored],
        x: &mut [T::Stored],
    ) {
        let rows = layer.rows::<N>(first);
        let add = |a: [[T; G]; N], b: [[T; G]; N]| -> [[T; G]; N] {
            std::array::from_fn(|r| std::array::from_fn(|g| a[r][g] + b[r][g]))
        };
        // Halves are added first, so the tree takes the partial sums in the order of their reversed bits.
        let mut tree = [[[zero; G]; N]; LEVELS];
        let mut total = [[zero; G]; N];
        for leaf in 0..CacheLine::LEN {
            let lane = leaf.reverse_bits() >> (usize::BITS as usize - LEVELS);
            let mut sums = [[zero; G]; N];
            for (line, y) in y.chunks_exact(CacheLine::LEN * G).enumerate() {
                let y: [T; G] = std::array::from_fn(|g| zero.load(y[lane * G + g]));
                for (sum, row) in sums.iter_mut().zip(rows) {
                    let w = zero.constant(row[line].0[lane]);
                    for (sum, y) in sum.iter_mut().zip(y) {
                        *sum = w.mul_add(y, *sum);
                    }
                }
            }
            let complete = leaf.trailing_ones() as usize;
            for pending in &tree[..complete] {
                sums = add(*pending, sums);
            }
            *tree.get_mut(complete).unwrap_or(&mut total) = sums;
        }
        for (x, sum) in x[first * G..].chunks_exact_mut(G).zip(total) {
            for (x, s) in x.iter_mut().zip(sum) {
                *x = s.stored();
            }
        }
    }
}

impl<T: Number, const G: usize, const TILE: usize> Dense<T> for UnitMajor<G, TILE> {
    #[inline(always)]
    fn forward(self, zero: T, layer: &Layer, x: &[T::Stored], y: &mut [T::Stored]) {
        let x = &x[..layer.n_in * G];
        let mut o = 0;
        while o + TILE <= layer.n_out {
            Self::outputs::<T, TILE>(zero, layer, o, x, y);
            o += TILE;
        }
        while o < layer.n_out {
            Self::outputs::<T, 4>(zero, layer, o, x, y);
            o += 4;
        }
    }

    #[inline(always)]
    fn backward(self, zero: T, layer: &Layer, y: &mut [T::Stored], x: &mut [T::Stored]) {
        y[layer.n_out * G..layer.stride * G].fill(zero.stored());
        let y = &y[..layer.stride * G];
        let mut i = 0;
        while i + TILE <= layer.n_in {
            Self::inputs::<T, TILE>(zero, layer, i, y, x);
            i += TILE;
        }
        while i + 4 <= layer.n_in {
            Self::inputs::<T, 4>(zero, layer, i, y, x);
            i += 4;
        }
        while i < layer.n_in {
            Self::inputs::<T, 1>(zero, layer, i, y, x);
            i += 1;
        }
    }
}

/// One frame: the lanes run over outputs.
#[derive(Clone, Copy)]
pub struct SingleFrame<S: Simd>(pub S);

impl<S: Simd> SingleFrame<S> {
    /// `N` vectors of outputs from `o` on.
    #[inline(always)]
    fn outputs<const N: usize>(self, layer: &Layer, o: usize, x: &[f32], y: &mut [f32]) {
        let simd = self.0;
        let lanes = |row: &[f32]| -> [S::f32s; N] {
            *S::as_simd_f32s(&row[o..]).0.first_chunk().expect("padded to whole cache lines")
        };
        let mut sums = lanes(layer.bias());
        for (x, row) in x.iter().zip(layer.weight().chunks_exact(layer.stride)) {
            let x = simd.splat_f32s(*x);
            for (sum, w) in sums.iter_mut().zip(lanes(row)) {
                *sum = simd.mul_add_f32s(w, x, *sum);
            }
        }
        S::as_mut_simd_f32s(&mut y[o..]).0[..N].copy_from_slice(&sums);
    }

    /// `N` inputs from `first` on.
    #[inline(always)]
    fn inputs<const N: usize>(self, layer: &Layer, first: usize, y: &[CacheLine], x: &mut [f32]) {
        let simd = self.0;
        let rows = layer.rows::<N>(first);
        let mut sums = [[simd.splat_f32s(0.0); CacheLine::LEN]; N];
        for (line, y) in y.iter().enumerate() {
            let y = S::as_simd_f32s(&y.0).0;
            for (sums, row) in sums.iter_mut().zip(rows) {
                for ((sum, w), y) in sums.iter_mut().zip(S::as_simd_f32s(&row[line].0).0).zip(y) {
                    *sum = simd.mul_add_f32s(*w, *y, *sum);
                }
            }
        }
        for (x, sums) in x[first..].iter_mut().zip(sums) {
            let mut partial = [0.0; CacheLine::LEN];
            S::as_mut_simd_f32s(&mut partial).0.iter_mut().zip(sums).for_each(|(p, s)| *p = s);
            *x = add_by_halves(partial);
        }
    }
}

#[inline(always)]
fn add_by_halves(p: [f32; CacheLine::LEN]) -> f32 {
    let p: [f32; 8] = std::array::from_fn(|i| p[i] + p[i + 8]);
    let p: [f32; 4] = std::array::from_fn(|i| p[i] + p[i + 4]);
    (p[0] + p[2]) + (p[1] + p[3])
}

impl<S: Simd> Dense<f32> for SingleFrame<S> {
    #[inline(always)]
    fn forward(self, _: f32, layer: &Layer, x: &[f32], y: &mut [f32]) {
        let x = &x[..layer.n_in];
        let mut o = 0;
        while o + 12 * S::F32_LANES <= layer.stride {
            self.outputs::<12>(layer, o, x, y);
            o += 12 * S::F32_LANES;
        }
        while o + 8 * S::F32_LANES <= layer.stride {
            self.outputs::<8>(layer, o, x, y);
            o += 8 * S::F32_LANES;
        }
        while o + 4 * S::F32_LANES <= layer.stride {
            self.outputs::<4>(layer, o, x, y);
            o += 4 * S::F32_LANES;
        }
        while o < layer.stride {
            self.outputs::<1>(layer, o, x, y);
            o += S::F32_LANES;
        }
    }

    #[inline(always)]
    fn backward(self, _: f32, layer: &Layer, y: &mut [f32], x: &mut [f32]) {
        y[layer.n_out..layer.stride].fill(0.0);
        let y: &[CacheLine] = bytemuck::cast_slice(&y[..layer.stride]);
        // From the last row up: what the forward pass read last is still in the first-level cache.
        let mut end = layer.n_in;
        while end >= 8 {
            end -= 8;
            self.inputs::<8>(layer, end, y, x);
        }
        while end > 0 {
            end -= 1;
            self.inputs::<1>(layer, end, y, x);
        }
    }
}
