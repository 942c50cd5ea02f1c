/* Options: one table, the same answer from YAML and from the command line. */
#include "base/config.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static const bw_command all_commands[] = {BW_RUN, BW_TRAIN, BW_MERGE, BW_EVAL, BW_INSPECT, BW_VERIFY, BW_PLAN, BW_BENCH};
enum { COMMANDS = sizeof all_commands / sizeof *all_commands };

static char folder[] = "/tmp/bw_test_config_XXXXXX", yaml_file[64], no_file[64];

static int parse(bw_config *config, bw_command command, int count, const char *const *words)
{
    char *argv[32] = {(char *)bw_command_name(command)};
    for (int i = 0; i < count; i++)
        argv[i + 1] = (char *)words[i];
    bw_error_clear();
    return bw_config_parse(config, command, count + 1, argv);
}
#define PARSE(config, command, ...)                                                                                                                  \
    parse(config, command, (int)(sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *)), (const char *[]){__VA_ARGS__})

static void write_yaml(const char *text)
{
    assert_int_equal(bw_file_write(yaml_file, text, strlen(text), 0644), BW_OK);
}

static void assert_error(const char *part)
{
    if (!strstr(bw_error(), part))
        fail_msg("'%s' is not in: %s", part, bw_error());
}

/* Parse with fresh defaults, expect a usage error that contains `part`. */
static void assert_refused(bw_command command, const char *part, int count, const char *const *words)
{
    bw_config config;
    bw_config_init(&config);
    int status = parse(&config, command, count, words);
    if (status != BW_USAGE)
        fail_msg("status %d instead of a usage error about '%s' (%s)", status, part, bw_error());
    assert_error(part);
    bw_config_free(&config);
}
#define REFUSED(command, part, ...)                                                                                                                  \
    assert_refused(command, part, (int)(sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *)), (const char *[]){__VA_ARGS__})

/* ---- defaults and values --------------------------------------------------------------------------------------------- */

static void the_defaults_are_those_of_the_paper(void **state)
{
    (void)state;
    bw_config c;
    bw_error_clear();
    bw_config_init(&c);
    assert_string_equal(bw_error(), "");
    assert_int_equal(c.lora_r, 32);
    assert_true(c.lora_alpha == 64 && c.lora_dropout == 0.1 && c.lr == 1e-5 && c.warmup == 0.05 && c.weight_decay == 0.01 && c.max_grad_norm == 1);
    assert_true(c.beta1 == 0.9 && c.beta2 == 0.999 && c.adam_epsilon == 1e-8 && c.epochs == 3);
    assert_string_equal(c.targets, "q,v,gate,up,down");
    assert_string_equal(c.schedule, "cosine");
    assert_string_equal(c.template_name, "alpaca");
    assert_true(c.batch == 8 && c.max_length == 512 && c.seed == 42);
    assert_true(c.alpha.count == 1 && c.alpha.items[0] == 0.1 && c.scale.count == 1 && c.scale.items[0] == 0.5 && c.tau == 0.01);
    assert_string_equal(c.method, "qr");
    assert_true(c.model == NULL && c.data.count == 0 && !c.allow_buffer);
    bw_config_free(&c);
}

static void every_default_is_valid_and_every_option_has_help(void **state)
{
    (void)state;
    bw_config config;
    bw_config_init(&config);
    for (int i = 0; i < bw_option_count; i++) {
        const bw_option *option = &bw_options[i];
        assert_non_null(option->help);
        assert_non_null(option->group);
        assert_true(option->kind == BW_KIND_FLAG || option->argument);
        bw_error_clear();
        if (option->standard && bw_option_assign(&config, option, option->standard, option->name, NULL) != BW_OK)
            fail_msg("default of %s: %s", option->name, bw_error());
        for (int j = 0; j < i; j++) {
            assert_string_not_equal(option->name, bw_options[j].name);
            assert_true(option->offset != bw_options[j].offset);
        }
    }
    bw_config_free(&config);
}

