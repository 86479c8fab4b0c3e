//! The model file: one `.safetensors` whose header holds a JSON description under the key `diffusim`.
//!
//! Everything a run depends on is in it: atoms, units, temperature, noise levels, weights and their hash. A file is trusted
//! in nothing: every size, shape, type, index and number is checked before use.

use super::analytic::Potential;
use super::curvature::largest_curvature;
use super::distance::{Hyperparameters, Tensors};
use super::{
    Analytic, Blend, Callback, Distance, Frames, MessagePassing, Outputs, ScoreModel, Scratch, Subset,
    callback, message_passing,
};
use crate::cell::Cell;
use crate::error::{Error, Result, bail};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;

/// The format this library reads and writes.
pub const FORMAT_VERSION: u64 = 1;

/// More particles than any model of format 1 has; a larger number is a damaged file.
const MAX_PARTICLES: usize = 1 << 24;
/// Start frames that are tried at load.
const N_TRIED: usize = 32;
/// The distance network works on all pairs.
const MAX_DISTANCE_PARTICLES: usize = 2048;

/// One particle of a model, in the order of the positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Particle {
    /// Atom or bead name, such as `CA`.
    pub name: String,
    /// Element symbol, such as `C`; empty for a bead.
    pub element: String,
    /// Residue name.
    pub residue: String,
    /// Residue number, counted from 0.
    pub residue_index: usize,
    /// amu
    pub mass: f64,
}

impl Particle {
    /// What a message-passing network tells particles apart by: the element, or the name of a bead.
    pub fn species(&self) -> &str {
        if self.element.is_empty() { &self.name } else { &self.element }
    }
}

/// Noise levels σ in nm.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct NoiseLevels {
    /// Least σ of the training.
    pub min: f64,
    /// Greatest σ of the training.
    pub max: f64,
    /// σ at which the score is read in a simulation, unless the caller says otherwise.
    pub simulation: f64,
}

/// The JSON description of a model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Metadata {
    /// [`FORMAT_VERSION`]
    pub format_version: u64,
    /// `distance`, `message-passing`, or the name of an analytic potential.
    pub kind: String,
    /// Particles in a frame.
    pub n_particles: usize,
    /// What they are; may be empty for analytic kinds.
    #[serde(default)]
    pub particles: Vec<Particle>,
    /// Pairs of particle indices.
    #[serde(default)]
    pub bonds: Vec<[usize; 2]>,
    /// `nm`
    pub length_unit: String,
    /// Whether the model lives in a periodic cell.
    #[serde(default)]
    pub periodic: bool,
    /// T₀ of the snapshots, K.
    pub training_temperature: f64,
    /// Absent for analytic kinds.
    #[serde(default)]
    pub noise_levels: Option<NoiseLevels>,
    /// τ for molecular dynamics, nm².
    #[serde(default)]
    pub recommended_effective_step: Option<f64>,
    /// Largest eigenvalue of −∇s on the snapshots, 1/nm².
    #[serde(default)]
    pub largest_curvature: Option<f64>,
    /// Least and greatest length of each bond in the snapshots, nm.
    #[serde(default)]
    pub bond_ranges: Vec<[f64; 2]>,
    /// Of the kind.
    #[serde(default)]
    pub hyperparameters: serde_json::Value,
    /// Provenance, free.
    #[serde(default)]
    pub training: serde_json::Value,
    /// sha256 of the tensors' bytes.
    #[serde(default)]
    pub weights_sha256: Option<String>,
}

/// A score together with what is known about it. Immutable; shared between simulations and threads.
pub struct Model {
    name: String,
    metadata: Metadata,
    metadata_json: String,
    score: Arc<dyn ScoreModel>,
    /// The score itself, where it can be applied to other particles.
    transferable: Option<Arc<MessagePassing>>,
    /// The score itself and the models it is made of, where it is a blend.
    blend: Option<(Arc<Blend>, [Arc<Model>; 2])>,
    bytes: Option<Vec<u8>>,
    sha256: String,
    start_positions: Vec<f64>,
    /// The cell of the start frames.
    start_cell: Option<Cell>,
    /// σ at which a network is read, nm.
    noise_level: Option<f64>,
    /// For each particle, whether `metadata.particles` knows it; a subset leaves the others unknown.
    known: Vec<bool>,
}

