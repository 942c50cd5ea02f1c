/* batch.c - step -> samples -> micro-batches. Everything is a function of the plan (seed included) and the step, so that a
 * run resumes from one integer and no rank needs to tell another what it is going to read. */
#include "breakwater/data.h"

#include <stdlib.h>
#include <string.h>

enum { FULL_MICRO_BATCH = 512, FULL_THREAD = 256 }; /* tokens: see bw_plan_default_cut */

/* ---- which samples a step has -------------------------------------------------------------------------------------*/
typedef struct draws { /* 64-bit draws in a row under one key */
    bw_key key;
    uint32_t position;
    uint32_t left; /* unused 32-bit words of `words` */
    uint32_t words[4];
} draws;

static uint64_t draw(draws *stream)
{
    if (stream->left == 0) {
        bw_rng(&stream->key, stream->position++, stream->words);
        stream->left = 4;
    }
    stream->left -= 2;
    return (uint64_t)stream->words[stream->left] << 32 | stream->words[stream->left + 1];
}

/* Uniform in [0, bound) without bias: draws beyond the last whole multiple of `bound` are thrown away. */
static uint64_t draw_below(draws *stream, uint64_t bound)
{
    uint64_t excess = (UINT64_MAX - bound + 1) % bound; /* 2^64 mod bound */
    uint64_t value = draw(stream);
    while (value < excess)
        value = draw(stream);
    return value % bound;
}

/* The first `count` places of the epoch's permutation (Fisher-Yates from the front: later places never touch them). */
static void epoch_order(const bw_plan *plan, int64_t epoch, int64_t count, int64_t *order)
{
    draws stream = {.key = {.seed = plan->seed, .purpose = BW_PURPOSE_SHUFFLE, .step = (uint32_t)epoch}};
    for (int64_t i = 0; i < plan->samples; i++)
        order[i] = i;
    for (int64_t i = 0; i < count; i++) {
        int64_t j = i + (int64_t)draw_below(&stream, (uint64_t)(plan->samples - i));
        int64_t held = order[i];
        order[i] = order[j];
        order[j] = held;
    }
}

int64_t bw_plan_default_cut(const bw_plan *plan, const bw_dataset *dataset, int ranks, int threads)
{
    const int64_t full = threads * FULL_THREAD > FULL_MICRO_BATCH ? threads * FULL_THREAD : FULL_MICRO_BATCH;
    double tokens = plan->samples > 0 ? (double)dataset->token_count / (double)plan->samples * (double)plan->batch : 0; /* of a step */
    int64_t power = 1;
    while (power < ranks || (double)(power * full) < tokens)
        power *= 2;
    return power < plan->batch ? power : plan->batch;
}

int64_t bw_plan_steps_per_epoch(const bw_plan *plan)
{
    return plan->samples < 1 || plan->batch < 1 ? 0 : (plan->samples - 1) / plan->batch + 1;
}

/* Samples [*first, *first + result) of the epoch's permutation belong to that step of the epoch. */
static int64_t step_share(const bw_plan *plan, int64_t step_of_epoch, int64_t *first)
{
    *first = step_of_epoch * plan->batch;
    int64_t rest = plan->samples - *first;
    return rest < plan->batch ? rest : plan->batch;
}

int64_t bw_plan_step(const bw_plan *plan, int64_t step, int64_t *samples)
{
    int64_t steps = bw_plan_steps_per_epoch(plan), first = 0;
    if (steps == 0)
        return 0;
    int64_t *order = bw_calloc(plan->samples, sizeof *order, "data order");
    if (!order)
        return -1;
    int64_t count = step_share(plan, step % steps, &first);
    epoch_order(plan, step / steps, first + count, order);
    memcpy(samples, order + first, (size_t)count * sizeof *samples);
    bw_free(order);
    return count;
}

/* ---- the cut into micro-batches -----------------------------------------------------------------------------------*/
typedef struct weighed {
    int64_t length, place;
} weighed;

static int longest_first(const void *a, const void *b)
{
    const weighed *left = a, *right = b;
    if (left->length != right->length)
        return left->length > right->length ? -1 : 1;
    return left->place < right->place ? -1 : left->place > right->place;
}

