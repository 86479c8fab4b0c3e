// A stand-in for libcuda.so.1 whose GPU is this host: the whole path of src/backend/cuda.rs runs without a GPU, with
// real numbers.
//
// Device memory is host memory, modules must be the PTX of this library or CUBIN of it for this GPU, and a kernel is
// the same source, compiled for the host and run by simt.h. Streams are lazy: copies from the device, sets and kernels
// wait until the stream is synchronised, so that a result used too early is wrong. Kernels may be recorded on a stream
// that has none pending, and replayed. Contexts may be made beside the primary one, as a caller does; each has a
// default stream. Misuse (a dead context, a copy beyond an allocation, a free after its context) is an error or ends
// the program; at exit nothing may be left over. Environment:
//   SIMT_SEED               order of the threads
//   SIMT_MULTIPROCESSORS    of the device (2)
//   SIMT_SHARED_BYTES       that a block may use (101376)
//   SIMT_DEVICES            how many there are (1)
//   SIMT_DRIVER             its version (12000)
//   SIMT_CAPABILITY         10 x compute capability (90)
//   SIMT_INIT               result of cuInit (0)
//   SIMT_MEMORY             bytes of the device (1 GiB)
//   SIMT_FAIL_LAUNCH        which launch, counted from 1, fails
//   SIMT_PTX                result of loading PTX (0)
//   SIMT_CAPTURE            result of beginning to record (0)
#include "simt.h"

#include "diffusim.cu"

#include <algorithm>
#include <elf.h>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <tuple>

namespace {

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    LAUNCH_FAILED = 719,
    CAPTURE_UNSUPPORTED = 900,
};

long setting(const char* name, long otherwise) {
    const char* text = std::getenv(name);
    return text ? std::atol(text) : otherwise;
}

using Work = std::function<void()>;
using Arguments = std::function<Work(dim3 grid, dim3 size, std::size_t shared)>;

struct Kernel {
    const char* name;
    Arguments (*capture)(void** arguments);
    long shared_limit = 48 << 10;
};

// Copies the arguments, as a launch does, and gives what runs the kernel later.
template <class... Parameters, void (*function)(Parameters...), std::size_t... Index>
Arguments captured(void** arguments, std::integral_constant<void (*)(Parameters...), function>,
                   std::index_sequence<Index...>) {
    std::tuple<Parameters...> values(*static_cast<Parameters*>(arguments[Index])...);
    return [values](dim3 grid, dim3 size, std::size_t shared) -> Work {
        return [=] { simt::launch([&] { std::apply(function, values); }, grid, size, shared); };
    };
}
template <class F>
struct Count;
template <class... Parameters>
struct Count<void (*)(Parameters...)> {
    using Indices = std::index_sequence_for<Parameters...>;
};
template <auto function>
Arguments capture(void** arguments) {
    using F = decltype(function);
    return captured(arguments, std::integral_constant<F, function>{}, typename Count<F>::Indices{});
}

Kernel kernels[] = {
    {"advance_analytic", capture<advance_analytic>},
    {"advance_distance_1", capture<advance_distance_1>},
    {"advance_distance_8", capture<advance_distance_8>},
    {"advance_distance_32", capture<advance_distance_32>},
    {"advance_distance_high_8", capture<advance_distance_high_8>},
    {"advance_distance_high_32", capture<advance_distance_high_32>},
    {"evaluate_analytic", capture<evaluate_analytic>},
    {"evaluate_distance_1", capture<evaluate_distance_1>},
    {"evaluate_distance_8", capture<evaluate_distance_8>},
    {"evaluate_distance_32", capture<evaluate_distance_32>},
    {"step_begin", capture<step_begin>},
    {"step_begin_blend", capture<step_begin_blend>},
    {"neighbor_boxes", capture<neighbor_boxes>},
    {"neighbor_list", capture<neighbor_list>},
    {"message_passing_forward", capture<message_passing_forward>},
    {"message_passing_backward", capture<message_passing_backward>},
    {"step_score", capture<step_score>},
    {"step_score_blend", capture<step_score_blend>},
    {"step_move", capture<step_move>},
    {"step_move_blend", capture<step_move_blend>},
    {"step_settle", capture<step_settle>},
    {"step_settle_blend", capture<step_settle_blend>},
    {"evaluation_begin", capture<evaluation_begin>},
    {"evaluation_end", capture<evaluation_end>},
    {"evaluation_blend", capture<evaluation_blend>},
};

