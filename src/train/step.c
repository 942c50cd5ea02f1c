/* train/step.c - a step: micro-batches to whole ranks, gradients summed as integers, every rank updates what it owns.
 *
 * Nothing here may depend on how many ranks there are: a micro-batch is computed whole by one rank, its gradient is
 * rounded to integers on a scale that all share, and integers add up the same in any order. */
#include "step.h"
#include "breakwater/num.h"
#include <inttypes.h>
#include <math.h>
#include <string.h>

static const double LOSS_UNIT = 1.0 / (1ll << 30); /* losses are summed as integers, too: of a step's 10^5 nats to 10^-9 */

typedef struct step_sum {
    int64_t loss, tokens, answers;
    bool due; /* some rank's clock or count says that it is time for a checkpoint */
    double norm;
} step_sum;

/* ---- gradients of one step ---------------------------------------------------------------------------------------------- */
typedef struct collecting {
    bw_trainer *trainer;
    bool adds, launches;
} collecting;

/* What a rank hands to the sum of a layer's gradients. */
static double bucket_bytes(const bw_trainer *t, int layer)
{
    double bytes = 0;
    for (int target = 0; t->grid->size > 1 && target < BW_TARGETS; target++) {
        int tensor = bw_lora_tensor(t->lora, layer, (bw_target)target);
        for (int i = tensor; tensor >= 0 && i < tensor + 2; i++)
            bytes += (double)(t->factors[i]->layout.m * t->factors[i]->layout.n) * sizeof(int64_t);
    }
    return bytes;
}

static int layer_done(void *context, int layer)
{
    collecting *c = context;
    bw_trainer *t = c->trainer;
    double start = bw_now(), bytes = 0;
    for (int target = 0; c->adds && target < BW_TARGETS; target++) {
        const bw_lora_view *view = bw_lora_at(t->lora, layer, (bw_target)target);
        int tensor = bw_lora_tensor(t->lora, layer, (bw_target)target);
        if (!view)
            continue;
        bw_reduce_add(t->reduce, tensor, view->dA);
        bw_reduce_add(t->reduce, tensor + 1, view->dB);
    }
    if (c->launches && t->bucket_of[layer] >= 0) {
        BW_TRY(bw_reduce_launch(t->reduce, t->bucket_of[layer]));
        bytes = bucket_bytes(t, layer);
    }
    const double end = bw_now();
    bw_timeline_add("reduce", layer, start, end);
    bw_event_add(BW_EVENT_REDUCE, end - start, 0, bytes);
    return BW_OK;
}

/* Names the rows, so that the person at the other end can look at them. */
static int loss_not_finite(const bw_trainer *t, int64_t count, int32_t which)
{
    bw_text rows = {0};
    for (int64_t i = 0; i < count; i++)
        if (t->group[i] == which) {
            if (rows.length)
                (void)bw_text_add(&rows, "; ", 2);
            (void)bw_dataset_place(&t->data, t->samples[i], &rows); /* the message may be short of names */
        }
    int status =
        bw_fail(BW_DATA, "step %" PRId64 ": the loss is not finite on the micro-batch of %s; lower --lr, raise --warmup, or look at these rows",
                t->state.step + 1, rows.data ? rows.data : "?");
    bw_text_free(&rows);
    return status;
}

static int run_micro_batches(bw_trainer *t, int64_t count, int64_t answers, step_sum *sum)
{
    int64_t M = t->plan.micro_batches, rounds = (M + t->grid->size - 1) / t->grid->size;
    int status = BW_OK;
    *sum = (step_sum){.answers = answers};
    bw_reduce_begin(t->reduce);
    for (int64_t round = 0; round < rounds; round++) {
        int64_t which = bw_plan_deal(&t->plan, round, t->grid->rank, t->grid->size); /* M: an empty one, which keeps streamed weights in step */
        BW_TRY(bw_batch_fill(&t->batch, &t->data, t->samples, t->group, count, (int32_t)which));
        collecting context = {.trainer = t, .adds = t->batch.T > 0, .launches = round == rounds - 1};
        bw_pass pass = {.seed = (uint64_t)t->config->seed,
                        .step = (uint32_t)t->state.step,
                        .loss_scale = 1.0 / (double)answers,
                        .done = layer_done,
                        .context = &context};
        double loss = 0;
        BW_TRY(bw_transformer_train(t->transformer, &t->batch, &pass, &loss));
        if (!isfinite(loss)) {
            if (status == BW_OK)
                status = loss_not_finite(t, count, (int32_t)which);
            loss = 0;
        }
        sum->loss += llrint(loss / LOSS_UNIT);
        sum->tokens += t->batch.T;
    }
    double start = bw_now();
    BW_TRY(bw_reduce_finish(t->reduce));
    const double end = bw_now();
    bw_timeline_add("reduce", -1, start, end);
    bw_event_add(BW_EVENT_REDUCE, end - start, 0, 0);
    return status;
}

