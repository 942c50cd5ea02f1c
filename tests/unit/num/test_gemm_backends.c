/* Every backend behind the GEMM seam, by itself: against plain sums in double of the operands as it rounds them, for all transposes, odd sizes,
 * leading dimensions and factors; packed weights; and what --precision takes on this CPU. A backend that this CPU lacks says so. */
#include "num/gemm.h"
#include "num/row.h"
#include "base/half.h"
#include "num_test.h"
#include <omp.h>

/* ---- a product in double --------------------------------------------------------------------------------------------- */
typedef struct problem {
    bool trans_a, trans_b;
    int64_t m, n, k;
    float alpha, beta;
} problem;

static int64_t size_of(bool trans, int64_t rows, int64_t cols, int64_t gap, int64_t *ld)
{
    *ld = (trans ? rows : cols) + gap;
    return *ld * (trans ? cols : rows) + 1;
}

/* The sum over k for entry (i, j), and the sum of its terms' sizes. */
static double sum_of(const problem *p, const float *a, int64_t lda, const float *b, int64_t ldb, int64_t i, int64_t j, double *size)
{
    const float *row = a + (p->trans_a ? i : i * lda), *column = b + (p->trans_b ? j * ldb : j);
    const int64_t a_step = p->trans_a ? lda : 1, b_step = p->trans_b ? 1 : ldb;
    double sum = 0;
    *size = 0;
    for (int64_t l = 0; l < p->k; l++) {
        const double term = (double)row[l * a_step] * (double)column[l * b_step];
        sum += term;
        *size += fabs(term);
    }
    return sum;
}

static float *rounded_floats(int64_t n, uint32_t name, bool half)
{
    float *x = random_floats(n, name);
    for (int64_t i = 0; half && i < n; i++)
        x[i] = bw_from_bf16(bw_to_bf16(x[i]));
    return x;
}

/* Against operands rounded as the backend rounds them: k + 3 roundings of fp32, each at most eps/2 of a partial sum, which the sum of the terms'
 * sizes bounds. Against the operands as they were: rounding to 8 bits changes each by 2^-8 of itself at most, so a term by 2^-7 and a little. */
static void check_entry(const problem *p, float got, double before, double rounded, double plain, double size, bool half, int64_t at)
{
    const double old = (double)p->beta * before, alpha = (double)p->alpha;
    const double bound = (double)(p->k + 3) * FLT_EPSILON / 2 * (fabs(alpha) * size * 1.01 + fabs(old)) + FLT_MIN;
    close_to((double)got, alpha * rounded + old, bound, "c", at);
    if (half)
        close_to((double)got, alpha * plain + old, bound + 0x1.01p-7 * fabs(alpha) * size, "c", at);
}

/* A stored matrix as num/operand.c would write it. */
static void *ready_copy(const bw_gemm_backend *backend, const float *x, int64_t rows, int64_t cols)
{
    char *ready = bw_calloc(bw_ready_rows(rows) * cols * backend->entry_bytes, 1, "test");
    assert_non_null(ready);
    for (int64_t i = 0; i < rows; i++)
        backend->put(ready, i * cols, x + i * cols, cols);
    return ready;
}

/* What a call is given beside plain operands, whose rows lie `gap` entries apart; those of others do not. */
enum { PACKED = 1, READY_A = 2, READY_B = 4 };

static bool has_units(const problem *p, int given)
{
    return (!(given & READY_A) || (p->trans_a ? p->m : p->k) % BW_READY_UNIT == 0) &&
           (!(given & READY_B) || (p->trans_b ? p->k : p->n) % BW_READY_UNIT == 0);
}

/* The operands that are ready, one at most where the left one has to be turned over, lose the matrix that they came from. */
static void make_ready(const bw_gemm_backend *backend, bw_gemm_call *call, int given)
{
    if (given & READY_A) {
        call->ready_a = ready_copy(backend, call->a, call->trans_a ? call->k : call->m, call->trans_a ? call->m : call->k);
        call->a = NULL;
    }
    if (given & READY_B) {
        call->ready_b = ready_copy(backend, call->b, call->trans_b ? call->n : call->k, call->trans_b ? call->k : call->n);
        if (call->a || !call->trans_a || call->trans_b)
            call->b = NULL;
    }
}

