/* test_merge_pair.c - the merge of one pair on every grid, against the formulas in dense float64: products by plain loops, eigenvectors by Jacobi
 * rotations, the basis by LAPACK's QR with column pivoting. */
#include "../par/check.h"
#include "breakwater/post.h"
#include <float.h>
#include <math.h>
#include <string.h>

enum { MOST = 96, RANK_MOST = 12 };
typedef enum b_kind { B_RANDOM, B_ZERO, B_DEFICIENT, B_GRADED, B_SMALL_COLUMN, B_LOST_COLUMN, B_LARGE_LAST } b_kind;
typedef struct scenario {
    const char *name;
    int out, in, r_user, r_reinforce;
    b_kind b_user;
    bool decay; /* rows of A_U fall by a factor of 4, so that tau cuts between them */
    bw_merge_method method;
    double alpha, tau, scale;
    int kept, range; /* expected; -1: not checked */
    int block;
} scenario;

static const scenario scenarios[] = {
    {"some kept", 40, 28, 6, 6, B_RANDOM, true, BW_MERGE_QR, 0.1, 0.01, 0.5, -1, -1, 7},
    {"all kept", 40, 28, 5, 5, B_RANDOM, false, BW_MERGE_QR, 1, 0, 1, 5, 5, 64},
    {"none kept", 40, 28, 5, 5, B_RANDOM, false, BW_MERGE_QR, 1, 1, 0.5, 0, 0, 8},
    {"r_U < r_R", 33, 50, 3, 7, B_RANDOM, false, BW_MERGE_QR, 0.5, 0, 1, 3, 3, 5},
    {"r_U > r_R, some kept", 33, 50, 8, 2, B_RANDOM, true, BW_MERGE_QR, 1, 0.01, 1, -1, -1, 16},
    {"B_U zero", 24, 20, 4, 4, B_ZERO, false, BW_MERGE_QR, 1, 0.01, 0.5, -1, 0, 4},
    {"B_U rank-deficient, all kept", 24, 20, 6, 4, B_DEFICIENT, false, BW_MERGE_QR, 1, 0, 0.5, 6, 3, 4},
    {"B_U rank-deficient, some kept", 24, 20, 6, 4, B_DEFICIENT, true, BW_MERGE_QR, 0.3, 0.001, 0.5, -1, -1, 3},
    {"r_U above the number of rows", 4, 20, 6, 4, B_RANDOM, false, BW_MERGE_QR, 0.7, 0, 1, 6, 4, 2},
    {"alpha 0", 24, 20, 4, 4, B_RANDOM, false, BW_MERGE_QR, 0, 0.01, 1, -1, -1, 4},
    {"naive", 24, 20, 4, 4, B_RANDOM, false, BW_MERGE_NAIVE, 0.5, 0.01, 0.5, -1, 0, 4},
    {"user alone by method", 24, 20, 4, 3, B_RANDOM, false, BW_MERGE_USER, 0.5, 0.01, 0.5, -1, 0, 4},
    {"no ReinforceLoRA here", 24, 20, 4, 0, B_RANDOM, false, BW_MERGE_QR, 0.5, 0.01, 0.5, -1, 0, 4},
    {"no UserLoRA here", 24, 20, 0, 4, B_RANDOM, false, BW_MERGE_QR, 0.5, 0.01, 0.5, 0, 0, 4},
    {"B_U of condition 1e5", 90, 20, 6, 4, B_GRADED, false, BW_MERGE_QR, 1, 0, 1, 6, 6, 7},
    {"B_U of condition 1e5, some kept", 90, 20, 6, 4, B_GRADED, true, BW_MERGE_QR, 1, 0.001, 1, -1, -1, 7},
    {"a column of B_U 1e-6 of the others", 90, 20, 5, 4, B_SMALL_COLUMN, false, BW_MERGE_QR, 1, 0, 1, 5, 5, 16},
    {"a column of B_U 1e-8 of the others", 90, 20, 5, 4, B_LOST_COLUMN, false, BW_MERGE_QR, 1, 0, 1, 5, 4, 16},
    {"a dropped direction with a large column", 90, 20, 6, 4, B_LARGE_LAST, true, BW_MERGE_QR, 1, 0.001, 1, -1, -1, 16},
    {"rank 1", 17, 5, 1, 1, B_RANDOM, false, BW_MERGE_QR, 0.5, 0.5, 0.5, 1, 1, 32},
};
static const double scaling[2] = {2, 0.5};

