/* SPDX-License-Identifier: GPL-2.0-only */

#include "molecules.h"
#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "errors.h"
#include "force.h"
#include "update.h"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

using namespace LAMMPS_NS;

namespace diffusim_lammps {

namespace {
/** All ranks' items, one rank after the other. */
template <class T>
std::vector<T> gather_all(const std::vector<T>& mine, MPI_Comm world) {
    int n_ranks = 0;
    MPI_Comm_size(world, &n_ranks);
    std::vector<int> sizes(n_ranks), starts(n_ranks);
    const int size = static_cast<int>(mine.size() * sizeof(T));
    MPI_Allgather(&size, 1, MPI_INT, sizes.data(), 1, MPI_INT, world);
    std::partial_sum(sizes.begin(), sizes.end() - 1, starts.begin() + 1);
    std::vector<T> all((starts.back() + sizes.back()) / sizeof(T));
    MPI_Allgatherv(mine.data(), size, MPI_BYTE, all.data(), sizes.data(), starts.data(), MPI_BYTE, world);
    return all;
}

std::string number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", value);
    return text;
}
} // namespace

Units script_units(LAMMPS* lammps, char** scale) {
    const std::string style = lammps->update->unit_style;
    if (style == "lj") {
        if (scale == nullptr)
            throw std::runtime_error("units lj have no size, and a model needs lengths, times and energies of a known "
                                     "one; add 'scale LENGTH ENERGY MASS', the units of this script in nm, kJ/mol and "
                                     "amu, or use units real, metal, si, nano or electron");
        double values[3];
        for (int i = 0; i < 3; i++) {
            values[i] = utils::numeric(FLERR, scale[i], false, lammps);
            if (!(values[i] > 0 && std::isfinite(values[i])))
                throw std::runtime_error(std::string("scale has ") + scale[i] +
                                         "; expected positive numbers of nm, kJ/mol and amu");
        }
        return reduced_units(values[0], values[1], values[2]);
    }
    const Units* units = find_units(style.c_str());
    if (units == nullptr)
        throw std::runtime_error("units " + style +
                                 " are not supported; use units real, metal, si, nano or electron, "
                                 "or lj with a scale");
    if (scale != nullptr)
        throw std::runtime_error("a scale was given, but units " + style +
                                 " have a size already; remove it, or use "
                                 "units lj");
    return *units;
}

std::string first_failure(const std::string& mine, MPI_Comm world) {
    int me = 0, n_ranks = 0, first = 0;
    MPI_Comm_rank(world, &me);
    MPI_Comm_size(world, &n_ranks);
    const int candidate = mine.empty() ? n_ranks : me;
    MPI_Allreduce(&candidate, &first, 1, MPI_INT, MPI_MIN, world);
    if (first == n_ranks)
        return "";
    std::string failure = mine;
    int size = static_cast<int>(failure.size());
    MPI_Bcast(&size, 1, MPI_INT, first, world);
    failure.resize(size);
    MPI_Bcast(failure.data(), size, MPI_CHAR, first, world);
    return failure;
}

std::unique_ptr<diffusim::model> load_model(const std::string& path, MPI_Comm world) {
    std::unique_ptr<diffusim::model> model;
    const std::string failure = first_failure(
        failure_of([&] { model = std::make_unique<diffusim::model>(diffusim::model::load(path)); }), world);
    if (!failure.empty())
        throw std::runtime_error(failure);
    return model;
}

Molecules::Molecules(LAMMPS* lammps, const diffusim::model& model, const std::string& what,
                     std::function<bool(int)> contains, std::vector<std::string> elements, const Units& units)
    : Pointers(lammps), model_(model), what_(what), contains_(std::move(contains)), elements_(std::move(elements)),
      units_(units) {
    const std::vector<double> start = model.start_positions();
    const std::size_t frame = 3 * model.n_particles();
    for (std::size_t i = 0; i < start.size(); i += 3) {
        const double *x = &start[i], *first = &start[i / frame * frame];
        extent_ = std::max(extent_, std::hypot(x[0] - first[0], x[1] - first[1], x[2] - first[2]));
    }
}

