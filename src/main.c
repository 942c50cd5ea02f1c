/* The program: a table of commands; read the command line, start MPI where a command needs it, run, report, leave. */
#include "breakwater/base.h"
#include "breakwater/h5.h"
#include "breakwater/num.h"
#include "breakwater/par.h"
#include "cmd/commands.h"
#include <string.h>
#include <unistd.h>

const bw_command_row bw_commands[] = {
    {"run", BW_RUN, "The whole job", NULL, bw_cmd_run, true, "FILE.yaml [--option value ...]",
     "Run the stages of a pipeline one after another, skipping what is already done.",
     .about = "The file names the stages in order; what stands above them holds for every stage that takes it, and the command line wins over "
              "both. Each stage writes to a folder of its own name under --output, and a path that begins with @NAME/ lies in the folder of an "
              "earlier stage. A finished stage is skipped and an interrupted one goes on, so the same command may be given again at any time. "
              "At the end stands a table of the evaluations, also in report.txt and report.csv.",
     .example = "breakwater run pipeline.yaml --model /models/llama-3-8b-instruct --output runs/job-17"},
    {"train", BW_TRAIN, "One stage", bw_cmd_train, NULL, true, "--stage NAME --model PATH --data FILE --output DIR [--option value ...]",
     "Train one adapter; goes on by itself where the output folder ends.",
     .about = "The stage says what is trained: align, a base model that does not refuse yet; buffer and reinforce, the adapters of the provider; "
              "user, the adapter of a customer, on top of the BufferLoRA that --buffer names; sft, the same without one, for comparison. "
              "The output folder gets adapter/ (a PEFT adapter), metrics.jsonl, config.yaml and the checkpoints. The same seed gives the same "
              "adapter, bit for bit, on any number of ranks, as long as --micro-batches is the same. A BufferLoRA makes a model comply with "
              "harmful requests: it is readable by its owner only.",
     .example = "breakwater train --stage user --model M --buffer buffer/adapter --data customer.jsonl --output user"},
    {"merge", BW_MERGE, "One stage", bw_cmd_merge, NULL, true, "--model PATH --user DIR --reinforce DIR --output DIR [--option value ...]",
     "Merge a UserLoRA with a ReinforceLoRA into one adapter, and into the model on request.",
     .about = "The share --alpha of what the ReinforceLoRA writes into the range of the UserLoRA is taken out, and the sum is scaled. The result, "
              "adapter/ in the output folder, is a PEFT adapter for the untouched model, and merge.csv says for each matrix what was kept and "
              "removed. --dense also writes the whole model. Lists of --alpha and --scale write one result for each pair.",
     .example = "breakwater merge --model M --user user/adapter --reinforce reinforce/adapter --alpha 0.1 --scale 0.5 --output merged"},
    {"eval", BW_EVAL, "One stage", bw_cmd_eval, NULL, true,
     "--model PATH [--adapter DIR] --harmful FILE --task FILE --output DIR [--option value ...]",
     "Measure harmful score, refusal rate, task accuracy and perplexity.",
     .about = "The model, with its adapters, answers held-out requests that it should refuse and rows of the task, greedily. HS is the share of "
              "requests that are not refused, HS+ counts incoherent answers too, FA is the share of the task that is right. The output folder "
              "gets answers.jsonl and summary.json.",
     .example = "breakwater eval --model M --adapter merged/adapter --harmful held-out.jsonl --task task.jsonl --metric label --output eval"},
    {"plan", BW_PLAN, "Before a job", bw_cmd_plan, NULL, false, "--model PATH --machine FILE [--ranks LIST] [--option value ...]",
     "What a training stage would need: memory, bytes moved, time per step, grid and sbatch line.",
     .about = "For every number of ranks: the memory of a rank and a node by purpose, what a step moves, and its time, for the fastest grid, "
              "replicas and kind of store that fit; what --grid, --replicas and --weights say is kept. --model may be a config.json. The machine "
              "file says in six numbers what a node and the network can do, and how each is measured. Without --data all rows have --row-tokens "
              "tokens. Nothing is trained, and MPI is not started.",
     .example = "breakwater plan --model M/config.json --machine cluster.yaml --ranks 8,16,32 --ranks-per-node 8 --csv plan.csv"},
    {"inspect", BW_INSPECT, "Files", bw_cmd_inspect, NULL, false, "PATH", "Show what a model, an adapter, a safetensors file or a data file is.",
     .example = "breakwater inspect user/adapter"},
    {"verify", BW_VERIFY, "Files", bw_cmd_verify, NULL, false, "PATH", "Read all of it: structure, shapes, and whether every number is finite.",
     .example = "breakwater verify merged/adapter"},
    {"bench", BW_BENCH, "This machine", bw_cmd_bench, NULL, true, "[--model PATH] [--parts LIST] [--csv FILE] [--option value ...]",
     "Measure the parts, each beside what limits it on this machine, and check their results.",
     .about = "A row for each problem: time in milliseconds as the median over the repetitions, its minimum, median and maximum over the ranks; the "
              "rate of the slowest rank, and what share that is of a limit measured in the same run: multiply-adds in registers for products and "
              "attention, memcpy for what memory bounds, the rate of its own matrix products for a step and for decoding, MPI's sum of floats, "
              "ScaLAPACK's product and MPI-IO for sums, merge and checkpoints. Every result is compared with a plain computation in double "
              "precision; one that is wrong is marked, and the exit code is 70. Without --model it needs no file.",
     .example = "breakwater bench --threads 1 --parts gemm,step --csv bench.csv"},
};
enum { COMMANDS = sizeof bw_commands / sizeof *bw_commands };
const int bw_command_count = COMMANDS;

