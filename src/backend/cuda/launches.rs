//! Models that take several launches for a step: the `message-passing` network, of any number of particles, in open space or in a
//! periodic cell. The host's half of kernels/launches.cuh and kernels/message_passing.cuh.
//!
//! Everything that changes lies on the device, so that the launches of a step are recorded once, as a graph, and replayed. The
//! lists of neighbours are built there too; a launch that has nothing to build ends at once. Where a list outgrows its room all
//! steps stop, and the host makes more.

use super::{
    CudaFunction, CudaModule, CudaSlice, CudaStream, DeviceJob, DriverError, Gpu, Graph, METROPOLIS_BYTES,
    NONE_OF_THEM, WARP, While, Workspace, address, launch_part, places,
};
use crate::adapter::Adapter;
use crate::cell::Cell;
use crate::error::{Error, Result, bail};
use crate::model::KernelModel;
use crate::model::kernel::{BlockArrays, LayerArrays, MessagePassingArrays};
use crate::neighbors::{ALL_PAIRS, SKIN, too_far};
use std::sync::Arc;

/// As in kernels/message_passing.cuh.
const GROUP: usize = 4;
const LANES: usize = 16;
const TEAM: usize = 4 * 4 * (LANES + 1) + 4 * 4;
/// As in kernels/neighbor_list.cuh.
const FILLERS: usize = 128;
const FILLER_BYTES: usize = 48;
/// Threads of a block that takes particles or frames one by one, and of one that takes a group at most.
const THREADS: usize = 128;
const MOST_THREADS: usize = 256;
/// Room for the scores of a warp, in step_score.
const WARP_BYTES: usize = 768;
/// Set to 0, launches are made one by one.
const GRAPHS: &str = "DIFFUSIM_CUDA_GRAPHS";

/// `Clock` of kernels/launches.cuh.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Clock {
    step: u64,
    done: u32,
    stalled: u32,
    longest: u32,
    lost: u32,
}

/// `Launches` of kernels/launches.cuh; pointers are of the device.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct DeviceLaunches {
    job: u64,
    clock: u64,
    scores: u64,
    frozen: u64,
    ends: u64,
    end_scores: u64,
    ratios: u64,
    energies: u64,
    end_energies: u64,
    factors: u64,
    accepted: u64,
}

/// `Space` of kernels/neighbor_list.cuh.
#[derive(Clone, Copy, PartialEq)]
#[repr(C)]
pub(super) struct Space {
    vectors: [[f64; 3]; 3],
    inverse: [[f64; 3]; 3],
    widths: [f64; 3],
    radius: f64,
    limit: f64,
    periodic: u32,
    anew: u32,
}

/// `NeighborList` of kernels/neighbor_list.cuh.
#[derive(Clone, Copy)]
#[repr(C)]
struct DeviceList {
    space: u64,
    members: u64,
    places: u64,
    entries: u64,
    unsorted: u64,
    n_entries: u64,
    built_at: u64,
    home: u64,
    boxes: u64,
    sorted: u64,
    ends: u64,
    counts: u64,
    moved: u64,
    n: u32,
    n_particles: u32,
    n_frames: u32,
    capacity: u32,
    most: u32,
    padding: u32,
}

/// `MessagePassing` of kernels/message_passing.cuh.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct DeviceMessagePassing {
    list: DeviceList,
    numbers: u64,
    blocks: u64,
    species: u64,
    edges: u64,
    n_edges: u64,
    gradients: u64,
    s: u64,
    saved: u64,
    messages: u64,
    upstream: u64,
    energies: u64,
    scratch: u64,
    scratch_bytes: u64,
    width: u32,
    n_blocks: u32,
    n_mixed: u32,
    n_species: u32,
    n_knots: u32,
    embedding: u32,
    repulsion: u32,
    output_weight: u32,
    readout: LayerArrays,
    output_bias: f32,
    softening_squared: f32,
    cutoff: f32,
    density: f32,
    with_energy: u32,
}

