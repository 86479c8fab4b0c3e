//! `diffusim_domain_*`

use super::model::{cell_from, diffusim_model_t};
use super::simulation::{convert, diffusim_simulation_options_t, diffusim_statistics_t, write_statistics};
use super::*;
use crate::sampler::Domain;
use std::ffi::c_void;

/// One process's part of a system that several share: particles of its own, and those around them that others own, as a program
/// with domain decomposition has them. For models of kind `message-passing`. The caller keeps the positions, and moves what the
/// processes exchange. Scores, energies and steps of a particle have the same bits whoever owns it, and those of the whole system
/// in one place. Belongs to one thread at a time.
pub struct diffusim_domain_t(Exclusive<Domain>);

unsafe fn with(
    domain: *const diffusim_domain_t,
    body: impl FnOnce(&mut Domain) -> Result<()>,
) -> diffusim_status_t {
    match reference(domain, "domain") {
        Ok(handle) => handle.0.with("domain", body),
        Err(error) => guard(|| Err(error)),
    }
}

/// Create a domain of `model` for particles of `n_types` types, `types` their species: element symbols or names of beads. In
/// `options`, masses, drags and diffusion coefficients are `[n_types]`, and neither replicas nor particle ids are given; NULL for a
/// domain that only evaluates. The caller frees `*domain` with diffusim_domain_free.
///
/// Errors: DIFFUSIM_ERROR_UNSUPPORTED (a model of another kind, an adapter but DIFFUSIM_EULER_MARUYAMA,
/// DIFFUSIM_LEIMKUHLER_MATTHEWS and DIFFUSIM_LANGEVIN, a GPU), DIFFUSIM_ERROR_MISMATCH (unknown species), and those of diffusim_simulation_create.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_domain_create(
    model: *const diffusim_model_t,
    types: *const *const c_char,
    n_types: usize,
    options: *const diffusim_simulation_options_t,
    domain: *mut *mut diffusim_domain_t,
) -> diffusim_status_t {
    guard(|| {
        let out = output(domain, "domain")?;
        let model = &reference(model, "model")?.model;
        let names = slice(types, n_types, "types")?.iter().map(|s| text(*s, "types"));
        let names = names.collect::<Result<Vec<_>>>()?;
        let options = if options.is_null() { None } else { Some(convert(options, n_types)?) };
        let domain = Domain::new(model, &names, options)?;
        *out = Box::into_raw(Box::new(diffusim_domain_t(Exclusive::new(domain))));
        Ok(())
    })
}

/// Free a domain; NULL is ignored.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_domain_free(domain: *mut diffusim_domain_t) {
    if !domain.is_null() {
        guard(|| {
            drop(Box::from_raw(domain));
            Ok(())
        });
    }
}

/// Give a domain of `n_types` types new options; its particles stay.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_domain_reconfigure(
    domain: *mut diffusim_domain_t,
    options: *const diffusim_simulation_options_t,
    n_types: usize,
) -> diffusim_status_t {
    with(domain, |d| d.reconfigure(convert(options, n_types)?))
}

/// How far around its own particles a domain needs to know others, `*reach` in nm.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_domain_reach(
    domain: *const diffusim_domain_t,
    reach: *mut f64,
) -> diffusim_status_t {
    with(domain, |d| {
        *output(reach, "reach")? = d.reach();
        Ok(())
    })
}

/// The periodic cell of the whole system from now on, `cell` `[3][3]` in nm; NULL for open space.
///
/// Errors: DIFFUSIM_ERROR_MISMATCH for a periodic model without a cell, another model with one, and a cell that is too small for
/// the model's cutoff.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_domain_set_cell(
    domain: *mut diffusim_domain_t,
    cell: *const f64,
) -> diffusim_status_t {
    with(domain, |d| d.set_cell(cell_from(cell)?))
}

/// The particles from now on: their `types` as indices and, in `particle_ids`, their numbers in the whole system, which key their
/// noise and order sums; both `[n_particles]`. The first `n_owned` are the domain's own, the others all those of which an image
/// lies within diffusim_domain_reach of one of them, once each.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_domain_set_particles(
    domain: *mut diffusim_domain_t,
    types: *const u32,
    particle_ids: *const u32,
    n_particles: usize,
    n_owned: usize,
) -> diffusim_status_t {
    with(domain, |d| {
        let types = slice(types, n_particles, "types")?;
        d.set_particles(types, slice(particle_ids, n_particles, "particle_ids")?, n_owned)
    })
}

