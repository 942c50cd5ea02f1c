/* test_scalapack.c - products and redistribution on every grid, against plain loops on the whole matrix. */
#include <float.h>
#include <math.h>
#include <string.h>
#include "../../largest.h"
#include "check.h"
#include "par/comms.h"

enum { MOST = 100 };
typedef struct dense {
    int64_t m, n;
    double at[MOST * MOST]; /* row-major */
} dense;

static double random_number(uint32_t salt, int64_t i, int64_t j)
{
    bw_key key = {11, BW_PURPOSE_TEST, salt, 0, 0};
    uint32_t out[4];
    bw_rng(&key, (uint32_t)(i * MOST + j), out);
    return 2 * (double)bw_rng_uniform(out[0]) - 1;
}

static void fill_random(dense *dense, int64_t m, int64_t n, uint32_t salt)
{
    dense->m = m;
    dense->n = n;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            dense->at[i * n + j] = random_number(salt, i, j);
}

/* ---- between whole and piece -------------------------------------------------------------------------------------- */
static int put(void *context, const bw_matrix *matrix, int64_t i, int64_t j, int64_t rows, int64_t cols, void *block)
{
    const dense *from = context;
    for (int64_t c = 0; c < cols; c++)
        for (int64_t r = 0; r < rows; r++)
            ((double *)block)[r + c * matrix->ld] = from->at[(i + r) * from->n + j + c];
    return BW_OK;
}

static int take(void *context, const bw_matrix *matrix, int64_t i, int64_t j, int64_t rows, int64_t cols, void *block)
{
    dense *to = context;
    for (int64_t c = 0; c < cols; c++)
        for (int64_t r = 0; r < rows; r++)
            to->at[(i + r) * to->n + j + c] = ((double *)block)[r + c * matrix->ld];
    return BW_OK;
}

static void create(bw_matrix *matrix, const bw_grid *grid, const dense *values, int mb, int nb)
{
    dense copy = *values;
    CHECK_OK(bw_matrix_create(matrix, grid, BW_PIECE_F64, values->m, values->n, mb, nb, "test"));
    CHECK_OK(bw_matrix_visit(matrix, put, &copy));
}

static void whole(const bw_grid *grid, const bw_matrix *matrix, dense *out)
{
    memset(out, 0, sizeof *out);
    out->m = matrix->layout.m;
    out->n = matrix->layout.n;
    CHECK_OK(bw_matrix_visit(matrix, take, out));
    CHECK(MPI_Allreduce(MPI_IN_PLACE, out->at, (int)(out->m * out->n), MPI_DOUBLE, MPI_SUM, grid->comms->grid) == MPI_SUCCESS);
}

/* ---- multiply ----------------------------------------------------------------------------------------------------- */
static double op(const dense *a, bool trans, int64_t i, int64_t j)
{
    return trans ? a->at[j * a->n + i] : a->at[i * a->n + j];
}

static void product(const bw_grid *grid, int64_t m, int64_t n, int64_t k, bool trans_a, bool trans_b, double beta)
{
    static dense a, b, c, result;
    bw_matrix pa, pb, pc;
    fill_random(&a, trans_a ? k : m, trans_a ? m : k, 1);
    fill_random(&b, trans_b ? n : k, trans_b ? k : n, 2);
    fill_random(&c, m, n, 3);
    create(&pa, grid, &a, 5, 3);
    create(&pb, grid, &b, 4, 7);
    create(&pc, grid, &c, 6, 6);
    CHECK_OK(bw_pgemm(grid, trans_a, trans_b, 0.5, &pa, &pb, beta, &pc));
    whole(grid, &pc, &result);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = beta * c.at[i * n + j];
            for (int64_t l = 0; l < k; l++)
                sum += 0.5 * op(&a, trans_a, i, l) * op(&b, trans_b, l, j);
            CHECK(fabs(result.at[i * n + j] - sum) <= 2 * (double)(k + 2) * DBL_EPSILON * (double)(k + 1)); /* entries are at most 1 */
        }
    bw_matrix_free(&pa);
    bw_matrix_free(&pb);
    bw_matrix_free(&pc);
}

static void products_match_plain_loops(const bw_grid *grid)
{
    for (int trans = 0; trans < 4; trans++) {
        product(grid, 31, 17, 23, trans & 1, trans & 2, 0);
        product(grid, 1, 40, 2, trans & 1, trans & 2, -1.5);
        product(grid, 3, 2, 0, trans & 1, trans & 2, 2); /* nothing to multiply: C = beta C */
        product(grid, 0, 4, 3, trans & 1, trans & 2, 1);
    }
}

