/* The configuration as text: the echo, the help, and what the man pages and the completion are made of. */
#include "base/config.h"
#include <stdlib.h>
#include <string.h>

/* The shortest decimal number that reads back as the same bits. */
static int add_real(bw_text *out, double value)
{
    char text[40];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    return bw_text_addf(out, "%s", text);
}

/* Whether every YAML reader takes the word as a string when it stands without quotes. */
static bool is_plain(const char *text)
{
    static const char *const other[] = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"};
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    for (size_t i = 0; i < sizeof other / sizeof *other; i++)
        if (!strcasecmp(text, other[i]))
            return false;
    return strspn(text, letters) + strspn(text, "/") > 0 &&
           !text[strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/_.+-")];
}

static int add_quoted(bw_text *out, const char *text)
{
    if (is_plain(text))
        return bw_text_addf(out, "%s", text);
    BW_TRY(bw_text_add(out, "\"", 1));
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            BW_TRY(bw_text_add(out, "\\", 1));
        BW_TRY(bw_text_add(out, text, 1));
    }
    return bw_text_add(out, "\"", 1);
}

static int add_paths(bw_text *out, const bw_list *list)
{
    for (int i = 0; i < list->count; i++) {
        BW_TRY(bw_text_addf(out, "%s", i ? ", " : "["));
        BW_TRY(add_quoted(out, list->items[i]));
    }
    return bw_text_addf(out, "%s", list->count ? "]" : "");
}

static int add_numbers(bw_text *out, const bw_numbers *numbers)
{
    for (int i = 0; i < numbers->count; i++) {
        BW_TRY(bw_text_addf(out, "%s", i ? ", " : "["));
        BW_TRY(add_real(out, numbers->items[i]));
    }
    return bw_text_addf(out, "%s", numbers->count ? "]" : "");
}

/* Empty text: unset. */
static int add_value(bw_text *out, const bw_config *config, const bw_option *option, bool quoted)
{
    const void *from = (const char *)config + option->offset;
    const char *text;
    switch (option->kind) {
    case BW_KIND_TEXT:
    case BW_KIND_PATH:
        text = *(char *const *)from;
        return !text ? bw_text_add(out, "", 0) : quoted ? add_quoted(out, text) : bw_text_addf(out, "%s", text);
    case BW_KIND_INT:
        return bw_text_addf(out, "%lld", (long long)*(const int64_t *)from);
    case BW_KIND_REAL:
        return add_real(out, *(const double *)from);
    case BW_KIND_FLAG:
        return bw_text_addf(out, "%s", *(const bool *)from ? "true" : "false");
    case BW_KIND_PATHS:
        return add_paths(out, from);
    case BW_KIND_NUMBERS:
        return add_numbers(out, from);
    }
    return bw_fail(BW_BUG, "%s: option of no kind", option->name);
}

bool bw_config_entry(const bw_config *config, bw_command command, int index, const char **name, bw_text *value)
{
    value->length = 0;
    for (int i = 0; i < bw_option_count; i++) {
        if (!bw_option_taken(&bw_options[i], command) || !bw_option_is_echoed(&bw_options[i]) || index-- > 0)
            continue;
        *name = bw_options[i].name;
        return add_value(value, config, &bw_options[i], false) == BW_OK;
    }
    return false;
}

int bw_config_yaml(const bw_config *config, bw_command command, bw_text *out)
{
    bw_text value = {0};
    int status = BW_OK;
    for (int i = 0; i < bw_option_count; i++) {
        if (!bw_option_taken(&bw_options[i], command) || !bw_option_is_echoed(&bw_options[i]))
            continue;
        value.length = 0;
        BW_GO(add_value(&value, config, &bw_options[i], true));
        if (value.length)
            BW_GO(bw_text_addf(out, "%s: %s\n", bw_options[i].name, value.data));
    }
done:
    bw_text_free(&value);
    return status;
}

/* ---- as a command line --------------------------------------------------------------------------------------------- */

static int add_argument(bw_text *out, const bw_option *option, const char *value)
{
    if (option->kind == BW_KIND_FLAG)
        return bw_text_addf(out, " --%s%s", strcmp(value, "true") ? "no-" : "", option->name);
    BW_TRY(bw_text_addf(out, " --%s ", option->name));
    return bw_text_add_word(out, value);
}

