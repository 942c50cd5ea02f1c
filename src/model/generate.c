/* model/generate.c - greedy decoding in batches with a KV cache.
 *
 * A pass runs rows of several sequences through all layers: whole prompts first (prefill), then one row a sequence. Both
 * go the same way; only the number of rows a sequence brings differs. */
#include "block.h"
#include "head.h"
#include <string.h>

enum { LEAST_SHARED = 16 };     /* tokens that all prompts of a batch begin with: from here on they are computed once */
enum { PREFILL_TOKENS = 2048 }; /* rows of one prefill pass, a longer prompt apart: bounds the scratch, not the answers */

typedef struct sequence {
    const bw_tokens *prompt;
    bw_answer *answer;
    int64_t place, room; /* its first key in the cache of a layer, and for how many there is room */
    int32_t length;      /* keys in the cache */
    int32_t next;        /* token to be fed next */
    bool active;
} sequence;

typedef struct run {
    int slot, rows;
    int64_t first;
} run; /* consecutive rows of a pass that belong to one sequence */

typedef struct decoder {
    const bw_grid *grid;
    bw_store *store;
    const bw_spec *spec;
    bw_block block;
    bw_saved saved;
    bw_head head;
    int64_t max_rows, cache_keys;
    float *x;
    bw_cache cache;                    /* [layer][cache_keys * n_kv * head_dim]; sequences lie one behind the other */
    float *normed, *inv_rms, *highest; /* one row a sequence */
    int32_t *best;
    float *scratch; /* of the head */
    int32_t *tokens, *positions;
    run *runs;
    int n_runs;
    int64_t T;
    sequence *sequences;
} decoder;

static void decoder_free(decoder *d)
{
    bw_head_free(&d->head, d->grid);
    bw_saved_free(&d->saved);
    bw_block_free(&d->block);
    void *owned[] = {d->x,    d->cache.k, d->cache.v, d->normed,    d->inv_rms, d->highest,
                     d->best, d->scratch, d->tokens,  d->positions, d->runs,    d->sequences};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        bw_free(owned[i]);
}

/* cache_keys: of the batch that needs most; max_prompt: the longest prompt. */
static int decoder_create(decoder *d, const bw_grid *grid, bw_store *store, int64_t max_prompt, int64_t max_new, int64_t batch, int64_t cache_keys)
{
    const bw_spec *spec = bw_store_spec(store);
    int64_t C = spec->d_model;
    int64_t rows = max_prompt > PREFILL_TOKENS ? max_prompt : PREFILL_TOKENS;
    *d = (decoder){.grid = grid, .store = store, .spec = spec, .cache_keys = cache_keys};
    d->max_rows = rows < max_prompt * batch ? rows : max_prompt * batch;
    d->max_rows = d->max_rows > batch ? d->max_rows : batch;
    BW_TRY(bw_block_create(&d->block, store, NULL, d->max_rows, max_prompt + max_new));
    BW_TRY(bw_saved_create(&d->saved, spec, NULL, d->max_rows));
    BW_TRY(BW_NEW(d->x, d->max_rows * C, "activations"));
    const int64_t cache_bytes = bw_cache_bytes(spec->n_layer * cache_keys * spec->n_kv * spec->head_dim);
    d->cache = bw_cache_in(bw_calloc(cache_bytes, 1, "KV cache"), bw_calloc(cache_bytes, 1, "KV cache"), 0);
    BW_TRY(d->cache.k && d->cache.v ? BW_OK : BW_SYSTEM);
    BW_TRY(BW_NEW(d->normed, batch * C, "activations"));
    BW_TRY(BW_NEW(d->inv_rms, batch, "activations"));
    BW_TRY(BW_NEW(d->highest, batch, "activations"));
    BW_TRY(BW_NEW(d->best, batch, "activations"));
    BW_TRY(BW_NEW(d->scratch, bw_head_scratch(spec, batch), "activations"));
    BW_TRY(BW_NEW(d->tokens, d->max_rows, "activations"));
    BW_TRY(BW_NEW(d->positions, d->max_rows, "activations"));
    BW_TRY(BW_NEW(d->runs, batch, "activations"));
    return BW_NEW(d->sequences, batch, "activations");
}

