/* Attention against the definition in doubles: ragged packed sequences, grouped heads, window, soft cap; gradients
 * against the analytic ones in doubles, and those against central differences. */
#include "base/half.h"
#include "num_test.h"
#include <omp.h>

typedef struct problem {
    bw_attention shape;
    int32_t offsets[8];
    int n_seq;
    int64_t ldq, ldk;
} problem;

static const problem problems[] = {
    {{4, 2, 8, 0.35f, 0, 0}, {0, 1, 6, 40, 143}, 4, 35, 19}, {{3, 1, 64, 0.125f, 0, 0}, {0, 130, 131, 230}, 3, 192, 64},
    {{2, 2, 10, 0.3f, 0, 7}, {0, 70, 103}, 2, 20, 20},       {{4, 1, 16, 1.0f, 2.5f, 0}, {0, 33, 97}, 2, 64, 16},
    {{2, 1, 48, 0.5f, 3.0f, 40}, {0, 5, 180}, 2, 96, 50},    {{1, 1, 2, 1.0f, 0, 1}, {0, 9, 9, 12}, 3, 2, 2},
    {{2, 1, 256, 0.0625f, 0, 33}, {0, 75}, 1, 512, 256},     {{10, 1, 16, 0.25f, 0, 0}, {0, 70}, 1, 160, 16},
};
enum { PROBLEMS = sizeof problems / sizeof problems[0] };

/* One query row of one head in doubles: probabilities, capped scores, output. q, k, v: doubles at the row, and at the
 * head's column of the sequence's first row. */
static double row_exact(const bw_attention *s, const double *q, const double *k, const double *v, int64_t ldk, int64_t i, double *p, double *scores,
                        double *out)
{
    double sum = 0;
    int64_t first = s->window && i - s->window + 1 > 0 ? i - s->window + 1 : 0;
    for (int64_t j = 0; j <= i; j++) {
        double dot = 0;
        for (int c = 0; c < s->head_dim; c++)
            dot += q[c] * k[j * ldk + c];
        scores[j] = dot * (double)s->scale;
        if (s->soft_cap > 0)
            scores[j] = (double)s->soft_cap * tanh(scores[j] / (double)s->soft_cap);
        p[j] = j < first ? 0 : exp(scores[j]);
        sum += p[j];
    }
    memset(out, 0, sizeof *out * (size_t)s->head_dim);
    for (int64_t j = first; j <= i; j++) {
        p[j] /= sum;
        for (int c = 0; c < s->head_dim; c++)
            out[c] += p[j] * v[j * ldk + c];
    }
    return log(sum);
}

typedef struct arrays {
    int64_t T;
    float *q, *k, *v, *dout, *out, *lse, *dq, *dk, *dv, *scratch;
    double *exact_q, *exact_k, *exact_v, *exact_out, *exact_lse, *exact_dq, *exact_dk, *exact_dv;
} arrays;

static double *doubles_of(const float *x, int64_t n)
{
    double *y = bw_calloc(n, sizeof *y, "test");
    assert_non_null(y);
    for (int64_t i = 0; x && i < n; i++)
        y[i] = (double)x[i];
    return y;
}

static arrays arrays_of(const problem *p)
{
    arrays a = {.T = p->offsets[p->n_seq]};
    int64_t nq = a.T * p->ldq, nk = a.T * p->ldk;
    a.scratch = zeros(bw_attention_scratch(&p->shape, a.T) + 1);
    a.q = random_floats(nq, 1), a.k = random_floats(nk, 2), a.v = random_floats(nk, 3), a.dout = random_floats(nq, 4);
    a.out = random_floats(nq, 5), a.lse = zeros(a.T * p->shape.n_head), a.dq = random_floats(nq, 6), a.dk = random_floats(nk, 7),
    a.dv = random_floats(nk, 8);
    a.exact_q = doubles_of(a.q, nq), a.exact_k = doubles_of(a.k, nk), a.exact_v = doubles_of(a.v, nk);
    a.exact_out = doubles_of(NULL, nq), a.exact_lse = doubles_of(NULL, a.T * p->shape.n_head);
    a.exact_dq = doubles_of(NULL, nq), a.exact_dk = doubles_of(NULL, nk), a.exact_dv = doubles_of(NULL, nk);
    return a;
}

