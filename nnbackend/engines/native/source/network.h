/* A network in training: what Python describes, and the memory that its steps need. */
#ifndef NNBACKEND_NETWORK_H
#define NNBACKEND_NETWORK_H

#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "product.h"
#include "program.h"
#include "random.h"

/* Memory behind every buffer, so that whole vectors may be read and written at its end. */
#define SLACK 64

/* Rows of a tile of a features-major network: its layers stay in the first-level cache. */
#define TILE ((intptr_t)512)

/* Elements of a layer's activations that fit a core's second-level cache. */
#define CACHED_ELEMENTS ((intptr_t)1 << 17)

/* Elements of the examples that fit it beside all else, when weights change. */
#define CACHED_EXAMPLES ((intptr_t)1 << 18)

/* Beyond this many elements, a weight matrix is packed for its products: it does not stay in the
 * second-level cache, and panels are fetched in time. */
#define LARGE_MATRIX ((intptr_t)1 << 17)

/* With fewer rows than this, packing takes longer than it saves. */
#define FEW_ROWS ((intptr_t)32)

/* With no more parameters than this, a single thread changes them all at once. */
#define SMALL_NETWORK ((intptr_t)1 << 16)

/* A part of a layer's weights has a multiple of so many rows, which fill panels and groups of
 * penalties; so many elements, whose gradient and state stay in the second-level cache; but so many
 * rows where the examples exceed that cache, since each part reads them all. */
#define PART_UNIT ((intptr_t)32)
#define PART_ELEMENTS ((intptr_t)1 << 15)
#define PART_ROWS (6 * PART_UNIT)

/* Sums over more examples than this are taken from packed rows; where there are few registers, into
 * which rows are read more often, also sums over rows of more elements than this. */
#define LONG_SUM 256
#define LARGE_SUM (VECTOR_REGISTERS == 32 ? INTPTR_MAX : (intptr_t)1 << 15)

typedef struct {
    intptr_t n_in, n_out;
    intptr_t activate, pull_back; /* programs of a hidden layer; -1: the callback computes it */
    intptr_t in_place;            /* whether the activations overwrite the pre-activations */
    double dropout;
} LayerSpec;

/* What a pass over all parameters reduces its value to. */
enum { NOTHING, SUM, LARGEST };

typedef struct {
    intptr_t program, reduction;
} PassSpec;

typedef struct {
    intptr_t n_layers, batch, n_targets, labels, features_major;
    const LayerSpec *layers;
    const Program *programs;
    intptr_t n_programs;
    intptr_t loss, penalize, update; /* programs; -1: see there */
    intptr_t n_clips;
    const PassSpec *clips;
    intptr_t penalty_per_sample, by_rows, n_state, n_coefficients;
    REAL *parameters, *gradient, *finite; /* gradient: NULL if the network only predicts */
    REAL *const *state;
    Random *random;
} Spec;

typedef struct {
    intptr_t n_in, n_out;
    const Program *activate, *pull_back;
    intptr_t is_large;
    REAL rate, kept;
    const REAL *W, *b; /* in the vector of parameters */
    REAL *gW, *gb;     /* in that of the gradient, if there is one */
    REAL *Z, *A, *H, *M, *D; /* pre-activations, activations, dropped ones, mask, gradient */
    REAL *transposed;       /* W^T, in panels if it is large */
    REAL *panels, *dZ_panels;
    double *penalties; /* of groups of 16 rows */
} Layer;

/* Some rows of a layer's weights and biases; the biases are the row behind the weights. */
typedef struct {
    intptr_t layer, first, last;
    intptr_t n_before; /* parameters of the parts before it, which say how much work they are */
} Part;

typedef struct {
    Spec spec;
    Layer *layers;
    Part *parts; /* in which the gradient is computed and the parameters are changed */
    intptr_t n_parts;
    int has_many_parts; /* so many that threads share them, or that a cache cannot hold them all */
    intptr_t n_parameters, widest, n_threads;
    REAL *X, *y, *weight, *losses; /* of a batch: gathered features, targets, weights; losses */
    int64_t *labels;
    double *sums; /* partial sums of a pass over all parameters */
    /* Of each thread: for programs, for products, and for the gradient of a part. */
    REAL **scratch, **workspace, **part_gradient;
    intptr_t scratch_size;
    void *memory; /* the last block; before it lie the addresses of the one before and of itself */
    int has_failed;
} Network;

static intptr_t round_up(intptr_t n, intptr_t to) { return (n + to - 1) / to * to; }

static intptr_t least(intptr_t a, intptr_t b) { return a < b ? a : b; }

static intptr_t most(intptr_t a, intptr_t b) { return a > b ? a : b; }

/* Ask for pages of 2 MiB in a large block that nobody has touched, as NumPy does: there are fewer
 * of them to fill with zeros, and to look up. The system is free to refuse. */
