/* Matrix products on one thread. A caller splits C over threads by calling these on parts of it.
 *
 * product        C = start + A B, small: reads both as they lie
 * product_dots   C = A B^T, both contiguous along the sum
 * product_panels C = start + A B, large: B packed before into panels, which threads share
 *
 * For one k, a function adds up the terms of an element in one order, whichever part of C a call
 * computes: the result does not depend on the number of threads. Choose the function by the whole
 * product, not by a thread's part: product_panels where B does not fit the second-level cache or
 * A lies badly (a_step > 1 and a large k), if C is wider than two panels; else product.
 */
#ifndef NNBACKEND_PRODUCT_H
#define NNBACKEND_PRODUCT_H

#include "vector.h"

/* A tile of C is held in registers: TILE_ROWS(v) rows of v <= TILE_VECTORS vectors. */
#if VECTOR_REGISTERS == 32
#define TILE_VECTORS 4
#define TILE_ROWS(vectors) ((vectors) <= 2 ? 12 : (vectors) == 3 ? 8 : 6)
#else
#define TILE_VECTORS 2
#define TILE_ROWS(vectors) ((vectors) == 1 ? 8 : 6)
#endif
#define TILE_ROWS_MOST 12

/* Panels of B are PANEL_VECTORS wide. Large products work on PANEL_ROWS rows of C and PANEL_DEPTH
 * terms of the sum at once: so much of a panel stays in the first-level cache, and so much of A in
 * the second-level cache. */
#define PANEL_VECTORS 2
#define PANEL_DEPTH 256
#define PANEL_ROWS (VECTOR_BYTES == 64 && REAL_BITS == 32 ? 384 : 192)
#define PANEL_WIDTH (PANEL_VECTORS * LANES)

/* A function that a source file may leave unused. */
#define OPTIONAL static __attribute__((unused))

/* What a product reads and writes; A(i, k) = A[i * a_row + k * a_step]. */
typedef struct {
    intptr_t k;
    const REAL *A;
    intptr_t a_row, a_step;
    const REAL *B;
    intptr_t b_step;
    REAL *C;
    intptr_t c_row;
    const REAL *bias;      /* of the columns, or NULL */
    const REAL *bias_rows; /* of the rows, or NULL */
    int adds;              /* whether to add to C */
    const REAL *next;      /* the B of the next call, to fetch into the cache, or NULL */
} PRODUCT;

/* Keep the compiler from deriving x anew from what it was computed from: it would hold an offset
 * for each of twelve rows, most of them on the stack. */
#define HIDE(x) __asm__("" : "+r"(x))

/* Compute a tile of rows x vectors; the last vector has last <= LANES columns. rows, vectors,
 * masked (B has no more than `last` columns) and packed (A and B are) are constants: each choice of
 * them is a kernel. */
INLINE void tile(const int rows, const int vectors, const int masked, intptr_t last, intptr_t k,
                 const REAL *A, intptr_t a_row, intptr_t a_step, const REAL *B, intptr_t b_step,
                 REAL *C, intptr_t c_row, const REAL *bias, const REAL *bias_rows, int adds,
                 const int packed, const char *next, intptr_t next_step) {
    V sum[TILE_ROWS_MOST][TILE_VECTORS];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) sum[r][v] = (V){0};
    if (packed)
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) __builtin_prefetch(C + r * c_row + v * LANES, 1);
    const REAL *A4 = A + 4 * a_row, *A8 = A + 8 * a_row;
    intptr_t a_row3 = 3 * a_row;
    if (!packed) {
        HIDE(A4);
        HIDE(A8);
        HIDE(a_row3);
    }
    for (; k > 0; k--) {
        V b[TILE_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            b[v] = masked && v == vectors - 1 ? load_part(B + v * LANES, last)
                                              : load(B + v * LANES);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            const REAL *from = r < 4 ? A : r < 8 ? A4 : A8;
            const V a = all_of(r % 4 < 3 ? from[r % 4 * a_row] : from[a_row3]);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sum[r][v] = multiply_add(a, b[v], sum[r][v]);
        }
        if (packed) {
            __builtin_prefetch(next, 0, 2);
            next += next_step;
        }
        A += a_step;
        A4 += a_step;
        A8 += a_step;
        B += b_step;
    }
    if (bias) {
        V start[TILE_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            start[v] = v == vectors - 1 ? load_part(bias + v * LANES, last)
                                        : load(bias + v * LANES);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sum[r][v] += start[v];
    } else if (bias_rows) {
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sum[r][v] += all_of(bias_rows[r]);
    } else if (adds) {
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++)
                sum[r][v] += v == vectors - 1 ? load_part(C + r * c_row + v * LANES, last)
                                              : load(C + r * c_row + v * LANES);
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors - 1; v++) store(C + r * c_row + v * LANES, sum[r][v]);
        if (last == LANES)
            store(C + r * c_row + (vectors - 1) * LANES, sum[r][vectors - 1]);
        else
            store_part(C + r * c_row + (vectors - 1) * LANES, sum[r][vectors - 1], last);
    }
}