/// What the caller's program does between processes: `rows` `[n_particles][width]` come with those of the domain's own particles
/// filled, and go with those of the others, which are the same numbers at their owners. Any return value but 0 ends the
/// evaluation with DIFFUSIM_ERROR_CALLBACK. It is called on the thread that evaluates, and must neither throw, nor longjmp, nor
/// use the domain.
pub type diffusim_exchange_callback_t = Option<
    unsafe extern "C" fn(user_data: *mut c_void, rows: *mut f32, n_particles: usize, width: usize) -> i32,
>;

/// Scores `[n_owned][3]` in 1/nm of the own particles and, unless NULL, their energies `[n_owned]` and parts of
/// diffusim_model_evaluate_in_cell's virial `[n_owned][3][3]` in kT₀, at `positions` `[n_particles][3]` in nm, which are those
/// that the owners give their own particles. `n_values` is the length of `positions`.
///
/// All processes evaluate at the same time: `exchange` is called the same number of times on each, with the same widths of at most
/// diffusim_domain_exchange_width, also where nobody is there. It may be NULL where all particles are the domain's own.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_domain_evaluate(
    domain: *mut diffusim_domain_t,
    positions: *const f64,
    n_values: usize,
    exchange: diffusim_exchange_callback_t,
    user_data: *mut c_void,
    scores: *mut f64,
    energies: *mut f64,
    virials: *mut f64,
) -> diffusim_status_t {
    with(domain, |d| {
        let positions = slice(positions, n_values, "positions")?;
        let (n_owned, n_particles) = (d.n_owned(), d.n_particles());
        check_apart(positions, scores, 3 * n_owned, "scores")?;
        check_apart(positions, energies, n_owned, "energies")?;
        check_apart(positions, virials, 9 * n_owned, "virials")?;
        let energies =
            if energies.is_null() { None } else { Some(slice_mut(energies, n_owned, "energies")?) };
        let virials = if virials.is_null() {
            None
        } else {
            Some(slice_mut(virials, 9 * n_owned, "virials")?.as_chunks_mut().0)
        };
        if exchange.is_none() && n_owned < n_particles {
            bail!(
                InvalidArgument,
                "argument exchange is NULL, and {} of {n_particles} particles belong to others",
                n_particles - n_owned
            );
        }
        let mut exchange = |rows: &mut [f32], width: usize| {
            let Some(exchange) = exchange else { return Ok(()) };
            match exchange(user_data, rows.as_mut_ptr(), n_particles, width) {
                0 => Ok(()),
                status => Err(Error::Callback(format!(
                    "the exchange callback returned {status}; there are no scores"
                ))),
            }
        };
        d.evaluate(positions, &mut exchange, slice_mut(scores, 3 * n_owned, "scores")?, energies, virials)
    })
}

/// Numbers of floats that `exchange` of diffusim_domain_evaluate moves for each particle at most, `*width`.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_domain_exchange_width(
    domain: *const diffusim_domain_t,
    width: *mut usize,
) -> diffusim_status_t {
    with(domain, |d| {
        *output(width, "width")? = d.exchange_width();
        Ok(())
    })
}

/// Take step number `step` with the own particles: `positions` `[n_owned][3]` in nm, in place, by their `scores` in 1/nm and, unless
/// NULL, the `forces` that act beside the model, in kJ/(mol nm). `velocities` in nm/ps, in place, go with DIFFUSIM_LANGEVIN and are
/// NULL otherwise. `n_values` is the length of each. On DIFFUSIM_ERROR_NOT_FINITE nothing has moved.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_domain_step(
    domain: *mut diffusim_domain_t,
    step: u64,
    scores: *const f64,
    forces: *const f64,
    positions: *mut f64,
    velocities: *mut f64,
    n_values: usize,
) -> diffusim_status_t {
    with(domain, |d| {
        let n_velocities = if velocities.is_null() { 0 } else { n_values };
        check_apart(slice(positions, n_values, "positions")?, velocities, n_velocities, "velocities")?;
        let scores = slice(scores, n_values, "scores")?;
        let forces = if forces.is_null() { None } else { Some(slice(forces, n_values, "forces")?) };
        for (input, name) in [(scores, "scores"), (forces.unwrap_or_default(), "forces")] {
            check_apart(input, positions, n_values, name)?;
            check_apart_from(input, velocities, n_velocities, name, "velocities")?;
        }
        let velocities = slice_mut(velocities, n_velocities, "velocities")?;
        d.step(step, scores, forces, slice_mut(positions, n_values, "positions")?, velocities)
    })
}

/// As diffusim_simulation_statistics, of this process alone.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_domain_statistics(
    domain: *const diffusim_domain_t,
    statistics: *mut diffusim_statistics_t,
) -> diffusim_status_t {
    with(domain, |d| write_statistics(statistics, d.statistics()?, d.seed()))
}
