// Which particles are near each other, in open space or in a periodic cell: the twin of src/neighbors.rs.
//
// A list holds all pairs within cutoff + skin of the positions it was built from and stays good until a particle of its
// frame has moved by half the skin. The neighbours of a particle are sorted by their number, then by their image, so
// that what is computed from those within the cutoff does not depend on when the list was built.
//
// Particles of all frames are numbered through. Every list has the same room; one that does not fit stalls the clock,
// and the host makes more room.
#pragma once

#include "launches.cuh"

// The periodic cell: the twin of src/cell.rs.
struct Cell {
    double vectors[3][3]; // rows
    double inverse[3][3];
    double widths[3];

    DIFFUSIM_MEMBER double fractional(Point p, int k) const {
        return p.x[0] * inverse[0][k] + p.x[1] * inverse[1][k] + p.x[2] * inverse[2][k];
    }
    DIFFUSIM_MEMBER double translation(const int* n, int c) const {
        return (double)n[0] * vectors[0][c] + (double)n[1] * vectors[1][c] + (double)n[2] * vectors[2][c];
    }
};

// Where the particles live, and how far a list reaches.
struct Space {
    Cell cell;
    double radius; // cutoff + skin, infinite where all pairs are listed
    double limit;  // square of half the skin
    unsigned periodic;
    unsigned anew; // lists are built whether or not a particle has moved
};

// One entry of a list: a particle, where the same pair stands seen from there, and its image.
struct Neighbor {
    unsigned particle;
    unsigned reverse;
    int image[3];

    DIFFUSIM_MEMBER bool is_before(const Neighbor& other) const {
        if (particle != other.particle)
            return particle < other.particle;
        for (int k = 0; k < 2; k++)
            if (image[k] != other.image[k])
                return image[k] < other.image[k];
        return image[2] < other.image[2];
    }
};

// Positions this many cells away from the origin have lost their digits.
const double FARTHEST = 1e6;
// Threads of a block that fills boxes, a power of two, and the shared memory it needs for each.
const unsigned FILLERS = 128;
const unsigned FILLER_BYTES = 48;

// Where a box is and in which image of the cell.
struct Step {
    int shift;
    unsigned at;

    // `step` boxes from `own`, of `count` in a row.
    static DIFFUSIM_MEMBER Step from(unsigned own, int step, unsigned count) {
        const int target = (int)own + step, n = (int)count;
        const int shift = target >= 0 ? target / n : -((n - 1 - target) / n);
        return Step{shift, (unsigned)(target - shift * n)};
    }
};

struct NeighborList {
    Clock* clock;
    const Space* space;
    const unsigned* members; // [n]: the system's particles that are listed
    const unsigned* places;  // [n_particles]: place among the members, ~0 for none
    Neighbor* entries;       // [n_frames n][capacity]
    Neighbor* unsorted;      // of the same shape
    unsigned* n_entries;     // [n_frames n]
    Point* built_at;         // [n_frames n]
    int* home;               // [n_frames n][3]: cell in which each particle lies
    unsigned* box;           // [n_frames n]: box in which it lies
    unsigned* sorted;        // [n_frames n]: particles box by box
    unsigned* ends;          // [n_frames][most^3]: where the particles of a box end in `sorted`
    unsigned* counts;        // [n_frames][3]: boxes in a row
    unsigned* moved;         // [n_frames]: not 0 where the list is to be built anew
    unsigned n;
    unsigned n_particles; // in a frame, others included
    unsigned n_frames;
    unsigned capacity;
    unsigned most; // boxes in a row at most
    unsigned padding;

    DIFFUSIM_MEMBER Point position(const Point* positions, unsigned particle) const {
        return positions[(size_t)(particle / n) * n_particles + members[particle % n]];
    }
    DIFFUSIM_MEMBER unsigned n_boxes() const { return most * most * most; }

    // Have the list of a frame built anew if one of its particles has moved by half the skin; not a number counts as
    // moved.
    DIFFUSIM_MEMBER void notice(unsigned particle, Point x) const {
        double squared = 0.0;
        for (int c = 0; c < 3; c++) {
            double d = x.x[c] - built_at[particle].x[c];
            squared += d * d;
        }
        if (!(squared < space->limit))
            moved[particle / n] = 1;
    }

