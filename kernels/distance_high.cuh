// The `distance` network with its products on tensor cores: matmul_precision "high".
//
// Weights are of half precision, which is what those of bfloat16 are but for a power of two that all share, and lie as
// [padded(n_in)][padded(n_out) + SKEW], zeros in the padding: one copy serves both directions. All else is as in
// distance.cuh, in single precision.
//
// What that should cost (data sheets again, not measured): the network of examples/ala2 takes 10.9 million products of
// half precision for the scores of 32 frames, 2,048 a cycle. More time goes by in shared memory, which gives 128 bytes
// a cycle.
//
// FRAMES = 8: 0.34 MB of weights and 0.17 MB of activations, read again for every 32 units, are 4,000 cycles, 2.4 us a
// step of 1,056 replicas.
//
// FRAMES = 32: 0.34 MB of weights, 1.4 MB of activations, read again for every 16 units, and 0.26 MB of sums are 15,500
// cycles, 9 us a step of 4,224 replicas, 5,300 cycles of them on tensor cores. Exact products take 25 us.
#pragma once

#include "distance.cuh"

template <int FRAMES>
struct DistanceHigh : Distance<FRAMES, 4, 4> {
    static const unsigned PITCH = Split<FRAMES>::PITCH;

    DIFFUSIM_MEMBER static unsigned pitch(const Layer& layer) { return padded(layer.n_out) + SKEW; }

    DIFFUSIM_MEMBER const Half* weights(unsigned l) const {
        return (l < this->n_resident ? reinterpret_cast<const Half*>(this->resident) : this->halves) +
               this->layers[l].weight;
    }

    DIFFUSIM_MEMBER void load(unsigned char*& memory, bool with_energy) {
        this->carve_parts(memory, with_energy, PITCH);
        if (this->n_resident == 0)
            return;
        const Layer& last = this->layers[this->n_resident - 1];
        const unsigned n_quads = (last.weight + padded(last.n_in) * pitch(last)) * sizeof(Half) / sizeof(Quad);
        for (unsigned i = threadIdx.x; i < n_quads; i += blockDim.x)
            reinterpret_cast<Quad*>(this->resident)[i] = reinterpret_cast<const Quad*>(this->halves)[i];
    }

    DIFFUSIM_MEMBER void prepare(const Point* positions, bool with_energy) {
        this->find_features(positions);
        run_network(with_energy);
        this->hand_back();
    }

    // From features to dE/dfeature in `input`. Ends with a barrier.
    DIFFUSIM_MEMBER void run_network(bool with_energy) {
        Half* const halves = reinterpret_cast<Half*>(this->input);
        const Split<FRAMES> x = {halves, halves + this->widest * PITCH};
        const float* sums = this->output;
        const unsigned n_features = this->n_features();
        for (unsigned i = threadIdx.x; i < padded(n_features) * FRAMES; i += blockDim.x)
            x.set(i / FRAMES, i % FRAMES, i < n_features * FRAMES ? this->features[i] : 0.0f);
        __syncthreads();

        // Forward, keeping the slopes of the activations; the last layer gives dE/d(its sums) at once.
        float* slope = this->slopes;
        for (unsigned l = 0; l < this->n_layers; l++) {
            const bool last = l + 1 == this->n_layers;
            const Layer layer = this->layers[l];
            multiply<FRAMES, true>(weights(l), pitch(layer), padded(layer.n_out), padded(layer.n_in), x, this->output);
            __syncthreads();
            for (unsigned i = threadIdx.x; i < padded(layer.n_out) * FRAMES; i += blockDim.x) {
                const unsigned o = i / FRAMES, frame = i % FRAMES;
                float next = 0.0f;
                if (o < layer.n_out) {
                    const Silu silu(fused(sums[o * PITCH + frame], this->unscale, this->numbers[layer.bias + o]));
                    next = last ? this->numbers[this->output_weight + o] * silu.slope : silu.value;
                    if (!last)
                        slope[i] = silu.slope;
                    else if (with_energy)
                        this->units()[i] = silu.value;
                }
                x.set(o, frame, next);
            }
            if (!last)
                slope += layer.n_out * FRAMES;
            __syncthreads();
        }

        if (with_energy)
            this->sum_up();

        // Backward.
        for (unsigned l = this->n_layers; l-- > 0;) {
            const Layer layer = this->layers[l];
            multiply<FRAMES, false>(weights(l), pitch(layer), padded(layer.n_in), padded(layer.n_out), x, this->output);
            if (l > 0)
                slope -= layer.n_in * FRAMES;
            __syncthreads();
            for (unsigned i = threadIdx.x; i < padded(layer.n_in) * FRAMES; i += blockDim.x) {
                const unsigned row = i / FRAMES, frame = i % FRAMES;
                const float sum = row < layer.n_in ? sums[row * PITCH + frame] * this->unscale : 0.0f;
                if (l > 0)
                    x.set(row, frame, row < layer.n_in ? sum * slope[i] : 0.0f);
                else
                    this->input[i] = sum;
            }
            __syncthreads();
        }
    }
};
