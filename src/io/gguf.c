/* gguf.c - read a GGUF file, versions 2 and 3.
 * The file: "GGUF", version (u32), tensor count, pair count (u64); pairs of key (text), type (u32), value; per tensor name (text),
 * dimensions (u32), sizes (u64, innermost first), type (u32), offset (u64); from the next multiple of general.alignment on, the data,
 * from where the offsets count. A text is a length (u64) and UTF-8; an array is a type (u32), a count (u64) and the entries. */
#include "io/convert.h"
#include "io/tensors.h"
#include "io/utf8.h"
#include <string.h>

static const char purpose[] = "gguf";
enum { MAX_NESTING = 4, MIN_PAIR_BYTES = 13, MIN_TENSOR_BYTES = 24, DEFAULT_ALIGNMENT = 32, MAX_ALIGNMENT = 1 << 20 };

typedef struct cursor {
    const uint8_t *start, *at, *end;
    const char *path;
} cursor;

/* ---- pieces of a file ----------------------------------------------------------------------------------------------*/
static int take(cursor *c, uint64_t bytes, const char *what, const uint8_t **out)
{
    *out = c->at;
    if (bytes > (uint64_t)(c->end - c->at))
        return bw_fail(BW_DATA, "%s: byte %lld: %s needs %llu bytes, and the file ends after %lld: it is cut off or damaged", c->path,
                       (long long)(c->at - c->start), what, (unsigned long long)bytes, (long long)(c->end - c->at));
    c->at += bytes;
    return BW_OK;
}

static int take_u32(cursor *c, const char *what, uint32_t *out)
{
    const uint8_t *at;
    BW_TRY(take(c, sizeof *out, what, &at));
    memcpy(out, at, sizeof *out);
    return BW_OK;
}

static int take_u64(cursor *c, const char *what, uint64_t *out)
{
    const uint8_t *at;
    BW_TRY(take(c, sizeof *out, what, &at));
    memcpy(out, at, sizeof *out);
    return BW_OK;
}

/* A count of things of at least `least` bytes each: refused, before anything is allocated, where the rest of the file cannot hold them. */
static int take_count(cursor *c, const char *what, uint64_t least, int64_t *out)
{
    uint64_t count;
    BW_TRY(take_u64(c, what, &count));
    if (count > (uint64_t)(c->end - c->at) / least)
        return bw_fail(BW_DATA, "%s: byte %lld: %s is %llu, more than the file can hold: it is cut off or damaged", c->path,
                       (long long)(c->at - c->start) - 8, what, (unsigned long long)count);
    *out = (int64_t)count;
    return BW_OK;
}

static int take_text(cursor *c, const char *what, bw_meta_string *out)
{
    uint64_t length;
    const uint8_t *at;
    BW_TRY(take_u64(c, what, &length));
    BW_TRY(take(c, length, what, &at));
    size_t good = bw_utf8_check(at, length);
    if (good < length)
        return bw_fail(BW_DATA, "%s: byte %lld: %s is not UTF-8: the file is damaged", c->path, (long long)(at - c->start + (ptrdiff_t)good), what);
    *out = (bw_meta_string){(const char *)at, length};
    return BW_OK;
}

/* ---- metadata ------------------------------------------------------------------------------------------------------*/
/* Bytes of a number; 0 for texts and arrays. */
static const size_t number_bytes[BW_META_TYPES] = {
    [BW_META_U8] = 1,  [BW_META_I8] = 1,   [BW_META_U16] = 2, [BW_META_I16] = 2, [BW_META_U32] = 4, [BW_META_I32] = 4,
    [BW_META_F32] = 4, [BW_META_BOOL] = 1, [BW_META_U64] = 8, [BW_META_I64] = 8, [BW_META_F64] = 8,
};

static int take_type(cursor *c, const char *key, bw_meta_type *out)
{
    uint32_t type;
    BW_TRY(take_u32(c, "a value's type", &type));
    if (type >= BW_META_TYPES)
        return bw_fail(BW_DATA, "%s: byte %lld: key %s has a value of the unknown type %u: the file is damaged, or newer than this program", c->path,
                       (long long)(c->at - c->start) - 4, bw_show(key, strlen(key)).text, type);
    *out = (bw_meta_type)type;
    return BW_OK;
}

