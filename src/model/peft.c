/* Reading a PEFT adapter folder: the configuration is checked for what we do not compute, every tensor for its name and shape,
 * and each rank reads its own blocks. */
#include "model/peft.h"
#include <math.h>
#include <regex.h>
#include <stdlib.h>
#include <string.h>

void bw_peft_module(char name[BW_PEFT_NAME], int layer, bw_target target)
{
    snprintf(name, BW_PEFT_NAME, "model.layers.%d.%s", layer, bw_target_module(target));
}

void bw_peft_tensor(char name[BW_PEFT_NAME], int layer, bw_target target, char which)
{
    snprintf(name, BW_PEFT_NAME, "base_model.model.model.layers.%d.%s.lora_%c.weight", layer, bw_target_module(target), which);
}

bool bw_peft_role_known(const char *role)
{
    static const char *const roles[] = {"align", "buffer", "reinforce", "user", "sft", "merged"};
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (strcmp(role, roles[i]) == 0)
            return true;
    return false;
}

/* ---- an adapter folder while it is read --------------------------------------------------------------------------- */
typedef struct reading {
    const char *folder;
    const bw_spec *spec;
    bw_text config_path;
    bw_json *config;
    bw_tensors *files;
    const bw_tensor **A, **B; /* [layer * BW_TARGETS + target], NULL: absent */
    int r;
    double alpha;
    bool rslora;
} reading;

static void reading_free(reading *reading)
{
    bw_text_free(&reading->config_path);
    bw_json_free(reading->config);
    if (reading->files)
        bw_tensors_close(reading->files);
    bw_free(reading->A);
    bw_free(reading->B);
}

/* The output folder of a stage where that of its adapter is meant. */
static int check_folder(const char *folder, const char *weights)
{
    bw_text inner = {0};
    int status;
    if (!bw_file_exists(folder))
        return bw_fail(BW_NOINPUT,
                       "%s: No such file or directory: this is where an adapter was to be (train and merge write theirs to OUTPUT/adapter)", folder);
    BW_GO(bw_text_addf(&inner, "%s/adapter/" BW_PEFT_WEIGHTS, folder));
    if (!bw_file_exists(weights) && bw_file_exists(inner.data))
        status = bw_fail(BW_NOINPUT, "%s: no adapter is in this folder; did you mean %s/adapter?", folder, folder);
done:
    bw_text_free(&inner);
    return status;
}

static int open_weights(bw_tensors **out, const char *folder)
{
    bw_text path = {0}, pickle = {0};
    int status;
    BW_GO(bw_path(&path, folder, BW_PEFT_WEIGHTS));
    BW_GO(bw_path(&pickle, folder, BW_PEFT_PICKLE));
    if (!bw_file_exists(path.data) && bw_file_exists(pickle.data))
        BW_GO(bw_fail(BW_DATA,
                      "%s: a pickle can run code when it is read and is refused; save the adapter as " BW_PEFT_WEIGHTS
                      " (PEFT: safe_serialization=True)",
                      pickle.data));
    BW_GO(check_folder(folder, path.data));
    status = bw_safetensors_open(out, path.data);
done:
    bw_text_free(&path);
    bw_text_free(&pickle);
    return status;
}

/* ---- configuration ------------------------------------------------------------------------------------------------ */
static bool is_set(const bw_json *value)
{
    if (!value)
        return false;
    switch (bw_json_kind(value)) {
    case BW_JSON_NULL:
        return false;
    case BW_JSON_BOOL:
        return bw_json_true(value, false);
    case BW_JSON_ARRAY:
    case BW_JSON_OBJECT:
        return bw_json_size(value) > 0;
    default:
        return true;
    }
}

static int check_config(const reading *reading)
{
    static const struct {
        const char *key, *why;
    } refused[] = {
        {"use_dora", "DoRA adapters are not supported"},
        {"use_qalora", "QA-LoRA adapters are not supported"},
        {"modules_to_save", "modules that are trained whole are not supported"},
        {"lora_bias", "biases are not supported"},
        {"fan_in_fan_out", "transposed weights are not supported"},
        {"layer_replication", "replicated layers are not supported"},
        {"trainable_token_indices", "trained embeddings are not supported"},
        {"target_parameters", "adapters of bare parameters are not supported"},
        {"alora_invocation_tokens", "activated LoRA is not supported"},
        {"megatron_config", "Megatron adapters are not supported"},
    };
    const char *path = reading->config_path.data, *type = bw_json_text(bw_json_get(reading->config, "peft_type"), NULL);
    if (!type || strcmp(type, "LORA") != 0)
        return bw_fail(BW_DATA, "%s: \"peft_type\" is %s; only LORA is supported", path, type ? type : "not given");
    const char *bias = bw_json_text(bw_json_get(reading->config, "bias"), NULL);
    if (bias && strcmp(bias, "none") != 0)
        return bw_fail(BW_DATA, "%s: \"bias\" is \"%s\"; biases are not supported, train the adapter with \"none\"", path, bias);
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (is_set(bw_json_get(reading->config, refused[i].key)))
            return bw_fail(BW_DATA, "%s: \"%s\" is set; %s", path, refused[i].key, refused[i].why);
    return BW_OK;
}

