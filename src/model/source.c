/* A model's files, opened and checked against its family's list of tensors. What is asked for is read in Hugging Face's order of rows,
 * whichever format it lies in. */
#include "model/source.h"
#include "base/half.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { NAME_MOST = 128 };

/* ---- opening ------------------------------------------------------------------------------------------------------ */
static void tensor_name(char name[NAME_MOST], const bw_source *source, const bw_tensor_name *names, int layer)
{
    const char *pattern = source->gguf ? names->gguf : names->hf;
    const char *hole = strstr(pattern, "%d");
    if (hole)
        snprintf(name, NAME_MOST, "%.*s%d%s", (int)(hole - pattern), pattern, layer, hole + 2);
    else
        snprintf(name, NAME_MOST, "%s", pattern);
}

static int shape_text(bw_text *text, int n_dims, const int64_t *shape)
{
    for (int i = 0; i < n_dims; i++)
        BW_TRY(bw_text_addf(text, "%s%lld", i ? " x " : "", (long long)shape[i]));
    return BW_OK;
}

static int wrong_shape(const bw_source *source, const bw_tensor *tensor, int n_dims, const int64_t *shape)
{
    bw_text found = {0}, expected = {0};
    int status;
    BW_GO(shape_text(&found, tensor->n_dims, tensor->shape));
    BW_GO(shape_text(&expected, n_dims, shape));
    status = bw_fail(BW_DATA, "%s: tensor %s is %s; the configuration asks for %s", source->path, tensor->name,
                     found.length ? found.data : "a scalar", expected.data);
done:
    bw_text_free(&found);
    bw_text_free(&expected);
    return status;
}

/* cols 0: a vector of `rows`. */
static int find(const bw_source *source, const bw_tensor_name *names, int layer, int64_t rows, int64_t cols, const bw_tensor **out)
{
    char name[NAME_MOST];
    tensor_name(name, source, names, layer);
    const bw_tensor *tensor = bw_tensors_find(source->files, name);
    if (!tensor)
        return bw_fail(BW_DATA, "%s: tensor %s is missing; a %s model of %d layers has it", source->path, name, source->family->architecture,
                       source->spec.n_layer);
    const int64_t shape[2] = {rows, cols};
    const int n_dims = cols ? 2 : 1;
    bool right = tensor->n_dims == n_dims;
    for (int i = 0; right && i < n_dims; i++)
        right = tensor->shape[i] == shape[i];
    *out = tensor;
    return right ? BW_OK : wrong_shape(source, tensor, n_dims, shape);
}

static int find_layer(bw_source *source, int layer)
{
    for (int target = 0; target < BW_TARGETS; target++) {
        int64_t out, in;
        bw_spec_shape(&source->spec, (bw_target)target, &out, &in);
        BW_TRY(find(source, &source->family->targets[target], layer, out, in, &source->targets[bw_target_at(layer, (bw_target)target)]));
    }
    for (int which = 0; which < BW_LAYER_VECTORS; which++)
        BW_TRY(find(source, &source->family->vectors[which], layer, source->spec.d_model, 0, &source->vectors[layer * BW_LAYER_VECTORS + which]));
    return BW_OK;
}

static int find_tables(bw_source *source)
{
    const bw_spec *spec = &source->spec;
    const bw_tensor_name *names = source->family->tables;
    BW_TRY(find(source, &names[BW_TABLE_EMBED], 0, spec->vocab, spec->d_model, &source->tables[BW_TABLE_EMBED]));
    BW_TRY(find(source, &names[BW_TABLE_NORM], 0, spec->d_model, 0, &source->tables[BW_TABLE_NORM]));
    if (!spec->tied)
        return find(source, &names[BW_TABLE_HEAD], 0, spec->vocab, spec->d_model, &source->tables[BW_TABLE_HEAD]);
    source->tables[BW_TABLE_HEAD] = source->tables[BW_TABLE_EMBED];
    return BW_OK;
}

/* ---- nothing surplus ---------------------------------------------------------------------------------------------- */
static int by_address(const void *a, const void *b)
{
    const bw_tensor *const *x = a, *const *y = b;
    return (*x > *y) - (*x < *y);
}

