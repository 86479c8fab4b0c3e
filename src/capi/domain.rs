//! `diffusim_domain_*`

use super::model::{cell_from, diffusim_model_t};
use super::simulation::{convert, diffusim_simulation_options_t, diffusim_statistics_t, write_statistics};
use super::*;
use crate::sampler::Domain;

/// One process's part of a system that several share: particles of its own, and copies of those around them, as a program with
/// domain decomposition has them. For models of kind `message-passing`. The caller keeps the positions. Belongs to one thread at a
/// time.
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

/// How far around its own particles a domain needs copies of others, `*reach` in nm.
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

/// Whether the whole system may be in this periodic cell, `cell` `[3][3]` in nm, or in open space where `cell` is NULL.
///
/// Errors: DIFFUSIM_ERROR_MISMATCH for a periodic model without a cell, another model with one, and a cell that is too small for
/// the model's cutoff.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_domain_check_cell(
    domain: *const diffusim_domain_t,
    cell: *const f64,
) -> diffusim_status_t {
    with(domain, |d| d.check_cell(cell_from(cell)?.as_ref()))
}

/// The particles from now on: `types` `[n_particles]` as indices, of which the first `n_owned` are the domain's own, with the ids
/// that key their noise in `particle_ids` `[n_owned]`; the others are copies, periodic images included, of everything within
/// diffusim_domain_reach.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_domain_set_particles(
    domain: *mut diffusim_domain_t,
    types: *const u32,
    n_particles: usize,
    particle_ids: *const u32,
    n_owned: usize,
) -> diffusim_status_t {
    with(domain, |d| {
        d.set_particles(slice(types, n_particles, "types")?, slice(particle_ids, n_owned, "particle_ids")?)
    })
}

/// Scores that the energy of the own particles gives all of them: `positions` and `scores` `[n_particles][3]` in nm and 1/nm, copies
/// being where they are seen from here. The scores of a particle are the sum over all its copies, in all domains. Unless NULL:
/// `energies` `[n_owned]` and `virials` `[n_particles][3][3]`, parts of diffusim_model_evaluate_in_cell's, in kT₀.
/// `n_values` is the length of `positions`.
///
/// @since 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn diffusim_domain_evaluate(
    domain: *mut diffusim_domain_t,
    positions: *const f64,
    n_values: usize,
    scores: *mut f64,
    energies: *mut f64,
    virials: *mut f64,
) -> diffusim_status_t {
    with(domain, |d| {
        let positions = slice(positions, n_values, "positions")?;
        let n_owned = d.n_owned();
        check_apart(positions, scores, n_values, "scores")?;
        check_apart(positions, energies, n_owned, "energies")?;
        check_apart(positions, virials, 3 * n_values, "virials")?;
        let energies =
            if energies.is_null() { None } else { Some(slice_mut(energies, n_owned, "energies")?) };
        let virials = if virials.is_null() {
            None
        } else {
            Some(slice_mut(virials, 3 * n_values, "virials")?.as_chunks_mut().0)
        };
        d.evaluate(positions, slice_mut(scores, n_values, "scores")?, energies, virials)
    })
}

/// Take step number `step` with the own particles: `positions` `[n_owned][3]` in nm, in place, by their `scores` in 1/nm, summed over
/// all copies, and, unless NULL, the `forces` that act beside the model, in kJ/(mol nm). `velocities` in nm/ps, in place, go with
/// DIFFUSIM_LANGEVIN and are NULL otherwise. `n_values` is the length of each. On DIFFUSIM_ERROR_NOT_FINITE nothing has moved.
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
        let velocities =
            if velocities.is_null() { &mut [] } else { slice_mut(velocities, n_values, "velocities")? };
        let scores = slice(scores, n_values, "scores")?;
        let forces = if forces.is_null() { None } else { Some(slice(forces, n_values, "forces")?) };
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
