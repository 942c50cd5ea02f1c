/* safetensors.c - read one file or a folder of shards; plan and write one.
 * The file: header length (8 bytes, little-endian), a JSON object {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ...,
 * "__metadata__": {"key": "text"}}, then the data, which the tensors fill without gap or overlap. */
#include "io/convert.h"
#include "io/tensors.h"
#include "io/utf8.h"
#include <stdlib.h>
#include <string.h>

static const char purpose[] = "safetensors";
static const char metadata_key[] = "__metadata__";
static const int64_t max_header = 100000000; /* the format's own bound */

/* ---- reading one file ----------------------------------------------------------------------------------------------*/
static int read_dtype(bw_tensor *tensor, const bw_json *entry, const char *name, const char *path)
{
    const char *text = bw_json_text(bw_json_get(entry, "dtype"), NULL);
    for (int i = 0; text && i < BW_DTYPES; i++) {
        tensor->dtype = (bw_dtype)i;
        if (bw_dtype_get(tensor->dtype)->safetensors && strcmp(text, bw_dtype_name(tensor->dtype)) == 0)
            return BW_OK;
    }
    char list[100];
    bw_dtype_list(list, sizeof list, true);
    return bw_fail(BW_DATA, "%s: tensor %s has dtype %s; supported are %s", path, bw_show(name, strlen(name)).text,
                   text ? bw_show(text, strlen(text)).text : "missing", list);
}

static int read_shape(bw_tensor *tensor, const bw_json *entry, const char *name, const char *path)
{
    const bw_json *shape = bw_json_get(entry, "shape");
    int64_t n_dims = bw_json_size(shape);
    bool good = bw_json_kind(shape) == BW_JSON_ARRAY && n_dims <= 4;
    for (int64_t i = 0; good && i < n_dims; i++) {
        const bw_json *size = bw_json_at(shape, i);
        tensor->shape[i] = bw_json_kind(size) == BW_JSON_INT ? bw_json_int(size, -1) : -1;
        good = tensor->shape[i] >= 0;
    }
    if (!good)
        return bw_fail(BW_DATA, "%s: tensor %s: \"shape\" must be a list of at most 4 sizes", path, bw_show(name, strlen(name)).text);
    tensor->n_dims = (int)n_dims;
    return bw_tensor_size(tensor, name, strlen(name), path);
}

static int read_offsets(bw_tensor *tensor, const bw_json *entry, const char *name, const uint8_t *data, int64_t size, const char *path)
{
    const bw_json *offsets = bw_json_get(entry, "data_offsets");
    const bw_json *first = bw_json_at(offsets, 0), *last = bw_json_at(offsets, 1);
    if (bw_json_size(offsets) != 2 || bw_json_kind(first) != BW_JSON_INT || bw_json_kind(last) != BW_JSON_INT)
        return bw_fail(BW_DATA, "%s: tensor %s: \"data_offsets\" must be two whole numbers", path, bw_show(name, strlen(name)).text);
    int64_t begin = bw_json_int(first, -1), end = bw_json_int(last, -1);
    if (begin < 0 || begin > end || end > size)
        return bw_fail(BW_DATA, "%s: tensor %s lies at bytes %lld to %lld of %lld bytes of data: the file is cut off or damaged", path,
                       bw_show(name, strlen(name)).text, (long long)begin, (long long)end, (long long)size);
    if (end - begin != tensor->bytes)
        return bw_fail(BW_DATA, "%s: tensor %s: its shape and dtype need %lld bytes, and its offsets give it %lld", path,
                       bw_show(name, strlen(name)).text, (long long)tensor->bytes, (long long)(end - begin));
    tensor->data = data + begin;
    return BW_OK;
}

