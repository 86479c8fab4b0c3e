/* diffusim: molecular dynamics from a learned score. MIT licence.
 * Generated from src/capi; do not edit. `make header` writes it anew. */

#ifndef DIFFUSIM_H
#define DIFFUSIM_H

#include <stddef.h>
#include <stdint.h>

// Success.
#define DIFFUSIM_OK 0

// An argument is outside its range, NULL, or contradicts another.
#define DIFFUSIM_ERROR_INVALID_ARGUMENT 1

// The model file cannot be used.
#define DIFFUSIM_ERROR_INVALID_MODEL 2

// The model and the particles it is asked to move do not fit.
#define DIFFUSIM_ERROR_MISMATCH 3

// The step is too coarse for the model.
#define DIFFUSIM_ERROR_UNSTABLE 4

// The score stopped being finite or a particle ran away; the last good frame was kept.
#define DIFFUSIM_ERROR_NOT_FINITE 5

// A checkpoint cannot be used.
#define DIFFUSIM_ERROR_INVALID_CHECKPOINT 6

// This build or this machine does not have what was asked for.
#define DIFFUSIM_ERROR_UNSUPPORTED 7

// A file cannot be read or written.
#define DIFFUSIM_ERROR_IO 8

// The caller's score function failed.
#define DIFFUSIM_ERROR_CALLBACK 9

// A defect of diffusim; the handle involved can only be freed.
#define DIFFUSIM_ERROR_INTERNAL 10

// The GPU or its driver failed.
#define DIFFUSIM_ERROR_DEVICE 11

// Version of this header.
#define DIFFUSIM_VERSION_MAJOR 0

// Version of this header.
#define DIFFUSIM_VERSION_MINOR 1

// Version of this header.
#define DIFFUSIM_VERSION_PATCH 0

// Grows when a function or a field is added; programs need at least the one they were compiled with.
#define DIFFUSIM_ABI_VERSION 1

// Arrays of `float`.
#define DIFFUSIM_FLOAT32 0

// Arrays of `double`.
#define DIFFUSIM_FLOAT64 1

// Euler–Maruyama: the harmonic adapter as it is (theory 2).
#define DIFFUSIM_EULER_MARUYAMA 0

// Leimkuhler–Matthews: one score a step, equilibrium averages of order 2 (theory 10).
#define DIFFUSIM_LEIMKUHLER_MATTHEWS 1

// Heun: two scores a step, weak order 2; takes no bias (theory 9).
#define DIFFUSIM_HEUN 2

// Metropolis-adjusted Langevin: Euler–Maruyama proposals, accepted or rejected, so that the density has no error of the step;
// needs a model that gives energies, takes no bias (theory 8).
#define DIFFUSIM_MALA 3

// Langevin dynamics with velocities, by the middle scheme: one score a step; needs masses, a friction rate and a time step
// (theory 11).
#define DIFFUSIM_LANGEVIN 4

// One frame after the other.
#define DIFFUSIM_SEQUENTIAL 0

// Many frames at once: the sequential trajectory of the same seed, to a tolerance (theory 12). Adapters Euler–Maruyama and
// Leimkuhler–Matthews, on the CPU.
#define DIFFUSIM_TIME_PARALLEL 1

// Time-parallel where every replica has at least two threads to itself and, over its first 32 sweeps, a step took fewer frames
// than two thirds of those threads; else sequential. Decided by counts, so that it depends on `n_threads` and not on the clock.
#define DIFFUSIM_AUTO 2

// All of the slope of the score for up to 30 particles, its diagonal for more.
#define DIFFUSIM_JACOBIAN_AUTO 0

// Picard sweeps: nothing is known about the slope of the score.
#define DIFFUSIM_JACOBIAN_IDENTITY 1

// Quasi-Newton sweeps with the diagonal of the slope.
#define DIFFUSIM_JACOBIAN_DIAGONAL 2

// Quasi-Newton sweeps with all of it.
#define DIFFUSIM_JACOBIAN_DENSE 3

// Past its end a schedule keeps its last entry.
#define DIFFUSIM_HOLD_LAST 0

// Past its end a schedule starts again.
#define DIFFUSIM_CYCLE 1

// One process's part of a system that several share: particles of its own, and those around them that others own, as a program
// with domain decomposition has them. For models of kind `message-passing`. The caller keeps the positions, and moves what the
// processes exchange. Scores, energies and steps of a particle have the same bits whoever owns it, and those of the whole system
// in one place. Belongs to one thread at a time.
typedef struct diffusim_domain_t diffusim_domain_t;

// Scores and energies of frames that lie on a GPU, as a program computes them that moves the particles itself: nothing passes
// through the host. What diffusim_model_evaluate gives on the CPU, bit for bit. Belongs to one thread at a time.
typedef struct diffusim_evaluator_t diffusim_evaluator_t;

// A score model. Immutable and safe to use from several threads; simulations keep what they need of it alive, so a model
// may be freed while simulations run.
typedef struct diffusim_model_t diffusim_model_t;

// Replicas of one system, moved by a model. Belongs to one thread at a time.
typedef struct diffusim_simulation_t diffusim_simulation_t;

// Status of a call: DIFFUSIM_OK or one of DIFFUSIM_ERROR_*.
typedef int32_t diffusim_status_t;

