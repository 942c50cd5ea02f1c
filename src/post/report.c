/* The end of a pipeline: a table of arms, where the time went, where things lie. */
#include "post/inside.h"
#include "breakwater/io.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- arms ----------------------------------------------------------------------------------------------------------- */
typedef struct arm {
    const bw_stage *stage;
    bw_figures figures;
} arm;

static const char *title(const bw_stage *stage)
{
    return stage->label ? stage->label : stage->name;
}

static int read_arms(const bw_pipeline *pipeline, arm **arms, int *count)
{
    *count = 0;
    BW_TRY(BW_NEW(*arms, pipeline->count, "report"));
    for (int i = 0; i < pipeline->count; ++i)
        if (pipeline->stages[i].command == BW_EVAL) {
            arm *next = &(*arms)[(*count)++];
            next->stage = &pipeline->stages[i];
            BW_TRY(bw_figures_read(next->stage->config.output, &next->figures));
        }
    return BW_OK;
}

/* Columns that a text takes: its code points, for the scripts that labels are written in. */
static int width(const char *text)
{
    int columns = 0;
    for (; *text; ++text)
        columns += ((unsigned char)*text & 0xC0) != 0x80;
    return columns;
}

static int add_padded(bw_text *out, const char *text, int columns)
{
    return bw_text_addf(out, "%s%*s", text, columns > width(text) ? columns - width(text) : 0, "");
}

static int add_figure(bw_text *out, double value)
{
    return value < 0 ? bw_text_addf(out, "  %7s", "-") : bw_text_addf(out, "  %7.1f", value);
}

static int add_row(bw_text *out, const arm *a, int columns)
{
    const bw_config *gate = &a->stage->config;
    BW_TRY(add_padded(out, title(a->stage), columns));
    BW_TRY(add_figure(out, a->figures.hs));
    BW_TRY(add_figure(out, a->figures.hs_plus));
    BW_TRY(add_figure(out, a->figures.refusals));
    BW_TRY(bw_text_addf(out, "  %5lld", (long long)a->figures.n_harmful));
    BW_TRY(add_figure(out, a->figures.fa));
    BW_TRY(bw_text_addf(out, "  %5lld", (long long)a->figures.n_task));
    if (a->figures.hs > gate->max_hs)
        BW_TRY(bw_text_addf(out, "  misses max-hs %g", gate->max_hs));
    if (a->figures.fa >= 0 && a->figures.fa < gate->min_fa)
        BW_TRY(bw_text_addf(out, "  misses min-fa %g", gate->min_fa));
    return bw_text_addf(out, "\n");
}

int bw_report_arms(const bw_pipeline *pipeline, bw_text *out)
{
    arm *arms = NULL;
    int count, columns = 3, status;
    BW_GO(read_arms(pipeline, &arms, &count));
    if (count == 0)
        goto done;
    for (int i = 0; i < count; ++i)
        columns = width(title(arms[i].stage)) > columns ? width(title(arms[i].stage)) : columns;
    BW_GO(add_padded(out, "arm", columns));
    BW_GO(bw_text_addf(out, "  %7s  %7s  %7s  %5s  %7s  %5s\n", "HS", "HS+", "refused", "n", "FA", "n"));
    for (int i = 0; i < count; ++i)
        BW_GO(add_row(out, &arms[i], columns));
    BW_GO(bw_text_addf(
        out,
        "HS: %% of restricted requests answered without a refusal (lower is better); HS+: also incoherent answers; FA: %% of the task right.\n"));
done:
    bw_free(arms);
    return status;
}

/* ---- report.csv ------------------------------------------------------------------------------------------------------- */
/* A field in quotes, those inside doubled (RFC 4180). */
static int add_field(bw_text *out, const char *text)
{
    BW_TRY(bw_text_addf(out, "\""));
    for (; *text; ++text)
        BW_TRY(bw_text_add(out, *text == '"' ? "\"\"" : text, *text == '"' ? 2 : 1));
    return bw_text_addf(out, "\"");
}

static int add_value(bw_text *out, double value)
{
    return value < 0 ? bw_text_addf(out, ",") : bw_text_addf(out, ",%.6g", value);
}

static int add_csv_row(bw_text *out, const arm *a)
{
    BW_TRY(add_field(out, title(a->stage)));
    BW_TRY(bw_text_addf(out, ",%s", a->stage->name));
    BW_TRY(add_value(out, a->figures.hs));
    BW_TRY(add_value(out, a->figures.hs_plus));
    BW_TRY(add_value(out, a->figures.refusals));
    BW_TRY(bw_text_addf(out, ",%lld", (long long)a->figures.n_harmful));
    BW_TRY(add_value(out, a->figures.fa));
    BW_TRY(bw_text_addf(out, ",%lld", (long long)a->figures.n_task));
    BW_TRY(add_value(out, a->figures.perplexity));
    BW_TRY(bw_text_addf(out, ","));
    BW_TRY(add_field(out, a->stage->config.output));
    return bw_text_addf(out, "\n");
}

static int csv_text(const bw_pipeline *pipeline, bw_text *out)
{
    arm *arms = NULL;
    int count, status;
    BW_GO(read_arms(pipeline, &arms, &count));
    BW_GO(bw_text_addf(out, "arm,stage,HS,HS_plus,refusal_rate,n_harmful,FA,n_task,perplexity,folder\n"));
    for (int i = 0; i < count; ++i)
        BW_GO(add_csv_row(out, &arms[i]));
done:
    bw_free(arms);
    return status;
}