impl Model {
    /// Read a model file; `noise_level` (nm) defaults to the file's own for simulations.
    pub fn load(path: &Path, noise_level: Option<f64>) -> Result<Self> {
        if std::fs::metadata(path).is_ok_and(|m| !m.is_file()) {
            bail!(Io, "{} is not a file; give the path of a model file", path.display());
        }
        let bytes = std::fs::read(path)
            .map_err(|e| Error::Io(format!("cannot read model file {}: {e}", path.display())))?;
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Self::parse(name, bytes, noise_level)
    }

    /// A model file already in memory.
    pub fn from_bytes(bytes: &[u8], noise_level: Option<f64>) -> Result<Self> {
        Self::parse("model".into(), bytes.to_vec(), noise_level)
    }

    /// An analytic model from its JSON description alone.
    pub fn from_json(json: &str) -> Result<Self> {
        let value: serde_json::Value = serde_json::from_str(json).unwrap_or_default(); // build says what is wrong
        let name = value["kind"].as_str().unwrap_or("model").to_owned();
        Self::build(name, json, None, None)
    }

    fn parse(name: String, bytes: Vec<u8>, noise_level: Option<f64>) -> Result<Self> {
        let damaged = |e: safetensors::SafeTensorError| {
            Error::InvalidModel(format!(
                "{name} is not a readable safetensors file ({e}); copy or train it again"
            ))
        };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
        let Some(json) = header.metadata().as_ref().and_then(|m| m.get("diffusim")).cloned() else {
            bail!(
                InvalidModel,
                "{name} is a safetensors file but no diffusim model: its header has no entry 'diffusim'"
            );
        };
        Self::build(name, &json, Some(bytes), noise_level)
    }

    fn build(name: String, json: &str, bytes: Option<Vec<u8>>, noise_level: Option<f64>) -> Result<Self> {
        let wrong = |what: String| Error::InvalidModel(format!("{name}: {what}"));
        let version = serde_json::from_str::<serde_json::Value>(json)
            .map_err(|e| wrong(format!("its description is not JSON ({e})")))?
            .get("format_version")
            .and_then(serde_json::Value::as_u64)
            .ok_or_else(|| wrong("its description has no format_version".into()))?;
        if version != FORMAT_VERSION {
            return Err(wrong(format!(
                "format version {version} is unknown to diffusim {}, which reads version {FORMAT_VERSION}; \
                 install a newer diffusim or train the model again",
                crate::VERSION
            )));
        }
        let mut metadata: Metadata =
            serde_json::from_str(json).map_err(|e| wrong(format!("its description is incomplete ({e})")))?;
        metadata.check().map_err(|e| wrong(e.to_string()))?;

        let learned = matches!(metadata.kind.as_str(), "distance" | "message-passing");
        let (mut start_positions, mut start_cell, mut transferable, mut level) =
            (Vec::new(), None, None, None);
        let score: Arc<dyn ScoreModel> = if learned {
            let Some(bytes) = &bytes else {
                return Err(wrong(format!(
                    "a {} model needs its weights; load the .safetensors file",
                    metadata.kind
                )));
            };
            let say = |e| match e {
                Error::InvalidModel(m) => wrong(m),
                other => other,
            };
            let tensors = TensorFile::open(&metadata, bytes).map_err(say)?;
            let (score, noise_level): (Arc<dyn ScoreModel>, _) = if metadata.kind == "distance" {
                let (distance, noise_level) = load_distance(&metadata, &tensors, noise_level).map_err(say)?;
                (Arc::new(distance), noise_level)
            } else {
                let (network, noise_level) =
                    load_message_passing(&metadata, &tensors, noise_level).map_err(say)?;
                let network = Arc::new(network);
                transferable = Some(network.clone());
                (network, noise_level)
            };
            start_positions = tensors.start_positions(metadata.n_particles).map_err(say)?;
            start_cell = tensors.start_cell(metadata.periodic).map_err(say)?;
            try_start(&mut metadata, &*score, &start_positions, start_cell.as_ref(), noise_level)
                .map_err(say)?;
            level = Some(noise_level);
            score
        } else {
            let tagged =
                serde_json::json!({ "kind": metadata.kind, "hyperparameters": metadata.hyperparameters });
            let potential: Potential = serde_json::from_value(tagged).map_err(|e| {
                wrong(format!("kind '{}' with these hyper-parameters is not known ({e})", metadata.kind))
            })?;
            let analytic =
                Analytic::new(metadata.n_particles, potential).map_err(|e| wrong(e.to_string()))?;
            let wanted = noise_level.or(metadata.noise_levels.map(|levels| levels.simulation));
            let analytic = match (wanted.and_then(|level| analytic.blurred(level)), noise_level) {
                (Some(blurred), _) => {
                    level = wanted;
                    blurred
                }
                (None, None) => analytic,
                (None, Some(level)) => bail!(
                    InvalidArgument,
                    "{name} is an analytic model and has no noise level; {level} nm was asked for"
                ),
            };
            metadata.largest_curvature = metadata.largest_curvature.or(analytic.largest_curvature());
            Arc::new(analytic)
        };
        let sha256 = hex(&Sha256::digest(bytes.as_deref().unwrap_or(json.as_bytes())));
        let known = vec![true; metadata.particles.len()];
        let metadata_json = json.to_owned();
        Ok(Model {
            name,
            metadata_json,
            metadata,
            score,
            transferable,
            blend: None,
            bytes,
            sha256,
            start_positions,
            start_cell,
            noise_level: level,
            known,
        })
    }

