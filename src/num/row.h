/* One row of scores, as the loss and attention both meet it, or of a matrix. Local to the calling thread. */
#ifndef NUM_ROW_H
#define NUM_ROW_H
#include <stdbool.h>
#include <stdint.h>

float bw_row_highest(const float *z, int64_t n, float start); /* the largest of z and start */
void bw_row_cap(float *z, int64_t n, float cap);              /* z = cap tanh(z / cap) */
float bw_row_exp(float *z, int64_t n, float highest);         /* z = e^(z - highest); returns the sum */
void bw_row_scale(float *x, int64_t n, float factor);
void bw_row_widen(float *to, const uint16_t *from, int64_t n); /* from bf16 */
/* As bw_to_bf16() rounds; a CPU that multiplies bf16 takes subnormals for zeros, as its products do. */
void bw_row_narrow(uint16_t *to, const float *from, int64_t n);
bool bw_rows_narrow_fast(void); /* the CPU has instructions for it */
void bw_rows_narrow(uint16_t *to, int64_t ldt, const float *from, int64_t ld, int64_t rows, int64_t n);

#endif
