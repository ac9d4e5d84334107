// CUDA C as C++17 on the CPU: what a kernel's source needs to compile, and what runs its blocks.
// The source follows this header; cuda_emulation.py says what is supported.

#include <math.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <link.h>
#include <ucontext.h>

#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#define NNBACKEND_EMULATION 1

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
};

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;

namespace emulation {

constexpr size_t SHARED_LIMIT = 227 * 1024;  // of a block, as on compute capability 9.0
constexpr size_t SHARED_GUARD = 4096;
constexpr size_t STACK_BYTES = 64 * 1024 + 192;  // no power of two: spreads stacks over cache sets

// How a parameter is passed (= by value, < pointer to const, > pointer), and NumPy's dtype code.
struct Code {
  char passing, kind, size;
};

struct Kernel {
  const char* name;
  const Code* parameters;  // the last is all zero
  void (*call)(void** arguments);
  int max_threads;
};

template <typename T>
constexpr Code code() {
  using Value = std::remove_pointer_t<T>;
  static_assert(std::is_arithmetic_v<Value>, "parameters are numbers and pointers to numbers");
  const char passing = !std::is_pointer_v<T> ? '=' : std::is_const_v<Value> ? '<' : '>';
  const char integer = std::is_signed_v<Value> ? 'i' : 'u';
  const char number = std::is_floating_point_v<Value> ? 'f' : integer;
  return {passing, std::is_same_v<std::remove_cv_t<Value>, bool> ? 'b' : number,
          char('0' + sizeof(Value))};
}

template <auto kernel>
struct Trampoline;

template <typename... P, void (*kernel)(P...)>
struct Trampoline<kernel> {
  static constexpr Code parameters[] = {code<P>()..., Code{}};

  template <size_t... i>
  static void unpack([[maybe_unused]] void** arguments, std::index_sequence<i...>) {
    kernel(*static_cast<P*>(arguments[i])...);
  }

  static void call(void** arguments) { unpack(arguments, std::index_sequence_for<P...>{}); }
};

constexpr int first(int value, ...) { return value; }

// CUDA's atomics are overloads: the operand converts to the type that the pointer is to.
template <typename T>
using Operand = std::common_type_t<T>;

template <typename To, typename From>
To bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To copy;
  memcpy(&copy, &value, sizeof copy);
  return copy;
}

// A thread of a block: a coroutine, which runs the kernel once for each block.
struct Thread {
  jmp_buf resume;
  bool started;
  int line;  // of the barrier it waits at; 0 when it has returned
};

static jmp_buf scheduler;
static Thread* current;
static const Kernel* kernel;
static void** arguments;

static void pause(int line) {
  current->line = line;
  if (_setjmp(current->resume) == 0) _longjmp(scheduler, 1);
}

// Called through a volatile pointer, or the compiler may see that nothing in here changes memory.
static void (*volatile barrier)(int line) = pause;

static void run_blocks() {
  for (;;) {
    kernel->call(arguments);
    barrier(0);
  }
}

static void run_until_barrier(Thread& thread, char* stack) {
  static ucontext_t context;
  current = &thread;
  if (_setjmp(scheduler) != 0) return;
  if (thread.started) _longjmp(thread.resume, 1);
  thread.started = true;
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = STACK_BYTES;
  makecontext(&context, run_blocks, 0);
  setcontext(&context);
}

static uint3 position(long long index, dim3 shape) {
  return {unsigned(index % shape.x), unsigned(index / shape.x % shape.y),
          unsigned(index / shape.x / shape.y)};
}

// Static shared memory is this library's thread-local storage, whose extent the loader knows.
struct Storage {
  char* start;
  size_t bytes;
};

static thread_local char storage_anchor;

static int find_storage(dl_phdr_info* library, size_t, void* found) {
  char* start = static_cast<char*>(library->dlpi_tls_data);
  for (int i = 0; i < library->dlpi_phnum; ++i) {
    const auto& segment = library->dlpi_phdr[i];
    if (segment.p_type != PT_TLS || !start) continue;
    if (&storage_anchor < start || &storage_anchor >= start + segment.p_memsz) continue;
    *static_cast<Storage*>(found) = {start, segment.p_memsz};
    return 1;
  }
  return 0;
}

// A signalling NaN of float: any arithmetic changes it.
static unsigned char guard(size_t i) { return i % 2 ? 0x7F : 0xA5; }

}  // namespace emulation

alignas(256) static unsigned char dynamic_shared[emulation::SHARED_LIMIT + emulation::SHARED_GUARD];

