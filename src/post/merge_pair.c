/* The merge of one pair of factors (arXiv 2605.24550). W_R is never formed: W_R - alpha Q Q^T W_R = s_R (B_R - alpha Q (Q^T B_R)) A_R.
 *
 * Nor is Q kept. The tall factors are seen through Gram matrices in float64 (tall.c), and all else is algebra of matrices of their rank, done on
 * every rank with the same bits: Q = B_U T, so that Q (Q^T B_R) = B_U M with M = T (Q^T B_R). */
#include "post/inside.h"
#include <float.h>
#include <math.h>
#include <string.h>

enum { USER, REINFORCE, PROJECTED, PARTS };
/* A basis counts as orthonormal when Q^T Q is this near to I: far below the rounding of factors to fp32. Reached after one correction (CholeskyQR2).
 */
static const double ORTHONORMAL = 1e-10;
enum { MOST_CORRECTIONS = 3 };
static const char purpose[] = "merge";

typedef struct small {
    int r_user, r_reinforce, n; /* n = r_U + r_R */
    double *gram_a, *gram_b;    /* n x n: of [A_U; A_R] and of [B_U B_R] */
    double *directions;         /* r_U x r_U: eigenvectors of A_U A_U^T by rising eigenvalue */
    double *basis;              /* T, r_U x range: Q = B_U T */
    double *gram_q;             /* Q^T [Q B_R], range x (range + r_R) */
    double *root, *next;        /* scratch, n x n */
} small;

static int small_create(small *s, int r_user, int r_reinforce)
{
    int n = r_user + r_reinforce;
    *s = (small){.r_user = r_user, .r_reinforce = r_reinforce, .n = n};
    double **all[] = {&s->gram_a, &s->gram_b, &s->directions, &s->basis, &s->gram_q, &s->root, &s->next};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i)
        BW_TRY(BW_NEW(*all[i], (int64_t)n * n, purpose));
    return BW_OK;
}

static void small_free(small *s)
{
    double *all[] = {s->gram_a, s->gram_b, s->directions, s->basis, s->gram_q, s->root, s->next};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i)
        bw_free(all[i]);
}

static void copy_block(double *to, int ldto, const double *from, int ldfrom, int rows, int columns)
{
    for (int j = 0; j < columns; ++j)
        memcpy(to + (int64_t)j * ldto, from + (int64_t)j * ldfrom, (size_t)rows * sizeof *to);
}

/* The block of a Gram matrix that belongs to parts x and y. */
static const double *block(const small *s, const double *gram, int x, int y)
{
    return gram + (x == USER ? 0 : s->r_user) + (int64_t)(y == USER ? 0 : s->r_user) * s->n;
}

/* ---- the projection ------------------------------------------------------------------------------------------------ */
/* Eigenvalues of G = A_U A_U^T above tau * the largest: how many, and their vectors (the last columns of s->directions). */
static int keep_directions(const bw_grid *grid, small *s, double tau, bw_merge_row *row)
{
    int r = s->r_user, status;
    double *values = NULL;
    BW_GO(bw_agree(grid, BW_NEW(values, r, purpose)));
    copy_block(s->directions, r, s->gram_a, s->n, r, r);
    BW_GO(bw_agree(grid, bw_symmetric_eigen(r, s->directions, values)));
    row->lambda_min = values[0];
    row->lambda_max = values[r - 1];
    for (int i = 0; i < r; ++i)
        row->kept += values[i] > tau * row->lambda_max;
done:
    bw_free(values);
    return status;
}

/* T = T K with K^T G K = I, G the Gram matrix (ld) of the `columns` of Q = B_U T: what of Q is above `cut`, made orthonormal. */
static int orthonormalise(const bw_grid *grid, small *s, const double *gram, int ld, double cut, int *columns)
{
    int rank = 0, r = s->r_user;
    copy_block(s->next, *columns, gram, ld, *columns, *columns);
    BW_TRY(bw_agree(grid, bw_small_inverse_root(*columns, s->next, cut, s->root, &rank)));
    bw_small_multiply(false, r, rank, *columns, s->basis, r, s->root, *columns, s->next, r);
    copy_block(s->basis, r, s->next, r, r, rank);
    *columns = rank;
    return BW_OK;
}

