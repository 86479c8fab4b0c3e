/* SPDX-License-Identifier: GPL-2.0-only */

#include "fix_diffusim.h"
#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "errors.h"
#include "force.h"
#include "group.h"
#include "input.h"
#include "kspace.h"
#include "modify.h"
#include "neighbor.h"
#include "pair_diffusim.h"
#include "update.h"
#include "variable.h"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

using namespace LAMMPS_NS;
using namespace FixConst;

namespace diffusim_lammps {

namespace {
const char STYLE[] = "fix diffusim";
const char ARGUMENTS[] = "fix ID group diffusim temp seed model FILE ...";
const char WHO[] =
    " Here particles are the atoms of a molecule by their IDs, replicas the molecules by theirs, both from 0.";
constexpr double RESTART_LAYOUT = 2;

/** Whether a number of LAMMPS is the `kept` one but for the rounding of its units and of a box of this size. */
bool is_same(double found, double kept, double box) {
    constexpr double ROUNDING = 8 * std::numeric_limits<double>::epsilon();
    return std::abs(found - kept) <= ROUNDING * (std::abs(kept) + box);
}

std::string number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.6g", value);
    return text;
}

bool style_is(const Fix* fix, std::initializer_list<const char*> patterns) {
    return std::any_of(patterns.begin(), patterns.end(),
                       [fix](const char* pattern) { return utils::strmatch(fix->style, pattern); });
}
/** The GPU of a rank: 'cuda' is shared out over the ranks of a machine, in turn; any other name is what it is. */
std::string device_of_rank(const std::string& name, MPI_Comm world) {
    std::size_t n_gpus = 0;
    diffusim::check(diffusim_device_count(&n_gpus));
    if (name != "cuda" || n_gpus == 0)
        return name;
    MPI_Comm machine;
    int rank = 0;
    MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine);
    MPI_Comm_rank(machine, &rank);
    MPI_Comm_free(&machine);
    return "cuda:" + std::to_string(static_cast<std::size_t>(rank) % n_gpus);
}
} // namespace

template <class Body>
void FixDiffusim::attempt(const char* file, int line, Body&& body) const {
    diffusim_lammps::attempt(error, STYLE, file, line, body);
}

FixDiffusim::FixDiffusim(LAMMPS* lammps, int narg, char** arg) : Fix(lammps, narg, arg) {
    time_integrate = 1;
    restart_global = 1;
    energy_global_flag = 1;
    virial_global_flag = virial_peratom_flag = 1;
    centroidstressflag = CENTROID_NOTAVAIL;
    scalar_flag = extscalar = 1;
    vector_flag = 1;
    size_vector = 8;
    extvector = -1;
    static int extensive[8] = {1, 0, 0, 0, 0, 0, 1, 0};
    extlist = extensive;
    global_freq = 1;

    attempt(FLERR, [&] {
        units_ = parse(narg, arg);
        model_ = load_model(path_, world);
        if (!blend_path_.empty()) {
            ends_[0] = std::move(model_);
            ends_[1] = load_model(blend_path_, world);
            model_ = std::make_unique<diffusim::model>(diffusim::model::blend(*ends_[0], *ends_[1], 0));
        }
        const auto contains = [this](int i) { return (atom->mask[i] & groupbit) != 0; };
        const std::string what = std::string("group '") + group->names[igroup] + "'";
        if (model_->is_periodic())
            neighborhood_ = std::make_unique<Neighborhood>(lammps, *model_, what, contains, elements_, units_);
        else
            molecules_ = std::make_unique<Molecules>(lammps, *model_, what, contains, elements_, units_);
    });
    next_reneighbor = -1;
    force_reneighbor = molecules_ != nullptr;
    if (!neighborhood_)
        return;
    comm_forward = neighborhood_->forward_size();
    n_kept_ = maxexchange = has_velocities() ? 6 : 3;
    create_attribute = restart_peratom = 1;
    grow_arrays(atom->nmax);
    atom->add_callback(Atom::GROW);
    atom->add_callback(Atom::RESTART);
}

FixDiffusim::~FixDiffusim() {
    stop_watching();
    if (neighborhood_ && modify->get_fix_by_id(id)) {
        atom->delete_callback(id, Atom::GROW);
        atom->delete_callback(id, Atom::RESTART);
    }
}

