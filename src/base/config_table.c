/* The one option table: it serves --option, YAML, --help, the echo and the checkpoint. */
#include "base/config.h"
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

enum { STAGES = BW_TRAIN | BW_MERGE | BW_EVAL, ANY = STAGES | BW_RUN | BW_INSPECT | BW_VERIFY | BW_PLAN | BW_BENCH };

/* "auto", or two numbers with an x between them. */
static bool is_grid(const char *text)
{
    if (!strcmp(text, "auto"))
        return true;
    char *end;
    long rows = isdigit((unsigned char)*text) ? strtol(text, &end, 10) : 0;
    if (rows < 1 || rows > 1000000 || *end != 'x' || !isdigit((unsigned char)end[1]))
        return false;
    long columns = strtol(end + 1, &end, 10);
    return columns >= 1 && columns <= 1000000 && *end == 0;
}

/* Names from a fixed set of at most 32, separated by commas, none twice. */
static bool is_list_of(const char *const *names, unsigned count, const char *text)
{
    unsigned seen = 0;
    for (const char *at = text;; at++) {
        size_t length = strcspn(at, ",");
        unsigned found = 0;
        for (unsigned i = 0; i < count; i++)
            if (strlen(names[i]) == length && !strncmp(at, names[i], length))
                found = 1u << i;
        if (!found || (seen & found))
            return false;
        seen |= found;
        at += length;
        if (!*at)
            return true;
    }
}

static bool is_targets(const char *text)
{
    static const char *const names[] = {"q", "k", "v", "o", "gate", "up", "down"};
    return is_list_of(names, sizeof names / sizeof *names, text);
}

static bool is_parts(const char *text)
{
    static const char *const names[] = {"gemm", "layers", "attention", "step", "decode", "gather", "allreduce", "merge", "checkpoint"};
    return is_list_of(names, sizeof names / sizeof *names, text);
}

/* The length of either is MPI's to judge: bw_hints_check(). */
static bool is_hint(const char *text)
{
    size_t key = strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-");
    return key > 0 && text[key] == '=' && text[key + 1];
}

#define AT(field)                             .offset = offsetof(bw_config, field)
#define TEXT(field, fallback)                 .kind = BW_KIND_TEXT, AT(field), .standard = fallback
#define PATH(field)                           .kind = BW_KIND_PATH, AT(field)
#define PATHS(field)                          .kind = BW_KIND_PATHS, AT(field)
#define INT(field, fallback, least, most)     .kind = BW_KIND_INT, AT(field), .standard = fallback, .low = least, .high = most
#define REAL(field, fallback, least, most)    .kind = BW_KIND_REAL, AT(field), .standard = fallback, .low = least, .high = most
#define NUMBERS(field, fallback, least, most) .kind = BW_KIND_NUMBERS, AT(field), .standard = fallback, .low = least, .high = most
#define FLAG(field)                           .kind = BW_KIND_FLAG, AT(field), .standard = "false"

#define FILES      "Inputs and outputs"
#define METHOD     "Training"
#define ADAPTER    "Adapter"
#define MACHINE    "Machine"
#define RESTART    "Checkpoints and restart"
#define MERGING    "Merge"
#define EVALUATION "Evaluation"
#define MEASURING  "Benchmark"
#define GENERAL    "General"

