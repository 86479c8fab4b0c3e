// Scores and energies of some frames, without a step: the twin of ScoreModel::evaluate. In one launch for models that
// work on a frame with one block, in several for others, whose network is launched in between.
#pragma once

#include "launches.cuh"

// What is evaluated, and where the results go.
struct Evaluation {
    const double* positions; // [n_frames][n_particles][3], nm
    double* scores;          // the same shape, 1/nm
    double* energies;        // [n_frames], kT_0; NULL if they are not asked for
    unsigned char* scratch;  // [n_blocks][scratch_bytes]; NULL if the work space is in shared memory
    Word64 scratch_bytes;
    unsigned n_frames;
    unsigned n_particles;

    DIFFUSIM_MEMBER size_t n_all() const { return (size_t)n_frames * n_particles; }
    DIFFUSIM_MEMBER const Point* at() const { return reinterpret_cast<const Point*>(positions); }
};

// `Model` is as for advance(). A block works on one batch of frames after the other, and loads the model once.
template <class Model>
DIFFUSIM_FN void evaluate(const Evaluation& job, Model& model, unsigned char* memory) {
    const unsigned frames = model.frames(), n = job.n_particles;
    Point* positions = carve<Point>(memory, frames * n);
    model.load(memory, true);
    for (unsigned first = blockIdx.x * frames; first < job.n_frames; first += gridDim.x * frames) {
        const unsigned count = least(frames, job.n_frames - first);
        const size_t offset = (size_t)first * n;
        __syncthreads();
        // Places for frames beyond the last hold copies of it.
        for (unsigned i = threadIdx.x; i < frames * n; i += blockDim.x)
            positions[i] = job.at()[offset + least(i / n, count - 1) * n + i % n];
        __syncthreads();
        model.prepare(positions, job.energies != nullptr);
        for (unsigned i = threadIdx.x; i < count * n; i += blockDim.x)
            reinterpret_cast<Point*>(job.scores)[offset + i] = model.score(positions, i / n, i % n);
        if (job.energies)
            for (unsigned frame = threadIdx.x; frame < count; frame += blockDim.x)
                job.energies[first + frame] = model.energy(positions, frame);
    }
}

// Before the launches of a network: whoever has moved since the last evaluation is noticed, by one thread for each
// particle.
template <class Model>
DIFFUSIM_FN void begin_evaluation(const Evaluation& job, const Model& model) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i == 0)
        model.clock().start();
    if (i < job.n_all())
        model.notice(i, job.at()[i], true);
}

// After them: the score of every particle, by a warp for each; `memory` is shared, 768 bytes for each warp.
template <class Model>
DIFFUSIM_FN void finish_evaluation(const Evaluation& job, const Model& model, unsigned char* memory) {
    const unsigned i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= job.n_all() || model.clock().stalled)
        return;
    Point s = model.score(i, reinterpret_cast<Point*>(memory) + threadIdx.x / 32 * 32);
    if (lane != 0)
        return;
    reinterpret_cast<Point*>(job.scores)[i] = s;
    if (job.energies && i % job.n_particles == 0)
        job.energies[i / job.n_particles] = model.energy(i / job.n_particles);
}