Units FixDiffusim::parse(int narg, char** arg) {
    if (narg < 5)
        throw std::runtime_error("a temperature and a seed are needed: " + std::string(ARGUMENTS));
    if (!utils::is_double(arg[3]))
        throw std::runtime_error("the temperature is '" + std::string(arg[3]) + "'; expected a number: " + ARGUMENTS);
    temperature_ = utils::numeric(FLERR, arg[3], false, lmp);
    if (!(temperature_ > 0 && std::isfinite(temperature_)))
        throw std::runtime_error("the temperature is " + std::string(arg[3]) + "; expected a positive number");
    if (!utils::is_integer(arg[4]))
        throw std::runtime_error("the seed is '" + std::string(arg[4]) + "'; expected a whole number: " + ARGUMENTS);
    const bigint seed = utils::bnumeric(FLERR, arg[4], false, lmp);
    if (seed < 1)
        throw std::runtime_error("the seed is " + std::string(arg[4]) + "; expected a whole number above 0");
    seed_ = static_cast<unsigned long long>(seed);

    const struct {
        const char* keyword;
        double diffusim_simulation_options_t::* option;
    } QUANTITIES[] = {
        {"friction", &diffusim_simulation_options_t::friction_rate},
        {"drag", &diffusim_simulation_options_t::drag},
        {"diffusion", &diffusim_simulation_options_t::diffusion_coefficient},
        {"spring", &diffusim_simulation_options_t::spring},
        {"effective_step", &diffusim_simulation_options_t::effective_step},
    };
    const struct {
        const char* name;
        std::int32_t value;
    } ADAPTERS[] = {
        {"lm", DIFFUSIM_LEIMKUHLER_MATTHEWS},
        {"em", DIFFUSIM_EULER_MARUYAMA},
        {"heun", DIFFUSIM_HEUN},
        {"mala", DIFFUSIM_MALA},
        {"langevin", DIFFUSIM_LANGEVIN},
    };
    bool automatic = false;
    char** scale = nullptr;
    for (int i = 5; i < narg;) {
        const std::string keyword = arg[i++];
        const auto value = [&]() -> const char* {
            if (i >= narg)
                throw std::runtime_error("keyword " + keyword + " needs a value");
            return arg[i++];
        };
        const auto quantity = std::find_if(std::begin(QUANTITIES), std::end(QUANTITIES),
                                           [&](const auto& row) { return keyword == row.keyword; });
        if (keyword == "model") {
            path_ = value();
        } else if (keyword == "adapter") {
            const std::string name = value();
            const auto adapter = std::find_if(std::begin(ADAPTERS), std::end(ADAPTERS),
                                              [&](const auto& row) { return name == row.name; });
            if (adapter == std::end(ADAPTERS))
                throw std::runtime_error(
                    "adapter '" + name +
                    "' is not known; expected lm (Leimkuhler-Matthews), em (Euler-Maruyama), heun, "
                    "mala (Metropolis) or langevin (with velocities)");
            keywords_.adapter = adapter->value;
        } else if (keyword == "blend") {
            blend_path_ = value();
            const std::string text = value();
            if (utils::strmatch(text, "^v_"))
                lambda_variable_ = text.substr(2);
            else
                wanted_lambda_ = utils::numeric(FLERR, text, false, lmp);
        } else if (keyword == "device") {
            device_ = device_of_rank(value(), world);
            keywords_.device = device_.c_str();
        } else if (keyword == "matmul") {
            matmul_ = value();
            keywords_.matmul_precision = matmul_.c_str();
        } else if (keyword == "scale") {
            scale = arg + i;
            value(), value(), value();
        } else if (keyword == "types") {
            elements_.assign(1, "");
            for (int type = 0; type < atom->ntypes; type++) {
                const std::string element = value();
                elements_.push_back(element == "NULL" ? "" : element);
            }
        } else if (quantity != std::end(QUANTITIES)) {
            const std::string text = value();
            if (keyword == "spring" && text == "auto") {
                automatic = true;
                continue;
            }
            const double given = utils::numeric(FLERR, text, false, lmp);
            if (!(given > 0 && std::isfinite(given)))
                throw std::runtime_error(keyword + " is " + text + "; expected a positive number");
            keywords_.*(quantity->option) = given;
        } else {
            throw std::runtime_error(
                "keyword '" + keyword +
                "' is not known; expected model, friction, drag, diffusion, spring, effective_step, "
                "adapter, blend, device, matmul, scale or types");
        }
    }
    if (path_.empty())
        throw std::runtime_error("no model was given; add 'model FILE' with a file that diffusim train wrote");
    const bool mobile = keywords_.friction_rate + keywords_.drag + keywords_.diffusion_coefficient > 0;
    uses_time_step_ = mobile && keywords_.spring + keywords_.effective_step == 0 && !automatic;
    if (automatic && keywords_.spring + keywords_.effective_step > 0)
        throw std::runtime_error("both 'spring auto' and a step of another size were given; give one");

    const Units units = script_units(lmp, scale);
    keywords_.friction_rate *= 1 / units.time;
    keywords_.drag *= units.drag();
    keywords_.diffusion_coefficient *= units.diffusion();
    keywords_.spring *= 1 / (units.length * units.length);
    keywords_.effective_step *= units.length * units.length;
    return units;
}

int FixDiffusim::setmask() { return INITIAL_INTEGRATE | POST_NEIGHBOR | POST_FORCE | POST_RUN; }

diffusim::simulation_options FixDiffusim::options() const {
    diffusim::simulation_options options = keywords_;
    options.temperature = temperature_ * units_.temperature;
    options.seed = seed_;
    options.masses = neighborhood_ ? neighborhood_->masses().data() : molecules_->masses().data();
    options.n_threads = static_cast<std::size_t>(comm->nthreads); // LAMMPS's own: OMP_NUM_THREADS or package omp
    if (uses_time_step_)
        options.time_step = update->dt * units_.time;
    return options;
}