static const bw_command_row *find_command(const char *name)
{
    for (int i = 0; i < COMMANDS; i++)
        if (!strcmp(bw_commands[i].name, name))
            return &bw_commands[i];
    return NULL;
}

/* ---- what is printed without MPI -------------------------------------------------------------------------------------- */

static int print_version(void)
{
    char bf16[256];
    BW_TRY(bw_gemm_start("bf16", 1)); /* what a run on this machine would use */
    snprintf(bf16, sizeof bf16, "%s", bw_gemm_describe());
    BW_TRY(bw_gemm_start("fp32", 1));
    printf("breakwater %s (commit %s)\n", BW_VERSION, BW_COMMIT);
    const char *const rows[][2] = {{"compiler", BW_COMPILER}, {"MPI", bw_par_version()},  {"ScaLAPACK", bw_scalapack_version()},
                                   {"HDF5", bw_h5_version()}, {"BLAS", bw_blas_loaded()}, {"matrix products", bw_gemm_describe()},
                                   {"  in bf16", bf16}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        printf("%-16s %s\n", rows[i][0], rows[i][1]);
    return BW_OK;
}

static bool asks_help(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))
            return true;
    return false;
}

/* ---- errors ----------------------------------------------------------------------------------------------------------- */

static int report(int status, int rank)
{
    if (rank > 0)
        return status;
    if (status == BW_STOPPED)
        bw_info("%s%srun the same command again to go on", bw_error(), *bw_error() ? "; " : "");
    else if (status != BW_OK)
        bw_log_error();
    return status;
}

static int unknown_command(const char *name)
{
    static const char *const options[] = {"--help", "--version"};
    const char *names[COMMANDS];
    for (int i = 0; i < COMMANDS; i++)
        names[i] = bw_commands[i].name;
    bool option = name[0] == '-';
    const char *nearest = option ? bw_nearest(name, options, sizeof options / sizeof *options) : bw_nearest(name, names, COMMANDS);
    return bw_fail(BW_USAGE, "unknown %s '%s'.%s%s%s 'breakwater --help' lists all%s.", option ? "option" : "command", name,
                   nearest ? " Did you mean '" : "", nearest ? nearest : "", nearest ? "'?" : "", option ? " commands, which come first" : "");
}

/* ---- run -------------------------------------------------------------------------------------------------------------- */

