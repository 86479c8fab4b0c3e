//! Leaf: which particles are near each other, in open space or in a periodic cell.
//!
//! A list holds all pairs within cutoff + skin of the positions it was built from and stays good until a particle has moved by
//! half the skin, less what a changing cell takes of it. Its order, and what a user of it computes from the pairs within the cutoff, do not depend on when that was:
//! the neighbours of a particle are sorted by their number, then by their image.

use crate::cell::Cell;
use crate::error::{Error, Result, bail};
use rayon::prelude::*;

/// Skin in units of the cutoff. Overdamped steps are large: a thin skin would be rebuilt every few of them.
pub const SKIN: f64 = 0.3;
/// Open frames up to this size list all pairs, once and for all.
pub const ALL_PAIRS: usize = 64;
/// Particles that one thread takes at a time.
const PER_TASK: usize = 64;
/// Positions this many cells away from the origin have lost their digits.
const FARTHEST: f64 = 1e6;

/// One entry of a list: particle `j`, its image, and where the same pair stands in the list of `j`.
#[derive(Clone, Copy, Debug)]
pub struct Neighbor {
    /// The neighbour.
    pub particle: u32,
    /// Position in [`Neighbors::entries`] of the same pair seen from the neighbour.
    pub reverse: u32,
    image: [i32; 3],
}

/// Some particles of a larger system, of which only the first ones' neighbours matter.
#[derive(Clone, Copy, Debug)]
pub struct Owned<'a> {
    /// They are so many.
    pub count: usize,
    /// Of each particle, its number in the whole system: neighbours are sorted as there.
    pub ids: &'a [u32],
}

/// The neighbours of every particle of one frame. All memory is kept for the next one.
#[derive(Default)]
pub struct Neighbors {
    cutoff: f64,
    cell: Option<Cell>,
    /// The cell the list was built in, and how many lattice vectors a pair near each other may be apart there.
    built_in: Option<Cell>,
    farthest: [f64; 3],
    /// As of [`Owned`]; all particles, and no ids, where there is none.
    n_owned: usize,
    ids: Vec<u32>,
    /// Positions the list was built from.
    built_at: Vec<f64>,
    /// The list of particle i is `entries[first[i]..first[i + 1]]`.
    first: Vec<usize>,
    entries: Vec<Neighbor>,
    /// Of each entry, the lattice vector to add to x_j; empty in open space.
    translations: Vec<[f64; 3]>,
    bins: Bins,
    parts: Vec<Part>,
}

/// What one task contributes to a list: entries of some particles, where those of each end, and where their reverses stand.
#[derive(Default)]
struct Part {
    entries: Vec<Neighbor>,
    ends: Vec<usize>,
    reverses: Vec<u32>,
}

/// Particles sorted into boxes.
#[derive(Default)]
struct Bins {
    /// Cell in which each particle lies, and its box.
    home: Vec<([i32; 3], [usize; 3])>,
    counts: [usize; 3],
    /// Particles of box b: `members[first[b]..first[b + 1]]`.
    first: Vec<usize>,
    members: Vec<u32>,
}

impl Neighbors {
    /// Make the list good for `positions` `[n][3]` (nm); whether it had to be built anew. With `owned`, pairs of which neither
    /// is an owned one are left out.
    pub fn update(
        &mut self,
        positions: &[f64],
        cell: Option<&Cell>,
        cutoff: f64,
        owned: Option<Owned>,
    ) -> Result<bool> {
        let Owned { count, ids } = owned.unwrap_or(Owned { count: positions.len() / 3, ids: &[] });
        let same = self.cutoff == cutoff
            && self.n_owned == count
            && self.ids == ids
            && self.built_at.len() == positions.len()
            && self.built_in.is_some() == cell.is_some()
            && !self.first.is_empty();
        let all_pairs = cell.is_none() && owned.is_none() && positions.len() / 3 <= ALL_PAIRS;
        if same && (all_pairs || !self.has_moved(positions, cell)) {
            if self.cell.as_ref() != cell {
                self.cell = cell.cloned();
                self.translate();
            }
            return Ok(false);
        }
        self.cutoff = cutoff;
        self.n_owned = count;
        self.ids.clear();
        self.ids.extend_from_slice(ids);
        if self.cell.as_ref() != cell || self.built_in.as_ref() != cell {
            self.cell = cell.cloned();
            self.built_in = cell.cloned();
        }
        self.built_at.clear();
        self.built_at.extend_from_slice(positions);
        let radius = if all_pairs { f64::INFINITY } else { (1.0 + SKIN) * cutoff };
        self.build(radius)?;
        Ok(true)
    }