    /// A model around the caller's own function.
    pub fn callback(
        n_particles: usize,
        training_temperature: f64,
        function: Box<callback::Function>,
    ) -> Result<Self> {
        let metadata = Metadata {
            format_version: FORMAT_VERSION,
            kind: "callback".into(),
            n_particles,
            particles: Vec::new(),
            bonds: Vec::new(),
            length_unit: "nm".into(),
            periodic: false,
            training_temperature,
            noise_levels: None,
            recommended_effective_step: None,
            largest_curvature: None,
            bond_ranges: Vec::new(),
            hyperparameters: serde_json::Value::Null,
            training: serde_json::Value::Null,
            weights_sha256: None,
        };
        metadata.check()?;
        let metadata_json = serde_json::to_string(&metadata).expect("plain data");
        Ok(Model {
            name: "callback model".into(),
            sha256: hex(&Sha256::digest(metadata_json.as_bytes())),
            metadata_json,
            metadata,
            score: Arc::new(Callback::new(n_particles, function)),
            transferable: None,
            blend: None,
            bytes: None,
            start_positions: Vec::new(),
            start_cell: None,
            noise_level: None,
            known: Vec::new(),
        })
    }

    /// This model, moving only `particles` (its own order) of a system of `n_particles`; the others feel no score.
    /// [`Model::metadata_json`] stays that of the model itself.
    pub fn subset(&self, n_particles: usize, particles: &[usize]) -> Result<Self> {
        if n_particles > MAX_PARTICLES {
            bail!(
                InvalidArgument,
                "a system of {n_particles} particles is too large; expected at most {MAX_PARTICLES}"
            );
        }
        if let Some((blend, [a, b])) = &self.blend {
            let subset = |model: &Model| Ok(Arc::new(model.subset(n_particles, particles)?));
            return Self::blend(&subset(a)?, &subset(b)?, blend.lambda());
        }
        let score = Subset::new(self.score.clone(), n_particles, particles)?;
        let mut metadata = self.metadata.clone();
        metadata.n_particles = n_particles;
        let mut known = Vec::new();
        if !self.metadata.particles.is_empty() {
            let unknown = Particle {
                name: String::new(),
                element: String::new(),
                residue: String::new(),
                residue_index: 0,
                mass: f64::NAN,
            };
            metadata.particles = vec![unknown; n_particles];
            known = vec![false; n_particles];
            for ((particle, was_known), &p) in self.metadata.particles.iter().zip(&self.known).zip(particles)
            {
                metadata.particles[p] = particle.clone();
                known[p] = *was_known;
            }
        }
        metadata.bonds.iter_mut().for_each(|b| *b = b.map(|i| particles[i]));
        Ok(Model {
            name: self.name.clone(),
            metadata_json: self.metadata_json.clone(),
            metadata,
            score: Arc::new(score),
            transferable: None,
            blend: None,
            bytes: self.bytes.clone(),
            sha256: hex(&Sha256::digest(format!("{} {n_particles} {particles:?}", self.sha256).as_bytes())),
            start_positions: Vec::new(),
            start_cell: self.start_cell.clone(),
            noise_level: self.noise_level,
            known,
        })
    }

