//! Functions of the distance between two particles: at a fixed noise level they are tabulated once, as cubic Hermite splines.

use crate::error::{Result, bail};
use crate::lane::{CacheLine, Lanes, Real};

/// Largest error of a tabulated filter, relative to the largest value of all its channels; its slope likewise. Finer knots would
/// bring out the rounding of the single-precision table in the slopes.
pub(super) const TOLERANCE: [f64; 2] = [1e-6, 1e-5];
const FEWEST_KNOTS: usize = 128;
const MOST_KNOTS: usize = 2048;

/// 1 − 28u⁶ + 48u⁷ − 21u⁸ and its slope: from 1 to 0 at u = 1, with two vanishing derivatives there.
pub(super) fn envelope<R: Real>(u: R) -> [R; 2] {
    let c = |x: f32| u.constant(x);
    let u2 = u * u;
    let u5 = u2 * u2 * u;
    let value = (u5 * u).mul_add(u.mul_add(u.mul_add(c(-21.0), c(48.0)), c(-28.0)), c(1.0));
    let slope = u5 * u.mul_add(u.mul_add(c(-168.0), c(336.0)), c(-168.0));
    [value, slope]
}

/// All channels of a block's filters on equidistant knots from 0 to the cutoff.
pub(super) struct Filter {
    n_channels: usize,
    /// Of each knot the values and the slopes times the spacing, `[n_knots][2][n_channels]`.
    table: Vec<CacheLine>,
}

/// Where a distance lies between two knots: weights of value and slope there, for the value and for the derivative.
#[derive(Clone, Copy, Default)]
pub(super) struct Place<R> {
    knot: u32,
    value: [R; 4],
    derivative: [R; 4],
}

impl<R: Real> Place<R> {
    /// Of the distance `r`, below the cutoff; knots per unit of length and their last interval.
    #[inline(always)]
    pub(super) fn new(r: R, density: R, last: u32) -> Self {
        let x = r * density;
        let knot = (x.to_f64() as u32).min(last);
        let t = x - x.constant(knot as f32);
        let c = |v: f32| x.constant(v);
        let (t2, s) = (t * t, t - c(1.0));
        let (right, tangent) = (t2 * (c(3.0) - (t + t)), t * s);
        let derivative = c(6.0) * tangent * density;
        Place {
            knot,
            value: [c(1.0) - right, tangent * s, right, tangent * t],
            derivative: [
                derivative,
                s * (c(3.0) * t - c(1.0)) * density,
                -derivative,
                t * (c(3.0) * t - c(2.0)) * density,
            ],
        }
    }
}

/// The table between two knots, in vectors of `n` per row.
#[derive(Clone, Copy)]
pub(super) struct Interval<'a, T: Lanes> {
    zero: T,
    rows: [&'a [T::Weights]; 4],
    value: [T; 4],
    derivative: [T; 4],
}

impl<T: Lanes> Interval<'_, T> {
    #[inline(always)]
    pub(super) fn value(&self, v: usize) -> T {
        self.combine(self.value, v)
    }

    #[inline(always)]
    pub(super) fn derivative(&self, v: usize) -> T {
        self.combine(self.derivative, v)
    }

    #[inline(always)]
    fn combine(&self, weights: [T; 4], v: usize) -> T {
        let row = |k: usize| self.zero.widen(self.rows[k][v]);
        row(3)
            .mul_add(weights[3], row(2).mul_add(weights[2], row(1).mul_add(weights[1], row(0) * weights[0])))
    }
}

impl Filter {
    /// Tabulate `exact(r, values, slopes)` of `n_channels`, a multiple of a cache line, up to `cutoff`, on `n_knots` knots.
    fn new(n_channels: usize, cutoff: f64, n_knots: usize, exact: &Exact) -> Self {
        let mut table = CacheLine::buffer(n_knots * 2 * n_channels);
        let rows: &mut [f32] = bytemuck::cast_slice_mut(&mut table);
        let spacing = cutoff / (n_knots - 1) as f64;
        let mut values = vec![0.0; 2 * n_channels];
        for (k, row) in rows.chunks_exact_mut(2 * n_channels).enumerate() {
            exact(k as f64 * spacing, &mut values);
            for (c, (to, from)) in row.iter_mut().zip(&values).enumerate() {
                *to = (from * if c < n_channels { 1.0 } else { spacing }) as f32;
            }
        }
        Filter { n_channels, table }
    }

