/* Small matrices in float64, column-major, whole on every rank: what is left of a merge once the tall factors are Gram matrices. */
#include "post/inside.h"
#include <math.h>

void bw_small_multiply(bool trans_a, int m, int n, int k, const double *a, int lda, const double *b, int ldb, double *c, int ldc)
{
    for (int j = 0; j < n; ++j) {
        double *to = c + (int64_t)j * ldc;
        for (int i = 0; i < m; ++i)
            to[i] = 0;
        for (int l = 0; !trans_a && l < k; ++l)
            for (int i = 0; i < m; ++i)
                to[i] += b[l + (int64_t)j * ldb] * a[i + (int64_t)l * lda];
        for (int i = 0; trans_a && i < m; ++i)
            for (int l = 0; l < k; ++l)
                to[i] += a[l + (int64_t)i * lda] * b[l + (int64_t)j * ldb];
    }
}

double bw_small_dot(int m, int n, const double *a, int lda, const double *b, int ldb)
{
    double sum = 0;
    for (int j = 0; j < n; ++j)
        for (int i = 0; i < m; ++i)
            sum += a[i + (int64_t)j * lda] * b[i + (int64_t)j * ldb];
    return sum;
}

/* Rows and columns k and p of a symmetric matrix change places. */
static void swap_symmetric(int n, double *g, int k, int p)
{
    for (int i = 0; i < n; ++i) {
        double keep = g[i + (int64_t)k * n];
        g[i + (int64_t)k * n] = g[i + (int64_t)p * n];
        g[i + (int64_t)p * n] = keep;
    }
    for (int j = 0; j < n; ++j) {
        double keep = g[k + (int64_t)j * n];
        g[k + (int64_t)j * n] = g[p + (int64_t)j * n];
        g[p + (int64_t)j * n] = keep;
    }
}

/* P^T G P = R^T R by Cholesky with the largest pivot first, down to the first R_ii <= cut * R_00: how many there are. R comes over G's upper triangle
 * (its leading rows). These are the pivots, and up to their signs the R, of a QR with column pivoting of any B with B^T B = G. */
static int pivoted_cholesky(int n, double *g, int *pivots, double cut)
{
    double first = 0;
    for (int i = 0; i < n; ++i) {
        pivots[i] = i;
        for (int j = 0; j < i; ++j)
            g[i + (int64_t)j * n] = g[j + (int64_t)i * n];
    }
    for (int k = 0; k < n; ++k) {
        int p = k;
        for (int i = k + 1; i < n; ++i)
            if (g[i + (int64_t)i * n] > g[p + (int64_t)p * n])
                p = i;
        double root = sqrt(fmax(g[p + (int64_t)p * n], 0));
        first = k == 0 ? root : first;
        if (root <= cut * first)
            return k;
        swap_symmetric(n, g, k, p);
        int keep = pivots[k];
        pivots[k] = pivots[p];
        pivots[p] = keep;
        for (int j = k; j < n; ++j)
            g[k + (int64_t)j * n] = j == k ? root : g[k + (int64_t)j * n] / root;
        for (int j = k + 1; j < n; ++j) /* what is left, both triangles: a swap moves columns whole */
            for (int i = k + 1; i < n; ++i)
                g[i + (int64_t)j * n] -= g[k + (int64_t)i * n] * g[k + (int64_t)j * n];
    }
    return n;
}

int bw_small_inverse_root(int n, double *gram, double cut, double *root, int *rank)
{
    int *pivots;
    BW_TRY(BW_NEW(pivots, n, "merge"));
    *rank = pivoted_cholesky(n, gram, pivots, cut);
    for (int j = 0; j < *rank; ++j) { /* column j of R^-1, from its diagonal upwards, each entry to the row of its pivot */
        double *to = root + (int64_t)j * n;
        for (int i = 0; i < n; ++i)
            to[i] = 0;
        for (int i = j; i >= 0; --i) {
            double sum = i == j;
            for (int l = i + 1; l <= j; ++l)
                sum -= gram[i + (int64_t)l * n] * to[pivots[l]];
            to[pivots[i]] = sum / gram[i + (int64_t)i * n];
        }
    }
    bw_free(pivots);
    return BW_OK;
}
