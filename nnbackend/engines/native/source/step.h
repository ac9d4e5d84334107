/* Steps: gather, forward, loss, backward, gradient, update; or a part of that. */
#ifndef NNBACKEND_STEP_H
#define NNBACKEND_STEP_H

#include <time.h>

#include "network.h"
#include "threads.h"

/* What a run does. GRADIENT leaves the objective without dropout in losses, and its gradient in the
 * network's; all rows are one batch, and nothing is updated. */
enum { TRAIN, LOSS, LOGITS, GRADIENT };

/* What Python is asked for. */
enum { REDUCE, ACTIVATE, PULL_BACK, OUTPUT_LOSS, UPDATE };

/* Why a run has failed. */
enum { WRONG_ANSWER = 1, WRONG_ROWS };

typedef struct {
    intptr_t what, layer, rows;
    void *arrays[4];
} Request;

typedef int (*Callback)(const Request *);

typedef struct {
    intptr_t mode;
    const REAL *X, *y, *weight; /* (n, n_features), (n, n_targets), (n,) or NULL */
    const int64_t *label;       /* (n,), in place of y */
    const int64_t *order;       /* (n_epochs, n_samples), or NULL: all rows as they are */
    intptr_t n_rows, n_samples, n_epochs, ends; /* rows of the data, and of an epoch */
    const REAL *coefficients; /* one row for each step */
    double *losses, *totals;
    const REAL *parameters; /* in place of the network's own; NULL: those */
    REAL *logits;
    intptr_t n_threads; /* no more than the network has */
    intptr_t batch_rows, first_row; /* with a team: the whole batch, and where this part begins */
    intptr_t reduces;
    Callback call;
    double seconds; /* to go on after about so long, so that Python sees signals */
    double spent;   /* so far, in seconds, if a pool carries it on */
    /* Where the run is: it goes on from there when it is called again. */
    intptr_t epoch, start, step, is_over, has_failed, is_finite;
} Run;

/* A step in progress, as all threads see it. */
typedef struct {
    Network *net;
    Run *run;
    Team team;
    Queue blocks, parts; /* of the batch, and of the parameters */
    const REAL *X, *y, *weight; /* of the batch */
    const int64_t *label, *chosen;
    double loss, weight_sum, divisor; /* of the batch */
    intptr_t rows, n_blocks;
    int has_tile;       /* whether that of the last step still holds */
    int is_short;       /* whether packing the weights would take longer than it saves */
    int ends_epoch;     /* whether the step does */
    int copies;         /* whether the parameters that the step left are to be kept as finite */
    volatile int stops;
    atomic_int is_infinite; /* threads may find it at once */
    double began;
    intptr_t steps_per_look, steps_to_go; /* between two looks at the clock */
} Job;

static int goes_back(const Run *run) { return run->mode == TRAIN || run->mode == GRADIENT; }

