/* The one place where units change: lengths are nm on both sides, energies are kJ/mol here and kT₀ in a model. */

#ifndef DIFFUSIM_OPENMM_UNITS_H
#define DIFFUSIM_OPENMM_UNITS_H

#include "diffusim.hpp"
#include "openmm/reference/SimTKOpenMMRealType.h"

namespace diffusim_openmm {

/** kT₀ in kJ/mol. */
inline double energyUnit(const diffusim::model& model) { return BOLTZ * model.training_temperature(); }

} // namespace diffusim_openmm

#endif
