//! Dense layers, forward and backward, for one frame and for batches: the same bits either way, on every instruction set.
//!
//! One frame vectorises over the outputs of a layer, a batch has one frame per SIMD lane. Forward, an output is summed over the
//! inputs in their order. Backward, the derivative by an input is a sum over the outputs in [`CacheLine::LEN`] partial sums
//! that are then added by halves: so both passes of one frame read the weights as they lie, and one copy of them stays in the cache.
//!
//! One frame is as fast as the cache hands over weights. Those of bfloat16 precision (the upper half of a float) are
//! therefore kept in pairs for it; arithmetic is in single precision throughout.

use crate::lane::{CacheLine, Number, PackedWord, Word};
use pulp::Simd;
use std::sync::Arc;

/// Outputs of a row are padded to a multiple of this.
const BLOCK: usize = 2 * CacheLine::LEN;

/// A block of weights of one row.
type Floats = [CacheLine; 2];

/// A block of weights of bfloat16 precision: the first line in the lower halves, the second in the upper halves.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Pairs([u32; CacheLine::LEN]);

impl Pairs {
    /// If all weights are of that precision.
    fn of(block: &Floats) -> Option<Self> {
        let [lower, upper] = block.map(|line| line.0.map(f32::to_bits));
        let pairs = std::array::from_fn(|j| lower[j] >> 16 | upper[j]);
        lower.iter().chain(&upper).all(|bits| bits & 0xFFFF == 0).then_some(Pairs(pairs))
    }
}

/// A block as [`SingleFrame`] reads it.
trait Block: Copy {
    /// Each line in the `V` vectors that make it.
    fn vectors<S: Simd, const V: usize>(&self, simd: S) -> [[S::f32s; V]; 2];
}

impl Block for Floats {
    #[inline(always)]
    fn vectors<S: Simd, const V: usize>(&self, _: S) -> [[S::f32s; V]; 2] {
        [vectors_of::<S, V>(&self[0]), vectors_of::<S, V>(&self[1])]
    }
}

impl Block for Pairs {
    #[inline(always)]
    fn vectors<S: Simd, const V: usize>(&self, simd: S) -> [[S::f32s; V]; 2] {
        let words: &[S::u32s; V] = S::as_simd_u32s(&self.0).0.first_chunk().expect("a whole line");
        let words = words.map(|w| PackedWord::from_vector(simd, w));
        let upper = PackedWord::zero(simd).constant(0xFFFF_0000);
        [words.map(|w| w.shl(16).as_float().stored()), words.map(|w| (w & upper).as_float().stored())]
    }
}

#[inline(always)]
fn vectors_of<S: Simd, const V: usize>(line: &CacheLine) -> [S::f32s; V] {
    *S::as_simd_f32s(&line.0).0.first_chunk().expect("a whole line")
}

/// A dense layer y = x W + b, its rows padded to whole blocks. Clones share the weights.
#[derive(Clone)]
pub struct Layer {
    /// Inputs.
    pub n_in: usize,
    /// Outputs.
    pub n_out: usize,
    /// Outputs with padding; arrays over them must have room for these.
    pub stride: usize,
    /// `[n_in][stride / BLOCK]`
    weight: Arc<[Floats]>,
    /// The same in pairs, if all weights are of that precision: for single frames.
    pairs: Option<Arc<[Pairs]>>,
    /// `[stride][n_in]`, rows padded to whole cache lines: for the backward pass of batches.
    transposed: Arc<[CacheLine]>,
    /// `[stride / BLOCK]`
    bias: Vec<Floats>,
}

impl Layer {
    /// From functions of (input, output) and of the output.
    pub fn new(
        n_in: usize,
        n_out: usize,
        weight: impl Fn(usize, usize) -> f32,
        bias: impl Fn(usize) -> f32,
    ) -> Self {
        let stride = n_out.next_multiple_of(BLOCK);
        let blank = [CacheLine([0.0; CacheLine::LEN]); 2];
        let mut rows = vec![blank; n_in * stride / BLOCK];
        let floats: &mut [f32] = bytemuck::cast_slice_mut(&mut rows);
        for (i, row) in floats.chunks_exact_mut(stride).enumerate() {
            for (o, w) in row[..n_out].iter_mut().enumerate() {
                *w = weight(i, o);
            }
        }
        let in_stride = n_in.next_multiple_of(CacheLine::LEN);
        let mut transposed = CacheLine::buffer(stride * in_stride);
        let floats: &mut [f32] = bytemuck::cast_slice_mut(&mut transposed);
        for (o, row) in floats.chunks_exact_mut(in_stride).take(n_out).enumerate() {
            for (i, w) in row[..n_in].iter_mut().enumerate() {
                *w = weight(i, o);
            }
        }
        let pairs = rows.iter().map(Pairs::of).collect();
        let (weight, transposed) = (rows.into(), transposed.into());
        Layer { n_in, n_out, stride, weight, pairs, transposed, bias: Vec::new() }.with_bias(bias)
    }