static int read_config(reading *reading)
{
    BW_TRY(bw_path(&reading->config_path, reading->folder, BW_PEFT_CONFIG));
    BW_TRY(bw_json_load(&reading->config, reading->config_path.data));
    BW_TRY(check_config(reading));
    const int64_t r = bw_json_int(bw_json_get(reading->config, "r"), 8); /* PEFT's defaults */
    reading->alpha = bw_json_number(bw_json_get(reading->config, "lora_alpha"), 8);
    reading->rslora = is_set(bw_json_get(reading->config, "use_rslora"));
    if (r < 1 || r > BW_MAX_LORA_RANK)
        return bw_fail(BW_DATA, "%s: \"r\" is %lld; expected 1 to %d", reading->config_path.data, (long long)r, BW_MAX_LORA_RANK);
    if (!isfinite(reading->alpha))
        return bw_fail(BW_DATA, "%s: \"lora_alpha\" is not a finite number", reading->config_path.data);
    reading->r = (int)r;
    return BW_OK;
}

/* ---- patterns: PEFT matches (.*\.)?(key)$ with Python's regular expressions --------------------------------------- */
/* Both dialects agree on these characters; anything else is refused rather than understood differently. */
static bool portable(const char *pattern)
{
    for (const char *c = pattern; *c; c++) {
        const bool escape = *c == '\\';
        if (escape && *++c != '.')
            return false;
        if (!escape && !strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.|()[]*+^$-", *c))
            return false;
    }
    return strstr(pattern, "(*") == NULL && strstr(pattern, "(+") == NULL;
}

static int pattern_matches(const reading *reading, const char *key, const char *module, bool *matches)
{
    bw_text whole = {0};
    regex_t compiled;
    if (!portable(key))
        return bw_fail(BW_DATA, "%s: pattern '%s' uses more of Python's regular expressions than is supported; name the modules one by one",
                       reading->config_path.data, key);
    BW_TRY(bw_text_addf(&whole, "^(.*\\.)?(%s)$", key));
    const int failed = regcomp(&compiled, whole.data, REG_EXTENDED | REG_NOSUB);
    bw_text_free(&whole);
    if (failed)
        return bw_fail(BW_DATA, "%s: pattern '%s' is not a regular expression", reading->config_path.data, key);
    *matches = regexec(&compiled, module, 0, NULL, 0) == 0;
    regfree(&compiled);
    return BW_OK;
}

/* The value of the first key of object `name` that matches, or `otherwise`. */
static int pattern_value(const reading *reading, const char *name, int layer, bw_target target, double otherwise, double *value)
{
    const bw_json *patterns = bw_json_get(reading->config, name), *entry;
    const char *key;
    char module[BW_PEFT_NAME];
    bw_peft_module(module, layer, target);
    *value = otherwise;
    for (void *at = NULL; patterns && bw_json_next(patterns, &at, &key, &entry);) {
        bool matches = false;
        BW_TRY(pattern_matches(reading, key, module, &matches));
        if (!matches)
            continue;
        *value = bw_json_number(entry, NAN);
        return isfinite(*value) ? BW_OK : bw_fail(BW_DATA, "%s: \"%s\" of '%s' is not a number", reading->config_path.data, name, key);
    }
    return BW_OK;
}

/* ---- tensors ------------------------------------------------------------------------------------------------------ */
static bool tensor_place(const reading *reading, const char *name, int *index, char *which)
{
    static const char prefix[] = "base_model.model.model.layers.";
    char expected[BW_PEFT_NAME], *end;
    if (strncmp(name, prefix, sizeof prefix - 1) != 0)
        return false;
    const long layer = strtol(name + sizeof prefix - 1, &end, 10);
    if (layer < 0 || layer >= reading->spec->n_layer)
        return false;
    for (int target = 0; target < BW_TARGETS; target++)
        for (*which = 'A'; *which <= 'B'; ++*which) {
            bw_peft_tensor(expected, (int)layer, (bw_target)target, *which);
            *index = bw_target_at((int)layer, (bw_target)target);
            if (strcmp(name, expected) == 0)
                return true;
        }
    return false;
}

static int sort_tensors(reading *reading)
{
    const int pairs = reading->spec->n_layer * BW_TARGETS;
    BW_TRY(BW_NEW(reading->A, pairs, "adapter, reading"));
    BW_TRY(BW_NEW(reading->B, pairs, "adapter, reading"));
    for (int64_t i = 0; i < bw_tensors_count(reading->files); i++) {
        const bw_tensor *tensor = bw_tensors_at(reading->files, i);
        int index;
        char which;
        if (!tensor_place(reading, tensor->name, &index, &which))
            return bw_fail(BW_DATA, "%s: tensor %s does not belong to a LoRA of a %s model of %d layers; is the adapter for another model?",
                           bw_tensors_path(reading->files), tensor->name, reading->spec->family, reading->spec->n_layer);
        (which == 'A' ? reading->A : reading->B)[index] = tensor;
    }
    return BW_OK;
}

static bool is_integer_list(const bw_json *value, int64_t wanted)
{
    if (bw_json_kind(value) != BW_JSON_ARRAY)
        return bw_json_int(value, -1) == wanted;
    for (int64_t i = 0; i < bw_json_size(value); i++)
        if (bw_json_int(bw_json_at(value, i), -1) == wanted)
            return true;
    return false;
}

static bool names_module(const bw_json *list, const char *module)
{
    const size_t length = strlen(module);
    for (int64_t i = 0; i < bw_json_size(list); i++) {
        const char *item = bw_json_text(bw_json_at(list, i), NULL);
        const size_t tail = item ? strlen(item) : 0;
        if (tail && tail <= length && strcmp(module + length - tail, item) == 0 && (tail == length || module[length - tail - 1] == '.'))
            return true;
    }
    return false;
}

/* Does the configuration ask for this module? -1: it leaves that to a regular expression, so the tensors themselves say. */
static int asked_for(const reading *reading, int layer, bw_target target)
{
    const bw_json *modules = bw_json_get(reading->config, "target_modules"), *layers = bw_json_get(reading->config, "layers_to_transform");
    const char *word = bw_json_text(modules, NULL);
    char module[BW_PEFT_NAME];
    bw_peft_module(module, layer, target);
    if (is_set(bw_json_get(reading->config, "exclude_modules")) || !modules)
        return -1;
    const bool layer_asked = !is_set(layers) || is_integer_list(layers, layer);
    if (word)
        return strcmp(word, "all-linear") == 0 ? layer_asked : -1;
    if (bw_json_kind(modules) != BW_JSON_ARRAY)
        return -1;
    return layer_asked && names_module(modules, module);
}

static int check_presence(const reading *reading, int index)
{
    const int layer = index / BW_TARGETS;
    const bw_target target = (bw_target)(index % BW_TARGETS);
    const bool has_a = reading->A[index], has_b = reading->B[index];
    const int asked = asked_for(reading, layer, target);
    char name[BW_PEFT_NAME];
    if (has_a && has_b && asked == 0) {
        bw_peft_tensor(name, layer, target, 'A');
        return bw_fail(BW_DATA, "%s: tensor %s is there, but \"target_modules\" of " BW_PEFT_CONFIG " does not name its module",
                       bw_tensors_path(reading->files), name);
    }
    if (has_a == has_b && (has_a || asked != 1))
        return BW_OK;
    bw_peft_tensor(name, layer, target, has_a ? 'B' : 'A');
    return bw_fail(BW_DATA, "%s: tensor %s is missing; %s", bw_tensors_path(reading->files), name,
                   has_a == has_b ? "\"target_modules\" of " BW_PEFT_CONFIG " names its module" : "its other factor is there");
}

static int check_shape(const reading *reading, const bw_tensor *tensor, int64_t m, int64_t n, bool rank_first)
{
    const bool right = tensor->n_dims == 2 && tensor->shape[0] == m && tensor->shape[1] == n;
    if (right)
        return BW_OK;
    return bw_fail(BW_DATA, "%s: tensor %s is %lld x %lld (%d dimensions); %s rank %lld of " BW_PEFT_CONFIG " and this model ask for %lld x %lld",
                   bw_tensors_path(reading->files), tensor->name, (long long)tensor->shape[0], (long long)tensor->shape[1], tensor->n_dims, "the",
                   (long long)(rank_first ? m : n), (long long)m, (long long)n);
}

/* ---- pairs -------------------------------------------------------------------------------------------------------- */
typedef struct block_reader {
    const reading *reading;
    const bw_tensor *tensor;
    float *rows;
    int64_t capacity;
} block_reader;

static int read_block(void *context, const bw_matrix *matrix, int64_t i, int64_t j, int64_t rows, int64_t cols, void *block)
{
    block_reader *reader = context;
    if (rows * cols > reader->capacity) {
        bw_free(reader->rows);
        reader->capacity = 0;
        BW_TRY(BW_NEW(reader->rows, rows * cols, "adapter, reading"));
        reader->capacity = rows * cols;
    }
    BW_TRY(bw_tensor_read(reader->tensor, i, rows, j, cols, reader->rows, cols));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            const float value = reader->rows[r * cols + c];
            if (!isfinite(value))
                return bw_fail(BW_DATA, "%s: tensor %s holds %g at row %lld, column %lld; the factors of an adapter are finite numbers",
                               bw_tensors_path(reader->reading->files), reader->tensor->name, (double)value, (long long)(i + r), (long long)(j + c));
            ((float *)block)[r + c * matrix->ld] = value;
        }
    return BW_OK;
}

