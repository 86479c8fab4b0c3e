// Some consecutive steps of some replicas in one launch: the twin of Chunk::advance in src/backend/cpu.rs.
//
// One block moves `frames_per_block` replicas through all steps: score -> guard -> adapter -> positions, without
// leaving the multiprocessor. Everything is added in the order of the CPU, so that the positions have the bits of the
// CPU's.
#pragma once

#include "heun.cuh"
#include "langevin.cuh"
#include "leimkuhler_matthews.cuh"
#include "mala.cuh"
#include "noise.cuh"

typedef unsigned long long Word64;

// Factors of the schedules at one step: on tau and on the noise amplitude.
struct Factors {
    double drift;
    double noise;
    Inertia inertia;

    DIFFUSIM_MEMBER ParticleStep of(ParticleStep base) const {
        return ParticleStep{base.effective_step * drift, base.noise_amplitude * noise};
    }
    // With tau `factor` times as large.
    DIFFUSIM_MEMBER ParticleStep of(ParticleStep base, double factor) const {
        return ParticleStep{base.effective_step * (drift * factor), base.noise_amplitude * (noise * root(factor))};
    }

    // The largest sound drift in base noise amplitudes; where there are velocities, kick in thermal speeds.
    DIFFUSIM_MEMBER double runaway() const;
};

// What one block has to say after its steps.
struct Report {
    double largest_score; // |component|, 1/nm
    double score;         // the offending one, 1/nm, or the energy that is no number
    Word64 step;          // that could not be taken; NONE if all were
    unsigned frame;       // of the whole batch
    unsigned particle;    // NONE_OF_THEM: the energy failed
    unsigned accepted;    // proposals
    unsigned stage;       // of the step that failed
};

// What moves the particles: the twin of Job in src/backend/mod.rs, and where everything lies on the device.
struct Job {
    double* positions;             // [n_replicas][n_particles][3], nm
    double* velocities;            // the same shape, nm/ps; NULL if the adapter has none
    Tuning* tunings;               // [n_replicas]; NULL without a burn-in
    const double* bias;            // the same shape; NULL if there is none
    const ParticleStep* particles; // [n_particles]
    const Factors* factors;        // [n_steps]
    const unsigned* particle_ids;  // [n_particles]
    Report* reports;               // [n_blocks]
    unsigned char* scratch;        // [n_blocks][scratch_bytes]; NULL if the work space is in shared memory
    Word64 scratch_bytes;
    Word64 seed;
    Word64 first_step;
    Word64 n_steps;
    double bias_scale; // what makes a bias a score, 1/nm
    double target_acceptance;
    Word64 burn_in_steps;
    unsigned n_replicas;
    unsigned n_particles;
    unsigned first_replica;
    unsigned adapter;
    unsigned adds_up; // not 0: reports go on from those of the launch before
    unsigned padding;
};

// In the order of Adapter in src/adapter/mod.rs.
enum Adapter { EULER_MARUYAMA, LEIMKUHLER_MATTHEWS, HEUN, MALA, LANGEVIN };

const Word64 NONE = ~0ull;
const unsigned NONE_OF_THEM = ~0u;
// The same as in src/backend/mod.rs.
const double RUNAWAY = 100.0;

DIFFUSIM_MEMBER double Factors::runaway() const {
    double limit = RUNAWAY / root(drift);
    return inertia.time_step > 0.0 ? limit / root(2.0 * inertia.friction_rate * inertia.time_step) : limit;
}

DIFFUSIM_FN unsigned least(unsigned a, unsigned b) { return a < b ? a : b; }

// A part of the work space; parts begin at multiples of 32 bytes, as tensor cores want it. Twin: Workspace in
// src/backend/cuda/mod.rs.
template <class T>
DIFFUSIM_FN T* carve(unsigned char*& memory, unsigned count) {
    T* part = reinterpret_cast<T*>(memory);
    memory += (count * sizeof(T) + 31) / 32 * 32;
    return part;
}

