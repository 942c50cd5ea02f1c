/* base/half.h - the two 16-bit floats, fp16 (IEEE 754 binary16) and bf16, to fp32 and back; for every room.
 *
 * Widening is exact. Narrowing rounds to nearest, ties to even, and overflows to infinity. A NaN stays a NaN with its sign: widening keeps its
 * payload as it is, narrowing keeps the payload's high bits and makes it quiet (its low bits may be all it had, and zero would be infinity).
 * All of it is integer arithmetic or exact fp32 arithmetic without branches: it vectorises, and its bits are the same on every CPU, with or
 * without FMA, and whether subnormals are flushed or not. */
#ifndef BREAKWATER_BASE_HALF_H
#define BREAKWATER_BASE_HALF_H
#include <stdint.h>
#include <string.h>

/* Inlined even into a function that is compiled for several CPUs: a call would be made to the plain version. */
#define BW_INLINE static inline __attribute__((always_inline))

BW_INLINE float bw_float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

BW_INLINE uint32_t bw_bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

BW_INLINE float bw_from_f16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, rest = (uint32_t)(half & 0x7fffu) << 13;
    uint32_t normal = rest + 0x38000000u; /* exponent bias 15 becomes 127 */
    uint32_t special = rest | 0x7f800000u;
    /* A subnormal is m 2^-24: (1 + m 2^-10) 2^-14 less 2^-14, both normal fp32 numbers, and exact. */
    uint32_t small = bw_bits_of(bw_float_of(rest | 0x38800000u) - 0x1p-14f);
    uint32_t bits = rest < 0x00800000u ? small : rest >= 0x0f800000u ? special : normal;
    return bw_float_of(bits | sign);
}

BW_INLINE uint16_t bw_to_f16(float value)
{
    uint32_t bits = bw_bits_of(value), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
    uint32_t large = rest < 0x47800000u ? rest : 0x47800000u; /* 2^16: infinity in fp16 */
    /* Half a unit in the last place less one, and one more where that place is odd: ties go to even. A carry runs into the exponent, as it should. */
    uint32_t normal = (large + 0xfffu + (large >> 13 & 1u) - 0x38000000u) >> 13;
    /* The last place of 0.5 is 2^-24, the unit of fp16's subnormals: the addition rounds, to even. */
    uint32_t small = bw_bits_of(bw_float_of(rest < 0x38800000u ? rest : 0) + 0.5f) - 0x3f000000u;
    uint32_t nan = 0x7e00u | (rest >> 13 & 0x3ffu);
    uint32_t half = rest > 0x7f800000u ? nan : rest < 0x38800000u ? small : normal;
    return (uint16_t)(half | sign);
}

BW_INLINE float bw_from_bf16(uint16_t half)
{
    return bw_float_of((uint32_t)half << 16);
}

/* The bits of the nearest bf16 as fp32: all in 32 bits, so that a loop which needs both keeps whole vectors. */
BW_INLINE uint32_t bw_round_bf16(float value)
{
    uint32_t bits = bw_bits_of(value);
    uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    return ((bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x400000u : rounded) & 0xffff0000u;
}

BW_INLINE uint16_t bw_to_bf16(float value)
{
    return (uint16_t)(bw_round_bf16(value) >> 16);
}
#endif
