// The `message-passing` network: the twin of src/model/message_passing/evaluate.rs, whose module has the formulas.
//
// There is a launch for every block of the network on the way forward and one on the way back, as particles need their
// neighbours' messages and gradients in between. A thread block works on a group of particles, whose rows lie in shared
// memory: threads share out particles times features, outputs of a dense layer (a weight that was read serves the whole
// group), or, sixteen threads together, directed pairs. Particles of all frames are numbered through.
//
// Sums run in the order of the CPU and every operation is correctly rounded, so that a score has the bits of the CPU's.
//
// What that should cost is traffic with the caches (counted, not measured): a pair reads four rows of a filter's table,
// of 2 F numbers in the first block and 3 F in others, and of its neighbour 2 F or 6 F numbers forwards and 4 F
// backwards, where later blocks read both twice. With F = 64 and 50 neighbours that is 230 kB a particle and later
// block forwards and 410 kB backwards, beside which the weights, 4 (19 F^2) bytes for each group and direction, and the
// 64 bytes of an edge are little.
#pragma once

#include "distance.cuh"
#include "neighbor_list.cuh"

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
    unsigned particle; // the neighbour
    unsigned entry;    // in the list of neighbours
    unsigned knot;
    float inverse;
    float direction[3];  // to the neighbour
    float value[4];      // weights of the filter's table
    float derivative[3]; // the fourth is the first with the other sign
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

// Particles that a block works on: a weight that was read serves all of them.
const unsigned GROUP = 4;

// One number of each particle of a group.
struct Rows {
    float x[GROUP];
};

// Consecutive particles, fewer in the last group.
struct Group {
    unsigned first;
    unsigned count;
};

// Work space of a block, a row for each particle of its group.
struct Room {
    float* v;          // [GROUP][3][F]
    float* x;          // [GROUP][2 F]
    float* s;          // [GROUP][F]
    float* hidden;     // [GROUP][F]
    float* gates_back; // [GROUP][4 F]
    float* mixed_back; // [GROUP][3][n_mixed F]
    float* x_back;     // [GROUP][2 F]
    float* up;         // [GROUP][4 F]: gradients by s and v
    float* sums;       // of every team of LANES threads
};

// Pairs that a team works on at once, and the numbers it needs for that: of each pair and each of four sums one of
// every thread, kept apart for the banks of the memory, and the results.
const unsigned PAIRS = 4;
const unsigned TEAM = PAIRS * 4 * (LANES + 1) + PAIRS * 4;

struct MessagePassing {
    NeighborList list;
    const float* numbers;
    const MessageBlock* blocks;
    const unsigned* species; // [n]
    // Of the particles of all frames:
    Edge* edges;       // [][capacity], closed up
    unsigned* n_edges; // []
    Vector* gradients; // by x_a - x_b, of each entry of the list
    float* s;          // [][F]
    float* saved;      // of each block: see below
    float* messages;   // of each block but the first, [][6 F]
    float* upstream;   // two of them, [][4 F]
    float* energies;   // []
    // [n_groups][scratch_bytes]; NULL if the work space is in shared memory
    unsigned char* scratch;
    Word64 scratch_bytes;
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
    unsigned with_energy;
    unsigned padding;

    DIFFUSIM_MEMBER unsigned n_gates(unsigned b) const { return n_mixed + (b + 1 < n_blocks); }
    DIFFUSIM_MEMBER unsigned n_messages(unsigned b) const { return b == 0 ? 2 : 3; }
    DIFFUSIM_MEMBER size_t n_all() const { return (size_t)list.n_frames * list.n; }
    DIFFUSIM_MEMBER Group group() const {
        const unsigned first = blockIdx.x * GROUP;
        return Group{first, least(GROUP, (unsigned)n_all() - first)};
    }

