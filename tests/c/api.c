/* Every function of diffusim.h, called as a C99 program would: api FIXTURE.safetensors PERIODIC.safetensors. Exits with
 * 0 if all behaved. */
#include "diffusim.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OK(call) expect((call), DIFFUSIM_OK, NULL, #call, __LINE__)
#define FAILS(call, status, words) expect((call), (status), (words), #call, __LINE__)
#define TRUE(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "line %d: not true: %s\n", __LINE__, #condition);                                          \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static void expect(diffusim_status_t found, diffusim_status_t wanted, const char* words, const char* call, int line) {
    if (found != wanted || (words != NULL && strstr(diffusim_last_error(), words) == NULL)) {
        fprintf(stderr, "line %d: %s returned %d, expected %d with '%s': %s\n", line, call, found, wanted,
                words ? words : "", diffusim_last_error());
        exit(1);
    }
}

/* A spring of 70 kT0/nm^2 about the origin; fails after as many calls as user_data says. */
static int32_t spring(void* user_data, const double* positions, size_t n_frames, size_t n_particles, double* scores,
                      double* energies) {
    int* calls = user_data;
    if ((*calls)-- == 0)
        return 42;
    size_t n = 3 * n_particles;
    for (size_t f = 0; f < n_frames; f++) {
        double energy = 0;
        for (size_t i = f * n; i < (f + 1) * n; i++) {
            scores[i] = -70.0 * positions[i];
            energy += 35.0 * positions[i] * positions[i];
        }
        if (energies != NULL)
            energies[f] = energy;
    }
    return 0;
}

static void conversions(void) {
    double spring_constant, time_step, d;
    OK(diffusim_diffusion_from_friction_rate(310.0, 14.2, 7.3, &d));
    TRUE(fabs(d / (8.31446261815324e-3 * 310.0 / (14.2 * 7.3)) - 1.0) < 1e-15);
    OK(diffusim_diffusion_from_drag(310.0, 14.2 * 7.3, &d));
    OK(diffusim_spring_from_time_step(0.37, d, 0.013, &spring_constant));
    OK(diffusim_time_step_from_spring(spring_constant, d, 0.013, &time_step));
    TRUE(fabs(time_step / 0.37 - 1.0) < 1e-14);
    FAILS(diffusim_spring_from_time_step(-1.0, d, 1.0, &spring_constant), DIFFUSIM_ERROR_INVALID_ARGUMENT, "time step");
    FAILS(diffusim_diffusion_from_drag(310.0, 2.0, NULL), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "diffusion_coefficient is NULL");
}

