/* Read everything: structure by opening, then every number, which must be finite. */
#include "cmd/commands.h"
#include "cmd/subject.h"
#include <math.h>

enum { CHUNK = 65536 }; /* entries decoded at a time; whole blocks of every quantised type */

static int64_t entries(const bw_tensor *tensor)
{
    int64_t count = 1; /* the reader has checked the product against the file's size */
    for (int d = 0; d < tensor->n_dims; d++)
        count *= tensor->shape[d];
    return count;
}

static int verify_tensor(const bw_tensor *tensor, const char *path, float *values)
{
    for (int64_t first = 0, count = entries(tensor); first < count; first += CHUNK) {
        int64_t here = count - first < CHUNK ? count - first : CHUNK;
        bw_to_f32(values, tensor->data + bw_dtype_bytes(tensor->dtype, first), tensor->dtype, here);
        for (int64_t i = 0; i < here; i++)
            if (!isfinite(values[i]))
                return bw_fail(BW_DATA, "%s: tensor '%s' holds %g at entry %lld: the file is damaged or its training diverged", path, tensor->name,
                               (double)values[i], (long long)(first + i));
    }
    return BW_OK;
}

static int verify_tensors(const bw_tensors *tensors, bw_hash *hash)
{
    float *values;
    BW_TRY(BW_NEW(values, CHUNK, "verify"));
    int status = BW_OK;
    for (int64_t i = 0; i < bw_tensors_count(tensors) && status == BW_OK; i++) {
        const bw_tensor *tensor = bw_tensors_at(tensors, i);
        *hash = bw_hash_join(*hash, bw_hash_bytes(tensor->data, (size_t)tensor->bytes));
        status = verify_tensor(tensor, bw_tensors_path(tensors), values);
    }
    bw_free(values);
    return status;
}

int bw_cmd_verify(const bw_config *config)
{
    bw_subject subject;
    BW_TRY(bw_subject_open(&subject, config->input));
    bw_hash hash = subject.rows.fingerprint;
    int status = subject.tensors ? verify_tensors(subject.tensors, &hash) : BW_OK;
    if (status == BW_OK) {
        char text[33];
        bw_hash_text(hash, text);
        printf("%s: a sound %s, %lld %s, checksum %s\n", subject.path, subject.kind,
               (long long)(subject.tensors ? bw_tensors_count(subject.tensors) : subject.rows.count), subject.tensors ? "tensors" : "rows", text);
    }
    bw_subject_close(&subject);
    return status;
}
