/* breakwater/plan.h - what a training stage would need, without running it: memory by purpose, bytes moved, time of a step, and the layout to ask
 * for. Sizes come from the functions that the run itself allocates by; times from a model of a few lines each, in src/plan/. No MPI is started. */
#ifndef BREAKWATER_PLAN_H
#define BREAKWATER_PLAN_H
#include "breakwater/base.h"
#include "breakwater/data.h"
#include "breakwater/model.h"
#include "breakwater/par.h"

/* ---- job: what is to be trained ----------------------------------------------------------------------------------- */
typedef struct bw_job {
    const bw_config *config; /* borrowed */
    bw_source *source;
    const bw_spec *spec;
    bw_dataset data;  /* of --data; else one batch of rows of equal length, without their tokens */
    bool folds;       /* a BufferLoRA is added to the frozen weights; it is taken to have the shape of the new adapter */
    unsigned targets; /* bit 1 << target */
    int64_t steps;    /* of the whole run; 0: not known, for want of data */
} bw_job;
/* The model (a config.json will do), and the rows where there are any. BW_USAGE, BW_DATA, BW_NOINPUT. Local. */
int bw_job_open(bw_job *job, const bw_config *config);
void bw_job_close(bw_job *job);

/* ---- layout: ranks on nodes, and how they hold the model ----------------------------------------------------------- */
typedef struct bw_layout {
    bw_grid grid; /* an outline */
    int threads;  /* of a rank */
    bool streams;
} bw_layout;

/* ---- memory ------------------------------------------------------------------------------------------------------- */
typedef enum bw_need {
    BW_NEED_PIECES,
    BW_NEED_TABLES,
    BW_NEED_LAYERS,
    BW_NEED_FOLDED,
    BW_NEED_ADAPTER,
    BW_NEED_DENSE,
    BW_NEED_GRADIENTS,
    BW_NEED_SUMS,
    BW_NEED_OPTIMIZER,
    BW_NEED_ACTIVATIONS,
    BW_NEED_GATHER,
    BW_NEED_PROGRAM,
    BW_NEEDS
} bw_need;
const char *bw_need_name(bw_need need); /* the purpose under which the run counts it (report.txt) */
bool bw_need_is_shared(bw_need need);   /* once a node, not once a rank */
typedef struct bw_memory {
    int64_t rank[BW_NEEDS]; /* bytes of the fullest rank; of what is shared, the node's */
    int64_t node[BW_NEEDS]; /* bytes of all ranks of the fullest node */
} bw_memory;
/* `most_tokens`: of one micro-batch. Local. */
int bw_memory_plan(bw_memory *memory, const bw_job *job, const bw_layout *layout, int64_t most_tokens);
int64_t bw_memory_rank(const bw_memory *memory); /* without what is shared */
int64_t bw_memory_node(const bw_memory *memory);

/* ---- time --------------------------------------------------------------------------------------------------------- */
typedef struct bw_times {
    double compute; /* of the slowest rank, round by round */
    double useful;  /* what compute would be were the work spread evenly over all ranks */
    double gather, reduce, update;
    double exposed_gather, exposed_reduce; /* what compute does not hide */
    double step;
    double gathered_bytes, reduced_bytes; /* of a step: arriving at a node from others; sent by a rank */
    double tokens, flops;                 /* of a step, over all ranks */
} bw_times;
/* Seconds of one micro-batch, forward, loss and backward, on a rank with `threads` cores. Pure. */
double bw_compute_seconds(const bw_machine *machine, int threads, const bw_spec *spec, const bw_adapter *adapter, const bw_batch *batch,
                          const bw_config *config);
/* A ring allreduce of `bytes` over all ranks, in `parts` one after the other. Pure. */
double bw_allreduce_seconds(const bw_machine *machine, const bw_grid *grid, double bytes, int parts);
/* Bytes that a step of a streamed store, or of a resident one, gathers into a node from other nodes, weights and factors. Pure. */
double bw_gathered_bytes(const bw_job *job, const bw_layout *layout, const bw_adapter *adapter, int64_t rounds);
/* The mean over the first steps of the run. Local. */
int bw_times_plan(bw_times *times, const bw_job *job, const bw_machine *machine, const bw_layout *layout, int64_t micro_batches);

/* ---- estimate ----------------------------------------------------------------------------------------------------- */
typedef struct bw_estimate {
    bw_layout layout;
    int64_t micro_batches, most_tokens;
    bw_memory memory;
    bw_times times;
    double efficiency; /* times.useful / times.step: what imbalance, idle ranks and communication leave */
    double of_peak;    /* flops of the step against all cores at their GEMM rate */
    const char *limit; /* what costs most of the rest */
    bool fits;         /* the node's memory */
} bw_estimate;
int bw_estimate_layout(bw_estimate *estimate, const bw_job *job, const bw_machine *machine, const bw_layout *layout);
/* The fastest layout that fits `ranks`, among the grids, replicas and kinds of store that the configuration leaves open; the one that needs least
 * memory where none fits. BW_USAGE when the configuration fits no layout. Local. */
int bw_estimate_best(bw_estimate *estimate, const bw_job *job, const bw_machine *machine, int ranks);

/* ---- what is printed ---------------------------------------------------------------------------------------------- */
int bw_plan_print(const bw_estimate *estimates, int count, const bw_job *job, const bw_machine *machine, bw_text *out);
int bw_plan_csv(const bw_estimate *estimates, int count, bw_text *out);
#endif
