/* Cross-entropy in chunks against doubles over the whole vocabulary. */
#include "base/half.h"
#include "num_test.h"
#include <omp.h>

typedef struct problem {
    int64_t n, C, V;
    float cap, scale, spread; /* spread: size of a head entry */
} problem;

static const problem problems[] = {
    {1, 8, 3, 0, 1, 1}, {5, 16, 1024, 0, 0.25f, 1}, {7, 24, 2500, 0, 1, 3}, {6, 16, 3000, 2.0f, 0.5f, 1}, {3, 64, 5000, 30.0f, 1, 10}};
enum { PROBLEMS = sizeof problems / sizeof problems[0] };

static void solve_row(const problem *p, const float *h, const float *head, int32_t target, double *loss, double *dh)
{
    double sum = 0, highest = -1e300, *z = bw_calloc(p->V, sizeof *z, "test"), cap = (double)p->cap;
    assert_non_null(z);
    for (int64_t j = 0; j < p->V; j++) {
        for (int64_t c = 0; c < p->C; c++)
            z[j] += (double)h[c] * (double)head[j * p->C + c];
        if (cap > 0)
            z[j] = cap * tanh(z[j] / cap);
        highest = z[j] > highest ? z[j] : highest;
    }
    for (int64_t j = 0; j < p->V; j++)
        sum += exp(z[j] - highest);
    *loss = highest + log(sum) - z[target];
    memset(dh, 0, sizeof *dh * (size_t)p->C);
    for (int64_t j = 0; j < p->V; j++) {
        double t = cap > 0 ? z[j] / cap : 0, d = (exp(z[j] - highest) / sum - (j == target)) * (1 - t * t) * (double)p->scale;
        for (int64_t c = 0; c < p->C; c++)
            dh[c] += d * (double)head[j * p->C + c];
    }
    bw_free(z);
}

static void equals_the_definition_in_doubles(void **state)
{
    (void)state;
    for (int i = 0; i < PROBLEMS; i++) {
        const problem *p = &problems[i];
        float *h = random_floats(p->n * p->C, 1), *head = random_floats(p->V * p->C, 2), *loss = zeros(p->n), *dh = random_floats(p->n * p->C, 3);
        float *scratch = zeros(bw_loss_scratch(p->n, p->C)), *alone = zeros(p->n);
        int32_t targets[8];
        for (int64_t r = 0; r < p->n; r++)
            targets[r] = (int32_t)((r + 1) * 7919 % p->V);
        targets[p->n - 1] = (int32_t)p->V - 1;
        for (int64_t j = 0; j < p->V * p->C; j++)
            head[j] *= p->spread;
        bw_loss(loss, dh, p->scale, h, head, targets, p->n, p->C, p->V, p->cap, scratch);
        bw_loss(alone, NULL, p->scale, h, head, targets, p->n, p->C, p->V, p->cap, scratch);
        same_bits(loss, alone, p->n, "loss without gradient");
        /* a logit is a sum of C terms up to `spread`: it is off by about C eps/2 * spread, and exp takes that over
         * relatively; the loss adds log of V such terms, a gradient entry is a mean of head entries up to `spread` */
        double off = (double)(p->C + 16) * FLT_EPSILON * (double)p->spread, exact_loss, dh_exact[64];
        for (int64_t r = 0; r < p->n; r++) {
            solve_row(p, h + r * p->C, head, targets[r], &exact_loss, dh_exact);
            close_to((double)loss[r], exact_loss, off * 2 + 8 * FLT_EPSILON * fabs(exact_loss), "loss", r);
            for (int64_t c = 0; c < p->C; c++)
                close_to((double)dh[r * p->C + c], dh_exact[c], 4 * off * (double)p->spread * (double)p->scale, "dh", r * p->C + c);
        }
        bw_free(h), bw_free(head), bw_free(loss), bw_free(dh), bw_free(scratch), bw_free(alone);
    }
}

/* What the test above compares with: the gradient in doubles is the slope of the loss in doubles. */
static void exact_gradient_agrees_with_central_differences(void **state)
{
    (void)state;
    for (int i = 0; i < PROBLEMS; i++) {
        const problem *p = &problems[i];
        float *h = random_floats(p->n * p->C, 1), *head = random_floats(p->V * p->C, 2);
        double up, down, dh[64], ignored[64], step = 1e-3;
        int32_t target = (int32_t)(p->V / 2);
        solve_row(p, h, head, target, &up, dh);
        for (int64_t c = 0; c < 4; c++) {
            float old = h[c];
            h[c] = old + (float)step;
            double above = (double)h[c];
            solve_row(p, h, head, target, &up, ignored);
            h[c] = old - (float)step;
            double below = (double)h[c];
            solve_row(p, h, head, target, &down, ignored);
            h[c] = old;
            close_to(dh[c], (double)p->scale * (up - down) / (above - below), 1e-5, "slope", c);
        }
        bw_free(h), bw_free(head);
    }
}