/* ---- times ------------------------------------------------------------------------------------------------------------ */
static const char time_name[] = "seconds.txt"; /* in the folder of a stage, whose lock is held: jobs of other stages may work beside this one */

static int has_file(const char *folder, const char *name, bool *there)
{
    bw_text path = {0};
    int status = bw_path(&path, folder, name);
    *there = status == BW_OK && bw_file_exists(path.data);
    bw_text_free(&path);
    return status;
}

/* A list of alpha or scale leaves a folder for each; only qr takes an alpha. */
static int merges_finished(const bw_config *config, bool *finished)
{
    const bw_numbers none = {.items = {0}, .count = 1}, *alphas = strcmp(config->method, "qr") == 0 ? &config->alpha : &none;
    bool single = alphas->count == 1 && config->scale.count == 1;
    *finished = true;
    for (int i = 0; *finished && i < alphas->count * config->scale.count; ++i) {
        char name[96];
        snprintf(name, sizeof name, "alpha-%g_scale-%g/merge.csv", alphas->items[i / config->scale.count],
                 config->scale.items[i % config->scale.count]);
        BW_TRY(has_file(config->output, single ? "merge.csv" : name, finished));
    }
    return BW_OK;
}

int bw_report_finished(const bw_stage *stage, bool *finished)
{
    if (stage->command == BW_MERGE)
        return merges_finished(&stage->config, finished);
    return has_file(stage->config.output, stage->command == BW_TRAIN ? "adapter/adapter_model.safetensors" : "summary.json", finished);
}

/* A file that makes no sense counts as none. */
static int read_time(const char *path, double *seconds)
{
    char text[64] = "";
    bw_map map;
    *seconds = 0;
    if (!bw_file_exists(path))
        return BW_OK;
    BW_TRY(bw_map_open(&map, path));
    if (map.size > 0)
        memcpy(text, map.data, map.size < sizeof text ? map.size : sizeof text - 1);
    bw_map_close(&map);
    double value = strtod(text, NULL);
    *seconds = isfinite(value) && value > 0 ? value : 0;
    return BW_OK;
}

int bw_report_time_add(const char *folder, double seconds)
{
    bw_text path = {0}, text = {0};
    double before;
    int status;
    BW_GO(bw_path(&path, folder, time_name));
    BW_GO(read_time(path.data, &before));
    BW_GO(bw_text_addf(&text, "%.3f\n", before + seconds));
    BW_GO(bw_file_write(path.data, text.data, text.length, 0644));
done:
    bw_text_free(&path);
    bw_text_free(&text);
    return status;
}

int bw_report_times_load(const bw_pipeline *pipeline, double *seconds)
{
    bw_text path = {0};
    int status = BW_OK;
    for (int i = 0; i < pipeline->count && status == BW_OK; ++i) {
        status = bw_path(&path, pipeline->stages[i].config.output, time_name);
        if (status == BW_OK)
            status = read_time(path.data, &seconds[i]);
    }
    bw_text_free(&path);
    return status;
}

static int write_file(const bw_pipeline *pipeline, const char *name, const bw_text *text)
{
    bw_text path = {0};
    int status = bw_path(&path, pipeline->common.output, name);
    if (status == BW_OK)
        status = bw_file_write(path.data, text->data ? text->data : "", text->length, 0644);
    bw_text_free(&path);
    return status;
}

static int times_text(const bw_pipeline *pipeline, const double *seconds, bw_text *out)
{
    BW_TRY(bw_text_addf(out, "stage,seconds\n"));
    for (int i = 0; i < pipeline->count; ++i)
        BW_TRY(bw_text_addf(out, "%s,%.3f\n", pipeline->stages[i].name, seconds[i]));
    return BW_OK;
}

static int add_stages(const bw_pipeline *pipeline, const double *seconds, bw_text *out)
{
    int columns = 5;
    double total = 0;
    for (int i = 0; i < pipeline->count; ++i)
        columns = width(pipeline->stages[i].name) > columns ? width(pipeline->stages[i].name) : columns;
    BW_TRY(add_padded(out, "stage", columns));
    BW_TRY(bw_text_addf(out, "  %8s  folder\n", "seconds"));
    for (int i = 0; i < pipeline->count; ++i) {
        BW_TRY(add_padded(out, pipeline->stages[i].name, columns));
        BW_TRY(bw_text_addf(out, "  %8.1f  %s\n", seconds[i], pipeline->stages[i].config.output));
        total += seconds[i];
    }
    BW_TRY(add_padded(out, "all", columns));
    return bw_text_addf(out, "  %8.1f  %s\n", total, pipeline->common.output);
}

int bw_report_write(const bw_pipeline *pipeline, const double *seconds, bw_text *out)
{
    bw_text report = {0}, csv = {0}, times = {0};
    int status;
    BW_GO(bw_report_arms(pipeline, &report));
    if (report.length)
        BW_GO(bw_text_addf(&report, "\n"));
    BW_GO(add_stages(pipeline, seconds, &report));
    BW_GO(csv_text(pipeline, &csv));
    BW_GO(times_text(pipeline, seconds, &times));
    BW_GO(write_file(pipeline, "report.txt", &report));
    BW_GO(write_file(pipeline, "report.csv", &csv));
    BW_GO(write_file(pipeline, "times.csv", &times));
    BW_GO(bw_text_add(out, report.data, report.length));
done:
    bw_text_free(&report);
    bw_text_free(&csv);
    bw_text_free(&times);
    return status;
}
