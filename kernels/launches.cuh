// Steps of which each takes several launches, for models that work on a frame with many blocks: the twin of
// Chunk::advance in src/backend/cpu.rs, in the order of the CPU, as advance.cuh is for models that need one block.
//
// A step evaluates the score, checks it (step_score) and moves the particles (step_move); Heun and Metropolis do so
// twice, and Metropolis decides (step_settle). What a launch depends on lies on the device - the job, and the clock
// that counts the steps - so that the launches of a step may be replayed as a graph.
#pragma once

#include "advance.cuh"

// Of all frames.
struct Clock {
    Word64 step;      // that is being taken
    unsigned done;    // blocks that have finished the last launch of it
    unsigned stalled; // not 0: no step is taken any more, and the host sees to the reason
    unsigned longest; // list of neighbours met
    unsigned lost;    // a particle that is too far away or nowhere, the first; NONE_OF_THEM

    // Before steps or an evaluation.
    DIFFUSIM_MEMBER void start() {
        stalled = 0;
        lost = NONE_OF_THEM;
    }

    // A list of this length was met, and there is room for `capacity`.
    DIFFUSIM_MEMBER void need(unsigned length, unsigned capacity) {
        if (length > longest)
            atomicMax(&longest, length);
        if (length > capacity)
            stalled = 1;
    }
    DIFFUSIM_MEMBER void lose(unsigned particle) {
        atomicMin(&lost, particle);
        stalled = 1;
    }

    // The last thing that every block of the last launch of a step does.
    DIFFUSIM_MEMBER void tick() {
        __syncthreads();
        if (threadIdx.x == 0 && atomicAdd(&done, 1u) == gridDim.x - 1) {
            done = 0;
            step = step + 1;
        }
    }
};

// When the score is computed: at the beginning of a step, at its end, or before the first step of Metropolis, which
// then knows the scores where it is.
enum Stage { AT_BEGINNING, AT_END, BEFORE };

// What steps work on, besides the job.
struct Launches {
    const Job* job;
    Clock* clock;
    Point* scores;    // [n_replicas][n_particles]
    unsigned* frozen; // [n_replicas]: not 0 where a step failed
    // Of a step of two stages; NULL for others.
    Point* ends;
    // Of Metropolis; NULL for others.
    Point* end_scores;
    double* ratios;
    double* energies; // [n_replicas]
    double* end_energies;
    double* factors; // of burn-in, on tau
    unsigned* accepted;

    DIFFUSIM_MEMBER unsigned n_all() const { return job->n_replicas * job->n_particles; }
    DIFFUSIM_MEMBER bool decides() const { return job->adapter == MALA; }
    DIFFUSIM_MEMBER unsigned last_stage() const { return job->adapter == HEUN || decides() ? AT_END : AT_BEGINNING; }
    DIFFUSIM_MEMBER const Factors& now() const { return job->factors[clock->step - job->first_step]; }
    DIFFUSIM_MEMBER const Point* at(unsigned stage) const {
        return stage == AT_END ? ends : reinterpret_cast<const Point*>(job->positions);
    }
    // Whether a particle of this frame may not be moved.
    DIFFUSIM_MEMBER bool freezes(unsigned frame) const {
        const bool failed = job->reports[frame].step != NONE;
        if (failed)
            frozen[frame] = 1;
        return failed;
    }
};

// Before the steps of a call: whoever has moved since the last one is noticed, by one thread for each particle.
template <class Model>
DIFFUSIM_FN void begin_steps(const Launches& launches, const Model& model) {
    const Job& job = *launches.job;
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i == 0) {
        launches.clock->step = job.first_step;
        launches.clock->done = 0;
        if (!job.adds_up)
            launches.clock->start();
    }
    if (i < job.n_replicas && !job.adds_up) {
        job.reports[i] = Report{0.0, 0.0, NONE, i, NONE_OF_THEM, 0, 0};
        launches.frozen[i] = 0;
    }
    if (i < launches.n_all()) {
        model.notice(i, launches.at(AT_BEGINNING)[i], true);
        if (launches.ends) // frames that fail at once are evaluated there all the same
            launches.ends[i] = launches.at(AT_BEGINNING)[i];
    }
}