extern "C" {

extern __attribute__((visibility("default"))) const emulation::Kernel emulated_kernels[];

// Runs a grid, its blocks and the threads between two barriers in the orders given; returns what
// is wrong with the kernel, or null.
__attribute__((visibility("default"))) const char* emulated_launch(
    const emulation::Kernel* kernel, dim3 grid, dim3 block, const long long* block_order,
    const long long* thread_order, void** arguments, size_t shared_bytes) {
  using namespace emulation;
  static char message[300];
  gridDim = grid;
  blockDim = block;
  emulation::kernel = kernel;
  emulation::arguments = arguments;
  const long long n_blocks = 1LL * grid.x * grid.y * grid.z;
  const long long n_threads = 1LL * block.x * block.y * block.z;
  const std::unique_ptr<char[]> stacks(new char[n_threads * STACK_BYTES]);
  std::vector<Thread> threads(n_threads);
  storage_anchor = 0;  // the loader allocates the storage when it is first used
  Storage storage;
  if (!dl_iterate_phdr(find_storage, &storage)) return "its static shared memory is not found";
  for (size_t i = 0; i < SHARED_GUARD; ++i) dynamic_shared[shared_bytes + i] = guard(i);
  for (long long b = 0; b < n_blocks; ++b) {
    blockIdx = position(block_order[b], grid);
    memset(storage.start, 0xFF, storage.bytes);
    memset(dynamic_shared, 0xFF, shared_bytes);
    do {
      for (long long i = 0; i < n_threads; ++i) {
        const long long t = thread_order[i];
        threadIdx = position(t, block);
        run_until_barrier(threads[t], &stacks[t * STACK_BYTES]);
      }
      long long waiting = 0, other = 0;
      while (waiting < n_threads - 1 && threads[waiting].line == 0) ++waiting;
      const int line = threads[waiting].line;
      while (other < n_threads && threads[other].line == line) ++other;
      if (other < n_threads) {
        const uint3 w = position(waiting, block), o = position(other, block);
        int n = snprintf(message, sizeof message,
                         "not all threads of block (%u, %u, %u) reach the barrier in line %d: "
                         "thread (%u, %u, %u) waits there, thread (%u, %u, %u) ",
                         blockIdx.x, blockIdx.y, blockIdx.z, line, w.x, w.y, w.z, o.x, o.y, o.z);
        if (threads[other].line == 0)
          snprintf(message + n, sizeof message - n, "returns");
        else
          snprintf(message + n, sizeof message - n, "waits in line %d", threads[other].line);
        return message;
      }
    } while (threads[0].line != 0);
    for (size_t i = 0; i < SHARED_GUARD; ++i) {
      if (dynamic_shared[shared_bytes + i] == guard(i)) continue;
      snprintf(message, sizeof message,
               "block (%u, %u, %u) writes to byte %zu of %zu bytes of dynamic shared memory",
               blockIdx.x, blockIdx.y, blockIdx.z, shared_bytes + i, shared_bytes);
      return message;
    }
  }
  return nullptr;
}

}  // extern "C"

#define EMULATED_KERNEL(name, ...)                                                     \
  {#name, emulation::Trampoline<name>::parameters, emulation::Trampoline<name>::call, \
   emulation::first(__VA_ARGS__)}

#define __global__
#define __device__
#define __host__
#define __constant__
// Used, or what no kernel writes counts as zero.
#define __shared__ static thread_local __attribute__((used))
#define __launch_bounds__(...)
#define __forceinline__ __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __syncthreads() emulation::barrier(__LINE__)

static inline void __threadfence() {}

template <typename T>
static T __ldg(const T* address) {
  return *address;
}

template <typename T>
static T atomicExch(T* address, emulation::Operand<T> value) {
  return std::exchange(*address, value);
}

template <typename T>
static T atomicAdd(T* address, emulation::Operand<T> value) {
  return std::exchange(*address, *address + value);
}

template <typename T>
static T atomicMax(T* address, emulation::Operand<T> value) {
  return std::exchange(*address, *address < value ? value : *address);
}

template <typename T>
static T atomicOr(T* address, emulation::Operand<T> value) {
  return std::exchange(*address, *address | value);
}

static inline unsigned __float_as_uint(float x) { return emulation::bits<unsigned>(x); }
static inline float __uint_as_float(unsigned x) { return emulation::bits<float>(x); }
static inline int __float_as_int(float x) { return emulation::bits<int>(x); }
static inline float __int_as_float(int x) { return emulation::bits<float>(x); }

static inline unsigned __umulhi(unsigned x, unsigned y) { return (1ULL * x * y) >> 32; }
static inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return (static_cast<unsigned __int128>(x) * y) >> 64;
}

// The others, such as exp, math.h overloads for float and double. CUDA's min and max return the
// number where one operand is NaN.
#define EMULATED_MIN_MAX(T)                               \
  static inline T min(T x, T y) { return y < x ? y : x; } \
  static inline T max(T x, T y) { return x < y ? y : x; }
EMULATED_MIN_MAX(int)
EMULATED_MIN_MAX(unsigned)
EMULATED_MIN_MAX(long)
EMULATED_MIN_MAX(unsigned long)
EMULATED_MIN_MAX(long long)
EMULATED_MIN_MAX(unsigned long long)
static inline float min(float x, float y) { return fminf(x, y); }
static inline float max(float x, float y) { return fmaxf(x, y); }
static inline double min(double x, double y) { return fmin(x, y); }
static inline double max(double x, double y) { return fmax(x, y); }