static int add_if_changed(bw_text *out, const bw_option *option, const bw_config *config, const bw_config *standard)
{
    bw_text value = {0}, usual = {0};
    const bw_list *list = (const void *)((const char *)config + option->offset);
    int status;
    BW_GO(add_value(&value, config, option, false));
    BW_GO(add_value(&usual, standard, option, false));
    if (strcmp(value.data, usual.data) == 0)
        goto done;
    if (option->kind != BW_KIND_PATHS)
        BW_GO(add_argument(out, option, value.data));
    for (int i = 0; option->kind == BW_KIND_PATHS && i < list->count; i++)
        BW_GO(add_argument(out, option, list->items[i]));
done:
    bw_text_free(&value);
    bw_text_free(&usual);
    return status;
}

int bw_config_arguments(const bw_config *config, bw_command from, bw_command to, bw_text *out)
{
    bw_config standard;
    int status = BW_OK;
    bw_config_init(&standard);
    for (int i = 0; status == BW_OK && i < bw_option_count; i++)
        if (bw_option_taken(&bw_options[i], from) && bw_option_taken(&bw_options[i], to) && bw_option_is_echoed(&bw_options[i]))
            status = add_if_changed(out, &bw_options[i], config, &standard);
    bw_config_free(&standard);
    return status;
}

/* ---- help ---------------------------------------------------------------------------------------------------------- */

enum { INDENT = 30, WIDTH = 100 };

/* Words wrapped at WIDTH, continued at INDENT; *column is where the line stands. */
static void print_words(FILE *out, const char *text, int *column)
{
    for (const char *at = text; *at; at += strspn(at, " ")) {
        int length = (int)strcspn(at, " ");
        if (*column + 1 + length > WIDTH && *column > INDENT)
            *column = fprintf(out, "\n%*s", INDENT, "") - 1;
        *column += fprintf(out, "%s%.*s", *column > INDENT ? " " : "", length, at);
        at += length;
    }
}

static void print_option(FILE *out, const bw_option *option)
{
    bool word = option->offset == offsetof(bw_config, input);
    int column = fprintf(out, "  %s%s%s%s",
                         word                           ? ""
                         : option->kind == BW_KIND_FLAG ? "--[no-]"
                                                        : "--",
                         word ? "" : option->name, word || !option->argument ? "" : " ", option->argument ? option->argument : "");
    if (column < INDENT)
        column += fprintf(out, "%*s", INDENT - column, "");
    else
        column = fprintf(out, "\n%*s", INDENT, "") - 1;
    print_words(out, option->help, &column);
    if (option->choices && strchr(option->choices, ' ')) {
        print_words(out, "- one of:", &column);
        print_words(out, option->choices, &column);
    }
    if (option->standard && option->kind != BW_KIND_FLAG) {
        char standard[80];
        snprintf(standard, sizeof standard, "[%s]", option->standard);
        print_words(out, standard, &column);
    }
    fputc('\n', out);
}

void bw_config_help(bw_command command, FILE *out)
{
    const char *group = "";
    for (int i = 0; i < bw_option_count; i++) {
        const bw_option *option = &bw_options[i];
        if (!(option->commands & (unsigned)command))
            continue;
        if (strcmp(group, option->group))
            fprintf(out, "\n%s\n", option->group);
        group = option->group;
        print_option(out, option);
    }
    if (command == BW_RUN)
        fputs("\nAny other option of train, merge and eval may be given too: it holds for every stage that takes it.\n", out);
    fputs("\n[..] is the default. Paths are relative to the current directory, those in a YAML file too.\n", out);
}

bool bw_config_about(bw_command command, int index, bw_option_about *about)
{
    for (int i = 0; i < bw_option_count; i++) {
        const bw_option *option = &bw_options[i];
        if (!bw_option_taken(option, command) || index-- > 0)
            continue;
        bool flag = option->kind == BW_KIND_FLAG;
        *about = (bw_option_about){
            .name = option->name,
            .argument = option->argument,
            .help = option->help,
            .group = option->group,
            .choices = option->choices,
            .standard = flag ? NULL : option->standard,
            .word = option->offset == offsetof(bw_config, input),
            .flag = flag,
            .needed = (option->required & (unsigned)command) != 0,
            .of_stages = !(option->commands & (unsigned)command),
        };
        return true;
    }
    return false;
}