/* Largest entry of |Q^T Q - I|, of the Q that was multiplied out. */
static double orthogonality(const double *gram, int n)
{
    double worst = 0;
    for (int j = 0; j < n; ++j)
        for (int i = 0; i < n; ++i)
            worst = fmax(worst, fabs(gram[i + (int64_t)j * n] - (i == j)));
    return worst;
}

/* T = V_kept, and G = the Gram matrix of B_eff = B_U V_kept, cut there as a pivoted QR of B_eff would be: a pivot below kept * eps * the largest is
 * numerically zero and its direction is not in the range; eps is that of fp32, because factors are stored in it and what lies below is their
 * rounding. */
static int first_basis(const bw_grid *grid, const bw_matrix *user, const bw_matrix *reinforce, small *s, int kept, int *columns)
{
    int r = s->r_user;
    double cut = kept * (double)FLT_EPSILON;
    *columns = kept;
    if (kept == r) { /* B_U spans the same, and its Gram matrix is there */
        for (int i = 0; i < r; ++i)
            s->basis[i + (int64_t)i * r] = 1;
        return orthonormalise(grid, s, s->gram_b, s->n, cut, columns);
    }
    copy_block(s->basis, r, s->directions + (int64_t)(r - kept) * r, r, r, kept);
    BW_TRY(bw_tall_turned(grid, user, reinforce, s->basis, kept, s->gram_q));
    return orthonormalise(grid, s, s->gram_q, kept, cut, columns);
}

/* s->basis = T with Q = B_U T an orthonormal basis of range(B_eff), and s->gram_q. Cholesky loses as much orthogonality as the square of B_eff's
 * condition; what is left is measured on Q itself, and taken away by the same step once more where it is too much. */
static int find_basis(const bw_grid *grid, const bw_matrix *user, const bw_matrix *reinforce, small *s, bw_merge_row *row)
{
    int columns;
    BW_TRY(first_basis(grid, user, reinforce, s, row->kept, &columns));
    row->range = columns;
    for (int corrections = 0; columns > 0; ++corrections) {
        BW_TRY(bw_tall_turned(grid, user, reinforce, s->basis, columns, s->gram_q));
        row->orthogonality = orthogonality(s->gram_q, columns);
        if (row->orthogonality <= ORTHONORMAL || corrections == MOST_CORRECTIONS)
            break;
        BW_TRY(orthonormalise(grid, s, s->gram_q, columns, 0, &columns));
    }
    return BW_OK;
}

/* Q^T B_R, range x r_R. */
static const double *along_basis(const small *s, const bw_merge_row *row)
{
    return s->gram_q + (int64_t)row->range * row->range;
}

/* work->projection = T (Q^T B_R); nothing where the range is empty, as that of an untrained target is. */
static int project(const bw_grid *grid, const bw_matrix *user, const bw_matrix *reinforce, small *s, bw_merge_work *work)
{
    int range;
    BW_TRY(find_basis(grid, user, reinforce, s, &work->row));
    if ((range = work->row.range) == 0)
        return BW_OK;
    BW_TRY(bw_agree(grid, BW_NEW(work->projection, (int64_t)s->r_user * s->r_reinforce, purpose)));
    bw_small_multiply(false, s->r_user, s->r_reinforce, range, s->basis, s->r_user, along_basis(s, &work->row), range, work->projection, s->r_user);
    return BW_OK;
}

/* ---- norms: <B_x A_x, B_y A_y> = sum of the entries of (B_x^T B_y) * (A_x A_y^T) ----------------------------------- */
/* Q Q^T is a projection, so B_R^T P = P^T P = (Q^T B_R)^T (Q^T B_R) for P = Q Q^T B_R; and B_U^T P = (B_U^T B_U) M. */
static void projected_products(small *s, bw_merge_work *work)
{
    int r = s->r_user, r_r = s->r_reinforce, n = s->n;
    double(*inner)[PARTS] = work->inner;
    const double *along = along_basis(s, &work->row);
    bw_small_multiply(true, r_r, r_r, work->row.range, along, work->row.range, along, work->row.range, s->next, r_r);
    double own = bw_small_dot(r_r, r_r, block(s, s->gram_a, REINFORCE, REINFORCE), n, s->next, r_r);
    inner[PROJECTED][PROJECTED] = inner[REINFORCE][PROJECTED] = inner[PROJECTED][REINFORCE] = own;
    bw_small_multiply(false, r, r_r, r, s->gram_b, n, work->projection, r, s->next, r);
    inner[USER][PROJECTED] = inner[PROJECTED][USER] = bw_small_dot(r, r_r, block(s, s->gram_a, USER, REINFORCE), n, s->next, r);
}