static void arrays_free(arrays *a)
{
    void *all[] = {a->q,       a->k,       a->v,       a->dout,    a->out,       a->lse,       a->dq,       a->dk,       a->dv,
                   a->scratch, a->exact_q, a->exact_k, a->exact_v, a->exact_out, a->exact_lse, a->exact_dq, a->exact_dk, a->exact_dv};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        bw_free(all[i]);
}

/* The gradient of one row, added. */
static void row_exact_backward(const problem *pr, arrays *a, int64_t row, int64_t x, int64_t y, const double *p, const double *scores, int64_t count,
                               const double *out)
{
    const bw_attention *s = &pr->shape;
    double dot = 0;
    for (int c = 0; c < s->head_dim; c++)
        dot += (double)a->dout[x + c] * out[c];
    (void)row;
    for (int64_t j = 0; j < count; j++) {
        double dp = 0, t = s->soft_cap > 0 ? scores[j] / (double)s->soft_cap : 0;
        for (int c = 0; c < s->head_dim; c++)
            dp += (double)a->dout[x + c] * a->exact_v[y + j * pr->ldk + c];
        double ds = p[j] * (dp - dot) * (1 - t * t) * (double)s->scale;
        for (int c = 0; c < s->head_dim; c++) {
            a->exact_dv[y + j * pr->ldk + c] += p[j] * (double)a->dout[x + c];
            a->exact_dk[y + j * pr->ldk + c] += ds * a->exact_q[x + c];
            a->exact_dq[x + c] += ds * a->exact_k[y + j * pr->ldk + c];
        }
    }
}

/* Fill the exact outputs and gradients; returns sum of dout * out, whose gradient they are. */
static double solve_exactly(const problem *p, arrays *a, bool gradient)
{
    const bw_attention *s = &p->shape;
    double total = 0, *probability = doubles_of(NULL, a->T), *scores = doubles_of(NULL, a->T), out[BW_MAX_HEAD_DIM];
    for (int sequence = 0; sequence < p->n_seq; sequence++)
        for (int64_t row = p->offsets[sequence]; row < p->offsets[sequence + 1]; row++)
            for (int head = 0; head < s->n_head; head++) {
                int64_t i = row - p->offsets[sequence], x = row * p->ldq + head * s->head_dim;
                int64_t y = p->offsets[sequence] * p->ldk + head / (s->n_head / s->n_kv) * s->head_dim;
                a->exact_lse[head * a->T + row] = row_exact(s, a->exact_q + x, a->exact_k + y, a->exact_v + y, p->ldk, i, probability, scores, out);
                for (int c = 0; c < s->head_dim; c++) {
                    a->exact_out[x + c] = out[c];
                    total += (double)a->dout[x + c] * out[c];
                }
                if (gradient)
                    row_exact_backward(p, a, row, x, y, probability, scores, i + 1, out);
            }
    bw_free(probability), bw_free(scores);
    return total;
}

static void compare(const float *got, const double *exact, const float *before, int64_t T, int64_t ld, int64_t width, double bound, const char *what)
{
    for (int64_t t = 0; t < T; t++)
        for (int64_t c = 0; c < ld; c++)
            if (c < width)
                close_to((double)got[t * ld + c], exact[t * ld + c], bound, what, t * ld + c);
            else
                assert_true(got[t * ld + c] == before[t * ld + c]); /* gaps between rows are left alone */
}

/* A score is a sum of head_dim terms below 1, so it is off by at most head_dim^2 eps/2 * scale in theory and by about
 * head_dim eps in practice; probabilities are off by that, relatively, and so are sums weighted by them. Gradients of
 * keys add up `longest * group` of such terms with random signs. */
static double bound_of(const problem *p)
{
    double cap = p->shape.soft_cap > 0 ? 1 + (double)p->shape.soft_cap : 1;
    return (16 + p->shape.head_dim * (double)p->shape.scale * 4) * FLT_EPSILON * cap;
}

static void forward_equals_the_definition(void **state)
{
    (void)state;
    for (int i = 0; i < PROBLEMS; i++) {
        const problem *p = &problems[i];
        arrays a = arrays_of(p);
        float *before = random_floats(a.T * p->ldq, 5);
        solve_exactly(p, &a, false);
        bw_attention_forward(&p->shape, a.out, a.lse, a.q, a.k, a.v, p->ldq, p->ldk, p->offsets, p->n_seq, a.scratch);
        compare(a.out, a.exact_out, before, a.T, p->ldq, p->shape.n_head * p->shape.head_dim, bound_of(p), "out");
        for (int64_t t = 0; t < a.T * p->shape.n_head; t++)
            close_to((double)a.lse[t], a.exact_lse[t], 4 * bound_of(p), "lse", t);
        bw_free(before);
        arrays_free(&a);
    }
}

