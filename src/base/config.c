/* Options from the command line and from YAML, checked against the table. */
#include "base/config.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void *field(bw_config *config, const bw_option *option)
{
    return (char *)config + option->offset;
}

int bw_string_copy(char **to, const char *from)
{
    *to = NULL;
    if (!from)
        return BW_OK;
    size_t bytes = strlen(from) + 1;
    BW_TRY(BW_NEW(*to, bytes, "configuration"));
    memcpy(*to, from, bytes);
    return BW_OK;
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

bool bw_in_words(const char *words, const char *text)
{
    size_t length = strlen(text);
    for (const char *at = words; *at; at += strspn(at, " ")) {
        size_t word = strcspn(at, " ");
        if (word == length && !strncmp(at, text, length))
            return true;
        at += word;
    }
    return false;
}

/* Text ends up in YAML, HDF5 and messages, so it must be one line. */
static int check_text(const bw_option *option, const char *text, const char *where)
{
    if (!*text)
        return bw_fail(BW_USAGE, "%s: is empty", where);
    for (const char *at = text; *at; at++)
        if ((unsigned char)*at < 0x20 || *at == 0x7f)
            return bw_fail(BW_USAGE, "%s: '%s' contains a control character", where, text);
    if (option->choices && !bw_in_words(option->choices, text))
        return bw_fail(BW_USAGE, "%s: '%s' is not one of: %s", where, text, option->choices);
    if (option->valid && !option->valid(text))
        return bw_fail(BW_USAGE, "%s: '%s' is not a valid value (%s)", where, text, option->help);
    return BW_OK;
}

static int replace_text(char **to, const char *text)
{
    char *copy;
    BW_TRY(bw_string_copy(&copy, text));
    bw_free(*to);
    *to = copy;
    return BW_OK;
}

static int resolved(const bw_resolver *resolver, const char *where, const char *path, bw_text *out)
{
    return resolver && path[0] == '@' ? resolver->resolve(resolver->context, where, path, out) : bw_text_add(out, path, strlen(path));
}

static int set_path(char **to, const bw_option *option, const char *path, const char *where, const bw_resolver *resolver)
{
    bw_text text = {0};
    int status = check_text(option, path, where);
    if (status == BW_OK)
        status = resolved(resolver, where, path, &text);
    if (status == BW_OK)
        status = replace_text(to, text.data);
    bw_text_free(&text);
    return status;
}

static int add_path(bw_list *list, const bw_option *option, const char *path, const char *where, const bw_resolver *resolver)
{
    if (list->count == BW_MAX_LIST)
        return bw_fail(BW_USAGE, "%s: more than %d of them", where, BW_MAX_LIST);
    list->items[list->count] = NULL;
    BW_TRY(set_path(&list->items[list->count], option, path, where, resolver));
    list->count++;
    return BW_OK;
}

static int set_int(int64_t *to, const bw_option *option, const char *text, const char *where)
{
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end || strchr(" \t\n\v\f\r", *text))
        return bw_fail(BW_USAGE, "%s: '%s' is not a whole number", where, text);
    if (errno == ERANGE || (double)value < option->low || (double)value > option->high)
        return bw_fail(BW_USAGE, "%s: %s is outside %.0f..%.0f", where, text, option->low, option->high);
    *to = value;
    return BW_OK;
}

static int set_real(double *to, const bw_option *option, const char *text, const char *where)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !isfinite(value) || !strchr("+-.0123456789", *text))
        return bw_fail(BW_USAGE, "%s: '%s' is not a number", where, text);
    if (value < option->low || value > option->high)
        return bw_fail(BW_USAGE, "%s: %s is outside %g..%g", where, text, option->low, option->high);
    *to = value;
    return BW_OK;
}

static int set_flag(bool *to, const char *text, const char *where)
{
    if (strcmp(text, "true") && strcmp(text, "false"))
        return bw_fail(BW_USAGE, "%s: '%s' is neither true nor false", where, text);
    *to = text[0] == 't';
    return BW_OK;
}

static int add_number(bw_numbers *numbers, const bw_option *option, const char *text, const char *where)
{
    if (numbers->count == BW_MAX_LIST)
        return bw_fail(BW_USAGE, "%s: more than %d of them", where, BW_MAX_LIST);
    BW_TRY(set_real(&numbers->items[numbers->count], option, text, where));
    numbers->count++;
    return BW_OK;
}