void FixDiffusim::init() {
    stop_watching();
    attempt(FLERR, [&] {
        refuse_what_cannot_run();
        if (neighborhood_)
            neighborhood_->check(true);
        else
            molecules_->find();
        try {
            create();
        } catch (const diffusim::error& caught) {
            if (caught.status() != DIFFUSIM_ERROR_UNSTABLE)
                throw;
            throw std::runtime_error(caught.what() + advice());
        }
        follow_lambda();
    });
    report();
}

/** What to write into the script in place of a step that is too coarse, of which the core speaks in its own units. */
std::string FixDiffusim::advice() const {
    const std::string in_units = std::string(". In units ") + update->unit_style + " ";
    if (has_velocities())
        return in_units + "1 ps is " + number(1 / units_.time) + " " + units_.time_name;
    if (neighborhood_)
        return ". Use 'spring auto'";
    diffusim::simulation_options options = this->options();
    options.spring = options.effective_step = options.time_step = 0; // the recommended one
    try {
        const diffusim_statistics_t recommended = diffusim::simulation(*model_, options).statistics();
        const std::string spring = "'spring auto', which is " +
                                   number(recommended.spring * units_.length * units_.length) + " /" +
                                   units_.length_name + "^2";
        if (uses_time_step_)
            return ". Use 'timestep " + number(recommended.time_step / units_.time) + "' or " + spring;
        return ". Use " + spring;
    } catch (const diffusim::error&) { // the model recommends none
        return in_units + "1 nm is " + number(1 / units_.length) + " " + units_.length_name + " and 1 ps is " +
               number(1 / units_.time) + " " + units_.time_name;
    }
}

/** Set the λ of a blend to what the script says: a number, or the value of a variable at this time. Collective. */
void FixDiffusim::follow_lambda() {
    if (!ends_[1])
        return;
    if (!lambda_variable_.empty()) {
        const int variable = input->variable->find(lambda_variable_.c_str());
        if (variable < 0 || !input->variable->equalstyle(variable))
            throw std::runtime_error("blend wants its lambda from variable '" + lambda_variable_ +
                                     "', which does not exist or is not of style equal");
        modify->clearstep_compute();
        wanted_lambda_ = input->variable->compute_equal(variable);
        modify->addstep_compute(update->ntimestep + 1);
    }
    if (at_lambda_ && simulation_->lambda() == wanted_lambda_)
        return;
    simulation_->set_lambda(wanted_lambda_);
    at_lambda_ = std::make_unique<diffusim::model>(diffusim::model::blend(*ends_[0], *ends_[1], wanted_lambda_));
}

void FixDiffusim::refuse_what_cannot_run() const {
    if (update->whichflag == 2)
        throw std::runtime_error(
            "'minimize' does not see the learned energy; unfix this fix, or use pair_style diffusim");
    if (utils::strmatch(update->integrate_style, "^respa"))
        throw std::runtime_error(
            "run_style respa is not supported: there is one step and one force; use run_style verlet");
    if (group->dynamic[igroup])
        throw std::runtime_error(std::string("group '") + group->names[igroup] +
                                 "' is dynamic, and the atoms of a molecule must stay in it; use a static group");
    for (const Fix* other : modify->get_fix_list()) {
        if (other == this)
            continue;
        const std::string name = std::string("fix ") + other->id + " (" + other->style + ")";
        if (other->box_change & (BOX_CHANGE_SIZE | BOX_CHANGE_SHAPE))
            throw std::runtime_error(name + " changes the box, which the model knows nothing about; remove it");
        if (style_is(other, {"^gcmc", "^widom", "^atom/swap", "^mol/swap", "^sgcmc", "^charge/regulation", "^tfmc"}))
            throw std::runtime_error(name + " needs energies of trial moves, without the learned one; remove it");
        const auto also = [other, this](int i) { return (atom->mask[i] & other->groupbit) != 0; };
        if ((other->time_integrate || other->rigid_flag || style_is(other, {"^shake", "^rattle", "^rigid"})) &&
            shares_atoms(also))
            throw std::runtime_error(name + " moves or constrains atoms of this fix too; one of them must go, or their "
                                            "groups must not overlap");
        if (style_is(other, {"^langevin", "^gle$", "^gld", "^ttm", "^viscous", "^temp/", "^heat$", "^ehex", "^qtb",
                             "^thermal/conductivity"}) &&
            shares_atoms(also))
            throw std::runtime_error(name + " is a heat bath or a drag on atoms of this fix, which is their heat bath "
                                            "itself; remove it");
    }
    const auto pair = [this](int nth) { return dynamic_cast<PairDiffusim*>(force->pair_match("diffusim", 0, nth)); };
    for (int nth = 0; nth == 0 || pair(nth); nth++) // the first, or the only one, is also number 0
        if (pair(nth) && shares_atoms([&](int i) { return pair(nth)->acts_on(atom->type[i]); }))
            throw std::runtime_error(
                "pair_style diffusim acts on atoms of this fix, whose learned force would count twice; "
                "use it with another integrator");
}