// What a simulation is told besides its model. Fill with diffusim_simulation_options_init, then change what you need.
//
// The size of a step is given by at most one of `spring`, `effective_step` and `time_step`; with none, the model file's
// recommendation is taken. At most one of `friction_rate`, `drag` and `diffusion_coefficient` says how mobile particles are;
// without any, all particles take the same step and steps have no physical time.
typedef struct {
  // sizeof(diffusim_simulation_options_t)
  size_t struct_size;
  // K; 0 = the training temperature.
  double temperature;
  // k = 1/(2 D Δt) of the most mobile particle, 1/nm²; D is that at the training temperature or, where the diffusion
  // coefficient is given, at `temperature` (theory 5); 0 = not given.
  double spring;
  // τ = 1/(2k) = D Δt of the most mobile particle, nm²; 0 = not given.
  double effective_step;
  // Δt, ps; needs a mobility; 0 = not given.
  double time_step;
  // γ, 1/ps: D = kT/(m γ); 0 = not given.
  double friction_rate;
  // ζ, amu/ps: D = kT/ζ; 0 = not given.
  double drag;
  // D at `temperature`, nm²/ps; 0 = not given.
  double diffusion_coefficient;
  // amu, `[n_particles]`, copied; NULL = the model's (which only `friction_rate` needs). A mass of 0 freezes its particle.
  const double *masses;
  // Seed of the noise. The same seed gives the same trajectory.
  uint64_t seed;
  // Copies of the system; 1 by default.
  size_t n_replicas;
  // Number of the first replica, for the noise and the start frame.
  uint32_t first_replica;
  // DIFFUSIM_LEIMKUHLER_MATTHEWS (default), DIFFUSIM_EULER_MARUYAMA, DIFFUSIM_HEUN, DIFFUSIM_MALA or DIFFUSIM_LANGEVIN.
  int32_t adapter;
  // Ids that key the noise of each particle, `[n_particles]`, copied; NULL = 0, 1, 2, …
  const uint32_t *particle_ids;
  // Factors on the spring, one per step, copied; NULL = 1.
  const double *spring_schedule;
  // Length of `spring_schedule`.
  size_t n_spring_schedule;
  // Temperatures in K, one per step, copied, in place of `temperature`; NULL = none.
  const double *temperature_schedule;
  // Length of `temperature_schedule`.
  size_t n_temperature_schedule;
  // DIFFUSIM_HOLD_LAST (default) or DIFFUSIM_CYCLE.
  int32_t schedule_end;
  // Not 0: run although τ times the model's largest curvature is 2 or more, and from frames outside the snapshots' bonds.
  int32_t allow_unstable;
  // "cpu", or "cuda", "cuda:1" and so on for a GPU, which gives the same positions, bit for bit; "auto" is "cpu". NULL = "auto".
  const char *device;
  // Threads; 0 = one per core.
  size_t n_threads;
  // ζ of each particle, amu/ps, `[n_particles]`, copied, in place of `drag`; NULL = not given.
  const double *drags;
  // D of each particle, nm²/ps, `[n_particles]`, copied, in place of `diffusion_coefficient`; NULL = not given.
  const double *diffusion_coefficients;
  // β_n of a noise schedule, one per step, copied; NULL = 1.
  const double *noise_schedule;
  // Length of `noise_schedule`.
  size_t n_noise_schedule;
  // With DIFFUSIM_MALA: the acceptance, between 0 and 1, that the step of each replica is tuned to during burn-in; 0 = none.
  double target_acceptance;
  // Steps of that tuning, from step 0; after them the steps stay as they are. 0 = none.
  uint64_t burn_in_steps;
  // DIFFUSIM_SEQUENTIAL (default), DIFFUSIM_TIME_PARALLEL or DIFFUSIM_AUTO. A biased step is always sequential. With the first,
  // `jacobian`, `window` and `tolerance` may not be given.
  int32_t sampler;
  // For time-parallel sweeps: DIFFUSIM_JACOBIAN_AUTO (default), _IDENTITY, _DIAGONAL or _DENSE.
  int32_t jacobian;
  // Frames of each replica that a time-parallel sweep works on, at least 2; 0 = not given, which is 64.
  size_t window;
  // By how much a frame may still change for the one after it to be final, nm, 0 = not by a bit; -1 = not given, which is 1e-6.
  double tolerance;
  // CUcontext of the caller, of the GPU that `device` names, in which the simulation runs: it is left as current or not as it was and
  // is never destroyed; it must outlive the simulation. NULL = the GPU's primary context.
  void *cuda_context;
  // CUstream of that context, on which everything is enqueued; NULL = its default stream.
  void *cuda_stream;
  // "highest": the same bits on every device; on a GPU also "high": on its tensor cores, each number split in two of half
  // precision, nearly as accurate, with bits that only GPUs of that kind have; for models of kind distance whose hidden weights
  // are bfloat16. NULL = "highest".
  const char *matmul_precision;
} diffusim_simulation_options_t;

// What the caller's program does between processes: `rows` `[n_particles][width]` come with those of the domain's own particles
// filled, and go with those of the others, which are the same numbers at their owners. Any return value but 0 ends the
// evaluation with DIFFUSIM_ERROR_CALLBACK. It is called on the thread that evaluates, and must neither throw, nor longjmp, nor
// use the domain.
typedef int32_t (*diffusim_exchange_callback_t)(void *user_data,
                                                float *rows,
                                                size_t n_particles,
                                                size_t width);

// What a simulation has done and what its next step is; quantities that are not known are 0.
typedef struct {
  // sizeof(diffusim_statistics_t), set by the caller
  size_t struct_size;
  // Number of the next step.
  uint64_t steps;
  // Frames whose score was computed.
  uint64_t score_evaluations;
  // Largest |component| of any score so far, 1/nm.
  double largest_score;
  // k of the most mobile particle, 1/nm².
  double spring;
  // τ of the most mobile particle, nm².
  double effective_step;
  // Δt, ps.
  double time_step;
  // K.
  double temperature;
  // D of the most mobile particle, nm²/ps.
  double diffusion_coefficient;
  // Largest stable τ, nm².
  double stability_limit;
  // Seed of the noise, which a checkpoint brings along.
  uint64_t seed;
  // Fraction of the proposals that were accepted, after burn-in once that is over; 0 unless the adapter is DIFFUSIM_MALA.
  double acceptance;
  // What burn-in has made of the effective step: the geometric mean of the replicas' factors.
  double step_factor;
  // ½ Σ m v², kJ/mol, mean over replicas, with DIFFUSIM_LANGEVIN.
  double kinetic_energy;
  // The temperature of that, K, with three degrees of freedom for each particle that is not frozen.
  double kinetic_temperature;
  // Time-parallel: batches of scores.
  uint64_t rounds;
  // Time-parallel: sweeps through the window of one replica, so many in each round as replicas took part.
  uint64_t sweeps;
  // Time-parallel: steps that became final in a sweep, on average; 0 before the first.
  double steps_per_sweep;
  // Time-parallel: frames evaluated for each such step; the sequential sampler takes 1.
  double evaluations_per_step;
} diffusim_statistics_t;

