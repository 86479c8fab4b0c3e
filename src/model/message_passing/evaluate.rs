//! Energy and gradient of one frame: messages forward block by block, then the same way back.
//!
//! Every particle gathers: forward from its neighbours' messages, backward, as the source of messages, from the gradients of
//! those who received them. So nobody writes where another does, and all sums have their order from the list of neighbours.
//! ∂E/∂(x_a − x_b) of a message from a to b is kept for each entry of the list; a particle's score is the sum over its own
//! entries and their reverses. Hence the particles of a large frame may be shared out over threads, and the bits stay the same.
//!
//! And over processes: one that owns some particles has, of their neighbours, what those send and the gradients by what they
//! received, which their owners have computed and all exchange between passes. So each gathers what the whole frame would.

use super::dense::{GROUP, silu};
use super::filter::{Interval, Place, envelope};
use super::{Block, Message, Network};
use crate::error::Result;
use crate::lane::{CacheLine, Lanes, Packed, Real};
use crate::model::Frames;
use crate::neighbors::{Neighbors, Owned};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Particles that one thread takes at a time, a multiple of [`GROUP`].
pub(super) const PER_TASK: usize = 64;

/// A neighbour within the cutoff.
#[derive(Clone, Copy, Default)]
struct Edge<R> {
    particle: u32,
    /// Entry in the list of neighbours.
    entry: u32,
    distance: R,
    inverse: R,
    /// From the particle to its neighbour.
    direction: [R; 3],
    place: Place<R>,
    /// Half the repulsion of the pair and half its slope.
    repulsion: [R; 2],
}

/// What evaluations work with; it grows to what they need and is then reused.
#[derive(Default)]
pub(crate) struct Workspace<R> {
    /// One list for each frame of a batch.
    lists: Vec<Neighbors>,
    /// The edges of a particle stand where its list of neighbours does, closed up.
    edges: Vec<Edge<R>>,
    n_edges: Vec<u32>,
    /// ∂E/∂(x_a − x_b), where `a` is the particle of the entry.
    gradients: Vec<[R; 3]>,
    memory: Vec<R>,
    /// Of the last frame: the energy of each particle, kT₀.
    pub(super) energies: Vec<R>,
    /// Of the last frame, where asked for: the virial of each particle's entries, kT₀.
    pub(super) virials: Vec<[f64; 9]>,
}

/// Lengths of rows, in numbers.
#[derive(Clone, Copy)]
struct Layout {
    f: usize,
    n_mixed: usize,
    n_blocks: usize,
}

impl Layout {
    fn of(network: &Network) -> Self {
        let n_mixed = if network.chiral { 3 } else { 2 };
        Layout { f: network.width, n_mixed, n_blocks: network.blocks.len() }
    }

    fn n_gates(self, block: usize) -> usize {
        self.n_mixed + usize::from(block + 1 < self.n_blocks)
    }

    /// What the update of a block leaves for its gradient: mixed vectors, gates, lengths, slopes.
    fn saved(self, block: usize) -> usize {
        (3 * self.n_mixed + self.n_gates(block) + 2) * self.f
    }

    /// Messages p, p′, p″ and the vectors before them.
    fn message(self) -> usize {
        6 * self.f
    }

    /// ∂E/∂s and ∂E/∂v.
    fn upstream(self) -> usize {
        4 * self.f
    }

    /// What a particle alone needs: s, and for each block but the last what its update and the next messages leave.
    fn own(self) -> usize {
        self.f + (0..self.n_blocks - 1).map(|b| self.saved(b) + self.f).sum::<usize>()
    }

    /// Work space for each particle of a group.
    fn temporary(self) -> usize {
        self.saved(self.n_blocks - 1) + (3 + 2 + 1 + 1 + 4 + 3 * self.n_mixed + 2 + 1 + 3 + 3) * self.f
    }
}

/// Numbers in the longest row that is exchanged.
pub(super) fn exchange_width(network: &Network) -> usize {
    let layout = Layout::of(network);
    if layout.n_blocks > 1 { layout.message() } else { layout.upstream() }
}

/// Cut off the first `n` numbers.
fn take<'a, R>(memory: &mut &'a mut [R], n: usize) -> &'a mut [R] {
    let (first, rest) = std::mem::take(memory).split_at_mut(n);
    *memory = rest;
    first
}

/// Work space of a group.
struct Temporary<'a, R> {
    saved: &'a mut [R],
    /// v, then its gradient.
    v: &'a mut [R],
    /// s and lengths, and gradients of both.
    x: &'a mut [R],
    x_back: &'a mut [R],
    hidden: &'a mut [R],
    slopes: &'a mut [R],
    gates_back: &'a mut [R],
    mixed_back: &'a mut [R],
    s: &'a mut [R],
    p: &'a mut [R],
    v_back: &'a mut [R],
}

impl<'a, R> Temporary<'a, R> {
    fn split(mut memory: &'a mut [R], layout: Layout) -> Self {
        let f = GROUP * layout.f;
        let m = &mut memory;
        Temporary {
            saved: take(m, GROUP * layout.saved(layout.n_blocks - 1)),
            v: take(m, 3 * f),
            x: take(m, 2 * f),
            x_back: take(m, 2 * f),
            hidden: take(m, f),
            slopes: take(m, f),
            gates_back: take(m, 4 * f),
            mixed_back: take(m, 3 * layout.n_mixed * f),
            s: take(m, f),
            p: take(m, 3 * f),
            v_back: take(m, 3 * f),
        }
    }
}

