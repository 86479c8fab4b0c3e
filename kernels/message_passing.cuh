// The `message-passing` network of few particles in open space: the twin of src/model/message_passing/evaluate.rs,
// whose module has the formulas.
//
// A block works on one frame: all pairs of its particles are looked at, and threads share out particles times features,
// or directed pairs. Sums run in the order of the CPU and every operation is correctly rounded, so that a score has the
// bits of the CPU's.
#pragma once

#include "distance.cuh"

// Where the layers of a block are in the arrays of numbers: BlockArrays in src/model/kernel.rs.
struct MessageBlock {
    unsigned filter; // [n_knots][2][n_message F]
    unsigned rows;   // messages of the first block, [n_species][2 F]
    Layer message[2];
    Layer mix;
    Layer update[2];
};

// A directed pair within the cutoff.
struct Edge {
    unsigned particle; // the neighbour; ~0 beyond the cutoff
    unsigned knot;
    float inverse;
    float direction[3]; // to the neighbour
    float value[4];     // weights of the filter's table
    float derivative[4];
    float repulsion[2];
};

// 1 - 28 u^6 + 48 u^7 - 21 u^8 and its slope.
DIFFUSIM_FN void envelope(float u, float* value, float* slope) {
    float u2 = u * u, u5 = u2 * u2 * u;
    *value = fused(u5 * u, fused(u, fused(u, -21.0f, 48.0f), -28.0f), 1.0f);
    *slope = u5 * fused(u, fused(u, -168.0f, 336.0f), -168.0f);
}

// x sigmoid(x), and its slope.
DIFFUSIM_FN float silu(float x, float* slope) {
    float sigmoid = 1.0f / (exp_single(-x) + 1.0f);
    float y = x * sigmoid;
    *slope = fused(1.0f - sigmoid, y, sigmoid);
    return y;
}

// Sixteen partial sums, added by halves.
struct Lanes {
    float x[LANES];

    DIFFUSIM_MEMBER void clear() {
        for (unsigned lane = 0; lane < LANES; lane++)
            x[lane] = 0.0f;
    }
    DIFFUSIM_MEMBER float sum() {
        for (unsigned half = LANES / 2; half > 0; half /= 2)
            for (unsigned lane = 0; lane < half; lane++)
                x[lane] += x[lane + half];
        return x[0];
    }
};

struct MessagePassing {
    const float* numbers;
    const MessageBlock* blocks;
    const unsigned* members; // [n_members]: the system's particles that are the network's
    const unsigned* places;  // [n_particles]: place among the members, ~0 for none
    const unsigned* species; // [n_members]
    unsigned n_members;
    unsigned n_particles;
    unsigned width;
    unsigned n_blocks;
    unsigned n_mixed; // 3 in a chiral network, else 2
    unsigned n_species;
    unsigned n_knots;
    unsigned embedding;
    unsigned repulsion; // [n_species][n_species]
    unsigned output_weight;
    Layer readout;
    float output_bias;
    float softening_squared;
    float cutoff;
    float density; // knots per nm
    // Parts of the work space, filled in by load().
    Edge* edges;          // [n_members][n_members - 1]
    Vector* gradients;    // by x_a - x_b, of each edge
    float* edge_sums;     // [n_members (n_members - 1)][4]
    float* s;             // [n][F]
    float* v;             // [n][3][F]
    float* x;             // [n][2 F]
    float* saved;         // of each block: see below
    float* messages;      // of each block but the first, [n][6 F]
    float* hidden;        // [n][F]
    float* gates_back;    // [n][4 F]
    float* mixed_back;    // [n][3][n_mixed F]
    float* x_back;        // [n][2 F]
    float* upstream;      // [n][4 F]
    float* next_upstream; // [n][4 F]
    float* energies;      // [n]

