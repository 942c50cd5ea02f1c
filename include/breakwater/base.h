/* breakwater/base.h - what every room stands on: status, memory, text, files, options, clock, random numbers.
 * Nothing here calls MPI. */
#ifndef BREAKWATER_BASE_H
#define BREAKWATER_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* ---- status -------------------------------------------------------------------------------------------------------
 * A status is the exit code the program would leave with (sysexits.h), so nothing is translated on the way out. */
enum {
    BW_OK = 0,
    BW_USAGE = 64,      /* the command line or the configuration is wrong */
    BW_DATA = 65,       /* a file was read and its content is wrong */
    BW_NOINPUT = 66,    /* a file is missing or unreadable */
    BW_BUG = 70,        /* a fault of ours */
    BW_SYSTEM = 71,     /* out of memory, no shared memory, MPI failed */
    BW_CANTCREATE = 73, /* an output cannot be created, belongs to another run, or is in use by one */
    BW_IO = 74,         /* reading or writing broke off (full disk, a file cut short while it is read) */
    BW_STOPPED = 75,    /* stopped by a signal or the wall clock: requeue */
    BW_UNFIT = 76       /* evaluated, and misses --max-hs or --min-fa: the model is not fit to leave */
};

/* Record a message (what, where, what was expected, what to do) and return `status`. The first message since
 * bw_error_clear() is kept: the innermost caller knows most. Local. */
int bw_fail(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));
const char *bw_error(void);
void bw_error_clear(void);
/* Take the message out, to say it later or within another. Local. */
enum { BW_ERROR_BYTES = 2048 };
void bw_error_take(char message[BW_ERROR_BYTES]);
/* The status for a file or folder that could not be made, of its errno: BW_IO where the disk or a quota is full, else BW_CANTCREATE. */
int bw_create_status(int error);

/* Return from the enclosing function with the status of a call that failed. */
#define BW_TRY(call)                                                                                                                                 \
    do {                                                                                                                                             \
        int bw_try_status_ = (call);                                                                                                                 \
        if (bw_try_status_ != BW_OK)                                                                                                                 \
            return bw_try_status_;                                                                                                                   \
    } while (0)

/* The same where something must be released first: the function has `int status` and a label `done`. */
#define BW_GO(call)                                                                                                                                  \
    do {                                                                                                                                             \
        status = (call);                                                                                                                             \
        if (status != BW_OK)                                                                                                                         \
            goto done;                                                                                                                               \
    } while (0)