/** Whether any atom of this fix, on any rank, is also one of those that `also` names. Collective. */
bool FixDiffusim::shares_atoms(const std::function<bool(int)>& also) const {
    int shared = 0, any = 0;
    for (int i = 0; i < atom->nlocal; i++)
        shared |= (atom->mask[i] & groupbit) && also(i);
    MPI_Allreduce(&shared, &any, 1, MPI_INT, MPI_MAX, world);
    return any != 0;
}

void FixDiffusim::create() {
    if (neighborhood_) {
        neighborhood_->configure(options());
        // There may be no pair style to ask for ghosts, and they must be there before the first step.
        const double needed = neighborhood_->reach() + neighbor->skin;
        comm->cutghostuser = std::max(comm->cutghostuser, needed);
        keep(); // before LAMMPS rounds what it has
        if (!is_set_up_)
            step_ = restored_ ? restored_step_ : static_cast<std::uint64_t>(update->ntimestep);
        is_set_up_ = true;
        return;
    }
    std::vector<std::uint32_t> ids; // in the first molecule; the others differ by the number of the replica
    for (std::size_t i = 0; i < model_->n_particles(); i++)
        ids.push_back(static_cast<std::uint32_t>(molecules_->order()[i] - 1));
    diffusim::simulation_options options = this->options();
    options.particle_ids = ids.data();
    const std::size_t n_values = 3 * molecules_->order().size(), n_molecules = molecules_->n_molecules();
    const std::size_t n_ranks = static_cast<std::size_t>(comm->nprocs);
    std::vector<std::size_t> first(n_ranks + 1); // molecule of each rank
    for (std::size_t rank = 0; rank <= n_ranks; rank++)
        first[rank] = n_molecules * rank / n_ranks;
    const bool shared = n_ranks > 1 && n_molecules >= n_ranks;
    options.n_replicas = shared ? first[comm->me + 1] - first[comm->me] : n_molecules;
    n_replicas_ = options.n_replicas;
    options.first_replica = shared ? static_cast<std::uint32_t>(first[comm->me]) : 0;
    if (simulation_ && n_values_ == n_values) {
        simulation_->reconfigure(options);
        return;
    }

    const int size = static_cast<int>(n_values / n_molecules);
    share_sizes_.clear();
    share_starts_.clear();
    for (std::size_t rank = 0; shared && rank < n_ranks; rank++) {
        share_sizes_.push_back(static_cast<int>(first[rank + 1] - first[rank]) * size);
        share_starts_.push_back(static_cast<int>(first[rank]) * size);
    }
    share_.resize(shared ? share_sizes_[comm->me] : 0);
    const std::uint64_t step = simulation_ ? simulation_->step_count()
                               : restored_ ? restored_step_
                                           : static_cast<std::uint64_t>(update->ntimestep);
    simulation_ = std::make_unique<diffusim::simulation>(*model_, options);
    is_set_up_ = true;
    n_values_ = n_values;
    gathered_.resize(shared ? n_values : 0);
    held_ = shared ? gathered_.data() : simulation_->view_positions();
    held_velocities_.resize(has_velocities() ? n_values : 0);
    if (restored_positions_.size() == n_values)
        give_positions(restored_positions_);
    simulation_->set_step_count(step);
    are_velocities_drawn_ = has_velocities() && restored_velocities_.size() != n_values;
    if (has_velocities() && !are_velocities_drawn_)
        give_velocities(restored_velocities_);
    take_positions();
}

/** Of numbers of all molecules, those that this rank moves; good until the next call. */
const std::vector<double>& FixDiffusim::share(const std::vector<double>& all) {
    if (share_sizes_.empty())
        return all;
    const auto begin = all.begin() + share_starts_[comm->me];
    share_.assign(begin, begin + share_sizes_[comm->me]);
    return share_;
}

/** From all molecules' to the core of every rank. Collective. */
void FixDiffusim::give_positions(const std::vector<double>& positions) {
    const std::string failure = first_failure(failure_of([&] { simulation_->set_positions(share(positions)); }), world);
    if (!failure.empty())
        throw std::runtime_error(failure + WHO);
    take_positions();
}

/** The same for velocities. */
void FixDiffusim::give_velocities(const std::vector<double>& velocities) {
    const std::string failure =
        first_failure(failure_of([&] { simulation_->set_velocities(share(velocities)); }), world);
    if (!failure.empty())
        throw std::runtime_error(failure + WHO);
    take_positions();
}

/** From the core of every rank to `held_`, which is the core's own where there is one, and `held_velocities_`.
 * Collective. */
