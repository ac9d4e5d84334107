/* Check the vectors on this processor, for real numbers of REAL_BITS, which the compiler is told.
 *
 * What Python's tests check on this machine's processor, these check where no Python runs, such as
 * under an emulator of another one. Returns how many checks failed.
 */
#include <stdio.h>
#include <stdlib.h>

#include "vector.h"

static int failed;

#define CHECK(condition)                                                              \
    do {                                                                              \
        if (!(condition)) {                                                           \
            failed++;                                                                 \
            printf("%s:%d: float%d: %s\n", __FILE__, __LINE__, REAL_BITS, #condition); \
        }                                                                             \
    } while (0)

static int same(REAL a, REAL b) {
    return memcmp(&a, &b, sizeof a) == 0 || (a != a && b != b);
}

/* Each count of elements is loaded and stored, and none beside them. */
static void check_parts(void) {
    for (intptr_t count = 0; count <= LANES; count++) {
        /* On the heap and without room to spare, so that a sanitizer sees a step too far. */
        REAL *from = malloc((size_t)(count ? count : 1) * sizeof(REAL)), to[LANES + 1];
        for (intptr_t i = 0; i < count; i++) from[i] = (REAL)(i + 1);
        V x = load_part(from, count);
        for (intptr_t i = 0; i < LANES; i++) CHECK(same(x[i], i < count ? (REAL)(i + 1) : 0));
        for (intptr_t i = 0; i <= LANES; i++) to[i] = -1;
        store_part(to, all_of(7), count);
        for (intptr_t i = 0; i <= LANES; i++) CHECK(same(to[i], i < count ? 7 : -1));
        store_part(from, x, count);
        free(from);
    }
}

static void check_elements(void) {
    const REAL nan = (REAL)NAN, infinity = (REAL)INFINITY;
    const REAL numbers[] = {0, (REAL)-0.0, 1, -2, 9, REAL_MAX, infinity, -infinity, nan};
    const int count = (int)(sizeof numbers / sizeof *numbers);
    for (int i = 0; i < count; i++) {
        const REAL a = numbers[i];
        CHECK(same(all_of(a)[LANES - 1], a));
        CHECK(same(absolute(all_of(a))[0], (REAL)fabs((double)a)));
        CHECK(same(square_root(all_of(a))[LANES - 1], (REAL)sqrt((double)a)));
        for (int j = 0; j < count; j++) {
            const REAL b = numbers[j];
            const V most = larger(all_of(a), all_of(b)), least = smaller(all_of(a), all_of(b));
            CHECK(a == b || same(most[0], a != a || b != b ? nan : a > b ? a : b));
            CHECK(a == b || same(least[0], a != a || b != b ? nan : a < b ? a : b));
        }
    }
    V x;
    for (intptr_t i = 0; i < LANES; i++) x[i] = (REAL)(i + 1);
    CHECK(sum_of(x) == (REAL)(LANES * (LANES + 1) / 2));
}

int NAME(checks)(void);
int NAME(checks)(void) {
    check_parts();
    check_elements();
    return failed;
}