    /// The same weights with another bias.
    pub fn with_bias(&self, bias: impl Fn(usize) -> f32) -> Self {
        let mut biases = vec![[CacheLine([0.0; CacheLine::LEN]); 2]; self.stride / BLOCK];
        let floats: &mut [f32] = bytemuck::cast_slice_mut(&mut biases);
        for (o, b) in floats[..self.n_out].iter_mut().enumerate() {
            *b = bias(o);
        }
        Layer { bias: biases, ..self.clone() }
    }

    /// Weights `[n_in][n_out]` and biases `[n_out]`, without padding.
    pub fn unpadded(&self) -> (Vec<f32>, &[f32]) {
        let rows = self.weight().chunks_exact(self.stride);
        (rows.flat_map(|row| &row[..self.n_out]).copied().collect(), &self.bias()[..self.n_out])
    }

    /// `[n_in][stride]`
    fn weight(&self) -> &[f32] {
        bytemuck::cast_slice(&self.weight)
    }

    fn bias(&self) -> &[f32] {
        bytemuck::cast_slice(&self.bias)
    }
}

/// The two passes through a layer.
pub trait Dense<T: Number>: Copy {
    /// y = x W + b. `y` has room for the padded outputs.
    fn forward(self, zero: T, layer: &Layer, x: &[T::Stored], y: &mut [T::Stored]);

    /// x = W y, from derivatives by the outputs to derivatives by the inputs. Padded outputs in `y` are overwritten.
    fn backward(self, zero: T, layer: &Layer, y: &mut [T::Stored], x: &mut [T::Stored]);
}

/// Units outermost, `G` groups of frames for each: tiles of `OUTPUTS` sums forward and twice `INPUTS`
/// backward stay in registers.
#[derive(Clone, Copy)]
pub struct UnitMajor<const G: usize, const OUTPUTS: usize, const INPUTS: usize>;

impl<const G: usize, const OUTPUTS: usize, const INPUTS: usize> UnitMajor<G, OUTPUTS, INPUTS> {
    #[inline(always)]
    fn outputs<T: Number, const N: usize>(
        zero: T,
        layer: &Layer,
        o: usize,
        x: &[T::Stored],
        y: &mut [T::Stored],
    ) {
        let bias: &[f32; N] = layer.bias()[o..].first_chunk().expect("padded");
        let mut sums = [[zero; G]; N];
        for (sum, b) in sums.iter_mut().zip(bias) {
            *sum = [zero.constant(*b); G];
        }
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

    /// `N` sums over the outputs that are `lane` or `lane + 8` in their cache lines.
    #[inline(always)]
    fn two_lanes<T: Number, const N: usize>(
        zero: T,
        layer: &Layer,
        first: usize,
        lane: usize,
        y: &[T::Stored],
    ) -> [[T; G]; N] {
        let stride = layer.transposed.len() / layer.stride * CacheLine::LEN;
        let rows: &[f32] = bytemuck::cast_slice(&layer.transposed);
        let mut lower = [[zero; G]; N];
        let mut upper = [[zero; G]; N];
        let outputs = y[lane * G..].chunks(CacheLine::LEN * G);
        for (y, rows) in outputs.zip(rows[lane * stride + first..].chunks(CacheLine::LEN * stride)) {
            for (sums, lane) in [(&mut lower, 0), (&mut upper, 8)] {
                let row: &[f32; N] = rows[lane * stride..].first_chunk().expect("padded");
                let y: &[T::Stored; G] = y[lane * G..].first_chunk().expect("padded");
                for (sum, w) in sums.iter_mut().zip(row) {
                    let w = zero.constant(*w);
                    for (sum, y) in sum.iter_mut().zip(y) {
                        *sum = w.mul_add(zero.load(*y), *sum);
                    }
                }
            }
        }
        add(&mut lower, upper);
        lower
    }

    #[inline(always)]
    fn inputs<T: Number, const N: usize>(
        zero: T,
        layer: &Layer,
        first: usize,
        y: &[T::Stored],
        x: &mut [T::Stored],
    ) {
        let mut total = [[zero; G]; N];
        for one in 0..2 {
            let mut sums_1 = [[zero; G]; N];
            for two in 0..2 {
                let mut sums_2 = Self::two_lanes::<T, N>(zero, layer, first, one + 2 * two, y);
                add(&mut sums_2, Self::two_lanes::<T, N>(zero, layer, first, one + 2 * two + 4, y));
                add(&mut sums_1, sums_2);
            }
            add(&mut total, sums_1);
        }
        for (x, sum) in x[first * G..].chunks_exact_mut(G).zip(total) {
            for (x, s) in x.iter_mut().zip(sum) {
                *x = s.stored();
            }
        }
    }
}

#[inline(always)]
fn add<T: Number, const G: usize, const N: usize>(to: &mut [[T; G]; N], from: [[T; G]; N]) {
    for (to, from) in to.iter_mut().zip(from) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = *to + from;
        }
    }
}

