/* Perplexity of expected answers. The batch is the unit of arithmetic, as in training: ranks take whole batches, and the batches' losses are
 * added in their own order. */
#include "post/inside.h"
#include <math.h>
#include <string.h>

static const char purpose[] = "evaluation";

typedef struct walk {
    const bw_grid *grid;
    bw_dataset dataset;
    bw_transformer *transformer;
    bw_batch batch;
    int64_t *samples; /* 0, 1, 2, ... */
    int32_t *group;   /* all 0: a batch is not cut */
    int64_t *losses;  /* a double's bits per batch, 0 where another rank did it */
    int64_t size, batches, answers;
} walk;

static int64_t samples_of(const walk *w, int64_t batch)
{
    int64_t left = w->dataset.count - batch * w->size;
    return left < 0 ? 0 : left < w->size ? left : w->size;
}

/* Tokens and answer tokens of the largest batch. */
static void largest_batch(const walk *w, int64_t *tokens, int64_t *answers)
{
    *tokens = *answers = 1;
    for (int64_t b = 0; b < w->batches; ++b) {
        int64_t t = 0, a = 0;
        for (int64_t i = 0; i < samples_of(w, b); ++i) {
            const bw_sample *sample = &w->dataset.samples[b * w->size + i];
            t += sample->length;
            a += sample->length - sample->prompt_length;
        }
        *tokens = t > *tokens ? t : *tokens;
        *answers = a > *answers ? a : *answers;
    }
}

static int prepare(walk *w, bw_store *store, const bw_tokenizer *tokenizer, bw_template which, const char *path, const bw_config *config)
{
    bw_list paths = {.count = 1};
    paths.items[0] = (char *)(uintptr_t)path; /* only read */
    BW_TRY(bw_dataset_load(&w->dataset, tokenizer, &paths, which, config->max_length, "drop"));
    if (config->limit > 0 && w->dataset.count > config->limit)
        w->dataset.count = config->limit;
    w->size = config->eval_batch;
    w->batches = (w->dataset.count + w->size - 1) / w->size;
    int64_t tokens, answers;
    largest_batch(w, &tokens, &answers);
    BW_TRY(BW_NEW(w->losses, w->batches, purpose));
    BW_TRY(BW_NEW(w->samples, w->dataset.count, purpose));
    BW_TRY(BW_NEW(w->group, w->size, purpose));
    for (int64_t i = 0; i < w->dataset.count; ++i)
        w->samples[i] = i;
    BW_TRY(bw_batch_create(&w->batch, tokens, (int32_t)w->size));
    return bw_transformer_create(&w->transformer, store, NULL, tokens, answers, false, false);
}

/* One batch of this rank, or none where it has none left and the store needs everybody. */
static int run_batch(walk *w, int64_t index)
{
    int64_t count = samples_of(w, index);
    double loss = 0;
    BW_TRY(bw_batch_fill(&w->batch, &w->dataset, count ? w->samples + index * w->size : w->samples, w->group, count, 0));
    BW_TRY(bw_transformer_loss(w->transformer, &w->batch, &loss, NULL));
    if (count == 0)
        return BW_OK;
    memcpy(&w->losses[index], &loss, sizeof loss);
    w->answers += w->batch.answers;
    return BW_OK;
}

static int run_all(walk *w, bool together, double time_limit)
{
    bw_rounds rounds = bw_rounds_begin(time_limit);
    int status = BW_OK;
    for (int64_t first = 0; first < w->batches && status == BW_OK; first += w->grid->size) {
        int64_t index = first + w->grid->rank, done = first + w->grid->size < w->batches ? first + w->grid->size : w->batches;
        if (together || index < w->batches)
            status = run_batch(w, index);
        bw_progress("eval: perplexity, %lld of %lld batches", (long long)done, (long long)w->batches);
        if (status == BW_OK)
            status = bw_rounds_next(&rounds, "eval, batches of the perplexity", done, w->batches);
        status = bw_agree(w->grid, status);
    }
    return status;
}

static int add_up(walk *w, double *perplexity, int64_t *tokens)
{
    double sum = 0;
    BW_TRY(bw_sum_ints(w->grid, w->losses, (int)w->batches)); /* one owner each: the bits stay */
    BW_TRY(bw_sum_ints(w->grid, &w->answers, 1));
    for (int64_t i = 0; i < w->batches; ++i) {
        double loss;
        memcpy(&loss, &w->losses[i], sizeof loss);
        sum += loss;
    }
    *tokens = w->answers;
    *perplexity = w->answers ? exp(sum / (double)w->answers) : 0;
    return BW_OK;
}

int bw_perplexity(const bw_grid *grid, bw_store *store, const bw_tokenizer *tokenizer, bw_template which, const char *path, const bw_config *config,
                  double *perplexity, int64_t *tokens)
{
    walk w = {.grid = grid};
    int status;
    BW_GO(bw_agree(grid, prepare(&w, store, tokenizer, which, path, config)));
    BW_GO(run_all(&w, bw_store_streams(store), config->time_limit));
    BW_GO(add_up(&w, perplexity, tokens));
done:
    bw_transformer_free(&w.transformer);
    bw_batch_free(&w.batch);
    bw_dataset_free(&w.dataset);
    bw_free(w.samples);
    bw_free(w.group);
    bw_free(w.losses);
    return status;
}
