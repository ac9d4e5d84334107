/* Programs: lists of vector operations over blocks that stay in the first-level cache.
 *
 * A block has units x rows elements, rows contiguous and a multiple of LANES. A register is full
 * (units x rows), a column (rows) or a number, which holds LANES copies. See program.py.
 */
#ifndef NNBACKEND_PROGRAM_H
#define NNBACKEND_PROGRAM_H

#include "elementary.h"
#include "vector.h"

/* The operations of one element, in the order of program.py; compiled formulas call them, too. */
#define ELEMENTWISE(X)                          \
    X(DIVIDE, a / b)                            \
    X(ADD, a + b)                               \
    X(SUBTRACT, a - b)                          \
    X(MULTIPLY, a * b)                          \
    X(NEGATE, -a)                               \
    X(LESS, a < b)                              \
    X(LESS_EQUAL, a <= b)                       \
    X(GREATER, a > b)                           \
    X(GREATER_EQUAL, a >= b)                    \
    X(EQUAL, a == b)                            \
    X(NOT_EQUAL, a != b)                        \
    X(CHOOSE, choose((I)a, b, c))               \
    X(MAXIMUM, larger(a, b))                    \
    X(MINIMUM, smaller(a, b))                   \
    X(MULTIPLY_ADD, a * b + c)                  \
    X(MULTIPLY_SUBTRACT, a * b - c)             \
    X(SUBTRACT_PRODUCT, c - a * b)              \
    X(EXP, exponential(a))                      \
    X(EXPM1, exponential_minus_one(a))          \
    X(LOG, logarithm(a))                        \
    X(LOG1P, logarithm_of_one_plus(a))          \
    X(TANH, hyperbolic_tangent(a))              \
    X(SQRT, square_root(a))                     \
    X(ABS, absolute(a))                         \
    X(COPY, a)

#define NAME_OF(name, expression) name,
enum { ELEMENTWISE(NAME_OF) INDEX, ROW_MAX, ROW_SUM };

#define FUNCTION_OF(name, expression)         \
    INLINE V apply_##name(V a, V b, V c) {    \
        (void)a, (void)b, (void)c;            \
        return (V)(expression);               \
    }
ELEMENTWISE(FUNCTION_OF)

enum { FULL, COLUMN, NUMBER };

/* Elements of a block of a flat array: 4 KiB a register. */
#define BLOCK ((intptr_t)(4096 / sizeof(REAL)))

/* At most this many registers, so that their addresses fit on the stack. */
#define MAX_REGISTERS 256

typedef struct {
    int32_t operation, extents, target, operands[3];
} Instruction;

typedef void (*Kernel)(REAL *const *arrays, const REAL *numbers, intptr_t units, intptr_t rows,
                       REAL *scratch);

typedef struct {
    const Instruction *code;
    intptr_t n_instructions, n_arrays, n_registers, n_numbers;
    REAL *numbers; /* LANES copies of each */
    Kernel kernel; /* the same, compiled; or NULL */
} Program;

static void set_number(const Program *program, intptr_t index, REAL value) {
    for (intptr_t i = 0; i < LANES; i++) program->numbers[index * LANES + i] = value;
}

/* Vectors that are computed at once, which hides the latency of an operation. */
#define UNROLLED 4

/* For each unit: operands are read at x + (i & mask), since numbers repeat. */
#define EACH(expression)                                                          \
    for (intptr_t unit = 0; unit < n_units; unit++) {                             \
        intptr_t i = 0;                                                           \
        for (; i + UNROLLED * LANES <= n; i += UNROLLED * LANES) {                \
            const REAL *p = x[0] + (i & mask[0]), *q = x[1] + (i & mask[1]),      \
                       *r = x[2] + (i & mask[2]);                                 \
            V result[UNROLLED];                                                   \
            _Pragma("GCC unroll 8") for (intptr_t j = 0; j < UNROLLED; j++) {     \
                const V a = load(p + j * LANES), b = load(q + j * LANES),         \
                        c = load(r + j * LANES);                                  \
                (void)a, (void)b, (void)c;                                        \
                result[j] = (V)(expression);                                      \
            }                                                                     \
            _Pragma("GCC unroll 8") for (intptr_t j = 0; j < UNROLLED; j++)       \
                store(out + i + j * LANES, result[j]);                            \
        }                                                                         \
        for (; i < n; i += LANES) {                                               \
            const V a = load(x[0] + (i & mask[0]));                               \
            const V b = load(x[1] + (i & mask[1]));                               \
            const V c = load(x[2] + (i & mask[2]));                               \
            (void)a, (void)b, (void)c;                                            \
            store(out + i, (V)(expression));                                      \
        }                                                                         \
        out += n, x[0] += step[0], x[1] += step[1], x[2] += step[2];              \
    }                                                                             \
    break