// Not inlined: it is long, and no step waits for it.
DIFFUSIM_CALL Xi xi_of(Word64 seed, unsigned replica, unsigned particle, Word64 step) {
    Normals normal = normals(seed, replica, particle, step);
    return Xi{{normal.xi[0], normal.xi[1], normal.xi[2]}};
}

// A drift of RUNAWAY noise amplitudes, or a score that is not finite: the opposite of is_sound in src/backend/cpu.rs.
DIFFUSIM_FN bool fails(double score, ParticleStep base, double limit) {
    double size = fabs(score);
    return !(base.effective_step * size <= limit * base.noise_amplitude && size <= 1.7976931348623157e308);
}

// The component that a failure is reported with: the largest, NaN counting as the largest of all.
DIFFUSIM_FN double worst_of(Point s) {
    double worst = s.x[0];
    for (int c = 1; c < 3; c++)
        if (from_double(fabs(s.x[c])) >= from_double(fabs(worst)))
            worst = s.x[c];
    return worst;
}

// Whether a number is neither infinite nor not a number.
DIFFUSIM_FN bool is_finite(double x) { return fabs(x) <= 1.7976931348623157e308; }

// What decides whether proposals are accepted.
struct Metropolis {
    Point* end_scores; // of each particle of each frame
    double* ratios;
    double* energies; // of each frame
    double* end_energies;
    double* factors;    // of burn-in, on tau
    unsigned* accepted; // whether this proposal was
    unsigned total;     // how many were

    static DIFFUSIM_MEMBER Metropolis* load(unsigned char*& memory, unsigned frames, unsigned count,
                                            unsigned n_particles, const Tuning* tunings) {
        Metropolis* place = carve<Metropolis>(memory, 1);
        Metropolis all;
        all.end_scores = carve<Point>(memory, frames * n_particles);
        all.ratios = carve<double>(memory, frames * n_particles);
        all.energies = carve<double>(memory, frames);
        all.end_energies = carve<double>(memory, frames);
        all.factors = carve<double>(memory, frames);
        all.accepted = carve<unsigned>(memory, frames);
        all.total = 0;
        for (unsigned frame = threadIdx.x; frame < count; frame += blockDim.x)
            all.factors[frame] = tunings ? tunings[frame].factor() : 1.0;
        if (threadIdx.x == 0)
            *place = all;
        return place;
    }

    // Accept or reject the proposal of each frame, of which this is the last read of `ratios` and `end_energies`.
    DIFFUSIM_MEMBER void decide(const Job& job, unsigned first, unsigned count, Word64 step, const Factors& scale) {
        const unsigned n = job.n_particles;
        for (unsigned frame = threadIdx.x; frame < count; frame += blockDim.x) {
            double logarithm = 0.0, per_energy = 0.0;
            for (unsigned p = 0; p < n; p++) {
                logarithm += ratios[frame * n + p];
                ParticleStep now = scale.of(job.particles[p], factors[frame]);
                if (now.noise_amplitude > 0.0)
                    per_energy = 2.0 * now.effective_step / (now.noise_amplitude * now.noise_amplitude); // 1/upsilon
            }
            logarithm += per_energy * (energies[frame] - end_energies[frame]);
            if (job.tunings) {
                Tuning& tuning = job.tunings[first + frame];
                tuning.learn(job.target_acceptance, job.burn_in_steps, step, logarithm);
                factors[frame] = tuning.factor();
            }
            // False for NaN: a proposal without a finite energy is never accepted.
            accepted[frame] = ln_double(uniform(job.seed, job.first_replica + first + frame, step)) < logarithm;
            if (accepted[frame]) {
                energies[frame] = end_energies[frame];
                atomicAdd(&total, 1u);
            }
        }
    }
};

// Parts of the work space, kept there as well: while scores are computed, registers are scarce.
struct Steps {
    Point* positions;
    Point* scores;
    Point* ends; // of a step of two stages
    Point* velocities;
    Xi* noise;
    Metropolis* metropolis;
};