    DIFFUSIM_MEMBER static unsigned frames() { return 1; }
    DIFFUSIM_MEMBER unsigned n_gates(unsigned b) const { return n_mixed + (b + 1 < n_blocks); }
    DIFFUSIM_MEMBER unsigned n_messages(unsigned b) const { return b == 0 ? 2 : 3; }
    DIFFUSIM_MEMBER unsigned n_edges() const { return n_members * (n_members - 1); }

    // What the update of a block leaves for its gradient, each [n][...]: mixed vectors, gates, lengths, slopes, and the
    // slopes of the messages that follow.
    DIFFUSIM_MEMBER unsigned saved_size() const { return n_members * width * (3 * n_mixed + n_mixed + 1 + 3); }
    DIFFUSIM_MEMBER float* mixed(unsigned b) const { return saved + b * saved_size(); }
    DIFFUSIM_MEMBER float* gates(unsigned b) const { return mixed(b) + n_members * width * 3 * n_mixed; }
    DIFFUSIM_MEMBER float* lengths(unsigned b) const { return gates(b) + n_members * width * (n_mixed + 1); }
    DIFFUSIM_MEMBER float* slopes(unsigned b) const { return lengths(b) + n_members * width; }
    DIFFUSIM_MEMBER float* message_slopes(unsigned b) const { return slopes(b) + n_members * width; }
    DIFFUSIM_MEMBER float* message(unsigned b) const { return messages + (b - 1) * n_members * 6 * width; }

    DIFFUSIM_MEMBER void load(unsigned char*& memory, bool) {
        const unsigned n = n_members * width;
        edges = carve<Edge>(memory, n_edges());
        gradients = carve<Vector>(memory, n_edges());
        edge_sums = carve<float>(memory, 4 * n_edges());
        s = carve<float>(memory, n);
        v = carve<float>(memory, 3 * n);
        x = carve<float>(memory, 2 * n);
        saved = carve<float>(memory, n_blocks * saved_size());
        messages = carve<float>(memory, (n_blocks - 1) * 6 * n);
        hidden = carve<float>(memory, n);
        gates_back = carve<float>(memory, 4 * n);
        mixed_back = carve<float>(memory, 3 * n_mixed * n);
        x_back = carve<float>(memory, 2 * n);
        upstream = carve<float>(memory, 4 * n);
        next_upstream = carve<float>(memory, 4 * n);
        energies = carve<float>(memory, n_members);
    }

    // Edge from particle i to its `e`-th other, and the same pair seen from there.
    DIFFUSIM_MEMBER unsigned other(unsigned i, unsigned e) const { return e + (e >= i); }
    DIFFUSIM_MEMBER unsigned reverse(unsigned i, unsigned e) const {
        unsigned j = other(i, e);
        return j * (n_members - 1) + (i > j ? i - 1 : i);
    }

    DIFFUSIM_MEMBER void find_edges(const Point* positions) {
        for (unsigned at = threadIdx.x; at < n_edges(); at += blockDim.x) {
            const unsigned i = at / (n_members - 1), j = other(i, at % (n_members - 1));
            Edge edge;
            Vector d;
            for (int c = 0; c < 3; c++)
                d.x[c] = (float)(positions[members[j]].x[c] - positions[members[i]].x[c]);
            float squared = dot(d, d), r = root(squared);
            edge.particle = j;
            if (r >= cutoff) { // what is not a number is kept, to be noticed
                edges[at].particle = ~0u;
                continue;
            }
            edge.inverse = 1.0f / r;
            for (int c = 0; c < 3; c++)
                edge.direction[c] = d.x[c] * edge.inverse;
            float reach = numbers[repulsion + species[i] * n_species + species[j]];
            edge.repulsion[0] = edge.repulsion[1] = 0.0f;
            if (reach > 0.0f) {
                // Half of f (d^2/(r^2 + softening^2))^6.
                float base = 1.0f / (squared + softening_squared);
                float q = reach * base;
                float q6 = 0.5f * (q * q * q) * (q * q * q);
                float f, slope, inverse_cutoff = 1.0f / cutoff;
                envelope(r * inverse_cutoff, &f, &slope);
                float inner = slope * inverse_cutoff - 12.0f * (f * (r * base));
                edge.repulsion[0] = f * q6;
                edge.repulsion[1] = inner * q6;
            }
            float place = r * density;
            edge.knot = place == place ? least((unsigned)place, n_knots - 2) : 0;
            float t = place - (float)edge.knot;
            float t2 = t * t, u = t - 1.0f;
            float right = t2 * (3.0f - (t + t)), tangent = t * u;
            float derivative = 6.0f * tangent * density;
            edge.value[0] = 1.0f - right;
            edge.value[1] = tangent * u;
            edge.value[2] = right;
            edge.value[3] = tangent * t;
            edge.derivative[0] = derivative;
            edge.derivative[1] = u * (3.0f * t - 1.0f) * density;
            edge.derivative[2] = -derivative;
            edge.derivative[3] = t * (3.0f * t - 2.0f) * density;
            edges[at] = edge;
        }
    }

