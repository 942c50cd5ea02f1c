/* pieces.h - what matrix.c lends to gather.c: number types of pieces, and blocks turned into dense rows. */
#ifndef BREAKWATER_PAR_PIECES_H
#define BREAKWATER_PAR_PIECES_H
#include <string.h>
#include "breakwater/par.h"

size_t bw_piece_bytes(bw_piece_type type); /* of one entry */

/* out[r*ld + c] = block[r + c*block_ld] as fp32. */
void bw_block_to_dense(float *out, int64_t ld, const void *block, bw_piece_type type, int64_t block_ld, int64_t rows, int64_t cols);

/* Visit only the blocks whose local number is `share` modulo `shares`. */
int bw_matrix_visit_share(const bw_matrix *matrix, int share, int shares, bw_block_visitor visit, void *context);

static inline float bw_bits_to_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t bw_float_to_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float bw_bf16_to(uint16_t half)
{
    return bw_bits_to_float((uint32_t)half << 16);
}

static inline uint16_t bw_bf16_from(float value)
{
    uint32_t bits = bw_float_to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40u); /* rounding could carry a NaN into infinity */
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/* Exact in integers and so free of the CPU's denormal mode: the exponent is rebased, and a denormal is mantissa * 2^-24. */
static inline float bw_f16_to(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    float small = (float)magnitude * 0x1p-24f;
    uint32_t bits = magnitude >= 0x7c00u ? (magnitude << 13) + 0x70000000u /* 255 - 31 */
                                         : (magnitude << 13) + 0x38000000u /* 127 - 15 */;
    return bw_bits_to_float(sign | (magnitude < 0x400u ? bw_float_to_bits(small) : bits));
}

/* To nearest even. Adding 1.5 * 2^23 rounds a float to an integer, here to a multiple of 2^-24, the spacing of f16's denormals. */
static inline uint16_t bw_f16_from(float value)
{
    uint32_t bits = bw_float_to_bits(value), magnitude = bits & 0x7fffffffu;
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u)
        return sign | 0x7e00u;
    if (magnitude >= 0x477ff000u) /* 65520 and more round to infinity */
        return sign | 0x7c00u;
    if (magnitude < 0x38800000u) /* 2^-14 */
        return (uint16_t)(sign | (bw_float_to_bits(bw_bits_to_float(magnitude) * 0x1p24f + 0x1.8p23f) & 0x7ffu));
    return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13));
}
#endif
