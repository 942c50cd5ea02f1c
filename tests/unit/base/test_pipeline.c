/* `breakwater run FILE.yaml`: stages, references between them, and what wins. */
#include "breakwater/base.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static char folder[] = "/tmp/bw_test_pipeline_XXXXXX", file[64];

static int load(bw_pipeline *pipeline, const char *yaml, int count, const char *const *words)
{
    char *argv[16] = {(char *)"run", file};
    for (int i = 0; i < count; i++)
        argv[i + 2] = (char *)words[i];
    assert_int_equal(bw_file_write(file, yaml, strlen(yaml), 0644), BW_OK);
    bw_error_clear();
    return bw_pipeline_load(pipeline, file, count + 2, argv);
}

static const char three_stages[] = "output: out/\n"
                                   "model: base.gguf\n"
                                   "lr: 5e-4\n"
                                   "template: chatml\n"
                                   "stages:\n"
                                   "  - name: align\n"
                                   "    command: train\n"
                                   "    stage: align\n"
                                   "    data: [safe.jsonl, benign.jsonl]\n"
                                   "  - {name: user, command: train, stage: sft, data: user.jsonl, lr: 3e-4, model: '@align/model'}\n"
                                   "  - name: judge\n"
                                   "    command: eval\n"
                                   "    label: plain SFT, p = 0.1\n"
                                   "    adapter: ['@align/adapter', '@user', ./@odd]\n"
                                   "    harmful: held-out.jsonl\n";

static void stages_get_defaults_then_their_own_options(void **state)
{
    (void)state;
    bw_pipeline p;
    if (load(&p, three_stages, 0, NULL) != BW_OK)
        fail_msg("%s", bw_error());
    assert_int_equal(p.count, 3);
    assert_string_equal(p.common.output, "out/");
    const bw_config *align = &p.stages[0].config, *user = &p.stages[1].config, *judge = &p.stages[2].config;
    assert_true(align->lr == 5e-4 && user->lr == 3e-4 && align->data.count == 2 && user->data.count == 1);
    assert_string_equal(align->output, "out/align");
    assert_string_equal(align->model, "base.gguf");
    assert_string_equal(user->model, "out/align/model");
    assert_string_equal(judge->template_name, "chatml");
    assert_int_equal(judge->adapter.count, 3);
    assert_string_equal(judge->adapter.items[0], "out/align/adapter");
    assert_string_equal(judge->adapter.items[1], "out/user");
    assert_string_equal(judge->adapter.items[2], "./@odd");
    assert_string_equal(p.stages[2].label, "plain SFT, p = 0.1");
    assert_null(p.stages[0].label);
    assert_true(p.stages[0].command == BW_TRAIN && p.stages[2].command == BW_EVAL);
    assert_true(!bw_stage_needs(&p.stages[1], 1) && bw_stage_needs(&p.stages[1], 0) && bw_stage_needs(&p.stages[2], 0) &&
                bw_stage_needs(&p.stages[2], 1));
    bw_pipeline_free(&p);
}

static void the_command_line_wins_in_every_stage_that_takes_it(void **state)
{
    (void)state;
    bw_pipeline p;
    static const char *const words[] = {"--lr", "1e-3", "--output", "elsewhere", "--seed=7", "--limit", "5"};
    if (load(&p, three_stages, 7, words) != BW_OK)
        fail_msg("%s", bw_error());
    assert_true(p.stages[0].config.lr == 1e-3 && p.stages[1].config.lr == 1e-3);
    assert_int_equal(p.stages[1].config.seed, 7);
    assert_int_equal(p.stages[2].config.limit, 5);
    assert_int_equal(p.stages[0].config.limit, 0); /* train does not take it */
    assert_string_equal(p.stages[2].config.output, "elsewhere/judge");
    assert_string_equal(p.stages[1].config.model, "elsewhere/align/model");
    bw_pipeline_free(&p);
}

static void the_command_line_does_not_cut_the_flow_between_stages(void **state)
{
    (void)state;
    bw_pipeline p;
    static const char *const words[] = {"--model", "other.gguf"};
    if (load(&p, three_stages, 2, words) != BW_OK)
        fail_msg("%s", bw_error());
    assert_string_equal(p.stages[0].config.model, "other.gguf");
    assert_string_equal(p.stages[1].config.model, "out/align/model");
    bw_pipeline_free(&p);
}