static void use_large_pages(void *block, size_t bytes) {
#ifdef MADV_HUGEPAGE
    const uintptr_t page = 4096, start = ((uintptr_t)block + page - 1) & ~(page - 1);
    if (bytes >= (size_t)1 << 22) madvise((void *)start, bytes - page, MADV_HUGEPAGE);
#else
    (void)block, (void)bytes;
#endif
}

/* Return memory of bytes that starts with a cache line, all zero; it is freed with the network.
 *
 * calloc need not write the zeros of large blocks, whose pages come from the system as zeros. */
static void *reserve(Network *net, intptr_t bytes) {
    void *block = net->has_failed ? NULL : calloc(1, (size_t)bytes + 128);
    if (!block) {
        net->has_failed = 1;
        return NULL;
    }
    use_large_pages(block, (size_t)bytes + 128);
    void **start = (void **)(((uintptr_t)block + 2 * sizeof(void *) + 63) & ~(uintptr_t)63);
    start[-1] = block;
    start[-2] = net->memory;
    return net->memory = start;
}

static REAL *reals(Network *net, intptr_t n) {
    return reserve(net, (n + SLACK) * (intptr_t)sizeof(REAL));
}

EXPORT void NAME(nnbackend_free)(Network *net) {
    while (net->memory) {
        void **last = net->memory;
        net->memory = last[-2];
        free(last[-1]);
    }
    free(net->layers);
    free(net);
}

/* Copy the programs, which other networks share, with their numbers, which steps set. */
static void reserve_programs(Network *net, const Spec *spec) {
    const intptr_t n = most(spec->n_programs, 1);
    Program *programs = reserve(net, n * (intptr_t)sizeof *programs);
    for (intptr_t k = 0; k < spec->n_programs && !net->has_failed; k++) {
        const intptr_t size = spec->programs[k].n_numbers * LANES;
        programs[k] = spec->programs[k];
        programs[k].numbers = reals(net, size);
        if (!net->has_failed)
            memcpy(programs[k].numbers, spec->programs[k].numbers, (size_t)size * sizeof(REAL));
    }
    net->spec.programs = programs;
}

static const Program *program_of(const Network *net, intptr_t index) {
    return index < 0 ? NULL : net->spec.programs + index;
}

/* Let the layers' weights and biases be those in a vector. */
static void place_parameters(Network *net, const REAL *parameters) {
    intptr_t start = 0;
    for (intptr_t l = 0; l < net->spec.n_layers; l++) {
        Layer *layer = net->layers + l;
        const intptr_t biases = start + layer->n_in * layer->n_out;
        layer->W = parameters + start, layer->b = parameters + biases;
        if (net->spec.gradient)
            layer->gW = net->spec.gradient + start, layer->gb = net->spec.gradient + biases;
        start = biases + layer->n_out;
    }
    net->n_parameters = start;
}

static void reserve_layer(Network *net, intptr_t l) {
    const intptr_t rows = net->spec.features_major ? least(TILE, round_up(net->spec.batch, LANES))
                                                   : net->spec.batch;
    const LayerSpec *given = net->spec.layers + l;
    Layer *layer = net->layers + l;
    const intptr_t p = layer->n_in, q = layer->n_out, n = rows * q;
    layer->Z = reals(net, n);
    layer->A = layer->H = layer->D = layer->Z;
    layer->M = layer->Z;
    if (l + 1 < net->spec.n_layers) {
        layer->activate = program_of(net, given->activate);
        layer->pull_back = program_of(net, given->pull_back);
        if (!given->in_place) layer->A = reals(net, n);
        layer->H = layer->A;
        layer->rate = (REAL)given->dropout;
        layer->kept = (REAL)1 / (REAL)(1.0 - given->dropout);
        if (given->dropout > 0) layer->H = reals(net, n), layer->M = reals(net, n);
        if (net->spec.gradient) layer->D = reals(net, n);
    }
    layer->penalties = reserve(net, (p / 16 + 1) * (intptr_t)sizeof(double));
    if (net->spec.features_major) return;
    /* Products of few rows, or with narrow matrices, are faster without panels. */
    layer->is_large = p * q > LARGE_MATRIX && least(p, q) > 2 * PANEL_WIDTH &&
                      net->spec.batch >= FEW_ROWS;
    if (layer->is_large) layer->panels = reals(net, panels_size(p, q));
    if (!net->spec.gradient) return;
    if (l > 0) layer->transposed = reals(net, layer->is_large ? panels_size(q, p) : p * q);
    if ((rows > LONG_SUM || n > LARGE_SUM) && q > 2 * PANEL_WIDTH)
        layer->dZ_panels = reals(net, panels_size(rows, q));
}

/* Return the rows of a block of the loss, whose outputs stay in the first-level cache. */
static intptr_t loss_rows(const Network *net) {
    const intptr_t q = net->layers[net->spec.n_layers - 1].n_out;
    if (net->spec.features_major) return TILE;
    return most(LANES, least(512, 2 * BLOCK / q / LANES * LANES));
}

