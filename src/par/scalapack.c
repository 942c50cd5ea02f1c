/* scalapack.c - the only caller of BLACS, ScaLAPACK and LAPACK.
 *
 * No header of theirs exists, so the prototypes are here: Fortran takes every argument by address, INTEGER is 32 bits,
 * and each CHARACTER argument adds its length as a hidden size_t at the end. */
#include <dlfcn.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "par/comms.h"

enum { DESCRIPTOR = 9, MATRIX_DENSE = 1 };

void Cblacs_gridinit(int *context, const char *order, int nprow, int npcol);
void Cblacs_gridexit(int context);
void Cblacs_exit(int keep_mpi);
int Csys2blacs_handle(MPI_Comm comm);
void Cfree_blacs_system_handle(int handle);
void pilaver_(int *major, int *minor, int *patch);
void pdgemm_(const char *trans_a, const char *trans_b, const int *m, const int *n, const int *k, const double *alpha, const double *a, const int *ia,
             const int *ja, const int *desc_a, const double *b, const int *ib, const int *jb, const int *desc_b, const double *beta, double *c,
             const int *ic, const int *jc, const int *desc_c, size_t, size_t);
void pdgemr2d_(const int *m, const int *n, const double *a, const int *ia, const int *ja, const int *desc_a, double *b, const int *ib, const int *jb,
               const int *desc_b, const int *context);
void psgemr2d_(const int *m, const int *n, const float *a, const int *ia, const int *ja, const int *desc_a, float *b, const int *ib, const int *jb,
               const int *desc_b, const int *context);
void dsyev_(const char *job, const char *half, const int *n, double *a, const int *lda, double *values, double *work, const int *lwork, int *info,
            size_t, size_t);

static const int one = 1;

/* ---- contexts ----------------------------------------------------------------------------------------------------- */
int bw_blacs_open(bw_grid *grid)
{
    grid->comms->blacs = Csys2blacs_handle(grid->comms->grid);
    grid->context = grid->comms->blacs;
    Cblacs_gridinit(&grid->context, "Row", grid->nprow, grid->npcol);
    return grid->context >= 0 ? BW_OK : bw_fail(BW_SYSTEM, "BLACS opened no %d x %d grid", grid->nprow, grid->npcol);
}

void bw_blacs_close(bw_grid *grid)
{
    if (grid->context >= 0)
        Cblacs_gridexit(grid->context);
    if (grid->comms->blacs >= 0)
        Cfree_blacs_system_handle(grid->comms->blacs);
    grid->context = grid->comms->blacs = -1;
}

void bw_blacs_finish(void)
{
    Cblacs_exit(1);
}

/* ScaLAPACK counts and addresses with 32-bit integers, inside one piece too. The largest piece, that of position (0, 0), is looked at, so
 * that all ranks give the same answer: one that left alone would leave the others waiting. */
static int describe(const bw_grid *grid, const bw_matrix *matrix, int descriptor[DESCRIPTOR])
{
    const bw_bcyc *layout = &matrix->layout;
    int64_t rows = bw_bcyc_count(layout->m, layout->mb, 0, layout->nprow), cols = bw_bcyc_count(layout->n, layout->nb, 0, layout->npcol);
    if (layout->m > INT_MAX || layout->n > INT_MAX || rows * cols > INT_MAX / (int64_t)sizeof(double))
        return bw_fail(BW_SYSTEM, "a %lld x %lld matrix with pieces of %lld x %lld is more than ScaLAPACK's 32-bit integers address; use more ranks",
                       (long long)layout->m, (long long)layout->n, (long long)rows, (long long)cols);
    const int entries[DESCRIPTOR] = {MATRIX_DENSE, grid->context, (int)layout->m, (int)layout->n, layout->mb, layout->nb, 0, 0, (int)matrix->ld};
    for (int i = 0; i < DESCRIPTOR; i++)
        descriptor[i] = entries[i];
    return BW_OK;
}

static bool empty(const bw_matrix *matrix)
{
    return matrix->layout.m == 0 || matrix->layout.n == 0;
}

/* ---- multiply ------------------------------------------------------------------------------------------------------ */
static void scale_piece(double beta, bw_matrix *c)
{
    for (int64_t j = 0; j < c->cols; j++)
        for (int64_t i = 0; i < c->rows; i++) {
            double *entry = (double *)c->data + i + j * c->ld;
            *entry = beta == 0 ? 0 : beta * *entry;
        }
}