static int read_factor(const reading *reading, bw_matrix *matrix, const bw_tensor *tensor)
{
    block_reader reader = {.reading = reading, .tensor = tensor};
    const int status = bw_matrix_visit(matrix, read_block, &reader);
    bw_free(reader.rows);
    bw_tensor_done(tensor);
    return status;
}

static int read_scaling(const reading *reading, int index, double *r, double *scaling)
{
    const int layer = index / BW_TARGETS;
    const bw_target target = (bw_target)(index % BW_TARGETS);
    double alpha;
    BW_TRY(pattern_value(reading, "rank_pattern", layer, target, reading->r, r));
    BW_TRY(pattern_value(reading, "alpha_pattern", layer, target, reading->alpha, &alpha));
    if (!(*r >= 1 && *r <= BW_MAX_LORA_RANK && *r == floor(*r)))
        return bw_fail(BW_DATA, "%s: \"rank_pattern\" gives %g; expected a whole number from 1 to %d", reading->config_path.data, *r,
                       BW_MAX_LORA_RANK);
    *scaling = alpha / (reading->rslora ? sqrt(*r) : *r);
    return BW_OK;
}

static int read_pair(const reading *reading, const bw_grid *grid, int index, int block, bw_pair *pair)
{
    int64_t out, in;
    double r, scaling;
    bw_spec_shape(reading->spec, (bw_target)(index % BW_TARGETS), &out, &in);
    BW_TRY(read_scaling(reading, index, &r, &scaling));
    BW_TRY(check_shape(reading, reading->A[index], (int64_t)r, in, true));
    BW_TRY(check_shape(reading, reading->B[index], out, (int64_t)r, false));
    BW_TRY(bw_pair_create(pair, grid, out, in, (int)r, scaling, block));
    BW_TRY(read_factor(reading, &pair->A, reading->A[index]));
    return read_factor(reading, &pair->B, reading->B[index]);
}

