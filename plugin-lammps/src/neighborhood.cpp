/* SPDX-License-Identifier: GPL-2.0-only */

#include "neighborhood.h"
#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "errors.h"
#include "force.h"
#include "neighbor.h"
#include <algorithm>

using namespace LAMMPS_NS;

namespace diffusim_lammps {

namespace {
std::string number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.6g", value);
    return text;
}
} // namespace

Neighborhood::Neighborhood(LAMMPS* lammps, const diffusim::model& model, const std::string& what,
                           std::function<bool(int)> contains, const std::vector<std::string>& elements,
                           const Units& units)
    : Pointers(lammps), model_(model), what_(what), contains_(std::move(contains)), units_(units),
      number_of_type_(atom->ntypes + 1, -1) {
    for (int type = 1; type < static_cast<int>(elements.size()); type++)
        if (!elements[type].empty()) {
            number_of_type_[type] = static_cast<int>(species_.size());
            atom_types_.push_back(type);
            species_.push_back(elements[type]);
        }
    if (species_.empty())
        throw std::runtime_error(model.name() +
                                 " is a periodic model, for any number of atoms; say with 'types El1 El2 ...' which "
                                 "element, or NULL, each atom type is");
    domain_ = std::make_unique<diffusim::domain>(model, species_, nullptr);
}

void Neighborhood::check(bool moves) {
    if (domain->dimension == 2)
        throw std::runtime_error("a 2d simulation has no room for models, which are three-dimensional; use 'dimension "
                                 "3'");
    if (!force->newton_pair)
        throw std::runtime_error("a periodic model needs 'newton on': forces on ghost atoms are sent to their owners");
    if (comm->mode != Comm::SINGLE)
        throw std::runtime_error("'comm_modify mode multi' gives different ghosts to different types, and a periodic "
                                 "model needs all; use 'comm_modify mode single'");
    check_box();
    std::vector<int> mine(atom->ntypes + 1, 0), present(atom->ntypes + 1, 0);
    for (int i = 0; i < atom->nlocal; i++)
        if (contains_(i))
            mine[atom->type[i]] = 1;
    MPI_Allreduce(mine.data(), present.data(), atom->ntypes + 1, MPI_INT, MPI_MAX, world);
    for (int type = 1; type <= atom->ntypes; type++)
        if (present[type] && number_of_type_[type] < 0)
            throw std::runtime_error(what_ + " has atoms of type " + std::to_string(type) +
                                     ", for which 'types' names no element; name one, or leave them out of the group");
    if (!moves)
        return;
    if (atom->tag_enable == 0)
        throw std::runtime_error("atoms have no IDs, which key their noise; remove 'atom_modify id no'");
    if (atom->rmass)
        throw std::runtime_error("atoms have masses of their own, and the model knows masses of types; use an "
                                 "atom_style with masses by type");
    masses_.clear();
    for (const int type : atom_types_)
        masses_.push_back(atom->mass[type] * units_.mass);
    std::vector<const char*> names;
    for (const std::string& name : species_)
        names.push_back(name.c_str());
    try {
        model_.for_species(names).check_masses(masses_);
    } catch (const diffusim::error& error) {
        throw std::runtime_error(std::string(error.what()) +
                                 " Here particles are the atom types that have an element, from 0.");
    }
}

void Neighborhood::check_box() const {
    if (!domain->xperiodic || !domain->yperiodic || !domain->zperiodic)
        throw std::runtime_error(model_.name() + " is a periodic model; use 'boundary p p p'");
    double cell[9] = {domain->xprd, 0, 0, domain->xy, domain->yprd, 0, domain->xz, domain->yz, domain->zprd};
    for (double& x : cell)
        x *= units_.length;
    domain_->check_cell(cell);
}

void Neighborhood::configure(const diffusim_simulation_options_t& options) {
    domain_->reconfigure(options);
    has_velocities_ = options.adapter == DIFFUSIM_LANGEVIN;
}

void Neighborhood::locate() {
    check_box();
    const double needed = reach() + neighbor->skin, there = comm->get_comm_cutoff();
    if (there < needed * (1 - 1e-12))
        throw std::runtime_error("ghost atoms reach " + number(there) + " and the model needs " + number(needed) +
                                 ", its reach of " + number(reach()) + " and the skin; say 'comm_modify cutoff " +
                                 number(needed) + "'");
    indices_.clear();
    types_.clear();
    ids_.clear();
    for (int i = 0; i < atom->nlocal + atom->nghost; i++)
        if (contains_(i)) {
            indices_.push_back(i);
            types_.push_back(static_cast<std::uint32_t>(number_of_type_[atom->type[i]]));
            if (i < atom->nlocal)
                ids_.push_back(atom->tag_enable ? static_cast<std::uint32_t>(atom->tag[i] - 1) : 0);
        }
    domain_->set_particles(types_, ids_);
}

void Neighborhood::evaluate(bool virials) {
    const std::size_t n = indices_.size();
    positions_.resize(3 * n);
    for (std::size_t k = 0; k < n; k++)
        for (int c = 0; c < 3; c++)
            positions_[3 * k + c] = atom->x[indices_[k]][c] * units_.length;
    scores_.resize(3 * n);
    energies_.resize(n_owned());
    virials_.resize(virials ? 9 * n : 0);
    domain_->evaluate(positions_, scores_.data(), energies_.data(), virials ? virials_.data() : nullptr);
}

void Neighborhood::step(std::uint64_t step, const std::vector<double>& scores) {
    const std::size_t n = n_owned();
    moved_.resize(3 * n);
    velocities_.resize(has_velocities_ ? 3 * n : 0);
    forces_.resize(3 * n);
    bool any_force = false;
    for (std::size_t k = 0; k < n; k++)
        for (int c = 0; c < 3; c++) {
            moved_[3 * k + c] = atom->x[indices_[k]][c] * units_.length;
            const double force = atom->f[indices_[k]][c] * units_.force();
            forces_[3 * k + c] = force;
            any_force |= force != 0;
            if (has_velocities_)
                velocities_[3 * k + c] = atom->v[indices_[k]][c] * units_.velocity();
        }
    domain_->step(step, scores.data(), any_force ? forces_.data() : nullptr, moved_.data(),
                  has_velocities_ ? velocities_.data() : nullptr, 3 * n);
    for (std::size_t k = 0; k < n; k++)
        for (int c = 0; c < 3; c++) {
            atom->x[indices_[k]][c] = moved_[3 * k + c] / units_.length;
            if (has_velocities_)
                atom->v[indices_[k]][c] = velocities_[3 * k + c] / units_.velocity();
        }
}

} // namespace diffusim_lammps
