/* SPDX-License-Identifier: GPL-2.0-only */

#include "pair_diffusim.h"
#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "errors.h"
#include "force.h"
#include "memory.h"
#include "neighbor.h"
#include "update.h"
#include <algorithm>
#include <cstring>

using namespace LAMMPS_NS;

namespace diffusim_lammps {

template <class Body>
void PairDiffusim::attempt(const char* file, int line, Body&& body) const {
    diffusim_lammps::attempt(error, "pair_style diffusim", file, line, body);
}

PairDiffusim::PairDiffusim(LAMMPS* lammps) : Pair(lammps) {
    single_enable = 0;
    restartinfo = 0;
    one_coeff = 1;
    manybody_flag = 1;
    no_virial_fdotr_compute = 1; // it would use wrapped positions
    centroidstressflag = CENTROID_NOTAVAIL;
}

PairDiffusim::~PairDiffusim() {
    if (allocated) {
        memory->destroy(setflag);
        memory->destroy(cutsq);
    }
}

void PairDiffusim::settings(int narg, char** arg) {
    if (narg != 0 && (narg != 4 || std::strcmp(arg[0], "scale") != 0))
        error->all(FLERR,
                   std::string("pair_style diffusim takes no arguments but 'scale LENGTH ENERGY MASS', and got '") +
                       arg[0] + "'; the model file belongs to pair_coeff * * FILE El1 El2 ...");
    attempt(FLERR, [&] { units_ = script_units(lmp, narg == 0 ? nullptr : arg + 1); });
}

void PairDiffusim::coeff(int narg, char** arg) {
    const int n = atom->ntypes;
    if (narg != 3 + n || std::strcmp(arg[0], "*") != 0 || std::strcmp(arg[1], "*") != 0)
        error->all(FLERR,
                   "pair_style diffusim: expected 'pair_coeff * * FILE' and an element, or NULL, for each of the " +
                       std::to_string(n) + " atom types");
    elements_.assign(1, "");
    for (int type = 1; type <= n; type++)
        elements_.push_back(std::strcmp(arg[2 + type], "NULL") == 0 ? "" : arg[2 + type]);
    attempt(FLERR, [&] {
        model_ = load_model(arg[2], world);
        const auto contains = [this](int i) { return acts_on(atom->type[i]); };
        molecules_.reset();
        neighborhood_.reset();
        if (model_->is_periodic())
            neighborhood_ = std::make_unique<Neighborhood>(lmp, *model_, "pair_coeff * *", contains, elements_, units_);
        comm_forward = neighborhood_ ? neighborhood_->forward_size() : 0;
        if (!neighborhood_)
            molecules_ = std::make_unique<Molecules>(lmp, *model_, "pair_coeff * *", contains, elements_, units_);
    });
    if (!allocated) {
        memory->create(setflag, n + 1, n + 1, "pair:setflag");
        memory->create(cutsq, n + 1, n + 1, "pair:cutsq");
        allocated = 1;
    }
    for (int i = 1; i <= n; i++)
        for (int j = i; j <= n; j++)
            setflag[i][j] = acts_on(i) && acts_on(j);
}

void PairDiffusim::init_style() {
    if (utils::strmatch(update->integrate_style, "^respa"))
        error->all(FLERR, "pair_style diffusim: run_style respa is not supported; use run_style verlet");
    attempt(FLERR, [&] {
        if (neighborhood_)
            neighborhood_->check(false);
        else
            molecules_->find();
    });
}

double PairDiffusim::init_one(int, int) { return neighborhood_ ? neighborhood_->reach() : 0; }

void PairDiffusim::setup() {
    attempt(FLERR, [&] {
        if (neighborhood_)
            return neighborhood_->locate();
        molecules_->locate();
        molecules_->gather(&positions_);
        molecules_->check_whole(positions_);
    });
}

void PairDiffusim::compute(int eflag, int vflag) {
    ev_init(eflag, vflag);
    attempt(FLERR, [&] {
        if (neighborhood_)
            return compute_periodic();
        if (neighbor->ago == 0)
            molecules_->locate();
        molecules_->gather(&positions_);

        const std::size_t n = model_->n_particles();
        constexpr std::size_t ELSEWHERE = static_cast<std::size_t>(-1);
        frame_of_.assign(molecules_->n_molecules(), ELSEWHERE);
        frames_.clear();
        for (const Molecules::Atom& a : molecules_->local()) {
            std::size_t& frame = frame_of_[a.place / n];
            if (frame == ELSEWHERE) {
                frame = frames_.size() / (3 * n);
                const auto from = positions_.begin() + static_cast<std::ptrdiff_t>(a.place / n * 3 * n);
                frames_.insert(frames_.end(), from, from + static_cast<std::ptrdiff_t>(3 * n));
            }
        }
        scores_.resize(frames_.size());
        energies_.resize(frames_.size() / (3 * n));
        const std::string failure = failure_of([&] {
            if (!frames_.empty())
                model_->evaluate(frames_.data(), energies_.size(), scores_.data(), energies_.data());
        });
        if (!failure.empty()) // perhaps on this rank only
            error->one(FLERR, "pair_style diffusim: " + failure);

        const double energy_scale = energy_unit(*model_) / units_.energy, force_scale = energy_scale * units_.length;
        for (const Molecules::Atom& a : molecules_->local()) {
            const std::size_t frame = frame_of_[a.place / n];
            const double* x = &positions_[3 * a.place];
            const double* s = &scores_[3 * (frame * n + a.place % n)];
            for (int c = 0; c < 3; c++)
                atom->f[a.index][c] += force_scale * s[c];
            const double energy = energy_scale * energies_[frame];
            if (eflag_global && a.place % n == 0)
                eng_vdwl += energy;
            if (eflag_atom)
                eatom[a.index] += energy / static_cast<double>(n);
            if (!vflag_either)
                continue;
            const double v[6] = {x[0] * s[0], x[1] * s[1], x[2] * s[2], x[0] * s[1], x[0] * s[2], x[1] * s[2]};
            for (int k = 0; k < 6; k++) {
                if (vflag_global)
                    virial[k] += energy_scale * v[k];
                if (vflag_atom)
                    vatom[a.index][k] += energy_scale * v[k];
            }
        }
    });
}

/** Complete forces on the atoms of this rank. */
void PairDiffusim::compute_periodic() {
    if (neighbor->ago == 0)
        neighborhood_->locate();
    const std::vector<int>& indices = neighborhood_->indices();
    double* position = neighborhood_->positions().data();
    for (const int i : indices)
        for (int c = 0; c < 3; c++)
            *position++ = atom->x[i][c] * units_.length;
    const std::string failure = failure_of(
        [&] { neighborhood_->evaluate(vflag_either, [this](int size) { comm->forward_comm(this, size); }); });
    if (!failure.empty()) // perhaps on this rank only
        error->one(FLERR, "pair_style diffusim: " + failure);
    const double energy_scale = energy_unit(*model_) / units_.energy, force_scale = energy_scale * units_.length;
    for (std::size_t k = 0; k < indices.size(); k++) {
        const int i = indices[k];
        for (int c = 0; c < 3; c++)
            atom->f[i][c] += force_scale * neighborhood_->scores()[3 * k + c];
        const double energy = energy_scale * neighborhood_->energies()[k];
        if (eflag_global)
            eng_vdwl += energy;
        if (eflag_atom)
            eatom[i] += energy;
        for (int c = 0; vflag_either && c < 6; c++) {
            const double v = energy_scale * virial_component(&neighborhood_->virials()[9 * k], c);
            if (vflag_global)
                virial[c] += v;
            if (vflag_atom)
                vatom[i][c] += v;
        }
    }
}

} // namespace diffusim_lammps