/* ---- factors: row-major float, as files hold them ------------------------------------------------------------------- */
typedef struct factor {
    int m, n;
    float at[MOST * RANK_MOST * 2];
} factor;

static float random_entry(uint32_t salt, int i, int j)
{
    bw_key key = {7, BW_PURPOSE_TEST, salt, 0, 0};
    uint32_t out[4];
    bw_rng(&key, (uint32_t)(i * MOST + j), out);
    return 2 * bw_rng_uniform(out[0]) - 1;
}

static void fill(factor *f, int m, int n, uint32_t salt)
{
    f->m = m;
    f->n = n;
    for (int i = 0; i < m; ++i)
        for (int j = 0; j < n; ++j)
            f->at[i * n + j] = random_entry(salt, i, j);
}

/* A row of B_U. */
static void shape_row(b_kind kind, int r, float *b)
{
    float graded[RANK_MOST] = {0};
    for (int j = 0; j < r && kind == B_GRADED; ++j) /* a mix of columns whose lengths fall from 1 to 1e-5 */
        for (int k = 0; k < r; ++k)
            graded[j] += b[k] * (float)pow(10, -5.0 * k / (r - 1)) * random_entry(77, k, j);
    for (int j = 0; j < r; ++j) {
        if (kind == B_ZERO)
            b[j] = 0;
        if (kind == B_DEFICIENT && j >= 3) /* columns 3, 4, 5 repeat 0, 1, 2 up to a power of two: rank 3 exactly */
            b[j] = -0.5F * b[j - 3];
        if (kind == B_GRADED)
            b[j] = graded[j];
    }
    if (kind == B_SMALL_COLUMN || kind == B_LOST_COLUMN)
        b[1] *= kind == B_SMALL_COLUMN ? 1e-6F : 1e-8F;
    if (kind == B_LARGE_LAST)
        b[r - 1] *= 1e4F;
}

/* A is r x in; decay scales its rows by powers of 1/4. */
static void make_factors(const scenario *s, factor A[2], factor B[2])
{
    int r[2] = {s->r_user, s->r_reinforce};
    for (int x = 0; x < 2; ++x) {
        fill(&A[x], r[x], s->in, (uint32_t)(10 + x));
        fill(&B[x], s->out, r[x], (uint32_t)(20 + x));
    }
    for (int i = 0; i < s->r_user * s->in && s->decay; ++i)
        A[0].at[i] *= (float)pow(0.25, i / s->in);
    for (int i = 0; i < s->out; ++i)
        shape_row(s->b_user, s->r_user, &B[0].at[i * s->r_user]);
}

static int share(int r, int parts)
{
    return r > parts ? (r + parts - 1) / parts : 1;
}

static void make_pair(const bw_grid *grid, int block, const factor *A, const factor *B, double factor_scaling, bw_pair *pair)
{
    int r = A->m;
    *pair = (bw_pair){.present = true, .r = r, .scaling = factor_scaling};
    CHECK_OK(bw_matrix_create(&pair->A, grid, BW_PIECE_F32, r, A->n, share(r, grid->nprow), block, "test"));
    CHECK_OK(bw_matrix_create(&pair->B, grid, BW_PIECE_F32, B->m, r, block, share(r, grid->npcol), "test"));
    bw_matrix_from_dense(&pair->A, A->at, A->n);
    bw_matrix_from_dense(&pair->B, B->at, r);
}

static void free_pair(bw_pair *pair)
{
    bw_matrix_free(&pair->A);
    bw_matrix_free(&pair->B);
}

