//! A model as its kernel reads it: plain arrays, for devices other than the CPU.

/// What `kernels/` has for a kind of model, and the arrays it works on.
#[derive(Clone, Debug)]
pub enum Kernel {
    /// kernels/analytic.cuh
    Analytic {
        /// Number of the variant of [`Potential`](super::Potential).
        potential: u32,
        /// The variant's fields in their order, then zeros.
        parameters: [f64; 4],
        /// Of each component of a Gaussian mixture: ln w, three variances, their logarithms, means `[n_particles][3]`.
        mixture: Vec<f64>,
    },
    /// kernels/distance.cuh
    Distance(DistanceArrays),
    /// kernels/message_passing.cuh
    MessagePassing(MessagePassingArrays),
    /// kernels/blend.cuh, which two others are for: with members of their own.
    Blend(Box<[KernelModel; 2]>),
}

/// A [`Kernel`] and the particles that it acts on.
#[derive(Clone, Debug)]
pub struct KernelModel {
    /// The kernel.
    pub kernel: Kernel,
    /// Where each of its particles is found in a frame.
    pub members: Vec<u32>,
    /// Particles in a frame.
    pub n_particles: usize,
}

impl KernelModel {
    /// Components of a Gaussian mixture; 0 for other models.
    pub fn n_components(&self) -> usize {
        match &self.kernel {
            Kernel::Analytic { mixture, .. } => mixture.len() / (7 + 3 * self.members.len()),
            Kernel::Distance(_) | Kernel::MessagePassing(_) | Kernel::Blend(_) => 0,
        }
    }

    /// As one of `particles` of a system of `n_particles`.
    pub(super) fn within(mut self, particles: &[usize], n_particles: usize) -> Self {
        if let Kernel::Blend(parts) = self.kernel {
            self.kernel = Kernel::Blend(Box::new(parts.map(|part| part.within(particles, n_particles))));
        }
        let members = self.members.iter().map(|m| particles[*m as usize] as u32).collect();
        KernelModel { kernel: self.kernel, members, n_particles }
    }
}

/// Arrays of the `distance` network; offsets count into `numbers`.
#[derive(Clone, Debug, Default)]
pub struct DistanceArrays {
    /// Everything in single precision.
    pub numbers: Vec<f32>,
    /// Of each hidden layer.
    pub layers: Vec<LayerArrays>,
    /// `[n_quadruplets][4]`
    pub quadruplets: Vec<u32>,
    /// `[n_pairs][2]`, in the order of the features.
    pub pairs: Vec<u32>,
    /// `[n_coordinates][2]`: particle and axis.
    pub coordinates: Vec<u32>,
    /// Offset of the means of the features.
    pub mean: u32,
    /// Offset of their inverse spreads.
    pub inverse_spread: u32,
    /// Offset of the weights of the output layer.
    pub output_weight: u32,
    /// ε², nm²
    pub softening_squared: f32,
    /// Weight of the harmonic term.
    pub harmonic: f32,
    /// Of the output layer.
    pub output_bias: f32,
}

impl DistanceArrays {
    /// Add `numbers`; their offset.
    pub(super) fn push(&mut self, numbers: impl IntoIterator<Item = f32>) -> u32 {
        push(&mut self.numbers, numbers)
    }
}

/// Add to `numbers`; the offset of what was added.
pub(super) fn push(numbers: &mut Vec<f32>, added: impl IntoIterator<Item = f32>) -> u32 {
    let offset = numbers.len() as u32;
    numbers.extend(added);
    offset
}

/// Arrays of the `message-passing` network; offsets count into `numbers`.
#[derive(Clone, Debug, Default)]
pub struct MessagePassingArrays {
    /// Everything in single precision.
    pub numbers: Vec<f32>,
    /// Of each block.
    pub blocks: Vec<BlockArrays>,
    /// Of each particle.
    pub species: Vec<u32>,
    /// F
    pub width: u32,
    /// Vectors that an update mixes: 3 in a chiral network, else 2.
    pub n_mixed: u32,
    /// Species there are.
    pub n_species: u32,
    /// Knots of the filters.
    pub n_knots: u32,
    /// Offset of the embedding, `[n_species][F]`.
    pub embedding: u32,
    /// Offset of d², `[n_species][n_species]`.
    pub repulsion: u32,
    /// Offset of the output's weights, of hidden units and then of s.
    pub output_weight: u32,
    /// The hidden layer of the energy.
    pub readout: LayerArrays,
    /// Of the output.
    pub output_bias: f32,
    /// nm²
    pub softening_squared: f32,
    /// nm
    pub cutoff: f32,
    /// Knots per nm.
    pub density: f32,
}

/// Layers of a block: `MessageBlock` of kernels/message_passing.cuh.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockArrays {
    /// Offset of the filter's table.
    pub filter: u32,
    /// Offset of the messages of the first block.
    pub rows: u32,
    /// Layers of later messages.
    pub message: [LayerArrays; 2],
    /// U, V and T side by side.
    pub mix: LayerArrays,
    /// Layers of the update.
    pub update: [LayerArrays; 2],
}

/// A dense layer: `Layer` of kernels/distance.cuh.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct LayerArrays {
    /// Inputs.
    pub n_in: u32,
    /// Outputs.
    pub n_out: u32,
    /// Offset of the weight, `[n_in][n_out]`.
    pub weight: u32,
    /// Offset of the bias, `[n_out]`.
    pub bias: u32,
    /// Offset of the weight, `[n_out][n_in]`.
    pub transposed: u32,
}