void Molecules::find() {
    if (atom->tag_enable == 0)
        throw std::runtime_error("atoms have no IDs, and the model needs to know which is which; remove 'atom_modify "
                                 "id no'");
    if (domain->dimension == 2)
        throw std::runtime_error("a 2d simulation has no room for models, which are three-dimensional; use 'dimension "
                                 "3'");
    struct Found {
        tagint molecule, tag;
        int type;
        double mass;
    };
    std::vector<Found> found;
    for (int i = 0; i < atom->nlocal; i++)
        if (contains_(i))
            found.push_back({atom->molecule_flag ? atom->molecule[i] : 0, atom->tag[i], atom->type[i],
                             (atom->rmass ? atom->rmass[i] : atom->mass[atom->type[i]]) * units_.mass});
    found = gather_all(found, world);

    const std::size_t n = model_.n_particles();
    if (found.empty() || found.size() % n != 0)
        throw std::runtime_error(what_ + " has " + std::to_string(found.size()) +
                                 " atoms, but the model moves molecules of " + std::to_string(n) +
                                 "; name exactly the atoms of whole molecules");
    // The molecule ID of a single molecule does not matter, and 0 is LAMMPS's for atoms that have none.
    const bool many =
        found.size() > n && std::any_of(found.begin(), found.end(), [](const Found& a) { return a.molecule != 0; });
    std::sort(found.begin(), found.end(), [many](const Found& a, const Found& b) {
        return many && a.molecule != b.molecule ? a.molecule < b.molecule : a.tag < b.tag;
    });
    for (std::size_t first = 0; many && first < found.size();) {
        std::size_t end = first;
        while (end < found.size() && found[end].molecule == found[first].molecule)
            end++;
        if (end - first != n)
            throw std::runtime_error("molecule " + std::to_string(found[first].molecule) + " has " +
                                     std::to_string(end - first) + " atoms in " + what_ +
                                     ", but the model's molecule has " + std::to_string(n) +
                                     "; give every copy a molecule ID of its own");
        first = end;
    }

    order_.clear();
    places_.clear();
    std::vector<int> types;
    std::vector<double> masses;
    for (const Found& atom : found) {
        places_.emplace(atom.tag, order_.size());
        order_.push_back(atom.tag);
        types.push_back(atom.type);
        masses.push_back(atom.mass);
    }
    if (places_.size() != order_.size())
        throw std::runtime_error("several atoms of " + what_ + " have the same ID; give each its own");
    compare_with_model(types, masses);
    masses_.assign(masses.begin(), masses.begin() + n);
    locate();
}

void Molecules::compare_with_model(const std::vector<int>& types, const std::vector<double>& masses) {
    const std::size_t n = model_.n_particles();
    for (std::size_t first = 0; first < order_.size(); first += n) {
        const auto begin = masses.begin() + static_cast<std::ptrdiff_t>(first);
        for (std::size_t i = 0; i < n; i++)
            if (masses[first + i] != masses[i])
                throw std::runtime_error("atom " + std::to_string(order_[first + i]) + " weighs " +
                                         number(masses[first + i] / units_.mass) + " and atom " +
                                         std::to_string(order_[i]) + ", the same particle of the first molecule, " +
                                         number(masses[i] / units_.mass) + "; give all copies the same masses");
        try {
            if (elements_.empty()) {
                model_.check_masses({begin, begin + static_cast<std::ptrdiff_t>(n)});
                continue;
            }
            std::vector<const char*> elements(n), names(n);
            std::vector<std::string> labels(n);
            for (std::size_t i = 0; i < n; i++) {
                const std::string& element = elements_[types[first + i]];
                labels[i] = "atom " + std::to_string(order_[first + i]);
                elements[i] = element.empty() ? nullptr : element.c_str();
                names[i] = labels[i].c_str();
            }
            model_.check_particles(elements, names);
        } catch (const diffusim::error& error) {
            throw std::runtime_error(
                std::string(error.what()) + " Here particle 0 is atom " + std::to_string(order_[first]) +
                ", and the others follow by their IDs." +
                (elements_.empty() ? " With 'types' elements are compared in place of masses." : ""));
        }
    }
}