static void choose_valid(const bw_option *option, char *value, size_t size)
{
    static const char *const samples[] = {"3x2", "o,k", "step,gemm", "key=a \"b\"\\: c, [d]"};
    size_t i = 0;
    while (!option->valid(samples[i]))
        assert_true(++i < sizeof samples / sizeof *samples);
    snprintf(value, size, "%s", samples[i]);
}

/* A value other than the default, for every kind. Numbers that have no short decimal form test the shortest exact echo. */
static void choose_value(const bw_option *option, char *value, size_t size)
{
    const char *last = option->choices ? strrchr(option->choices, ' ') : NULL;
    if (option->kind == BW_KIND_TEXT && option->choices)
        snprintf(value, size, "%s", last ? last + 1 : option->choices);
    else if (option->valid)
        choose_valid(option, value, size);
    else if (option->kind == BW_KIND_TEXT || option->kind == BW_KIND_PATH)
        snprintf(value, size, "./a \"b\"\\: c, [d] # \xc3\xa9/%s", option->name);
    else if (option->kind == BW_KIND_INT)
        snprintf(value, size, "%.0f", option->low + 3);
    else if (option->kind == BW_KIND_REAL)
        snprintf(value, size, "%.17g", option->low + (option->high < 1 ? option->high : 1) / 3);
    else if (option->kind == BW_KIND_FLAG)
        snprintf(value, size, "true");
    else if (option->kind == BW_KIND_NUMBERS)
        snprintf(value, size, option->low < 1 ? "0.1,%.17g,1e-7" : "1,%.17g,1000", option->low < 1 ? 1.0 / 3 : 7.0);
    else
        snprintf(value, size, "a, 'b': %s", option->name);
}

static void set_all(bw_config *config, bw_command command)
{
    for (int i = 0; i < bw_option_count; i++) {
        if (!bw_option_taken(&bw_options[i], command) || !bw_option_is_echoed(&bw_options[i]))
            continue;
        char value[200];
        choose_value(&bw_options[i], value, sizeof value);
        bw_error_clear();
        if (bw_config_set(config, command, bw_options[i].name, value) != BW_OK)
            fail_msg("%s", bw_error());
        if (bw_options[i].kind == BW_KIND_PATHS)
            assert_int_equal(bw_config_set(config, command, bw_options[i].name, "-second=b"), BW_OK);
    }
}

static void assert_same_field(const bw_config *a, const bw_config *b, const bw_option *option)
{
    const void *x = (const char *)a + option->offset, *y = (const char *)b + option->offset;
    const bw_list *list = x, *other = y;
    size_t sizes[] = {
        [BW_KIND_INT] = sizeof(int64_t), [BW_KIND_REAL] = sizeof(double), [BW_KIND_FLAG] = sizeof(bool), [BW_KIND_NUMBERS] = sizeof(bw_numbers)};
    if (option->kind == BW_KIND_PATHS) {
        assert_int_equal(list->count, other->count);
        for (int i = 0; i < list->count; i++)
            assert_string_equal(list->items[i], other->items[i]);
    } else if (option->kind == BW_KIND_TEXT || option->kind == BW_KIND_PATH) {
        const char *text = *(char *const *)x, *other_text = *(char *const *)y;
        assert_int_equal(text == NULL, other_text == NULL);
        if (text)
            assert_string_equal(text, other_text);
    } else {
        assert_memory_equal(x, y, sizes[option->kind]);
    }
}

static void assert_same(const bw_config *a, const bw_config *b, bw_command command)
{
    for (int i = 0; i < bw_option_count; i++)
        if (bw_option_taken(&bw_options[i], command) && bw_option_is_echoed(&bw_options[i]))
            assert_same_field(a, b, &bw_options[i]);
}

static void the_yaml_echo_reads_back_as_the_same_bits(void **state)
{
    (void)state;
    for (int c = 0; c < COMMANDS; c++) {
        if (all_commands[c] != BW_TRAIN && all_commands[c] != BW_MERGE && all_commands[c] != BW_EVAL)
            continue; /* those that take --config */
        bw_config config, back;
        bw_config_init(&config);
        bw_config_init(&back);
        set_all(&config, all_commands[c]);
        bw_text yaml = {0};
        assert_int_equal(bw_config_yaml(&config, all_commands[c], &yaml), BW_OK);
        write_yaml(yaml.data);
        if (PARSE(&back, all_commands[c], "--config", yaml_file) != BW_OK)
            fail_msg("%s in\n%s", bw_error(), yaml.data);
        assert_same(&config, &back, all_commands[c]);
        bw_text_free(&yaml);
        bw_config_free(&config);
        bw_config_free(&back);
    }
}