/* ---- one pass ---------------------------------------------------------------------------------------------------------*/

static void pass_begin(decoder *d)
{
    d->n_runs = 0, d->T = 0;
}

static void pass_add(decoder *d, int slot, const int32_t *tokens, int32_t count)
{
    sequence *s = &d->sequences[slot];
    d->runs[d->n_runs++] = (run){.slot = slot, .rows = count, .first = d->T};
    for (int32_t i = 0; i < count; i++) {
        d->tokens[d->T + i] = tokens[i];
        d->positions[d->T + i] = s->length + i;
    }
    d->T += count;
}

/* The part of a sequence in a layer. */
static bw_cache cache_of(const decoder *d, int layer, int slot)
{
    const sequence *s = &d->sequences[slot];
    bw_cache cache = bw_cache_at(d->cache, (layer * d->cache_keys + s->place) * d->spec->n_kv * d->spec->head_dim);
    cache.head = s->room * d->spec->head_dim;
    return cache;
}

static void attend_run(decoder *d, int layer, const run *r)
{
    const int64_t query = (int64_t)d->spec->n_head * d->spec->head_dim, width = (int64_t)d->spec->n_kv * d->spec->head_dim;
    const int32_t before = d->sequences[r->slot].length;
    const bw_cache cache = cache_of(d, layer, r->slot);
    bw_cache_write(&d->block.attention, cache, before, r->rows, d->saved.k + r->first * width, d->saved.v + r->first * width);
    bw_attention_cached(&d->block.attention, d->saved.mixed + r->first * query, d->saved.q + r->first * query, query, r->rows, cache,
                        before + r->rows);
}

/* Threads share out the sequences; a sequence alone (a long prompt) is shared out inside. */
static void attend(decoder *d, int layer)
{
#pragma omp parallel for schedule(dynamic) if (d->n_runs > 1)
    for (int i = 0; i < d->n_runs; i++)
        attend_run(d, layer, &d->runs[i]);
}

/* Beyond the keys and values of the last layer only the last row of a sequence counts: those become the rows of the pass. */
static void keep_last_rows(decoder *d)
{
    const int64_t C = d->spec->d_model, query = (int64_t)d->spec->n_head * d->spec->head_dim;
    for (int i = 0; i < d->n_runs; i++) {
        const int64_t last = d->runs[i].first + d->runs[i].rows - 1;
        memmove(d->x + i * C, d->x + last * C, (size_t)C * sizeof(float));
        memmove(d->saved.mixed + i * query, d->saved.mixed + last * query, (size_t)query * sizeof(float));
    }
    d->T = d->n_runs;
}

/* The next token of every sequence in the pass, from its row. */
static void choose(decoder *d)
{
    bw_rmsnorm_forward(d->normed, d->inv_rms, d->x, bw_store_norm(d->store), d->spec->norm_add_one, (float)d->spec->norm_eps, d->n_runs,
                       d->spec->d_model);
    bw_head_choose(&d->head, d->n_runs, d->normed, d->scratch, d->highest, d->best);
    for (int i = 0; i < d->n_runs; i++) {
        sequence *s = &d->sequences[d->runs[i].slot];
        s->length += d->runs[i].rows;
        s->next = d->best[i];
    }
}

/* All layers, which fill the cache; the last hidden row of each sequence is in x. */
static int pass_layers(decoder *d)
{
    bw_rows_of rows = {.T = d->T, .positions = d->positions};
    bw_embed(d->x, bw_store_embedding(d->store), d->tokens, d->T, d->spec->d_model, (float)d->spec->embed_scale);
    for (int layer = 0; layer < d->spec->n_layer; layer++) {
        bw_layer weights;
        BW_TRY(bw_store_acquire(d->store, layer, (layer + 1) % d->spec->n_layer, BW_FORWARD, &weights));
        bw_block_inputs_forward(&d->block, &rows, &weights, layer, d->x, &d->saved);
        attend(d, layer);
        if (layer == d->spec->n_layer - 1)
            keep_last_rows(d);
        rows.T = d->T;
        bw_block_output_forward(&d->block, &rows, &weights, layer, d->x, &d->saved, d->x);
        BW_TRY(bw_store_release(d->store, layer));
    }
    return BW_OK;
}