void FixDiffusim::take_positions() {
    if (has_velocities() && share_sizes_.empty())
        simulation_->get_velocities(held_velocities_);
    else if (has_velocities()) {
        simulation_->get_velocities(share_);
        MPI_Allgatherv(share_.data(), share_sizes_[comm->me], MPI_DOUBLE, held_velocities_.data(), share_sizes_.data(),
                       share_starts_.data(), MPI_DOUBLE, world);
    }
    if (share_sizes_.empty())
        return;
    MPI_Allgatherv(simulation_->view_positions(), share_sizes_[comm->me], MPI_DOUBLE, gathered_.data(),
                   share_sizes_.data(), share_starts_.data(), MPI_DOUBLE, world);
}

diffusim_statistics_t FixDiffusim::statistics() const {
    return neighborhood_ ? neighborhood_->statistics() : simulation_->statistics();
}

/** Say what the run is, and what about it is likely not meant. */
void FixDiffusim::report() const {
    const diffusim_statistics_t now = statistics();
    const Units& units = units_;
    std::string bias;
    const auto add = [&bias](const std::string& name) { bias += (bias.empty() ? "" : ", ") + name; };
    if (force->pair && std::strcmp(force->pair_style, "zero") != 0)
        add(std::string("pair ") + force->pair_style);
    for (const auto& [present, kind, style] : std::initializer_list<std::tuple<bool, const char*, const char*>>{
             {force->bond != nullptr, "bond ", force->bond_style},
             {force->angle != nullptr, "angle ", force->angle_style},
             {force->dihedral != nullptr, "dihedral ", force->dihedral_style},
             {force->improper != nullptr, "improper ", force->improper_style},
             {force->kspace != nullptr, "kspace ", force->kspace_style}})
        if (present)
            add(std::string(kind) + style);
    for (int i = 0; i < modify->nfix; i++)
        if (modify->fix[i] != this && (modify->fmask[i] & POST_FORCE))
            add(std::string("fix ") + modify->fix[i]->id + " (" + modify->fix[i]->style + ")");
    if (comm->me != 0)
        return;

    const std::string length = units.length_name;
    std::string text = std::string("diffusim ") + diffusim_version() + ": fix " + id + " moves " +
                       (neighborhood_ ? "the atoms of group " + std::string(group->names[igroup])
                                      : std::to_string(molecules_->n_molecules()) + " x " +
                                            std::to_string(model_->n_particles()) + " atoms") +
                       " by " + path_ + (blend_path_.empty() ? "" : " blended with " + blend_path_) + "\n  spring " +
                       number(now.spring * units.length * units.length) + " /" + length + "^2, effective step " +
                       number(now.effective_step / units.length / units.length) + " " + length + "^2";
    if (now.diffusion_coefficient > 0)
        text += ", D " + number(now.diffusion_coefficient / units.diffusion()) + " " + length + "^2/" +
                units.time_name + ", a step lasts " + number(now.time_step / units.time) + " " + units.time_name;
    utils::logmesg(lmp, text + "\n  bias: " + (bias.empty() ? "none" : bias) + "\n");

    const double trained = model_->training_temperature(), runs_at = temperature_ * units.temperature;
    if (std::abs(runs_at - trained) > 1e-6 * trained)
        error->warning(FLERR, STYLE + (": the model was trained at " + number(trained) + " K and runs at " +
                                       number(runs_at) + " K: its energy, a free energy at " + number(trained) +
                                       " K, is taken to be the same at that temperature"));
    const double time_step = now.time_step / units.time;
    if (time_step > 0 && std::abs(time_step - update->dt) > 1e-3 * time_step)
        error->warning(FLERR, STYLE + (": a step lasts " + number(time_step) + " " + units.time_name +
                                       " and the timestep is " + number(update->dt) + "; say 'timestep " +
                                       number(time_step) + "' for LAMMPS to count the time right"));
}

void FixDiffusim::setup_post_neighbor() {
    was_alone_ = false; // before a run, and at every frame of rerun, atoms may be anywhere
    attempt(FLERR, [&] {
        if (neighborhood_)
            return locate();
        molecules_->locate();
        pull();
        listed_at_.assign(held_, held_ + n_values_);
    });
}

void FixDiffusim::setup(int vflag) {
    post_force(vflag);
    was_alone_ = modify->nfix == 1 && !force->pair && !force->bond && !force->angle && !force->dihedral &&
                 !force->improper && !force->kspace;
    // With the settings of neigh_modify that LAMMPS has by itself, all ranks ask each other at every step whether an
    // atom has moved by half the skin. Where all atoms are this fix's, every rank has the answer, the same one.
    const bool strains = domain->box_change && (domain->xperiodic || domain->yperiodic || domain->zperiodic);
    watches_ = molecules_ && static_cast<bigint>(n_values_) == 3 * atom->natoms && neighbor->every == 1 &&
               neighbor->delay == 0 && neighbor->dist_check && !neighbor->build_once && !strains &&
               modify->n_initial_integrate == 1 && modify->n_post_integrate == 0;
    if (watches_)
        neighbor->build_once = 1; // but when this fix says so
}

/** Leave it to LAMMPS again to say when neighbour lists are built. */
void FixDiffusim::stop_watching() {
    if (watches_ && neighbor) // which is gone when LAMMPS ends on an error
        neighbor->build_once = 0;
    watches_ = false;
    next_reneighbor = -1;
}