static void every_entry_sets_back_to_the_same_bits(void **state)
{
    (void)state;
    for (int c = 0; c < COMMANDS; c++) {
        bw_config config, back;
        bw_config_init(&config);
        bw_config_init(&back);
        set_all(&config, all_commands[c]);
        bw_text value = {0};
        const char *name;
        int count = 0;
        for (; bw_config_entry(&config, all_commands[c], count, &name, &value); count++)
            assert_int_equal(bw_config_set(&back, all_commands[c], name, value.data), BW_OK);
        assert_true(count > 1);
        assert_same(&config, &back, all_commands[c]);
        bw_text_free(&value);
        bw_config_free(&config);
        bw_config_free(&back);
    }
}

static void a_copy_is_deep(void **state)
{
    (void)state;
    bw_config config, copy;
    bw_config_init(&config);
    set_all(&config, BW_TRAIN);
    set_all(&config, BW_EVAL);
    assert_int_equal(bw_config_copy(&copy, &config), BW_OK);
    assert_same(&config, &copy, BW_TRAIN);
    assert_same(&config, &copy, BW_EVAL);
    assert_ptr_not_equal(config.model, copy.model);
    assert_ptr_not_equal(config.data.items[0], copy.data.items[0]);
    bw_config_free(&config);
    assert_non_null(copy.model);
    bw_config_free(&copy);
}

/* ---- the command line ------------------------------------------------------------------------------------------------- */

static void all_spellings_of_a_value_are_one(void **state)
{
    (void)state;
    bw_config c;
    bw_config_init(&c);
    assert_int_equal(
        PARSE(&c, BW_EVAL, "--model", "m", "--adapter=a", "--adapter", "b", "--limit=7", "--perplexity", "--no-allow-buffer", "--quiet=true"), BW_OK);
    assert_string_equal(c.model, "m");
    assert_int_equal(c.adapter.count, 2);
    assert_string_equal(c.adapter.items[1], "b");
    assert_true(c.limit == 7 && c.perplexity && !c.allow_buffer && c.quiet);
    bw_config_free(&c);
    bw_config_init(&c);
    assert_int_equal(PARSE(&c, BW_MERGE, "--alpha", "0.1,0.2, 0.3", "--scale", "[1]"), BW_OK);
    assert_true(c.alpha.count == 3 && c.alpha.items[2] == 0.3 && c.scale.count == 1 && c.scale.items[0] == 1);
    bw_config_free(&c);
    bw_config_init(&c);
    assert_int_equal(PARSE(&c, BW_INSPECT, "some/folder"), BW_OK);
    assert_string_equal(c.input, "some/folder");
    bw_config_free(&c);
}

static void options_win_over_the_file(void **state)
{
    (void)state;
    write_yaml("lr: 3e-4\nseed: 1\ndata: [a, b]\nquiet: true\n");
    bw_config c;
    bw_config_init(&c);
    assert_int_equal(PARSE(&c, BW_TRAIN, "--seed", "7", "--config", yaml_file, "--data", "c", "--data", "d"), BW_OK);
    assert_true(c.lr == 3e-4 && c.seed == 7 && c.quiet);
    assert_int_equal(c.data.count, 2);
    assert_string_equal(c.data.items[0], "c");
    assert_string_equal(c.data.items[1], "d");
    bw_config_free(&c);
}

