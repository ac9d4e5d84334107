/* What this processor and its operating system can run: the level of x86-64, from 1 to 4.
 *
 * Asked of the CPUID instruction, since __builtin_cpu_supports takes a run-time library that Zig
 * does not have. The loader calls this in the variant for the lowest level.
 */
#include "export.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* Whether the operating system saves all of these registers when it switches threads. */
static int saves(unsigned registers) {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & registers) == registers;
}

static int has(unsigned word, unsigned features) { return (word & features) == features; }

EXPORT int nnbackend_level(void) {
    unsigned a, b, c, d, extended;
    if (!__get_cpuid(0x80000001, &a, &b, &extended, &d)) return 1;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 1;
    const unsigned first = c;
    if (!has(first, bit_SSE3 | bit_SSSE3 | bit_CMPXCHG16B | bit_SSE4_1 | bit_SSE4_2 | bit_POPCNT) ||
        !has(extended, bit_LAHF_LM))
        return 1;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 2;
    if (!has(first, bit_AVX | bit_F16C | bit_FMA | bit_MOVBE | bit_OSXSAVE) ||
        !has(extended, bit_LZCNT) || !has(b, bit_AVX2 | bit_BMI | bit_BMI2) || !saves(0x06))
        return 2;
    if (!has(b, bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL) ||
        !saves(0xe6))
        return 3;
    return 4;
}
#else
EXPORT int nnbackend_level(void) { return 0; }
#endif
