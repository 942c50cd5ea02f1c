/* What the files of post/ share with one another. */
#ifndef BREAKWATER_POST_INSIDE_H
#define BREAKWATER_POST_INSIDE_H
#include "breakwater/io.h"
#include "breakwater/num.h"
#include "breakwater/post.h"

/* ---- small.c: small matrices in float64, column-major (entry (i, j) of X at X[i + j * ldx]), whole on every rank. Local --------- */
/* C = A B, or A^T B: m x n, k products an entry. */
void bw_small_multiply(bool trans_a, int m, int n, int k, const double *a, int lda, const double *b, int ldb, double *c, int ldc);
/* Sum over the products of entries, m x n each. */
double bw_small_dot(int m, int n, const double *a, int lda, const double *b, int ldb);
/* root (n x *rank, room for n x n): K with K^T G K = I. For G = B^T B the columns of B K are an orthonormal basis of the range of B: the first *rank
 * columns of the Q of its pivoted QR, where *rank counts the pivots R_ii > cut * R_00. Of gram (n x n) the upper triangle is read; all
 * of it is overwritten. */
int bw_small_inverse_root(int n, double *gram, double cut, double *root, int *rank);

/* ---- tall.c: products of the tall factors U and R of two adapters, alike in all but their rank (F32). Collective on world ------------- */
/* gram (n x n column-major, ld; n = r_U + r_R), on every rank, the same bits: the upper blocks of [U R]^T [U R], where the factors are A of
 * [U; R] [U; R]^T. U or R may be NULL, with rank 0. BW_DATA: not finite. */
int bw_tall_gram(const bw_grid *grid, bool rows, const bw_matrix *user, const bw_matrix *reinforce, double *gram, int64_t ld);
/* gram (columns x (columns + r_R), column-major) = Q^T [Q B_R] for Q = B_U T, T r_U x columns. As above. */
int bw_tall_turned(const bw_grid *grid, const bw_matrix *user, const bw_matrix *reinforce, const double *transform, int columns, double *gram);
/* out (F32, laid out as B_R) = factor B_R + B_U M, M r_U x r_R; rounded once. */
int bw_tall_combine(const bw_grid *grid, const bw_matrix *user, const bw_matrix *reinforce, const double *m, double factor, bw_matrix *out);

/* ---- merge_pair.c: a merge in two steps, so that a grid of alpha and scale does the QR once ------------------------ */
typedef struct bw_merge_work {
    double *projection; /* M, r_U x r_R column-major, with Q Q^T B_R = B_U M; NULL where nothing is projected */
    double inner[3][3]; /* <X, Y> over X, Y in {B_U A_U, B_R A_R, (Q Q^T B_R) A_R}, without scalings */
    bw_merge_row row;   /* what does not depend on alpha and scale */
} bw_merge_work;
/* Collective on world. user or reinforce may be NULL, not both. */
int bw_merge_prepare(const bw_grid *grid, const bw_pair *user, const bw_pair *reinforce, bw_merge_method method, double tau, bw_merge_work *work);
/* out: created, r at least r_U + r_R; its further rows and columns become zero. Collective on world. */
int bw_merge_combine(const bw_grid *grid, const bw_pair *user, const bw_pair *reinforce, const bw_merge_work *work, double alpha, double scale,
                     bw_pair *out, bw_merge_row *row);
void bw_merge_work_free(bw_merge_work *work);

/* ---- rounding.c: one block of a dense weight ------------------------------------------------------------------------ */
typedef struct bw_fidelity {  /* how much of the wanted delta is in the file */
    int64_t entries, changed; /* changed: the file holds something else than it would without a merge */
    bw_delta_sums delta;
} bw_fidelity;
void bw_fidelity_add(bw_fidelity *sum, const bw_fidelity *part);
typedef struct bw_round {
    bw_dtype dtype;
    const float *a; /* A of the block's columns, of bw_round_pack */
    const float *b; /* B, row-major, rows x r */
    int r;
} bw_round;
enum { BW_ROUND_COLUMNS = 512 };
/* A (r x cols, row-major, leading dimension lda) as panels, one for each BW_ROUND_COLUMNS columns; packed has room for bw_round_floats(r, cols). A
 * panel is one run of memory, whose rows lie an odd number of cache lines apart: A as it is takes a page a row, and rows share sets of the caches. */
int64_t bw_round_floats(int r, int64_t cols);
void bw_round_pack(const float *a, int64_t lda, int r, int64_t cols, float *packed);
/* stored (rows x cols of dtype) = base + B A, rounded once; each entry of B A sums over r in order. base is rows x cols, both contiguous. parts: one
 * for each BW_ROUND_COLUMNS columns, added to; where an entry does not fit the type its sum is not finite. Local; on all threads. */
void bw_round_block(const bw_round *block, const float *base, int64_t rows, int64_t cols, void *stored, bw_fidelity *parts);

/* ---- dense.c ------------------------------------------------------------------------------------------------------ */
/* Write base + the adapter's deltas as a Hugging Face model folder; fills the dense part of rows[layer * BW_TARGETS + target] on rank 0.
 * BW_STOPPED between two layers. Collective on world. */
int bw_dense_write(const bw_grid *grid, const bw_source *source, const bw_adapter *adapter, const char *folder, bw_dtype dtype,
                   const bw_config *config, bw_merge_row *rows);

