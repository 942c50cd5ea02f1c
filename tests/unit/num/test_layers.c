/* Layers: each forward pass against the same formula in doubles, each backward pass against central differences of it. */
#include "num_test.h"
#include "num/hot.h"
#include <omp.h>

enum { T = 3, C = 22 };
static const double STEP = 1e-5; /* central differences in double: error about STEP^2 and 1e-16 / STEP, far below 1e-6 */

/* The largest size of a float result here is near 4, and each takes fewer than C + 20 roundings of half an eps. */
static const double NEAR = 4.0 * (C + 20) * FLT_EPSILON / 2;

/* ---- the exponential ---------------------------------------------------------------------------------------------- */

static void exponential_is_within_two_units_in_the_last_place(void **state)
{
    (void)state;
    double worst = 0;
    for (uint32_t bits = 0; bits <= bw_bits_of(88.0f); bits += 4001)
        for (int negative = 0; negative < 2; negative++) {
            float x = negative ? -bw_float_of(bits) : bw_float_of(bits);
            if (x < -87.0f)
                continue;
            long double exact = expl((long double)x);
            float nearest = (float)exact;
            double unit = (double)(nextafterf(nearest, INFINITY) - nearest);
            double error = (double)fabsl((long double)bw_exp(x) - exact) / unit;
            worst = error > worst ? error : worst;
        }
    if (worst > 2.0)
        fail_msg("bw_exp is %.2f units in the last place off", worst);
    assert_true(bw_exp(-1000.0f) == bw_exp(-87.0f) && bw_exp(-87.0f) >= FLT_MIN);
    assert_true(bw_exp(1000.0f) == bw_exp(88.0f) && isfinite(bw_exp(88.0f)));
    assert_true(bw_exp(0.0f) == 1.0f);
}

static void tanh_is_near_enough_for_a_capped_score(void **state)
{
    (void)state;
    for (double x = -40; x < 40; x += 0.00137)
        close_to((double)bw_tanh((float)x), tanh((double)(float)x), 3e-7, "tanh", (int64_t)(x * 1000));
}

/* ---- RMS norm ------------------------------------------------------------------------------------------------------ */

static double norm_entry(const double *x, const float *w, double add, double eps, int64_t c)
{
    double sum = 0;
    for (int64_t i = 0; i < C; i++)
        sum += x[i] * x[i];
    return x[c] / sqrt(sum / C + eps) * ((double)w[c] + add);
}

/* sum over c of dy[c] * y[c]: its derivative by x[i] is the backward pass. */
static double norm_weighted(const double *x, const float *w, double add, double eps, const float *dy)
{
    double sum = 0;
    for (int64_t c = 0; c < C; c++)
        sum += (double)dy[c] * norm_entry(x, w, add, eps, c);
    return sum;
}

static void check_norm(bool add_one)
{
    float *x = random_floats(T * C, 1), *w = random_floats(C, 2), *dy = random_floats(T * C, 3), *dx = random_floats(T * C, 4),
          *before = random_floats(T * C, 4);
    float *y = zeros(T * C), *inverse = zeros(T), eps = 1e-5f;
    bw_rmsnorm_forward(y, inverse, x, w, add_one, eps, T, C);
    bw_rmsnorm_backward(dx, dy, x, inverse, w, add_one, T, C);
    for (int64_t t = 0; t < T; t++) {
        double row[C];
        for (int64_t c = 0; c < C; c++)
            row[c] = (double)x[t * C + c];
        for (int64_t c = 0; c < C; c++) {
            close_to((double)y[t * C + c], norm_entry(row, w, add_one, (double)eps, c), NEAR, "y", t * C + c);
            double old = row[c];
            row[c] = old + STEP;
            double up = norm_weighted(row, w, add_one, (double)eps, dy + t * C);
            row[c] = old - STEP;
            double down = norm_weighted(row, w, add_one, (double)eps, dy + t * C);
            row[c] = old;
            close_to((double)dx[t * C + c], (double)before[t * C + c] + (up - down) / (2 * STEP), 4 * NEAR, "dx", t * C + c);
        }
    }
    bw_free(x), bw_free(w), bw_free(dy), bw_free(dx), bw_free(before), bw_free(y), bw_free(inverse);
}

static void rmsnorm_and_its_gradient(void **state)
{
    (void)state;
    check_norm(false);
    check_norm(true);
}

/* ---- rotary embedding ------------------------------------------------------------------------------------------------ */