/* Texts are looked at twice: to check and measure them all, and to copy them into one pool with zero bytes between. */
static int take_strings(cursor *c, bw_meta *meta)
{
    cursor again = *c;
    bw_meta_string text;
    bw_shown key = bw_show(meta->key, strlen(meta->key));
    int64_t length = 0;
    for (int64_t i = 0; i < meta->count; i++) {
        BW_TRY(take_text(c, key.text, &text));
        length += (int64_t)text.length + 1;
    }
    BW_TRY(BW_NEW(meta->strings, meta->count, purpose));
    BW_TRY(BW_NEW(meta->pool, length, purpose));
    char *to = meta->pool;
    for (int64_t i = 0; i < meta->count; i++) {
        BW_TRY(take_text(&again, key.text, &text));
        memcpy(to, text.text, text.length);
        meta->strings[i] = (bw_meta_string){to, text.length};
        to += text.length + 1;
    }
    return BW_OK;
}

/* Arrays of arrays are stepped over: no key that we read has one. */
static int skip_array(cursor *c, const char *key, int depth)
{
    bw_meta_type type;
    int64_t count;
    const uint8_t *ignored;
    bw_meta_string text;
    if (depth > MAX_NESTING)
        return bw_fail(BW_DATA, "%s: byte %lld: key %s nests arrays deeper than %d", c->path, (long long)(c->at - c->start),
                       bw_show(key, strlen(key)).text, MAX_NESTING);
    BW_TRY(take_type(c, key, &type));
    size_t bytes = number_bytes[type];
    BW_TRY(take_count(c, "an array's length", bytes ? bytes : 8, &count));
    if (bytes)
        return take(c, (uint64_t)count * bytes, "an array", &ignored);
    for (int64_t i = 0; i < count; i++)
        BW_TRY(type == BW_META_STRING ? take_text(c, "a text", &text) : skip_array(c, key, depth + 1));
    return BW_OK;
}

static int take_value(cursor *c, bw_meta *meta)
{
    BW_TRY(take_type(c, meta->key, &meta->type));
    meta->count = 1;
    meta->is_array = meta->type == BW_META_ARRAY;
    if (meta->is_array) {
        BW_TRY(take_type(c, meta->key, &meta->type));
        size_t bytes = number_bytes[meta->type];
        BW_TRY(take_count(c, "an array's length", bytes ? bytes : 8, &meta->count));
    }
    if (meta->type == BW_META_STRING)
        return take_strings(c, meta);
    if (meta->type != BW_META_ARRAY)
        return take(c, (uint64_t)meta->count * number_bytes[meta->type], bw_show(meta->key, strlen(meta->key)).text, &meta->numbers);
    for (int64_t i = 0; i < meta->count; i++)
        BW_TRY(skip_array(c, meta->key, 2));
    return BW_OK;
}

static int take_pair(cursor *c, bw_tensors *gguf)
{
    bw_meta_string key;
    BW_TRY(take_text(c, "a key", &key));
    if (!key.length || memchr(key.text, 0, key.length))
        return bw_fail(BW_DATA, "%s: byte %lld: metadata key \"%s\" is empty or holds a zero byte: the file is damaged", c->path,
                       (long long)(key.text - (const char *)c->start), bw_show(key.text, key.length).text);
    bw_meta *meta;
    BW_TRY(bw_tensors_add_meta(gguf, key.text, key.length, &meta));
    return take_value(c, meta);
}

/* ---- tensors -------------------------------------------------------------------------------------------------------*/
/* Names of the types that other programs write and this one does not read, so that a refusal can say what was found. */
static const char *foreign_type(uint32_t type)
{
    static const char *const names[] = {
        [6] = "Q5_0",    [7] = "Q5_1",     [9] = "Q8_1",   [10] = "Q2_K",   [11] = "Q3_K",  [13] = "Q5_K",  [15] = "Q8_K",   [16] = "IQ2_XXS",
        [17] = "IQ2_XS", [18] = "IQ3_XXS", [19] = "IQ1_S", [20] = "IQ4_NL", [21] = "IQ3_S", [22] = "IQ2_S", [23] = "IQ4_XS", [24] = "I8",
        [25] = "I16",    [26] = "I32",     [27] = "I64",   [29] = "IQ1_M",  [34] = "TQ1_0", [35] = "TQ2_0", [39] = "MXFP4",
    };
    return type < sizeof names / sizeof *names && names[type] ? names[type] : "an unknown type";
}

static int find_dtype(uint32_t type, const bw_meta_string *name, const char *path, bw_dtype *out)
{
    for (int i = 0; i < BW_DTYPES; i++) {
        *out = (bw_dtype)i;
        if ((uint32_t)bw_dtype_get(*out)->gguf == type)
            return BW_OK;
    }
    char list[100];
    bw_dtype_list(list, sizeof list, false);
    return bw_fail(BW_DATA, "%s: tensor %s is of type %u (%s); supported are %s: convert the model to one of them", path,
                   bw_show(name->text, name->length).text, type, foreign_type(type), list);
}