static bool harmless(const bw_source *source, const char *name)
{
    const size_t most = sizeof source->family->harmless / sizeof *source->family->harmless;
    for (size_t i = 0; i < most && source->family->harmless[i]; i++)
        if (strstr(name, source->family->harmless[i]))
            return true;
    /* A tied head that is written all the same is the embedding once more. */
    const bw_tensor_name *head = &source->family->tables[BW_TABLE_HEAD];
    return source->spec.tied && strcmp(name, source->gguf ? head->gguf : head->hf) == 0;
}

static int check_surplus(const bw_source *source)
{
    const int64_t layers = source->spec.n_layer, targets = layers * BW_TARGETS, vectors = layers * BW_LAYER_VECTORS;
    const size_t count = (size_t)(targets + vectors + BW_TABLES);
    const bw_tensor **used;
    int status = BW_OK;
    BW_TRY(BW_NEW(used, count, "model headers"));
    memcpy(used, source->targets, (size_t)targets * sizeof *used);
    memcpy(used + targets, source->vectors, (size_t)vectors * sizeof *used);
    memcpy(used + targets + vectors, source->tables, sizeof source->tables);
    qsort(used, count, sizeof *used, by_address);
    for (int64_t i = 0; status == BW_OK && i < bw_tensors_count(source->files); i++) {
        const bw_tensor *tensor = bw_tensors_at(source->files, i);
        if (!bsearch(&tensor, used, count, sizeof *used, by_address) && !harmless(source, tensor->name))
            status = bw_fail(BW_DATA, "%s: tensor %s does not belong to a %s model of %d layers; is the configuration of another model?",
                             source->path, tensor->name, source->family->architecture, source->spec.n_layer);
    }
    bw_free(used);
    return status;
}

static int open_gguf(bw_source *source)
{
    source->gguf = true;
    BW_TRY(bw_gguf_open(&source->files, source->path));
    BW_TRY(bw_family_of_gguf(&source->family, source->files));
    return bw_spec_of_gguf(&source->spec, source->family, source->files);
}

/* transformers 4 says torch_dtype, transformers 5 dtype; without either it takes float32. */
static int read_outline(bw_source *source, const bw_json *config, const char *path)
{
    static const struct {
        const char *name;
        bw_dtype dtype;
    } types[] = {{"float32", BW_F32}, {"float16", BW_F16}, {"bfloat16", BW_BF16}, {"float64", BW_F64}};
    const bw_json *member = bw_json_get(config, "torch_dtype") ? bw_json_get(config, "torch_dtype") : bw_json_get(config, "dtype");
    const char *name = bw_json_text(member, NULL);
    source->outline = BW_F32;
    if (!member || bw_json_kind(member) == BW_JSON_NULL)
        return BW_OK;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (name && strcmp(name, types[i].name) == 0) {
            source->outline = types[i].dtype;
            return BW_OK;
        }
    return bw_fail(BW_DATA, "%s: torch_dtype is '%s'; expected float32, float16, bfloat16 or float64", path, name ? name : "not a text");
}

static int read_config(bw_source *source, const char *path, const char *generation_path)
{
    bw_json *config = NULL, *generation = NULL;
    int status;
    BW_GO(bw_json_load(&config, path));
    if (generation_path && bw_file_exists(generation_path))
        BW_GO(bw_json_load(&generation, generation_path));
    BW_GO(bw_family_of_config(&source->family, config, path));
    BW_GO(bw_spec_of_config(&source->spec, source->family, config, generation, path));
    if (!generation_path)
        BW_GO(read_outline(source, config, path));
done:
    bw_json_free(config);
    bw_json_free(generation);
    return status;
}

static int open_folder(bw_source *source)
{
    bw_text path = {0}, generation = {0};
    int status;
    BW_GO(bw_path(&path, source->path, "config.json"));
    BW_GO(bw_path(&generation, source->path, "generation_config.json"));
    BW_GO(read_config(source, path.data, generation.data));
    BW_GO(bw_safetensors_open_model(&source->files, source->path));
done:
    bw_text_free(&path);
    bw_text_free(&generation);
    return status;
}

static int copy_text(char **out, const char *text)
{
    const size_t bytes = strlen(text) + 1;
    BW_TRY(BW_NEW(*out, bytes, "model headers"));
    memcpy(*out, text, bytes);
    return BW_OK;
}