/* ---- redistribute -------------------------------------------------------------------------------------------------- */
static void another_layout_holds_the_same_matrix(const bw_grid *grid)
{
    static const int blocks[][2] = {{1, 1}, {32, 32}, {3, 8}, {100, 100}};
    static dense a, result;
    fill_random(&a, 45, 26, 4);
    for (int b = 0; b < 4; b++) {
        bw_matrix from, to;
        create(&from, grid, &a, 7, 2);
        CHECK_OK(bw_matrix_create(&to, grid, BW_PIECE_F64, 45, 26, blocks[b][0], blocks[b][1], "test"));
        CHECK_OK(bw_redistribute(grid, &from, &to, 0, 0));
        whole(grid, &to, &result);
        CHECK(memcmp(result.at, a.at, sizeof(double) * 45 * 26) == 0);
        bw_matrix_free(&from);
        bw_matrix_free(&to);
    }
}

/* A 20 x 9 matrix in fp32 into rows 13 to 32 and columns 4 to 12 of another: there it is, and nothing else is touched. */
static void a_matrix_lands_inside_another_one(const bw_grid *grid)
{
    enum { M = 20, N = 9, ROWS = 40, COLUMNS = 15, ROW = 13, COLUMN = 4 };
    static float part[M * N], all[ROWS * COLUMNS], sum[ROWS * COLUMNS];
    bw_matrix from, to;
    for (int i = 0; i < M * N; i++)
        part[i] = (float)random_number(5, i, 0);
    for (int i = 0; i < ROWS * COLUMNS; i++)
        all[i] = (float)random_number(6, i, 0);
    CHECK_OK(bw_matrix_create(&from, grid, BW_PIECE_F32, M, N, 6, 2, "test"));
    CHECK_OK(bw_matrix_create(&to, grid, BW_PIECE_F32, ROWS, COLUMNS, 7, 4, "test"));
    bw_matrix_from_dense(&from, part, N);
    bw_matrix_from_dense(&to, all, COLUMNS);
    CHECK_OK(bw_redistribute(grid, &from, &to, ROW, COLUMN));
    memset(sum, 0, sizeof sum);
    bw_matrix_to_dense(&to, sum, COLUMNS);
    CHECK(MPI_Allreduce(MPI_IN_PLACE, sum, ROWS * COLUMNS, MPI_FLOAT, MPI_SUM, grid->comms->grid) == MPI_SUCCESS);
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLUMNS; j++) {
            bool inside = i >= ROW && i < ROW + M && j >= COLUMN && j < COLUMN + N;
            CHECK(sum[i * COLUMNS + j] == (inside ? part[(i - ROW) * N + j - COLUMN] : all[i * COLUMNS + j]));
        }
    bw_matrix_free(&from);
    bw_matrix_free(&to);
}

/* ---- local -------------------------------------------------------------------------------------------------------- */
static void eigenpairs_satisfy_their_equation(void)
{
    enum { N = 9 };
    double matrix[N * N], vectors[N * N], values[N];
    for (int i = 0; i < N; i++)
        for (int j = 0; j <= i; j++)
            matrix[i + j * N] = matrix[j + i * N] = random_number(50, i, j);
    memcpy(vectors, matrix, sizeof matrix);
    CHECK_OK(bw_symmetric_eigen(N, vectors, values));
    for (int k = 0; k < N; k++)
        for (int i = 0; i < N; i++) {
            double sum = 0;
            for (int j = 0; j < N; j++)
                sum += matrix[i + j * N] * vectors[j + k * N];
            CHECK(fabs(sum - values[k] * vectors[i + k * N]) <= 10 * N * N * DBL_EPSILON);
            CHECK(k == 0 || values[k - 1] <= values[k]);
        }
    CHECK_OK(bw_symmetric_eigen(0, NULL, NULL));
}

static void libraries_name_themselves(void)
{
    CHECK(strncmp(bw_scalapack_version(), "2.", 2) == 0);
    CHECK(strstr(bw_blas_loaded(), ".so") != NULL);
}

static void all(const bw_grid *grid)
{
    products_match_plain_loops(grid);
    another_layout_holds_the_same_matrix(grid);
    a_matrix_lands_inside_another_one(grid);
}

int main(int argc, char **argv)
{
    CHECK_OK(bw_par_start(&argc, &argv));
    check_every_shape(1, all);
    eigenpairs_satisfy_their_equation();
    libraries_name_themselves();
    return check_finish("test_scalapack");
}
