//! Leaf: how spring, noise and temperature vary over steps, and what a spring means in time (theory §1–3).

use crate::error::{Result, bail};

/// Boltzmann constant, kJ/(mol K).
pub const BOLTZMANN: f64 = 8.314_462_618_153_24e-3;

/// What a finite schedule does past its last entry.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum End {
    /// Keep the last entry.
    #[default]
    Hold,
    /// Start again from the first.
    Cycle,
}

/// One positive number per step.
#[derive(Clone, Debug, PartialEq)]
struct Schedule {
    values: Vec<f64>,
    end: End,
}

impl Schedule {
    fn new(name: &str, values: Vec<f64>, end: End) -> Result<Self> {
        if values.is_empty() {
            bail!(InvalidArgument, "{name} schedule is empty; give at least one value");
        }
        if let Some(i) = values.iter().position(|v| !(*v > 0.0 && v.is_finite())) {
            bail!(
                InvalidArgument,
                "{name} schedule has {} at step {i}; expected a positive number",
                values[i]
            );
        }
        Ok(Schedule { values, end })
    }

    fn least(&self) -> f64 {
        self.values.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn at(&self, step: u64) -> f64 {
        let n = self.values.len() as u64;
        let i = match self.end {
            End::Hold => step.min(n - 1),
            End::Cycle => step % n,
        };
        self.values[i as usize]
    }
}

/// β_n, the relative variance of reverse step n; 1 everywhere unless the schedule of a diffusion model is followed.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseSchedule(Schedule);

impl NoiseSchedule {
    /// The entries, and whether they start again past their end.
    pub fn entries(&self) -> (&[f64], bool) {
        (&self.0.values, self.0.end == End::Cycle)
    }

    /// β_n = 1.
    pub fn constant() -> Self {
        NoiseSchedule(Schedule { values: vec![1.0], end: End::Hold })
    }

    /// The given β_n.
    pub fn given(values: Vec<f64>, end: End) -> Result<Self> {
        Ok(NoiseSchedule(Schedule::new("noise", values, end)?))
    }

    /// β_n from `first` to `last` in `n` equal increments (Ho et al., arXiv:2006.11239).
    pub fn linear(first: f64, last: f64, n: usize) -> Result<Self> {
        let increment = (last - first) / (n.max(2) - 1) as f64;
        Self::given((0..n).map(|i| first + increment * i as f64).collect(), End::Hold)
    }

    /// The cosine schedule of `n` steps (Nichol & Dhariwal, arXiv:2102.09672): β_n = min(1 − ᾱ_{n+1}/ᾱ_n, 0.999) with
    /// ᾱ_n = cos²(π/2 · (n/N + s)/(1 + s)) and s = 0.008.
    pub fn cosine(n: usize) -> Result<Self> {
        let s = 0.008;
        let alpha =
            |i: usize| ((i as f64 / n as f64 + s) / (1.0 + s) * std::f64::consts::FRAC_PI_2).cos().powi(2);
        Self::given((0..n).map(|i| (1.0 - alpha(i + 1) / alpha(i)).min(0.999)).collect(), End::Hold)
    }

    /// The greatest β of all: the largest step.
    pub fn greatest(&self) -> f64 {
        self.0.values.iter().copied().fold(0.0, f64::max)
    }

    /// β at `step`.
    pub fn noise_scale(&self, step: u64) -> f64 {
        self.0.at(step)
    }
}

/// k_n/k_0: factors on the spring, one per step; stiffer is finer.
#[derive(Clone, Debug, PartialEq)]
pub struct SpringSchedule(Schedule);

impl SpringSchedule {
    /// The entries, and whether they start again past their end.
    pub fn entries(&self) -> (&[f64], bool) {
        (&self.0.values, self.0.end == End::Cycle)
    }

    /// k_n = k_0.
    pub fn constant() -> Self {
        SpringSchedule(Schedule { values: vec![1.0], end: End::Hold })
    }

    /// The given factors.
    pub fn given(factors: Vec<f64>, end: End) -> Result<Self> {
        Ok(SpringSchedule(Schedule::new("spring", factors, end)?))
    }

    /// Factor at `step`.
    pub fn factor(&self, step: u64) -> f64 {
        self.0.at(step)
    }

    /// The smallest factor of all: the softest spring.
    pub fn softest(&self) -> f64 {
        self.0.least()
    }
}

/// T_n in kelvin, one per step: early hot, late cold is annealing.
#[derive(Clone, Debug, PartialEq)]
pub struct TemperatureSchedule(Schedule);

impl TemperatureSchedule {
    /// The entries, and whether they start again past their end.
    pub fn entries(&self) -> (&[f64], bool) {
        (&self.0.values, self.0.end == End::Cycle)
    }

    /// T_n = `temperature`.
    pub fn constant(temperature: f64) -> Result<Self> {
        Self::given(vec![temperature], End::Hold)
    }

    /// The given temperatures.
    pub fn given(temperatures: Vec<f64>, end: End) -> Result<Self> {
        Ok(TemperatureSchedule(Schedule::new("temperature", temperatures, end)?))
    }

    /// The lowest temperature of all, K.
    pub fn coldest(&self) -> f64 {
        self.0.least()
    }