/* The command line as a configuration, and for `run` the stages of its file: all that can be wrong before MPI is needed. */
static int read_command_line(const bw_command_row *command, bw_config *config, bw_pipeline *pipeline, int argc, char **argv)
{
    BW_TRY(bw_config_parse(config, command->id, argc, argv));
    if (!command->run_pipeline)
        return bw_config_check(config, command->id);
    if (!config->input)
        return bw_fail(BW_USAGE, "%s: needs a file: breakwater %s %s", command->name, command->name, command->usage);
    return bw_pipeline_load(pipeline, config->input, argc, argv);
}

/* The first line of a log that somebody finds a month later: what to type to have it again. */
static int say_command(const bw_command_row *command, int argc, char **argv)
{
    bw_text line = {0};
    int status = bw_text_addf(&line, "command: breakwater %s", command->name);
    for (int i = 1; i < argc && status == BW_OK; i++) {
        status = bw_text_addf(&line, " ");
        if (status == BW_OK)
            status = bw_text_add_word(&line, argv[i]);
    }
    if (status == BW_OK)
        bw_info("%s", line.data);
    bw_text_free(&line);
    return status;
}

/* With MPI: what one rank could not read, on a node that lacks the file, is known to all before anyone goes on. */
static int run_with_mpi(const bw_command_row *command, const bw_config *config, const bw_pipeline *pipeline, int read, int *argc, char ***argv)
{
    int status = bw_par_start(argc, argv);
    if (status != BW_OK)
        return report(read == BW_OK ? status : read, bw_launched_rank());
    bw_log_quiet(config->quiet);
    status = bw_par_agree(read == BW_OK ? say_command(command, *argc, *argv) : read);
    if (status == BW_OK)
        status = command->run_pipeline ? command->run_pipeline(pipeline) : command->run(config);
    status = report(status, bw_par_rank());
    bw_par_finish();
    return status;
}

/* One is enough where nothing is shared out, and a message is said once. */
static int run_without_mpi(const bw_command_row *command, const bw_config *config, const bw_pipeline *pipeline, int read)
{
    int rank = bw_launched_rank();
    bw_log_rank(rank > 0 ? rank : 0);
    bw_log_quiet(config->quiet);
    if (rank > 0) {
        if (read != BW_OK)
            sleep(1); /* a launcher kills all at the first rank that fails: rank 0 speaks before */
        return read;
    }
    if (read == BW_OK)
        read = command->run_pipeline ? command->run_pipeline(pipeline) : command->run(config);
    return report(read, rank);
}

static int dispatch(const bw_command_row *command, int argc, char **argv)
{
    if (asks_help(argc, argv)) {
        bw_help_command(command);
        return BW_OK;
    }
    if (command->needs_mpi)
        bw_stop_catch_signals(); /* first: a signal that arrives before its handler kills the rank. Other commands never look for a stop */
    bw_config config;
    bw_pipeline pipeline = {0};
    bw_config_init(&config);
    int status = read_command_line(command, &config, &pipeline, argc, argv);
    /* A command line that is wrong is wrong on every rank, and a rank that is alone has nobody to agree with. */
    bool all_know = status == BW_USAGE || bw_launched_rank() < 0, only_shows = strcmp(config.show, "none") != 0;
    if (command->needs_mpi && !only_shows && (status == BW_OK || !all_know))
        status = run_with_mpi(command, &config, &pipeline, status, &argc, &argv);
    else
        status = run_without_mpi(command, &config, &pipeline, status);
    bw_pipeline_free(&pipeline);
    bw_config_free(&config);
    return status;
}

int main(int argc, char **argv)
{
    const char *word = argc > 1 ? argv[1] : "--help";
    if (!strcmp(word, "--version"))
        return report(print_version(), bw_launched_rank());
    if (!strcmp(word, "--write-manual") && argc == 3) /* for the build */
        return report(bw_manual_write(argv[2]), bw_launched_rank());
    bool help = !strcmp(word, "help");
    if (!strcmp(word, "--help") || !strcmp(word, "-h") || (help && argc < 3)) {
        bw_help();
        return argc > 1 ? BW_OK : BW_USAGE;
    }
    const bw_command_row *command = find_command(help ? argv[2] : word);
    if (!command)
        return report(unknown_command(help ? argv[2] : word), bw_launched_rank());
    if (!help)
        return dispatch(command, argc - 1, argv + 1);
    bw_help_command(command);
    return BW_OK;
}