static void rope_turns_halves_and_inverse_turns_back(void **state)
{
    (void)state;
    enum { HEADS = 2, HEAD = 10, HALF = HEAD / 2, LD = HEADS * HEAD + 3, POSITIONS = 50 };
    int32_t positions[T] = {0, 7, 49};
    float *x = random_floats(T * LD, 1), *before = random_floats(T * LD, 1), cosines[POSITIONS * HALF], sines[POSITIONS * HALF];
    for (int p = 0; p < POSITIONS; p++)
        for (int i = 0; i < HALF; i++) {
            double angle = p * pow(10000.0, -2.0 * i / HEAD);
            cosines[p * HALF + i] = (float)cos(angle);
            sines[p * HALF + i] = (float)sin(angle);
        }
    bw_rope(x, LD, positions, cosines, sines, T, HEADS, HEAD, false);
    for (int t = 0; t < T; t++)
        for (int h = 0; h < HEADS; h++)
            for (int i = 0; i < HALF; i++) {
                int at = t * LD + h * HEAD + i, table = positions[t] * HALF + i;
                double a = (double)before[at], b = (double)before[at + HALF], c = (double)cosines[table], s = (double)sines[table];
                close_to((double)x[at], a * c - b * s, 4 * FLT_EPSILON, "first half", at);
                close_to((double)x[at + HALF], b * c + a * s, 4 * FLT_EPSILON, "second half", at);
            }
    for (int t = 0; t < T; t++)
        same_bits(x + t * LD + HEADS * HEAD, before + t * LD + HEADS * HEAD, 3, "gap");
    same_bits(x, before, HEADS * HEAD, "position 0"); /* turned by no angle */
    bw_rope(x, LD, positions, cosines, sines, T, HEADS, HEAD, true);
    for (int64_t i = 0; i < T * LD; i++)
        close_to((double)x[i], (double)before[i], 8 * FLT_EPSILON, "turned back", i);
    bw_free(x), bw_free(before);
}

/* ---- SwiGLU ---------------------------------------------------------------------------------------------------------- */

static double swiglu(double g, double u)
{
    return g / (1 + exp(-g)) * u;
}

static void swiglu_and_its_gradient(void **state)
{
    (void)state;
    enum { N = 10007 }; /* more than one span, and an odd tail */
    float *g = random_floats(N, 1), *u = random_floats(N, 2), *dh = random_floats(N, 3), *h = zeros(N), *dg = zeros(N), *du = zeros(N);
    for (int64_t i = 0; i < N; i++)
        g[i] *= (float)(i % 13);
    bw_swiglu_forward(h, g, u, N);
    bw_swiglu_backward(dg, du, dh, g, u, N);
    for (int64_t i = 0; i < N; i++) {
        double x = (double)g[i], y = (double)u[i], d = (double)dh[i];
        double bound = 16 * FLT_EPSILON * (1 + fabs(x)); /* about ten roundings of numbers up to |g| */
        close_to((double)h[i], swiglu(x, y), bound, "h", i);
        close_to((double)dg[i], d * (swiglu(x + STEP, y) - swiglu(x - STEP, y)) / (2 * STEP), bound + 1e-8, "dg", i);
        close_to((double)du[i], d * swiglu(x, 1), bound, "du", i);
    }
    bw_swiglu_backward(g, u, dh, g, u, N); /* in place */
    same_bits(g, dg, N, "dg in place");
    same_bits(u, du, N, "du in place");
    bw_free(g), bw_free(u), bw_free(dh), bw_free(h), bw_free(dg), bw_free(du);
}

static void swiglu_of_extreme_gates_is_finite(void **state)
{
    (void)state;
    float g[4] = {-1e30f, -200, 200, 1e30f}, u[4] = {1, 1, 1, 1}, h[4], dg[4], du[4];
    bw_swiglu_forward(h, g, u, 4);
    bw_swiglu_backward(dg, du, u, g, u, 4);
    for (int i = 0; i < 4; i++)
        assert_true(isfinite(h[i]) && isfinite(dg[i]) && isfinite(du[i]));
    assert_true(h[3] == 1e30f && dg[2] == 1.0f);
    close_to((double)h[1], 0, 1e-30, "h", 1);
}

/* ---- the small ones -------------------------------------------------------------------------------------------------- */