static void assert_refused(const char *yaml, const char *part)
{
    bw_pipeline p;
    int status = load(&p, yaml, 0, NULL);
    if (status != BW_USAGE || !strstr(bw_error(), part))
        fail_msg("status %d, '%s' is not in: %s", status, part, bw_error());
    assert_int_equal(p.count, 0); /* nothing is left to free */
}

static void what_is_wrong_is_named_by_line(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"stages:\n  - {name: a, command: train}\n", "needs 'output: DIR'"},
        {"output: o\n", "'stages:' must be a list"},
        {"output: o\nstages: []\n", ":2: 'stages:' must be a list"},
        {"output: o\nstages:\n  - a\n", ":3: a stage is a mapping"},
        {"output: o\nstages:\n  - {command: train}\n", ":3: the stage needs a name"},
        {"output: o\nstages:\n  - {name: ../up, command: train}\n", "letters, digits"},
        {"output: o\nstages:\n  - {name: .., command: train}\n", "letters, digits"},
        {"output: o\nstages:\n  - {name: a}\n", "needs a command, one of: train merge eval; found 'none'"},
        {"output: o\nstages:\n  - {name: a, command: run}\n", "found 'run'"},
        {"output: o\nstages:\n  - name: a\n    command: merge\n    lr: 1\n", ":5: lr: unknown to merge. It is an option of train."},
        {"output: o\nstages:\n  - name: a\n    command: train\n    warmpu: 1\n", ":5: warmpu: unknown to train. Did you mean warmup?"},
        {"output: o\nstages:\n  - name: a\n    command: train\n    output: x\n", ":5: output: belongs at the top"},
        {"output: o\nstages:\n  - name: a\n    command: train\n    model: '@a/x'\n", ":5: model: '@a/x' names no stage before 'a'"},
        {"output: o\nstages:\n  - name: a\n    command: train\n    model: '@b/x'\n", "names no stage"},
        {"output: o\nstages:\n  - name: a\n    command: train\n    lr: 1\n    lr: 2\n", ":6: lr: is given twice"},
        {"output: o\nstages:\n  - {name: a, command: train, model: m}\n", ":3: stage 'a': train: needs --data FILE"},
        {"output: o\nlr: x\nstages:\n  - {name: a, command: train}\n", ":2: lr: 'x' is not a number"},
        {"output: o\nlearn: 1\nstages: []\n", ":2: learn: unknown to run"},
        {"output: o\ninput: x\nstages: []\n", ":2: input: unknown to run"},
        {"output: o\noutput: p\nstages: []\n", ":2: output: is given twice"},
        {"output: o\nstages: [{name: s, command: eval, model: m, harmful: h}, {name: s, command: eval}]\n", "an earlier stage of the name 's'"},
        {"- a\n", "holds no pipeline"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_refused(cases[i][0], cases[i][1]);
}

static void there_are_at_most_1024_stages(void **state)
{
    (void)state;
    for (int count = BW_MAX_STAGES; count <= BW_MAX_STAGES + 1; count++) {
        bw_text yaml = {0};
        assert_int_equal(bw_text_addf(&yaml, "output: o\nmodel: m\nharmful: h\nstages:\n"), BW_OK);
        for (int i = 0; i < count; i++)
            assert_int_equal(bw_text_addf(&yaml, "  - {name: s%d, command: eval}\n", i), BW_OK);
        bw_pipeline p;
        assert_int_equal(load(&p, yaml.data, 0, NULL), count == BW_MAX_STAGES ? BW_OK : BW_USAGE);
        if (count == BW_MAX_STAGES)
            bw_pipeline_free(&p);
        bw_text_free(&yaml);
    }
}

static void to_start_a_stage_over_is_to_start_over_what_follows_from_it(void **state)
{
    (void)state;
    bw_pipeline p;
    assert_int_equal(load(&p, three_stages, 0, NULL), BW_OK);
    assert_string_equal(p.stages[0].config.redo, "--only align,user,judge --resume never");
    assert_string_equal(p.stages[1].config.redo, "--only user,judge --resume never");
    assert_string_equal(p.stages[2].config.redo, "--only judge --resume never");
    bw_pipeline_free(&p);
    bw_config alone;
    bw_config_init(&alone);
    assert_string_equal(alone.redo, "--resume never");
    bw_config_free(&alone);
}

