/* The GEMM seam: right for every transpose, size, leading dimension and factor; the same bits for any number of
 * threads and any address. */
#include "num_test.h"
#include <omp.h>

typedef struct product {
    bool trans_a, trans_b;
    int64_t m, n, k;
    float alpha, beta;
} product;

static int64_t size_of(bool trans, int64_t rows, int64_t cols, int64_t *ld)
{
    *ld = (trans ? rows : cols) + 3; /* a gap after each row */
    return *ld * (trans ? cols : rows) + 1;
}

static double exact(const product *p, const float *a, int64_t lda, const float *b, int64_t ldb, int64_t i, int64_t j, double *size)
{
    double sum = 0;
    *size = 0;
    for (int64_t l = 0; l < p->k; l++) {
        double term = (double)(p->trans_a ? a[l * lda + i] : a[i * lda + l]) * (double)(p->trans_b ? b[j * ldb + l] : b[l * ldb + j]);
        sum += term;
        *size += fabs(term);
    }
    return sum;
}

/* Bound: k + 3 roundings, each at most eps/2 of a partial sum, which the sum of the terms' sizes bounds. */
static void check_product(product p)
{
    int64_t lda, ldb, ldc = p.n + 2;
    float *a = random_floats(size_of(p.trans_a, p.m, p.k, &lda), 1), *b = random_floats(size_of(p.trans_b, p.k, p.n, &ldb), 2);
    float *c = random_floats(ldc * (p.m + 1), 3), *before = random_floats(ldc * (p.m + 1), 3);
    for (int64_t i = 0; p.beta == 0.0f && i < p.m; i++)
        for (int64_t j = 0; j < p.n; j++)
            c[i * ldc + j] = NAN; /* beta 0 does not read c */
    bw_gemm(p.trans_a, p.trans_b, p.m, p.n, p.k, p.alpha, bw_operand_of(a, lda), bw_operand_of(b, ldb), p.beta, c, ldc);
    for (int64_t i = 0; i < p.m + 1; i++)
        for (int64_t j = 0; j < ldc; j++) {
            double size, wanted = (double)before[i * ldc + j];
            if (i >= p.m || j >= p.n) {
                assert_true(c[i * ldc + j] == before[i * ldc + j]); /* the gap is left alone */
                continue;
            }
            double sum = exact(&p, a, lda, b, ldb, i, j, &size), old = (double)p.beta * wanted;
            close_to((double)c[i * ldc + j], (double)p.alpha * sum + old,
                     (double)(p.k + 3) * FLT_EPSILON / 2 * (fabs((double)p.alpha) * size + fabs(old)) + FLT_MIN, "c", i * ldc + j);
        }
    bw_free(a), bw_free(b), bw_free(c), bw_free(before);
}

