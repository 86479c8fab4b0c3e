//! Leaf: the periodic cell, triclinic; its rows are the lattice vectors, in nm.

use crate::error::{Result, bail};

/// A lattice of which every frame is repeated.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    vectors: [[f64; 3]; 3],
    /// Columns are the reciprocal vectors: fractional coordinates are `x · inverse`.
    inverse: [[f64; 3]; 3],
    volume: f64,
}

fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

impl Cell {
    /// From lattice vectors (rows, nm), which must be finite and span a volume.
    pub fn new(vectors: [[f64; 3]; 3]) -> Result<Self> {
        let [a, b, c] = vectors;
        let volume = dot(a, cross(b, c)).abs();
        let lengths = vectors.map(|v| dot(v, v).sqrt());
        // Flat is relative to the lengths; NaN fails too.
        if !(volume > 1e-6 * lengths[0] * lengths[1] * lengths[2] && volume.is_finite()) {
            bail!(
                InvalidArgument,
                "the cell {vectors:?} spans no volume; expected three lattice vectors in nm, as rows, not in one plane"
            );
        }
        let signed = dot(a, cross(b, c));
        let columns = [cross(b, c), cross(c, a), cross(a, b)].map(|v| v.map(|x| x / signed));
        let inverse = std::array::from_fn(|i| std::array::from_fn(|k| columns[k][i]));
        Ok(Cell { vectors, inverse, volume })
    }

    /// A rectangular cell with these edges, nm.
    pub fn rectangular(edges: [f64; 3]) -> Result<Self> {
        Cell::new([[edges[0], 0.0, 0.0], [0.0, edges[1], 0.0], [0.0, 0.0, edges[2]]])
    }

    /// The lattice vectors, nm.
    pub fn vectors(&self) -> &[[f64; 3]; 3] {
        &self.vectors
    }

    /// Columns are the reciprocal vectors, 1/nm.
    pub fn inverse(&self) -> &[[f64; 3]; 3] {
        &self.inverse
    }

    /// nm³
    pub fn volume(&self) -> f64 {
        self.volume
    }

    /// Distances between opposite faces, nm.
    pub fn widths(&self) -> [f64; 3] {
        std::array::from_fn(|k| {
            let reciprocal = std::array::from_fn(|i| self.inverse[i][k]);
            1.0 / dot(reciprocal, reciprocal).sqrt()
        })
    }

    /// `x` in units of the lattice vectors.
    pub fn fractional(&self, x: [f64; 3]) -> [f64; 3] {
        std::array::from_fn(|k| {
            x[0] * self.inverse[0][k] + x[1] * self.inverse[1][k] + x[2] * self.inverse[2][k]
        })
    }

    /// The lattice vector with these coefficients, nm.
    pub fn translation(&self, n: [i32; 3]) -> [f64; 3] {
        let n = n.map(f64::from);
        std::array::from_fn(|c| {
            n[0] * self.vectors[0][c] + n[1] * self.vectors[1][c] + n[2] * self.vectors[2][c]
        })
    }

    /// `x` moved by lattice vectors into the cell that starts at the origin.
    pub fn wrap(&self, x: [f64; 3]) -> [f64; 3] {
        let t = self.translation(self.fractional(x).map(|f| -f.floor() as i32));
        std::array::from_fn(|c| x[c] + t[c])
    }

    /// The shortest image of the difference `d`, exact for lattices in reduced form (as engines require them).
    pub fn minimum_image(&self, d: [f64; 3]) -> [f64; 3] {
        let nearest = self.fractional(d).map(|f| f.round() as i32);
        let mut shortest = ([f64::NAN; 3], f64::INFINITY);
        for n in 0..27 {
            let shift = [n % 3 - 1, n / 3 % 3 - 1, n / 9 - 1];
            let t = self.translation(std::array::from_fn(|k| shift[k] - nearest[k]));
            let image: [f64; 3] = std::array::from_fn(|c| d[c] + t[c]);
            if dot(image, image) < shortest.1 {
                shortest = (image, dot(image, image));
            }
        }
        shortest.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn skewed() -> Cell {
        Cell::new([[2.3, 0.0, 0.0], [0.7, 1.9, 0.0], [-0.5, 0.6, 2.7]]).unwrap()
    }

    #[test]
    fn volume_and_widths_of_a_skewed_cell() {
        let cell = skewed();
        assert!((cell.volume() - 2.3 * 1.9 * 2.7).abs() < 1e-12);
        // The last width is the height over the plane of the first two vectors.
        assert!((cell.widths()[2] - 2.7).abs() < 1e-12);
        assert!(cell.widths()[0] < 2.3);
    }

    #[test]
    fn flat_and_infinite_cells_are_refused() {
        for vectors in [
            [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]],
            [[f64::NAN, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
            [[0.0; 3]; 3],
            [[f64::INFINITY, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        ] {
            assert!(Cell::new(vectors).unwrap_err().to_string().contains("spans no volume"));
        }
    }

    proptest! {
        #[test]
        fn images_differ_by_lattice_vectors_and_none_is_shorter(d in prop::array::uniform3(-9.0..9.0f64)) {
            let cell = skewed();
            for image in [cell.minimum_image(d), cell.wrap(d)] {
                let n = cell.fractional(std::array::from_fn(|c| d[c] - image[c]));
                prop_assert!(n.iter().all(|n| (n - n.round()).abs() < 1e-9));
            }
            prop_assert!(cell.fractional(cell.wrap(d)).iter().all(|f| (-1e-9..1.0 + 1e-9).contains(f)));
            let shortest = cell.minimum_image(d);
            for n in 0..125 {
                let t = cell.translation([n % 5 - 2, n / 5 % 5 - 2, n / 25 - 2]);
                let image = std::array::from_fn(|c| shortest[c] + t[c]);
                prop_assert!(dot(image, image) >= dot(shortest, shortest) - 1e-12);
            }
        }
    }
}