    // Channel `channel` of a block's filter, from weights of value and slope at two knots.
    DIFFUSIM_MEMBER float filter(unsigned b, const Edge& edge, const float* weights, unsigned channel) const {
        const unsigned n = n_messages(b) * width;
        const float* row = numbers + blocks[b].filter + (size_t)edge.knot * 2 * n + channel;
        return fused(row[3 * n], weights[3],
                     fused(row[2 * n], weights[2], fused(row[n], weights[1], row[0] * weights[0])));
    }

    // Output `o` of a layer for the row x.
    DIFFUSIM_MEMBER float apply(const Layer& layer, const float* row, unsigned o) const {
        float sum = numbers[layer.bias + o];
        const float* w = numbers + layer.weight + o;
        DIFFUSIM_UNROLL
        for (unsigned i = 0; i < layer.n_in; i++)
            sum = fused(w[i * layer.n_out], row[i], sum);
        return sum;
    }

    // Derivative by input `i` from those by the outputs, `row`.
    DIFFUSIM_MEMBER float apply_back(const Layer& layer, const float* row, unsigned i) const {
        float sum = 0.0f;
        const float* w = numbers + layer.transposed + i;
        DIFFUSIM_UNROLL
        for (unsigned o = 0; o < layer.n_out; o++)
            sum = fused(w[o * layer.n_in], row[o], sum);
        return sum;
    }

    // Vector `m` (U v, V v or T v) of feature k of a particle.
    DIFFUSIM_MEMBER Vector mixed_vector(unsigned b, unsigned i, unsigned m, unsigned k) const {
        Vector a = {{0.0f, 0.0f, 0.0f}};
        if (m < n_mixed)
            for (unsigned c = 0; c < 3; c++)
                a.x[c] = mixed(b)[((i * 3 + c) * n_mixed + m) * width + k];
        return a;
    }

    // Add the messages of its neighbours to the features of every particle; ends with a barrier.
    DIFFUSIM_MEMBER void gather(unsigned b) {
        const unsigned f = width;
        for (unsigned at = threadIdx.x; at < n_members * f; at += blockDim.x) {
            const unsigned i = at / f, k = at % f;
            float sum = b == 0 ? numbers[embedding + species[i] * f + k] : s[at];
            float sums[3];
            for (unsigned c = 0; c < 3; c++)
                sums[c] = b == 0 ? 0.0f : message(b)[i * 6 * f + (3 + c) * f + k];
            for (unsigned e = 0; e < n_members - 1; e++) {
                const Edge& edge = edges[i * (n_members - 1) + e];
                const unsigned j = edge.particle;
                if (j == ~0u)
                    continue;
                const float* p = b == 0 ? numbers + blocks[0].rows + species[j] * 2 * f : message(b) + j * 6 * f;
                sum = fused(p[k], filter(b, edge, edge.value, k), sum);
                float along = p[f + k] * filter(b, edge, edge.value, f + k);
                for (unsigned c = 0; c < 3; c++)
                    sums[c] = fused(edge.direction[c], along, sums[c]);
                if (b > 0) {
                    float carried = p[2 * f + k] * filter(b, edge, edge.value, 2 * f + k);
                    for (unsigned c = 0; c < 3; c++)
                        sums[c] = fused(p[(3 + c) * f + k], carried, sums[c]);
                }
            }
            x[i * 2 * f + k] = sum;
            for (unsigned c = 0; c < 3; c++)
                v[(i * 3 + c) * f + k] = sums[c];
        }
        __syncthreads();
    }