static void check(const bw_gemm_backend *backend, const problem *p, int64_t gap, int given)
{
    const bool half = strcmp(backend->precision, "bf16") == 0, packed = given & PACKED;
    const int64_t apart = given ? 0 : gap;
    if (!has_units(p, given))
        return;
    int64_t lda, ldb, ldc = p->n + gap;
    const int64_t a_size = size_of(p->trans_a, p->m, p->k, apart, &lda), b_size = size_of(p->trans_b, p->k, p->n, apart, &ldb);
    float *a = random_floats(a_size, 1), *b = random_floats(b_size, 2), *a_rounded = rounded_floats(a_size, 1, half),
          *b_rounded = rounded_floats(b_size, 2, half);
    float *c = random_floats(ldc * (p->m + 1), 3), *before = random_floats(ldc * (p->m + 1), 3);
    const int64_t rows = p->trans_b ? p->n : p->k, cols = p->trans_b ? p->k : p->n;
    bw_gemm_call call = {p->m, p->n, p->k, p->alpha, p->beta, a, b, NULL, c, lda, ldb, ldc, p->trans_a, p->trans_b, NULL, NULL, 0, 0};
    void *weight = NULL;
    make_ready(backend, &call, given);
    for (int64_t i = 0; p->beta == 0.0f && i < p->m; i++)
        for (int64_t j = 0; j < p->n; j++)
            c[i * ldc + j] = NAN; /* beta 0 does not read c */
    if (packed) {
        const bw_use use = p->trans_b ? BW_FORWARD : BW_BOTH; /* the forward product alone needs less */
        call.weight = weight = bw_calloc(backend->weight_bytes(rows, cols, use), 1, "test");
        assert_non_null(weight);
        backend->pack(weight, (bw_unpacked){.full = b, .ld = cols}, rows, cols, use);
        call.b = NULL;
    }
    backend->multiply(&call);
    for (int64_t i = 0; i < p->m + 1; i++)
        for (int64_t j = 0; j < ldc; j++) {
            double size;
            if (i >= p->m || j >= p->n) {
                assert_true(c[i * ldc + j] == before[i * ldc + j]); /* the gap is left alone */
                continue;
            }
            const double rounded = sum_of(p, a_rounded, lda, b_rounded, ldb, i, j, &size), plain = half ? sum_of(p, a, lda, b, ldb, i, j, &size) : 0;
            check_entry(p, c[i * ldc + j], (double)before[i * ldc + j], rounded, plain, size, half, i * ldc + j);
        }
    bw_free(weight), bw_free(a), bw_free(b), bw_free(c), bw_free(before), bw_free(a_rounded), bw_free(b_rounded);
    bw_free((void *)call.ready_a), bw_free((void *)call.ready_b);
}

/* ---- backends -------------------------------------------------------------------------------------------------------- */

static bool starts(const bw_gemm_backend *backend, int threads)
{
    const char *missing = backend->missing();
    if (missing) {
        printf("skipped: %s in %s: %s\n", backend->name, backend->precision, missing);
        return false;
    }
    bw_error_clear();
    const int status = backend->start(threads);
    if (status == BW_SYSTEM && strstr(bw_error(), "no fast kernels")) { /* an old oneDNN: the next backend is taken */
        printf("skipped: %s in %s: %s\n", backend->name, backend->precision, bw_error());
        bw_error_clear();
        return false;
    }
    if (status != BW_OK)
        fail_msg("%s does not start: %s", backend->name, bw_error());
    printf("%s\n", backend->describe());
    return true;
}