    // What the update of a block leaves for its gradient, each [][...]: mixed vectors, gates, lengths, slopes, and the
    // slopes of the messages that follow.
    DIFFUSIM_MEMBER float* saved_of(unsigned b, unsigned rows) const {
        return saved + n_all() * width * ((size_t)b * (4 * n_mixed + 4) + rows);
    }
    DIFFUSIM_MEMBER float* mixed(unsigned b) const { return saved_of(b, 0); }
    DIFFUSIM_MEMBER float* gates(unsigned b) const { return saved_of(b, 3 * n_mixed); }
    DIFFUSIM_MEMBER float* lengths(unsigned b) const { return saved_of(b, 4 * n_mixed + 1); }
    DIFFUSIM_MEMBER float* slopes(unsigned b) const { return saved_of(b, 4 * n_mixed + 2); }
    DIFFUSIM_MEMBER float* message_slopes(unsigned b) const { return saved_of(b, 4 * n_mixed + 3); }
    DIFFUSIM_MEMBER float* message(unsigned b) const { return messages + (size_t)(b - 1) * n_all() * 6 * width; }
    // What the messages of block b were added to has its gradients here.
    DIFFUSIM_MEMBER float* gradients_of(unsigned b) const {
        return upstream + (n_blocks - 1 - b) % 2 * n_all() * 4 * width;
    }

    // The work space of this block.
    DIFFUSIM_MEMBER Room room(unsigned char* shared) const {
        unsigned char* memory = scratch ? scratch + blockIdx.x * scratch_bytes : shared;
        Room room;
        room.v = carve<float>(memory, GROUP * 3 * width);
        room.x = carve<float>(memory, GROUP * 2 * width);
        room.s = carve<float>(memory, GROUP * width);
        room.hidden = carve<float>(memory, GROUP * width);
        room.gates_back = carve<float>(memory, GROUP * 4 * width);
        room.mixed_back = carve<float>(memory, GROUP * 3 * n_mixed * width);
        room.x_back = carve<float>(memory, GROUP * 2 * width);
        room.up = carve<float>(memory, GROUP * 4 * width);
        room.sums = carve<float>(memory, blockDim.x / LANES * TEAM);
        return room;
    }

    // The edges of every particle of the group, by a warp for each; ends with a barrier.
    DIFFUSIM_MEMBER void find_edges(const Point* positions, Group group) const {
        const unsigned lane = threadIdx.x % 32;
        for (unsigned a = threadIdx.x / 32; a < group.count; a += blockDim.x / 32) {
            const unsigned i = group.first + a, n_entries = list.n_entries[i];
            const bool anew = list.moved[i / list.n];
            const unsigned base = i * list.capacity;
            unsigned found = 0;
            for (unsigned first = 0; first < n_entries; first += 32) {
                const unsigned e = base + first + lane;
                Edge edge;
                bool near = first + lane < n_entries;
                if (near) {
                    const Neighbor& entry = list.entries[e];
                    edge.particle = entry.particle;
                    edge.entry = e;
                    if (anew)
                        list.entries[e].reverse = list.reverse(i, e);
                    near = measure(list.difference(positions, i, entry), i, edge);
                }
                const unsigned all = __ballot_sync(~0u, near);
                if (near)
                    edges[base + found + ones(all & ((1u << lane) - 1))] = edge;
                found += ones(all);
            }
            if (lane == 0)
                n_edges[i] = found;
        }
        __syncthreads();
    }

    // Everything about the pair of particle i and that of the edge, which is at `difference` from it; whether it is
    // within the cutoff.
    DIFFUSIM_MEMBER bool measure(Point difference, unsigned i, Edge& edge) const {
        Vector d;
        for (int c = 0; c < 3; c++)
            d.x[c] = (float)difference.x[c];
        float squared = dot(d, d), r = root(squared);
        if (r >= cutoff) // what is not a number is kept, to be noticed
            return false;
        edge.inverse = 1.0f / r;
        for (int c = 0; c < 3; c++)
            edge.direction[c] = d.x[c] * edge.inverse;
        float reach = numbers[repulsion + species[i % list.n] * n_species + species[edge.particle % list.n]];
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
        edge.value[0] = 1.0f - right;
        edge.value[1] = tangent * u;
        edge.value[2] = right;
        edge.value[3] = tangent * t;
        edge.derivative[0] = 6.0f * tangent * density;
        edge.derivative[1] = u * (3.0f * t - 1.0f) * density;
        edge.derivative[2] = t * (3.0f * t - 2.0f) * density;
        return true;
    }

