/* SPDX-License-Identifier: GPL-2.0-only
 *
 * fix ID group diffusim temp seed model FILE keyword values ...
 *
 * Overdamped dynamics under a learned score, in place of fix langevin + fix nve (theory 2, 6, 10). */

#ifndef DIFFUSIM_LAMMPS_FIX_DIFFUSIM_H
#define DIFFUSIM_LAMMPS_FIX_DIFFUSIM_H

#include "fix.h"
#include "molecules.h"
#include "neighborhood.h"
#include <memory>
#include <string>
#include <vector>

namespace diffusim_lammps {

/**
 * Moves the molecules of its group by the score of a model. The model replaces the force field: the total force on the
 * atoms, of whatever other styles and fixes compute, acts on top of it as a bias. Velocities have no meaning and are
 * left alone, but with the adapter that has some.
 *
 * Every rank holds all molecules of the group and takes the same steps, so the trajectory does not depend on the number
 * of ranks. (Periodic models are shared out over the ranks instead: Neighborhood. The fix keeps the positions of each
 * atom with it.) The core's positions, in nm and unwrapped, are the ones that count; LAMMPS's are rounded copies of
 * them, and are taken over where they differ by more than that.
 */
class __attribute__((visibility("default"))) FixDiffusim : public LAMMPS_NS::Fix {
public:
    FixDiffusim(LAMMPS_NS::LAMMPS* lammps, int narg, char** arg);
    ~FixDiffusim() override;

    int setmask() override;
    void init() override;
    void setup_post_neighbor() override;
    void setup(int vflag) override;
    void post_neighbor() override;
    void initial_integrate(int vflag) override;
    void post_force(int vflag) override;
    void post_run() override { stop_watching(); }
    void reset_dt() override;
    void reset_target(double temperature) override;
    void write_restart(FILE* file) override;
    void restart(char* buffer) override;
    void* extract(const char* name, int& dimension) override;
    int pack_forward_comm(int n, int* list, double* buffer, int, int*) override {
        return neighborhood_->pack(n, list, buffer);
    }
    void unpack_forward_comm(int n, int first, double* buffer) override { neighborhood_->unpack(n, first, buffer); }
    void grow_arrays(int n_max) override;
    void copy_arrays(int from, int to, int) override;
    void set_arrays(int i) override;
    int pack_exchange(int i, double* buffer) override;
    int unpack_exchange(int i, double* buffer) override;
    int pack_restart(int i, double* buffer) override;
    void unpack_restart(int i, int nth) override;
    int size_restart(int) override { return n_kept_ + 1; }
    int maxsize_restart() override { return n_kept_ + 1; }
    /** Learned energy of all molecules. */
    double compute_scalar() override;
    /** Learned energy, configurational temperature, largest |score| so far, steps taken, spring, time of a step,
       derivative of the energy by the lambda of a blend, fraction of accepted proposals. */
    double compute_vector(int i) override;

private:
    /** Run what may fail in the core, on all ranks alike; a failure is an error of LAMMPS. */
    template <class Body>
    void attempt(const char* file, int line, Body&& body) const;
    /** Learn what is wanted, in the core's units; gives the script's. */
    Units parse(int narg, char** arg);
    diffusim::simulation_options options() const;
    void refuse_what_cannot_run() const;
    bool shares_atoms(const std::function<bool(int)>& also) const;
    void expect_setup() const;
    void create();
    std::string advice() const;
    void report() const;
    void stop_watching();
    bool have_moved() const;
    bool is_alone() const;
    bool pull(bool with_forces = false);
    void push();
    void give_positions(const std::vector<double>& positions);
    void give_velocities(const std::vector<double>& velocities);
    void pull_velocities();
    bool has_velocities() const { return keywords_.adapter == DIFFUSIM_LANGEVIN; }
    void take_positions();
    const std::vector<double>& share(const std::vector<double>& all);
    double quantity(int i);
    diffusim_statistics_t statistics() const;
    double box() const;
    void locate();
    void keep();
    void put();
    void evaluate();
    void move();
    double* kept(int i) { return &kept_[static_cast<std::size_t>(n_kept_) * static_cast<std::size_t>(i)]; }
    void follow_lambda();
    const diffusim::model& model() const { return at_lambda_ ? *at_lambda_ : *model_; }
    template <class Sum>
    double over_replicas(Sum&& sum) const;

    double temperature_; // in the script's unit, as other fixes read it
    unsigned long long seed_;
    std::string path_;
    std::string device_, matmul_;
    diffusim::simulation_options keywords_; // in the core's units
    bool uses_time_step_ = false;
    std::vector<std::string> elements_;

    std::unique_ptr<diffusim::model> model_;
    // The two models of a blend and the blend as it is now; what its lambda should be, or the variable that says so.
    std::unique_ptr<diffusim::model> ends_[2], at_lambda_;
    std::string blend_path_, lambda_variable_;
    double wanted_lambda_ = 0;
    Units units_ = {};                           // of the input script
    std::unique_ptr<Molecules> molecules_;       // one of the two
    std::unique_ptr<Neighborhood> neighborhood_; // for a periodic model
    bool is_set_up_ = false;
    std::unique_ptr<diffusim::simulation> simulation_;
    // Of all molecules: LAMMPS's positions and the core's, nm; forces, kJ/(mol nm).
    std::vector<double> positions_, gathered_, forces_;
    std::vector<double> velocities_, held_velocities_; // LAMMPS's and the core's, nm/ps
    bool are_velocities_drawn_ = false;                // and LAMMPS has not seen them yet
    const double* held_ = nullptr;              // the core's positions, in place where this rank moves all molecules
    std::size_t n_values_ = 0, n_replicas_ = 0; // numbers of all molecules; molecules that this rank moves

    // Whether nobody else was there to move atoms or to put forces on them when the run was set up.
    bool was_alone_ = false;
    // Whether this fix says when neighbour lists are built, and where the molecules were when they last were, nm.
    bool watches_ = false;
    std::vector<double> listed_at_;

    // Which of these numbers belong to each rank's molecules; empty where every rank moves all of them.
    std::vector<int> share_sizes_, share_starts_;
    std::vector<double> share_;

    // With a periodic model: the next step, this rank's share of the energy, and the core's positions (nm, unwrapped)
    // and velocities (nm/ps, where there are some) of each of its atoms, so many numbers.
    std::uint64_t step_ = 0;
    double energy_ = 0;
    std::vector<double> kept_;
    int n_kept_ = 0;

    // From a restart file, until there is a simulation to continue.
    bool restored_ = false;
    std::uint64_t restored_step_ = 0;
    std::vector<double> restored_positions_, restored_velocities_;
};

} // namespace diffusim_lammps

#endif