    // Sort the particles of one frame into boxes, one block for each frame; `memory` is shared.
    DIFFUSIM_MEMBER void fill_boxes(const Point* positions, unsigned char* memory) const {
        const unsigned frame = blockIdx.x, first = frame * n, thread = threadIdx.x;
        if (!moved[frame])
            return;
        double* partial = reinterpret_cast<double*>(memory); // [FILLERS][6]
        double low[3] = {0.0, 0.0, 0.0}, extent[3];
        if (!space->periodic) {
            const double infinity = into_double(0x7FF0000000000000ull);
            for (int c = 0; c < 6; c++)
                partial[6 * thread + c] = c < 3 ? infinity : -infinity;
            for (unsigned i = thread; i < n; i += FILLERS) {
                Point p = position(positions, first + i);
                for (int c = 0; c < 3; c++) {
                    partial[6 * thread + c] = fmin(partial[6 * thread + c], p.x[c]);
                    partial[6 * thread + 3 + c] = fmax(partial[6 * thread + 3 + c], p.x[c]);
                }
            }
            for (unsigned half = FILLERS / 2; half > 0; half /= 2) {
                __syncthreads();
                if (thread < half)
                    for (int c = 0; c < 3; c++) {
                        double *to = partial + 6 * thread, *from = partial + 6 * (thread + half);
                        to[c] = fmin(to[c], from[c]);
                        to[3 + c] = fmax(to[3 + c], from[3 + c]);
                    }
            }
            __syncthreads();
            for (int c = 0; c < 3; c++) {
                low[c] = partial[c];
                extent[c] = partial[3 + c] - partial[c];
            }
        } else {
            for (int c = 0; c < 3; c++)
                extent[c] = space->cell.widths[c];
        }
        unsigned count[3];
        for (int c = 0; c < 3; c++) {
            double boxes = floor(extent[c] / space->radius);
            count[c] = boxes >= 1.0 ? boxes < (double)most ? (unsigned)boxes : most : 1;
            if (thread == 0)
                counts[3 * frame + c] = count[c];
        }
        const unsigned total = count[0] * count[1] * count[2];
        unsigned* end = ends + (size_t)frame * n_boxes();
        for (unsigned b = thread; b < total; b += FILLERS)
            end[b] = 0;
        __syncthreads();

        for (unsigned i = thread; i < n; i += FILLERS) {
            const Point p = position(positions, first + i);
            built_at[first + i] = p;
            bool found = is_finite(p.x[0]) && is_finite(p.x[1]) && is_finite(p.x[2]);
            unsigned at[3];
            for (int k = 0; k < 3; k++) {
                double whole = 0.0, within;
                if (space->periodic) {
                    within = space->cell.fractional(p, k);
                    whole = floor(within);
                    within = within - whole;
                } else {
                    within = (p.x[k] - low[k]) / fmax(extent[k], space->radius);
                }
                found = found && fabs(whole) < FARTHEST && within <= 1.0;
                home[3 * (size_t)(first + i) + k] = found ? (int)whole : 0;
                at[k] = found ? least((unsigned)(within * (double)count[k]), count[k] - 1) : 0;
            }
            if (!found)
                clock->lose(first + i);
            box[first + i] = (at[0] * count[1] + at[1]) * count[2] + at[2];
            atomicAdd(&end[box[first + i]], 1u);
        }
        __syncthreads();

        // From how many there are to where they begin: each thread does some boxes in a row.
        unsigned* before = reinterpret_cast<unsigned*>(memory); // [FILLERS]
        const unsigned each = (total + FILLERS - 1) / FILLERS;
        const unsigned from = least(thread * each, total), to = least(from + each, total);
        unsigned sum = 0;
        for (unsigned b = from; b < to; b++)
            sum += end[b];
        before[thread] = sum;
        __syncthreads();
        sum = 0;
        for (unsigned t = 0; t < thread; t++)
            sum += before[t];
        for (unsigned b = from; b < to; b++) {
            const unsigned of_this = end[b];
            end[b] = sum;
            sum += of_this;
        }
        __syncthreads();
        // And to where they end, in whatever order.
        for (unsigned i = thread; i < n; i += FILLERS)
            sorted[first + atomicAdd(&end[box[first + i]], 1u)] = first + i;
    }

