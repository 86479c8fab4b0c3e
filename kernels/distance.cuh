// The `distance` network: the twin of src/model/distance.rs, whose documentation has the formulas, function by
// function.
//
// Sums run in the order of the CPU and every operation is correctly rounded, so that a score has the bits of the CPU's.
//
// A block works on FRAMES frames at once, arrays lie as [index][frame], and a thread of a dense layer holds several
// frames of one unit in registers: a weight that was read serves all of them. Weights are the same for all blocks; as
// many layers as fit are copied into shared memory once a launch, where one copy serves both directions, the others
// stream from the second-level cache.
//
// What that should cost (a roofline from data sheets, not measured; H100: 132 multiprocessors at 1.7 GHz, each 128 fma
// a cycle and 64 bytes a cycle from the second-level cache, which gives 5.5 TB/s to all of them): the network of
// examples/ala2 has 85,056 weights, so 170,112 fma a score, and layers 0 and 1 stay in shared memory (193 kB) while 295
// kB stream.
//
// FRAMES = 1: one replica streams for 4,600 cycles over 4,100 of dependent fma (1,019 of 4 cycles): 3 us a step. With
// 132 replicas the streams share 5.5 TB/s: 7 us a step.
//
// FRAMES = 8: 10,600 cycles of fma, 6.2 us a step of 1,056 replicas, which stream for 7 us.
//
// FRAMES = 32: 42,500 cycles of fma, 25 us a step of 4,224 replicas.
//
// Reading activations from shared memory may take up to twice the time of the fma where a thread holds 4 frames of a
// unit. Splitting a block's work over a cluster of four, each with a quarter of the weights in its shared memory, would
// end the streaming.
#pragma once

#include "advance.cuh"
#include "tensor.cuh"

// A dense layer in the arrays of numbers. `transposed` is the same weight, [n_out][n_in], for the way back.
struct Layer {
    unsigned n_in;
    unsigned n_out;
    unsigned weight;
    unsigned bias;
    unsigned transposed;
};

// Neighbouring floats, to be read at once.
struct alignas(16) Quad {
    float x[4];
};

struct Vector {
    float x[3];
};

DIFFUSIM_FN Vector difference(Vector a, Vector b) {
    return Vector{{a.x[0] - b.x[0], a.x[1] - b.x[1], a.x[2] - b.x[2]}};
}

DIFFUSIM_FN Vector scaled(Vector a, float s) { return Vector{{a.x[0] * s, a.x[1] * s, a.x[2] * s}}; }

DIFFUSIM_FN Vector sum(Vector a, Vector b) { return Vector{{a.x[0] + b.x[0], a.x[1] + b.x[1], a.x[2] + b.x[2]}}; }

// a s + b
DIFFUSIM_FN Vector axpy(Vector a, float s, Vector b) {
    return Vector{{fused(a.x[0], s, b.x[0]), fused(a.x[1], s, b.x[1]), fused(a.x[2], s, b.x[2])}};
}

DIFFUSIM_FN float dot(Vector a, Vector b) { return fused(a.x[2], b.x[2], fused(a.x[1], b.x[1], a.x[0] * b.x[0])); }

DIFFUSIM_FN Vector cross(Vector a, Vector b) {
    return Vector{
        {a.x[1] * b.x[2] - a.x[2] * b.x[1], a.x[2] * b.x[0] - a.x[0] * b.x[2], a.x[0] * b.x[1] - a.x[1] * b.x[0]}};
}

// x/(1 + exp(-x)) and its derivative.
struct Silu {
    float value;
    float slope;

    explicit DIFFUSIM_MEMBER Silu(float x) {
        float sigmoid = 1.0f / (exp_single(-x) + 1.0f);
        value = x * sigmoid;
        slope = fused(1.0f - sigmoid, value, sigmoid);
    }
};

// The three bonds of a quadruplet and what both of its features share.
struct Bonds {
    Vector b[3];
    float inverse[3]; // 1/l_k
    Vector n;         // b_2 x b_3

    DIFFUSIM_MEMBER Bonds(float softening_squared, Vector xa, Vector xb, Vector xc, Vector xd) {
        b[0] = difference(xb, xa);
        b[1] = difference(xc, xb);
        b[2] = difference(xd, xc);
        for (int k = 0; k < 3; k++)
            inverse[k] = 1.0f / root(dot(b[k], b[k]) + softening_squared);
        n = cross(b[1], b[2]);
    }

    // 1/(l_1 l_2 l_3)
    DIFFUSIM_MEMBER float volume() const { return inverse[0] * inverse[1] * inverse[2]; }