/// Words of a `Neighbor` and of an `Edge`.
const NEIGHBOR_WORDS: usize = 5;
const EDGE_WORDS: usize = 16;

/// When a score is computed: `Stage` of kernels/launches.cuh.
#[derive(Clone, Copy)]
enum Stage {
    AtBeginning,
    AtEnd,
    Before,
}

/// A kernel and how it is launched.
struct Part {
    function: CudaFunction,
    n_blocks: usize,
    n_threads: usize,
    shared: usize,
}

impl Part {
    fn new(
        module: &Arc<CudaModule>,
        name: &str,
        n_blocks: usize,
        n_threads: usize,
        shared: usize,
    ) -> Result<Self> {
        let function = module.load_function(name).during("loading the kernels")?;
        Ok(Part { function, n_blocks, n_threads, shared })
    }
}

struct Parts {
    begin: Part,
    boxes: Part,
    list: Part,
    forward: Part,
    backward: Part,
    score: Part,
    r#move: Part,
    settle: Part,
}

/// What the lists need once it is known how long they are.
struct Lists {
    _entries: [CudaSlice<u32>; 2],
    _edges: CudaSlice<u32>,
    _gradients: CudaSlice<f32>,
}

/// A simulation of such a model.
pub(super) struct Launches {
    // Dropped in this order: a graph before what it reads.
    graph: Option<Graph>,
    parts: Parts,
    launches: DeviceLaunches,
    model: DeviceMessagePassing,
    job: CudaSlice<DeviceJob>,
    space: CudaSlice<Space>,
    clock: CudaSlice<Clock>,
    scores: CudaSlice<f64>,
    built_at: CudaSlice<f64>,
    lists: Option<Lists>,
    _floats: Vec<CudaSlice<f32>>,
    _doubles: Vec<CudaSlice<f64>>,
    _indices: Vec<CudaSlice<u32>>,
    _blocks: CudaSlice<BlockArrays>,
    _scratch: Option<CudaSlice<u8>>,
    /// On which steps are recorded: a caller's may be one that cannot.
    recorder: Arc<CudaStream>,
    adapter: Adapter,
    cutoff: f64,
    n_total: usize,
    /// All pairs are listed once and for all.
    all_pairs: bool,
    sent_space: Option<Space>,
    records: bool,
}

/// Whether the launches of a step are replayed as a graph.
pub(super) fn records() -> bool {
    std::env::var(GRAPHS).map_or(true, |value| value != "0")
}

impl Launches {
    /// Kernels that may need much shared memory.
    pub(super) const LARGE: [&str; 2] = ["message_passing_forward", "message_passing_backward"];

