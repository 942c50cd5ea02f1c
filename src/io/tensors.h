/* io/tensors.h - what the readers of GGUF and of safetensors share: the open file, its index by name, its metadata. */
#ifndef IO_TENSORS_H
#define IO_TENSORS_H
#include "breakwater/io.h"

/* The types of metadata values, numbered as in GGUF. */
typedef enum bw_meta_type {
    BW_META_U8,
    BW_META_I8,
    BW_META_U16,
    BW_META_I16,
    BW_META_U32,
    BW_META_I32,
    BW_META_F32,
    BW_META_BOOL,
    BW_META_STRING,
    BW_META_ARRAY,
    BW_META_U64,
    BW_META_I64,
    BW_META_F64,
    BW_META_TYPES
} bw_meta_type;

typedef struct bw_meta_string {
    const char *text; /* UTF-8, zero-terminated, in the pool of its value */
    size_t length;
} bw_meta_string;

typedef struct bw_meta { /* one key and its value; __metadata__ of safetensors is kept as strings */
    char *key;
    bool is_array;
    bw_meta_type type;       /* of the value, or of the entries of an array */
    int64_t count;           /* 1 where it is no array */
    const uint8_t *numbers;  /* in the mapped file, at any address; NULL for strings and nested arrays */
    bw_meta_string *strings; /* NULL for everything else */
    char *pool;
    int64_t file; /* number of the map it comes from */
} bw_meta;

struct bw_tensors {
    char *path;
    bw_map *maps;
    int64_t map_count;
    bw_tensor *items; /* in file order */
    int64_t count, capacity;
    int64_t *by_name; /* items in order of names */
    bw_meta *metas;   /* in order of keys, once indexed */
    int64_t meta_count, meta_capacity;
};

/* An empty one with room for `files` maps. On a later error bw_tensors_close() frees whatever is there. */
int bw_tensors_new(bw_tensors **out, const char *path, int64_t files);
/* Add an empty value, of the map opened last; *out is valid until the next one is added. */
int bw_tensors_add_meta(bw_tensors *tensors, const char *key, size_t length, bw_meta **out);
/* Add a tensor whose shape is known and checked for its size by bw_tensor_size(). `name` is copied. */
int bw_tensors_add(bw_tensors *tensors, const bw_tensor *tensor, const char *name, size_t length, const char *where);
/* bytes and, for a quantised type, the row length: refused where the product overflows or a row is not whole blocks. */
int bw_tensor_size(bw_tensor *tensor, const char *name, size_t length, const char *where);
/* The tensors from `first` on must not overlap, nor (dense) leave a hole in [begin, end) of their file. */
int bw_tensors_layout(const bw_tensors *tensors, int64_t first, const uint8_t *begin, const uint8_t *end, bool dense, const char *where);
/* Sort; two tensors, or two keys of one file, of one name are refused. Of a key that several files have, the first file's value is kept. */
int bw_tensors_index(bw_tensors *tensors);
const bw_meta *bw_tensors_meta(const bw_tensors *tensors, const char *key);

/* A copy with a zero byte behind it. */
int bw_copy_text(char **out, const void *bytes, size_t length, const char *purpose);
/* A name from a file, for a message: cut to a bearable length, and no byte of it may steer a terminal. */
typedef struct bw_shown {
    char text[100];
} bw_shown;
bw_shown bw_show(const void *name, size_t length);

#endif
