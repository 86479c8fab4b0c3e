/* A model file as text (RFC 4648), for XML. */

#ifndef DIFFUSIM_OPENMM_BASE64_H
#define DIFFUSIM_OPENMM_BASE64_H

#include <string>

namespace diffusim_openmm {

std::string encodeBase64(const std::string& bytes);
/** @throws OpenMM::OpenMMException if `text` is not base64 */
std::string decodeBase64(const std::string& text);

} // namespace diffusim_openmm

#endif
