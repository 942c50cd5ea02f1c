/* Dropout of one row, for what applies it on the way. */
#ifndef NUM_DROPOUT_H
#define NUM_DROPOUT_H
#include <stdint.h>

float bw_drop_scale(float p); /* of what is kept */
/* y = what is kept of x[n], scaled; y may be x. */
void bw_drop_row(float *y, const float *x, const uint32_t *kept, float scale, int64_t n);

#endif