static int take_shape(cursor *c, const bw_meta_string *name, bw_tensor *tensor)
{
    uint32_t n_dims;
    BW_TRY(take_u32(c, "a tensor's dimensions", &n_dims));
    if (n_dims > 4)
        return bw_fail(BW_DATA, "%s: tensor %s has %u dimensions, and at most 4 are possible: the file is damaged", c->path,
                       bw_show(name->text, name->length).text, n_dims);
    tensor->n_dims = (int)n_dims;
    for (int i = tensor->n_dims - 1; i >= 0; i--) { /* the file has the innermost first */
        uint64_t size;
        BW_TRY(take_u64(c, "a tensor's size", &size));
        if (size > INT64_MAX)
            return bw_fail(BW_DATA, "%s: tensor %s has a dimension of %llu: the file is damaged", c->path, bw_show(name->text, name->length).text,
                           (unsigned long long)size);
        tensor->shape[i] = (int64_t)size;
    }
    return BW_OK;
}

/* The offset stands for the address until the last tensor is read, because where the data starts is known only behind it. */
static int take_tensor(cursor *c, bw_tensors *gguf)
{
    bw_tensor tensor = {0};
    bw_meta_string name;
    uint32_t type;
    uint64_t offset;
    BW_TRY(take_text(c, "a tensor's name", &name));
    BW_TRY(take_shape(c, &name, &tensor));
    BW_TRY(take_u32(c, "a tensor's type", &type));
    BW_TRY(take_u64(c, "a tensor's offset", &offset));
    BW_TRY(find_dtype(type, &name, c->path, &tensor.dtype));
    BW_TRY(bw_tensor_size(&tensor, name.text, name.length, c->path));
    tensor.data = (const uint8_t *)(uintptr_t)offset;
    return bw_tensors_add(gguf, &tensor, name.text, name.length, c->path);
}

static int alignment_of(const bw_tensors *gguf, const char *path, uint64_t *out)
{
    *out = DEFAULT_ALIGNMENT;
    for (int64_t i = 0; i < gguf->meta_count; i++) {
        const bw_meta *meta = &gguf->metas[i];
        if (strcmp(meta->key, "general.alignment") != 0)
            continue;
        uint32_t value = 0;
        if (!meta->is_array && meta->type == BW_META_U32)
            memcpy(&value, meta->numbers, sizeof value);
        if (!value || (value & (value - 1)) || value > MAX_ALIGNMENT)
            return bw_fail(BW_DATA, "%s: general.alignment must be a power of two up to %d, as a u32", path, MAX_ALIGNMENT);
        *out = value;
    }
    return BW_OK;
}

static int place_tensors(const cursor *c, bw_tensors *gguf)
{
    uint64_t alignment, size = (uint64_t)(c->end - c->start);
    BW_TRY(alignment_of(gguf, c->path, &alignment));
    uint64_t data = ((uint64_t)(c->at - c->start) + alignment - 1) / alignment * alignment;
    data = data < size ? data : size; /* no data, no padding */
    for (int64_t i = 0; i < gguf->count; i++) {
        bw_tensor *tensor = &gguf->items[i];
        uint64_t offset = (uint64_t)(uintptr_t)tensor->data;
        bw_shown name = bw_show(tensor->name, strlen(tensor->name));
        if (offset % alignment)
            return bw_fail(BW_DATA, "%s: tensor %s lies at offset %llu, which is no multiple of the alignment %llu: the file is damaged", c->path,
                           name.text, (unsigned long long)offset, (unsigned long long)alignment);
        if (offset > size - data || (uint64_t)tensor->bytes > size - data - offset)
            return bw_fail(BW_DATA, "%s: tensor %s has %lld bytes at offset %llu, and the data of the file has %llu: it is cut off or damaged",
                           c->path, name.text, (long long)tensor->bytes, (unsigned long long)offset, (unsigned long long)(size - data));
        tensor->data = c->start + data + offset;
    }
    return bw_tensors_layout(gguf, 0, c->start + data, c->end, false, c->path);
}

