/* bench/model.c - a training step and decoding on the whole model; what bounds them is the rate of its own matrix products. */
#include "bench/bench.h"
#include "breakwater/num.h"
#include <math.h>
#include <string.h>

enum { LENGTH = 219, PROMPT = 90, NEW_TOKENS = 32 }; /* of a row of GSM8K in the alpaca prompt, on average */

/* ---- a step: forward, loss, backward, and the sum of the gradients over the ranks ------------------------------------------ */

typedef struct step {
    bw_bench *bench;
    bw_adapter *adapter;
    bw_lora *lora;
    bw_transformer *transformer;
    bw_reduce *reduce;
    bw_batch batch;
    int64_t answers; /* of all ranks */
    double loss;     /* of this rank's rows */
    int *exponents;  /* of the gradient's sums */
} step;

/* This rank's share of the rows, as one micro-batch. */
static void fill_batch(step *s)
{
    const bw_grid *grid = s->bench->grid;
    bw_batch *b = &s->batch;
    int64_t vocab = s->bench->spec->vocab, rows = s->bench->config->batch;
    for (int64_t row = grid->rank; row < rows; row += grid->size) {
        for (int32_t p = 0; p < LENGTH; p++, b->T++) {
            bool asked = p + 1 >= PROMPT && p + 1 < LENGTH;
            b->tokens[b->T] = (int32_t)((row * 7919 + p * 104729 + 7) % vocab);
            b->targets[b->T] = asked ? (int32_t)((row * 7919 + (p + 1) * 104729 + 7) % vocab) : -1;
            b->positions[b->T] = p;
            b->samples[b->T] = (int32_t)row;
            b->answers += asked;
        }
        b->offsets[++b->n_seq] = (int32_t)b->T;
    }
    s->answers = rows * (LENGTH - PROMPT);
}

static int create_reduce(step *s)
{
    int tensors = bw_lora_tensors(s->lora);
    int64_t *sizes;
    int *bucket_of;
    BW_TRY(BW_NEW(sizes, tensors, "bench"));
    int status = BW_NEW(bucket_of, tensors, "bench");
    for (int layer = 0; status == BW_OK && layer < s->adapter->n_layer; layer++)
        for (int target = 0; target < BW_TARGETS; target++) {
            const bw_pair *pair = bw_adapter_pair(s->adapter, layer, (bw_target)target);
            int at = bw_lora_tensor(s->lora, layer, (bw_target)target);
            if (!pair)
                continue;
            sizes[at] = pair->A.layout.m * pair->A.layout.n;
            sizes[at + 1] = pair->B.layout.m * pair->B.layout.n;
            bucket_of[at] = bucket_of[at + 1] = layer;
        }
    status = bw_agree(s->bench->grid, status);
    if (status == BW_OK)
        status = bw_reduce_create(&s->reduce, s->bench->grid, tensors, sizes, bucket_of, s->adapter->n_layer);
    bw_free(sizes);
    bw_free(bucket_of);
    return status;
}

static int step_create(step *s, bw_bench *bench)
{
    const bw_config *config = bench->config;
    unsigned mask;
    *s = (step){.bench = bench};
    BW_TRY(bw_bench_store(bench, true));
    int64_t rows = (config->batch + bench->grid->size - 1) / bench->grid->size, most = rows * LENGTH;
    int status = bw_targets_parse(config->targets, &mask);
    if (status == BW_OK)
        status = bw_adapter_create(&s->adapter, bench->grid, bench->spec, mask, (int)config->lora_r, config->lora_alpha, 0, (int)config->block);
    BW_TRY(bw_agree(bench->grid, status));
    bw_adapter_init(s->adapter, (uint64_t)config->seed);
    BW_TRY(bw_lora_create(&s->lora, bench->grid, s->adapter));
    BW_TRY(create_reduce(s));
    status = bw_transformer_create(&s->transformer, bench->store, s->lora, most, most, true, strcmp(config->recompute, "layer") == 0);
    if (status == BW_OK)
        status = bw_batch_create(&s->batch, most, (int32_t)rows);
    if (status == BW_OK)
        status = BW_NEW(s->exponents, bw_lora_tensors(s->lora), "bench");
    BW_TRY(bw_agree(bench->grid, status));
    fill_batch(s);
    return BW_OK;
}