    /// All entries; those of a particle stand together.
    pub fn entries(&self) -> &[Neighbor] {
        &self.entries
    }

    /// Where the entries of particle `i` stand.
    pub fn of(&self, i: usize) -> std::ops::Range<usize> {
        self.first[i]..self.first[i + 1]
    }

    /// x_j − x_i of entry `e` of particle `i`; its reverse has the same numbers with the other sign, to the last bit.
    #[inline(always)]
    pub fn difference(&self, positions: &[f64], i: usize, e: usize) -> [f64; 3] {
        let j = self.entries[e].particle as usize;
        let (from, to) = (&positions[3 * i..3 * i + 3], &positions[3 * j..3 * j + 3]);
        let d = [to[0] - from[0], to[1] - from[1], to[2] - from[2]];
        match self.translations.get(e) {
            Some(t) => [d[0] + t[0], d[1] + t[1], d[2] + t[2]],
            None => d,
        }
    }

    /// Whether a particle has moved by half of what the cell's images leave of the skin; not a number counts as moved.
    fn has_moved(&self, positions: &[f64], cell: Option<&Cell>) -> bool {
        let mut skin = SKIN * self.cutoff;
        if let (Some(cell), Some(built)) = (cell, &self.built_in) {
            for (k, (v, w)) in cell.vectors().iter().zip(built.vectors()).enumerate() {
                let d: [f64; 3] = std::array::from_fn(|c| v[c] - w[c]);
                skin -= self.farthest[k] * (d[0] * d[0] + d[1] * d[1] + d[2] * d[2]).sqrt();
            }
        }
        let limit = (0.5 * skin.max(0.0)).powi(2);
        let both = positions.as_chunks::<3>().0.iter().zip(self.built_at.as_chunks::<3>().0);
        let mut stayed = true;
        for (x, y) in both {
            let d = [x[0] - y[0], x[1] - y[1], x[2] - y[2]];
            stayed &= d[0] * d[0] + d[1] * d[1] + d[2] * d[2] < limit;
        }
        !stayed
    }

    fn build(&mut self, radius: f64) -> Result<()> {
        let n = self.built_at.len() / 3;
        self.bins.fill(&self.built_at, self.cell.as_ref(), radius)?;
        if let Some(cell) = &self.built_in {
            for (k, width) in cell.widths().into_iter().enumerate() {
                let homes = || self.bins.home.iter().map(|(home, _)| home[k]);
                let (low, high) = (homes().min().unwrap_or(0), homes().max().unwrap_or(0));
                self.farthest[k] = f64::from(high - low) + 1.0 + (radius / width).ceil();
            }
        }
        self.first.clear();
        self.entries.clear();
        let mut parts = std::mem::take(&mut self.parts);
        let n_tasks = n.div_ceil(PER_TASK);
        parts.resize_with(n_tasks.max(parts.len()), Part::default);
        for part in &mut parts {
            part.entries.clear();
            part.ends.clear();
            part.reverses.clear();
        }
        self.in_tasks(&mut parts[..n_tasks], |list, i, part| {
            let start = part.entries.len();
            list.find(i, radius, &mut part.entries);
            part.entries[start..].sort_unstable_by_key(|e| (list.id(e.particle), e.image));
            part.ends.push(part.entries.len());
        });
        self.first.push(0);
        for part in &parts[..n_tasks] {
            let before = self.entries.len();
            self.first.extend(part.ends.iter().map(|end| before + end));
            self.entries.extend_from_slice(&part.entries);
        }
        if self.entries.len() > u32::MAX as usize {
            bail!(InvalidArgument, "{n} particles have {} neighbours; too many", self.entries.len());
        }
        self.in_tasks(&mut parts[..n_tasks], |list, i, part| {
            for e in list.of(i) {
                let Neighbor { particle, image, .. } = list.entries[e];
                let of_j = list.of(particle as usize);
                let key = (list.id(i as u32), image.map(|n| -n));
                let of = |e: &Neighbor| (list.id(e.particle), e.image);
                let found = list.entries[of_j.clone()].binary_search_by_key(&key, of);
                // A pair at the very edge of the list may be seen from one side only: it is far beyond the cutoff.
                part.reverses.push(found.map_or(e, |k| of_j.start + k) as u32);
            }
        });
        let reverses = parts[..n_tasks].iter().flat_map(|part| &part.reverses);
        self.entries.iter_mut().zip(reverses).for_each(|(entry, reverse)| entry.reverse = *reverse);
        self.parts = parts;
        self.translate();
        Ok(())
    }

