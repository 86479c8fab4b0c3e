/* The kernels of GpuFrames.cpp, in what OpenMM makes of CUDA, OpenCL and HIP one language of. OpenMM compiles them when
 * a Context is created.
 *
 * Atom i of the Context is atom atomIndex[i] of the System and lies cells[i] periodic cells from there. A coordinate of
 * the core is double; the Context holds its rounding to `real`, in mixed precision with what the rounding left beside
 * it. */

#ifndef DIFFUSIM_OPENMM_KERNELS_H
#define DIFFUSIM_OPENMM_KERNELS_H

static const char SOURCE[] = R"KERNELS(
/** By how much a particle lies elsewhere in the Context. Whole multiples, with one rounding for each addition. */
#define SHIFT_X(c) fma((double) (c).x, ax, fma((double) (c).y, bx, (double) (c).z*cx))
#define SHIFT_Y(c) fma((double) (c).y, by, (double) (c).z*cy)
#define SHIFT_Z(c) ((double) (c).z*cz)

#ifdef USE_MIXED_PRECISION
#define ITS_CORRECTION , GLOBAL real4* RESTRICT posqCorrection
#define CORRECTION(i, axis) posqCorrection[i].axis
#define IS_ROUNDING(x, at, correction) ((at) == (real) (x) && (correction) == (real) ((x)-(double) (real) (x)))
#else
#define ITS_CORRECTION
#define CORRECTION(i, axis) 0
#define IS_ROUNDING(x, at, correction) ((at) == (real) (x))
#endif

// The core's coordinate stays where the Context has its rounding.
DEVICE double takenCoordinate(real at, real correction, double shift, double core, int keep) {
    double expected = core+shift;
    if (keep && IS_ROUNDING(expected, at, correction))
        return core;
    return ((double) at+(double) correction)-shift;
}

KERNEL void takePositions(int n, int keep, double ax, double bx, double by, double cx, double cy, double cz,
        GLOBAL const int* RESTRICT atomIndex, GLOBAL const int4* RESTRICT cells, GLOBAL double* RESTRICT core,
        GLOBAL real4* RESTRICT posq ITS_CORRECTION) {
    for (int i = GLOBAL_ID; i < n; i += GLOBAL_SIZE) {
        GLOBAL double* x = core+3*atomIndex[i];
        int4 c = cells[i];
        x[0] = takenCoordinate(posq[i].x, CORRECTION(i, x), SHIFT_X(c), x[0], keep);
        x[1] = takenCoordinate(posq[i].y, CORRECTION(i, y), SHIFT_Y(c), x[1], keep);
        x[2] = takenCoordinate(posq[i].z, CORRECTION(i, z), SHIFT_Z(c), x[2], keep);
    }
}

KERNEL void givePositions(int n, double ax, double bx, double by, double cx, double cy, double cz,
        GLOBAL const int* RESTRICT atomIndex, GLOBAL const int4* RESTRICT cells, GLOBAL const double* RESTRICT core,
        GLOBAL real4* RESTRICT posq ITS_CORRECTION) {
    for (int i = GLOBAL_ID; i < n; i += GLOBAL_SIZE) {
        GLOBAL const double* from = core+3*atomIndex[i];
        int4 c = cells[i];
        double x = from[0]+SHIFT_X(c), y = from[1]+SHIFT_Y(c), z = from[2]+SHIFT_Z(c);
        real4 at = posq[i]; // its w is a charge
        at.x = (real) x;
        at.y = (real) y;
        at.z = (real) z;
        posq[i] = at;
#ifdef USE_MIXED_PRECISION
        posqCorrection[i] = make_real4((real) (x-(double) (real) x), (real) (y-(double) (real) y),
                                       (real) (z-(double) (real) z), 0);
#endif
    }
}

KERNEL void takeVelocities(int n, int keep, GLOBAL const int* RESTRICT atomIndex, GLOBAL double* RESTRICT core,
        GLOBAL const mixed4* RESTRICT velm) {
    for (int i = GLOBAL_ID; i < n; i += GLOBAL_SIZE) {
        GLOBAL double* v = core+3*atomIndex[i];
        mixed4 at = velm[i];
        v[0] = (keep && at.x == (mixed) v[0] ? v[0] : (double) at.x);
        v[1] = (keep && at.y == (mixed) v[1] ? v[1] : (double) at.y);
        v[2] = (keep && at.z == (mixed) v[2] ? v[2] : (double) at.z);
    }
}

KERNEL void giveVelocities(int n, GLOBAL const int* RESTRICT atomIndex, GLOBAL const double* RESTRICT core,
        GLOBAL mixed4* RESTRICT velm) {
    for (int i = GLOBAL_ID; i < n; i += GLOBAL_SIZE) {
        GLOBAL const double* from = core+3*atomIndex[i];
        mixed4 at = velm[i]; // its w is the inverse mass
        at.x = (mixed) from[0];
        at.y = (mixed) from[1];
        at.z = (mixed) from[2];
        velm[i] = at;
    }
}

// Forces are integers, of units of 2^-32 kJ/(mol nm): all x, then all y, then all z.
KERNEL void takeForces(int n, int paddedNumAtoms, GLOBAL const int* RESTRICT atomIndex, GLOBAL double* RESTRICT core,
        GLOBAL const mm_long* RESTRICT force) {
    for (int i = GLOBAL_ID; i < n; i += GLOBAL_SIZE)
        for (int axis = 0; axis < 3; axis++)
            core[3*atomIndex[i]+axis] = (double) force[i+axis*paddedNumAtoms]*(1.0/4294967296.0);
}

KERNEL void giveForces(int n, int paddedNumAtoms, GLOBAL const int* RESTRICT atomIndex, GLOBAL const double* RESTRICT core,
        GLOBAL mm_ulong* RESTRICT force, double unit) {
    for (int i = GLOBAL_ID; i < n; i += GLOBAL_SIZE)
        for (int axis = 0; axis < 3; axis++) // other Forces may be at work on another stream
            ATOMIC_ADD(&force[i+axis*paddedNumAtoms], (mm_ulong) (mm_long) (unit*core[3*atomIndex[i]+axis]*4294967296.0));
}
)KERNELS";

#endif
