/* The 16-bit floats: every pattern of both goes to fp32 and back, and every kind of NaN stays one. Rounding is tested where files are
 * read and written, in io/test_convert.c. */
#include "base/half.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

typedef struct format {
    const char *name;
    float (*widen)(uint16_t);
    uint16_t (*narrow)(float);
    int fraction_bits;
    uint16_t infinity;
} format;

static float widen_f16(uint16_t half)
{
    return bw_from_f16(half);
}

static float widen_bf16(uint16_t half)
{
    return bw_from_bf16(half);
}

static uint16_t narrow_f16(float value)
{
    return bw_to_f16(value);
}

static uint16_t narrow_bf16(float value)
{
    return bw_to_bf16(value);
}

static const format formats[] = {{"fp16", widen_f16, narrow_f16, 10, 0x7c00}, {"bf16", widen_bf16, narrow_bf16, 7, 0x7f80}};
enum { FORMATS = sizeof formats / sizeof *formats };

/* By the definition, in double, where all of them are exact. */
static double value_of(const format *f, uint32_t half)
{
    int steps = 1 << f->fraction_bits, exponent = (int)((half & 0x7fff) >> f->fraction_bits), bias = (f->infinity >> f->fraction_bits) / 2;
    double fraction = half & (uint32_t)(steps - 1), sign = half & 0x8000 ? -1 : 1;
    return sign * ldexp(exponent ? steps + fraction : fraction, (exponent ? exponent : 1) - bias - f->fraction_bits);
}

static void every_number_is_widened_exactly_and_comes_back(void **state)
{
    (void)state;
    for (int f = 0; f < FORMATS; f++)
        for (uint32_t half = 0; half < 65536; half++) {
            if ((half & 0x7fff) > formats[f].infinity)
                continue;
            float wide = formats[f].widen((uint16_t)half);
            double wanted = (half & 0x7fff) == formats[f].infinity ? copysign(INFINITY, half & 0x8000 ? -1 : 1) : value_of(&formats[f], half);
            if ((double)wide != wanted || !signbit(wide) != !signbit(wanted) || formats[f].narrow(wide) != half)
                fail_msg("%s %04x is %a, became %a and came back as %04x", formats[f].name, half, wanted, (double)wide, formats[f].narrow(wide));
        }
}

static void every_nan_keeps_its_sign_and_payload_and_comes_back_quiet(void **state)
{
    (void)state;
    for (int f = 0; f < FORMATS; f++)
        for (uint32_t half = 0; half < 65536; half++) {
            if ((half & 0x7fff) <= formats[f].infinity)
                continue;
            uint32_t quiet = 1u << (formats[f].fraction_bits - 1), fraction = half & (2 * quiet - 1);
            uint32_t wide = bw_bits_of(formats[f].widen((uint16_t)half));
            assert_int_equal(wide, (half & 0x8000) << 16 | 0x7f800000u | fraction << (23 - formats[f].fraction_bits));
            assert_int_equal(formats[f].narrow(bw_float_of(wide)), half | quiet);
        }
}

static void a_nan_with_only_low_payload_bits_does_not_become_infinity(void **state)
{
    (void)state;
    for (int f = 0; f < FORMATS; f++)
        for (uint32_t bit = 0; bit < 23; bit++)
            for (uint32_t sign = 0; sign < 2; sign++) {
                float value = bw_float_of(sign << 31 | 0x7f800000u | 1u << bit);
                uint32_t quiet = 1u << (formats[f].fraction_bits - 1), kept = (1u << bit) >> (23 - formats[f].fraction_bits);
                assert_int_equal(formats[f].narrow(value), sign << 15 | formats[f].infinity | quiet | kept);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_number_is_widened_exactly_and_comes_back),
        cmocka_unit_test(every_nan_keeps_its_sign_and_payload_and_comes_back_quiet),
        cmocka_unit_test(a_nan_with_only_low_payload_bits_does_not_become_infinity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