// Where and how much an evaluator evaluates. Fill with diffusim_evaluator_options_init, then change what you need.
typedef struct {
  // sizeof(diffusim_evaluator_options_t)
  size_t struct_size;
  // Frames that are evaluated at a time; 1 by default.
  size_t n_frames;
  // "cuda", "cuda:1" and so on. NULL = "cuda", the first GPU.
  const char *device;
  // As in diffusim_simulation_options_t: CUcontext of the caller, of that GPU; NULL = the GPU's primary context.
  void *cuda_context;
  // As in diffusim_simulation_options_t: CUstream of that context; NULL = its default stream.
  void *cuda_stream;
} diffusim_evaluator_options_t;

// How a model is read. Fill with diffusim_model_options_init, then change what you need.
typedef struct {
  // sizeof(diffusim_model_options_t)
  size_t struct_size;
  // σ at which the score is read, nm; 0 = the level the model file names for simulations.
  double noise_level;
  // What messages call the model, copied; NULL = the name of its file.
  const char *name;
} diffusim_model_options_t;

// The caller's score function: from `positions` `[n_frames][n_particles][3]` in nm write `scores` of the same shape in 1/nm
// and, unless `energies` is NULL, `energies` `[n_frames]` in kT₀. Any return value but 0 ends the run with
// DIFFUSIM_ERROR_CALLBACK. It gets the frames of many replicas at once, from several threads, and must neither throw, nor
// longjmp, nor use the simulation that calls it.
typedef int32_t (*diffusim_score_callback_t)(void *user_data,
                                             const double *positions,
                                             size_t n_frames,
                                             size_t n_particles,
                                             double *scores,
                                             double *energies);

// How independent frames are drawn. Fill with diffusim_sample_options_init, then change what you need.
typedef struct {
  // sizeof(diffusim_sample_options_t)
  size_t struct_size;
  // Seed of the noise. A frame depends on the seed and on its number alone.
  uint64_t seed;
  // Number of the first frame.
  uint32_t first_frame;
  // Steps of reverse diffusion, two scores each; 32 by default.
  uint32_t n_steps;
  // σ at which frames start, nm; 0 = half the greatest noise level of the training.
  double start_level;
  // Langevin steps at the end; 100 by default.
  uint64_t corrector_steps;
  // Threads; 0 = one per core.
  size_t n_threads;
} diffusim_sample_options_t;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Version of the library, such as "0.1.0"; static.
//
// @since 0.1
const char *diffusim_version(void);

// DIFFUSIM_ABI_VERSION of the library; compare with that of the header: the library's must not be smaller.
//
// @since 0.1
int32_t diffusim_abi_version(void);

// The sentence that belongs to the last failed call on this thread: what was wrong, with which value, what to do.
// Never NULL; valid until the next failure on this thread.
//
// @since 0.1
const char *diffusim_last_error(void);

// k = β/(2 D Δt) (theory 3): the spring, in 1/nm², that makes a step last `time_step` ps.
//
// `diffusion_coefficient` in nm²/ps; `noise_scale` is β, 1 where there is no noise schedule.
//
// @since 0.1
diffusim_status_t diffusim_spring_from_time_step(double time_step,
                                                 double diffusion_coefficient,
                                                 double noise_scale,
                                                 double *spring);

// Δt = β/(2 D k) (theory 3): how long, in ps, a step with `spring` (1/nm²) lasts.
//
// `diffusion_coefficient` in nm²/ps; `noise_scale` is β, 1 where there is no noise schedule.
//
// @since 0.1
diffusim_status_t diffusim_time_step_from_spring(double spring,
                                                 double diffusion_coefficient,
                                                 double noise_scale,
                                                 double *time_step);

// D = kT/(m γ) in nm²/ps, from K, amu and the friction *rate* γ in 1/ps (OpenMM's frictionCoeff).
//
// @since 0.1
diffusim_status_t diffusim_diffusion_from_friction_rate(double temperature,
                                                        double mass,
                                                        double friction_rate,
                                                        double *diffusion_coefficient);

// D = kT/ζ in nm²/ps, from K and the *drag* ζ in amu/ps (that of LAMMPS's fix brownian).
//
// @since 0.1
diffusim_status_t diffusim_diffusion_from_drag(double temperature,
                                               double drag,
                                               double *diffusion_coefficient);

// Describe the device of a name that diffusim_simulation_options_t::device takes, such as
// "cuda:0: NVIDIA H100, compute capability 9.0, 79 GiB, CUDA graphs on, kernels: PTX". A GPU is started for that, and the kernels
// are loaded. The text is valid until the next call on this thread.
//
// Errors: DIFFUSIM_ERROR_INVALID_ARGUMENT (no such name), DIFFUSIM_ERROR_UNSUPPORTED (it cannot be used here; the sentence says
// why), DIFFUSIM_ERROR_DEVICE (it failed).
//
// @since 0.1
diffusim_status_t diffusim_device_describe(const char *device,
                                           const char **description);

// Number of GPUs: "cuda:0", "cuda:1" and so on; 0 where there is no driver.
//
// @since 0.1
diffusim_status_t diffusim_device_count(size_t *n_gpus);

// Create a domain of `model` for particles of `n_types` types, `types` their species: element symbols or names of beads. In
// `options`, masses, drags and diffusion coefficients are `[n_types]`, and neither replicas nor particle ids are given; NULL for a
// domain that only evaluates. The caller frees `*domain` with diffusim_domain_free.
//
// Errors: DIFFUSIM_ERROR_UNSUPPORTED (a model of another kind, an adapter but DIFFUSIM_EULER_MARUYAMA,
// DIFFUSIM_LEIMKUHLER_MATTHEWS and DIFFUSIM_LANGEVIN, a GPU), DIFFUSIM_ERROR_MISMATCH (unknown species), and those of diffusim_simulation_create.
//
// @since 0.1
diffusim_status_t diffusim_domain_create(const diffusim_model_t *model,
                                         const char *const *types,
                                         size_t n_types,
                                         const diffusim_simulation_options_t *options,
                                         diffusim_domain_t **domain);

