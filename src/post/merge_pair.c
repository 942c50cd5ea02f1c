/* The merge of one pair of factors (arXiv 2605.24550). W_R is never formed: W_R - alpha Q Q^T W_R = s_R (B_R - alpha Q (Q^T B_R)) A_R.
 * Products, QR and eigenvectors are float64 through par/scalapack; placing a factor's columns into the wider one is a product with a 0/1
 * matrix, which is exact, so that ScaLAPACK does all of the moving. */
#include "post/inside.h"
#include <math.h>
#include <string.h>

enum { USER, REINFORCE, PROJECTED, PARTS };
static const char purpose[] = "merge";

static int share(int64_t n, int parts)
{
    return n > parts ? (int)((n + parts - 1) / parts) : 1;
}

/* A small matrix of which every rank owns about the same part. */
static int small_create(bw_matrix *out, const bw_grid *grid, int64_t m, int64_t n)
{
    return bw_matrix_create(out, grid, BW_PIECE_F64, m, n, share(m, grid->nprow), share(n, grid->npcol), purpose);
}

static int like(bw_matrix *out, const bw_grid *grid, const bw_matrix *shape, int64_t n, bw_piece_type type)
{
    return bw_matrix_create(out, grid, type, shape->layout.m, n, shape->layout.mb, shape->layout.nb, purpose);
}

static double *entry(const bw_matrix *matrix, int64_t i, int64_t j)
{
    return (double *)matrix->data + i + j * matrix->ld;
}

/* out = factor * in, the same layout, in float64. */
static int widen(bw_matrix *out, const bw_grid *grid, const bw_matrix *in, double factor)
{
    BW_ASSERT(in->type == BW_PIECE_F32);
    BW_TRY(like(out, grid, in, in->layout.n, BW_PIECE_F64));
    const float *from = in->data;
    for (int64_t j = 0; j < in->cols; ++j)
        for (int64_t i = 0; i < in->rows; ++i)
            *entry(out, i, j) = factor * (double)from[i + j * in->ld];
    return BW_OK;
}

static void narrow(bw_matrix *out, const bw_matrix *in)
{
    float *to = out->data;
    for (int64_t j = 0; j < out->cols; ++j)
        for (int64_t i = 0; i < out->rows; ++i)
            to[i + j * out->ld] = (float)*entry(in, i, j);
}

/* Every rank gets the whole of a small matrix, column-major. Each entry's bits come from its one owner in replica 0, and a sum with zeros
 * keeps them, so all ranks of all replicas go on with the same bits. */
static int spread(const bw_grid *grid, const bw_matrix *matrix, double *dense)
{
    const bw_bcyc *layout = &matrix->layout;
    int status = BW_OK;
    int64_t *bits = NULL, count = layout->m * layout->n;
    BW_GO(bw_agree(grid, BW_NEW(bits, count, purpose)));
    for (int64_t j = 0; grid->replica == 0 && j < matrix->cols; ++j)
        for (int64_t i = 0; i < matrix->rows; ++i) {
            int64_t row = bw_bcyc_global(i, layout->mb, matrix->myrow, layout->nprow);
            int64_t col = bw_bcyc_global(j, layout->nb, matrix->mycol, layout->npcol);
            memcpy(&bits[row + col * layout->m], entry(matrix, i, j), sizeof(double));
        }
    BW_GO(bw_sum_ints(grid, bits, (int)count));
    memcpy(dense, bits, (size_t)count * sizeof *dense);
done:
    bw_free(bits);
    return status;
}

/* dense = X Y^T, or X^T Y; on every rank. */
static int gram(const bw_grid *grid, bool columns, const bw_matrix *x, const bw_matrix *y, double *dense)
{
    bw_matrix product = {0};
    int status;
    int64_t m = columns ? x->layout.n : x->layout.m, n = columns ? y->layout.n : y->layout.m;
    BW_GO(bw_agree(grid, small_create(&product, grid, m, n)));
    BW_GO(bw_pgemm(grid, columns, !columns, 1, x, y, 0, &product));
    BW_GO(spread(grid, &product, dense));
done:
    bw_matrix_free(&product);
    return status;
}

