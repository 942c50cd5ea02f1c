/* convert.c - number formats to fp32 and back, with the same bits on every CPU (see base/half.h). Inputs may lie at any address. */
#include "io/convert.h"
#include "base/half.h"
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the file formats are little-endian, and are read as they lie");

/* The loops are compiled twice, and the loader takes the one for the CPU at hand. The sanitizers run too late for that choice. */
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__clang__)
#define FAST __attribute__((target_clones("avx2", "default")))
#else
#define FAST
#endif

static inline uint16_t load16(const uint8_t *at)
{
    uint16_t bits;
    memcpy(&bits, at, sizeof bits);
    return bits;
}

/* ---- plain types ---------------------------------------------------------------------------------------------------*/
static void decode_f32(float *out, const uint8_t *in, int64_t count)
{
    memcpy(out, in, (size_t)count * sizeof *out);
}

FAST static void decode_f16(float *restrict out, const uint8_t *restrict in, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        out[i] = bw_from_f16(load16(in + 2 * i));
}

FAST static void decode_bf16(float *restrict out, const uint8_t *restrict in, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        out[i] = bw_from_bf16(load16(in + 2 * i));
}

static void decode_f64(float *restrict out, const uint8_t *restrict in, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        double value;
        memcpy(&value, in + 8 * i, sizeof value);
        out[i] = (float)value;
    }
}

static void encode_f32(uint8_t *out, const float *in, int64_t count)
{
    memcpy(out, in, (size_t)count * sizeof *in);
}

FAST static void encode_f16(uint8_t *restrict out, const float *restrict in, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        uint16_t half = bw_to_f16(in[i]);
        memcpy(out + 2 * i, &half, sizeof half);
    }
}

FAST static void encode_bf16(uint8_t *restrict out, const float *restrict in, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        uint16_t bfloat = bw_to_bf16(in[i]);
        memcpy(out + 2 * i, &bfloat, sizeof bfloat);
    }
}

/* ---- sums: base + delta rounded, as a reader will see it, and how many entries are not what base alone would be: in one pass, since the
 * passes one by one cost a dense merge half as much as its products. ----- */
FAST static int64_t add_f32(uint8_t *restrict out, float *restrict kept, const float *restrict base, const float *restrict delta, int32_t count)
{
    int32_t changed = 0;
    for (int32_t i = 0; i < count; i++) {
        kept[i] = base[i] + delta[i];
        changed += bw_bits_of(kept[i]) != bw_bits_of(base[i]);
    }
    memcpy(out, kept, (size_t)count * sizeof *kept);
    return changed;
}

FAST static int64_t add_f16(uint8_t *restrict out, float *restrict kept, const float *restrict base, const float *restrict delta, int32_t count)
{
    int32_t changed = 0;
    for (int32_t i = 0; i < count; i++) {
        uint16_t half = bw_to_f16(base[i] + delta[i]);
        memcpy(out + 2 * i, &half, sizeof half);
        kept[i] = bw_from_f16(half);
        changed += half != bw_to_f16(base[i]);
    }
    return changed;
}

FAST static int64_t add_bf16(uint8_t *restrict out, float *restrict kept, const float *restrict base, const float *restrict delta, int32_t count)
{
    int32_t changed = 0;
    for (int32_t i = 0; i < count; i++) {
        uint32_t bits = bw_round_bf16(base[i] + delta[i]);
        uint16_t bfloat = (uint16_t)(bits >> 16);
        memcpy(out + 2 * i, &bfloat, sizeof bfloat);
        kept[i] = bw_float_of(bits);
        changed += bits != bw_round_bf16(base[i]);
    }
    return changed;
}

/* ---- quantised types: blocks of 32 entries, scale d (fp16) in front, low nibbles are entries 0..15, high ones 16..31.
 * d has 11 bits and q at most 8, so d q is exact in fp32 and d q + m is rounded once: the same with FMA as without. ----- */
FAST static void decode_q8_0(float *restrict out, const uint8_t *restrict in, int64_t blocks)
{
    for (int64_t b = 0; b < blocks; b++, in += 34, out += 32) {
        float d = bw_from_f16(load16(in));
        for (int i = 0; i < 32; i++)
            out[i] = d * (float)(int8_t)in[2 + i];
    }
}

FAST static void decode_q4_0(float *restrict out, const uint8_t *restrict in, int64_t blocks)
{
    for (int64_t b = 0; b < blocks; b++, in += 18, out += 32) {
        float d = bw_from_f16(load16(in));
        for (int i = 0; i < 16; i++) {
            out[i] = d * (float)((in[2 + i] & 15) - 8);
            out[16 + i] = d * (float)((in[2 + i] >> 4) - 8);
        }
    }
}

FAST static void decode_q4_1(float *restrict out, const uint8_t *restrict in, int64_t blocks)
{
    for (int64_t b = 0; b < blocks; b++, in += 20, out += 32) {
        float d = bw_from_f16(load16(in)), m = bw_from_f16(load16(in + 2));
        for (int i = 0; i < 16; i++) {
            out[i] = d * (float)(in[4 + i] & 15) + m;
            out[16 + i] = d * (float)(in[4 + i] >> 4) + m;
        }
    }
}

/* ---- K-quants: super-blocks of 256 entries, parts of which have a small integer scale (and minimum) of their own. Again the products with d
 * are exact in fp32 (11 bits of d, 6 or 8 of the scale, 4 of q in Q4_K), so one rounding is left: the subtraction in Q4_K, d s q in Q6_K. ---- */
typedef struct part {
    float scale, minimum;
} part;

