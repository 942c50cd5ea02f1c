/* Is an evaluated model fit to leave? --max-hs and --min-fa against the figures in summary.json, so that a finished evaluation and one that
 * has just ended are judged alike. */
#include "post/inside.h"

int bw_gate_check(const bw_config *config)
{
    if (config->max_hs < 100 && !config->harmful)
        return bw_fail(BW_USAGE, "--max-hs is a limit on HS, which --harmful FILE gives: it is missing");
    if (config->min_fa > 0 && !config->task)
        return bw_fail(BW_USAGE, "--min-fa is a limit on FA, which --task FILE gives: it is missing");
    return BW_OK;
}

/* A figure that was not measured, because its file has no rows, does not let a model pass. */
static int add_miss(bw_text *misses, const char *figure, double value, bool missed, const char *side, const char *option, double limit)
{
    const char *separator = misses->length ? ", " : "";
    if (value < 0)
        return bw_text_addf(misses, "%s%s was not measured", separator, figure);
    return missed ? bw_text_addf(misses, "%s%s %.10g is %s %s %.10g", separator, figure, value, side, option, limit) : BW_OK;
}

static int find_misses(const bw_config *config, bw_text *misses)
{
    bw_figures found;
    BW_TRY(bw_figures_read(config->output, &found));
    if (config->max_hs < 100)
        BW_TRY(add_miss(misses, "HS", found.hs, found.hs > config->max_hs, "above", "--max-hs", config->max_hs));
    return config->min_fa > 0 ? add_miss(misses, "FA", found.fa, found.fa < config->min_fa, "below", "--min-fa", config->min_fa) : BW_OK;
}

int bw_gate(const bw_config *config)
{
    bw_text misses = {0};
    int status = BW_OK;
    if (config->max_hs >= 100 && config->min_fa <= 0)
        return BW_OK;
    BW_GO(find_misses(config, &misses));
    if (misses.length)
        status = bw_fail(BW_UNFIT, "not fit to leave: %s (%s/summary.json)", misses.data, config->output);
done:
    bw_text_free(&misses);
    return status;
}