    // Channel `channel` of a block's filter, from weights of value and slope at two knots.
    DIFFUSIM_MEMBER float combine(unsigned b, const Edge& edge, unsigned channel, float w0, float w1, float w2,
                                  float w3) const {
        const unsigned n = n_messages(b) * width;
        const float* row = numbers + blocks[b].filter + (size_t)edge.knot * 2 * n + channel;
        return fused(row[3 * n], w3, fused(row[2 * n], w2, fused(row[n], w1, row[0] * w0)));
    }
    DIFFUSIM_MEMBER float filter(unsigned b, const Edge& edge, unsigned channel) const {
        return combine(b, edge, channel, edge.value[0], edge.value[1], edge.value[2], edge.value[3]);
    }
    DIFFUSIM_MEMBER float filter_slope(unsigned b, const Edge& edge, unsigned channel) const {
        return combine(b, edge, channel, edge.derivative[0], edge.derivative[1], -edge.derivative[0],
                       edge.derivative[2]);
    }

    // Add to the sums of a group the products of rows, `stride` apart, with a column of a weight; both go in the order
    // of `n` inputs.
    DIFFUSIM_MEMBER void multiply(const float* weight, unsigned step, unsigned n, const float* rows, unsigned stride,
                                  Rows& sums) const {
        for (unsigned i = 0; i < n; i += 4) {
            Quad x[GROUP];
            for (unsigned a = 0; a < GROUP; a++)
                x[a] = *reinterpret_cast<const Quad*>(rows + a * stride + i);
            for (unsigned k = 0; k < 4; k++) {
                const float w = weight[(size_t)(i + k) * step];
                for (unsigned a = 0; a < GROUP; a++)
                    sums.x[a] = fused(w, x[a].x[k], sums.x[a]);
            }
        }
    }

    // Output `o` of a layer.
    DIFFUSIM_MEMBER Rows apply(const Layer& layer, const float* rows, unsigned stride, unsigned o) const {
        Rows sums;
        for (unsigned a = 0; a < GROUP; a++)
            sums.x[a] = numbers[layer.bias + o];
        multiply(numbers + layer.weight + o, layer.n_out, layer.n_in, rows, stride, sums);
        return sums;
    }

    // Derivative by input `i` from those by the outputs, `rows`.
    DIFFUSIM_MEMBER Rows apply_back(const Layer& layer, const float* rows, unsigned stride, unsigned i) const {
        Rows sums;
        for (unsigned a = 0; a < GROUP; a++)
            sums.x[a] = 0.0f;
        multiply(numbers + layer.transposed + i, layer.n_in, layer.n_out, rows, stride, sums);
        return sums;
    }

    // Vector `m` (U v, V v or T v) of feature k of a particle.
    DIFFUSIM_MEMBER Vector mixed_vector(unsigned b, unsigned i, unsigned m, unsigned k) const {
        Vector a = {{0.0f, 0.0f, 0.0f}};
        if (m < n_mixed)
            for (unsigned c = 0; c < 3; c++)
                a.x[c] = mixed(b)[(((size_t)i * 3 + c) * n_mixed + m) * width + k];
        return a;
    }

    // What particle i sends in block b: p, p' and, in later blocks, p'' and its vectors.
    DIFFUSIM_MEMBER const float* sent(unsigned b, unsigned i) const {
        return b == 0 ? numbers + blocks[0].rows + species[i % list.n] * 2 * width : message(b) + (size_t)i * 6 * width;
    }