static void inner_products(small *s, bw_merge_work *work)
{
    int r[2] = {s->r_user, s->r_reinforce};
    for (int x = USER; x <= REINFORCE; ++x)
        for (int y = x; y <= REINFORCE; ++y)
            work->inner[x][y] = work->inner[y][x] = bw_small_dot(r[x], r[y], block(s, s->gram_a, x, y), s->n, block(s, s->gram_b, x, y), s->n);
    if (work->projection)
        projected_products(s, work);
}

/* ||c0 X0 + c1 X1 + c2 X2||; rounding may leave a zero slightly negative. */
static double combined_norm(const double inner[PARTS][PARTS], const double c[PARTS])
{
    double sum = 0;
    for (int x = 0; x < PARTS; ++x)
        for (int y = 0; y < PARTS; ++y)
            sum += c[x] * c[y] * inner[x][y];
    return sqrt(fmax(sum, 0));
}

static void fill_row(const bw_pair *user, const bw_pair *reinforce, bw_merge_work *work)
{
    double norm[PARTS];
    for (int x = 0; x < PARTS; ++x)
        norm[x] = sqrt(fmax(work->inner[x][x], 0));
    bw_merge_row *row = &work->row;
    row->r_user = user ? user->r : 0;
    row->r_reinforce = reinforce ? reinforce->r : 0;
    row->norm_user = user ? fabs(user->scaling) * norm[USER] : 0;
    row->norm_reinforce = reinforce ? fabs(reinforce->scaling) * norm[REINFORCE] : 0;
    row->removed = norm[REINFORCE] > 0 ? norm[PROJECTED] / norm[REINFORCE] : 0;
    double both = norm[USER] * norm[REINFORCE];
    row->cosine = both > 0 ? copysign(1, user->scaling * reinforce->scaling) * work->inner[USER][REINFORCE] / both : 0;
}

int bw_merge_prepare(const bw_grid *grid, const bw_pair *user, const bw_pair *reinforce, bw_merge_method method, double tau, bw_merge_work *work)
{
    small s = {0};
    int status;
    memset(work, 0, sizeof *work);
    reinforce = method == BW_MERGE_USER ? NULL : reinforce;
    BW_ASSERT(user || reinforce);
    BW_GO(bw_agree(grid, small_create(&s, user ? user->r : 0, reinforce ? reinforce->r : 0)));
    BW_GO(bw_tall_gram(grid, true, user ? &user->A : NULL, reinforce ? &reinforce->A : NULL, s.gram_a, s.n));
    BW_GO(bw_tall_gram(grid, false, user ? &user->B : NULL, reinforce ? &reinforce->B : NULL, s.gram_b, s.n));
    if (user)
        BW_GO(keep_directions(grid, &s, tau, &work->row));
    if (user && reinforce && method == BW_MERGE_QR && work->row.kept > 0)
        BW_GO(project(grid, &user->B, &reinforce->B, &s, work));
    inner_products(&s, work);
    fill_row(user, reinforce, work);
done:
    small_free(&s);
    if (status != BW_OK)
        bw_merge_work_free(work);
    return status;
}

void bw_merge_work_free(bw_merge_work *work)
{
    bw_free(work->projection);
    work->projection = NULL;
}

/* ---- the wider factors ---------------------------------------------------------------------------------------------- */
/* A = [A_U; A_R; 0]: moved, no bit is changed. */
static int combine_a(const bw_grid *grid, const bw_pair *user, const bw_pair *reinforce, bw_matrix *out)
{
    int r_user = user ? user->r : 0, used = r_user + (reinforce ? reinforce->r : 0);
    if (user)
        BW_TRY(bw_redistribute(grid, &user->A, out, 0, 0));
    if (reinforce)
        BW_TRY(bw_redistribute(grid, &reinforce->A, out, r_user, 0));
    for (int64_t i = 0; used < out->layout.m && i < out->rows; ++i)
        if (bw_bcyc_global(i, out->layout.mb, out->myrow, out->layout.nprow) >= used)
            for (int64_t j = 0; j < out->cols; ++j)
                ((float *)out->data)[i + j * out->ld] = 0;
    return BW_OK;
}