    /// A transferable model (kind `message-passing`) for other particles, in their order: element symbols, or the names of
    /// beads. Masses are those of the model's own particles of the species. [`Model::metadata_json`] stays that of the file.
    pub fn for_species(&self, species: &[&str]) -> Result<Self> {
        let Some(network) = &self.transferable else {
            bail!(
                Unsupported,
                "{} is made for its own {} particles and cannot be given others; only models of kind 'message-passing' can",
                self.name,
                self.n_particles()
            );
        };
        if species.is_empty() || species.len() > MAX_PARTICLES {
            bail!(
                InvalidArgument,
                "{} particles were given to {}; expected 1 to {MAX_PARTICLES}",
                species.len(),
                self.name
            );
        }
        let network = Arc::new(network.with_particles(species)?);
        let own = &self.metadata.particles;
        let particles = species.iter().enumerate().map(|(i, name)| {
            let like = own.iter().find(|p| p.species().eq_ignore_ascii_case(name));
            like.map(|p| Particle { residue_index: i, ..p.clone() }).unwrap_or(Particle {
                name: (*name).to_owned(),
                element: String::new(),
                residue: String::new(),
                residue_index: i,
                mass: f64::NAN,
            })
        });
        let particles: Vec<Particle> = particles.collect();
        let known = particles.iter().map(|p| p.mass.is_finite()).collect();
        let metadata = Metadata {
            n_particles: species.len(),
            particles,
            bonds: Vec::new(),
            bond_ranges: Vec::new(),
            ..self.metadata.clone()
        };
        Ok(Model {
            name: self.name.clone(),
            metadata,
            metadata_json: self.metadata_json.clone(),
            score: network.clone(),
            transferable: Some(network),
            blend: None,
            bytes: self.bytes.clone(),
            sha256: hex(&Sha256::digest(format!("{} {}", self.sha256, species.join(" ")).as_bytes())),
            start_positions: Vec::new(),
            start_cell: None,
            noise_level: self.noise_level,
            known,
        })
    }

    /// E_λ = (1−λ)E_A + λE_B of two models of the same particles and T₀, in kT₀ (theory 7); λ can be changed while a simulation
    /// runs ([`Simulation::set_lambda`](crate::sampler::Simulation::set_lambda)).
    ///
    /// Particles, masses and start frames are those of `a`, or of `b` where `a` has none; bonds those that both know, and
    /// their ranges what either allows. Largest curvature and recommended step are safe at every λ, where both models
    /// state theirs: the largest eigenvalue of a sum is at most the sum of the largest. The hash is that of the two models
    /// without λ, which is the simulation's.
    pub fn blend(a: &Arc<Model>, b: &Arc<Model>, lambda: f64) -> Result<Self> {
        let blend = Arc::new(Blend::new([a.score.clone(), b.score.clone()], lambda)?);
        let both = [a, b];
        let [at, bt] = both.map(|m| m.metadata.training_temperature);
        if (at - bt).abs() > 1e-9 * at {
            bail!(
                Mismatch,
                "{} was trained at {at} K and {} at {bt} K; blend models of one temperature, or their energies in kT do not \
                 belong to the same ensemble",
                a.name,
                b.name
            );
        }
        if a.metadata.periodic != b.metadata.periodic {
            let [periodic, open] = if a.metadata.periodic { [a, b] } else { [b, a] };
            bail!(
                Mismatch,
                "{} lives in a periodic cell and {} does not; blend two periodic models, or two in open space",
                periodic.name,
                open.name
            );
        }
        let described = if a.known.is_empty() { b } else { a };
        let started = if a.start_positions.is_empty() { b } else { a };
        let (mut bonds, mut bond_ranges) = (Vec::new(), Vec::new());
        for (bond, range) in a.metadata.bonds.iter().zip(&a.metadata.bond_ranges) {
            let same = |[i, j]: &[usize; 2]| [*i, *j] == *bond || [*j, *i] == *bond;
            let of_b = b.metadata.bonds.iter().zip(&b.metadata.bond_ranges).find(|(other, _)| same(other));
            if let Some((_, other)) = of_b {
                bonds.push(*bond);
                bond_ranges.push([range[0].min(other[0]), range[1].max(other[1])]);
            }
        }
        let of_both = |get: fn(&Metadata) -> Option<f64>, pick: fn(f64, f64) -> f64| {
            Some(pick(get(&a.metadata)?, get(&b.metadata)?))
        };
        let parts = both.map(|m| {
            let level = m.noise_level;
            serde_json::json!({ "name": m.name, "kind": m.metadata.kind, "sha256": m.sha256, "noise_level": level })
        });
        let metadata = Metadata {
            format_version: FORMAT_VERSION,
            kind: "blend".into(),
            n_particles: a.n_particles(),
            particles: described.metadata.particles.clone(),
            bonds,
            length_unit: "nm".into(),
            periodic: a.metadata.periodic,
            training_temperature: at,
            noise_levels: None,
            recommended_effective_step: of_both(|m| m.recommended_effective_step, f64::min),
            largest_curvature: of_both(|m| m.largest_curvature, f64::max),
            bond_ranges,
            hyperparameters: serde_json::json!({ "lambda": lambda, "models": parts }),
            training: serde_json::Value::Null,
            weights_sha256: None,
        };
        Ok(Model {
            name: format!("blend of {} and {}", a.name, b.name),
            metadata_json: serde_json::to_string(&metadata).expect("plain data"),
            metadata,
            score: blend.clone(),
            transferable: None,
            blend: Some((blend, [a.clone(), b.clone()])),
            bytes: None,
            sha256: hex(&Sha256::digest(serde_json::Value::from(parts.to_vec()).to_string().as_bytes())),
            start_positions: started.start_positions.clone(),
            start_cell: started.start_cell.clone(),
            noise_level: a.noise_level.or(b.noise_level),
            known: described.known.clone(),
        })
    }

