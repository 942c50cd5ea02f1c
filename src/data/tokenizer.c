/* tokenizer.c - text to ids and back. */
#include "data/tokenizer_parts.h"
#include "io/utf8.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <utf8proc.h>

/* ---- lists of ids -------------------------------------------------------------------------------------------------*/
int bw_tokens_add(bw_tokens *tokens, int32_t id)
{
    if (tokens->count == tokens->capacity) {
        int64_t capacity = tokens->capacity ? 2 * tokens->capacity : 64;
        int32_t *ids;
        BW_TRY(BW_NEW(ids, capacity, "tokens"));
        if (tokens->count)
            memcpy(ids, tokens->ids, (size_t)tokens->count * sizeof *ids);
        bw_free(tokens->ids);
        tokens->ids = ids;
        tokens->capacity = capacity;
    }
    tokens->ids[tokens->count++] = id;
    return BW_OK;
}

void bw_tokens_free(bw_tokens *tokens)
{
    bw_free(tokens->ids);
    *tokens = (bw_tokens){0};
}

/* ---- building -----------------------------------------------------------------------------------------------------*/
int bw_tokenizer_new(bw_tokenizer **out, const char *path)
{
    bw_tokenizer *tokenizer;
    *out = NULL;
    BW_TRY(BW_NEW(tokenizer, 1, "tokenizer"));
    *out = tokenizer;
    tokenizer->unknown = tokenizer->eos = -1;
    bw_alphabet_create(&tokenizer->alphabet);
    BW_TRY(BW_NEW(tokenizer->path, strlen(path) + 1, "tokenizer"));
    memcpy(tokenizer->path, path, strlen(path));
    return BW_OK;
}

void bw_tokenizer_free(bw_tokenizer *tokenizer)
{
    if (!tokenizer)
        return;
    bw_vocab_free(&tokenizer->vocab);
    bw_merges_free(&tokenizer->merges);
    for (int64_t i = 0; i < tokenizer->added_count; i++)
        bw_free(tokenizer->added[i].text);
    bw_free(tokenizer->added);
    bw_free(tokenizer->special);
    for (int i = 0; i < tokenizer->step_count; i++)
        bw_split_free(&tokenizer->steps[i]);
    bw_tokens_free(&tokenizer->prefix);
    bw_tokens_free(&tokenizer->suffix);
    bw_free(tokenizer->eos_text);
    bw_free(tokenizer->path);
    bw_free(tokenizer);
}

int bw_tokenizer_add_step(bw_tokenizer *tokenizer, const char *pattern)
{
    if (tokenizer->step_count == BW_MAX_STEPS)
        return bw_fail(BW_DATA, "%s: the pre-tokeniser has more than %d steps", tokenizer->path, BW_MAX_STEPS);
    bw_split *step = &tokenizer->steps[tokenizer->step_count++];
    *step = (bw_split){0};
    return pattern ? bw_split_compile(step, pattern, tokenizer->path) : BW_OK;
}

int bw_tokenizer_reserve_added(bw_tokenizer *tokenizer, int64_t count)
{
    BW_TRY(BW_NEW(tokenizer->special, tokenizer->vocab.limit, "tokenizer"));
    return BW_NEW(tokenizer->added, count, "tokenizer");
}

int bw_tokenizer_add_added(bw_tokenizer *tokenizer, int32_t id, bool special, bool normalized)
{
    size_t length = 0;
    const char *text = bw_vocab_text(&tokenizer->vocab, id, &length);
    bw_text looked_for = {0};
    if (!text || !length)
        return bw_fail(BW_DATA, "%s: the added token with the id %d is empty", tokenizer->path, id);
    int status = normalized ? bw_normalize(tokenizer, text, length, &looked_for) : bw_text_add(&looked_for, text, length);
    if (status != BW_OK || !looked_for.length) {
        bw_text_free(&looked_for);
        return status;
    }
    tokenizer->added[tokenizer->added_count++] = (bw_added){looked_for.data, looked_for.length, id, special, normalized};
    tokenizer->added_begins[normalized][(uint8_t)looked_for.data[0]] = true;
    tokenizer->special[id] = special;
    return BW_OK;
}