static void models(const char* path, diffusim_model_t** network) {
    diffusim_model_options_t options;
    OK(diffusim_model_options_init(&options, sizeof options));
    FAILS(diffusim_model_load("no/such/file", &options, network), DIFFUSIM_ERROR_IO, "no/such/file");
    FAILS(diffusim_model_load(NULL, NULL, network), DIFFUSIM_ERROR_INVALID_ARGUMENT, "path is NULL");
    FAILS(diffusim_model_load("\xff", NULL, network), DIFFUSIM_ERROR_INVALID_ARGUMENT, "UTF-8");
    FAILS(diffusim_model_load(path, NULL, NULL), DIFFUSIM_ERROR_INVALID_ARGUMENT, "model is NULL");
    options.noise_level = 70.0;
    FAILS(diffusim_model_load(path, &options, network), DIFFUSIM_ERROR_INVALID_ARGUMENT, "noise level 70");
    options.struct_size = 4096;
    FAILS(diffusim_model_load(path, &options, network), DIFFUSIM_ERROR_INVALID_ARGUMENT, "struct_size is 4096");
    OK(diffusim_model_load(path, NULL, network));

    const void* data;
    size_t size, n = diffusim_model_n_particles(*network);
    TRUE(n == 5 && diffusim_model_n_particles(NULL) == 0);
    OK(diffusim_model_bytes(*network, &data, &size));
    diffusim_model_t* copy;
    FAILS(diffusim_model_from_bytes(data, size - 1, NULL, &copy), DIFFUSIM_ERROR_INVALID_MODEL, "safetensors");
    OK(diffusim_model_from_bytes(data, size, NULL, &copy));
    const char *hash, *copied_hash, *json, *name;
    OK(diffusim_model_name(copy, &name));
    TRUE(strcmp(name, "model") == 0);
    diffusim_model_free(copy);
    OK(diffusim_model_options_init(&options, sizeof options));
    options.name = "a copy";
    OK(diffusim_model_from_bytes(data, size, &options, &copy));
    OK(diffusim_model_name(copy, &name));
    TRUE(strcmp(name, "a copy") == 0);
    OK(diffusim_model_sha256(*network, &hash));
    OK(diffusim_model_sha256(copy, &copied_hash));
    TRUE(strlen(hash) == 64 && strcmp(hash, copied_hash) == 0);
    OK(diffusim_model_metadata(*network, &json));
    TRUE(strstr(json, "\"distance\"") != NULL);
    double temperature, masses[5], curvature;
    OK(diffusim_model_training_temperature(copy, &temperature));
    OK(diffusim_model_masses(copy, masses, 5));
    FAILS(diffusim_model_masses(copy, masses, 4), DIFFUSIM_ERROR_INVALID_ARGUMENT, "expected 5");
    OK(diffusim_model_check_masses(copy, masses, 5));
    masses[2] += 3.0;
    FAILS(diffusim_model_check_masses(copy, masses, 5), DIFFUSIM_ERROR_MISMATCH, "particle 2 is");
    const char *elements[5] = {NULL, NULL, NULL, NULL, "Xe"}, *names[5] = {NULL, NULL, NULL, NULL, "XE1"};
    FAILS(diffusim_model_check_particles(copy, 5, elements, names), DIFFUSIM_ERROR_MISMATCH, "XE1 (Xe)");
    elements[4] = NULL;
    OK(diffusim_model_check_particles(copy, 5, elements, NULL));

    const double* start;
    size_t n_frames;
    OK(diffusim_model_start_positions(copy, &n_frames, &start));
    TRUE(n_frames > 0);
    double scores[15], energy, again[15];
    OK(diffusim_model_evaluate(copy, start, 1, scores, &energy));
    OK(diffusim_model_evaluate(*network, start, 1, again, NULL));
    TRUE(memcmp(scores, again, sizeof scores) == 0 && isfinite(energy));
    FAILS(diffusim_model_evaluate(copy, again, 1, again, NULL), DIFFUSIM_ERROR_INVALID_ARGUMENT, "scores overlaps");
    OK(diffusim_model_largest_curvature(copy, start, 1, &curvature));
    TRUE(curvature > 0.0);
    const double heavy[5] = {12.0, 14.0, 0.0, 12.0, 16.0}, wrong[5] = {12.0, -14.0, 0.0, 12.0, 16.0};
    double frequency;
    OK(diffusim_model_largest_frequency(copy, heavy, start, 1, &frequency));
    TRUE(frequency > 0.0 && frequency < sqrt(0.00831446261815324 * 310.0 * curvature / 12.0));
    OK(diffusim_model_largest_frequency(copy, NULL, start, 1, &frequency));
    FAILS(diffusim_model_largest_frequency(copy, wrong, start, 1, &frequency), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "mass of particle 1 is -14");
    OK(diffusim_model_configurational_temperature(copy, start, 1, &temperature));
    FAILS(diffusim_model_evaluate(copy, NULL, 1, scores, NULL), DIFFUSIM_ERROR_INVALID_ARGUMENT, "positions is NULL");
    FAILS(diffusim_model_evaluate(copy, start, (size_t)-1, scores, NULL), DIFFUSIM_ERROR_INVALID_ARGUMENT, "memory");

    diffusim_sample_options_t sampling;
    OK(diffusim_sample_options_init(&sampling, sizeof sampling));
    TRUE(sampling.n_steps == 32 && sampling.corrector_steps == 100);
    sampling.seed = 77;
    sampling.n_steps = 3;
    sampling.corrector_steps = 0;
    double drawn[45], third[15];
    OK(diffusim_model_sample(copy, &sampling, drawn, 3));
    sampling.first_frame = 2;
    OK(diffusim_model_sample(*network, &sampling, third, 1));
    TRUE(memcmp(drawn + 30, third, sizeof third) == 0 && isfinite(third[0]));
    FAILS(diffusim_model_sample(copy, &sampling, NULL, 1), DIFFUSIM_ERROR_INVALID_ARGUMENT, "positions is NULL");
    FAILS(diffusim_model_sample(copy, NULL, drawn, (size_t)-1), DIFFUSIM_ERROR_INVALID_ARGUMENT, "memory");
    sampling.start_level = 70.0;
    FAILS(diffusim_model_sample(copy, &sampling, drawn, 3), DIFFUSIM_ERROR_INVALID_ARGUMENT, "start level 70");

    const size_t where[5] = {6, 0, 3, 1, 4};
    diffusim_model_t* subset;
    OK(diffusim_model_subset(copy, 8, where, &subset));
    TRUE(diffusim_model_n_particles(subset) == 8);
    FAILS(diffusim_model_subset(copy, 5, where, &subset), DIFFUSIM_ERROR_MISMATCH, "particles[0] is 6");
    FAILS(diffusim_model_sample(subset, NULL, drawn, 1), DIFFUSIM_ERROR_UNSUPPORTED, "reverse diffusion");
    diffusim_model_free(subset);
    diffusim_model_free(copy);
    diffusim_model_free(NULL);
}