static int read_tensor(bw_tensors *tensors, const char *name, const bw_json *entry, const uint8_t *data, int64_t size, const char *path)
{
    bw_tensor tensor = {0};
    if (bw_json_kind(entry) != BW_JSON_OBJECT)
        return bw_fail(BW_DATA, "%s: the header's entry for tensor %s must be an object", path, bw_show(name, strlen(name)).text);
    BW_TRY(read_dtype(&tensor, entry, name, path));
    BW_TRY(read_shape(&tensor, entry, name, path));
    BW_TRY(read_offsets(&tensor, entry, name, data, size, path));
    return bw_tensors_add(tensors, &tensor, name, strlen(name), path);
}

static int read_metadata(bw_tensors *tensors, const bw_json *metadata, const char *path)
{
    if (bw_json_kind(metadata) != BW_JSON_OBJECT)
        return bw_fail(BW_DATA, "%s: %s must be an object of texts", path, metadata_key);
    void *at = NULL;
    const char *key;
    const bw_json *value;
    while (bw_json_next(metadata, &at, &key, &value)) {
        size_t length;
        const char *text = bw_json_text(value, &length);
        if (!text)
            return bw_fail(BW_DATA, "%s: %s: the value of %s must be a text", path, metadata_key, bw_show(key, strlen(key)).text);
        bw_meta *meta;
        BW_TRY(bw_tensors_add_meta(tensors, key, strlen(key), &meta));
        meta->type = BW_META_STRING;
        meta->count = 1;
        BW_TRY(bw_copy_text(&meta->pool, text, length, purpose));
        BW_TRY(BW_NEW(meta->strings, 1, purpose));
        meta->strings[0] = (bw_meta_string){meta->pool, length};
    }
    return BW_OK;
}

static int read_header(bw_tensors *tensors, const bw_json *header, const uint8_t *data, int64_t size, const char *path)
{
    if (bw_json_kind(header) != BW_JSON_OBJECT)
        return bw_fail(BW_DATA, "%s: the header must be a JSON object: this is no safetensors file", path);
    const bw_json *metadata = bw_json_get(header, metadata_key);
    void *at = NULL;
    const char *name;
    const bw_json *entry;
    while (bw_json_next(header, &at, &name, &entry)) {
        if (entry == metadata)
            BW_TRY(read_metadata(tensors, metadata, path));
        else
            BW_TRY(read_tensor(tensors, name, entry, data, size, path));
    }
    return BW_OK;
}

/* Map `path` and append its tensors. */
static int read_file(bw_tensors *tensors, const char *path)
{
    bw_map *map = &tensors->maps[tensors->map_count];
    BW_TRY(bw_map_open(map, path));
    tensors->map_count++;
    uint64_t length = 0;
    if (map->size < sizeof length)
        return bw_fail(BW_DATA, "%s: %zu bytes are too few for a safetensors file, which begins with an 8-byte length", path, map->size);
    memcpy(&length, map->data, sizeof length);
    if (length > (uint64_t)max_header || length > map->size - sizeof length)
        return bw_fail(BW_DATA,
                       "%s: the header claims %llu bytes; the file holds %zu more and the format allows %lld: it is cut off, or no safetensors file",
                       path, (unsigned long long)length, map->size - sizeof length, (long long)max_header);
    const uint8_t *data = map->data + sizeof length + length, *end = map->data + map->size;
    int64_t first = tensors->count;
    bw_text where = {0};
    bw_json *header = NULL;
    int status = BW_OK;
    BW_GO(bw_text_addf(&where, "%s: header", path));
    BW_GO(bw_json_parse(&header, (const char *)map->data + sizeof length, length, where.data));
    BW_GO(read_header(tensors, header, data, end - data, path));
    BW_GO(bw_tensors_layout(tensors, first, data, end, true, path));
done:
    bw_json_free(header);
    bw_text_free(&where);
    return status;
}

int bw_safetensors_open(bw_tensors **out, const char *path)
{
    *out = NULL;
    bw_tensors *tensors = NULL;
    int status = BW_OK;
    BW_GO(bw_tensors_new(&tensors, path, 1));
    BW_GO(read_file(tensors, path));
    BW_GO(bw_tensors_index(tensors));
    *out = tensors;
    return BW_OK;
done:
    bw_tensors_close(tensors);
    return status;
}