// Free a domain; NULL is ignored.
//
// @since 0.1
void diffusim_domain_free(diffusim_domain_t *domain);

// Give a domain of `n_types` types new options; its particles stay.
//
// @since 0.1
diffusim_status_t diffusim_domain_reconfigure(diffusim_domain_t *domain,
                                              const diffusim_simulation_options_t *options,
                                              size_t n_types);

// How far around its own particles a domain needs to know others, `*reach` in nm.
//
// @since 0.1
diffusim_status_t diffusim_domain_reach(const diffusim_domain_t *domain,
                                        double *reach);

// The periodic cell of the whole system from now on, `cell` `[3][3]` in nm; NULL for open space.
//
// Errors: DIFFUSIM_ERROR_MISMATCH for a periodic model without a cell, another model with one, and a cell that is too small for
// the model's cutoff.
//
// @since 0.1
diffusim_status_t diffusim_domain_set_cell(diffusim_domain_t *domain,
                                           const double *cell);

// The particles from now on: their `types` as indices and, in `particle_ids`, their numbers in the whole system, which key their
// noise and order sums; both `[n_particles]`. The first `n_owned` are the domain's own, the others all those of which an image
// lies within diffusim_domain_reach of one of them, once each.
//
// @since 0.1
diffusim_status_t diffusim_domain_set_particles(diffusim_domain_t *domain,
                                                const uint32_t *types,
                                                const uint32_t *particle_ids,
                                                size_t n_particles,
                                                size_t n_owned);

// Scores `[n_owned][3]` in 1/nm of the own particles and, unless NULL, their energies `[n_owned]` and parts of
// diffusim_model_evaluate_in_cell's virial `[n_owned][3][3]` in kT₀, at `positions` `[n_particles][3]` in nm, which are those
// that the owners give their own particles. `n_values` is the length of `positions`.
//
// All processes evaluate at the same time: `exchange` is called the same number of times on each, with the same widths of at most
// diffusim_domain_exchange_width, also where nobody is there. It may be NULL where all particles are the domain's own.
//
// @since 0.1
diffusim_status_t diffusim_domain_evaluate(diffusim_domain_t *domain,
                                           const double *positions,
                                           size_t n_values,
                                           diffusim_exchange_callback_t exchange,
                                           void *user_data,
                                           double *scores,
                                           double *energies,
                                           double *virials);

// Numbers of floats that `exchange` of diffusim_domain_evaluate moves for each particle at most, `*width`.
//
// @since 0.1
diffusim_status_t diffusim_domain_exchange_width(const diffusim_domain_t *domain,
                                                 size_t *width);

// Take step number `step` with the own particles: `positions` `[n_owned][3]` in nm, in place, by their `scores` in 1/nm and, unless
// NULL, the `forces` that act beside the model, in kJ/(mol nm). `velocities` in nm/ps, in place, go with DIFFUSIM_LANGEVIN and are
// NULL otherwise. `n_values` is the length of each. On DIFFUSIM_ERROR_NOT_FINITE nothing has moved.
//
// @since 0.1
diffusim_status_t diffusim_domain_step(diffusim_domain_t *domain,
                                       uint64_t step,
                                       const double *scores,
                                       const double *forces,
                                       double *positions,
                                       double *velocities,
                                       size_t n_values);

// As diffusim_simulation_statistics, of this process alone.
//
// @since 0.1
diffusim_status_t diffusim_domain_statistics(const diffusim_domain_t *domain,
                                             diffusim_statistics_t *statistics);

// Fill `options` with the defaults; `size` is sizeof(diffusim_evaluator_options_t).
//
// @since 0.1
diffusim_status_t diffusim_evaluator_options_init(diffusim_evaluator_options_t *options,
                                                  size_t size);

// Create an evaluator of `model`; `options` may be NULL. It keeps what it needs of the model, which may be freed. A periodic model
// starts with the cell of its start frames. The caller frees `*evaluator` with diffusim_evaluator_free.
//
// Errors: DIFFUSIM_ERROR_UNSUPPORTED (no such GPU, "cpu", a model that has no kernel: a callback, a blend of blends),
// DIFFUSIM_ERROR_INVALID_ARGUMENT, DIFFUSIM_ERROR_DEVICE.
//
// @since 0.1
diffusim_status_t diffusim_evaluator_create(const diffusim_model_t *model,
                                            const diffusim_evaluator_options_t *options,
                                            diffusim_evaluator_t **evaluator);

// Free an evaluator; NULL is ignored. Waits for what was enqueued.
//
// @since 0.1
void diffusim_evaluator_free(diffusim_evaluator_t *evaluator);

// Set the periodic cell of all frames that are enqueued from now on, as diffusim_simulation_set_cell.
//
// Errors: DIFFUSIM_ERROR_MISMATCH.
//
// @since 0.1
diffusim_status_t diffusim_evaluator_set_cell(diffusim_evaluator_t *evaluator,
                                              const double *cell);

// Evaluate a blend (diffusim_model_blend) at another `lambda`, 0 to 1, from now on.
//
// Errors: DIFFUSIM_ERROR_INVALID_ARGUMENT for a lambda outside 0 to 1, and for a model that is no blend.
//
// @since 0.1
diffusim_status_t diffusim_evaluator_set_lambda(diffusim_evaluator_t *evaluator,
                                                double lambda);

// Where to put the frames (a CUdeviceptr): double `[n_frames][n_particles][3]`, nm, zero at first. This and the arrays of results
// are good until the evaluator is freed; kernels of the caller on the same stream find them in the order of the stream.
//
// @since 0.1
diffusim_status_t diffusim_evaluator_device_positions(diffusim_evaluator_t *evaluator,
                                                      uint64_t *positions);

// Where their scores are found (a CUdeviceptr): double `[n_frames][n_particles][3]`, 1/nm. Forces are kT₀ times as large.
//
// @since 0.1
diffusim_status_t diffusim_evaluator_device_scores(diffusim_evaluator_t *evaluator,
                                                   uint64_t *scores);

