/* What the user should know although nothing failed. */

#ifndef DIFFUSIM_OPENMM_MESSAGES_H
#define DIFFUSIM_OPENMM_MESSAGES_H

#include <string>

namespace diffusim_openmm {

/** Receives messages; `warning` is 1 for a warning and 0 for information. */
using MessageHandler = void (*)(int warning, const char* message);

/** Messages are dropped until there is a handler. */
void setMessageHandler(MessageHandler handler);
void inform(const std::string& message);
void warn(const std::string& message);

/** A number as messages show it. */
std::string shortText(double value);

} // namespace diffusim_openmm

#endif