static void exact_gradient_agrees_with_central_differences(void **state)
{
    (void)state;
    for (int i = 0; i < PROBLEMS; i++) {
        const problem *p = &problems[i];
        if (p->shape.head_dim > 48)
            continue; /* the same formulas; only time */
        arrays a = arrays_of(p);
        solve_exactly(p, &a, true);
        double *values[] = {a.exact_q, a.exact_k, a.exact_v}, *gradients[] = {a.exact_dq, a.exact_dk, a.exact_dv};
        for (int which = 0; which < 3; which++)
            for (int sample = 0; sample < 3; sample++) {
                int64_t ld = which ? p->ldk : p->ldq, width = (which ? p->shape.n_kv : p->shape.n_head) * p->shape.head_dim;
                int64_t at = (sample * 7 + 3) * 31 % a.T * ld + sample * 5 % width;
                double old = values[which][at], step = 1e-5;
                values[which][at] = old + step;
                double up = solve_exactly(p, &a, false);
                values[which][at] = old - step;
                double down = solve_exactly(p, &a, false);
                values[which][at] = old;
                close_to(gradients[which][at], (up - down) / (2 * step), 1e-7, "difference", at);
            }
        arrays_free(&a);
    }
}

static void backward_equals_the_exact_gradient(void **state)
{
    (void)state;
    for (int i = 0; i < PROBLEMS; i++) {
        const problem *p = &problems[i];
        arrays a = arrays_of(p);
        float *q_before = random_floats(a.T * p->ldq, 6), *k_before = random_floats(a.T * p->ldk, 7), *v_before = random_floats(a.T * p->ldk, 8);
        solve_exactly(p, &a, true);
        bw_attention_forward(&p->shape, a.out, a.lse, a.q, a.k, a.v, p->ldq, p->ldk, p->offsets, p->n_seq, a.scratch);
        bw_attention_backward(&p->shape, a.dq, a.dk, a.dv, a.dout, a.out, a.lse, a.q, a.k, a.v, p->ldq, p->ldk, p->offsets, p->n_seq, a.scratch);
        double bound = 16 * sqrt(p->shape.head_dim) * bound_of(p);
        compare(a.dq, a.exact_dq, q_before, a.T, p->ldq, p->shape.n_head * p->shape.head_dim, bound, "dq");
        compare(a.dk, a.exact_dk, k_before, a.T, p->ldk, p->shape.n_kv * p->shape.head_dim, bound, "dk");
        compare(a.dv, a.exact_dv, v_before, a.T, p->ldk, p->shape.n_kv * p->shape.head_dim, bound, "dv");
        bw_free(q_before), bw_free(k_before), bw_free(v_before);
        arrays_free(&a);
    }
}

static void check_threads(const problem *p)
{
    arrays first = arrays_of(p);
    for (int threads = 1; threads <= 3; threads++) {
        arrays a = threads == 1 ? first : arrays_of(p);
        omp_set_num_threads(threads);
        bw_attention_forward(&p->shape, a.out, a.lse, a.q, a.k, a.v, p->ldq, p->ldk, p->offsets, p->n_seq, a.scratch);
        bw_attention_backward(&p->shape, a.dq, a.dk, a.dv, a.dout, a.out, a.lse, a.q, a.k, a.v, p->ldq, p->ldk, p->offsets, p->n_seq, a.scratch);
        if (threads == 1)
            continue;
        same_bits(first.out, a.out, a.T * p->ldq, "out");
        same_bits(first.dq, a.dq, a.T * p->ldq, "dq");
        same_bits(first.dk, a.dk, a.T * p->ldk, "dk");
        same_bits(first.dv, a.dv, a.T * p->ldk, "dv");
        arrays_free(&a);
    }
    omp_set_num_threads(1);
    arrays_free(&first);
}

static void same_bits_for_any_number_of_threads(void **state)
{
    (void)state;
    check_threads(&problems[1]);
    check_threads(&problems[4]); /* with a window and a cap */
}