static void step_free(step *s)
{
    bw_batch_free(&s->batch);
    bw_transformer_free(&s->transformer);
    bw_reduce_destroy(&s->reduce);
    bw_lora_free(&s->lora);
    bw_adapter_free(&s->adapter);
    bw_free(s->exponents);
}

static int layer_done(void *context, int layer)
{
    step *s = context;
    for (int target = 0; target < BW_TARGETS; target++) {
        const bw_lora_view *view = bw_lora_at(s->lora, layer, (bw_target)target);
        int tensor = bw_lora_tensor(s->lora, layer, (bw_target)target);
        if (!view || s->batch.T == 0)
            continue;
        bw_reduce_add(s->reduce, tensor, view->dA);
        bw_reduce_add(s->reduce, tensor + 1, view->dB);
    }
    return bw_reduce_launch(s->reduce, layer);
}

static int run_step(void *context)
{
    step *s = context;
    bw_pass pass = {.seed = 1, .loss_scale = 1.0 / (double)s->answers, .done = layer_done, .context = s};
    bw_reduce_begin(s->reduce);
    BW_TRY(bw_transformer_train(s->transformer, &s->batch, &pass, &s->loss));
    return bw_reduce_finish(s->reduce);
}

/* B = h times its own gradient (before, it is zero): this rank's pieces of the pair whose A is `tensor`. */
static void move_pair(const step *s, bw_pair *pair, int tensor, double h)
{
    const int64_t *sum = bw_reduce_sum(s->reduce, tensor + 1);
    const bw_matrix *b = &pair->B;
    const bw_bcyc *l = &b->layout;
    for (int64_t c = 0; c < b->cols; c++)
        for (int64_t r = 0; r < b->rows; r++) {
            int64_t row = bw_bcyc_global(r, l->mb, b->myrow, l->nprow), col = bw_bcyc_global(c, l->nb, b->mycol, l->npcol);
            ((float *)b->data)[c * b->ld + r] = (float)(h * ldexp((double)sum[row * l->n + col], -s->exponents[tensor + 1]));
        }
}

/* The mean loss of all ranks' rows, with every B at h times its gradient. */
static int loss_at(step *s, double h, double *mean)
{
    for (int i = 0, tensor = 0; i < s->adapter->n_layer * BW_TARGETS; i++) {
        bw_pair *pair = bw_adapter_pair(s->adapter, i / BW_TARGETS, (bw_target)(i % BW_TARGETS));
        if (pair)
            move_pair(s, pair, tensor, h);
        tensor += pair ? 2 : 0;
    }
    BW_TRY(bw_lora_refresh(s->lora));
    double loss;
    BW_TRY(bw_agree(s->bench->grid, bw_transformer_loss(s->transformer, &s->batch, &loss, NULL)));
    int64_t units = llrint(loss * 0x1p30);
    BW_TRY(bw_sum_ints(s->bench->grid, &units, 1));
    *mean = (double)units * 0x1p-30 / (double)s->answers;
    return BW_OK;
}

static double square_of_slope(const step *s)
{
    double square = 0;
    for (int i = 0; i < s->adapter->n_layer * BW_TARGETS; i++) {
        int tensor = bw_lora_tensor(s->lora, i / BW_TARGETS, (bw_target)(i % BW_TARGETS));
        if (tensor < 0)
            continue;
        const bw_bcyc *l = &bw_adapter_pair(s->adapter, i / BW_TARGETS, (bw_target)(i % BW_TARGETS))->B.layout;
        const int64_t *sum = bw_reduce_sum(s->reduce, tensor + 1);
        for (int64_t j = 0; j < l->m * l->n; j++) {
            double g = ldexp((double)sum[j], -s->exponents[tensor + 1]);
            square += g * g;
        }
    }
    return square;
}

/* The loss has to fall along the gradient as the gradient says: relative error of the slope, by a central difference. */
static int check_step(step *s, double *residual)
{
    BW_TRY(bw_agree(s->bench->grid, run_step(s)));
    bw_reduce_exponents(s->reduce, s->exponents, false);
    double square = square_of_slope(s), h = 0.02 / square, up, down; /* the loss moves by 0.02 nat */
    BW_TRY(loss_at(s, h, &up));
    BW_TRY(loss_at(s, -h, &down));
    *residual = fabs((up - down) / (2 * h) / square - 1);
    double none;
    return loss_at(s, 0, &none);
}