static void simulations(const diffusim_model_t* network) {
    diffusim_simulation_options_t options;
    OK(diffusim_simulation_options_init(&options, sizeof options));
    options.effective_step = 2.3e-7;
    options.allow_unstable = 1;
    options.seed = 991;
    options.n_replicas = 3;
    const size_t n = 3 * 5 * 3;
    double positions[45], later[45], scores[45], energies[3];
    diffusim_simulation_t *simulation, *other;

    options.spring = 5.0;
    FAILS(diffusim_simulation_create(network, &options, &simulation), DIFFUSIM_ERROR_INVALID_ARGUMENT, "more than one");
    options.spring = 0.0;
    options.adapter = 77;
    FAILS(diffusim_simulation_create(network, &options, &simulation), DIFFUSIM_ERROR_INVALID_ARGUMENT, "adapter is 77");
    for (int32_t adapter = DIFFUSIM_HEUN; adapter <= DIFFUSIM_MALA; adapter++) {
        diffusim_statistics_t done = {.struct_size = sizeof done};
        options.adapter = adapter;
        OK(diffusim_simulation_create(network, &options, &simulation));
        OK(diffusim_simulation_step(simulation, 3));
        OK(diffusim_simulation_statistics(simulation, &done));
        TRUE((adapter == DIFFUSIM_MALA) == (done.acceptance > 0.0));
        diffusim_simulation_free(simulation);
    }
    double factors[3], velocities[45], again[45];
    options.target_acceptance = 1.5;
    FAILS(diffusim_simulation_create(network, &options, &simulation), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "target acceptance is 1.5");
    options.target_acceptance = 0.6;
    FAILS(diffusim_simulation_create(network, &options, &simulation), DIFFUSIM_ERROR_INVALID_ARGUMENT, "no burn-in");
    options.burn_in_steps = 50;
    OK(diffusim_simulation_create(network, &options, &simulation));
    OK(diffusim_simulation_step(simulation, 60));
    OK(diffusim_simulation_get_step_factors(simulation, factors, 3));
    TRUE(factors[0] > 0.0 && factors[0] != 1.0 && factors[0] != factors[1]);
    FAILS(diffusim_simulation_get_step_factors(simulation, factors, 2), DIFFUSIM_ERROR_INVALID_ARGUMENT, "expected 3");
    FAILS(diffusim_simulation_get_velocities(simulation, velocities, DIFFUSIM_FLOAT64, n),
          DIFFUSIM_ERROR_INVALID_ARGUMENT, "has no velocities");
    diffusim_simulation_free(simulation);
    options.target_acceptance = 0.0;
    options.burn_in_steps = 0;

    options.adapter = DIFFUSIM_LANGEVIN;
    FAILS(diffusim_simulation_create(network, &options, &simulation), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "a friction rate");
    options.friction_rate = 11.0;
    FAILS(diffusim_simulation_create(network, &options, &simulation), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "takes its step as a time step");
    options.effective_step = 0.0;
    options.time_step = 0.0003;
    OK(diffusim_simulation_create(network, &options, &simulation));
    OK(diffusim_simulation_get_velocities(simulation, velocities, DIFFUSIM_FLOAT64, n));
    OK(diffusim_simulation_step(simulation, 3));
    OK(diffusim_simulation_draw_velocities(simulation));
    OK(diffusim_simulation_get_velocities(simulation, again, DIFFUSIM_FLOAT64, n));
    TRUE(velocities[0] != again[0]);
    OK(diffusim_simulation_set_velocities(simulation, velocities, DIFFUSIM_FLOAT64, n));
    OK(diffusim_simulation_get_velocities(simulation, again, DIFFUSIM_FLOAT64, n));
    TRUE(memcmp(velocities, again, sizeof again) == 0);
    diffusim_statistics_t motion = {.struct_size = sizeof motion};
    OK(diffusim_simulation_statistics(simulation, &motion));
    TRUE(motion.kinetic_energy > 0.0 && motion.kinetic_temperature > 0.0 && motion.acceptance == 0.0);
    diffusim_simulation_free(simulation);
    options.friction_rate = 0.0;
    options.time_step = 0.0;
    options.effective_step = 2.3e-7;
    options.adapter = DIFFUSIM_EULER_MARUYAMA;
    options.device = "cuda:77";
    FAILS(diffusim_simulation_create(network, &options, &simulation), DIFFUSIM_ERROR_UNSUPPORTED, "device 'cuda:77'");
    options.device = NULL;
    options.matmul_precision = "high";
    FAILS(diffusim_simulation_create(network, &options, &simulation), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "device is 'auto'; expected device 'cuda'");
    options.matmul_precision = "low";
    FAILS(diffusim_simulation_create(network, &options, &simulation), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "'low' is unknown; expected 'highest' or 'high'");
    options.matmul_precision = "highest";
    options.schedule_end = 5;
    FAILS(diffusim_simulation_create(network, &options, &simulation), DIFFUSIM_ERROR_INVALID_ARGUMENT, "schedule_end");
    options.schedule_end = DIFFUSIM_CYCLE;
    const double springs[2] = {1.0, 2.5}, temperatures[2] = {290.0, -1.0};
    options.spring_schedule = springs;
    options.n_spring_schedule = 2;
    options.temperature_schedule = temperatures;
    options.n_temperature_schedule = 2;
    FAILS(diffusim_simulation_create(network, &options, &simulation), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "temperature schedule");
    options.n_temperature_schedule = 1;
    const double scales[2] = {0.7, 0.0}, drags[5] = {31.0, 32.0, 33.0, 34.0, 35.0};
    options.noise_schedule = scales;
    options.n_noise_schedule = 2;
    FAILS(diffusim_simulation_create(network, &options, &simulation), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "noise schedule");
    options.n_noise_schedule = 1;
    options.drags = drags;
    options.diffusion_coefficient = 0.3;
    FAILS(diffusim_simulation_create(network, &options, &simulation), DIFFUSIM_ERROR_INVALID_ARGUMENT, "more than one");
    options.diffusion_coefficient = 0.0;
    OK(diffusim_simulation_create(network, &options, &simulation));
    OK(diffusim_simulation_step(simulation, 100));
    uint64_t step;
    OK(diffusim_simulation_get_step(simulation, &step));
    TRUE(step == 100);
    OK(diffusim_simulation_get_positions(simulation, positions, DIFFUSIM_FLOAT64, n));
    FAILS(diffusim_simulation_get_positions(simulation, positions, 9, n), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "dtype is 9");
    FAILS(diffusim_simulation_get_positions(simulation, positions, DIFFUSIM_FLOAT64, n - 1),
          DIFFUSIM_ERROR_INVALID_ARGUMENT, "expected 45");
    const double* view;
    OK(diffusim_simulation_view_positions(simulation, &view));
    TRUE(memcmp(view, positions, sizeof positions) == 0);
    OK(diffusim_simulation_evaluate(simulation, scores, n, energies));
    TRUE(isfinite(energies[2]));

    size_t size;
    OK(diffusim_simulation_checkpoint_size(simulation, &size));
    void* checkpoint = malloc(size);
    OK(diffusim_simulation_checkpoint(simulation, checkpoint, size));
    OK(diffusim_simulation_step(simulation, 50));
    OK(diffusim_simulation_get_positions(simulation, later, DIFFUSIM_FLOAT64, n));
    OK(diffusim_simulation_create(network, &options, &other));
    FAILS(diffusim_simulation_restore(other, checkpoint, size - 3), DIFFUSIM_ERROR_INVALID_CHECKPOINT, "damaged");
    OK(diffusim_simulation_restore(other, checkpoint, size));
    OK(diffusim_simulation_step(other, 50));
    OK(diffusim_simulation_get_positions(other, positions, DIFFUSIM_FLOAT64, n));
    TRUE(memcmp(positions, later, sizeof later) == 0);
    free(checkpoint);

    float single[45];
    OK(diffusim_simulation_get_positions(other, single, DIFFUSIM_FLOAT32, n));
    OK(diffusim_simulation_set_positions(other, single, DIFFUSIM_FLOAT32, n));
    OK(diffusim_simulation_set_step(other, 7));
    const double forces[45] = {120.0};
    OK(diffusim_simulation_step_biased(other, forces, n));
    FAILS(diffusim_simulation_step_biased(other, forces, 3), DIFFUSIM_ERROR_INVALID_ARGUMENT, "forces holds 3");
    uint64_t place = 7;
    FAILS(diffusim_simulation_enqueue(other, 3, 0), DIFFUSIM_ERROR_UNSUPPORTED, "use device 'cuda'");
    OK(diffusim_simulation_synchronize(other));
    FAILS(diffusim_simulation_device_positions(other, &place), DIFFUSIM_ERROR_UNSUPPORTED, "use device 'cuda'");
    FAILS(diffusim_simulation_device_velocities(other, &place), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "use adapter Langevin");
    FAILS(diffusim_simulation_device_forces(other, &place), DIFFUSIM_ERROR_UNSUPPORTED, "use device 'cuda'");
    TRUE(place == 7);
    const char* status = NULL;
    OK(diffusim_simulation_device_status(other, &status));
    TRUE(strcmp(status, "cpu") == 0);
    options.cuda_stream = &place;
    FAILS(diffusim_simulation_reconfigure(other, &options), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "without the cuda_context");
    options.cuda_context = &place;
    FAILS(diffusim_simulation_reconfigure(other, &options), DIFFUSIM_ERROR_INVALID_ARGUMENT, "expected 'cuda'");
    options.cuda_context = options.cuda_stream = NULL;
    options.temperature_schedule = NULL;
    options.n_temperature_schedule = 0;
    options.temperature = 340.0;
    options.friction_rate = 11.0;
    options.drags = NULL;
    OK(diffusim_simulation_reconfigure(other, &options));
    diffusim_statistics_t statistics = {0};
    FAILS(diffusim_simulation_statistics(other, &statistics), DIFFUSIM_ERROR_INVALID_ARGUMENT, "own size");
    statistics.struct_size = sizeof statistics;
    OK(diffusim_simulation_statistics(other, &statistics));
    TRUE(statistics.steps == 8 && statistics.temperature == 340.0 && statistics.time_step > 0.0);
    TRUE(fabs(2.0 * statistics.spring * statistics.effective_step - 1.0) < 1e-14);
    diffusim_simulation_free(other);
    diffusim_simulation_free(simulation);
    diffusim_simulation_free(NULL);
    FAILS(diffusim_simulation_step(NULL, 1), DIFFUSIM_ERROR_INVALID_ARGUMENT, "simulation is NULL");
}