static double seconds(void) {
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Ask Python for what is not recorded; a failure ends the run. An answer is 1: where Python cannot
 * even begin to answer, ctypes returns 0. */
static int ask(Job *job, Request request) {
    if (job->run->call(&request) == 1) return 0;
    job->run->has_failed = WRONG_ANSWER;
    job->stops = 1;
    return 1;
}

/* Gathering ------------------------------------------------------------------------------- */

static void gather(Job *job, intptr_t first, intptr_t last) {
    Network *net = job->net;
    const Run *run = job->run;
    const intptr_t p = net->layers[0].n_in, targets = net->spec.n_targets;
    for (intptr_t i = first; i < last; i++) {
        const intptr_t row = (intptr_t)job->chosen[i];
        memcpy(net->X + i * p, run->X + row * p, (size_t)p * sizeof(REAL));
        if (run->label)
            net->labels[i] = run->label[row];
        else if (targets == 1)
            net->y[i] = run->y[row];
        else if (run->y)
            memcpy(net->y + i * targets, run->y + row * targets, (size_t)targets * sizeof(REAL));
        if (run->weight) net->weight[i] = run->weight[row];
    }
}

static double weight_of_batch(const Run *run, const int64_t *chosen, intptr_t start, intptr_t n) {
    if (!run->weight) return (double)n;
    double total = 0;
    for (intptr_t i = 0; i < n; i++) total += run->weight[chosen ? chosen[i] : start + i];
    return total;
}

/* Draw the masks of a batch as the reference engine does: layer by layer, row by row. */
static void draw_masks(Network *net, const Run *run, intptr_t n) {
    const Spec *spec = &net->spec;
    const intptr_t all = run->batch_rows ? run->batch_rows : n;
    for (intptr_t l = 0; l + 1 < spec->n_layers; l++) {
        const Layer *layer = net->layers + l;
        if (layer->rate == 0) continue;
        /* With a team, other processes have the rows before and behind. */
        const intptr_t q = layer->n_out, first = run->batch_rows ? run->first_row : 0;
        draw_mask(spec->random, NULL, first * q, layer->rate, layer->kept);
        draw_mask(spec->random, layer->M, n * q, layer->rate, layer->kept);
        draw_mask(spec->random, NULL, (all - first - n) * q, layer->rate, layer->kept);
    }
}

/* Let every unit pass, as outside of training. */
static void drop_nothing(Network *net) {
    for (intptr_t l = 0; l + 1 < net->spec.n_layers; l++) {
        const Layer *layer = net->layers + l;
        for (intptr_t i = 0; layer->rate != 0 && i < net->spec.batch * layer->n_out; i++)
            layer->M[i] = 1;
    }
}

/* Hidden layers --------------------------------------------------------------------------- */

/* Run a program on n elements of some rows of a hidden layer, or let Python do its task. */
static int run_hidden(Job *job, intptr_t t, const Program *program, REAL *const arrays[4],
                      intptr_t n, intptr_t task, intptr_t l, intptr_t rows) {
    if (!program)
        return ask(job, (Request){task, l, rows, {arrays[0], arrays[1], arrays[2], arrays[3]}});
    /* The buffers reach beyond their last row by SLACK elements. */
    run_flat(program, arrays, round_up(n, LANES), job->net->scratch[t]);
    return 0;
}

static int activate(Job *job, intptr_t t, intptr_t l, intptr_t offset, intptr_t n, intptr_t rows) {
    const Layer *own = job->net->layers + l;
    REAL *arrays[] = {own->Z + offset, own->A + offset, own->H + offset, own->M + offset};
    return run_hidden(job, t, own->activate, arrays, n, ACTIVATE, l, rows);
}

static int pull_back(Job *job, intptr_t t, intptr_t l, intptr_t offset, intptr_t n, intptr_t rows) {
    const Layer *own = job->net->layers + l;
    REAL *arrays[] = {own->D + offset, own->Z + offset, own->A + offset, own->M + offset};
    return run_hidden(job, t, own->pull_back, arrays, n, PULL_BACK, l, rows);
}

/* The loss -------------------------------------------------------------------------------- */

/* Copy rows (n, q) into units (q, step), or back. */
static void to_units(const REAL *rows, intptr_t n, intptr_t q, REAL *units, intptr_t step) {
    if (q == 1) memcpy(units, rows, (size_t)n * sizeof(REAL));
    else
        for (intptr_t i = 0; i < n; i++)
            for (intptr_t j = 0; j < q; j++) units[j * step + i] = rows[i * q + j];
}

static void to_rows(const REAL *units, intptr_t step, intptr_t n, intptr_t q, REAL *rows) {
    if (q == 1) memcpy(rows, units, (size_t)n * sizeof(REAL));
    else
        for (intptr_t i = 0; i < n; i++)
            for (intptr_t j = 0; j < q; j++) rows[i * q + j] = units[j * step + i];
}

/* Fill the columns of a block of the loss: targets, shares of the batch's weight, 0 as padding. */
static void fill_columns(const Job *job, intptr_t first, intptr_t n, intptr_t rows, REAL *y,
                         REAL *share) {
    const intptr_t q = job->net->spec.n_targets;
    if (job->label)
        for (intptr_t i = 0; i < n; i++) y[i] = (REAL)job->label[first + i];
    else
        to_units(job->y + first * q, n, q, y, rows);
    const REAL equal = (REAL)(1.0 / job->divisor);
    for (intptr_t i = 0; i < n; i++)
        share[i] = job->weight ? (REAL)((double)job->weight[first + i] / job->divisor) : equal;
    for (intptr_t i = n; i < rows; i++) {
        for (intptr_t j = 0; j < (job->label ? 1 : q); j++) y[j * rows + i] = 0;
        share[i] = 0;
    }
}

/* Turn the logits of some rows into their gradient, and write the loss of each row. */
static int output_loss(Job *job, intptr_t t, intptr_t first, intptr_t last) {
    Network *net = job->net;
    const Layer *layer = net->layers + net->spec.n_layers - 1;
    const intptr_t q = layer->n_out, most_rows = loss_rows(net);
    const Program *program = program_of(net, net->spec.loss);
    for (intptr_t row = first; row < last; row += most_rows) {
        const intptr_t n = least(most_rows, last - row), rows = round_up(n, LANES);
        REAL *z = net->scratch[t], *y = z + q * rows, *share = y + q * rows;
        REAL *arrays[] = {z, y, share, share + rows};
        fill_columns(job, row, n, program ? rows : n, y, share);
        if (!program) {
            void *targets = job->label ? (void *)(job->label + row)
                                       : (void *)(job->y + row * net->spec.n_targets);
            void *losses = net->losses + row;
            void *logits = layer->Z + row * q;
            if (ask(job, (Request){OUTPUT_LOSS, 0, n, {logits, targets, share, losses}})) return 1;
            continue;
        }
        to_units(layer->Z + row * q, n, q, z, rows);
        for (intptr_t j = 0; j < q; j++)
            for (intptr_t i = n; i < rows; i++) z[j * rows + i] = 0;
        run_block(program, arrays, q, rows, share + 2 * rows);
        to_rows(z, rows, n, q, layer->Z + row * q);
        memcpy(net->losses + row, share + rows, (size_t)n * sizeof(REAL));
    }
    return 0;
}

/* Propagation by rows --------------------------------------------------------------------- */

static void multiply(Job *job, intptr_t t, intptr_t m, intptr_t n, intptr_t k, const REAL *A,
                     intptr_t a_row, intptr_t a_step, const REAL *B, const REAL *panels, REAL *C,
                     const REAL *bias) {
    if (panels && !job->is_short)
        product_panels(m, n, k, A, a_row, a_step, panels, 0, panels_of(n), C, n, bias, 0,
                       job->net->workspace[t]);
    else
        product(m, n, k, A, a_row, a_step, B, n, C, n, bias, NULL, 0);
}

/* Propagate some rows up to the logits. */
static int forward(Job *job, intptr_t t, intptr_t first, intptr_t last) {
    const Network *net = job->net;
    const intptr_t m = last - first;
    const REAL *below = job->X + first * net->layers[0].n_in;
    for (intptr_t l = 0; l < net->spec.n_layers; l++) {
        const Layer *layer = net->layers + l;
        const intptr_t q = layer->n_out;
        multiply(job, t, m, q, layer->n_in, below, layer->n_in, 1, layer->W, layer->panels,
                 layer->Z + first * q, layer->b);
        if (l + 1 < net->spec.n_layers && activate(job, t, l, first * q, m * q, m)) return 1;
        below = layer->H + first * q;
    }
    return 0;
}

/* Propagate the gradient of some rows back to the first layer. */
static int backward(Job *job, intptr_t t, intptr_t first, intptr_t last) {
    const Network *net = job->net;
    const intptr_t m = last - first;
    for (intptr_t l = net->spec.n_layers - 1; l >= 0; l--) {
        const Layer *layer = net->layers + l;
        const intptr_t p = layer->n_in, q = layer->n_out;
        const REAL *dZ = layer->D + first * q;
        if (layer->dZ_panels)
            pack_rows(layer->dZ_panels, job->rows, q, layer->D, q, first, last);
        if (l == 0) break;
        multiply(job, t, m, p, q, dZ, q, 1, layer->transposed,
                 layer->is_large ? layer->transposed : NULL, layer[-1].D + first * p, NULL);
        if (pull_back(job, t, l - 1, first * p, m * p, m)) return 1;
    }
    return 0;
}

/* Pack or transpose a part of the weights for the products of the next step. */
static void prepare(const Job *job, const Part *part) {
    const Network *net = job->net;
    const Layer *layer = net->layers + part->layer;
    const intptr_t p = layer->n_in, q = layer->n_out, last = least(part->last, p);
    const int is_passed = goes_back(job->run) && part->layer > 0;
    if (!layer->is_large) {
        if (is_passed) transpose_part(layer->W, part->first, last, p, q, layer->transposed);
        return;
    }
    if (job->is_short) return;
    pack_rows(layer->panels, p, q, layer->W, q, part->first, last);
    if (is_passed)
        pack_panels(layer->transposed, q, p, layer->W, 1, q, part->first / PANEL_WIDTH,
                    panels_of(last));
}

/* Compute the gradient of some rows of a layer's weights. */
static void weight_gradient(Job *job, intptr_t t, intptr_t l, intptr_t first, intptr_t last,
                            REAL *gW) {
    const Network *net = job->net;
    const Layer *layer = net->layers + l;
    const intptr_t p = layer->n_in, q = layer->n_out, m = last - first, n = job->rows;
    const REAL *H = (l ? layer[-1].H : job->X) + first;
    if (layer->dZ_panels)
        product_panels(m, q, n, H, 1, p, layer->dZ_panels, 0, panels_of(q), gW, q, NULL, 0,
                       net->workspace[t]);
    else
        product(m, q, n, H, 1, p, layer->D, q, gW, q, NULL, NULL, 0);
}

/* Return the sum of factor * row; the factor is a constant. */
INLINE REAL scaled_sum(const REAL *row, intptr_t n, const REAL factor) {
    V total[4] = {{0}, {0}, {0}, {0}};
    intptr_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) total[v] += load(row + i + v * LANES) * factor;
    for (; i < n; i += LANES) total[0] += load_part(row + i, least(LANES, n - i)) * factor;
    return sum_of((total[0] + total[1]) + (total[2] + total[3]));
}