    // The features after block b, and what its gradient needs; ends with a barrier.
    DIFFUSIM_MEMBER void update(unsigned b) {
        const unsigned f = width, n = n_members * f;
        const Layer mix = blocks[b].mix, first = blocks[b].update[0], second = blocks[b].update[1];
        for (unsigned at = threadIdx.x; at < 3 * n_members * mix.n_out; at += blockDim.x)
            mixed(b)[at] = apply(mix, v + at / mix.n_out * f, at % mix.n_out);
        __syncthreads();
        for (unsigned at = threadIdx.x; at < n; at += blockDim.x) {
            Vector a = mixed_vector(b, at / f, 1, at % f);
            float length = root(dot(a, a) + 1.0f);
            lengths(b)[at] = x[at / f * 2 * f + f + at % f] = length;
        }
        __syncthreads();
        for (unsigned at = threadIdx.x; at < n; at += blockDim.x)
            hidden[at] = silu(apply(first, x + at / f * 2 * f, at % f), slopes(b) + at);
        __syncthreads();
        for (unsigned at = threadIdx.x; at < n_members * second.n_out; at += blockDim.x)
            gates(b)[at] = apply(second, hidden + at / second.n_out * f, at % second.n_out);
        __syncthreads();
        for (unsigned at = threadIdx.x; at < n; at += blockDim.x) {
            const unsigned i = at / f, k = at % f;
            const float* gate = gates(b) + i * second.n_out + k;
            Vector u = mixed_vector(b, i, 0, k), w = mixed_vector(b, i, 1, k);
            float sum = fused(gate[f], dot(u, w), x[i * 2 * f + k] + gate[0]);
            if (n_mixed == 3)
                sum = fused(gate[2 * f], dot(mixed_vector(b, i, 2, k), cross(u, w)), sum);
            s[at] = sum;
            if (b + 1 < n_blocks)
                for (unsigned c = 0; c < 3; c++)
                    message(b + 1)[i * 6 * f + (3 + c) * f + k] =
                        fused(gate[n_mixed * f], u.x[c], v[(i * 3 + c) * f + k]);
        }
        __syncthreads();
    }

    // The messages of block b from the features before it; ends with a barrier.
    DIFFUSIM_MEMBER void make_messages(unsigned b) {
        const unsigned f = width;
        const Layer first = blocks[b].message[0], second = blocks[b].message[1];
        for (unsigned at = threadIdx.x; at < n_members * f; at += blockDim.x)
            hidden[at] = silu(apply(first, s + at / f * f, at % f), message_slopes(b - 1) + at);
        __syncthreads();
        for (unsigned at = threadIdx.x; at < n_members * 3 * f; at += blockDim.x)
            message(b)[at / (3 * f) * 6 * f + at % (3 * f)] = apply(second, hidden + at / (3 * f) * f, at % (3 * f));
        __syncthreads();
    }

