/* SPDX-License-Identifier: GPL-2.0-only
 *
 * The atoms of a periodic model as LAMMPS shares them out: those of this rank, and the ghosts around them. */

#ifndef DIFFUSIM_LAMMPS_NEIGHBORHOOD_H
#define DIFFUSIM_LAMMPS_NEIGHBORHOOD_H

#include "diffusim.hpp"
#include "pointers.h"
#include "units.h"
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace diffusim_lammps {

/**
 * Evaluates the energy of this rank's atoms. What that gives to ghosts belongs to the atoms they are copies of, so
 * scores are complete after a reverse communication. Positions stay with LAMMPS.
 *
 * Throws std::runtime_error with one sentence; where it says so, on all ranks alike.
 */
class Neighborhood : protected LAMMPS_NS::Pointers {
public:
    /**
     * @param what      the set of atoms, for messages, such as "group 'all'"
     * @param contains  whether an atom, own or ghost, belongs to it
     * @param elements  species of each atom type, from 1, "" = none
     * @param units     of the input script
     */
    Neighborhood(LAMMPS_NS::LAMMPS* lammps, const diffusim::model& model, const std::string& what,
                 std::function<bool(int)> contains, const std::vector<std::string>& elements, const Units& units);

    /** Whether box and atoms are such as the model needs, on all ranks alike; `masses` too if `moves`. Collective. */
    void check(bool moves);
    /** How the atoms move: masses and mobilities by the types that have an element. */
    void configure(const diffusim_simulation_options_t& options);
    /** Learn which atoms are here now; throws, on all ranks alike, if ghosts do not reach far enough. */
    void locate();
    /** Evaluate the model at the present positions; may fail on one rank only. */
    void evaluate(bool virials);
    /** Take step number `step` with the atoms of this rank, by their complete `scores` [n_owned][3], the forces of
       other styles and, where the adapter has them, LAMMPS's velocities; may fail on one rank only. */
    void step(std::uint64_t step, const std::vector<double>& scores);

    /** Distance over which ghosts are needed, besides the skin, in the script's unit. */
    double reach() const { return domain_->reach() / units_.length; }
    /** amu, of the types that have an element */
    const std::vector<double>& masses() const { return masses_; }
    /** Indices of the atoms, this rank's own first. */
    const std::vector<int>& indices() const { return indices_; }
    std::size_t n_owned() const { return ids_.size(); }
    /** Of the last evaluation: [n][3] in 1/nm, [n_owned] in kT₀, [n][9] in kT₀. */
    const std::vector<double>& scores() const { return scores_; }
    const std::vector<double>& energies() const { return energies_; }
    const std::vector<double>& virials() const { return virials_; }
    diffusim_statistics_t statistics() const { return domain_->statistics(); }
    const Units& units() const { return units_; }

private:
    void check_box() const;

    const diffusim::model& model_;
    std::string what_;
    std::function<bool(int)> contains_;
    Units units_;
    std::vector<std::string> species_;             // of the types that have one
    std::vector<int> atom_types_, number_of_type_; // the type of each of them; the other way round, -1 for none
    std::vector<double> masses_;
    std::unique_ptr<diffusim::domain> domain_;
    std::vector<int> indices_;
    std::vector<std::uint32_t> types_, ids_;
    std::vector<double> positions_, scores_, energies_, virials_, moved_, velocities_, forces_;
    bool has_velocities_ = false;
};

/** Component k, in LAMMPS's order, of a virial [3][3]. */
inline double virial_component(const double* w, int k) {
    constexpr int ROW[6] = {0, 1, 2, 0, 0, 1}, COLUMN[6] = {0, 1, 2, 1, 2, 2};
    return 0.5 * (w[3 * ROW[k] + COLUMN[k]] + w[3 * COLUMN[k] + ROW[k]]);
}

} // namespace diffusim_lammps

#endif