/* Every rank gets the whole matrix of its own replica; replicas must hold the same. */
static void whole(const bw_grid *grid, const bw_matrix *matrix, double *out)
{
    static float dense[MOST * MOST];
    static int64_t bits[MOST * MOST];
    int64_t count = matrix->layout.m * matrix->layout.n;
    for (int replica = 0; replica < grid->replicas; ++replica) {
        memset(bits, 0, sizeof bits);
        memset(dense, 0, sizeof dense);
        bw_matrix_to_dense(matrix, dense, matrix->layout.n);
        for (int64_t i = 0; i < count && grid->replica == replica; ++i)
            memcpy(&bits[i], &dense[i], sizeof(float));
        CHECK_OK(bw_sum_ints(grid, bits, (int)count));
        for (int64_t i = 0; i < count; ++i) {
            float value;
            memcpy(&value, &bits[i], sizeof value);
            CHECK(replica == 0 || (double)value == out[i]);
            out[i] = (double)value;
        }
    }
}

/* ---- the formulas in float64 ------------------------------------------------------------------------------------------ */
/* Cyclic Jacobi: g becomes diagonal, v holds the eigenvectors in columns. */
static void jacobi(int n, double g[RANK_MOST][RANK_MOST], double v[RANK_MOST][RANK_MOST])
{
    for (int i = 0; i < n; ++i)
        for (int j = 0; j < n; ++j)
            v[i][j] = i == j;
    for (int sweep = 0; sweep < 60; ++sweep)
        for (int p = 0; p < n; ++p)
            for (int q = p + 1; q < n; ++q) {
                double angle = 0.5 * atan2(2 * g[p][q], g[q][q] - g[p][p]), c = cos(angle), t = sin(angle);
                for (int k = 0; k < n; ++k) {
                    double a = g[k][p], b = g[k][q];
                    g[k][p] = c * a - t * b;
                    g[k][q] = t * a + c * b;
                }
                for (int k = 0; k < n; ++k) {
                    double a = g[p][k], b = g[q][k], x = v[k][p], y = v[k][q];
                    g[p][k] = c * a - t * b;
                    g[q][k] = t * a + c * b;
                    v[k][p] = c * x - t * y;
                    v[k][q] = t * x + c * y;
                }
            }
}

void dgeqp3_(const int *m, const int *n, double *a, const int *lda, int *pivots, double *tau, double *work, const int *lwork, int *info);
void dorgqr_(const int *m, const int *n, const int *k, double *a, const int *lda, const double *tau, double *work, const int *lwork, int *info);

/* Orthonormal columns of the range of b (m x n, column j at b[j]) in place; returns how many: the pivots above n * eps of fp32 * the largest. */
static int orthonormal(int m, int n, double b[RANK_MOST][MOST])
{
    enum { LDA = MOST, LWORK = 64 * (RANK_MOST + 1) };
    double tau[RANK_MOST], work[LWORK], diagonal[RANK_MOST];
    int pivots[RANK_MOST] = {0}, info = 0, rank = 0, lda = LDA, lwork = LWORK, k = m < n ? m : n;
    if (n == 0)
        return 0;
    dgeqp3_(&m, &n, &b[0][0], &lda, pivots, tau, work, &lwork, &info);
    CHECK(info == 0);
    for (int i = 0; i < k; ++i)
        diagonal[i] = fabs(b[i][i]);
    while (rank < k && diagonal[rank] > n * (double)FLT_EPSILON * diagonal[0])
        rank++;
    dorgqr_(&m, &rank, &rank, &b[0][0], &lda, tau, work, &lwork, &info);
    CHECK(info == 0);
    return rank;
}

typedef struct expected {
    int kept, range;
    double delta[MOST * MOST], user[MOST * MOST], reinforce[MOST * MOST], projected[MOST * MOST];
} expected;