/* ---- the projection ------------------------------------------------------------------------------------------------ */
typedef struct factors {
    bw_matrix A[PARTS], B[PARTS]; /* float64; data NULL where absent. PROJECTED borrows A of REINFORCE and B of the work */
    int r[PARTS];
} factors;

/* Eigenvalues of G = A_U A_U^T above tau * the largest: how many, and their vectors (the last columns of v). */
static int keep_directions(const bw_grid *grid, const factors *f, double tau, bw_merge_row *row, double *v)
{
    int r = f->r[USER], status;
    double *values = NULL;
    BW_GO(bw_agree(grid, BW_NEW(values, r, purpose)));
    BW_GO(gram(grid, false, &f->A[USER], &f->A[USER], v));
    BW_GO(bw_agree(grid, bw_symmetric_eigen(r, v, values)));
    row->lambda_min = values[0];
    row->lambda_max = values[r - 1];
    for (int i = 0; i < r; ++i)
        row->kept += values[i] > tau * row->lambda_max;
done:
    bw_free(values);
    return status;
}

/* B_eff = B_U V_kept; v is r x r column-major, the kept vectors last. */
static int select_directions(const bw_grid *grid, const bw_matrix *b, const double *v, int kept, bw_matrix *b_eff)
{
    int64_t r = b->layout.n;
    bw_matrix chosen = {0};
    int status;
    BW_GO(bw_agree(grid, small_create(&chosen, grid, r, kept)));
    for (int64_t j = 0; j < chosen.cols; ++j)
        for (int64_t i = 0; i < chosen.rows; ++i) {
            int64_t row = bw_bcyc_global(i, chosen.layout.mb, chosen.myrow, chosen.layout.nprow);
            int64_t col = bw_bcyc_global(j, chosen.layout.nb, chosen.mycol, chosen.layout.npcol);
            *entry(&chosen, i, j) = v[row + (r - kept + col) * r];
        }
    BW_GO(bw_pgemm(grid, false, false, 1, b, &chosen, 0, b_eff));
done:
    bw_matrix_free(&chosen);
    return status;
}

/* The first n columns of a matrix, without a copy: block-cyclic columns keep their place. */
static bw_matrix first_columns(const bw_matrix *matrix, int64_t n)
{
    bw_matrix view = *matrix;
    view.layout.n = n;
    view.cols = bw_bcyc_count(n, view.layout.nb, view.mycol, view.layout.npcol);
    return view;
}

static int orthogonality(const bw_grid *grid, const bw_matrix *q, double *worst)
{
    int64_t n = q->layout.n;
    double *product = NULL;
    int status;
    BW_GO(bw_agree(grid, BW_NEW(product, n * n, purpose)));
    BW_GO(gram(grid, true, q, q, product));
    for (int64_t i = 0; i < n * n; ++i)
        *worst = fmax(*worst, fabs(product[i] - (i % (n + 1) == 0 ? 1 : 0)));
done:
    bw_free(product);
    return status;
}

/* work->projected = Q (Q^T B_R) for Q the orthonormal basis of range(B_eff). */
static int project(const bw_grid *grid, const factors *f, const double *v, bw_merge_work *work)
{
    bw_matrix b_eff = {0}, q = {0}, inner = {0};
    int status, rank = 0;
    bw_merge_row *row = &work->row;
    const bw_matrix *b_r = &f->B[REINFORCE];
    BW_GO(bw_agree(grid, like(&b_eff, grid, &f->B[USER], row->kept, BW_PIECE_F64)));
    BW_GO(bw_agree(grid, like(&q, grid, &f->B[USER], row->kept, BW_PIECE_F64)));
    if (row->kept == f->r[USER])
        memcpy(b_eff.data, f->B[USER].data, (size_t)(b_eff.rows * b_eff.cols) * sizeof(double));
    else
        BW_GO(select_directions(grid, &f->B[USER], v, row->kept, &b_eff));
    BW_GO(bw_prange(grid, &b_eff, &q, &rank));
    row->range = rank;
    if (rank == 0)
        goto done; /* an untrained target: nothing of W_R lies in the range */
    bw_matrix basis = first_columns(&q, rank);
    BW_GO(orthogonality(grid, &basis, &row->orthogonality));
    BW_GO(bw_agree(grid, bw_matrix_create(&inner, grid, BW_PIECE_F64, rank, b_r->layout.n, share(rank, grid->nprow), b_r->layout.nb, purpose)));
    BW_GO(bw_agree(grid, like(&work->projected, grid, b_r, b_r->layout.n, BW_PIECE_F64)));
    BW_GO(bw_pgemm(grid, true, false, 1, &basis, b_r, 0, &inner));
    BW_GO(bw_pgemm(grid, false, false, 1, &basis, &inner, 0, &work->projected));
done:
    bw_matrix_free(&b_eff);
    bw_matrix_free(&q);
    bw_matrix_free(&inner);
    return status;
}

