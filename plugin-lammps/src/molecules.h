/* SPDX-License-Identifier: GPL-2.0-only
 *
 * The atoms that a model moves, wherever they are: whole molecules on every rank, in the model's order. */

#ifndef DIFFUSIM_LAMMPS_MOLECULES_H
#define DIFFUSIM_LAMMPS_MOLECULES_H

#include "diffusim.hpp"
#include "pointers.h"
#include "units.h"
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace diffusim_lammps {

/**
 * Copies of a model's molecule. Those of one molecule are in the order of their atom IDs, which must be the model's;
 * the molecules are in the order of their molecule IDs (of the atom IDs, where atoms have no molecule IDs).
 *
 * Throws std::runtime_error with one sentence, on all ranks alike. What is marked collective is called by all ranks.
 */
class Molecules : protected LAMMPS_NS::Pointers {
public:
    /** An atom of this rank: its local index, and its place [molecule][particle] among all. */
    struct Atom {
        int index;
        std::size_t place;
    };

    /**
     * @param what      the set of atoms, for messages, such as "group 'all'"
     * @param contains  whether a local atom belongs to it
     * @param elements  symbol of each atom type, from 1, "" = not known; empty = compare masses instead
     * @param units     of the input script
     */
    Molecules(LAMMPS_NS::LAMMPS* lammps, const diffusim::model& model, const std::string& what,
              std::function<bool(int)> contains, std::vector<std::string> elements, const Units& units);

    /** Find the molecules anew and compare them with the model. Collective. */
    void find();
    /** Learn which rank has which atoms now. Collective. */
    void locate();
    /** Unwrapped positions [n_molecules][n_particles][3] in nm, the total forces on them in kJ/(mol nm) and velocities
       in nm/ps, of all ranks, into what is not nullptr; returns whether any of the forces is not zero. Collective. */
    bool gather(std::vector<double>* positions, std::vector<double>* forces = nullptr,
                std::vector<double>* velocities = nullptr);
    /** Put `positions`, as of gather(), into the atoms of this rank; `remember` them for untouched(). */
    void scatter(const double* positions, bool remember);
    /** The same for velocities. */
    void scatter_velocities(const double* velocities);
    /** Whether there is one rank, and its atoms are to the last bit where scatter() has put them. */
    bool untouched() const;
    /** Whether any atom of this rank feels a force. */
    bool any_force() const;
    /** Throw if a molecule is split by the periodic box, which its image flags should have undone. */
    void check_whole(const std::vector<double>& positions) const;

    std::size_t n_molecules() const { return masses_.empty() ? 0 : order_.size() / masses_.size(); }
    /** amu, of one molecule */
    const std::vector<double>& masses() const { return masses_; }
    /** Atom IDs of all molecules, in order. */
    const std::vector<LAMMPS_NS::tagint>& order() const { return order_; }
    /** The atoms of this rank. */
    const std::vector<Atom>& local() const { return local_; }
    const Units& units() const { return units_; }

private:
    void compare_with_model(const std::vector<int>& types, const std::vector<double>& masses);

    const diffusim::model& model_;
    std::string what_;
    std::function<bool(int)> contains_;
    std::vector<std::string> elements_;
    Units units_;
    double extent_ = 0; // nm, largest distance from the model's first particle to another; 0 = not known

    std::vector<LAMMPS_NS::tagint> order_;
    std::unordered_map<LAMMPS_NS::tagint, std::size_t> places_;
    std::vector<double> masses_;
    std::vector<Atom> local_;
    // Of each of them, in LAMMPS's length: from unwrapped to wrapped positions, and what scatter() has written.
    std::vector<LAMMPS_NS::imageint> images_;
    std::vector<double> shifts_, written_, written_velocities_;
    // Whether they stand together in LAMMPS's arrays, and in the order of their places; whether any shift is not zero.
    bool contiguous_ = false, in_order_ = false, shifted_ = false;
    std::vector<int> counts_; // atoms of each rank
    std::vector<std::size_t> places_of_ranks_;
    std::vector<double> sent_, received_;
};

/** The units of the input script. `scale`: the three words after `scale`, which `units lj` needs; nullptr = not given.
 */
Units script_units(LAMMPS_NS::LAMMPS* lammps, char** scale);

/** Read a model file, on all ranks or on none. Collective. */
std::unique_ptr<diffusim::model> load_model(const std::string& path, MPI_Comm world);

} // namespace diffusim_lammps

#endif