    pub(super) fn new(
        gpu: &Gpu,
        stream: &Arc<CudaStream>,
        model: &KernelModel,
        arrays: &MessagePassingArrays,
        n_replicas: usize,
        adapter: Adapter,
    ) -> Result<Self> {
        let (n, n_particles) = (model.members.len(), model.n_particles);
        let (n_total, n_all) = (n * n_replicas, n_particles * n_replicas);
        let (f, n_blocks, n_mixed) = (arrays.width as usize, arrays.blocks.len(), arrays.n_mixed as usize);
        let n_groups = n_total.div_ceil(GROUP);
        let decides = adapter == Adapter::Mala;
        // Few groups get many threads each, many as many as they have features.
        let n_threads = if n_groups < 8 * gpu.n_multiprocessors {
            MOST_THREADS
        } else {
            (GROUP * f).clamp(2 * WARP, MOST_THREADS)
        };
        let room = [3, 2, 1, 1, 4, 3 * n_mixed, 2, 4];
        let room = room.into_iter().fold(Workspace { bytes: 0 }, |room, rows| room.part(GROUP * rows * f, 4));
        let room = room.part(n_threads / LANES * TEAM, 4).bytes;
        let shared = if room <= gpu.shared_bytes { room } else { 0 };
        let part =
            |name, n_blocks, n_threads, shared| Part::new(&gpu.module, name, n_blocks, n_threads, shared);
        let warps = THREADS / WARP;
        let parts = Parts {
            begin: part("step_begin", n_all.div_ceil(THREADS), THREADS, 0)?,
            boxes: part("neighbor_boxes", n_replicas, FILLERS, FILLERS * FILLER_BYTES)?,
            list: part("neighbor_list", n_total.div_ceil(warps), THREADS, 0)?,
            forward: part("message_passing_forward", n_groups, n_threads, shared)?,
            backward: part("message_passing_backward", n_groups, n_threads, shared)?,
            score: part("step_score", n_all.div_ceil(warps), THREADS, warps * WARP_BYTES)?,
            r#move: part("step_move", n_all.div_ceil(THREADS), THREADS, 0)?,
            settle: part("step_settle", n_replicas.div_ceil(THREADS), THREADS, METROPOLIS_BYTES)?,
        };

        let most = 2 * (n as f64).cbrt().ceil() as usize + 1;
        let (mut floats, mut doubles, mut indices) = (Vec::new(), Vec::new(), Vec::new());
        let memory = "allocating its memory";
        let mut float = |n: usize| -> Result<u64> {
            floats.push(stream.alloc_zeros(n.max(1)).during(memory)?);
            Ok(address(&floats[floats.len() - 1], stream))
        };
        let mut double = |n: usize| -> Result<u64> {
            doubles.push(stream.alloc_zeros(n.max(1)).during(memory)?);
            Ok(address(&doubles[doubles.len() - 1], stream))
        };
        let mut index = |values: &[u32], n: usize| -> Result<u64> {
            let made = if values.is_empty() { stream.alloc_zeros(n) } else { stream.clone_htod(values) };
            indices.push(made.during(memory)?);
            Ok(address(&indices[indices.len() - 1], stream))
        };
        // 0 where the adapter has no use for it.
        let of_ends = if adapter == Adapter::Heun || decides { 3 * n_all } else { 0 };
        let of_decisions = if decides { n_all } else { 0 };
        let mut optional = |n: usize| if n == 0 { Ok(0) } else { double(n) };
        let (ends, end_scores, ratios) =
            (optional(of_ends)?, optional(3 * of_decisions)?, optional(of_decisions)?);
        let per_frame = if decides { n_replicas } else { 0 };
        let (energies, end_energies, factors) =
            (optional(per_frame)?, optional(per_frame)?, optional(per_frame)?);
        let scores = stream.alloc_zeros(3 * n_all).during(memory)?;
        let built_at = stream.alloc_zeros(3 * n_total).during(memory)?;
        let job = stream.clone_htod(&[DeviceJob::default()]).during(memory)?;
        let space = Self::space_of(None, f64::from(arrays.cutoff), false);
        let space = stream.clone_htod(&[space]).during(memory)?;
        let clock = stream.clone_htod(&[Clock::default()]).during(memory)?;
        let blocks = stream.clone_htod(&arrays.blocks).during(memory)?;
        let numbers = stream.clone_htod(&arrays.numbers).during(memory)?;
        let scratch_bytes = if shared == 0 { room } else { 0 };
        let scratch = match scratch_bytes {
            0 => None,
            bytes => Some(stream.alloc_zeros::<u8>(n_groups * bytes).during(memory)?),
        };
        let rows = |n_rows: usize| n_rows * n_total * f;
        let list = DeviceList {
            space: address(&space, stream),
            members: index(&model.members, 1)?,
            places: index(&places(model), 1)?,
            entries: 0,
            unsorted: 0,
            n_entries: index(&[], n_total)?,
            built_at: address(&built_at, stream),
            home: index(&[], 3 * n_total)?,
            boxes: index(&[], n_total)?,
            sorted: index(&[], n_total)?,
            ends: index(&[], n_replicas * most * most * most)?,
            counts: index(&[], 3 * n_replicas)?,
            moved: index(&[], n_replicas)?,
            n: n as u32,
            n_particles: n_particles as u32,
            n_frames: n_replicas as u32,
            capacity: 0,
            most: most as u32,
            padding: 0,
        };
        let model = DeviceMessagePassing {
            list,
            numbers: address(&numbers, stream),
            blocks: address(&blocks, stream),
            species: index(&arrays.species, 1)?,
            edges: 0,
            n_edges: index(&[], n_total)?,
            gradients: 0,
            s: float(rows(1))?,
            saved: float(rows(n_blocks * (4 * n_mixed + 4)))?,
            messages: float(rows((n_blocks - 1) * 6))?,
            upstream: float(rows(2 * 4))?,
            energies: float(n_total)?,
            scratch: scratch.as_ref().map_or(0, |s| address(s, stream)),
            scratch_bytes: scratch_bytes as u64,
            width: arrays.width,
            n_blocks: n_blocks as u32,
            n_mixed: arrays.n_mixed,
            n_species: arrays.n_species,
            n_knots: arrays.n_knots,
            embedding: arrays.embedding,
            repulsion: arrays.repulsion,
            output_weight: arrays.output_weight,
            readout: arrays.readout,
            output_bias: arrays.output_bias,
            softening_squared: arrays.softening_squared,
            cutoff: arrays.cutoff,
            density: arrays.density,
            with_energy: decides.into(),
        };
        let launches = DeviceLaunches {
            job: address(&job, stream),
            clock: address(&clock, stream),
            scores: address(&scores, stream),
            frozen: index(&[], n_replicas)?,
            ends,
            end_scores,
            ratios,
            energies,
            end_energies,
            factors,
            accepted: index(&[], n_replicas)?,
        };
        floats.push(numbers);
        Ok(Launches {
            graph: None,
            parts,
            launches,
            model,
            job,
            space,
            clock,
            scores,
            built_at,
            lists: None,
            _floats: floats,
            _doubles: doubles,
            _indices: indices,
            _blocks: blocks,
            _scratch: scratch,
            recorder: gpu.context.new_stream().during("making a stream")?,
            adapter,
            cutoff: f64::from(arrays.cutoff),
            n_total,
            all_pairs: false,
            sent_space: None,
            records: records(),
        })
    }

