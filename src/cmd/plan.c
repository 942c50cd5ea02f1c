/* What a training stage would need, for every number of ranks that is asked about. */
#include "breakwater/num.h"
#include "breakwater/plan.h"
#include "cmd/commands.h"
#include <math.h>

static int estimate_all(const bw_config *config, const bw_job *job, const bw_machine *machine, bw_estimate *estimates)
{
    for (int i = 0; i < config->ranks.count; i++) {
        if (config->ranks.items[i] != floor(config->ranks.items[i]))
            return bw_fail(BW_USAGE, "--ranks: %g is not a number of ranks", config->ranks.items[i]);
        BW_TRY(bw_estimate_best(&estimates[i], job, machine, (int)config->ranks.items[i]));
    }
    return BW_OK;
}

static int show(const bw_config *config, const bw_job *job, const bw_machine *machine, const bw_estimate *estimates)
{
    bw_text table = {0}, csv = {0};
    int status = bw_plan_print(estimates, config->ranks.count, job, machine, &table);
    if (status == BW_OK && config->csv)
        status = bw_plan_csv(estimates, config->ranks.count, &csv);
    if (status == BW_OK && config->csv)
        status = bw_file_write(config->csv, csv.data, csv.length, 0644);
    if (status == BW_OK)
        fputs(table.data, stdout);
    bw_text_free(&table);
    bw_text_free(&csv);
    return status;
}

int bw_cmd_plan(const bw_config *config)
{
    bw_machine machine;
    bw_job job;
    bw_estimate *estimates = NULL;
    BW_TRY(bw_machine_load(&machine, config->machine));
    BW_TRY(bw_gemm_start(config->precision, 1)); /* in whose form weights are held */
    BW_TRY(bw_job_open(&job, config));
    int status = BW_NEW(estimates, config->ranks.count, "plan");
    if (status == BW_OK)
        status = estimate_all(config, &job, &machine, estimates);
    if (status == BW_OK)
        status = show(config, &job, &machine, estimates);
    bw_free(estimates);
    bw_job_close(&job);
    return status;
}