/// What a group's update leaves for its gradient.
struct Saved<'a, R> {
    /// U, V and T of each component, `[GROUP][3][n_mixed][F]`
    mixed: &'a mut [R],
    gates: &'a mut [R],
    lengths: &'a mut [R],
    slopes: &'a mut [R],
}

impl<'a, R> Saved<'a, R> {
    fn split(mut memory: &'a mut [R], layout: Layout, block: usize) -> Self {
        let f = GROUP * layout.f;
        let m = &mut memory;
        Saved {
            mixed: take(m, 3 * layout.n_mixed * f),
            gates: take(m, layout.n_gates(block) * f),
            lengths: take(m, f),
            slopes: take(m, f),
        }
    }
}

/// The part of a group's own memory that belongs to a block that is not the last: saved, and the slopes of the next messages.
fn own_block<R>(own: &mut [R], layout: Layout, block: usize) -> (Saved<'_, R>, &mut [R]) {
    let before = layout.f + (0..block).map(|b| layout.saved(b) + layout.f).sum::<usize>();
    let (saved, rest) = own[GROUP * before..].split_at_mut(GROUP * layout.saved(block));
    (Saved::split(saved, layout, block), &mut rest[..GROUP * layout.f])
}

/// What all passes over the particles read.
#[derive(Clone, Copy)]
struct Context<'a, R> {
    network: &'a Network,
    layout: Layout,
    species: &'a [u16],
    list: &'a Neighbors,
    positions: &'a [f64],
    edges: &'a [Edge<R>],
    n_edges: &'a [u32],
    block: usize,
    /// Messages of this block, `[n][message]`; empty in the first.
    messages: &'a [R],
    /// Gradients by what the messages of this block were added to, `[n][upstream]`; on the way back.
    upstream: &'a [R],
    /// Gradients of all entries, once they are complete.
    gradients: &'a [[R; 3]],
}

/// A pass over some particles, whose arrays begin with the first of them. Those of `own` end with the last own particle.
enum Pass<'a, R> {
    Edges {
        edges: &'a mut [Edge<R>],
        n_edges: &'a mut [u32],
    },
    /// Writes the messages of the next block or, after the last, the gradients.
    Forward {
        own: &'a mut [R],
        next: &'a mut [R],
        energies: &'a mut [R],
        temporary: &'a mut [R],
    },
    Backward {
        own: &'a mut [R],
        next: &'a mut [R],
        gradients: &'a mut [[R; 3]],
        temporary: &'a mut [R],
    },
    /// `virials` may be empty.
    Scores {
        scores: &'a mut [[f64; 3]],
        virials: &'a mut [[f64; 9]],
    },
}

/// A pass over `particles` and what it reads.
pub(crate) struct Job<'a, R> {
    context: Context<'a, R>,
    particles: Range<usize>,
    pass: Pass<'a, R>,
}

impl<'a, R: Machine> Job<'a, R> {
    /// Run it in tasks of [`PER_TASK`] particles on the threads of the pool that this thread belongs to.
    fn spread(self) {
        let n_tasks = self.particles.len().div_ceil(PER_TASK);
        if n_tasks <= 1 {
            return R::run(self);
        }
        let [first, second] = self.split_at(n_tasks / 2);
        rayon::join(|| first.spread(), || second.spread());
    }

    /// The first `n_tasks` tasks, and the others.
    fn split_at(self, n_tasks: usize) -> [Self; 2] {
        let Job { context, particles, pass } = self;
        let Context { layout, list, .. } = context;
        let n = n_tasks * PER_TASK;
        let middle = particles.start + n;
        let n_entries = list.of(middle).start - list.of(particles.start).start;
        let n_temporary = n_tasks * GROUP * layout.temporary();
        let passes = match pass {
            Pass::Edges { edges, n_edges } => {
                let (edges, n_edges) = (edges.split_at_mut(n_entries), n_edges.split_at_mut(n));
                [
                    Pass::Edges { edges: edges.0, n_edges: n_edges.0 },
                    Pass::Edges { edges: edges.1, n_edges: n_edges.1 },
                ]
            }
            Pass::Forward { own, next, energies, temporary } => {
                let row = if context.is_last() { layout.upstream() } else { layout.message() };
                let (own, next) = (own.split_at_mut(n * layout.own()), next.split_at_mut(n * row));
                let (energies, temporary) = (energies.split_at_mut(n), temporary.split_at_mut(n_temporary));
                [
                    Pass::Forward { own: own.0, next: next.0, energies: energies.0, temporary: temporary.0 },
                    Pass::Forward { own: own.1, next: next.1, energies: energies.1, temporary: temporary.1 },
                ]
            }
            Pass::Backward { own, next, gradients, temporary } => {
                let n_own = (n * layout.own()).min(own.len());
                let (own, next) = (own.split_at_mut(n_own), next.split_at_mut(n * layout.upstream()));
                let (gradients, temporary) =
                    (gradients.split_at_mut(n_entries), temporary.split_at_mut(n_temporary));
                [
                    Pass::Backward {
                        own: own.0,
                        next: next.0,
                        gradients: gradients.0,
                        temporary: temporary.0,
                    },
                    Pass::Backward {
                        own: own.1,
                        next: next.1,
                        gradients: gradients.1,
                        temporary: temporary.1,
                    },
                ]
            }
            Pass::Scores { scores, virials } => {
                let scores = scores.split_at_mut(n);
                let virials = virials.split_at_mut(n.min(virials.len()));
                [
                    Pass::Scores { scores: scores.0, virials: virials.0 },
                    Pass::Scores { scores: scores.1, virials: virials.1 },
                ]
            }
        };
        let mut ranges = [particles.start..middle, middle..particles.end].into_iter();
        passes.map(|pass| Job { context, particles: ranges.next().expect("two parts"), pass })
    }
}

