#include "GpuFrames.h"
#include "kernels.h"
#include "openmm/OpenMMException.h"
#include "openmm/common/ContextSelector.h"

using namespace OpenMM;

namespace diffusim_openmm {

GpuFrames::GpuFrames(std::string name, const Platform& platform, ComputeContext& cc, std::unique_ptr<const Gpu> gpu)
    : GpuFramesKernel(name, platform), cc(cc), gpu(std::move(gpu)) {
    if (!cc.getSupportsDoublePrecision())
        throw OpenMMException("the device has no double precision, which positions are kept in");
}

/** At the first use: a Context has its arrays when all kernels are there. */
void GpuFrames::compile() {
    if (takePositionsKernel)
        return;
    const int n = cc.getNumAtoms();
    cells.initialize<mm_int4>(cc, cc.getPaddedNumAtoms(), "diffusimCells");
    knownCells.assign(cc.getPaddedNumAtoms(), mm_int4(0, 0, 0, 0));
    cells.upload(knownCells);
    ComputeProgram program = cc.compileProgram(SOURCE);
    const auto create = [&](const char* name) {
        ComputeKernel kernel = program->createKernel(name);
        kernel->addArg(n);
        return kernel;
    };
    const auto addPlaces = [&](ComputeKernel& kernel) {
        for (int i = 0; i < 6; i++)
            kernel->addArg(0.0); // the box
        kernel->addArg(cc.getAtomIndexArray());
        kernel->addArg(cells);
        kernel->addArg(); // the core's array
        kernel->addArg(cc.getPosq());
        if (cc.getUseMixedPrecision())
            kernel->addArg(cc.getPosqCorrection());
    };
    const auto addRest = [&](ComputeKernel& kernel, ArrayInterface& array) {
        kernel->addArg(cc.getAtomIndexArray());
        kernel->addArg();
        kernel->addArg(array);
    };
    givePositionsKernel = create("givePositions");
    addPlaces(givePositionsKernel);
    takeVelocitiesKernel = create("takeVelocities");
    takeVelocitiesKernel->addArg(0);
    addRest(takeVelocitiesKernel, cc.getVelm());
    giveVelocitiesKernel = create("giveVelocities");
    addRest(giveVelocitiesKernel, cc.getVelm());
    takeForcesKernel = create("takeForces");
    takeForcesKernel->addArg(cc.getPaddedNumAtoms());
    addRest(takeForcesKernel, cc.getLongForceBuffer());
    giveForcesKernel = create("giveForces");
    giveForcesKernel->addArg(cc.getPaddedNumAtoms());
    addRest(giveForcesKernel, cc.getLongForceBuffer());
    giveForcesKernel->addArg(1.0); // the unit
    takePositionsKernel = create("takePositions");
    takePositionsKernel->addArg(0);
    addPlaces(takePositionsKernel);
}

/** The host knows in which cells the atoms are; they change when atoms are reordered, and when positions are set. */
void GpuFrames::updateCells() {
    if (!cc.getNonbondedUtilities().getUseCutoff())
        return; // all in the first
    const std::vector<mm_int4>& current = cc.getPosCellOffsets();
    const auto equal = [](const mm_int4& a, const mm_int4& b) { return a.x == b.x && a.y == b.y && a.z == b.z; };
    if (current.size() == knownCells.size() && std::equal(current.begin(), current.end(), knownCells.begin(), equal))
        return;
    std::copy(current.begin(), current.end(), knownCells.begin());
    cells.upload(knownCells);
}

void GpuFrames::setBox(ComputeKernel& kernel, int firstArgument) {
    Vec3 a, b, c;
    cc.getPeriodicBoxVectors(a, b, c);
    for (double length : {a[0], b[0], b[1], c[0], c[1], c[2]})
        kernel->setArg(firstArgument++, length);
}

void GpuFrames::execute(ComputeKernel& kernel, int coreArgument, CoreArray core, int copies) {
    const int n = cc.getNumAtoms();
    if (core.host == nullptr) {
        kernel->setArg(coreArgument, core.device);
        kernel->execute(n);
        return;
    }
    if (!staged.isInitialized())
        staged.initialize<double>(cc, 3 * static_cast<std::size_t>(n), "diffusimStaged");
    core.host->resize(staged.getSize());
    if (copies & TO_GPU)
        staged.upload(*core.host);
    kernel->setArg(coreArgument, staged);
    kernel->execute(n);
    if (copies & FROM_GPU)
        staged.download(*core.host);
}

/** With argument 1 of the kernel: whether the core's array holds what it may keep. */
void GpuFrames::import(ComputeKernel& kernel, int coreArgument, CoreArray core, bool keep) {
    kernel->setArg(1, static_cast<int>(keep));
    execute(kernel, coreArgument, core, keep ? TO_GPU | FROM_GPU : FROM_GPU);
}

void GpuFrames::takePositions(CoreArray core, bool keep) {
    ContextSelector selector(cc);
    compile();
    updateCells();
    setBox(takePositionsKernel, 2);
    import(takePositionsKernel, 10, core, keep);
}

void GpuFrames::importPositions(CoreArray core) { takePositions(core, core.isFilled()); }

void GpuFrames::readPositions(CoreArray core) { takePositions(core, false); }

void GpuFrames::exportPositions(CoreArray core) {
    ContextSelector selector(cc);
    compile();
    updateCells();
    setBox(givePositionsKernel, 1);
    execute(givePositionsKernel, 9, core, TO_GPU);
}

void GpuFrames::importVelocities(CoreArray core) {
    ContextSelector selector(cc);
    compile();
    import(takeVelocitiesKernel, 3, core, core.isFilled());
}

void GpuFrames::exportVelocities(CoreArray core) {
    ContextSelector selector(cc);
    compile();
    execute(giveVelocitiesKernel, 2, core, TO_GPU);
}

void GpuFrames::readForces(CoreArray core) {
    ContextSelector selector(cc);
    compile();
    execute(takeForcesKernel, 3, core, FROM_GPU);
}

void GpuFrames::addForces(CoreArray core, double unit) {
    ContextSelector selector(cc);
    compile();
    giveForcesKernel->setArg(5, unit);
    execute(giveForcesKernel, 3, core, TO_GPU);
}

void GpuFrames::reorder(CoreArray positions) {
    ContextSelector selector(cc);
    cc.reorderAtoms();
    if (cc.getAtomsWereReordered()) // which moves atoms between cells, with a rounding
        exportPositions(positions);
}

void checkVersion() {
    if (Platform::getOpenMMVersion() != OPENMM_VERSION)
        throw OpenMMException("it was built for OpenMM " OPENMM_VERSION ", and this is OpenMM " +
                              Platform::getOpenMMVersion() + "; build diffusim again on this one");
}

} // namespace diffusim_openmm