    // Energy of each particle, and its gradient by the last features, in `upstream`; ends with a barrier.
    DIFFUSIM_MEMBER void read_out() {
        const unsigned f = width;
        const float* weight = numbers + output_weight;
        for (unsigned at = threadIdx.x; at < n_members * f; at += blockDim.x)
            hidden[at] = silu(apply(readout, s + at / f * f, at % f), x_back + at);
        __syncthreads();
        for (unsigned i = threadIdx.x; i < n_members; i += blockDim.x) {
            Lanes row;
            row.clear();
            for (unsigned first = 0; first < f; first += LANES)
                for (unsigned lane = 0; lane < LANES; lane++) {
                    const unsigned k = first + lane;
                    row.x[lane] = fused(weight[k], hidden[i * f + k], row.x[lane]);
                    row.x[lane] = fused(weight[f + k], s[i * f + k], row.x[lane]);
                }
            float energy = row.sum() + output_bias;
            for (unsigned e = 0; e < n_members - 1; e++)
                if (edges[i * (n_members - 1) + e].particle != ~0u)
                    energy = energy + edges[i * (n_members - 1) + e].repulsion[0];
            energies[i] = energy;
        }
        __syncthreads();
        for (unsigned at = threadIdx.x; at < n_members * f; at += blockDim.x)
            hidden[at] = weight[at % f] * x_back[at];
        __syncthreads();
        for (unsigned at = threadIdx.x; at < n_members * f; at += blockDim.x) {
            const unsigned i = at / f, k = at % f;
            upstream[i * 4 * f + k] = apply_back(readout, hidden + i * f, k) + weight[f + k];
            for (unsigned c = 1; c < 4; c++)
                upstream[i * 4 * f + c * f + k] = 0.0f;
        }
        __syncthreads();
    }

    // From gradients by what the update of block b made to gradients by what it was made from, in place in `up`; ends
    // with a barrier.
    DIFFUSIM_MEMBER void update_back(unsigned b, float* up) {
        const unsigned f = width, n = n_members * f, of_gates = n_gates(b) * f;
        const bool last = b + 1 == n_blocks, chiral = n_mixed == 3;
        for (unsigned at = threadIdx.x; at < n; at += blockDim.x) {
            const unsigned i = at / f, k = at % f;
            Vector u = mixed_vector(b, i, 0, k), w = mixed_vector(b, i, 1, k), above;
            float* out = gates_back + i * of_gates + k;
            float by = up[i * 4 * f + k];
            out[0] = by;
            out[f] = by * dot(u, w);
            if (chiral)
                out[2 * f] = by * dot(mixed_vector(b, i, 2, k), cross(u, w));
            for (unsigned c = 0; c < 3; c++)
                above.x[c] = up[i * 4 * f + (1 + c) * f + k];
            if (!last)
                out[of_gates - f] = dot(above, u);
        }
        __syncthreads();
        const Layer first = blocks[b].update[0], second = blocks[b].update[1], mix = blocks[b].mix;
        for (unsigned at = threadIdx.x; at < n; at += blockDim.x)
            hidden[at] = apply_back(second, gates_back + at / f * of_gates, at % f) * slopes(b)[at];
        __syncthreads();
        for (unsigned at = threadIdx.x; at < 2 * n; at += blockDim.x)
            x_back[at] = apply_back(first, hidden + at / (2 * f) * f, at % (2 * f));
        __syncthreads();
        for (unsigned at = threadIdx.x; at < n; at += blockDim.x) {
            const unsigned i = at / f, k = at % f;
            const float* gate = gates(b) + i * of_gates + k;
            Vector u = mixed_vector(b, i, 0, k), w = mixed_vector(b, i, 1, k), t = mixed_vector(b, i, 2, k), above;
            float by = up[i * 4 * f + k];
            float by_product = by * gate[f], by_length = x_back[i * 2 * f + f + k] * (1.0f / lengths(b)[at]);
            Vector u_back = scaled(w, by_product), w_back = axpy(w, by_length, scaled(u, by_product));
            for (unsigned c = 0; c < 3; c++)
                above.x[c] = up[i * 4 * f + (1 + c) * f + k];
            float* out = mixed_back + i * 3 * n_mixed * f + k;
            if (chiral) {
                float by_triple = by * gate[2 * f];
                u_back = axpy(cross(w, t), by_triple, u_back);
                w_back = axpy(cross(t, u), by_triple, w_back);
                Vector t_back = scaled(cross(u, w), by_triple);
                for (unsigned c = 0; c < 3; c++)
                    out[(c * n_mixed + 2) * f] = t_back.x[c];
            }
            if (!last)
                u_back = axpy(above, gate[of_gates - f], u_back);
            for (unsigned c = 0; c < 3; c++) {
                out[c * n_mixed * f] = u_back.x[c];
                out[(c * n_mixed + 1) * f] = w_back.x[c];
            }
            up[i * 4 * f + k] = by + x_back[i * 2 * f + k];
        }
        __syncthreads();
        for (unsigned at = threadIdx.x; at < 3 * n; at += blockDim.x) {
            const unsigned row = at / f, k = at % f; // row: particle and component
            up[row / 3 * 4 * f + (1 + row % 3) * f + k] += apply_back(mix, mixed_back + row * mix.n_out, k);
        }
        __syncthreads();
    }