static int longest_first(const void *a, const void *b)
{
    const bw_added *left = a, *right = b;
    if (left->length != right->length)
        return left->length > right->length ? -1 : 1;
    return left->id < right->id ? -1 : left->id > right->id;
}

static int keep_text(const bw_vocab *vocab, int32_t id, char **out)
{
    size_t length = 0;
    const char *text = bw_vocab_text(vocab, id, &length);
    if (!text)
        return BW_OK;
    BW_TRY(BW_NEW(*out, length + 1, "tokenizer"));
    memcpy(*out, text, length);
    return BW_OK;
}

int bw_tokenizer_finish(bw_tokenizer *tokenizer, int32_t eos)
{
    const bw_alphabet *alphabet = &tokenizer->alphabet;
    for (int byte = 0; byte < 256; byte++)
        tokenizer->byte_ids[byte] = bw_vocab_find(&tokenizer->vocab, alphabet->symbols[byte], alphabet->sizes[byte]);
    if (tokenizer->added_count)
        qsort(tokenizer->added, (size_t)tokenizer->added_count, sizeof *tokenizer->added, longest_first);
    tokenizer->eos = eos;
    return keep_text(&tokenizer->vocab, eos, &tokenizer->eos_text);
}

/* ---- encoding -----------------------------------------------------------------------------------------------------*/
static bool all_ascii(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if ((uint8_t)text[i] >= 0x80)
            return false;
    return true;
}

int bw_normalize(const bw_tokenizer *tokenizer, const char *text, size_t length, bw_text *out)
{
    if (!tokenizer->nfc || all_ascii(text, length))
        return bw_text_add(out, text, length);
    utf8proc_uint8_t *composed = NULL;
    utf8proc_ssize_t size = utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)length, &composed, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (size < 0)
        return bw_fail(size == UTF8PROC_ERROR_NOMEM ? BW_SYSTEM : BW_DATA, "%s: a text of %zu bytes cannot be brought into form NFC: %s",
                       tokenizer->path, length, utf8proc_errmsg(size));
    int status = bw_text_add(out, composed, (size_t)size);
    free(composed); /* utf8proc took it from malloc */
    return status;
}

/* The first added token in text[from..length): where it begins, or NULL. The longest where several begin. */
static const bw_added *find_added(const bw_tokenizer *tokenizer, bool normalized, const char *text, size_t length, size_t from, size_t *at)
{
    for (*at = from; *at < length; ++*at) {
        if (!tokenizer->added_begins[normalized][(uint8_t)text[*at]])
            continue;
        for (int64_t i = 0; i < tokenizer->added_count; i++) {
            const bw_added *added = &tokenizer->added[i];
            if (added->normalized == normalized && added->length <= length - *at && memcmp(text + *at, added->text, added->length) == 0)
                return added;
        }
    }
    return NULL;
}

typedef int piece_encoder(bw_coder *coder, const char *text, size_t length);

/* Added tokens of one kind become their ids, what lies between goes to `rest`. */
static int cut_added(bw_coder *coder, bool normalized, const char *text, size_t length, piece_encoder *rest)
{
    const bw_added *added;
    size_t done = 0, at = 0;
    while ((added = find_added(coder->tokenizer, normalized, text, length, done, &at))) {
        BW_TRY(rest(coder, text + done, at - done));
        BW_TRY(bw_tokens_add(coder->out, added->id));
        done = at + added->length;
    }
    return rest(coder, text + done, length - done);
}

static int encode_plain(bw_coder *coder, const char *text, size_t length)
{
    return bw_encode_piece(coder, 0, text, length);
}

static int encode_unnormalized(bw_coder *coder, const char *text, size_t length)
{
    if (length == 0)
        return BW_OK;
    bw_text normalized = {0};
    int status;
    BW_GO(bw_normalize(coder->tokenizer, text, length, &normalized));
    BW_GO(cut_added(coder, true, normalized.data, normalized.length, encode_plain));
done:
    bw_text_free(&normalized);
    return status;
}