/* out = factor_R B_R - alpha factor_R B_U M, in B_R's layout. */
static int reinforce_less_projection(const bw_grid *grid, const bw_pair *user, const bw_pair *reinforce, const double *projection, double alpha,
                                     double factor, bw_matrix *out)
{
    const bw_bcyc *l = &reinforce->B.layout;
    int64_t count = (int64_t)user->r * reinforce->r;
    double *m = NULL;
    int status = BW_NEW(m, count, purpose);
    if (status == BW_OK)
        status = bw_matrix_create(out, grid, BW_PIECE_F32, l->m, l->n, l->mb, l->nb, purpose);
    BW_GO(bw_agree(grid, status));
    for (int64_t i = 0; i < count; ++i)
        m[i] = -factor * alpha * projection[i];
    status = bw_tall_combine(grid, &user->B, &reinforce->B, m, factor, out);
done:
    bw_free(m);
    return status;
}

/* Columns of B: those below r_user times f_user, those below `used` times f_reinforce, the others 0. Rounded once. */
static void weigh(bw_matrix *b, int r_user, double f_user, int used, double f_reinforce)
{
    for (int64_t j = 0; j < b->cols; ++j) {
        int64_t column = bw_bcyc_global(j, b->layout.nb, b->mycol, b->layout.npcol);
        float *entries = (float *)b->data + j * b->ld;
        double factor = column < r_user ? f_user : f_reinforce;
        for (int64_t i = 0; i < b->rows; ++i)
            entries[i] = column < used ? (float)(factor * (double)entries[i]) : 0;
    }
}

/* B = [f_U B_U | f_R (B_R - alpha B_U M) | 0], f = scale * scaling. Moving changes no bit. */
static int combine_b(const bw_grid *grid, const bw_pair *user, const bw_pair *reinforce, const bw_merge_work *work, double alpha, double scale,
                     bw_matrix *out)
{
    bw_matrix changed = {0};
    int r_user = user ? user->r : 0, r_reinforce = reinforce ? reinforce->r : 0, status = BW_OK;
    double f_user = user ? scale * user->scaling : 0, f_reinforce = reinforce ? scale * reinforce->scaling : 0;
    if (user)
        BW_GO(bw_redistribute(grid, &user->B, out, 0, 0));
    if (work->projection) {
        BW_GO(reinforce_less_projection(grid, user, reinforce, work->projection, alpha, f_reinforce, &changed));
        BW_GO(bw_redistribute(grid, &changed, out, 0, r_user));
    } else if (reinforce) {
        BW_GO(bw_redistribute(grid, &reinforce->B, out, 0, r_user));
    }
    weigh(out, r_user, f_user, r_user + r_reinforce, work->projection ? 1 : f_reinforce);
done:
    bw_matrix_free(&changed);
    return status;
}

int bw_merge_combine(const bw_grid *grid, const bw_pair *user, const bw_pair *reinforce, const bw_merge_work *work, double alpha, double scale,
                     bw_pair *out, bw_merge_row *row)
{
    BW_ASSERT(out->present && out->r >= (user ? user->r : 0) + (reinforce ? reinforce->r : 0));
    BW_TRY(combine_a(grid, user, reinforce, &out->A));
    BW_TRY(combine_b(grid, user, reinforce, work, alpha, scale, &out->B));
    out->scaling = 1;
    double s_user = user ? user->scaling : 0, s_reinforce = reinforce ? reinforce->scaling : 0;
    *row = work->row;
    row->norm_delta = fabs(scale) * combined_norm(work->inner, (double[]){s_user, s_reinforce, -alpha * s_reinforce});
    return BW_OK;
}

int bw_merge_pair(const bw_grid *grid, const bw_pair *user, const bw_pair *reinforce, bw_merge_method method, double alpha, double tau, double scale,
                  bw_pair *out, bw_merge_row *row)
{
    bw_merge_work work;
    reinforce = method == BW_MERGE_USER ? NULL : reinforce;
    BW_TRY(bw_merge_prepare(grid, user, reinforce, method, tau, &work));
    int layer = row->layer;
    bw_target target = row->target;
    int status = bw_merge_combine(grid, user, reinforce, &work, alpha, scale, out, row);
    row->layer = layer;
    row->target = target;
    bw_merge_work_free(&work);
    return status;
}