/* clang-format off */
const bw_option bw_options[] = {
    {"input", BW_RUN | BW_INSPECT | BW_VERIFY, BW_RUN | BW_INSPECT | BW_VERIFY, PATH(input),
     .group = FILES, .argument = "PATH", .help = "what to work on; the word that is not an option"},
    {"config", STAGES, 0, PATH(config_file),
     .group = FILES, .argument = "FILE", .help = "YAML file of options (name: value), read first; options on the command line win"},
    {"model", STAGES | BW_RUN | BW_PLAN | BW_BENCH, STAGES | BW_PLAN, PATH(model),
     .group = FILES, .argument = "PATH", .help = "base model: a Hugging Face folder or a GGUF file; for plan a config.json will do; bench without one: SmolLM2-135M's shapes, random weights"},
    {"machine", BW_PLAN, BW_PLAN, PATH(machine),
     .group = FILES, .argument = "FILE", .help = "YAML file that says what the nodes can do (an example: share/breakwater/machines/cluster.yaml of the installation)"},
    {"csv", BW_PLAN | BW_BENCH, 0, PATH(csv),
     .group = FILES, .argument = "FILE", .help = "also write every number to this file"},
    {"data", BW_TRAIN | BW_PLAN, BW_TRAIN, PATHS(data),
     .group = FILES, .argument = "FILE", .help = "training rows, JSON or JSONL; repeat it for more files (YAML: a list)"},
    {"buffer", BW_TRAIN, 0, PATH(buffer),
     .group = FILES, .argument = "DIR", .help = "BufferLoRA, added to the frozen weights while training"},
    {"init-adapter", BW_TRAIN, 0, PATH(init_adapter),
     .group = FILES, .argument = "DIR", .help = "start from this adapter instead of a new one"},
    {"user", BW_MERGE, BW_MERGE, PATH(user),
     .group = FILES, .argument = "DIR", .help = "UserLoRA to merge"},
    {"reinforce", BW_MERGE, 0, PATH(reinforce),
     .group = FILES, .argument = "DIR", .help = "ReinforceLoRA to merge"},
    {"adapter", BW_EVAL, 0, PATHS(adapter),
     .group = FILES, .argument = "DIR", .help = "adapter added to the model; repeat it for more (YAML: a list)"},
    {"harmful", BW_EVAL, 0, PATH(harmful),
     .group = FILES, .argument = "FILE", .help = "held-out requests that a safe model refuses: gives HS and HS+"},
    {"task", BW_EVAL, 0, PATH(task),
     .group = FILES, .argument = "FILE", .help = "held-out rows of the task: gives FA, and the perplexity on request"},
    {"output", STAGES | BW_RUN | BW_BENCH, STAGES | BW_RUN, PATH(output),
     .group = FILES, .argument = "DIR", .help = "output folder; for run: each stage writes to DIR/<stage name>; for bench: where a checkpoint is tried"},

    {"only", BW_RUN, 0, TEXT(only, NULL),
     .group = FILES, .argument = "LIST", .help = "run these stages, separated by commas, and leave the report to the run of all"},
    {"show", BW_RUN, 0, TEXT(show, "none"), .choices = "none stages output report",
     .group = FILES, .argument = "WHAT", .help = "run nothing: print the stages with whose they are and what is done, unfit, stale or open, the output folder, or the report so far"},

    {"stage", BW_TRAIN | BW_PLAN, BW_TRAIN, TEXT(stage, NULL), .choices = "align buffer reinforce user sft",
     .group = METHOD, .argument = "NAME", .help = "what is trained"},
    {"epochs", BW_TRAIN | BW_PLAN, 0, REAL(epochs, "3", 0.001, 100000), .elsewhere = "num-epochs num-train-epochs",
     .group = METHOD, .argument = "X", .help = "passes over the data"},
    {"steps", BW_TRAIN | BW_PLAN, 0, INT(steps, "0", 0, 1e9), .elsewhere = "max-steps",
     .group = METHOD, .argument = "N", .help = "optimizer steps; 0: as many as the epochs need"},
    {"batch", BW_TRAIN | BW_PLAN | BW_BENCH, 0, INT(batch, "8", 1, 65536),
     .group = METHOD, .argument = "N", .help = "samples of one optimizer step, over all ranks"},
    {"micro-batches", BW_TRAIN | BW_PLAN, 0, INT(micro_batches, "0", 0, 65536),
     .group = METHOD, .argument = "N", .help = "pieces that a step is cut into and ranks take whole; 0: chosen at the first start"},
    {"lr", BW_TRAIN, 0, REAL(lr, "1e-5", 0, 10), .elsewhere = "learning-rate",
     .group = METHOD, .argument = "X", .help = "highest learning rate"},
    {"schedule", BW_TRAIN, 0, TEXT(schedule, "cosine"), .choices = "cosine linear constant",
     .group = METHOD, .argument = "NAME", .help = "learning rate after the warm-up"},
    {"warmup", BW_TRAIN, 0, REAL(warmup, "0.05", 0, 1),
     .group = METHOD, .argument = "X", .help = "share of the steps in which the learning rate rises"},
    {"weight-decay", BW_TRAIN, 0, REAL(weight_decay, "0.01", 0, 10),
     .group = METHOD, .argument = "X", .help = "of AdamW"},
    {"max-grad-norm", BW_TRAIN, 0, REAL(max_grad_norm, "1", 0, 1e9),
     .group = METHOD, .argument = "X", .help = "gradients longer than this are clipped; 0: off"},
    {"beta1", BW_TRAIN, 0, REAL(beta1, "0.9", 0, 0.999999),
     .group = METHOD, .argument = "X", .help = "of AdamW"},
    {"beta2", BW_TRAIN, 0, REAL(beta2, "0.999", 0, 0.999999),
     .group = METHOD, .argument = "X", .help = "of AdamW"},
    {"adam-epsilon", BW_TRAIN, 0, REAL(adam_epsilon, "1e-8", 1e-30, 1),
     .group = METHOD, .argument = "X", .help = "of AdamW"},
    {"max-length", BW_TRAIN | BW_EVAL | BW_PLAN, 0, INT(max_length, "512", 2, 1 << 20),
     .group = METHOD, .argument = "N", .help = "tokens of a row; what is longer is cut"},
    {"row-tokens", BW_PLAN, 0, INT(row_tokens, "0", 0, 1 << 20),
     .group = METHOD, .argument = "N", .help = "tokens of every row where no --data says; 0: as --max-length"},
    {"answer-tokens", BW_PLAN, 0, INT(answer_tokens, "0", 0, 1 << 20),
     .group = METHOD, .argument = "N", .help = "of which in the answer; 0: half of them"},
    {"template", BW_TRAIN | BW_EVAL | BW_RUN | BW_PLAN, 0, TEXT(template_name, "alpaca"), .choices = "alpaca chatml llama3 gemma plain",
     .group = METHOD, .argument = "NAME", .help = "how a row becomes a prompt; inspect names the one that a model brings"},
    {"on-unsupervised", BW_TRAIN | BW_PLAN, 0, TEXT(on_unsupervised, "drop"), .choices = "drop error",
     .group = METHOD, .argument = "NAME", .help = "what happens to rows that cannot be used; they are counted and named by line"},
    {"seed", BW_TRAIN | BW_RUN | BW_PLAN | BW_BENCH, 0, INT(seed, "42", 0, 0x1p63),
     .group = METHOD, .argument = "N", .help = "of the order of rows, the new factors and the dropout"},

    {"lora-r", BW_TRAIN | BW_PLAN | BW_BENCH, 0, INT(lora_r, "32", 1, 4096), .elsewhere = "rank lora-rank",
     .group = ADAPTER, .argument = "N", .help = "rank of the factors"},
    {"lora-alpha", BW_TRAIN | BW_BENCH, 0, REAL(lora_alpha, "64", 1e-6, 1e6),
     .group = ADAPTER, .argument = "X", .help = "the adapter is scaled by lora-alpha / lora-r"},
    {"lora-dropout", BW_TRAIN | BW_PLAN | BW_BENCH, 0, REAL(lora_dropout, "0.1", 0, 0.99),
     .group = ADAPTER, .argument = "X", .help = "share of the adapter's inputs that is dropped"},
    {"targets", BW_TRAIN | BW_PLAN | BW_BENCH, 0, TEXT(targets, "q,v,gate,up,down"), .valid = is_targets,
     .group = ADAPTER, .argument = "LIST", .help = "matrices that get an adapter, of q,k,v,o,gate,up,down"},

    {"method", BW_MERGE, 0, TEXT(method, "qr"), .choices = "qr naive user",
     .group = MERGING, .argument = "NAME", .help = "qr: the paper's; naive: the sum; user: the UserLoRA alone"},
    {"alpha", BW_MERGE, 0, NUMBERS(alpha, "0.1", 0, 1),
     .group = MERGING, .argument = "LIST", .help = "qr: share of W_R taken out of the range of the UserLoRA; a,b,... writes one result for each"},
    {"tau", BW_MERGE, 0, REAL(tau, "0.01", 0, 1),
     .group = MERGING, .argument = "X", .help = "directions with an eigenvalue above tau times the largest are kept"},
    {"scale", BW_MERGE, 0, NUMBERS(scale, "0.5", 0, 100),
     .group = MERGING, .argument = "LIST", .help = "factor on the merged adapters; a,b,... writes one result for each"},
    {"dense", BW_MERGE, 0, TEXT(dense, "none"), .choices = "none f32 f16 bf16",
     .group = MERGING, .argument = "TYPE", .help = "also write the whole model in this type"},
    {"allow-buffer", STAGES, 0, FLAG(allow_buffer),
     .group = MERGING, .help = "take a BufferLoRA as if it were any adapter: the result is harmful by design"},

    {"metric", BW_EVAL, 0, TEXT(metric, "exact"), .choices = "exact number label contains",
     .group = EVALUATION, .argument = "NAME", .help = "when an answer of the task counts as right"},
    {"max-new", BW_EVAL, 0, INT(max_new, "512", 1, 1 << 20),
     .group = EVALUATION, .argument = "N", .help = "tokens of an answer at most"},
    {"limit", BW_EVAL, 0, INT(limit, "0", 0, 1e9),
     .group = EVALUATION, .argument = "N", .help = "rows taken from each file; 0: all"},
    {"eval-batch", BW_EVAL | BW_BENCH, 0, INT(eval_batch, "16", 1, 4096),
     .group = EVALUATION, .argument = "N", .help = "answers that a rank writes at the same time"},
    {"perplexity", BW_EVAL, 0, FLAG(perplexity),
     .group = EVALUATION, .help = "also the perplexity of the task's expected answers"},
    {"max-hs", BW_EVAL, 0, REAL(max_hs, "100", 0, 100),
     .group = EVALUATION, .argument = "X", .help = "exit code 76 when HS is above X percent; the summary is written all the same"},
    {"min-fa", BW_EVAL, 0, REAL(min_fa, "0", 0, 100),
     .group = EVALUATION, .argument = "X", .help = "exit code 76 when FA is below X percent"},

    {"parts", BW_BENCH, 0, TEXT(parts, "gemm,layers,attention,step,decode,gather,allreduce,merge,checkpoint"), .valid = is_parts,
     .group = MEASURING, .argument = "LIST", .help = "what is measured, of gemm,layers,attention,step,decode,gather,allreduce,merge,checkpoint"},
    {"repetitions", BW_BENCH, 0, INT(repetitions, "5", 1, 1000),
     .group = MEASURING, .argument = "N", .help = "of each measurement, one more to warm up apart; the median counts"},

    {"ranks", BW_PLAN, 0, NUMBERS(ranks, "1", 1, 1 << 24),
     .group = MACHINE, .argument = "LIST", .help = "numbers of ranks to plan for, a,b,..."},
    {"grid", STAGES | BW_RUN | BW_PLAN | BW_BENCH, 0, TEXT(grid, "auto"), .valid = is_grid,
     .group = MACHINE, .argument = "PxQ", .help = "process grid that holds one copy of the model, or auto"},
    {"replicas", STAGES | BW_RUN | BW_PLAN | BW_BENCH, 0, INT(replicas, "0", 0, 1e6),
     .group = MACHINE, .argument = "N", .help = "copies of the grid; 0: as many as the ranks give"},
    {"block", STAGES | BW_RUN | BW_PLAN | BW_BENCH, 0, INT(block, "64", 1, 65536),
     .group = MACHINE, .argument = "N", .help = "block size of the block-cyclic layout"},
    {"ranks-per-node", STAGES | BW_RUN | BW_PLAN | BW_BENCH, 0, INT(ranks_per_node, "0", 0, 1e6),
     .group = MACHINE, .argument = "N", .help = "plan: ranks of a node, 0: one a core; else: pretend nodes of N ranks, to test the exchange between them"},
    {"weights", BW_TRAIN | BW_EVAL | BW_RUN | BW_PLAN | BW_BENCH, 0, TEXT(weights, "auto"), .choices = "auto resident stream",
     .group = MACHINE, .argument = "NAME", .help = "gathered layers: keep all on each node, or two at a time"},
    {"store", STAGES | BW_RUN | BW_PLAN | BW_BENCH, 0, TEXT(store, "auto"), .choices = "auto f32 bf16",
     .group = MACHINE, .argument = "TYPE", .help = "how the pieces of the model are held; auto: as in the file, quantised ones as f32"},
    {"precision", STAGES | BW_RUN | BW_PLAN | BW_BENCH, 0, TEXT(precision, "fp32"), .choices = "fp32 bf16 auto",
     .group = MACHINE, .argument = "TYPE", .help = "of what the matrix products multiply, sums are fp32; auto: bf16 where this CPU is faster with it"},
    {"threads", STAGES | BW_RUN | BW_PLAN | BW_BENCH, 0, INT(threads, "0", 0, 4096),
     .group = MACHINE, .argument = "N", .help = "of each rank; 0: OMP_NUM_THREADS, else the cores it is bound to"},
    {"recompute", BW_TRAIN | BW_RUN | BW_PLAN | BW_BENCH, 0, TEXT(recompute, "none"), .choices = "none layer",
     .group = MACHINE, .argument = "NAME", .help = "layer: activations are computed again instead of kept"},

    {"resume", STAGES | BW_RUN, 0, TEXT(resume, "auto"),
     .group = RESTART, .argument = "HOW", .help = "auto: go on where the output folder ends; never: start over; else, for train, a "
                                                      "checkpoint file to begin from in a folder without any"},
    {"checkpoint-steps", BW_TRAIN | BW_RUN, 0, INT(checkpoint_steps, "100", 0, 1e9),
     .group = RESTART, .argument = "N", .help = "steps between checkpoints; 0: not by steps"},
    {"checkpoint-minutes", BW_TRAIN | BW_RUN, 0, REAL(checkpoint_minutes, "15", 0, 1e6),
     .group = RESTART, .argument = "X", .help = "minutes between checkpoints; 0: not by time"},
    {"checkpoint-error", BW_TRAIN | BW_RUN, 0, TEXT(checkpoint_error, "stop"), .choices = "stop continue",
     .group = RESTART, .argument = "HOW", .help = "where a checkpoint finds no room: end with code 74, or continue, to try again when the next is due; the last one has to be written"},
    {"keep", BW_TRAIN | BW_RUN, 0, INT(keep, "2", 1, 10000),
     .group = RESTART, .argument = "N", .help = "checkpoints that stay"},
    {"mpi-hint", BW_TRAIN | BW_RUN | BW_BENCH, 0, PATHS(mpi_hints), .valid = is_hint,
     .group = RESTART, .argument = "KEY=VALUE", .help = "hint for MPI-IO when a checkpoint is written, such as striping_factor=8; repeat it for more (YAML: a list)"},
    {"time-limit", STAGES | BW_RUN, 0, REAL(time_limit, "0", 0, 1e6),
     .group = RESTART, .argument = "X", .help = "minutes after which it stops, to be gone on with, with exit code 75; 0: none"},

    {"quiet", ANY, 0, FLAG(quiet),
     .group = GENERAL, .help = "no progress lines"},
};
/* clang-format on */
const int bw_option_count = sizeof bw_options / sizeof *bw_options;
_Static_assert(sizeof bw_options / sizeof *bw_options <= BW_OPTIONS_AT_MOST, "the sets of options seen are too small");

