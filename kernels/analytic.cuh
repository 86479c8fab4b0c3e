// Potentials whose score is exact: the twin of src/model/analytic.rs. Energies in kT0, lengths in nm, all in double
// precision.
//
// Every operation is that of the CPU in its order, so the bits are the same, except where exp() is needed
// (Mueller-Brown): there a score may differ in the last place.
#pragma once

#include "adapter.cuh"

// In the order of `Potential` in src/model/analytic.rs.
enum Potential { FREE, HARMONIC, DOUBLE_WELL, MUELLER_BROWN, LENNARD_JONES_CLUSTER, DW4 };

struct Analytic {
    const unsigned* members; // [n_members]: the system's particles that the potential acts on
    const unsigned* places;  // [n_particles]: place among the members, ~0 for none
    double parameters[4];    // in the order of the variant's fields
    unsigned n_members;
    unsigned n_particles;
    unsigned potential;
    unsigned frames_per_block;

    DIFFUSIM_MEMBER unsigned frames() const { return frames_per_block; }
    DIFFUSIM_MEMBER void load(unsigned char*) {}
    DIFFUSIM_MEMBER void prepare(const Point*) {}

    // Score of one particle; a barrier lies between the last write of `positions` and this.
    DIFFUSIM_MEMBER Point score(const Point* positions, unsigned frame, unsigned particle) const {
        if (places[particle] == ~0u)
            return Point{{0.0, 0.0, 0.0}};
        const Point* x = positions + (size_t)frame * n_particles;
        const double* k = parameters;
        switch (potential) {
        case HARMONIC: {
            Point s;
            for (int c = 0; c < 3; c++)
                s.x[c] = -k[0] * x[particle].x[c];
            return s;
        }
        case DOUBLE_WELL:
            return double_well(x[particle]);
        case MUELLER_BROWN:
            return mueller_brown(x[particle]);
        case LENNARD_JONES_CLUSTER:
            return lennard_jones_cluster(x, particle);
        case DW4:
            return pairs<2>(x, particle, [k](double r2) {
                double r = root(r2), d = r - k[3];
                return (k[0] + d * (2.0 * k[1] + 4.0 * k[2] * d * d)) / r;
            });
        default:
            return Point{{0.0, 0.0, 0.0}};
        }
    }

    DIFFUSIM_MEMBER Point double_well(Point x) const {
        double barrier = parameters[0], half_width = parameters[1], stiffness = parameters[2];
        double u = x.x[0] / half_width, w = u * u - 1.0;
        return Point{{-(4.0 * barrier * u * w / half_width), -(stiffness * x.x[1]), -(stiffness * x.x[2])}};
    }

    DIFFUSIM_MEMBER Point mueller_brown(Point x) const {
        const double terms[4][6] = {
            // A, a, b, c, x0, y0
            {-200.0, -1.0, 0.0, -10.0, 1.0, 0.0},
            {-100.0, -1.0, 0.0, -10.0, 0.0, 0.5},
            {-170.0, -6.5, 11.0, -6.5, -0.5, 1.5},
            {15.0, 0.7, 0.6, 0.7, -1.0, 1.0},
        };
        double gx = 0.0, gy = 0.0;
        for (int i = 0; i < 4; i++) {
            const double *t = terms[i], a = t[1], b = t[2], c = t[3];
            double dx = x.x[0] - t[4], dy = x.x[1] - t[5];
            double e = t[0] / parameters[0] * exp(a * dx * dx + b * dx * dy + c * dy * dy);
            gx += e * (2.0 * a * dx + b * dy);
            gy += e * (b * dx + 2.0 * c * dy);
        }
        return Point{{-gx, -gy, -0.0}};
    }

    DIFFUSIM_MEMBER Point lennard_jones_cluster(const Point* x, unsigned particle) const {
        double well_depth = parameters[0], minimum_distance = parameters[1], stiffness = parameters[2];
        Point s = pairs<3>(x, particle, [=](double r2) {
            double inverse = minimum_distance * minimum_distance / r2;
            double sixth = inverse * inverse * inverse;
            return 12.0 * well_depth * (sixth - sixth * sixth) / r2;
        });
        for (int c = 0; c < 3; c++) {
            double centre = 0.0;
            for (unsigned m = 0; m < n_members; m++)
                centre += x[members[m]].x[c] / (double)n_members;
            s.x[c] -= stiffness * (x[particle].x[c] - centre);
        }
        return s;
    }

    // Sum over the partners of a particle of a potential whose (dE/dr)/r is `slope(r^2)`; the first DIM coordinates
    // count.
    template <int DIM, class Slope>
    DIFFUSIM_MEMBER Point pairs(const Point* x, unsigned particle, Slope slope) const {
        Point s = {{0.0, 0.0, 0.0}};
        unsigned place = places[particle];
        for (unsigned m = 0; m < n_members; m++) {
            if (m == place)
                continue;
            // Always first minus second, as on the CPU.
            Point a = x[members[m < place ? m : place]], b = x[members[m < place ? place : m]];
            double d[DIM], r2 = 0.0;
            for (int c = 0; c < DIM; c++) {
                d[c] = a.x[c] - b.x[c];
                r2 += d[c] * d[c];
            }
            double along = slope(r2);
            for (int c = 0; c < DIM; c++)
                s.x[c] += m < place ? along * d[c] : -(along * d[c]);
        }
        return s;
    }
};