/** Whether an atom has moved by more than half the skin since neighbour lists were built. */
bool FixDiffusim::have_moved() const {
    const double half = 0.5 * neighbor->skin * units_.length, third = half / std::sqrt(3.0);
    const double *now = held_, *before = listed_at_.data();
    std::uint64_t signs = 0; // of what is left of a third; compilers make vectors of it
    for (std::size_t i = 0; i < n_values_; i++) {
        const double left = third - std::abs(now[i] - before[i]);
        std::uint64_t bits;
        std::memcpy(&bits, &left, sizeof bits);
        signs |= bits;
    }
    if (signs >> 63 == 0)
        return false;
    for (std::size_t i = 0; i < n_values_; i += 3) {
        const double d[3] = {now[i] - before[i], now[i + 1] - before[i + 1], now[i + 2] - before[i + 2]};
        if (d[0] * d[0] + d[1] * d[1] + d[2] * d[2] > half * half)
            return true;
    }
    return false;
}

/** Whether nobody can have moved atoms, nor put forces on them, since the last step. */
bool FixDiffusim::is_alone() const {
    return was_alone_ && modify->nfix == 1 && update->ntimestep > update->firststep + 1;
}

void FixDiffusim::post_neighbor() {
    attempt(FLERR, [&] {
        expect_setup();
        if (neighborhood_)
            return locate();
        molecules_->locate();
        listed_at_.assign(held_, held_ + n_values_);
    });
}

/** LAMMPS calls fixes that it has not set up where a run skips that. */
void FixDiffusim::expect_setup() const {
    if (!is_set_up_)
        throw std::runtime_error("this fix was defined after the last run was set up; leave 'pre no' out of this run");
}

/** Take over LAMMPS's positions where they are others than the core's, and read the forces if `with_forces`; returns
   whether there are any. Collective. */
bool FixDiffusim::pull(bool with_forces) {
    std::vector<double>* forces = with_forces ? &forces_ : nullptr;
    if (update->whichflag == 0) // between runs atoms may be anywhere
        molecules_->locate();
    else if (is_alone())
        return false;
    else if (molecules_->untouched()) // on the only rank
        return with_forces && molecules_->any_force() && molecules_->gather(nullptr, forces);
    const bool any_force = molecules_->gather(&positions_, forces, has_velocities() ? &velocities_ : nullptr);
    const double box = this->box();
    const bool same = std::equal(positions_.begin(), positions_.end(), held_,
                                 [box](double x, double held) { return is_same(x, held, box); });
    if (!same) {
        molecules_->check_whole(positions_);
        give_positions(positions_);
    }
    if (has_velocities())
        pull_velocities();
    return any_force;
}

/** Take over LAMMPS's velocities where they are others than the core's; but the core's first ones, drawn at the
   temperature, are there to be used by a script that sets none. Collective. */
void FixDiffusim::pull_velocities() {
    const bool none = std::all_of(velocities_.begin(), velocities_.end(), [](double v) { return v == 0; });
    const bool same = std::equal(velocities_.begin(), velocities_.end(), held_velocities_.begin(),
                                 [](double v, double held) { return is_same(v, held, 0); });
    if (are_velocities_drawn_ && none)
        molecules_->scatter_velocities(held_velocities_.data());
    else if (!same)
        give_velocities(velocities_);
    are_velocities_drawn_ = false;
}

/** Put the core's positions into LAMMPS's atoms. Collective. */
void FixDiffusim::push() {
    take_positions();
    molecules_->scatter(held_, !is_alone());
    if (has_velocities())
        molecules_->scatter_velocities(held_velocities_.data());
    if (watches_ && have_moved())
        next_reneighbor = update->ntimestep;
}

/** Its longest edge, nm. */
double FixDiffusim::box() const { return std::max({domain->prd[0], domain->prd[1], domain->prd[2]}) * units_.length; }

// ---- periodic models: every rank evaluates and moves its own atoms, and keeps their positions with them
// ----------------

/** Learn which atoms are here now. Collective. */
void FixDiffusim::locate() {
    neighborhood_->locate();
    keep();
    put();
}

/** Take over LAMMPS's positions and velocities where they are others than those kept. */
void FixDiffusim::keep() {
    const double box = this->box();
    for (int i = 0; i < atom->nlocal; i++) {
        if (!(atom->mask[i] & groupbit))
            continue;
        double found[6];
        domain->unmap(atom->x[i], atom->image[i], found);
        for (int c = 0; c < 3; c++) {
            found[c] *= units_.length;
            found[3 + c] = has_velocities() ? atom->v[i][c] * units_.velocity() : 0;
        }
        for (int first = 0; first < n_kept_; first += 3) {
            double* kept = this->kept(i) + first;
            const auto same = [&](double x, double held) { return is_same(x, held, first == 0 ? box : 0); };
            if (!std::equal(found + first, found + first + 3, kept, same)) // as not a number is not
                std::copy_n(found + first, 3, kept);
        }
    }
}

