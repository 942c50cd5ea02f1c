/* The small files of a model folder that we write: copied from the Hugging Face folder that the model came from, or made from GGUF metadata. */
#include "model/source.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int write_text(const char *folder, const char *name, const bw_text *text)
{
    bw_text path = {0};
    int status = bw_path(&path, folder, name);
    if (status == BW_OK)
        status = bw_file_write(path.data, text->data, text->length, 0644);
    bw_text_free(&path);
    return status;
}

static int add_number(bw_text *out, double value)
{
    char digits[40];
    if (value == floor(value) && fabs(value) < 1e15)
        return bw_text_addf(out, "%.1f", value);
    for (int precision = 1; precision <= 17; precision++) {
        snprintf(digits, sizeof digits, "%.*g", precision, value);
        if (strtod(digits, NULL) == value)
            break;
    }
    return bw_text_addf(out, "%s%s", digits, strpbrk(digits, ".en") ? "" : ".0");
}

static int add_string(bw_text *out, const char *text)
{
    return bw_json_quote(out, text, strlen(text));
}

static const char *dtype_word(bw_dtype dtype)
{
    return dtype == BW_F16 ? "float16" : dtype == BW_BF16 ? "bfloat16" : "float32";
}

/* ---- a JSON value, written again ---------------------------------------------------------------------------------- */
static int add_value(bw_text *out, const bw_json *value, int depth);

static int add_line(bw_text *out, bool first, int depth)
{
    return bw_text_addf(out, "%s\n%*s", first ? "" : ",", 2 * depth, "");
}

static int add_array(bw_text *out, const bw_json *array, int depth)
{
    BW_TRY(bw_text_addf(out, "["));
    for (int64_t i = 0; i < bw_json_size(array); i++) {
        BW_TRY(add_line(out, i == 0, depth + 1));
        BW_TRY(add_value(out, bw_json_at(array, i), depth + 1));
    }
    return bw_json_size(array) ? bw_text_addf(out, "\n%*s]", 2 * depth, "") : bw_text_addf(out, "]");
}

static int add_object(bw_text *out, const bw_json *object, int depth)
{
    const char *key;
    const bw_json *value;
    bool first = true;
    BW_TRY(bw_text_addf(out, "{"));
    for (void *at = NULL; bw_json_next(object, &at, &key, &value); first = false) {
        BW_TRY(add_line(out, first, depth + 1));
        BW_TRY(add_string(out, key));
        BW_TRY(bw_text_addf(out, ": "));
        BW_TRY(add_value(out, value, depth + 1));
    }
    return first ? bw_text_addf(out, "}") : bw_text_addf(out, "\n%*s}", 2 * depth, "");
}

static int add_value(bw_text *out, const bw_json *value, int depth)
{
    size_t length;
    const char *text;
    switch (bw_json_kind(value)) {
    case BW_JSON_NULL:
        return bw_text_addf(out, "null");
    case BW_JSON_BOOL:
        return bw_text_addf(out, "%s", bw_json_true(value, false) ? "true" : "false");
    case BW_JSON_INT:
        return bw_text_addf(out, "%lld", (long long)bw_json_int(value, 0));
    case BW_JSON_REAL:
        return add_number(out, bw_json_number(value, 0));
    case BW_JSON_STRING:
        text = bw_json_text(value, &length);
        return bw_json_quote(out, text, length);
    case BW_JSON_ARRAY:
        return add_array(out, value, depth);
    case BW_JSON_OBJECT:
        return add_object(out, value, depth);
    }
    return bw_fail(BW_BUG, "a JSON value of unknown kind");
}

/* ---- from a Hugging Face folder ----------------------------------------------------------------------------------- */
/* transformers 4 says torch_dtype, transformers 5 dtype; whichever is there is set, and torch_dtype where neither is. */
static int config_with_dtype(bw_text *out, const bw_json *config, const char *dtype)
{
    const char *key;
    const bw_json *value;
    bool first = true, told = false;
    BW_TRY(bw_text_addf(out, "{"));
    for (void *at = NULL; bw_json_next(config, &at, &key, &value); first = false) {
        const bool is_dtype = strcmp(key, "torch_dtype") == 0 || strcmp(key, "dtype") == 0;
        BW_TRY(add_line(out, first, 1));
        BW_TRY(add_string(out, key));
        BW_TRY(bw_text_addf(out, ": "));
        BW_TRY(is_dtype ? add_string(out, dtype) : add_value(out, value, 1));
        told = told || is_dtype;
    }
    if (!told) {
        BW_TRY(add_line(out, first, 1));
        BW_TRY(bw_text_addf(out, "\"torch_dtype\": \"%s\"", dtype));
    }
    return bw_text_addf(out, "\n}\n");
}

static int copy_config(const bw_source *source, const char *folder, bw_dtype dtype)
{
    bw_text path = {0}, text = {0};
    bw_json *config = NULL;
    int status;
    BW_GO(bw_path(&path, source->path, "config.json"));
    BW_GO(bw_json_load(&config, path.data));
    BW_GO(config_with_dtype(&text, config, dtype_word(dtype)));
    status = write_text(folder, "config.json", &text);
done:
    bw_text_free(&path);
    bw_text_free(&text);
    bw_json_free(config);
    return status;
}