    // Sum over the features of a pair: derivative of the energy by its length (q = 0) or by a component of its
    // direction.
    DIFFUSIM_MEMBER float edge_sum(unsigned b, unsigned at, unsigned q) const {
        const unsigned f = width, i = at / (n_members - 1);
        const Edge& edge = edges[at];
        const float* up = upstream + edge.particle * 4 * f;
        const float* p = b == 0 ? numbers + blocks[0].rows + species[i] * 2 * f : message(b) + i * 6 * f;
        const Vector n = {{-edge.direction[0], -edge.direction[1], -edge.direction[2]}};
        Lanes sums;
        sums.clear();
        for (unsigned first = 0; first < f; first += LANES)
            for (unsigned lane = 0; lane < LANES; lane++) {
                const unsigned k = first + lane;
                float sum = sums.x[lane];
                if (q > 0)
                    sum = fused(up[q * f + k], p[f + k] * filter(b, edge, edge.value, f + k), sum);
                else {
                    Vector u = {{up[f + k], up[2 * f + k], up[3 * f + k]}};
                    sum = fused(up[k] * p[k], filter(b, edge, edge.derivative, k), sum);
                    sum = fused(dot(n, u) * p[f + k], filter(b, edge, edge.derivative, f + k), sum);
                    if (b > 0) {
                        Vector own = {{p[3 * f + k], p[4 * f + k], p[5 * f + k]}};
                        sum = fused(dot(own, u) * p[2 * f + k], filter(b, edge, edge.derivative, 2 * f + k), sum);
                    }
                }
                sums.x[lane] = sum;
            }
        return sums.sum();
    }

