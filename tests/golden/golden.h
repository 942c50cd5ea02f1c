/* tests/golden/golden.h - what the golden tests share: a world of one, the expected file, comparing arrays. */
#ifndef BREAKWATER_TEST_GOLDEN_H
#define BREAKWATER_TEST_GOLDEN_H
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "../largest.h"
#include "breakwater/base.h"
#include "breakwater/io.h"
#include "breakwater/model.h"
#include "breakwater/num.h"
#include "breakwater/par.h"

static inline void must(int status)
{
    if (status != BW_OK)
        fail_msg("status %d: %s", status, bw_error());
}

static inline const char *golden_path(const char *name)
{
    static char path[4096];
    const char *folder = getenv("BW_TEST_DATA");
    snprintf(path, sizeof path, "%s/golden/%s", folder ? folder : "tests", name);
    return path;
}

/* A 1-D or 2-D tensor of the file as fp32; bw_free it. */
static inline float *golden_read(const bw_tensors *file, const char *name, int64_t *rows, int64_t *cols)
{
    const bw_tensor *tensor = bw_tensors_find(file, name);
    if (!tensor)
        fail_msg("%s: no tensor %s", bw_tensors_path(file), name);
    *rows = tensor->n_dims == 2 ? tensor->shape[0] : 1;
    *cols = tensor->n_dims == 2 ? tensor->shape[1] : tensor->shape[0];
    float *values;
    must(BW_NEW(values, *rows * *cols, "test"));
    must(bw_tensor_read(tensor, 0, *rows, 0, *cols, values, *cols));
    return values;
}

/* ||a - b|| / ||b|| */
static inline double relative_error(const float *a, const float *b, int64_t n)
{
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    return sqrt(difference / norm);
}

/* A micro-batch of token lists without targets. */
static inline void golden_batch(bw_batch *batch, const int32_t *tokens, int32_t count)
{
    must(bw_batch_create(batch, count, 1));
    batch->T = count;
    batch->n_seq = 1;
    batch->offsets[0] = 0;
    batch->offsets[1] = count;
    for (int32_t i = 0; i < count; i++) {
        batch->tokens[i] = tokens[i];
        batch->positions[i] = i;
        batch->samples[i] = 0;
        batch->targets[i] = -1;
    }
}
#endif