static void how_to_start_over_stays_short_with_a_thousand_stages(void **state)
{
    (void)state;
    bw_text yaml = {0};
    bw_pipeline p;
    assert_int_equal(bw_text_addf(&yaml, "output: o\nmodel: m\nharmful: h\nstages:\n  - {name: s0, command: train, stage: sft, data: d}\n"), BW_OK);
    for (int i = 1; i < BW_MAX_STAGES; i++)
        assert_int_equal(bw_text_addf(&yaml, "  - {name: s%d, command: eval, adapter: '@s0/adapter'}\n", i), BW_OK);
    assert_int_equal(load(&p, yaml.data, 0, NULL), BW_OK);
    assert_true(bw_stage_needs(&p.stages[BW_MAX_STAGES - 1], 0) && !bw_stage_needs(&p.stages[BW_MAX_STAGES - 1], 64));
    assert_true(strlen(p.stages[0].redo) < 1000 && strstr(p.stages[0].redo, ",... --resume never"));
    bw_pipeline_free(&p);
    bw_text_free(&yaml);
}

static void assert_missing(const bw_pipeline *p, const bool *selected, const char *part)
{
    int status = bw_pipeline_check_inputs(p, selected);
    if (status != BW_NOINPUT || !strstr(bw_error(), part))
        fail_msg("status %d, '%s' is not in: %s", status, part, bw_error());
    bw_error_clear();
}

static void an_input_that_is_missing_is_named_by_line_and_stage(void **state)
{
    (void)state;
    static const char yaml[] = "output: out\n"
                               "model: /dev/null\n"
                               "stages:\n"
                               "  - {name: a, command: train, stage: sft, data: [/dev/null]}\n"
                               "  - name: b\n"
                               "    command: eval\n"
                               "    adapter: ['@a/adapter']\n"
                               "    task: gone.jsonl\n";
    static const char *const words[] = {"--model", "gone.gguf"};
    const bool only_a[] = {true, false}, only_b[] = {false, true};
    bw_pipeline p;
    assert_int_equal(load(&p, yaml, 0, NULL), BW_OK);
    assert_missing(&p, NULL, "pipeline.yaml:8: b: task: gone.jsonl: No such file or directory");
    assert_int_equal(bw_pipeline_check_inputs(&p, only_a), BW_OK);
    assert_missing(&p, only_b, "stage 'b' needs out/a/adapter of stage 'a', which is not done: run 'a' first (--only a,b runs both)");
    bw_pipeline_free(&p);
    assert_int_equal(load(&p, yaml, 2, words), BW_OK);
    assert_missing(&p, only_a, "a: --model: gone.gguf: No such file");
    bw_pipeline_free(&p);
}

static void a_command_line_that_no_stage_takes_is_refused(void **state)
{
    (void)state;
    bw_pipeline p;
    static const char *const words[] = {"--sede", "7"};
    assert_int_equal(load(&p, three_stages, 2, words), BW_USAGE);
    assert_non_null(strstr(bw_error(), "Did you mean --seed?"));
}

static int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return 1;
    snprintf(file, sizeof file, "%s/pipeline.yaml", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    return unlink(file) || rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stages_get_defaults_then_their_own_options),
        cmocka_unit_test(the_command_line_wins_in_every_stage_that_takes_it),
        cmocka_unit_test(the_command_line_does_not_cut_the_flow_between_stages),
        cmocka_unit_test(what_is_wrong_is_named_by_line),
        cmocka_unit_test(there_are_at_most_1024_stages),
        cmocka_unit_test(to_start_a_stage_over_is_to_start_over_what_follows_from_it),
        cmocka_unit_test(how_to_start_over_stays_short_with_a_thousand_stages),
        cmocka_unit_test(an_input_that_is_missing_is_named_by_line_and_stage),
        cmocka_unit_test(a_command_line_that_no_stage_takes_is_refused),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