static REAL sum_of_row(const REAL *row, intptr_t n) { return scaled_sum(row, n, 1); }

/* 0 times an infinity or NaN is NaN. */
static int all_finite(const REAL *x, intptr_t n) { return scaled_sum(x, n, 0) == 0; }

/* Add up the columns of at most eight vectors, of which the last may be a part; rows are read in
 * their order, once. */
INLINE void add_columns(const int vectors, const REAL *rows, intptr_t n, intptr_t q, intptr_t part,
                        REAL *sums) {
    V total[8] = {{0}};
    for (intptr_t i = 0; i < n; i++) {
#pragma GCC unroll 8
        for (int v = 0; v + 1 < vectors; v++) total[v] += load(rows + i * q + v * LANES);
        total[vectors - 1] += load_part(rows + i * q + (vectors - 1) * LANES, part);
    }
    for (int v = 0; v + 1 < vectors; v++) store(sums + v * LANES, total[v]);
    store_part(sums + (vectors - 1) * LANES, total[vectors - 1], part);
}

static void add_rows(const REAL *rows, intptr_t n, intptr_t q, REAL *sums) {
    intptr_t j = 0;
    if (q == 1) {
        *sums = sum_of_row(rows, n);
        return;
    }
    for (; j + 8 * LANES <= q; j += 8 * LANES) add_columns(8, rows + j, n, q, LANES, sums + j);
    for (; j < q; j += LANES) add_columns(1, rows + j, n, q, least(LANES, q - j), sums + j);
}