static void an_unknown_option_names_the_nearest(void **state)
{
    (void)state;
    REFUSED(BW_TRAIN, "Did you mean --warmup?", "--warmpu", "0.1");
    REFUSED(BW_TRAIN, "Did you mean --batch?", "--batch-size=4");
    REFUSED(BW_EVAL, "--zzzz: unknown to eval. 'breakwater eval --help' lists all", "--zzzz", "1");
    REFUSED(BW_TRAIN, "-lr: unknown to train. Did you mean --lr?", "-lr", "1"); /* one dash is not an option */
    REFUSED(BW_TRAIN, "-v: unknown to train. 'breakwater", "-v");
    REFUSED(BW_TRAIN, "Did you mean --lr?", "--learning-rate=1e-4"); /* as other programs call it */
    REFUSED(BW_TRAIN, "Did you mean --steps?", "--max-steps", "9");
    REFUSED(BW_TRAIN, "unknown", "--no-lr");
    REFUSED(BW_TRAIN, "unknown", "--");
}

static void an_option_of_another_command_is_unknown_and_says_whose_it_is(void **state)
{
    (void)state;
    REFUSED(BW_MERGE, "--lr: unknown to merge. It is an option of train.", "--lr", "1");
    REFUSED(BW_TRAIN, "It is an option of merge.", "--tau", "0.1");
    REFUSED(BW_TRAIN, "takes options only", "word");
}

static void a_value_too_many_says_how_a_list_is_given(void **state)
{
    (void)state;
    REFUSED(BW_TRAIN, "'b': --data takes one FILE; repeat it for each: --data b", "--data", "a", "b");
    REFUSED(BW_EVAL, "repeat it for each: --adapter b", "--adapter=a", "b");
    REFUSED(BW_RUN, "repeat it for each: --data b", "p.yaml", "--data", "a", "b");
    REFUSED(BW_MERGE, "'0.5': --alpha takes a list with commas and without blanks", "--alpha", "0.1", "0.5");
    REFUSED(BW_TRAIN, "takes options only", "--data", "a", "--lr", "1e-4", "b");
    REFUSED(BW_TRAIN, "takes options only", "--quiet", "b");
}

static void values_are_checked_and_the_message_says_what_is_taken(void **state)
{
    (void)state;
    REFUSED(BW_TRAIN, "--schedule: 'cosin' is not one of: cosine linear constant", "--schedule", "cosin");
    REFUSED(BW_TRAIN, "is not one of", "--schedule", "cosine linear"); /* two words that stand side by side in the list */
    REFUSED(BW_TRAIN, "--batch: 0 is outside 1..65536", "--batch", "0");
    REFUSED(BW_TRAIN, "'8x' is not a whole number", "--batch", "8x");
    REFUSED(BW_TRAIN, "'1.5' is not a whole number", "--batch", "1.5");
    REFUSED(BW_TRAIN, "outside", "--seed", "99999999999999999999");
    REFUSED(BW_TRAIN, "outside", "--seed", "-1");
    REFUSED(BW_TRAIN, "'nan' is not a number", "--lr", "nan");
    REFUSED(BW_TRAIN, "is not a number", "--lr", "1e999");
    REFUSED(BW_TRAIN, "outside", "--lr", "-1e-5");
    REFUSED(BW_TRAIN, "outside", "--lora-dropout", "1");
    REFUSED(BW_TRAIN, "of q,k,v,o,gate,up,down", "--targets", "q,w");
    REFUSED(BW_TRAIN, "is not a valid value", "--targets", "q,q");
    REFUSED(BW_TRAIN, "is not a valid value", "--targets", "q,");
    REFUSED(BW_TRAIN, "is not a valid value", "--grid", "2x");
    REFUSED(BW_TRAIN, "is not a valid value", "--grid", "0x2");
    REFUSED(BW_TRAIN, "is not a valid value", "--grid", "2x2x2");
    REFUSED(BW_EVAL, "neither true nor false", "--perplexity=yes");
    REFUSED(BW_MERGE, "not a list of numbers", "--alpha", "0.1,0.2]");
    REFUSED(BW_MERGE, "not a number", "--alpha", "0.1,,0.2");
    REFUSED(BW_TRAIN, "--model: is empty", "--model", "");
    REFUSED(BW_TRAIN, "control character", "--model", "a\nb");
    REFUSED(BW_TRAIN, "--lr: needs a value", "--lr", "--seed", "1");
    REFUSED(BW_TRAIN, "--lr: needs a value", "--lr");
    REFUSED(BW_TRAIN, "--lr: is given twice", "--lr", "1e-4", "--lr", "1e-5");
    REFUSED(BW_RUN, "PATH: is given twice", "a.yaml", "b.yaml");
}

