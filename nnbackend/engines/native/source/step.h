/* Training steps: gather, forward, loss, backward, gradient, update. */
#ifndef NNBACKEND_STEP_H
#define NNBACKEND_STEP_H

#include <time.h>

#include "network.h"
#include "threads.h"

enum { TRAIN, LOSS, GRADIENT, LOGITS };

/* What Python is asked for. */
enum { REDUCE, ACTIVATE, PULL_BACK, OUTPUT_LOSS, UPDATE };

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
    /* Where the run is: it goes on from there when it is called again. */
    intptr_t epoch, start, step, is_over, has_failed, is_finite;
} Run;

/* A step in progress, as all threads see it. */
typedef struct {
    Network *net;
    Run *run;
    Team team;
    const REAL *X, *y, *weight; /* of the batch */
    const int64_t *label;
    double loss, weight_sum; /* of the batch */
    intptr_t rows;
    int has_tile, has_weights; /* whether those of the last step still hold */
    int is_short;              /* whether packing the weights would take longer than it saves */
    volatile int stops;
    double began;
    intptr_t steps_per_look, steps_to_go; /* between two looks at the clock */
} Job;

static double seconds(void) {
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Ask Python for what is not recorded; a failure ends the run. An answer is 1: where Python cannot
 * even begin to answer, ctypes returns 0. */
static int ask(Job *job, Request request) {
    if (job->run->call(&request) == 1) return 0;
    job->run->has_failed = 1;
    job->stops = 1;
    return 1;
}

/* Return where part t of T begins, in multiples of a unit. */
static intptr_t part_start(intptr_t n, intptr_t unit, intptr_t t, intptr_t T) {
    const intptr_t units = (n + unit - 1) / unit;
    return least(n, units * t / T * unit);
}

/* Gathering ------------------------------------------------------------------------------- */

static void gather(Job *job, const int64_t *chosen, intptr_t first, intptr_t last) {
    Network *net = job->net;
    const Run *run = job->run;
    const intptr_t p = net->layers[0].n_in, targets = net->spec.n_targets;
    for (intptr_t i = first; i < last; i++) {
        const intptr_t row = (intptr_t)chosen[i];
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

/* Point to the rows of a batch, gathering those of this thread. */
static void take_batch(Job *job, intptr_t t, const int64_t *chosen, intptr_t start, intptr_t first,
                       intptr_t last) {
    Network *net = job->net;
    const Run *run = job->run;
    if (chosen) gather(job, chosen, first, last);
    if (t != 0) return;
    job->X = chosen ? net->X : run->X + start * net->layers[0].n_in;
    job->y = !run->y ? NULL : chosen ? net->y : run->y + start * net->spec.n_targets;
    job->label = !run->label ? NULL : chosen ? net->labels : run->label + start;
    job->weight = !run->weight ? NULL : chosen ? net->weight : run->weight + start;
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
static void drop_nothing(Network *net, intptr_t n) {
    for (intptr_t l = 0; l + 1 < net->spec.n_layers; l++) {
        const Layer *layer = net->layers + l;
        for (intptr_t i = 0; layer->rate != 0 && i < n * layer->n_out; i++) layer->M[i] = 1;
    }
}

/* Hidden layers --------------------------------------------------------------------------- */

static int activate(Job *job, intptr_t t, intptr_t l, intptr_t offset, intptr_t n, intptr_t rows) {
    const Layer *layer = job->net->layers + l;
    REAL *arrays[] = {layer->Z + offset, layer->A + offset, layer->H + offset, layer->M + offset};
    if (!layer->activate)
        return ask(job, (Request){ACTIVATE, l, rows, {arrays[0], arrays[1], arrays[2], arrays[3]}});
    /* The buffers reach beyond their last row by SLACK elements. */
    run_flat(layer->activate, arrays, round_up(n, LANES), job->net->scratch[t]);
    return 0;
}

static int pull_back(Job *job, intptr_t t, intptr_t l, intptr_t offset, intptr_t n, intptr_t rows) {
    const Layer *layer = job->net->layers + l;
    REAL *arrays[] = {layer->D + offset, layer->Z + offset, layer->A + offset, layer->M + offset};
    if (!layer->pull_back)
        return ask(job, (Request){PULL_BACK, l, rows, {arrays[0], arrays[1], arrays[2], arrays[3]}});
    run_flat(layer->pull_back, arrays, round_up(n, LANES), job->net->scratch[t]);
    return 0;
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
static void fill_columns(const Job *job, intptr_t first, intptr_t n, intptr_t rows, intptr_t q,
                         double divisor, REAL *y, REAL *share) {
    if (job->label)
        for (intptr_t i = 0; i < n; i++) y[i] = (REAL)job->label[first + i];
    else
        to_units(job->y + first * q, n, q, y, rows);
    const REAL equal = (REAL)(1.0 / divisor);
    for (intptr_t i = 0; i < n; i++)
        share[i] = job->weight ? (REAL)((double)job->weight[first + i] / divisor) : equal;
    for (intptr_t i = n; i < rows; i++) {
        for (intptr_t j = 0; j < (job->label ? 1 : q); j++) y[j * rows + i] = 0;
        share[i] = 0;
    }
}

/* Turn the logits of some rows into their gradient, and write the loss of each row. */
static int output_loss(Job *job, intptr_t t, intptr_t first, intptr_t last, double divisor) {
    Network *net = job->net;
    const Layer *layer = net->layers + net->spec.n_layers - 1;
    const intptr_t q = layer->n_out, most_rows = loss_rows(net);
    const Program *program = program_of(net, net->spec.loss);
    for (intptr_t row = first; row < last; row += most_rows) {
        const intptr_t n = least(most_rows, last - row), rows = round_up(n, LANES);
        REAL *z = net->scratch[t], *y = z + q * rows, *share = y + q * rows;
        REAL *arrays[] = {z, y, share, share + rows};
        if (!program) {
            fill_columns(job, row, n, n, q, divisor, y, share);
            void *targets = job->label ? (void *)(job->label + row) : (void *)(job->y + row * q);
            void *losses = net->losses + row;
            if (ask(job, (Request){OUTPUT_LOSS, 0, n, {layer->Z + row * q, targets, share, losses}}))
                return 1;
            continue;
        }
        fill_columns(job, row, n, rows, q, divisor, y, share);
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

/* Pack or transpose this thread's share of the weights. */
static void prepare_weights(Job *job, intptr_t t, int trains) {
    const Network *net = job->net;
    const intptr_t T = job->team.n;
    for (intptr_t l = 0; l < net->spec.n_layers; l++) {
        const Layer *layer = net->layers + l;
        const intptr_t p = layer->n_in, q = layer->n_out;
        if (layer->is_large) {
            if (job->is_short) continue;
            pack_panels(layer->panels, p, q, layer->W, q, 1, panels_of(q) * t / T,
                        panels_of(q) * (t + 1) / T);
            if (trains && l > 0)
                pack_panels(layer->transposed, q, p, layer->W, 1, q, panels_of(p) * t / T,
                            panels_of(p) * (t + 1) / T);
        } else if (trains && l > 0) {
            transpose_part(layer->W, part_start(p, 16, t, T), part_start(p, 16, t + 1, T), p, q,
                           layer->transposed);
        }
    }
}

/* Compute the gradient of some rows of a layer's weights, from n examples. */
static void weight_gradient(Job *job, intptr_t t, intptr_t l, intptr_t n, intptr_t first,
                            intptr_t last) {
    const Network *net = job->net;
    const Layer *layer = net->layers + l;
    const intptr_t p = layer->n_in, q = layer->n_out, m = last - first;
    const REAL *H = (l ? layer[-1].H : job->X) + first;
    REAL *gW = layer->gW + first * q;
    if (layer->dZ_panels) {
        product_panels(m, q, n, H, 1, p, layer->dZ_panels, 0, panels_of(q), gW, q, NULL, 0,
                       net->workspace[t]);
    } else {
        product(m, q, n, H, 1, p, layer->D, q, gW, q, NULL, NULL, 0);
    }
}

static REAL sum_of_row(const REAL *row, intptr_t n) {
    V total[4] = {{0}, {0}, {0}, {0}};
    intptr_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) total[v] += load(row + i + v * LANES);
    for (; i < n; i += LANES) total[0] += load_part(row + i, least(LANES, n - i));
    return sum_of((total[0] + total[1]) + (total[2] + total[3]));
}

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

/* Add the gradient of the penalties on some rows of W, and note their value. */
static void penalize(Job *job, intptr_t t, const Layer *layer, intptr_t first, intptr_t last) {
    const Program *program = program_of(job->net, job->net->spec.penalize);
    const intptr_t q = layer->n_out;
    for (intptr_t row = first; row < last; row += 16) {
        const intptr_t rows = least(16, last - row);
        REAL *arrays[] = {(REAL *)layer->W + row * q, layer->gW + row * q};
        layer->penalties[row / 16] =
            run_and_sum(job->net, t, program, arrays, 2, rows * q);
    }
}

/* Run one pass of clipping on this thread's share of the gradient; threads agree on a reduction. */
static void clip(Job *job, intptr_t t, const PassSpec *pass, intptr_t number) {
    Network *net = job->net;
    const Program *program = program_of(net, pass->program);
    const intptr_t n = net->n_parameters, blocks = (n + BLOCK - 1) / BLOCK, T = job->team.n;
    REAL *value = net->scratch[t];
    for (intptr_t block = blocks * t / T; block < blocks * (t + 1) / T; block++) {
        const intptr_t start = block * BLOCK, count = least(BLOCK, n - start);
        REAL *arrays[] = {net->spec.gradient + start, value};
        run_flat(program, arrays, count, value + BLOCK);
        if (pass->reduction == NOTHING) continue;
        double total = (double)value[0];
        for (intptr_t i = 1; i < count; i++) {
            const double x = (double)value[i];
            total = pass->reduction == SUM ? total + x : x > total || x != x ? x : total;
        }
        net->sums[block] = total;
    }
    meet(&job->team);
    if (pass->reduction != NOTHING && t == 0) {
        double total = net->sums[0];
        for (intptr_t block = 1; block < blocks; block++) {
            const double x = net->sums[block];
            total = pass->reduction == SUM ? total + x : x > total || x != x ? x : total;
        }
        for (intptr_t k = 0; k < net->spec.n_clips; k++)
            set_number(program_of(net, net->spec.clips[k].program), number, (REAL)total);
    }
    meet(&job->team);
}

static int update(Job *job, intptr_t t, intptr_t first, intptr_t last) {
    const Spec *spec = &job->net->spec;
    const Program *program = program_of(job->net, spec->update);
    REAL *arrays[MAX_REGISTERS];
    arrays[0] = spec->parameters + first, arrays[1] = spec->gradient + first;
    for (intptr_t k = 0; k < spec->n_state; k++) arrays[2 + k] = spec->state[k] + first;
    if (program) run_flat(program, arrays, last - first, job->net->scratch[t]);
    return 0;
}

/* A step ---------------------------------------------------------------------------------- */

/* Return the rows that are propagated at once: their activations stay in the second-level cache,
 * but where the weights exceed that cache, they are read only once. */
static intptr_t block_rows(const Network *net) {
    const intptr_t rows = CACHED_ELEMENTS / net->widest / 16 * 16;
    return net->widest <= rows ? rows : net->spec.batch;
}

/* Compute loss and gradient of this thread's rows of a batch. */
static int propagate(Job *job, intptr_t t, intptr_t first, intptr_t last, double divisor) {
    const Network *net = job->net;
    const Run *run = job->run;
    const intptr_t block = block_rows(net), q = net->layers[net->spec.n_layers - 1].n_out;
    for (intptr_t row = first; row < last; row += block) {
        const intptr_t end = least(last, row + block);
        if (forward(job, t, row, end)) return 1;
        if (run->mode == LOGITS) {
            memcpy(run->logits + (job->X - run->X) / net->layers[0].n_in * q + row * q,
                   net->layers[net->spec.n_layers - 1].Z + row * q,
                   (size_t)((end - row) * q) * sizeof(REAL));
            continue;
        }
        if (output_loss(job, t, row, end, divisor)) return 1;
        if (run->mode != LOSS && backward(job, t, row, end)) return 1;
    }
    return 0;
}

/* Features-major networks: a layer holds one unit per row, and its examples fill vectors. -------- */

static void gather_tile(Job *job, const int64_t *chosen, intptr_t start, intptr_t n, intptr_t step,
                        double divisor) {
    Network *net = job->net;
    const Run *run = job->run;
    const intptr_t p = net->layers[0].n_in, q = net->spec.n_targets;
    const REAL equal = (REAL)(1.0 / divisor);
    for (intptr_t i = 0; i < n; i++) {
        const intptr_t row = chosen ? (intptr_t)chosen[i] : start + i;
        for (intptr_t j = 0; j < p; j++) net->X[j * step + i] = run->X[row * p + j];
        if (run->label) net->y[i] = (REAL)run->label[row];
        else if (run->y)
            for (intptr_t j = 0; j < q; j++) net->y[j * step + i] = run->y[row * q + j];
        net->weight[i] = run->weight ? (REAL)((double)run->weight[row] / divisor) : equal;
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

static void propagate_tiles(Job *job, const int64_t *chosen, intptr_t start, intptr_t n,
                            double divisor) {
    Network *net = job->net;
    const Run *run = job->run;
    const Layer *last = net->layers + net->spec.n_layers - 1;
    for (intptr_t first = 0; first < n; first += TILE) {
        const intptr_t rows = least(TILE, n - first), step = round_up(rows, LANES);
        /* All rows as they are, in one tile: it is the same in every step of this call. */
        if (!job->has_tile)
            gather_tile(job, chosen ? chosen + first : NULL, start + first, rows, step, divisor);
        job->has_tile = !chosen && run->n_samples <= TILE && run->n_samples <= net->spec.batch;
        tile_forward(job, step);
        if (run->mode == LOGITS) {
            to_rows(last->Z, step, rows, last->n_out, run->logits + (start + first) * last->n_out);
            continue;
        }
        REAL *arrays[] = {last->Z, net->y, net->weight, net->losses + first};
        run_block(program_of(net, net->spec.loss), arrays, last->n_out, step, net->scratch[0]);
        if (run->mode != LOSS) tile_backward(job, rows, step, first > 0);
    }
}

/* The loop -------------------------------------------------------------------------------- */

/* Set the numbers of a step's programs. */
static void set_numbers(Job *job, double divisor) {
    const Spec *spec = &job->net->spec;
    const REAL *row = job->run->coefficients + job->run->step * spec->n_coefficients;
    if (spec->penalize >= 0)
        set_number(program_of(job->net, spec->penalize), 0,
                   (REAL)(spec->penalty_per_sample ? 1.0 / divisor : 1.0));
    if (spec->update >= 0 && job->run->mode == TRAIN)
        for (intptr_t k = 0; k < spec->n_coefficients; k++)
            set_number(program_of(job->net, spec->update), k, row[k]);
}

/* Return the first row of this thread's share of a layer's weights. */
static intptr_t share_of(const Layer *layer, intptr_t t, intptr_t T) {
    return part_start(layer->n_in, 16, t, T);
}

static void compute_gradient(Job *job, intptr_t t, intptr_t n) {
    const Network *net = job->net;
    for (intptr_t l = 0; l < net->spec.n_layers; l++) {
        const Layer *layer = net->layers + l;
        const intptr_t first = share_of(layer, t, job->team.n);
        const intptr_t last = share_of(layer, t + 1, job->team.n);
        if (first < last) weight_gradient(job, t, l, n, first, last);
        if (l % job->team.n == t) add_rows(layer->D, n, layer->n_out, layer->gb);
    }
}

/* Let all processes of a team add up their gradients, and adopt the loss of the whole batch. */
static void reduce(Job *job, intptr_t t) {
    meet(&job->team);
    if (t == 0 && !job->stops) {
        ask(job, (Request){REDUCE, 0, 0, {&job->loss, &job->weight_sum, &job->rows}});
        set_numbers(job, job->weight_sum > 0 ? job->weight_sum : 1.0);
    }
    meet(&job->team);
}

static void change_parameters(Job *job, intptr_t t) {
    const Network *net = job->net;
    const Spec *spec = &net->spec;
    const intptr_t T = job->team.n;
    for (intptr_t l = 0; spec->penalize >= 0 && l < spec->n_layers; l++)
        penalize(job, t, net->layers + l, share_of(net->layers + l, t, T),
                 share_of(net->layers + l, t + 1, T));
    if (spec->n_clips) meet(&job->team);
    for (intptr_t k = 0; k < spec->n_clips; k++) clip(job, t, spec->clips + k, k);
    if (job->run->mode != TRAIN) return;
    if (spec->update < 0) {
        meet(&job->team);
        if (t == 0) ask(job, (Request){.what = UPDATE, .layer = job->run->step});
    } else if (T == 1) {
        update(job, t, 0, net->n_parameters);
    } else {
        for (intptr_t l = 0; l < spec->n_layers; l++) {
            const Layer *layer = net->layers + l;
            const intptr_t W = layer->W - spec->parameters, b = layer->b - spec->parameters;
            update(job, t, W + share_of(layer, t, T) * layer->n_out,
                   W + share_of(layer, t + 1, T) * layer->n_out);
            if (l % T == t) update(job, t, b, b + layer->n_out);
        }
    }
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
    if (job->run->mode == LOSS) return 0;
    for (intptr_t l = 0; net->spec.penalize >= 0 && l < net->spec.n_layers; l++)
        for (intptr_t k = 0; 16 * k < net->layers[l].n_in; k++)
            total += net->layers[l].penalties[k];
    return total;
}

static void take_step(Job *job, intptr_t t) {
    Network *net = job->net;
    const Run *run = job->run;
    const intptr_t start = run->start, n = least(net->spec.batch, run->n_samples - start);
    const int64_t *chosen = run->order ? run->order + run->epoch * run->n_samples + start : NULL;
    const int trains = run->mode == TRAIN || run->mode == GRADIENT;
    const double weight = weight_of_batch(run, chosen, start, n), divisor = weight > 0 ? weight : 1;
    if (t == 0) {
        if (trains) set_numbers(job, divisor);
        job->weight_sum = weight;
        job->rows = n;
    }
    if (net->spec.features_major) {
        propagate_tiles(job, chosen, start, n, divisor);
    } else {
        const intptr_t first = part_start(n, 16, t, job->team.n);
        const intptr_t last = part_start(n, 16, t + 1, job->team.n);
        if (t == 0 && run->mode == TRAIN) draw_masks(net, run, n);
        if (t == 0 && run->mode != TRAIN && !job->has_weights) drop_nothing(net, n);
        if (!job->has_weights) prepare_weights(job, t, trains);
        take_batch(job, t, chosen, start, first, last);
        meet(&job->team);
        /* Only training changes them. */
        if (t == 0) job->has_weights = run->mode != TRAIN;
        propagate(job, t, first, last, divisor);
        meet(&job->team);
    }
    if (run->mode == LOGITS || job->stops) return;
    if (t == 0) job->loss = (double)sum_of_row(net->losses, n);
    if (trains) {
        if (!net->spec.features_major) compute_gradient(job, t, n);
        if (run->reduces) reduce(job, t);
        if (job->stops) return;
        change_parameters(job, t);
    }
}

static int all_finite(const REAL *x, intptr_t n) {
    V total = {0};
    for (intptr_t i = 0; i < n; i += LANES) total += load_part(x + i, least(LANES, n - i)) * 0;
    return sum_of(total) == 0;
}

static void end_epoch(Job *job) {
    Network *net = job->net;
    Run *run = job->run;
    double *loss = run->losses + run->epoch;
    run->start = 0;
    run->epoch++;
    if (!run->ends) return;
    *loss = run->totals[1] > 0 ? run->totals[0] / run->totals[1] : 0;
    run->totals[0] = run->totals[1] = 0;
    if (run->mode != TRAIN) return;
    run->is_finite = *loss - *loss == 0 && all_finite(net->spec.parameters, net->n_parameters);
    if (run->is_finite)
        memcpy(net->spec.finite, net->spec.parameters, (size_t)net->n_parameters * sizeof(REAL));
}

/* Count a step, and decide whether it was the last of this call. */
static void end_step(Job *job) {
    Run *run = job->run;
    const Spec *spec = &job->net->spec;
    const int by_rows = spec->by_rows && run->mode == TRAIN && job->weight_sum > 0;
    const double count = by_rows ? (double)job->rows : job->weight_sum;
    if (run->mode != LOGITS) {
        run->totals[0] += (job->loss + penalty(job)) * count;
        run->totals[1] += count;
    }
    run->step++;
    run->start += spec->batch;
    if (run->start >= run->n_samples) end_epoch(job);
    run->is_over = run->epoch == run->n_epochs || !run->is_finite;
    job->stops = run->is_over || is_time_up(job);
}

static void work(void *whole, intptr_t t) {
    Job *job = whole;
    while (!job->stops) {
        take_step(job, t);
        meet(&job->team);
        if (t == 0 && !job->stops) end_step(job);
        meet(&job->team);
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
        run->has_failed = 2;
        return;
    }
    if (run->parameters) place_parameters(net, run->parameters);
    job.is_short = run->mode == LOGITS && run->n_samples < 32;
    run->is_finite = 1;
    run->is_over = run->n_epochs == 0 || run->n_samples == 0;
    job.stops = (int)run->is_over;
    if (run->n_samples == 0 && run->n_epochs > 0) end_epoch(&job);
    run_together(&job.team, work, &job, least(run->n_threads, net->n_threads));
}

#endif
