/* tensors.c - an open file of tensors, whatever its format: find one by name, read a piece of one as fp32. */
#include "io/tensors.h"
#include "io/convert.h"
#include "io/utf8.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const char purpose[] = "file index";

int bw_copy_text(char **out, const void *bytes, size_t length, const char *why)
{
    BW_TRY(BW_NEW(*out, length + 1, why));
    if (length)
        memcpy(*out, bytes, length);
    return BW_OK;
}

bw_shown bw_show(const void *name, size_t length)
{
    bw_shown shown = {{0}};
    const uint8_t *text = name;
    size_t used = 0, at = 0;
    while (at < length && used < sizeof shown.text - 8) {
        bool valid;
        size_t step = bw_utf8_step(text + at, length - at, &valid);
        bool plain = valid && (step > 1 ? text[at] != 0xc2 || text[at + 1] >= 0xa0 : text[at] >= 0x20 && text[at] != 0x7f);
        memcpy(shown.text + used, plain ? (const void *)(text + at) : "?", plain ? step : 1);
        used += plain ? step : 1;
        at += step;
    }
    if (at < length)
        memcpy(shown.text + used, "...", 3);
    return shown;
}

/* ---- opening and closing -------------------------------------------------------------------------------------------*/
/* Room for one more. It grows with what is really there: a count in a damaged file takes no memory. */
static int grow(void **items, int64_t count, int64_t *capacity, size_t size)
{
    if (count < *capacity)
        return BW_OK;
    int64_t larger = *capacity ? 2 * *capacity : 64;
    void *copy = bw_calloc(larger, size, purpose);
    if (!copy)
        return BW_SYSTEM;
    if (count)
        memcpy(copy, *items, (size_t)count * size);
    bw_free(*items);
    *items = copy;
    *capacity = larger;
    return BW_OK;
}

int bw_tensors_new(bw_tensors **out, const char *path, int64_t files)
{
    BW_TRY(BW_NEW(*out, 1, purpose));
    void *items = NULL, *metas = NULL;
    BW_TRY(grow(&items, 0, &(*out)->capacity, sizeof *(*out)->items));
    (*out)->items = items;
    BW_TRY(grow(&metas, 0, &(*out)->meta_capacity, sizeof *(*out)->metas));
    (*out)->metas = metas;
    BW_TRY(bw_copy_text(&(*out)->path, path, strlen(path), purpose));
    return BW_NEW((*out)->maps, files, purpose);
}

static void free_meta(bw_meta *meta)
{
    bw_free(meta->key);
    bw_free(meta->strings);
    bw_free(meta->pool);
}

void bw_tensors_close(bw_tensors *tensors)
{
    if (!tensors)
        return;
    for (int64_t i = 0; i < tensors->count; i++)
        bw_free(tensors->items[i].name);
    for (int64_t i = 0; i < tensors->meta_count; i++)
        free_meta(&tensors->metas[i]);
    for (int64_t i = 0; i < tensors->map_count; i++)
        bw_map_close(&tensors->maps[i]);
    bw_free(tensors->items);
    bw_free(tensors->by_name);
    bw_free(tensors->metas);
    bw_free(tensors->maps);
    bw_free(tensors->path);
    bw_free(tensors);
}

int bw_tensors_add_meta(bw_tensors *tensors, const char *key, size_t length, bw_meta **out)
{
    void *metas = tensors->metas;
    BW_TRY(grow(&metas, tensors->meta_count, &tensors->meta_capacity, sizeof *tensors->metas));
    tensors->metas = metas;
    *out = &tensors->metas[tensors->meta_count++];
    (*out)->file = tensors->map_count;
    return bw_copy_text(&(*out)->key, key, length, purpose);
}

int bw_tensors_add(bw_tensors *tensors, const bw_tensor *tensor, const char *name, size_t length, const char *where)
{
    if (!length || memchr(name, 0, length) || bw_utf8_check((const uint8_t *)name, length) != length)
        return bw_fail(BW_DATA, "%s: the name \"%s\" of tensor %lld is empty, holds a zero byte or is not UTF-8", where, bw_show(name, length).text,
                       (long long)tensors->count);
    void *items = tensors->items;
    BW_TRY(grow(&items, tensors->count, &tensors->capacity, sizeof *tensors->items));
    tensors->items = items;
    bw_tensor *item = &tensors->items[tensors->count];
    *item = *tensor;
    BW_TRY(bw_copy_text(&item->name, name, length, purpose));
    tensors->count++;
    return BW_OK;
}