void Molecules::locate() {
    local_.clear();
    long long known = 0, wrong = 0;
    for (int i = 0; i < atom->nlocal; i++)
        if (contains_(i)) {
            const auto place = places_.find(atom->tag[i]);
            if (place == places_.end())
                wrong++;
            else {
                local_.push_back({i, place->second});
                known++;
            }
        }
    long long mine[2] = {known, wrong}, all[2] = {};
    MPI_Allreduce(mine, all, 2, MPI_LONG_LONG, MPI_SUM, world);
    if (all[1] != 0 || all[0] != static_cast<long long>(order_.size()))
        throw std::runtime_error(
            "the atoms of " + what_ + " changed since the run was set up: there were " + std::to_string(order_.size()) +
            ", now there are " + std::to_string(all[0] + all[1]) +
            "; the model moves whole molecules, so keep them from being lost, inserted or deleted");

    std::vector<std::size_t> places;
    images_.clear();
    shifts_.assign(3 * local_.size(), 0);
    written_.clear();
    written_velocities_.clear();
    for (const Atom& a : local_) {
        domain->unmap_inv(&shifts_[3 * places.size()], atom->image[a.index]);
        images_.push_back(atom->image[a.index]);
        places.push_back(a.place);
    }
    contiguous_ = in_order_ = true;
    for (std::size_t k = 1; k < local_.size(); k++) {
        contiguous_ &= local_[k].index == local_[0].index + static_cast<int>(k);
        in_order_ &= local_[k].place == local_[0].place + k;
    }
    shifted_ = std::any_of(shifts_.begin(), shifts_.end(), [](double shift) { return shift != 0; });
    counts_.resize(comm->nprocs);
    const int count = static_cast<int>(places.size());
    MPI_Allgather(&count, 1, MPI_INT, counts_.data(), 1, MPI_INT, world);
    places_of_ranks_ = gather_all(places, world);
}

bool Molecules::gather(std::vector<double>* positions, std::vector<double>* forces, std::vector<double>* velocities) {
    const int width = 3 * ((positions != nullptr) + (forces != nullptr) + (velocities != nullptr));
    sent_.resize(width * local_.size());
    double* next = sent_.data();
    for (const Atom& a : local_) {
        if (positions) {
            domain->unmap(atom->x[a.index], atom->image[a.index], next);
            for (int c = 0; c < 3; c++)
                next[c] *= units_.length;
            next += 3;
        }
        if (forces) {
            for (int c = 0; c < 3; c++)
                next[c] = atom->f[a.index][c] * units_.force();
            next += 3;
        }
        if (velocities) {
            for (int c = 0; c < 3; c++)
                next[c] = atom->v[a.index][c] * units_.velocity();
            next += 3;
        }
    }
    const std::vector<double>* all = &sent_;
    if (comm->nprocs > 1) {
        std::vector<int> sizes(comm->nprocs), starts(comm->nprocs);
        for (int rank = 0; rank < comm->nprocs; rank++)
            sizes[rank] = width * counts_[rank];
        std::partial_sum(sizes.begin(), sizes.end() - 1, starts.begin() + 1);
        received_.resize(width * order_.size());
        MPI_Allgatherv(sent_.data(), sizes[comm->me], MPI_DOUBLE, received_.data(), sizes.data(), starts.data(),
                       MPI_DOUBLE, world);
        all = &received_;
    }
    bool any_force = false;
    const double* from = all->data();
    for (std::vector<double>* to : {positions, forces, velocities})
        if (to)
            to->resize(3 * order_.size());
    for (const std::size_t place : places_of_ranks_) {
        if (positions) {
            std::copy_n(from, 3, positions->data() + 3 * place);
            from += 3;
        }
        if (forces) {
            std::copy_n(from, 3, forces->data() + 3 * place);
            any_force |= from[0] != 0 || from[1] != 0 || from[2] != 0;
            from += 3;
        }
        if (velocities) {
            std::copy_n(from, 3, velocities->data() + 3 * place);
            from += 3;
        }
    }
    return any_force;
}

