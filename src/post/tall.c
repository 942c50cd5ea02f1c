/* The tall and thin products of a merge, by ScaLAPACK, panel by panel.
 *
 * A panel is some rows of every process's own piece, widened to float64 (for A: some columns). Nothing moves for it, it stays in the caches, and its
 * rows are in another order than the factor's, which no product here sees: a sum over rows does not ask for it, and rows come out where they went in.
 */
#include "post/inside.h"
#include <math.h>
#include <string.h>

static const char purpose[] = "merge";
enum { USER, REINFORCE, PANEL_ROWS = 2000 }; /* rows of a process */

typedef struct panels {
    const bw_grid *grid;
    bool rows; /* the factors are A, and their columns go by; else B, and their rows do */
    const bw_matrix *part[2];
    bw_matrix panel[2];
    int64_t most, height; /* what the process with the most has to go through, and how much of it in one panel */
} panels;

typedef struct product { /* x^T y, x y^T where factors are A */
    const bw_matrix *x, *y;
    bw_matrix sum;
    double *out; /* column-major, on every rank */
    int64_t ld;
} product;

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* ---- float64 matrices ------------------------------------------------------------------------------------------------- */
/* Columns lie an odd number of cache lines apart: a power of two would put them into the same few sets of a cache. */
static int wide_create(bw_matrix *out, const bw_grid *grid, int64_t m, int64_t n, int64_t mb, int64_t nb)
{
    *out = bw_matrix_outline(grid, BW_PIECE_F64, m, n, (int)mb, (int)nb);
    out->ld = ((out->ld + 7) / 8 | 1) * 8;
    out->data = bw_calloc(out->ld * out->cols, sizeof(double), purpose);
    return out->data ? BW_OK : BW_SYSTEM;
}

static int share(int64_t n, int parts)
{
    return n > parts ? (int)((n + parts - 1) / parts) : 1;
}

/* A small matrix of which every rank owns about the same part; `dense` (ld m) is what it holds, NULL: zeros. */
static int small_create(bw_matrix *out, const bw_grid *grid, int64_t m, int64_t n, const double *dense)
{
    BW_TRY(wide_create(out, grid, m, n, share(m, grid->nprow), share(n, grid->npcol)));
    for (int64_t j = 0; dense && j < out->cols; ++j)
        for (int64_t i = 0; i < out->rows; ++i)
            ((double *)out->data)[i + j * out->ld] = dense[bw_bcyc_global(i, out->layout.mb, out->myrow, out->layout.nprow) +
                                                           m * bw_bcyc_global(j, out->layout.nb, out->mycol, out->layout.npcol)];
    return BW_OK;
}

/* ---- panels ---------------------------------------------------------------------------------------------------------- */
/* A matrix that goes by with the panels, `thin` in the other dimension, which is cut into blocks of `block`. */
static int panel_create(const panels *p, int64_t thin, int block, bw_matrix *out)
{
    int64_t tall = p->height * (p->rows ? p->grid->npcol : p->grid->nprow);
    return p->rows ? wide_create(out, p->grid, thin, tall, block, p->height) : wide_create(out, p->grid, tall, thin, p->height, block);
}

static int panels_create(panels *p, const bw_grid *grid, bool rows, const bw_matrix *user, const bw_matrix *reinforce)
{
    *p = (panels){.grid = grid, .rows = rows, .part = {user, reinforce}};
    const bw_bcyc *l = user ? &user->layout : &reinforce->layout;
    p->most = rows ? bw_bcyc_count(l->n, l->nb, 0, l->npcol) : bw_bcyc_count(l->m, l->mb, 0, l->nprow);
    p->height = least(p->most, PANEL_ROWS);
    for (int i = USER; i <= REINFORCE; ++i)
        if (p->part[i]) {
            const bw_bcyc *own = &p->part[i]->layout;
            BW_ASSERT(p->part[i]->type == BW_PIECE_F32 && (rows ? own->n == l->n && own->nb == l->nb : own->m == l->m && own->mb == l->mb));
            BW_TRY(panel_create(p, rows ? own->m : own->n, rows ? own->mb : own->nb, &p->panel[i]));
        }
    return BW_OK;
}