    // S = b_1.n / (l_1 l_2 l_3)
    DIFFUSIM_MEMBER float sine() const { return dot(b[0], n) * volume(); }

    // C = (b_1 x b_2).n / (l_1 l_2^2 l_3)
    DIFFUSIM_MEMBER float cosine() const { return dot(cross(b[0], b[1]), n) * volume() * inverse[1]; }

    // d(ws S + wc C)/d b_k
    DIFFUSIM_MEMBER void gradient(float ws, float wc, Vector* g) const {
        Vector m = cross(b[0], b[1]);
        float s = ws * volume();
        float c = wc * volume() * inverse[1];
        ws *= sine();
        wc *= cosine();
        // (b1 x b2).(b2 x b3) = (b1.b2)(b2.b3) - (b1.b3)(b2.b2)
        float p = dot(b[0], b[1]), q = dot(b[1], b[2]), r = dot(b[0], b[2]), t = dot(b[1], b[1]);
        g[0] = axpy(n, s, scaled(axpy(b[2], -t, scaled(b[1], q)), c));
        g[1] = axpy(cross(b[2], b[0]), s, scaled(axpy(b[1], -(r + r), axpy(b[2], p, scaled(b[0], q))), c));
        g[2] = axpy(m, s, scaled(axpy(b[0], -t, scaled(b[1], p)), c));
        // 1/l_k appears once in S and C, twice in C for k = 2.
        float powers[3] = {ws + wc, ws + wc + wc, ws + wc};
        for (int k = 0; k < 3; k++)
            g[k] = axpy(b[k], -(powers[k] * inverse[k] * inverse[k]), g[k]);
    }
};

// A layer as one direction reads it: weight w of input i and output o is at i * in_step + o * out_step. The twin of
// Dense in src/model/dense.rs: forwards y = x W + b, backwards x = W y.
struct Dense {
    const float* weight;
    const float* bias;
    unsigned n_in;
    unsigned n_out;
    unsigned in_step;
    unsigned out_step;
};

// Partial sums of a backward pass.
const unsigned LANES = 16;

// TILE neighbouring frames of one unit.
template <int TILE>
struct Tile {
    float x[TILE];

    static DIFFUSIM_MEMBER Tile all(float value) {
        Tile tile;
        for (int t = 0; t < TILE; t++)
            tile.x[t] = value;
        return tile;
    }
    static DIFFUSIM_MEMBER Tile load(const float* from) {
        Tile tile;
        if (TILE == 1)
            tile.x[0] = *from;
        else
            for (int t = 0; t < TILE; t += 4) {
                Quad quad = *reinterpret_cast<const Quad*>(from + t);
                for (int k = 0; k < 4; k++)
                    tile.x[t + k] = quad.x[k];
            }
        return tile;
    }
    // this += w v
    DIFFUSIM_MEMBER void add(float w, Tile v) {
        for (int t = 0; t < TILE; t++)
            x[t] = fused(w, v.x[t], x[t]);
    }
    DIFFUSIM_MEMBER void add(Tile v) {
        for (int t = 0; t < TILE; t++)
            x[t] += v.x[t];
    }
};

// Output `o` of the frames that lie at `x`, FRAMES apart: summed over the inputs in their order.
template <int FRAMES, int TILE>
DIFFUSIM_FN Tile<TILE> forward(const Dense& dense, unsigned o, const float* x) {
    Tile<TILE> sum = Tile<TILE>::all(dense.bias[o]);
    const float* w = dense.weight + o * dense.out_step;
    DIFFUSIM_UNROLL
    for (unsigned i = 0; i < dense.n_in; i++)
        sum.add(w[i * dense.in_step], Tile<TILE>::load(x + i * FRAMES));
    return sum;
}

// Input `i`, from the derivatives by the outputs at `y`: LANES partial sums, then added by halves.
template <int FRAMES, int TILE>
DIFFUSIM_FN Tile<TILE> backward(const Dense& dense, unsigned i, const float* y) {
    Tile<TILE> sums[LANES];
    for (unsigned lane = 0; lane < LANES; lane++)
        sums[lane] = Tile<TILE>::all(0.0f);
    const float* w = dense.weight + i * dense.in_step;
    unsigned o = 0;
    for (; o + LANES <= dense.n_out; o += LANES)
        for (unsigned lane = 0; lane < LANES; lane++)
            sums[lane].add(w[(o + lane) * dense.out_step], Tile<TILE>::load(y + (o + lane) * FRAMES));
    for (unsigned lane = 0; lane < LANES; lane++)
        if (o + lane < dense.n_out)
            sums[lane].add(w[(o + lane) * dense.out_step], Tile<TILE>::load(y + (o + lane) * FRAMES));
    for (unsigned half = LANES / 2; half > 0; half /= 2)
        for (unsigned lane = 0; lane < half; lane++)
            sums[lane].add(sums[lane + half]);
    return sums[0];
}

