/* tokenizer_bpe.c - a word's bytes, merged pair by pair: the lowest rank first, the leftmost among equals. A heap holds the pairs
 * that can merge, so a word of n bytes takes n log n steps; entries that other merges have outdated are skipped when they come up. */
#include "data/tokenizer_parts.h"

#include <string.h>

static bool before(const bw_candidate *a, const bw_candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void heap_push(bw_coder *coder, bw_candidate candidate)
{
    int64_t place = coder->heap_count++;
    for (; place > 0 && before(&candidate, &coder->heap[(place - 1) / 2]); place = (place - 1) / 2)
        coder->heap[place] = coder->heap[(place - 1) / 2];
    coder->heap[place] = candidate;
}

static bw_candidate heap_pop(bw_coder *coder)
{
    bw_candidate *heap = coder->heap, top = heap[0], moved = heap[--coder->heap_count];
    int64_t place = 0, count = coder->heap_count;
    for (int64_t child = 1; child < count; child = 2 * place + 1) {
        child += child + 1 < count && before(&heap[child + 1], &heap[child]);
        if (!before(&heap[child], &moved))
            break;
        heap[place] = heap[child];
        place = child;
    }
    heap[place] = moved;
    return top;
}

/* Offer the pair that begins at symbol `at`, if it merges. */
static void offer(bw_coder *coder, int32_t at)
{
    if (at < 0 || coder->symbols[at].after < 0)
        return;
    const bw_merge *merge = bw_merges_find(&coder->tokenizer->merges, coder->symbols[at].id, coder->symbols[coder->symbols[at].after].id);
    if (merge)
        heap_push(coder, (bw_candidate){merge->rank, at, merge->id});
}

/* The entry is outdated when its pair is no longer there, or is another one by now. */
static bool stands(const bw_coder *coder, const bw_candidate *candidate)
{
    const bw_symbol *left = &coder->symbols[candidate->at];
    if (left->id < 0 || left->after < 0)
        return false;
    const bw_merge *merge = bw_merges_find(&coder->tokenizer->merges, left->id, coder->symbols[left->after].id);
    return merge && merge->id == candidate->id;
}

static void merge_all(bw_coder *coder, int32_t count)
{
    bw_symbol *symbols = coder->symbols;
    coder->heap_count = 0;
    for (int32_t i = 0; i < count; i++)
        offer(coder, i);
    while (coder->heap_count) {
        bw_candidate top = heap_pop(coder);
        if (!stands(coder, &top))
            continue;
        bw_symbol *left = &symbols[top.at], *right = &symbols[left->after];
        left->id = top.id;
        left->after = right->after;
        right->id = -1;
        if (left->after >= 0)
            symbols[left->after].before = top.at;
        offer(coder, left->before);
        offer(coder, top.at);
    }
}

/* Each of the n-1 pairs is offered once, and each of at most n-1 merges offers two more. */
static int reserve(bw_coder *coder, size_t length)
{
    if ((int64_t)length <= coder->capacity)
        return BW_OK;
    int64_t capacity = 2 * (int64_t)length + 64;
    bw_free(coder->symbols);
    bw_free(coder->heap);
    coder->symbols = NULL;
    coder->heap = NULL;
    coder->capacity = 0;
    BW_TRY(BW_NEW(coder->symbols, capacity, "tokenizer"));
    BW_TRY(BW_NEW(coder->heap, 3 * capacity, "tokenizer"));
    coder->capacity = capacity;
    return BW_OK;
}

static int32_t append(bw_coder *coder, int32_t count, int32_t id)
{
    coder->symbols[count] = (bw_symbol){id, count - 1, -1};
    if (count > 0)
        coder->symbols[count - 1].after = count;
    return count + 1;
}

/* The word's bytes as symbols. The unit that is unknown is a character of the byte-level alphabet: a byte. */
static int32_t first_symbols(bw_coder *coder, const char *word, size_t length)
{
    const bw_tokenizer *tokenizer = coder->tokenizer;
    int32_t count = 0;
    bool in_unknown = false;
    for (size_t i = 0; i < length; i++) {
        int32_t id = tokenizer->byte_ids[(uint8_t)word[i]];
        if (id >= 0)
            count = append(coder, count, id);
        else if (tokenizer->unknown >= 0 && !(in_unknown && tokenizer->fuse_unknown))
            count = append(coder, count, tokenizer->unknown);
        in_unknown = id < 0;
    }
    return count;
}

static int whole_word(bw_coder *coder, const char *word, size_t length, int32_t *id)
{
    const bw_alphabet *alphabet = &coder->tokenizer->alphabet;
    coder->word.length = 0;
    for (size_t i = 0; i < length; i++) {
        BW_TRY(bw_text_add(&coder->word, alphabet->symbols[(uint8_t)word[i]], alphabet->sizes[(uint8_t)word[i]]));
    }
    *id = bw_vocab_find(&coder->tokenizer->vocab, coder->word.data, coder->word.length);
    return BW_OK;
}

int bw_encode_word(bw_coder *coder, const char *word, size_t length)
{
    if (length == 0)
        return BW_OK;
    if (coder->tokenizer->ignore_merges) {
        int32_t id = -1;
        BW_TRY(whole_word(coder, word, length, &id));
        if (id >= 0)
            return bw_tokens_add(coder->out, id);
    }
    BW_TRY(reserve(coder, length));
    int32_t count = first_symbols(coder, word, length);
    merge_all(coder, count);
    for (int32_t i = 0; count > 0 && i >= 0; i = coder->symbols[i].after)
        BW_TRY(bw_tokens_add(coder->out, coder->symbols[i].id));
    return BW_OK;
}