/* A sequence gets the same bits wherever it lies in the pack, so that packing leaves no trace. */
static void a_sequence_does_not_feel_its_neighbours(void **state)
{
    (void)state;
    const problem *p = &problems[1];
    arrays a = arrays_of(p);
    bw_attention_forward(&p->shape, a.out, a.lse, a.q, a.k, a.v, p->ldq, p->ldk, p->offsets, p->n_seq, a.scratch);
    for (int s = 0; s < p->n_seq; s++) {
        int32_t length = p->offsets[s + 1] - p->offsets[s], alone[2] = {0, length};
        float *out = zeros(length * p->ldq), *lse = zeros(length * p->shape.n_head);
        bw_attention_forward(&p->shape, out, lse, a.q + p->offsets[s] * p->ldq, a.k + p->offsets[s] * p->ldk, a.v + p->offsets[s] * p->ldk, p->ldq,
                             p->ldk, alone, 1, a.scratch);
        same_bits(out, a.out + p->offsets[s] * p->ldq, length * p->ldq, "out");
        bw_free(out), bw_free(lse);
    }
    arrays_free(&a);
}

/* Scores far beyond the range of exp, and rows whose probabilities underflow. */
static void large_scores_stay_finite(void **state)
{
    (void)state;
    const problem *p = &problems[1];
    arrays a = arrays_of(p);
    for (int64_t i = 0; i < a.T * p->ldq; i++)
        a.q[i] *= 1000.0f;
    bw_attention_forward(&p->shape, a.out, a.lse, a.q, a.k, a.v, p->ldq, p->ldk, p->offsets, p->n_seq, a.scratch);
    bw_attention_backward(&p->shape, a.dq, a.dk, a.dv, a.dout, a.out, a.lse, a.q, a.k, a.v, p->ldq, p->ldk, p->offsets, p->n_seq, a.scratch);
    for (int64_t i = 0; i < a.T * p->ldq; i++)
        assert_true(isfinite(a.out[i]) && fabsf(a.out[i]) <= 1.001f && isfinite(a.dq[i]));
    for (int64_t i = 0; i < a.T * p->ldk; i++)
        assert_true(isfinite(a.dk[i]) && isfinite(a.dv[i]));
    arrays_free(&a);
}

/* ---- decoding --------------------------------------------------------------------------------------------------------- */

typedef struct cached {
    bw_cache cache;
    void *memory[2];
    float *k, *v; /* rows of one sequence, dense, as a layer gives them */
    int64_t length, width;
} cached;

/* Memory for one sequence, as full of what was there before as decoding may meet it: NaN. */
static cached cache_of(const problem *p, const arrays *a, int sequence)
{
    const int64_t start = p->offsets[sequence], head_dim = p->shape.head_dim;
    cached c = {.length = p->offsets[sequence + 1] - start, .width = p->shape.n_kv * head_dim};
    const int64_t head = bw_cache_room(c.length) * head_dim, bytes = bw_cache_bytes(p->shape.n_kv * head);
    for (int i = 0; i < 2; i++) {
        c.memory[i] = bw_calloc(bytes + 1, 1, "test");
        memset(c.memory[i], 0xff, (size_t)bytes);
    }
    c.cache = bw_cache_in(c.memory[0], c.memory[1], head);
    c.k = zeros(c.length * c.width + 1), c.v = zeros(c.length * c.width + 1);
    for (int64_t i = 0; i < c.length * c.width; i++)
        c.k[i] = a->k[(start + i / c.width) * p->ldk + i % c.width], c.v[i] = a->v[(start + i / c.width) * p->ldk + i % c.width];
    return c;
}

static void write_keys(const problem *p, const cached *c, int64_t first, int64_t n)
{
    bw_cache_write(&p->shape, c->cache, first, n, c->k + first * c->width, c->v + first * c->width);
}

static void cached_free(cached *c)
{
    bw_free(c->memory[0]), bw_free(c->memory[1]), bw_free(c->k), bw_free(c->v);
}