static const bw_gemm_backend *const all[] = {&bw_gemm_blis, &bw_gemm_bf16, &bw_gemm_onednn_fp32, &bw_gemm_onednn_full, &bw_gemm_onednn};
static const int64_t sizes[][3] = {{1, 1, 1},      {1, 7, 13},    {5, 3, 2},     {2, 33, 64},    {16, 16, 16},   {17, 65, 31},   {64, 48, 100},
                                   {13, 130, 301}, {70, 5, 600},  {3, 200, 100}, {7, 130, 300},  {33, 97, 64},   {32, 257, 33},  {100, 100, 32},
                                   {48, 32, 258},  {260, 40, 70}, {80, 64, 96},  {96, 16, 1024}, {72, 32, 1300}, {16, 24, 2100}, {64, 32, 32},
                                   {32, 64, 96},   {77, 32, 64},  {45, 96, 32}}; /* beyond 64 rows, sums that are cut, and whole units */
static const float factors[][2] = {{1, 0}, {1, 1}, {0.5f, 0}, {-2, 0.75f}};

static void multiply_right_for_all_transposes_and_odd_sizes(void **state)
{
    (void)state;
    for (size_t which = 0; which < sizeof all / sizeof *all; which++)
        for (int threads = 1; threads <= 2 && starts(all[which], threads); threads++)
            for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
                for (int transposes = 0; transposes < 4; transposes++)
                    for (size_t f = 0; f < 4; f++)
                        for (int64_t gap = 0; gap <= 2; gap += 2)
                            check(all[which],
                                  &(problem){transposes & 1, transposes & 2, sizes[i][0], sizes[i][1], sizes[i][2], factors[f][0], factors[f][1]},
                                  gap, 0);
}

/* Copies that several products share, on the left, on the right and on both sides. */
static void multiply_right_with_operands_that_are_ready(void **state)
{
    (void)state;
    for (size_t which = 0; which < sizeof all / sizeof *all; which++)
        for (int threads = 1; threads <= 2 && starts(all[which], threads) && all[which]->put; threads++)
            for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
                for (int kind = 0; kind < 16; kind++)
                    for (int given = READY_A; given <= (READY_A | READY_B); given += READY_A)
                        check(all[which],
                              &(problem){kind & 1, kind & 2, sizes[i][0], sizes[i][1], sizes[i][2], factors[kind / 4][0], factors[kind / 4][1]}, 2,
                              given);
}

/* x W^T and dy W from one packed W, written and added to. */
static void multiply_right_with_packed_weights(void **state)
{
    (void)state;
    for (size_t which = 0; which < sizeof all / sizeof *all; which++) {
        if (!starts(all[which], 1) || !all[which]->pack)
            continue;
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            for (int kind = all[which]->forward_only; kind < 8; kind += 1 + all[which]->forward_only) /* x W^T is the odd kind */
                check(all[which], &(problem){false, kind & 1, sizes[i][0], sizes[i][1], sizes[i][2], 1, (float)(kind / 2 % 2)}, kind / 4 * 2, PACKED);
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes && all[which]->put; i++)
            for (int kind = 0; kind < 4; kind++)
                check(all[which], &(problem){false, kind & 1, sizes[i][0], sizes[i][1], sizes[i][2], 1, (float)(kind / 2)}, 2, PACKED | READY_A);
    }
}

static void scale_c_where_there_is_nothing_to_sum(void **state)
{
    (void)state;
    for (size_t which = 0; which < sizeof all / sizeof *all; which++) {
        float x[4] = {1, 2, 3, 4}, c[4] = {1, 2, 3, 4};
        if (!starts(all[which], 1))
            continue;
        bw_gemm_call call = {2, 2, 0, 1, 0.5f, x, x, NULL, c, 2, 2, 2, false, true, NULL, NULL, 0, 0};
        all[which]->multiply(&call);
        assert_true(c[0] == 0.5f && c[3] == 2);
    }
}

/* Thread counts change with the machine that a job is requeued on. LoRA gradients sum over thousands of tokens, and small results tempt a library to
 * cut the sum among its threads. */