struct Stream {
    void* context;
    std::vector<Work> pending;
    bool records = false;
};

// What was recorded, or what is made of it to be replayed.
struct Graph {
    void* context;
    std::vector<Work> work;
};

// A context that a caller has made, and its default stream.
struct Context {
    Stream stream{this, {}, false};
};

// A loaded module.
struct Module {
    void* context;
};

struct Device {
    bool initialised = false;
    int retained = 0; // holders of the primary context
    struct Allocation {
        std::size_t bytes;
        void* context;
    };
    std::map<std::uint64_t, Allocation> allocations;
    std::size_t used = 0;
    std::set<Stream*> streams;
    std::set<Module*> modules;
    std::set<Graph*> graphs;
    std::set<Context*> contexts; // of callers

    // What is left in a context.
    std::size_t left_in(void* context) const {
        std::size_t n = 0;
        for (auto& [place, allocation] : allocations)
            n += allocation.context == context;
        for (Stream* stream : streams)
            n += stream->context == context;
        for (Module* module : modules)
            n += module->context == context;
        for (Graph* graph : graphs)
            n += graph->context == context;
        return n;
    }

    // At exit nothing may be left.
    ~Device() {
        if (retained + modules.size() + allocations.size() + streams.size() + graphs.size() + contexts.size() == 0)
            return;
        std::fprintf(stderr, "libcuda: left over: %zu contexts, %zu modules, %zu buffers, %zu streams, %zu graphs\n",
                     retained + contexts.size(), modules.size(), allocations.size(), streams.size(), graphs.size());
        std::_Exit(99);
    }
} device;

// The contexts of a thread, the last of which is current. A thread has none when it begins, and must have none when it
// ends.
thread_local struct Current {
    std::vector<void*> stack;

    void* context() const { return stack.empty() ? nullptr : stack.back(); }
    ~Current() {
        if (stack.empty())
            return;
        std::fprintf(stderr, "libcuda: a context was left current on a thread\n");
        std::_Exit(99);
    }
} current;

// One call at a time, as streams and allocations are shared by all threads.
std::recursive_mutex calls;

bool exists(void* context) {
    return context == &device ? device.retained > 0 : device.contexts.count(static_cast<Context*>(context)) > 0;
}

bool usable() { return current.context() && exists(current.context()); }

// The stream that a call names in the current context: NULL is the default one, which the primary context is not asked
// for here.
Stream* found(Stream* stream) {
    void* context = current.context();
    if (!usable())
        return nullptr;
    if (!stream)
        return context == &device ? nullptr : &static_cast<Context*>(context)->stream;
    return device.streams.count(stream) && stream->context == context ? stream : nullptr;
}

// Whether `bytes` bytes at `place` are within one allocation.
bool owned(std::uint64_t place, std::size_t bytes) {
    auto next = device.allocations.upper_bound(place);
    if (next == device.allocations.begin())
        return false;
    --next;
    return place + bytes <= next->first + next->second.bytes;
}

template <class T>
T* pointer(std::uint64_t place) {
    return reinterpret_cast<T*>(place);
}

Result enqueue(Stream* stream, Work work, bool may_be_recorded = false) {
    if (!usable())
        return INVALID_CONTEXT;
    if (!(stream = found(stream)))
        return INVALID_HANDLE;
    if (stream->records && !may_be_recorded)
        return CAPTURE_UNSUPPORTED;
    stream->pending.push_back(std::move(work));
    return SUCCESS;
}

void finish(Stream* stream) {
    std::vector<Work> pending;
    pending.swap(stream->pending);
    for (Work& work : pending)
        work();
}

// Whether it is the turn of the launch that SIMT_FAIL_LAUNCH names.
bool fails_to_launch() {
    static long n_launches = 0;
    return ++n_launches == setting("SIMT_FAIL_LAUNCH", 0);
}

} // namespace

#define API extern "C" __attribute__((visibility("default"))) Result
#define ONE_AT_A_TIME const std::lock_guard<std::recursive_mutex> lock(calls)