    /// The score of a blend.
    pub fn as_blend(&self) -> Result<&Arc<Blend>> {
        match &self.blend {
            Some((blend, _)) => Ok(blend),
            None => bail!(
                InvalidArgument,
                "{} is one model and has no lambda; only a blend of two has",
                self.name
            ),
        }
    }

    /// File name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Call the model `name` in messages.
    pub fn rename(&mut self, name: &str) {
        self.name = name.to_owned();
    }

    /// The description, checked.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The description as it stands in the file.
    pub fn metadata_json(&self) -> &str {
        &self.metadata_json
    }

    /// The network of a transferable model.
    pub fn transferable(&self) -> Option<&Arc<MessagePassing>> {
        self.transferable.as_ref()
    }

    /// The score itself.
    pub fn score(&self) -> &Arc<dyn ScoreModel> {
        &self.score
    }

    /// The file, where the model came from one.
    pub fn bytes(&self) -> Option<&[u8]> {
        self.bytes.as_deref()
    }

    /// sha256 of the file or of the JSON description.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Frames to start from, `[n_frames][n_particles][3]`, nm; may be empty.
    pub fn start_positions(&self) -> &[f64] {
        &self.start_positions
    }

    /// The cell of the start frames, of a periodic model.
    pub fn start_cell(&self) -> Option<&Cell> {
        self.start_cell.as_ref()
    }

    /// σ at which a network's score is read, nm; `None` for other models.
    pub fn noise_level(&self) -> Option<f64> {
        self.noise_level
    }

    /// Particles in a frame.
    pub fn n_particles(&self) -> usize {
        self.metadata.n_particles
    }

    /// Masses in amu, where the model knows them all.
    pub fn masses(&self) -> Result<Vec<f64>> {
        if self.known.len() < self.n_particles() || self.known.contains(&false) {
            bail!(
                InvalidArgument,
                "{} knows the masses of {} of {} particles; give the masses",
                self.name,
                self.known.iter().filter(|k| **k).count(),
                self.n_particles()
            );
        }
        Ok(self.metadata.particles.iter().map(|p| p.mass).collect())
    }

    fn check_count(&self, count: usize) -> Result<()> {
        if count != self.n_particles() {
            bail!(
                Mismatch,
                "{} does not fit this System: the model moves {} particles and the System has {count}. \
                 Pass particles=[…] to say which particles the model moves.",
                self.name,
                self.n_particles()
            );
        }
        Ok(())
    }