/* The last rows of a sequence, one or several at a time; keys behind the last one that is asked for are in the cache, and not seen. */
static void check_cached_rows(const problem *p, const arrays *a, int sequence, double bound)
{
    cached c = cache_of(p, a, sequence);
    float *out = zeros(a->T * p->ldq);
    write_keys(p, &c, 0, c.length);
    static const int counts[] = {1, 2, 3, 4, 7, 40, 1000};
    for (size_t n = 0; n < sizeof counts / sizeof counts[0]; n++)
        for (int last = (int)c.length; last > c.length - 3 && last > 0; last--) {
            int n_new = counts[n] < last ? counts[n] : last;
            int64_t row = p->offsets[sequence] + last - n_new;
            bw_attention_cached(&p->shape, out, a->q + row * p->ldq, p->ldq, n_new, c.cache, last);
            for (int64_t t = 0; t < n_new; t++)
                for (int i = 0; i < p->shape.n_head * p->shape.head_dim; i++)
                    close_to((double)out[t * p->ldq + i], (double)a->out[(row + t) * p->ldq + i], bound, "cached", t * p->ldq + i);
        }
    bw_free(out);
    cached_free(&c);
}

static void cached_rows_equal_those_of_the_whole_sequence(void **state)
{
    (void)state;
    for (int i = 0; i < PROBLEMS; i++) {
        const problem *p = &problems[i];
        arrays a = arrays_of(p);
        bw_attention_forward(&p->shape, a.out, a.lse, a.q, a.k, a.v, p->ldq, p->ldk, p->offsets, p->n_seq, a.scratch);
        for (int sequence = 0; sequence < p->n_seq; sequence++)
            check_cached_rows(p, &a, sequence, 2 * bound_of(p));
        arrays_free(&a);
    }
}

/* All at once, token by token, in two goes, or begun with a copy of a cache that holds no more: the same bits of every row. */
static void check_filling(const problem *p, const arrays *a, int sequence)
{
    cached all = cache_of(p, a, sequence), tokens = cache_of(p, a, sequence);
    const int64_t length = all.length, parts[] = {1, 2, 7, 31, 32, 33, length - 1};
    float *out = zeros(a->T * p->ldq), *other = zeros(a->T * p->ldq);
    write_keys(p, &all, 0, length);
    for (int64_t j = 0; j < length; j++)
        write_keys(p, &tokens, j, 1);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (parts[i] < 1 || parts[i] >= length)
            continue;
        cached two = cache_of(p, a, sequence), beginning = cache_of(p, a, sequence), copied = cache_of(p, a, sequence);
        write_keys(p, &two, 0, parts[i]), write_keys(p, &beginning, 0, parts[i]);
        bw_cache_copy(&p->shape, copied.cache, beginning.cache, parts[i]);
        write_keys(p, &two, parts[i], length - parts[i]), write_keys(p, &copied, parts[i], length - parts[i]);
        const cached *const others[] = {&tokens, &two, &copied};
        for (int n_new = 1; n_new <= 7 && n_new <= length; n_new += 6)
            for (int which = 0; which < 3; which++) {
                bw_attention_cached(&p->shape, out, a->q, p->ldq, n_new, all.cache, (int)length);
                bw_attention_cached(&p->shape, other, a->q, p->ldq, n_new, others[which]->cache, (int)length);
                same_bits(out, other, n_new * p->ldq, "rows");
            }
        cached_free(&two), cached_free(&beginning), cached_free(&copied);
    }
    bw_free(out), bw_free(other);
    cached_free(&all), cached_free(&tokens);
}

static void a_cache_does_not_tell_how_it_was_filled(void **state)
{
    (void)state;
    for (int i = 0; i < PROBLEMS; i++) {
        arrays a = arrays_of(&problems[i]);
        for (int sequence = 0; sequence < problems[i].n_seq; sequence++)
            check_filling(&problems[i], &a, sequence);
        arrays_free(&a);
    }
}

/* Scores far beyond the range of exp, by one row and by several; the same bits for any number of threads, and inside a parallel region. */
static void cached_rows_stay_finite_and_do_not_tell_of_threads(void **state)
{
    (void)state;
    const problem *p = &problems[1];
    arrays a = arrays_of(p);
    cached c = cache_of(p, &a, 0);
    float *one = zeros(a.T * p->ldq), *many = zeros(a.T * p->ldq);
    write_keys(p, &c, 0, c.length);
    for (int64_t i = 0; i < a.T * p->ldq; i++)
        a.q[i] *= 1000.0f;
    for (int n_new = 1; n_new <= 41; n_new += 20) {
        omp_set_num_threads(1);
        bw_attention_cached(&p->shape, one, a.q, p->ldq, n_new, c.cache, (int)c.length);
        for (int64_t i = 0; i < n_new * p->ldq; i++)
            assert_true(isfinite(one[i]) && fabsf(one[i]) <= 1.001f);
        omp_set_num_threads(3);
        bw_attention_cached(&p->shape, many, a.q, p->ldq, n_new, c.cache, (int)c.length);
        same_bits(one, many, n_new * p->ldq, "rows of three threads");
#pragma omp parallel for
        for (int i = 0; i < 3; i++)
            if (i == 1)
                bw_attention_cached(&p->shape, many, a.q, p->ldq, n_new, c.cache, (int)c.length);
        same_bits(one, many, n_new * p->ldq, "rows in a region");
    }
    omp_set_num_threads(1);
    bw_free(one), bw_free(many);
    cached_free(&c);
    arrays_free(&a);
}