/** Evaluate at the present positions. Collective. */
void FixDiffusim::evaluate() {
    keep();
    double* position = neighborhood_->positions().data();
    for (const int i : neighborhood_->indices())
        position = std::copy_n(kept(i), 3, position);
    const std::string failure =
        failure_of([&] { neighborhood_->evaluate(evflag, [this](int size) { comm->forward_comm(this, size); }); });
    if (!failure.empty()) // perhaps on this rank only
        error->one(FLERR, STYLE + (": " + failure));
    const double unit = energy_unit(*model_) / units_.energy;
    const std::vector<double>&energies = neighborhood_->energies(), &virials = neighborhood_->virials();
    energy_ = unit * std::accumulate(energies.begin(), energies.end(), 0.0);
    for (std::size_t k = 0; evflag && k < energies.size(); k++)
        for (int c = 0; c < 6; c++) {
            const double v = unit * virial_component(&virials[9 * k], c);
            if (vflag_global)
                virial[c] += v;
            if (vflag_atom)
                vatom[neighborhood_->indices()[k]][c] += v;
        }
}

/** Take a step with this rank's atoms. */
void FixDiffusim::move() {
    keep();
    positions_.clear();
    velocities_.clear();
    for (const int i : neighborhood_->indices()) {
        positions_.insert(positions_.end(), kept(i), kept(i) + 3);
        velocities_.insert(velocities_.end(), kept(i) + 3, kept(i) + n_kept_);
    }
    const std::string failure = failure_of([&] { neighborhood_->step(step_, positions_, velocities_); });
    if (!failure.empty()) // perhaps on this rank only
        error->one(FLERR, STYLE + (": " + failure));
    step_++;
    for (std::size_t k = 0; k < neighborhood_->n_owned(); k++) {
        const int i = neighborhood_->indices()[k];
        std::copy_n(&positions_[3 * k], 3, kept(i));
        if (has_velocities())
            std::copy_n(&velocities_[3 * k], 3, kept(i) + 3);
    }
    put();
}

/** Put what is kept into LAMMPS's atoms, which round it in their own ways when they go to where they belong. */
void FixDiffusim::put() {
    for (const int i : neighborhood_->indices()) {
        double shift[3] = {};
        domain->unmap_inv(shift, atom->image[i]);
        for (int c = 0; c < 3; c++) {
            atom->x[i][c] = kept(i)[c] / units_.length + shift[c];
            if (has_velocities())
                atom->v[i][c] = kept(i)[3 + c] / units_.velocity();
        }
    }
}

void FixDiffusim::grow_arrays(int n_max) {
    kept_.resize(static_cast<std::size_t>(n_kept_) * static_cast<std::size_t>(n_max),
                 std::numeric_limits<double>::quiet_NaN());
}

void FixDiffusim::copy_arrays(int from, int to, int) { std::copy_n(kept(from), n_kept_, kept(to)); }

void FixDiffusim::set_arrays(int i) { std::fill_n(kept(i), n_kept_, std::numeric_limits<double>::quiet_NaN()); }

int FixDiffusim::pack_exchange(int i, double* buffer) {
    std::copy_n(kept(i), n_kept_, buffer);
    return n_kept_;
}

int FixDiffusim::unpack_exchange(int i, double* buffer) {
    std::copy_n(buffer, n_kept_, kept(i));
    return n_kept_;
}

void FixDiffusim::initial_integrate(int) {
    attempt(FLERR, [&] {
        expect_setup();
        if (neighborhood_)
            return move();
        follow_lambda();
        const bool biased = pull(true);
        std::string failure = failure_of([&] { // then the core has gone back to the last good frame
            if (biased)
                simulation_->step_biased(share(forces_));
            else
                simulation_->step(1);
        });
        if (!share_sizes_.empty())
            failure = first_failure(failure, world);
        push();
        if (!failure.empty())
            throw std::runtime_error(failure + WHO);
    });
}

void FixDiffusim::post_force(int vflag) {
    v_init(vflag);
    if (!evflag && !neighborhood_)
        return;
    attempt(FLERR, [&] {
        expect_setup();
        if (neighborhood_)
            return evaluate();
        pull();
        std::vector<double> scores(n_values_);
        model().evaluate(held_, molecules_->n_molecules(), scores.data());
        const double unit = energy_unit(*model_) / units_.energy;
        for (const Molecules::Atom& a : molecules_->local()) {
            const double *x = &held_[3 * a.place], *s = &scores[3 * a.place];
            double v[6] = {x[0] * s[0], x[1] * s[1], x[2] * s[2], x[0] * s[1], x[0] * s[2], x[1] * s[2]};
            for (double& component : v)
                component *= unit;
            v_tally(a.index, v);
        }
    });
}

void FixDiffusim::reset_dt() {
    if (is_set_up_)
        attempt(FLERR, [&] { create(); });
}

void FixDiffusim::reset_target(double temperature) {
    temperature_ = temperature;
    if (is_set_up_)
        attempt(FLERR, [&] { create(); });
}

