/* breakwater/par.h - ranks: the grid, block-cyclic matrices, gathering, reducing, ScaLAPACK. The only room that calls MPI
 * (with io/h5 and MPI-IO beside it). Communicators are hidden in bw_grid so that no other room needs <mpi.h>.
 *
 *   world = replicas x (nprow x npcol grid).  A grid holds one copy of the model, replicas repeat it.
 *   world rank = replica * (nprow*npcol) + (myrow*npcol + mycol).
 *   node = ranks that share memory.  Every rank is a data-parallel worker. */
#ifndef BREAKWATER_PAR_H
#define BREAKWATER_PAR_H
#include "breakwater/base.h"

/* ---- bcyc: block-cyclic index arithmetic, pure (ScaLAPACK Users' Guide, section 4.3; source process 0) ---------- */
typedef struct bw_bcyc { /* global m x n in mb x nb blocks */
    int64_t m, n;
    int mb, nb, nprow, npcol;
} bw_bcyc;
int64_t bw_bcyc_count(int64_t n, int nb, int proc, int nprocs);      /* numroc: entries of a dimension that `proc` owns */
int64_t bw_bcyc_global(int64_t local, int nb, int proc, int nprocs); /* local index -> global index */
int64_t bw_bcyc_local(int64_t global, int nb, int nprocs);           /* global index -> local index on its owner */
int bw_bcyc_owner(int64_t global, int nb, int nprocs);

/* ---- grid ------------------------------------------------------------------------------------------------------- */
typedef struct bw_grid {
    int size, rank; /* world */
    int nprow, npcol, myrow, mycol;
    int replicas, replica;
    int node_size, node_rank, nodes, node;
    int context;            /* BLACS context of this replica's grid */
    struct bw_comms *comms; /* private to par/ and io/h5: see src/par/comms.h */
} bw_grid;

int bw_par_start(int *argc, char ***argv); /* MPI_THREAD_FUNNELED; BW_SYSTEM */
void bw_par_finish(void);                  /* after a failure all ranks agreed on, too */
/* As bw_agree, before there is a grid, on what each rank does for itself. Where some ranks fail and others do not, the message names the rank and
 * its node. Collective on all ranks of the job. */
int bw_par_agree(int status);
int bw_par_rank(void);
int bw_par_size(void);
int bw_par_local_size(void); /* ranks on this node. Collective on world; 1 before bw_par_start */
/* Say on which hosts and cores the ranks run, and warn where that slows them down. `mine`: of this rank, with its threads. Collective on world. */
int bw_par_binding(const bw_binding *mine);
const char *bw_par_version(void); /* MPI library; callable without bw_par_start */
/* shape "auto" (nearest to square) or "PxQ"; replicas 0: as many as fit. BW_USAGE names what would fit.
 * ranks_per_node > 0 pretends nodes of that many ranks. Collective on world. */
int bw_grid_create(bw_grid **out, const char *shape, int replicas, int ranks_per_node);
/* The same shape for a plan: `size` ranks, `per_node` on a node, seen from rank 0; nothing in it communicates. BW_USAGE as above. Pure. */
int bw_grid_outline(bw_grid *grid, const char *shape, int replicas, int size, int per_node);
void bw_grid_destroy(bw_grid **grid); /* Collective on world; after everything that was made from the grid */

/* Every rank brings its status; all get the same: BW_OK when all did, else that of the failing rank with the largest
 * status (lowest rank among equals), and bw_error() on every rank is that rank's message. BW_STOPPED and BW_UNFIT count below
 * every other status, so that they hide no failure. Collective on world.
 * Rule: no early return between two collectives; agree at each phase border. */
