/* test_scalapack.c - products, pivoted QR, redistribution and norms on every grid, against plain loops on the whole matrix. */
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

/* ---- redistribute and norm ---------------------------------------------------------------------------------------- */
static void another_layout_holds_the_same_matrix(const bw_grid *grid)
{
    static const int blocks[][2] = {{1, 1}, {32, 32}, {3, 8}, {100, 100}};
    static dense a, result;
    double sum = 0;
    fill_random(&a, 45, 26, 4);
    for (int64_t i = 0; i < a.m * a.n; i++)
        sum += a.at[i] * a.at[i];
    for (int b = 0; b < 4; b++) {
        bw_matrix from, to;
        create(&from, grid, &a, 7, 2);
        CHECK_OK(bw_matrix_create(&to, grid, BW_PIECE_F64, 45, 26, blocks[b][0], blocks[b][1], "test"));
        CHECK_OK(bw_redistribute(grid, &from, &to));
        whole(grid, &to, &result);
        CHECK(memcmp(result.at, a.at, sizeof(double) * 45 * 26) == 0);
        CHECK(fabs(bw_pnorm(grid, &to) - sqrt(sum)) <= 45 * 26 * DBL_EPSILON * sqrt(sum));
        bw_matrix_free(&from);
        bw_matrix_free(&to);
    }
}

/* ---- range -------------------------------------------------------------------------------------------------------- */
static double column_dot(const dense *a, int64_t i, const dense *b, int64_t j)
{
    double sum = 0;
    for (int64_t r = 0; r < a->m; r++)
        sum += a->at[r * a->n + i] * b->at[r * b->n + j];
    return sum;
}

static double distance_from_orthonormal(const dense *q, int rank)
{
    double worst = 0;
    for (int64_t i = 0; i < q->n; i++)
        for (int64_t j = 0; j < q->n; j++)
            worst = larger(worst, fabs(column_dot(q, i, q, j) - (i == j && i < rank ? 1 : 0))); /* columns beyond the rank are zero */
    return worst;
}

/* Largest norm of what a column of A has outside of the range of Q. */
static double outside(const dense *a, const dense *q)
{
    double worst = 0;
    for (int64_t j = 0; j < a->n; j++) {
        double sum = 0, column[MOST], dots[MOST];
        for (int64_t k = 0; k < q->n; k++)
            dots[k] = column_dot(q, k, a, j);
        for (int64_t i = 0; i < a->m; i++) {
            column[i] = a->at[i * a->n + j];
            for (int64_t k = 0; k < q->n; k++)
                column[i] -= q->at[i * q->n + k] * dots[k];
            sum += column[i] * column[i];
        }
        worst = larger(worst, sqrt(sum));
    }
    return worst;
}

static double largest_column(const dense *a)
{
    double worst = 0;
    for (int64_t j = 0; j < a->n; j++)
        worst = larger(worst, sqrt(column_dot(a, j, a, j)));
    return worst;
}

static void check_range(const bw_grid *grid, const dense *a, int mb, int nb, int expected_rank)
{
    static dense basis;
    bw_matrix pa, pq;
    int rank = -1;
    create(&pa, grid, a, mb, nb);
    create(&pq, grid, a, mb, nb); /* what it holds must not matter */
    CHECK_OK(bw_prange(grid, &pa, &pq, &rank));
    CHECK(rank == expected_rank);
    whole(grid, &pq, &basis);
    /* Householder QR in double: orthonormal to a small multiple of the size; what is outside is what the rank cut off. */
    CHECK(distance_from_orthonormal(&basis, rank) <= 10 * (double)(a->m + 1) * DBL_EPSILON);
    CHECK(outside(a, &basis) <= (double)a->n * sqrt((double)a->n) * (double)FLT_EPSILON * largest_column(a));
    bw_matrix_free(&pa);
    bw_matrix_free(&pq);
}

static void a_full_rank_factor_has_a_full_basis(const bw_grid *grid)
{
    static const int shapes[][4] = {{40, 7, 8, 3},  {7, 7, 2, 2}, {5, 9, 2, 4}, {100, 32, 32, 8}, {90, 40, 16, 16},
                                    {66, 1, 64, 1}, {1, 1, 4, 4}, {1, 6, 3, 2}, {98, 64, 5, 32}};
    static dense a;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        fill_random(&a, shapes[s][0], shapes[s][1], (uint32_t)s);
        check_range(grid, &a, shapes[s][2], shapes[s][3], shapes[s][0] < shapes[s][1] ? shapes[s][0] : shapes[s][1]);
    }
}

/* A product of m x rank and rank x n, rounded to the fp32 that factors are stored in: the rounding must not count as range. */
static void a_rank_deficient_factor_has_no_more_directions_than_its_rank(const bw_grid *grid)
{
    static dense left, right, a;
    for (int rank = 1; rank <= 6; rank++) {
        fill_random(&left, 50, rank, 20);
        fill_random(&right, rank, 38, 21);
        a.m = 50;
        a.n = 38;
        for (int64_t i = 0; i < 50; i++)
            for (int64_t j = 0; j < 38; j++) {
                double sum = 0;
                for (int64_t k = 0; k < rank; k++)
                    sum += left.at[i * rank + k] * right.at[k * 38 + j];
                a.at[i * 38 + j] = (double)(float)sum;
            }
        check_range(grid, &a, 7, 5, rank);
    }
}

static void zero_and_repeated_columns_add_nothing(const bw_grid *grid)
{
    static dense a;
    fill_random(&a, 30, 8, 30);
    for (int64_t i = 0; i < 30; i++) {
        a.at[i * 8] = a.at[i * 8 + 4] = 0;
        a.at[i * 8 + 7] = a.at[i * 8 + 2];
        a.at[i * 8 + 1] = 1e-3 * a.at[i * 8 + 6];
        a.at[i * 8 + 5] *= 1e4; /* scales differ, and still the small columns count */
    }
    check_range(grid, &a, 4, 2, 4);
}

static void a_zero_or_empty_factor_has_no_range(const bw_grid *grid)
{
    static dense a;
    memset(&a, 0, sizeof a);
    a.m = 20;
    a.n = 6;
    check_range(grid, &a, 4, 2, 0);
    a.n = 0;
    check_range(grid, &a, 4, 2, 0);
    a.m = 0;
    a.n = 3;
    check_range(grid, &a, 4, 2, 0);
}

static void nan_in_a_factor_is_bad_data_on_every_rank(const bw_grid *grid)
{
    static dense a;
    bw_matrix pa, pq;
    int rank = 0;
    fill_random(&a, 12, 5, 40);
    a.at[17] = NAN;
    create(&pa, grid, &a, 2, 2);
    create(&pq, grid, &a, 2, 2);
    bw_error_clear();
    CHECK(bw_prange(grid, &pa, &pq, &rank) == BW_DATA);
    bw_error_clear();
    bw_matrix_free(&pa);
    bw_matrix_free(&pq);
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
    a_full_rank_factor_has_a_full_basis(grid);
    a_rank_deficient_factor_has_no_more_directions_than_its_rank(grid);
    zero_and_repeated_columns_add_nothing(grid);
    a_zero_or_empty_factor_has_no_range(grid);
    nan_in_a_factor_is_bad_data_on_every_rank(grid);
}

int main(int argc, char **argv)
{
    CHECK_OK(bw_par_start(&argc, &argv));
    check_every_shape(1, all);
    eigenpairs_satisfy_their_equation();
    libraries_name_themselves();
    return check_finish("test_scalapack");
}