/* Passes over all parameters -------------------------------------------------------------- */

/* Run a program on a range of flat arrays, the last of which it writes; return its sum. */
static double run_and_sum(Network *net, intptr_t t, const Program *program, REAL **arrays,
                          intptr_t n_arrays, intptr_t n) {
    double total = 0;
    REAL *part[8], *value = net->scratch[t];
    for (intptr_t start = 0; start < n; start += BLOCK) {
        const intptr_t count = least(BLOCK, n - start);
        for (intptr_t k = 0; k < n_arrays; k++) part[k] = arrays[k] + start;
        part[n_arrays] = value;
        run_flat(program, part, count, value + BLOCK);
        for (intptr_t i = 0; i < count; i++) total += (double)value[i];
    }
    return total;
}

/* Add the gradient of the penalties on a part of the weights, and note their value. */
static void penalize(Job *job, intptr_t t, const Part *part, REAL *gradient) {
    const Layer *layer = job->net->layers + part->layer;
    const Program *program = program_of(job->net, job->net->spec.penalize);
    const intptr_t q = layer->n_out, last = least(part->last, layer->n_in);
    for (intptr_t row = part->first; row < last; row += 16) {
        REAL *arrays[] = {(REAL *)layer->W + row * q, gradient + (row - part->first) * q};
        layer->penalties[row / 16] =
            run_and_sum(job->net, t, program, arrays, 2, least(16, last - row) * q);
    }
}

/* Reduce a block's values, or the values of blocks. */
static double reduced(const PassSpec *pass, const double *x, intptr_t n) {
    double total = x[0];
    for (intptr_t i = 1; i < n; i++)
        total = pass->reduction == SUM ? total + x[i]
                                       : x[i] > total || x[i] != x[i] ? x[i] : total;
    return total;
}

/* Run one pass of clipping on this thread's share of the gradient; threads agree on a reduction. */
static void clip(Job *job, intptr_t t, const PassSpec *pass, intptr_t number) {
    Network *net = job->net;
    const Program *program = program_of(net, pass->program);
    const intptr_t n = net->n_parameters, blocks = (n + BLOCK - 1) / BLOCK, T = job->team.n;
    REAL *value = net->scratch[t];
    double values[BLOCK];
    for (intptr_t block = blocks * t / T; block < blocks * (t + 1) / T; block++) {
        const intptr_t start = block * BLOCK, count = least(BLOCK, n - start);
        REAL *arrays[] = {net->spec.gradient + start, value};
        run_flat(program, arrays, count, value + BLOCK);
        if (pass->reduction == NOTHING) continue;
        for (intptr_t i = 0; i < count; i++) values[i] = (double)value[i];
        net->sums[block] = reduced(pass, values, count);
    }
    meet(&job->team, NULL, NULL);
    if (pass->reduction != NOTHING && t == 0)
        for (intptr_t k = 0; k < net->spec.n_clips; k++)
            set_number(program_of(net, net->spec.clips[k].program), number,
                       (REAL)reduced(pass, net->sums, blocks));
    meet(&job->team, NULL, NULL);
}