    /// Temperature at `step`, K.
    pub fn temperature(&self, step: u64) -> f64 {
        self.0.at(step)
    }
}

fn positive(name: &str, value: f64, unit: &str) -> Result<()> {
    if !(value > 0.0 && value.is_finite()) {
        bail!(InvalidArgument, "{name} is {value} {unit}; expected a positive number");
    }
    Ok(())
}

/// k = β/(2 D Δt), in 1/nm² from ps and nm²/ps (theory 3).
pub fn spring_from_time_step(time_step: f64, diffusion_coefficient: f64, noise_scale: f64) -> Result<f64> {
    positive("time step", time_step, "ps")?;
    positive("diffusion coefficient", diffusion_coefficient, "nm²/ps")?;
    positive("noise scale", noise_scale, "")?;
    Ok(noise_scale / (2.0 * diffusion_coefficient * time_step))
}

/// Δt = β/(2 D k), in ps (theory 3).
pub fn time_step_from_spring(spring: f64, diffusion_coefficient: f64, noise_scale: f64) -> Result<f64> {
    positive("spring", spring, "/nm²")?;
    positive("diffusion coefficient", diffusion_coefficient, "nm²/ps")?;
    positive("noise scale", noise_scale, "")?;
    Ok(noise_scale / (2.0 * diffusion_coefficient * spring))
}

/// What turns forces into motion, and so steps into time. Drags and diffusion coefficients are one for all particles or one
/// for each.
#[derive(Clone, Debug, PartialEq)]
pub enum Mobility {
    /// γ in 1/ps: D_a = kT/(m_a γ), as in OpenMM's Langevin integrators.
    FrictionRate(f64),
    /// ζ in amu/ps: D_a = kT/ζ_a, as in LAMMPS's `fix brownian`.
    Drag(Vec<f64>),
    /// D in nm²/ps at the simulation's temperature.
    Diffusion(Vec<f64>),
}

/// Refuse masses (amu) that are none; 0 is frozen.
pub fn check_masses(masses: &[f64]) -> Result<()> {
    if let Some(i) = masses.iter().position(|m| !(*m >= 0.0 && m.is_finite())) {
        bail!(
            InvalidArgument,
            "mass of particle {i} is {} amu; expected 0 (frozen) or a positive number",
            masses[i]
        );
    }
    Ok(())
}

impl Mobility {
    /// D in nm²/ps of particle `i`, of `mass` amu, at `temperature` K.
    pub fn diffusion_coefficient(&self, i: usize, temperature: f64, mass: f64) -> Result<f64> {
        positive("temperature", temperature, "K")?;
        let of = |values: &[f64]| if values.len() == 1 { values[0] } else { values[i] };
        match self {
            Mobility::FrictionRate(rate) => {
                positive("friction rate", *rate, "/ps")?;
                positive("mass", mass, "amu")?;
                Ok(BOLTZMANN * temperature / (mass * rate))
            }
            Mobility::Drag(drags) => {
                positive("drag", of(drags), "amu/ps")?;
                Ok(BOLTZMANN * temperature / of(drags))
            }
            Mobility::Diffusion(coefficients) => {
                positive("diffusion coefficient", of(coefficients), "nm²/ps")?;
                Ok(of(coefficients))
            }
        }
    }

    /// Check that there is one value, or one for each of `n` particles.
    pub fn check_count(&self, n: usize) -> Result<()> {
        let (name, count) = match self {
            Mobility::FrictionRate(_) => return Ok(()),
            Mobility::Drag(drags) => ("drags", drags.len()),
            Mobility::Diffusion(coefficients) => ("diffusion coefficients", coefficients.len()),
        };
        if count != 1 && count != n {
            bail!(
                InvalidArgument,
                "{count} {name} were given; expected one, or one for each of {n} particles"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spring_and_time_step_are_inverse() {
        let k = spring_from_time_step(0.37, 2.9, 0.013).unwrap();
        assert_eq!(k, 0.013 / (2.0 * 2.9 * 0.37));
        assert!((time_step_from_spring(k, 2.9, 0.013).unwrap() / 0.37 - 1.0).abs() < 1e-15);
        assert!(spring_from_time_step(0.0, 2.9, 0.5).unwrap_err().to_string().contains("time step is 0"));
    }

    #[test]
    fn schedules_hold_or_cycle() {
        let values = vec![3.0, 5.0];
        let at = |end| {
            let s = SpringSchedule::given(values.clone(), end).unwrap();
            (0..4).map(|n| s.factor(n)).collect::<Vec<_>>()
        };
        assert_eq!(at(End::Hold), [3.0, 5.0, 5.0, 5.0]);
        assert_eq!(at(End::Cycle), [3.0, 5.0, 3.0, 5.0]);
        assert!(
            TemperatureSchedule::given(vec![300.0, -4.0], End::Hold).unwrap_err().to_string().contains("-4")
        );
    }

    #[test]
    fn noise_schedules_have_their_known_values() {
        let linear = NoiseSchedule::linear(1e-4, 0.02, 1000).unwrap();
        assert!(
            (linear.noise_scale(0) - 1e-4).abs() < 1e-15 && (linear.noise_scale(999) - 0.02).abs() < 1e-15
        );
        // Σ ln(1 − β_n) telescopes to ln(ᾱ_N/ᾱ_0) up to the clipped last step.
        let n = 50;
        let cosine = NoiseSchedule::cosine(n).unwrap();
        let product: f64 = (0..n as u64 - 1).map(|i| 1.0 - cosine.noise_scale(i)).product();
        let alpha = |i: f64| ((i / n as f64 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
        assert!((product / (alpha(n as f64 - 1.0) / alpha(0.0)) - 1.0).abs() < 1e-10);
        assert_eq!(cosine.noise_scale(n as u64 - 1), 0.999);
    }

    #[test]
    fn diffusion_from_friction_and_drag_agree() {
        let rate = Mobility::FrictionRate(7.3).diffusion_coefficient(0, 310.0, 14.2).unwrap();
        let drag = Mobility::Drag(vec![7.3 * 14.2]).diffusion_coefficient(0, 310.0, f64::NAN).unwrap();
        assert!((rate / drag - 1.0).abs() < 1e-15);
        assert!((rate - BOLTZMANN * 310.0 / (14.2 * 7.3)).abs() < 1e-18);
    }
}