/* "0.1,0.2" or "[0.1, 0.2]" replaces the list. */
static int set_numbers(bw_numbers *numbers, const bw_option *option, const char *text, const char *where)
{
    const char *at = text + (*text == '[');
    numbers->count = 0;
    while (true) {
        char number[64];
        at += strspn(at, " ");
        size_t length = strcspn(at, ", ]");
        snprintf(number, sizeof number, "%.*s", (int)(length < sizeof number ? length : sizeof number - 1), at);
        BW_TRY(add_number(numbers, option, number, where));
        at += length;
        at += strspn(at, " ");
        if (*at != ',')
            break;
        at++;
    }
    bool closed = *text == '[' ? at[0] == ']' && !at[1] : !at[0];
    return closed ? BW_OK : bw_fail(BW_USAGE, "%s: '%s' is not a list of numbers such as 0.1,0.5", where, text);
}

/* "[a, b]" as the echo writes it replaces the list; anything else is one path more. */
static int set_paths(bw_config *config, const bw_option *option, const char *text, const char *where, const bw_resolver *resolver)
{
    if (text[0] != '[')
        return add_path(field(config, option), option, text, where, resolver);
    bw_yaml *yaml;
    BW_TRY(bw_yaml_parse(&yaml, text, strlen(text), where));
    int status = bw_option_assign_node(config, option, yaml, bw_yaml_root(yaml), where, resolver);
    bw_yaml_close(&yaml);
    return status;
}

int bw_option_assign(bw_config *config, const bw_option *option, const char *text, const char *where, const bw_resolver *resolver)
{
    void *to = field(config, option);
    switch (option->kind) {
    case BW_KIND_TEXT:
        BW_TRY(check_text(option, text, where));
        return replace_text(to, text);
    case BW_KIND_PATH:
        return set_path(to, option, text, where, resolver);
    case BW_KIND_INT:
        return set_int(to, option, text, where);
    case BW_KIND_REAL:
        return set_real(to, option, text, where);
    case BW_KIND_FLAG:
        return set_flag(to, text, where);
    case BW_KIND_PATHS:
        return set_paths(config, option, text, where, resolver);
    case BW_KIND_NUMBERS:
        return set_numbers(to, option, text, where);
    }
    return bw_fail(BW_BUG, "%s: option of no kind", where);
}

void bw_option_clear(bw_config *config, const bw_option *option)
{
    if (option->kind == BW_KIND_NUMBERS)
        *(bw_numbers *)field(config, option) = (bw_numbers){0};
    if (option->kind == BW_KIND_PATHS) {
        bw_list *list = field(config, option);
        for (int i = 0; i < list->count; i++)
            bw_free(list->items[i]);
        *list = (bw_list){0};
    }
    if (option->kind == BW_KIND_TEXT || option->kind == BW_KIND_PATH) {
        char **text = field(config, option);
        bw_free(*text);
        *text = NULL;
    }
}

static int set_standard(bw_config *config, const bw_option *option)
{
    bw_option_clear(config, option);
    return option->standard ? bw_option_assign(config, option, option->standard, option->name, NULL) : BW_OK;
}

static int assign_items(bw_config *config, const bw_option *option, const bw_yaml *yaml, int node, const char *where, const bw_resolver *resolver)
{
    if (option->kind != BW_KIND_PATHS && option->kind != BW_KIND_NUMBERS)
        return bw_fail(BW_USAGE, "%s: takes one value, not a list", where);
    bw_option_clear(config, option);
    for (int i = 0; i < bw_yaml_count(yaml, node); i++) {
        const char *text = bw_yaml_text(yaml, bw_yaml_item(yaml, node, i));
        if (!text)
            return bw_fail(BW_USAGE, "%s: entry %d of the list is not a plain value", where, i + 1);
        if (option->kind == BW_KIND_NUMBERS)
            BW_TRY(add_number(field(config, option), option, text, where));
        else
            BW_TRY(add_path(field(config, option), option, text, where, resolver));
    }
    return BW_OK;
}

int bw_option_assign_node(bw_config *config, const bw_option *option, const bw_yaml *yaml, int node, const char *where, const bw_resolver *resolver)
{
    const char *text = bw_yaml_text(yaml, node);
    switch (bw_yaml_kind_of(yaml, node)) {
    case BW_YAML_NULL:
        return set_standard(config, option);
    case BW_YAML_LIST:
        return assign_items(config, option, yaml, node, where, resolver);
    case BW_YAML_SCALAR:
        if (!text)
            return bw_fail(BW_USAGE, "%s: contains a zero byte", where);
        if (option->kind == BW_KIND_PATHS) { /* a plain word is a list of one, whatever it begins with */
            bw_option_clear(config, option);
            return add_path(field(config, option), option, text, where, resolver);
        }
        return bw_option_assign(config, option, text, where, resolver);
    case BW_YAML_MAPPING:
        break;
    }
    return bw_fail(BW_USAGE, "%s: takes a value, not a mapping", where);
}