int bw_agree(const bw_grid *grid, int status);
/* The small exchanges below: collective on world; BW_SYSTEM where MPI fails. */
int bw_barrier(const bw_grid *grid);
int bw_broadcast(const bw_grid *grid, void *bytes, int64_t count); /* from world rank 0 */
int bw_sum_ints(const bw_grid *grid, int64_t *values, int count);  /* exact, so order cannot matter */
int bw_max_ints(const bw_grid *grid, int64_t *values, int count);
int bw_min_max(const bw_grid *grid, double value, double *min, double *max);
/* Rank 0 gets every rank's bytes, concatenated in rank order; offsets[size+1], written on rank 0 only. Elsewhere *all is NULL. bw_free *all. */
int bw_collect(const bw_grid *grid, const void *mine, int64_t count, char **all, int64_t *offsets);

/* ---- stop: signals and the wall clock ask a job to end at the next place where it can go on later ------------------ */
void bw_stop_catch_signals(void); /* first thing a command does that looks for a stop */
bool bw_stop_requested(void);     /* SIGUSR1 or SIGTERM arrived; one more SIGTERM over a second later leaves at once (128 + 15). Local */
typedef enum bw_stop { BW_STOP_NONE, BW_STOP_SIGNAL, BW_STOP_TIME_LIMIT, BW_STOP_SLURM } bw_stop;
const char *bw_stop_reason(bw_stop stop); /* for a message: "a signal" */
/* Has the job to stop, and why: asked to, or fewer than `seconds` left of --time-limit (`minutes` since the program was started, 0: none) or of the
 * Slurm job (SLURM_JOB_END_TIME)? An end that is no time, or was over long before the program was started, is another job's: it is warned of, and
 * ignored. Local: agree on it. */
bw_stop bw_stop_wanted(double minutes, double seconds);
/* The clock of a loop: how long its rounds take, so that another is begun only when there is time for it. */
typedef struct bw_rounds {
    double minutes;        /* --time-limit */
    double began, longest; /* seconds */
} bw_rounds;
bw_rounds bw_rounds_begin(double minutes);
/* After round `done` of `of`: BW_STOPPED, with a message that begins with `what` and says why, when the job has to stop before the next one. Local:
 * agree on it, as on a failure. */
int bw_rounds_next(bw_rounds *rounds, const char *what, int64_t done, int64_t of);

/* Memory shared by the ranks of a node, zeroed; collective on the node, which agrees: BW_SYSTEM on all its ranks or on none. */
typedef struct bw_shared {
    void *base;
    int64_t bytes;
    void *window;
} bw_shared;
int bw_shared_create(const bw_grid *grid, bw_shared *shared, int64_t bytes, const char *purpose);
void bw_shared_free(const bw_grid *grid, bw_shared *shared);
int bw_node_sync(const bw_grid *grid); /* barrier and memory fence of the node */
/* Let messages under way move on: MPI without a thread of its own sends large ones only while it is called, so long
 * computing calls this now and then. Local, cheap, cannot fail: what goes wrong is told by the call that waits. */
void bw_advance_messages(const bw_grid *grid);

/* ---- block-cyclic matrices -------------------------------------------------------------------------------------- */
typedef enum bw_piece_type { BW_PIECE_F32, BW_PIECE_F64, BW_PIECE_BF16, BW_PIECE_F16 } bw_piece_type;
typedef struct bw_matrix {
    bw_bcyc layout;
    bw_piece_type type;
    int myrow, mycol;
    int64_t rows, cols, ld; /* local piece, column-major as ScaLAPACK wants it, ld = max(1, rows) */
    void *data;
} bw_matrix;
/* This rank's piece without its data: what a plan counts. Reads only the grid's shape and this rank's place in it. Pure. */
bw_matrix bw_matrix_outline(const bw_grid *grid, bw_piece_type type, int64_t m, int64_t n, int mb, int nb);
int64_t bw_matrix_bytes(const bw_matrix *matrix); /* of the piece's data. Pure */
/* Zeroed. Local. */
int bw_matrix_create(bw_matrix *matrix, const bw_grid *grid, bw_piece_type type, int64_t m, int64_t n, int mb, int nb, const char *purpose);
void bw_matrix_free(bw_matrix *matrix);
/* Visit the local blocks: callback gets global (i, j), extent, and the address of the block's first entry. */
typedef int (*bw_block_visitor)(void *context, const bw_matrix *matrix, int64_t i, int64_t j, int64_t rows, int64_t cols, void *block);
int bw_matrix_visit(const bw_matrix *matrix, bw_block_visitor visit, void *context);
/* Every shares-th local block, from `share`, on all threads: `visit` runs for several blocks at a time. The largest status of them. */
int bw_matrix_visit_on_threads(const bw_matrix *matrix, int share, int shares, bw_block_visitor visit, void *context);
/* A visited block (leading dimension: the piece's ld), to and from dense rows: out[r*ld + c] = block[r + c*block_ld] as fp32, and
 * block[r + c*block_ld] = in[r*ld + c] in the piece's type, rounded once. Between fp32 the bits stay. Pure. */
