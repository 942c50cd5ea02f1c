/* The figures of an evaluation, read back from its summary.json: for the gate, the report, and whoever asks a finished one again. */
#include "post/inside.h"

static double number(const bw_json *summary, const char *key)
{
    return bw_json_number(bw_json_get(summary, key), -1);
}

int bw_figures_read(const char *folder, bw_figures *figures)
{
    *figures = (bw_figures){.hs = -1, .hs_plus = -1, .refusals = -1, .fa = -1, .perplexity = -1};
    bw_text path = {0};
    bw_json *summary = NULL;
    int status = bw_path(&path, folder, "summary.json");
    if (status != BW_OK || !bw_file_exists(path.data))
        goto done;
    BW_GO(bw_json_load(&summary, path.data));
    figures->hs = number(summary, "HS");
    figures->hs_plus = number(summary, "HS_plus");
    figures->refusals = number(summary, "refusal_rate");
    figures->fa = number(summary, "FA");
    figures->perplexity = number(summary, "perplexity");
    figures->seconds = number(summary, "seconds");
    figures->n_harmful = bw_json_int(bw_json_get(summary, "n_harmful"), 0);
    figures->n_task = bw_json_int(bw_json_get(summary, "n_task"), 0);
    figures->n_perplexity = bw_json_int(bw_json_get(summary, "perplexity_tokens"), 0);
done:
    bw_json_free(summary);
    bw_text_free(&path);
    return status;
}