    /// Largest error of values and of slopes half-way between knots, relative to the largest ones.
    fn errors(&self, cutoff: f64, exact: &Exact) -> [f64; 2] {
        let n_knots = self.n_knots();
        let density = (n_knots - 1) as f64 / cutoff;
        let mut values = vec![0.0; 2 * self.n_channels];
        let (mut worst, mut largest) = ([0.0f64; 2], [f64::MIN_POSITIVE; 2]);
        for k in 0..4 * (n_knots - 1) {
            let r = (k as f64 + 0.5) / (4.0 * density);
            exact(r, &mut values);
            let place = Place::new(r, density, n_knots as u32 - 2);
            let interval = self.interval(0.0f64, &place);
            for (c, x) in values.iter().enumerate() {
                let is_slope = c / self.n_channels;
                let v = c % self.n_channels;
                let found = if is_slope == 1 { interval.derivative(v) } else { interval.value(v) };
                worst[is_slope] = worst[is_slope].max((found - x).abs());
                largest[is_slope] = largest[is_slope].max(x.abs());
            }
        }
        [worst[0] / largest[0], worst[1] / largest[1]]
    }

    /// `[n_knots][2][n_channels]`: values, and slopes times the spacing.
    pub(super) fn table(&self) -> &[f32] {
        bytemuck::cast_slice(&self.table)
    }

    fn n_knots(&self) -> usize {
        self.table.len() * CacheLine::LEN / (2 * self.n_channels)
    }

    #[inline(always)]
    pub(super) fn interval<T: Lanes>(&self, zero: T, place: &Place<T::Scalar>) -> Interval<'_, T> {
        let n = self.n_channels;
        let table: &[f32] = bytemuck::cast_slice(&self.table);
        let rows = &table[place.knot as usize * 2 * n..][..4 * n];
        let row = |k: usize| T::weights(&rows[k * n..][..n]);
        Interval {
            zero,
            rows: [row(0), row(1), row(2), row(3)],
            value: place.value.map(|w| zero.splat(w)),
            derivative: place.derivative.map(|w| zero.splat(w)),
        }
    }
}

/// Writes all values at a distance, then all slopes.
pub(super) type Exact<'a> = dyn Fn(f64, &mut [f64]) + 'a;

/// One filter of `n_channels` for each function, all on the same knots, as few as the [`TOLERANCE`] allows; and their number.
pub(super) fn tabulate(cutoff: f64, functions: &[(usize, Box<Exact>)]) -> Result<(Vec<Filter>, usize)> {
    let mut n_knots = FEWEST_KNOTS + 1;
    loop {
        let filters: Vec<Filter> =
            functions.iter().map(|(n, exact)| Filter::new(*n, cutoff, n_knots, exact)).collect();
        let worst = filters.iter().zip(functions).map(|(f, (_, exact))| f.errors(cutoff, exact)).fold(
            [0.0f64; 2],
            // A maximum passes over NaN, which no tolerance allows.
            |a, b| std::array::from_fn(|k| if b[k].is_nan() { f64::INFINITY } else { a[k].max(b[k]) }),
        );
        if worst[0] <= TOLERANCE[0] && worst[1] <= TOLERANCE[1] {
            return Ok((filters, n_knots));
        }
        if n_knots > MOST_KNOTS {
            bail!(
                InvalidModel,
                "the filters of the message-passing network are too rough to be tabulated (error {:.1e} with {n_knots} knots); \
                 the training diverged, train again",
                worst[0].max(worst[1])
            );
        }
        n_knots = 2 * n_knots - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envelope_ends_smoothly() {
        let [value, slope] = envelope(1.0f64);
        assert!(value.abs() < 1e-14 && slope.abs() < 1e-13);
        for u in [0.07f64, 0.43, 0.91] {
            let numeric = (envelope(u + 1e-6)[0] - envelope(u - 1e-6)[0]) / 2e-6;
            assert!((envelope(u)[1] - numeric).abs() < 1e-8);
        }
        // The second derivative vanishes as well: near the end the value falls as the third power.
        let near = |d: f64| envelope(1.0 - d)[0];
        assert!((near(2e-3) / near(1e-3) - 8.0).abs() < 0.1);
    }

    #[test]
    fn tables_are_as_exact_as_stated() {
        let wave = |r: f64, out: &mut [f64]| {
            for c in 0..16 {
                let k = 9.0 + 3.0 * c as f64;
                (out[c], out[16 + c]) = ((k * r).sin(), k * (k * r).cos());
            }
        };
        let (filters, n_knots) = tabulate(0.83, &[(16, Box::new(wave))]).unwrap();
        let errors = filters[0].errors(0.83, &wave);
        assert!(errors[0] <= TOLERANCE[0] && errors[1] <= TOLERANCE[1]);
        assert!(n_knots < MOST_KNOTS, "{n_knots}");
        let rough = |r: f64, out: &mut [f64]| out.fill((1e5 * r).sin());
        assert!(tabulate(0.83, &[(16, Box::new(rough))]).is_err());
    }
}