/* A condition that only a bug of ours can break; checked in every build. */
#define BW_ASSERT(condition)                                                                                                                         \
    do {                                                                                                                                             \
        if (!(condition))                                                                                                                            \
            return bw_fail(BW_BUG, "%s:%d: assertion failed: %s", __FILE__, __LINE__, #condition);                                                   \
    } while (0)

/* Log lines. Rank 0 speaks for all; the other ranks are silent. */
void bw_log_rank(int rank);          /* call once, after MPI is up */
int bw_launched_rank(void);          /* as the launcher's environment says, before MPI is up; -1: no launcher */
void bw_log_quiet(bool no_progress); /* --quiet */
void bw_info(const char *format, ...) __attribute__((format(printf, 1, 2))); /* stdout */
void bw_warn(const char *format, ...) __attribute__((format(printf, 1, 2))); /* stderr, "breakwater: warning: ..." */
void bw_log_error(void);                                                     /* the message of bw_fail(), as "breakwater: error: ..." on stderr */
/* A line that says how far things are. On a terminal it replaces itself, once a second; elsewhere, which is under every launcher (they give ranks
 * a terminal whose other end may be a file), it is a line of its own, every 10 s. The newest line that was held back comes before what
 * bw_info(), bw_warn() or bw_log_error() says next, so the last one is never lost. */
void bw_progress(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- memory -------------------------------------------------------------------------------------------------------
 * Zeroed, 64-byte aligned, counted by purpose. Sizes are products checked for overflow. */
void *bw_calloc(int64_t count, size_t size, const char *purpose); /* NULL: out of memory, message recorded; count 0 gives a valid pointer */
void bw_free(void *pointer);                                      /* only for bw_calloc; NULL is fine */
#define BW_NEW(pointer, count, purpose) (((pointer) = bw_calloc((int64_t)(count), sizeof *(pointer), (purpose))) ? BW_OK : BW_SYSTEM)
/* Zero memory that came from elsewhere and that nobody has touched yet, on all threads: its pages come in one call, which takes a third less time
 * than a fault for each, and, where nodes have parts of their own, near the thread that works on them. bw_calloc brings the pages in this way, too.
 */
void bw_mem_clear(void *start, int64_t bytes);
void bw_mem_note(const char *purpose, int64_t bytes); /* count memory that came from elsewhere (shared windows): + or - */
int64_t bw_mem_now(void);
int64_t bw_mem_peak(void);     /* of what is counted; bytes */
int64_t bw_mem_rss(void);      /* of the process now, from the kernel; bytes */
int64_t bw_mem_peak_rss(void); /* its largest so far */
/* One purpose's name and peak, in the order in which they came up; false past the last. */
enum { BW_MEM_NAME = 40, BW_MEM_PURPOSES = 96 };
bool bw_mem_purpose(int index, char name[BW_MEM_NAME], int64_t *peak);
int64_t bw_mem_purpose_peak(const char *name); /* 0 when nothing was ever counted under it */

/* ---- text: a growable, always terminated string --------------------------------------------------------------- */
typedef struct bw_text {
    char *data; /* NULL until the first byte arrives */
    size_t length, capacity;
} bw_text;
int bw_text_add(bw_text *text, const void *bytes, size_t length);
int bw_text_addf(bw_text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
int bw_text_add_word(bw_text *text, const char *word); /* as one word of a shell's line, in quotes where it needs them */
void bw_text_free(bw_text *text);
/* The candidate nearest to `word` by edit distance, or NULL when none is near enough to suggest. */
const char *bw_nearest(const char *word, const char *const *candidates, int count);

/* ---- files --------------------------------------------------------------------------------------------------------*/
typedef struct bw_map { /* a file mapped read-only; owner closes */
    const uint8_t *data;
    size_t size;
    char *path;
} bw_map;
/* BW_NOINPUT with errno's text; an empty file maps to size 0. A file that somebody cuts short while it is mapped ends the process at the first touch
 * of what is gone, with a line that names the file and exit code BW_IO. */
int bw_map_open(bw_map *map, const char *path);
void bw_map_close(bw_map *map);
/* Write a whole file so that it is there complete or not at all: temporary name, fsync, rename, fsync of the folder.
 * mode is that of open(2), e.g. 0644, or 0600 for a BufferLoRA. BW_CANTCREATE or BW_IO. */
int bw_file_write(const char *path, const void *bytes, size_t length, unsigned mode);
/* The two halves of bw_file_write for files written by others (HDF5, many ranks): fsync `temporary`, rename it, fsync the folder. */
int bw_file_publish(const char *temporary, const char *path); /* `temporary` may be a folder */
/* For files that are written in pieces. put: all of `count` bytes at `offset`, however little a pwrite(2) takes. finish: fsync unless `status` is a
 * failure already, and close; the first failure is returned. BW_IO; `path` is for the message. */
int bw_file_put(int descriptor, const char *path, const void *bytes, int64_t count, int64_t offset);
int bw_file_finish(int descriptor, const char *path, int status);
int bw_dir_make(const char *path); /* mkdir -p */
bool bw_file_exists(const char *path);
int bw_path(bw_text *out, const char *folder, const char *name); /* out = folder/name */

/* ---- an output folder: one job at a time, and nothing in it is deleted that the program did not write ------------ */
typedef struct bw_lock {
    bw_text folder, path; /* path: of the file .lock in it */
    bool made;            /* the folder was not there */
    int descriptor;       /* -1: not held */
} bw_lock;
/* Make the folder and hold it until bw_folder_unlock() or the end of the process, however it ends: the lock is the operating system's, and a file
 * .lock that a killed job left keeps nobody out. Held by another process, here or on another node: BW_CANTCREATE names it. A file system without
 * locks is worth a warning; on a read-only one nobody can write, and nothing is held. One process of a job does this for all. Local. */
int bw_folder_lock(bw_lock *lock, const char *folder);
void bw_folder_unlock(bw_lock *lock); /* a folder made for nothing goes again */
/* `names` ends with NULL, and is what a command writes beside config.yaml. A folder without config.yaml in which one of them is belongs to
 * somebody else: BW_CANTCREATE. Other files in it are nobody's business. */
int bw_folder_check(const char *folder, const char *const *names);
/* Delete the entries of these names, folders with all that is in them; what is not there is fine. Their unfinished ones go with them. */
int bw_folder_remove(const char *folder, const char *const *names);
/* Delete only what a killed job left unfinished of them: <name>.tmp, .tmp-write, .tmp-old. */
int bw_folder_sweep(const char *folder, const char *const *names);

typedef struct bw_hash { /* XXH3-128 */
    uint64_t high, low;
} bw_hash;
bw_hash bw_hash_bytes(const void *bytes, size_t length);
bw_hash bw_hash_join(bw_hash a, bw_hash b);        /* order matters */
int bw_hash_file(bw_hash *hash, const char *path); /* of a file's bytes; BW_NOINPUT and its like */
void bw_hash_text(bw_hash hash, char text[33]);

/* ---- clock: where the time went --------------------------------------------------------------------------------*/
double bw_now(void);    /* seconds, monotonic */
double bw_uptime(void); /* seconds since the program was started */
typedef enum bw_event {
    BW_EVENT_LOAD,
    BW_EVENT_TOKENIZE,
    BW_EVENT_GATHER,
    BW_EVENT_FORWARD,
    BW_EVENT_BACKWARD,
    BW_EVENT_LOSS,
    BW_EVENT_REDUCE,
    BW_EVENT_UPDATE,
    BW_EVENT_CHECKPOINT,
    BW_EVENT_GENERATE,
    BW_EVENT_MERGE,
    BW_EVENT_WRITE,
    BW_EVENTS
} bw_event;
typedef struct bw_event_sum {
    int64_t count;
    double seconds, flops, bytes;
} bw_event_sum;
void bw_event_add(bw_event event, double seconds, double flops, double bytes);
/* An event that others happen inside of: their time is theirs alone, so that the times of all events add up to no more than the run's. */
typedef struct bw_span {
    double start, recorded;
} bw_span;
bw_span bw_span_begin(void);
void bw_span_end(const bw_span *span, bw_event event, double flops, double bytes);
const bw_event_sum *bw_event_get(bw_event event);
const char *bw_event_name(bw_event event);

/* ---- timeline: what this rank did when, over one step --------------------------------------------------------------*/
void bw_timeline_begin(void); /* forget what was noted, and note from now on; the times that are written count from here */
void bw_timeline_end(void);
/* `what` is a literal; layer -1: of no layer. Nothing happens unless between begin and end; what the table cannot hold is left out, the latest first.
 * Main thread only. */
void bw_timeline_add(const char *what, int layer, double start, double end);
/* CSV, by start: what,layer,start_ms,end_ms; then it is forgotten. Nothing where nothing was noted. BW_CANTCREATE and its like. */
int bw_timeline_write(const char *path);

/* ---- binding: the cores that ranks may run on, as the kernel counts them (with hyper-threading: hardware threads) --- */
enum { BW_MOST_CORES = 8192 };
typedef struct bw_binding { /* of a rank */
    uint64_t cores[BW_MOST_CORES / 64];
    int threads, online; /* of the rank; cores of its host */
} bw_binding;
void bw_binding_get(bw_binding *binding); /* of this process, threads 0. Local */
void bw_binding_add(bw_binding *binding, int core);
int bw_binding_cores(const bw_binding *binding);
typedef struct bw_host_binding { /* what is said of a host; plain bytes, so that ranks can send it */
    char name[64], about[256], fault[384];
    int ranks;
} bw_host_binding;
/* From its `count` > 0 ranks. fault: empty, or what is wrong and what to do: a rank with more threads than cores, more threads than the ranks
 * together may use cores, or ranks that share some cores and not others. Pure. */
int bw_binding_of_host(bw_host_binding *out, const char *name, const bw_binding *ranks, int count);
/* One line where all hosts are alike, else one for each of the first 8 and one for the rest; and a warning, if there is one to give. Pure. */
int bw_binding_report(const bw_host_binding *hosts, int count, bw_text *lines, bw_text *warning);

/* ---- random numbers: Philox4x32-10, value = f(seed, purpose, step, sample, layer, position), never of rank or order.
 * Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11; the Random123 library. */
typedef enum bw_purpose { BW_PURPOSE_SHUFFLE = 1, BW_PURPOSE_INIT, BW_PURPOSE_DROPOUT, BW_PURPOSE_TEST } bw_purpose;
typedef struct bw_key { /* layer and purpose < 2^16 */
    uint64_t seed;
    uint32_t purpose, step, sample, layer;
} bw_key;
void bw_rng(const bw_key *key, uint32_t position, uint32_t out[4]); /* four values per position */
float bw_rng_uniform(uint32_t bits);                                /* [0, 1), 24 bits */

/* ---- configuration: one table serves YAML, --option, --help, the echo, the checkpoint and the man page ---------- */
typedef enum bw_command {
    BW_RUN = 1,
    BW_TRAIN = 2,
    BW_MERGE = 4,
    BW_EVAL = 8,
    BW_INSPECT = 16,
    BW_VERIFY = 32,
    BW_PLAN = 64,
    BW_BENCH = 128
} bw_command;
enum { BW_MAX_LIST = 64 };
typedef struct bw_list { /* of strings */
    char *items[BW_MAX_LIST];
    int count;
} bw_list;
typedef struct bw_numbers {
    double items[BW_MAX_LIST];
    int count;
} bw_numbers;

/* Every option of every command. Strings are owned by the configuration. Defaults are the paper's. */
typedef struct bw_config {
    /* inputs and outputs */
    char *model, *buffer, *init_adapter, *output, *config_file;
    bw_list data, adapter;
    char *user, *reinforce, *harmful, *task;
    /* stage */
    char *stage; /* align buffer reinforce user sft */
    double epochs;
    int64_t steps;                /* 0: from epochs */
    int64_t batch, micro_batches; /* micro_batches 0: chosen at the first start */
    double lr, warmup, weight_decay, max_grad_norm, beta1, beta2, adam_epsilon;
    char *schedule; /* cosine linear constant */
    int64_t lora_r;
    double lora_alpha, lora_dropout;
    char *targets; /* "q,v,gate,up,down" */
    int64_t max_length;
    char *template_name; /* alpaca chatml llama3 gemma plain */
    int64_t seed;
    char *on_unsupervised; /* drop error */
    /* machine */
    char *precision;        /* fp32, bf16, auto; a stage is given what auto came to */
    char *grid;             /* "auto" or "PxQ" */
    int64_t replicas;       /* 0: the rest of the ranks */
    int64_t block;          /* block size of the block-cyclic layout */
    int64_t ranks_per_node; /* 0: as MPI finds them; > 0 cuts the world into pretended nodes, to test the exchange between them */
    char *weights;          /* auto resident stream */
    char *store;            /* auto f32 bf16 */
    int64_t threads;        /* 0: the cores the rank is bound to */
    char *recompute;        /* none layer */
    /* restart */
    int64_t checkpoint_steps, keep;
    double checkpoint_minutes, time_limit; /* minutes; 0: none */
    char *checkpoint_error;                /* stop continue */
    char *resume;                          /* auto never PATH */
    bw_list mpi_hints;                     /* "KEY=VALUE", for MPI-IO */
    /* merge */
    bw_numbers alpha, scale;
    double tau;
    char *method;      /* qr naive user */
    char *dense;       /* none f32 f16 bf16 */
    bool allow_buffer; /* a BufferLoRA may be merged or evaluated as if it were a user's adapter */
    /* eval */
    char *metric; /* exact number label contains */
    int64_t max_new, limit, eval_batch;
    bool perplexity;
    double max_hs, min_fa; /* percent; 100 and 0: no gate */
    /* plan; csv: bench, too */
    char *machine, *csv;
    bw_numbers ranks;
    int64_t row_tokens, answer_tokens; /* 0: max_length; half of a row */
    /* bench */
    char *parts; /* "gemm,layers,..." */
    int64_t repetitions;
    /* run, inspect, verify */
    char *input;
    char *only; /* stages of a pipeline, separated by commas; NULL: all */
    char *show; /* none stages report */
    bool quiet;
    const char *redo; /* how to start over what this writes: options, for messages. A pipeline's stage names all that follows from it; borrowed */
} bw_config;

void bw_config_init(bw_config *config); /* defaults */
void bw_config_free(bw_config *config);
int bw_config_copy(bw_config *to, const bw_config *from); /* deep; `to` is uninitialised or cleared */
/* Parse `--name value`, `--name=value`, `--flag`, `--no-flag`; argv[0] is the command's name. `--config FILE.yaml` is read
 * first, options win. One word that is not an option is taken as `input`. An unknown option names the nearest. BW_USAGE. */
int bw_config_parse(bw_config *config, bw_command command, int argc, char **argv);
/* Checks type, range and choice; a list of paths grows by one, or is replaced by "[a, b]". */
int bw_config_set(bw_config *config, bw_command command, const char *name, const char *value);
/* After parsing: options that the command cannot do without, and those that must agree. BW_USAGE. */
int bw_config_check(const bw_config *config, bw_command command);
/* The resolved value as text, as YAML and --option take it (empty: unset); replaces what was in `value`. `index` counts the
 * options of the command, false past the last. */
bool bw_config_entry(const bw_config *config, bw_command command, int index, const char **name, bw_text *value);
int bw_config_yaml(const bw_config *config, bw_command command, bw_text *out);
/* <folder>/config.yaml is the configuration of such a command, or not there; else BW_CANTCREATE: --resume never replaces nothing of another kind. */
int bw_config_made_by(const char *folder, bw_command command);
/* What <folder>/config.yaml says of an option; "" where there is no such file or line. Local. */
int bw_config_recorded(const char *folder, const char *name, bw_text *value);
/* " --name value" for a shell, of every option that both commands take and that differs from its default. */
int bw_config_arguments(const bw_config *config, bw_command from, bw_command to, bw_text *out);
void bw_config_help(bw_command command, FILE *out);

/* An option as people are told of it: for the man pages and the completion. The strings are the table's. */
typedef struct bw_option_about {
    const char *name, *argument, *help, *group; /* argument: what its value is called; NULL for a flag */
    const char *choices, *standard;             /* choices: separated by blanks, NULL: free; standard: the default, NULL: unset */
    bool word, flag;                            /* the word that follows the command; --name and --no-name */
    bool needed;                                /* the command cannot do without it */
    bool of_stages;                             /* taken by run for its stages only */
} bw_option_about;
/* `index` counts the options that the command takes, false past the last. */
bool bw_config_about(bw_command command, int index, bw_option_about *about);

/* What a plan knows of a cluster: a YAML mapping of these names, every one of them required; see benchmarks/machines/. */
typedef struct bw_machine {
    int64_t cores;      /* of a node */
    double gemm_gflops; /* fp32 matrix product, a core while all are busy */
    double memory_gib;  /* of a node */
    double memory_gbs;  /* bandwidth of a node's memory, GB/s (10^9) */
    double network_us;  /* latency of a small message between nodes */
    double network_gbs; /* bandwidth of a node's network, one way, GB/s */
} bw_machine;
int bw_machine_load(bw_machine *machine, const char *path); /* BW_USAGE with file, line, and what is expected; BW_NOINPUT */

/* `breakwater run FILE.yaml`: top-level keys are defaults for every stage that takes them; `stages:` is a list of at most 1024
 * mappings with `name`, `command` (train, merge, eval), optionally `label` (its row in the final table), and any option of
 * that command but output: a stage writes to <output>/<name>. `@name/...` at the start of a path names the folder of an
 * earlier stage. Options of the command line (argv[0] is "run"; the word is passed over) win in every stage that takes them,
 * except over a stage's own `@` reference, which is the flow of the pipeline and not a setting. */
enum { BW_MAX_STAGES = 1024, BW_STAGE_INPUTS = 9 };
typedef struct bw_stage {
    char *name;
    char *label; /* may be NULL */
    bw_command command;
    bw_config config;
    char *redo;                         /* "--only NAME,... --resume never": this stage and all that follow from it */
    int lines[BW_STAGE_INPUTS];         /* of the file, where each kind of input is named; 0: on the command line */
    uint64_t needs[BW_MAX_STAGES / 64]; /* bw_stage_needs */
} bw_stage;
typedef struct bw_pipeline {
    char *file;
    bw_config common; /* common.output: the root folder */
    bw_stage *stages;
    int count;
} bw_pipeline;
int bw_pipeline_load(bw_pipeline *pipeline, const char *path, int argc, char **argv);
void bw_pipeline_free(bw_pipeline *pipeline);
bool bw_stage_needs(const bw_stage *stage, int index); /* refers to stage `index` by `@name` */
/* Can the inputs of the selected stages be read (NULL: of all), as far as they are not what an earlier one of them makes? BW_NOINPUT names file,
 * line, stage, option and path of the first that cannot, or the earlier stage that has to run before. Local. */
int bw_pipeline_check_inputs(const bw_pipeline *pipeline, const bool *selected);

#endif
