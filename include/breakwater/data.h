/* breakwater/data.h - text to samples to micro-batches. No MPI; does not know the model. */
#ifndef BREAKWATER_DATA_H
#define BREAKWATER_DATA_H
#include "breakwater/base.h"
#include "breakwater/io.h"

/* ---- tokenizer: byte-level BPE (GPT-2 family), from tokenizer.json or GGUF metadata ------------------------------- */
typedef struct bw_tokens {
    int32_t *ids;
    int64_t count, capacity;
} bw_tokens;
int bw_tokens_add(bw_tokens *tokens, int32_t id);
void bw_tokens_free(bw_tokens *tokens);
typedef struct bw_tokenizer bw_tokenizer;
int bw_tokenizer_load(bw_tokenizer **out, const char *tokenizer_json);
int bw_tokenizer_from_gguf(bw_tokenizer **out, const bw_tensors *gguf);
int bw_tokenizer_open(bw_tokenizer **out, const char *model_path); /* a model folder (its tokenizer.json) or a GGUF file */
void bw_tokenizer_free(bw_tokenizer *tokenizer);
/* Appends. add_special: what the post-processor adds (bos where the model has one). Special tokens in the text are
 * recognised, as Hugging Face does. Same ids as tokenizers.Tokenizer.encode(text, add_special_tokens=add_special). */
int bw_tokenizer_encode(const bw_tokenizer *tokenizer, const char *text, size_t length, bool add_special, bw_tokens *out);
/* Appends; skip_special leaves special tokens out. Ill-formed byte sequences become U+FFFD as Hugging Face does it. */
int bw_tokenizer_decode(const bw_tokenizer *tokenizer, const int32_t *ids, int64_t count, bool skip_special, bw_text *out);
int32_t bw_tokenizer_eos(const bw_tokenizer *tokenizer); /* for training text; -1: none */
int32_t bw_tokenizer_vocab(const bw_tokenizer *tokenizer);
int32_t bw_tokenizer_id(const bw_tokenizer *tokenizer, const char *token); /* -1 when absent */
const char *bw_tokenizer_eos_text(const bw_tokenizer *tokenizer);

/* ---- template: (system, instruction, input) to a prompt -----------------------------------------------------------
 * Texts go in as they are, untrimmed. No template brings a default system prompt of its own (the chat templates of some
 * models do); a system text comes only from a row's messages. bos is not part of a prompt: the tokenizer adds it. */
typedef enum bw_template { BW_TEMPLATE_ALPACA, BW_TEMPLATE_CHATML, BW_TEMPLATE_LLAMA3, BW_TEMPLATE_GEMMA, BW_TEMPLATE_PLAIN } bw_template;
int bw_template_find(const char *name, bw_template *out);
int bw_template_prompt(bw_template which, const char *instruction, const char *input, bw_text *out); /* up to where the answer begins */
const char *bw_template_end(bw_template which); /* what closes an answer, e.g. "<|im_end|>"; NULL: the tokenizer's eos */
const char *bw_template_name(bw_template which);
typedef enum bw_role { BW_ROLE_SYSTEM, BW_ROLE_USER, BW_ROLE_ASSISTANT, BW_ROLES } bw_role;
typedef struct bw_turn {
    char *text;
    bw_role role;
} bw_turn;
bool bw_template_chats(bw_template which); /* has a place for system texts and earlier turns: chatml, llama3, gemma */
/* A conversation that ends with a user turn, to a prompt; only for a template that chats. Gemma has no system role: a
 * system text opens the user turn after it. */
int bw_template_turns(bw_template which, const bw_turn *turns, int64_t count, bw_text *out);

/* What opens a turn says which of ours a chat template, as models bring it, is: a name of --template, or NULL. */
const char *bw_template_recognise(const char *text);
/* Of a model folder or GGUF file: does it bring a chat template, and which of ours is it? Local. */
int bw_template_of_model(const char *model_path, bool *there, const char **name);
/* A warning where the model brings another one of ours than `which`. Local. */
int bw_template_compare(bw_template which, const char *model_path);

/* ---- dataset ------------------------------------------------------------------------------------------------------
 * JSON array or JSONL of {"instruction","input"?,"output"} or {"messages":[{role,content},...]} (last one assistant). */
typedef struct bw_sample {
    int64_t offset;
    int32_t length, prompt_length;
    int32_t row;  /* 1-based line or element */
    int32_t file; /* of the data set's files */
} bw_sample;
typedef struct bw_row {
    /* output: NULL when absent; input: NULL or "" when there is none; instruction: the last user turn where the row has messages */
    char *instruction, *input, *output;
    bw_turn *turns; /* of a row of messages with more than one turn before the answer, else NULL */
    int64_t turn_count;
    const char *unit; /* what `row` counts, for messages: "line" or "element" */
    int32_t row;
} bw_row;
typedef struct bw_rows {
    bw_row *rows;
    int64_t count;
    bw_hash fingerprint; /* of the file's bytes */
    int64_t dropped;     /* rows left out: not JSON, wrong keys, not UTF-8 */
} bw_rows;
/* Every row of the file, in order. A row that is not JSON, not UTF-8 or has wrong keys: BW_DATA with its line; with `drop` it is
 * left out, counted and named in a warning, and only a file without one usable row fails. Local. */
