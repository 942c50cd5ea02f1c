/* test_rounding.c - a block of a dense weight, tile by tile and on any number of threads, against the whole of it at once. */
#include "post/inside.h"
#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

enum { ROWS = 101, COLUMNS = 2 * BW_ROUND_COLUMNS + 77, R = 9, PARTS = COLUMNS / BW_ROUND_COLUMNS + 1 };
static float base[ROWS * COLUMNS], a[R * COLUMNS], b[ROWS * R], *packed;

static void fill(float *x, int64_t n, uint32_t salt, float size)
{
    for (int64_t i = 0; i < n; ++i) {
        bw_key key = {3, BW_PURPOSE_TEST, salt, 0, 0};
        uint32_t out[4];
        bw_rng(&key, (uint32_t)i, out);
        x[i] = size * (2 * bw_rng_uniform(out[0]) - 1);
    }
}

static bool near(double got, double want)
{
    return fabs(got - want) <= 1e-12 * fabs(want);
}

static void one_type(bw_dtype dtype, int threads)
{
    static float delta[ROWS * COLUMNS], merged[ROWS * COLUMNS], kept[ROWS * COLUMNS];
    static char right[4 * ROWS * COLUMNS], plain[4 * ROWS * COLUMNS], stored[4 * ROWS * COLUMNS];
    bw_fidelity parts[PARTS] = {0}, sum = {0}, expected = {.entries = ROWS * COLUMNS};
    const bw_round block = {dtype, packed, b, R};
    int64_t width = bw_dtype_bytes(dtype, 1);
    omp_set_num_threads(threads);
    bw_round_block(&block, base, ROWS, COLUMNS, stored, parts);
    omp_set_num_threads(1);
    for (int i = 0; i < PARTS; ++i)
        bw_fidelity_add(&sum, &parts[i]);
    memset(delta, 0, sizeof delta);
    bw_fold(delta, COLUMNS, ROWS, COLUMNS, 1, b, R, a, COLUMNS, R);
    for (int64_t i = 0; i < ROWS * COLUMNS; ++i)
        merged[i] = base[i] + delta[i];
    bw_from_f32(right, merged, dtype, ROWS * COLUMNS);
    bw_from_f32(plain, base, dtype, ROWS * COLUMNS);
    bw_to_f32(kept, right, dtype, ROWS * COLUMNS);
    for (int64_t i = 0; i < ROWS * COLUMNS; ++i)
        expected.changed += memcmp(right + i * width, plain + i * width, (size_t)width) != 0;
    bw_delta_kept(&expected.delta, delta, kept, base, ROWS * COLUMNS);
    assert_true(memcmp(stored, right, (size_t)(ROWS * COLUMNS * width)) == 0);
    assert_true(sum.entries == expected.entries && sum.changed == expected.changed);
    assert_true(sum.changed > 0 && (dtype != BW_BF16 || sum.changed < sum.entries));
    assert_true(near(sum.delta.wanted, expected.delta.wanted) && near(sum.delta.stored, expected.delta.stored));
    assert_true(near(sum.delta.product, expected.delta.product) && near(sum.delta.error, expected.delta.error));
}

/* What fp16 cannot hold makes the sum not finite. */
static void too_large_for_the_type(void **state)
{
    (void)state;
    static char stored[2 * ROWS * COLUMNS];
    bw_fidelity parts[PARTS] = {0};
    const bw_round block = {BW_F16, packed, b, R};
    float before = base[40 * COLUMNS + 600];
    base[40 * COLUMNS + 600] = 1e5F;
    bw_round_block(&block, base, ROWS, COLUMNS, stored, parts);
    assert_true(isfinite(parts[0].delta.stored) && !isfinite(parts[1].delta.stored) && isfinite(parts[2].delta.stored));
    base[40 * COLUMNS + 600] = before;
}

static void the_same_as_the_whole_at_once(void **state)
{
    static const bw_dtype types[] = {BW_F32, BW_F16, BW_BF16};
    (void)state;
    for (int threads = 1; threads <= 3; ++threads)
        for (int i = 0; i < 3; ++i)
            one_type(types[i], threads);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_as_the_whole_at_once),
        cmocka_unit_test(too_large_for_the_type),
    };
    packed = bw_calloc(bw_round_floats(R, COLUMNS), sizeof *packed, "test");
    if (!packed)
        return 1;
    fill(base, ROWS * COLUMNS, 1, 1);
    fill(a, R * COLUMNS, 2, 0.1F);
    fill(b, ROWS * R, 3, 0.01F);
    bw_round_pack(a, COLUMNS, R, COLUMNS, packed);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bw_free(packed);
    return failed;
}
