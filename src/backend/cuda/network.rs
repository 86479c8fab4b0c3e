//! The `message-passing` network on a GPU, of any number of particles, in open space or in a periodic cell: what steps
//! (launches.rs) and evaluations (evaluator.rs) have in common. The host's half of kernels/message_passing.cuh and
//! kernels/neighbor_list.cuh.
//!
//! Everything that changes lies on the device, so that launches are recorded once, as a graph, and replayed. The lists of
//! neighbours are built there too; a launch that has nothing to build ends at once. Where a list outgrows its room nothing
//! is computed any more, and the host makes more.

use super::{
    CudaFunction, CudaModule, CudaSlice, CudaStream, DeviceRepr, DriverError, Gpu, Graph, NONE_OF_THEM,
    PushKernelArg, ValidAsZeroBits, WARP, While, Workspace, address, driver_error, launch, places,
};
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
/// Room for the score of a particle, by a warp.
const WARP_BYTES: usize = 768;
/// Set to 0, launches are made one by one.
pub(super) const GRAPHS: &str = "DIFFUSIM_CUDA_GRAPHS";

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
pub(super) struct DeviceList {
    pub(super) clock: u64,
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
    pub(super) list: DeviceList,
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

/// A kernel and how it is launched.
pub(super) struct Part {
    pub(super) function: CudaFunction,
    pub(super) n_blocks: usize,
    pub(super) n_threads: usize,
    pub(super) shared: usize,
}

impl Part {
    pub(super) fn new(
        module: &Arc<CudaModule>,
        name: &str,
        n_blocks: usize,
        n_threads: usize,
        shared: usize,
    ) -> Result<Self> {
        let function = module.load_function(name).during("loading the kernels")?;
        Ok(Part { function, n_blocks, n_threads, shared })
    }

    /// With a thread for each of `n`.
    pub(super) fn each(module: &Arc<CudaModule>, name: &str, n: usize) -> Result<Self> {
        Part::new(module, name, n.div_ceil(THREADS), THREADS, 0)
    }

    /// With a warp for each of `n`, and room for a score.
    pub(super) fn of_scores(module: &Arc<CudaModule>, name: &str, n: usize) -> Result<Self> {
        let warps = THREADS / WARP;
        Part::new(module, name, n.div_ceil(warps), THREADS, warps * WARP_BYTES)
    }
}

/// What the lists need once it is known how long they are.
struct Lists {
    _entries: [CudaSlice<u32>; 2],
    _edges: CudaSlice<u32>,
    _gradients: CudaSlice<f32>,
}

/// The network for a number of frames.
pub(super) struct Network {
    // Dropped in this order: graphs before what they read.
    graphs: Vec<(Key, Graph)>,
    boxes: Part,
    list: Part,
    forward: Part,
    backward: Part,
    pub(super) model: DeviceMessagePassing,
    space: CudaSlice<Space>,
    clock: CudaSlice<Clock>,
    built_at: CudaSlice<f64>,
    lists: Option<Lists>,
    _floats: Vec<CudaSlice<f32>>,
    _indices: Vec<CudaSlice<u32>>,
    _blocks: CudaSlice<BlockArrays>,
    _scratch: Option<CudaSlice<u8>>,
    /// On which launches are recorded: a caller's may be one that cannot.
    recorder: Arc<CudaStream>,
    cutoff: f64,
    n_total: usize,
    /// All pairs are listed once and for all.
    all_pairs: bool,
    sent_space: Option<Space>,
    records: bool,
}

/// What tells apart the launches that are recorded: where the positions lie, and whether energies are asked for.
type Key = (u64, bool);

/// Whether launches are replayed as a graph.
pub(super) fn records() -> bool {
    std::env::var(GRAPHS).map_or(true, |value| value != "0")
}

/// Zeros on the device that live as long as `kept`, and where they lie.
pub(super) fn zeros<T: DeviceRepr + ValidAsZeroBits>(
    kept: &mut Vec<CudaSlice<T>>,
    stream: &Arc<CudaStream>,
    n: usize,
) -> Result<u64> {
    kept.push(stream.alloc_zeros(n.max(1)).during("allocating its memory")?);
    Ok(address(&kept[kept.len() - 1], stream))
}

impl Network {
    /// Kernels that may need much shared memory.
    pub(super) const LARGE: [&str; 2] = ["message_passing_forward", "message_passing_backward"];