static void lists_end_at_their_limit(void **state)
{
    (void)state;
    bw_config c;
    bw_config_init(&c);
    for (int i = 0; i < BW_MAX_LIST; i++)
        assert_int_equal(bw_config_set(&c, BW_TRAIN, "data", "d"), BW_OK);
    bw_error_clear();
    assert_int_equal(bw_config_set(&c, BW_TRAIN, "data", "d"), BW_USAGE);
    assert_error("more than 64");
    assert_int_equal(c.data.count, BW_MAX_LIST);
    bw_config_free(&c);
}

static void hints_are_collected_and_must_name_key_and_value(void **state)
{
    (void)state;
    bw_config c;
    bw_text yaml = {0};
    bw_config_init(&c);
    write_yaml("mpi-hint: [cb_nodes=8]\n");
    assert_int_equal(PARSE(&c, BW_TRAIN, "--config", yaml_file, "--mpi-hint", "striping_factor=8", "--mpi-hint=romio_cb_write=enable"), BW_OK);
    assert_int_equal(c.mpi_hints.count, 2);
    assert_string_equal(c.mpi_hints.items[1], "romio_cb_write=enable");
    assert_int_equal(bw_config_yaml(&c, BW_TRAIN, &yaml), BW_OK);
    assert_non_null(strstr(yaml.data, "mpi-hint: [\"striping_factor=8\", \"romio_cb_write=enable\"]\n"));
    bw_config_free(&c);
    bw_text_free(&yaml);
    static const char *const bad[] = {"cb_nodes", "=8", "cb_nodes=", "cb nodes=8", "@user/adapter=1", "="};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        REFUSED(BW_TRAIN, "is not a valid value", "--mpi-hint", (char *)bad[i]);
    REFUSED(BW_TRAIN, "--mpi-hint: is empty", "--mpi-hint", "");
    REFUSED(BW_EVAL, "It is an option of", "--mpi-hint", "cb_nodes=8");
    bw_config_init(&c); /* a checkpoint of a run without hints has no word of them */
    assert_int_equal(bw_config_yaml(&c, BW_TRAIN, &yaml), BW_OK);
    assert_null(strstr(yaml.data, "hint"));
    bw_config_free(&c);
    bw_text_free(&yaml);
}