    fn space_of(cell: Option<&Cell>, cutoff: f64, all_pairs: bool) -> Space {
        let unit = Cell::rectangular([1.0; 3]).expect("it spans a volume");
        let of = cell.unwrap_or(&unit);
        Space {
            vectors: *of.vectors(),
            inverse: *of.inverse(),
            widths: of.widths(),
            radius: if all_pairs { f64::INFINITY } else { (1.0 + SKIN) * cutoff },
            limit: if all_pairs { f64::INFINITY } else { (0.5 * SKIN * cutoff).powi(2) },
            periodic: cell.is_some().into(),
            anew: 0,
        }
    }

    /// Start the steps of `job`, whose positions are those that the device has, or were `sent` anew.
    pub(super) fn enqueue(
        &mut self,
        stream: &Arc<CudaStream>,
        job: DeviceJob,
        cell: Option<&Cell>,
        sent: bool,
    ) -> Result<()> {
        let steps = "taking steps";
        stream.memcpy_htod(&[job], &mut self.job).during(steps)?;
        self.all_pairs = cell.is_none() && self.model.list.n as usize <= ALL_PAIRS;
        let space = Self::space_of(cell, self.cutoff, self.all_pairs);
        let known = self.sent_space == Some(space) && self.lists.is_some();
        if !known || sent && !self.all_pairs {
            self.sent_space = None;
            self.build_lists(stream, space, !known)?;
            self.sent_space = Some(space);
        }
        self.launch(stream, &self.parts.begin, Stage::AtBeginning, 0).during(steps)?;
        if self.adapter == Adapter::Mala {
            self.evaluate(stream, Stage::Before).during(steps)?;
            self.launch(stream, &self.parts.settle, Stage::Before, 0).during(steps)?;
        }
        if self.records && self.graph.is_none() {
            self.graph =
                Graph::record(&self.recorder, || self.step(&self.recorder)).during("recording a step")?;
        }
        for _ in 0..job.n_steps {
            match &self.graph {
                Some(graph) => graph.replay(stream).during(steps)?,
                None => self.step(stream).during(steps)?,
            }
        }
        Ok(())
    }