static void panels_free(panels *p)
{
    bw_matrix_free(&p->panel[USER]);
    bw_matrix_free(&p->panel[REINFORCE]);
}

static void widen(double *to, const float *from, int64_t count)
{
    for (int64_t i = 0; i < count; ++i)
        to[i] = (double)from[i];
}

/* What this process has of a factor from `first` on. Where it has less than others have, the panel ends with zeros. */
static void load(panels *p, int which, int64_t first)
{
    const bw_matrix *from = p->part[which];
    bw_matrix *to = &p->panel[which];
    int64_t left = (p->rows ? from->cols : from->rows) - first, taken = left < 0 ? 0 : least(left, p->height);
    const float *start = (const float *)from->data + first * (p->rows ? from->ld : 1);
    if (taken < p->height)
        memset(to->data, 0, (size_t)(to->ld * to->cols) * sizeof(double));
    int64_t columns = p->rows ? taken : to->cols, run = p->rows ? to->rows : taken;
    for (int64_t j = 0; j < columns && run > 0; ++j)
        widen((double *)to->data + j * to->ld, start + j * from->ld, run);
}

static void load_both(panels *p, int64_t first)
{
    for (int i = USER; i <= REINFORCE; ++i)
        if (p->part[i])
            load(p, i, first);
}

/* ---- products over the rows ------------------------------------------------------------------------------------------- */
static int products_create(const panels *p, product *list, int count)
{
    for (product *one = list; one < list + count; ++one) {
        int64_t m = p->rows ? one->x->layout.m : one->x->layout.n, n = p->rows ? one->y->layout.m : one->y->layout.n;
        BW_TRY(small_create(&one->sum, p->grid, m, n, NULL));
    }
    return BW_OK;
}

static int products_add(const panels *p, product *list, int count)
{
    for (product *one = list; one < list + count; ++one)
        BW_TRY(bw_pgemm(p->grid, !p->rows, p->rows, 1, one->x, one->y, 1, &one->sum));
    return BW_OK;
}

static void own_bits(const bw_matrix *matrix, int64_t *bits)
{
    const bw_bcyc *l = &matrix->layout;
    for (int64_t j = 0; j < matrix->cols; ++j)
        for (int64_t i = 0; i < matrix->rows; ++i) {
            int64_t row = bw_bcyc_global(i, l->mb, matrix->myrow, l->nprow), col = bw_bcyc_global(j, l->nb, matrix->mycol, l->npcol);
            memcpy(&bits[row + col * l->m], (double *)matrix->data + i + j * matrix->ld, sizeof(double));
        }
}

static int take_out(const product *one, const int64_t *bits)
{
    const bw_bcyc *l = &one->sum.layout;
    for (int64_t j = 0; j < l->n; ++j)
        for (int64_t i = 0; i < l->m; ++i) {
            double *to = &one->out[i + j * one->ld];
            memcpy(to, &bits[i + j * l->m], sizeof *to);
            if (!isfinite(*to))
                return bw_fail(BW_DATA, "a factor of rank %lld or %lld holds NaN, Inf or numbers whose squares overflow", (long long)l->m,
                               (long long)l->n);
        }
    return BW_OK;
}

/* Every rank gets the whole of all of them. Each entry's bits come from its one owner in replica 0, and a sum with zeros keeps them, so all
 * ranks of all replicas go on with the same bits. */
static int products_spread(const bw_grid *grid, const product *list, int count)
{
    int64_t *bits = NULL, total = 0, at = 0;
    int status;
    for (int i = 0; i < count; ++i)
        total += list[i].sum.layout.m * list[i].sum.layout.n;
    BW_GO(bw_agree(grid, BW_NEW(bits, total, purpose)));
    for (int i = 0; grid->replica == 0 && i < count; at += list[i].sum.layout.m * list[i].sum.layout.n, ++i)
        own_bits(&list[i].sum, bits + at);
    BW_GO(bw_sum_ints(grid, bits, (int)total));
    at = 0;
    for (int i = 0; i < count; at += list[i].sum.layout.m * list[i].sum.layout.n, ++i)
        BW_GO(take_out(&list[i], bits + at));
done:
    bw_free(bits);
    return status;
}