    // Add the messages of its neighbours to the features of every particle; ends with a barrier.
    DIFFUSIM_MEMBER void gather(unsigned b, Group group, const Room& room) const {
        const unsigned f = width;
        for (unsigned at = threadIdx.x; at < group.count * f; at += blockDim.x) {
            const unsigned a = at / f, k = at % f, i = group.first + a;
            float sum = b == 0 ? numbers[embedding + species[i % list.n] * f + k] : s[(size_t)i * f + k];
            float sums[3];
            for (unsigned c = 0; c < 3; c++)
                sums[c] = b == 0 ? 0.0f : message(b)[(size_t)i * 6 * f + (3 + c) * f + k];
            const Edge *edge = edges + (size_t)i * list.capacity, *end = edge + n_edges[i];
            for (; edge < end; edge++) {
                const float* p = sent(b, edge->particle);
                sum = fused(p[k], filter(b, *edge, k), sum);
                float along = p[f + k] * filter(b, *edge, f + k);
                for (unsigned c = 0; c < 3; c++)
                    sums[c] = fused(edge->direction[c], along, sums[c]);
                if (b > 0) {
                    float carried = p[2 * f + k] * filter(b, *edge, 2 * f + k);
                    for (unsigned c = 0; c < 3; c++)
                        sums[c] = fused(p[(3 + c) * f + k], carried, sums[c]);
                }
            }
            room.x[a * 2 * f + k] = sum;
            for (unsigned c = 0; c < 3; c++)
                room.v[(a * 3 + c) * f + k] = sums[c];
        }
        __syncthreads();
    }

    // The features after block b, and what its gradient needs; ends with a barrier.
    DIFFUSIM_MEMBER void update(unsigned b, Group group, const Room& room) const {
        const unsigned f = width;
        const Layer mix = blocks[b].mix, first = blocks[b].update[0], second = blocks[b].update[1];
        for (unsigned at = threadIdx.x; at < 3 * mix.n_out; at += blockDim.x) {
            const unsigned c = at / mix.n_out, o = at % mix.n_out;
            Rows y = apply(mix, room.v + c * f, 3 * f, o);
            for (unsigned a = 0; a < group.count; a++)
                mixed(b)[((size_t)(group.first + a) * 3 + c) * mix.n_out + o] = y.x[a];
        }
        __syncthreads();
        for (unsigned at = threadIdx.x; at < group.count * f; at += blockDim.x) {
            const unsigned a = at / f, k = at % f, i = group.first + a;
            Vector w = mixed_vector(b, i, 1, k);
            float length = root(dot(w, w) + 1.0f);
            lengths(b)[(size_t)i * f + k] = room.x[a * 2 * f + f + k] = length;
        }
        __syncthreads();
        for (unsigned k = threadIdx.x; k < f; k += blockDim.x) {
            Rows y = apply(first, room.x, 2 * f, k);
            for (unsigned a = 0; a < group.count; a++)
                room.hidden[a * f + k] = silu(y.x[a], slopes(b) + (size_t)(group.first + a) * f + k);
        }
        __syncthreads();
        for (unsigned o = threadIdx.x; o < second.n_out; o += blockDim.x) {
            Rows y = apply(second, room.hidden, f, o);
            for (unsigned a = 0; a < group.count; a++)
                gates(b)[(size_t)(group.first + a) * second.n_out + o] = y.x[a];
        }
        __syncthreads();
        for (unsigned at = threadIdx.x; at < group.count * f; at += blockDim.x) {
            const unsigned a = at / f, k = at % f, i = group.first + a;
            const float* gate = gates(b) + (size_t)i * second.n_out + k;
            Vector u = mixed_vector(b, i, 0, k), w = mixed_vector(b, i, 1, k);
            float sum = fused(gate[f], dot(u, w), room.x[a * 2 * f + k] + gate[0]);
            if (n_mixed == 3)
                sum = fused(gate[2 * f], dot(mixed_vector(b, i, 2, k), cross(u, w)), sum);
            room.s[a * f + k] = s[(size_t)i * f + k] = sum;
            if (b + 1 < n_blocks)
                for (unsigned c = 0; c < 3; c++)
                    message(b + 1)[(size_t)i * 6 * f + (3 + c) * f + k] =
                        fused(gate[n_mixed * f], u.x[c], room.v[(a * 3 + c) * f + k]);
        }
        __syncthreads();
    }