    /// The lattice vectors of all entries in the present cell.
    fn translate(&mut self) {
        self.translations.clear();
        if let Some(cell) = &self.cell {
            self.translations.extend(self.entries.iter().map(|e| cell.translation(e.image)));
        }
    }

    /// Run `work` for every particle with the part it belongs to, on the threads of the pool that this thread belongs to.
    fn in_tasks(&self, parts: &mut [Part], work: impl Fn(&Self, usize, &mut Part) + Sync) {
        let n = self.built_at.len() / 3;
        let task = |(t, part): (usize, &mut Part)| {
            (t * PER_TASK..n.min((t + 1) * PER_TASK)).for_each(|i| work(self, i, part));
        };
        if rayon::current_thread_index().is_some() {
            parts.par_iter_mut().enumerate().for_each(task);
        } else {
            parts.iter_mut().enumerate().for_each(task);
        }
    }

    /// Number of a particle in the whole system.
    fn id(&self, i: u32) -> u32 {
        self.ids.get(i as usize).copied().unwrap_or(i)
    }

    /// Append all entries of particle `i` to `entries`.
    fn find(&self, i: usize, radius: f64, entries: &mut Vec<Neighbor>) {
        let (home, own) = self.bins.home[i];
        let is_owned = |i: usize| i < self.n_owned;
        let x: [f64; 3] = std::array::from_fn(|c| self.built_at[3 * i + c]);
        let cell = self.cell.as_ref();
        // How many boxes away a neighbour may be.
        let reach: [i64; 3] = std::array::from_fn(|k| match cell {
            Some(cell) => (radius * self.bins.counts[k] as f64 / cell.widths()[k]).ceil() as i64,
            None => 1,
        });
        let steps = |k: usize| -reach[k]..=reach[k];
        for da in steps(0) {
            for db in steps(1) {
                for dc in steps(2) {
                    let (mut shift, mut at) = ([0; 3], [0; 3]);
                    for (k, step) in [da, db, dc].into_iter().enumerate() {
                        let count = self.bins.counts[k] as i64;
                        let target = own[k] as i64 + step;
                        shift[k] = target.div_euclid(count) as i32;
                        at[k] = target.rem_euclid(count) as usize;
                    }
                    if cell.is_none() && shift != [0; 3] {
                        continue;
                    }
                    let translation = cell.map_or([0.0; 3], |c| c.translation(shift));
                    for &j in self.bins.members(at) {
                        let ju = j as usize;
                        let image = std::array::from_fn(|k| shift[k] - self.bins.home[ju].0[k] + home[k]);
                        if ju == i && image == [0; 3] || !is_owned(i) && !is_owned(ju) {
                            continue;
                        }
                        let y = &self.built_at[3 * ju..3 * ju + 3];
                        let t = if image == shift {
                            translation
                        } else {
                            cell.map_or([0.0; 3], |c| c.translation(image))
                        };
                        let d: [f64; 3] = std::array::from_fn(|c| y[c] - x[c] + t[c]);
                        if d[0] * d[0] + d[1] * d[1] + d[2] * d[2] < radius * radius {
                            entries.push(Neighbor { particle: j, reverse: 0, image });
                        }
                    }
                }
            }
        }
    }
}