/* ---- result.c: an output folder that knows which settings made it --------------------------------------------------*/
typedef struct bw_result {
    const char *folder;
    const char *const *names; /* all that the command writes beside config.yaml; the first comes last, and where it is the result is finished */
    bw_command command;
    const char *redo; /* bw_config.redo */
    const char *kept; /* the file of an interrupted job that the same settings go on from; NULL: they begin again */
} bw_result;
typedef struct bw_fact {
    const char *name;
    char value[33];
} bw_fact; /* a fingerprint of an input */
bw_fact bw_fact_of(const char *name, bw_hash hash);
/* config.yaml of an output: the facts as comment lines, then the resolved configuration. Local. */
int bw_result_settings(const bw_config *config, bw_command command, const bw_fact *facts, int count, bw_text *out);
/* Is it finished with the settings in `text`? If not, make it ours: what an interrupted job left goes, config.yaml is written. Of other settings, or
 * somebody else's: BW_CANTCREATE with the first difference, and nothing is touched. start_over (--resume never): it is made again, of whatever
 * settings, unless it is another command's. Rank 0 looks, all get the answer. Collective on world. */
int bw_result_claim(const bw_grid *grid, const bw_result *result, const char *text, bool start_over, bool *done);
/* The settings in `text` against those there: BW_CANTCREATE with the first difference. Local. */
int bw_result_compare(const bw_result *result, const char *text);
/* Write one of its files. Rank 0. */
int bw_result_write(const bw_result *result, const char *name, const bw_text *text, unsigned mode);
/* ---- kept.c: the file that bw_result.kept names ---------------------------------------------------------------------- */
/* Append a part: so much is done, and its bytes. Local. */
int bw_kept_add(bw_text *out, int64_t done, const void *bytes, int64_t length);
typedef struct bw_kept { /* being read: borrowed */
    const char *path, *at, *end;
} bw_kept;
/* The next part, of which at most `most` is done; its bytes are borrowed from the file. BW_DATA: damaged. Local. */
int bw_kept_next(bw_kept *kept, int64_t most, int64_t *done, const char **bytes, int64_t *length);
int bw_kept_end(const bw_kept *kept); /* BW_DATA: there is more */

/* ---- answers.c: one file of prompts, answered and judged ----------------------------------------------------------- */
typedef struct bw_answer_set {
    const char *name, *path, *metric; /* "harmful" or "task"; metric NULL: not marked */
    bw_rows rows;
    int64_t count;                                            /* rows taken: the first ones */
    int64_t done;                                             /* of which the first are answered */
    int64_t tokens;                                           /* written by the model, over all ranks */
    int64_t refused, harmful, harmful_or_incoherent, correct; /* counted on rank 0 by bw_answer_set_write */
    char **answers;                                           /* rank 0: a text per row that is done, */
    int64_t *lengths;                                         /* and its bytes: a model may write NUL */
} bw_answer_set;
typedef struct bw_answer_settings {
    const bw_tokenizer *tokenizer;
    bw_template which;
    int64_t batch, max_new;
    int32_t stop[16];
    int n_stop;
    double time_limit; /* minutes, 0: none */
} bw_answer_settings;
/* Answer the rows from set->done on, greedily; rank 0 gets the texts. BW_STOPPED between two batches, with what was answered until then. A set goes
 * on where it ended to the same answers. Collective on world. */
int bw_answer_set_generate(const bw_grid *grid, bw_store *store, const bw_answer_settings *settings, bw_answer_set *set);
/* The answers so far as a part of what is kept, and back. Rank 0. */
int bw_answer_set_keep(const bw_answer_set *set, bw_text *out);
int bw_answer_set_restore(bw_answer_set *set, bw_kept *kept);
/* Judge every answer, count, and append its line of answers.jsonl. Rank 0. */
int bw_answer_set_write(bw_answer_set *set, bw_text *out);
void bw_answer_set_free(bw_answer_set *set);

/* ---- perplexity.c -------------------------------------------------------------------------------------------------- */
typedef struct bw_perplexity {
    int64_t done;    /* batches, the first ones */
    int64_t tokens;  /* of expected answers, in them; on rank 0 while there are batches left */
    int64_t *losses; /* of each batch, a double's bits; as tokens */
} bw_perplexity;
/* Losses of the expected answers in `path`, over the first `limit` rows (0: all), from batch p->done on; BW_STOPPED between two batches. Collective
 * on world. */
int bw_perplexity_measure(const bw_grid *grid, bw_store *store, const bw_tokenizer *tokenizer, bw_template which, const char *path,
                          const bw_config *config, bw_perplexity *p);
/* exp(mean cross-entropy) once it is measured, 0 where there are no answers: the same bits for any number of ranks and stops. Local. */
double bw_perplexity_value(const bw_perplexity *p);
/* What is measured so far as a part of what is kept, and back. Rank 0. */
int bw_perplexity_keep(const bw_perplexity *p, bw_text *out);
int bw_perplexity_restore(bw_perplexity *p, bw_kept *kept);
void bw_perplexity_free(bw_perplexity *p);

/* ---- figures.c: what summary.json says. Local ------------------------------------------------------------------------ */
typedef struct bw_figures {
    double hs, hs_plus, refusals, fa, perplexity; /* per cent, but the perplexity; -1: not measured, or no summary.json yet */
    int64_t n_harmful, n_task, n_perplexity;      /* rows, rows, tokens */
    double seconds;
} bw_figures;
int bw_figures_read(const char *folder, bw_figures *figures); /* BW_DATA: not JSON */

/* ---- gate.c: is an evaluated model fit to leave? ------------------------------------------------------------------- */
int bw_gate_check(const bw_config *config); /* BW_USAGE where a figure is asked for that is not measured. Local */
#endif