/* Tokens a second of all ranks, had everything the rate of the matrix products. */
static int limit_of_step(step *s, double *limit)
{
    bw_bench *bench = s->bench;
    double rate, slowest, fastest;
    BW_TRY(bw_bench_gemm_rate(bench, s->batch.T, s->batch.answers, true, &rate));
    BW_TRY(bw_min_max(bench->grid, rate, &slowest, &fastest));
    int64_t totals[2] = {(int64_t)bw_transformer_flops(bench->spec, s->adapter, &s->batch, true), s->batch.T};
    BW_TRY(bw_sum_ints(bench->grid, totals, 2));
    *limit = slowest * bench->grid->size / (double)totals[0] * (double)totals[1];
    return BW_OK;
}

static int measure_step(step *s, double dropout, double limit, double residual)
{
    const bw_config *config = s->bench->config;
    bw_bench_row row = {.work = (double)config->batch * LENGTH,
                        .unit = BW_TOKENS,
                        .limit = limit,
                        .limit_name = "own gemm",
                        .residual = residual,
                        .bound = bw_gemm_is_half() ? 0.05 : 0.01};
    snprintf(row.problem, sizeof row.problem, "%lld rows of %d tokens, dropout %g", (long long)config->batch, LENGTH, dropout);
    s->adapter->dropout = dropout;
    BW_TRY(bw_bench_time(s->bench, &(bw_bench_work){.run = run_step, .context = s}, &row.times));
    return bw_bench_add(s->bench, &row);
}

int bw_bench_step(bw_bench *bench)
{
    step s = {0};
    double limit, residual;
    int status;
    BW_GO(bw_agree(bench->grid, bench->grid->size <= bench->config->batch
                                    ? BW_OK
                                    : bw_fail(BW_USAGE, "bench step: %d ranks and %lld rows: give --batch %d or more", bench->grid->size,
                                              (long long)bench->config->batch, bench->grid->size)));
    BW_GO(step_create(&s, bench));
    BW_GO(check_step(&s, &residual));
    BW_GO(limit_of_step(&s, &limit));
    BW_GO(measure_step(&s, 0, limit, residual));
    if (bench->config->lora_dropout > 0)
        BW_GO(measure_step(&s, bench->config->lora_dropout, limit, residual));
done:
    step_free(&s);
    return status;
}

/* ---- decoding ---------------------------------------------------------------------------------------------------------------- */

typedef struct decoding {
    bw_bench *bench;
    bw_tokens *prompts;
    bw_answer *answers;
    int64_t count;
} decoding;

static int decoding_create(decoding *d, bw_bench *bench)
{
    *d = (decoding){.bench = bench, .count = bench->config->eval_batch * bench->grid->size};
    BW_TRY(BW_NEW(d->prompts, d->count, "bench"));
    for (int64_t i = 0; i < d->count; i++)
        for (int p = 0; p < PROMPT; p++)
            BW_TRY(bw_tokens_add(&d->prompts[i], (int32_t)((i * 7919 + p * 104729 + 7) % bench->spec->vocab)));
    return BW_OK;
}

static void decoding_free(decoding *d)
{
    for (int64_t i = 0; d->prompts && i < d->count; i++)
        bw_tokens_free(&d->prompts[i]);
    bw_free(d->prompts);
    bw_answers_free(d->answers, d->count);
}

static int run_decoding(void *context)
{
    decoding *d = context;
    bw_answers_free(d->answers, d->count);
    int status = BW_NEW(d->answers, d->count, "bench");
    BW_TRY(bw_agree(d->bench->grid, status));
    return bw_generate(d->bench->grid, d->bench->store, d->prompts, d->count, d->bench->config->eval_batch, NEW_TOKENS, NULL, 0, d->answers, NULL,
                       NULL);
}