static void multiply(const factor *B, const factor *A, double s, double *out)
{
    memset(out, 0, sizeof(double) * MOST * MOST);
    for (int i = 0; i < B->m; ++i)
        for (int k = 0; k < B->n; ++k)
            for (int j = 0; j < A->n; ++j)
                out[i * A->n + j] += s * (double)B->at[i * B->n + k] * (double)A->at[k * A->n + j];
}

static void effective_basis(const scenario *s, const factor *A, const factor *B, expected *e, double q[RANK_MOST][MOST])
{
    static double g[RANK_MOST][RANK_MOST], v[RANK_MOST][RANK_MOST];
    int r = s->r_user, columns = 0;
    double largest = 0;
    for (int i = 0; i < r; ++i)
        for (int j = 0; j < r; ++j) {
            g[i][j] = 0;
            for (int k = 0; k < s->in; ++k)
                g[i][j] += (double)A->at[i * s->in + k] * (double)A->at[j * s->in + k];
        }
    jacobi(r, g, v);
    for (int i = 0; i < r; ++i)
        largest = fmax(largest, g[i][i]);
    for (int j = 0; j < r; ++j)
        e->kept += g[j][j] > s->tau * largest;
    for (int j = 0; j < r && e->kept > 0; ++j) {
        if (g[j][j] <= s->tau * largest)
            continue;
        for (int i = 0; i < s->out; ++i) {
            q[columns][i] = e->kept == r ? (double)B->at[i * r + j] : 0;
            for (int k = 0; k < r && e->kept < r; ++k)
                q[columns][i] += (double)B->at[i * r + k] * v[k][j];
        }
        columns++;
    }
    e->range = s->method == BW_MERGE_QR && s->r_reinforce ? orthonormal(s->out, columns, q) : 0;
}

static void expect(const scenario *s, const factor A[2], const factor B[2], expected *e)
{
    static double q[RANK_MOST][MOST];
    memset(e, 0, sizeof *e);
    bool reinforce = s->r_reinforce && s->method != BW_MERGE_USER;
    multiply(&B[0], &A[0], scaling[0], e->user);
    if (reinforce)
        multiply(&B[1], &A[1], scaling[1], e->reinforce);
    effective_basis(s, &A[0], &B[0], e, q);
    for (int c = 0; c < e->range; ++c)
        for (int j = 0; j < s->in; ++j) {
            double dot = 0;
            for (int i = 0; i < s->out; ++i)
                dot += q[c][i] * e->reinforce[i * s->in + j];
            for (int i = 0; i < s->out; ++i)
                e->projected[i * s->in + j] += q[c][i] * dot;
        }
    for (int i = 0; i < s->out * s->in; ++i)
        e->delta[i] = s->scale * (e->user[i] + e->reinforce[i] - s->alpha * e->projected[i]);
}

static double dot(const double *a, const double *b, int n)
{
    double sum = 0;
    for (int i = 0; i < n; ++i)
        sum += a[i] * b[i];
    return sum;
}

/* ---- comparison --------------------------------------------------------------------------------------------------------- */
/* Factors are rounded to float32 once, at 6e-8 each. The basis spans what B_U's columns span whatever its rounding, to eps * their condition: 1e-10.
 */
static const double promised = 1e-6;

static bool near(double got, double want, double size)
{
    return fabs(got - want) <= promised * size + 1e-300;
}

static void check_row(const scenario *s, const expected *e, const bw_merge_row *row)
{
    int n = s->out * s->in;
    double u = sqrt(dot(e->user, e->user, n)), r = sqrt(dot(e->reinforce, e->reinforce, n)), p = sqrt(dot(e->projected, e->projected, n));
    double d = sqrt(dot(e->delta, e->delta, n));
    CHECK(s->kept < 0 || row->kept == s->kept);
    CHECK(s->range < 0 || row->range == s->range);
    CHECK(row->kept == e->kept);
    CHECK(row->range == e->range);
    CHECK(row->r_user == s->r_user && row->r_reinforce == (s->method == BW_MERGE_USER ? 0 : s->r_reinforce));
    CHECK(near(row->norm_user, u, u));
    CHECK(near(row->norm_reinforce, r, r));
    CHECK(near(row->norm_delta, d, d));
    CHECK(near(row->removed, r > 0 ? p / r : 0, 1));
    CHECK(near(row->cosine, u * r > 0 ? dot(e->user, e->reinforce, n) / (u * r) : 0, 1));
    CHECK(row->orthogonality <= 1e-10); /* of the Q that was used */
}