impl<R: Real> Job<'_, R> {
    #[inline(always)]
    fn execute<T: Lanes<Scalar = R>>(self, zero: T) {
        let Job { context, particles, pass } = self;
        match pass {
            Pass::Edges { edges, n_edges } => context.find_edges(particles, edges, n_edges),
            Pass::Forward { own, next, energies, temporary } => {
                context.forward(zero, particles, own, next, energies, temporary)
            }
            Pass::Backward { own, next, gradients, temporary } => {
                context.backward(zero, particles, own, next, gradients, temporary)
            }
            Pass::Scores { scores, virials } => context.scores(particles, scores, virials),
        }
    }
}

impl WithSimd for Job<'_, f32> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.execute(Packed::zero(simd));
    }
}

/// Runs a pass with what the machine has for this kind of number.
pub(crate) trait Machine: Real + Send + Sync {
    fn run(job: Job<Self>);
}

impl Machine for f32 {
    fn run(job: Job<f32>) {
        job.context.network.arch.dispatch(job);
    }
}

impl Machine for f64 {
    fn run(job: Job<f64>) {
        job.execute(0.0f64);
    }
}

/// What one process of several has to do with the others, and how it computes.
pub struct Others<'a, R = f32> {
    /// Particles of its own; they come first.
    pub n_owned: usize,
    /// Of each particle, its number in the whole system.
    pub ids: &'a [u32],
    /// Fills the rows, of so many numbers, of the particles that are not its own with those that their owners have.
    pub exchange: &'a mut dyn FnMut(&mut [R], usize) -> Result<()>,
    /// So many threads
    pub n_threads: usize,
    /// run work.
    pub run: &'a mut dyn FnMut(&mut (dyn FnMut() + Send)) -> Result<()>,
}

/// How passes are run.
struct Runner<'a, R> {
    spreads: bool,
    others: Option<Others<'a, R>>,
}

impl<R: Machine> Runner<'_, R> {
    fn run(&mut self, context: Context<R>, particles: Range<usize>, pass: Pass<R>) -> Result<()> {
        if particles.is_empty() {
            return Ok(());
        }
        let job = Job { context, particles, pass };
        match &mut self.others {
            Some(others) if self.spreads => {
                let mut job = Some(job);
                (others.run)(&mut || job.take().expect("run once").spread())
            }
            None if self.spreads => {
                job.spread();
                Ok(())
            }
            _ => {
                R::run(job);
                Ok(())
            }
        }
    }

    fn exchange(&mut self, rows: &mut [R], width: usize) -> Result<()> {
        self.others.as_mut().map_or(Ok(()), |s| (s.exchange)(rows, width))
    }
}

impl<R: Machine> Workspace<R> {
    /// Scores (1/nm) of frame number `index` of a batch, its particles being of these `species`; energies and, `with_virials`,
    /// virials of the particles stay here. Of a domain, that of its own particles alone.
    pub(super) fn frame(
        &mut self,
        network: &Network,
        species: &[u16],
        index: usize,
        frame: Frames,
        mut others: Option<Others<R>>,
        scores: &mut [f64],
        with_virials: bool,
    ) -> Result<()> {
        let Frames { positions, cell } = frame;
        if self.lists.len() <= index {
            self.lists.resize_with(index + 1, Neighbors::default);
        }
        let layout = Layout::of(network);
        let n = species.len();
        let spreads = n > PER_TASK
            && match &others {
                Some(others) => others.n_threads > 1,
                None => rayon::current_thread_index().is_some() && rayon::current_num_threads() > 1,
            };
        let list = &mut self.lists[index];
        let n_owned = match &mut others {
            None => {
                list.update(positions, cell, network.cutoff, None)?;
                n
            }
            Some(Others { n_owned, ids, run, .. }) => {
                let owned = Some(Owned { count: *n_owned, ids });
                let mut updated = Ok(false);
                if n > 0 {
                    run(&mut || updated = list.update(positions, cell, network.cutoff, owned))?;
                }
                updated?;
                *n_owned
            }
        };
        let mut runner = Runner { spreads, others };
        let list = &self.lists[index];
        let n_entries = list.entries().len();
        if self.edges.len() < n_entries {
            self.edges.resize_with(n_entries, Edge::default);
            self.gradients.resize(n_entries, [R::default(); 3]);
        }
        self.n_edges.resize(n.max(self.n_edges.len()), 0);
        self.energies.resize(n.max(self.energies.len()), R::default());
        self.virials.resize(if with_virials { n_owned } else { 0 }, [0.0; 9]);

        let n_tasks = if spreads { n.div_ceil(PER_TASK) } else { 1 };
        let sizes = [
            n_owned.div_ceil(GROUP) * GROUP * layout.own(),
            (layout.n_blocks - 1) * n * layout.message(),
            n * layout.upstream(),
            n * layout.upstream(),
            n_tasks * GROUP * layout.temporary(),
        ];
        let total = sizes.iter().sum::<usize>() + CacheLine::LEN;
        if self.memory.len() < total {
            self.memory.resize(total, R::default());
        }
        let start = self.memory.as_ptr().align_offset(align_of::<CacheLine>()).min(CacheLine::LEN);
        let mut memory = &mut self.memory[start..];
        let [own, messages, upstream, next_upstream, temporary] = sizes.map(|size| take(&mut memory, size));

        let context = Context {
            network,
            layout,
            species,
            list,
            positions,
            edges: &[],
            n_edges: &[],
            block: 0,
            messages: &[],
            upstream: &[],
            gradients: &[],
        };
        runner.run(context, 0..n, Pass::Edges { edges: &mut self.edges, n_edges: &mut self.n_edges })?;
        let context = Context { edges: &self.edges, n_edges: &self.n_edges, ..context };

        let message_size = n * layout.message();
        for block in 0..layout.n_blocks {
            let (before, after) = messages.split_at_mut(block * message_size);
            let messages = if block == 0 { &[] } else { &before[(block - 1) * message_size..] };
            let context = Context { block, messages, ..context };
            let (next, width) = match context.is_last() {
                true => (&mut *upstream, layout.upstream()),
                false => (&mut after[..message_size], layout.message()),
            };
            let energies = &mut self.energies;
            runner.run(context, 0..n_owned, Pass::Forward { own, next, energies, temporary })?;
            runner.exchange(next, width)?;
        }
        // As sources of messages all particles count that an own one has a message from.
        let (mut current, mut following) = (upstream, next_upstream);
        for block in (0..layout.n_blocks).rev() {
            let messages =
                if block == 0 { &[] } else { &messages[(block - 1) * message_size..block * message_size] };
            let context = Context { block, messages, upstream: current, ..context };
            let gradients = &mut self.gradients;
            runner.run(context, 0..n, Pass::Backward { own, next: following, gradients, temporary })?;
            if block > 0 {
                runner.exchange(following, layout.upstream())?;
            }
            std::mem::swap(&mut current, &mut following);
        }
        let context = Context { gradients: &self.gradients, ..context };
        let pass = Pass::Scores { scores: scores.as_chunks_mut().0, virials: &mut self.virials };
        runner.run(context, 0..n_owned, pass)
    }
}