// Where their energies are found (a CUdeviceptr): double `[n_frames]`, kT₀.
//
// @since 0.1
diffusim_status_t diffusim_evaluator_device_energies(diffusim_evaluator_t *evaluator,
                                                     uint64_t *energies);

// Start the evaluation of the frames that lie at diffusim_evaluator_device_positions: of their scores and, with `with_energies` not
// 0, of their energies. Does not wait; but a `message-passing` model of more than 64 particles, or in a periodic cell, waits until it
// is known that its lists of neighbours had room, and does it again with more where they had not. A smaller one in open space waits the
// first time, when its pairs are listed.
//
// Errors: DIFFUSIM_ERROR_DEVICE; DIFFUSIM_ERROR_NOT_FINITE and DIFFUSIM_ERROR_MISMATCH as diffusim_model_evaluate.
//
// @since 0.1
diffusim_status_t diffusim_evaluator_enqueue(diffusim_evaluator_t *evaluator,
                                             int32_t with_energies);

// Wait for all that was enqueued.
//
// Errors: DIFFUSIM_ERROR_DEVICE.
//
// @since 0.1
diffusim_status_t diffusim_evaluator_synchronize(diffusim_evaluator_t *evaluator);

// Wait, and read the energies that were asked for last: `energies` `[n_frames]` in kT₀ has room for `n_values` numbers.
//
// Errors: DIFFUSIM_ERROR_INVALID_ARGUMENT, DIFFUSIM_ERROR_DEVICE.
//
// @since 0.1
diffusim_status_t diffusim_evaluator_get_energies(diffusim_evaluator_t *evaluator,
                                                  double *energies,
                                                  size_t n_values);

// Fill `options` with the defaults; `size` is sizeof(diffusim_model_options_t).
//
// @since 0.1
diffusim_status_t diffusim_model_options_init(diffusim_model_options_t *options,
                                              size_t size);

// Read the model file `path` (UTF-8); `options` may be NULL. The caller frees `*model` with diffusim_model_free.
//
// Errors: DIFFUSIM_ERROR_IO, DIFFUSIM_ERROR_INVALID_MODEL (damaged, changed, unknown version or kind, wrong shapes or types,
// weights that are not finite), DIFFUSIM_ERROR_INVALID_ARGUMENT (noise level outside the training's).
//
// @since 0.1
diffusim_status_t diffusim_model_load(const char *path,
                                      const diffusim_model_options_t *options,
                                      diffusim_model_t **model);

// As diffusim_model_load, from the `size` bytes of a model file in memory, which are copied.
//
// @since 0.1
diffusim_status_t diffusim_model_from_bytes(const void *data,
                                            size_t size,
                                            const diffusim_model_options_t *options,
                                            diffusim_model_t **model);

// An analytic model (kinds free, harmonic, double-well, mueller-brown, lennard-jones-cluster, dw4, gaussian-mixture) from the JSON description
// that a model file would hold.
//
// @since 0.1
diffusim_status_t diffusim_model_from_json(const char *metadata,
                                           diffusim_model_t **model);

// A model of `n_particles` around the caller's `function`, whose energies are in kT at `training_temperature` K.
// `user_data` is handed to every call and must outlive the model and its simulations.
//
// @since 0.1
diffusim_status_t diffusim_model_callback(size_t n_particles,
                                          diffusim_score_callback_t function,
                                          void *user_data,
                                          double training_temperature,
                                          diffusim_model_t **model);

// `model`, moving only the given particles of a system of `n_particles_total`: `particles[i]` is where the model's particle i
// is found. All others have zero score. `particles` holds diffusim_model_n_particles(model) indices. The metadata of the subset
// stays that of `model`.
//
// @since 0.1
diffusim_status_t diffusim_model_subset(const diffusim_model_t *model,
                                        size_t n_particles_total,
                                        const size_t *particles,
                                        diffusim_model_t **subset);

// A transferable model (kind `message-passing`) for `count` other particles, given by their `species` in order: element symbols
// or names of beads, as the model file lists them. The caller frees `*other` with diffusim_model_free.
//
// Errors: DIFFUSIM_ERROR_MISMATCH for a species the model does not know, DIFFUSIM_ERROR_UNSUPPORTED for a model that is made for
// its own particles.
//
// @since 0.1
diffusim_status_t diffusim_model_for_species(const diffusim_model_t *model,
                                             const char *const *species,
                                             size_t count,
                                             diffusim_model_t **other);

// Two models of the same particles as one: E = (1−λ)E_a + λE_b, in kT₀ (theory 7). At λ = 0 it is `a` and at λ = 1 `b`, to the
// last bit. Particles, masses and start frames are those of `a`, or of `b` where `a` has none. `lambda` is where simulations of the
// blend start; diffusim_simulation_set_lambda moves them. The blend keeps what it needs of `a` and `b`, which may be freed. The
// caller frees `*model` with diffusim_model_free.
//
// Errors: DIFFUSIM_ERROR_MISMATCH (another number of particles, another training temperature, only one of them periodic),
// DIFFUSIM_ERROR_INVALID_ARGUMENT (lambda outside 0 to 1).
//
// @since 0.1
diffusim_status_t diffusim_model_blend(const diffusim_model_t *a,
                                       const diffusim_model_t *b,
                                       double lambda,
                                       diffusim_model_t **model);

// Free a model; NULL is ignored.
//
// @since 0.1
void diffusim_model_free(diffusim_model_t *model);

// Particles of a frame; 0 for NULL.
//
// @since 0.1
size_t diffusim_model_n_particles(const diffusim_model_t *model);

// What messages call the model. Lives as long as the model.
//
// @since 0.1
diffusim_status_t diffusim_model_name(const diffusim_model_t *model,
                                      const char **name);

// The model's description: atoms, units, temperature, noise levels, provenance, as JSON. Lives as long as the model.
//
// @since 0.1
diffusim_status_t diffusim_model_metadata(const diffusim_model_t *model,
                                          const char **json);

// sha256 of the model file (of the JSON description where there is no file), in hexadecimal. Lives as long as the model.
//
// @since 0.1
diffusim_status_t diffusim_model_sha256(const diffusim_model_t *model,
                                        const char **hex);