static int pass_run(decoder *d)
{
    BW_TRY(pass_layers(d));
    choose(d);
    return BW_OK;
}

/* ---- one batch ------------------------------------------------------------------------------------------------------- */

/* A streamed store makes every pass collective, so ranks that have nothing left must go on until all are done. */
static int anyone(const decoder *d, bool mine, bool *result)
{
    int64_t flag = mine;
    if (bw_store_streams(d->store))
        BW_TRY(bw_max_ints(d->grid, &flag, 1));
    *result = flag != 0;
    return BW_OK;
}

static bool stops(int32_t token, const int32_t *stop, int n_stop)
{
    for (int i = 0; i < n_stop; i++)
        if (token == stop[i])
            return true;
    return false;
}

static void take_next(sequence *s, int64_t max_new, const int32_t *stop, int n_stop)
{
    if (stops(s->next, stop, n_stop)) {
        s->answer->ended = true;
        s->active = false;
        return;
    }
    s->answer->tokens[s->answer->count++] = s->next;
    s->active = s->answer->count < max_new;
}

/* Tokens that all prompts of the batch begin with, one less than the shortest at most: the template, the words of a task. */
static int32_t shared_beginning(const decoder *d, int count)
{
    const bw_tokens *first = d->sequences[0].prompt;
    int64_t shared = count > 1 ? first->count - 1 : 0;
    for (int slot = 1; slot < count; slot++) {
        const bw_tokens *prompt = d->sequences[slot].prompt;
        int64_t same = 0;
        shared = shared < prompt->count - 1 ? shared : prompt->count - 1;
        while (same < shared && prompt->ids[same] == first->ids[same])
            same++;
        shared = same;
    }
    return shared >= LEAST_SHARED ? (int32_t)shared : 0;
}

/* Keys [0, keys) of the first sequence to every other one. */
static void copy_beginning(decoder *d, int count, int32_t keys)
{
    for (int layer = 0; layer < d->spec->n_layer; layer++)
        for (int slot = 1; slot < count; slot++)
            bw_cache_copy(&d->block.attention, cache_of(d, layer, slot), cache_of(d, layer, 0), keys);
    for (int slot = 0; slot < count; slot++)
        d->sequences[slot].length = keys;
}

static int prefill_beginning(decoder *d, int count)
{
    bool any;
    int32_t shared = shared_beginning(d, count);
    BW_TRY(anyone(d, shared > 0, &any));
    if (!any)
        return BW_OK;
    pass_begin(d);
    if (shared > 0)
        pass_add(d, 0, d->sequences[0].prompt->ids, shared);
    BW_TRY(pass_layers(d));
    if (shared > 0)
        copy_beginning(d, count, shared);
    return BW_OK;
}

static int prefill(decoder *d, int count, int64_t max_new, const int32_t *stop, int n_stop)
{
    int slot = 0;
    for (;;) {
        bool more;
        BW_TRY(anyone(d, slot < count, &more));
        if (!more)
            return BW_OK;
        pass_begin(d);
        int first = slot;
        while (slot < count && (d->T == 0 || d->T + d->sequences[slot].prompt->count - d->sequences[slot].length <= d->max_rows)) {
            const sequence *s = &d->sequences[slot];
            pass_add(d, slot, s->prompt->ids + s->length, (int32_t)s->prompt->count - s->length);
            slot++;
        }
        BW_TRY(pass_run(d));
        for (int i = first; i < slot; i++)
            take_next(&d->sequences[i], max_new, stop, n_stop);
    }
}

static int decode(decoder *d, int count, int64_t max_new, const int32_t *stop, int n_stop)
{
    for (;;) {
        pass_begin(d);
        for (int slot = 0; slot < count; slot++)
            if (d->sequences[slot].active)
                pass_add(d, slot, &d->sequences[slot].next, 1);
        bool more;
        BW_TRY(anyone(d, d->T > 0, &more));
        if (!more)
            return BW_OK;
        BW_TRY(pass_run(d));
        for (int i = 0; i < d->n_runs; i++)
            take_next(&d->sequences[d->runs[i].slot], max_new, stop, n_stop);
    }
}

