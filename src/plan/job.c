/* plan/job.c - the work of a plan: a model's sizes, and rows. */
#include "breakwater/plan.h"
#include <math.h>
#include <string.h>

/* ---- rows ---------------------------------------------------------------------------------------------------------- */

/* One batch of rows that are all alike; only their lengths are ever looked at. */
static int equal_rows(bw_job *job)
{
    const bw_config *config = job->config;
    const int64_t length = config->row_tokens > 0 ? config->row_tokens : config->max_length;
    const int64_t answer = config->answer_tokens > 0 ? config->answer_tokens : length / 2;
    if (length < 2 || answer < 1 || answer >= length)
        return bw_fail(BW_USAGE, "rows of %lld tokens with answers of %lld: an answer is at least one token and shorter than its row",
                       (long long)length, (long long)answer);
    BW_TRY(BW_NEW(job->data.samples, config->batch, "plan"));
    job->data.count = config->batch;
    job->data.token_count = config->batch * length;
    for (int64_t i = 0; i < config->batch; i++)
        job->data.samples[i] = (bw_sample){.length = (int32_t)length, .prompt_length = (int32_t)(length - answer)};
    return BW_OK;
}

static int load_rows(bw_job *job)
{
    const bw_config *config = job->config;
    bw_tokenizer *tokenizer = NULL;
    bw_template which;
    BW_TRY(bw_template_find(config->template_name, &which));
    BW_TRY(bw_tokenizer_open(&tokenizer, config->model));
    int status = bw_dataset_load(&job->data, tokenizer, &config->data, which, config->max_length, config->on_unsupervised);
    if (status == BW_OK && job->data.count == 0)
        status = bw_fail(BW_DATA, "%s: no row with an answer token is left to plan with", config->data.items[0]);
    bw_tokenizer_free(tokenizer);
    return status;
}

static int64_t steps_of(const bw_job *job)
{
    const bw_plan plan = {.samples = job->data.count, .batch = job->config->batch};
    if (job->config->steps > 0)
        return job->config->steps;
    return job->config->data.count > 0 ? (int64_t)ceil(job->config->epochs * (double)bw_plan_steps_per_epoch(&plan)) : 0;
}

/* ---- job ----------------------------------------------------------------------------------------------------------- */

/* reinforce and user train on a BufferLoRA; without --stage the plan is for user, which every job runs. */
static bool folds_buffer(const char *stage)
{
    return !stage || strcmp(stage, "reinforce") == 0 || strcmp(stage, "user") == 0;
}

int bw_job_open(bw_job *job, const bw_config *config)
{
    int status;
    *job = (bw_job){.config = config, .folds = folds_buffer(config->stage)};
    BW_GO(bw_targets_parse(config->targets, &job->targets));
    BW_GO(bw_source_outline(&job->source, config->model));
    job->spec = bw_source_spec(job->source);
    BW_GO(config->data.count > 0 ? load_rows(job) : equal_rows(job));
    job->steps = steps_of(job);
    return BW_OK;
done:
    bw_job_close(job);
    return status;
}

void bw_job_close(bw_job *job)
{
    bw_source_close(job->source);
    bw_dataset_free(&job->data);
    *job = (bw_job){0};
}