void Molecules::scatter(const double* positions, bool remember) {
    const std::size_t n = 3 * local_.size();
    const double length = units_.length;
    written_.resize(remember ? n : 0);
    if (contiguous_ && in_order_ && !shifted_ && n > 0) {
        double* __restrict x = atom->x[local_[0].index];
        const double* __restrict from = positions + 3 * local_[0].place;
        for (std::size_t i = 0; i < n; i++)
            x[i] = from[i] / length;
        std::copy_n(x, written_.size(), written_.data());
        return;
    }
    double* written = written_.data();
    for (std::size_t k = 0; k < local_.size(); k++) {
        double* x = atom->x[local_[k].index];
        for (int c = 0; c < 3; c++)
            x[c] = positions[3 * local_[k].place + c] / length + shifts_[3 * k + c];
        if (remember)
            written = std::copy_n(x, 3, written);
    }
}

void Molecules::scatter_velocities(const double* velocities) {
    written_velocities_.resize(3 * local_.size());
    for (std::size_t k = 0; k < local_.size(); k++)
        for (int c = 0; c < 3; c++)
            written_velocities_[3 * k + c] = atom->v[local_[k].index][c] =
                velocities[3 * local_[k].place + c] / units_.velocity();
}

bool Molecules::untouched() const {
    if (comm->nprocs > 1 || written_.empty())
        return false;
    for (std::size_t i = 0; i < written_velocities_.size(); i++)
        if (atom->v[local_[i / 3].index][i % 3] != written_velocities_[i])
            return false;
    if (contiguous_) {
        const int first = local_[0].index;
        return std::memcmp(atom->x[first], written_.data(), written_.size() * sizeof(double)) == 0 &&
               std::memcmp(atom->image + first, images_.data(), images_.size() * sizeof(imageint)) == 0;
    }
    bool same = true;
    for (std::size_t k = 0; k < local_.size(); k++) {
        const double *x = atom->x[local_[k].index], *written = &written_[3 * k];
        same &= x[0] == written[0] && x[1] == written[1] && x[2] == written[2] &&
                atom->image[local_[k].index] == images_[k];
    }
    return same;
}

bool Molecules::any_force() const {
    if (contiguous_ && !local_.empty()) {
        const double* f = atom->f[local_[0].index];
        std::uint64_t bits = 0; // but those of the signs; compilers make vectors of it
        for (std::size_t i = 0; i < 3 * local_.size(); i++) {
            std::uint64_t of_force;
            std::memcpy(&of_force, f + i, sizeof of_force);
            bits |= of_force << 1;
        }
        return bits != 0;
    }
    bool any = false;
    for (const Atom& a : local_) {
        const double* f = atom->f[a.index];
        any |= f[0] != 0 || f[1] != 0 || f[2] != 0;
    }
    return any;
}

void Molecules::check_whole(const std::vector<double>& positions) const {
    const std::size_t n = model_.n_particles();
    for (std::size_t i = 0; i < positions.size(); i++) {
        const int c = static_cast<int>(i % 3);
        const double half = 0.5 * domain->prd[c] * units_.length;
        const std::size_t particle = i / 3, first = particle / n * n;
        if (domain->periodicity[c] && extent_ > 0 && extent_ < half &&
            std::abs(positions[i] - positions[3 * first + c]) > half)
            throw std::runtime_error(
                "atoms " + std::to_string(order_[first]) + " and " + std::to_string(order_[particle]) +
                " of one molecule are more than half the periodic box apart: the box splits the molecule; give its "
                "atoms "
                "the right image flags (for example with 'reset_atoms image all'), or place it whole");
    }
}

} // namespace diffusim_lammps