/* Update some of the parameters, of which an epoch's last step looks whether they are finite. */
static void update(Job *job, intptr_t t, intptr_t first, intptr_t last, REAL *gradient) {
    const Spec *spec = &job->net->spec;
    const Program *program = program_of(job->net, spec->update);
    REAL *arrays[MAX_REGISTERS];
    arrays[0] = spec->parameters + first, arrays[1] = gradient;
    for (intptr_t k = 0; k < spec->n_state; k++) arrays[2 + k] = spec->state[k] + first;
    if (program) run_flat(program, arrays, last - first, job->net->scratch[t]);
    if (job->ends_epoch && !all_finite(spec->parameters + first, last - first))
        job->is_infinite = 1;
}

static void update_part(Job *job, intptr_t t, const Part *part, REAL *gradient) {
    const Layer *layer = job->net->layers + part->layer;
    const intptr_t start = layer->W - job->net->spec.parameters, q = layer->n_out;
    update(job, t, start + part->first * q, start + part->last * q, gradient);
}

/* A step ---------------------------------------------------------------------------------- */

/* Return into how many blocks the rows of a batch are divided. The activations of a block stay in
 * the second-level cache, but weights that exceed it are read for as many rows as possible. Threads
 * get some blocks each, if these do not become too small for fast products. */
static intptr_t count_blocks(const Job *job) {
    const Network *net = job->net;
    const intptr_t n = job->rows, T = job->team.n, cached = CACHED_ELEMENTS / net->widest / 16 * 16;
    const int fits = net->widest <= cached;
    const intptr_t fewest = fits ? (n + cached - 1) / cached : 1;
    if (T == 1) return fewest;
    const intptr_t wanted = T * most(1, fits ? least(4, n / T / 32) : least(2, n / T / 64));
    return (most(fewest, wanted) + T - 1) / T * T;
}

/* Return where a block begins: at a multiple of 16 rows, which fill vectors however many units. */
static intptr_t start_of(const Job *job, intptr_t block) {
    return least(job->rows, (job->rows + 15) / 16 * block / job->n_blocks * 16);
}

/* Compute the logits of the batch, or its loss, or that and its gradient. */
static void propagate(Job *job, intptr_t t) {
    const Network *net = job->net;
    const Run *run = job->run;
    const intptr_t q = net->layers[net->spec.n_layers - 1].n_out;
    for (intptr_t turn = 0, block; (block = take(&job->blocks, &job->team, t, &turn)) >= 0;) {
        const intptr_t first = start_of(job, block), last = start_of(job, block + 1);
        if (job->chosen) gather(job, first, last);
        if (forward(job, t, first, last)) return;
        if (run->mode == LOGITS) {
            memcpy(run->logits + (run->start + first) * q,
                   net->layers[net->spec.n_layers - 1].Z + first * q,
                   (size_t)((last - first) * q) * sizeof(REAL));
            continue;
        }
        if (output_loss(job, t, first, last)) return;
        if (goes_back(run) && backward(job, t, first, last)) return;
    }
}

/* Features-major networks: a layer holds one unit per row, and its examples fill vectors. ----- */

static void gather_tile(Job *job, intptr_t first, intptr_t n, intptr_t step) {
    Network *net = job->net;
    const Run *run = job->run;
    const intptr_t p = net->layers[0].n_in, q = net->spec.n_targets;
    const REAL equal = (REAL)(1.0 / job->divisor);
    for (intptr_t i = 0; i < n; i++) {
        const intptr_t row =
            job->chosen ? (intptr_t)job->chosen[first + i] : run->start + first + i;
        for (intptr_t j = 0; j < p; j++) net->X[j * step + i] = run->X[row * p + j];
        if (run->label) net->y[i] = (REAL)run->label[row];
        else if (run->y)
            for (intptr_t j = 0; j < q; j++) net->y[j * step + i] = run->y[row * q + j];
        net->weight[i] = run->weight ? (REAL)((double)run->weight[row] / job->divisor) : equal;
    }
    for (intptr_t i = n; i < step; i++) {
        for (intptr_t j = 0; j < p; j++) net->X[j * step + i] = 0;
        for (intptr_t j = 0; j < (run->label ? 1 : q); j++) net->y[j * step + i] = 0;
        net->weight[i] = 0;
    }
}

static void tile_forward(Job *job, intptr_t step) {
    const Network *net = job->net;
    const REAL *below = net->X;
    for (intptr_t l = 0; l < net->spec.n_layers; l++) {
        const Layer *layer = net->layers + l;
        const intptr_t q = layer->n_out;
        product(q, step, layer->n_in, layer->W, 1, q, below, step, layer->Z, step, NULL, layer->b,
                0);
        if (l + 1 < net->spec.n_layers) activate(job, 0, l, 0, q * step, step);
        below = layer->H;
    }
}