/* Return how many of `left` rows or columns the next of `parts` nearly equal parts takes. */
INLINE intptr_t share(intptr_t left, intptr_t parts) {
    const intptr_t sum = left + parts - 1;
    if (parts == 1) return left;
    if (sum <= INT32_MAX) return (intptr_t)((uint32_t)sum / (uint32_t)parts); /* much faster */
    return sum / parts;
}

/* Compute neighbouring strips of m rows and `vectors` vectors by tiles of nearly equal numbers of
 * rows. If A is packed, the rows of each tile lie together, [k][rows]. */
INLINE void strip(const int vectors, const int masked, const int packed, intptr_t m,
                  intptr_t neighbours, intptr_t last, const PRODUCT *p) {
    const intptr_t k = p->k, a_row = p->a_row, a_step = p->a_step, b_step = p->b_step;
    const intptr_t c_row = p->c_row;
    const REAL *A = p->A, *bias_rows = p->bias_rows;
    REAL *C = p->C;
    const char *next = (const char *)(p->next ? p->next : p->B);
    const intptr_t m_all = m, columns = neighbours * vectors * LANES;
    const int most = TILE_ROWS(packed ? PANEL_VECTORS : vectors);
    for (intptr_t tiles = share(m, most); tiles > 0; tiles--) {
        const intptr_t rows = share(m, tiles);
        const intptr_t next_step =
            packed && p->next ? share(PANEL_WIDTH * (intptr_t)sizeof(REAL) * rows, m_all) : 0;
        switch (rows) {
#define CASE(r)                                                                                   \
    case r:                                                                                       \
        if (r <= most)                                                                            \
            for (intptr_t j = 0; j < columns; j += vectors * LANES)                               \
                tile(r, vectors, masked, last, k, A, packed ? 1 : a_row, packed ? r : a_step,     \
                     p->B + j, packed ? PANEL_WIDTH : b_step, C + j, c_row,                       \
                     p->bias ? p->bias + j : NULL, bias_rows, p->adds, packed, next, next_step);  \
        break;
            CASE(1)
            CASE(2)
            CASE(3)
            CASE(4)
            CASE(5)
            CASE(6)
            CASE(7)
            CASE(8)
            CASE(9)
            CASE(10)
            CASE(11)
            CASE(12)
#undef CASE
        }
        next += next_step * k;
        A += packed ? rows * k : rows * a_row;
        C += rows * c_row;
        if (bias_rows) bias_rows += rows;
        m -= rows;
    }
}

#define STRIP(vectors)                                                                            \
    static __attribute__((noinline)) void strip_##vectors(intptr_t m, intptr_t neighbours,        \
                                                          const PRODUCT *p) {                     \
        strip(vectors, 0, 0, m, neighbours, LANES, p);                                            \
    }                                                                                             \
    static __attribute__((noinline)) void strip_part_##vectors(intptr_t m, intptr_t last,         \
                                                               const PRODUCT *p) {                \
        strip(vectors, 1, 0, m, 1, last, p);                                                      \
    }
#define PACKED_STRIP(vectors)                                                                     \
    static __attribute__((noinline)) void strip_packed_##vectors(intptr_t m, intptr_t last,       \
                                                                 const PRODUCT *p) {              \
        strip(vectors, 0, 1, m, 1, last, p);                                                      \
    }
STRIP(1)
STRIP(2)
PACKED_STRIP(1)
PACKED_STRIP(2)
#if TILE_VECTORS > 2
STRIP(3)
STRIP(4)
#endif
#undef STRIP
#undef PACKED_STRIP

