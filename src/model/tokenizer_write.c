/* tokenizer.json and tokenizer_config.json from GGUF metadata, for byte-level BPE. */
#include "model/source.h"
#include <math.h>
#include <string.h>

enum { TOKEN_CONTROL = 3, TOKEN_USER_DEFINED = 4 }; /* tokenizer.ggml.token_type */

/* What tokenizer.ggml.pre means, in the terms of tokenizer.json. */
typedef struct pre_kind {
    const char *pre, *normalizer, *pre_tokenizer;
    bool ignore_merges;
    bool adds_bos; /* where tokenizer.ggml.add_bos_token is not given */
} pre_kind;
#define BYTE_LEVEL(regex)       "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": " regex "}"
#define SEQUENCE(first, second) "{\"type\": \"Sequence\", \"pretokenizers\": [" first ", " second "]}"
#define SPLIT(regex)            "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"" regex "\"}, \"behavior\": \"Isolated\", \"invert\": false}"
#define WORDS(digits)                                                                                                                                \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}" digits                                                           \
    "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
#define DIGITS "{\"type\": \"Digits\", \"individual_digits\": true}"
#define LLAMA3 SEQUENCE(SPLIT(WORDS("{1,3}")), BYTE_LEVEL("false"))
#define QWEN2  SEQUENCE(SPLIT(WORDS("")), BYTE_LEVEL("false"))
#define NFC    "{\"type\": \"NFC\"}"
static const pre_kind pre_kinds[] = {
    {.pre = "smollm", .normalizer = "null", .pre_tokenizer = SEQUENCE(DIGITS, BYTE_LEVEL("true"))},
    {.pre = "starcoder", .normalizer = "null", .pre_tokenizer = SEQUENCE(DIGITS, BYTE_LEVEL("true"))},
    {.pre = "gpt-2", .normalizer = "null", .pre_tokenizer = BYTE_LEVEL("true")},
    {.pre = "llama-bpe", .normalizer = "null", .pre_tokenizer = LLAMA3, .ignore_merges = true, .adds_bos = true},
    {.pre = "llama3", .normalizer = "null", .pre_tokenizer = LLAMA3, .ignore_merges = true, .adds_bos = true},
    {.pre = "llama-v3", .normalizer = "null", .pre_tokenizer = LLAMA3, .ignore_merges = true, .adds_bos = true},
    {.pre = "qwen2", .normalizer = NFC, .pre_tokenizer = QWEN2},
    {.pre = "deepseek-r1-qwen", .normalizer = NFC, .pre_tokenizer = QWEN2},
};

typedef struct vocabulary {
    const bw_source *source;
    int64_t count;
    const pre_kind *kind;
} vocabulary;

static const char *token_text(const vocabulary *vocabulary, int64_t id, size_t *length)
{
    return bw_gguf_array_text(vocabulary->source->files, "tokenizer.ggml.tokens", id, length);
}

static int open_vocabulary(vocabulary *vocabulary, const bw_source *source)
{
    const char *model = bw_gguf_text(source->files, "tokenizer.ggml.model", NULL), *pre = bw_gguf_text(source->files, "tokenizer.ggml.pre", NULL);
    const char *path = bw_source_path(source);
    *vocabulary = (struct vocabulary){.source = source, .count = bw_gguf_array_size(source->files, "tokenizer.ggml.tokens")};
    if (!model || strcmp(model, "gpt2") != 0)
        return bw_fail(BW_DATA, "%s: tokenizer.ggml.model is '%s'; only gpt2 (byte-level BPE) is supported", path, model ? model : "not given");
    if (vocabulary->count < 1 || vocabulary->count > source->spec.vocab)
        return bw_fail(BW_DATA, "%s: tokenizer.ggml.tokens has %lld entries, the embedding %lld rows", path, (long long)vocabulary->count,
                       (long long)source->spec.vocab);
    for (size_t i = 0; i < sizeof pre_kinds / sizeof *pre_kinds; i++)
        if (pre && strcmp(pre, pre_kinds[i].pre) == 0)
            vocabulary->kind = &pre_kinds[i];
    if (!vocabulary->kind)
        return bw_fail(BW_DATA, "%s: tokenizer.ggml.pre is '%s'; supported: smollm, starcoder, gpt-2, llama-bpe, qwen2", path,
                       pre ? pre : "not given");
    return BW_OK;
}

