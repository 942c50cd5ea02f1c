/* tokenizer_gguf.c - a tokenizer from GGUF metadata. GGUF does not store the pre-tokeniser; it names it, and the table below
 * says what the name means. */
#include "data/tokenizer_parts.h"

#include <string.h>

#define LLAMA3(DIGITS) "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" DIGITS "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define LLAMA3_PATTERN "(?i:'s|'t|'re|'ve|'m|'ll|'d)" LLAMA3("\\p{N}{1,3}")
#define QWEN2_PATTERN  "(?i:'s|'t|'re|'ve|'m|'ll|'d)" LLAMA3("\\p{N}")

typedef struct pre_row {
    const char *name;        /* tokenizer.ggml.pre */
    const char *patterns[2]; /* in order */
    bool nfc, ignore_merges;
    bool adds_bos; /* where tokenizer.ggml.add_bos_token is not given */
} pre_row;
static const pre_row PRE_TOKENIZERS[] = {
    {.name = "smollm", .patterns = {BW_PATTERN_DIGIT, BW_PATTERN_GPT2}},
    {.name = "starcoder", .patterns = {BW_PATTERN_DIGIT, BW_PATTERN_GPT2}},
    {.name = "gpt-2", .patterns = {BW_PATTERN_GPT2}},
    {.name = "llama-bpe", .patterns = {LLAMA3_PATTERN}, .ignore_merges = true, .adds_bos = true},
    {.name = "llama3", .patterns = {LLAMA3_PATTERN}, .ignore_merges = true, .adds_bos = true},
    {.name = "llama-v3", .patterns = {LLAMA3_PATTERN}, .ignore_merges = true, .adds_bos = true},
    {.name = "qwen2", .patterns = {QWEN2_PATTERN}, .nfc = true},
    {.name = "deepseek-r1-qwen", .patterns = {QWEN2_PATTERN}, .nfc = true},
};
enum { TYPE_CONTROL = 3, TYPE_USER = 4 }; /* of tokenizer.ggml.token_type: recognised in text as a whole */

static const char TOKENS[] = "tokenizer.ggml.tokens", MERGES[] = "tokenizer.ggml.merges", TYPES[] = "tokenizer.ggml.token_type";

static const pre_row *find_pre(const char *name, size_t length)
{
    for (size_t i = 0; i < sizeof PRE_TOKENIZERS / sizeof PRE_TOKENIZERS[0]; i++)
        if (strlen(PRE_TOKENIZERS[i].name) == length && memcmp(PRE_TOKENIZERS[i].name, name, length) == 0)
            return &PRE_TOKENIZERS[i];
    return NULL;
}

/* "default" is refused too: it is what a converter writes that did not recognise the tokenizer, and tells nothing. */
static int choose_pre(bw_tokenizer *tokenizer, const bw_tensors *gguf, const pre_row **row)
{
    size_t length = 0;
    const char *model = bw_gguf_text(gguf, "tokenizer.ggml.model", &length);
    if (!model)
        return bw_fail(BW_DATA, "%s: there is no tokenizer in its metadata (tokenizer.ggml.model); use a GGUF that has one", tokenizer->path);
    if (length != 4 || memcmp(model, "gpt2", 4) != 0)
        return bw_fail(BW_DATA, "%s: its tokenizer is of the kind \"%.*s\"; this program reads \"gpt2\" (byte-level BPE)", tokenizer->path,
                       (int)(length < 40 ? length : 40), model);
    const char *pre = bw_gguf_text(gguf, "tokenizer.ggml.pre", &length);
    *row = pre ? find_pre(pre, length) : NULL;
    if (!*row)
        return bw_fail(BW_DATA,
                       "%s: tokenizer.ggml.pre is \"%.*s\", whose rules this program does not know (it knows smollm, starcoder, gpt-2, llama-bpe and "
                       "qwen2); use a Hugging Face folder with a tokenizer.json",
                       tokenizer->path,
                       (int)(pre && length < 40 ? length
                             : pre              ? 40
                                                : 7),
                       pre ? pre : "missing");
    return BW_OK;
}

static int load_tokens(bw_tokenizer *tokenizer, const bw_tensors *gguf)
{
    int64_t count = bw_gguf_array_size(gguf, TOKENS);
    if (count < 1 || count > BW_MAX_TOKENS)
        return bw_fail(BW_DATA, "%s: %s lists %lld tokens; expected from 1 to %d", tokenizer->path, TOKENS, (long long)count, BW_MAX_TOKENS);
    BW_TRY(bw_vocab_create(&tokenizer->vocab, (int32_t)count));
    for (int64_t id = 0; id < count; id++) {
        size_t length = 0;
        const char *text = bw_gguf_array_text(gguf, TOKENS, id, &length);
        if (!text)
            return bw_fail(BW_DATA, "%s: %s holds no string at %lld", tokenizer->path, TOKENS, (long long)id);
        BW_TRY(bw_vocab_add(&tokenizer->vocab, (int32_t)id, text, length, tokenizer->path));
    }
    return BW_OK;
}