int bw_pgemm(const bw_grid *grid, bool trans_a, bool trans_b, double alpha, const bw_matrix *a, const bw_matrix *b, double beta, bw_matrix *c)
{
    int64_t m = trans_a ? a->layout.n : a->layout.m, k = trans_a ? a->layout.m : a->layout.n;
    int64_t k_b = trans_b ? b->layout.n : b->layout.m, n = trans_b ? b->layout.m : b->layout.n;
    int desc_a[DESCRIPTOR], desc_b[DESCRIPTOR], desc_c[DESCRIPTOR];
    BW_ASSERT(a->type == BW_PIECE_F64 && b->type == BW_PIECE_F64 && c->type == BW_PIECE_F64);
    BW_ASSERT(k == k_b && c->layout.m == m && c->layout.n == n);
    BW_TRY(describe(grid, a, desc_a));
    BW_TRY(describe(grid, b, desc_b));
    BW_TRY(describe(grid, c, desc_c));
    if (k == 0 || empty(c)) {
        scale_piece(beta, c);
        return BW_OK;
    }
    int sizes[3] = {(int)m, (int)n, (int)k};
    pdgemm_(trans_a ? "T" : "N", trans_b ? "T" : "N", &sizes[0], &sizes[1], &sizes[2], &alpha, a->data, &one, &one, desc_a, b->data, &one, &one,
            desc_b, &beta, c->data, &one, &one, desc_c, 1, 1);
    return BW_OK;
}

/* ---- copy between layouts ------------------------------------------------------------------------------------------ */
int bw_redistribute(const bw_grid *grid, const bw_matrix *from, bw_matrix *to, int64_t row, int64_t col)
{
    int desc_from[DESCRIPTOR], desc_to[DESCRIPTOR];
    BW_ASSERT(from->type == to->type && (from->type == BW_PIECE_F64 || from->type == BW_PIECE_F32));
    BW_ASSERT(row >= 0 && col >= 0 && row + from->layout.m <= to->layout.m && col + from->layout.n <= to->layout.n);
    BW_TRY(describe(grid, from, desc_from));
    BW_TRY(describe(grid, to, desc_to));
    if (empty(from))
        return BW_OK;
    const int *m = &desc_from[2], *n = &desc_from[3], i = (int)row + 1, j = (int)col + 1; /* Fortran counts from 1 */
    if (from->type == BW_PIECE_F64)
        pdgemr2d_(m, n, from->data, &one, &one, desc_from, to->data, &i, &j, desc_to, &grid->context);
    else
        psgemr2d_(m, n, from->data, &one, &one, desc_from, to->data, &i, &j, desc_to, &grid->context);
    return BW_OK;
}

/* ---- eigenpairs ---------------------------------------------------------------------------------------------------- */
int bw_symmetric_eigen(int n, double *matrix_in_vectors_out, double *values)
{
    double *work = NULL;
    BW_ASSERT(n >= 0 && n < INT_MAX / 34);
    int lwork = 34 * n + 1, info = 0, lda = n > 1 ? n : 1; /* dsyev wants (block + 2) n; its blocks are 32 */
    if (n == 0)
        return BW_OK;
    BW_TRY(BW_NEW(work, lwork, "eigen"));
    dsyev_("V", "U", &n, matrix_in_vectors_out, &lda, values, work, &lwork, &info, 1, 1);
    bw_free(work);
    if (info > 0)
        return bw_fail(BW_DATA, "the eigenvalues of a %d x %d matrix do not converge (%d left): does it hold NaN or Inf?", n, n, info);
    return info == 0 ? BW_OK : bw_fail(BW_BUG, "dsyev refused argument %d for n = %d", -info, n);
}

/* ---- versions ------------------------------------------------------------------------------------------------------ */
/* The file that a function was really loaded from, "unknown" where it cannot be told. */
static const char *library_of(const char *function)
{
    Dl_info info = {0};
    void *address = dlsym(RTLD_DEFAULT, function); /* the address itself may be the program's own jump table */
    return address && dladdr(address, &info) && info.dli_fname ? info.dli_fname : "unknown";
}

/* ScaLAPACK 2.1 and 2.2 still call themselves 2.0.2, so a version in the name of the library's file is believed first. */
const char *bw_scalapack_version(void)
{
    static char text[PATH_MAX + 48];
    char file[PATH_MAX];
    const char *library = library_of("pdgemm_"), *numbers = realpath(library, file) ? strstr(file, ".so.") : NULL;
    int version[3] = {0};
    pilaver_(&version[0], &version[1], &version[2]);
    if (numbers)
        snprintf(text, sizeof text, "%s (%s)", numbers + 4, library);
    else
        snprintf(text, sizeof text, "%d.%d.%d (%s)", version[0], version[1], version[2], library);
    return text;
}

const char *bw_blas_loaded(void)
{
    return library_of("dgemm_");
}
