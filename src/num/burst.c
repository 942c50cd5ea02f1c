/* The most that the arithmetic units do: multiply-adds on numbers that never leave the registers. A limit for the benchmark. */
#include "breakwater/num.h"

/* Twelve chains keep two units busy that take six cycles each, and fit the 16 registers of AVX2 with two to spare. Single variables, not an
 * array: gcc leaves an array in memory. */
#define EACH_CHAIN(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
enum { CHAINS = 12 };
#define CHAIN_DECLARE(i) vector x##i = one + (float)i;
#define CHAIN_STEP(i)    x##i = x##i * factor + one;
#define CHAIN_SUM(i)     sum += x##i;
#define BURST(name, target, lanes)                                                                                                                   \
    target static float name(int64_t rounds, float start)                                                                                            \
    {                                                                                                                                                \
        typedef float vector __attribute__((vector_size((lanes)*4)));                                                                                \
        vector one = {0}, factor = {0}, sum = {0};                                                                                                   \
        one += start;                                                                                                                                \
        factor += start * 0.5f; /* every chain tends to 2 */                                                                                         \
        EACH_CHAIN(CHAIN_DECLARE)                                                                                                                    \
        for (int64_t i = 0; i < rounds; i++) {                                                                                                       \
            EACH_CHAIN(CHAIN_STEP)                                                                                                                   \
        }                                                                                                                                            \
        EACH_CHAIN(CHAIN_SUM)                                                                                                                        \
        return sum[0];                                                                                                                               \
    }
BURST(plain_burst, , 4)
#if defined(__x86_64__)
BURST(avx2_burst, __attribute__((target("avx2,fma"))), 8)
BURST(avx512_burst, __attribute__((target("avx512f,avx2,fma"))), 16)
#endif

typedef struct kind {
    float (*run)(int64_t rounds, float start);
    int lanes;
} kind;

static kind choose(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        return (kind){avx512_burst, 16};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return (kind){avx2_burst, 8};
#endif
    return (kind){plain_burst, 4};
}

double bw_fma_burst(int64_t rounds, float *result)
{
    kind k = choose();
    double flops = 0;
    float sum = 0;
#pragma omp parallel reduction(+ : flops, sum)
    {
        sum += k.run(rounds, 1.0f);
        flops += 2.0 * CHAINS * k.lanes * (double)rounds;
    }
    *result = sum;
    return flops;
}
