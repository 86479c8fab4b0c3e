// Potentials whose score is exact: the twin of src/model/analytic.rs. Energies in kT0, lengths in nm, all in double
// precision.
//
// Every operation is that of the CPU in its order, so the bits are the same.
#pragma once

#include "advance.cuh"

// In the order of `Potential` in src/model/analytic.rs.
enum Potential { FREE, HARMONIC, DOUBLE_WELL, MUELLER_BROWN, LENNARD_JONES_CLUSTER, DW4, GAUSSIAN_MIXTURE };

struct Analytic {
    const unsigned* members; // [n_members]: the system's particles that the potential acts on
    const unsigned* places;  // [n_particles]: place among the members, ~0 for none
    // Of each component of a mixture: ln w, three variances, their logarithms, means [n_members][3].
    const double* mixture;
    double* logarithms;   // [frames][n_components] of the mixture, filled in by prepare()
    double parameters[4]; // in the order of the variant's fields
    unsigned n_members;
    unsigned n_particles;
    unsigned potential;
    unsigned n_components;
    unsigned frames_per_block;

    DIFFUSIM_MEMBER unsigned frames() const { return frames_per_block; }
    DIFFUSIM_MEMBER void load(unsigned char*& memory, bool) {
        logarithms = carve<double>(memory, frames_per_block * n_components);
    }

    DIFFUSIM_MEMBER const double* component(unsigned k) const { return mixture + k * (7 + 3 * (size_t)n_members); }

    // Ends with a barrier, where there is anything to prepare.
    DIFFUSIM_MEMBER void prepare(const Point* positions, bool) {
        if (n_components == 0)
            return;
        for (unsigned i = threadIdx.x; i < frames_per_block * n_components; i += blockDim.x) {
            const Point* x = positions + (size_t)(i / n_components) * n_particles;
            const double* k = component(i % n_components);
            double sum = k[0];
            for (unsigned m = 0; m < n_members; m++)
                for (int c = 0; c < 3; c++) {
                    double d = x[members[m]].x[c] - k[7 + 3 * m + c];
                    sum -= 0.5 * (d * d / k[1 + c] + k[4 + c]);
                }
            logarithms[i] = sum;
        }
        __syncthreads();
    }

    // The largest of the logarithms of a frame's components, and what their exponentials beside it sum up to.
    DIFFUSIM_MEMBER double greatest(unsigned frame) const {
        double greatest = -into_double(0x7FF0000000000000ull);
        for (unsigned k = 0; k < n_components; k++)
            greatest = fmax(greatest, logarithms[frame * n_components + k]);
        return greatest;
    }

    DIFFUSIM_MEMBER Point gaussian_mixture(Point x, unsigned frame, unsigned place) const {
        const double top = greatest(frame);
        Point s = {{0.0, 0.0, 0.0}};
        double total = 0.0;
        for (unsigned i = 0; i < n_components; i++) {
            const double* k = component(i);
            double weight = exp_double(logarithms[frame * n_components + i] - top);
            total += weight;
            for (int c = 0; c < 3; c++)
                s.x[c] -= weight * (x.x[c] - k[7 + 3 * place + c]) / k[1 + c];
        }
        for (int c = 0; c < 3; c++)
            s.x[c] /= total;
        return s;
    }