impl<T: Number, const G: usize, const OUTPUTS: usize, const INPUTS: usize> Dense<T>
    for UnitMajor<G, OUTPUTS, INPUTS>
{
    #[inline(always)]
    fn forward(self, zero: T, layer: &Layer, x: &[T::Stored], y: &mut [T::Stored]) {
        let x = &x[..layer.n_in * G];
        let mut o = 0;
        while o + OUTPUTS <= layer.n_out {
            Self::outputs::<T, OUTPUTS>(zero, layer, o, x, y);
            o += OUTPUTS;
        }
        // The last tiles may overlap: they must not reach beyond the padding.
        while o < layer.n_out {
            Self::outputs::<T, 4>(zero, layer, o.min(layer.n_out.saturating_sub(4)), x, y);
            o += 4;
        }
    }

    #[inline(always)]
    fn backward(self, zero: T, layer: &Layer, y: &mut [T::Stored], x: &mut [T::Stored]) {
        y[layer.n_out * G..layer.stride * G].fill(zero.stored());
        let y = &y[..layer.stride * G];
        let mut i = 0;
        while i + INPUTS <= layer.n_in {
            Self::inputs::<T, INPUTS>(zero, layer, i, y, x);
            i += INPUTS;
        }
        while i < layer.n_in {
            Self::inputs::<T, 4>(zero, layer, i.min(layer.n_in.saturating_sub(4)), y, x);
            i += 4;
        }
    }
}

/// One frame: the lanes run over outputs.
#[derive(Clone, Copy)]
pub struct SingleFrame<S: Simd>(pub S);

