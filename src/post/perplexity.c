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
    int64_t *losses;  /* a double's bits per batch, 0 where another rank did it; rank 0 did what was kept */
    int64_t size, batches, done, tokens;
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
    w->tokens += w->batch.answers;
    return BW_OK;
}

static int run_all(walk *w, bool together, double time_limit)
{
    bw_rounds rounds = bw_rounds_begin(time_limit);
    int status = BW_OK;
    while (w->done < w->batches && status == BW_OK) {
        int64_t index = w->done + w->grid->rank, done = w->done + w->grid->size;
        if (together || index < w->batches)
            status = run_batch(w, index);
        w->done = done < w->batches ? done : w->batches;
        bw_progress("eval: perplexity, %lld of %lld batches", (long long)w->done, (long long)w->batches);
        if (status == BW_OK)
            status = bw_rounds_next(&rounds, "eval, batches of the perplexity", w->done, w->batches);
        status = bw_agree(w->grid, status);
    }
    return status;
}

/* What was kept is in the walk of rank 0, as if that rank had done it. */
static int take(walk *w, const bw_perplexity *p)
{
    w->done = p->done;
    if (w->done > w->batches)
        return bw_fail(BW_DATA, "eval: %lld batches of the perplexity were kept, of %lld: delete answers.part to do it again", (long long)w->done,
                       (long long)w->batches);
    if (w->grid->rank == 0 && w->done > 0) {
        memcpy(w->losses, p->losses, (size_t)w->done * sizeof *w->losses);
        w->tokens = p->tokens;
    }
    return BW_OK;
}

/* Each batch has one owner, so sums keep the bits. */
static int give(walk *w, bw_perplexity *p)
{
    BW_TRY(bw_sum_ints(w->grid, w->losses, (int)w->done));
    BW_TRY(bw_sum_ints(w->grid, &w->tokens, 1));
    bw_free(p->losses);
    *p = (bw_perplexity){w->done, w->tokens, w->losses};
    w->losses = NULL;
    return BW_OK;
}

int bw_perplexity_measure(const bw_grid *grid, bw_store *store, const bw_tokenizer *tokenizer, bw_template which, const char *path,
                          const bw_config *config, bw_perplexity *p)
{
    walk w = {.grid = grid};
    int status = prepare(&w, store, tokenizer, which, path, config);
    if (status == BW_OK)
        status = take(&w, p);
    BW_GO(bw_agree(grid, status));
    status = run_all(&w, bw_store_streams(store), config->time_limit);
    if (status == BW_OK || status == BW_STOPPED) {
        int given = give(&w, p);
        status = given == BW_OK ? status : given;
    }
done:
    bw_transformer_free(&w.transformer);
    bw_batch_free(&w.batch);
    bw_dataset_free(&w.dataset);
    bw_free(w.samples);
    bw_free(w.group);
    bw_free(w.losses);
    return status;
}

double bw_perplexity_value(const bw_perplexity *p)
{
    double sum = 0, loss;
    for (int64_t i = 0; i < p->done; ++i) {
        memcpy(&loss, &p->losses[i], sizeof loss);
        sum += loss;
    }
    return p->tokens ? exp(sum / (double)p->tokens) : 0;
}

int bw_perplexity_keep(const bw_perplexity *p, bw_text *out)
{
    bw_text bytes = {0};
    int status = bw_text_add(&bytes, &p->tokens, sizeof p->tokens);
    if (status == BW_OK && p->done > 0)
        status = bw_text_add(&bytes, p->losses, (size_t)p->done * sizeof *p->losses);
    if (status == BW_OK)
        status = bw_kept_add(out, p->done, bytes.data, (int64_t)bytes.length);
    bw_text_free(&bytes);
    return status;
}

int bw_perplexity_restore(bw_perplexity *p, bw_kept *kept)
{
    const char *bytes;
    int64_t length;
    BW_TRY(bw_kept_next(kept, INT32_MAX, &p->done, &bytes, &length));
    if (length != (p->done + 1) * (int64_t)sizeof *p->losses)
        return bw_fail(BW_DATA, "%s: %lld bytes for %lld batches of the perplexity; delete the file to do it again", kept->path, (long long)length,
                       (long long)p->done);
    memcpy(&p->tokens, bytes, sizeof p->tokens);
    BW_TRY(BW_NEW(p->losses, p->done, purpose));
    memcpy(p->losses, bytes + sizeof p->tokens, (size_t)p->done * sizeof *p->losses);
    return BW_OK;
}

void bw_perplexity_free(bw_perplexity *p)
{
    bw_free(p->losses);
    *p = (bw_perplexity){0};
}