    fn known_particles(&self) -> impl Iterator<Item = (usize, &Particle)> {
        self.metadata.particles.iter().enumerate().filter(|(i, _)| self.known[*i])
    }

    /// Whether the engine's masses (amu) are those of the model's particles, in order; frozen particles (mass 0) pass.
    pub fn check_masses(&self, masses: &[f64]) -> Result<()> {
        const TOLERANCE: f64 = 0.6;
        self.check_count(masses.len())?;
        for (i, p) in self.known_particles() {
            if masses[i] != 0.0 && ((masses[i] - p.mass).abs() > TOLERANCE || masses[i].is_nan()) {
                bail!(
                    Mismatch,
                    "{} does not fit this System: particle {i} is {} ({}, {:.3} amu) in the model and weighs {:.3} amu in \
                     the System. Reorder the System, or switch the mass check off if its masses were changed on purpose.",
                    self.name,
                    p.name,
                    element_name(&p.element),
                    p.mass,
                    masses[i]
                );
            }
        }
        Ok(())
    }

    /// Whether the engine's elements are those of the model's particles, in order; `None` is not compared.
    pub fn check_particles(&self, elements: &[Option<&str>], names: &[Option<&str>]) -> Result<()> {
        self.check_count(elements.len())?;
        for (i, p) in self.known_particles() {
            let Some(element) = elements[i] else { continue };
            if !p.element.is_empty() && !element.eq_ignore_ascii_case(&p.element) {
                let name = names.get(i).copied().flatten().unwrap_or(element);
                bail!(
                    Mismatch,
                    "{} does not fit this System: particle {i} is {} ({}) in the model and {name} ({}) in the System. \
                     Reorder the System, or pass particles=[…] to say which particles the model moves.",
                    self.name,
                    p.name,
                    element_name(&p.element),
                    element_name(element)
                );
            }
        }
        Ok(())
    }
}

impl Metadata {
    fn check(&self) -> Result<()> {
        let n = self.n_particles;
        if n == 0 || n > MAX_PARTICLES {
            bail!(InvalidModel, "n_particles is {n}; expected 1 to {MAX_PARTICLES}");
        }
        if !(self.particles.is_empty() || self.particles.len() == n) {
            bail!(InvalidModel, "describes {} particles but n_particles is {n}", self.particles.len());
        }
        if let Some((i, p)) =
            self.particles.iter().enumerate().find(|(_, p)| !(p.mass > 0.0 && p.mass.is_finite()))
        {
            bail!(
                InvalidModel,
                "particle {i} ({}) has mass {} amu; expected a positive number",
                p.name,
                p.mass
            );
        }
        if let Some(b) = self.bonds.iter().find(|[i, j]| *i >= n || *j >= n || i == j) {
            bail!(InvalidModel, "bond {b:?} must join two different particles below {n}");
        }
        if let Some(NoiseLevels { min, max, simulation }) = self.noise_levels
            && !(min >= 1e-9 && max > min && max <= 1e3 && (min * 0.999..=max * 1.001).contains(&simulation))
        {
            bail!(
                InvalidModel,
                "noise levels of the model are {min} to {max} nm, {simulation} for simulations; expected 0 < min < max, \
                 both reasonable, and the last between them"
            );
        }
        if self.length_unit != "nm" {
            bail!(InvalidModel, "length unit '{}' is not supported; expected 'nm'", self.length_unit);
        }
        if self.periodic && self.kind != "message-passing" {
            bail!(
                InvalidModel,
                "a model of kind '{}' cannot be periodic; only message-passing can",
                self.kind
            );
        }
        for (name, value) in [
            ("training_temperature", Some(self.training_temperature)),
            ("recommended_effective_step", self.recommended_effective_step),
            ("largest_curvature", self.largest_curvature),
        ] {
            if value.is_some_and(|v| !(v > 0.0 && v.is_finite())) {
                bail!(InvalidModel, "{name} is {}; expected a positive number", value.unwrap_or(f64::NAN));
            }
        }
        if !(self.bond_ranges.is_empty() || self.bond_ranges.len() == self.bonds.len()) {
            bail!(InvalidModel, "{} bond_ranges for {} bonds", self.bond_ranges.len(), self.bonds.len());
        }
        if let Some(range) =
            self.bond_ranges.iter().find(|[least, greatest]| !(*least > 0.0 && greatest >= least))
        {
            bail!(InvalidModel, "bond_ranges holds {range:?}; expected 0 < least <= greatest, in nm");
        }
        Ok(())
    }
}