    // The messages of block b from the features before it.
    DIFFUSIM_MEMBER void make_messages(unsigned b, Group group, const Room& room) const {
        const unsigned f = width;
        const Layer first = blocks[b].message[0], second = blocks[b].message[1];
        for (unsigned k = threadIdx.x; k < f; k += blockDim.x) {
            Rows y = apply(first, room.s, f, k);
            for (unsigned a = 0; a < group.count; a++)
                room.hidden[a * f + k] = silu(y.x[a], message_slopes(b - 1) + (size_t)(group.first + a) * f + k);
        }
        __syncthreads();
        for (unsigned o = threadIdx.x; o < 3 * f; o += blockDim.x) {
            Rows y = apply(second, room.hidden, f, o);
            for (unsigned a = 0; a < group.count; a++)
                message(b)[(size_t)(group.first + a) * 6 * f + o] = y.x[a];
        }
    }

    // The energy of each particle, if asked for, and its gradient by the last features, in `up`; ends with a barrier.
    DIFFUSIM_MEMBER void read_out(Group group, const Room& room) const {
        const unsigned f = width;
        const float* weight = numbers + output_weight;
        for (unsigned k = threadIdx.x; k < f; k += blockDim.x) {
            Rows y = apply(readout, room.s, f, k);
            for (unsigned a = 0; a < group.count; a++) {
                float slope;
                room.x[a * f + k] = silu(y.x[a], &slope);
                room.hidden[a * f + k] = weight[k] * slope;
            }
        }
        __syncthreads();
        if (with_energy && threadIdx.x < group.count) {
            const unsigned a = threadIdx.x, i = group.first + a;
            Lanes row;
            row.clear();
            for (unsigned first = 0; first < f; first += LANES)
                for (unsigned lane = 0; lane < LANES; lane++) {
                    const unsigned k = first + lane;
                    row.x[lane] = fused(weight[k], room.x[a * f + k], row.x[lane]);
                    row.x[lane] = fused(weight[f + k], room.s[a * f + k], row.x[lane]);
                }
            float energy = row.sum() + output_bias;
            for (unsigned e = 0; e < n_edges[i]; e++)
                energy = energy + edges[(size_t)i * list.capacity + e].repulsion[0];
            energies[i] = energy;
        }
        for (unsigned k = threadIdx.x; k < f; k += blockDim.x) {
            Rows y = apply_back(readout, room.hidden, f, k);
            for (unsigned a = 0; a < group.count; a++) {
                room.up[a * 4 * f + k] = y.x[a] + weight[f + k];
                for (unsigned c = 1; c < 4; c++)
                    room.up[a * 4 * f + c * f + k] = 0.0f;
            }
        }
        __syncthreads();
    }