static void add_embed_and_argmax(void **state)
{
    (void)state;
    float y[5] = {1, 2, 3, 4, 5}, x[5] = {1, 1, 1, 1, 1}, table[6] = {0, 1, 2, 3, 4, 5}, rows[4];
    int32_t tokens[2] = {2, 0};
    bw_add(y, x, 5);
    assert_true(y[0] == 2 && y[4] == 6);
    bw_embed(rows, table, tokens, 2, 2, 2.0f);
    assert_true(rows[0] == 8 && rows[1] == 10 && rows[2] == 0 && rows[3] == 2);
    float tied[5] = {-1, 3, 2, 3, 0};
    assert_int_equal(bw_argmax(tied, 5), 1);
    assert_int_equal(bw_argmax(tied, 1), 0);
}

/* Sums of squares and products in float64: sixteen or so roundings an entry at most. */
static void sums_of_a_kept_delta(void **state)
{
    (void)state;
    enum { N = 1003 };
    float *delta = random_floats(N, 1), *now = random_floats(N, 2), *before = random_floats(N, 3);
    double wanted = 1, stored = 2, product = 3, error = 4;
    bw_delta_sums sums = {wanted, stored, product, error};
    for (int64_t i = 0; i < N; i++) {
        double w = (double)delta[i], s = (double)now[i] - (double)before[i];
        wanted += w * w;
        stored += s * s;
        product += w * s;
        error += (s - w) * (s - w);
    }
    bw_delta_kept(&sums, delta, now, before, N);
    const double bound = 1e-13 * N;
    close_to(sums.wanted, wanted, bound, "wanted", 0);
    close_to(sums.stored, stored, bound, "stored", 0);
    close_to(sums.product, product, bound, "product", 0);
    close_to(sums.error, error, bound, "error", 0);
    bw_free(delta), bw_free(now), bw_free(before);
}

static void denormals_are_flushed_in_every_thread(void **state)
{
    (void)state;
    omp_set_num_threads(2);
    bw_flush_denormals();
    int kept = 0;
#pragma omp parallel num_threads(2) reduction(+ : kept)
    {
        volatile float tiny = FLT_MIN, half = 0.5f;
        kept += tiny * half != 0.0f;
    }
    assert_int_equal(kept, 0);
}

/* Rows are summed by one thread, and alignment may not choose another order. */
static void same_bits_for_any_address_and_threads(void **state)
{
    (void)state;
    enum { ROWS = 37, WIDTH = 577 };
    float *x = random_floats(ROWS * WIDTH + 16, 1), *w = random_floats(WIDTH, 2), *dy = random_floats(ROWS * WIDTH, 3);
    float *y = zeros(ROWS * WIDTH), *dx = zeros(ROWS * WIDTH), *inverse = zeros(ROWS), *x2 = zeros(ROWS * WIDTH + 16), *y2 = zeros(ROWS * WIDTH + 16),
          *dx2 = zeros(ROWS * WIDTH + 16);
    bw_rmsnorm_forward(y, inverse, x, w, false, 1e-5f, ROWS, WIDTH);
    bw_rmsnorm_backward(dx, dy, x, inverse, w, false, ROWS, WIDTH);
    for (int shift = 0; shift < 9; shift++) {
        omp_set_num_threads(1 + shift % 3);
        memcpy(x2 + shift, x, sizeof *x * ROWS * WIDTH);
        memset(dx2, 0, sizeof *dx2 * (ROWS * WIDTH + 16));
        bw_rmsnorm_forward(y2 + 8 - shift, inverse, x2 + shift, w, false, 1e-5f, ROWS, WIDTH);
        bw_rmsnorm_backward(dx2 + 9 - shift, dy, x2 + shift, inverse, w, false, ROWS, WIDTH);
        same_bits(y, y2 + 8 - shift, ROWS * WIDTH, "y");
        same_bits(dx, dx2 + 9 - shift, ROWS * WIDTH, "dx");
    }
    omp_set_num_threads(1);
    bw_free(x), bw_free(w), bw_free(dy), bw_free(y), bw_free(dx), bw_free(inverse), bw_free(x2), bw_free(y2), bw_free(dx2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exponential_is_within_two_units_in_the_last_place),
        cmocka_unit_test(tanh_is_near_enough_for_a_capped_score),
        cmocka_unit_test(rmsnorm_and_its_gradient),
        cmocka_unit_test(rope_turns_halves_and_inverse_turns_back),
        cmocka_unit_test(swiglu_and_its_gradient),
        cmocka_unit_test(swiglu_of_extreme_gates_is_finite),
        cmocka_unit_test(add_embed_and_argmax),
        cmocka_unit_test(same_bits_for_any_address_and_threads),
        cmocka_unit_test(sums_of_a_kept_delta),
        cmocka_unit_test(denormals_are_flushed_in_every_thread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