static void tile_backward(Job *job, intptr_t n, intptr_t step, int adds) {
    const Network *net = job->net;
    for (intptr_t l = net->spec.n_layers - 1; l >= 0; l--) {
        const Layer *layer = net->layers + l;
        const intptr_t p = layer->n_in, q = layer->n_out;
        const REAL *below = l ? layer[-1].H : net->X;
        REAL *gW = adds ? net->scratch[0] : layer->gW;
        product_dots(p, q, n, below, step, layer->D, step, gW, q);
        for (intptr_t k = 0; adds && k < p * q; k++) layer->gW[k] += gW[k];
        for (intptr_t j = 0; j < q; j++)
            layer->gb[j] = (adds ? layer->gb[j] : 0) + sum_of_row(layer->D + j * step, n);
        if (l == 0) break;
        product(p, step, q, layer->W, q, 1, layer->D, step, layer[-1].D, step, NULL, NULL, 0);
        pull_back(job, 0, l - 1, 0, p * step, step);
    }
}

static void propagate_tiles(Job *job) {
    Network *net = job->net;
    const Run *run = job->run;
    const Layer *last = net->layers + net->spec.n_layers - 1;
    for (intptr_t first = 0; first < job->rows; first += TILE) {
        const intptr_t rows = least(TILE, job->rows - first), step = round_up(rows, LANES);
        /* All rows as they are, in one tile: it is the same in every step of this call. */
        if (!job->has_tile) gather_tile(job, first, rows, step);
        job->has_tile = !run->order && run->n_samples <= TILE && run->n_samples <= net->spec.batch;
        tile_forward(job, step);
        if (run->mode == LOGITS) {
            to_rows(last->Z, step, rows, last->n_out,
                    run->logits + (run->start + first) * last->n_out);
            continue;
        }
        REAL *arrays[] = {last->Z, net->y, net->weight, net->losses + first};
        run_block(program_of(net, net->spec.loss), arrays, last->n_out, step, net->scratch[0]);
        if (goes_back(run)) tile_backward(job, rows, step, first > 0);
    }
}

/* The loop -------------------------------------------------------------------------------- */

static void sum_losses(Job *job) { job->loss = (double)sum_of_row(job->net->losses, job->rows); }

/* The same in double precision, for a line search, which compares values that hardly differ. */
static void sum_losses_in_double(Job *job) {
    job->loss = 0;
    for (intptr_t i = 0; i < job->rows; i++) job->loss += (double)job->net->losses[i];
}

/* Set the numbers of a step's programs. */
static void set_numbers(Job *job, double divisor) {
    const Spec *spec = &job->net->spec;
    if (spec->penalize >= 0)
        set_number(program_of(job->net, spec->penalize), 0,
                   (REAL)(spec->penalty_per_sample ? 1.0 / divisor : 1.0));
    if (spec->update < 0 || job->run->mode != TRAIN) return;
    const REAL *row = job->run->coefficients + job->run->step * spec->n_coefficients;
    for (intptr_t k = 0; k < spec->n_coefficients; k++)
        set_number(program_of(job->net, spec->update), k, row[k]);
}

/* Share all parts of the parameters out to the threads, which shall be busy for equally long. */
static void refill_parts(void *whole) {
    Job *job = whole;
    const Network *net = job->net;
    const intptr_t T = job->team.n;
    intptr_t first = 0;
    for (intptr_t t = 0; t < T; t++) {
        intptr_t last = first;
        while (last < net->n_parts && net->parts[last].n_before * T < net->n_parameters * (t + 1))
            last++;
        fill(&job->parts, t, first, last);
        first = last;
    }
}

/* Return the next part of the parameters for a thread, or NULL. */
static const Part *next_part(Job *job, intptr_t t, intptr_t *turn) {
    const intptr_t part = take(&job->parts, &job->team, t, turn);
    return part < 0 ? NULL : job->net->parts + part;
}

/* Begin a step; one thread does while the others wait. */
static void begin_step(void *whole) {
    Job *job = whole;
    Network *net = job->net;
    const Run *run = job->run;
    const intptr_t start = run->start, n = least(net->spec.batch, run->n_samples - start);
    const intptr_t p = net->layers[0].n_in, targets = net->spec.n_targets;
    const int64_t *chosen = run->order ? run->order + run->epoch * run->n_samples + start : NULL;
    if (job->stops) return;
    job->chosen = chosen;
    job->rows = n;
    job->X = chosen ? net->X : run->X + start * p;
    job->y = !run->y ? NULL : chosen ? net->y : run->y + start * targets;
    job->label = !run->label ? NULL : chosen ? net->labels : run->label + start;
    job->weight = !run->weight ? NULL : chosen ? net->weight : run->weight + start;
    job->weight_sum = weight_of_batch(run, chosen, start, n);
    job->divisor = job->weight_sum > 0 ? job->weight_sum : 1;
    job->n_blocks = count_blocks(job);
    job->ends_epoch = run->mode == TRAIN && run->ends && start + n == run->n_samples;
    for (intptr_t t = 0, T = job->team.n; t < T; t++)
        fill(&job->blocks, t, job->n_blocks * t / T, job->n_blocks * (t + 1) / T);
    refill_parts(job);
    if (goes_back(run)) set_numbers(job, job->divisor);
    if (run->mode == TRAIN) draw_masks(net, run, n);
}