// The model file's bytes, to embed it elsewhere. They live as long as the model.
//
// Errors: DIFFUSIM_ERROR_INVALID_ARGUMENT for a model that came from no file.
//
// @since 0.1
diffusim_status_t diffusim_model_bytes(const diffusim_model_t *model,
                                       const void **data,
                                       size_t *size);

// T₀ of the training snapshots, K.
//
// @since 0.1
diffusim_status_t diffusim_model_training_temperature(const diffusim_model_t *model,
                                                      double *temperature);

// Masses in amu into `masses` `[n_particles]`; `count` is its length.
//
// Errors: DIFFUSIM_ERROR_INVALID_ARGUMENT where the model does not know them all.
//
// @since 0.1
diffusim_status_t diffusim_model_masses(const diffusim_model_t *model,
                                        double *masses,
                                        size_t count);

// Frames to start from, `[*n_frames][n_particles][3]` in nm; `*n_frames` may be 0. They live as long as the model.
//
// @since 0.1
diffusim_status_t diffusim_model_start_positions(const diffusim_model_t *model,
                                                 size_t *n_frames,
                                                 const double **positions);

// Whether the model lives in a periodic cell: 1, or 0, also for NULL.
//
// @since 0.1
int32_t diffusim_model_is_periodic(const diffusim_model_t *model);

// The cell of the frames to start from, `cell` `[3][3]` in nm, rows are lattice vectors.
//
// Errors: DIFFUSIM_ERROR_INVALID_ARGUMENT where the model has none.
//
// @since 0.1
diffusim_status_t diffusim_model_start_cell(const diffusim_model_t *model,
                                            double *cell);

// Whether `masses` `[count]` (amu) of an engine are those of the model's particles, in order, within 0.6 amu; 0 passes.
//
// Errors: DIFFUSIM_ERROR_MISMATCH, naming the first particle that differs.
//
// @since 0.1
diffusim_status_t diffusim_model_check_masses(const diffusim_model_t *model,
                                              const double *masses,
                                              size_t count);

// Whether the `elements` `[count]` (symbols; NULL entries are not compared) of an engine's particles are those of the model.
// `names` `[count]`, which may be NULL, is only used to name particles in the message.
//
// Errors: DIFFUSIM_ERROR_MISMATCH, naming the first particle that differs.
//
// @since 0.1
diffusim_status_t diffusim_model_check_particles(const diffusim_model_t *model,
                                                 size_t count,
                                                 const char *const *elements,
                                                 const char *const *names);

// Scores and, unless `energies` is NULL, energies of `n_frames` frames: `positions` and `scores` `[n_frames][n_particles][3]`
// in nm and 1/nm, `energies` `[n_frames]` in kT₀. A periodic model is evaluated in its own cell.
//
// @since 0.1
diffusim_status_t diffusim_model_evaluate(const diffusim_model_t *model,
                                          const double *positions,
                                          size_t n_frames,
                                          double *scores,
                                          double *energies);

// As diffusim_model_evaluate, in a given `cell` `[3][3]` in nm (rows are lattice vectors), or in open space where `cell` is NULL;
// and, unless `virials` is NULL, virials −∂E/∂ε_ab under x_a → x_a + ε_ab x_b of positions and cell, `[n_frames][3][3]` in kT₀.
//
// Errors: DIFFUSIM_ERROR_MISMATCH for a periodic model without a cell, another model with one, and a cell that is too small for
// the model's cutoff.
//
// @since 0.1
diffusim_status_t diffusim_model_evaluate_in_cell(const diffusim_model_t *model,
                                                  const double *cell,
                                                  const double *positions,
                                                  size_t n_frames,
                                                  double *scores,
                                                  double *energies,
                                                  double *virials);

// Energies of the two models of a blend, whatever its λ: `positions` `[n_frames][n_particles][3]` in nm, `energies`
// `[n_frames][2]` in kT₀, E_a and E_b of each frame. They give ∂E/∂λ = E_b − E_a and the energy (1−λ')E_a + λ'E_b at every λ'
// (theory 7). `cell` as in diffusim_model_evaluate_in_cell.
//
// Errors: DIFFUSIM_ERROR_INVALID_ARGUMENT for a model that is no blend, DIFFUSIM_ERROR_UNSUPPORTED where one of the two gives no
// energies, DIFFUSIM_ERROR_MISMATCH (cell).
//
// @since 0.1
diffusim_status_t diffusim_model_component_energies(const diffusim_model_t *model,
                                                    const double *cell,
                                                    const double *positions,
                                                    size_t n_frames,
                                                    double *energies);

// Largest eigenvalue (1/nm²) of −∇s over `n_frames` frames `[n_frames][n_particles][3]` in nm, by power iteration: a step is
// stable while τ times it stays below 2 (theory §2).
//
// @since 0.1
diffusim_status_t diffusim_model_largest_curvature(const diffusim_model_t *model,
                                                   const double *positions,
                                                   size_t n_frames,
                                                   double *curvature);

// Largest frequency (1/ps) of the modes over `n_frames` frames `[n_frames][n_particles][3]` in nm, for particles of `masses`
// `[n_particles]` in amu, 0 = frozen; NULL = the model's: a step Δt of DIFFUSIM_LANGEVIN is stable while Δt times it stays below 2
// (theory 11). 0 where no mode is bound.
//
// @since 0.1
diffusim_status_t diffusim_model_largest_frequency(const diffusim_model_t *model,
                                                   const double *masses,
                                                   const double *positions,
                                                   size_t n_frames,
                                                   double *frequency);

// Configurational temperature T₀ ⟨‖s‖²⟩/⟨−∇·s⟩ (K) over `n_frames` frames `[n_frames][n_particles][3]` in nm.
//
// @since 0.1
diffusim_status_t diffusim_model_configurational_temperature(const diffusim_model_t *model,
                                                             const double *positions,
                                                             size_t n_frames,
                                                             double *temperature);

// Fill `options` with the defaults; `size` is sizeof(diffusim_sample_options_t).
//
// @since 0.1
diffusim_status_t diffusim_sample_options_init(diffusim_sample_options_t *options,
                                               size_t size);

