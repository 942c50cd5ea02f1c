/* breakwater/post.h - after training: merge, evaluation, judge, report. Does not know train/. */
#ifndef BREAKWATER_POST_H
#define BREAKWATER_POST_H
#include "breakwater/base.h"
#include "breakwater/model.h"
#include "breakwater/par.h"

/* ---- merge (arXiv 2605.24550, section on the QR merge; docs/architecture.md) --------------------------------------- */
typedef struct bw_merge_row { /* one target: a row of merge.csv */
    int layer;
    bw_target target;
    int r_user, r_reinforce, kept, range; /* eigenvalues above tau, numerical rank of B_eff */
    double lambda_max, lambda_min, norm_user, norm_reinforce, removed /* ||Q Q^T W_R|| / ||W_R|| */, cosine, norm_delta;
    double orthogonality; /* largest entry of |Q^T Q - I|, multiplied out from the Q that projects */
    bool dense;           /* fidelity of the stored weights: share of entries changed, cosine and relative error of the delta */
    double changed, delta_cosine, delta_error;
} bw_merge_row;
typedef enum bw_merge_method { BW_MERGE_QR, BW_MERGE_NAIVE, BW_MERGE_USER } bw_merge_method;
/* Merge one pair of factors: out gets A = [A_U; A_R], B = scale * [s_U B_U | s_R (B_R - alpha Q Q^T B_R)], scaling 1. One of them may
 * be NULL. out is created by the caller (bw_adapter_create), r at least r_U + r_R; further rows and columns become zero. row gets everything but
 * layer, target and the dense part. BW_DATA: a factor is not finite. Collective on world: every replica does the same. */
int bw_merge_pair(const bw_grid *grid, const bw_pair *user, const bw_pair *reinforce, bw_merge_method method, double alpha, double tau, double scale,
                  bw_pair *out, bw_merge_row *row);
/* The merge command: adapters in, for every alpha x scale an output folder (config->output itself when there is one). Collective on world. */
int bw_merge(const bw_grid *grid, const bw_config *config);

/* ---- judge: built in, by refusal phrases; the list is in docs/formats.md ------------------------------------------- */
bool bw_judge_refuses(const char *answer);
bool bw_judge_incoherent(const char *answer);                                        /* empty, or a word more than three times in a row */
bool bw_judge_correct(const char *metric, const char *answer, const char *expected); /* exact number label contains */

/* ---- eval ----------------------------------------------------------------------------------------------------------*/
int bw_eval(const bw_grid *grid, const bw_config *config); /* answers.jsonl, summary.json; collective on world */

/* ---- stale or not ---------------------------------------------------------------------------------------------------*/
/* Was the finished result in config->output made with these settings, of this model and of the adapters and files that lie there now? BW_CANTCREATE
 * with the first difference. Local: adapters are read for their fingerprint, the model is not. */
int bw_merge_compare(const bw_config *config, bw_source *source);
int bw_eval_compare(const bw_config *config, bw_source *source);
/* Is a finished evaluation's model fit to leave? BW_UNFIT, naming the figures of <output>/summary.json that miss --max-hs or --min-fa. Local. */
int bw_gate(const bw_config *config);

/* ---- report: what a pipeline came to. Rank 0 ------------------------------------------------------------------------*/
/* The table of arms, from the summary.json of the eval stages; a stage's label (or name) is its row. An arm that is not there yet shows dashes. */
int bw_report_arms(const bw_pipeline *pipeline, bw_text *out);
/* Has this stage left what it leaves last? */
int bw_report_finished(const bw_stage *stage, bool *finished);
/* Seconds spent on a stage over all starts: seconds.txt in its folder, which the caller holds. */
int bw_report_time_add(const char *folder, double seconds);
/* Of every stage; 0 where nothing is kept. */
int bw_report_times_load(const bw_pipeline *pipeline, double *seconds);
/* The table of arms, the time and the folder of each stage: appended to `out` and written as <output>/report.txt; the arms also as
 * <output>/report.csv, the times as <output>/times.csv. */
int bw_report_write(const bw_pipeline *pipeline, const double *seconds, bw_text *out);
#endif
