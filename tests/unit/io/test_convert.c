/* Number formats: all 65,536 halves and bfloats, every rounding border between two neighbours, and the blocks of the quantised types. */
#include "base/half.h"
#include "bytes.h"
#include <math.h>

/* The value of a half by its definition, in double, where all of them are exact. */
static double half_value(uint32_t half)
{
    int exponent = (int)(half >> 10 & 31);
    double mantissa = half & 1023, sign = half & 0x8000 ? -1 : 1;
    if (exponent == 31)
        return mantissa > 0 ? NAN : sign * INFINITY;
    return sign * (exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24));
}

static double bfloat_value(uint32_t bfloat)
{
    return bw_float_of(bfloat << 16);
}

static uint16_t rounded(float value, bw_dtype dtype)
{
    uint16_t out;
    bw_from_f32(&out, &value, dtype, 1);
    return out;
}

static void all_decode(bw_dtype dtype, double value(uint32_t))
{
    static uint16_t in[65536];
    static float out[65536];
    for (uint32_t i = 0; i < 65536; i++)
        in[i] = (uint16_t)i;
    bw_to_f32(out, in, dtype, 65536);
    for (uint32_t i = 0; i < 65536; i++) {
        double wanted = value(i);
        if (isnan(wanted) ? !isnan(out[i]) : bw_bits_of(out[i]) != bw_bits_of((float)wanted))
            fail_msg("%s %04x is %a, and became %a", bw_dtype_name(dtype), i, wanted, (double)out[i]);
        uint16_t back = rounded(out[i], dtype);
        if (isnan(wanted) ? !isnan(value(back)) || (back ^ i) & 0x8000 : back != i)
            fail_msg("%s %04x went to fp32 and came back as %04x", bw_dtype_name(dtype), i, back);
    }
}

static void every_half_goes_to_fp32_and_back_exactly(void **state)
{
    (void)state;
    all_decode(BW_F16, half_value);
}

static void every_bfloat_goes_to_fp32_and_back_exactly(void **state)
{
    (void)state;
    all_decode(BW_BF16, bfloat_value);
}

/* Between two neighbours lies one border. On it the even neighbour wins, a bit below it the lower one, a bit above it the upper one.
 * `infinity` is the pattern of infinity, which takes the place of the number after the largest. */
static void all_borders(bw_dtype dtype, double value(uint32_t), uint32_t infinity, double after_largest)
{
    for (uint32_t low = 0; low < infinity; low++) {
        double high = low + 1 == infinity ? after_largest : value(low + 1);
        float border = (float)((value(low) + high) / 2); /* one bit more than both have: exact */
        uint32_t even = low % 2 ? low + 1 : low;
        for (uint32_t sign = 0; sign <= 0x8000; sign += 0x8000) {
            float s = sign ? -1 : 1;
            assert_int_equal(rounded(s * border, dtype), even | sign);
            assert_int_equal(rounded(s * bw_float_of(bw_bits_of(border) - 1), dtype), low | sign);
            assert_int_equal(rounded(s * bw_float_of(bw_bits_of(border) + 1), dtype), (low + 1) | sign);
        }
    }
}

static void a_tie_goes_to_the_even_half_and_a_bit_beside_it_to_the_nearer(void **state)
{
    (void)state;
    all_borders(BW_F16, half_value, 0x7c00, 65536);
}

static void a_tie_goes_to_the_even_bfloat_and_a_bit_beside_it_to_the_nearer(void **state)
{
    (void)state;
    all_borders(BW_BF16, bfloat_value, 0x7f80, 0x1p128);
}

/* Rounding by the C library, in double: the last place of a half is 2^(exponent-10), and 2^-24 at least. */
static double nearest_half(double value)
{
    int exponent;
    frexp(value, &exponent);
    int place = exponent - 11 > -24 ? exponent - 11 : -24;
    double rounded_value = ldexp(nearbyint(ldexp(value, -place)), place);
    return fabs(rounded_value) >= 65536 ? copysign(INFINITY, value) : rounded_value;
}

static void floats_from_the_whole_range_round_as_the_library_rounds(void **state)
{
    (void)state;
    for (uint64_t bits = 0; bits < 1ull << 32; bits += 4099) { /* prime: all exponents, and changing low bits */
        float value = bw_float_of((uint32_t)bits);
        double half = half_value(rounded(value, BW_F16));
        if (isnan(value))
            assert_true(isnan(half));
        else if (half != nearest_half(value))
            fail_msg("%a became %a, not %a", (double)value, half, nearest_half(value));
    }
}

/* A vector loop has a tail, and may meet any address. */
static void any_count_at_any_address_gives_the_same(void **state)
{
    (void)state;
    float in[70], out[70];
    uint8_t store_f16[150], store_bf16[150];
    for (int i = 0; i < 70; i++)
        in[i] = (float)(i * i - 900) / 7;
    for (int count = 0; count <= 70; count++) {
        for (bw_dtype dtype = BW_F16; dtype <= BW_BF16; dtype++) {
            uint8_t *bytes = dtype == BW_F16 ? store_f16 : store_bf16;
            bw_from_f32(bytes + 1, in, dtype, count);
            bw_to_f32(out, bytes + 1, dtype, count);
            for (int i = 0; i < count; i++)
                assert_int_equal(rounded(out[i], dtype), rounded(in[i], dtype));
        }
    }
}