void* FixDiffusim::extract(const char* name, int& dimension) {
    dimension = 0;
    return std::strcmp(name, "t_target") == 0 ? &temperature_ : nullptr;
}

// ---- restart files: the number of the next noise, and the positions to the last bit ------------------------------

void FixDiffusim::write_restart(FILE* file) {
    if (comm->me != 0)
        return;
    std::vector<double> list = {RESTART_LAYOUT, 0, static_cast<double>(n_values_),
                                static_cast<double>(held_velocities_.size())};
    if (is_set_up_)
        list[1] = static_cast<double>(neighborhood_ ? step_ : simulation_->step_count());
    list.insert(list.end(), held_, held_ + n_values_);
    list.insert(list.end(), held_velocities_.begin(), held_velocities_.end());
    const int size = static_cast<int>(list.size() * sizeof(double));
    std::fwrite(&size, sizeof size, 1, file);
    std::fwrite(list.data(), sizeof(double), list.size(), file);
}

void FixDiffusim::restart(char* buffer) {
    const double* list = reinterpret_cast<const double*>(buffer);
    if (list[0] != RESTART_LAYOUT)
        error->all(FLERR,
                   STYLE + (": the restart file was written by another version of diffusim (layout " + number(list[0]) +
                            ", expected " + number(RESTART_LAYOUT) + "); start from a data file"));
    restored_ = true;
    restored_step_ = static_cast<std::uint64_t>(list[1]);
    const double *positions = list + 4, *velocities = positions + static_cast<std::size_t>(list[2]);
    restored_positions_.assign(positions, velocities);
    restored_velocities_.assign(velocities, velocities + static_cast<std::size_t>(list[3]));
}

/** Of each atom of a periodic model what is kept, behind the number of numbers. */
int FixDiffusim::pack_restart(int i, double* buffer) {
    buffer[0] = n_kept_ + 1;
    std::copy_n(kept(i), n_kept_, buffer + 1);
    return n_kept_ + 1;
}

void FixDiffusim::unpack_restart(int i, int nth) {
    const double* from = atom->extra[i];
    for (int fix = 0; fix < nth; fix++)
        from += static_cast<int>(*from);
    set_arrays(i); // the restarted run may have velocities that the file has not
    std::copy_n(from + 1, std::min(n_kept_, static_cast<int>(*from) - 1), kept(i));
}

// ---- outputs ----------------------------------------------------------------------------------------------------

double FixDiffusim::compute_scalar() {
    double energy = 0;
    if (neighborhood_)
        MPI_Allreduce(&energy_, &energy, 1, MPI_DOUBLE, MPI_SUM, world);
    else if (simulation_)
        attempt(FLERR, [&] {
            pull();
            std::vector<double> scores(n_values_), energies(molecules_->n_molecules());
            model().evaluate(held_, energies.size(), scores.data(), energies.data());
            energy = std::accumulate(energies.begin(), energies.end(), 0.0);
            energy *= energy_unit(*model_) / units_.energy;
        });
    return energy;
}

double FixDiffusim::compute_vector(int i) {
    double value = 0;
    if (is_set_up_)
        attempt(FLERR, [&] { value = quantity(i); });
    return value;
}

double FixDiffusim::quantity(int i) {
    const Units& units = units_;
    const diffusim_statistics_t now = statistics();
    double largest = 0;
    switch (i) {
    case 0:
        return compute_scalar();
    case 1:
        if (neighborhood_)
            throw std::runtime_error("output 2, the configurational temperature, is not known for periodic models");
        pull();
        return model().configurational_temperature(held_, molecules_->n_molecules()) / units.temperature;
    case 2:
        MPI_Allreduce(&now.largest_score, &largest, 1, MPI_DOUBLE, MPI_MAX, world);
        return largest * units.length;
    case 3:
        return static_cast<double>(neighborhood_ ? step_ : now.steps);
    case 4:
        return now.spring * units.length * units.length;
    case 5:
        return now.time_step / units.time;
    case 6:
        return energy_unit(*model_) / units.energy * over_replicas([this] {
                   double sum = 0;
                   if (ends_[1]) {
                       pull();
                       const std::vector<double> ends = simulation_->component_energies();
                       for (std::size_t i = 0; i < ends.size(); i += 2)
                           sum += ends[i + 1] - ends[i];
                   }
                   return sum;
               });
    default:
        if (neighborhood_)
            return 0;
        return over_replicas([&] { return now.acceptance * static_cast<double>(n_replicas_); }) /
               over_replicas([&] { return static_cast<double>(n_replicas_); });
    }
}

/** The sum, over all replicas, of what `sum` gives for those of this rank. Collective. */
template <class Sum>
double FixDiffusim::over_replicas(Sum&& sum) const {
    const double mine = sum();
    double all = mine;
    if (!share_sizes_.empty())
        MPI_Allreduce(&mine, &all, 1, MPI_DOUBLE, MPI_SUM, world);
    return all;
}

} // namespace diffusim_lammps