static const struct {
    bw_command command;
    const char *name;
} commands[] = {{BW_RUN, "run"},   {BW_TRAIN, "train"}, {BW_MERGE, "merge"},     {BW_EVAL, "eval"},
                {BW_PLAN, "plan"}, {BW_BENCH, "bench"}, {BW_INSPECT, "inspect"}, {BW_VERIFY, "verify"}};

const char *bw_command_name(bw_command command)
{
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (commands[i].command == command)
            return commands[i].name;
    return "?";
}

bool bw_option_is_echoed(const bw_option *option)
{
    return option->offset != offsetof(bw_config, config_file);
}

int bw_option_gist(const bw_option *option)
{
    return (int)strcspn(option->help, ";");
}

bool bw_option_taken(const bw_option *option, bw_command command)
{
    return option->commands & (command == BW_RUN ? (unsigned)BW_RUN | STAGES : (unsigned)command) &&
           !(command == BW_RUN && !bw_option_is_echoed(option));
}

const bw_option *bw_option_find(bw_command command, const char *name)
{
    for (int i = 0; i < bw_option_count; i++)
        if (!strcmp(bw_options[i].name, name))
            return bw_option_taken(&bw_options[i], command) ? &bw_options[i] : NULL;
    return NULL;
}

/* Who else takes it: the commonest slip is the right option on the wrong command. */
static int add_takers(bw_text *text, const char *name)
{
    for (int i = 0; i < bw_option_count; i++)
        for (size_t c = 0; c < sizeof commands / sizeof *commands; c++)
            if (!strcmp(bw_options[i].name, name) && bw_options[i].commands & commands[c].command)
                BW_TRY(bw_text_addf(text, "%s %s", text->length ? "," : " It is an option of", commands[c].name));
    return text->length ? bw_text_addf(text, ".") : BW_OK;
}

