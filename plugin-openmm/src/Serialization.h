#ifndef DIFFUSIM_OPENMM_SERIALIZATION_H
#define DIFFUSIM_OPENMM_SERIALIZATION_H

namespace diffusim_openmm {

/** Teach OpenMM's XmlSerializer both classes. OpenMM owns what is registered. */
void registerSerializationProxies();

} // namespace diffusim_openmm

#endif