/* On the GPU, where there is one. */
static void evaluators(const diffusim_model_t* network) {
    diffusim_evaluator_options_t options;
    OK(diffusim_evaluator_options_init(&options, sizeof options));
    diffusim_evaluator_t* evaluator = NULL;
    options.device = "cpu";
    FAILS(diffusim_evaluator_create(network, &options, &evaluator), DIFFUSIM_ERROR_UNSUPPORTED, "device is 'cpu'");
    options.device = "cuda:77";
    FAILS(diffusim_evaluator_create(network, &options, &evaluator), DIFFUSIM_ERROR_UNSUPPORTED, "device 'cuda:77'");
    options.device = NULL;
    options.n_frames = 0;
    FAILS(diffusim_evaluator_create(network, &options, &evaluator), DIFFUSIM_ERROR_INVALID_ARGUMENT, "n_frames is 0");
    options.n_frames = 2;
    options.cuda_stream = &options;
    FAILS(diffusim_evaluator_create(network, &options, &evaluator), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "without the cuda_context");
    options.cuda_stream = NULL;
    diffusim_evaluator_free(NULL);
    FAILS(diffusim_evaluator_enqueue(NULL, 1), DIFFUSIM_ERROR_INVALID_ARGUMENT, "evaluator is NULL");
    if (diffusim_evaluator_create(network, &options, &evaluator) != DIFFUSIM_OK) {
        TRUE(strstr(diffusim_last_error(), "device 'cuda:0'") != NULL);
        return;
    }
    uint64_t places[3] = {0, 0, 0};
    OK(diffusim_evaluator_device_positions(evaluator, &places[0]));
    OK(diffusim_evaluator_device_scores(evaluator, &places[1]));
    OK(diffusim_evaluator_device_energies(evaluator, &places[2]));
    TRUE(places[0] != 0 && places[1] != places[0] && places[2] != places[1]);
    /* Nothing but zeros has been put there. */
    const double zeros[30] = {0.0};
    double scores[30], expected[2], energies[2];
    OK(diffusim_evaluator_enqueue(evaluator, 0));
    OK(diffusim_evaluator_synchronize(evaluator));
    OK(diffusim_evaluator_enqueue(evaluator, 1));
    OK(diffusim_evaluator_get_energies(evaluator, energies, 2));
    OK(diffusim_model_evaluate(network, zeros, 2, scores, expected));
    TRUE(memcmp(energies, expected, sizeof energies) == 0);
    FAILS(diffusim_evaluator_get_energies(evaluator, energies, 3), DIFFUSIM_ERROR_INVALID_ARGUMENT, "expected 2");
    const double cell[9] = {4.0, 0.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0, 4.0};
    FAILS(diffusim_evaluator_set_cell(evaluator, cell), DIFFUSIM_ERROR_MISMATCH, "no periodic cell");
    FAILS(diffusim_evaluator_set_lambda(evaluator, 0.3), DIFFUSIM_ERROR_INVALID_ARGUMENT, "of one model");
    diffusim_evaluator_free(evaluator);
}

