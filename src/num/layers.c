/* The layers between the products: each forward pass next to its backward pass. Every function walks rows or entries
 * in parallel and a row is summed by one thread, so the number of threads leaves no trace in the result. */
#include "breakwater/num.h"
#include "num/hot.h"
#include "num/row.h"
#include <math.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

enum { SPAN = 4096 }; /* entries a thread takes at a time from a flat array */

/* ---- RMS norm: y = x r (w + add), r = 1 / sqrt(mean x^2 + eps) ------------------------------------------------- */

BW_HOT static float norm_row(float *y, const float *x, const float *w, float add, float eps, int64_t C)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < C; c++)
        sum += x[c] * x[c];
    float r = 1.0f / sqrtf(sum / (float)C + eps);
#pragma omp simd
    for (int64_t c = 0; c < C; c++)
        y[c] = x[c] * r * (w[c] + add);
    return r;
}

void bw_rmsnorm_forward(float *y, float *inv_rms, const float *x, const float *w, bool add_one, float eps, int64_t T, int64_t C)
{
    float add = add_one ? 1.0f : 0.0f;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++)
        inv_rms[t] = norm_row(y + t * C, x + t * C, w, add, eps, C);
}

/* dx += r g - x r^3 mean(g x) with g = dy (w + add). */
BW_HOT static void norm_row_backward(float *dx, const float *dy, const float *x, float r, const float *w, float add, int64_t C)
{
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t c = 0; c < C; c++)
        dot += dy[c] * (w[c] + add) * x[c];
    float pull = dot * r * r * r / (float)C;
#pragma omp simd
    for (int64_t c = 0; c < C; c++)
        dx[c] += dy[c] * (w[c] + add) * r - x[c] * pull;
}

void bw_rmsnorm_backward(float *dx, const float *dy, const float *x, const float *inv_rms, const float *w, bool add_one, int64_t T, int64_t C)
{
    float add = add_one ? 1.0f : 0.0f;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++)
        norm_row_backward(dx + t * C, dy + t * C, x + t * C, inv_rms[t], w, add, C);
}

/* ---- rotary embedding: (x1, x2) turned by the angle of its position and frequency ------------------------------- */

BW_HOT static void rope_row(float *x, const float *cosines, const float *sines, float sign, int n_head, int half)
{
    for (int h = 0; h < n_head; h++) {
        float *first = x + (int64_t)h * 2 * half, *second = first + half;
#pragma omp simd
        for (int i = 0; i < half; i++) {
            float a = first[i], b = second[i], c = cosines[i], s = sign * sines[i];
            first[i] = a * c - b * s;
            second[i] = b * c + a * s;
        }
    }
}

void bw_rope(float *x, int64_t ld, const int32_t *positions, const float *cosines, const float *sines, int64_t T, int n_head, int head_dim,
             bool inverse)
{
    int half = head_dim / 2;
    float sign = inverse ? -1.0f : 1.0f;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++)
        rope_row(x + t * ld, cosines + (int64_t)positions[t] * half, sines + (int64_t)positions[t] * half, sign, n_head, half);
}

/* ---- SwiGLU: h = g sigmoid(g) u ---------------------------------------------------------------------------------- */

BW_HOT static void swiglu_span(float *h, const float *g, const float *u, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        h[i] = g[i] / (1.0f + bw_exp(-g[i])) * u[i];
}

void bw_swiglu_forward(float *h, const float *g, const float *u, int64_t n)
{
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += SPAN)
        swiglu_span(h + i, g + i, u + i, n - i < SPAN ? n - i : SPAN);
}

/* With s = sigmoid(g): dh/dg = s (1 + g (1 - s)) u and dh/du = s g. */
BW_HOT static void swiglu_span_backward(float *dg, float *du, const float *dh, const float *g, const float *u, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float x = g[i], s = 1.0f / (1.0f + bw_exp(-x)), d = dh[i] * s, up = u[i];
        dg[i] = d * up * (1.0f + x * (1.0f - s));
        du[i] = d * x;
    }
}

void bw_swiglu_backward(float *dg, float *du, const float *dh, const float *g, const float *u, int64_t n)
{
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += SPAN)
        swiglu_span_backward(dg + i, du + i, dh + i, g + i, u + i, n - i < SPAN ? n - i : SPAN);
}

/* ---- the small ones ---------------------------------------------------------------------------------------------- */

BW_HOT static void add_span(float *y, const float *x, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] += x[i];
}

void bw_add(float *y, const float *x, int64_t n)
{
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += SPAN)
        add_span(y + i, x + i, n - i < SPAN ? n - i : SPAN);
}

void bw_embed(float *y, const float *table, const int32_t *tokens, int64_t T, int64_t C, float scale)
{
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++)
        for (int64_t c = 0; c < C; c++)
            y[t * C + c] = table[tokens[t] * C + c] * scale;
}

/* Rows that fade away reach denormals, where an x86 core is a hundred times slower. A thread that OpenMP starts later
 * inherits the setting from the one that starts it. */
void bw_flush_denormals(void)
{
#if defined(__SSE__)
    const unsigned both = 0x8040;    /* flush to zero, denormals are zero */
    _mm_setcsr(_mm_getcsr() | both); /* also outside: LLVM's OpenMP takes back what a region sets for its first thread */
#pragma omp parallel
    _mm_setcsr(_mm_getcsr() | both);
#endif
}

int64_t bw_argmax(const float *x, int64_t n)
{
    const float highest = bw_row_highest(x, n, -INFINITY);
    for (int64_t i = 0; i < n; i++)
        if (x[i] == highest)
            return i;
    return 0; /* none is a number */
}