/* ---- products in bf16 ----------------------------------------------------------------------------------------------- */

static bool starts_in_bf16(void)
{
    assert_int_equal(bw_gemm_start("bf16", 1), BW_OK);
    if (bw_attention_is_half())
        return true;
    printf("skipped: this CPU does not multiply bf16\n");
    assert_int_equal(bw_gemm_start("fp32", 1), BW_OK);
    return false;
}

static void round_to_bf16(float *x, double *exact, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = bw_from_bf16(bw_to_bf16(x[i])), exact[i] = (double)x[i];
}

/* Problems whose inputs are bf16 numbers, so that rounding them leaves no trace. */
static arrays rounded_arrays_of(const problem *p)
{
    arrays a = arrays_of(p);
    round_to_bf16(a.q, a.exact_q, a.T * p->ldq);
    round_to_bf16(a.k, a.exact_k, a.T * p->ldk);
    round_to_bf16(a.v, a.exact_v, a.T * p->ldk);
    for (int64_t i = 0; i < a.T * p->ldq; i++)
        a.dout[i] = bw_from_bf16(bw_to_bf16(a.dout[i]));
    return a;
}

/* How far apart they are, beside how large where they are not all zero: roots of sums of squares. */
static double apart(const float *got, const double *exact, int64_t T, int64_t ld, int64_t width)
{
    double difference = 0, size = 0;
    for (int64_t t = 0; t < T; t++)
        for (int64_t c = 0; c < width; c++) {
            difference += pow((double)got[t * ld + c] - exact[t * ld + c], 2);
            size += pow(exact[t * ld + c], 2);
        }
    return sqrt(size > 0 ? difference / size : difference);
}

/* Probabilities and their gradients are rounded by at most 2^-9 of themselves, and so is a sum of such terms in the mean; gradients of queries and
 * keys take in a second rounding, of what is subtracted from them (dots). */
static void bf16_products_equal_the_definition(void **state)
{
    (void)state;
    if (!starts_in_bf16())
        return;
    for (int i = 0; i < PROBLEMS; i++) {
        const problem *p = &problems[i];
        const int64_t query = (int64_t)p->shape.n_head * p->shape.head_dim, key = (int64_t)p->shape.n_kv * p->shape.head_dim;
        arrays a = rounded_arrays_of(p);
        float *q_before = random_floats(a.T * p->ldq, 6), *k_before = random_floats(a.T * p->ldk, 7), *v_before = random_floats(a.T * p->ldk, 8);
        solve_exactly(p, &a, true);
        bw_attention_forward(&p->shape, a.out, a.lse, a.q, a.k, a.v, p->ldq, p->ldk, p->offsets, p->n_seq, a.scratch);
        bw_attention_backward(&p->shape, a.dq, a.dk, a.dv, a.dout, a.out, a.lse, a.q, a.k, a.v, p->ldq, p->ldk, p->offsets, p->n_seq, a.scratch);
        for (int64_t t = 0; t < a.T * p->shape.n_head; t++)
            close_to((double)a.lse[t], a.exact_lse[t], 4 * bound_of(p), "lse", t); /* no rounding before it */
        close_to(apart(a.out, a.exact_out, a.T, p->ldq, query), 0, 0x1p-8, "out", i);
        close_to(apart(a.dv, a.exact_dv, a.T, p->ldk, key), 0, 0x1p-8, "dv", i);
        close_to(apart(a.dq, a.exact_dq, a.T, p->ldq, query), 0, 0x1p-8, "dq", i);
        close_to(apart(a.dk, a.exact_dk, a.T, p->ldk, key), 0, 0x1p-8, "dk", i);
        compare(a.dq, a.exact_dq, q_before, a.T, p->ldq, query, 1, "dq"); /* gaps */
        compare(a.dk, a.exact_dk, k_before, a.T, p->ldk, key, 1e3, "dk");
        bw_free(q_before), bw_free(k_before), bw_free(v_before);
        arrays_free(&a);
    }
    assert_int_equal(bw_gemm_start("fp32", 1), BW_OK);
}

