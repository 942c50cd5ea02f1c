/* Shared by the tests of num: random arrays, and comparing with a bound. */
#ifndef NUM_TEST_H
#define NUM_TEST_H
#include "breakwater/base.h"
#include "breakwater/num.h"
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* n values in [-1, 1), a function of `name` alone. */
static inline float *random_floats(int64_t n, uint32_t name)
{
    float *x = bw_calloc(n, sizeof *x, "test");
    assert_non_null(x);
    bw_key key = {.seed = 7, .purpose = BW_PURPOSE_TEST, .sample = name};
    uint32_t words[4];
    for (int64_t i = 0; i < n; i++) {
        if (i % 4 == 0)
            bw_rng(&key, (uint32_t)(i / 4), words);
        x[i] = 2.0f * bw_rng_uniform(words[i % 4]) - 1.0f;
    }
    return x;
}

static inline float *zeros(int64_t n)
{
    float *x = bw_calloc(n, sizeof *x, "test");
    assert_non_null(x);
    return x;
}

static inline void close_to(double got, double wanted, double bound, const char *what, int64_t index)
{
    if (!(fabs(got - wanted) <= bound))
        fail_msg("%s[%lld]: got %.9g, expected %.9g, off by %.3g > %.3g", what, (long long)index, got, wanted, fabs(got - wanted), bound);
}

static inline void same_bits(const float *a, const float *b, int64_t n, const char *what)
{
    for (int64_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof *a) != 0)
            fail_msg("%s[%lld]: %.9g and %.9g differ", what, (long long)i, (double)a[i], (double)b[i]);
}
#endif