/* The id that metadata gives for "bos", "eos", ..., or -1. */
static int64_t special_id(const vocabulary *vocabulary, const char *which)
{
    char key[64];
    snprintf(key, sizeof key, "tokenizer.ggml.%s_token_id", which);
    const double id = bw_gguf_number(vocabulary->source->files, key, -1);
    return id >= 0 && id < (double)vocabulary->count && id == floor(id) ? (int64_t)id : -1;
}

static int add_token(bw_text *out, const vocabulary *vocabulary, int64_t id)
{
    size_t length;
    const char *text = token_text(vocabulary, id, &length);
    if (!text)
        return bw_fail(BW_DATA, "%s: tokenizer.ggml.tokens[%lld] is not a string", bw_source_path(vocabulary->source), (long long)id);
    return bw_json_quote(out, text, length);
}

/* ---- tokenizer.json ----------------------------------------------------------------------------------------------- */
static int add_added_tokens(bw_text *out, const vocabulary *vocabulary)
{
    const char *comma = "";
    for (int64_t id = 0; id < vocabulary->count; id++) {
        const double type = bw_gguf_array_number(vocabulary->source->files, "tokenizer.ggml.token_type", id, 0);
        if (type != TOKEN_CONTROL && type != TOKEN_USER_DEFINED)
            continue;
        BW_TRY(bw_text_addf(out, "%s\n    {\"id\": %lld, \"content\": ", comma, (long long)id));
        BW_TRY(add_token(out, vocabulary, id));
        BW_TRY(bw_text_addf(out, ", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": false, \"special\": %s}",
                            type == TOKEN_CONTROL ? "true" : "false"));
        comma = ",";
    }
    return BW_OK;
}