// Draw `n_frames` equilibrium frames by reverse diffusion, from the training's noise down to the level at which the model is
// read: `positions` `[n_frames][n_particles][3]` in nm. `options` may be NULL. Frame f starts from the model's start frame
// f mod n_start_frames, blurred by `start_level`: basins that lie farther apart keep the populations of the start frames.
//
// Errors: DIFFUSIM_ERROR_UNSUPPORTED (a model of one density, or a subset), DIFFUSIM_ERROR_INVALID_ARGUMENT,
// DIFFUSIM_ERROR_NOT_FINITE (naming frame, particle and noise level).
//
// @since 0.1
diffusim_status_t diffusim_model_sample(const diffusim_model_t *model,
                                        const diffusim_sample_options_t *options,
                                        double *positions,
                                        size_t n_frames);

// Fill `options` with the defaults; `size` is sizeof(diffusim_simulation_options_t).
//
// @since 0.1
diffusim_status_t diffusim_simulation_options_init(diffusim_simulation_options_t *options,
                                                   size_t size);

// Create a simulation of `model`; `options` may be NULL. Replica number r starts from the model's start frame r mod n_frames,
// or from zeros if it has none. The caller frees `*simulation` with diffusim_simulation_free.
//
// Errors: DIFFUSIM_ERROR_INVALID_ARGUMENT, DIFFUSIM_ERROR_UNSTABLE (spring too soft), DIFFUSIM_ERROR_UNSUPPORTED (device), DIFFUSIM_ERROR_DEVICE.
//
// @since 0.1
diffusim_status_t diffusim_simulation_create(const diffusim_model_t *model,
                                             const diffusim_simulation_options_t *options,
                                             diffusim_simulation_t **simulation);

// Free a simulation; NULL is ignored.
//
// @since 0.1
void diffusim_simulation_free(diffusim_simulation_t *simulation);

// Give a simulation new options; positions and step count stay, and so must the number of replicas.
//
// @since 0.1
diffusim_status_t diffusim_simulation_reconfigure(diffusim_simulation_t *simulation,
                                                  const diffusim_simulation_options_t *options);

// Set the positions of all replicas: `positions` `[n_replicas][n_particles][3]` in nm, `n_values` numbers of `dtype`
// (DIFFUSIM_FLOAT32 or DIFFUSIM_FLOAT64).
//
// Errors: DIFFUSIM_ERROR_MISMATCH where a bond is far outside its range in the snapshots (wrong units, another order of atoms),
// naming it.
//
// @since 0.1
diffusim_status_t diffusim_simulation_set_positions(diffusim_simulation_t *simulation,
                                                    const void *positions,
                                                    int32_t dtype,
                                                    size_t n_values);

// Read the positions of all replicas: `positions` `[n_replicas][n_particles][3]` in nm has room for `n_values` numbers of
// `dtype`.
//
// @since 0.1
diffusim_status_t diffusim_simulation_get_positions(const diffusim_simulation_t *simulation,
                                                    void *positions,
                                                    int32_t dtype,
                                                    size_t n_values);

// Set the velocities of all replicas: `velocities` `[n_replicas][n_particles][3]` in nm/ps, `n_values` numbers of `dtype`
// (DIFFUSIM_FLOAT32 or DIFFUSIM_FLOAT64). With DIFFUSIM_LANGEVIN only, whose velocities start as diffusim_simulation_draw_velocities
// draws them.
//
// @since 0.1
diffusim_status_t diffusim_simulation_set_velocities(diffusim_simulation_t *simulation,
                                                     const void *velocities,
                                                     int32_t dtype,
                                                     size_t n_values);

// Read the velocities of all replicas: `velocities` `[n_replicas][n_particles][3]` in nm/ps has room for `n_values` numbers of
// `dtype`. They are those after the last step's noise: kicked at the frame before, half a step ahead of positions (theory 11).
//
// @since 0.1
diffusim_status_t diffusim_simulation_get_velocities(const diffusim_simulation_t *simulation,
                                                     void *velocities,
                                                     int32_t dtype,
                                                     size_t n_values);

// Draw all velocities anew from the Maxwell–Boltzmann density of the temperature: a function of seed, replica, particle and step.
//
// @since 0.1
diffusim_status_t diffusim_simulation_draw_velocities(diffusim_simulation_t *simulation);

// What burn-in has made of the effective step of each replica, `factors` `[n_replicas]`, which has room for `n_values` numbers; 1
// without a burn-in.
//
// @since 0.1
diffusim_status_t diffusim_simulation_get_step_factors(const diffusim_simulation_t *simulation,
                                                       double *factors,
                                                       size_t n_values);

// The positions of all replicas in place: `*positions` `[n_replicas][n_particles][3]` in nm. They live as long as the simulation and
// change when it does; they must not be written to.
//
// @since 0.1
diffusim_status_t diffusim_simulation_view_positions(const diffusim_simulation_t *simulation,
                                                     const double **positions);

// Set the periodic cell of all replicas, `cell` `[3][3]` in nm, rows are lattice vectors; NULL for none. Positions stay, and need
// not be wrapped. A simulation starts with the cell of the model's start frames.
//
// Errors: DIFFUSIM_ERROR_MISMATCH for a periodic model without a cell, another model with one, and a cell that is too small for
// the model's cutoff.
//
// @since 0.1
diffusim_status_t diffusim_simulation_set_cell(diffusim_simulation_t *simulation,
                                               const double *cell);

// The periodic cell, `cell` `[3][3]` in nm; `*is_periodic` is 0, and `cell` zero, where there is none.
//
// @since 0.1
diffusim_status_t diffusim_simulation_get_cell(const diffusim_simulation_t *simulation,
                                               double *cell,
                                               int32_t *is_periodic);

// Take `n_steps` steps with every replica. On DIFFUSIM_ERROR_NOT_FINITE and DIFFUSIM_ERROR_CALLBACK the positions are those
// of the last good frame and the step count is its number.
//
// @since 0.1
diffusim_status_t diffusim_simulation_step(diffusim_simulation_t *simulation,
                                           uint64_t n_steps);