const char *bw_safetensors_metadata(const bw_tensors *tensors, const char *key)
{
    const bw_meta *meta = bw_tensors_meta(tensors, key);
    return meta && meta->strings && !meta->is_array ? meta->strings[0].text : NULL;
}

/* ---- a folder of shards --------------------------------------------------------------------------------------------*/
typedef struct placed {
    const char *name, *file;
} placed; /* one entry of the weight map */

static int by_file_then_name(const void *a, const void *b)
{
    const placed *x = a, *y = b;
    int order = strcmp(x->file, y->file);
    return order ? order : strcmp(x->name, y->name);
}

static int read_weight_map(const bw_json *index, placed **out, int64_t *count, const char *path)
{
    const bw_json *map = bw_json_get(index, "weight_map");
    if (bw_json_kind(map) != BW_JSON_OBJECT || bw_json_size(map) == 0)
        return bw_fail(BW_DATA, "%s: \"weight_map\" must be an object of tensor names and file names", path);
    BW_TRY(BW_NEW(*out, bw_json_size(map), purpose));
    void *at = NULL;
    const char *name;
    const bw_json *value;
    while (bw_json_next(map, &at, &name, &value)) {
        size_t length;
        const char *file = bw_json_text(value, &length);
        /* A shard lies beside the index: a file from elsewhere must not be reached through it. */
        if (!file || !length || strlen(file) != length || strchr(file, '/') || strstr(file, ".."))
            return bw_fail(BW_DATA, "%s: tensor %s: \"%s\" is not a plain file name beside the index", path, bw_show(name, strlen(name)).text,
                           file ? bw_show(file, length).text : "(no text)");
        (*out)[(*count)++] = (placed){name, file};
    }
    qsort(*out, (size_t)*count, sizeof **out, by_file_then_name);
    return BW_OK;
}

static int by_item_name(const void *a, const void *b)
{
    return strcmp((*(const bw_tensor *const *)a)->name, (*(const bw_tensor *const *)b)->name);
}

/* The tensors of a shard are exactly those that the map places there; both lists are sorted. */
static int compare_shard(const placed *wanted, int64_t wanted_count, const bw_tensor *const *found, int64_t found_count, const char *path)
{
    for (int64_t i = 0; i < wanted_count || i < found_count; i++) {
        int order = i >= wanted_count ? 1 : i >= found_count ? -1 : strcmp(wanted[i].name, found[i]->name);
        if (order < 0)
            return bw_fail(BW_DATA, "%s: tensor %s is missing: the index places it in this file", path,
                           bw_show(wanted[i].name, strlen(wanted[i].name)).text);
        if (order > 0)
            return bw_fail(BW_DATA, "%s: tensor %s is surplus: the index does not place it in this file", path,
                           bw_show(found[i]->name, strlen(found[i]->name)).text);
    }
    return BW_OK;
}

static int read_shard(bw_tensors *tensors, const char *folder, const placed *wanted, int64_t count)
{
    const bw_tensor **found = NULL;
    bw_text path = {0};
    int64_t first = tensors->count;
    int status = BW_OK;
    BW_GO(bw_path(&path, folder, wanted[0].file));
    BW_GO(read_file(tensors, path.data));
    BW_GO(BW_NEW(found, tensors->count - first, purpose));
    for (int64_t i = first; i < tensors->count; i++)
        found[i - first] = &tensors->items[i];
    qsort(found, (size_t)(tensors->count - first), sizeof *found, by_item_name);
    BW_GO(compare_shard(wanted, count, found, tensors->count - first, path.data));
done:
    bw_free(found);
    bw_text_free(&path);
    return status;
}