static void devices(void) {
    const char* description = NULL;
    OK(diffusim_device_describe("cpu", &description));
    TRUE(strstr(description, "cores") != NULL);
    FAILS(diffusim_device_describe("cuda:77", &description), DIFFUSIM_ERROR_UNSUPPORTED, "device 'cuda:77'");
    FAILS(diffusim_device_describe("abacus", &description), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "device 'abacus' is unknown");
    FAILS(diffusim_device_describe(NULL, &description), DIFFUSIM_ERROR_INVALID_ARGUMENT, "device is NULL");
    TRUE(strstr(description, "cores") != NULL);
    size_t n_gpus = 77;
    OK(diffusim_device_count(&n_gpus));
    TRUE(n_gpus < 77);
    FAILS(diffusim_device_count(NULL), DIFFUSIM_ERROR_INVALID_ARGUMENT, "n_gpus is NULL");
}

/* Many frames at once, and the sequential trajectory of the same seed. */
static void time_parallel(const diffusim_model_t* network) {
    diffusim_simulation_options_t options;
    OK(diffusim_simulation_options_init(&options, sizeof options));
    TRUE(options.sampler == DIFFUSIM_SEQUENTIAL && options.window == 0 && options.tolerance == -1.0);
    options.effective_step = 2.3e-7;
    options.seed = 7;
    options.allow_unstable = 1;
    double positions[3][15];
    const int32_t samplers[3] = {DIFFUSIM_SEQUENTIAL, DIFFUSIM_TIME_PARALLEL, DIFFUSIM_AUTO};
    diffusim_simulation_t* simulation = NULL;
    for (int i = 0; i < 3; i++) {
        options.sampler = samplers[i];
        if (samplers[i] != DIFFUSIM_SEQUENTIAL) {
            options.jacobian = DIFFUSIM_JACOBIAN_DIAGONAL;
            options.window = 12;
            options.tolerance = 1e-9;
        }
        OK(diffusim_simulation_create(network, &options, &simulation));
        OK(diffusim_simulation_step(simulation, 40));
        OK(diffusim_simulation_get_positions(simulation, positions[i], DIFFUSIM_FLOAT64, 15));
        for (int c = 0; c < 15; c++)
            TRUE(fabs(positions[i][c] - positions[0][c]) < 1e-8);
        diffusim_statistics_t done = {.struct_size = sizeof done};
        OK(diffusim_simulation_statistics(simulation, &done));
        if (samplers[i] == DIFFUSIM_SEQUENTIAL)
            TRUE(done.rounds == 0 && done.steps_per_sweep == 0.0 && done.evaluations_per_step == 0.0);
        if (samplers[i] == DIFFUSIM_TIME_PARALLEL) {
            TRUE(done.rounds > 0 && done.sweeps == done.rounds && done.score_evaluations == 12 * done.sweeps);
            TRUE(done.steps_per_sweep > 1.0 && done.evaluations_per_step > 1.0);
        }
        diffusim_simulation_free(simulation);
    }
    options.sampler = 3;
    FAILS(diffusim_simulation_create(network, &options, &simulation), DIFFUSIM_ERROR_INVALID_ARGUMENT, "sampler is 3");
    options.sampler = DIFFUSIM_SEQUENTIAL;
    FAILS(diffusim_simulation_create(network, &options, &simulation), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "window is 12 frames and the sampler is sequential");
    options.sampler = DIFFUSIM_TIME_PARALLEL;
    options.jacobian = -1;
    FAILS(diffusim_simulation_create(network, &options, &simulation), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "jacobian is -1");
    options.jacobian = DIFFUSIM_JACOBIAN_AUTO;
    options.adapter = DIFFUSIM_MALA;
    FAILS(diffusim_simulation_create(network, &options, &simulation), DIFFUSIM_ERROR_UNSUPPORTED, "adapter Mala");
}