impl Bins {
    fn fill(&mut self, positions: &[f64], cell: Option<&Cell>, radius: f64) -> Result<()> {
        let particles = positions.as_chunks::<3>().0;
        let n = particles.len();
        // More boxes than particles along an edge are of no use.
        let most = 2 * (n as f64).cbrt().ceil() as usize + 1;
        let (mut low, mut extent) = ([0.0; 3], [0.0; 3]);
        if let Some(cell) = cell {
            extent = cell.widths();
        } else {
            for c in 0..3 {
                let values = || particles.iter().map(|x| x[c]);
                low[c] = values().fold(f64::INFINITY, f64::min);
                extent[c] = values().fold(f64::NEG_INFINITY, f64::max) - low[c];
            }
        }
        self.counts = extent.map(|e| ((e / radius).floor() as usize).clamp(1, most));
        self.home.clear();
        for (i, x) in particles.iter().enumerate() {
            let (home, within) = match cell {
                Some(cell) => {
                    let f = cell.fractional(*x);
                    (f.map(f64::floor), f.map(|f| f - f.floor()))
                }
                None => ([0.0; 3], std::array::from_fn(|c| (x[c] - low[c]) / extent[c].max(radius))),
            };
            if !(x.iter().all(|x| x.is_finite()) && home.iter().all(|h| h.abs() < FARTHEST)) {
                return Err(too_far(i, *x));
            }
            let at = std::array::from_fn(|k| {
                let count = self.counts[k];
                ((within[k] * count as f64) as usize).min(count - 1)
            });
            self.home.push((home.map(|h| h as i32), at));
        }
        let n_boxes = self.counts.iter().product::<usize>();
        self.first.clear();
        self.first.resize(n_boxes + 1, 0);
        for (_, at) in &self.home {
            self.first[number(self.counts, *at) + 1] += 1;
        }
        for b in 0..n_boxes {
            self.first[b + 1] += self.first[b];
        }
        self.members.clear();
        self.members.resize(n, 0);
        // Backwards, so that `first` ends as it should and the members of a box stand in order.
        for (i, (_, at)) in self.home.iter().enumerate().rev() {
            let end = &mut self.first[number(self.counts, *at) + 1];
            *end -= 1;
            self.members[*end] = i as u32;
        }
        self.first.rotate_left(1);
        self.first[n_boxes] = n;
        Ok(())
    }

    fn members(&self, at: [usize; 3]) -> &[u32] {
        let b = number(self.counts, at);
        &self.members[self.first[b]..self.first[b + 1]]
    }
}

/// What is said of a particle that no box can be found for.
pub fn too_far(particle: usize, x: [f64; 3]) -> Error {
    Error::NotFinite(format!(
        "the position of particle {particle} is {x:?} nm, too far away or not a number; start from frames like the \
         training data, or use a stiffer spring"
    ))
}