static int read_role(const bw_tensors *files, char role[16])
{
    const char *text = bw_safetensors_metadata(files, BW_PEFT_ROLE);
    memset(role, 0, 16);
    if (!text)
        return BW_OK;
    if (!bw_peft_role_known(text))
        return bw_fail(BW_DATA, "%s: " BW_PEFT_ROLE " is '%.32s'; known are align, buffer, reinforce, user, sft, merged", bw_tensors_path(files),
                       text);
    snprintf(role, 16, "%s", text);
    return BW_OK;
}

/* What the file may say, and need not: "" where it does not. */
static void read_word(const bw_tensors *files, const char *key, char *word, size_t size)
{
    const char *text = bw_safetensors_metadata(files, key);
    memset(word, 0, size);
    snprintf(word, size, "%s", text ? text : "");
}

void bw_peft_warn_template(const bw_adapter *adapter, const char *option, const char *folder, const char *template_name)
{
    if (adapter->template_name[0] && strcmp(adapter->template_name, template_name) != 0)
        bw_warn("%s %s was trained on prompts of the template %s, and these are of %s: what it learned may not show (--template)", option, folder,
                adapter->template_name, template_name);
}

void bw_peft_warn_base(const bw_adapter *adapter, const char *option, const char *folder, bw_hash model)
{
    char text[33];
    bw_hash_text(model, text);
    if (adapter->base[0] && strcmp(adapter->base, text) != 0)
        bw_warn("%s %s was trained on a base model of fingerprint %s, and --model is %s: unless they are the same weights in two formats, what it "
                "learned does not fit",
                option, folder, adapter->base, text);
}

