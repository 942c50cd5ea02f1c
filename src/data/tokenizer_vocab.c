/* tokenizer_vocab.c - the two hash tables of a tokenizer. Both are filled once and at most half full. */
#include "data/tokenizer_parts.h"

#include <string.h>

static uint64_t table_size(int64_t count)
{
    uint64_t size = 16;
    while (size < 2 * (uint64_t)count)
        size *= 2;
    return size;
}

/* A token in a message: its first bytes, as %.*s takes them. */
static int shown(size_t length)
{
    return length < 60 ? (int)length : 60;
}

/* ---- text <-> id --------------------------------------------------------------------------------------------------*/
int bw_vocab_create(bw_vocab *vocab, int32_t limit)
{
    uint64_t size = table_size(limit);
    *vocab = (bw_vocab){.limit = limit, .mask = size - 1};
    BW_TRY(BW_NEW(vocab->starts, limit, "tokenizer"));
    BW_TRY(BW_NEW(vocab->lengths, limit, "tokenizer"));
    BW_TRY(BW_NEW(vocab->slots, size, "tokenizer"));
    for (int32_t id = 0; id < limit; id++)
        vocab->lengths[id] = -1;
    for (uint64_t i = 0; i < size; i++)
        vocab->slots[i] = -1;
    return BW_OK;
}

void bw_vocab_free(bw_vocab *vocab)
{
    bw_text_free(&vocab->bytes);
    bw_free(vocab->starts);
    bw_free(vocab->lengths);
    bw_free(vocab->slots);
    *vocab = (bw_vocab){0};
}

const char *bw_vocab_text(const bw_vocab *vocab, int32_t id, size_t *length)
{
    if (id < 0 || id >= vocab->limit || vocab->lengths[id] < 0)
        return NULL;
    *length = (size_t)vocab->lengths[id];
    return *length ? vocab->bytes.data + vocab->starts[id] : "";
}

/* The slot that holds the text, or the empty one where it would go. */
static uint64_t vocab_slot(const bw_vocab *vocab, const char *text, size_t length)
{
    uint64_t slot = bw_hash_bytes(text, length).low & vocab->mask;
    for (; vocab->slots[slot] >= 0; slot = (slot + 1) & vocab->mask) {
        size_t held_length = 0;
        const char *held = bw_vocab_text(vocab, vocab->slots[slot], &held_length);
        if (held_length == length && memcmp(held, text, length) == 0)
            break;
    }
    return slot;
}

int32_t bw_vocab_find(const bw_vocab *vocab, const char *text, size_t length)
{
    return vocab->slots ? vocab->slots[vocab_slot(vocab, text, length)] : -1;
}

int bw_vocab_add(bw_vocab *vocab, int32_t id, const char *text, size_t length, const char *where)
{
    if (id < 0 || id >= vocab->limit || length > INT32_MAX)
        return bw_fail(BW_DATA, "%s: token \"%.*s\" has the id %d; it must be from 0 to %d", where, shown(length), text, id, vocab->limit - 1);
    uint64_t slot = vocab_slot(vocab, text, length);
    if (vocab->slots[slot] == id)
        return BW_OK;
    if (vocab->slots[slot] >= 0)
        return bw_fail(BW_DATA, "%s: token \"%.*s\" is there twice, with the ids %d and %d", where, shown(length), text, vocab->slots[slot], id);
    if (vocab->lengths[id] >= 0)
        return bw_fail(BW_DATA, "%s: the id %d is used by two tokens; one is \"%.*s\"", where, id, shown(length), text);
    vocab->starts[id] = vocab->bytes.length;
    BW_TRY(bw_text_add(&vocab->bytes, text, length));
    vocab->lengths[id] = (int32_t)length;
    vocab->slots[slot] = id;
    return BW_OK;
}

/* ---- pairs --------------------------------------------------------------------------------------------------------*/
int bw_merges_create(bw_merges *merges, int64_t count)
{
    uint64_t size = table_size(count);
    *merges = (bw_merges){.mask = size - 1};
    BW_TRY(BW_NEW(merges->slots, size, "tokenizer"));
    for (uint64_t i = 0; i < size; i++)
        merges->slots[i].rank = -1;
    return BW_OK;
}

void bw_merges_free(bw_merges *merges)
{
    bw_free(merges->slots);
    *merges = (bw_merges){0};
}

static bw_merge *merge_slot(const bw_merges *merges, uint64_t pair)
{
    uint64_t slot = (pair * 0x9E3779B97F4A7C15u) >> 32 & merges->mask; /* Fibonacci hashing: the upper half mixes both ids */
    while (merges->slots[slot].rank >= 0 && merges->slots[slot].pair != pair)
        slot = (slot + 1) & merges->mask;
    return &merges->slots[slot];
}

static uint64_t pair_of(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

void bw_merges_add(bw_merges *merges, int32_t left, int32_t right, int32_t rank, int32_t id)
{
    uint64_t pair = pair_of(left, right);
    *merge_slot(merges, pair) = (bw_merge){pair, rank, id};
}

const bw_merge *bw_merges_find(const bw_merges *merges, int32_t left, int32_t right)
{
    const bw_merge *merge = merge_slot(merges, pair_of(left, right));
    return merge->rank < 0 ? NULL : merge;
}

int bw_merges_add_text(bw_merges *merges, const bw_vocab *vocab, int32_t rank, const char *left, size_t left_length, const char *right,
                       size_t right_length, const char *where)
{
    bw_text both = {0};
    int status;
    BW_GO(bw_text_add(&both, left, left_length));
    BW_GO(bw_text_add(&both, right, right_length));
    int32_t parts[] = {bw_vocab_find(vocab, left, left_length), bw_vocab_find(vocab, right, right_length),
                       bw_vocab_find(vocab, both.data ? both.data : "", both.length)};
    if (parts[0] < 0 || parts[1] < 0 || parts[2] < 0)
        BW_GO(bw_fail(BW_DATA, "%s: merge %d makes \"%.*s\", but %s is not in the vocabulary", where, rank, shown(both.length),
                      both.data ? both.data : "", parts[2] < 0 ? "that token" : "one of its two parts"));
    bw_merges_add(merges, parts[0], parts[1], rank, parts[2]);
done:
    bw_text_free(&both);
    return status;
}