static const bw_gemm_backend *const libraries[] = {&bw_gemm_blis, &bw_gemm_onednn_fp32, &bw_gemm_onednn};
static const int thread_counts[] = {2, 3, 8, 16};

/* Of a call that one thread has done into `one`, from `before`; on BLIS three threads will do, since more on two cores take seconds. */
static void check_threads(const bw_gemm_backend *library, bw_gemm_call call, const float *before, const float *one, const char *what)
{
    const size_t bytes = (size_t)(call.m * call.n) * sizeof *one;
    const size_t counts = library == &bw_gemm_blis ? 2 : sizeof thread_counts / sizeof *thread_counts;
    for (size_t t = 0; t < counts; t++) {
        omp_set_num_threads(thread_counts[t]);
        assert_int_equal(library->start(thread_counts[t]), BW_OK);
        if (call.weight)
            library->pack((void *)call.weight, (bw_unpacked){.full = call.b, .ld = call.k}, call.n, call.k, BW_FORWARD);
        memcpy(call.c, before, bytes);
        library->multiply(&call);
        if (memcmp(one, call.c, bytes) != 0)
            fail_msg("%s: other bits of %s, %lld x %lld x %lld, than with one thread", library->describe(), what, (long long)call.m,
                     (long long)call.n, (long long)call.k);
    }
    omp_set_num_threads(1);
    assert_int_equal(library->start(1), BW_OK);
}

static void same_bits_for_any_number_of_threads(void **state)
{
    static const struct {
        bool trans_a, trans_b;
        int64_t m, n, k;
    } products[] = {{true, false, 32, 576, 4096}, {true, false, 576, 32, 4096}, {true, false, 16, 64, 5000}, {false, true, 70, 192, 4096},
                    {false, false, 33, 64, 3000}, {false, true, 257, 32, 576},  {false, true, 300, 8, 1536}, {false, true, 96, 16, 4096},
                    {false, true, 430, 1536, 8},  {false, true, 256, 576, 1024}};
    (void)state;
    for (size_t which = 0; which < sizeof libraries / sizeof *libraries; which++)
        for (size_t i = 0; i < sizeof products / sizeof *products && starts(libraries[which], 1); i++) {
            const int64_t m = products[i].m, n = products[i].n, k = products[i].k;
            float *a = random_floats(m * k, 1), *b = random_floats(k * n, 2), *one = zeros(m * n), *many = zeros(m * n), *before = zeros(m * n);
            bw_gemm_call call = {m, n, k, 2, 0, a, b, NULL, one, 0, 0, n, products[i].trans_a, products[i].trans_b, NULL, NULL, 0, 0};
            call.lda = call.trans_a ? m : k, call.ldb = call.trans_b ? k : n;
            omp_set_num_threads(1);
            libraries[which]->multiply(&call);
            call.c = many;
            check_threads(libraries[which], call, before, one, "a product");
            bw_free(a), bw_free(b), bw_free(one), bw_free(many), bw_free(before);
        }
}

/* Answers are batched in whatever way ranks and their lengths bring about: a row of x W^T does not feel how many there are beside it. */
static void same_bits_of_a_row_for_any_number_of_rows_and_threads(void **state)
{
    enum { MOST = 264, N = 576, K = 1536 };
    static const int64_t rows[] = {1, 16, 40, 65, MOST};
    (void)state;
    for (size_t which = 0; which < sizeof libraries / sizeof *libraries; which++) {
        if (!libraries[which]->pack || !starts(libraries[which], 1))
            continue;
        float *a = random_floats(MOST * K, 1), *w = random_floats(N * K, 2), *before = random_floats(MOST * N, 3);
        float *all_rows = zeros(MOST * N), *c = zeros(MOST * N);
        void *weight = bw_calloc(libraries[which]->weight_bytes(N, K, BW_FORWARD), 1, "test");
        for (int beta = 0; beta < 2; beta++) { /* written, and added to the residual stream */
            bw_gemm_call call = {MOST, N, K, 1, (float)beta, a, w, weight, all_rows, K, 0, N, false, true, NULL, NULL, 0, 0};
            libraries[which]->pack(weight, (bw_unpacked){.full = w, .ld = K}, N, K, BW_FORWARD);
            memcpy(all_rows, before, MOST * N * sizeof *all_rows);
            libraries[which]->multiply(&call);
            call.c = c;
            for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
                call.m = rows[i];
                check_threads(libraries[which], call, before, all_rows, "the first rows");
            }
        }
        bw_free(a), bw_free(w), bw_free(before), bw_free(all_rows), bw_free(c), bw_free(weight);
    }
}