    // From gradients by what the update of block b made to gradients by what it was made from, in place in `up`; ends
    // with a barrier.
    DIFFUSIM_MEMBER void update_back(unsigned b, Group group, const Room& room) const {
        const unsigned f = width, of_gates = n_gates(b) * f;
        const bool last = b + 1 == n_blocks, chiral = n_mixed == 3;
        float* up = room.up;
        for (unsigned at = threadIdx.x; at < group.count * f; at += blockDim.x) {
            const unsigned a = at / f, k = at % f, i = group.first + a;
            Vector u = mixed_vector(b, i, 0, k), w = mixed_vector(b, i, 1, k), above;
            float* out = room.gates_back + a * of_gates + k;
            float by = up[a * 4 * f + k];
            out[0] = by;
            out[f] = by * dot(u, w);
            if (chiral)
                out[2 * f] = by * dot(mixed_vector(b, i, 2, k), cross(u, w));
            for (unsigned c = 0; c < 3; c++)
                above.x[c] = up[a * 4 * f + (1 + c) * f + k];
            if (!last)
                out[of_gates - f] = dot(above, u);
        }
        __syncthreads();
        const Layer first = blocks[b].update[0], second = blocks[b].update[1], mix = blocks[b].mix;
        for (unsigned k = threadIdx.x; k < f; k += blockDim.x) {
            Rows y = apply_back(second, room.gates_back, of_gates, k);
            for (unsigned a = 0; a < group.count; a++)
                room.hidden[a * f + k] = y.x[a] * slopes(b)[(size_t)(group.first + a) * f + k];
        }
        __syncthreads();
        for (unsigned k = threadIdx.x; k < 2 * f; k += blockDim.x) {
            Rows y = apply_back(first, room.hidden, f, k);
            for (unsigned a = 0; a < group.count; a++)
                room.x_back[a * 2 * f + k] = y.x[a];
        }
        __syncthreads();
        for (unsigned at = threadIdx.x; at < group.count * f; at += blockDim.x) {
            const unsigned a = at / f, k = at % f, i = group.first + a;
            const float* gate = gates(b) + (size_t)i * of_gates + k;
            Vector u = mixed_vector(b, i, 0, k), w = mixed_vector(b, i, 1, k), t = mixed_vector(b, i, 2, k), above;
            float by = up[a * 4 * f + k];
            float by_product = by * gate[f];
            float by_length = room.x_back[a * 2 * f + f + k] * (1.0f / lengths(b)[(size_t)i * f + k]);
            Vector u_back = scaled(w, by_product), w_back = axpy(w, by_length, scaled(u, by_product));
            for (unsigned c = 0; c < 3; c++)
                above.x[c] = up[a * 4 * f + (1 + c) * f + k];
            float* out = room.mixed_back + a * 3 * n_mixed * f + k;
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
            up[a * 4 * f + k] = by + room.x_back[a * 2 * f + k];
        }
        __syncthreads();
        for (unsigned at = threadIdx.x; at < 3 * f; at += blockDim.x) {
            const unsigned c = at / f, k = at % f;
            Rows y = apply_back(mix, room.mixed_back + c * mix.n_out, 3 * mix.n_out, k);
            for (unsigned a = 0; a < group.count; a++)
                up[a * 4 * f + (1 + c) * f + k] += y.x[a];
        }
        __syncthreads();
    }

    // `up` to where the block before finds it.
    DIFFUSIM_MEMBER void hand_back(float* gradients, Group group, const Room& room) const {
        for (unsigned at = threadIdx.x; at < group.count * 4 * width; at += blockDim.x)
            gradients[(size_t)group.first * 4 * width + at] = room.up[at];
    }

    // Edge number `e` of the group, and the particle it belongs to.
    DIFFUSIM_MEMBER const Edge& edge_of(Group group, unsigned e, unsigned* particle) const {
        unsigned i = group.first;
        while (e >= n_edges[i])
            e -= n_edges[i++];
        *particle = i;
        return edges[(size_t)i * list.capacity + e];
    }

    // One thread's share of the sums over the features of a pair: derivatives of the energy by its length and by the
    // components of its direction.
    DIFFUSIM_MEMBER void share(unsigned b, const Edge& edge, const float* p, unsigned lane, float* by) const {
        const unsigned f = width;
        const float* up = gradients_of(b) + (size_t)edge.particle * 4 * f;
        const Vector n = {{-edge.direction[0], -edge.direction[1], -edge.direction[2]}};
        by[0] = by[1] = by[2] = by[3] = 0.0f;
        for (unsigned k = lane; k < f; k += LANES) {
            const Vector u = {{up[f + k], up[2 * f + k], up[3 * f + k]}};
            by[0] = fused(up[k] * p[k], filter_slope(b, edge, k), by[0]);
            by[0] = fused(dot(n, u) * p[f + k], filter_slope(b, edge, f + k), by[0]);
            if (b > 0) {
                Vector own = {{p[3 * f + k], p[4 * f + k], p[5 * f + k]}};
                by[0] = fused(dot(own, u) * p[2 * f + k], filter_slope(b, edge, 2 * f + k), by[0]);
            }
            float along = p[f + k] * filter(b, edge, f + k);
            for (unsigned c = 0; c < 3; c++)
                by[1 + c] = fused(u.x[c], along, by[1 + c]);
        }
    }

