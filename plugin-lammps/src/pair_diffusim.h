/* SPDX-License-Identifier: GPL-2.0-only
 *
 * pair_style diffusim [scale LENGTH ENERGY MASS]
 * pair_coeff * * FILE El1 El2 ...
 *
 * The learned energy of molecules as forces, energy and virial, for any integrator. */

#ifndef DIFFUSIM_LAMMPS_PAIR_DIFFUSIM_H
#define DIFFUSIM_LAMMPS_PAIR_DIFFUSIM_H

#include "molecules.h"
#include "neighborhood.h"
#include "pair.h"
#include <memory>
#include <string>
#include <vector>

namespace diffusim_lammps {

/**
 * Acts on the atoms whose type has an element (not NULL). A rank evaluates the molecules it has atoms of, so that no
 * forces are communicated; the energy of a molecule is counted where its first atom is. With a periodic model a rank
 * evaluates its own atoms: Neighborhood.
 */
class __attribute__((visibility("default"))) PairDiffusim : public LAMMPS_NS::Pair {
public:
    explicit PairDiffusim(LAMMPS_NS::LAMMPS* lammps);
    ~PairDiffusim() override;

    void settings(int narg, char** arg) override;
    void coeff(int narg, char** arg) override;
    void init_style() override;
    double init_one(int, int) override;
    void setup() override;
    void compute(int eflag, int vflag) override;
    int pack_forward_comm(int n, int* list, double* buffer, int, int*) override {
        return neighborhood_->pack(n, list, buffer);
    }
    void unpack_forward_comm(int n, int first, double* buffer) override { neighborhood_->unpack(n, first, buffer); }

    /** Whether atoms of this type feel the model. */
    bool acts_on(int type) const { return !elements_.empty() && !elements_[type].empty(); }

private:
    void compute_periodic();
    template <class Body>
    void attempt(const char* file, int line, Body&& body) const;

    Units units_ = {};                  // of the input script
    std::vector<std::string> elements_; // of each type, from 1
    std::unique_ptr<diffusim::model> model_;
    std::unique_ptr<Molecules> molecules_;       // one of the two
    std::unique_ptr<Neighborhood> neighborhood_; // for a periodic model
    std::vector<double> positions_, frames_, scores_, energies_;
    std::vector<std::size_t> frame_of_; // where, per molecule
};

} // namespace diffusim_lammps

#endif