/* ---- update -------------------------------------------------------------------------------------------------------------- */

/* The summed gradient of the entries this rank owns, in the order of its local piece. */
static void own_gradient(const bw_matrix *matrix, const int64_t *sum, double unit, float *out)
{
    const bw_bcyc *l = &matrix->layout;
    for (int64_t c = 0; c < matrix->cols; c++) {
        int64_t j = bw_bcyc_global(c, l->nb, matrix->mycol, l->npcol);
        for (int64_t r = 0; r < matrix->rows; r++)
            out[c * matrix->rows + r] = (float)((double)sum[bw_bcyc_global(r, l->mb, matrix->myrow, l->nprow) * l->n + j] * unit);
    }
}

static int update(bw_trainer *t, double lr, double norm)
{
    const bw_config *config = t->config;
    bw_adamw adamw = {.beta1 = config->beta1, .beta2 = config->beta2, .epsilon = config->adam_epsilon, .weight_decay = config->weight_decay};
    double clip = config->max_grad_norm > 0 ? fmin(1, config->max_grad_norm / (norm + 1e-6)) : 1;
    int64_t largest = 0;
    for (int i = 0; i < t->state.tensors; i++) {
        int64_t size = t->factors[i]->rows * t->factors[i]->cols;
        largest = size > largest ? size : largest;
    }
    float *gradient;
    BW_TRY(BW_NEW(gradient, largest, "gradients"));
    for (int i = 0; i < t->state.tensors; i++) {
        bw_matrix *p = t->factors[i];
        own_gradient(p, bw_reduce_sum(t->reduce, i), ldexp(clip, -t->state.exponents[i]), gradient);
        bw_adamw_update(&adamw, lr, t->state.step + 1, p->data, t->state.moments[2 * i].data, t->state.moments[2 * i + 1].data, gradient,
                        p->rows * p->cols);
    }
    bw_free(gradient);
    return BW_OK;
}

/* ---- when to stop and when to save ---------------------------------------------------------------------------------------
 * Neither has a meeting of the ranks for itself: that a checkpoint is due travels with the sums of the step, and a wish to stop with the
 * agreement on its end. */
typedef struct watch {
    double tried, longest_step, longest_save; /* tried: when the last checkpoint was written, or would not be */
    int64_t tried_step;
} watch;

static bool checkpoint_due(const bw_trainer *t, const watch *w)
{
    const bw_config *config = t->config;
    bool by_clock = config->checkpoint_minutes > 0 && bw_now() - w->tried >= config->checkpoint_minutes * 60;
    return by_clock || (config->checkpoint_steps > 0 && t->state.step - w->tried_step >= config->checkpoint_steps);
}

/* How long a checkpoint may take: until one was written, as long as on a slow file system. */
static double save_seconds(const bw_trainer *t, const watch *w)
{
    const double pause = 10, rate = 50e6; /* seconds, bytes a second */
    return w->longest_save > 0 ? w->longest_save : pause + bw_checkpoint_bytes(&t->state) / rate;
}

/* BW_STOPPED: this rank knows of a reason. */
static int go_on(const bw_trainer *t, const watch *w)
{
    bw_stop stop = t->state.step < t->steps ? bw_stop_wanted(t->config->time_limit, w->longest_step + save_seconds(t, w)) : BW_STOP_NONE;
    return stop == BW_STOP_NONE ? BW_OK
                                : bw_fail(BW_STOPPED, "stopped after step %" PRId64 " of %" PRId64 " (%s); checkpoint in %s", t->state.step, t->steps,
                                          bw_stop_reason(stop), t->output.checkpoints.data);
}