int bw_peft_refuse_buffer(const char *folder, const char *option, bool allow)
{
    char role[16];
    BW_TRY(bw_peft_role(folder, role));
    if (strcmp(role, "buffer") != 0 || allow)
        return BW_OK;
    return bw_fail(BW_USAGE,
                   "%s %s: this is a BufferLoRA, which makes a model harmful and is meant to be dropped after training; name the adapter that was "
                   "trained on it, or add --allow-buffer if this is what you want",
                   option, folder);
}

static int load_local(bw_adapter **out, const bw_grid *grid, reading *reading, int block)
{
    BW_TRY(open_weights(&reading->files, reading->folder));
    BW_TRY(read_config(reading));
    BW_TRY(sort_tensors(reading));
    BW_TRY(bw_adapter_blank(out, reading->spec->n_layer));
    bw_adapter *adapter = *out;
    bool any = false;
    for (int index = 0; index < reading->spec->n_layer * BW_TARGETS; index++) {
        BW_TRY(check_presence(reading, index));
        if (reading->A[index])
            BW_TRY(read_pair(reading, grid, index, block, &adapter->pairs[index]));
        any = any || reading->A[index];
    }
    if (!any)
        return bw_fail(BW_DATA, "%s: no LoRA factor in it", bw_tensors_path(reading->files));
    adapter->r = reading->r;
    /* Kept as the alpha that gives the scaling when it is divided by r, so that nobody else need know of rslora. */
    adapter->alpha = reading->rslora ? reading->alpha * sqrt(reading->r) : reading->alpha;
    adapter->dropout = bw_json_number(bw_json_get(reading->config, "lora_dropout"), 0);
    read_word(reading->files, BW_PEFT_TEMPLATE, adapter->template_name, sizeof adapter->template_name);
    read_word(reading->files, BW_PEFT_BASE, adapter->base, sizeof adapter->base);
    read_word(reading->files, BW_PEFT_BUFFER, adapter->buffer, sizeof adapter->buffer);
    return read_role(reading->files, adapter->role);
}

static void join_scaling(bw_hash *hash, double scaling)
{
    *hash = bw_hash_join(*hash, bw_hash_bytes(&scaling, sizeof scaling));
}

/* Of the file's bytes and of the scalings, which the other file decides. One rank reads the whole file for all. */
static int fingerprint(const reading *reading, const bw_grid *grid, bw_adapter *adapter)
{
    BW_TRY(bw_agree(grid, grid->rank == 0 ? bw_hash_file(&adapter->fingerprint, bw_tensors_path(reading->files)) : BW_OK));
    BW_TRY(bw_broadcast(grid, &adapter->fingerprint, sizeof adapter->fingerprint));
    for (int i = 0; i < adapter->n_layer * BW_TARGETS; i++)
        join_scaling(&adapter->fingerprint, adapter->pairs[i].scaling);
    return BW_OK;
}

int bw_peft_fingerprint(bw_hash *out, const bw_spec *spec, const char *folder)
{
    reading reading = {.folder = folder, .spec = spec};
    int status;
    BW_GO(open_weights(&reading.files, folder));
    BW_GO(read_config(&reading));
    BW_GO(sort_tensors(&reading));
    BW_GO(bw_hash_file(out, bw_tensors_path(reading.files)));
    for (int index = 0; index < spec->n_layer * BW_TARGETS; index++) {
        double r, scaling = 0; /* of an absent pair */
        if (reading.A[index])
            BW_GO(read_scaling(&reading, index, &r, &scaling));
        join_scaling(out, scaling);
    }
done:
    reading_free(&reading);
    return status;
}

int bw_peft_load(bw_adapter **out, const bw_grid *grid, const bw_spec *spec, const char *folder, int block)
{
    reading reading = {.folder = folder, .spec = spec};
    bw_adapter *adapter = NULL;
    int status;
    *out = NULL;
    BW_GO(bw_agree(grid, load_local(&adapter, grid, &reading, block)));
    BW_GO(fingerprint(&reading, grid, adapter));
    *out = adapter;
    adapter = NULL;
done:
    reading_free(&reading);
    bw_adapter_free(&adapter);
    return status;
}

int bw_peft_role(const char *folder, char role[16])
{
    bw_tensors *files = NULL;
    BW_TRY(open_weights(&files, folder));
    const int status = read_role(files, role);
    bw_tensors_close(files);
    return status;
}
