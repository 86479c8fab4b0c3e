// Some consecutive steps of some replicas in one launch: the twin of Chunk::advance in src/backend/cpu.rs.
//
// One block moves `frames_per_block` replicas through all steps: score -> guard -> adapter -> positions, without
// leaving the multiprocessor. Everything is added in the order of the CPU, so that the positions have the bits of the
// CPU's.
#pragma once

#include "em.cuh"
#include "leimkuhler_matthews.cuh"
#include "noise.cuh"

typedef unsigned long long Word64;

// Factors of the schedules at one step: on tau and on the noise amplitude.
struct Factors {
    double drift;
    double noise;
};

// What one block has to say after its steps.
struct Report {
    double largest_score; // |component|, 1/nm
    double score;         // the offending one, 1/nm
    Word64 step;          // that could not be taken; NONE if all were
    unsigned frame;       // of the whole batch
    unsigned particle;
};

// What moves the particles: the twin of Job in src/backend/mod.rs, and where everything lies on the device.
struct Job {
    double* positions;             // [n_replicas][n_particles][3], nm
    const double* bias;            // the same shape, 1/nm; NULL if there is none
    const ParticleStep* particles; // [n_particles]
    const Factors* factors;        // [n_steps]
    const unsigned* particle_ids;  // [n_particles]
    Report* reports;               // [n_blocks]
    unsigned char* scratch;        // [n_blocks][scratch_bytes]; NULL if the work space is in shared memory
    Word64 scratch_bytes;
    Word64 seed;
    Word64 first_step;
    Word64 n_steps;
    unsigned n_replicas;
    unsigned n_particles;
    unsigned first_replica;
    unsigned next_noise; // not 0: the adapter is Leimkuhler-Matthews, which needs xi_{n+1}
};

const Word64 NONE = ~0ull;
// The same as in src/backend/mod.rs.
const double RUNAWAY = 100.0;

DIFFUSIM_FN unsigned least(unsigned a, unsigned b) { return a < b ? a : b; }

// A part of the work space; parts begin at multiples of 16 bytes. Twin: Workspace in src/backend/cuda/mod.rs.
template <class T>
DIFFUSIM_FN T* carve(unsigned char*& memory, unsigned count) {
    T* part = reinterpret_cast<T*>(memory);
    memory += (count * sizeof(T) + 15) / 16 * 16;
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

// `Model` gives the number of frames it works on at once, loads what it needs, prepares the scores of all frames
// together and then tells that of one particle.
template <class Model>
DIFFUSIM_FN void advance(const Job& job, Model& model, unsigned char* memory) {
    const unsigned frames = model.frames(), n = job.n_particles;
    const unsigned first = blockIdx.x * frames, count = least(frames, job.n_replicas - first);
    unsigned* first_failure = carve<unsigned>(memory, 1);
    Word64* largest_bits = carve<Word64>(memory, 1);
    Point* positions = carve<Point>(memory, frames * n);
    Point* scores = carve<Point>(memory, frames * n);
    Xi* noise = carve<Xi>(memory, frames * n);
    model.load(memory);

    Point* global = reinterpret_cast<Point*>(job.positions) + (size_t)first * n;
    const Point* bias = reinterpret_cast<const Point*>(job.bias) + (size_t)first * n;
    // Places for frames beyond the last replica hold copies of it, which nobody moves.
    for (unsigned i = threadIdx.x; i < frames * n; i += blockDim.x)
        positions[i] = global[least(i / n, count - 1) * n + i % n];
    if (threadIdx.x == 0) {
        *first_failure = ~0u;
        *largest_bits = 0;
    }

    double largest = 0.0;
    Word64 failed = NONE;
    for (Word64 step = job.first_step; step != job.first_step + job.n_steps; step++) {
        __syncthreads();
        model.prepare(positions);
        const Factors factors = job.factors[step - job.first_step];
        const double limit = RUNAWAY / root(factors.drift);
        int unsound = 0;
        for (unsigned i = threadIdx.x; i < count * n; i += blockDim.x) {
            Point s = model.score(positions, i / n, i % n);
            ParticleStep base = job.particles[i % n];
            for (int c = 0; c < 3; c++) {
                if (job.bias)
                    s.x[c] += bias[i].x[c];
                largest = fmax(largest, fabs(s.x[c]));
                if (fails(s.x[c], base, limit)) {
                    unsound = 1;
                    atomicMin(first_failure, i);
                }
            }
            scores[i] = s;
        }
        if (__syncthreads_or(unsound)) {
            failed = step;
            break;
        }
        for (unsigned i = threadIdx.x; i < count * n; i += blockDim.x) {
            const unsigned replica = job.first_replica + first + i / n, id = job.particle_ids[i % n];
            ParticleStep base = job.particles[i % n];
            ParticleStep now = {base.effective_step * factors.drift, base.noise_amplitude * factors.noise};
            if (job.next_noise) {
                Xi xi = step == job.first_step ? xi_of(job.seed, replica, id, step) : noise[i];
                Xi next = xi_of(job.seed, replica, id, step + 1);
                positions[i] = LeimkuhlerMatthews::update_particle(positions[i], scores[i], xi, next, now);
                noise[i] = next; // read again by this thread alone
            } else {
                Xi xi = xi_of(job.seed, replica, id, step);
                positions[i] = EulerMaruyama::update_particle(positions[i], scores[i], xi, xi, now);
            }
        }
    }

    atomicMax(largest_bits, from_double(largest)); // numbers that are not negative order like their bits
    __syncthreads();
    for (unsigned i = threadIdx.x; i < count * n; i += blockDim.x)
        global[i] = positions[i];
    if (threadIdx.x == 0) {
        Report report = {0.0, 0.0, failed, 0, 0};
        if (failed != NONE) {
            report.frame = first + *first_failure / n;
            report.particle = *first_failure % n;
            report.score = worst_of(scores[*first_failure]);
        }
        report.largest_score = into_double(*largest_bits);
        job.reports[blockIdx.x] = report;
    }
}