static void same_bits_for_any_number_of_threads(void **state)
{
    (void)state;
    enum { N = 70, C = 96, V = 2100 };
    float *h = random_floats(N * C, 1), *head = random_floats((int64_t)V * C, 2), *loss = zeros(N), *dh = zeros(N * C), *loss2 = zeros(N),
          *dh2 = zeros(N * C);
    float *scratch = zeros(bw_loss_scratch(N, C));
    int32_t targets[N];
    for (int i = 0; i < N; i++)
        targets[i] = i * 29 % V;
    for (int threads = 1; threads <= 3; threads++) {
        assert_int_equal(bw_gemm_start("fp32", threads), BW_OK);
        omp_set_num_threads(threads);
        bw_loss(threads == 1 ? loss : loss2, threads == 1 ? dh : dh2, 1, h, head, targets, N, C, V, 0, scratch);
        if (threads > 1) {
            same_bits(loss, loss2, N, "loss");
            same_bits(dh, dh2, N * C, "dh");
        }
    }
    omp_set_num_threads(1);
    assert_int_equal(bw_gemm_start("fp32", 1), BW_OK);
    bw_free(h), bw_free(head), bw_free(loss), bw_free(dh), bw_free(loss2), bw_free(dh2), bw_free(scratch);
}

/* With bf16 operands a gradient is as good as its rounding to 8 bits lets it be, 2^-7 a term, also where a target is all but certain and the gradient
 * a thousandth of a head row: that row's own rounding must not stand beside it. Compared with the head as it is rounded, for the logits' sake. */
static void gradients_of_certain_rows_survive_bf16(void **state)
{
    (void)state;
    enum { N = 8, C = 64, V = 1500 };
    static const problem p = {N, C, V, 0, 1, 1};
    float *h = zeros(N * C), *head = random_floats((int64_t)V * C, 2), *loss = zeros(N), *dh = zeros(N * C);
    int32_t targets[N];
    float *rounded = zeros((int64_t)V * C);
    for (int64_t j = 0; j < (int64_t)V * C; j++)
        rounded[j] = bw_from_bf16(bw_to_bf16(head[j]));
    for (int i = 0; i < N; i++) {
        targets[i] = i * 171 % V;
        for (int c = 0; c < C; c++)
            h[i * C + c] = bw_from_bf16(bw_to_bf16((0.3f + 0.06f * (float)i) * head[targets[i] * C + c]));
    }
    assert_int_equal(bw_gemm_start("bf16", 1), BW_OK);
    float *scratch = zeros(bw_loss_scratch(N, C));
    bw_loss(loss, dh, 1, h, head, targets, N, C, V, 0, scratch);
    assert_int_equal(bw_gemm_start("fp32", 1), BW_OK);
    double least = 1e300;
    for (int i = 0; i < N; i++) {
        double exact_loss, exact[C], apart = 0, length = 0;
        solve_row(&p, h + i * C, rounded, targets[i], &exact_loss, exact);
        close_to((double)loss[i], exact_loss, 1e-4, "loss", i);
        for (int c = 0; c < C; c++) {
            apart += pow((double)dh[i * C + c] - exact[c], 2);
            length += exact[c] * exact[c];
        }
        least = exact_loss < least ? exact_loss : least;
        close_to(sqrt(apart / length), 0, 0x1p-7, "gradient", i);
    }
    assert_true(least < 2e-3);
    bw_free(h), bw_free(rounded), bw_free(head), bw_free(loss), bw_free(dh), bw_free(scratch);
}

static void no_rows_is_no_work(void **state)
{
    (void)state;
    float scratch[1], head[6] = {0};
    bw_loss(NULL, NULL, 1, NULL, head, NULL, 0, 2, 3, 0, scratch);
}

int main(void)
{
    if (bw_gemm_start("fp32", 1) != BW_OK)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_the_definition_in_doubles),
        cmocka_unit_test(exact_gradient_agrees_with_central_differences),
        cmocka_unit_test(same_bits_for_any_number_of_threads),
        cmocka_unit_test(gradients_of_certain_rows_survive_bf16),
        cmocka_unit_test(no_rows_is_no_work),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
