#ifndef NNBACKEND_PRODUCT_H
#define NNBACKEND_PRODUCT_H
#include "vector.h"
static void product(intptr_t m, intptr_t n, intptr_t k, const REAL *A, intptr_t a_row, intptr_t a_step, const REAL *B, intptr_t b_step, REAL *C, intptr_t c_row, const REAL *bias, const REAL *bias_rows, int adds) {
    for (intptr_t i = 0; i < m; i++) for (intptr_t j = 0; j < n; j++) {
        REAL s = bias ? bias[j] : bias_rows ? bias_rows[i] : adds ? C[i*c_row+j] : 0;
        for (intptr_t l = 0; l < k; l++) s += A[i*a_row + l*a_step] * B[l*b_step + j];
        C[i*c_row+j] = s; }
}
static void product_dots(intptr_t m, intptr_t n, intptr_t k, const REAL *A, intptr_t a_row, const REAL *B, intptr_t b_row, REAL *C, intptr_t c_row) {
    for (intptr_t i = 0; i < m; i++) for (intptr_t j = 0; j < n; j++) { REAL s = 0; for (intptr_t l = 0; l < k; l++) s += A[i*a_row+l]*B[j*b_row+l]; C[i*c_row+j]=s; }
}

static intptr_t panels_size(intptr_t k, intptr_t n) { return k * n; }
static void pack_panels(REAL *panels, intptr_t k, intptr_t n, const REAL *B, intptr_t b_step, intptr_t b_column, intptr_t first, intptr_t last) {
    (void)first, (void)last;
    for (intptr_t l = 0; l < k; l++) for (intptr_t j = 0; j < n; j++) panels[l*n+j] = B[l*b_step+j*b_column];
}
static intptr_t product_workspace(void) { return 16; }

static intptr_t n_panels(intptr_t n) { (void)n; return 1; }
static void transpose(const REAL *x, intptr_t rows, intptr_t columns, REAL *out) { for (intptr_t i = 0; i < rows; i++) for (intptr_t j = 0; j < columns; j++) out[j*rows+i] = x[i*columns+j]; }
static void pack_rows(REAL *panels, intptr_t k, intptr_t n, const REAL *B, intptr_t b_step, intptr_t first, intptr_t last) { (void)k; for (intptr_t l = first; l < last; l++) for (intptr_t j = 0; j < n; j++) panels[l*n+j] = B[l*b_step+j]; }
static void product_panels(intptr_t m, intptr_t n, intptr_t k, const REAL *A, intptr_t a_row, intptr_t a_step, const REAL *panels, intptr_t first, intptr_t last, REAL *C, intptr_t c_row, const REAL *bias, int adds, REAL *w) { (void)first,(void)last,(void)w; product(m, n, k, A, a_row, a_step, panels, n, C, c_row, bias, NULL, adds); }
#endif