static void compute_gradient(Job *job, intptr_t t, const Part *part, REAL *gradient) {
    const Layer *layer = job->net->layers + part->layer;
    const intptr_t q = layer->n_out, last = least(part->last, layer->n_in);
    weight_gradient(job, t, part->layer, part->first, last, gradient);
    if (part->last > last) add_rows(layer->D, job->rows, q, gradient + (last - part->first) * q);
}

/* Return the place of a part's gradient in the vector of the whole one. */
static REAL *gradient_of(const Job *job, const Part *part) {
    const Layer *layer = job->net->layers + part->layer;
    return layer->gW + part->first * layer->n_out;
}

/* Let all processes of a team add up their gradients, and adopt the loss of the whole batch. */
static void reduce(Job *job, intptr_t t) {
    meet(&job->team, refill_parts, job);
    if (t == 0) {
        sum_losses(job);
        if (!ask(job, (Request){REDUCE, 0, 0, {&job->loss, &job->weight_sum, &job->rows}}))
            set_numbers(job, job->weight_sum > 0 ? job->weight_sum : 1.0);
    }
    meet(&job->team, NULL, NULL);
}

/* Penalize, clip and update, when the whole gradient is known. */
static void change_at_last(Job *job, intptr_t t) {
    const Network *net = job->net;
    const Spec *spec = &net->spec;
    const Part *part;
    if (job->run->reduces) reduce(job, t);
    if (job->stops) return;
    if (spec->penalize >= 0 && job->run->reduces)
        for (intptr_t turn = 0; (part = next_part(job, t, &turn));)
            penalize(job, t, part, gradient_of(job, part));
    meet(&job->team, refill_parts, job);
    for (intptr_t k = 0; k < spec->n_clips; k++) clip(job, t, spec->clips + k, k);
    if (spec->update < 0) {
        if (t == 0) ask(job, (Request){.what = UPDATE, .layer = job->run->step});
        meet(&job->team, NULL, NULL);
    }
    if (job->team.n == 1) update(job, t, 0, net->n_parameters, spec->gradient);
    for (intptr_t turn = 0; (part = next_part(job, t, &turn));) {
        if (job->team.n > 1) update_part(job, t, part, gradient_of(job, part));
        if (!spec->features_major) prepare(job, part);
    }
}

/* Compute the gradient and change the parameters: part by part, while a part is in a cache, where
 * nothing asks for the whole gradient first. Or change nothing, where the gradient is asked for. */
static void change(Job *job, intptr_t t) {
    const Network *net = job->net;
    const Spec *spec = &net->spec;
    const int reduces = (int)job->run->reduces, trains = job->run->mode == TRAIN;
    const int at_once =
        trains && !reduces && !spec->n_clips && spec->update >= 0 && net->has_many_parts;
    const Part *part;
    for (intptr_t turn = 0; (part = next_part(job, t, &turn));) {
        REAL *gradient = at_once ? net->part_gradient[t] : gradient_of(job, part);
        if (!spec->features_major) compute_gradient(job, t, part, gradient);
        if (spec->penalize >= 0 && !reduces) penalize(job, t, part, gradient);
        if (!at_once) continue;
        update_part(job, t, part, gradient);
        prepare(job, part);
    }
    if (trains && !at_once) change_at_last(job, t);
}

/* Return whether to go back to Python for a moment; read the clock only now and then. */
static int is_time_up(Job *job) {
    if (--job->steps_to_go > 0) return 0;
    const double passed = seconds() - job->began;
    if (passed < 0.01 * job->run->seconds)
        job->steps_per_look = least(2 * job->steps_per_look, 4096);
    else if (passed > 0.5 * job->run->seconds)
        job->steps_per_look = most(job->steps_per_look / 2, 1);
    job->steps_to_go = job->steps_per_look;
    return passed > job->run->seconds || passed < 0;
}

static double penalty(const Job *job) {
    const Network *net = job->net;
    double total = 0;
    if (!goes_back(job->run)) return 0;
    for (intptr_t l = 0; net->spec.penalize >= 0 && l < net->spec.n_layers; l++)
        for (intptr_t k = 0; 16 * k < net->layers[l].n_in; k++)
            total += net->layers[l].penalties[k];
    return total;
}

