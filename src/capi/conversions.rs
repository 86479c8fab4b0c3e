//! Springs, time steps and diffusion coefficients (theory 3–5).

use super::{diffusim_status_t, guard, output};
use crate::schedule::{Mobility, spring_from_time_step, time_step_from_spring};

/// k = β/(2 D Δt) (theory 3): the spring, in 1/nm², that makes a step last `time_step` ps.
///
/// `diffusion_coefficient` in nm²/ps; `noise_scale` is β, 1 where there is no noise schedule.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_spring_from_time_step(
    time_step: f64,
    diffusion_coefficient: f64,
    noise_scale: f64,
    spring: *mut f64,
) -> diffusim_status_t {
    guard(|| {
        let spring = output(spring, "spring")?;
        *spring = spring_from_time_step(time_step, diffusion_coefficient, noise_scale)?;
        Ok(())
    })
}

/// Δt = β/(2 D k) (theory 3): how long, in ps, a step with `spring` (1/nm²) lasts.
///
/// `diffusion_coefficient` in nm²/ps; `noise_scale` is β, 1 where there is no noise schedule.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_time_step_from_spring(
    spring: f64,
    diffusion_coefficient: f64,
    noise_scale: f64,
    time_step: *mut f64,
) -> diffusim_status_t {
    guard(|| {
        let time_step = output(time_step, "time_step")?;
        *time_step = time_step_from_spring(spring, diffusion_coefficient, noise_scale)?;
        Ok(())
    })
}

/// D = kT/(m γ) in nm²/ps, from K, amu and the friction *rate* γ in 1/ps (OpenMM's frictionCoeff).
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_diffusion_from_friction_rate(
    temperature: f64,
    mass: f64,
    friction_rate: f64,
    diffusion_coefficient: *mut f64,
) -> diffusim_status_t {
    guard(|| {
        let d = output(diffusion_coefficient, "diffusion_coefficient")?;
        *d = Mobility::FrictionRate(friction_rate).diffusion_coefficient(0, temperature, mass)?;
        Ok(())
    })
}

/// D = kT/ζ in nm²/ps, from K and the *drag* ζ in amu/ps (that of LAMMPS's fix brownian).
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_diffusion_from_drag(
    temperature: f64,
    drag: f64,
    diffusion_coefficient: *mut f64,
) -> diffusim_status_t {
    guard(|| {
        let d = output(diffusion_coefficient, "diffusion_coefficient")?;
        *d = Mobility::Drag(vec![drag]).diffusion_coefficient(0, temperature, f64::NAN)?;
        Ok(())
    })
}