static int read_shards(bw_tensors **out, const char *folder, const char *index_path)
{
    bw_json *index = NULL;
    placed *map = NULL;
    int64_t count = 0, files = 1;
    int status = BW_OK;
    BW_GO(bw_json_load(&index, index_path));
    BW_GO(read_weight_map(index, &map, &count, index_path));
    for (int64_t i = 1; i < count; i++)
        files += strcmp(map[i].file, map[i - 1].file) != 0;
    BW_GO(bw_tensors_new(out, folder, files));
    for (int64_t begin = 0, end; begin < count; begin = end) {
        for (end = begin + 1; end < count && strcmp(map[end].file, map[begin].file) == 0;)
            end++;
        BW_GO(read_shard(*out, folder, map + begin, end - begin));
    }
    BW_GO(bw_tensors_index(*out));
done:
    bw_free(map);
    bw_json_free(index);
    return status;
}

int bw_safetensors_open_model(bw_tensors **out, const char *folder)
{
    *out = NULL;
    bw_tensors *tensors = NULL;
    bw_text single = {0}, index = {0};
    int status = BW_OK;
    BW_GO(bw_path(&single, folder, "model.safetensors"));
    BW_GO(bw_path(&index, folder, "model.safetensors.index.json"));
    if (bw_file_exists(single.data))
        BW_GO(bw_safetensors_open(&tensors, single.data));
    else if (bw_file_exists(index.data))
        BW_GO(read_shards(&tensors, folder, index.data));
    else
        BW_GO(bw_fail(BW_NOINPUT,
                      "%s: neither model.safetensors nor model.safetensors.index.json is here (pickle files, *.bin, are not read: "
                      "save the model with safe_serialization=True)",
                      folder));
    *out = tensors;
    tensors = NULL;
done:
    bw_tensors_close(tensors);
    bw_text_free(&single);
    bw_text_free(&index);
    return status;
}

/* ---- writing -------------------------------------------------------------------------------------------------------*/
static int by_width_then_name(const void *a, const void *b)
{
    const bw_tensor_spec *x = *(bw_tensor_spec *const *)a, *y = *(bw_tensor_spec *const *)b;
    int wide = bw_dtype_get(y->dtype)->bytes - bw_dtype_get(x->dtype)->bytes;
    return wide ? wide : strcmp(x->name, y->name);
}

static int by_spec_name(const void *a, const void *b)
{
    return strcmp((*(bw_tensor_spec *const *)a)->name, (*(bw_tensor_spec *const *)b)->name);
}

static int plan_metadata(bw_text *header, const char *const *metadata)
{
    BW_TRY(bw_text_addf(header, "\"%s\":{", metadata_key));
    for (int i = 0; metadata[i]; i += 2) {
        BW_ASSERT(metadata[i + 1]);
        for (int k = 0; k < i; k += 2)
            BW_ASSERT(strcmp(metadata[k], metadata[i]) != 0);
        if (i)
            BW_TRY(bw_text_add(header, ",", 1));
        BW_TRY(bw_json_quote(header, metadata[i], strlen(metadata[i])));
        BW_TRY(bw_text_add(header, ":", 1));
        BW_TRY(bw_json_quote(header, metadata[i + 1], strlen(metadata[i + 1])));
    }
    return bw_text_add(header, "}", 1);
}

/* Append the entry of one tensor; spec->offset counts from the start of the data. */
static int plan_tensor(bw_text *header, const bw_tensor_spec *spec, bool first)
{
    if (!first)
        BW_TRY(bw_text_add(header, ",", 1));
    BW_TRY(bw_json_quote(header, spec->name, strlen(spec->name)));
    BW_TRY(bw_text_addf(header, ":{\"dtype\":\"%s\",\"shape\":[", bw_dtype_name(spec->dtype)));
    for (int i = 0; i < spec->n_dims; i++)
        BW_TRY(bw_text_addf(header, i ? ",%lld" : "%lld", (long long)spec->shape[i]));
    return bw_text_addf(header, "],\"data_offsets\":[%lld,%lld]}", (long long)spec->offset, (long long)(spec->offset + spec->bytes));
}