/* ---- the whole configuration --------------------------------------------------------------------------------------- */

void bw_config_init(bw_config *config)
{
    *config = (bw_config){.redo = "--resume never"};
    for (int i = 0; i < bw_option_count; i++)
        (void)set_standard(config, &bw_options[i]); /* the defaults are valid (a test proves it); out of memory shows at the first use */
}

void bw_config_free(bw_config *config)
{
    for (int i = 0; i < bw_option_count; i++)
        bw_option_clear(config, &bw_options[i]);
    *config = (bw_config){0};
}

static int copy_field(bw_config *to, const bw_config *from, const bw_option *option)
{
    const void *source = (const char *)from + option->offset;
    if (option->kind == BW_KIND_TEXT || option->kind == BW_KIND_PATH)
        return bw_string_copy(field(to, option), *(char *const *)source);
    if (option->kind != BW_KIND_PATHS)
        return BW_OK; /* numbers came with the struct */
    const bw_list *list = source;
    bw_list *copy = field(to, option);
    for (; copy->count < list->count; copy->count++)
        BW_TRY(bw_string_copy(&copy->items[copy->count], list->items[copy->count]));
    return BW_OK;
}

int bw_config_copy(bw_config *to, const bw_config *from)
{
    *to = *from;
    for (int i = 0; i < bw_option_count; i++) { /* first forget what `from` owns, so that a failure half way frees only our own */
        const bw_option *option = &bw_options[i];
        if (option->kind == BW_KIND_TEXT || option->kind == BW_KIND_PATH)
            *(char **)field(to, option) = NULL;
        if (option->kind == BW_KIND_PATHS)
            *(bw_list *)field(to, option) = (bw_list){0};
    }
    for (int i = 0; i < bw_option_count; i++) {
        int status = copy_field(to, from, &bw_options[i]);
        if (status != BW_OK) {
            bw_config_free(to);
            return status;
        }
    }
    return BW_OK;
}

int bw_config_made_by(const char *folder, bw_command command)
{
    bw_text path = {0};
    bw_config there;
    bw_config_init(&there);
    int status = bw_path(&path, folder, "config.yaml");
    char *arguments[] = {(char *)bw_command_name(command), (char *)"--config", path.data, NULL};
    if (status == BW_OK && bw_file_exists(path.data) && bw_config_parse(&there, command, 3, arguments) != BW_OK) {
        bw_error_clear();
        status = bw_fail(BW_CANTCREATE, "%s: this folder holds results of another command (its config.yaml is none of %s); name another --output",
                         folder, bw_command_name(command));
    }
    bw_config_free(&there);
    bw_text_free(&path);
    return status;
}

int bw_config_recorded(const char *folder, const char *name, bw_text *value)
{
    bw_text path = {0};
    bw_map map = {0};
    const size_t length = strlen(name);
    int status;
    BW_GO(bw_path(&path, folder, "config.yaml"));
    if (!bw_file_exists(path.data))
        goto done;
    BW_GO(bw_map_open(&map, path.data));
    for (const char *line = (const char *)map.data, *end = line + map.size; line < end && status == BW_OK;) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        stop = stop ? stop : end;
        if ((size_t)(stop - line) > length + 2 && memcmp(line, name, length) == 0 && memcmp(line + length, ": ", 2) == 0)
            status = bw_text_add(value, line + length + 2, (size_t)(stop - line) - length - 2);
        line = stop + 1;
    }
done:
    bw_map_close(&map);
    bw_text_free(&path);
    return status;
}

int bw_config_set(bw_config *config, bw_command command, const char *name, const char *value)
{
    const bw_option *option = bw_option_find(command, name);
    return option ? bw_option_assign(config, option, value, name, NULL) : bw_option_unknown(command, name, name);
}

/* ---- YAML ---------------------------------------------------------------------------------------------------------- */

