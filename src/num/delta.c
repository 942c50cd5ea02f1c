/* How much of a change of weights is in what is kept of them. */
#include "breakwater/num.h"
#include "num/hot.h"

/* Four at a time in float64, two sums of each kind: a sum of one would wait for its own last addition. */
typedef float floats __attribute__((vector_size(16), aligned(4), may_alias));
typedef double doubles __attribute__((vector_size(32)));

typedef struct kept_sums {
    doubles wanted, stored, product, error;
} kept_sums;

BW_INLINE void add_four(kept_sums *sums, const float *delta, const float *now, const float *before)
{
    doubles wanted = __builtin_convertvector(*(const floats *)delta, doubles);
    doubles stored = __builtin_convertvector(*(const floats *)now, doubles) - __builtin_convertvector(*(const floats *)before, doubles);
    doubles error = stored - wanted;
    sums->wanted += wanted * wanted;
    sums->stored += stored * stored;
    sums->product += wanted * stored;
    sums->error += error * error;
}

BW_INLINE double total(const doubles *a, const doubles *b) /* by address: how a vector is passed depends on the clone that calls */
{
    const doubles sum = *a + *b;
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

BW_HOT static void delta_kept(bw_delta_sums *out, const float *delta, const float *now, const float *before, int64_t n)
{
    kept_sums even = {0}, odd = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        add_four(&even, delta + i, now + i, before + i);
        add_four(&odd, delta + i + 4, now + i + 4, before + i + 4);
    }
    for (; i < n; ++i) { /* what does not fill two vectors */
        const float d[4] = {delta[i]}, a[4] = {now[i]}, b[4] = {before[i]};
        add_four(&even, d, a, b);
    }
    out->wanted += total(&even.wanted, &odd.wanted);
    out->stored += total(&even.stored, &odd.stored);
    out->product += total(&even.product, &odd.product);
    out->error += total(&even.error, &odd.error);
}

void bw_delta_kept(bw_delta_sums *out, const float *delta, const float *now, const float *before, int64_t n)
{
    delta_kept(out, delta, now, before, n);
}