// FORWARD and BACKWARD: frames that a thread holds in registers on the two ways.
template <int FRAMES, int FORWARD, int BACKWARD>
struct Distance {
    const float* numbers;
    const Layer* layers;
    const unsigned* members;     // [n_members]: the system's particles that are the network's
    const unsigned* places;      // [n_particles]: place among the members, ~0 for none
    const unsigned* quadruplets; // [n_quadruplets][4]
    const unsigned* pairs;       // [n_pairs][2], first before second, in lexicographic order
    const unsigned* coordinates; // [n_coordinates][2]: member and axis
    unsigned n_members;
    unsigned n_particles;
    unsigned n_quadruplets;
    unsigned n_coordinates;
    unsigned n_layers;
    unsigned n_resident; // layers that are kept in shared memory
    unsigned widest;     // most units of any layer, features included
    unsigned n_slopes;   // units of all hidden layers but the last
    // Offsets into `numbers`: means of the features, their inverse spreads, output weights.
    unsigned mean;
    unsigned inverse_spread;
    unsigned output_weight;
    float softening_squared;
    float harmonic;
    float output_bias;
    // For DistanceHigh: the weights, and what makes them those of the network. `numbers` has all else.
    float unscale;
    const Half* halves;
    // Parts of the work space, filled in by load().
    Dense* dense; // [n_layers][2]: forwards, backwards
    float* resident;
    float* single; // positions, relative to the first member unless coordinates are features
    float* features;
    float* inverse_lengths;
    float* bond_gradients;
    float* slopes;
    float* input;
    float* output;

    DIFFUSIM_MEMBER static unsigned frames() { return FRAMES; }
    DIFFUSIM_MEMBER unsigned n_pairs() const { return n_members * (n_members - 1) / 2; }
    // Features that are lengths.
    DIFFUSIM_MEMBER unsigned n_lengths() const { return n_pairs() + n_coordinates; }
    DIFFUSIM_MEMBER unsigned n_features() const { return n_lengths() + 2 * n_quadruplets; }

    // All parts but the weights; `pitch` is that of the inputs and outputs of layers.
    DIFFUSIM_MEMBER void carve_parts(unsigned char*& memory, bool with_energy, unsigned pitch) {
        dense = carve<Dense>(memory, 2 * n_layers);
        single = carve<float>(memory, 3 * n_members * FRAMES);
        features = carve<float>(memory, n_features() * FRAMES);
        inverse_lengths = carve<float>(memory, n_pairs() * FRAMES);
        bond_gradients = carve<float>(memory, 9 * n_quadruplets * FRAMES);
        slopes = carve<float>(memory, n_slopes * FRAMES);
        if (with_energy)
            carve<float>(memory, (widest + 1) * FRAMES); // units() and energies()
        input = carve<float>(memory, widest * pitch);
        output = carve<float>(memory, widest * pitch);
        resident = reinterpret_cast<float*>(memory);
    }

    DIFFUSIM_MEMBER void load(unsigned char*& memory, bool with_energy) {
        carve_parts(memory, with_energy, FRAMES);
        float* resident = this->resident;
        for (unsigned l = 0; l < n_layers; l++) {
            const Layer layer = layers[l];
            Dense onward = {numbers + layer.weight, numbers + layer.bias, layer.n_in, layer.n_out, layer.n_out, 1};
            Dense back = {numbers + layer.transposed, nullptr, layer.n_in, layer.n_out, 1, layer.n_in};
            if (l < n_resident) {
                // Rows of odd length: threads that read down a column meet different banks.
                const unsigned stride = layer.n_out | 1;
                for (unsigned i = threadIdx.x; i < layer.n_in * layer.n_out; i += blockDim.x)
                    resident[i / layer.n_out * stride + i % layer.n_out] = onward.weight[i];
                onward.weight = back.weight = resident;
                onward.in_step = back.in_step = stride;
                back.out_step = 1;
                resident += layer.n_in * stride;
            }
            if (threadIdx.x == 0) {
                dense[2 * l] = onward;
                dense[2 * l + 1] = back;
            }
        }
    }

    DIFFUSIM_MEMBER Vector at(unsigned place, unsigned frame) const {
        Vector v;
        for (int c = 0; c < 3; c++)
            v.x[c] = single[(3 * place + c) * FRAMES + frame];
        return v;
    }

