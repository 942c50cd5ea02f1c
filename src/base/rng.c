/* Counter-based random numbers. The 128-bit counter says which number is meant, the 64-bit key is the seed:
 *   counter = (position, sample, step, layer + 2^16 * purpose)
 * so that every number can be drawn by any rank, in any order, and two purposes never share one. */
#include "breakwater/base.h"
#include <Random123/philox.h>

void bw_rng(const bw_key *key, uint32_t position, uint32_t out[4])
{
    philox4x32_ctr_t counter = {{position, key->sample, key->step, (key->layer & 0xffff) | key->purpose << 16}};
    philox4x32_key_t seed = {{(uint32_t)key->seed, (uint32_t)(key->seed >> 32)}};
    philox4x32_ctr_t drawn = philox4x32_R(10, counter, seed);
    for (int i = 0; i < 4; i++)
        out[i] = drawn.v[i];
}

float bw_rng_uniform(uint32_t bits)
{
    return (float)(bits >> 8) * 0x1p-24f;
}