/* More shapes than are kept: what was forgotten is made again, and right. */
static void products_forgotten_are_made_again(void **state)
{
    (void)state;
    if (starts(&bw_gemm_onednn_full, 1))
        for (int64_t n = 1; n < 600; n++)
            check(&bw_gemm_onednn_full, &(problem){false, true, 16, n % 599 + 1, 3, 1, 0}, 2, 0);
}

/* ---- the seam -------------------------------------------------------------------------------------------------------- */

static void precision_takes_the_best_that_is_here(void **state)
{
    (void)state;
    const bool half = starts(&bw_gemm_onednn, 1), full = starts(&bw_gemm_onednn_fp32, 1);
    assert_int_equal(bw_gemm_start("auto", 1), BW_OK);
    printf("auto: %s\n", bw_gemm_describe());
    assert_string_equal(bw_gemm_precision(), half ? "bf16" : "fp32");
    assert_true(bw_gemm_is_half() == half && bw_weight_is_dense(BW_BOTH) == !half);
    if (!half)
        assert_non_null(strstr(bw_gemm_describe(), "; not oneDNN in bf16: ")); /* why it is not the faster one */
    assert_int_equal(bw_gemm_start("bf16", 1), BW_OK);
    printf("bf16: %s\n", bw_gemm_describe());
    assert_string_equal(bw_gemm_precision(), "bf16");
    assert_false(bw_weight_is_dense(BW_BOTH) || bw_weight_is_dense(BW_FORWARD));
    if (!half)
        assert_non_null(strstr(bw_gemm_describe(), "no speed gained"));
    assert_int_equal(bw_gemm_start("fp32", 1), BW_OK);
    printf("fp32: %s\n", bw_gemm_describe());
    assert_string_equal(bw_gemm_precision(), "fp32");
    assert_true(bw_weight_is_dense(BW_BOTH) && bw_weight_bytes(3, 5, BW_BOTH) == 64);
    assert_true(bw_weight_is_dense(BW_FORWARD) == !full);
    assert_true((strstr(bw_gemm_describe(), "; not oneDNN in fp32: ") == NULL) == full);
}

/* A rank takes what another rank can, and says that it cannot. */
static void ranks_agree_on_a_place(void **state)
{
    (void)state;
    assert_int_equal(bw_gemm_start("fp32", 1), BW_OK);
    const int fp32 = bw_gemm_place();
    assert_int_equal(bw_gemm_start("bf16", 1), BW_OK);
    assert_int_equal(bw_gemm_start_at(fp32, 1), BW_OK);
    assert_string_equal(bw_gemm_precision(), "fp32");
    if (bw_gemm_onednn.missing()) {
        bw_error_clear();
        assert_int_equal(bw_gemm_start_at(0, 1), BW_SYSTEM);
        assert_non_null(strstr(bw_error(), "oneDNN"));
        bw_error_clear();
    }
}

/* Rows of bf16 give what rows of fp32 give that round to them, and each direction by itself what both give together; also when more shapes were
 * packed in between than a backend keeps packings of. */