/* ---- norms: <B_x A_x, B_y A_y> = sum of the entries of (B_x^T B_y) * (A_x A_y^T) ----------------------------------- */
static int inner_product(const bw_grid *grid, const factors *f, int x, int y, double *out)
{
    int64_t count = (int64_t)f->r[x] * f->r[y];
    double *a = NULL, *b = NULL;
    int status;
    BW_GO(bw_agree(grid, BW_NEW(a, count, purpose)));
    BW_GO(bw_agree(grid, BW_NEW(b, count, purpose)));
    BW_GO(gram(grid, false, &f->A[x], &f->A[y], a));
    BW_GO(gram(grid, true, &f->B[x], &f->B[y], b));
    for (int64_t i = 0; i < count; ++i)
        *out += a[i] * b[i];
done:
    bw_free(a);
    bw_free(b);
    return status;
}

static int inner_products(const bw_grid *grid, const factors *f, double inner[PARTS][PARTS])
{
    for (int x = 0; x < PARTS; ++x)
        for (int y = x; y < PARTS; ++y) {
            if (f->B[x].data && f->B[y].data)
                BW_TRY(inner_product(grid, f, x, y, &inner[x][y]));
            inner[y][x] = inner[x][y];
        }
    return BW_OK;
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

static int load_factors(const bw_grid *grid, const bw_pair *const pairs[2], factors *f)
{
    int status = BW_OK;
    for (int x = USER; x <= REINFORCE; ++x) {
        f->r[x] = pairs[x] ? pairs[x]->r : 0;
        if (pairs[x] && status == BW_OK)
            status = widen(&f->A[x], grid, &pairs[x]->A, 1);
        if (pairs[x] && status == BW_OK)
            status = widen(&f->B[x], grid, &pairs[x]->B, 1);
    }
    return bw_agree(grid, status);
}

static void free_factors(factors *f)
{
    for (int x = USER; x <= REINFORCE; ++x) {
        bw_matrix_free(&f->A[x]);
        bw_matrix_free(&f->B[x]);
    }
}

int bw_merge_prepare(const bw_grid *grid, const bw_pair *user, const bw_pair *reinforce, bw_merge_method method, double tau, bw_merge_work *work)
{
    memset(work, 0, sizeof *work);
    const bw_pair *pairs[2] = {user, method == BW_MERGE_USER ? NULL : reinforce};
    factors f = {0};
    double *v = NULL;
    int status;
    BW_GO(load_factors(grid, pairs, &f));
    if (user) {
        BW_GO(bw_agree(grid, BW_NEW(v, (int64_t)user->r * user->r, purpose)));
        BW_GO(keep_directions(grid, &f, tau, &work->row, v));
    }
    if (user && pairs[REINFORCE] && method == BW_MERGE_QR && work->row.kept > 0)
        BW_GO(project(grid, &f, v, work));
    f.A[PROJECTED] = f.A[REINFORCE];
    f.B[PROJECTED] = work->projected;
    f.r[PROJECTED] = f.r[REINFORCE];
    BW_GO(inner_products(grid, &f, work->inner));
    fill_row(user, pairs[REINFORCE], work);
done:
    bw_free(v);
    free_factors(&f);
    if (status != BW_OK)
        bw_merge_work_free(work);
    return status;
}

void bw_merge_work_free(bw_merge_work *work)
{
    bw_matrix_free(&work->projected);
}

/* ---- the wider factors ---------------------------------------------------------------------------------------------- */
/* out += part placed at row (or column) `at` of the rank dimension: a product with [0 I 0]. */
static int place(const bw_grid *grid, const bw_matrix *part, bool rows, int at, bw_matrix *out)
{
    bw_matrix where = {0};
    int64_t r_out = rows ? out->layout.m : out->layout.n, r = rows ? part->layout.m : part->layout.n;
    int status;
    BW_GO(bw_agree(grid, rows ? small_create(&where, grid, r_out, r) : small_create(&where, grid, r, r_out)));
    for (int64_t j = 0; j < where.cols; ++j)
        for (int64_t i = 0; i < where.rows; ++i) {
            int64_t row = bw_bcyc_global(i, where.layout.mb, where.myrow, where.layout.nprow);
            int64_t col = bw_bcyc_global(j, where.layout.nb, where.mycol, where.layout.npcol);
            *entry(&where, i, j) = rows ? row == at + col : col == at + row;
        }
    BW_GO(rows ? bw_pgemm(grid, false, false, 1, &where, part, 1, out) : bw_pgemm(grid, false, false, 1, part, &where, 1, out));
done:
    bw_matrix_free(&where);
    return status;
}

/* factor * (B - alpha * projected), rounded to float32 before it is moved: moving then changes no bit. */
static int weighted(const bw_grid *grid, const bw_pair *pair, double factor, double alpha, const bw_matrix *projected, bw_matrix *out)
{
    BW_TRY(widen(out, grid, &pair->B, 1));
    for (int64_t j = 0; j < out->cols; ++j)
        for (int64_t i = 0; i < out->rows; ++i) {
            double removed = projected->data ? alpha * *entry(projected, i, j) : 0;
            *entry(out, i, j) = (double)(float)(factor * (*entry(out, i, j) - removed));
        }
    return BW_OK;
}

static int place_side(const bw_grid *grid, const bw_pair *pair, double factor, double alpha, const bw_matrix *projected, int at, bw_matrix *A,
                      bw_matrix *B)
{
    bw_matrix a = {0}, b = {0};
    int status;
    BW_GO(bw_agree(grid, widen(&a, grid, &pair->A, 1)));
    BW_GO(bw_agree(grid, weighted(grid, pair, factor, alpha, projected, &b)));
    BW_GO(place(grid, &a, true, at, A));
    BW_GO(place(grid, &b, false, at, B));
done:
    bw_matrix_free(&a);
    bw_matrix_free(&b);
    return status;
}

int bw_merge_combine(const bw_grid *grid, const bw_pair *user, const bw_pair *reinforce, const bw_merge_work *work, double alpha, double scale,
                     bw_pair *out, bw_merge_row *row)
{
    static const bw_matrix nothing = {0};
    bw_matrix A = {0}, B = {0};
    int status, r_user = user ? user->r : 0;
    BW_ASSERT(out->present && out->r >= r_user + (reinforce ? reinforce->r : 0));
    BW_GO(bw_agree(grid, like(&A, grid, &out->A, out->A.layout.n, BW_PIECE_F64)));
    BW_GO(bw_agree(grid, like(&B, grid, &out->B, out->B.layout.n, BW_PIECE_F64)));
    if (user)
        BW_GO(place_side(grid, user, scale * user->scaling, 0, &nothing, 0, &A, &B));
    if (reinforce)
        BW_GO(place_side(grid, reinforce, scale * reinforce->scaling, alpha, &work->projected, r_user, &A, &B));
    narrow(&out->A, &A);
    narrow(&out->B, &B);
    out->scaling = 1;
    double s_user = user ? user->scaling : 0, s_reinforce = reinforce ? reinforce->scaling : 0;
    *row = work->row;
    row->norm_delta = fabs(scale) * combined_norm(work->inner, (double[]){s_user, s_reinforce, -alpha * s_reinforce});
done:
    bw_matrix_free(&A);
    bw_matrix_free(&B);
    return status;
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