static void end_epoch(Job *job) {
    Run *run = job->run;
    double *loss = run->losses + run->epoch;
    run->start = 0;
    run->epoch++;
    if (!run->ends) return;
    *loss = run->totals[1] > 0 ? run->totals[0] / run->totals[1] : 0;
    run->totals[0] = run->totals[1] = 0;
    if (run->mode != TRAIN) return;
    run->is_finite = *loss - *loss == 0 && !job->is_infinite;
    job->copies = (int)run->is_finite;
}

/* Keep this thread's share of the parameters as the last that are finite. */
static void keep_finite(const Job *job, intptr_t t) {
    const Spec *spec = &job->net->spec;
    const intptr_t n = job->net->n_parameters, T = job->team.n;
    const intptr_t first = n * t / T, last = n * (t + 1) / T;
    memcpy(spec->finite + first, spec->parameters + first, (size_t)(last - first) * sizeof(REAL));
}

/* Count a step, decide whether it was the last of this call, and begin the next. */
static void end_step(void *whole) {
    Job *job = whole;
    Run *run = job->run;
    const Spec *spec = &job->net->spec;
    job->copies = 0;
    if (job->stops) return;
    if (run->mode == GRADIENT) {
        sum_losses_in_double(job);
        run->losses[run->epoch] = job->loss + penalty(job);
    } else if (run->mode != LOGITS) {
        if (!run->reduces) sum_losses(job);
        const int by_rows = spec->by_rows && run->mode == TRAIN && job->weight_sum > 0;
        const double count = by_rows ? (double)job->rows : job->weight_sum;
        run->totals[0] += (job->loss + penalty(job)) * count;
        run->totals[1] += count;
    }
    run->step++;
    run->start += spec->batch;
    if (run->start >= run->n_samples) end_epoch(job);
    run->is_over = run->epoch == run->n_epochs || !run->is_finite;
    job->stops = run->is_over || is_time_up(job);
    begin_step(job);
}

static void work(void *whole, intptr_t t) {
    Job *job = whole;
    const int by_rows = !job->net->spec.features_major;
    const intptr_t n = job->net->n_parts, T = job->team.n;
    /* A run that goes on finds the weights as its last step left them. */
    if (job->run->step == 0) {
        if (t == 0 && job->run->mode != TRAIN) drop_nothing(job->net);
        for (intptr_t part = n * t / T; by_rows && part < n * (t + 1) / T; part++)
            prepare(job, job->net->parts + part);
    }
    meet(&job->team, begin_step, job);
    while (!job->stops) {
        if (by_rows) propagate(job, t);
        else propagate_tiles(job);
        if (goes_back(job->run)) {
            meet(&job->team, NULL, NULL);
            if (!job->stops) change(job, t);
        }
        meet(&job->team, end_step, job);
        if (job->copies) keep_finite(job, t);
    }
}

/* Whether the orders name rows that the data has, which Python has not looked at. */
static int is_possible(const Run *run) {
    const intptr_t n = run->order ? run->n_epochs * run->n_samples : 0;
    uint64_t highest = 0;
    for (intptr_t i = 0; i < n; i++) {
        const uint64_t row = (uint64_t)run->order[i]; /* a negative one is a large one */
        highest = row > highest ? row : highest;
    }
    return n == 0 || highest < (uint64_t)run->n_rows;
}

/* Run epochs, or go on with a run that is not over. */
EXPORT void NAME(nnbackend_run)(Network *net, Run *run) {
    Job job = {.net = net, .run = run, .steps_per_look = 1, .began = seconds()};
    if (run->epoch == 0 && run->start == 0 && !is_possible(run)) {
        run->has_failed = WRONG_ROWS;
        return;
    }
    if (run->parameters) place_parameters(net, run->parameters);
    job.is_short = run->mode == LOGITS && run->n_samples < FEW_ROWS;
    run->is_finite = 1;
    run->is_over = run->n_epochs == 0 || run->n_samples == 0;
    job.stops = (int)run->is_over;
    if (run->n_samples == 0 && run->n_epochs > 0) {
        job.is_infinite = !all_finite(net->spec.parameters, net->n_parameters);
        end_epoch(&job);
        job.team.n = 1;
        if (job.copies) keep_finite(&job, 0);
    }
    run_together(&job.team, work, &job, least(run->n_threads, net->n_threads));
}

/* Go on with a run for about so many seconds; return whether it is over. A pool calls this. */
EXPORT int NAME(nnbackend_go_on)(void *net, void *whole, double time) {
    Run *run = whole;
    const double began = seconds();
    run->seconds = time;
    NAME(nnbackend_run)(net, run);
    run->spent += seconds() - began;
    return run->is_over || run->has_failed;
}

#endif
