//! Dense layers over groups of particles, and what surrounds them.

use crate::lane::{CacheLine, Lanes};
use crate::model::kernel::{LayerArrays, push};

/// Particles that go through a layer together: each weight is loaded once for all of them.
pub(super) const GROUP: usize = 4;

/// y = x W + b for rows of whole cache lines.
pub(super) struct Dense {
    pub(super) n_in: usize,
    pub(super) n_out: usize,
    /// `[n_in][n_out]`
    weight: Vec<CacheLine>,
    /// `[n_out]`
    bias: Vec<CacheLine>,
}

impl Dense {
    /// `weight(i, o)`, of which `n_out` is a multiple of a cache line.
    pub(super) fn new(
        n_in: usize,
        n_out: usize,
        weight: impl Fn(usize, usize) -> f32,
        bias: impl Fn(usize) -> f32,
    ) -> Self {
        let mut weights = CacheLine::buffer(n_in * n_out);
        for (k, w) in bytemuck::cast_slice_mut(&mut weights).iter_mut().enumerate() {
            *w = weight(k / n_out, k % n_out);
        }
        let mut biases = CacheLine::buffer(n_out);
        for (o, b) in bytemuck::cast_slice_mut(&mut biases).iter_mut().enumerate() {
            *b = bias(o);
        }
        Dense { n_in, n_out, weight: weights, bias: biases }
    }

    /// The layer as its kernel reads it, added to `numbers`.
    pub(super) fn arrays(&self, numbers: &mut Vec<f32>) -> LayerArrays {
        let weight: &[f32] = bytemuck::cast_slice(&self.weight);
        let bias: &[f32] = bytemuck::cast_slice(&self.bias);
        let column = |o: usize| weight.iter().skip(o).step_by(self.n_out).copied();
        LayerArrays {
            n_in: self.n_in as u32,
            n_out: self.n_out as u32,
            weight: push(numbers, weight.iter().copied()),
            bias: push(numbers, bias.iter().copied()),
            transposed: push(numbers, (0..self.n_out).flat_map(column)),
        }
    }

    /// x = y Wᵀ, for gradients.
    pub(super) fn transposed(&self) -> Self {
        let weight: &[f32] = bytemuck::cast_slice(&self.weight);
        Dense::new(self.n_out, self.n_in, |o, i| weight[i * self.n_out + o], |_| 0.0)
    }

    /// `GROUP` rows `x` `[GROUP][n_in]` to `y` `[GROUP][n_out]`, each output summed over the inputs in their order.
    #[inline(always)]
    pub(super) fn apply<T: Lanes>(&self, zero: T, x: &[T::Scalar], y: &mut [T::Scalar]) {
        let n = self.n_out / T::LANES;
        let mut o = 0;
        while o + 4 <= n {
            self.tile::<T, 4>(zero, o, x, y);
            o += 4;
        }
        while o < n {
            self.tile::<T, 1>(zero, o, x, y);
            o += 1;
        }
    }

    #[inline(always)]
    fn tile<T: Lanes, const N: usize>(&self, zero: T, o: usize, x: &[T::Scalar], y: &mut [T::Scalar]) {
        let n = self.n_out / T::LANES;
        let bias: &[T::Weights; N] =
            T::weights(bytemuck::cast_slice(&self.bias))[o..].first_chunk().expect("whole rows");
        let mut sums: [[T; N]; GROUP] = [bias.map(|b| zero.widen(b)); GROUP];
        let rows = T::weights(bytemuck::cast_slice(&self.weight)).chunks_exact(n);
        let (x, _) = x.split_at(GROUP * self.n_in);
        for (i, row) in rows.enumerate() {
            let row: &[T::Weights; N] = row[o..].first_chunk().expect("whole rows");
            let row = row.map(|w| zero.widen(w));
            for (g, sums) in sums.iter_mut().enumerate() {
                let x = zero.splat(x[g * self.n_in + i]);
                for (sum, w) in sums.iter_mut().zip(row) {
                    *sum = w.mul_add(x, *sum);
                }
            }
        }
        for (y, sums) in T::vectors_mut(y).chunks_exact_mut(n).zip(sums) {
            for (y, sum) in y[o..].iter_mut().zip(sums) {
                *y = sum.stored();
            }
        }
    }
}

/// silu(x A + a) B + b, with what its gradient needs.
pub(super) struct TwoLayers {
    pub(super) first: Dense,
    pub(super) second: Dense,
    first_back: Dense,
    second_back: Dense,
}

impl TwoLayers {
    pub(super) fn new(first: Dense, second: Dense) -> Self {
        let (first_back, second_back) = (first.transposed(), second.transposed());
        TwoLayers { first, second, first_back, second_back }
    }

    /// As [`Dense::arrays`].
    pub(super) fn arrays(&self, numbers: &mut Vec<f32>) -> [LayerArrays; 2] {
        [self.first.arrays(numbers), self.second.arrays(numbers)]
    }

    /// `x` to `y`, through `hidden`; the slopes of the hidden units are kept.
    #[inline(always)]
    pub(super) fn apply<T: Lanes>(
        &self,
        zero: T,
        x: &[T::Scalar],
        hidden: &mut [T::Scalar],
        slopes: &mut [T::Scalar],
        y: &mut [T::Scalar],
    ) {
        self.first.apply(zero, x, hidden);
        silu(zero, hidden, slopes);
        self.second.apply(zero, hidden, y);
    }

    /// ∂/∂y to ∂/∂x, through `hidden`.
    #[inline(always)]
    pub(super) fn apply_back<T: Lanes>(
        &self,
        zero: T,
        y: &[T::Scalar],
        slopes: &[T::Scalar],
        hidden: &mut [T::Scalar],
        x: &mut [T::Scalar],
    ) {
        self.second_back.apply(zero, y, hidden);
        for (h, slope) in T::vectors_mut(hidden).iter_mut().zip(T::vectors(slopes)) {
            *h = (zero.load(*h) * zero.load(*slope)).stored();
        }
        self.first_back.apply(zero, hidden, x);
    }
}

/// x σ(x) in place, and its slope.
#[inline(always)]
pub(super) fn silu<T: Lanes>(zero: T, x: &mut [T::Scalar], slopes: &mut [T::Scalar]) {
    let one = zero.constant(1.0);
    for (x, slope) in T::vectors_mut(x).iter_mut().zip(T::vectors_mut(slopes)) {
        let z = zero.load(*x);
        let sigmoid = ((-z).exp() + one).recip();
        let silu = z * sigmoid;
        *x = silu.stored();
        *slope = (one - sigmoid).mul_add(silu, sigmoid).stored();
    }
}