API cuInit(unsigned) {
    const Result result = static_cast<Result>(setting("SIMT_INIT", SUCCESS));
    device.initialised = result == SUCCESS;
    return result;
}
API cuDriverGetVersion(int* version) { return *version = static_cast<int>(setting("SIMT_DRIVER", 12000)), SUCCESS; }
API cuDeviceGetCount(int* count) {
    return *count = static_cast<int>(setting("SIMT_DEVICES", 1)), device.initialised ? SUCCESS : NOT_INITIALIZED;
}
API cuDeviceGet(int* handle, int index) { return *handle = index, SUCCESS; }
API cuDeviceGetName(char* name, int size, int) { return std::snprintf(name, size, "host"), SUCCESS; }
API cuDeviceTotalMem_v2(std::size_t* bytes, int) {
    return *bytes = static_cast<std::size_t>(setting("SIMT_MEMORY", 1 << 30)), SUCCESS;
}
API cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
    case 16:
        return *value = static_cast<int>(setting("SIMT_MULTIPROCESSORS", 2)), SUCCESS;
    case 75:
        return *value = static_cast<int>(setting("SIMT_CAPABILITY", 90)) / 10, SUCCESS;
    case 76:
        return *value = static_cast<int>(setting("SIMT_CAPABILITY", 90)) % 10, SUCCESS;
    case 97:
        return *value = static_cast<int>(setting("SIMT_SHARED_BYTES", 101376)), SUCCESS;
    case 115: // memory pools
        return *value = 1, SUCCESS;
    default:
        std::fprintf(stderr, "libcuda: attribute %d is not known here\n", attribute);
        return INVALID_VALUE;
    }
}

// The context: the primary one, the same for everybody who retains it.
API cuDevicePrimaryCtxRetain(void** context, int) {
    ONE_AT_A_TIME;
    return device.retained++, *context = &device, SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int) {
    ONE_AT_A_TIME;
    if (device.retained == 0)
        return INVALID_CONTEXT;
    if (--device.retained == 0 && device.left_in(&device)) {
        std::fprintf(stderr, "libcuda: the context was released under %zu of its things\n", device.left_in(&device));
        std::abort();
    }
    return SUCCESS;
}
API cuCtxGetCurrent(void** context) { return *context = current.context(), SUCCESS; }
API cuCtxSetCurrent(void* context) {
    if (!current.stack.empty())
        current.stack.pop_back();
    if (context)
        current.stack.push_back(context);
    return SUCCESS;
}
API cuCtxPushCurrent_v2(void* context) { return current.stack.push_back(context), SUCCESS; }
API cuCtxPopCurrent_v2(void** context) {
    if (current.stack.empty())
        return INVALID_CONTEXT;
    *context = current.stack.back();
    return current.stack.pop_back(), SUCCESS;
}
API cuCtxGetDevice(int* handle) { return usable() ? *handle = 0, SUCCESS : INVALID_CONTEXT; }

// A caller's context: current when it has been made, and destroyed by its owner, when nothing of others is in it.
API cuCtxCreate_v2(void** context, unsigned, int) {
    ONE_AT_A_TIME;
    Context* made = new Context;
    device.contexts.insert(made);
    current.stack.push_back(made);
    return *context = made, SUCCESS;
}
API cuCtxCreate_v4(void** context, void*, unsigned flags, int handle) { return cuCtxCreate_v2(context, flags, handle); }
API cuCtxDestroy_v2(void* context) {
    ONE_AT_A_TIME;
    if (!device.contexts.erase(static_cast<Context*>(context)))
        return INVALID_CONTEXT;
    if (device.left_in(context)) {
        std::fprintf(stderr, "libcuda: a context was destroyed under %zu of its things\n", device.left_in(context));
        std::abort();
    }
    if (current.context() == context)
        current.stack.pop_back();
    delete static_cast<Context*>(context);
    return SUCCESS;
}
API cuCtxSynchronize() {
    ONE_AT_A_TIME;
    if (!usable())
        return INVALID_CONTEXT;
    for (Stream* stream : device.streams)
        if (stream->context == current.context())
            finish(stream);
    return SUCCESS;
}