impl<S: Simd> SingleFrame<S> {
    /// `N` blocks of outputs from block `first` on; `weight` is `[x.len()][bias.len()]`.
    #[inline(always)]
    fn outputs<B: Block, const V: usize, const N: usize>(
        self,
        weight: &[B],
        bias: &[Floats],
        first: usize,
        x: &[f32],
        y: &mut [Floats],
    ) {
        let simd = self.0;
        let mut sums: [_; N] = std::array::from_fn(|n| bias[first + n].vectors::<S, V>(simd));
        for (x, row) in x.iter().zip(weight.chunks_exact(bias.len())) {
            let x = simd.splat_f32s(*x);
            let row: &[B; N] = row[first..].first_chunk().expect("within the row");
            for (sums, block) in sums.iter_mut().zip(row) {
                for (sums, w) in sums.iter_mut().zip(block.vectors::<S, V>(simd)) {
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = simd.mul_add_f32s(w, x, *sum);
                    }
                }
            }
        }
        for (y, sums) in y[first..].iter_mut().zip(sums) {
            for (line, sums) in y.iter_mut().zip(sums) {
                *S::as_mut_simd_f32s(&mut line.0).0.first_chunk_mut().expect("a whole line") = sums;
            }
        }
    }

    #[inline(always)]
    fn forward<B: Block, const V: usize>(self, weight: &[B], bias: &[Floats], x: &[f32], y: &mut [Floats]) {
        let mut first = 0;
        while first < bias.len() {
            let n = match bias.len() - first {
                6.. if V == 1 => 6,
                4.. if V == 1 => 4,
                2.. => 2,
                _ => 1,
            };
            match n {
                6 => self.outputs::<B, V, 6>(weight, bias, first, x, y),
                4 => self.outputs::<B, V, 4>(weight, bias, first, x, y),
                2 => self.outputs::<B, V, 2>(weight, bias, first, x, y),
                _ => self.outputs::<B, V, 1>(weight, bias, first, x, y),
            }
            first += n;
        }
    }

    /// `N` inputs from `first` on.
    #[inline(always)]
    fn inputs<B: Block, const V: usize, const N: usize>(
        self,
        weight: &[B],
        first: usize,
        y: &[Floats],
        x: &mut [f32],
    ) {
        let simd = self.0;
        let rows: [&[B]; N] = std::array::from_fn(|r| &weight[(first + r) * y.len()..][..y.len()]);
        let mut sums = [[simd.splat_f32s(0.0); V]; N];
        for (b, y) in y.iter().enumerate() {
            let y = y.vectors::<S, V>(simd);
            for (sums, row) in sums.iter_mut().zip(rows) {
                for (w, y) in row[b].vectors::<S, V>(simd).into_iter().zip(y) {
                    for ((sum, w), y) in sums.iter_mut().zip(w).zip(y) {
                        *sum = simd.mul_add_f32s(w, y, *sum);
                    }
                }
            }
        }
        for (x, sums) in x[first..first + N].iter_mut().zip(sums) {
            *x = self.add_by_halves(sums);
        }
    }

    /// (i) + (i + 8), then (i) + (i + 4), (i) + (i + 2), (i) + (i + 1).
    #[inline(always)]
    fn add_by_halves<const V: usize>(self, sums: [S::f32s; V]) -> f32 {
        match V {
            1 => self.0.reduce_sum_f32s(sums[0]),
            2 => self.0.reduce_sum_f32s(self.0.add_f32s(sums[0], sums[1])),
            _ => {
                let mut line = CacheLine([0.0; CacheLine::LEN]);
                *S::as_mut_simd_f32s(&mut line.0).0.first_chunk_mut().expect("a whole line") = sums;
                for half in [8, 4, 2, 1] {
                    for i in 0..half {
                        line.0[i] += line.0[i + half];
                    }
                }
                line.0[0]
            }
        }
    }

    #[inline(always)]
    fn backward<B: Block, const V: usize>(self, weight: &[B], y: &[Floats], x: &mut [f32]) {
        // From the last row up: what the forward pass read last is still in the first-level cache.
        let mut end = x.len();
        while end > 0 {
            let n = match end {
                8.. if V == 1 => 8,
                4.. if V <= 2 => 4,
                _ => 1,
            };
            end -= n;
            match n {
                8 => self.inputs::<B, V, 8>(weight, end, y, x),
                4 => self.inputs::<B, V, 4>(weight, end, y, x),
                _ => self.inputs::<B, V, 1>(weight, end, y, x),
            }
        }
    }
}

/// Call `$method` with the number of vectors of this instruction set that make a line, and the weights as they are kept.
macro_rules! dispatch {
    ($self:ident.$method:ident($layer:expr, $($argument:expr),*)) => {
        match ($layer.pairs.as_deref(), CacheLine::LEN / S::F32_LANES) {
            (Some(pairs), 1) => $self.$method::<_, 1>(pairs, $($argument),*),
            (Some(pairs), 2) => $self.$method::<_, 2>(pairs, $($argument),*),
            (Some(pairs), 4) => $self.$method::<_, 4>(pairs, $($argument),*),
            (Some(pairs), _) => $self.$method::<_, 16>(pairs, $($argument),*),
            (None, 1) => $self.$method::<_, 1>(&$layer.weight, $($argument),*),
            (None, 2) => $self.$method::<_, 2>(&$layer.weight, $($argument),*),
            (None, 4) => $self.$method::<_, 4>(&$layer.weight, $($argument),*),
            (None, _) => $self.$method::<_, 16>(&$layer.weight, $($argument),*),
        }
    };
}

impl<S: Simd> Dense<f32> for SingleFrame<S> {
    #[inline(always)]
    fn forward(self, _: f32, layer: &Layer, x: &[f32], y: &mut [f32]) {
        let y = bytemuck::cast_slice_mut(&mut y[..layer.stride]);
        dispatch!(self.forward(layer, &layer.bias, &x[..layer.n_in], y))
    }