/* Compute columns of C, in strips of nearly equal numbers of vectors. */
INLINE void strips(intptr_t m, intptr_t n, PRODUCT p) {
    intptr_t vectors = share(n, LANES), parts = share(vectors, TILE_VECTORS);
    while (parts > 0) {
        const intptr_t part = share(vectors, parts);
        const int partial = parts == 1 && n < vectors * LANES;
        intptr_t neighbours = 1;
        if (m <= TILE_ROWS(part) && parts > 1) { /* all strips as wide as this one in one call */
            neighbours = vectors - (part - 1) * parts;
            if (neighbours == parts && n < vectors * LANES) neighbours--;
        }
        const intptr_t columns = partial ? n : neighbours * part * LANES;
        switch (part) {
#define CASE(v)                                                                                   \
    case v:                                                                                       \
        if (partial)                                                                              \
            strip_part_##v(m, n - (v - 1) * LANES, &p);                                           \
        else                                                                                      \
            strip_##v(m, neighbours, &p);                                                         \
        break;
            CASE(1)
            CASE(2)
#if TILE_VECTORS > 2
            CASE(3)
            CASE(4)
#endif
#undef CASE
        }
        p.B += columns;
        p.C += columns;
        if (p.bias) p.bias += columns;
        vectors -= neighbours * part;
        parts -= neighbours;
        n -= columns;
    }
}

/* Dot products of rows of A with rows of B: rows x columns <= DOTS of them at once. */
#define DOTS 16
#define DOTS_COLUMNS 4
#define DOTS_ROWS (VECTOR_REGISTERS == 32 ? 4 : 2)
#define COLUMN_ROWS (VECTOR_REGISTERS == 32 ? 16 : 8)

/* Put rows x columns dot products into sums, a row of them after the other. */
INLINE void dots(const int rows, const int columns, intptr_t k, const REAL *A, intptr_t a_row,
                 const REAL *B, intptr_t b_row, REAL sums[DOTS]) {
    V sum[DOTS], b[DOTS_COLUMNS];
#pragma GCC unroll 16
    for (int i = 0; i < DOTS; i++) sum[i] = (V){0};
    for (; k >= LANES; k -= LANES, A += LANES, B += LANES) {
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) b[c] = load(B + c * b_row);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const V a = load(A + r * a_row);
#pragma GCC unroll 4
            for (int c = 0; c < columns; c++)
                sum[r * columns + c] = multiply_add(a, b[c], sum[r * columns + c]);
        }
    }
    if (k > 0) {
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) b[c] = load_part(B + c * b_row, k);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const V a = load_part(A + r * a_row, k);
#pragma GCC unroll 4
            for (int c = 0; c < columns; c++)
                sum[r * columns + c] = multiply_add(a, b[c], sum[r * columns + c]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows * columns; i += (int)LANES) store(sums + i, sums_of(sum + i));
}

/* Compute C[i * c_row + j] = sum over k of A[i * a_row + k] * B[j * b_row + k]. */
OPTIONAL void product_dots(intptr_t m, intptr_t n, intptr_t k, const REAL *A, intptr_t a_row,
                           const REAL *B, intptr_t b_row, REAL *C, intptr_t c_row) {
    for (intptr_t parts = share(n, DOTS_COLUMNS); parts > 0; parts--) {
        const intptr_t columns = share(n, parts);
        intptr_t rows;
        for (intptr_t i = 0; i < m; i += rows) {
            rows = share(m - i, share(m - i, DOTS_ROWS));
            REAL sums[DOTS];
            switch (rows * 8 + columns) {
#define CASE(r, c)                                                                                \
    case r * 8 + c:                                                                               \
        if (r <= DOTS_ROWS) dots(r, c, k, A + i * a_row, a_row, B, b_row, sums);                  \
        break;
#define CASES(r) CASE(r, 1) CASE(r, 2) CASE(r, 3) CASE(r, 4)
                CASES(1)
                CASES(2)
                CASES(3)
                CASES(4)
#undef CASES
#undef CASE
            }
            for (intptr_t r = 0; r < rows; r++)
                for (intptr_t c = 0; c < columns; c++)
                    C[(i + r) * c_row + c] = sums[r * columns + c];
        }
        B += columns * b_row;
        C += columns;
        n -= columns;
    }
}

