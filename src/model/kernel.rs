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
            Kernel::Distance(_) => 0,
        }
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
        let offset = self.numbers.len() as u32;
        self.numbers.extend(numbers);
        offset
    }
}

/// A dense layer: `Layer` of kernels/distance.cuh.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
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