static int plan_header(bw_tensor_spec **sorted, int count, const char *const *metadata, bw_text *header)
{
    bool has_metadata = metadata && metadata[0];
    BW_TRY(bw_text_add(header, "\0\0\0\0\0\0\0\0{", 9)); /* the length follows */
    if (has_metadata)
        BW_TRY(plan_metadata(header, metadata));
    for (int i = 0; i < count; i++)
        BW_TRY(plan_tensor(header, sorted[i], i == 0 && !has_metadata));
    BW_TRY(bw_text_add(header, "}", 1));
    while (header->length % 8)
        BW_TRY(bw_text_add(header, " ", 1));
    uint64_t length = header->length - sizeof length;
    if (length > (uint64_t)max_header)
        return bw_fail(BW_DATA, "a safetensors header of %llu bytes is larger than the format's %lld", (unsigned long long)length,
                       (long long)max_header);
    memcpy(header->data, &length, sizeof length);
    return BW_OK;
}

/* A name that is no text would become another one in the file. */
static int plan_sizes(bw_tensor_spec *spec)
{
    BW_ASSERT(spec->name && strcmp(spec->name, metadata_key) != 0 && spec->n_dims >= 0 && spec->n_dims <= 4 &&
              bw_dtype_get(spec->dtype)->safetensors);
    BW_ASSERT(bw_utf8_check((const uint8_t *)spec->name, strlen(spec->name)) == strlen(spec->name));
    bw_tensor tensor = {.dtype = spec->dtype, .n_dims = spec->n_dims};
    for (int i = 0; i < spec->n_dims; i++) {
        BW_ASSERT(spec->shape[i] >= 0);
        tensor.shape[i] = spec->shape[i];
    }
    BW_TRY(bw_tensor_size(&tensor, spec->name, strlen(spec->name), "safetensors file to write"));
    spec->bytes = tensor.bytes;
    return BW_OK;
}

int bw_safetensors_plan(bw_tensor_spec *specs, int count, const char *const *metadata, bw_text *header, int64_t *file_bytes)
{
    bw_tensor_spec **sorted;
    BW_TRY(BW_NEW(sorted, count, purpose));
    int status = BW_OK;
    for (int i = 0; i < count; i++) {
        BW_GO(plan_sizes(&specs[i]));
        sorted[i] = &specs[i];
    }
    qsort(sorted, (size_t)count, sizeof *sorted, by_spec_name);
    for (int i = 1; i < count; i++)
        if (strcmp(sorted[i]->name, sorted[i - 1]->name) == 0)
            BW_GO(bw_fail(BW_BUG, "safetensors file to write: tensor %s is there twice", sorted[i]->name));
    qsort(sorted, (size_t)count, sizeof *sorted, by_width_then_name);
    int64_t end = 0;
    for (int i = 0; i < count; i++) {
        sorted[i]->offset = end;
        if (__builtin_add_overflow(end, sorted[i]->bytes, &end))
            BW_GO(bw_fail(BW_BUG, "safetensors file to write: its tensors are larger than 2^63 bytes"));
    }
    BW_GO(plan_header(sorted, count, metadata, header));
    for (int i = 0; i < count; i++)
        specs[i].offset += (int64_t)header->length;
    *file_bytes = (int64_t)header->length + end;
done:
    bw_free(sorted);
    return status;
}

int bw_safetensors_write(const char *path, bw_tensor_spec *specs, int count, const char *const *metadata, unsigned mode)
{
    bw_text header = {0};
    uint8_t *file = NULL;
    int64_t bytes;
    int status = BW_OK;
    BW_GO(bw_safetensors_plan(specs, count, metadata, &header, &bytes));
    BW_GO(BW_NEW(file, bytes, purpose));
    memcpy(file, header.data, header.length);
    for (int i = 0; i < count; i++)
        if (specs[i].bytes)
            memcpy(file + specs[i].offset, specs[i].data, (size_t)specs[i].bytes);
    BW_GO(bw_file_write(path, file, (size_t)bytes, mode));
done:
    bw_free(file);
    bw_text_free(&header);
    return status;
}
