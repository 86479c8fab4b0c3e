/* SPDX-License-Identifier: GPL-2.0-only */

#include "neighborhood.h"
#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "errors.h"
#include "neighbor.h"
#include <algorithm>
#include <cstring>

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
    if (atom->tag_enable == 0)
        throw std::runtime_error("atoms have no IDs, by which a periodic model knows them; remove 'atom_modify id no'");
    if (comm->mode != Comm::SINGLE)
        throw std::runtime_error("'comm_modify mode multi' gives different ghosts to different types, and a periodic "
                                 "model needs all; use 'comm_modify mode single'");
    check_box();
    check_ids();
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

/** Refuse an ID that two atoms have: on one rank, or on two that need not know of each other. Collective. */
void Neighborhood::check_ids() const {
    // Each ID goes to the rank that is its remainder, where equals meet.
    const int n_ranks = comm->nprocs;
    std::vector<std::vector<tagint>> to(static_cast<std::size_t>(n_ranks));
    for (int i = 0; i < atom->nlocal; i++)
        if (contains_(i))
            to[static_cast<std::size_t>(atom->tag[i] % n_ranks)].push_back(atom->tag[i]);
    std::vector<tagint> sent;
    std::vector<int> n_sent, sent_from, n_got(static_cast<std::size_t>(n_ranks)), got_from;
    for (const std::vector<tagint>& ids : to) {
        sent_from.push_back(static_cast<int>(sent.size()));
        n_sent.push_back(static_cast<int>(ids.size()));
        sent.insert(sent.end(), ids.begin(), ids.end());
    }
    MPI_Alltoall(n_sent.data(), 1, MPI_INT, n_got.data(), 1, MPI_INT, world);
    int n = 0;
    for (const int count : n_got) {
        got_from.push_back(n);
        n += count;
    }
    std::vector<tagint> got(static_cast<std::size_t>(n));
    MPI_Alltoallv(sent.data(), n_sent.data(), sent_from.data(), MPI_LMP_TAGINT, got.data(), n_got.data(),
                  got_from.data(), MPI_LMP_TAGINT, world);
    std::sort(got.begin(), got.end());
    const auto twice = std::adjacent_find(got.begin(), got.end());
    const std::string failure =
        first_failure(twice == got.end() ? ""
                                         : "atom ID " + std::to_string(*twice) +
                                               " is there twice, and a periodic model tells atoms apart by their "
                                               "IDs; 'reset_atoms id' gives each its own",
                      world);
    if (!failure.empty())
        throw std::runtime_error(failure);
}

void Neighborhood::check_box() {
    if (!domain->xperiodic || !domain->yperiodic || !domain->zperiodic)
        throw std::runtime_error(model_.name() + " is a periodic model; use 'boundary p p p'");
    domain_->set_cell(cell().data());
}

/** Its vectors as rows, nm. */
std::array<double, 9> Neighborhood::cell() const {
    std::array<double, 9> cell = {domain->xprd, 0,          0,           domain->xy, domain->yprd, 0,
                                  domain->xz,   domain->yz, domain->zprd};
    for (double& x : cell)
        x *= units_.length;
    return cell;
}

void Neighborhood::configure(const diffusim_simulation_options_t& options) { domain_->reconfigure(options); }

void Neighborhood::locate() {
    check_box();
    const double needed = reach() + neighbor->skin, there = comm->get_comm_cutoff();
    if (there < needed * (1 - 1e-12))
        throw std::runtime_error("ghost atoms reach " + number(there) + " and the model needs " + number(needed) +
                                 ", its reach of " + number(reach()) + " and the skin; say 'comm_modify cutoff " +
                                 number(needed) + "'");
    const int n = atom->nlocal + atom->nghost;
    indices_.clear();
    types_.clear();
    ids_.clear();
    rows_.assign(static_cast<std::size_t>(n), -1);
    known_.clear();
    for (int i = 0; i < n; i++) {
        if (!contains_(i))
            continue;
        const auto [known, is_new] = known_.try_emplace(atom->tag[i], static_cast<int>(ids_.size()));
        rows_[i] = known->second;
        if (i < atom->nlocal)
            indices_.push_back(i);
        if (is_new || i < atom->nlocal) { // an ID that is there twice does not pass the core
            types_.push_back(static_cast<std::uint32_t>(number_of_type_[atom->type[i]]));
            ids_.push_back(static_cast<std::uint32_t>(atom->tag[i] - 1));
        }
    }
    positions_.resize(3 * ids_.size());
    const std::string failure =
        first_failure(failure_of([&] { domain_->set_particles(types_, ids_, indices_.size()); }), world);
    if (!failure.empty())
        throw std::runtime_error(failure);
}

void Neighborhood::evaluate(bool virials, const std::function<void(int)>& forward) {
    const auto exchange = [&](void* rows, std::size_t bytes) {
        if (comm->nprocs == 1)
            return;
        exchanged_ = static_cast<char*>(rows);
        n_exchanged_ = bytes / sizeof(double);
        forward(static_cast<int>(n_exchanged_));
    };
    exchange(positions_.data(), 3 * sizeof(double));
    scores_.resize(3 * n_owned());
    energies_.resize(n_owned());
    virials_.resize(virials ? 9 * n_owned() : 0);
    domain_->set_cell(cell().data());
    domain_->evaluate(
        positions_, [&](float* rows, std::size_t, std::size_t width) { exchange(rows, width * sizeof(float)); },
        scores_.data(), energies_.data(), virials ? virials_.data() : nullptr);
}

int Neighborhood::forward_size() const {
    return std::max<int>(3, static_cast<int>(domain_->exchange_width() * sizeof(float) / sizeof(double)));
}

int Neighborhood::pack(int n, const int* list, double* buffer) const {
    const std::size_t bytes = n_exchanged_ * sizeof(double);
    for (int k = 0; k < n; k++, buffer += n_exchanged_) {
        const int row = rows_[list[k]];
        if (row >= 0)
            std::memcpy(buffer, exchanged_ + bytes * static_cast<std::size_t>(row), bytes);
        else
            std::fill_n(buffer, n_exchanged_, 0.0);
    }
    return n * static_cast<int>(n_exchanged_);
}

void Neighborhood::unpack(int n, int first, const double* buffer) {
    const std::size_t bytes = n_exchanged_ * sizeof(double);
    for (int i = first; i < first + n; i++, buffer += n_exchanged_)
        if (rows_[i] >= static_cast<int>(n_owned()))
            std::memcpy(exchanged_ + bytes * static_cast<std::size_t>(rows_[i]), buffer, bytes);
}

void Neighborhood::step(std::uint64_t step, std::vector<double>& positions, std::vector<double>& velocities) {
    forces_.clear();
    bool any_force = false;
    for (const int i : indices_)
        for (int c = 0; c < 3; c++) {
            forces_.push_back(atom->f[i][c] * units_.force());
            any_force |= forces_.back() != 0;
        }
    domain_->step(step, scores_.data(), any_force ? forces_.data() : nullptr, positions.data(),
                  velocities.empty() ? nullptr : velocities.data(), positions.size());
}

} // namespace diffusim_lammps