static int read_mapping(bw_config *config, bw_command command, const bw_yaml *yaml)
{
    bool seen[BW_OPTIONS_AT_MOST] = {false};
    int root = bw_yaml_root(yaml), status = BW_OK;
    if (bw_yaml_kind_of(yaml, root) != BW_YAML_MAPPING)
        return bw_fail(BW_USAGE, "%s: holds no mapping of options (name: value)", bw_yaml_name(yaml));
    bw_text where = {0};
    for (int i = 0; i < bw_yaml_count(yaml, root); i++) {
        int key = bw_yaml_key(yaml, root, i);
        BW_GO(bw_yaml_where(yaml, key, &where));
        const bw_option *option = bw_option_find(command, bw_yaml_text(yaml, key));
        if (!option || !bw_option_is_echoed(option))
            BW_GO(bw_option_unknown(command, bw_yaml_text(yaml, key), where.data));
        if (seen[option - bw_options])
            BW_GO(bw_fail(BW_USAGE, "%s: is given twice", where.data));
        seen[option - bw_options] = true;
        BW_GO(bw_option_assign_node(config, option, yaml, bw_yaml_value(yaml, root, i), where.data, NULL));
    }
done:
    bw_text_free(&where);
    return status;
}

static int read_file(bw_config *config, bw_command command, const char *path)
{
    bw_yaml *yaml;
    BW_TRY(bw_yaml_open(&yaml, path));
    int status = read_mapping(config, command, yaml);
    bw_yaml_close(&yaml);
    return status;
}

/* ---- command line -------------------------------------------------------------------------------------------------- */

typedef struct cursor {
    bw_command command;
    int argc, at;
    char **argv;
    const bw_option *before; /* whose value was read last; NULL: none yet */
    bool seen[BW_OPTIONS_AT_MOST];
} cursor;

/* A word without an option: the command's input, or one value too many of the option before it. */
static int read_word(const cursor *cursor, const char *word, const bw_option **option, const char **value, bw_text *where)
{
    const bw_option *before = cursor->before;
    *option = bw_option_find(cursor->command, "input");
    *value = word;
    bool spare = !*option || cursor->seen[*option - bw_options];
    if (spare && before && before->kind == BW_KIND_PATHS)
        return bw_fail(BW_USAGE, "'%s': --%s takes one %s; repeat it for each: --%s %s", word, before->name, before->argument, before->name, word);
    if (spare && before && before->argument && !strcmp(before->argument, "LIST"))
        return bw_fail(BW_USAGE, "'%s': --%s takes a list with commas and without blanks: a,b,...", word, before->name);
    return *option ? bw_text_addf(where, "%s", (*option)->argument)
                   : bw_fail(BW_USAGE, "'%s': %s takes options only (--name value)", word, bw_command_name(cursor->command));
}

/* What an argument says: the option, its value (maybe the next argument), and its name for messages. */
static int read_argument(cursor *cursor, const bw_option **option, const char **value, bw_text *where)
{
    const char *argument = cursor->argv[cursor->at++];
    where->length = 0;
    if (argument[0] != '-')
        return read_word(cursor, argument, option, value, where);
    const char *name = argument + (strncmp(argument, "--", 2) ? 1 : 2), *equals = strchr(name, '=');
    BW_TRY(bw_text_addf(where, "%.*s", (int)(equals ? equals - argument : (ptrdiff_t)strlen(argument)), argument));
    *value = equals ? equals + 1 : NULL;
    *option = name == argument + 2 ? bw_option_find(cursor->command, where->data + 2) : NULL;
    if (!*option && !equals && !strncmp(where->data, "--no-", 5)) {
        *option = bw_option_find(cursor->command, where->data + 5);
        *option = *option && (*option)->kind == BW_KIND_FLAG ? *option : NULL;
        *value = "false";
    }
    if (!*option)
        return bw_option_unknown(cursor->command, where->data + (name - argument), where->data);
    if (!*value && (*option)->kind == BW_KIND_FLAG)
        *value = "true";
    if (!*value && cursor->at < cursor->argc && strncmp(cursor->argv[cursor->at], "--", 2))
        *value = cursor->argv[cursor->at++];
    return *value ? BW_OK
                  : bw_fail(BW_USAGE, "%s: needs a value (%s: %.*s)", where->data, (*option)->argument, bw_option_gist(*option), (*option)->help);
}

int bw_arguments_visit(bw_command command, int argc, char **argv, bw_option_visitor visit, void *context)
{
    cursor cursor = {.command = command, .argc = argc, .at = 1, .argv = argv};
    bw_text where = {0};
    int status = BW_OK;
    while (cursor.at < argc) {
        const bw_option *option;
        const char *value;
        BW_GO(read_argument(&cursor, &option, &value, &where));
        bool *seen = &cursor.seen[option - bw_options];
        if (*seen && option->kind != BW_KIND_PATHS)
            BW_GO(bw_fail(BW_USAGE, "%s: is given twice", where.data));
        BW_GO(visit(context, option, value, where.data, !*seen));
        *seen = true;
        cursor.before = option;
    }
done:
    bw_text_free(&where);
    return status;
}