void bw_block_to_dense(float *out, int64_t ld, const void *block, bw_piece_type type, int64_t block_ld, int64_t rows, int64_t cols);
/* To rows of bf16: rounded to nearest even, a float64 to fp32 before that. */
void bw_block_to_half(uint16_t *out, int64_t ld, const void *block, bw_piece_type type, int64_t block_ld, int64_t rows, int64_t cols);
void bw_block_from_dense(void *block, bw_piece_type type, int64_t block_ld, const float *in, int64_t ld, int64_t rows, int64_t cols);
/* Fill from / copy to a dense row-major fp32 array that every rank holds whole. Local. */
void bw_matrix_from_dense(bw_matrix *matrix, const float *dense, int64_t ld);
void bw_matrix_to_dense(const bw_matrix *matrix, float *dense, int64_t ld); /* only own entries are written */

/* ---- gather: pieces -> dense rows in node-shared memory ---------------------------------------------------------- */
typedef struct bw_gather_item {
    const bw_matrix *piece;
    void *dense; /* node-shared, row-major m x n */
    int64_t ld;
    bool half; /* dense holds bf16, rounded from the pieces; else fp32 */
    /* Called by the rank that unpacked a block of fp32, before anyone may read it; NULL for none. */
    void (*after)(void *context, float *block, int64_t ld, int64_t i, int64_t j, int64_t rows, int64_t cols);
    void *context;
} bw_gather_item;
typedef struct bw_gather bw_gather;
/* Plan who sends which position of the grid to which node. Collective on world. */
int bw_gather_create(bw_gather **out, const bw_grid *grid);
void bw_gather_destroy(bw_gather **gather);
/* Start fetching `count` items; at most one gather is under way. finish() returns when the node's copy is whole and
 * visible to all its ranks. Both collective on world. The caller sees to it that nobody still reads `dense`. */
int bw_gather_start(bw_gather *gather, const bw_gather_item *items, int count);
int bw_gather_finish(bw_gather *gather);
/* As bw_advance_messages; also notes when all that this rank waits for has arrived. Local. */
void bw_gather_advance(bw_gather *gather);
int64_t bw_gather_bytes(const bw_gather *gather); /* sent and received by this rank so far */
typedef struct bw_gather_times {                  /* of the last gather that was finished, as bw_now() tells them */
    double started, arrived;                      /* the last message was seen to be there; `started` where none was to come */
    double needed, done;                          /* finish() was called, and returned */
    double waited, unpacked; /* seconds between these two: nothing to do but wait for messages; unpacking. Else: the node's ranks */
} bw_gather_times;
const bw_gather_times *bw_gather_last(const bw_gather *gather);
/* Positions of the grid that a node lacks, where all nodes have as many ranks: what it receives for every item; its ranks share them out evenly.
 * Ranks of a node are neighbours in the world, so they hold different positions until they hold all. Pure. */
int bw_gather_foreign(const bw_grid *grid);

