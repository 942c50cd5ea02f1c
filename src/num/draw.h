/* Many values of bw_rng at once, for dropout: words[i] are those of counter first + i. Philox4x32-10 (Salmon et al. 2011). */
#ifndef NUM_DRAW_H
#define NUM_DRAW_H
#include "breakwater/base.h"

enum { BW_DRAW_UNIT = 8 }; /* words has room for count rounded up to a multiple of this, and may be written so far */

typedef void bw_draw(uint32_t (*words)[4], int64_t count, uint32_t first, const bw_key *key);

bw_draw bw_draw_plain;
#if defined(__x86_64__)
bw_draw bw_draw_avx2, bw_draw_avx512;
#endif
bw_draw *bw_draw_fastest(void); /* that this CPU has */

#endif