static void reserve_scratch(Network *net, intptr_t n_threads) {
    const intptr_t q = net->layers[net->spec.n_layers - 1].n_out, rows = loss_rows(net);
    intptr_t flat = 0;
    for (intptr_t k = 0; k < net->spec.n_programs; k++)
        flat = most(flat, net->spec.programs[k].n_registers + 1);
    /* A register of a block of the loss, or of a flat block. */
    net->scratch_size = round_up(most(q * rows, BLOCK), 16) * (flat + 3);
    net->scratch = reserve(net, n_threads * (intptr_t)sizeof *net->scratch);
    net->workspace = reserve(net, n_threads * (intptr_t)sizeof *net->workspace);
    for (intptr_t t = 0; t < n_threads && !net->has_failed; t++) {
        net->scratch[t] = reals(net, most(net->scratch_size, net->widest * LANES));
        net->workspace[t] = reals(net, product_workspace());
    }
}

/* Return how many rows a part of a layer's weights has: no thread shall wait long for the last. */
static intptr_t rows_of_parts(const Network *net, const Layer *layer) {
    if (!net->has_many_parts) return layer->n_in;
    const intptr_t q = layer->n_out, equal = (layer->n_in + net->n_threads - 1) / net->n_threads;
    const intptr_t rows = net->spec.batch * q > CACHED_EXAMPLES
                              ? PART_ROWS
                              : most(1, least(equal / 4, PART_ELEMENTS / q));
    return round_up(least(equal, rows), PART_UNIT);
}

static void reserve_parts(Network *net) {
    intptr_t most_parts = 0, n_before = 0, largest = 0;
    /* The tiles of a features-major network leave the whole gradient. */
    net->has_many_parts = !net->spec.features_major &&
                          (net->n_threads > 1 || net->n_parameters > SMALL_NETWORK);
    for (intptr_t l = 0; l < net->spec.n_layers; l++)
        most_parts += net->layers[l].n_in / PART_UNIT + 1;
    net->parts = reserve(net, most_parts * (intptr_t)sizeof *net->parts);
    for (intptr_t l = 0; l < net->spec.n_layers && !net->has_failed; l++) {
        const intptr_t p = net->layers[l].n_in, rows = rows_of_parts(net, net->layers + l);
        for (intptr_t first = 0; first < p; first += rows) {
            const intptr_t last = first + rows < p ? first + rows : p + 1;
            const intptr_t size = (last - first) * net->layers[l].n_out;
            net->parts[net->n_parts++] = (Part){l, first, last, n_before};
            n_before += size;
            largest = most(largest, size);
        }
    }
    if (!net->has_many_parts || !net->spec.gradient) return;
    net->part_gradient = reserve(net, net->n_threads * (intptr_t)sizeof *net->part_gradient);
    for (intptr_t t = 0; t < net->n_threads && !net->has_failed; t++)
        net->part_gradient[t] = reals(net, largest);
}

EXPORT Network *NAME(nnbackend_new)(const Spec *spec, intptr_t n_threads) {
    Network *net = calloc(1, sizeof *net);
    if (!net) return NULL;
    net->spec = *spec;
    net->n_threads = n_threads;
    net->layers = calloc((size_t)spec->n_layers, sizeof *net->layers);
    reserve_programs(net, spec);
    if (!net->layers || net->has_failed) {
        NAME(nnbackend_free)(net);
        return NULL;
    }
    const intptr_t batch = round_up(spec->batch, 16);
    for (intptr_t l = 0; l < spec->n_layers; l++) {
        net->layers[l].n_in = spec->layers[l].n_in, net->layers[l].n_out = spec->layers[l].n_out;
        net->widest = most(net->widest, most(spec->layers[l].n_in, spec->layers[l].n_out));
    }
    place_parameters(net, spec->parameters);
    for (intptr_t l = 0; l < spec->n_layers; l++) reserve_layer(net, l);
    /* Predictions take rows as they are, if not in tiles. */
    if (spec->gradient || spec->features_major)
        net->X = reals(net, batch * net->layers[0].n_in);
    net->y = reals(net, batch * most(spec->n_targets, 1));
    net->labels = reserve(net, (batch + SLACK) * (intptr_t)sizeof(int64_t));
    net->weight = reals(net, batch);
    net->losses = reals(net, batch);
    net->sums = reserve(net, (net->n_parameters / BLOCK + SLACK) * (intptr_t)sizeof(double));
    reserve_scratch(net, n_threads);
    reserve_parts(net);
    const intptr_t n_outputs = net->layers[spec->n_layers - 1].n_out;
    if (spec->loss >= 0) set_number(program_of(net, spec->loss), 0, (REAL)n_outputs);
    if (!net->has_failed) return net;
    NAME(nnbackend_free)(net);
    return NULL;
}

#endif