fn number(counts: [usize; 3], at: [usize; 3]) -> usize {
    (at[0] * counts[1] + at[1]) * counts[2] + at[2]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions(n: usize, scale: f64) -> Vec<f64> {
        (0..3 * n).map(|i| scale * crate::noise::normals(3, 0, i as u32, 1)[i % 3] as f64).collect()
    }

    /// (i, j, difference rounded) of all pairs within the cutoff, by trying every image.
    fn brute_force(x: &[f64], cell: Option<&Cell>, cutoff: f64) -> Vec<(usize, usize, [i64; 3])> {
        let mut found = Vec::new();
        let images = if cell.is_some() { 9i32 } else { 1 };
        for i in 0..x.len() / 3 {
            for j in 0..x.len() / 3 {
                for n in 0..images.pow(3) {
                    let half = images / 2;
                    let n = [n % images - half, n / images % images - half, n / images / images - half];
                    let t = cell.map_or([0.0; 3], |c| {
                        let f = c.fractional(std::array::from_fn(|c| x[3 * i + c] - x[3 * j + c]));
                        c.translation(std::array::from_fn(|k| n[k] + f[k].round() as i32))
                    });
                    let d: [f64; 3] = std::array::from_fn(|c| x[3 * j + c] - x[3 * i + c] + t[c]);
                    let r2 = d.iter().map(|d| d * d).sum::<f64>();
                    if r2 < cutoff * cutoff && !(i == j && r2 < 1e-12) {
                        found.push((i, j, d.map(|d| (d * 1e9).round() as i64)));
                    }
                }
            }
        }
        found.sort_unstable();
        found
    }

    fn listed(list: &Neighbors, x: &[f64], cutoff: f64) -> Vec<(usize, usize, [i64; 3])> {
        let mut found = Vec::new();
        for i in 0..x.len() / 3 {
            for e in list.of(i) {
                let d = list.difference(x, i, e);
                if d.iter().map(|d| d * d).sum::<f64>() < cutoff * cutoff {
                    let entry = list.entries()[e];
                    let back = list.difference(x, entry.particle as usize, entry.reverse as usize);
                    assert_eq!(d, back.map(|b| -b));
                    found.push((i, entry.particle as usize, d.map(|d| (d * 1e9).round() as i64)));
                }
            }
        }
        found.sort_unstable();
        found
    }

    #[test]
    fn lists_hold_every_pair_once() {
        let skewed = Cell::new([[2.3, 0.0, 0.0], [0.7, 1.9, 0.0], [-0.5, 0.6, 2.7]]).unwrap();
        let thin = Cell::new([[0.8, 0.0, 0.0], [0.2, 0.9, 0.0], [0.1, -0.3, 5.2]]).unwrap();
        for (n, cell) in [(7, None), (300, None), (90, Some(&skewed)), (40, Some(&thin)), (1, Some(&thin))] {
            let mut x = positions(n, 1.7);
            let mut list = Neighbors::default();
            assert!(list.update(&x, cell, 0.61, None).unwrap());
            assert_eq!(listed(&list, &x, 0.61), brute_force(&x, cell, 0.61), "{n} particles");
            // Still good after a small move, built anew after a large one.
            x.iter_mut().enumerate().for_each(|(i, x)| *x += 0.05 * (i as f64).sin());
            assert!(!list.update(&x, cell, 0.61, None).unwrap());
            assert_eq!(listed(&list, &x, 0.61), brute_force(&x, cell, 0.61), "{n} particles");
            // Also in a cell that changes.
            for (strain, is_good) in [(1e-3, true), (0.2, false)] {
                let strained = cell
                    .map(|c| Cell::new(c.vectors().map(|v| [v[0] * (1.0 + strain), v[1], v[2]])).unwrap());
                assert_eq!(
                    !list.update(&x, strained.as_ref(), 0.61, None).unwrap(),
                    is_good || cell.is_none()
                );
                assert_eq!(
                    listed(&list, &x, 0.61),
                    brute_force(&x, strained.as_ref(), 0.61),
                    "{n} particles"
                );
                list.update(&x, cell, 0.61, None).unwrap();
            }
            x.iter_mut().enumerate().for_each(|(i, x)| *x += 3.05 * (i as f64).cos());
            assert!(list.update(&x, cell, 0.61, None).unwrap() || n <= ALL_PAIRS && cell.is_none());
            assert_eq!(listed(&list, &x, 0.61), brute_force(&x, cell, 0.61), "{n} particles");
        }
    }

    /// Of owned particles and others around them, those with an owned one, in the order of the ids.
    #[test]
    fn pairs_of_others_are_left_out() {
        let x = positions(90, 1.7);
        let skewed = Cell::new([[2.3, 0.0, 0.0], [0.7, 1.9, 0.0], [-0.5, 0.6, 2.7]]).unwrap();
        let ids: Vec<u32> = (0..90).map(|i| (i * 37 + 5) % 90).collect();
        for (count, cell) in [(0, None), (20, None), (20, Some(&skewed)), (90, Some(&skewed))] {
            let mut list = Neighbors::default();
            list.update(&x, cell, 0.61, Some(Owned { count, ids: &ids })).unwrap();
            let mut all = brute_force(&x, cell, 0.61);
            all.retain(|(i, j, _)| *i < count || *j < count);
            assert_eq!(listed(&list, &x, 0.61), all);
            for i in 0..90 {
                assert!(list.entries()[list.of(i)].is_sorted_by_key(|e| (ids[e.particle as usize], e.image)));
            }
            // Other numbers are another order.
            assert!(!list.update(&x, cell, 0.61, Some(Owned { count, ids: &ids })).unwrap());
            let natural: Vec<u32> = (0..90).collect();
            assert!(list.update(&x, cell, 0.61, Some(Owned { count, ids: &natural })).unwrap());
        }
    }

    #[test]
    fn positions_that_are_no_numbers_are_errors() {
        let mut x = positions(70, 1.0);
        x[31] = f64::NAN;
        let error = Neighbors::default().update(&x, None, 0.5, None).unwrap_err().to_string();
        assert!(error.contains("particle 10"), "{error}");
    }
}
