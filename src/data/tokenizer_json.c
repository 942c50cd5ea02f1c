/* tokenizer_json.c - a tokenizer from Hugging Face's tokenizer.json. What it asks for and this program does not do is refused by
 * name: a tokenizer that is nearly right gives a model that is nearly right. */
#include "data/tokenizer_parts.h"

#include <string.h>

static int refuse(const bw_tokenizer *tokenizer, const char *part, const char *found, const char *expected)
{
    return bw_fail(BW_DATA, "%s: %s is %.60s; this program reads %s", tokenizer->path, part, found ? found : "missing", expected);
}

static const char *text_of(const bw_json *object, const char *key)
{
    return bw_json_text(bw_json_get(object, key), NULL);
}

static bool is_type(const bw_json *object, const char *type)
{
    const char *found = text_of(object, "type");
    return found && strcmp(found, type) == 0;
}

static bool absent(const bw_json *value)
{
    return bw_json_kind(value) == BW_JSON_NULL;
}

/* ---- model: vocabulary and merges ---------------------------------------------------------------------------------*/
static int check_model(const bw_tokenizer *tokenizer, const bw_json *model)
{
    static const char *const empties[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    /* Old files leave the type out; a vocabulary with merges is BPE all the same. */
    if (!is_type(model, "BPE") && !(absent(bw_json_get(model, "type")) && bw_json_get(model, "merges")))
        return refuse(tokenizer, "the model's type", text_of(model, "type"), "byte-level BPE only");
    if (bw_json_true(bw_json_get(model, "byte_fallback"), false))
        return refuse(tokenizer, "the model's byte_fallback", "true", "byte-level BPE, without it (SentencePiece-like models need it)");
    if (bw_json_number(bw_json_get(model, "dropout"), 0) != 0)
        return refuse(tokenizer, "the model's dropout", "not zero", "tokenizers without it");
    for (int i = 0; i < 2; i++) {
        const char *text = text_of(model, empties[i]);
        if (text && text[0])
            return refuse(tokenizer, empties[i], text, "tokenizers without it");
    }
    if (bw_json_kind(bw_json_get(model, "vocab")) != BW_JSON_OBJECT || bw_json_kind(bw_json_get(model, "merges")) != BW_JSON_ARRAY)
        return bw_fail(BW_DATA, "%s: the model has no \"vocab\" object or no \"merges\" list; is this a tokenizer.json?", tokenizer->path);
    return BW_OK;
}

static int raise_limit(const bw_tokenizer *tokenizer, const bw_json *id, const char *token, int64_t *limit)
{
    int64_t number = bw_json_int(id, -1);
    if (number < 0 || number >= BW_MAX_TOKENS)
        return bw_fail(BW_DATA, "%s: token \"%.60s\" has no id from 0 to %d", tokenizer->path, token, BW_MAX_TOKENS - 1);
    *limit = number >= *limit ? number + 1 : *limit;
    return BW_OK;
}

/* One more than the largest id, of the vocabulary and of the added tokens. */
static int find_limit(const bw_tokenizer *tokenizer, const bw_json *vocab, const bw_json *added, int64_t *limit)
{
    void *at = NULL;
    const char *token;
    const bw_json *id;
    *limit = 0;
    while (bw_json_next(vocab, &at, &token, &id))
        BW_TRY(raise_limit(tokenizer, id, token, limit));
    for (int64_t i = 0; i < bw_json_size(added); i++) {
        const char *content = text_of(bw_json_at(added, i), "content");
        if (!content || !content[0])
            return bw_fail(BW_DATA, "%s: added token %lld has no \"content\"", tokenizer->path, (long long)i);
        BW_TRY(raise_limit(tokenizer, bw_json_get(bw_json_at(added, i), "id"), content, limit));
    }
    return BW_OK;
}

static int load_vocab(bw_tokenizer *tokenizer, const bw_json *vocab)
{
    void *at = NULL;
    const char *token;
    const bw_json *id;
    while (bw_json_next(vocab, &at, &token, &id))
        BW_TRY(bw_vocab_add(&tokenizer->vocab, (int32_t)bw_json_int(id, -1), token, strlen(token), tokenizer->path));
    return BW_OK;
}

/* "left right" or ["left", "right"]. */
static int load_merge(bw_tokenizer *tokenizer, const bw_json *merge, int32_t rank)
{
    size_t left_length = 0, right_length = 0;
    const char *left = bw_json_text(bw_json_at(merge, 0), &left_length), *right = bw_json_text(bw_json_at(merge, 1), &right_length);
    if (bw_json_kind(merge) == BW_JSON_STRING) {
        left = bw_json_text(merge, &left_length);
        const char *space = memchr(left, ' ', left_length);
        right = space ? space + 1 : NULL;
        right_length = space ? left_length - (size_t)(right - left) : 0;
        left_length = space ? (size_t)(space - left) : 0;
    } else if (bw_json_size(merge) != 2) {
        right = NULL;
    }
    if (!left || !right || (bw_json_kind(merge) == BW_JSON_STRING && memchr(right, ' ', right_length)))
        return bw_fail(BW_DATA, "%s: merge %d is not two tokens: expected \"a b\" or [\"a\", \"b\"]", tokenizer->path, rank);
    return bw_merges_add_text(&tokenizer->merges, &tokenizer->vocab, rank, left, left_length, right, right_length, tokenizer->path);
}

static int load_model(bw_tokenizer *tokenizer, const bw_json *root)
{
    const bw_json *model = bw_json_get(root, "model"), *vocab = bw_json_get(model, "vocab"), *merges = bw_json_get(model, "merges");
    int64_t limit = 0;
    BW_TRY(check_model(tokenizer, model));
    BW_TRY(find_limit(tokenizer, vocab, bw_json_get(root, "added_tokens"), &limit));
    BW_TRY(bw_vocab_create(&tokenizer->vocab, (int32_t)limit));
    BW_TRY(load_vocab(tokenizer, vocab));
    if (bw_json_size(merges) > BW_MAX_TOKENS)
        return bw_fail(BW_DATA, "%s: %lld merges; at most %d make sense", tokenizer->path, (long long)bw_json_size(merges), BW_MAX_TOKENS);
    BW_TRY(bw_merges_create(&tokenizer->merges, bw_json_size(merges)));
    for (int64_t i = 0; i < bw_json_size(merges); i++)
        BW_TRY(load_merge(tokenizer, bw_json_at(merges, i), (int32_t)i));
    const char *unknown = text_of(model, "unk_token");
    tokenizer->unknown = unknown ? bw_vocab_find(&tokenizer->vocab, unknown, strlen(unknown)) : -1;
    tokenizer->fuse_unknown = bw_json_true(bw_json_get(model, "fuse_unk"), false);
    tokenizer->ignore_merges = bw_json_true(bw_json_get(model, "ignore_merges"), false);
    return BW_OK;
}

/* ---- added tokens -------------------------------------------------------------------------------------------------*/
/* One that is looked for after normalisation is, from then on, its normalised text, for decoding too. */
static int register_added(bw_tokenizer *tokenizer, const bw_json *token, const char *content, size_t length)
{
    int32_t id = (int32_t)bw_json_int(bw_json_get(token, "id"), -1);
    bool special = bw_json_true(bw_json_get(token, "special"), false), normalized = bw_json_true(bw_json_get(token, "normalized"), !special);
    bw_text text = {0};
    int status;
    if (normalized && bw_vocab_find(&tokenizer->vocab, content, length) < 0)
        BW_GO(bw_normalize(tokenizer, content, length, &text));
    else
        BW_GO(bw_text_add(&text, content, length));
    BW_GO(bw_vocab_add(&tokenizer->vocab, id, text.data, text.length, tokenizer->path));
    BW_GO(bw_tokenizer_add_added(tokenizer, id, special, normalized));
done:
    bw_text_free(&text);
    return status;
}

static int load_added_token(bw_tokenizer *tokenizer, const bw_json *token)
{
    static const char *const flags[] = {"single_word", "lstrip", "rstrip"};
    size_t length = 0;
    const char *content = bw_json_text(bw_json_get(token, "content"), &length);
    for (int i = 0; i < 3; i++)
        if (bw_json_true(bw_json_get(token, flags[i]), false))
            return bw_fail(BW_DATA, "%s: the added token \"%.60s\" asks for %s, which this program does not do", tokenizer->path, content, flags[i]);
    return register_added(tokenizer, token, content, length);
}

static int load_added(bw_tokenizer *tokenizer, const bw_json *added)
{
    BW_TRY(bw_tokenizer_reserve_added(tokenizer, bw_json_size(added)));
    for (int64_t i = 0; i < bw_json_size(added); i++)
        BW_TRY(load_added_token(tokenizer, bw_json_at(added, i)));
    return BW_OK;
}

/* ---- normaliser ---------------------------------------------------------------------------------------------------*/
static int load_normalizer(bw_tokenizer *tokenizer, const bw_json *normalizer, int depth)
{
    const bw_json *parts = bw_json_get(normalizer, "normalizers");
    if (absent(normalizer))
        return BW_OK;
    if (is_type(normalizer, "NFC")) {
        tokenizer->nfc = true;
        return BW_OK;
    }
    if (!is_type(normalizer, "Sequence") || depth > 4)
        return refuse(tokenizer, "the normaliser", text_of(normalizer, "type"), "none, NFC, or a Sequence of these");
    for (int64_t i = 0; i < bw_json_size(parts); i++)
        BW_TRY(load_normalizer(tokenizer, bw_json_at(parts, i), depth + 1));
    return BW_OK;
}

/* ---- pre-tokeniser ------------------------------------------------------------------------------------------------*/
static int load_split(bw_tokenizer *tokenizer, const bw_json *split)
{
    const bw_json *pattern = bw_json_get(split, "pattern");
    const char *regex = text_of(pattern, "Regex"), *behavior = text_of(split, "behavior");
    if (!regex)
        return refuse(tokenizer, "the pattern of the pre-tokeniser Split", text_of(pattern, "String"), "{\"Regex\": ...}");
    if (!behavior || strcmp(behavior, "Isolated") != 0)
        return refuse(tokenizer, "the behavior of the pre-tokeniser Split", behavior, "Isolated");
    if (bw_json_true(bw_json_get(split, "invert"), false))
        return refuse(tokenizer, "invert of the pre-tokeniser Split", "true", "false");
    return bw_tokenizer_add_step(tokenizer, regex);
}

static int load_byte_level(bw_tokenizer *tokenizer, const bw_json *part)
{
    if (bw_json_true(bw_json_get(part, "add_prefix_space"), true))
        BW_TRY(bw_tokenizer_add_step(tokenizer, NULL));
    return bw_json_true(bw_json_get(part, "use_regex"), true) ? bw_tokenizer_add_step(tokenizer, BW_PATTERN_GPT2) : BW_OK;
}

/* *bytes: the ByteLevel part has been met. Behind it a text is no longer a text, and no other part makes sense. */
static int load_pre_tokenizer(bw_tokenizer *tokenizer, const bw_json *part, bool *bytes, int depth)
{
    static const char expected[] = "ByteLevel, at the end, and before it Digits, Split or a Sequence of these";
    const bw_json *parts = bw_json_get(part, "pretokenizers");
    if (*bytes)
        return refuse(tokenizer, "the pre-tokeniser behind ByteLevel", text_of(part, "type"), expected);
    if (is_type(part, "Split"))
        return load_split(tokenizer, part);
    if (is_type(part, "Digits"))
        return bw_tokenizer_add_step(tokenizer, bw_json_true(bw_json_get(part, "individual_digits"), false) ? BW_PATTERN_DIGIT : BW_PATTERN_DIGITS);
    if (is_type(part, "ByteLevel")) {
        *bytes = true;
        return load_byte_level(tokenizer, part);
    }
    if (!is_type(part, "Sequence") || depth > 4)
        return refuse(tokenizer, "the pre-tokeniser", text_of(part, "type"), expected);
    for (int64_t i = 0; i < bw_json_size(parts); i++)
        BW_TRY(load_pre_tokenizer(tokenizer, bw_json_at(parts, i), bytes, depth + 1));
    return BW_OK;
}

/* ---- post-processor -----------------------------------------------------------------------------------------------*/
static int add_template_ids(bw_tokenizer *tokenizer, const bw_json *processor, const char *name, bw_tokens *out)
{
    const bw_json *ids = bw_json_get(bw_json_get(bw_json_get(processor, "special_tokens"), name), "ids");
    for (int64_t i = 0; i < bw_json_size(ids); i++) {
        int64_t id = bw_json_int(bw_json_at(ids, i), -1);
        if (id < 0 || id >= tokenizer->vocab.limit)
            return bw_fail(BW_DATA, "%s: the post-processor adds %.60s with an id that no token has", tokenizer->path, name);
        BW_TRY(bw_tokens_add(out, (int32_t)id));
    }
    return ids ? BW_OK : bw_fail(BW_DATA, "%s: the post-processor adds %.60s but does not say its id", tokenizer->path, name);
}

static int load_template(bw_tokenizer *tokenizer, const bw_json *processor)
{
    const bw_json *single = bw_json_get(processor, "single");
    bool behind = false; /* the text's own place in the template has been met */
    for (int64_t i = 0; i < bw_json_size(single); i++) {
        const char *name = text_of(bw_json_get(bw_json_at(single, i), "SpecialToken"), "id");
        if (name)
            BW_TRY(add_template_ids(tokenizer, processor, name, behind ? &tokenizer->suffix : &tokenizer->prefix));
        else
            behind = true;
    }
    return BW_OK;
}

static int load_post_processor(bw_tokenizer *tokenizer, const bw_json *processor, int depth)
{
    const bw_json *parts = bw_json_get(processor, "processors");
    if (absent(processor) || is_type(processor, "ByteLevel")) /* that one only moves offsets */
        return BW_OK;
    if (is_type(processor, "TemplateProcessing"))
        return load_template(tokenizer, processor);
    if (!is_type(processor, "Sequence") || depth > 4)
        return refuse(tokenizer, "the post-processor", text_of(processor, "type"), "TemplateProcessing, ByteLevel, or a Sequence of these");
    for (int64_t i = 0; i < bw_json_size(parts); i++)
        BW_TRY(load_post_processor(tokenizer, bw_json_at(parts, i), depth + 1));
    return BW_OK;
}

/* ---- eos, from the files beside it --------------------------------------------------------------------------------*/
static int read_name(const bw_tokenizer *tokenizer, const bw_json *config, const char *key, const char *path, int32_t *id)
{
    const bw_json *value = bw_json_get(config, key);
    size_t length = 0;
    const char *text = bw_json_text(bw_json_kind(value) == BW_JSON_OBJECT ? bw_json_get(value, "content") : value, &length);
    if (!text)
        return BW_OK;
    *id = bw_vocab_find(&tokenizer->vocab, text, length);
    return *id >= 0 ? BW_OK : bw_fail(BW_DATA, "%s: %s is \"%.60s\", which is not in %s", path, key, text, tokenizer->path);
}

static int load_names(const bw_tokenizer *tokenizer, const char *name, int32_t *eos)
{
    const char *slash = strrchr(tokenizer->path, '/');
    bw_text path = {0};
    bw_json *config = NULL;
    int status;
    BW_GO(bw_text_add(&path, tokenizer->path, slash ? (size_t)(slash - tokenizer->path) + 1 : 0));
    BW_GO(bw_text_addf(&path, "%s", name));
    if (*eos >= 0 || !bw_file_exists(path.data))
        goto done;
    BW_GO(bw_json_load(&config, path.data));
    BW_GO(read_name(tokenizer, config, "eos_token", path.data, eos));
done:
    bw_json_free(config);
    bw_text_free(&path);
    return status;
}

/* ---- all of it ----------------------------------------------------------------------------------------------------*/
static int load(bw_tokenizer *tokenizer, const bw_json *root)
{
    bool bytes = false;
    int32_t eos = -1;
    BW_TRY(load_normalizer(tokenizer, bw_json_get(root, "normalizer"), 0));
    BW_TRY(load_model(tokenizer, root));
    BW_TRY(load_added(tokenizer, bw_json_get(root, "added_tokens")));
    BW_TRY(load_pre_tokenizer(tokenizer, bw_json_get(root, "pre_tokenizer"), &bytes, 0));
    if (!bytes)
        return refuse(tokenizer, "the pre-tokeniser's last part", "not ByteLevel", "byte-level BPE only");
    BW_TRY(load_post_processor(tokenizer, bw_json_get(root, "post_processor"), 0));
    if (!is_type(bw_json_get(root, "decoder"), "ByteLevel"))
        return refuse(tokenizer, "the decoder", text_of(bw_json_get(root, "decoder"), "type"), "ByteLevel");
    BW_TRY(load_names(tokenizer, "tokenizer_config.json", &eos));
    BW_TRY(load_names(tokenizer, "special_tokens_map.json", &eos));
    return bw_tokenizer_finish(tokenizer, eos);
}

int bw_tokenizer_load(bw_tokenizer **out, const char *tokenizer_json)
{
    bw_json *root = NULL;
    bw_tokenizer *tokenizer = NULL;
    int status;
    *out = NULL;
    BW_GO(bw_json_load(&root, tokenizer_json));
    BW_GO(bw_tokenizer_new(&tokenizer, tokenizer_json));
    BW_GO(load(tokenizer, root));
    *out = tokenizer;
    tokenizer = NULL;
done:
    bw_tokenizer_free(tokenizer);
    bw_json_free(root);
    return status;
}