int bw_tensor_size(bw_tensor *tensor, const char *name, size_t length, const char *where)
{
    const bw_dtype_row *row = bw_dtype_get(tensor->dtype);
    int64_t count = 1, bytes;
    bool overflow = false;
    for (int i = 0; i < tensor->n_dims; i++)
        overflow |= __builtin_mul_overflow(count, tensor->shape[i], &count);
    overflow |= __builtin_mul_overflow(count, (int64_t)row->bytes, &bytes); /* the blocks are fewer: this bounds them too */
    if (overflow)
        return bw_fail(BW_DATA, "%s: tensor %s: the product of its dimensions does not fit 63 bits: the file is damaged", where,
                       bw_show(name, length).text);
    int64_t columns = tensor->n_dims ? tensor->shape[tensor->n_dims - 1] : 1;
    if (columns % row->block)
        return bw_fail(BW_DATA, "%s: tensor %s: rows of %lld entries cannot be %s, which comes in blocks of %d", where, bw_show(name, length).text,
                       (long long)columns, row->name, row->block);
    tensor->bytes = bw_dtype_bytes(tensor->dtype, count);
    return BW_OK;
}

/* ---- checks over all tensors of a file ---------------------------------------------------------------------------- */
static int by_place(const void *a, const void *b)
{
    const bw_tensor *const *x = a, *const *y = b;
    if ((*x)->data != (*y)->data)
        return (*x)->data < (*y)->data ? -1 : 1;
    return ((*x)->bytes > (*y)->bytes) - ((*x)->bytes < (*y)->bytes); /* an empty tensor lies before its neighbour */
}

static int check_places(const bw_tensor *const *sorted, int64_t count, const uint8_t *begin, const uint8_t *end, bool dense, const char *where)
{
    const uint8_t *reached = begin;
    for (int64_t i = 0; i < count; i++) {
        bw_shown name = bw_show(sorted[i]->name, strlen(sorted[i]->name));
        if (sorted[i]->data < reached)
            return bw_fail(BW_DATA, "%s: tensor %s overlaps tensor %s: the file is damaged", where, name.text,
                           bw_show(sorted[i - 1]->name, strlen(sorted[i - 1]->name)).text);
        if (dense && sorted[i]->data > reached)
            return bw_fail(BW_DATA, "%s: %lld bytes before tensor %s belong to no tensor: the file is damaged", where,
                           (long long)(sorted[i]->data - reached), name.text);
        reached = sorted[i]->data + sorted[i]->bytes;
    }
    if (dense && reached != end)
        return bw_fail(BW_DATA, "%s: %lld bytes behind the last tensor belong to no tensor: the file is damaged", where, (long long)(end - reached));
    return BW_OK;
}

int bw_tensors_layout(const bw_tensors *tensors, int64_t first, const uint8_t *begin, const uint8_t *end, bool dense, const char *where)
{
    int64_t count = tensors->count - first;
    const bw_tensor **sorted;
    BW_TRY(BW_NEW(sorted, count, purpose));
    for (int64_t i = 0; i < count; i++)
        sorted[i] = &tensors->items[first + i];
    qsort(sorted, (size_t)count, sizeof *sorted, by_place);
    int status = check_places(sorted, count, begin, end, dense, where);
    bw_free(sorted);
    return status;
}

/* ---- the index -----------------------------------------------------------------------------------------------------*/
static int by_name(const void *a, const void *b, void *items)
{
    const bw_tensor *tensors = items;
    return strcmp(tensors[*(const int64_t *)a].name, tensors[*(const int64_t *)b].name);
}

static int by_key(const void *a, const void *b)
{
    return strcmp(((const bw_meta *)a)->key, ((const bw_meta *)b)->key);
}

static int by_key_then_file(const void *a, const void *b)
{
    const bw_meta *x = a, *y = b;
    int order = strcmp(x->key, y->key);
    return order ? order : (x->file > y->file) - (x->file < y->file);
}

static int same_name(const bw_tensors *tensors, const char *kind, const char *name)
{
    return bw_fail(BW_DATA, "%s: two %s have the name %s", tensors->path, kind, bw_show(name, strlen(name)).text);
}

/* Shards repeat their metadata; the first one is kept. */
static int index_metas(bw_tensors *tensors)
{
    bw_meta *metas = tensors->metas;
    int64_t kept = 0, count = tensors->meta_count;
    qsort(metas, (size_t)count, sizeof *metas, by_key_then_file);
    for (int64_t i = 1; i < count; i++)
        if (by_key_then_file(&metas[i - 1], &metas[i]) == 0)
            return same_name(tensors, "metadata keys", metas[i].key);
    for (int64_t i = 0; i < count; i++) {
        if (kept > 0 && by_key(&metas[kept - 1], &metas[i]) == 0)
            free_meta(&metas[i]);
        else
            metas[kept++] = metas[i];
    }
    tensors->meta_count = kept;
    return BW_OK;
}