static int coder_create(bw_coder *coder, const bw_tokenizer *tokenizer, bw_tokens *out)
{
    *coder = (bw_coder){.tokenizer = tokenizer, .out = out};
    for (int i = 0; i < tokenizer->step_count; i++) {
        if (!tokenizer->steps[i].code)
            continue;
        coder->matches[i] = pcre2_match_data_create_from_pattern(tokenizer->steps[i].code, NULL);
        if (!coder->matches[i])
            return bw_fail(BW_SYSTEM, "out of memory for matching the tokenizer's patterns");
    }
    return BW_OK;
}

static void coder_free(bw_coder *coder)
{
    for (int i = 0; i < BW_MAX_STEPS; i++) {
        pcre2_match_data_free(coder->matches[i]);
        bw_text_free(&coder->prefixed[i]);
    }
    bw_text_free(&coder->word);
    bw_free(coder->symbols);
    bw_free(coder->heap);
}

static int add_all(bw_tokens *out, const bw_tokens *ids)
{
    for (int64_t i = 0; i < ids->count; i++)
        BW_TRY(bw_tokens_add(out, ids->ids[i]));
    return BW_OK;
}

int bw_tokenizer_encode(const bw_tokenizer *tokenizer, const char *text, size_t length, bool add_special, bw_tokens *out)
{
    size_t good = bw_utf8_check((const uint8_t *)text, length);
    if (good < length)
        return bw_fail(BW_DATA, "a text to tokenise is not UTF-8: byte 0x%02X at %zu of %zu", (uint8_t)text[good], good, length);
    if (length > INT32_MAX / 4)
        return bw_fail(BW_DATA, "a text to tokenise has %zu bytes; at most %d can be taken at once", length, INT32_MAX / 4);
    bw_coder coder;
    int status;
    BW_GO(coder_create(&coder, tokenizer, out));
    if (add_special)
        BW_GO(add_all(out, &tokenizer->prefix));
    BW_GO(cut_added(&coder, false, text, length, encode_unnormalized));
    if (add_special)
        BW_GO(add_all(out, &tokenizer->suffix));
done:
    coder_free(&coder);
    return status;
}

/* ---- decoding -----------------------------------------------------------------------------------------------------*/
int bw_tokenizer_decode(const bw_tokenizer *tokenizer, const int32_t *ids, int64_t count, bool skip_special, bw_text *out)
{
    bw_text bytes = {0};
    int status;
    for (int64_t i = 0; i < count; i++) {
        size_t length = 0;
        const char *token = bw_vocab_text(&tokenizer->vocab, ids[i], &length);
        if (token && !(skip_special && tokenizer->special[ids[i]]))
            BW_GO(bw_alphabet_bytes(&tokenizer->alphabet, token, length, &bytes));
    }
    BW_GO(bw_add_lossy(out, bytes.data, bytes.length));
    BW_GO(bw_text_add(out, "", 0)); /* decoding nothing gives an empty string, not none */
done:
    bw_text_free(&bytes);
    return status;
}

/* ---- what it is ---------------------------------------------------------------------------------------------------*/
int32_t bw_tokenizer_eos(const bw_tokenizer *tokenizer)
{
    return tokenizer->eos;
}

int32_t bw_tokenizer_vocab(const bw_tokenizer *tokenizer)
{
    return tokenizer->vocab.limit;
}

int32_t bw_tokenizer_id(const bw_tokenizer *tokenizer, const char *token)
{
    return bw_vocab_find(&tokenizer->vocab, token, strlen(token));
}

const char *bw_tokenizer_eos_text(const bw_tokenizer *tokenizer)
{
    return tokenizer->eos_text;
}

int bw_tokenizer_open(bw_tokenizer **out, const char *model_path)
{
    struct stat found;
    bw_text path = {0};
    *out = NULL;
    if (stat(model_path, &found) == 0 && S_ISDIR(found.st_mode)) {
        int status = bw_path(&path, model_path, "tokenizer.json");
        if (status == BW_OK)
            status = bw_tokenizer_load(out, path.data);
        bw_text_free(&path);
        return status;
    }
    bw_tensors *gguf = NULL;
    BW_TRY(bw_gguf_open(&gguf, model_path));
    int status = bw_tokenizer_from_gguf(out, gguf);
    bw_tensors_close(gguf);
    return status;
}
