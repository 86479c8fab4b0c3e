/* SPDX-License-Identifier: GPL-2.0-only
 *
 * The atoms of a periodic model as LAMMPS shares them out: those of this rank, and the ghosts around them. */

#ifndef DIFFUSIM_LAMMPS_NEIGHBORHOOD_H
#define DIFFUSIM_LAMMPS_NEIGHBORHOOD_H

#include "diffusim.hpp"
#include "pointers.h"
#include "units.h"
#include <array>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace diffusim_lammps {

/**
 * Evaluates the model for this rank's atoms. It knows the atoms around them by ID, whatever the number of their ghosts,
 * and fetches from their owners positions and what the model computes there on the way. So results have the same bits
 * on any number of ranks.
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
    /** Positions of all atoms known here, nm: the caller fills in those of this rank's own, which come first. */
    std::vector<double>& positions() { return positions_; }
    /**
     * Evaluate the model at positions(); may fail on one rank only. Collective.
     * @param forward  starts a forward communication of so many numbers per atom, with pack() and unpack()
     */
    void evaluate(bool virials, const std::function<void(int)>& forward);
    int pack(int n, const int* list, double* buffer) const;
    void unpack(int n, int first, const double* buffer);
    /** Numbers per atom in the largest forward communication. */
    int forward_size() const;
    /** Take step number `step` with the atoms of this rank, by their scores of the last evaluation and the forces of
       other styles: `positions` and, with an adapter that has some, `velocities` [n_owned][3]; may fail on one rank
       only. */
    void step(std::uint64_t step, std::vector<double>& positions, std::vector<double>& velocities);

    /** Distance over which ghosts are needed, besides the skin, in the script's unit. */
    double reach() const { return domain_->reach() / units_.length; }
    /** amu, of the types that have an element */
    const std::vector<double>& masses() const { return masses_; }
    /** Local indices of this rank's own atoms. */
    const std::vector<int>& indices() const { return indices_; }
    std::size_t n_owned() const { return indices_.size(); }
    /** Of the last evaluation: [n_owned][3] in 1/nm, [n_owned] in kT₀, [n_owned][9] in kT₀. */
    const std::vector<double>& scores() const { return scores_; }
    const std::vector<double>& energies() const { return energies_; }
    const std::vector<double>& virials() const { return virials_; }
    diffusim_statistics_t statistics() const { return domain_->statistics(); }
    const Units& units() const { return units_; }

private:
    void check_box();
    void check_ids() const;
    std::array<double, 9> cell() const;

    const diffusim::model& model_;
    std::string what_;
    std::function<bool(int)> contains_;
    Units units_;
    std::vector<std::string> species_;             // of the types that have one
    std::vector<int> atom_types_, number_of_type_; // the type of each of them; the other way round, -1 for none
    std::vector<double> masses_;
    std::unique_ptr<diffusim::domain> domain_;
    std::vector<int> indices_;
    std::vector<int> rows_; // of each atom and ghost, where it stands among the atoms known here; -1 for others
    std::vector<std::uint32_t> types_, ids_;
    std::unordered_map<LAMMPS_NS::tagint, int> known_; // where an ID stands
    std::vector<double> positions_, scores_, energies_, virials_, forces_;
    // What is communicated just now: rows of so many numbers of LAMMPS's kind, 8 bytes each.
    char* exchanged_ = nullptr;
    std::size_t n_exchanged_ = 0;
};

/** Component k, in LAMMPS's order, of a virial [3][3]. */
inline double virial_component(const double* w, int k) {
    constexpr int ROW[6] = {0, 1, 2, 0, 0, 1}, COLUMN[6] = {0, 1, 2, 1, 2, 2};
    return 0.5 * (w[3 * ROW[k] + COLUMN[k]] + w[3 * COLUMN[k] + ROW[k]]);
}

} // namespace diffusim_lammps

#endif