/* ---- the file ------------------------------------------------------------------------------------------------------*/
static int take_version(cursor *c)
{
    const uint8_t *magic;
    uint32_t version;
    BW_TRY(take(c, 4, "the magic", &magic));
    if (memcmp(magic, "GGUF", 4) != 0)
        return bw_fail(BW_DATA, "%s: it does not begin with \"GGUF\": this is no GGUF file", c->path);
    BW_TRY(take_u32(c, "the version", &version));
    if (version != 2 && version != 3)
        return bw_fail(BW_DATA, "%s: GGUF version %u is not supported (2 and 3 are)%s", c->path, version,
                       version && !(version & 0xffff) ? ": the file is big-endian" : "");
    return BW_OK;
}

static int read_gguf(cursor *c, bw_tensors *gguf)
{
    int64_t tensors, pairs;
    BW_TRY(take_version(c));
    BW_TRY(take_count(c, "the number of tensors", MIN_TENSOR_BYTES, &tensors));
    BW_TRY(take_count(c, "the number of metadata keys", MIN_PAIR_BYTES, &pairs));
    for (int64_t i = 0; i < pairs; i++)
        BW_TRY(take_pair(c, gguf));
    for (int64_t i = 0; i < tensors; i++)
        BW_TRY(take_tensor(c, gguf));
    BW_TRY(place_tensors(c, gguf));
    return bw_tensors_index(gguf);
}

int bw_gguf_open(bw_tensors **out, const char *path)
{
    *out = NULL;
    bw_tensors *gguf = NULL;
    int status = BW_OK;
    BW_GO(bw_tensors_new(&gguf, path, 1));
    BW_GO(bw_map_open(&gguf->maps[0], path));
    gguf->map_count = 1;
    const uint8_t *start = gguf->maps[0].size ? gguf->maps[0].data : (const uint8_t *)"";
    cursor c = {start, start, start + gguf->maps[0].size, path};
    BW_GO(read_gguf(&c, gguf));
    *out = gguf;
    return BW_OK;
done:
    bw_tensors_close(gguf);
    return status;
}

/* ---- reading metadata ----------------------------------------------------------------------------------------------*/
#define READ(ctype)                                                                                                                                  \
    do {                                                                                                                                             \
        ctype value_;                                                                                                                                \
        memcpy(&value_, at, sizeof value_);                                                                                                          \
        return (double)value_;                                                                                                                       \
    } while (0)

static double number_at(bw_meta_type type, const uint8_t *at, double otherwise)
{
    switch (type) {
    case BW_META_U8:
        READ(uint8_t);
    case BW_META_I8:
        READ(int8_t);
    case BW_META_U16:
        READ(uint16_t);
    case BW_META_I16:
        READ(int16_t);
    case BW_META_U32:
        READ(uint32_t);
    case BW_META_I32:
        READ(int32_t);
    case BW_META_F32:
        READ(float);
    case BW_META_BOOL:
        return at[0] != 0;
    case BW_META_U64:
        READ(uint64_t);
    case BW_META_I64:
        READ(int64_t);
    case BW_META_F64:
        READ(double);
    default:
        return otherwise;
    }
}

static const bw_meta *array_entry(const bw_tensors *gguf, const char *key, int64_t index)
{
    const bw_meta *meta = bw_tensors_meta(gguf, key);
    return meta && meta->is_array && index >= 0 && index < meta->count ? meta : NULL;
}

const char *bw_gguf_text(const bw_tensors *gguf, const char *key, size_t *length)
{
    const bw_meta *meta = bw_tensors_meta(gguf, key);
    if (!meta || meta->is_array || !meta->strings)
        return NULL;
    if (length)
        *length = meta->strings[0].length;
    return meta->strings[0].text;
}

double bw_gguf_number(const bw_tensors *gguf, const char *key, double otherwise)
{
    const bw_meta *meta = bw_tensors_meta(gguf, key);
    return meta && !meta->is_array && meta->numbers ? number_at(meta->type, meta->numbers, otherwise) : otherwise;
}

int64_t bw_gguf_array_size(const bw_tensors *gguf, const char *key)
{
    const bw_meta *meta = bw_tensors_meta(gguf, key);
    return meta && meta->is_array ? meta->count : 0;
}

const char *bw_gguf_array_text(const bw_tensors *gguf, const char *key, int64_t index, size_t *length)
{
    const bw_meta *meta = array_entry(gguf, key, index);
    if (!meta || !meta->strings)
        return NULL;
    if (length)
        *length = meta->strings[index].length;
    return meta->strings[index].text;
}

double bw_gguf_array_number(const bw_tensors *gguf, const char *key, int64_t index, double otherwise)
{
    const bw_meta *meta = array_entry(gguf, key, index);
    return meta && meta->numbers ? number_at(meta->type, meta->numbers + (size_t)index * number_bytes[meta->type], otherwise) : otherwise;
}