/// The tensors of a model file, whose hash has been checked.
struct TensorFile<'a>(SafeTensors<'a>);

impl<'a> TensorFile<'a> {
    fn open(metadata: &Metadata, bytes: &'a [u8]) -> Result<Self> {
        let invalid = |e: safetensors::SafeTensorError| Error::InvalidModel(e.to_string());
        let (header_size, _) = SafeTensors::read_metadata(bytes).map_err(invalid)?;
        let Some(expected) = &metadata.weights_sha256 else {
            bail!(InvalidModel, "weights_sha256 is missing");
        };
        let found = hex(&Sha256::digest(&bytes[8 + header_size..]));
        if !found.eq_ignore_ascii_case(expected) {
            bail!(
                InvalidModel,
                "the weights were changed after they were written (sha256 {found}, expected {expected})"
            );
        }
        Ok(TensorFile(SafeTensors::deserialize(bytes).map_err(invalid)?))
    }

    /// Shape and numbers, all finite.
    fn get(&self, name: &str, rank: usize) -> Result<(Vec<usize>, Vec<f32>)> {
        let view =
            self.0.tensor(name).map_err(|_| Error::InvalidModel(format!("tensor {name} is missing")))?;
        if view.shape().len() != rank {
            bail!(InvalidModel, "tensor {name} has shape {:?}; expected {rank} dimensions", view.shape());
        }
        let values: Vec<f32> = match view.dtype() {
            Dtype::F32 => view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::BF16 => {
                let widened = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                view.data().as_chunks().0.iter().map(widened).collect()
            }
            other => bail!(InvalidModel, "tensor {name} is {other:?}; expected F32 or BF16"),
        };
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            bail!(
                InvalidModel,
                "tensor {name} holds {} at position {i}; the training diverged, train again",
                values[i]
            );
        }
        Ok((view.shape().to_vec(), values))
    }

    fn of_shape(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>> {
        let (shape, values) = self.get(name, expected.len())?;
        if shape != expected {
            bail!(InvalidModel, "tensor {name} has shape {shape:?}; expected {expected:?}");
        }
        Ok(values)
    }

    fn start_positions(&self, n: usize) -> Result<Vec<f64>> {
        let (shape, start) = self.get("start_positions", 3)?;
        if shape[0] == 0 || shape[1..] != [n, 3] {
            bail!(InvalidModel, "tensor start_positions has shape {shape:?}; expected [at least 1, {n}, 3]");
        }
        Ok(start.into_iter().map(f64::from).collect())
    }

    fn start_cell(&self, periodic: bool) -> Result<Option<Cell>> {
        if !periodic {
            return Ok(None);
        }
        let rows = self.of_shape("start_cell", &[3, 3])?;
        let cell = Cell::new(std::array::from_fn(|k| std::array::from_fn(|c| rows[3 * k + c] as f64)));
        cell.map(Some).map_err(|e| Error::InvalidModel(format!("tensor start_cell: {e}")))
    }
}

/// σ at which a network is read.
fn level_and_range(metadata: &Metadata, given: Option<f64>) -> Result<(f64, [f64; 2])> {
    let Some(noise) = metadata.noise_levels else {
        bail!(InvalidModel, "a {} model must state its noise_levels", metadata.kind);
    };
    Ok((given.unwrap_or(noise.simulation), [noise.min, noise.max]))
}