static void analytic_and_callback(void) {
    diffusim_model_t *harmonic, *callback;
    diffusim_simulation_options_t options;
    diffusim_simulation_t *a, *b;
    int calls = -1; /* never fails */
    OK(diffusim_model_from_json(
        "{\"format_version\": 1, \"kind\": \"harmonic\", \"n_particles\": 2, \"length_unit\": \"nm\","
        " \"training_temperature\": 280.0, \"hyperparameters\": {\"stiffness\": 70.0}}",
        &harmonic));
    FAILS(diffusim_model_from_json("{}", &callback), DIFFUSIM_ERROR_INVALID_MODEL, "format_version");
    FAILS(diffusim_model_callback(2, NULL, NULL, 280.0, &callback), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "function is NULL");
    OK(diffusim_model_callback(2, spring, &calls, 280.0, &callback));
    const void* data;
    size_t size;
    FAILS(diffusim_model_bytes(callback, &data, &size), DIFFUSIM_ERROR_INVALID_ARGUMENT, "no bytes");
    OK(diffusim_simulation_options_init(&options, sizeof options));
    FAILS(diffusim_simulation_create(harmonic, &options, &a), DIFFUSIM_ERROR_INVALID_ARGUMENT, "recommends no step");
    options.effective_step = 0.003;
    OK(diffusim_simulation_create(harmonic, &options, &a));
    OK(diffusim_simulation_create(callback, &options, &b));
    diffusim_model_free(harmonic); /* simulations keep what they need */
    diffusim_model_free(callback);
    double x[6], y[6];
    OK(diffusim_simulation_step(a, 300));
    OK(diffusim_simulation_step(b, 300));
    OK(diffusim_simulation_get_positions(a, x, DIFFUSIM_FLOAT64, 6));
    OK(diffusim_simulation_get_positions(b, y, DIFFUSIM_FLOAT64, 6));
    TRUE(memcmp(x, y, sizeof x) == 0 && x[0] != 0.0);
    calls = 3;
    FAILS(diffusim_simulation_step(b, 300), DIFFUSIM_ERROR_CALLBACK, "returned 42");
    OK(diffusim_simulation_get_positions(b, x, DIFFUSIM_FLOAT64, 6));
    TRUE(memcmp(x, y, sizeof x) == 0);
    diffusim_simulation_free(a);
    diffusim_simulation_free(b);
}

/* E = 0.37 * 40 x^2/2 + 0.63 * 70 x^2/2: a spring of 58.9 kT0/nm^2. */
static void blends(const diffusim_model_t* network) {
    const char* text = "{\"format_version\": 1, \"kind\": \"harmonic\", \"n_particles\": 2, \"length_unit\": \"nm\","
                       " \"training_temperature\": 280.0, \"hyperparameters\": {\"stiffness\": 40.0}}";
    int calls = -1;
    diffusim_model_t *soft, *stiff, *blend, *none;
    OK(diffusim_model_from_json(text, &soft));
    OK(diffusim_model_callback(2, spring, &calls, 280.0, &stiff));
    FAILS(diffusim_model_blend(soft, network, 0.5, &none), DIFFUSIM_ERROR_MISMATCH, "2 and 5 particles");
    FAILS(diffusim_model_blend(soft, stiff, -0.1, &none), DIFFUSIM_ERROR_INVALID_ARGUMENT, "lambda is -0.1");
    FAILS(diffusim_model_blend(soft, NULL, 0.1, &none), DIFFUSIM_ERROR_INVALID_ARGUMENT, "b is NULL");
    OK(diffusim_model_blend(soft, stiff, 0.63, &blend));
    const double x[6] = {0.3, -0.2, 0.7, 0.1, 0.5, -0.9};
    double scores[6], energy, parts[2], squares = 0.0, lambda;
    OK(diffusim_model_evaluate(blend, x, 1, scores, &energy));
    OK(diffusim_model_component_energies(blend, NULL, x, 1, parts));
    for (int i = 0; i < 6; i++) {
        squares += x[i] * x[i];
        TRUE(fabs(scores[i] + 58.9 * x[i]) < 1e-12);
    }
    TRUE(fabs(energy - 0.5 * 58.9 * squares) < 1e-12);
    TRUE(fabs(parts[0] - 20.0 * squares) < 1e-12 && fabs(parts[1] - 35.0 * squares) < 1e-12);
    FAILS(diffusim_model_component_energies(soft, NULL, x, 1, parts), DIFFUSIM_ERROR_INVALID_ARGUMENT, "no lambda");

    diffusim_simulation_options_t options;
    diffusim_simulation_t* simulation;
    OK(diffusim_simulation_options_init(&options, sizeof options));
    options.effective_step = 0.003;
    OK(diffusim_simulation_create(soft, &options, &simulation));
    FAILS(diffusim_simulation_set_lambda(simulation, 0.5), DIFFUSIM_ERROR_INVALID_ARGUMENT, "no lambda");
    FAILS(diffusim_simulation_get_lambda(simulation, &lambda), DIFFUSIM_ERROR_INVALID_ARGUMENT, "no lambda");
    diffusim_simulation_free(simulation);
    OK(diffusim_simulation_create(blend, &options, &simulation));
    diffusim_model_free(soft); /* the simulation keeps what it needs */
    diffusim_model_free(stiff);
    diffusim_model_free(blend);
    OK(diffusim_simulation_get_lambda(simulation, &lambda));
    TRUE(lambda == 0.63);
    FAILS(diffusim_simulation_set_lambda(simulation, NAN), DIFFUSIM_ERROR_INVALID_ARGUMENT, "lambda is");
    OK(diffusim_simulation_set_lambda(simulation, 0.25));
    OK(diffusim_simulation_get_lambda(simulation, &lambda));
    TRUE(lambda == 0.25);
    OK(diffusim_simulation_step(simulation, 30));
    OK(diffusim_simulation_component_energies(simulation, parts, 2));
    TRUE(parts[0] > 0.0 && fabs(parts[1] / parts[0] - 1.75) < 1e-12);
    FAILS(diffusim_simulation_component_energies(simulation, parts, 1), DIFFUSIM_ERROR_INVALID_ARGUMENT, "expected 2");
    diffusim_simulation_free(simulation);
}