static int copy_file(const bw_source *source, const char *folder, const char *name)
{
    bw_text from = {0}, to = {0};
    bw_map map = {0};
    int status;
    BW_GO(bw_path(&from, source->path, name));
    BW_GO(bw_path(&to, folder, name));
    if (!bw_file_exists(from.data))
        goto done;
    BW_GO(bw_map_open(&map, from.data));
    status = bw_file_write(to.data, map.data, map.size, 0644);
done:
    bw_map_close(&map);
    bw_text_free(&from);
    bw_text_free(&to);
    return status;
}

static int copy_folder(const bw_source *source, const char *folder, bw_dtype dtype)
{
    static const char *const names[] = {"generation_config.json",
                                        "tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "chat_template.jinja",
                                        "vocab.json",
                                        "merges.txt",
                                        "added_tokens.json"};
    BW_TRY(copy_config(source, folder, dtype));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        BW_TRY(copy_file(source, folder, names[i]));
    return BW_OK;
}

/* ---- from GGUF metadata: config.json ------------------------------------------------------------------------------ */
static int32_t token_id(const bw_source *source, const char *which)
{
    char key[64];
    snprintf(key, sizeof key, "tokenizer.ggml.%s_token_id", which);
    const double id = bw_gguf_number(source->files, key, -1);
    return id >= 0 && id < (double)source->spec.vocab && id == floor(id) ? (int32_t)id : -1;
}

static int add_id(bw_text *out, const char *key, int32_t id)
{
    return id < 0 ? bw_text_addf(out, ",\n  \"%s\": null", key) : bw_text_addf(out, ",\n  \"%s\": %d", key, id);
}

static int add_eos(bw_text *out, const bw_spec *spec)
{
    if (spec->n_eos < 2)
        return add_id(out, "eos_token_id", spec->n_eos ? spec->eos[0] : -1);
    BW_TRY(bw_text_addf(out, ",\n  \"eos_token_id\": ["));
    for (int i = 0; i < spec->n_eos; i++)
        BW_TRY(bw_text_addf(out, "%s%d", i ? ", " : "", spec->eos[i]));
    return bw_text_addf(out, "]");
}

static int add_sizes(bw_text *out, const bw_spec *spec)
{
    const struct {
        const char *key;
        int64_t value;
    } sizes[] = {{"head_dim", spec->head_dim},          {"hidden_size", spec->d_model},
                 {"intermediate_size", spec->d_ff},     {"max_position_embeddings", spec->max_positions},
                 {"num_attention_heads", spec->n_head}, {"num_hidden_layers", spec->n_layer},
                 {"num_key_value_heads", spec->n_kv},   {"vocab_size", spec->vocab}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        BW_TRY(bw_text_addf(out, ",\n  \"%s\": %lld", sizes[i].key, (long long)sizes[i].value));
    return BW_OK;
}

static int add_rope(bw_text *out, const bw_spec *spec)
{
    BW_TRY(bw_text_addf(out, ",\n  \"rope_theta\": "));
    BW_TRY(add_number(out, spec->rope_theta));
    if (spec->rope_factor == 0)
        return bw_text_addf(out, ",\n  \"rope_scaling\": null");
    BW_TRY(bw_text_addf(out, ",\n  \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": "));
    BW_TRY(add_number(out, spec->rope_factor));
    BW_TRY(bw_text_addf(out, ", \"low_freq_factor\": "));
    BW_TRY(add_number(out, spec->rope_low));
    BW_TRY(bw_text_addf(out, ", \"high_freq_factor\": "));
    BW_TRY(add_number(out, spec->rope_high));
    return bw_text_addf(out, ", \"original_max_position_embeddings\": %lld}", (long long)spec->rope_original);
}

static int gguf_config(const bw_source *source, const char *folder, bw_dtype dtype)
{
    const bw_spec *spec = &source->spec;
    const bw_family *family = source->family;
    bw_text text = {0};
    int status;
    BW_GO(bw_text_addf(&text,
                       "{\n  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\",\n  \"hidden_act\": \"%s\",\n  \"attention_bias\": false,\n"
                       "  \"attention_dropout\": 0.0,\n  \"mlp_bias\": false,\n  \"use_cache\": true,\n  \"tie_word_embeddings\": %s,\n"
                       "  \"torch_dtype\": \"%s\",\n  \"rms_norm_eps\": ",
                       family->architecture, family->model_type, family->activation, spec->tied ? "true" : "false", dtype_word(dtype)));
    BW_GO(add_number(&text, spec->norm_eps));
    BW_GO(add_sizes(&text, spec));
    BW_GO(add_rope(&text, spec));
    BW_GO(add_id(&text, "bos_token_id", token_id(source, "bos")));
    BW_GO(add_eos(&text, spec));
    BW_GO(add_id(&text, "pad_token_id", token_id(source, "padding")));
    BW_GO(bw_text_addf(&text, "\n}\n"));
    BW_GO(write_text(folder, "config.json", &text));
    bw_text_free(&text);
    BW_GO(bw_text_addf(&text, "{\n  \"_from_model_config\": true"));
    BW_GO(add_id(&text, "bos_token_id", token_id(source, "bos")));
    BW_GO(add_eos(&text, spec));
    BW_GO(add_id(&text, "pad_token_id", token_id(source, "padding")));
    BW_GO(bw_text_addf(&text, "\n}\n"));
    status = write_text(folder, "generation_config.json", &text);
done:
    bw_text_free(&text);
    return status;
}

int bw_source_write_config(const bw_source *source, const char *folder, bw_dtype dtype)
{
    BW_TRY(bw_dir_make(folder));
    if (!source->gguf)
        return copy_folder(source, folder, dtype);
    BW_TRY(gguf_config(source, folder, dtype));
    return bw_source_write_tokenizer(source, folder);
}
