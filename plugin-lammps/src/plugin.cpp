/* SPDX-License-Identifier: GPL-2.0-only
 *
 * What LAMMPS calls when it loads diffusimplugin.so: is this the LAMMPS it was compiled for, and then the two styles.
 *
 * LAMMPS's C++ classes change between releases and, rarely, between updates of one release; LAMMPS itself only prints
 * that versions differ, and crashes later. */

#include "fix_diffusim.h"
#include "lammps.h"
#include "library.h"
#include "pair_diffusim.h"
#include "plugin_abi.h"
#include "utils.h"

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

using namespace LAMMPS_NS;
using namespace diffusim_lammps;

namespace {
Fix* create_fix(LAMMPS* lammps, int narg, char** arg) { return new FixDiffusim(lammps, narg, arg); }
Pair* create_pair(LAMMPS* lammps) { return new PairDiffusim(lammps); }

/** Size of a class's table of virtual functions; 0 = not known. */
std::size_t virtual_table_size(void* library, const char* symbol) {
    Dl_info info;
    const ElfW(Sym)* entry = nullptr;
    void* address = dlsym(library, symbol);
    return address &&
                   dladdr1(address, &info, reinterpret_cast<void**>(const_cast<ElfW(Sym)**>(&entry)), RTLD_DL_SYMENT) &&
                   entry
               ? entry->st_size
               : 0;
}

bool same_virtual_table(const char* of_lammps, const char* ours) {
    Dl_info info;
    if (!dladdr(reinterpret_cast<void*>(&create_fix), &info))
        return true;
    void* plugin = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    if (!plugin)
        return true;
    const std::size_t theirs = virtual_table_size(RTLD_DEFAULT, of_lammps), expected = virtual_table_size(plugin, ours);
    dlclose(plugin);
    return theirs == 0 || expected == 0 || theirs == expected;
}

/** The update N of "stable_22Jul2025_updateN", 0 for the release itself, -1 where the name says nothing. */
int update_of(const std::string& git_descriptor) {
    if (git_descriptor.rfind("stable_", 0) != 0)
        return -1;
    const std::size_t at = git_descriptor.find("_update");
    return at == std::string::npos ? 0 : std::atoi(git_descriptor.c_str() + at + 7);
}

/** Why the styles cannot be used in this LAMMPS; "" = they can. */
std::string mismatch(LAMMPS* lammps) {
    const std::string here = std::to_string(lammps_version(lammps)) + " (" + LAMMPS::git_descriptor() + ")";
    std::string built = std::to_string(DIFFUSIM_LAMMPS_VERSION);
    if (DIFFUSIM_LAMMPS_UPDATE >= 0)
        built += " update " + std::to_string(DIFFUSIM_LAMMPS_UPDATE);
    const std::string both = "the plugin was built for LAMMPS " + built + " and found LAMMPS " + here;
    const int update = update_of(LAMMPS::git_descriptor());
    if (lammps_version(lammps) != DIFFUSIM_LAMMPS_VERSION ||
        (DIFFUSIM_LAMMPS_UPDATE >= 0 && update >= 0 && update != DIFFUSIM_LAMMPS_UPDATE))
        return both;
    if (!same_virtual_table("_ZTVN9LAMMPS_NS3FixE", "_ZTVN15diffusim_lammps11FixDiffusimE") ||
        !same_virtual_table("_ZTVN9LAMMPS_NS4PairE", "_ZTVN15diffusim_lammps12PairDiffusimE"))
        return both + ", whose classes have another layout";
    if (lammps_extract_setting(lammps, "tagint") != sizeof(tagint))
        return both + ", whose atom IDs have " + std::to_string(8 * lammps_extract_setting(lammps, "tagint")) +
               " bits, not " + std::to_string(8 * sizeof(tagint));
    try {
        diffusim::check_abi();
    } catch (const diffusim::error& error) {
        return error.what();
    }
    return "";
}
} // namespace

extern "C" __attribute__((visibility("default"))) void lammpsplugin_init(void* lammps, void* handle, void* regfunc) {
    auto* const lmp = static_cast<LAMMPS*>(lammps);
    const std::string reason = mismatch(lmp);
    if (!reason.empty()) {
        utils::logmesg(lmp, "WARNING: fix diffusim and pair_style diffusim are not available: " + reason +
                                ". Build diffusim again on this LAMMPS, or install the other one.\n");
        return;
    }
    const auto add = reinterpret_cast<lammpsplugin_regfunc>(regfunc);
    lammpsplugin_t plugin = {};
    plugin.version = lmp->version;
    plugin.author = "the diffusim authors";
    plugin.handle = handle;
    plugin.style = "fix";
    plugin.name = "diffusim";
    plugin.info = "dynamics under a learned score (diffusim)";
    plugin.creator = reinterpret_cast<void*>(&create_fix);
    add(&plugin, lammps);
    plugin.style = "pair";
    plugin.info = "learned energy as forces (diffusim)";
    plugin.creator = reinterpret_cast<void*>(&create_pair);
    add(&plugin, lammps);
}