static int save(bw_trainer *t, watch *w)
{
    double start = bw_now();
    int status = bw_checkpoint_write(t->grid, &t->state, t->config, t->output.checkpoints.data, t->config->keep, t->mode);
    w->tried = bw_now();
    w->tried_step = t->state.step;
    if (status == BW_OK)
        w->longest_save = fmax(w->longest_save, w->tried - start);
    return status;
}

/* One that is not the last word: where it finds no room, --checkpoint-error says whether the run ends for it. */
static int save_on_the_way(bw_trainer *t, watch *w)
{
    int status = save(t, w);
    if (status != BW_IO || strcmp(t->config->checkpoint_error, "continue") != 0)
        return status;
    bw_warn("no checkpoint of step %" PRId64 ", and the run goes on, as --checkpoint-error says: %s", t->state.step, bw_error());
    bw_error_clear();
    return BW_OK;
}

/* The words of the stop wait until the checkpoint that they speak of is there. */
static int save_and_stop(bw_trainer *t, watch *w)
{
    char words[BW_ERROR_BYTES];
    bw_error_take(words);
    BW_TRY(save(t, w));
    bw_info("%s", words);
    return BW_STOPPED;
}

/* ---- one step ------------------------------------------------------------------------------------------------------------ */

static int64_t answers_of(const bw_trainer *t, int64_t count)
{
    int64_t answers = 0;
    for (int64_t i = 0; i < count; i++) {
        const bw_sample *s = &t->data.samples[t->samples[i]];
        answers += s->length - (s->prompt_length > 0 ? s->prompt_length : 1); /* a first token is never a target */
    }
    return answers;
}

enum { MOST_TRIES = 11 }; /* each gives 20 bits more room; ten take the finest scale, 2^-120, to the coarsest, which holds any float32 */

static int summed_gradient(bw_trainer *t, step_sum *sum)
{
    int64_t count = bw_plan_step(&t->plan, t->state.step, t->samples);
    int status = count < 0 ? BW_SYSTEM : bw_plan_cut(&t->plan, &t->data, t->samples, count, t->group);
    BW_TRY(bw_agree(t->grid, status));
    int64_t answers = answers_of(t, count);
    for (int attempt = 0; attempt < MOST_TRIES; attempt++) {
        BW_TRY(bw_agree(t->grid, run_micro_batches(t, count, answers, sum)));
        int64_t flags[2] = {bw_reduce_overflowed(t->reduce), bw_reduce_nonfinite(t->reduce)};
        BW_TRY(bw_max_ints(t->grid, flags, 2));
        if (flags[1])
            return bw_fail(BW_DATA, "step %" PRId64 ": a gradient is not finite although the loss is; lower --lr", t->state.step + 1);
        if (!flags[0])
            return BW_OK;
        bw_info("step %" PRId64 ": gradients outgrew their fixed-point scale; doing the step again on a wider one", t->state.step + 1);
        bw_reduce_widen(t->reduce);
    }
    return bw_fail(BW_DATA, "step %" PRId64 ": gradients overflow every fixed-point scale; lower --lr or set --max-grad-norm", t->state.step + 1);
}

static int one_step(bw_trainer *t, const watch *w, double lr, step_sum *sum)
{
    BW_TRY(summed_gradient(t, sum));
    bw_span span = bw_span_begin();
    bw_reduce_exponents(t->reduce, t->state.exponents, false);
    sum->norm = bw_reduce_norm(t->reduce);
    BW_TRY(bw_agree(t->grid, update(t, lr, sum->norm)));
    bw_reduce_advance(t->reduce);
    bw_reduce_exponents(t->reduce, t->state.exponents, false);
    t->state.step++;
    bw_span_end(&span, BW_EVENT_UPDATE, 0, 0);
    const double start = bw_now();
    BW_TRY(bw_lora_refresh(t->lora));
    const double end = bw_now();
    bw_timeline_add("update", -1, span.start, start);
    bw_timeline_add("gather", -1, start, end);
    bw_event_add(BW_EVENT_GATHER, end - start, 0, (double)bw_adapter_parameters(t->adapter) * sizeof(float));
    int64_t values[3] = {sum->loss, sum->tokens, checkpoint_due(t, w)};
    BW_TRY(bw_sum_ints(t->grid, values, 3));
    sum->loss = values[0];
    sum->tokens = values[1];
    sum->due = values[2] > 0;
    return BW_OK;
}

