/* matrix.c - block-cyclic matrices: the local piece and the way from and to a dense array. */
#include "par/pieces.h"
#include <omp.h>

bw_matrix bw_matrix_outline(const bw_grid *grid, bw_piece_type type, int64_t m, int64_t n, int mb, int nb)
{
    bw_matrix matrix = {.layout = {m, n, mb, nb, grid->nprow, grid->npcol}, .type = type, .myrow = grid->myrow, .mycol = grid->mycol};
    matrix.rows = bw_bcyc_count(m, mb, grid->myrow, grid->nprow);
    matrix.cols = bw_bcyc_count(n, nb, grid->mycol, grid->npcol);
    matrix.ld = matrix.rows > 1 ? matrix.rows : 1;
    return matrix;
}

int64_t bw_matrix_bytes(const bw_matrix *matrix)
{
    return matrix->rows * matrix->cols * (int64_t)bw_entry_bytes(matrix->type);
}

int bw_matrix_create(bw_matrix *matrix, const bw_grid *grid, bw_piece_type type, int64_t m, int64_t n, int mb, int nb, const char *purpose)
{
    BW_ASSERT(m >= 0 && n >= 0 && mb > 0 && nb > 0);
    *matrix = bw_matrix_outline(grid, type, m, n, mb, nb);
    int64_t entries = 0;
    if (__builtin_mul_overflow(matrix->rows, matrix->cols, &entries))
        return bw_fail(BW_SYSTEM, "a piece of %lld x %lld entries for %s does not fit any memory", (long long)matrix->rows, (long long)matrix->cols,
                       purpose);
    matrix->data = bw_calloc(entries, bw_entry_bytes(type), purpose);
    return matrix->data ? BW_OK : BW_SYSTEM;
}

void bw_matrix_free(bw_matrix *matrix)
{
    bw_free(matrix->data);
    *matrix = (bw_matrix){0};
}

/* ---- blocks ------------------------------------------------------------------------------------------------------- */
static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

int bw_matrix_visit_share(const bw_matrix *matrix, int share, int shares, bw_block_visitor visit, void *context)
{
    const bw_bcyc *layout = &matrix->layout;
    int64_t index = 0;
    for (int64_t lj = 0; lj < matrix->cols; lj += layout->nb) {
        int64_t j = bw_bcyc_global(lj, layout->nb, matrix->mycol, layout->npcol);
        for (int64_t li = 0; li < matrix->rows; li += layout->mb, index++) {
            if (index % shares != share)
                continue;
            int64_t i = bw_bcyc_global(li, layout->mb, matrix->myrow, layout->nprow);
            char *block = (char *)matrix->data + (size_t)(li + lj * matrix->ld) * bw_entry_bytes(matrix->type);
            BW_TRY(visit(context, matrix, i, j, least(layout->mb, layout->m - i), least(layout->nb, layout->n - j), block));
        }
    }
    return BW_OK;
}

int bw_matrix_visit(const bw_matrix *matrix, bw_block_visitor visit, void *context)
{
    return bw_matrix_visit_share(matrix, 0, 1, visit, context);
}

int bw_matrix_visit_on_threads(const bw_matrix *matrix, int share, int shares, bw_block_visitor visit, void *context)
{
    int status = BW_OK;
#pragma omp parallel reduction(max : status)
    status = bw_matrix_visit_share(matrix, share + shares * omp_get_thread_num(), shares * omp_get_num_threads(), visit, context);
    return status;
}

/* ---- from and to a dense array ------------------------------------------------------------------------------------- */
typedef struct dense_view {
    float *data;
    int64_t ld;
} dense_view;

static int fill_block(void *context, const bw_matrix *matrix, int64_t i, int64_t j, int64_t rows, int64_t cols, void *block)
{
    const dense_view *dense = context;
    bw_block_from_dense(block, matrix->type, matrix->ld, dense->data + i * dense->ld + j, dense->ld, rows, cols);
    return BW_OK;
}

void bw_matrix_from_dense(bw_matrix *matrix, const float *dense, int64_t ld)
{
    dense_view view = {(float *)(uintptr_t)dense, ld}; /* only read */
    bw_matrix_visit(matrix, fill_block, &view);
}

static int copy_block(void *context, const bw_matrix *matrix, int64_t i, int64_t j, int64_t rows, int64_t cols, void *block)
{
    const dense_view *dense = context;
    bw_block_to_dense(dense->data + i * dense->ld + j, dense->ld, block, matrix->type, matrix->ld, rows, cols);
    return BW_OK;
}

void bw_matrix_to_dense(const bw_matrix *matrix, float *dense, int64_t ld)
{
    dense_view view = {dense, ld};
    bw_matrix_visit(matrix, copy_block, &view);
}
