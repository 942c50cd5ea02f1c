/* Dropout: the mask is the documented function of seed, step, sample, position, stream and column, and nothing else. */
#include "num/draw.h"
#include "num_test.h"
#include <omp.h>

enum { T = 37, C = 203 };
static const uint64_t SEED = 0x123456789abcdefu;

static void rows_of(int32_t *samples, int32_t *positions)
{
    for (int32_t t = 0; t < T; t++) {
        samples[t] = 1000 + t / 10;
        positions[t] = t % 10;
    }
}

/* A mask drawn and applied. */
static void drop(float *y, const float *x, const int32_t *samples, const int32_t *positions, uint64_t seed, uint32_t step, uint32_t stream, float p,
                 int64_t rows, int64_t width)
{
    uint32_t *kept = bw_calloc(rows * bw_mask_words(width), sizeof *kept, "test");
    bw_dropout_draw(kept, samples, positions, seed, step, stream, p, rows, width);
    bw_dropout(y, x, kept, p, rows, width);
    bw_free(kept);
}

static float *ones(int64_t n)
{
    float *x = zeros(n);
    for (int64_t i = 0; i < n; i++)
        x[i] = 1;
    return x;
}

/* Whatever the CPU draws with gives the values of bw_rng, at the end of the counter's range too. */
static void every_kernel_draws_what_bw_rng_does(void **state)
{
    (void)state;
    const struct {
        bw_draw *draw;
        bool here;
    } kernels[] = {
        {bw_draw_plain, true},
#if defined(__x86_64__)
        {bw_draw_avx2, __builtin_cpu_supports("avx2")},
        {bw_draw_avx512, __builtin_cpu_supports("avx512f")},
#endif
    };
    static const uint32_t firsts[] = {0, 12345, 0xfffffffbu};
    const bw_key key = {.seed = SEED, .purpose = BW_PURPOSE_DROPOUT, .step = 0xfffffff0u, .sample = 7, .layer = 0x1234};
    for (size_t which = 0; which < sizeof kernels / sizeof *kernels; which++)
        for (size_t f = 0; kernels[which].here && f < sizeof firsts / sizeof *firsts; f++)
            for (int64_t count = 1; count <= 2 * BW_DRAW_UNIT + 1; count++) {
                uint32_t words[4 * BW_DRAW_UNIT][4], want[4];
                kernels[which].draw(words, count, firsts[f], &key);
                for (int64_t i = 0; i < count; i++) {
                    bw_rng(&key, firsts[f] + (uint32_t)i, want);
                    assert_memory_equal(words[i], want, sizeof want);
                }
            }
}

/* Column c draws 16 bits: half c % 2 of word c / 2 % 4 of bw_rng at position * ceil(C / 8) + c / 8. */
static void mask_is_the_documented_function_of_bw_rng(void **state)
{
    (void)state;
    int32_t samples[T], positions[T];
    rows_of(samples, positions);
    float *x = random_floats(T * C, 1), *y = zeros(T * C);
    drop(y, x, samples, positions, SEED, 3, 41, 0.25f, T, C);
    for (int64_t t = 0; t < T; t++)
        for (uint32_t c = 0; c < C; c++) {
            bw_key key = {.seed = SEED, .purpose = BW_PURPOSE_DROPOUT, .step = 3, .sample = (uint32_t)samples[t], .layer = 41};
            uint32_t words[4];
            bw_rng(&key, (uint32_t)positions[t] * ((C + 7) / 8) + c / 8, words);
            bool dropped = (words[c / 2 % 4] >> 16 * (c % 2) & 0xffff) < 16384;
            float wanted = dropped ? 0.0f : x[t * C + c] * (65536.0f / 49152.0f);
            assert_true(y[t * C + c] == wanted);
        }
    bw_free(x), bw_free(y);
}