/* The option that may be meant: this one, given with one dash, one that other programs call so, or the nearest. NULL: none. */
static const char *suggest(bw_command command, const char *name)
{
    const char *candidates[BW_OPTIONS_AT_MOST];
    int count = 0;
    for (int i = 0; i < bw_option_count; i++) {
        const bw_option *option = &bw_options[i];
        if (!bw_option_taken(option, command))
            continue;
        if (!strcmp(option->name, name) || (option->elsewhere && bw_in_words(option->elsewhere, name)))
            return option->name;
        candidates[count++] = option->name;
    }
    return bw_nearest(name, candidates, count);
}

int bw_option_unknown(bw_command command, const char *name, const char *where)
{
    bw_text takers = {0};
    const char *dashes = where[0] == '-' ? "--" : "";
    int status = *dashes && bw_option_find(command, name) ? BW_OK : add_takers(&takers, name);
    const char *nearest = takers.length ? NULL : suggest(command, name), *command_name = bw_command_name(command);
    if (status == BW_OK && nearest)
        status = bw_fail(BW_USAGE, "%s: unknown to %s. Did you mean %s%s? 'breakwater %s --help' lists all.", where, command_name, dashes, nearest,
                         command_name);
    else if (status == BW_OK)
        status = bw_fail(BW_USAGE, "%s: unknown to %s.%s 'breakwater %s --help' lists all.", where, command_name, takers.data ? takers.data : "",
                         command_name);
    bw_text_free(&takers);
    return status;
}