API cuStreamCreate(Stream** stream, unsigned) {
    ONE_AT_A_TIME;
    if (!usable())
        return INVALID_CONTEXT;
    device.streams.insert(*stream = new Stream{current.context(), {}, false});
    return SUCCESS;
}
API cuStreamDestroy_v2(Stream* stream) {
    ONE_AT_A_TIME;
    if (!usable() || !device.streams.erase(stream))
        return INVALID_HANDLE;
    finish(stream);
    delete stream;
    return SUCCESS;
}
API cuStreamSynchronize(Stream* stream) {
    ONE_AT_A_TIME;
    if (!(stream = found(stream)))
        return INVALID_HANDLE;
    if (stream->records)
        return CAPTURE_UNSUPPORTED;
    return finish(stream), SUCCESS;
}

// Recording: a default stream cannot, and what is pending must have been done.
API cuStreamBeginCapture_v2(Stream* stream, int) {
    ONE_AT_A_TIME;
    if (!usable() || !device.streams.count(stream))
        return CAPTURE_UNSUPPORTED;
    if (const long result = setting("SIMT_CAPTURE", SUCCESS); result != SUCCESS)
        return static_cast<Result>(result);
    finish(stream);
    return stream->records = true, SUCCESS;
}
API cuStreamEndCapture(Stream* stream, Graph** graph) {
    ONE_AT_A_TIME;
    if (!usable() || !device.streams.count(stream) || !stream->records)
        return INVALID_VALUE;
    stream->records = false;
    device.graphs.insert(*graph = new Graph{stream->context, {}});
    return (*graph)->work.swap(stream->pending), SUCCESS;
}
API cuGraphInstantiateWithFlags(Graph** made, Graph* graph, unsigned long long) {
    ONE_AT_A_TIME;
    if (!usable() || !device.graphs.count(graph))
        return INVALID_VALUE;
    device.graphs.insert(*made = new Graph(*graph));
    return SUCCESS;
}
API cuGraphDestroy(Graph* graph) {
    ONE_AT_A_TIME;
    if (!usable() || !device.graphs.erase(graph))
        return INVALID_VALUE;
    delete graph;
    return SUCCESS;
}
API cuGraphExecDestroy(Graph* graph) { return cuGraphDestroy(graph); }

API cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
    ONE_AT_A_TIME;
    if (!usable())
        return INVALID_CONTEXT;
    *total = static_cast<std::size_t>(setting("SIMT_MEMORY", 1 << 30));
    return *free = *total - device.used, SUCCESS;
}
API cuMemAllocAsync(std::uint64_t* place, std::size_t bytes, Stream* stream) {
    ONE_AT_A_TIME;
    if (!found(stream))
        return INVALID_HANDLE;
    if (bytes == 0)
        return INVALID_VALUE;
    if (device.used + bytes > static_cast<std::size_t>(setting("SIMT_MEMORY", 1 << 30)))
        return OUT_OF_MEMORY;
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, bytes)) // as much as a GPU's
        return OUT_OF_MEMORY;
    std::memset(memory, 0xFF, bytes); // NaN
    *place = reinterpret_cast<std::uint64_t>(memory);
    device.allocations[*place] = {bytes, current.context()};
    device.used += bytes;
    return SUCCESS;
}
API cuMemFreeAsync(std::uint64_t place, Stream* stream) {
    ONE_AT_A_TIME;
    auto buffer = device.allocations.find(place);
    if (buffer == device.allocations.end() || buffer->second.context != current.context())
        return INVALID_VALUE;
    device.used -= buffer->second.bytes;
    device.allocations.erase(buffer);
    return enqueue(stream, [place] { std::free(pointer<void>(place)); });
}
API cuMemcpyHtoDAsync_v2(std::uint64_t to, const void* from, std::size_t bytes, Stream* stream) {
    ONE_AT_A_TIME;
    if (!owned(to, bytes))
        return INVALID_VALUE;
    std::vector<unsigned char> copy(bytes); // memory that is not locked has been read when the call returns
    std::memcpy(copy.data(), from, bytes);
    return enqueue(stream, [=] { std::memcpy(pointer<void>(to), copy.data(), bytes); });
}
// Not in the order of any stream: it is done when the call returns.
API cuMemcpyHtoD_v2(std::uint64_t to, const void* from, std::size_t bytes) {
    ONE_AT_A_TIME;
    if (!usable() || !owned(to, bytes))
        return INVALID_VALUE;
    return std::memcpy(pointer<void>(to), from, bytes), SUCCESS;
}
API cuMemcpyDtoH_v2(void* to, std::uint64_t from, std::size_t bytes) {
    ONE_AT_A_TIME;
    if (!usable() || !owned(from, bytes))
        return INVALID_VALUE;
    return std::memcpy(to, pointer<void>(from), bytes), SUCCESS;
}
API cuMemcpyDtoHAsync_v2(void* to, std::uint64_t from, std::size_t bytes, Stream* stream) {
    ONE_AT_A_TIME;
    if (!owned(from, bytes))
        return INVALID_VALUE;
    return enqueue(stream, [=] { std::memcpy(to, pointer<void>(from), bytes); });
}
API cuMemsetD8Async(std::uint64_t place, unsigned char value, std::size_t bytes, Stream* stream) {
    ONE_AT_A_TIME;
    if (!owned(place, bytes))
        return INVALID_VALUE;
    return enqueue(stream, [=] { std::memset(pointer<void>(place), value, bytes); });
}