/* Compute one column of C as dot products, where A and B are contiguous along k. */
static __attribute__((noinline)) void product_column(intptr_t m, const PRODUCT *p) {
    const REAL *A = p->A;
    intptr_t rows;
    for (intptr_t i = 0; i < m; i += rows, A += rows * p->a_row) {
        REAL sums[DOTS];
        if (m - i >= COLUMN_ROWS)
            dots(rows = COLUMN_ROWS, 1, p->k, A, p->a_row, p->B, 0, sums);
        else if (m - i >= 4)
            dots(rows = 4, 1, p->k, A, p->a_row, p->B, 0, sums);
        else
            dots(rows = 1, 1, p->k, A, p->a_row, p->B, 0, sums);
        for (intptr_t r = 0; r < rows; r++) {
            REAL *c = p->C + (i + r) * p->c_row;
            *c = sums[r] + (p->bias        ? *p->bias
                            : p->bias_rows ? p->bias_rows[i + r]
                            : p->adds      ? *c
                                           : 0);
        }
    }
}

/* Narrow products are computed as C^T = B^T A^T, where the rows of A^T are contiguous. Those of A^T
 * that lie far apart are copied together first: they tend to share a few places in the caches. */
#define NARROW 32
#define NARROW_STRIP (256 / (intptr_t)sizeof(REAL)) /* four cache lines of a row at once */
#define NARROW_DEPTH 256
#define FAR 1024 /* elements between rows of A^T that lie far apart */

static __attribute__((noinline)) void product_narrow(intptr_t m, intptr_t n, const PRODUCT *p) {
    REAL transposed[NARROW * NARROW_STRIP], packed[NARROW_DEPTH * NARROW_STRIP];
    const int packs = n > TILE_ROWS(TILE_VECTORS) && p->a_step >= FAR;
    intptr_t vectors = share(m, LANES);
    for (intptr_t first = 0, parts = share(vectors, NARROW_STRIP / LANES); parts > 0; parts--) {
        const intptr_t part = share(vectors, parts);
        const intptr_t rows = part * LANES < m - first ? part * LANES : m - first;
        intptr_t depths = packs && p->k > 0 ? share(p->k, NARROW_DEPTH) : 1;
        for (intptr_t step = 0, steps; depths > 0; step += steps) {
            steps = share(p->k - step, depths--);
            PRODUCT q = {
                .k = steps,
                .A = p->B + step * p->b_step,
                .a_row = 1,
                .a_step = p->b_step,
                .B = p->A + step * p->a_step + first,
                .b_step = p->a_step,
                .C = transposed,
                .c_row = NARROW_STRIP,
                .adds = step > 0,
            };
            if (packs) {
                for (intptr_t k = 0; k < steps; k++)
                    for (intptr_t i = 0; i < rows; i += LANES)
                        store(packed + k * NARROW_STRIP + i,
                              rows - i >= LANES ? load(q.B + k * p->a_step + i)
                                                : load_part(q.B + k * p->a_step + i, rows - i));
                q.B = packed;
                q.b_step = NARROW_STRIP;
            }
            strips(n, rows, q);
        }
        REAL *c = p->C + first * p->c_row;
        if (!p->bias && !p->bias_rows && !p->adds)
            for (intptr_t j = 0; j < n; j++)
                for (intptr_t i = 0; i < rows; i++)
                    c[i * p->c_row + j] = transposed[j * NARROW_STRIP + i];
        else
            for (intptr_t j = 0; j < n; j++)
                for (intptr_t i = 0; i < rows; i++)
                    c[i * p->c_row + j] =
                        transposed[j * NARROW_STRIP + i] + (p->bias        ? p->bias[j]
                                                            : p->bias_rows ? p->bias_rows[first + i]
                                                                           : c[i * p->c_row + j]);
        first += rows;
        vectors -= part;
    }
}

/* Compute C[i * c_row + j] = start + sum over k of A[i * a_row + k * a_step] * B[k * b_step + j].
 * start is bias[j], else bias_rows[i], else what C holds if adds, else 0. */
OPTIONAL void product(intptr_t m, intptr_t n, intptr_t k, const REAL *A, intptr_t a_row,
                      intptr_t a_step, const REAL *B, intptr_t b_step, REAL *C, intptr_t c_row,
                      const REAL *bias, const REAL *bias_rows, int adds) {
    const PRODUCT p = {k, A, a_row, a_step, B, b_step, C, c_row, bias, bias_rows, adds, NULL};
    if (b_step == 1 && a_step == 1 && n == 1)
        product_column(m, &p);
    else if (a_row == 1 && n <= NARROW &&
             (a_step >= FAR || n * share(m, LANES) * 4 < m * share(n, LANES) * 3))
        product_narrow(m, n, &p);
    else
        strips(m, n, p);
}

INLINE intptr_t panels_of(intptr_t n) { return share(n, PANEL_WIDTH); }