int bw_rows_load(bw_rows *rows, const char *path, bool need_output, bool drop);
void bw_rows_free(bw_rows *rows);
/* The prompt of a row, earlier turns included; `path` is for the message when the template has no place for them. */
int bw_row_prompt(const bw_row *row, bw_template which, const char *path, bw_text *out);
typedef struct bw_data_file {
    char *path;
    const char *unit; /* what a sample's `row` counts: "line" or "element" */
} bw_data_file;
typedef struct bw_dataset {
    int32_t *tokens; /* all samples, concatenated: prompt + answer + eos */
    int64_t token_count;
    bw_sample *samples;
    int64_t count;
    bw_data_file *files;
    int32_t file_count;
    int64_t dropped;        /* rows left out: no answer token left after truncation, not JSON, wrong keys, not UTF-8 */
    int64_t merged_borders; /* rows where BPE merges over the border of prompt and answer */
    int64_t answer_tokens;
    bw_hash fingerprint; /* of the files' bytes, in order, with template and max_length */
} bw_dataset;
/* Several files are concatenated. on_unsupervised: "drop" names dropped rows in a warning, "error" fails. Local. */
int bw_dataset_load(bw_dataset *dataset, const bw_tokenizer *tokenizer, const bw_list *paths, bw_template which, int64_t max_length,
                    const char *on_unsupervised);
void bw_dataset_free(bw_dataset *dataset);
/* What bw_dataset_load would give, with a tokenizer of `vocab` tokens, without reading rows. Local. */
int bw_dataset_fingerprint(bw_hash *out, int32_t vocab, const bw_list *paths, bw_template which, int64_t max_length);
/* Append where a sample comes from, for a message: "FILE, line 7". */
int bw_dataset_place(const bw_dataset *dataset, int64_t sample, bw_text *out);

/* ---- batch: step -> samples -> micro-batches; a pure function of (seed, step) ------------------------------------- */
typedef struct bw_plan {
    int64_t samples, batch, micro_batches;
    uint64_t seed;
} bw_plan;
/* Where nothing else is asked for: the next power of two that gives every rank a micro-batch and none more than about 512 tokens, or 256 a thread
 * where that is more: they fill a matrix product as well as more would, while what is kept for the backward pass grows with every token. At most
 * the batch. threads: of a rank. */
int64_t bw_plan_default_cut(const bw_plan *plan, const bw_dataset *dataset, int ranks, int threads);
int64_t bw_plan_steps_per_epoch(const bw_plan *plan); /* the last batch of an epoch may be smaller */
/* Sample indices of `step`, in order; returns their number (<= batch), or -1: out of memory. Each epoch is its own permutation. */
int64_t bw_plan_step(const bw_plan *plan, int64_t step, int64_t *samples);
/* Cut a step's samples into plan->micro_batches groups balanced by tokens, seeing only lengths: group[i] for samples[i].
 * The longest first, each to the lightest group; ties by order. With more groups than samples some stay empty. Then the groups are numbered, the
 * heaviest first. */
int bw_plan_cut(const bw_plan *plan, const bw_dataset *dataset, const int64_t *samples, int64_t count, int32_t *group);
/* The group that a rank takes in a round (0, 1, ...), micro_batches where none is left: forth and back over the ranks, so that who has a heavier one
 * this time has a lighter one the next, while those of a round are alike. */
int64_t bw_plan_deal(const bw_plan *plan, int64_t round, int rank, int ranks);
/* One micro-batch, packed without padding. */
typedef struct bw_batch {
    /* targets: next token on answer rows, else -1; samples: index per token; offsets[n_seq+1] */
    int32_t *tokens, *targets, *positions, *samples, *offsets;
    int32_t n_seq;
    int64_t T, answers;
    int64_t capacity_tokens;
    int32_t capacity_seq;
} bw_batch;
int bw_batch_create(bw_batch *batch, int64_t max_tokens, int32_t max_seq);
int bw_batch_fill(bw_batch *batch, const bw_dataset *dataset, const int64_t *samples, const int32_t *group, int64_t count, int32_t which);
void bw_batch_free(bw_batch *batch);
/* Most tokens that any micro-batch of this plan has in [first, last): to size activations once. Exact up to 10^8 rows, beyond that a bound that
 * needs no walk. -1: out of memory. */
int64_t bw_plan_max_tokens(const bw_plan *plan, const bw_dataset *dataset, int64_t first, int64_t last);
#endif