static void equals_double_sums_for_all_transposes_and_odd_sizes(void **state)
{
    (void)state;
    static const int64_t sizes[][3] = {{1, 1, 1},      {1, 7, 13},     {5, 3, 2},     {2, 33, 64},    {16, 16, 16},   {17, 65, 31},  {64, 48, 100},
                                       {13, 130, 301}, {70, 5, 600},   {1, 97, 65},   {3, 200, 100},  {4, 96, 600},   {7, 130, 300}, {31, 100, 513},
                                       {33, 97, 64},   {100, 100, 32}, {20, 10, 130}, {230, 40, 700}, {50, 300, 1200}};
    static const float factors[][2] = {{1, 0}, {1, 1}, {0.5f, 0}, {-2, 0.75f}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (int transposes = 0; transposes < 4; transposes++)
            for (size_t f = 0; f < 4; f++)
                check_product((product){transposes & 1, transposes & 2, sizes[i][0], sizes[i][1], sizes[i][2], factors[f][0], factors[f][1]});
}

static void empty_sizes_touch_nothing_and_k_zero_scales_c(void **state)
{
    (void)state;
    float a[4] = {1, 2, 3, 4}, c[4] = {1, 2, 3, 4};
    bw_gemm(false, false, 0, 2, 2, 1, bw_operand_of(a, 2), bw_operand_of(a, 2), 0, c, 2);
    bw_gemm(false, true, 2, 0, 2, 1, bw_operand_of(a, 2), bw_operand_of(a, 2), 0, c, 2);
    assert_true(c[0] == 1 && c[3] == 4);
    bw_gemm(false, true, 2, 2, 0, 1, bw_operand_of(a, 2), bw_operand_of(a, 2), 0.5f, c, 2);
    assert_true(c[0] == 0.5f && c[3] == 2);
    c[0] = NAN;
    bw_gemm(true, false, 2, 2, 0, 1, bw_operand_of(a, 2), bw_operand_of(a, 2), 0, c, 2);
    assert_true(c[0] == 0 && c[3] == 0);
}

/* The shapes of a training step and of decoding, some of them odd. */
static const int64_t step_shapes[][3] = {{1, 576, 576},  {3, 192, 576},  {16, 500, 576}, {17, 192, 576},   {64, 192, 576}, {101, 400, 576},
                                         {200, 32, 576}, {200, 576, 32}, {32, 576, 200}, {190, 300, 1000}, {33, 200, 1300}};

static void run_shape(const int64_t shape[3], int transposes, float beta, const float *a, const float *b, float *c)
{
    int64_t m = shape[0], n = shape[1], k = shape[2];
    bw_gemm(transposes & 1, transposes & 2, m, n, k, 1, bw_operand_of(a, transposes & 1 ? m : k), bw_operand_of(b, transposes & 2 ? k : n), beta, c,
            n);
}

static void same_bits_for_1_2_and_3_threads(void **state)
{
    (void)state;
    for (size_t s = 0; s < sizeof step_shapes / sizeof step_shapes[0]; s++)
        for (int transposes = 0; transposes < 3; transposes++) { /* none, a, b: what a step uses */
            int64_t m = step_shapes[s][0], n = step_shapes[s][1], k = step_shapes[s][2];
            float *a = random_floats(m * k, 1), *b = random_floats(n * k, 2), *first = NULL;
            for (int threads = 1; threads <= (s % 3 == 0 ? 3 : 2); threads++) { /* 3 on 2 cores is slow: some */
                float *c = random_floats(m * n, 3);
                assert_int_equal(bw_gemm_start("fp32", threads), BW_OK);
                omp_set_num_threads(threads);
                run_shape(step_shapes[s], transposes, 1.0f, a, b, c);
                if (first)
                    same_bits(first, c, m * n, "c");
                if (first)
                    bw_free(c);
                else
                    first = c;
            }
            bw_free(a), bw_free(b), bw_free(first);
        }
    omp_set_num_threads(1);
    assert_int_equal(bw_gemm_start("fp32", 1), BW_OK);
}

static void same_bits_at_any_address(void **state)
{
    (void)state;
    for (size_t s = 0; s < sizeof step_shapes / sizeof step_shapes[0]; s++)
        for (int transposes = 0; transposes < 3; transposes++) { /* none, a, b: what a step uses */
            int64_t m = step_shapes[s][0], n = step_shapes[s][1], k = step_shapes[s][2];
            float *a = random_floats(m * k, 1), *b = random_floats(n * k, 2), *c = zeros(m * n);
            float *a2 = zeros(m * k + 16), *b2 = zeros(n * k + 16), *c2 = zeros(m * n + 16);
            run_shape(step_shapes[s], transposes, 0.0f, a, b, c);
            for (int shift = 1; shift < 16; shift += 5) {
                memcpy(a2 + shift, a, sizeof *a * (size_t)(m * k));
                memcpy(b2 + shift + 1, b, sizeof *b * (size_t)(n * k));
                run_shape(step_shapes[s], transposes, 0.0f, a2 + shift, b2 + shift + 1, c2 + (shift ^ 1));
                same_bits(c, c2 + (shift ^ 1), m * n, "c");
            }
            bw_free(a), bw_free(b), bw_free(c), bw_free(a2), bw_free(b2), bw_free(c2);
        }
}

static void counts_flops(void **state)
{
    (void)state;
    float x[6] = {0}, y[4];
    double before = bw_gemm_flops();
    bw_gemm(false, true, 2, 2, 3, 1, bw_operand_of(x, 3), bw_operand_of(x, 3), 0, y, 2);
    assert_true(bw_gemm_flops() - before == 24);
}

static void unknown_precision_is_refused(void **state)
{
    (void)state;
    bw_error_clear();
    assert_int_equal(bw_gemm_start("fp4", 1), BW_USAGE);
    assert_non_null(strstr(bw_error(), "fp4"));
    bw_error_clear();
}

static void describes_what_runs(void **state)
{
    (void)state;
    assert_int_equal(bw_gemm_start("fp32", 2), BW_OK);
    assert_non_null(strstr(bw_gemm_describe(), bw_weight_is_dense(BW_FORWARD) ? "BLIS" : "oneDNN"));
    assert_non_null(strstr(bw_gemm_describe(), "2 threads"));
    assert_int_equal(bw_gemm_start("fp32", 1), BW_OK);
}

/* Folding a matrix whole or in blocks of any size gives the same bits, and the right sum. */
static void fold_is_the_same_for_any_cut(void **state)
{
    (void)state;
    enum { ROWS = 61, COLUMNS = 333, R = 32 };
    float *b = random_floats(ROWS * R, 1), *a = random_floats(R * COLUMNS, 2), *whole = random_floats(ROWS * COLUMNS, 3),
          *cut = random_floats(ROWS * COLUMNS, 3);
    float *before = random_floats(ROWS * COLUMNS, 3);
    bw_fold(whole, COLUMNS, ROWS, COLUMNS, 0.7f, b, R, a, COLUMNS, R);
    for (int64_t i = 0; i < ROWS; i += 7)
        for (int64_t j = 0; j < COLUMNS; j += 19)
            bw_fold(cut + i * COLUMNS + j, COLUMNS, ROWS - i < 7 ? ROWS - i : 7, COLUMNS - j < 19 ? COLUMNS - j : 19, 0.7f, b + i * R, R, a + j,
                    COLUMNS, R);
    same_bits(whole, cut, ROWS * COLUMNS, "w");
    for (int64_t i = 0; i < ROWS; i++)
        for (int64_t j = 0; j < COLUMNS; j++) {
            double sum = 0;
            for (int l = 0; l < R; l++)
                sum += (double)b[i * R + l] * (double)a[l * COLUMNS + j];
            /* R + 2 roundings of partial sums, which are at most R in size */
            close_to((double)whole[i * COLUMNS + j], (double)before[i * COLUMNS + j] + (double)0.7f * sum, (R + 2) * R * FLT_EPSILON / 2, "w",
                     i * COLUMNS + j);
        }
    bw_free(a), bw_free(b), bw_free(whole), bw_free(cut), bw_free(before);
}

int main(void)
{
    if (bw_gemm_start("fp32", 1) != BW_OK)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_double_sums_for_all_transposes_and_odd_sizes),
        cmocka_unit_test(empty_sizes_touch_nothing_and_k_zero_scales_c),
        cmocka_unit_test(same_bits_for_1_2_and_3_threads),
        cmocka_unit_test(same_bits_at_any_address),
        cmocka_unit_test(counts_flops),
        cmocka_unit_test(unknown_precision_is_refused),
        cmocka_unit_test(describes_what_runs),
        cmocka_unit_test(fold_is_the_same_for_any_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