static void what_a_command_cannot_do_without_is_asked_for(void **state)
{
    (void)state;
    static const struct {
        bw_command command;
        const char *options, *error; /* options: name=value separated by blanks */
    } cases[] = {
        {BW_TRAIN, "",
         "train: needs --model PATH: base model: a Hugging Face folder or a GGUF file; see 'breakwater help train' or 'man breakwater-train'"},
        {BW_TRAIN, "model=m data=d output=o", "needs --stage NAME: what is trained, one of: align buffer reinforce user sft; see"},
        {BW_TRAIN, "model=m data=d output=o stage=sft micro-batches=9", "--micro-batches 9 is more than --batch 8"},
        {BW_TRAIN, "model=m data=d output=o stage=sft", NULL},
        {BW_TRAIN, "model=m data=d output=o stage=user", "give --buffer DIR"},
        {BW_TRAIN, "model=m data=d output=o stage=user buffer=b", NULL},
        {BW_TRAIN, "model=m data=d output=o stage=sft buffer=b", "takes no --buffer"},
        {BW_MERGE, "model=m user=u output=o", "needs --reinforce"},
        {BW_MERGE, "model=m user=u output=o method=user", NULL},
        {BW_MERGE, "user=u reinforce=r output=o", "needs --model PATH"},
        {BW_EVAL, "model=m output=o", "nothing to measure"},
        {BW_EVAL, "model=m output=o harmful=h perplexity=true", "needs --task"},
        {BW_EVAL, "model=m output=o task=t perplexity=true", NULL},
        {BW_INSPECT, "", "inspect: needs a PATH"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bw_config c;
        bw_config_init(&c);
        char options[200], *rest = options;
        snprintf(options, sizeof options, "%s", cases[i].options);
        for (char *word; (word = strsep(&rest, " ")) != NULL && *word;) {
            char *value = strchr(word, '=');
            *value = 0;
            assert_int_equal(bw_config_set(&c, cases[i].command, word, value + 1), BW_OK);
        }
        bw_error_clear();
        assert_int_equal(bw_config_check(&c, cases[i].command), cases[i].error ? BW_USAGE : BW_OK);
        if (cases[i].error)
            assert_error(cases[i].error);
        bw_config_free(&c);
    }
}

/* ---- YAML ------------------------------------------------------------------------------------------------------------- */

static void errors_in_yaml_name_file_and_line(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"lr: 1e-4\nwarmpu: 0.1\n", "/config.yaml:2: warmpu: unknown to train. Did you mean warmup?"},
        {"\n\nschedule: cosin\n", ":3: schedule: 'cosin' is not one of: cosine linear constant"},
        {"batch: 0\n", ":1: batch: 0 is outside"},
        {"lr: 1\nseed: 1\nlr: 2\n", ":3: lr: is given twice"},
        {"lr: [1, 2]\n", ":1: lr: takes one value, not a list"},
        {"lr: {a: 1}\n", ":1: lr: takes a value, not a mapping"},
        {"data: [a, [b]]\n", ":1: data: entry 2"},
        {"[a]: 1\n", ":1: a key must be a word"},
        {"lr: 1\n  seed: 2\n", ":2: not YAML"},
        {"model: \"a\\0b\"\n", "zero byte"},
        {"\"l\\0r\": 1\n", "a key must be a word"},
        {"- lr\n", "holds no mapping"},
        {"", "holds no mapping"},
        {"lr: 1\n---\nseed: 2\n", "a second document"},
        {"config: other.yaml\n", "config: unknown to train"},
        {"lr: \xff\n", "not YAML"},
        {"alpha: 0.1\n", "It is an option of merge."},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_yaml(cases[i][0]);
        REFUSED(BW_TRAIN, cases[i][1], "--config", yaml_file);
    }
    bw_config c;
    bw_config_init(&c);
    assert_int_equal(PARSE(&c, BW_TRAIN, "--config", no_file), BW_NOINPUT);
    bw_config_free(&c);
}

static void nothing_in_yaml_means_the_default(void **state)
{
    (void)state;
    write_yaml("lr:\nmodel: ~\nseed: null\ndata:\n  - a: b.json\n");
    REFUSED(BW_TRAIN, "entry 1 of the list is not a plain value", "--config", yaml_file);
    write_yaml("lr:\nmodel: ~\nseed: null\ndata: one file.json\nstage: \"sft\" # a comment\n");
    bw_config c;
    bw_config_init(&c);
    assert_int_equal(PARSE(&c, BW_TRAIN, "--config", yaml_file), BW_OK);
    assert_true(c.lr == 1e-5 && c.model == NULL && c.seed == 42 && c.data.count == 1);
    assert_string_equal(c.data.items[0], "one file.json");
    assert_string_equal(c.stage, "sft");
    bw_config_free(&c);
}

static void hostile_yaml_is_bounded(void **state)
{
    (void)state;
    static char nested[200000], large[(1 << 20) + 2];
    memset(nested, '[', sizeof nested - 1);
    write_yaml(nested);
    REFUSED(BW_TRAIN, ":1: more than 4000 opening brackets", "--config", yaml_file);
    for (size_t i = 0; i < sizeof nested - 1; i++)
        nested[i] = i % 2 ? ' ' : '-'; /* - - - - nests without brackets */
    write_yaml(nested);
    REFUSED(BW_TRAIN, "", "--config", yaml_file);
    memset(large, 'a', sizeof large - 1);
    write_yaml(large);
    REFUSED(BW_TRAIN, "too many for a configuration", "--config", yaml_file);
    /* aliases that double with each line: never expanded, because only two levels are walked */
    write_yaml("lr: &a [1,1]\nseed: &b [*a,*a]\nbatch: &c [*b,*b]\n");
    REFUSED(BW_TRAIN, "takes one value", "--config", yaml_file);
}

