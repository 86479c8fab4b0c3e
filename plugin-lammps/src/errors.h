/* SPDX-License-Identifier: GPL-2.0-only
 *
 * Failures, as LAMMPS wants them: error->all where every rank fails alike, error->one where perhaps only this one does.
 */

#ifndef DIFFUSIM_LAMMPS_ERRORS_H
#define DIFFUSIM_LAMMPS_ERRORS_H

#include "diffusim.hpp"
#include "error.h"
#include "exceptions.h"
#include <mpi.h>
#include <string>

namespace diffusim_lammps {

/** The message of the first rank that has one, on all ranks; "" where none has. Collective. */
std::string first_failure(const std::string& mine, MPI_Comm world);

/** What the core says when `body` fails; "" if it does not. */
template <class Body>
std::string failure_of(Body&& body) {
    try {
        body();
    } catch (const diffusim::error& caught) {
        return caught.what();
    }
    return "";
}

/** Run what fails on all ranks alike, as std::runtime_error; nothing but LAMMPS's own exceptions leaves. */
template <class Body>
void attempt(LAMMPS_NS::Error* error, const char* style, const char* file, int line, Body&& body) {
    std::string failure;
    try {
        body();
        return;
    } catch (const LAMMPS_NS::LAMMPSException&) {
        throw;
    } catch (const diffusim::error& caught) {
        failure = caught.what();
    } catch (const std::runtime_error& caught) {
        failure = caught.what();
    } catch (const std::exception& caught) { // out of memory, on this rank
        error->one(file, line, std::string(style) + ": " + caught.what());
    }
    error->all(file, line, std::string(style) + ": " + failure);
}

} // namespace diffusim_lammps

#endif