/* out's factors give the delta, and what is beyond r_U + r_R is zero. */
static void check_factors(const bw_grid *grid, const scenario *s, const expected *e, const bw_pair *out, int used)
{
    static double A[MOST * MOST], B[MOST * MOST], delta[MOST * MOST];
    int r = out->r;
    whole(grid, &out->A, A);
    whole(grid, &out->B, B);
    memset(delta, 0, sizeof delta);
    for (int i = 0; i < s->out; ++i)
        for (int k = 0; k < r; ++k) {
            CHECK(k < used || B[i * r + k] == 0);
            for (int j = 0; j < s->in; ++j)
                delta[i * s->in + j] += B[i * r + k] * A[k * s->in + j];
        }
    for (int k = used; k < r; ++k)
        for (int j = 0; j < s->in; ++j)
            CHECK(A[k * s->in + j] == 0);
    double error = 0;
    for (int i = 0; i < s->out * s->in; ++i)
        error += (delta[i] - e->delta[i]) * (delta[i] - e->delta[i]);
    CHECK(sqrt(error) <= promised * sqrt(dot(e->delta, e->delta, s->out * s->in)));
    CHECK(out->scaling == 1);
}

static void one_scenario(const bw_grid *grid, const scenario *s)
{
    static factor A[2], B[2], zero_A, zero_B;
    static expected e;
    bw_pair pairs[2], out;
    bw_merge_row row = {.layer = 3, .target = BW_UP};
    make_factors(s, A, B);
    for (int x = 0; x < 2; ++x)
        make_pair(grid, s->block, &A[x], &B[x], scaling[x], &pairs[x]);
    zero_A = (factor){.m = s->r_user + s->r_reinforce + 1, .n = s->in};
    zero_B = (factor){.m = s->out, .n = zero_A.m};
    make_pair(grid, s->block, &zero_A, &zero_B, 0, &out);
    int64_t before = check_failures;
    CHECK_OK(bw_merge_pair(grid, s->r_user ? &pairs[0] : NULL, s->r_reinforce ? &pairs[1] : NULL, s->method, s->alpha, s->tau, s->scale, &out, &row));
    expect(s, A, B, &e);
    check_row(s, &e, &row);
    CHECK(row.layer == 3 && row.target == BW_UP);
    check_factors(grid, s, &e, &out, s->r_user + (s->method == BW_MERGE_USER ? 0 : s->r_reinforce));
    if (check_failures > before)
        fprintf(stderr, "  in '%s', grid %d x %d, %d replicas\n", s->name, grid->nprow, grid->npcol, grid->replicas);
    free_pair(&pairs[0]);
    free_pair(&pairs[1]);
    free_pair(&out);
}

static void every_scenario(const bw_grid *grid)
{
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; ++i)
        one_scenario(grid, &scenarios[i]);
}

/* Every shape and number of replicas; how ranks lie on nodes makes no difference here. */
static void every_shape(void)
{
    for (int replicas = 1; replicas <= bw_par_size(); ++replicas)
        for (int nprow = 1; nprow <= bw_par_size(); ++nprow) {
            bw_grid *grid = NULL;
            char shape[32];
            if (bw_par_size() % (replicas * nprow) != 0)
                continue;
            snprintf(shape, sizeof shape, "%dx%d", nprow, bw_par_size() / replicas / nprow);
            CHECK_OK(bw_grid_create(&grid, shape, replicas, 0));
            if (grid)
                every_scenario(grid);
            bw_grid_destroy(&grid);
        }
}

int main(int argc, char **argv)
{
    CHECK_OK(bw_par_start(&argc, &argv));
    every_shape();
    return check_finish("test_merge_pair");
}