// `Model` gives the number of frames it works on at once, loads what it needs, prepares the scores (and, if asked for,
// the energies) of all frames together and then tells the score of one particle and the energy of one frame.
//
// A step has one or two stages: Heun and Metropolis need the score at the end of the step as well.
template <class Model>
DIFFUSIM_FN void advance(const Job& job, Model& model, unsigned char* memory) {
    const unsigned frames = model.frames(), n = job.n_particles, adapter = job.adapter;
    const unsigned first = blockIdx.x * frames, count = least(frames, job.n_replicas - first);
    // Frames that failed in an earlier launch stay where they are.
    if (job.adds_up && job.reports[blockIdx.x].step != NONE)
        return;
    const unsigned n_stages = adapter == HEUN || adapter == MALA ? 2 : 1;
    const bool with_energy = adapter == MALA;
    unsigned* first_failure = carve<unsigned>(memory, 1);
    Word64* largest_bits = carve<Word64>(memory, 1);
    const Steps* steps = carve<Steps>(memory, 1);
    {
        Steps parts = {};
        parts.positions = carve<Point>(memory, frames * n);
        parts.scores = carve<Point>(memory, frames * n);
        parts.noise = carve<Xi>(memory, frames * n);
        if (n_stages == 2)
            parts.ends = carve<Point>(memory, frames * n);
        if (with_energy)
            parts.metropolis = Metropolis::load(memory, frames, count, n, job.tunings ? job.tunings + first : nullptr);
        if (adapter == LANGEVIN) {
            parts.velocities = carve<Point>(memory, frames * n);
            const Point* velocities = reinterpret_cast<const Point*>(job.velocities) + (size_t)first * n;
            for (unsigned i = threadIdx.x; i < count * n; i += blockDim.x)
                parts.velocities[i] = velocities[i];
        }
        model.load(memory, with_energy);
        // Places for frames beyond the last replica hold copies of it, which nobody moves.
        const Point* global = reinterpret_cast<const Point*>(job.positions) + (size_t)first * n;
        for (unsigned i = threadIdx.x; i < frames * n; i += blockDim.x) {
            parts.positions[i] = global[least(i / n, count - 1) * n + i % n];
            if (n_stages == 2)
                parts.ends[i] = parts.positions[i];
        }
        if (threadIdx.x == 0) {
            *const_cast<Steps*>(steps) = parts;
            *first_failure = NONE_OF_THEM;
            *largest_bits = 0;
        }
        __syncthreads();
    }

    double largest = 0.0;
    Word64 failed = NONE;
    unsigned failed_stage = 0;
    for (Word64 step = job.first_step; step != job.first_step + job.n_steps && failed == NONE; step++) {
        for (unsigned stage = 0; stage < n_stages; stage++) {
            __syncthreads();
            // Metropolis knows the scores of where it is.
            const bool known = with_energy && stage == 0 && step != job.first_step;
            if (!known)
                model.prepare(stage == 0 ? steps->positions : steps->ends, with_energy);
            Point *positions = steps->positions, *scores = steps->scores, *ends = steps->ends;
            Metropolis* metropolis = steps->metropolis;
            const Point* x = stage == 0 ? positions : ends;
            const bool decides = with_energy && stage == 1;
            const Factors factors = job.factors[step - job.first_step];
            const double limit = factors.runaway();
            int unsound = 0;
            if (with_energy && !known) {
                double* energies = stage == 0 ? metropolis->energies : metropolis->end_energies;
                for (unsigned frame = threadIdx.x; frame < count; frame += blockDim.x)
                    energies[frame] = model.energy(x, frame);
            }
            for (unsigned i = threadIdx.x; i < count * n; i += blockDim.x) {
                Point s = known ? scores[i] : model.score(x, i / n, i % n);
                ParticleStep base = job.particles[i % n];
                if (decides) {
                    ParticleStep now = factors.of(base, metropolis->factors[i / n]);
                    metropolis->end_scores[i] = s;
                    metropolis->ratios[i] = log_proposal_ratio(positions[i], scores[i], ends[i], s, now);
                    continue;
                }
                if (stage == 1)
                    s = Heun::mean(scores[i], s);
                for (int c = 0; c < 3; c++) {
                    if (job.bias)
                        s.x[c] += job.bias[3 * ((size_t)first * n + i) + c] * job.bias_scale;
                    largest = fmax(largest, fabs(s.x[c]));
                    if (fails(s.x[c], base, limit)) {
                        unsound = 1;
                        atomicMin(first_failure, i);
                    }
                }
                scores[i] = s;
            }
            if (decides) {
                __syncthreads();
                metropolis->decide(job, first, count, step, factors);
                __syncthreads();
                for (unsigned i = threadIdx.x; i < count * n; i += blockDim.x)
                    if (metropolis->accepted[i / n]) {
                        positions[i] = ends[i];
                        scores[i] = metropolis->end_scores[i];
                    }
                continue;
            }
            if (with_energy)
                for (unsigned frame = threadIdx.x; frame < count; frame += blockDim.x)
                    unsound |= !is_finite(metropolis->energies[frame]);
            if (__syncthreads_or(unsound)) {
                failed = step;
                failed_stage = stage;
                break;
            }
            Point* moved = stage + 1 < n_stages ? ends : positions;
            Xi* noise = steps->noise;
            for (unsigned i = threadIdx.x; i < count * n; i += blockDim.x) {
                const unsigned replica = job.first_replica + first + i / n, id = job.particle_ids[i % n];
                ParticleStep base = job.particles[i % n];
                ParticleStep now = with_energy ? factors.of(base, metropolis->factors[i / n]) : factors.of(base);
                // `noise` is read again by this thread alone.
                const bool kept = adapter == LEIMKUHLER_MATTHEWS ? step != job.first_step : stage == 1;
                Xi xi = kept ? noise[i] : xi_of(job.seed, replica, id, step);
                if (adapter == LEIMKUHLER_MATTHEWS) {
                    Xi next = xi_of(job.seed, replica, id, step + 1);
                    moved[i] = LeimkuhlerMatthews::update_particle(positions[i], scores[i], xi, next, now);
                    noise[i] = next;
                } else if (adapter == LANGEVIN) {
                    Langevin::update_particle(positions[i], steps->velocities[i], scores[i], xi, now, factors.inertia);
                } else if (adapter == HEUN) {
                    moved[i] = Heun::update_particle(positions[i], scores[i], xi, now);
                    noise[i] = xi;
                } else {
                    moved[i] = EulerMaruyama::update_particle(positions[i], scores[i], xi, xi, now);
                }
            }
        }
    }

    atomicMax(largest_bits, from_double(largest)); // numbers that are not negative order like their bits
    __syncthreads();
    Point* global = reinterpret_cast<Point*>(job.positions) + (size_t)first * n;
    for (unsigned i = threadIdx.x; i < count * n; i += blockDim.x)
        global[i] = steps->positions[i];
    if (adapter == LANGEVIN)
        for (unsigned i = threadIdx.x; i < count * n; i += blockDim.x)
            reinterpret_cast<Point*>(job.velocities)[(size_t)first * n + i] = steps->velocities[i];
    const Metropolis* metropolis = steps->metropolis;
    if (threadIdx.x == 0) {
        Report report = {0.0, 0.0, failed, 0, 0, 0, failed_stage};
        if (failed != NONE && *first_failure != NONE_OF_THEM) {
            report.frame = first + *first_failure / n;
            report.particle = *first_failure % n;
            report.score = worst_of(steps->scores[*first_failure]);
        } else if (failed != NONE) {
            unsigned frame = 0;
            while (is_finite(metropolis->energies[frame]))
                frame++;
            report.frame = first + frame;
            report.particle = NONE_OF_THEM;
            report.score = metropolis->energies[frame];
        }
        report.largest_score = into_double(*largest_bits);
        report.accepted = with_energy ? metropolis->total : 0;
        if (job.adds_up) {
            report.largest_score = fmax(report.largest_score, job.reports[blockIdx.x].largest_score);
            report.accepted += job.reports[blockIdx.x].accepted;
        }
        job.reports[blockIdx.x] = report;
    }
}