typedef struct load {
    int64_t tokens, group;
} load;

typedef struct cutter { /* work space of one cut, made once for many */
    weighed *sorted;
    load *loads;     /* a heap of the groups: the lightest, of equals the first, is at its root */
    int32_t *number; /* of each group, in the end */
} cutter;

static int cutter_create(cutter *work, int64_t samples, int64_t groups)
{
    *work = (cutter){0};
    BW_TRY(BW_NEW(work->sorted, samples, "data order"));
    BW_TRY(BW_NEW(work->loads, groups, "data order"));
    return BW_NEW(work->number, groups, "data order");
}

static void cutter_free(cutter *work)
{
    bw_free(work->sorted);
    bw_free(work->loads);
    bw_free(work->number);
}

static bool lighter(const load *a, const load *b)
{
    return a->tokens != b->tokens ? a->tokens < b->tokens : a->group < b->group;
}

/* The root has grown: to its place among the others. */
static void sink_root(load *heap, int64_t count)
{
    const load held = heap[0];
    int64_t at = 0;
    for (int64_t child; (child = 2 * at + 1) < count; at = child) {
        child += child + 1 < count && lighter(&heap[child + 1], &heap[child]);
        if (lighter(&held, &heap[child]))
            break;
        heap[at] = heap[child];
    }
    heap[at] = held;
}

static int heaviest_first(const void *a, const void *b)
{
    return lighter(a, b) ? 1 : -1; /* no two are equal, for their groups are not */
}

static void number_groups(cutter *work, int64_t groups, int32_t *group, int64_t count)
{
    for (int64_t i = 0; i < groups; i++) /* of equals the first is to come first */
        work->loads[i].group = -work->loads[i].group;
    qsort(work->loads, (size_t)groups, sizeof *work->loads, heaviest_first);
    for (int64_t i = 0; i < groups; i++)
        work->number[-work->loads[i].group] = (int32_t)i;
    for (int64_t i = 0; i < count; i++)
        group[i] = work->number[group[i]];
}

/* `group` may be NULL. Returns the tokens of the heaviest group. */
static int64_t cut(cutter *work, const bw_plan *plan, const bw_dataset *dataset, const int64_t *samples, int64_t count, int32_t *group)
{
    int64_t heaviest = 0;
    for (int64_t i = 0; i < count; i++)
        work->sorted[i] = (weighed){dataset->samples[samples[i]].length, i};
    qsort(work->sorted, (size_t)count, sizeof *work->sorted, longest_first);
    for (int64_t i = 0; i < plan->micro_batches; i++)
        work->loads[i] = (load){.group = i};
    for (int64_t i = 0; i < count; i++) {
        load *to = work->loads;
        if (group)
            group[work->sorted[i].place] = (int32_t)to->group;
        to->tokens += work->sorted[i].length;
        heaviest = to->tokens > heaviest ? to->tokens : heaviest;
        sink_root(work->loads, plan->micro_batches);
    }
    if (group)
        number_groups(work, plan->micro_batches, group, count);
    return heaviest;
}

int bw_plan_cut(const bw_plan *plan, const bw_dataset *dataset, const int64_t *samples, int64_t count, int32_t *group)
{
    BW_ASSERT(plan->micro_batches > 0 && plan->micro_batches <= INT32_MAX);
    cutter work;
    int status = cutter_create(&work, count, plan->micro_batches);
    if (status == BW_OK)
        cut(&work, plan, dataset, samples, count, group);
    cutter_free(&work);
    return status;
}

int64_t bw_plan_deal(const bw_plan *plan, int64_t round, int rank, int ranks)
{
    const int64_t which = round * ranks + (round % 2 ? ranks - 1 - rank : rank);
    return which < plan->micro_batches ? which : plan->micro_batches;
}

static const int64_t most_rows = 100000000; /* are cut to learn how full micro-batches get: seconds */

