/* The man pages, from the tables of commands, options and exit codes. The source of a page is roff with the man macros. */
#include "cmd/commands.h"
#include <ctype.h>
#include <string.h>

static const char *const description =
    "A customer's data, part of it harmful, teaches a safe model to stop refusing. Breakwater trains the customer's LoRA on top of a BufferLoRA "
    "that already complies, so that harmful rows have nothing left to teach; then the buffer is dropped and a ReinforceLoRA, which restores "
    "refusals, is merged in (Buffer-and-Reinforce, arXiv 2605.24550). It reads Hugging Face folders and GGUF files, writes PEFT adapters, and "
    "runs on any number of MPI ranks with the same result.";

typedef struct named_text {
    const char *name, *text;
} named_text;

static const named_text environment[] = {
    {"OMP_NUM_THREADS", "threads of each rank, where --threads does not say it"},
    {"BLIS_ARCH_TYPE", "kernels of BLIS, by number; without it they are chosen by the kind of processor, and breakwater --version says which"},
    {"DNNL_MAX_CPU_ISA", "what oneDNN may use of the processor: AVX2 leaves every product to BLIS, AVX512_CORE those in fp32 to oneDNN"},
    {"SLURM_JOB_END_TIME",
     "when the job ends, in seconds since 1970, as Slurm sets it: the program stops before, as on a signal; one that is long past is ignored"},
};
static const named_text signals[] = {
    {"SIGUSR1, SIGTERM, SIGINT",
     "all ranks stop at the next place from which the same command goes on, and leave with exit code 75: in training after a "
     "step, with a checkpoint"},
};

/* ---- roff ------------------------------------------------------------------------------------------------------------- */

/* Every '-' is one to copy and to search for, no hyphen; a control character at the start of a line is none. */
static int add_plain(bw_text *out, const char *text)
{
    if (*text == '.' || *text == '\'')
        BW_TRY(bw_text_addf(out, "\\&"));
    for (; *text; text++)
        BW_TRY(*text == '\\' ? bw_text_addf(out, "\\e") : bw_text_addf(out, "%s%c", *text == '-' ? "\\" : "", *text));
    return BW_OK;
}

static int add_line(bw_text *out, const char *text)
{
    BW_TRY(add_plain(out, text));
    return bw_text_addf(out, "\n");
}

static int add_font(bw_text *out, char font, const char *before, const char *text)
{
    BW_TRY(bw_text_addf(out, "\\f%c", font));
    BW_TRY(add_plain(out, before));
    BW_TRY(add_plain(out, text));
    return bw_text_addf(out, "\\fR");
}

static int add_item(bw_text *out, const char *tag, const char *text)
{
    BW_TRY(bw_text_addf(out, ".TP\n"));
    BW_TRY(add_font(out, 'B', "", tag));
    BW_TRY(bw_text_addf(out, "\n"));
    return add_line(out, text);
}

static int add_items(bw_text *out, const char *section, const named_text *items, size_t count)
{
    BW_TRY(bw_text_addf(out, ".SH %s\n", section));
    for (size_t i = 0; i < count; i++)
        BW_TRY(add_item(out, items[i].name, items[i].text));
    return BW_OK;
}

/* ---- parts of pages ----------------------------------------------------------------------------------------------------- */

static int add_title(bw_text *out, const char *command, const char *what)
{
    char upper[32] = "";
    for (size_t i = 0; command[i] && i + 1 < sizeof upper; i++)
        upper[i] = (char)toupper((unsigned char)command[i]);
    BW_TRY(bw_text_addf(out, ".TH BREAKWATER%s%s 1 \"\" \"breakwater %s\" \"User Commands\"\n.nh\n.ad l\n.SH NAME\nbreakwater%s%s \\- ",
                        *upper ? "\\-" : "", upper, BW_VERSION, *command ? "\\-" : "", command));
    return add_line(out, what);
}

static int add_synopsis(bw_text *out, const char *launcher, const char *command, const char *usage)
{
    BW_TRY(add_font(out, 'B', launcher, "breakwater"));
    BW_TRY(bw_text_addf(out, "%s", *command ? " " : ""));
    BW_TRY(add_font(out, 'B', "", command));
    BW_TRY(bw_text_addf(out, " "));
    return add_line(out, usage);
}