// The score of every particle, by a warp for each; `memory` is shared, 768 bytes for each warp.
template <class Model>
DIFFUSIM_FN void check_scores(const Launches& launches, const Model& model, unsigned stage, unsigned char* memory) {
    const Job& job = *launches.job;
    const unsigned i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= launches.n_all() || launches.clock->stalled)
        return;
    const Word64 step = launches.clock->step;
    const unsigned frame = i / job.n_particles, particle = i % job.n_particles;
    if (launches.frozen[frame])
        return;
    Report& report = job.reports[frame];
    if (stage == AT_BEGINNING && launches.decides()) {
        if (lane == 0 && particle == 0 && !is_finite(launches.energies[frame])) {
            report.score = launches.energies[frame];
            report.stage = stage;
            report.step = step;
        }
    } else {
        Point s = model.score(i, reinterpret_cast<Point*>(memory) + threadIdx.x / 32 * 32);
        if (lane == 0) {
            Point& to = stage == AT_END && launches.decides() ? launches.end_scores[i] : launches.scores[i];
            to = stage == AT_END && !launches.decides() ? Heun::mean(launches.scores[i], s) : s;
        }
    }
    if (lane != 0 || stage == BEFORE)
        return;
    const Factors& factors = launches.now();
    const ParticleStep base = job.particles[particle];
    if (stage == AT_END && launches.decides()) {
        ParticleStep now = factors.of(base, launches.factors[frame]);
        launches.ratios[i] = log_proposal_ratio(launches.at(AT_BEGINNING)[i], launches.scores[i], launches.ends[i],
                                                launches.end_scores[i], now);
        return;
    }
    const double limit = factors.runaway();
    Point s = launches.scores[i];
    double largest = 0.0;
    bool unsound = false;
    for (int c = 0; c < 3; c++) {
        if (job.bias)
            s.x[c] += job.bias[3 * (size_t)i + c] * job.bias_scale;
        largest = fmax(largest, fabs(s.x[c]));
        unsound |= fails(s.x[c], base, limit);
    }
    launches.scores[i] = s;
    if (largest > report.largest_score) // numbers that are not negative order like their bits
        atomicMax(reinterpret_cast<Word64*>(&report.largest_score), from_double(largest));
    if (unsound) {
        atomicMin(&report.particle, particle);
        report.stage = stage;
        report.step = step;
    }
}

// Move every particle, by one thread for each. Frames that failed stay where they are.
template <class Model>
DIFFUSIM_FN void move_particles(const Launches& launches, const Model& model, unsigned stage) {
    const Job& job = *launches.job;
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (launches.clock->stalled)
        return;
    if (i < launches.n_all() && !launches.freezes(i / job.n_particles)) {
        const Word64 step = launches.clock->step;
        const unsigned replica = job.first_replica + i / job.n_particles, id = job.particle_ids[i % job.n_particles];
        const unsigned adapter = job.adapter;
        const Factors& factors = launches.now();
        const ParticleStep base = job.particles[i % job.n_particles];
        const ParticleStep now =
            launches.decides() ? factors.of(base, launches.factors[i / job.n_particles]) : factors.of(base);
        Point* positions = reinterpret_cast<Point*>(job.positions);
        Point moved = positions[i], s = launches.scores[i];
        Xi xi = xi_of(job.seed, replica, id, step);
        if (adapter == LEIMKUHLER_MATTHEWS)
            moved = LeimkuhlerMatthews::update_particle(moved, s, xi, xi_of(job.seed, replica, id, step + 1), now);
        else if (adapter == LANGEVIN)
            Langevin::update_particle(moved, reinterpret_cast<Point*>(job.velocities)[i], s, xi, now, factors.inertia);
        else
            moved = EulerMaruyama::update_particle(moved, s, xi, xi, now);
        (stage < launches.last_stage() ? launches.ends : positions)[i] = moved;
        model.notice(i, moved, false);
    }
    if (stage == launches.last_stage())
        launches.clock->tick();
}

// The energy of each frame, by a thread, and what becomes of its proposal; `memory` is shared.
template <class Model>
DIFFUSIM_FN void settle_proposals(const Launches& launches, const Model& model, unsigned stage, unsigned char* memory) {
    const Job& job = *launches.job;
    const unsigned n = job.n_particles, first = blockIdx.x * blockDim.x;
    const unsigned count = least(blockDim.x, job.n_replicas - first), frame = first + threadIdx.x;
    if (launches.clock->stalled)
        return;
    if (threadIdx.x < count)
        (stage == BEFORE ? launches.energies : launches.end_energies)[frame] = model.energy(frame);
    if (stage == BEFORE) {
        if (threadIdx.x < count)
            launches.factors[frame] = job.tunings ? job.tunings[frame].factor() : 1.0;
        return;
    }
    Metropolis* metropolis = reinterpret_cast<Metropolis*>(memory);
    if (threadIdx.x == 0)
        *metropolis = Metropolis{launches.end_scores + (size_t)first * n,
                                 launches.ratios + (size_t)first * n,
                                 launches.energies + first,
                                 launches.end_energies + first,
                                 launches.factors + first,
                                 launches.accepted + first,
                                 0};
    __syncthreads();
    metropolis->decide(job, first, count, launches.clock->step, launches.now());
    __syncthreads();
    if (threadIdx.x < count)
        job.reports[frame].accepted += launches.accepted[frame];
    for (unsigned i = threadIdx.x; i < count * n; i += blockDim.x) {
        const size_t at = (size_t)first * n + i;
        if (launches.accepted[first + i / n] && !launches.frozen[first + i / n]) {
            reinterpret_cast<Point*>(job.positions)[at] = launches.ends[at];
            launches.scores[at] = launches.end_scores[at];
        }
    }
    launches.clock->tick();
}