    // Energy of one frame, added in the order of the CPU.
    DIFFUSIM_MEMBER double energy(const Point* positions, unsigned frame) const {
        const Point* x = positions + (size_t)frame * n_particles;
        const double* k = parameters;
        double energy = 0.0;
        switch (potential) {
        case HARMONIC:
            for (unsigned m = 0; m < n_members; m++)
                for (int c = 0; c < 3; c++) {
                    double x_c = x[members[m]].x[c];
                    energy += 0.5 * k[0] * x_c * x_c;
                }
            return energy;
        case DOUBLE_WELL:
            for (unsigned m = 0; m < n_members; m++) {
                Point p = x[members[m]];
                double u = p.x[0] / k[1], w = u * u - 1.0;
                energy += k[0] * w * w + 0.5 * k[2] * (p.x[1] * p.x[1] + p.x[2] * p.x[2]);
            }
            return energy;
        case MUELLER_BROWN:
            for (unsigned m = 0; m < n_members; m++) {
                double of_this = 0.0;
                for (int i = 0; i < 4; i++)
                    of_this += mueller_brown_term(x[members[m]], i).energy;
                energy += of_this;
            }
            return energy;
        case LENNARD_JONES_CLUSTER:
            energy = energy_of_pairs<3>(x, [k](double r2) {
                double inverse = k[1] * k[1] / r2;
                double sixth = inverse * inverse * inverse;
                return k[0] * (sixth * sixth - 2.0 * sixth);
            });
            for (unsigned m = 0; m < n_members; m++)
                for (int c = 0; c < 3; c++) {
                    double d = x[members[m]].x[c] - centre(x, c);
                    energy += 0.5 * k[2] * d * d;
                }
            return energy;
        case DW4:
            return energy_of_pairs<2>(x, [k](double r2) {
                double d = root(r2) - k[3];
                return d * (k[0] + d * (k[1] + d * d * k[2]));
            });
        case GAUSSIAN_MIXTURE: {
            const double top = greatest(frame);
            for (unsigned i = 0; i < n_components; i++)
                energy += exp_double(logarithms[frame * n_components + i] - top);
            return -(top + ln_double(energy));
        }
        default:
            return 0.0;
        }
    }

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
        case GAUSSIAN_MIXTURE:
            return gaussian_mixture(x[particle], frame, places[particle]);
        default:
            return Point{{0.0, 0.0, 0.0}};
        }
    }

    DIFFUSIM_MEMBER Point double_well(Point x) const {
        double barrier = parameters[0], half_width = parameters[1], stiffness = parameters[2];
        double u = x.x[0] / half_width, w = u * u - 1.0;
        return Point{{-(4.0 * barrier * u * w / half_width), -(stiffness * x.x[1]), -(stiffness * x.x[2])}};
    }

    // A term of the surface and its two derivatives.
    struct Term {
        double energy;
        double x;
        double y;
    };
    DIFFUSIM_MEMBER Term mueller_brown_term(Point x, int i) const {
        const double terms[4][6] = {
            // A, a, b, c, x0, y0
            {-200.0, -1.0, 0.0, -10.0, 1.0, 0.0},
            {-100.0, -1.0, 0.0, -10.0, 0.0, 0.5},
            {-170.0, -6.5, 11.0, -6.5, -0.5, 1.5},
            {15.0, 0.7, 0.6, 0.7, -1.0, 1.0},
        };
        const double *t = terms[i], a = t[1], b = t[2], c = t[3];
        double dx = x.x[0] - t[4], dy = x.x[1] - t[5];
        double e = t[0] / parameters[0] * exp_double(a * dx * dx + b * dx * dy + c * dy * dy);
        return Term{e, e * (2.0 * a * dx + b * dy), e * (b * dx + 2.0 * c * dy)};
    }

    DIFFUSIM_MEMBER Point mueller_brown(Point x) const {
        double gx = 0.0, gy = 0.0;
        for (int i = 0; i < 4; i++) {
            Term term = mueller_brown_term(x, i);
            gx += term.x;
            gy += term.y;
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
        for (int c = 0; c < 3; c++)
            s.x[c] -= stiffness * (x[particle].x[c] - centre(x, c));
        return s;
    }

    // Mean of one coordinate of the members.
    DIFFUSIM_MEMBER double centre(const Point* x, int c) const {
        double centre = 0.0;
        for (unsigned m = 0; m < n_members; m++)
            centre += x[members[m]].x[c] / (double)n_members;
        return centre;
    }

    // r^2 of a pair from its first DIM coordinates, always first minus second, as on the CPU.
    template <int DIM>
    DIFFUSIM_MEMBER static double squared_distance(Point a, Point b, double* d) {
        double r2 = 0.0;
        for (int c = 0; c < DIM; c++) {
            d[c] = a.x[c] - b.x[c];
            r2 += d[c] * d[c];
        }
        return r2;
    }

    // Sum over pairs of a potential of r^2.
    template <int DIM, class Energy>
    DIFFUSIM_MEMBER double energy_of_pairs(const Point* x, Energy of) const {
        double energy = 0.0, d[DIM];
        for (unsigned i = 0; i < n_members; i++)
            for (unsigned j = i + 1; j < n_members; j++)
                energy += of(squared_distance<DIM>(x[members[i]], x[members[j]], d));
        return energy;
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
            Point a = x[members[m < place ? m : place]], b = x[members[m < place ? place : m]];
            double d[DIM];
            double along = slope(squared_distance<DIM>(a, b, d));
            for (int c = 0; c < DIM; c++)
                s.x[c] += m < place ? along * d[c] : -(along * d[c]);
        }
        return s;
    }
};
