/* diffusim: molecular dynamics from a learned score. MIT licence.
 *
 * C++17 over diffusim.h: handles that free themselves, failures as exceptions. Header-only, so it has no ABI of its
 * own: compile it with any compiler and link the C library. Shapes, units and errors are those of the functions in
 * diffusim.h.
 *
 *     diffusim::model model = diffusim::model::load("ala2.safetensors");
 *     diffusim::simulation_options options;
 *     options.spring = 1.67e6; // 1/nm²
 *     options.seed = 48291;
 *     diffusim::simulation simulation(model, options);
 *     simulation.step(100000);
 *     std::vector<double> positions = simulation.positions(); // [n_replicas][n_particles][3], nm
 */

#ifndef DIFFUSIM_HPP
#define DIFFUSIM_HPP

#include "diffusim.h"

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace diffusim {

/// A call that failed: the library's sentence, and its status.
class error : public std::runtime_error {
public:
    error(diffusim_status_t status, const char* message) : std::runtime_error(message), status_(status) {}

    /// One of DIFFUSIM_ERROR_*.
    diffusim_status_t status() const noexcept { return status_; }

private:
    diffusim_status_t status_;
};

/// Throw `error` unless `status` is DIFFUSIM_OK.
inline void check(diffusim_status_t status) {
    if (status != DIFFUSIM_OK)
        throw error(status, diffusim_last_error());
}

/// Throw unless the library that was loaded has everything this header declares.
inline void check_abi() {
    if (diffusim_abi_version() < DIFFUSIM_ABI_VERSION) {
        const std::string message = std::string("libdiffusim ") + diffusim_version() + " has ABI version " +
                                    std::to_string(diffusim_abi_version()) +
                                    ", but this program was compiled for version " +
                                    std::to_string(DIFFUSIM_ABI_VERSION) + "; install a newer libdiffusim";
        throw error(DIFFUSIM_ERROR_UNSUPPORTED, message.c_str());
    }
}

/// What a device such as "cpu" or "cuda:0" is, in words; throws the reason if it cannot be used here.
inline std::string describe_device(const std::string& name) {
    const char* description = nullptr;
    check(diffusim_device_describe(name.c_str(), &description));
    return description;
}

/// diffusim_sample_options_t with its defaults filled in.
struct sample_options : diffusim_sample_options_t {
    sample_options() { check(diffusim_sample_options_init(this, sizeof(diffusim_sample_options_t))); }
};

/// A score model: immutable, safe to use from several threads. Move-only.
class model {
public:
    /// Read a model file. `noise_level` in nm; 0 = the level the file names for simulations.
    static model load(const std::string& path, double noise_level = 0) {
        const diffusim_model_options_t options = options_with(noise_level);
        diffusim_model_t* handle = nullptr;
        check(diffusim_model_load(path.c_str(), &options, &handle));
        return model(handle);
    }

    /// A model file in memory; messages call it `name`.
    static model from_bytes(const void* data, std::size_t size, double noise_level = 0,
                            const std::string& name = "model") {
        diffusim_model_options_t options = options_with(noise_level);
        options.name = name.c_str();
        diffusim_model_t* handle = nullptr;
        check(diffusim_model_from_bytes(data, size, &options, &handle));
        return model(handle);
    }

    /// An analytic model from its JSON description.
    static model from_json(const std::string& metadata) {
        diffusim_model_t* handle = nullptr;
        check(diffusim_model_from_json(metadata.c_str(), &handle));
        return model(handle);
    }

    /// A model around `function`; `user_data` must outlive the model and its simulations.
    static model callback(std::size_t n_particles, diffusim_score_callback_t function, void* user_data,
                          double training_temperature) {
        diffusim_model_t* handle = nullptr;
        check(diffusim_model_callback(n_particles, function, user_data, training_temperature, &handle));
        return model(handle);
    }

    /// This model, moving only `particles` (n_particles() indices) of a system of `n_particles_total`.
    model subset(std::size_t n_particles_total, const std::vector<std::size_t>& particles) const {
        if (particles.size() != n_particles()) {
            const std::string message = std::to_string(particles.size()) +
                                        " particles were named, but the model moves " + std::to_string(n_particles()) +
                                        "; name each of them once, in the model's order";
            throw error(DIFFUSIM_ERROR_MISMATCH, message.c_str());
        }
        diffusim_model_t* handle = nullptr;
        check(diffusim_model_subset(get(), n_particles_total, particles.data(), &handle));
        return model(handle);
    }

    /// E = (1−λ)E_a + λE_b of two models of the same particles, `lambda` 0 to 1.
    static model blend(const model& a, const model& b, double lambda) {
        diffusim_model_t* handle = nullptr;
        check(diffusim_model_blend(a.get(), b.get(), lambda, &handle));
        return model(handle);
    }

    /// What messages call the model.
    std::string name() const {
        const char* name = nullptr;
        check(diffusim_model_name(get(), &name));
        return name;
    }

    std::size_t n_particles() const noexcept { return diffusim_model_n_particles(get()); }

    /// JSON.
    std::string metadata() const {
        const char* json = nullptr;
        check(diffusim_model_metadata(get(), &json));
        return json;
    }

    std::string sha256() const {
        const char* hex = nullptr;
        check(diffusim_model_sha256(get(), &hex));
        return hex;
    }

    /// The model file.
    std::string bytes() const {
        const void* data = nullptr;
        std::size_t size = 0;
        check(diffusim_model_bytes(get(), &data, &size));
        return std::string(static_cast<const char*>(data), size);
    }

    /// K
    double training_temperature() const {
        double temperature = 0;
        check(diffusim_model_training_temperature(get(), &temperature));
        return temperature;
    }

    /// amu
    std::vector<double> masses() const {
        std::vector<double> masses(n_particles());
        check(diffusim_model_masses(get(), masses.data(), masses.size()));
        return masses;
    }

    /// [n_frames][n_particles][3], nm; may be empty.
    std::vector<double> start_positions() const {
        std::size_t n_frames = 0;
        const double* positions = nullptr;
        check(diffusim_model_start_positions(get(), &n_frames, &positions));
        return n_frames == 0 ? std::vector<double>()
                             : std::vector<double>(positions, positions + n_frames * n_particles() * 3);
    }

    /// Throw, naming the first particle whose mass (amu) is not its own.
    void check_masses(const std::vector<double>& masses) const {
        check(diffusim_model_check_masses(get(), masses.data(), masses.size()));
    }

    /// Throw, naming the first particle whose element (symbol; nullptr = any) is not its own. `names` may be empty.
    void check_particles(const std::vector<const char*>& elements, const std::vector<const char*>& names = {}) const {
        check(diffusim_model_check_particles(get(), elements.size(), elements.data(),
                                             names.size() == elements.size() ? names.data() : nullptr));
    }

    /// Scores (1/nm) and, unless `energies` is nullptr, energies (kT₀) of `n_frames` frames.
    void evaluate(const double* positions, std::size_t n_frames, double* scores, double* energies = nullptr) const {
        check(diffusim_model_evaluate(get(), positions, n_frames, scores, energies));
    }

    /// The same in a periodic cell, [3][3], rows are lattice vectors, nm, or nullptr; and virials [n_frames][3][3],
    /// kT₀.
    void evaluate(const double* cell, const double* positions, std::size_t n_frames, double* scores, double* energies,
                  double* virials) const {
        check(diffusim_model_evaluate_in_cell(get(), cell, positions, n_frames, scores, energies, virials));
    }

    /// E_a and E_b of a blend, [n_frames][2], kT₀; `cell` [3][3], nm, or nullptr.
    void component_energies(const double* positions, std::size_t n_frames, double* energies,
                            const double* cell = nullptr) const {
        check(diffusim_model_component_energies(get(), cell, positions, n_frames, energies));
    }

    /// Whether the model lives in a periodic cell.
    bool is_periodic() const noexcept { return diffusim_model_is_periodic(get()) != 0; }

    /// A transferable model for other particles: element symbols or names of beads, in order.
    model for_species(const std::vector<const char*>& species) const {
        diffusim_model_t* handle = nullptr;
        check(diffusim_model_for_species(get(), species.data(), species.size(), &handle));
        return model(handle);
    }

    /// 1/nm²
    double largest_curvature(const double* positions, std::size_t n_frames) const {
        double curvature = 0;
        check(diffusim_model_largest_curvature(get(), positions, n_frames, &curvature));
        return curvature;
    }

    /// 1/ps; masses in amu, nullptr = the model's
    double largest_frequency(const double* masses, const double* positions, std::size_t n_frames) const {
        double frequency = 0;
        check(diffusim_model_largest_frequency(get(), masses, positions, n_frames, &frequency));
        return frequency;
    }

    /// K
    double configurational_temperature(const double* positions, std::size_t n_frames) const {
        double temperature = 0;
        check(diffusim_model_configurational_temperature(get(), positions, n_frames, &temperature));
        return temperature;
    }

    /// `n_frames` equilibrium frames by reverse diffusion, `[n_frames][n_particles][3]` in nm.
    std::vector<double> sample(std::size_t n_frames, const sample_options& options = {}) const {
        std::vector<double> positions(3 * n_frames * n_particles());
        check(diffusim_model_sample(get(), &options, positions.data(), n_frames));
        return positions;
    }

    /// The handle, still owned by this object.
    const diffusim_model_t* get() const noexcept { return handle_.get(); }

private:
    struct deleter {
        void operator()(diffusim_model_t* handle) const noexcept { diffusim_model_free(handle); }
    };

    explicit model(diffusim_model_t* handle) : handle_(handle) {}

    static diffusim_model_options_t options_with(double noise_level) {
        diffusim_model_options_t options;
        check(diffusim_model_options_init(&options, sizeof options));
        options.noise_level = noise_level;
        return options;
    }

    std::unique_ptr<diffusim_model_t, deleter> handle_;
};

/// diffusim_simulation_options_t with its defaults filled in.
struct simulation_options : diffusim_simulation_options_t {
    simulation_options() { check(diffusim_simulation_options_init(this, sizeof(diffusim_simulation_options_t))); }
};

/// Replicas of one system, moved by a model. Belongs to one thread at a time. Move-only.
class simulation {
public:
    explicit simulation(const model& model, const diffusim_simulation_options_t& options = simulation_options())
        : n_values_(options.n_replicas * model.n_particles() * 3), n_replicas_(options.n_replicas) {
        diffusim_simulation_t* handle = nullptr;
        check(diffusim_simulation_create(model.get(), &options, &handle));
        handle_.reset(handle);
    }

    /// New options; positions and step count stay, and so must the number of replicas.
    void reconfigure(const diffusim_simulation_options_t& options) {
        check(diffusim_simulation_reconfigure(get(), &options));
    }

    /// [n_replicas][n_particles][3], nm
    void set_positions(const std::vector<double>& positions) {
        check(diffusim_simulation_set_positions(get(), positions.data(), DIFFUSIM_FLOAT64, positions.size()));
    }

    /// [n_replicas][n_particles][3], nm
    std::vector<double> positions() const {
        std::vector<double> positions(n_values_);
        get_positions(positions);
        return positions;
    }

    /// Positions into a vector that has their size already.
    void get_positions(std::vector<double>& positions) const {
        check(diffusim_simulation_get_positions(get(), positions.data(), DIFFUSIM_FLOAT64, positions.size()));
    }

    /// Positions in place: they live as long as the simulation and change when it does.
    const double* view_positions() const {
        const double* positions = nullptr;
        check(diffusim_simulation_view_positions(get(), &positions));
        return positions;
    }

    /// [n_replicas][n_particles][3], nm/ps; with DIFFUSIM_LANGEVIN.
    void set_velocities(const std::vector<double>& velocities) {
        check(diffusim_simulation_set_velocities(get(), velocities.data(), DIFFUSIM_FLOAT64, velocities.size()));
    }

    /// [n_replicas][n_particles][3], nm/ps; with DIFFUSIM_LANGEVIN.
    std::vector<double> velocities() const {
        std::vector<double> velocities(n_values_);
        get_velocities(velocities);
        return velocities;
    }

    /// Velocities into a vector that has their size already.
    void get_velocities(std::vector<double>& velocities) const {
        check(diffusim_simulation_get_velocities(get(), velocities.data(), DIFFUSIM_FLOAT64, velocities.size()));
    }

    /// New velocities from the Maxwell–Boltzmann density of the temperature.
    void draw_velocities() { check(diffusim_simulation_draw_velocities(get())); }

    /// [n_replicas]: what burn-in has made of the effective step.
    std::vector<double> step_factors() const {
        std::vector<double> factors(n_replicas_);
        check(diffusim_simulation_get_step_factors(get(), factors.data(), factors.size()));
        return factors;
    }

    /// The periodic cell, [3][3], rows are lattice vectors, nm; nullptr for none.
    void set_cell(const double* cell) { check(diffusim_simulation_set_cell(get(), cell)); }

    /// Take `n_steps` steps. If it throws because a score was not finite, the last good frame is in place.
    void step(std::uint64_t n_steps) { check(diffusim_simulation_step(get(), n_steps)); }

    /// Take one step under the model and `forces` [n_replicas][n_particles][3], kJ/(mol nm).
    void step_biased(const std::vector<double>& forces) {
        check(diffusim_simulation_step_biased(get(), forces.data(), forces.size()));
    }

    /// Start steps on the GPU's stream and do not wait; with forces, one step under those at device_forces().
    void enqueue(std::uint64_t n_steps, bool with_forces = false) {
        check(diffusim_simulation_enqueue(get(), n_steps, with_forces));
    }

    /// Wait for enqueued steps; throws if they failed.
    void synchronize() { check(diffusim_simulation_synchronize(get())); }

    /// CUdeviceptr of the positions, double [n_replicas][n_particles][3], nm.
    std::uint64_t device_positions() {
        std::uint64_t place = 0;
        check(diffusim_simulation_device_positions(get(), &place));
        return place;
    }

    /// CUdeviceptr of the velocities, double [n_replicas][n_particles][3], nm/ps; with DIFFUSIM_LANGEVIN.
    std::uint64_t device_velocities() {
        std::uint64_t place = 0;
        check(diffusim_simulation_device_velocities(get(), &place));
        return place;
    }

    /// CUdeviceptr of the forces of enqueue(), double [n_replicas][n_particles][3], kJ/(mol nm).
    std::uint64_t device_forces() {
        std::uint64_t place = 0;
        check(diffusim_simulation_device_forces(get(), &place));
        return place;
    }

    /// How steps are taken, and on a GPU how long the last ones took.
    std::string device_status() const {
        const char* status = nullptr;
        check(diffusim_simulation_device_status(get(), &status));
        return status;
    }

    /// Number of the next step.
    std::uint64_t step_count() const {
        std::uint64_t step = 0;
        check(diffusim_simulation_get_step(get(), &step));
        return step;
    }

    void set_step_count(std::uint64_t step) { check(diffusim_simulation_set_step(get(), step)); }

    /// [n_replicas][n_particles][3], 1/nm
    std::vector<double> scores() const {
        std::vector<double> scores(n_values_);
        check(diffusim_simulation_evaluate(get(), scores.data(), scores.size(), nullptr));
        return scores;
    }

    /// [n_replicas], kT₀
    std::vector<double> energies() const {
        std::vector<double> scores(n_values_), energies(n_replicas_);
        check(diffusim_simulation_evaluate(get(), scores.data(), scores.size(), energies.data()));
        return energies;
    }

    /// λ of a blend, 0 to 1.
    double lambda() const {
        double lambda = 0;
        check(diffusim_simulation_get_lambda(get(), &lambda));
        return lambda;
    }

    void set_lambda(double lambda) { check(diffusim_simulation_set_lambda(get(), lambda)); }

    /// E_a and E_b of a blend, [n_replicas][2], kT₀
    std::vector<double> component_energies() const {
        std::vector<double> energies(2 * n_replicas_);
        check(diffusim_simulation_component_energies(get(), energies.data(), energies.size()));
        return energies;
    }

    diffusim_statistics_t statistics() const {
        diffusim_statistics_t statistics = {};
        statistics.struct_size = sizeof statistics;
        check(diffusim_simulation_statistics(get(), &statistics));
        return statistics;
    }

    /// All that is needed to continue bit for bit.
    std::vector<unsigned char> checkpoint() const {
        std::size_t size = 0;
        check(diffusim_simulation_checkpoint_size(get(), &size));
        std::vector<unsigned char> data(size);
        check(diffusim_simulation_checkpoint(get(), data.data(), data.size()));
        return data;
    }

    void restore(const std::vector<unsigned char>& data) {
        check(diffusim_simulation_restore(get(), data.data(), data.size()));
    }

    /// The handle, still owned by this object.
    diffusim_simulation_t* get() const noexcept { return handle_.get(); }

private:
    struct deleter {
        void operator()(diffusim_simulation_t* handle) const noexcept { diffusim_simulation_free(handle); }
    };

    std::unique_ptr<diffusim_simulation_t, deleter> handle_;
    std::size_t n_values_;
    std::size_t n_replicas_;
};

/// diffusim_evaluator_options_t with its defaults filled in.
struct evaluator_options : diffusim_evaluator_options_t {
    evaluator_options() { check(diffusim_evaluator_options_init(this, sizeof(diffusim_evaluator_options_t))); }
};

/// Scores and energies of frames that lie on a GPU. Belongs to one thread at a time. Move-only.
class evaluator {
public:
    explicit evaluator(const model& model, const diffusim_evaluator_options_t& options = evaluator_options())
        : n_frames_(options.n_frames) {
        diffusim_evaluator_t* handle = nullptr;
        check(diffusim_evaluator_create(model.get(), &options, &handle));
        handle_.reset(handle);
    }

    /// The periodic cell of all frames, [3][3], rows are lattice vectors, nm; nullptr for none.
    void set_cell(const double* cell) { check(diffusim_evaluator_set_cell(get(), cell)); }

    /// λ of a blend, 0 to 1, from now on.
    void set_lambda(double lambda) { check(diffusim_evaluator_set_lambda(get(), lambda)); }

    /// CUdeviceptr of the frames, double [n_frames][n_particles][3], nm.
    std::uint64_t device_positions() { return device(diffusim_evaluator_device_positions); }

    /// CUdeviceptr of their scores, double [n_frames][n_particles][3], 1/nm.
    std::uint64_t device_scores() { return device(diffusim_evaluator_device_scores); }

    /// CUdeviceptr of their energies, double [n_frames], kT₀.
    std::uint64_t device_energies() { return device(diffusim_evaluator_device_energies); }

    /// Start the evaluation of the frames that lie on the device.
    void enqueue(bool with_energies) { check(diffusim_evaluator_enqueue(get(), with_energies)); }

    /// Wait for what was enqueued.
    void synchronize() { check(diffusim_evaluator_synchronize(get())); }

    /// Wait; [n_frames], kT₀, as they were asked for last.
    std::vector<double> energies() {
        std::vector<double> energies(n_frames_);
        check(diffusim_evaluator_get_energies(get(), energies.data(), energies.size()));
        return energies;
    }

    /// The handle, still owned by this object.
    diffusim_evaluator_t* get() const noexcept { return handle_.get(); }

private:
    struct deleter {
        void operator()(diffusim_evaluator_t* handle) const noexcept { diffusim_evaluator_free(handle); }
    };

    std::uint64_t device(diffusim_status_t (*of)(diffusim_evaluator_t*, std::uint64_t*)) {
        std::uint64_t place = 0;
        check(of(get(), &place));
        return place;
    }

    std::unique_ptr<diffusim_evaluator_t, deleter> handle_;
    std::size_t n_frames_;
};

/// One process's part of a system that several share: particles of its own, and copies of those around them. Move-only.
class domain {
public:
    /// For particles of these types, species by name. `options`, by type, may be nullptr: then it only evaluates.
    domain(const model& model, const std::vector<std::string>& types, const diffusim_simulation_options_t* options)
        : n_types_(types.size()) {
        std::vector<const char*> names;
        for (const std::string& name : types)
            names.push_back(name.c_str());
        diffusim_domain_t* handle = nullptr;
        check(diffusim_domain_create(model.get(), names.data(), names.size(), options, &handle));
        handle_.reset(handle);
    }

    /// New options; the particles stay.
    void reconfigure(const diffusim_simulation_options_t& options) {
        check(diffusim_domain_reconfigure(get(), &options, n_types_));
    }

    /// How far around its own particles it needs to know others, nm.
    double reach() const {
        double reach = 0;
        check(diffusim_domain_reach(get(), &reach));
        return reach;
    }

    /// Cell of the whole system from now on, [3][3] in nm; nullptr for open space.
    void set_cell(const double* cell) { check(diffusim_domain_set_cell(get(), cell)); }

    /// The particles from now on, by type and number in the whole system; the first n_owned are its own.
    void set_particles(const std::vector<std::uint32_t>& types, const std::vector<std::uint32_t>& particle_ids,
                       std::size_t n_owned) {
        if (types.size() != particle_ids.size())
            throw std::invalid_argument("set_particles wants as many types as particle_ids");
        check(diffusim_domain_set_particles(get(), types.data(), particle_ids.data(), types.size(), n_owned));
    }

    /// Floats of each particle that an exchange moves at most.
    std::size_t exchange_width() const {
        std::size_t width = 0;
        check(diffusim_domain_exchange_width(get(), &width));
        return width;
    }

    /// Scores [n_owned][3], 1/nm, of its own particles and, unless nullptr, their energies [n_owned] and virials
    /// [n_owned][3][3], kT₀. `exchange(rows, n_particles, width)` fills the rows of the others from those of their
    /// owners; what it throws comes out of here.
    template <class Exchange>
    void evaluate(const std::vector<double>& positions, Exchange&& exchange, double* scores, double* energies = nullptr,
                  double* virials = nullptr) {
        struct Call {
            Exchange& exchange;
            std::exception_ptr failure;
        } call = {exchange, nullptr};
        const auto trampoline = [](void* user_data, float* rows, std::size_t n_particles,
                                   std::size_t width) -> std::int32_t {
            Call& call = *static_cast<Call*>(user_data);
            try {
                call.exchange(rows, n_particles, width);
                return 0;
            } catch (...) {
                call.failure = std::current_exception();
                return 1;
            }
        };
        const diffusim_status_t status = diffusim_domain_evaluate(get(), positions.data(), positions.size(), trampoline,
                                                                  &call, scores, energies, virials);
        if (call.failure)
            std::rethrow_exception(call.failure);
        check(status);
    }

    /// Step number `step` of its own particles: `n_values` numbers of positions (nm, in place), of their scores, unless
    /// nullptr of the forces beside the model, kJ/(mol nm), and with DIFFUSIM_LANGEVIN of their velocities (nm/ps, in
    /// place; else nullptr).
    void step(std::uint64_t step, const double* scores, const double* forces, double* positions, double* velocities,
              std::size_t n_values) {
        check(diffusim_domain_step(get(), step, scores, forces, positions, velocities, n_values));
    }

    diffusim_statistics_t statistics() const {
        diffusim_statistics_t statistics = {};
        statistics.struct_size = sizeof statistics;
        check(diffusim_domain_statistics(get(), &statistics));
        return statistics;
    }

    /// The handle, still owned by this object.
    diffusim_domain_t* get() const noexcept { return handle_.get(); }

private:
    struct deleter {
        void operator()(diffusim_domain_t* handle) const noexcept { diffusim_domain_free(handle); }
    };

    std::unique_ptr<diffusim_domain_t, deleter> handle_;
    std::size_t n_types_;
};

} // namespace diffusim

#endif /* DIFFUSIM_HPP */