    // Gradients by the pairs of the group in block b, by teams of LANES threads.
    DIFFUSIM_MEMBER void pairs_back(unsigned b, Group group, const Room& room) const {
        const unsigned lane = threadIdx.x % LANES, team = threadIdx.x / LANES;
        const unsigned mask = ((1u << LANES) - 1) << threadIdx.x % 32 / LANES * LANES;
        float *sums = room.sums + team * TEAM, *totals = sums + PAIRS * 4 * (LANES + 1);
        unsigned total = 0, i;
        for (unsigned a = 0; a < group.count; a++)
            total += n_edges[group.first + a];
        for (unsigned first = PAIRS * team; first < total; first += PAIRS * (blockDim.x / LANES)) {
            const unsigned count = least(PAIRS, total - first);
            for (unsigned e = 0; e < count; e++) {
                const Edge& edge = edge_of(group, first + e, &i);
                float by[4];
                share(b, edge, sent(b, i), lane, by);
                for (unsigned q = 0; q < 4; q++)
                    sums[(e * 4 + q) * (LANES + 1) + lane] = by[q];
            }
            __syncwarp(mask);
            if (lane < 4 * count) {
                Lanes row;
                for (unsigned k = 0; k < LANES; k++)
                    row.x[k] = sums[lane * (LANES + 1) + k];
                totals[lane] = row.sum();
            }
            __syncwarp(mask);
            if (lane < count) {
                const Edge& edge = edge_of(group, first + lane, &i);
                Vector n = {{-edge.direction[0], -edge.direction[1], -edge.direction[2]}};
                Vector d = {{totals[4 * lane + 1], totals[4 * lane + 2], totals[4 * lane + 3]}};
                float by_length = totals[4 * lane], along = dot(n, d);
                Vector sum = {{0.0f, 0.0f, 0.0f}};
                if (b + 1 < n_blocks)
                    sum = gradients[edge.entry];
                for (int c = 0; c < 3; c++) {
                    float gradient = n.x[c] * by_length + (d.x[c] - n.x[c] * along) * edge.inverse;
                    sum.x[c] = sum.x[c] + gradient;
                    if (b == 0) // the repulsion of a pair belongs half to each of its two entries
                        sum.x[c] = sum.x[c] - edge.direction[c] * edge.repulsion[1];
                }
                gradients[edge.entry] = sum;
            }
            __syncwarp(mask);
        }
    }

    // Gradients by the messages of block b, in `gates_back`, and by what they were added to, in `up`; ends with a
    // barrier.
    DIFFUSIM_MEMBER void gather_back(unsigned b, Group group, const Room& room) const {
        const unsigned f = width;
        const float* upstream = gradients_of(b);
        for (unsigned at = threadIdx.x; at < group.count * f; at += blockDim.x) {
            const unsigned a = at / f, k = at % f, i = group.first + a;
            const float *own = sent(b, i) + k, *up = upstream + (size_t)i * 4 * f + k;
            float p_back[3] = {0.0f, 0.0f, 0.0f};
            Vector v_own = {{own[3 * f], own[4 * f], own[5 * f]}}, v_back = {{up[f], up[2 * f], up[3 * f]}};
            room.up[a * 4 * f + k] = up[0];
            const Edge *edge = edges + (size_t)i * list.capacity, *end = edge + n_edges[i];
            for (; edge < end; edge++) {
                up = upstream + (size_t)edge->particle * 4 * f + k;
                Vector u = {{up[f], up[2 * f], up[3 * f]}};
                Vector n = {{-edge->direction[0], -edge->direction[1], -edge->direction[2]}};
                float by[3] = {up[0], dot(n, u), dot(v_own, u)}, w[3];
                for (unsigned m = 0; m < 3; m++) {
                    w[m] = filter(b, *edge, m * f + k);
                    p_back[m] = fused(by[m], w[m], p_back[m]);
                }
                float to_vector = own[2 * f] * w[2];
                for (unsigned c = 0; c < 3; c++)
                    v_back.x[c] = fused(u.x[c], to_vector, v_back.x[c]);
            }
            for (unsigned c = 0; c < 3; c++) {
                room.gates_back[a * 3 * f + c * f + k] = p_back[c];
                room.up[a * 4 * f + (1 + c) * f + k] = v_back.x[c];
            }
        }
        __syncthreads();
    }

