// A stand-in for libnvrtc.so whose CUBIN has the names of the kernels and no code: that of NVRTC takes ten seconds. It
// refuses options that are not those of the PTX, and a source that includes what it was not given. Environment:
//   SIMT_NVRTC_VERSION      10 x version (120)
//   SIMT_NVRTC_FAILS        if set, nothing compiles
#include <cstdlib>
#include <cstring>
#include <elf.h>
#include <map>
#include <set>
#include <sstream>
#include <string>

namespace {

enum Result { SUCCESS = 0, INVALID_PROGRAM = 4, COMPILATION = 6 };

struct Program {
    std::string source;
    std::map<std::string, std::string> headers;
    std::string log, image;

    // What this source includes, and what that includes, is there.
    bool is_whole(const std::string& text) {
        std::istringstream lines(text);
        for (std::string line; std::getline(lines, line);) {
            if (line.rfind("#include \"", 0) != 0)
                continue;
            const std::string name = line.substr(10, line.find('"', 10) - 10);
            if (!headers.count(name)) {
                log = "diffusim.cu(1): error: could not open source file \"" + name + "\"\n";
                return false;
            }
            if (!is_whole(headers[name]))
                return false;
        }
        return true;
    }
};

// What stands before the name of a kernel in diffusim.cu, and what the compiler makes of the name.
const struct {
    std::string macro, prefix, suffix;
} MACROS[] = {
    {"STEPS(", "advance_", ""}, {"KERNELS(", "advance_", ""}, {"KERNELS(", "evaluate_", ""},
    {"OF_SCORE(", "", ""},      {"OF_BLOCK(", "", ""},        {"OF_STEP(", "", ""},
    {"OF_STEP(", "", "_blend"}, {"OF_EVALUATION(", "", ""},   {"OF_BLEND(", "", ""},
};

} // namespace

#define API extern "C" __attribute__((visibility("default"))) Result

API nvrtcVersion(int* major, int* minor) {
    const char* version = std::getenv("SIMT_NVRTC_VERSION");
    const int number = version ? std::atoi(version) : 120;
    return *major = number / 10, *minor = number % 10, SUCCESS;
}
API nvrtcCreateProgram(Program** program, const char* source, const char*, int n, const char** headers,
                       const char** names) {
    *program = new Program{source, {}, "", ""};
    for (int i = 0; i < n; i++)
        (*program)->headers[names[i]] = headers[i];
    return SUCCESS;
}
API nvrtcCompileProgram(Program* program, int n, const char** options) {
    std::set<std::string> given(options, options + n);
    unsigned architecture = 0;
    for (const std::string& option : given)
        if (option.rfind("--gpu-architecture=sm_", 0) == 0)
            architecture = std::atoi(option.c_str() + 22);
    if (n != 3 || !given.count("--fmad=false") || !given.count("--std=c++17") || !architecture) {
        program->log = "nvrtc: error: these are not the options of the PTX\n";
        return COMPILATION;
    }
    if (std::getenv("SIMT_NVRTC_FAILS")) {
        program->log = "a line before\nnvrtc: error: it was told to fail\n";
        return COMPILATION;
    }
    if (!program->is_whole(program->source))
        return COMPILATION;
    std::string names;
    std::istringstream lines(program->source);
    for (std::string line; std::getline(lines, line);)
        for (const auto& [macro, prefix, suffix] : MACROS)
            if (line.rfind(macro, 0) == 0)
                names += ".text." + prefix + line.substr(macro.size(), line.find(',') - macro.size()) + suffix + '\0';
    Elf64_Ehdr header = {};
    std::memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_machine = EM_CUDA;
    header.e_flags = architecture;
    header.e_shoff = sizeof header + names.size();
    program->image = std::string(reinterpret_cast<const char*>(&header), sizeof header) + names;
    return SUCCESS;
}
API nvrtcGetProgramLogSize(Program* program, std::size_t* size) { return *size = program->log.size() + 1, SUCCESS; }
API nvrtcGetProgramLog(Program* program, char* log) {
    return std::memcpy(log, program->log.c_str(), program->log.size() + 1), SUCCESS;
}
API nvrtcGetCUBINSize(Program* program, std::size_t* size) { return *size = program->image.size(), SUCCESS; }
API nvrtcGetCUBIN(Program* program, char* image) {
    return std::memcpy(image, program->image.data(), program->image.size()), SUCCESS;
}
API nvrtcDestroyProgram(Program** program) {
    if (!*program)
        return INVALID_PROGRAM;
    return delete *program, *program = nullptr, SUCCESS;
}