    DIFFUSIM_MEMBER Bonds bonds(unsigned quadruplet, unsigned frame) const {
        const unsigned* q = quadruplets + 4 * quadruplet;
        return Bonds(softening_squared, at(q[0], frame), at(q[1], frame), at(q[2], frame), at(q[3], frame));
    }

    DIFFUSIM_MEMBER float normalised(unsigned feature, float value) const {
        return (value - numbers[mean + feature]) * numbers[inverse_spread + feature];
    }

    // Units of the last layer, for the energies, [widest][FRAMES].
    DIFFUSIM_MEMBER float* units() const { return slopes + (n_slopes * FRAMES + 7) / 8 * 8; }
    DIFFUSIM_MEMBER float* energies() const { return units() + widest * FRAMES; }
    DIFFUSIM_MEMBER double energy(const Point*, unsigned frame) const { return (double)energies()[frame]; }

    // Everything about the scores that particles share, and the energies if asked for. Ends with a barrier.
    DIFFUSIM_MEMBER void prepare(const Point* positions, bool with_energy) {
        find_features(positions);
        run_network(with_energy);
        hand_back();
    }

    // Ends with a barrier.
    DIFFUSIM_MEMBER void find_features(const Point* positions) {
        for (unsigned i = threadIdx.x; i < n_members * FRAMES; i += blockDim.x) {
            const Point* x = positions + (size_t)(i % FRAMES) * n_particles;
            for (int c = 0; c < 3; c++) {
                double here = x[members[i / FRAMES]].x[c];
                single[(3 * (i / FRAMES) + c) * FRAMES + i % FRAMES] =
                    (float)(n_coordinates > 0 ? here : here - x[members[0]].x[c]);
            }
        }
        __syncthreads();

        // Features.
        for (unsigned i = threadIdx.x; i < n_pairs() * FRAMES; i += blockDim.x) {
            unsigned pair = i / FRAMES, frame = i % FRAMES;
            Vector d = difference(at(pairs[2 * pair], frame), at(pairs[2 * pair + 1], frame));
            float length = root(dot(d, d) + softening_squared);
            inverse_lengths[i] = 1.0f / length;
            features[i] = normalised(pair, length);
        }
        for (unsigned i = threadIdx.x; i < n_coordinates * FRAMES; i += blockDim.x) {
            const unsigned* c = coordinates + 2 * (i / FRAMES);
            features[n_pairs() * FRAMES + i] =
                normalised(n_pairs() + i / FRAMES, single[(3 * c[0] + c[1]) * FRAMES + i % FRAMES]);
        }
        for (unsigned i = threadIdx.x; i < n_quadruplets * FRAMES; i += blockDim.x) {
            unsigned feature = n_lengths() + 2 * (i / FRAMES), frame = i % FRAMES;
            Bonds b = bonds(i / FRAMES, frame);
            features[feature * FRAMES + frame] = normalised(feature, b.sine());
            features[(feature + 1) * FRAMES + frame] = normalised(feature + 1, b.cosine());
        }
        __syncthreads();
    }

    // From features to dE/dfeature in `input`. Ends with a barrier.
    DIFFUSIM_MEMBER void run_network(bool with_energy) {
        // Forward, keeping the slopes of the activations; the last layer gives dE/d(its sums) at once.
        float* slope = slopes;
        for (unsigned l = 0; l < n_layers; l++) {
            const bool last = l + 1 == n_layers;
            const Dense layer = dense[2 * l];
            const float* x = l == 0 ? features : input;
            for (unsigned i = threadIdx.x; i < layer.n_out * (FRAMES / FORWARD); i += blockDim.x) {
                const unsigned o = i % layer.n_out, frame = i / layer.n_out * FORWARD;
                Tile<FORWARD> sum = forward<FRAMES, FORWARD>(layer, o, x + frame);
                for (int t = 0; t < FORWARD; t++) {
                    const unsigned place = o * FRAMES + frame + t;
                    const Silu silu(sum.x[t]);
                    if (last) {
                        output[place] = numbers[output_weight + o] * silu.slope;
                        if (with_energy)
                            units()[place] = silu.value;
                    } else {
                        output[place] = silu.value;
                        slope[place] = silu.slope;
                    }
                }
            }
            if (!last)
                slope += layer.n_out * FRAMES;
            swap();
        }

        if (with_energy)
            sum_up();

        // Backward.
        for (unsigned l = n_layers; l-- > 0;) {
            const Dense layer = dense[2 * l + 1];
            if (l > 0)
                slope -= layer.n_in * FRAMES;
            for (unsigned j = threadIdx.x; j < layer.n_in * (FRAMES / BACKWARD); j += blockDim.x) {
                const unsigned i = j % layer.n_in, frame = j / layer.n_in * BACKWARD;
                Tile<BACKWARD> sum = backward<FRAMES, BACKWARD>(layer, i, input + frame);
                for (int t = 0; t < BACKWARD; t++) {
                    const unsigned place = i * FRAMES + frame + t;
                    output[place] = l > 0 ? sum.x[t] * slope[place] : sum.x[t];
                }
            }
            swap();
        }
    }