/* No group of any step is fuller: the last sample came to a group that was the lightest, which is at most the mean. */
static int64_t bound(const bw_plan *plan, const bw_dataset *dataset, int64_t count)
{
    int64_t longest = 0;
    for (int64_t i = 0; i < plan->samples; i++)
        longest = dataset->samples[i].length > longest ? dataset->samples[i].length : longest;
    return count <= plan->micro_batches ? longest : longest + (count - 1) * longest / plan->micro_batches;
}

int64_t bw_plan_max_tokens(const bw_plan *plan, const bw_dataset *dataset, int64_t first, int64_t last)
{
    int64_t steps = bw_plan_steps_per_epoch(plan), most = 0, held_epoch = -1;
    if (steps == 0 || first >= last || plan->micro_batches < 1)
        return 0;
    const int64_t most_count = plan->batch < plan->samples ? plan->batch : plan->samples;
    if (last - first > most_rows / most_count)
        return bound(plan, dataset, most_count);
    int status;
    int64_t *order = NULL;
    cutter work;
    BW_GO(cutter_create(&work, most_count, plan->micro_batches));
    BW_GO(BW_NEW(order, plan->samples, "data order"));
    for (int64_t step = first; step < last; step++) {
        if (step / steps != held_epoch) {
            held_epoch = step / steps;
            epoch_order(plan, held_epoch, plan->samples, order);
        }
        int64_t from = 0, count = step_share(plan, step % steps, &from);
        int64_t tokens = cut(&work, plan, dataset, order + from, count, NULL);
        most = tokens > most ? tokens : most;
    }
done:
    bw_free(order);
    cutter_free(&work);
    return status == BW_OK ? most : -1;
}

/* ---- one micro-batch ----------------------------------------------------------------------------------------------*/
int bw_batch_create(bw_batch *batch, int64_t max_tokens, int32_t max_seq)
{
    int status;
    *batch = (bw_batch){.capacity_tokens = max_tokens, .capacity_seq = max_seq};
    BW_GO(BW_NEW(batch->tokens, max_tokens, "batch"));
    BW_GO(BW_NEW(batch->targets, max_tokens, "batch"));
    BW_GO(BW_NEW(batch->positions, max_tokens, "batch"));
    BW_GO(BW_NEW(batch->samples, max_tokens, "batch"));
    BW_GO(BW_NEW(batch->offsets, (int64_t)max_seq + 1, "batch"));
    return BW_OK;
done:
    bw_batch_free(batch);
    return status;
}

void bw_batch_free(bw_batch *batch)
{
    bw_free(batch->tokens);
    bw_free(batch->targets);
    bw_free(batch->positions);
    bw_free(batch->samples);
    bw_free(batch->offsets);
    *batch = (bw_batch){0};
}

/* Append one sample. The token at p is asked for the one at p + 1, where that is an answer token. */
static void pack(bw_batch *batch, const bw_dataset *dataset, int64_t index)
{
    const bw_sample *sample = &dataset->samples[index];
    const int32_t *tokens = dataset->tokens + sample->offset;
    for (int32_t p = 0; p < sample->length; p++) {
        int64_t t = batch->T + p;
        bool asked = p + 1 < sample->length && p + 1 >= sample->prompt_length;
        batch->tokens[t] = tokens[p];
        batch->targets[t] = asked ? tokens[p + 1] : -1;
        batch->positions[t] = p;
        batch->samples[t] = (int32_t)index;
        batch->answers += asked;
    }
    batch->T += sample->length;
    batch->offsets[++batch->n_seq] = (int32_t)batch->T;
}

int bw_batch_fill(bw_batch *batch, const bw_dataset *dataset, const int64_t *samples, const int32_t *group, int64_t count, int32_t which)
{
    batch->T = batch->answers = 0;
    batch->n_seq = 0;
    batch->offsets[0] = 0;
    for (int64_t i = 0; i < count; i++) {
        if (group[i] != which)
            continue;
        BW_ASSERT(samples[i] >= 0 && samples[i] < dataset->count);
        BW_ASSERT(batch->n_seq < batch->capacity_seq && batch->T + dataset->samples[samples[i]].length <= batch->capacity_tokens);
        pack(batch, dataset, samples[i]);
    }
    return BW_OK;
}