static void weights_are_the_same_from_either_type_and_one_direction_at_a_time(void **state)
{
    (void)state;
    enum { OUT = 40, IN = 56, MANY = 40 };
    static const bw_gemm_backend *const halves[] = {&bw_gemm_onednn, &bw_gemm_bf16};
    for (size_t which = 0; which < sizeof halves / sizeof *halves; which++) {
        const bw_gemm_backend *backend = halves[which];
        if (!starts(backend, 1))
            continue;
        const int64_t bytes = backend->weight_bytes(OUT, IN, BW_BOTH), ld = bw_weight_ld(IN);
        float *full = random_floats(OUT * IN, 2);
        uint16_t *half = bw_calloc(OUT * ld, sizeof *half, "test");
        char *from_full = bw_calloc(bytes, 1, "test"), *from_half = bw_calloc(bytes, 1, "test");
        bw_rows_narrow(half, ld, full, IN, OUT, IN);
        backend->pack(from_full, (bw_unpacked){.full = full, .ld = IN}, OUT, IN, BW_BOTH);
        for (int64_t rows = 1; rows <= MANY; rows++) {
            void *other = bw_calloc(backend->weight_bytes(rows, IN, BW_BOTH), 1, "test");
            backend->pack(other, (bw_unpacked){.full = full, .ld = IN}, rows, IN, BW_BOTH);
            bw_free(other);
        }
        backend->pack(from_half, (bw_unpacked){.half = half, .ld = ld}, OUT, IN, BW_BACKWARD);
        backend->pack(from_half, (bw_unpacked){.half = half, .ld = ld}, OUT, IN, BW_FORWARD);
        assert_memory_equal(from_full, from_half, (size_t)bytes);
        bw_free(full), bw_free(half), bw_free(from_full), bw_free(from_half);
    }
}

/* Through the seam a weight gives the same numbers in both directions as the product with the plain matrix; dense the same bits. */
static void weights_multiply_as_matrices_do(void **state)
{
    (void)state;
    enum { T = 21, OUT = 40, IN = 56 };
    static const char *const precisions[] = {"fp32", "bf16"};
    for (int which = 0; which < 4; which++) {
        const bool backward = which / 2;
        const bw_use use = backward ? BW_BOTH : BW_FORWARD;
        assert_int_equal(bw_gemm_start(precisions[which % 2], 1), BW_OK);
        const bool exact = bw_weight_is_dense(use);
        float *x = random_floats(T * IN, 1), *w = random_floats(OUT * IN, 2), *dy = random_floats(T * OUT, 3);
        float *y = zeros(T * OUT), *y2 = zeros(T * OUT), *dx = zeros(T * IN), *dx2 = zeros(T * IN);
        void *weight = bw_calloc(bw_weight_bytes(OUT, IN, use), 1, "test");
        const bw_weight prepared = {weight, exact, use};
        bw_weight_pack(weight, (bw_unpacked){.full = w, .ld = IN}, OUT, IN, use);
        bw_gemm(false, true, T, OUT, IN, 1, bw_operand_of(x, IN), bw_operand_of(w, IN), 0, y, OUT);
        bw_gemm(false, false, T, IN, OUT, 1, bw_operand_of(dy, OUT), bw_operand_of(w, IN), 0, dx, IN);
        const double before = bw_gemm_flops();
        bw_gemm_weight(true, T, OUT, IN, bw_operand_of(x, IN), prepared, 0, y2, OUT);
        if (backward)
            bw_gemm_weight(false, T, IN, OUT, bw_operand_of(dy, OUT), prepared, 0, dx2, IN);
        assert_true(bw_gemm_flops() - before == (backward ? 4.0 : 2.0) * T * OUT * IN);
        for (int i = 0; i < T * OUT; i++)
            close_to((double)y2[i], (double)y[i], exact ? 0 : 2 * (IN + 3) * FLT_EPSILON / 2 * IN, "y", i);
        for (int i = 0; backward && i < T * IN; i++)
            close_to((double)dx2[i], (double)dx[i], exact ? 0 : 2 * (OUT + 3) * FLT_EPSILON / 2 * OUT, "dx", i);
        bw_free(weight), bw_free(x), bw_free(w), bw_free(dy), bw_free(y), bw_free(y2), bw_free(dx), bw_free(dx2);
    }
}

