/* The option table and what config.c, config_text.c and pipeline.c share. Not for other rooms. */
#ifndef BREAKWATER_BASE_CONFIG_H
#define BREAKWATER_BASE_CONFIG_H
#include "base/yaml.h"
#include "breakwater/base.h"

typedef enum bw_kind {
    BW_KIND_TEXT,    /* char *, one of `choices` where there are any */
    BW_KIND_PATH,    /* char *; in a pipeline `@name/...` is resolved */
    BW_KIND_INT,     /* int64_t in low..high */
    BW_KIND_REAL,    /* double in low..high */
    BW_KIND_FLAG,    /* bool */
    BW_KIND_PATHS,   /* bw_list */
    BW_KIND_NUMBERS, /* bw_numbers, each in low..high */
} bw_kind;

typedef struct bw_option {
    const char *name;
    unsigned commands; /* that take it; BW_RUN: shown in the help of run, which takes every option of its stages */
    unsigned required; /* commands that cannot do without it */
    bw_kind kind;
    size_t offset;        /* in bw_config */
    const char *standard; /* default, as text; NULL: unset */
    double low, high;
    const char *choices;             /* separated by blanks */
    bool (*valid)(const char *text); /* for what choices cannot say */
    const char *elsewhere;           /* what other programs call it, separated by blanks: to suggest this one */
    const char *group, *argument, *help;
} bw_option;

extern const bw_option bw_options[];
extern const int bw_option_count;
enum { BW_OPTIONS_AT_MOST = 96 };
/* Options that are about reading the configuration, not part of it: never echoed. */
bool bw_option_is_echoed(const bw_option *option);

/* Bytes of its help that say what it is; what follows is about this or that command, or a special value. */
int bw_option_gist(const bw_option *option);

bool bw_option_taken(const bw_option *option, bw_command command);
const bw_option *bw_option_find(bw_command command, const char *name); /* NULL: unknown to this command */
/* BW_USAGE, naming the option of the command that may be meant, or the commands that do take it. where: "--lr", "-lr" or "FILE:3: lr". */
int bw_option_unknown(bw_command command, const char *name, const char *where);
const char *bw_command_name(bw_command command);

/* Replaces a path before it is stored; NULL: stored as it is. */
typedef struct bw_resolver {
    int (*resolve)(const void *context, const char *where, const char *path, bw_text *out);
    const void *context;
} bw_resolver;

/* Give an option a value from text or from a YAML node. A BW_KIND_PATHS grows by one path, or is replaced by "[a, b]". */
int bw_option_assign(bw_config *config, const bw_option *option, const char *text, const char *where, const bw_resolver *resolver);
int bw_option_assign_node(bw_config *config, const bw_option *option, const bw_yaml *yaml, int node, const char *where, const bw_resolver *resolver);
void bw_option_clear(bw_config *config, const bw_option *option); /* a list to empty, a string to NULL */

/* Call back for every option on a command line; argv[0] is the command's name. first: not seen before on this line. */
typedef int (*bw_option_visitor)(void *context, const bw_option *option, const char *value, const char *where, bool first);
int bw_arguments_visit(bw_command command, int argc, char **argv, bw_option_visitor visit, void *context);

/* Remember the line where an input of a stage was named last; other options are passed over. */
void bw_input_note(bw_stage *stage, const bw_option *option, int line);

bool bw_in_words(const char *words, const char *text); /* words: separated by blanks */
int bw_string_copy(char **to, const char *from);       /* bw_free; NULL stays NULL */

#endif