/* ---- help ------------------------------------------------------------------------------------------------------------- */

static void help_lists_every_option_of_the_command(void **state)
{
    (void)state;
    for (int c = 0; c < COMMANDS; c++) {
        char *help = NULL;
        size_t size = 0;
        FILE *out = open_memstream(&help, &size);
        bw_config_help(all_commands[c], out);
        fclose(out);
        for (int i = 0; i < bw_option_count; i++)
            if (bw_options[i].commands & (unsigned)all_commands[c]) {
                char option[64];
                snprintf(option, sizeof option, bw_options[i].kind == BW_KIND_FLAG ? "--[no-]%s" : "--%s", bw_options[i].name);
                if (strcmp(bw_options[i].name, "input"))
                    assert_non_null(strstr(help, option));
            }
        for (const char *line = help; *line; line += strcspn(line, "\n") + 1)
            assert_true(strcspn(line, "\n") <= 110);
        free(help);
    }
}

/* The man pages and the completion are made of this. */
/* Help and man page print a heading where the group changes. */
static void options_of_a_group_stand_together(void **state)
{
    (void)state;
    for (int i = 1; i < bw_option_count; i++)
        for (int j = 0; strcmp(bw_options[i].group, bw_options[i - 1].group) && j < i; j++)
            if (!strcmp(bw_options[i].group, bw_options[j].group))
                fail_msg("the group '%s' of --%s began before, at --%s", bw_options[i].group, bw_options[i].name, bw_options[j].name);
}

static void every_option_that_a_command_takes_is_told_of(void **state)
{
    (void)state;
    for (int c = 0; c < COMMANDS; c++) {
        int told = 0;
        bw_option_about about;
        for (; bw_config_about(all_commands[c], told, &about); told++) {
            const bw_option *option = bw_option_find(all_commands[c], about.name);
            assert_non_null(option);
            assert_true(about.group && about.help && (about.argument || about.flag));
            assert_int_equal(about.of_stages, all_commands[c] == BW_RUN && !(option->commands & BW_RUN));
        }
        int taken = 0;
        for (int i = 0; i < bw_option_count; i++)
            taken += bw_option_taken(&bw_options[i], all_commands[c]);
        assert_int_equal(told, taken);
    }
}

static int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return 1;
    snprintf(yaml_file, sizeof yaml_file, "%s/config.yaml", folder);
    snprintf(no_file, sizeof no_file, "%s/nothing.yaml", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    return unlink(yaml_file) || rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_defaults_are_those_of_the_paper),
        cmocka_unit_test(every_default_is_valid_and_every_option_has_help),
        cmocka_unit_test(the_yaml_echo_reads_back_as_the_same_bits),
        cmocka_unit_test(every_entry_sets_back_to_the_same_bits),
        cmocka_unit_test(a_copy_is_deep),
        cmocka_unit_test(all_spellings_of_a_value_are_one),
        cmocka_unit_test(options_win_over_the_file),
        cmocka_unit_test(an_unknown_option_names_the_nearest),
        cmocka_unit_test(an_option_of_another_command_is_unknown_and_says_whose_it_is),
        cmocka_unit_test(a_value_too_many_says_how_a_list_is_given),
        cmocka_unit_test(values_are_checked_and_the_message_says_what_is_taken),
        cmocka_unit_test(lists_end_at_their_limit),
        cmocka_unit_test(hints_are_collected_and_must_name_key_and_value),
        cmocka_unit_test(what_a_command_cannot_do_without_is_asked_for),
        cmocka_unit_test(errors_in_yaml_name_file_and_line),
        cmocka_unit_test(nothing_in_yaml_means_the_default),
        cmocka_unit_test(hostile_yaml_is_bounded),
        cmocka_unit_test(help_lists_every_option_of_the_command),
        cmocka_unit_test(options_of_a_group_stand_together),
        cmocka_unit_test(every_option_that_a_command_takes_is_told_of),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
