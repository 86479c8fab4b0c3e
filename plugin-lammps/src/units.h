/* SPDX-License-Identifier: GPL-2.0-only
 *
 * The one place where units change: LAMMPS's `units` on one side, nm, ps, amu, kJ/mol and K on the other. */

#ifndef DIFFUSIM_LAMMPS_UNITS_H
#define DIFFUSIM_LAMMPS_UNITS_H

#include "diffusim.hpp"
#include <cmath>
#include <cstring>

namespace diffusim_lammps {

constexpr double BOLTZMANN = 0.00831446261815324; // kJ/(mol K)

/** One unit of LAMMPS in those of the core. */
struct Units {
    double length;          // nm
    double time;            // ps
    double mass;            // amu
    double energy;          // kJ/mol
    double temperature = 1; // K
    const char* length_name = "sigma";
    const char* time_name = "tau";

    double force() const { return energy / length; }            // kJ/(mol nm)
    double velocity() const { return length / time; }           // nm/ps
    double diffusion() const { return length * length / time; } // nm²/ps
    double drag() const { return mass / time; }                 // amu/ps
};

/** What `units style` means, or nullptr where its quantities have no absolute size. */
inline const Units* find_units(const char* style) {
    constexpr double KG = 6.02214076e26; // amu
    constexpr double J = 6.02214076e20;  // kJ/mol
    static const struct {
        const char* style;
        Units units;
    } TABLE[] = {
        {"real", {0.1, 1e-3, 1.0, 4.184, 1, "Angstrom", "fs"}},
        {"metal", {0.1, 1.0, 1.0, 1.602176634e-19 * J, 1, "Angstrom", "ps"}},
        {"si", {1e9, 1e12, KG, J, 1, "m", "s"}},
        {"nano", {1.0, 1e3, 602214.076, 0.602214076, 1, "nm", "ns"}},
        {"electron", {0.0529177210544, 1e-3, 1.0, 4.3597447222060e-18 * J, 1, "Bohr", "fs"}},
    };
    for (const auto& row : TABLE)
        if (std::strcmp(row.style, style) == 0)
            return &row.units;
    return nullptr;
}

/** What `units lj` means where its units of length, energy and mass are so many nm, kJ/mol and amu. */
inline Units reduced_units(double length, double energy, double mass) {
    return {length, length * std::sqrt(mass / energy), mass, energy, energy / BOLTZMANN};
}

/** kT₀ in kJ/mol: the unit of a model's energies. */
inline double energy_unit(const diffusim::model& model) { return BOLTZMANN * model.training_temperature(); }

} // namespace diffusim_lammps

#endif