/* Where all of a row's probability is on one key, as in the first row of a sequence, nothing it could move is left: no gradient of its scores, also
 * where inputs are no bf16 numbers and keys have much in common, whose rounding would add up. */
static void bf16_rows_that_see_one_key_have_no_gradient(void **state)
{
    (void)state;
    if (!starts_in_bf16())
        return;
    const problem *p = &problems[1];
    arrays a = arrays_of(p);
    for (int64_t i = 0; i < a.T * p->ldk; i++)
        a.k[i] += 3;
    bw_attention_forward(&p->shape, a.out, a.lse, a.q, a.k, a.v, p->ldq, p->ldk, p->offsets, p->n_seq, a.scratch);
    bw_attention_backward(&p->shape, a.dq, a.dk, a.dv, a.dout, a.out, a.lse, a.q, a.k, a.v, p->ldq, p->ldk, p->offsets, p->n_seq, a.scratch);
    for (int s = 0; s < p->n_seq; s++)
        for (int64_t c = 0; c < p->shape.n_head * p->shape.head_dim; c++) /* two sums of head_dim terms below 1, times a key below 4 */
            close_to((double)a.dq[p->offsets[s] * p->ldq + c], 0, 8 * p->shape.head_dim * (double)p->shape.scale * FLT_EPSILON, "dq", c);
    arrays_free(&a);
    assert_int_equal(bw_gemm_start("fp32", 1), BW_OK);
}

/* The promises of fp32 hold: any number of threads, any neighbours. */
static void bf16_products_leave_no_trace_of_threads_and_neighbours(void **state)
{
    if (!starts_in_bf16())
        return;
    same_bits_for_any_number_of_threads(state);
    a_sequence_does_not_feel_its_neighbours(state);
    large_scores_stay_finite(state);
    assert_int_equal(bw_gemm_start("fp32", 1), BW_OK);
}

/* Rows that a cache of bf16 serves are those of the whole sequence: the same products, each of which rounds its probabilities. */
static void bf16_rows_of_a_cache_equal_those_of_the_whole_sequence(void **state)
{
    if (!starts_in_bf16())
        return;
    a_cache_does_not_tell_how_it_was_filled(state);
    cached_rows_stay_finite_and_do_not_tell_of_threads(state);
    for (int i = 0; i < PROBLEMS; i++) {
        const problem *p = &problems[i];
        arrays a = rounded_arrays_of(p);
        bw_attention_forward(&p->shape, a.out, a.lse, a.q, a.k, a.v, p->ldq, p->ldk, p->offsets, p->n_seq, a.scratch);
        for (int sequence = 0; sequence < p->n_seq; sequence++)
            check_cached_rows(p, &a, sequence, 2 * 0x1p-9 + 2 * bound_of(p));
        arrays_free(&a);
    }
    assert_int_equal(bw_gemm_start("fp32", 1), BW_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_equals_the_definition),
        cmocka_unit_test(exact_gradient_agrees_with_central_differences),
        cmocka_unit_test(backward_equals_the_exact_gradient),
        cmocka_unit_test(same_bits_for_any_number_of_threads),
        cmocka_unit_test(a_sequence_does_not_feel_its_neighbours),
        cmocka_unit_test(large_scores_stay_finite),
        cmocka_unit_test(cached_rows_equal_those_of_the_whole_sequence),
        cmocka_unit_test(a_cache_does_not_tell_how_it_was_filled),
        cmocka_unit_test(cached_rows_stay_finite_and_do_not_tell_of_threads),
        cmocka_unit_test(bf16_products_equal_the_definition),
        cmocka_unit_test(bf16_rows_that_see_one_key_have_no_gradient),
        cmocka_unit_test(bf16_products_leave_no_trace_of_threads_and_neighbours),
        cmocka_unit_test(bf16_rows_of_a_cache_equal_those_of_the_whole_sequence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