impl<R: Real> Context<'_, R> {
    #[inline(always)]
    fn edges_of(&self, i: usize) -> &[Edge<R>] {
        &self.edges[self.list.of(i).start..][..self.n_edges[i] as usize]
    }

    fn is_last(&self) -> bool {
        self.block + 1 == self.layout.n_blocks
    }

    #[inline(always)]
    fn scores(&self, particles: Range<usize>, scores: &mut [[f64; 3]], virials: &mut [[f64; 9]]) {
        let (entries, first) = (self.list.entries(), particles.start);
        for (i, score) in particles.zip(scores) {
            *score = [0.0; 3];
            let mut virial = [0.0; 9];
            for edge in self.edges_of(i) {
                let gradient = self.gradients[edge.entry as usize];
                let reverse = self.gradients[entries[edge.entry as usize].reverse as usize];
                for (c, s) in score.iter_mut().enumerate() {
                    *s += (reverse[c] - gradient[c]).to_f64();
                }
                if !virials.is_empty() {
                    for (k, w) in virial.iter_mut().enumerate() {
                        *w += (gradient[k / 3] * edge.direction[k % 3] * edge.distance).to_f64();
                    }
                }
            }
            if let Some(out) = virials.get_mut(i - first) {
                *out = virial;
            }
        }
    }

    #[inline(always)]
    fn find_edges(&self, particles: Range<usize>, edges: &mut [Edge<R>], n_edges: &mut [u32]) {
        let network = self.network;
        let cutoff = R::from_f64(network.cutoff);
        let density = R::from_f64((network.n_knots - 1) as f64 / network.cutoff);
        let last = network.n_knots as u32 - 2;
        let zero = R::default();
        let n_species = network.species.len();
        let softening = zero.constant(network.softening_squared);
        let offset = self.list.of(particles.start).start;
        for (i, n_edges) in particles.zip(n_edges) {
            let species = self.species[i];
            let range = self.list.of(i);
            let start = range.start - offset;
            let reach = &network.repulsion[species as usize * n_species..][..n_species];
            let mut n = 0;
            for e in range {
                let d = self.list.difference(self.positions, i, e).map(R::from_f64);
                let squared = d[2].mul_add(d[2], d[1].mul_add(d[1], d[0] * d[0]));
                let r = squared.sqrt();
                // Not a number is kept, to be noticed.
                if r >= cutoff {
                    continue;
                }
                let particle = self.list.entries()[e].particle;
                let inverse = r.recip();
                let reach = reach[self.species[particle as usize] as usize];
                let mut repulsion = [zero; 2];
                if reach > 0.0 {
                    // half of f (d²/(r² + softening²))⁶
                    let base = (squared + softening).recip();
                    let q = base.constant(reach) * base;
                    let q6 = zero.constant(0.5) * (q * q * q) * (q * q * q);
                    let [f, slope] = envelope(r * cutoff.recip());
                    let inner = slope * cutoff.recip() - zero.constant(12.0) * (f * (r * base));
                    repulsion = [f * q6, inner * q6];
                }
                edges[start + n] = Edge {
                    particle,
                    entry: e as u32,
                    distance: r,
                    inverse,
                    direction: d.map(|d| d * inverse),
                    place: Place::new(r, density, last),
                    repulsion,
                };
                n += 1;
            }
            *n_edges = n as u32;
        }
    }

    #[inline(always)]
    fn forward<T: Lanes<Scalar = R>>(
        &self,
        zero: T,
        range: Range<usize>,
        own: &mut [R],
        next: &mut [R],
        energies: &mut [R],
        temporary: &mut [R],
    ) {
        let Context { network, layout, block: b, .. } = *self;
        let f = layout.f;
        let block = &network.blocks[b];
        let last = self.is_last();
        let embedding: &[f32] = bytemuck::cast_slice(&network.embedding);
        let first = range.start;
        for (start, own) in range.clone().step_by(GROUP).zip(own.chunks_exact_mut(GROUP * layout.own())) {
            let particles = start..range.end.min(start + GROUP);
            let t = Temporary::split(temporary, layout);

            // Messages.
            t.x.fill(R::default());
            t.v.fill(R::default());
            for (a, i) in particles.clone().enumerate() {
                let (s, v) = (&mut t.x[a * 2 * f..][..f], &mut t.v[a * 3 * f..][..3 * f]);
                let species = self.species[i] as usize;
                if b == 0 {
                    let from = T::weights(&embedding[species * f..][..f]);
                    for (s, from) in T::vectors_mut(s).iter_mut().zip(from) {
                        *s = zero.widen(*from).stored();
                    }
                } else {
                    s.copy_from_slice(&own[a * f..][..f]);
                    v.copy_from_slice(&self.messages[i * layout.message() + 3 * f..][..3 * f]);
                }
                self.gather(zero, block, i, s, v);
            }

            // Update.
            let (saved, message_slopes) = if last {
                (Saved::split(t.saved, layout, b), None)
            } else {
                let (saved, slopes) = own_block(&mut *own, layout, b);
                (saved, Some(slopes))
            };
            for k in 0..3 {
                let (from, to) = (k * GROUP * f, k * GROUP * layout.n_mixed * f);
                block.mix.apply(zero, &t.v[from..], &mut saved.mixed[to..]);
            }
            for a in 0..GROUP {
                let lengths = T::vectors_mut(&mut t.x[a * 2 * f + f..][..f]);
                for (k, length) in lengths.iter_mut().enumerate() {
                    let [_, v, _] = self.mixed::<T>(zero, saved.mixed, a, k);
                    *length = (dot(v, v) + zero.constant(1.0)).sqrt().stored();
                }
                saved.lengths[a * f..][..f].copy_from_slice(&t.x[a * 2 * f + f..][..f]);
            }
            block.update.apply(zero, t.x, t.hidden, saved.slopes, saved.gates);
            let n_gates = layout.n_gates(b);
            let nv = f / T::LANES;
            for a in 0..GROUP {
                let gates = T::vectors(&saved.gates[a * n_gates * f..][..n_gates * f]);
                let gate = |g: usize, k: usize| zero.load(gates[g * nv + k]);
                let s = T::vectors(&t.x[a * 2 * f..][..f]);
                let s_new = T::vectors_mut(&mut t.s[a * f..][..f]);
                for k in 0..nv {
                    let [u, v, w] = self.mixed(zero, saved.mixed, a, k);
                    let mut sum = gate(1, k).mul_add(dot(u, v), zero.load(s[k]) + gate(0, k));
                    if network.chiral {
                        sum = gate(2, k).mul_add(dot(w, cross(u, v)), sum);
                    }
                    s_new[k] = sum.stored();
                    if !last {
                        let v_new = T::vectors_mut(&mut t.v[a * 3 * f..][..3 * f]);
                        for (c, u) in u.into_iter().enumerate() {
                            let v = &mut v_new[c * nv + k];
                            *v = gate(n_gates - 1, k).mul_add(u, zero.load(*v)).stored();
                        }
                    }
                }
            }

            if let Some(slopes) = message_slopes {
                // The messages of the next block.
                let Message::Later(layers) = &network.blocks[b + 1].message else {
                    unreachable!("not the first")
                };
                layers.apply(zero, t.s, t.hidden, slopes, t.p);
                own[..GROUP * f].copy_from_slice(t.s);
                for (a, i) in particles.enumerate() {
                    let row = &mut next[(i - first) * layout.message()..][..layout.message()];
                    row[..3 * f].copy_from_slice(&t.p[a * 3 * f..][..3 * f]);
                    row[3 * f..].copy_from_slice(&t.v[a * 3 * f..][..3 * f]);
                }
            } else {
                // Energy, and its gradient back to where the messages were added.
                network.readout.apply(zero, t.s, t.hidden);
                silu(zero, t.hidden, t.slopes);
                let weights = T::weights(bytemuck::cast_slice(&network.output_weight));
                for a in 0..GROUP {
                    let hidden = T::vectors_mut(&mut t.hidden[a * f..][..f]);
                    let slopes = T::vectors(&t.slopes[a * f..][..f]);
                    let s = T::vectors(&t.s[a * f..][..f]);
                    let per_row = CacheLine::LEN / T::LANES;
                    let mut row = [zero; CacheLine::LEN];
                    for k in 0..nv {
                        let (of_hidden, of_s) = (zero.widen(weights[k]), zero.widen(weights[nv + k]));
                        let sum = &mut row[k % per_row];
                        *sum = of_hidden.mul_add(zero.load(hidden[k]), *sum);
                        *sum = of_s.mul_add(zero.load(s[k]), *sum);
                        hidden[k] = (of_hidden * zero.load(slopes[k])).stored();
                    }
                    if let Some(i) = particles.clone().nth(a) {
                        let own = T::sum(row) + R::default().constant(network.output_bias);
                        energies[i - first] =
                            self.edges_of(i).iter().fold(own, |e, edge| e + edge.repulsion[0]);
                    }
                }
                network.readout_back.apply(zero, t.hidden, t.s);
                for a in 0..GROUP {
                    for (k, s) in T::vectors_mut(&mut t.s[a * f..][..f]).iter_mut().enumerate() {
                        *s = (zero.load(*s) + zero.widen(weights[nv + k])).stored();
                    }
                }
                t.v_back.fill(R::default());
                self.update_back(
                    zero,
                    block,
                    b,
                    &saved,
                    t.s,
                    t.v_back,
                    t.gates_back,
                    t.mixed_back,
                    t.hidden,
                    t.x_back,
                );
                for (a, i) in particles.enumerate() {
                    let row = &mut next[(i - first) * layout.upstream()..][..layout.upstream()];
                    row[..f].copy_from_slice(&t.s[a * f..][..f]);
                    row[f..].copy_from_slice(&t.v_back[a * 3 * f..][..3 * f]);
                }
            }
        }
    }

    /// U v, V v and T v (zero if there is none) of vector `k` of particle `a` of a group.
    #[inline(always)]
    fn mixed<T: Lanes<Scalar = R>>(&self, zero: T, mixed: &[R], a: usize, k: usize) -> [[T; 3]; 3] {
        let Layout { f, n_mixed, .. } = self.layout;
        let nv = f / T::LANES;
        let rows = T::vectors(&mixed[a * 3 * n_mixed * f..][..3 * n_mixed * f]);
        std::array::from_fn(|m| {
            std::array::from_fn(
                |c| {
                    if m < n_mixed { zero.load(rows[(c * n_mixed + m) * nv + k]) } else { zero }
                },
            )
        })
    }

    /// Add the messages of its neighbours to the features of particle `i`.
    #[inline(always)]
    fn gather<T: Lanes<Scalar = R>>(&self, zero: T, block: &Block, i: usize, s: &mut [R], v: &mut [R]) {
        let Layout { f, .. } = self.layout;
        let nv = f / T::LANES;
        let (s, v) = (T::vectors_mut(s), T::vectors_mut(v));
        for k in 0..nv {
            let mut sum = zero.load(s[k]);
            let mut sums: [T; 3] = std::array::from_fn(|c| zero.load(v[c * nv + k]));
            for edge in self.edges_of(i) {
                let interval = block.filter.interval(zero, &edge.place);
                let n = edge.direction.map(|n| zero.splat(n));
                match &block.message {
                    Message::First(rows) => {
                        let rows: &[f32] = bytemuck::cast_slice(rows);
                        let species = self.species[edge.particle as usize] as usize;
                        let p = T::weights(&rows[species * 2 * f..][..2 * f]);
                        sum = zero.widen(p[k]).mul_add(interval.value(k), sum);
                        let along = zero.widen(p[nv + k]) * interval.value(nv + k);
                        sums = std::array::from_fn(|c| n[c].mul_add(along, sums[c]));
                    }
                    Message::Later(_) => {
                        let row = self.layout.message();
                        let p = T::vectors(&self.messages[edge.particle as usize * row..][..row]);
                        sum = zero.load(p[k]).mul_add(interval.value(k), sum);
                        let along = zero.load(p[nv + k]) * interval.value(nv + k);
                        let carried = zero.load(p[2 * nv + k]) * interval.value(2 * nv + k);
                        sums = std::array::from_fn(|c| {
                            let v = zero.load(p[(3 + c) * nv + k]);
                            v.mul_add(carried, n[c].mul_add(along, sums[c]))
                        });
                    }
                }
            }
            s[k] = sum.stored();
            for (c, sum) in sums.into_iter().enumerate() {
                v[c * nv + k] = sum.stored();
            }
        }
    }

    /// From gradients by what an update of `block` made (`s`, `v`) to gradients by what it was made from, in place.
    #[inline(always)]
    fn update_back<T: Lanes<Scalar = R>>(
        &self,
        zero: T,
        block: &Block,
        b: usize,
        saved: &Saved<R>,
        s: &mut [R],
        v: &mut [R],
        gates_back: &mut [R],
        mixed_back: &mut [R],
        hidden: &mut [R],
        x_back: &mut [R],
    ) {
        let Layout { f, n_mixed, n_blocks } = self.layout;
        let nv = f / T::LANES;
        let (n_gates, last, chiral) = (self.layout.n_gates(b), b + 1 == n_blocks, self.network.chiral);
        for a in 0..GROUP {
            let s = T::vectors(&s[a * f..][..f]);
            let v_back = T::vectors(&v[a * 3 * f..][..3 * f]);
            let out = T::vectors_mut(&mut gates_back[a * n_gates * f..][..n_gates * f]);
            for k in 0..nv {
                let [u, v, w] = self.mixed(zero, saved.mixed, a, k);
                let s = zero.load(s[k]);
                out[k] = s.stored();
                out[nv + k] = (s * dot(u, v)).stored();
                if chiral {
                    out[2 * nv + k] = (s * dot(w, cross(u, v))).stored();
                }
                if !last {
                    let v_back = std::array::from_fn(|c| zero.load(v_back[c * nv + k]));
                    out[(n_gates - 1) * nv + k] = dot(v_back, u).stored();
                }
            }
        }
        block.update.apply_back(zero, gates_back, saved.slopes, hidden, x_back);
        for a in 0..GROUP {
            let gates = T::vectors(&saved.gates[a * n_gates * f..][..n_gates * f]);
            let lengths = T::vectors(&saved.lengths[a * f..][..f]);
            let x = T::vectors(&x_back[a * 2 * f..][..2 * f]);
            let s = T::vectors_mut(&mut s[a * f..][..f]);
            let v_back = T::vectors(&v[a * 3 * f..][..3 * f]);
            let out = T::vectors_mut(&mut mixed_back[a * 3 * n_mixed * f..][..3 * n_mixed * f]);
            for k in 0..nv {
                let [u, v, w] = self.mixed(zero, saved.mixed, a, k);
                let above = zero.load(s[k]);
                let by_product = above * zero.load(gates[nv + k]);
                let by_length = zero.load(x[nv + k]) * zero.load(lengths[k]).recip();
                let mut u_back = scaled(v, by_product);
                let mut v_back_mixed = add_scaled(scaled(u, by_product), v, by_length);
                if chiral {
                    let by_triple = above * zero.load(gates[2 * nv + k]);
                    u_back = add_scaled(u_back, cross(v, w), by_triple);
                    v_back_mixed = add_scaled(v_back_mixed, cross(w, u), by_triple);
                    let w_back = scaled(cross(u, v), by_triple);
                    (0..3).for_each(|c| out[(c * n_mixed + 2) * nv + k] = w_back[c].stored());
                }
                if !last {
                    let gate = zero.load(gates[(n_gates - 1) * nv + k]);
                    let above = std::array::from_fn(|c| zero.load(v_back[c * nv + k]));
                    u_back = add_scaled(u_back, above, gate);
                }
                (0..3).for_each(|c| out[c * n_mixed * nv + k] = u_back[c].stored());
                (0..3).for_each(|c| out[(c * n_mixed + 1) * nv + k] = v_back_mixed[c].stored());
                s[k] = (above + zero.load(x[k])).stored();
            }
        }
        // One component of the group after the other: `hidden` has room for its rows.
        for k in 0..3 {
            let (from, to) = (k * GROUP * n_mixed * f, k * GROUP * f);
            block.mix_back.apply(zero, &mixed_back[from..], hidden);
            let rows = T::vectors_mut(&mut v[to..][..GROUP * f]);
            for (v, add) in rows.iter_mut().zip(T::vectors(hidden)) {
                *v = (zero.load(*v) + zero.load(*add)).stored();
            }
        }
    }

    #[inline(always)]
    fn backward<T: Lanes<Scalar = R>>(
        &self,
        zero: T,
        range: Range<usize>,
        own: &mut [R],
        next: &mut [R],
        gradients: &mut [[R; 3]],
        temporary: &mut [R],
    ) {
        let Context { network, layout, block: b, .. } = *self;
        let f = layout.f;
        let block = &network.blocks[b];
        let row = layout.upstream();
        let (first, offset) = (range.start, self.list.of(range.start).start);
        let mut own = own.chunks_exact_mut(GROUP * layout.own());
        for start in range.clone().step_by(GROUP) {
            let particles = start..range.end.min(start + GROUP);
            let t = Temporary::split(temporary, layout);
            if b > 0 {
                t.s.fill(R::default());
                t.p.fill(R::default());
                t.v.fill(R::default());
            }
            for (a, i) in particles.clone().enumerate() {
                match &block.message {
                    Message::First(rows) => {
                        let rows: &[f32] = bytemuck::cast_slice(rows);
                        let p = T::weights(&rows[self.species[i] as usize * 2 * f..][..2 * f]);
                        for edge in self.edges_of(i) {
                            let gradient = self.edge_of_first(zero, block, edge, p);
                            let sum = &mut gradients[edge.entry as usize - offset];
                            if layout.n_blocks == 1 {
                                *sum = [R::default(); 3];
                            }
                            // The repulsion of a pair belongs half to each of its two entries.
                            for (c, sum) in sum.iter_mut().enumerate() {
                                *sum = *sum + gradient[c] - edge.direction[c] * edge.repulsion[1];
                            }
                        }
                    }
                    Message::Later(_) => {
                        let upstream = &self.upstream[i * row..][..row];
                        t.s[a * f..][..f].copy_from_slice(&upstream[..f]);
                        t.v[a * 3 * f..][..3 * f].copy_from_slice(&upstream[f..]);
                        let message = &self.messages[i * layout.message()..][..layout.message()];
                        let (p, v) = (&mut t.p[a * 3 * f..][..3 * f], &mut t.v[a * 3 * f..][..3 * f]);
                        for edge in self.edges_of(i) {
                            let sum = &mut gradients[edge.entry as usize - offset];
                            if self.is_last() {
                                *sum = [R::default(); 3];
                            }
                            let gradient = self.edge_of_later(zero, block, edge, message, p, v);
                            for (sum, gradient) in sum.iter_mut().zip(gradient) {
                                *sum = *sum + gradient;
                            }
                        }
                    }
                }
            }
            // Groups without an own particle have no memory, and leave no gradients.
            if let (Message::Later(layers), Some(own)) = (&block.message, own.next()) {
                let (saved, slopes) = own_block(own, layout, b - 1);
                layers.apply_back(zero, t.p, slopes, t.hidden, t.x_back);
                for (s, add) in T::vectors_mut(t.s).iter_mut().zip(T::vectors(t.x_back)) {
                    *s = (zero.load(*s) + zero.load(*add)).stored();
                }
                let before = &network.blocks[b - 1];
                self.update_back(
                    zero,
                    before,
                    b - 1,
                    &saved,
                    t.s,
                    t.v,
                    t.gates_back,
                    t.mixed_back,
                    t.hidden,
                    t.x_back,
                );
                for (a, i) in particles.enumerate() {
                    let row = &mut next[(i - first) * row..][..row];
                    row[..f].copy_from_slice(&t.s[a * f..][..f]);
                    row[f..].copy_from_slice(&t.v[a * 3 * f..][..3 * f]);
                }
            }
        }
    }

    /// ∂E/∂(x_a − x_b) by the message that the particle `a` of this edge sends to its neighbour b, in the first block.
    #[inline(always)]
    fn edge_of_first<T: Lanes<Scalar = R>>(
        &self,
        zero: T,
        block: &Block,
        edge: &Edge<R>,
        p: &[T::Weights],
    ) -> [R; 3] {
        let Layout { f, .. } = self.layout;
        let nv = f / T::LANES;
        let per_row = CacheLine::LEN / T::LANES;
        let row = self.layout.upstream();
        let upstream = T::vectors(&self.upstream[edge.particle as usize * row..][..row]);
        let interval: Interval<T> = block.filter.interval(zero, &edge.place);
        let n = edge.direction.map(|n| zero.splat(-n));
        let mut by_distance = [zero; CacheLine::LEN];
        let mut by_direction = [[zero; CacheLine::LEN]; 3];
        for first in (0..nv).step_by(per_row) {
            for lane in 0..per_row {
                let k = first + lane;
                let s = zero.load(upstream[k]);
                let u: [T; 3] = std::array::from_fn(|c| zero.load(upstream[(1 + c) * nv + k]));
                let (p0, p1) = (zero.widen(p[k]), zero.widen(p[nv + k]));
                let sum = &mut by_distance[lane];
                *sum = (s * p0).mul_add(interval.derivative(k), *sum);
                *sum = (dot(n, u) * p1).mul_add(interval.derivative(nv + k), *sum);
                let along = p1 * interval.value(nv + k);
                for (c, u) in u.into_iter().enumerate() {
                    by_direction[c][lane] = u.mul_add(along, by_direction[c][lane]);
                }
            }
        }
        edge.gradient(T::sum(by_distance), by_direction.map(T::sum))
    }

    /// The same in later blocks, where the particle's own messages and vectors get gradients as well: added to `p` and `v`.
    #[inline(always)]
    fn edge_of_later<T: Lanes<Scalar = R>>(
        &self,
        zero: T,
        block: &Block,
        edge: &Edge<R>,
        message: &[R],
        p_back: &mut [R],
        v_back: &mut [R],
    ) -> [R; 3] {
        let Layout { f, .. } = self.layout;
        let nv = f / T::LANES;
        let per_row = CacheLine::LEN / T::LANES;
        let row = self.layout.upstream();
        let upstream = T::vectors(&self.upstream[edge.particle as usize * row..][..row]);
        let message = T::vectors(message);
        let (p_back, v_back) = (T::vectors_mut(p_back), T::vectors_mut(v_back));
        let interval: Interval<T> = block.filter.interval(zero, &edge.place);
        let n = edge.direction.map(|n| zero.splat(-n));
        let mut by_distance = [zero; CacheLine::LEN];
        let mut by_direction = [[zero; CacheLine::LEN]; 3];
        for first in (0..nv).step_by(per_row) {
            for lane in 0..per_row {
                let k = first + lane;
                let s = zero.load(upstream[k]);
                let u: [T; 3] = std::array::from_fn(|c| zero.load(upstream[(1 + c) * nv + k]));
                let p: [T; 3] = std::array::from_fn(|m| zero.load(message[m * nv + k]));
                let v: [T; 3] = std::array::from_fn(|c| zero.load(message[(3 + c) * nv + k]));
                let w: [T; 3] = std::array::from_fn(|m| interval.value(m * nv + k));
                let (along, carried) = (dot(n, u), dot(v, u));
                let sum = &mut by_distance[lane];
                for (m, x) in [s, along, carried].into_iter().enumerate() {
                    *sum = (x * p[m]).mul_add(interval.derivative(m * nv + k), *sum);
                    let to = &mut p_back[m * nv + k];
                    *to = x.mul_add(w[m], zero.load(*to)).stored();
                }
                let (to_direction, to_vector) = (p[1] * w[1], p[2] * w[2]);
                for (c, u) in u.into_iter().enumerate() {
                    by_direction[c][lane] = u.mul_add(to_direction, by_direction[c][lane]);
                    let to = &mut v_back[c * nv + k];
                    *to = u.mul_add(to_vector, zero.load(*to)).stored();
                }
            }
        }
        edge.gradient(T::sum(by_distance), by_direction.map(T::sum))
    }
}

impl<R: Real> Edge<R> {
    /// ∂/∂(x_a − x_b) from the derivatives by its length and by its direction.
    #[inline(always)]
    fn gradient(&self, by_length: R, by_direction: [R; 3]) -> [R; 3] {
        let n = self.direction.map(|n| -n);
        let along = n[2].mul_add(by_direction[2], n[1].mul_add(by_direction[1], n[0] * by_direction[0]));
        std::array::from_fn(|c| n[c] * by_length + (by_direction[c] - n[c] * along) * self.inverse)
    }
}

#[inline(always)]
fn dot<T: Lanes>(a: [T; 3], b: [T; 3]) -> T {
    a[2].mul_add(b[2], a[1].mul_add(b[1], a[0] * b[0]))
}

#[inline(always)]
fn cross<T: Lanes>(a: [T; 3], b: [T; 3]) -> [T; 3] {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

#[inline(always)]
fn scaled<T: Lanes>(a: [T; 3], s: T) -> [T; 3] {
    a.map(|a| a * s)
}

/// a + b s
#[inline(always)]
fn add_scaled<T: Lanes>(a: [T; 3], b: [T; 3], s: T) -> [T; 3] {
    std::array::from_fn(|c| b[c].mul_add(s, a[c]))
}