/* Return how many elements the panels of B, k x n, take. */
OPTIONAL intptr_t panels_size(intptr_t k, intptr_t n) { return panels_of(n) * k * PANEL_WIDTH; }

/* Copy count <= PANEL_WIDTH elements and zeros. */
INLINE void pack_row(REAL *to, const REAL *from, intptr_t count) {
    if (count >= PANEL_WIDTH) {
#pragma GCC unroll 4
        for (int v = 0; v < PANEL_VECTORS; v++) store(to + v * LANES, load(from + v * LANES));
        return;
    }
    for (int v = 0; v < PANEL_VECTORS; v++, count -= LANES)
        store(to + v * LANES, count >= LANES ? load(from + v * LANES)
                              : count > 0    ? load_part(from + v * LANES, count)
                                             : (V){0});
}

/* Pack the rows first_row to last_row of B[k * b_step + j], k x n, into all panels. */
OPTIONAL void pack_rows(REAL *panels, intptr_t k, intptr_t n, const REAL *B, intptr_t b_step,
                        intptr_t first_row, intptr_t last_row) {
    for (intptr_t row = first_row; row < last_row; row++)
        for (intptr_t j = 0; j < n; j += PANEL_WIDTH)
            pack_row(panels + j * k + row * PANEL_WIDTH, B + row * b_step + j, n - j);
}

/* Store the transpose of rows x columns elements of from, and zeros, rows <= LANES. */
INLINE void transpose_rows(REAL *to, intptr_t to_row, intptr_t to_width, const REAL *from,
                           intptr_t from_row, intptr_t rows, intptr_t columns) {
    for (; columns > 0; columns -= LANES, from += LANES, to += LANES * to_row) {
        V x[LANES];
        const intptr_t part = columns < LANES ? columns : LANES;
        if (part == LANES && rows == LANES)
#pragma GCC unroll 16
            for (int r = 0; r < LANES; r++) x[r] = load(from + r * from_row);
        else
#pragma GCC unroll 16
            for (int r = 0; r < LANES; r++)
                x[r] = r < rows ? load_part(from + r * from_row, part) : (V){0};
        transpose(x);
        if (part == LANES && to_width == LANES)
#pragma GCC unroll 16
            for (int r = 0; r < LANES; r++) store(to + r * to_row, x[r]);
        else
#pragma GCC unroll 16
            for (int r = 0; r < LANES; r++)
                if (r < part) store_part(to + r * to_row, x[r], to_width);
    }
}

/* Pack B[k * b_step + j * b_column], k x n, into the panels first_panel to last_panel: panel p has
 * [k][PANEL_WIDTH], the columns from p * PANEL_WIDTH on, and zeros behind the last. */
OPTIONAL void pack_panels(REAL *panels, intptr_t k, intptr_t n, const REAL *B, intptr_t b_step,
                          intptr_t b_column, intptr_t first_panel, intptr_t last_panel) {
    for (intptr_t panel = first_panel; panel < last_panel; panel++) {
        REAL *to = panels + panel * k * PANEL_WIDTH;
        const intptr_t first = panel * PANEL_WIDTH;
        const REAL *from = B + first * b_column;
        if (b_column == 1) {
            for (intptr_t row = 0; row < k; row++)
                pack_row(to + row * PANEL_WIDTH, from + row * b_step, n - first);
        } else if (b_step == 1) {
            for (intptr_t j = 0; j < PANEL_WIDTH; j += LANES) {
                const intptr_t left = n - first - j;
                transpose_rows(to + j, PANEL_WIDTH, LANES, left > 0 ? from + j * b_column : from,
                               b_column, left < 0 ? 0 : left < LANES ? left : LANES, k);
            }
        } else {
            for (intptr_t row = 0; row < k; row++)
                for (intptr_t j = 0; j < PANEL_WIDTH; j++)
                    to[row * PANEL_WIDTH + j] =
                        first + j < n ? from[row * b_step + j * b_column] : 0;
        }
    }
}

/* Pack A with a_row == 1 as pack_tiles does: a few tiles at once, which share cache lines of A. */
#define TILES_AT_ONCE 8