static int batch_run(decoder *d, const bw_tokens *prompts, bw_answer *answers, int count, int64_t max_new, const int32_t *stop, int n_stop)
{
    int64_t place = 0;
    for (int i = 0; i < count; i++) {
        d->sequences[i] = (sequence){.prompt = &prompts[i], .answer = &answers[i], .place = place, .room = bw_cache_room(prompts[i].count + max_new)};
        place += d->sequences[i].room;
    }
    BW_TRY(prefill_beginning(d, count));
    BW_TRY(prefill(d, count, max_new, stop, n_stop));
    return decode(d, count, max_new, stop, n_stop);
}

/* Batches [first, first + count) of this rank in a round. */
static int64_t share(const bw_grid *grid, int64_t round, int64_t batch, int64_t count, int64_t *first)
{
    *first = (round * grid->size + grid->rank) * batch;
    int64_t left = count - *first;
    if (left <= 0)
        *first = 0;
    return left <= 0 ? 0 : left < batch ? left : batch;
}

/* All memory is had before the first collective pass: a rank that fails inside a pass would leave the others waiting. */
static int answers_create(const bw_grid *grid, int64_t rounds, int64_t batch, int64_t count, int64_t max_new, bw_answer *answers)
{
    for (int64_t round = 0; round < rounds; round++) {
        int64_t first, mine = share(grid, round, batch, count, &first);
        for (int64_t i = first; i < first + mine; i++)
            BW_TRY(BW_NEW(answers[i].tokens, max_new, "answers"));
    }
    return BW_OK;
}

static int64_t longest(const bw_tokens *prompts, int64_t count)
{
    int64_t most = 1;
    for (int64_t i = 0; i < count; i++)
        most = prompts[i].count > most ? prompts[i].count : most;
    return most;
}

/* Keys that the cache of a layer has room for, with the largest batch of this rank: one long prompt takes its own room, and not that of its batch. */
static int64_t most_cache_keys(const bw_grid *grid, const bw_tokens *prompts, int64_t rounds, int64_t batch, int64_t count, int64_t max_new)
{
    int64_t most = 0;
    for (int64_t round = 0; round < rounds; round++) {
        int64_t first, mine = share(grid, round, batch, count, &first), keys = 0;
        for (int64_t i = first; i < first + mine; i++)
            keys += bw_cache_room(prompts[i].count + max_new);
        most = keys > most ? keys : most;
    }
    return most;
}

int bw_generate(const bw_grid *grid, bw_store *store, const bw_tokens *prompts, int64_t count, int64_t batch, int64_t max_new, const int32_t *stop,
                int n_stop, bw_answer *answers, int (*after)(void *context, int64_t done, int64_t of), void *context)
{
    BW_ASSERT(batch > 0 && max_new > 0);
    for (int64_t i = 0; i < count; i++)
        BW_ASSERT(prompts[i].count > 0);
    decoder d = {0};
    int64_t batches = (count + batch - 1) / batch, rounds = (batches + grid->size - 1) / grid->size;
    double start = bw_now(), flops = bw_gemm_flops();
    int status = answers_create(grid, rounds, batch, count, max_new, answers);
    if (status == BW_OK)
        status = decoder_create(&d, grid, store, longest(prompts, count), max_new,
                                batch < count ? batch
                                : count > 0   ? count
                                              : 1,
                                most_cache_keys(grid, prompts, rounds, batch, count, max_new));
    status = bw_agree(grid, status);
    if (status == BW_OK)
        status = bw_head_create(&d.head, grid, store);
    for (int64_t round = 0; status == BW_OK && round < rounds; round++) {
        int64_t first, mine = share(grid, round, batch, count, &first);
        status = batch_run(&d, prompts + first, answers + first, (int)mine, max_new, stop, n_stop);
        int64_t done = (round + 1) * grid->size * batch;
        if (after && status == BW_OK)
            status = after(context, done < count ? done : count, count);
        status = bw_agree(grid, status);
    }
    decoder_free(&d);
    bw_event_add(BW_EVENT_GENERATE, bw_now() - start, bw_gemm_flops() - flops, 0);
    return status;
}

void bw_answers_free(bw_answer *answers, int64_t count)
{
    for (int64_t i = 0; answers && i < count; i++)
        bw_free(answers[i].tokens);
    bw_free(answers);
}