/* A transferable model in its cell: 18 particles, species C and N. */
static void periodic(const char* path, const diffusim_model_t* network) {
    diffusim_model_t *model, *other;
    OK(diffusim_model_load(path, NULL, &model));
    TRUE(diffusim_model_is_periodic(model) == 1 && diffusim_model_is_periodic(NULL) == 0);
    double cell[9], found[9], scores[54], again[54], energy, virial[9];
    OK(diffusim_model_start_cell(model, cell));
    TRUE(fabs(cell[4] - 1.21) < 1e-6);
    FAILS(diffusim_model_start_cell(network, cell), DIFFUSIM_ERROR_INVALID_ARGUMENT, "no cell of its own");
    const double* start;
    size_t n_frames;
    OK(diffusim_model_start_positions(model, &n_frames, &start));
    OK(diffusim_model_evaluate_in_cell(model, cell, start, 1, scores, &energy, virial));
    OK(diffusim_model_evaluate(model, start, 1, again, NULL));
    TRUE(memcmp(scores, again, sizeof scores) == 0 && isfinite(energy) && virial[0] != 0.0);
    FAILS(diffusim_model_evaluate_in_cell(model, NULL, start, 1, scores, NULL, NULL), DIFFUSIM_ERROR_MISMATCH,
          "none was given");
    FAILS(diffusim_model_evaluate_in_cell(network, cell, start, 1, scores, NULL, NULL), DIFFUSIM_ERROR_MISMATCH,
          "no periodic cell");

    const char* species[3] = {"N", "C", "Xe"};
    FAILS(diffusim_model_for_species(model, species, 3, &other), DIFFUSIM_ERROR_MISMATCH, "particle 2 is 'Xe'");
    FAILS(diffusim_model_for_species(network, species, 2, &other), DIFFUSIM_ERROR_UNSUPPORTED, "message-passing");
    OK(diffusim_model_for_species(model, species, 2, &other));
    TRUE(diffusim_model_n_particles(other) == 2);
    diffusim_simulation_t* simulation;
    int32_t is_periodic;
    OK(diffusim_simulation_create(other, NULL, &simulation));
    OK(diffusim_simulation_get_cell(simulation, found, &is_periodic));
    TRUE(is_periodic == 0 && found[0] == 0.0);
    OK(diffusim_simulation_set_cell(simulation, cell));
    OK(diffusim_simulation_get_cell(simulation, found, &is_periodic));
    TRUE(is_periodic == 1 && memcmp(cell, found, sizeof cell) == 0);
    FAILS(diffusim_simulation_set_cell(simulation, NULL), DIFFUSIM_ERROR_MISMATCH, "none was given");
    cell[4] = 0.0;
    cell[3] = 0.0;
    cell[5] = 0.0;
    FAILS(diffusim_simulation_set_cell(simulation, cell), DIFFUSIM_ERROR_INVALID_ARGUMENT, "spans no volume");
    diffusim_simulation_free(simulation);
    diffusim_model_free(other);
    diffusim_model_free(model);
}

/* Rows that a domain had when it owned all particles, for one that owns fewer of them; or a failure after so many. */
typedef struct {
    float rows[5][3 * 6 * 16];
    int n_calls, n_known, fails_at;
} exchange_t;

static int32_t exchange(void* user_data, float* rows, size_t n_particles, size_t width) {
    exchange_t* all = user_data;
    TRUE(all->n_calls < 5 && n_particles == 3 && width <= 6 * 16);
    if (all->n_calls == all->fails_at)
        return 7;
    float* whole = all->rows[all->n_calls++];
    if (all->n_known == 0) {
        memcpy(whole, rows, 3 * width * sizeof *rows);
    } else {
        TRUE(memcmp(whole, rows, (size_t)all->n_known * width * sizeof *rows) == 0);
        memcpy(rows, whole, 3 * width * sizeof *rows);
    }
    return 0;
}