    #[inline(always)]
    fn backward(self, _: f32, layer: &Layer, y: &mut [f32], x: &mut [f32]) {
        y[layer.n_out..layer.stride].fill(0.0);
        let y = bytemuck::cast_slice(&y[..layer.stride]);
        dispatch!(self.backward(layer, y, &mut x[..layer.n_in]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::Packed;
    use pulp::{Arch, WithSimd};

    /// Both passes for one frame and for a batch of the same frame: outputs, then derivatives by the inputs.
    struct Passes<'a> {
        layer: &'a Layer,
        x: &'a [f32],
    }

    impl WithSimd for Passes<'_> {
        type Output = [Vec<f32>; 2];
        fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
            let Passes { layer, x } = self;
            let room = layer.stride.max(layer.n_in + 16).next_multiple_of(BLOCK);
            let mut lines = [(); 3].map(|_| CacheLine::buffer(room));
            let [input, output, back] = lines.each_mut().map(|l| bytemuck::cast_slice_mut::<_, f32>(l));
            input[..layer.n_in].copy_from_slice(x);
            let single = SingleFrame(simd);
            Dense::forward(single, 0.0, layer, input, output);
            let mut results = output[..layer.n_out].to_vec();
            output[layer.n_out..].fill(f32::NAN);
            Dense::backward(single, 0.0, layer, output, back);
            results.extend(&back[..layer.n_in]);

            let batch = batch(simd, UnitMajor::<1, 12, 6>, layer, x, room);
            assert_eq!(batch, self::batch(simd, UnitMajor::<1, 6, 2>, layer, x, room));
            assert_eq!(batch, self::batch(simd, UnitMajor::<1, 16, 8>, layer, x, room));
            assert_eq!(batch, self::batch(simd, UnitMajor::<1, 8, 4>, layer, x, room));
            [results, batch]
        }
    }

    fn batch<S: Simd>(
        simd: S,
        passes: impl Dense<Packed<S>>,
        layer: &Layer,
        x: &[f32],
        room: usize,
    ) -> Vec<f32> {
        let zero = Packed::zero(simd);
        let mut input = vec![simd.splat_f32s(0.0); room];
        let mut output = input.clone();
        for (to, x) in input.iter_mut().zip(x) {
            *to = simd.splat_f32s(*x);
        }
        let first = |v: &[S::f32s]| {
            bytemuck::cast_slice::<_, f32>(v).iter().copied().step_by(S::F32_LANES).collect::<Vec<_>>()
        };
        passes.forward(zero, layer, &input, &mut output);
        let mut results = first(&output[..layer.n_out]);
        output[layer.n_out..].fill(simd.splat_f32s(f32::NAN));
        passes.backward(zero, layer, &mut output, &mut input);
        results.extend(first(&input[..layer.n_in]));
        results
    }

    #[test]
    fn one_frame_and_batches_have_the_same_bits_and_the_right_values() {
        let number = |i: usize, j: usize| crate::noise::normals(3, 0, i as u32, j as u64)[0];
        for (n_in, n_out) in [
            (1, 1),
            (3, 5),
            (7, 33),
            (38, 128),
            (59, 192),
            (192, 192),
            (18, 70),
            (31, 32),
            (64, 96),
            (128, 128),
        ] {
            for mask in [0xFFFF_0000, 0xFFFF_FFFF] {
                let weight = |i: usize, o: usize| f32::from_bits(number(i, o).to_bits() & mask);
                let layer = Layer::new(n_in, n_out, weight, |o| number(5000, o));
                assert_eq!(layer.pairs.is_some(), mask == 0xFFFF_0000);
                let x: Vec<f32> = (0..n_in).map(|i| number(6000, i)).collect();
                let [single, batch] = Arch::new().dispatch(Passes { layer: &layer, x: &x });
                assert_eq!(single, batch, "{n_in} × {n_out}");
                #[cfg(target_arch = "x86_64")]
                let others = pulp::x86::V3::try_new().map(Arch::V3);
                #[cfg(not(target_arch = "x86_64"))]
                let others = None;
                for arch in others.into_iter().chain([Arch::Scalar]) {
                    let passes = arch.dispatch(Passes { layer: &layer, x: &x });
                    assert_eq!(passes, [&single[..], &single[..]], "{n_in} × {n_out}");
                }
                let y: Vec<f64> = (0..n_out)
                    .map(|o| {
                        let sum: f64 = (0..n_in).map(|i| x[i] as f64 * weight(i, o) as f64).sum();
                        sum + number(5000, o) as f64
                    })
                    .collect();
                let back = (0..n_in).map(|i| (0..n_out).map(|o| y[o] * weight(i, o) as f64).sum());
                for (got, expected) in single.iter().zip(y.iter().copied().chain(back)) {
                    let scale = (n_in * n_out) as f64;
                    assert!((*got as f64 - expected).abs() < 2e-6 * scale.sqrt() * (1.0 + expected.abs()));
                }
            }
        }
    }
}