/* Where the model puts a token before every text. */
static int add_post_processor(bw_text *out, const vocabulary *vocabulary)
{
    const int64_t bos = special_id(vocabulary, "bos");
    if (bos < 0 || bw_gguf_number(vocabulary->source->files, "tokenizer.ggml.add_bos_token", vocabulary->kind->adds_bos) != 1)
        return bw_text_addf(out, "null");
    BW_TRY(bw_text_addf(out, "{\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": "));
    BW_TRY(add_token(out, vocabulary, bos));
    BW_TRY(bw_text_addf(out, ", \"type_id\": 0}}, {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}], \"pair\": [{\"SpecialToken\": {\"id\": "));
    BW_TRY(add_token(out, vocabulary, bos));
    BW_TRY(bw_text_addf(out, ", \"type_id\": 0}}, {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}, {\"SpecialToken\": {\"id\": "));
    BW_TRY(add_token(out, vocabulary, bos));
    BW_TRY(bw_text_addf(out, ", \"type_id\": 1}}, {\"Sequence\": {\"id\": \"B\", \"type_id\": 1}}], \"special_tokens\": {"));
    BW_TRY(add_token(out, vocabulary, bos));
    BW_TRY(bw_text_addf(out, ": {\"id\": "));
    BW_TRY(add_token(out, vocabulary, bos));
    BW_TRY(bw_text_addf(out, ", \"ids\": [%lld], \"tokens\": [", (long long)bos));
    BW_TRY(add_token(out, vocabulary, bos));
    return bw_text_addf(out, "]}}}");
}

static int add_model(bw_text *out, const vocabulary *vocabulary)
{
    const bw_tensors *files = vocabulary->source->files;
    BW_TRY(bw_text_addf(out,
                        "{\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": null,\n    \"continuing_subword_prefix\": null,\n"
                        "    \"end_of_word_suffix\": null,\n    \"fuse_unk\": false,\n    \"byte_fallback\": false,\n    \"ignore_merges\": %s,\n"
                        "    \"vocab\": {",
                        vocabulary->kind->ignore_merges ? "true" : "false"));
    for (int64_t id = 0; id < vocabulary->count; id++) {
        BW_TRY(bw_text_addf(out, "%s\n      ", id ? "," : ""));
        BW_TRY(add_token(out, vocabulary, id));
        BW_TRY(bw_text_addf(out, ": %lld", (long long)id));
    }
    BW_TRY(bw_text_addf(out, "\n    },\n    \"merges\": ["));
    for (int64_t i = 0; i < bw_gguf_array_size(files, "tokenizer.ggml.merges"); i++) {
        size_t length;
        const char *merge = bw_gguf_array_text(files, "tokenizer.ggml.merges", i, &length);
        if (!merge)
            return bw_fail(BW_DATA, "%s: tokenizer.ggml.merges[%lld] is not a string", bw_source_path(vocabulary->source), (long long)i);
        BW_TRY(bw_text_addf(out, "%s\n      ", i ? "," : ""));
        BW_TRY(bw_json_quote(out, merge, length));
    }
    return bw_text_addf(out, "\n    ]\n  }");
}

static int tokenizer_text(bw_text *out, const vocabulary *vocabulary)
{
    BW_TRY(bw_text_addf(out, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n  \"added_tokens\": ["));
    BW_TRY(add_added_tokens(out, vocabulary));
    BW_TRY(bw_text_addf(out, "\n  ],\n  \"normalizer\": %s,\n  \"pre_tokenizer\": %s,\n  \"post_processor\": ", vocabulary->kind->normalizer,
                        vocabulary->kind->pre_tokenizer));
    BW_TRY(add_post_processor(out, vocabulary));
    BW_TRY(bw_text_addf(out, ",\n  \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": true, \"use_regex\": true},\n"
                             "  \"model\": "));
    BW_TRY(add_model(out, vocabulary));
    return bw_text_addf(out, "\n}\n");
}

/* ---- tokenizer_config.json ---------------------------------------------------------------------------------------- */
static int config_text(bw_text *out, const vocabulary *vocabulary)
{
    static const struct {
        const char *key, *which;
    } specials[] = {{"bos_token", "bos"}, {"eos_token", "eos"}, {"unk_token", "unknown"}, {"pad_token", "padding"}};
    size_t length;
    const char *chat = bw_gguf_text(vocabulary->source->files, "tokenizer.chat_template", &length);
    BW_TRY(bw_text_addf(out,
                        "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n  \"clean_up_tokenization_spaces\": false,\n"
                        "  \"model_max_length\": %lld",
                        (long long)vocabulary->source->spec.max_positions));
    for (size_t i = 0; i < sizeof specials / sizeof *specials; i++) {
        const int64_t id = special_id(vocabulary, specials[i].which);
        if (id < 0)
            continue;
        BW_TRY(bw_text_addf(out, ",\n  \"%s\": ", specials[i].key));
        BW_TRY(add_token(out, vocabulary, id));
    }
    if (chat) {
        BW_TRY(bw_text_addf(out, ",\n  \"chat_template\": "));
        BW_TRY(bw_json_quote(out, chat, length));
    }
    return bw_text_addf(out, "\n}\n");
}

/* Parsed once more before it is written: a token that is there twice, or is not UTF-8, would make a file nobody can read. */
static int write_checked(const vocabulary *vocabulary, const char *folder, const char *name, const bw_text *text)
{
    bw_json *root = NULL;
    bw_text path = {0}, where = {0};
    int status;
    BW_GO(bw_text_addf(&where, "%s made from the metadata of %s", name, bw_source_path(vocabulary->source)));
    BW_GO(bw_json_parse(&root, text->data, text->length, where.data));
    BW_GO(bw_path(&path, folder, name));
    status = bw_file_write(path.data, text->data, text->length, 0644);
done:
    bw_json_free(root);
    bw_text_free(&path);
    bw_text_free(&where);
    return status;
}

int bw_source_write_tokenizer(const bw_source *source, const char *folder)
{
    vocabulary vocabulary;
    bw_text text = {0};
    int status;
    BW_TRY(open_vocabulary(&vocabulary, source));
    BW_GO(tokenizer_text(&text, &vocabulary));
    BW_GO(write_checked(&vocabulary, folder, "tokenizer.json", &text));
    bw_text_free(&text);
    BW_GO(config_text(&text, &vocabulary));
    status = write_checked(&vocabulary, folder, "tokenizer_config.json", &text);
done:
    bw_text_free(&text);
    return status;
}