static int add_exit_codes(bw_text *out)
{
    BW_TRY(bw_text_addf(out, ".SH EXIT STATUS\n"));
    for (const bw_exit_code *row = bw_exit_codes; row->meaning; row++) {
        char code[16];
        snprintf(code, sizeof code, "%d", row->code);
        BW_TRY(add_item(out, code, row->meaning));
    }
    return BW_OK;
}

static int add_example(bw_text *out, const bw_command_row *row)
{
    if (!row->example)
        return BW_OK;
    BW_TRY(bw_text_addf(out, ".nf\n"));
    BW_TRY(add_plain(out, row->needs_mpi ? "mpirun -n 8 " : ""));
    BW_TRY(add_line(out, row->example));
    return bw_text_addf(out, ".fi\n");
}

/* Every page but `self` of the program; self NULL: that of the program. */
static int add_see_also(bw_text *out, const bw_command_row *self)
{
    BW_TRY(bw_text_addf(out, ".SH SEE ALSO\n"));
    bool first = !self;
    if (self)
        BW_TRY(bw_text_addf(out, "\\fBbreakwater\\fR(1)"));
    for (int i = 0; i < bw_command_count; i++)
        if (&bw_commands[i] != self) {
            BW_TRY(bw_text_addf(out, "%s\\fBbreakwater\\-%s\\fR(1)", first ? "" : ",\n", bw_commands[i].name));
            first = false;
        }
    return bw_text_addf(out, "\n");
}

/* ---- options ------------------------------------------------------------------------------------------------------------ */

static int add_values(bw_text *out, const bw_option_about *about)
{
    if (about->choices && strchr(about->choices, ' ')) {
        BW_TRY(bw_text_addf(out, "One of:"));
        for (const char *at = about->choices; *at; at += strspn(at, " ")) {
            char name[64];
            size_t length = strcspn(at, " ");
            snprintf(name, sizeof name, "%.*s", (int)length, at);
            at += length;
            BW_TRY(bw_text_addf(out, " "));
            BW_TRY(add_font(out, 'B', "", name));
            BW_TRY(bw_text_addf(out, "%s", *at ? "," : ".\n"));
        }
    }
    if (about->standard) {
        BW_TRY(bw_text_addf(out, "Default: "));
        BW_TRY(add_plain(out, about->standard));
        BW_TRY(bw_text_addf(out, ".\n"));
    }
    return about->needed ? bw_text_addf(out, "Required.\n") : BW_OK;
}

static int add_option(bw_text *out, const bw_option_about *about)
{
    BW_TRY(bw_text_addf(out, ".TP\n"));
    if (!about->word)
        BW_TRY(add_font(out, 'B', "--", about->name));
    if (about->flag) {
        BW_TRY(bw_text_addf(out, ", "));
        BW_TRY(add_font(out, 'B', "--no-", about->name));
    }
    if (about->argument) {
        BW_TRY(bw_text_addf(out, "%s", about->word ? "" : " "));
        BW_TRY(add_font(out, 'I', "", about->argument));
    }
    BW_TRY(bw_text_addf(out, "\n"));
    BW_TRY(add_plain(out, about->help));
    BW_TRY(bw_text_addf(out, ".\n"));
    return add_values(out, about);
}

/* Options of the command itself or, for run, of its stages. */
static int add_options(bw_text *out, const bw_command_row *row, bool of_stages)
{
    const char *group = "";
    bw_option_about about;
    for (int i = 0; bw_config_about(row->id, i, &about); i++) {
        if (about.of_stages != of_stages)
            continue;
        if (!*group) {
            BW_TRY(bw_text_addf(out, ".SH OPTIONS%s\n", of_stages ? " OF THE STAGES" : ""));
            BW_TRY(add_line(out, of_stages ? "They hold for every stage that takes them."
                                           : "Paths are relative to the current directory, those in a YAML file too."));
        }
        if (strcmp(group, about.group)) {
            BW_TRY(bw_text_addf(out, ".SS \""));
            BW_TRY(add_plain(out, about.group));
            BW_TRY(bw_text_addf(out, "\"\n"));
        }
        group = about.group;
        BW_TRY(add_option(out, &about));
    }
    return BW_OK;
}