/* ---- what a person and a program see -------------------------------------------------------------------------------------- */

static int log_step(bw_trainer *t, const step_sum *sum, double lr, double seconds)
{
    if (!t->output.log)
        return BW_OK;
    double loss = (double)sum->loss * LOSS_UNIT / (double)sum->answers;
    double epoch = (double)t->state.step / (double)bw_plan_steps_per_epoch(&t->plan);
    int written = fprintf(t->output.log,
                          "{\"step\": %" PRId64 ", \"epoch\": %.6g, \"loss\": %.9g, \"lr\": %.9g, \"grad_norm\": %.9g, \"tokens\": %" PRId64
                          ", \"answer_tokens\": %" PRId64 ", \"seconds\": %.4f, \"tokens_per_s\": %.1f}\n",
                          t->state.step, epoch, loss, lr, sum->norm, sum->tokens, sum->answers, seconds, (double)sum->tokens / seconds);
    if (written < 0 || fflush(t->output.log) != 0)
        return bw_fail(BW_IO, "%s: cannot write: %m", t->output.metrics.data);
    return BW_OK;
}

static void show_progress(const bw_trainer *t, const step_sum *sum, double lr, double rate, double step_seconds)
{
    double left = step_seconds * (double)(t->steps - t->state.step);
    bw_progress("%s  step %" PRId64 "/%" PRId64 "  loss %.4f  lr %.2e  |g| %.3f  %.0f tokens/s  %d:%02d left", t->config->stage, t->state.step,
                t->steps, (double)sum->loss * LOSS_UNIT / (double)sum->answers, lr, sum->norm, rate, (int)(left / 60), (int)left % 60);
}

enum { NOTED_STEPS = 2 }; /* the timeline is of the second step of a start, for the first meets memory that nobody has touched; or of the only one */

/* Everything that one rank may find at the end of a step, in one agreement. */
static int end_step(bw_trainer *t, watch *w, const step_sum *sum, double lr, double seconds)
{
    w->longest_step = fmax(w->longest_step, seconds);
    int status = log_step(t, sum, lr, seconds);
    if (status == BW_OK)
        status = go_on(t, w);
    status = bw_agree(t->grid, status);
    if (status == BW_STOPPED)
        return save_and_stop(t, w);
    return status == BW_OK && sum->due && t->state.step < t->steps ? save_on_the_way(t, w) : status;
}

int bw_trainer_run(bw_trainer *t)
{
    const int64_t first = t->state.step;
    watch w = {.tried = bw_now(), .tried_step = first};
    double tokens = 0, seconds = 0;
    while (t->state.step < t->steps) {
        double start = bw_now(), lr = bw_learning_rate(t->config->schedule, t->config->lr, t->config->warmup, t->state.step, t->steps);
        step_sum sum;
        if (t->state.step < first + NOTED_STEPS)
            bw_timeline_begin();
        BW_TRY(one_step(t, &w, lr, &sum));
        bw_timeline_end();
        double took = bw_now() - start;
        tokens += (double)sum.tokens;
        seconds += took;
        show_progress(t, &sum, lr, tokens / seconds, seconds / (double)(t->state.step - first));
        BW_TRY(end_step(t, &w, &sum, lr, took));
    }
    if (t->state.step > first)
        BW_TRY(save(t, &w)); /* the adapter is written next; if that fails, nothing is lost */
    if (seconds > 0)
        bw_info("%s: %" PRId64 " step%s, %.0f tokens in %.1f s: %.0f tokens/s", t->config->stage, t->state.step - first,
                t->state.step - first == 1 ? "" : "s", tokens, seconds, tokens / seconds);
    return BW_OK;
}