static void doubles_round_to_fp32(void **state)
{
    (void)state;
    double in[5] = {1 + 0x1p-24, 1 + 0x3p-24, -1e300, 0x1.8p-20, NAN};
    float out[5];
    bw_to_f32(out, in, BW_F64, 5);
    assert_int_equal(bw_bits_of(out[0]), bw_bits_of(1));
    assert_int_equal(bw_bits_of(out[1]), bw_bits_of(1 + 0x1p-22f));
    assert_true(isinf(out[2]) && out[2] < 0);
    assert_int_equal(bw_bits_of(out[3]), bw_bits_of(0x1.8p-20f));
    assert_true(isnan(out[4]));
}

/* ---- quantised blocks, by their definition, in double: d q + m needs fewer than 53 bits, so there is one rounding, to fp32 ---- */
static double u16_half(const uint8_t *at)
{
    return half_value((uint32_t)at[0] | (uint32_t)at[1] << 8);
}

/* Entry i of a K-quant block, found from i alone; a part is 32 entries. */
static double q4_k_value(const uint8_t *block, int i)
{
    int part = i / 32, q = block[16 + i / 64 * 32 + i % 32] >> (part % 2 ? 4 : 0) & 15;
    const uint8_t *s = block + 4;
    int scale = part < 4 ? s[part] % 64 : s[part + 4] % 16 + s[part - 4] / 64 * 16;
    int minimum = part < 4 ? s[part + 4] % 64 : s[part + 4] / 16 + s[part] / 64 * 16;
    return u16_half(block) * scale * q - u16_half(block + 2) * minimum;
}

static double q6_k_value(const uint8_t *block, int i)
{
    int half = i / 128, part = i / 32 % 4;
    int low = block[64 * half + i % 64] >> (part < 2 ? 0 : 4) & 15, high = block[128 + 32 * half + i % 32] >> 2 * part & 3;
    return u16_half(block + 208) * (int8_t)block[192 + i / 16] * (low + 16 * high - 32);
}

static double q_value(bw_dtype dtype, const uint8_t *block, int i)
{
    double d = u16_half(block);
    if (dtype == BW_Q8_0)
        return d * (int8_t)block[2 + i];
    const uint8_t *nibbles = block + (dtype == BW_Q4_0 ? 2 : 4);
    int q = i < 16 ? nibbles[i] & 15 : nibbles[i - 16] >> 4;
    return dtype == BW_Q4_0 ? d * (q - 8) : d * q + u16_half(block + 2);
}

static void quantised_blocks_are_what_their_formula_says(void **state)
{
    (void)state;
    uint64_t random = 1;
    for (bw_dtype dtype = BW_Q8_0; dtype < BW_DTYPES; dtype++) {
        int entries = dtype >= BW_Q4_K ? 256 : 32;
        for (int trial = 0; trial < 1000; trial++) {
            uint8_t block[256];
            float out[256];
            for (int i = 0; i < 256; i++)
                block[i] = (uint8_t)next_random(&random);
            bw_to_f32(out, block, dtype, entries);
            for (int i = 0; i < entries; i++) {
                double wanted = dtype == BW_Q4_K ? q4_k_value(block, i) : dtype == BW_Q6_K ? q6_k_value(block, i) : q_value(dtype, block, i);
                if (isnan(wanted) ? !isnan(out[i]) : bw_bits_of(out[i]) != bw_bits_of((float)wanted))
                    fail_msg("%s entry %d is %a, not %a", bw_dtype_name(dtype), i, (double)out[i], wanted);
            }
        }
    }
}

static void sizes_count_whole_blocks(void **state)
{
    (void)state;
    static const struct {
        bw_dtype dtype;
        int64_t one, block, more;
    } wanted[] = {
        {BW_F32, 4, 128, 132}, {BW_F16, 2, 64, 66},   {BW_BF16, 2, 64, 66},     {BW_F64, 8, 256, 264},    {BW_Q8_0, 34, 34, 68},
        {BW_Q4_0, 18, 18, 36}, {BW_Q4_1, 20, 20, 40}, {BW_Q4_K, 144, 144, 144}, {BW_Q6_K, 210, 210, 210},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        assert_int_equal(bw_dtype_bytes(wanted[i].dtype, 0), 0);
        assert_int_equal(bw_dtype_bytes(wanted[i].dtype, 1), wanted[i].one);
        assert_int_equal(bw_dtype_bytes(wanted[i].dtype, 32), wanted[i].block);
        assert_int_equal(bw_dtype_bytes(wanted[i].dtype, 33), wanted[i].more);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half_goes_to_fp32_and_back_exactly),
        cmocka_unit_test(every_bfloat_goes_to_fp32_and_back_exactly),
        cmocka_unit_test(a_tie_goes_to_the_even_half_and_a_bit_beside_it_to_the_nearer),
        cmocka_unit_test(a_tie_goes_to_the_even_bfloat_and_a_bit_beside_it_to_the_nearer),
        cmocka_unit_test(floats_from_the_whole_range_round_as_the_library_rounds),
        cmocka_unit_test(any_count_at_any_address_gives_the_same),
        cmocka_unit_test(doubles_round_to_fp32),
        cmocka_unit_test(quantised_blocks_are_what_their_formula_says),
        cmocka_unit_test(sizes_count_whole_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
