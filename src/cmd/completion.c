/* The completion for bash, from the tables of commands and options. It needs nothing but bash: no bash-completion package. */
#include "cmd/commands.h"
#include <string.h>

static const char head[] = "# bash completion for breakwater " BW_VERSION ", written by the program from its tables.\n"
                           "_breakwater() {\n"
                           "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]}\n"
                           "  local words='' kind=''\n"
                           "  COMPREPLY=()\n"
                           "  # --name=value comes in three words\n"
                           "  [ \"$word\" != = ] || word=\n"
                           "  [ \"$before\" != = ] || before=${COMP_WORDS[COMP_CWORD - 2]}\n";

static const char tail[] = "  if [ \"$COMP_CWORD\" -le 1 ]; then\n"
                           "    words=\"$commands help --help --version\"\n"
                           "  elif [ \"$command\" = help ]; then\n"
                           "    words=$commands\n"
                           "  elif [ -z \"$kind\" ] && [ -z \"$words\" ]; then\n"
                           "    [[ $word == -* ]] || kind=$takes\n"
                           "    [ -n \"$kind\" ] || words=$options\n"
                           "  fi\n"
                           "  case $kind in\n"
                           "  files) mapfile -t COMPREPLY < <(compgen -f -- \"$word\") ;;\n"
                           "  folders) mapfile -t COMPREPLY < <(compgen -d -- \"$word\") ;;\n"
                           "  '') mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$word\") ;;\n"
                           "  esac\n"
                           "  [ -z \"$kind\" ] || compopt -o filenames 2>/dev/null\n"
                           "}\n"
                           "complete -F _breakwater breakwater\n";

/* Variables of the shell for one command: its options, and what its word is. */
static int add_command(bw_text *out, const bw_command_row *row)
{
    bw_option_about about;
    const char *takes = "";
    BW_TRY(bw_text_addf(out, "  %s)\n    options='--help", row->name));
    for (int i = 0; bw_config_about(row->id, i, &about); i++) {
        if (about.word) {
            takes = "files";
            continue;
        }
        BW_TRY(bw_text_addf(out, " --%s", about.name));
        if (about.flag)
            BW_TRY(bw_text_addf(out, " --no-%s", about.name));
    }
    return bw_text_addf(out, "'\n    takes=%s\n    ;;\n", takes);
}

/* What comes after an option: one of its choices, a file, a folder, or a value that cannot be guessed. */
static int add_value(bw_text *out, const bw_option_about *about)
{
    static const char *const kinds[][2] = {{"PATH", "files"}, {"FILE", "files"}, {"DIR", "folders"}};
    const char *kind = "nothing";
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (!strcmp(about->argument, kinds[i][0]))
            kind = kinds[i][1];
    return about->choices ? bw_text_addf(out, "  --%s) words='%s' ;;\n", about->name, about->choices)
                          : bw_text_addf(out, "  --%s) kind=%s ;;\n", about->name, kind);
}

/* One table of options serves all commands, so an option's value is the same in each: told once, by the first that has it. */
static bool told_before(int command, const char *name)
{
    bw_option_about about;
    for (int c = 0; c < command; c++)
        for (int i = 0; bw_config_about(bw_commands[c].id, i, &about); i++)
            if (!strcmp(about.name, name))
                return true;
    return false;
}

static int add_values(bw_text *out)
{
    bw_option_about about;
    BW_TRY(bw_text_addf(out, "  case $before in\n"));
    for (int c = 0; c < bw_command_count; c++)
        for (int i = 0; bw_config_about(bw_commands[c].id, i, &about); i++)
            if (!about.word && !about.flag && !told_before(c, about.name))
                BW_TRY(add_value(out, &about));
    return bw_text_addf(out, "  esac\n");
}

int bw_completion(bw_text *out)
{
    BW_TRY(bw_text_addf(out, "%s  local options='' takes='' commands='", head));
    for (int i = 0; i < bw_command_count; i++)
        BW_TRY(bw_text_addf(out, "%s%s", i ? " " : "", bw_commands[i].name));
    BW_TRY(bw_text_addf(out, "'\n  case $command in\n"));
    for (int i = 0; i < bw_command_count; i++)
        BW_TRY(add_command(out, &bw_commands[i]));
    BW_TRY(bw_text_addf(out, "  esac\n"));
    BW_TRY(add_values(out));
    return bw_text_addf(out, "%s", tail);
}