    pub(super) fn new(
        gpu: &Gpu,
        stream: &Arc<CudaStream>,
        model: &KernelModel,
        arrays: &MessagePassingArrays,
        n_frames: usize,
    ) -> Result<Self> {
        let (n, n_particles) = (model.members.len(), model.n_particles);
        let n_total = n * n_frames;
        let (f, n_blocks, n_mixed) = (arrays.width as usize, arrays.blocks.len(), arrays.n_mixed as usize);
        let n_groups = n_total.div_ceil(GROUP);
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

        let most = 2 * (n as f64).cbrt().ceil() as usize + 1;
        let (mut floats, mut indices) = (Vec::new(), Vec::new());
        let memory = "allocating its memory";
        let mut float = |n: usize| zeros(&mut floats, stream, n);
        let mut index = |values: &[u32], n: usize| -> Result<u64> {
            let made = if values.is_empty() { stream.alloc_zeros(n) } else { stream.clone_htod(values) };
            indices.push(made.during(memory)?);
            Ok(address(&indices[indices.len() - 1], stream))
        };
        let built_at = stream.alloc_zeros(3 * n_total).during(memory)?;
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
            clock: address(&clock, stream),
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
            ends: index(&[], n_frames * most * most * most)?,
            counts: index(&[], 3 * n_frames)?,
            moved: index(&[], n_frames)?,
            n: n as u32,
            n_particles: n_particles as u32,
            n_frames: n_frames as u32,
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
            with_energy: 0,
        };
        floats.push(numbers);
        Ok(Network {
            graphs: Vec::new(),
            boxes: part("neighbor_boxes", n_frames, FILLERS, FILLERS * FILLER_BYTES)?,
            list: part("neighbor_list", n_total.div_ceil(warps), THREADS, 0)?,
            forward: part("message_passing_forward", n_groups, n_threads, shared)?,
            backward: part("message_passing_backward", n_groups, n_threads, shared)?,
            model,
            space,
            clock,
            built_at,
            lists: None,
            _floats: floats,
            _indices: indices,
            _blocks: blocks,
            _scratch: scratch,
            recorder: gpu.context.new_stream().during("making a stream")?,
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

    /// Have lists of neighbours for what lies at `positions` in `cell`: from the beginning where there are none yet, and for frames
    /// that were `sent` from the host. `begin` launches what notices who has moved. Waits where there is anything to do.
    pub(super) fn list(
        &mut self,
        stream: &Arc<CudaStream>,
        positions: u64,
        cell: Option<&Cell>,
        sent: bool,
        begin: impl Fn(&DeviceMessagePassing) -> std::result::Result<(), DriverError>,
    ) -> Result<()> {
        self.all_pairs = cell.is_none() && self.model.list.n as usize <= ALL_PAIRS;
        let space = Self::space_of(cell, self.cutoff, self.all_pairs);
        let known = self.sent_space == Some(space) && self.lists.is_some();
        if known && (self.all_pairs || !sent) {
            return Ok(());
        }
        self.sent_space = None;
        let what = "building lists of neighbors";
        let build = |network: &Self| -> std::result::Result<Clock, DriverError> {
            begin(&network.model)?;
            network.launch_lists(stream, &network.model, positions)?;
            network.clock_now(stream)
        };
        let anew = Space { anew: (!known).into(), ..space };
        stream.memcpy_htod(&[anew], &mut self.space).during(what)?;
        let clock = build(self).during(what)?;
        self.check_found(stream, clock, what)?;
        if clock.longest > self.model.list.capacity || self.lists.is_none() {
            self.make_room(stream, clock.longest)?;
            // All of them have to be written to the new place.
            stream.memcpy_htod(&[Space { anew: 1, ..space }], &mut self.space).during(what)?;
            build(self).during(what)?;
        }
        stream.memcpy_htod(&[space], &mut self.space).during(what)?;
        self.sent_space = Some(space);
        Ok(())
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
        self.graphs.clear();
        // Before others are made, which may fail.
        self.lists = None;
        self.model.list.capacity = 0;
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

    /// Launch `work` on `stream` so many times: as a graph, unless those are switched off, that was recorded when it was first asked
    /// for by this `key`.
    pub(super) fn run(
        &mut self,
        stream: &Arc<CudaStream>,
        key: Key,
        n_times: u64,
        what: &str,
        work: impl Fn(&Self, &Arc<CudaStream>) -> std::result::Result<(), DriverError>,
    ) -> Result<()> {
        let known = |graphs: &[(Key, Graph)]| graphs.iter().position(|(of, _)| *of == key);
        if self.records && known(&self.graphs).is_none() {
            let recorder = &self.recorder;
            let graph = Graph::record(recorder, || work(self, recorder)).map_err(|error| {
                let failed = driver_error("recording launches as a CUDA graph", error);
                Error::Device(format!("{failed}; set {GRAPHS}=0, and they are made one by one"))
            })?;
            self.graphs.extend(graph.map(|graph| (key, graph)));
        }
        let graph = known(&self.graphs).map(|at| &self.graphs[at].1);
        (0..n_times)
            .try_for_each(|_| match graph {
                Some(graph) => graph.replay(stream),
                None => work(self, stream),
            })
            .during(what)
    }

    /// Launches that a score takes.
    pub(super) fn n_launches(&self) -> u32 {
        let lists = if self.all_pairs { 0 } else { 2 };
        lists + 2 * self.model.n_blocks
    }

    /// How they are made, in words.
    pub(super) fn how(&self) -> String {
        match self.records {
            true => "replayed as a CUDA graph".into(),
            false => format!("one by one ({GRAPHS}=0)"),
        }
    }

    /// Launch the network at `positions`: what is left to do is to gather the scores, and the energies where they are asked for.
    pub(super) fn launch(
        &self,
        stream: &Arc<CudaStream>,
        positions: u64,
        with_energy: bool,
    ) -> std::result::Result<(), DriverError> {
        let model = &DeviceMessagePassing { with_energy: with_energy.into(), ..self.model };
        if !self.all_pairs {
            self.launch_lists(stream, model, positions)?;
        }
        let block = |part: &Part, block: u32| {
            launch(stream, part, |arguments| arguments.arg(model).arg(&positions).arg(&block))
        };
        (0..model.n_blocks).try_for_each(|b| block(&self.forward, b))?;
        (0..model.n_blocks).rev().try_for_each(|b| block(&self.backward, b))
    }

    fn launch_lists(
        &self,
        stream: &Arc<CudaStream>,
        model: &DeviceMessagePassing,
        positions: u64,
    ) -> std::result::Result<(), DriverError> {
        [&self.boxes, &self.list]
            .into_iter()
            .try_for_each(|part| launch(stream, part, |arguments| arguments.arg(model).arg(&positions)))
    }

    fn clock_now(&self, stream: &Arc<CudaStream>) -> std::result::Result<Clock, DriverError> {
        let mut clock = [Clock::default()];
        stream.memcpy_dtoh(&self.clock, &mut clock)?;
        stream.synchronize()?;
        Ok(clock[0])
    }

    /// That there was a box for every particle.
    fn check_found(&self, stream: &Arc<CudaStream>, clock: Clock, what: &str) -> Result<()> {
        if clock.lost == NONE_OF_THEM {
            return Ok(());
        }
        let at = 3 * clock.lost as usize;
        let mut x = [0.0; 3];
        stream
            .memcpy_dtoh(&self.built_at.slice(at..at + 3), &mut x)
            .and_then(|()| stream.synchronize())
            .during(what)?;
        Err(too_far(clock.lost as usize % self.model.list.n as usize, x))
    }

    /// Wait; whether the lists had room for all neighbours. Where not there is room now, and what was launched is to be done again
    /// from its beginning.
    pub(super) fn had_room(&mut self, stream: &Arc<CudaStream>, what: &str) -> Result<bool> {
        let clock = self.clock_now(stream).during(what)?;
        self.check_found(stream, clock, what)?;
        if clock.stalled == 0 {
            return Ok(true);
        }
        self.make_room(stream, clock.longest)?;
        self.sent_space = None;
        Ok(false)
    }

    /// Whether lists may outgrow their room.
    pub(super) fn may_lack_room(&self) -> bool {
        !self.all_pairs
    }
}