/// The network and the noise level of a `distance` file.
fn load_distance(
    metadata: &Metadata,
    file: &TensorFile,
    noise_level: Option<f64>,
) -> Result<(Distance, f64)> {
    let n = metadata.n_particles;
    if n > MAX_DISTANCE_PARTICLES {
        bail!(
            InvalidModel,
            "a distance model has at most {MAX_DISTANCE_PARTICLES} particles, this one claims {n}"
        );
    }
    if metadata.particles.is_empty() {
        bail!(InvalidModel, "the particles of a distance model must be described");
    }
    let parameters: Hyperparameters =
        serde_json::from_value(metadata.hyperparameters.clone()).map_err(|e| {
            Error::InvalidModel(format!("hyper-parameters of the distance network are wrong ({e})"))
        })?;
    if n == 1 && parameters.coordinates.is_empty() {
        bail!(
            InvalidModel,
            "a distance model of one particle has no distances; expected coordinates in its hyper-parameters"
        );
    }
    let (level, range) = level_and_range(metadata, noise_level)?;
    let (_, feature_mean) = file.get("feature_mean", 1)?;
    let (_, feature_spread) = file.get("feature_spread", 1)?;
    let mut layers = Vec::new();
    for i in 0..=parameters.hidden.len() {
        let (shape, weight) = file.get(&format!("layers.{i}.weight"), 2)?;
        let (_, bias) = file.get(&format!("layers.{i}.bias"), 1)?;
        let n_out = parameters.hidden.get(i).copied().unwrap_or(1);
        if shape[1] != n_out {
            bail!(InvalidModel, "tensor layers.{i}.weight has shape {shape:?}; expected {n_out} columns");
        }
        layers.push((weight, bias));
    }
    let tensors = Tensors {
        feature_mean: &feature_mean,
        feature_spread: &feature_spread,
        layers: layers.iter().map(|(w, b)| (&w[..], &b[..])).collect(),
    };
    Ok((Distance::new(n, &parameters, &tensors, range, level)?, level))
}

/// The network and the noise level of a `message-passing` file.
fn load_message_passing(
    metadata: &Metadata,
    file: &TensorFile,
    noise_level: Option<f64>,
) -> Result<(MessagePassing, f64)> {
    if metadata.particles.is_empty() {
        bail!(InvalidModel, "the particles of a message-passing model must be described");
    }
    let parameters: message_passing::Hyperparameters =
        serde_json::from_value(metadata.hyperparameters.clone()).map_err(|e| {
            Error::InvalidModel(format!("hyper-parameters of the message-passing network are wrong ({e})"))
        })?;
    let (level, range) = level_and_range(metadata, noise_level)?;
    let species: Vec<&str> = metadata.particles.iter().map(Particle::species).collect();
    let tensor = |name: &str, shape: &[usize]| file.of_shape(name, shape);
    let network = MessagePassing::new(&parameters, &species, metadata.periodic, &tensor, range, level)
        .map_err(|e| match e {
            Error::Mismatch(text) => Error::InvalidModel(text),
            other => other,
        })?;
    Ok((network, level))
}

/// Refuse a network that gives nothing finite at its own start frames; at another noise level than the file's own for
/// simulations, stiffness and step are measured anew.
fn try_start(
    metadata: &mut Metadata,
    score: &dyn ScoreModel,
    start: &[f64],
    cell: Option<&Cell>,
    level: f64,
) -> Result<()> {
    let n = metadata.n_particles;
    score.check_cell(cell).map_err(|e| Error::InvalidModel(e.to_string()))?;
    let frames = Frames { positions: &start[..start.len().min(N_TRIED * 3 * n)], cell };
    let (mut scores, mut energies) =
        (vec![0.0; frames.positions.len()], vec![0.0; frames.positions.len() / (3 * n)]);
    score.evaluate(frames, Outputs::energies(&mut scores, &mut energies), &mut Scratch::default())?;
    if scores.iter().chain(&energies).any(|x| !x.is_finite()) {
        bail!(
            InvalidModel,
            "the network gives no finite score at its own start frames; the training diverged, train again"
        );
    }
    if metadata.noise_levels.is_some_and(|noise| level != noise.simulation) {
        let curvature = largest_curvature(score, frames)?;
        if let (Some(known), Some(tau)) = (metadata.largest_curvature, metadata.recommended_effective_step) {
            metadata.recommended_effective_step = Some(tau * known / curvature);
        }
        metadata.largest_curvature = Some(curvature);
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The element's name for messages, where it is a common one.
fn element_name(symbol: &str) -> &str {
    match symbol {
        "H" => "hydrogen",
        "C" => "carbon",
        "N" => "nitrogen",
        "O" => "oxygen",
        "F" => "fluorine",
        "P" => "phosphorus",
        "S" => "sulfur",
        "Cl" => "chlorine",
        "" => "bead",
        other => other,
    }
}