enum { ROWS = 37, OUT_COLUMNS = 45, RANK = 5 };

static void check_operands(int64_t in)
{
    float *x = random_floats(ROWS * in, 1), *w = random_floats(OUT_COLUMNS * in, 2), *left = zeros(ROWS * in);
    float *y = zeros(OUT_COLUMNS * in), *y2 = zeros(OUT_COLUMNS * in);
    uint32_t *kept = bw_calloc(ROWS * bw_mask_words(in), sizeof *kept, "test");
    int32_t samples[ROWS], positions[ROWS];
    for (int t = 0; t < ROWS; t++)
        samples[t] = t / 9, positions[t] = t % 9;
    const int64_t ready_bytes = bw_operand_bytes(ROWS, in), dropped_bytes = bw_operand_drop_bytes(ROWS, in);
    void *ready = bw_calloc(ready_bytes + 1, 1, "test"), *dropped = bw_calloc(dropped_bytes, 1, "test");
    memset(ready, 0xff, (size_t)ready_bytes), memset(dropped, 0xff, (size_t)dropped_bytes); /* NaN: what was there before */
    bw_dropout_draw(kept, samples, positions, 7, 1, 3, 0.3f, ROWS, in);
    bw_dropout(left, x, kept, 0.3f, ROWS, in);
    for (int drops = 0; drops < 2; drops++) {
        const bw_operand made = drops ? bw_operand_drop(dropped, x, kept, 0.3f, ROWS, in) : bw_operand_ready(ready, x, ROWS, in);
        const bw_operand plain = bw_operand_of(drops ? left : x, in);
        bw_gemm(false, true, ROWS, OUT_COLUMNS, in, 1, plain, bw_operand_of(w, in), 0, y, OUT_COLUMNS);
        bw_gemm(false, true, ROWS, OUT_COLUMNS, in, 1, made, bw_operand_of(w, in), 0, y2, OUT_COLUMNS);
        assert_memory_equal(y, y2, ROWS * OUT_COLUMNS * sizeof *y);
        /* on the right, summed over its rows, as in the gradient of a LoRA's A */
        bw_gemm(true, false, RANK, in, ROWS, 1, bw_operand_of(w, RANK), plain, 0, y, in);
        bw_gemm(true, false, RANK, in, ROWS, 1, bw_operand_of(w, RANK), made, 0, y2, in);
        assert_memory_equal(y, y2, (size_t)(RANK * in) * sizeof *y);
    }
    bw_free(x), bw_free(w), bw_free(left), bw_free(y), bw_free(y2), bw_free(kept), bw_free(ready), bw_free(dropped);
}

/* Through the seam: products read of a copy what they would read of its matrix, and of a dropped one what dropout leaves, to the bit. */
static void operands_are_what_they_were_made_from(void **state)
{
    (void)state;
    static const char *const precisions[] = {"fp32", "bf16"};
    for (int which = 0; which < 2; which++) {
        assert_int_equal(bw_gemm_start(precisions[which], 1), BW_OK);
        check_operands(301); /* no whole units */
        check_operands(320);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(multiply_right_for_all_transposes_and_odd_sizes),
        cmocka_unit_test(multiply_right_with_operands_that_are_ready),
        cmocka_unit_test(multiply_right_with_packed_weights),
        cmocka_unit_test(operands_are_what_they_were_made_from),
        cmocka_unit_test(scale_c_where_there_is_nothing_to_sum),
        cmocka_unit_test(same_bits_for_any_number_of_threads),
        cmocka_unit_test(same_bits_of_a_row_for_any_number_of_rows_and_threads),
        cmocka_unit_test(products_forgotten_are_made_again),
        cmocka_unit_test(precision_takes_the_best_that_is_here),
        cmocka_unit_test(ranks_agree_on_a_place),
        cmocka_unit_test(weights_multiply_as_matrices_do),
        cmocka_unit_test(weights_are_the_same_from_either_type_and_one_direction_at_a_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
