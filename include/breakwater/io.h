/* breakwater/io.h - file formats: JSON, safetensors, GGUF (HDF5, which needs MPI, has a header of its own: h5.h). Nothing read is trusted: lengths,
 * offsets, shapes, nesting and UTF-8 are checked before use, and a message names file, tensor or byte, what was found and what to do. */
#ifndef BREAKWATER_IO_H
#define BREAKWATER_IO_H
#include "breakwater/base.h"

/* ---- JSON (jansson behind our checks) ----------------------------------------------------------------------------- */
typedef struct bw_json bw_json; /* a value; children are borrowed from the root, the root is freed */
int bw_json_parse(bw_json **out, const char *bytes, size_t length, const char *where); /* duplicate keys, bad UTF-8, depth: BW_DATA with line */
/* The same of one line of a file: messages say this line, from 1, and the column in it. */
int bw_json_parse_line(bw_json **out, const char *bytes, size_t length, const char *path, int64_t line);
int bw_json_load(bw_json **out, const char *path);
void bw_json_free(bw_json *root);
typedef enum bw_json_type { BW_JSON_NULL, BW_JSON_BOOL, BW_JSON_INT, BW_JSON_REAL, BW_JSON_STRING, BW_JSON_ARRAY, BW_JSON_OBJECT } bw_json_type;
bw_json_type bw_json_kind(const bw_json *value);
const bw_json *bw_json_get(const bw_json *object, const char *key); /* NULL when absent or not an object */
int64_t bw_json_size(const bw_json *array_or_object);
const bw_json *bw_json_at(const bw_json *array, int64_t index);
/* Walk an object in file order, O(1) a step: void *at = NULL; while (bw_json_next(object, &at, &key, &value)) ... */
bool bw_json_next(const bw_json *object, void **at, const char **key, const bw_json **value);
const char *bw_json_text(const bw_json *string, size_t *length); /* NULL when not a string; may hold NUL bytes */
double bw_json_number(const bw_json *value, double otherwise);
int64_t bw_json_int(const bw_json *value, int64_t otherwise);
bool bw_json_true(const bw_json *value, bool otherwise);
int bw_json_quote(bw_text *out, const char *bytes, size_t length); /* append a JSON string literal; bytes that are not UTF-8 become U+FFFD */

/* ---- tensors in a file: GGUF and safetensors look the same from here on ------------------------------------------ */
typedef enum bw_dtype { BW_F32, BW_F16, BW_BF16, BW_F64, BW_Q8_0, BW_Q4_0, BW_Q4_1, BW_Q4_K, BW_Q6_K, BW_DTYPES } bw_dtype;
const char *bw_dtype_name(bw_dtype dtype);
/* Bytes of `count` consecutive entries; quantised types count in whole blocks (of 32; Q4_K and Q6_K of 256). */
int64_t bw_dtype_bytes(bw_dtype dtype, int64_t count);
typedef struct bw_tensor {
    char *name;
    bw_dtype dtype;
    int n_dims;
    int64_t shape[4];    /* row-major, outermost first, as Hugging Face prints it (GGUF's order is reversed on reading) */
    const uint8_t *data; /* into the mapped file */
    int64_t bytes;
} bw_tensor;
typedef struct bw_tensors bw_tensors;                                /* an open file or folder of shards */
int bw_safetensors_open(bw_tensors **out, const char *path);         /* one file */
int bw_safetensors_open_model(bw_tensors **out, const char *folder); /* model.safetensors or model.safetensors.index.json */
int bw_gguf_open(bw_tensors **out, const char *path);
void bw_tensors_close(bw_tensors *tensors);
int64_t bw_tensors_count(const bw_tensors *tensors);
const bw_tensor *bw_tensors_at(const bw_tensors *tensors, int64_t index);
const bw_tensor *bw_tensors_find(const bw_tensors *tensors, const char *name);
const char *bw_tensors_path(const bw_tensors *tensors);
const char *bw_safetensors_metadata(const bw_tensors *tensors, const char *key); /* __metadata__; NULL when absent */
/* Entries [row, row+rows) x [col, col+cols) of a 2-D tensor (a 1-D one is one row) as fp32, out[rows][ld]. Touches only those bytes. */
int bw_tensor_read(const bw_tensor *tensor, int64_t row, int64_t rows, int64_t col, int64_t cols, float *out, int64_t ld);
/* It has been read for the last time, or nearly: its pages leave this process, and come again where they are read. */
void bw_tensor_done(const bw_tensor *tensor);

/* GGUF metadata. NULL / otherwise when absent or of another type. Texts are checked UTF-8, end with a zero byte, and may hold zero bytes inside. */
const char *bw_gguf_text(const bw_tensors *gguf, const char *key, size_t *length);
double bw_gguf_number(const bw_tensors *gguf, const char *key, double otherwise);
int64_t bw_gguf_array_size(const bw_tensors *gguf, const char *key);
const char *bw_gguf_array_text(const bw_tensors *gguf, const char *key, int64_t index, size_t *length);
double bw_gguf_array_number(const bw_tensors *gguf, const char *key, int64_t index, double otherwise);

/* Type conversion, rounding to nearest even. */
/* From every type; quantised: whole blocks, and the first entries of a last one. */
void bw_to_f32(float *out, const void *in, bw_dtype dtype, int64_t count);
void bw_from_f32(void *out, const float *in, bw_dtype dtype, int64_t count); /* F32 F16 BF16 */
/* out = base + delta, and kept = out as it is read again; returns the entries where out is not what base alone would give. F32 F16 BF16 */
int64_t bw_from_f32_sum(void *out, float *kept, const float *base, const float *delta, bw_dtype dtype, int32_t count);

/* Write a safetensors file. Layout first, then any rank writes its pieces at its offsets.
 * bw_safetensors_plan computes header and offsets from names and shapes (Local); bw_safetensors_write writes a whole file
 * from memory, atomically, mode as in bw_file_write. Format: 8-byte little-endian header length, JSON, data.
 * `header` is everything before the data, the length included. Tensors lie in the file, and in the header, by size of an entry
 * (largest first, so all are aligned), then by name; `specs` keep their order. F32 F16 BF16 F64. */
typedef struct bw_tensor_spec {
    const char *name;
    bw_dtype dtype;
    int n_dims;
    int64_t shape[4];
    const void *data;      /* or NULL */
    int64_t offset, bytes; /* out: offset in the file */
} bw_tensor_spec;
int bw_safetensors_plan(bw_tensor_spec *specs, int count, const char *const *metadata /* key, value, ..., NULL */, bw_text *header,
                        int64_t *file_bytes);
int bw_safetensors_write(const char *path, bw_tensor_spec *specs, int count, const char *const *metadata, unsigned mode);

#endif