    /// Build the lists of neighbours of those frames that need it, or of all, in enough room. Waits.
    fn build_lists(&mut self, stream: &Arc<CudaStream>, space: Space, all: bool) -> Result<()> {
        let what = "building lists of neighbors";
        let build = |launches: &Self| -> std::result::Result<Clock, DriverError> {
            for part in [&launches.parts.begin, &launches.parts.boxes, &launches.parts.list] {
                launches.launch(stream, part, Stage::AtBeginning, 0)?;
            }
            launches.clock_now(stream)
        };
        let anew = Space { anew: all.into(), ..space };
        stream.memcpy_htod(&[anew], &mut self.space).during(what)?;
        let clock = build(self).during(what)?;
        if clock.longest > self.model.list.capacity || self.lists.is_none() {
            self.make_room(stream, clock.longest)?;
            // All of them have to be written to the new place.
            stream.memcpy_htod(&[Space { anew: 1, ..space }], &mut self.space).during(what)?;
            build(self).during(what)?;
        }
        stream.memcpy_htod(&[space], &mut self.space).during(what)
    }

    /// Room for lists of up to `longest` neighbours, and some more.
    fn make_room(&mut self, stream: &Arc<CudaStream>, longest: u32) -> Result<()> {
        let n = self.model.list.n;
        let wanted = longest + longest / 2 + 16;
        let capacity = if self.all_pairs { n.saturating_sub(1).max(1) } else { wanted };
        let n_entries = self.n_total * capacity as usize;
        if n_entries > u32::MAX as usize {
            bail!(
                Device,
                "{} particles with up to {longest} neighbors each are too many for one GPU; use fewer replicas, or device 'cpu'",
                self.n_total
            );
        }
        self.graph = None;
        self.lists = None; // before others are made
        let lists = || -> std::result::Result<Lists, DriverError> {
            Ok(Lists {
                _entries: [
                    stream.alloc_zeros(NEIGHBOR_WORDS * n_entries)?,
                    stream.alloc_zeros(NEIGHBOR_WORDS * n_entries)?,
                ],
                _edges: stream.alloc_zeros(EDGE_WORDS * n_entries)?,
                _gradients: stream.alloc_zeros(3 * n_entries)?,
            })
        };
        let lists = self.lists.insert(lists().during("allocating its memory")?);
        let DeviceMessagePassing { list, edges, gradients, .. } = &mut self.model;
        list.capacity = capacity;
        [list.entries, list.unsorted] =
            [address(&lists._entries[0], stream), address(&lists._entries[1], stream)];
        [*edges, *gradients] = [address(&lists._edges, stream), address(&lists._gradients, stream)];
        Ok(())
    }