    // Gradients by the pairs of block b; where it is not the first, also by its messages, in `next_upstream` and
    // `gates_back`. Ends with a barrier.
    DIFFUSIM_MEMBER void edges_back(unsigned b) {
        const unsigned f = width;
        for (unsigned at = threadIdx.x; at < 4 * n_edges(); at += blockDim.x)
            if (edges[at / 4].particle != ~0u)
                edge_sums[at] = edge_sum(b, at / 4, at % 4);
        __syncthreads();
        for (unsigned at = threadIdx.x; at < n_edges(); at += blockDim.x) {
            const Edge& edge = edges[at];
            if (edge.particle == ~0u)
                continue;
            Vector n = {{-edge.direction[0], -edge.direction[1], -edge.direction[2]}};
            Vector d = {{edge_sums[4 * at + 1], edge_sums[4 * at + 2], edge_sums[4 * at + 3]}};
            float by_length = edge_sums[4 * at], along = dot(n, d);
            Vector sum = {{0.0f, 0.0f, 0.0f}};
            if (b + 1 < n_blocks)
                sum = gradients[at];
            for (int c = 0; c < 3; c++) {
                float gradient = n.x[c] * by_length + (d.x[c] - n.x[c] * along) * edge.inverse;
                sum.x[c] = sum.x[c] + gradient;
                if (b == 0) // the repulsion of a pair belongs half to each of its two entries
                    sum.x[c] = sum.x[c] - edge.direction[c] * edge.repulsion[1];
            }
            gradients[at] = sum;
        }
        if (b > 0)
            for (unsigned at = threadIdx.x; at < n_members * f; at += blockDim.x) {
                const unsigned i = at / f, k = at % f;
                const float* own = message(b) + i * 6 * f + k;
                float p_back[3] = {0.0f, 0.0f, 0.0f};
                Vector v_own = {{own[3 * f], own[4 * f], own[5 * f]}}, v_back;
                for (unsigned c = 0; c < 3; c++)
                    v_back.x[c] = upstream[i * 4 * f + (1 + c) * f + k];
                for (unsigned e = 0; e < n_members - 1; e++) {
                    const Edge& edge = edges[i * (n_members - 1) + e];
                    if (edge.particle == ~0u)
                        continue;
                    const float* up = upstream + edge.particle * 4 * f + k;
                    Vector u = {{up[f], up[2 * f], up[3 * f]}};
                    Vector n = {{-edge.direction[0], -edge.direction[1], -edge.direction[2]}};
                    float by[3] = {up[0], dot(n, u), dot(v_own, u)}, w[3];
                    for (unsigned m = 0; m < 3; m++) {
                        w[m] = filter(b, edge, edge.value, m * f + k);
                        p_back[m] = fused(by[m], w[m], p_back[m]);
                    }
                    float to_vector = own[2 * f] * w[2];
                    for (unsigned c = 0; c < 3; c++)
                        v_back.x[c] = fused(u.x[c], to_vector, v_back.x[c]);
                }
                next_upstream[i * 4 * f + k] = upstream[i * 4 * f + k];
                for (unsigned c = 0; c < 3; c++) {
                    gates_back[i * 3 * f + c * f + k] = p_back[c];
                    next_upstream[i * 4 * f + (1 + c) * f + k] = v_back.x[c];
                }
            }
        __syncthreads();
    }

    // From gradients by the messages of block b to those by the features before it; ends with a barrier.
    DIFFUSIM_MEMBER void messages_back(unsigned b) {
        const unsigned f = width;
        const Layer first = blocks[b].message[0], second = blocks[b].message[1];
        for (unsigned at = threadIdx.x; at < n_members * f; at += blockDim.x)
            hidden[at] = apply_back(second, gates_back + at / f * 3 * f, at % f) * message_slopes(b - 1)[at];
        __syncthreads();
        for (unsigned at = threadIdx.x; at < n_members * f; at += blockDim.x)
            next_upstream[at / f * 4 * f + at % f] += apply_back(first, hidden + at / f * f, at % f);
        __syncthreads();
    }

    // Everything about the score. Ends with a barrier.
    DIFFUSIM_MEMBER void prepare(const Point* positions, bool) {
        find_edges(positions);
        __syncthreads();
        for (unsigned b = 0; b < n_blocks; b++) {
            if (b > 0)
                make_messages(b);
            gather(b);
            update(b);
        }
        read_out();
        update_back(n_blocks - 1, upstream);
        for (unsigned b = n_blocks; b-- > 0;) {
            edges_back(b);
            if (b > 0) {
                messages_back(b);
                update_back(b - 1, next_upstream);
                float* swapped = upstream;
                upstream = next_upstream;
                next_upstream = swapped;
            }
        }
    }

    DIFFUSIM_MEMBER double energy(const Point*, unsigned) const {
        double energy = 0.0;
        for (unsigned i = 0; i < n_members; i++)
            energy += (double)energies[i];
        return energy;
    }

    DIFFUSIM_MEMBER Point score(const Point*, unsigned, unsigned particle) const {
        const unsigned i = places[particle];
        Point score = {{0.0, 0.0, 0.0}};
        if (i == ~0u)
            return score;
        for (unsigned e = 0; e < n_members - 1; e++) {
            const unsigned at = i * (n_members - 1) + e;
            if (edges[at].particle != ~0u)
                for (int c = 0; c < 3; c++)
                    score.x[c] += (double)(gradients[reverse(i, e)].x[c] - gradients[at].x[c]);
        }
        return score;
    }
};