API cuModuleLoadData(void** module, const void* image) {
    ONE_AT_A_TIME;
    if (!usable())
        return INVALID_CONTEXT;
    const bool compiled = std::memcmp(image, ELFMAG, SELFMAG) == 0;
    if (!compiled && setting("SIMT_PTX", SUCCESS) != SUCCESS)
        return static_cast<Result>(setting("SIMT_PTX", SUCCESS));
    std::string text;
    if (compiled) {
        // The headers of sections and segments end the file; the low byte of the flags is the architecture.
        Elf64_Ehdr header;
        std::memcpy(&header, image, sizeof header);
        if (header.e_machine != EM_CUDA || (header.e_flags & 0xFF) != setting("SIMT_CAPABILITY", 90))
            return NO_BINARY_FOR_GPU;
        text.assign(static_cast<const char*>(image),
                    std::max(header.e_shoff + std::size_t{header.e_shnum} * header.e_shentsize,
                             header.e_phoff + std::size_t{header.e_phnum} * header.e_phentsize));
    } else {
        text = static_cast<const char*>(image);
    }
    for (const Kernel& kernel : kernels) {
        const std::string name = kernel.name;
        if (text.find(compiled ? ".text." + name + '\0' : ".entry " + name + "(") == std::string::npos)
            return INVALID_IMAGE;
    }
    Module* loaded = new Module{current.context()};
    device.modules.insert(loaded);
    *module = loaded;
    return SUCCESS;
}
API cuModuleUnload(Module* module) {
    ONE_AT_A_TIME;
    if (!usable() || !device.modules.count(module) || module->context != current.context())
        return INVALID_CONTEXT;
    device.modules.erase(module);
    delete module;
    return SUCCESS;
}
API cuModuleGetFunction(Kernel** function, void*, const char* name) {
    ONE_AT_A_TIME;
    for (Kernel& kernel : kernels)
        if (std::strcmp(kernel.name, name) == 0)
            return *function = &kernel, SUCCESS;
    return NOT_FOUND;
}
API cuFuncSetAttribute(Kernel* function, int attribute, int value) {
    if (attribute != 8 || value > setting("SIMT_SHARED_BYTES", 101376))
        return INVALID_VALUE;
    return function->shared_limit = value, SUCCESS;
}
API cuLaunchKernel(Kernel* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared, Stream* stream, void** arguments, void**) {
    ONE_AT_A_TIME;
    if (block_x > 512 || block_x % 32 || block_y * block_z * grid_y * grid_z != 1 || shared > function->shared_limit)
        return INVALID_VALUE;
    if (fails_to_launch())
        return LAUNCH_FAILED;
    return enqueue(stream, function->capture(arguments)({grid_x}, {block_x}, shared), true);
}
API cuGraphLaunch(Graph* graph, Stream* stream) {
    ONE_AT_A_TIME;
    if (!device.graphs.count(graph) || graph->context != current.context())
        return INVALID_VALUE;
    if (fails_to_launch())
        return LAUNCH_FAILED;
    return enqueue(stream, [work = graph->work] {
        for (const Work& one : work)
            one();
    });
}