// Take one step under the model and, on top of it, `forces` `[n_replicas][n_particles][3]` in kJ/(mol nm) at the current
// positions: the density exp(−(U + V)/kT) is sampled (theory 6). `n_values` is the length of `forces`.
//
// @since 0.1
diffusim_status_t diffusim_simulation_step_biased(diffusim_simulation_t *simulation,
                                                  const double *forces,
                                                  size_t n_values);

// Start `n_steps` steps on the GPU's stream, and do not wait: the next other call on the simulation waits, fetches the positions
// and, if the steps failed, fails. With `with_forces` not 0, one step under the model and the forces that lie at
// diffusim_simulation_device_forces. A blend of models with lists of neighbours waits until it is known that they had room.
//
// Errors: DIFFUSIM_ERROR_UNSUPPORTED on the CPU; those of diffusim_simulation_step, with the frame before all enqueued steps as the
// last good one.
//
// @since 0.1
diffusim_status_t diffusim_simulation_enqueue(diffusim_simulation_t *simulation,
                                              uint64_t n_steps,
                                              int32_t with_forces);

// Wait for the steps of diffusim_simulation_enqueue; their errors are told here.
//
// @since 0.1
diffusim_status_t diffusim_simulation_synchronize(diffusim_simulation_t *simulation);

// Where the positions lie on the GPU (a CUdeviceptr): double `[n_replicas][n_particles][3]`, nm, good until the simulation is
// reconfigured or freed. Who writes there, on the simulation's stream, moves the particles for the steps enqueued next.
//
// Errors: DIFFUSIM_ERROR_UNSUPPORTED on the CPU.
//
// @since 0.1
diffusim_status_t diffusim_simulation_device_positions(diffusim_simulation_t *simulation,
                                                       uint64_t *positions);

// Where the velocities lie on the GPU (a CUdeviceptr): double `[n_replicas][n_particles][3]`, nm/ps, as
// diffusim_simulation_device_positions.
//
// Errors: DIFFUSIM_ERROR_UNSUPPORTED on the CPU; DIFFUSIM_ERROR_INVALID_ARGUMENT with adapters that have no velocities.
//
// @since 0.1
diffusim_status_t diffusim_simulation_device_velocities(diffusim_simulation_t *simulation,
                                                        uint64_t *velocities);

// Where to put forces for diffusim_simulation_enqueue (a CUdeviceptr): double `[n_replicas][n_particles][3]`, kJ/(mol nm), zero at
// first, good until the simulation is reconfigured or freed.
//
// Errors: DIFFUSIM_ERROR_UNSUPPORTED on the CPU.
//
// @since 0.1
diffusim_status_t diffusim_simulation_device_forces(diffusim_simulation_t *simulation,
                                                    uint64_t *forces);

// How steps are taken, and on a GPU how long the last ones took by the clock of the host and what was loaded as the kernels, such
// as "cuda:0, 6 launches a step, replayed as a CUDA graph; the last 200 took 12.30 us each; kernels: PTX". The text is valid until
// the next call on this thread that gives one.
//
// @since 0.1
diffusim_status_t diffusim_simulation_device_status(diffusim_simulation_t *simulation,
                                                    const char **status);

// Number of the next step: the steps taken, unless it was set.
//
// @since 0.1
diffusim_status_t diffusim_simulation_get_step(const diffusim_simulation_t *simulation,
                                               uint64_t *step);

// Set the number of the next step, from which the noise continues.
//
// @since 0.1
diffusim_status_t diffusim_simulation_set_step(diffusim_simulation_t *simulation,
                                               uint64_t step);

// Scores of the current frames, `[n_replicas][n_particles][3]` in 1/nm, `n_values` numbers; and, unless `energies` is NULL,
// their energies `[n_replicas]` in kT₀.
//
// @since 0.1
diffusim_status_t diffusim_simulation_evaluate(const diffusim_simulation_t *simulation,
                                               double *scores,
                                               size_t n_values,
                                               double *energies);

// Continue a simulation of a blend (diffusim_model_blend) at another `lambda`, 0 to 1; positions and step count stay. λ is part of
// the simulation's state: checkpoints hold it.
//
// Errors: DIFFUSIM_ERROR_INVALID_ARGUMENT for a lambda outside 0 to 1, and for a model that is no blend.
//
// @since 0.1
diffusim_status_t diffusim_simulation_set_lambda(diffusim_simulation_t *simulation,
                                                 double lambda);

// λ of a simulation of a blend.
//
// Errors: DIFFUSIM_ERROR_INVALID_ARGUMENT for a model that is no blend.
//
// @since 0.1
diffusim_status_t diffusim_simulation_get_lambda(const diffusim_simulation_t *simulation,
                                                 double *lambda);

// As diffusim_model_component_energies, of the current frames: `energies` `[n_replicas][2]` in kT₀; `n_values` is the length of
// `energies`.
//
// @since 0.1
diffusim_status_t diffusim_simulation_component_energies(const diffusim_simulation_t *simulation,
                                                         double *energies,
                                                         size_t n_values);

// Fill `statistics`, whose `struct_size` the caller has set to sizeof(diffusim_statistics_t).
//
// @since 0.1
diffusim_status_t diffusim_simulation_statistics(const diffusim_simulation_t *simulation,
                                                 diffusim_statistics_t *statistics);

// Bytes of a checkpoint.
//
// @since 0.1
diffusim_status_t diffusim_simulation_checkpoint_size(const diffusim_simulation_t *simulation,
                                                      size_t *size);

// Write a checkpoint into `data`, which has room for `size` = diffusim_simulation_checkpoint_size bytes: all that is needed
// to continue bit for bit in a simulation of the same model and options.
//
// @since 0.1
diffusim_status_t diffusim_simulation_checkpoint(const diffusim_simulation_t *simulation,
                                                 void *data,
                                                 size_t size);

// Continue from a checkpoint of `size` bytes, with its seed: a later diffusim_simulation_reconfigure sets the seed of its own
// options again.
//
// Errors: DIFFUSIM_ERROR_INVALID_CHECKPOINT (damaged, or of another model or other options); the simulation is unchanged.
//
// @since 0.1
diffusim_status_t diffusim_simulation_restore(diffusim_simulation_t *simulation,
                                              const void *data,
                                              size_t size);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* DIFFUSIM_H */