    // The list of one particle, by one warp. Nothing is written where that of its frame is still good.
    DIFFUSIM_MEMBER void find(unsigned particle) const {
        const unsigned frame = particle / n, lane = threadIdx.x % 32;
        if (!moved[frame])
            return;
        const unsigned* count = counts + 3 * frame;
        const unsigned* end = ends + (size_t)frame * n_boxes();
        const Point x = built_at[particle];
        const unsigned own_box = box[particle];
        const unsigned own[3] = {own_box / (count[1] * count[2]), own_box / count[2] % count[1], own_box % count[2]};
        int reach[3]; // how many boxes away a neighbour may be
        for (int k = 0; k < 3; k++)
            reach[k] = space->periodic ? (int)ceil(space->radius * (double)count[k] / space->cell.widths[k]) : 1;
        const size_t base = (size_t)particle * capacity;
        unsigned found = 0;
        for (int a = -reach[0]; a <= reach[0]; a++)
            for (int b = -reach[1]; b <= reach[1]; b++)
                for (int c = -reach[2]; c <= reach[2]; c++) {
                    const Step step[3] = {Step::from(own[0], a, count[0]), Step::from(own[1], b, count[1]),
                                          Step::from(own[2], c, count[2])};
                    if (!space->periodic && (step[0].shift || step[1].shift || step[2].shift))
                        continue;
                    const unsigned there = (step[0].at * count[1] + step[1].at) * count[2] + step[2].at;
                    for (unsigned first = there ? end[there - 1] : 0; first < end[there]; first += 32) {
                        Neighbor entry = {};
                        bool near = first + lane < end[there];
                        if (near) {
                            entry.particle = sorted[frame * n + first + lane];
                            const int* other = home + 3 * (size_t)entry.particle;
                            bool itself = entry.particle == particle;
                            double squared = 0.0;
                            for (int k = 0; k < 3; k++) {
                                entry.image[k] = step[k].shift - other[k] + home[3 * (size_t)particle + k];
                                itself = itself && entry.image[k] == 0;
                            }
                            for (int k = 0; k < 3; k++) {
                                double d = built_at[entry.particle].x[k] - x.x[k];
                                if (space->periodic)
                                    d += space->cell.translation(entry.image, k);
                                squared += d * d;
                            }
                            near = !itself && squared < space->radius * space->radius;
                        }
                        const unsigned all = __ballot_sync(~0u, near);
                        const unsigned place = found + ones(all & ((1u << lane) - 1));
                        if (near && place < capacity)
                            unsorted[base + place] = entry;
                        found += ones(all);
                    }
                }
        __syncwarp();
        // Every entry goes where as many are as stand before it.
        const unsigned kept = least(found, capacity);
        for (unsigned e = lane; e < kept; e += 32) {
            const Neighbor entry = unsorted[base + e];
            unsigned rank = 0;
            for (unsigned other = 0; other < kept; other++)
                rank += unsorted[base + other].is_before(entry);
            entries[base + rank] = entry;
        }
        if (lane == 0) {
            n_entries[particle] = kept;
            clock->need(found, capacity);
        }
    }

    // Where the pair of entry `e` of a particle stands in the list of its neighbour.
    DIFFUSIM_MEMBER unsigned reverse(unsigned particle, unsigned e) const {
        Neighbor key = entries[e];
        const unsigned base = key.particle * capacity;
        unsigned low = 0, high = n_entries[key.particle];
        key.particle = particle;
        for (int k = 0; k < 3; k++)
            key.image[k] = -key.image[k];
        while (low < high) {
            const unsigned middle = (low + high) / 2;
            if (entries[base + middle].is_before(key))
                low = middle + 1;
            else
                high = middle;
        }
        // A pair at the very edge of the list may be seen from one side only: it is far beyond the cutoff.
        if (low == n_entries[entries[e].particle] || key.is_before(entries[base + low]))
            return e;
        return base + low;
    }

    // x_j - x_i of an entry of particle i; its reverse has the same numbers with the other sign, to the last bit.
    DIFFUSIM_MEMBER Point difference(const Point* positions, unsigned particle, const Neighbor& entry) const {
        const Point from = position(positions, particle), to = position(positions, entry.particle);
        Point d;
        for (int c = 0; c < 3; c++) {
            d.x[c] = to.x[c] - from.x[c];
            if (space->periodic)
                d.x[c] += space->cell.translation(entry.image, c);
        }
        return d;
    }
};