static int load_merge(bw_tokenizer *tokenizer, const char *merge, size_t length, int32_t rank)
{
    const char *space = merge ? memchr(merge, ' ', length) : NULL;
    if (!space)
        return bw_fail(BW_DATA, "%s: %s: merge %d is not two tokens with a space between them", tokenizer->path, MERGES, rank);
    size_t left = (size_t)(space - merge);
    return bw_merges_add_text(&tokenizer->merges, &tokenizer->vocab, rank, merge, left, space + 1, length - left - 1, tokenizer->path);
}

static int load_merges(bw_tokenizer *tokenizer, const bw_tensors *gguf)
{
    int64_t count = bw_gguf_array_size(gguf, MERGES);
    if (count < 0 || count > BW_MAX_TOKENS)
        return bw_fail(BW_DATA, "%s: %s lists %lld merges; expected up to %d", tokenizer->path, MERGES, (long long)count, BW_MAX_TOKENS);
    BW_TRY(bw_merges_create(&tokenizer->merges, count));
    for (int64_t i = 0; i < count; i++) {
        size_t length = 0;
        const char *merge = bw_gguf_array_text(gguf, MERGES, i, &length);
        BW_TRY(load_merge(tokenizer, merge, length, (int32_t)i));
    }
    return BW_OK;
}

static bool stands_out(double type)
{
    return type == TYPE_CONTROL || type == TYPE_USER;
}

static int load_added(bw_tokenizer *tokenizer, const bw_tensors *gguf)
{
    int64_t count = 0;
    for (int32_t id = 0; id < tokenizer->vocab.limit; id++)
        count += stands_out(bw_gguf_array_number(gguf, TYPES, id, 0));
    BW_TRY(bw_tokenizer_reserve_added(tokenizer, count));
    for (int32_t id = 0; id < tokenizer->vocab.limit; id++) {
        double type = bw_gguf_array_number(gguf, TYPES, id, 0);
        if (stands_out(type))
            BW_TRY(bw_tokenizer_add_added(tokenizer, id, type == TYPE_CONTROL, false));
    }
    return BW_OK;
}

static int read_id(const bw_tokenizer *tokenizer, const bw_tensors *gguf, const char *key, int32_t *id)
{
    double number = bw_gguf_number(gguf, key, -1);
    if (!(number >= -1 && number < tokenizer->vocab.limit))
        return bw_fail(BW_DATA, "%s: %s is %.0f; the vocabulary has %d tokens", tokenizer->path, key, number, tokenizer->vocab.limit);
    *id = (int32_t)number;
    return BW_OK;
}

static int load(bw_tokenizer *tokenizer, const bw_tensors *gguf)
{
    const pre_row *row = NULL;
    int32_t eos = -1, bos = -1;
    BW_TRY(choose_pre(tokenizer, gguf, &row));
    tokenizer->nfc = row->nfc;
    tokenizer->ignore_merges = row->ignore_merges;
    for (int i = 0; i < 2 && row->patterns[i]; i++)
        BW_TRY(bw_tokenizer_add_step(tokenizer, row->patterns[i]));
    BW_TRY(load_tokens(tokenizer, gguf));
    BW_TRY(load_merges(tokenizer, gguf));
    BW_TRY(load_added(tokenizer, gguf));
    BW_TRY(read_id(tokenizer, gguf, "tokenizer.ggml.eos_token_id", &eos));
    BW_TRY(read_id(tokenizer, gguf, "tokenizer.ggml.bos_token_id", &bos));
    if (bos >= 0 && bw_gguf_number(gguf, "tokenizer.ggml.add_bos_token", row->adds_bos) != 0)
        BW_TRY(bw_tokens_add(&tokenizer->prefix, bos));
    if (eos >= 0 && bw_gguf_number(gguf, "tokenizer.ggml.add_eos_token", 0) != 0)
        BW_TRY(bw_tokens_add(&tokenizer->suffix, eos));
    return bw_tokenizer_finish(tokenizer, eos);
}

int bw_tokenizer_from_gguf(bw_tokenizer **out, const bw_tensors *gguf)
{
    bw_tokenizer *tokenizer = NULL;
    int status;
    *out = NULL;
    BW_GO(bw_tokenizer_new(&tokenizer, bw_tensors_path(gguf)));
    BW_GO(load(tokenizer, gguf));
    *out = tokenizer;
    tokenizer = NULL;
done:
    bw_tokenizer_free(tokenizer);
    return status;
}
