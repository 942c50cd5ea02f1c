/* BW_HOT, and what hot loops of arithmetic share: bw_exp() is an exponential that the compiler can vectorise. */
#ifndef NUM_HOT_H
#define NUM_HOT_H
#include "base/half.h"
#include "base/hot.h"

/* e^x, at most 2 units in the last place off for -87 <= x <= 88; x is clamped to that range, whose ends are normal
 * numbers. x = n ln 2 + r with |r| <= ln 2 / 2, then a polynomial in r (Cephes' expf) and n into the exponent. */
BW_INLINE float bw_exp(float x)
{
    const float round = 0x1.8p23f; /* adding it leaves the nearest integer in the low bits */
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504f + round;
    float n = shifted - round;
    float r = x - n * 0.693359375f; /* exact: the constant has 9 bits */
    r = r - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * bw_float_of((bw_bits_of(shifted) + 127u) << 23);
}

/* tanh from the exponential: absolute error below 3e-7, which is what a capped score needs. */
BW_INLINE float bw_tanh(float x)
{
    return 1.0f - 2.0f / (1.0f + bw_exp(2.0f * x));
}

#endif