/* What the packed forward pass says to an answer: how far the largest logit is above that of the token that was chosen. */
static int check_logits(const decoding *d, bw_transformer *transformer, bw_batch *batch, float *logits, double *residual)
{
    const bw_answer *answer = &d->answers[d->bench->grid->rank * d->bench->config->eval_batch];
    const bw_tokens *prompt = &d->prompts[d->bench->grid->rank * d->bench->config->eval_batch];
    int64_t V = d->bench->spec->vocab;
    for (int32_t p = 0; p < PROMPT + NEW_TOKENS - 1; p++) {
        batch->tokens[p] = p < PROMPT ? prompt->ids[p] : answer->tokens[p - PROMPT];
        batch->targets[p] = -1;
        batch->positions[p] = p;
        batch->samples[p] = 0;
    }
    batch->T = batch->offsets[1] = PROMPT + NEW_TOKENS - 1;
    batch->n_seq = 1;
    BW_TRY(bw_transformer_logits(transformer, batch, logits));
    *residual = 0;
    for (int i = 0; i < NEW_TOKENS; i++) {
        const float *row = logits + (PROMPT - 1 + i) * V;
        *residual = fmax(*residual, (double)(row[bw_argmax(row, V)] - row[answer->tokens[i]]));
    }
    return BW_OK;
}

static int check_decoding(const decoding *d, double *residual)
{
    const int64_t T = PROMPT + NEW_TOKENS;
    bw_transformer *transformer = NULL;
    bw_batch batch = {0};
    float *logits = NULL;
    int status = bw_transformer_create(&transformer, d->bench->store, NULL, T, T, false, false);
    if (status == BW_OK)
        status = bw_batch_create(&batch, T, 1);
    if (status == BW_OK)
        status = BW_NEW(logits, T * d->bench->spec->vocab, "bench");
    status = bw_agree(d->bench->grid, status);
    if (status == BW_OK)
        status = bw_agree(d->bench->grid, check_logits(d, transformer, &batch, logits, residual));
    bw_free(logits);
    bw_batch_free(&batch);
    bw_transformer_free(&transformer);
    return status;
}

/* Tokens a second of all ranks, had everything the rate of the matrix products of a prompt pass, and then of passes of a row an answer. */
static int limit_of_decoding(const decoding *d, double *limit)
{
    const bw_spec *spec = d->bench->spec;
    int64_t batch = d->bench->config->eval_batch;
    /* Of the last layer, only the last row of a prompt goes on after attention. */
    const double weights = bw_spec_flops(spec, ~0u) * spec->n_layer, skipped = (PROMPT - 1) * bw_spec_flops(spec, BW_AFTER_ATTENTION);
    const double head = 2.0 * (double)spec->d_model * (double)spec->vocab;
    double prompts, tokens, slowest, fastest;
    BW_TRY(bw_bench_gemm_rate(d->bench, PROMPT * batch, batch, false, &prompts));
    BW_TRY(bw_bench_gemm_rate(d->bench, batch, batch, false, &tokens));
    double seconds = (double)batch * ((PROMPT * weights - skipped + head) / prompts + (NEW_TOKENS - 1) * (weights + head) / tokens);
    BW_TRY(bw_min_max(d->bench->grid, seconds, &fastest, &slowest));
    *limit = (double)d->count * NEW_TOKENS / slowest;
    return BW_OK;
}

int bw_bench_decode(bw_bench *bench)
{
    decoding d = {0};
    /* Two ways to the same logits. In bf16 a number that one of them has an fp32 bit larger may round to the next of 8 bits. */
    bw_bench_row row = {.unit = BW_TOKENS, .limit_name = "own gemm", .bound = bw_gemm_is_half() ? 5e-2 : 1e-3};
    int status;
    BW_GO(bw_bench_store(bench, false));
    BW_GO(bw_agree(bench->grid, decoding_create(&d, bench)));
    snprintf(row.problem, sizeof row.problem, "%lld x %d new after %d tokens", (long long)d.count, NEW_TOKENS, PROMPT);
    row.work = (double)d.count * NEW_TOKENS;
    BW_GO(bw_bench_time(bench, &(bw_bench_work){.run = run_decoding, .context = &d}, &row.times));
    BW_GO(check_decoding(&d, &row.residual));
    BW_GO(limit_of_decoding(&d, &row.limit));
    status = bw_bench_add(bench, &row);
done:
    decoding_free(&d);
    return status;
}