static void rate_and_mean_are_right(void **state)
{
    (void)state;
    enum { ROWS = 200, WIDTH = 1000, N = ROWS * WIDTH };
    static const float rates[] = {0.0f, 0.05f, 0.1f, 0.5f, 0.9f};
    int32_t samples[ROWS], positions[ROWS];
    for (int32_t t = 0; t < ROWS; t++)
        samples[t] = t / 50, positions[t] = t % 50;
    float *x = ones(N), *y = zeros(N);
    for (size_t r = 0; r < sizeof rates / sizeof rates[0]; r++) {
        double p = (double)rates[r], dropped = 0, sum = 0;
        drop(y, x, samples, positions, 42, 1, 9, rates[r], ROWS, WIDTH);
        for (int64_t i = 0; i < N; i++) {
            dropped += y[i] == 0;
            sum += (double)y[i];
        }
        close_to(dropped / N, p, 5 * sqrt(p * (1 - p) / N) + 0x1p-17, "rate", (int64_t)r); /* 5 sigma; p is rounded to 2^-16 */
        close_to(sum / N, 1, 5 * sqrt(p / (1 - p) / N) + 1e-6, "mean", (int64_t)r);
    }
    same_bits(x, (drop(y, x, samples, positions, 42, 1, 9, 0.0f, ROWS, WIDTH), y), N, "rate 0 changes nothing");
    bw_free(x), bw_free(y);
}

/* A row's mask follows its sample and position wherever it is packed; the gradient meets the same mask, in place. */
static void mask_does_not_depend_on_the_row_or_the_call(void **state)
{
    (void)state;
    int32_t samples[T], positions[T], back_samples[T], back_positions[T];
    rows_of(samples, positions);
    float *x = ones(T * C), *y = zeros(T * C), *back = ones(T * C);
    for (int t = 0; t < T; t++)
        back_samples[t] = samples[T - 1 - t], back_positions[t] = positions[T - 1 - t];
    drop(y, x, samples, positions, SEED, 3, 41, 0.1f, T, C);
    for (int threads = 1; threads <= 3; threads++) {
        omp_set_num_threads(threads);
        for (int64_t i = 0; i < T * C; i++)
            back[i] = 1;
        drop(back, back, back_samples, back_positions, SEED, 3, 41, 0.1f, T, C);
        for (int64_t t = 0; t < T; t++)
            same_bits(y + t * C, back + (T - 1 - t) * C, C, "row");
    }
    omp_set_num_threads(1);
    bw_free(x), bw_free(y), bw_free(back);
}

/* The gradient of what was dropped is added where it was kept, also in a row's last, short word. */
static void what_is_kept_is_added_scaled(void **state)
{
    (void)state;
    int32_t samples[T], positions[T];
    rows_of(samples, positions);
    uint32_t kept[T * ((C + 31) / 32)];
    float *x = random_floats(T * C, 1), *y = random_floats(T * C, 2), *wanted = zeros(T * C);
    bw_dropout_draw(kept, samples, positions, SEED, 3, 41, 0.5f, T, C);
    bw_dropout(wanted, x, kept, 0.5f, T, C);
    for (int64_t i = 0; i < T * C; i++)
        wanted[i] = y[i] + wanted[i]; /* times 2 is exact: no rounding that a fused multiply-add would leave out */
    bw_dropout_add(y, x, kept, 0.5f, T, C);
    same_bits(wanted, y, T * C, "sum");
    for (int64_t t = 0; t < T; t++)
        assert_int_equal(kept[t * bw_mask_words(C) + C / 32] >> C % 32, 0);
    bw_free(x), bw_free(y), bw_free(wanted);
}

/* Changing any one of the key's fields changes about 2 p (1 - p) of the mask. */
static void every_field_of_the_key_matters(void **state)
{
    (void)state;
    int32_t samples[T], positions[T], others[T];
    rows_of(samples, positions);
    float *x = ones(T * C), *y = zeros(T * C), *z = zeros(T * C);
    drop(y, x, samples, positions, SEED, 3, 41, 0.5f, T, C);
    for (int field = 0; field < 5; field++) {
        for (int t = 0; t < T; t++)
            others[t] = (field == 3 ? samples[t] : positions[t]) + 17;
        drop(z, x, field == 3 ? others : samples, field == 4 ? others : positions, SEED + (field == 0), 3 + (field == 1), 41 + (field == 2), 0.5f, T,
             C);
        double different = 0;
        for (int64_t i = 0; i < T * C; i++)
            different += y[i] != z[i];
        close_to(different / (T * C), 0.5, 5 * 0.5 / sqrt(T * C), "changed share", field);
    }
    bw_free(x), bw_free(y), bw_free(z);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kernel_draws_what_bw_rng_does),
        cmocka_unit_test(mask_is_the_documented_function_of_bw_rng),
        cmocka_unit_test(rate_and_mean_are_right),
        cmocka_unit_test(mask_does_not_depend_on_the_row_or_the_call),
        cmocka_unit_test(what_is_kept_is_added_scaled),
        cmocka_unit_test(every_field_of_the_key_matters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