/* Three particles, and two of them in a domain that knows the third. */
static void domains(const char* path) {
    diffusim_model_t* model;
    OK(diffusim_model_load(path, NULL, &model));
    const char* species[2] = {"C", "Xe"};
    diffusim_domain_t* domain;
    FAILS(diffusim_domain_create(model, species, 2, NULL, &domain), DIFFUSIM_ERROR_MISMATCH, "particle 1 is 'Xe'");
    species[1] = "N";
    OK(diffusim_domain_create(model, species, 2, NULL, &domain));
    double reach, energies[3], scores[9], virials[27], cell[9];
    size_t width;
    OK(diffusim_domain_reach(domain, &reach));
    OK(diffusim_domain_exchange_width(domain, &width));
    TRUE(fabs(reach - 0.55) < 1e-12 && width == 6 * 16);
    FAILS(diffusim_domain_evaluate(domain, NULL, 0, NULL, NULL, NULL, NULL, NULL), DIFFUSIM_ERROR_MISMATCH,
          "none was given");
    OK(diffusim_model_start_cell(model, cell));
    OK(diffusim_domain_set_cell(domain, cell));
    FAILS(diffusim_domain_set_cell(domain, NULL), DIFFUSIM_ERROR_MISMATCH, "none was given");

    const double positions[9] = {0.0, 0.0, 0.0, 0.31, 0.02, 0.0, 0.1, 0.29, -0.04};
    const uint32_t types[3] = {0, 1, 1}, ids[3] = {4, 0, 7}, wrong[3] = {0, 2, 1}, twice[3] = {4, 0, 4};
    FAILS(diffusim_domain_set_particles(domain, wrong, ids, 3, 3), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "particle 1 is of type 2");
    FAILS(diffusim_domain_set_particles(domain, types, ids, 2, 3), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "3 particles are the domain's own, of 2");
    FAILS(diffusim_domain_set_particles(domain, types, twice, 3, 3), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "particle id 4 is there twice");
    OK(diffusim_domain_set_particles(domain, types, ids, 3, 3));
    static exchange_t all = {.fails_at = -1};
    OK(diffusim_domain_evaluate(domain, positions, 9, exchange, &all, scores, energies, virials));
    TRUE(all.n_calls == 5);
    double alone[9];
    OK(diffusim_domain_evaluate(domain, positions, 9, NULL, NULL, alone, NULL, NULL));
    TRUE(memcmp(alone, scores, sizeof alone) == 0);
    FAILS(diffusim_domain_evaluate(domain, positions, 6, NULL, NULL, scores, NULL, NULL),
          DIFFUSIM_ERROR_INVALID_ARGUMENT, "positions holds 6 numbers; expected 9");
    FAILS(diffusim_domain_evaluate(domain, scores, 9, NULL, NULL, scores, NULL, NULL), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "scores overlaps the positions");

    double part[6], owned[2], part_virials[18];
    OK(diffusim_domain_set_particles(domain, types, ids, 3, 2));
    FAILS(diffusim_domain_evaluate(domain, positions, 9, NULL, NULL, part, NULL, NULL), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "exchange is NULL, and 1 of 3 particles belong to others");
    all.n_known = 2;
    all.n_calls = 0;
    OK(diffusim_domain_evaluate(domain, positions, 9, exchange, &all, part, owned, part_virials));
    TRUE(memcmp(part, scores, sizeof part) == 0 && memcmp(owned, energies, sizeof owned) == 0);
    TRUE(memcmp(part_virials, virials, sizeof part_virials) == 0);
    all.n_calls = 0;
    all.fails_at = 3;
    FAILS(diffusim_domain_evaluate(domain, positions, 9, exchange, &all, part, NULL, NULL), DIFFUSIM_ERROR_CALLBACK,
          "the exchange callback returned 7");

    double moved[9];
    memcpy(moved, positions, sizeof moved);
    FAILS(diffusim_domain_step(domain, 5, scores, NULL, moved, NULL, 3), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "without options");
    diffusim_statistics_t statistics = {.struct_size = sizeof statistics};
    FAILS(diffusim_domain_statistics(domain, &statistics), DIFFUSIM_ERROR_INVALID_ARGUMENT, "without options");
    diffusim_simulation_options_t options;
    OK(diffusim_simulation_options_init(&options, sizeof options));
    options.effective_step = 1.3e-6;
    options.adapter = DIFFUSIM_MALA;
    FAILS(diffusim_domain_reconfigure(domain, &options, 2), DIFFUSIM_ERROR_UNSUPPORTED, "LeimkuhlerMatthews");
    options.adapter = DIFFUSIM_LEIMKUHLER_MATTHEWS;
    OK(diffusim_domain_reconfigure(domain, &options, 2));
    OK(diffusim_domain_set_particles(domain, types, ids, 3, 3));
    FAILS(diffusim_domain_step(domain, 5, scores, NULL, moved, NULL, 3), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "positions holds 3 numbers; expected 9");
    const double forces[9] = {30.0};
    OK(diffusim_domain_step(domain, 5, scores, forces, moved, NULL, 9));
    TRUE(moved[0] != positions[0] && fabs(moved[0] - positions[0]) < 0.1);
    double velocities[9] = {0.7};
    FAILS(diffusim_domain_step(domain, 6, scores, NULL, moved, velocities, 9), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "velocities holds 9 numbers; expected 0");
    FAILS(diffusim_domain_step(domain, 6, moved, NULL, moved, NULL, 9), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "scores overlaps the positions");
    FAILS(diffusim_domain_step(domain, 6, scores, moved, moved, NULL, 9), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "forces overlaps the positions");
    FAILS(diffusim_domain_step(domain, 6, scores, NULL, moved, moved, 9), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "velocities overlaps the positions");
    FAILS(diffusim_domain_step(domain, 6, scores, NULL, moved, scores, 9), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "scores overlaps the velocities");
    FAILS(diffusim_domain_step(domain, 6, scores, velocities, moved, velocities, 9), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "forces overlaps the velocities");
    FAILS(diffusim_domain_step(domain, UINT64_MAX, scores, NULL, moved, NULL, 9), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "step number 18446744073709551615");
    const double no_forces[9] = {0.0, 0.0, 0.0, NAN};
    FAILS(diffusim_domain_step(domain, 6, scores, no_forces, moved, NULL, 9), DIFFUSIM_ERROR_INVALID_ARGUMENT,
          "the bias force on particle id 0 is NaN at step 6");
    scores[4] = NAN;
    memcpy(moved, positions, sizeof moved);
    FAILS(diffusim_domain_step(domain, 6, scores, NULL, moved, NULL, 9), DIFFUSIM_ERROR_NOT_FINITE, "(particle id 0)");
    TRUE(memcmp(moved, positions, sizeof moved) == 0);
    OK(diffusim_domain_statistics(domain, &statistics));
    TRUE(fabs(statistics.effective_step - 1.3e-6) < 1e-12 && statistics.steps == 7);
    diffusim_domain_free(domain);
    diffusim_domain_free(NULL);
    diffusim_model_free(model);
}

int main(int argc, char** argv) {
    TRUE(argc == 3);
    TRUE(diffusim_abi_version() == DIFFUSIM_ABI_VERSION);
    char version[32];
    snprintf(version, sizeof version, "%d.%d.%d", DIFFUSIM_VERSION_MAJOR, DIFFUSIM_VERSION_MINOR,
             DIFFUSIM_VERSION_PATCH);
    TRUE(strcmp(version, diffusim_version()) == 0);
    conversions();
    diffusim_model_t* network;
    models(argv[1], &network);
    simulations(network);
    time_parallel(network);
    analytic_and_callback();
    blends(network);
    devices();
    evaluators(network);
    periodic(argv[2], network);
    domains(argv[2]);
    diffusim_model_free(network);
    return 0;
}