    // From gradients by the messages of block b to those by the features before it; ends with a barrier.
    DIFFUSIM_MEMBER void messages_back(unsigned b, Group group, const Room& room) const {
        const unsigned f = width;
        const Layer first = blocks[b].message[0], second = blocks[b].message[1];
        for (unsigned k = threadIdx.x; k < f; k += blockDim.x) {
            Rows y = apply_back(second, room.gates_back, 3 * f, k);
            for (unsigned a = 0; a < group.count; a++)
                room.hidden[a * f + k] = y.x[a] * message_slopes(b - 1)[(size_t)(group.first + a) * f + k];
        }
        __syncthreads();
        for (unsigned k = threadIdx.x; k < f; k += blockDim.x) {
            Rows y = apply_back(first, room.hidden, f, k);
            for (unsigned a = 0; a < group.count; a++)
                room.up[a * 4 * f + k] += y.x[a];
        }
        __syncthreads();
    }

    // Block b of the network on the way forward: after the last one comes the energy, and its gradient up to where the
    // messages were added.
    DIFFUSIM_MEMBER void forward(const Point* positions, unsigned b, unsigned char* shared) const {
        const Group here = group();
        const Room room = this->room(shared);
        if (b == 0)
            find_edges(positions, here);
        gather(b, here, room);
        update(b, here, room);
        if (b + 1 < n_blocks)
            return make_messages(b + 1, here, room);
        read_out(here, room);
        update_back(b, here, room);
        hand_back(gradients_of(b), here, room);
    }

    // Block b on the way back: gradients by pairs, and by what the block before made.
    DIFFUSIM_MEMBER void backward(unsigned b, unsigned char* shared) const {
        const Group here = group();
        const Room room = this->room(shared);
        pairs_back(b, here, room);
        if (b == 0)
            return;
        gather_back(b, here, room);
        messages_back(b, here, room);
        update_back(b - 1, here, room);
        hand_back(gradients_of(b - 1), here, room);
    }

    // ---- what launches.cuh and evaluate.cuh ask for; particles are those of all frames of the system, others included

    DIFFUSIM_MEMBER Clock& clock() const { return *list.clock; }

    DIFFUSIM_MEMBER void notice(unsigned particle, Point x, bool begins) const {
        const unsigned frame = particle / list.n_particles, place = list.places[particle % list.n_particles];
        if (place == ~0u)
            return;
        if (begins && list.space->anew)
            list.moved[frame] = 1;
        else
            list.notice(frame * list.n + place, x);
    }

    DIFFUSIM_MEMBER double energy(unsigned frame) const {
        double energy = 0.0;
        for (unsigned i = 0; i < list.n; i++)
            energy += (double)energies[(size_t)frame * list.n + i];
        return energy;
    }

    // Of one particle, by a warp, which has 32 places in `shared`: the first lane is told. The lists have been used.
    DIFFUSIM_MEMBER Point score(unsigned particle, Point* shared) const {
        const unsigned frame = particle / list.n_particles, place = list.places[particle % list.n_particles];
        const unsigned lane = threadIdx.x % 32;
        Point score = {{0.0, 0.0, 0.0}};
        if (place == ~0u)
            return score;
        const unsigned i = frame * list.n + place, count = n_edges[i];
        if (place == 0 && lane == 0)
            list.moved[frame] = 0;
        for (unsigned first = 0; first < count; first += 32) {
            if (first + lane < count) {
                const unsigned at = edges[(size_t)i * list.capacity + first + lane].entry;
                const Vector gradient = gradients[at], reverse = gradients[list.entries[at].reverse];
                for (int c = 0; c < 3; c++)
                    shared[lane].x[c] = (double)(reverse.x[c] - gradient.x[c]);
            }
            __syncwarp();
            if (lane == 0)
                for (unsigned e = 0; e < least(32, count - first); e++)
                    for (int c = 0; c < 3; c++)
                        score.x[c] += shared[e].x[c];
            __syncwarp();
        }
        return score;
    }
};
