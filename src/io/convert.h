/* io/convert.h - the table of types: one row says all that the readers and writers know of a type. */
#ifndef IO_CONVERT_H
#define IO_CONVERT_H
#include "breakwater/io.h"

enum { BW_BLOCK_MAX = 256 }; /* entries of the largest block */

typedef struct bw_dtype_row {
    const char *name;
    int32_t gguf;     /* its number in a GGUF file */
    int block, bytes; /* entries of a block, and its bytes; 1 entry where the type is not quantised */
    bool safetensors; /* whether a safetensors file may hold it */
    void (*decode)(float *out, const uint8_t *in, int64_t blocks);
    void (*encode)(uint8_t *out, const float *in, int64_t count); /* NULL: we only read it, and so below */
    int64_t (*add)(uint8_t *out, float *kept, const float *base, const float *delta, int32_t count);
} bw_dtype_row;

const bw_dtype_row *bw_dtype_get(bw_dtype dtype);
/* "F32, F16, ...": the types that a GGUF file, or a safetensors file, may hold. */
void bw_dtype_list(char *out, size_t size, bool safetensors);

#endif