/* ---- reduce: gradients as int64 fixed point; sums are exact, so neither rank count nor order can matter ---------- */
typedef struct bw_reduce bw_reduce;
/* `tensors` of sizes[] entries; bucket_of[tensor] in 0..buckets-1, tensors of a bucket adjacent. Entry value = integer * 2^-exponent. */
int bw_reduce_create(bw_reduce **out, const bw_grid *grid, int tensors, const int64_t *sizes, const int *bucket_of, int buckets);
void bw_reduce_destroy(bw_reduce **reduce);
int64_t bw_reduce_integers(int tensors, int64_t entries); /* int64 that a step sums over the ranks: every entry, and a bound a tensor. Pure */
void bw_reduce_exponents(bw_reduce *reduce, int *exponents, bool set);    /* get or set all: kept in the checkpoint */
void bw_reduce_begin(bw_reduce *reduce);                                  /* zero the sums */
void bw_reduce_add(bw_reduce *reduce, int tensor, const float *gradient); /* one micro-batch; rounds to nearest even; notes overflow, NaN, Inf */
int bw_reduce_launch(bw_reduce *reduce, int bucket); /* non-blocking sum over world; each bucket once per step, same order everywhere */
int bw_reduce_finish(bw_reduce *reduce);             /* wait for all buckets */
/* Since begin: before finish() what this rank saw, after it the same on every rank. For each tensor the largest magnitudes of all
 * micro-batches must add up to less than 2^62 units, which no distribution over ranks can change. */
bool bw_reduce_overflowed(const bw_reduce *reduce);
bool bw_reduce_nonfinite(const bw_reduce *reduce); /* this rank saw NaN or Inf since begin; the trainer agrees on it */
const int64_t *bw_reduce_sum(const bw_reduce *reduce, int tensor);
double bw_reduce_norm(const bw_reduce *reduce); /* 2-norm of all tensors, fixed order; same bits on every rank */
void bw_reduce_advance(bw_reduce *reduce);      /* next step's exponents from this step's exact maxima, headroom 2^20 */
void bw_reduce_widen(bw_reduce *reduce);        /* after an overflow: 20 bits more headroom, then do the step again */

/* ---- scalapack: the only caller of BLACS and ScaLAPACK. F64 pieces; collective on the grid ------------------------ */
int bw_blacs_open(bw_grid *grid); /* called by bw_grid_create */
void bw_blacs_close(bw_grid *grid);
/* C = alpha * op(A) op(B) + beta * C */
int bw_pgemm(const bw_grid *grid, bool trans_a, bool trans_b, double alpha, const bw_matrix *a, const bw_matrix *b, double beta, bw_matrix *c);
/* Copy into the rows from `row` and the columns from `col` on of a matrix of another layout; types alike, F32 too (p?gemr2d). */
int bw_redistribute(const bw_grid *grid, const bw_matrix *from, bw_matrix *to, int64_t row, int64_t col);
/* Eigenpairs of a small symmetric matrix held whole by every rank, ascending: LAPACK dsyev, local. v column-major. */
int bw_symmetric_eigen(int n, double *matrix_in_vectors_out, double *values);
const char *bw_scalapack_version(void);
const char *bw_blas_loaded(void); /* path of the library that dgemm_ really came from */

/* ---- hints: "KEY=VALUE", for MPI-IO ------------------------------------------------------------------------------------- */
int bw_hints_check(const bw_list *hints);                        /* BW_USAGE: one without key or value, or longer than this MPI takes. Pure */
const char *bw_hint_find(const bw_list *hints, const char *key); /* the value that counts, which is the last; NULL: none. Pure */

/* ---- plain: what MPI does by itself, the limits that the benchmark compares with. Collective on world ------------------- */
int bw_plain_sum(const bw_grid *grid, float *values, int64_t count); /* in place */
/* `bytes` of `mine` from every rank of replica 0, one share after another, to a file that is synced; the file stays. */
int bw_plain_write(const bw_grid *grid, const char *path, char *mine, int64_t bytes);
int bw_plain_read(const bw_grid *grid, const char *path, char *mine, int64_t bytes); /* what bw_plain_write wrote */
#endif