int bw_source_open(bw_source **out, const char *path)
{
    struct stat about;
    bw_source *source;
    int status;
    *out = NULL;
    if (!path || stat(path, &about) != 0)
        return bw_fail(BW_NOINPUT, "model '%s' cannot be found; give a Hugging Face folder or a GGUF file", path ? path : "");
    BW_TRY(BW_NEW(source, 1, "model headers"));
    BW_GO(copy_text(&source->path, path));
    BW_GO(S_ISDIR(about.st_mode) ? open_folder(source) : open_gguf(source));
    BW_GO(BW_NEW(source->targets, source->spec.n_layer * BW_TARGETS, "model headers"));
    BW_GO(BW_NEW(source->vectors, source->spec.n_layer * BW_LAYER_VECTORS, "model headers"));
    for (int layer = 0; layer < source->spec.n_layer; layer++)
        BW_GO(find_layer(source, layer));
    BW_GO(find_tables(source));
    BW_GO(check_surplus(source));
    *out = source;
    return BW_OK;
done:
    bw_source_close(source);
    return status;
}

static bool has_file(const char *folder, const char *name)
{
    bw_text path = {0};
    const bool there = bw_path(&path, folder, name) == BW_OK && bw_file_exists(path.data);
    bw_text_free(&path);
    return there;
}

/* The config.json that stands alone, or *config empty: what is there is a model. */
static int lone_config(const char *path, bw_text *config)
{
    struct stat about;
    const size_t length = strlen(path), tail = strlen(".json");
    if (stat(path, &about) != 0)
        return bw_fail(BW_NOINPUT, "model '%s' cannot be found; give a Hugging Face folder, a GGUF file or a config.json", path);
    if (S_ISDIR(about.st_mode))
        return has_file(path, "model.safetensors") || has_file(path, "model.safetensors.index.json") ? BW_OK : bw_path(config, path, "config.json");
    return length > tail && strcmp(path + length - tail, ".json") == 0 ? bw_text_addf(config, "%s", path) : BW_OK;
}

int bw_source_outline(bw_source **out, const char *path)
{
    bw_text config = {0};
    bw_source *source = NULL;
    int status;
    *out = NULL;
    BW_GO(lone_config(path, &config));
    if (!config.data) {
        status = bw_source_open(out, path);
        goto done;
    }
    BW_GO(BW_NEW(source, 1, "model headers"));
    BW_GO(copy_text(&source->path, path));
    BW_GO(read_config(source, config.data, NULL));
    *out = source;
    source = NULL;
done:
    bw_source_close(source);
    bw_text_free(&config);
    return status;
}

void bw_source_close(bw_source *source)
{
    if (!source)
        return;
    if (source->files)
        bw_tensors_close(source->files);
    bw_source_random_free(source);
    bw_free(source->targets);
    bw_free(source->vectors);
    bw_free(source->path);
    bw_free(source);
}

const bw_spec *bw_source_spec(const bw_source *source)
{
    return &source->spec;
}

const char *bw_source_path(const bw_source *source)
{
    return source->path;
}

int bw_source_check_tokens(const bw_source *source, int32_t tokens)
{
    if (tokens <= source->spec.vocab)
        return BW_OK;
    return bw_fail(BW_DATA, "%s: the tokenizer has %d tokens, the model's embedding %lld rows", source->path, tokens, (long long)source->spec.vocab);
}

bw_dtype bw_source_dtype(const bw_source *source, int layer, bw_target target)
{
    return source->files ? source->targets[bw_target_at(layer, target)]->dtype : source->outline;
}

/* ---- fingerprint -------------------------------------------------------------------------------------------------- */
static bw_hash tensor_hash(bw_hash so_far, const bw_tensor *tensor)
{
    const int64_t edge = tensor->bytes < 4096 ? tensor->bytes : 4096;
    int64_t facts[6] = {tensor->dtype, tensor->n_dims};
    memcpy(facts + 2, tensor->shape, (size_t)tensor->n_dims * sizeof *facts);
    so_far = bw_hash_join(so_far, bw_hash_bytes(tensor->name, strlen(tensor->name)));
    so_far = bw_hash_join(so_far, bw_hash_bytes(facts, sizeof facts));
    so_far = bw_hash_join(so_far, bw_hash_bytes(tensor->data, (size_t)edge));
    return bw_hash_join(so_far, bw_hash_bytes(tensor->data + tensor->bytes - edge, (size_t)edge));
}