    /// The launches of one step.
    fn step(&self, stream: &Arc<CudaStream>) -> std::result::Result<(), DriverError> {
        if self.adapter == Adapter::Mala {
            self.launch(stream, &self.parts.score, Stage::AtBeginning, 0)?;
        } else {
            self.evaluate(stream, Stage::AtBeginning)?;
        }
        self.launch(stream, &self.parts.r#move, Stage::AtBeginning, 0)?;
        match self.adapter {
            Adapter::Heun => {
                self.evaluate(stream, Stage::AtEnd)?;
                self.launch(stream, &self.parts.r#move, Stage::AtEnd, 0)
            }
            Adapter::Mala => {
                self.evaluate(stream, Stage::AtEnd)?;
                self.launch(stream, &self.parts.settle, Stage::AtEnd, 0)
            }
            _ => Ok(()),
        }
    }

    /// How a step is taken, in words.
    pub(super) fn status(&self) -> String {
        let lists = if self.all_pairs { 0 } else { 2 };
        let score = lists + 2 * self.model.n_blocks + 1;
        let n_launches = match self.adapter {
            Adapter::Heun => 2 * (score + 1),
            Adapter::Mala => score + 3,
            _ => score + 1,
        };
        let how = match self.records {
            true => "replayed as a CUDA graph".into(),
            false => format!("one by one ({GRAPHS}=0)"),
        };
        format!("{n_launches} launches a step, {how}")
    }

    /// The score, and whether it is sound.
    fn evaluate(&self, stream: &Arc<CudaStream>, stage: Stage) -> std::result::Result<(), DriverError> {
        if !self.all_pairs {
            self.launch(stream, &self.parts.boxes, stage, 0)?;
            self.launch(stream, &self.parts.list, stage, 0)?;
        }
        let n_blocks = self.model.n_blocks;
        (0..n_blocks).try_for_each(|b| self.launch(stream, &self.parts.forward, stage, b))?;
        (0..n_blocks).rev().try_for_each(|b| self.launch(stream, &self.parts.backward, stage, b))?;
        self.launch(stream, &self.parts.score, stage, 0)
    }

    fn launch(
        &self,
        stream: &Arc<CudaStream>,
        part: &Part,
        stage: Stage,
        block: u32,
    ) -> std::result::Result<(), DriverError> {
        let size = [part.n_blocks, part.n_threads, part.shared];
        launch_part(stream, &part.function, size, &self.launches, &self.model, stage as u32, block)
    }

    fn clock_now(&self, stream: &Arc<CudaStream>) -> std::result::Result<Clock, DriverError> {
        let mut clock = [Clock::default()];
        stream.memcpy_dtoh(&self.clock, &mut clock)?;
        stream.synchronize()?;
        Ok(clock[0])
    }

    /// Wait; whether the lists had room for all neighbours. Where not there is room now, and the steps are to be taken again from
    /// their beginning.
    pub(super) fn had_room(&mut self, stream: &Arc<CudaStream>) -> Result<bool> {
        let clock = self.clock_now(stream).during("taking steps")?;
        if clock.lost != NONE_OF_THEM {
            let at = 3 * clock.lost as usize;
            let mut x = [0.0; 3];
            stream
                .memcpy_dtoh(&self.built_at.slice(at..at + 3), &mut x)
                .and_then(|()| stream.synchronize())
                .during("taking steps")?;
            return Err(too_far(clock.lost as usize % self.model.list.n as usize, x));
        }
        if clock.stalled == 0 {
            return Ok(true);
        }
        self.make_room(stream, clock.longest)?;
        self.sent_space = None;
        Ok(false)
    }

    /// What is said where steps cannot be taken again.
    pub(super) fn out_of_room(&self) -> Error {
        Error::Device(
            "particles came closer than the GPU had room for in its lists of neighbors, and the enqueued steps were not taken; \
             there is more room now, so go on from the last good frame"
                .into(),
        )
    }

    /// The score of a particle, numbered through all frames, where a step failed.
    pub(super) fn score(&self, stream: &Arc<CudaStream>, particle: usize) -> Result<[f64; 3]> {
        let mut score = [0.0; 3];
        stream
            .memcpy_dtoh(&self.scores.slice(3 * particle..3 * particle + 3), &mut score)
            .and_then(|()| stream.synchronize())
            .during("taking steps")?;
        Ok(score)
    }
}