/* Eight scales and eight minima of 6 bits in 12 bytes: the low six bits of bytes 0..3 and 4..7 are the first four of each; of the others, bytes
 * 8..11 hold the low four bits (scale in the low nibble) and the top two bits of bytes 0..7 the high ones. */
static inline part q4_k_part(const uint8_t *packed, int i, float d, float m)
{
    int scale = i < 4 ? packed[i] & 63 : (packed[i + 4] & 15) | packed[i - 4] >> 6 << 4;
    int minimum = i < 4 ? packed[i + 4] & 63 : packed[i + 4] >> 4 | packed[i] >> 6 << 4;
    return (part){d * (float)scale, m * (float)minimum};
}

/* d, m (fp16), 12 bytes of scales, 128 bytes of nibbles: 32 bytes hold a part of 32 in their low nibbles, and the next one in the high ones. */
FAST static void decode_q4_k(float *restrict out, const uint8_t *restrict in, int64_t blocks)
{
    for (int64_t b = 0; b < blocks; b++, in += 144) {
        float d = bw_from_f16(load16(in)), m = bw_from_f16(load16(in + 2));
        const uint8_t *q = in + 16;
        for (int pair = 0; pair < 4; pair++, q += 32, out += 64) {
            part low = q4_k_part(in + 4, 2 * pair, d, m), high = q4_k_part(in + 4, 2 * pair + 1, d, m);
            for (int i = 0; i < 32; i++) {
                out[i] = low.scale * (float)(q[i] & 15) - low.minimum;
                out[32 + i] = high.scale * (float)(q[i] >> 4) - high.minimum;
            }
        }
    }
}

/* 32 entries of Q6_K: four low bits from a nibble of `low`, two high bits from `high`, a scale for 16 of them. */
static inline void decode_q6_k_part(float *restrict out, const uint8_t *restrict low, int low_shift, const uint8_t *restrict high, int high_shift,
                                    const uint8_t *restrict scales, float d)
{
    for (int s = 0; s < 2; s++, out += 16, low += 16, high += 16) {
        float scale = d * (float)(int8_t)scales[s];
        for (int i = 0; i < 16; i++) {
            int q = (low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4;
            out[i] = scale * (float)(q - 32);
        }
    }
}

/* 128 bytes of low bits, 64 bytes of high bits, 16 scales (int8), d (fp16); half a block, 128 entries, is four parts of 32. */
FAST static void decode_q6_k(float *restrict out, const uint8_t *restrict in, int64_t blocks)
{
    for (int64_t b = 0; b < blocks; b++, in += 210) {
        float d = bw_from_f16(load16(in + 208));
        for (int half = 0; half < 2; half++)
            for (int k = 0; k < 4; k++, out += 32)
                decode_q6_k_part(out, in + 64 * half + 32 * (k % 2), k / 2 * 4, in + 128 + 32 * half, 2 * k, in + 192 + 8 * half + 2 * k, d);
    }
}

/* ---- the table -----------------------------------------------------------------------------------------------------*/
static const bw_dtype_row rows[BW_DTYPES] = {
    [BW_F32] = {"F32", 0, 1, 4, true, decode_f32, encode_f32, add_f32},       [BW_F16] = {"F16", 1, 1, 2, true, decode_f16, encode_f16, add_f16},
    [BW_BF16] = {"BF16", 30, 1, 2, true, decode_bf16, encode_bf16, add_bf16}, [BW_F64] = {"F64", 28, 1, 8, true, decode_f64, NULL, NULL},
    [BW_Q8_0] = {"Q8_0", 8, 32, 34, false, decode_q8_0, NULL, NULL},          [BW_Q4_0] = {"Q4_0", 2, 32, 18, false, decode_q4_0, NULL, NULL},
    [BW_Q4_1] = {"Q4_1", 3, 32, 20, false, decode_q4_1, NULL, NULL},          [BW_Q4_K] = {"Q4_K", 12, 256, 144, false, decode_q4_k, NULL, NULL},
    [BW_Q6_K] = {"Q6_K", 14, 256, 210, false, decode_q6_k, NULL, NULL},
};

const bw_dtype_row *bw_dtype_get(bw_dtype dtype)
{
    return &rows[dtype];
}

const char *bw_dtype_name(bw_dtype dtype)
{
    return rows[dtype].name;
}

void bw_dtype_list(char *out, size_t size, bool safetensors)
{
    size_t used = 0;
    out[0] = '\0';
    for (int i = 0; i < BW_DTYPES && used < size; i++)
        if (rows[i].safetensors || !safetensors)
            used += (size_t)snprintf(out + used, size - used, "%s%s", used ? ", " : "", rows[i].name);
}

int64_t bw_dtype_bytes(bw_dtype dtype, int64_t count)
{
    const bw_dtype_row *row = &rows[dtype];
    return (count + row->block - 1) / row->block * row->bytes;
}

void bw_to_f32(float *out, const void *in, bw_dtype dtype, int64_t count)
{
    const bw_dtype_row *row = &rows[dtype];
    int64_t whole = count / row->block, rest = count % row->block;
    row->decode(out, in, whole);
    if (rest) {
        float last[BW_BLOCK_MAX];
        row->decode(last, (const uint8_t *)in + whole * row->bytes, 1);
        memcpy(out + whole * row->block, last, (size_t)rest * sizeof *out);
    }
}

void bw_from_f32(void *out, const float *in, bw_dtype dtype, int64_t count)
{
    rows[dtype].encode(out, in, count);
}

int64_t bw_from_f32_sum(void *out, float *kept, const float *base, const float *delta, bw_dtype dtype, int32_t count)
{
    return rows[dtype].add(out, kept, base, delta, count);
}