static int set_config_file(void *context, const bw_option *option, const char *value, const char *where, bool first)
{
    (void)first;
    return bw_option_is_echoed(option) ? BW_OK : bw_option_assign(context, option, value, where, NULL);
}

static int set_option(void *context, const bw_option *option, const char *value, const char *where, bool first)
{
    if (first && option->kind == BW_KIND_PATHS)
        bw_option_clear(context, option); /* the command line's list takes the place of the file's */
    return bw_option_assign(context, option, value, where, NULL);
}

int bw_config_parse(bw_config *config, bw_command command, int argc, char **argv)
{
    BW_TRY(bw_arguments_visit(command, argc, argv, set_config_file, config));
    if (config->config_file)
        BW_TRY(read_file(config, command, config->config_file));
    return bw_arguments_visit(command, argc, argv, set_option, config);
}

/* ---- what options must be there together --------------------------------------------------------------------------- */

static int ask_for(bw_command command, const bw_option *option)
{
    const char *name = bw_command_name(command);
    bool word = option->offset == offsetof(bw_config, input);
    return bw_fail(BW_USAGE, "%s: needs %s%s %s: %.*s%s%s; see 'breakwater help %s' or 'man breakwater-%s'", name, word ? "" : "--",
                   word ? "a" : option->name, option->argument, bw_option_gist(option), option->help, option->choices ? ", one of: " : "",
                   option->choices ? option->choices : "", name, name);
}

static bool is_set(const bw_config *config, const bw_option *option)
{
    const void *from = (const char *)config + option->offset;
    return option->kind == BW_KIND_PATHS ? ((const bw_list *)from)->count > 0 : *(char *const *)from != NULL;
}

static int check_merge(const bw_config *config)
{
    if (strcmp(config->method, "user") && !config->reinforce)
        return bw_fail(BW_USAGE, "merge: --method %s needs --reinforce DIR, the ReinforceLoRA", config->method);
    if (!strcmp(config->method, "user") && config->reinforce)
        return bw_fail(BW_USAGE, "merge: --method user merges no ReinforceLoRA: leave --reinforce out, or choose --method qr or naive");
    if (strcmp(config->method, "qr") && config->alpha.count > 1)
        return bw_fail(BW_USAGE, "merge: --method %s projects nothing: a list of --alpha is for --method qr", config->method);
    if (!config->alpha.count || !config->scale.count)
        return bw_fail(BW_USAGE, "merge: %s is an empty list", config->alpha.count ? "scale" : "alpha");
    return BW_OK;
}

/* A pipeline learns here, before its first stage, what a later one would refuse. */
static int check_train(const bw_config *config)
{
    bool wants = !strcmp(config->stage, "reinforce") || !strcmp(config->stage, "user");
    if (wants && !config->buffer)
        return bw_fail(BW_USAGE, "train: --stage %s trains on the base with a BufferLoRA: give --buffer DIR (--stage sft trains without one)",
                       config->stage);
    if (!wants && config->buffer)
        return bw_fail(BW_USAGE, "train: --stage %s takes no --buffer (--stage user and reinforce do)", config->stage);
    if (config->micro_batches > config->batch)
        return bw_fail(BW_USAGE, "train: --micro-batches %lld is more than --batch %lld", (long long)config->micro_batches, (long long)config->batch);
    return BW_OK;
}

int bw_config_check(const bw_config *config, bw_command command)
{
    for (int i = 0; i < bw_option_count; i++)
        if (bw_options[i].required & (unsigned)command && !is_set(config, &bw_options[i]))
            return ask_for(command, &bw_options[i]);
    if (command == BW_TRAIN)
        return check_train(config);
    if ((command == BW_MERGE || command == BW_EVAL) && strcmp(config->resume, "auto") && strcmp(config->resume, "never"))
        return bw_fail(BW_USAGE, "%s: --resume %s: auto or never; only train goes on from a checkpoint", bw_command_name(command), config->resume);
    if (command == BW_MERGE)
        return check_merge(config);
    if (command == BW_EVAL && !config->harmful && !config->task)
        return bw_fail(BW_USAGE, "eval: needs --harmful FILE or --task FILE (or both): there is nothing to measure");
    if (command == BW_EVAL && config->perplexity && !config->task)
        return bw_fail(BW_USAGE, "eval: --perplexity needs --task FILE: it is measured on the task's answers");
    return BW_OK;
}