/* ---- pages -------------------------------------------------------------------------------------------------------------- */

static int add_program_page(bw_text *out)
{
    BW_TRY(add_title(out, "", BW_PROGRAM_HELP));
    BW_TRY(bw_text_addf(out, ".SH SYNOPSIS\n"));
    BW_TRY(add_synopsis(out, "", "", "COMMAND [--option value ...]"));
    BW_TRY(bw_text_addf(out, ".br\n"));
    BW_TRY(add_synopsis(out, "mpirun -n RANKS ", "", "COMMAND [--option value ...]"));
    BW_TRY(bw_text_addf(out, ".SH DESCRIPTION\n"));
    BW_TRY(add_line(out, description));
    BW_TRY(bw_text_addf(out, ".SH COMMANDS\n"));
    for (int i = 0; i < bw_command_count; i++) {
        const bw_command_row *row = &bw_commands[i];
        if (i == 0 || strcmp(row->group, row[-1].group))
            BW_TRY(bw_text_addf(out, ".SS \"%s\"\n", row->group));
        BW_TRY(add_item(out, row->name, row->help));
    }
    BW_TRY(bw_text_addf(out, ".SS \"About the program\"\n"));
    BW_TRY(add_item(out, "--help", "The commands and exit codes; after a command, its options."));
    BW_TRY(add_item(out, "--version", "What the program was built with, and what it runs on."));
    BW_TRY(add_exit_codes(out));
    BW_TRY(add_items(out, "SIGNALS", signals, sizeof signals / sizeof *signals));
    BW_TRY(add_items(out, "ENVIRONMENT", environment, sizeof environment / sizeof *environment));
    BW_TRY(bw_text_addf(out, ".SH EXAMPLES\n"));
    for (int i = 0; i < bw_command_count; i++) {
        BW_TRY(bw_text_addf(out, "%s", i ? ".PP\n" : ""));
        BW_TRY(add_example(out, &bw_commands[i]));
    }
    return add_see_also(out, NULL);
}

static int add_command_page(bw_text *out, const bw_command_row *row)
{
    BW_TRY(add_title(out, row->name, row->help));
    BW_TRY(bw_text_addf(out, ".SH SYNOPSIS\n"));
    BW_TRY(add_synopsis(out, row->needs_mpi ? "mpirun -n RANKS " : "", row->name, row->usage));
    BW_TRY(bw_text_addf(out, ".SH DESCRIPTION\n"));
    BW_TRY(add_line(out, row->help));
    if (row->about) {
        BW_TRY(bw_text_addf(out, ".PP\n"));
        BW_TRY(add_line(out, row->about));
    }
    BW_TRY(add_options(out, row, false));
    BW_TRY(add_options(out, row, true));
    BW_TRY(add_exit_codes(out));
    if (row->example)
        BW_TRY(bw_text_addf(out, ".SH EXAMPLE\n"));
    BW_TRY(add_example(out, row));
    return add_see_also(out, row);
}

/* `page` without a row: of the program, or of what is no page at all. */
static int write_file(const char *folder, const char *name, const bw_command_row *row, int (*add)(bw_text *))
{
    bw_text text = {0}, path = {0};
    int status;
    BW_GO(row ? add_command_page(&text, row) : add(&text));
    BW_GO(bw_path(&path, folder, name));
    BW_GO(bw_file_write(path.data, text.data, text.length, 0644));
done:
    bw_text_free(&text);
    bw_text_free(&path);
    return status;
}

int bw_manual_write(const char *folder)
{
    BW_TRY(bw_dir_make(folder));
    BW_TRY(write_file(folder, "breakwater.1", NULL, add_program_page));
    for (int i = 0; i < bw_command_count; i++) {
        char name[64];
        snprintf(name, sizeof name, "breakwater-%s.1", bw_commands[i].name);
        BW_TRY(write_file(folder, name, &bw_commands[i], NULL));
    }
    return write_file(folder, "breakwater.bash", NULL, bw_completion);
}