static void products_free(product *list, int count)
{
    for (int i = 0; i < count; ++i)
        bw_matrix_free(&list[i].sum);
}

int bw_tall_gram(const bw_grid *grid, bool rows, const bw_matrix *user, const bw_matrix *reinforce, double *gram, int64_t ld)
{
    panels p;
    product list[3] = {0};
    int count = 0, status = panels_create(&p, grid, rows, user, reinforce);
    const bw_matrix *u = &p.panel[USER], *r = &p.panel[REINFORCE];
    int64_t behind = user ? rows ? user->layout.m : user->layout.n : 0;
    if (user)
        list[count++] = (product){.x = u, .y = u, .out = gram, .ld = ld};
    if (user && reinforce)
        list[count++] = (product){.x = u, .y = r, .out = gram + behind * ld, .ld = ld};
    if (reinforce)
        list[count++] = (product){.x = r, .y = r, .out = gram + behind * (ld + 1), .ld = ld};
    if (status == BW_OK)
        status = products_create(&p, list, count);
    BW_GO(bw_agree(grid, status));
    for (int64_t first = 0; first < p.most; first += p.height) {
        load_both(&p, first);
        BW_GO(products_add(&p, list, count));
    }
    status = products_spread(grid, list, count);
done:
    products_free(list, count);
    panels_free(&p);
    return status;
}

int bw_tall_turned(const bw_grid *grid, const bw_matrix *user, const bw_matrix *reinforce, const double *transform, int columns, double *gram)
{
    panels p;
    bw_matrix q = {0}, turn = {0};
    product list[2] = {{.x = &q, .y = &q, .out = gram, .ld = columns}, {.x = &q, .out = gram + (int64_t)columns * columns, .ld = columns}};
    int status = panels_create(&p, grid, false, user, reinforce);
    list[1].y = &p.panel[REINFORCE];
    if (status == BW_OK)
        status = panel_create(&p, columns, share(columns, grid->npcol), &q);
    if (status == BW_OK)
        status = small_create(&turn, grid, user->layout.n, columns, transform);
    if (status == BW_OK)
        status = products_create(&p, list, 2);
    BW_GO(bw_agree(grid, status));
    for (int64_t first = 0; first < p.most; first += p.height) {
        load_both(&p, first);
        BW_GO(bw_pgemm(grid, false, false, 1, &p.panel[USER], &turn, 0, &q));
        BW_GO(products_add(&p, list, 2));
    }
    status = products_spread(grid, list, 2);
done:
    products_free(list, 2);
    bw_matrix_free(&turn);
    bw_matrix_free(&q);
    panels_free(&p);
    return status;
}

/* ---- a product that comes out ----------------------------------------------------------------------------------------- */
static void narrow(const bw_matrix *panel, int64_t first, bw_matrix *out)
{
    for (int64_t j = 0; j < out->cols; ++j) {
        float *to = (float *)out->data + first + j * out->ld;
        const double *from = (double *)panel->data + j * panel->ld;
        for (int64_t i = 0; i < least(out->rows - first, panel->rows); ++i)
            to[i] = (float)from[i];
    }
}

int bw_tall_combine(const bw_grid *grid, const bw_matrix *user, const bw_matrix *reinforce, const double *m, double factor, bw_matrix *out)
{
    panels p;
    bw_matrix turn = {0};
    int status = panels_create(&p, grid, false, user, reinforce);
    if (status == BW_OK)
        status = small_create(&turn, grid, user->layout.n, reinforce->layout.n, m);
    BW_GO(bw_agree(grid, status));
    for (int64_t first = 0; first < p.most; first += p.height) {
        load_both(&p, first);
        BW_GO(bw_pgemm(grid, false, false, 1, &p.panel[USER], &turn, factor, &p.panel[REINFORCE]));
        narrow(&p.panel[REINFORCE], first, out);
    }
done:
    bw_matrix_free(&turn);
    panels_free(&p);
    return status;
}