static void execute(const Instruction *instruction, const REAL *x[3], REAL *out, intptr_t units,
                    intptr_t rows) {
    const int extents = instruction->extents;
    intptr_t n_units = 1, n = units * rows, mask[3], step[3];
    int has_columns = 0;
    REAL copies[3][UNROLLED * LANES]; /* of numbers, for all vectors that are computed at once */
    for (int k = 0; k < 3; k++) has_columns |= (extents >> 2 * (k + 1) & 3) == COLUMN;
    if ((extents & 3) == NUMBER) n = LANES;
    if ((extents & 3) == COLUMN) n = rows;
    if ((extents & 3) == FULL && (has_columns || instruction->operation == INDEX))
        n_units = units, n = rows;
    for (int k = 0; k < 3; k++) {
        const int extent = extents >> 2 * (k + 1) & 3;
        mask[k] = extent == NUMBER ? 0 : -1;
        step[k] = extent == FULL ? n : 0;
        if (extent == NUMBER && n >= UNROLLED * LANES) {
            for (intptr_t j = 0; j < UNROLLED; j++) store(copies[k] + j * LANES, load(x[k]));
            x[k] = copies[k];
        }
    }
    switch (instruction->operation) {
#define CASE_OF(name, expression) case name: EACH(apply_##name(a, b, c));
    ELEMENTWISE(CASE_OF)
    case INDEX: EACH(all_of((REAL)unit));
    case ROW_MAX:
    case ROW_SUM:
        for (intptr_t i = 0; i < rows; i += LANES) {
            V total = load(x[0] + i);
            for (intptr_t unit = 1; unit < units; unit++) {
                const V other = load(x[0] + unit * rows + i);
                total = instruction->operation == ROW_MAX ? larger(total, other)
                                                          : (V)(total + other);
            }
            store(out + i, total);
        }
    }
}

/* Run a program on one block. The arrays come first among the registers; scratch has room for
 * n_registers - n_arrays registers of the block's size, each at least LANES. */
static void run_block(const Program *program, REAL *const *arrays, intptr_t units, intptr_t rows,
                      REAL *scratch) {
    if (program->kernel) {
        program->kernel(arrays, program->numbers, units, rows, scratch);
        return;
    }
    REAL *registers[MAX_REGISTERS];
    for (intptr_t k = 0; k < program->n_registers; k++)
        registers[k] = k < program->n_arrays ? arrays[k]
                                             : scratch + (k - program->n_arrays) * units * rows;
    for (intptr_t k = 0; k < program->n_instructions; k++) {
        const Instruction *instruction = program->code + k;
        const REAL *x[3];
        for (int j = 0; j < 3; j++) {
            const int32_t operand = instruction->operands[j];
            x[j] = operand < 0 ? program->numbers + ~operand * LANES : registers[operand];
        }
        execute(instruction, x, registers[instruction->target], units, rows);
    }
}

/* Run a program on n elements of flat arrays; touch no memory behind them. */
static void run_flat(const Program *program, REAL *const *arrays, intptr_t n, REAL *scratch) {
    REAL *part[MAX_REGISTERS];
    const intptr_t whole = n - n % LANES;
    for (intptr_t start = 0; start < whole; start += BLOCK) {
        for (intptr_t k = 0; k < program->n_arrays; k++) part[k] = arrays[k] + start;
        run_block(program, part, 1, whole - start < BLOCK ? whole - start : BLOCK, scratch);
    }
    if (whole == n) return;
    REAL rest[program->n_arrays][LANES];
    for (intptr_t k = 0; k < program->n_arrays; k++) {
        part[k] = rest[k];
        store(rest[k], load_part(arrays[k] + whole, n - whole));
    }
    run_block(program, part, 1, LANES, scratch);
    for (intptr_t k = 0; k < program->n_arrays; k++)
        store_part(arrays[k] + whole, load(rest[k]), n - whole);
}

#endif