INLINE void pack_steps(REAL *to, intptr_t m, intptr_t k, const REAL *A, intptr_t a_step,
                       const intptr_t most) {
    intptr_t tiles = share(m, most);
    while (tiles > 0) {
        intptr_t rows[TILES_AT_ONCE], group = 0, all = 0;
        for (; tiles > 0 && group < TILES_AT_ONCE; group++, tiles--) {
            rows[group] = share(m - all, tiles);
            all += rows[group];
        }
        for (intptr_t step = 0; step < k; step++) {
            const REAL *from = A + step * a_step;
            REAL *tile = to;
            for (intptr_t t = 0; t < group; t++) {
                for (intptr_t r = 0; r < rows[t]; r += LANES) {
                    const intptr_t part = rows[t] - r < LANES ? rows[t] - r : LANES;
                    store_part(tile + step * rows[t] + r, load_part(from + r, part), part);
                }
                from += rows[t];
                tile += rows[t] * k;
            }
        }
        to += all * k;
        A += all;
        m -= all;
    }
}

/* Pack A, m x k, for strips of tiles of `most` rows: the rows of each tile lie together. */
INLINE void pack_tiles(REAL *to, intptr_t m, intptr_t k, const REAL *A, intptr_t a_row,
                       intptr_t a_step, const intptr_t most) {
    if (a_row == 1 && a_step != 1) {
        pack_steps(to, m, k, A, a_step, most);
        return;
    }
    for (intptr_t tiles = share(m, most); tiles > 0; tiles--) {
        const intptr_t rows = share(m, tiles);
        if (a_step == 1) {
            for (intptr_t r = 0; r < rows; r += LANES) {
                const intptr_t part = rows - r < LANES ? rows - r : LANES;
                transpose_rows(to + r, rows, part, A + r * a_row, a_row, part, k);
            }
        } else {
            for (intptr_t step = 0; step < k; step++)
                for (intptr_t r = 0; r < rows; r++)
                    to[step * rows + r] = A[r * a_row + step * a_step];
        }
        to += rows * k;
        A += rows * a_row;
        m -= rows;
    }
}

/* Return how many elements of workspace product_panels needs. */
OPTIONAL intptr_t product_workspace(void) { return PANEL_ROWS * PANEL_DEPTH; }

/* Compute the columns of C that belong to the panels first_panel to last_panel:
 * C[i * c_row + j] = start + sum over k of A[i * a_row + k * a_step] * B(k, j), with start as in
 * product. C and bias begin with column 0, panel or no panel. */
OPTIONAL void product_panels(intptr_t m, intptr_t n, intptr_t k, const REAL *A, intptr_t a_row,
                             intptr_t a_step, const REAL *panels, intptr_t first_panel,
                             intptr_t last_panel, REAL *C, intptr_t c_row, const REAL *bias,
                             int adds, REAL *workspace) {
    intptr_t row_parts = share(m, PANEL_ROWS);
    for (intptr_t row = 0, rows; row < m; row += rows) {
        rows = share(m - row, row_parts--);
        intptr_t parts = k > 0 ? share(k, PANEL_DEPTH) : 1;
        for (intptr_t step = 0, steps; parts > 0; step += steps) {
            steps = share(k - step, parts--);
            pack_tiles(workspace, rows, steps, A + row * a_row + step * a_step, a_row, a_step,
                       TILE_ROWS(PANEL_VECTORS));
            for (intptr_t panel = first_panel; panel < last_panel; panel++) {
                const intptr_t column = panel * PANEL_WIDTH;
                const intptr_t columns = n - column < PANEL_WIDTH ? n - column : PANEL_WIDTH;
                const intptr_t vectors = share(columns, LANES);
                const REAL *B = panels + panel * k * PANEL_WIDTH + step * PANEL_WIDTH;
                const PRODUCT p = {
                    .k = steps,
                    .A = workspace,
                    .B = B,
                    .C = C + row * c_row + column,
                    .c_row = c_row,
                    .bias = bias && step == 0 ? bias + column : NULL,
                    .adds = adds || step > 0,
                    .next = panel + 1 < last_panel ? B + k * PANEL_WIDTH : NULL,
                };
                const intptr_t last = columns - (vectors - 1) * LANES;
                if (vectors == 2)
                    strip_packed_2(rows, last, &p);
                else
                    strip_packed_1(rows, last, &p);
            }
        }
    }
}

/* Store some rows of a matrix as columns of its transpose. */
static void transpose_part(const REAL *from, intptr_t first, intptr_t last, intptr_t rows,
                           intptr_t columns, REAL *to) {
    for (intptr_t r = first; r < last; r += LANES) {
        const intptr_t part = last - r < LANES ? last - r : LANES;
        transpose_rows(to + r, rows, part, from + r * columns, columns, part, columns);
    }
}

#endif