/* In the order of the family's list, so that the order in the file and the cut into shards do not matter. */
bw_hash bw_source_fingerprint(const bw_source *source)
{
    bw_hash hash = {0, 0};
    for (int i = 0; i < BW_TABLES; i++)
        hash = tensor_hash(hash, source->tables[i]);
    for (int i = 0; i < source->spec.n_layer * BW_LAYER_VECTORS; i++)
        hash = tensor_hash(hash, source->vectors[i]);
    for (int i = 0; i < source->spec.n_layer * BW_TARGETS; i++)
        hash = tensor_hash(hash, source->targets[i]);
    return hash;
}

/* ---- reading ------------------------------------------------------------------------------------------------------ */
static int check_finite(const bw_source *source, const bw_tensor *tensor, int64_t row, int64_t rows, int64_t col, int64_t cols, const float *values,
                        int64_t ld)
{
    for (int64_t i = 0; i < rows; i++) {
        bool bad = false; /* on the bits: a sum of numbers would wait for its last addition */
        for (int64_t j = 0; j < cols; j++)
            bad |= (bw_bits_of(values[i * ld + j]) & 0x7f800000u) == 0x7f800000u;
        for (int64_t j = 0; bad && j < cols; j++)
            if (!isfinite(values[i * ld + j]))
                return bw_fail(BW_DATA, "%s: tensor %s holds %g at row %lld, column %lld; the weights of a model are finite numbers", source->path,
                               tensor->name, (double)values[i * ld + j], (long long)(row + i), (long long)(col + j));
    }
    return BW_OK;
}

static int check_range(const bw_tensor *tensor, int64_t row, int64_t rows, int64_t col, int64_t cols)
{
    const int64_t m = tensor->n_dims == 2 ? tensor->shape[0] : 1, n = tensor->shape[tensor->n_dims - 1];
    if (row < 0 || rows < 0 || row > m - rows || col < 0 || cols < 0 || col > n - cols)
        return bw_fail(BW_BUG, "tensor %s is %lld x %lld; rows %lld + %lld, columns %lld + %lld were asked for", tensor->name, (long long)m,
                       (long long)n, (long long)row, (long long)rows, (long long)col, (long long)cols);
    return BW_OK;
}

/* GGUF of some architectures interleaves the two halves of every head: row 2i + a of a head there is row a * half + i here. */
static int64_t permuted_row(int64_t row, int64_t head_dim)
{
    const int64_t head = row / head_dim, within = row % head_dim, half = head_dim / 2;
    return head * head_dim + 2 * (within % half) + within / half;
}

int bw_source_read(const bw_source *source, int layer, bw_target target, int64_t row, int64_t rows, int64_t col, int64_t cols, float *out, int64_t ld)
{
    const bw_tensor *tensor = source->targets[bw_target_at(layer, target)];
    BW_TRY(check_range(tensor, row, rows, col, cols));
    if (source->gguf && source->family->gguf_permutes && (target == BW_Q || target == BW_K))
        for (int64_t i = 0; i < rows; i++)
            BW_TRY(bw_tensor_read(tensor, permuted_row(row + i, source->spec.head_dim), 1, col, cols, out + i * ld, ld));
    else
        BW_TRY(bw_tensor_read(tensor, row, rows, col, cols, out, ld));
    return check_finite(source, tensor, row, rows, col, cols, out, ld);
}

static const bw_tensor *find_named(const bw_source *source, int layer, const char *name)
{
    for (int i = 0; i < BW_LAYER_VECTORS; i++)
        if (layer >= 0 && layer < source->spec.n_layer && strcmp(name, source->family->vectors[i].name) == 0)
            return source->vectors[layer * BW_LAYER_VECTORS + i];
    for (int i = 0; i < BW_TABLES; i++)
        if (strcmp(name, source->family->tables[i].name) == 0)
            return source->tables[i];
    return NULL;
}

int bw_source_read_named(const bw_source *source, int layer, const char *name, int64_t row, int64_t rows, int64_t col, int64_t cols, float *out,
                         int64_t ld)
{
    const bw_tensor *tensor = find_named(source, layer, name);
    if (!tensor)
        return bw_fail(BW_BUG, "a %s model has no tensor '%s' at layer %d", source->spec.family, name, layer);
    BW_TRY(check_range(tensor, row, rows, col, cols));
    BW_TRY(bw_tensor_read(tensor, row, rows, col, cols, out, ld));
    return check_finite(source, tensor, row, rows, col, cols, out, ld);
}