int bw_tensors_index(bw_tensors *tensors)
{
    BW_TRY(BW_NEW(tensors->by_name, tensors->count, purpose));
    for (int64_t i = 0; i < tensors->count; i++)
        tensors->by_name[i] = i;
    qsort_r(tensors->by_name, (size_t)tensors->count, sizeof *tensors->by_name, by_name, tensors->items);
    for (int64_t i = 1; i < tensors->count; i++)
        if (by_name(&tensors->by_name[i - 1], &tensors->by_name[i], tensors->items) == 0)
            return same_name(tensors, "tensors", tensors->items[tensors->by_name[i]].name);
    return index_metas(tensors);
}

int64_t bw_tensors_count(const bw_tensors *tensors)
{
    return tensors->count;
}

const bw_tensor *bw_tensors_at(const bw_tensors *tensors, int64_t index)
{
    return index >= 0 && index < tensors->count ? &tensors->items[index] : NULL;
}

const bw_tensor *bw_tensors_find(const bw_tensors *tensors, const char *name)
{
    int64_t low = 0, high = tensors->count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        const bw_tensor *item = &tensors->items[tensors->by_name[middle]];
        int order = strcmp(name, item->name);
        if (order == 0)
            return item;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

const char *bw_tensors_path(const bw_tensors *tensors)
{
    return tensors->path;
}

const bw_meta *bw_tensors_meta(const bw_tensors *tensors, const char *key)
{
    bw_meta wanted = {.key = (char *)(uintptr_t)key}; /* compared, not changed */
    return bsearch(&wanted, tensors->metas, (size_t)tensors->meta_count, sizeof *tensors->metas, by_key);
}

/* ---- reading a piece -----------------------------------------------------------------------------------------------*/
/* Entries [col, col+cols) of the row that starts at `row`: the part of a block on the left, whole blocks, the part on the right. */
static void read_row(const bw_dtype_row *type, const uint8_t *row, int64_t col, int64_t cols, float *out)
{
    float block[BW_BLOCK_MAX];
    const uint8_t *at = row + col / type->block * type->bytes;
    int64_t skip = col % type->block;
    if (skip) {
        int64_t part = type->block - skip < cols ? type->block - skip : cols;
        type->decode(block, at, 1);
        memcpy(out, block + skip, (size_t)part * sizeof *out);
        at += type->bytes;
        out += part;
        cols -= part;
    }
    int64_t whole = cols / type->block, rest = cols % type->block;
    type->decode(out, at, whole);
    if (rest) {
        type->decode(block, at + whole * type->bytes, 1);
        memcpy(out + whole * type->block, block, (size_t)rest * sizeof *out);
    }
}

int bw_tensor_read(const bw_tensor *tensor, int64_t row, int64_t rows, int64_t col, int64_t cols, float *out, int64_t ld)
{
    const bw_dtype_row *type = bw_dtype_get(tensor->dtype);
    if (tensor->n_dims > 2)
        return bw_fail(BW_DATA, "tensor %s has %d dimensions, and a matrix or a vector was expected", tensor->name, tensor->n_dims);
    int64_t height = tensor->n_dims == 2 ? tensor->shape[0] : 1, width = tensor->n_dims ? tensor->shape[tensor->n_dims - 1] : 1;
    if (row < 0 || rows < 0 || row > height - rows || col < 0 || cols < 0 || col > width - cols)
        return bw_fail(BW_BUG, "tensor %s is %lld x %lld, and %lld rows from %lld on, %lld columns from %lld on were asked for", tensor->name,
                       (long long)height, (long long)width, (long long)rows, (long long)row, (long long)cols, (long long)col);
    if (rows == 0 || cols == 0) /* with no rows the width has met no bound, and may be too large to multiply */
        return BW_OK;
    int64_t stride = width / type->block * type->bytes;
    for (int64_t i = 0; i < rows; i++)
        read_row(type, tensor->data + (row + i) * stride, col, cols, out + i * ld);
    return BW_OK;
}

void bw_tensor_done(const bw_tensor *tensor)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)tensor->data, end = first + (uintptr_t)tensor->bytes;
    first = (first + page - 1) / page * page; /* whole pages: the others hold something of its neighbours */
    end = end / page * page;
    if (first < end)
        (void)madvise((void *)first, end - first, MADV_DONTNEED);
}