    // From features to pairs, coordinates and bonds. Ends with a barrier.
    DIFFUSIM_MEMBER void hand_back() {
        for (unsigned i = threadIdx.x; i < n_lengths() * FRAMES; i += blockDim.x) {
            float along = fused(features[i], harmonic, input[i]) * numbers[inverse_spread + i / FRAMES];
            features[i] = i < n_pairs() * FRAMES ? along * inverse_lengths[i] : along;
        }
        for (unsigned i = threadIdx.x; i < n_quadruplets * FRAMES; i += blockDim.x) {
            unsigned quadruplet = i / FRAMES, feature = n_lengths() + 2 * quadruplet, frame = i % FRAMES;
            Vector g[3];
            bonds(quadruplet, frame)
                .gradient(input[feature * FRAMES + frame] * numbers[inverse_spread + feature],
                          input[(feature + 1) * FRAMES + frame] * numbers[inverse_spread + feature + 1], g);
            for (int k = 0; k < 9; k++)
                bond_gradients[(9 * quadruplet + k) * FRAMES + frame] = g[k / 3].x[k % 3];
        }
        __syncthreads();
    }

    // Energies from the units of the last layer and the features that are lengths.
    DIFFUSIM_MEMBER void sum_up() const {
        for (unsigned frame = threadIdx.x; frame < FRAMES; frame += blockDim.x) {
            float energy = output_bias, half = 0.5f * harmonic;
            for (unsigned o = 0; o < layers[n_layers - 1].n_out; o++)
                energy = fused(units()[o * FRAMES + frame], numbers[output_weight + o], energy);
            for (unsigned i = 0; i < n_lengths(); i++) {
                float f = features[i * FRAMES + frame];
                energy = fused(f * half, f, energy);
            }
            energies()[frame] = energy;
        }
    }

    // The output of a layer is the input of the next. A barrier.
    DIFFUSIM_MEMBER void swap() {
        float* swapped = input;
        input = output;
        output = swapped;
        __syncthreads();
    }

    // Score of one particle: the gradients of its pairs, coordinates and quadruplets, in the order in which the CPU
    // adds them.
    DIFFUSIM_MEMBER Point score(const Point*, unsigned frame, unsigned particle) const {
        const unsigned place = places[particle];
        if (place == ~0u)
            return Point{{0.0, 0.0, 0.0}};
        const Vector here = at(place, frame);
        Vector gradient = {{0.0f, 0.0f, 0.0f}};
        unsigned pair = place - 1; // of member 0 with this one; wraps around for member 0 itself, which has none
        for (unsigned m = 0; m < place; m++) {
            gradient = sum(gradient, scaled(difference(at(m, frame), here), -features[pair * FRAMES + frame]));
            pair += n_members - m - 2;
        }
        pair = place * n_members - place * (place + 1) / 2;
        for (unsigned m = place + 1; m < n_members; m++, pair++)
            gradient = sum(gradient, scaled(difference(here, at(m, frame)), features[pair * FRAMES + frame]));
        for (unsigned k = 0; k < n_coordinates; k++)
            if (coordinates[2 * k] == place)
                gradient.x[coordinates[2 * k + 1]] += features[(n_pairs() + k) * FRAMES + frame];
        for (unsigned q = 0; q < n_quadruplets; q++)
            for (unsigned k = 0; k < 4; k++)
                if (quadruplets[4 * q + k] == place)
                    gradient = sum(gradient, end_of(q, k, frame));
        return Point{{-(double)gradient.x[0], -(double)gradient.x[1], -(double)gradient.x[2]}};
    }

    // What quadruplet `q` adds to the gradient of its particle k: bonds end and begin there.
    DIFFUSIM_MEMBER Vector end_of(unsigned q, unsigned k, unsigned frame) const {
        Vector g[3];
        for (int i = 0; i < 9; i++)
            g[i / 3].x[i % 3] = bond_gradients[(9 * q + i) * FRAMES + frame];
        switch (k) {
        case 0:
            return scaled(g[0], -1.0f);
        case 1:
            return difference(g[0], g[1]);
        case 2:
            return difference(g[1], g[2]);
        default:
            return g[2];
        }
    }
};
