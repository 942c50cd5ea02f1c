/* The report of a pipeline: a row for each arm with its counts, dashes for what is not there yet, times kept over restarts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "breakwater/post.h"

static char root[] = "/tmp/bw-report-XXXXXX";

static char *path_of(const char *name)
{
    bw_text text = {0};
    assert_int_equal(bw_path(&text, root, name), BW_OK);
    return text.data; /* a bw_calloc() block: a configuration's strings are freed as such */
}

static void write_file(const char *name, const char *content)
{
    char *path = path_of(name);
    assert_int_equal(bw_file_write(path, content, strlen(content), 0644), BW_OK);
    bw_free(path);
}

static void make(bw_pipeline *pipeline, bw_stage stages[3])
{
    static char names[3][8] = {"user", "plain", "late"}, label[] = "plain \xc3\xa4, SFT";
    *pipeline = (bw_pipeline){.stages = stages, .count = 3};
    bw_config_init(&pipeline->common);
    pipeline->common.output = path_of("");
    for (int i = 0; i < 3; ++i) {
        stages[i] = (bw_stage){.name = names[i], .command = i == 0 ? BW_TRAIN : BW_EVAL, .label = i == 1 ? label : NULL};
        bw_config_init(&stages[i].config);
        stages[i].config.output = path_of(names[i]);
        assert_int_equal(bw_dir_make(stages[i].config.output), BW_OK);
    }
}

static void clear(bw_pipeline *pipeline)
{
    for (int i = 0; i < pipeline->count; ++i)
        bw_config_free(&pipeline->stages[i].config);
    bw_config_free(&pipeline->common);
}

static void an_arm_shows_its_figures_and_a_missing_one_dashes(void **state)
{
    (void)state;
    bw_pipeline pipeline;
    bw_stage stages[3];
    bw_text text = {0};
    make(&pipeline, stages);
    write_file("plain/summary.json",
               "{\"HS\": 12.5, \"HS_plus\": 15, \"refusal_rate\": 87.5, \"n_harmful\": 160, \"FA\": null, \"n_task\": 0, \"perplexity\": null}");
    assert_int_equal(bw_report_arms(&pipeline, &text), BW_OK);
    assert_non_null(strstr(text.data, "plain \xc3\xa4, SFT     12.5     15.0     87.5    160        -      0\n"));
    assert_non_null(strstr(text.data, "late                -        -        -      0        -      0\n"));
    assert_null(strstr(text.data, "user"));
    bw_text_free(&text);
    clear(&pipeline);
}

static void a_broken_summary_is_named(void **state)
{
    (void)state;
    bw_pipeline pipeline;
    bw_stage stages[3];
    bw_text text = {0};
    make(&pipeline, stages);
    write_file("late/summary.json", "{\"HS\": ");
    assert_int_equal(bw_report_arms(&pipeline, &text), BW_DATA);
    assert_non_null(strstr(bw_error(), "late/summary.json"));
    bw_error_clear();
    write_file("late/summary.json", "{}");
    bw_text_free(&text);
    clear(&pipeline);
}

static void times_add_up_over_restarts(void **state)
{
    (void)state;
    bw_pipeline pipeline;
    bw_stage stages[3];
    double again[3] = {0, 7, 0};
    bool finished = true;
    bw_text text = {0};
    make(&pipeline, stages);
    assert_int_equal(bw_report_time_add(stages[0].config.output, 1.5), BW_OK);
    assert_int_equal(bw_report_time_add(stages[2].config.output, 20), BW_OK);
    assert_int_equal(bw_report_time_add(stages[0].config.output, 0.25), BW_OK);
    assert_int_equal(bw_report_times_load(&pipeline, again), BW_OK);
    assert_true(again[0] == 1.75 && again[1] == 0 && again[2] == 20);
    static const char *const senseless[] = {"", "-1", "nan", "1e999", "a while"};
    for (size_t i = 0; i < sizeof senseless / sizeof *senseless; i++) {
        write_file("late/seconds.txt", senseless[i]);
        assert_int_equal(bw_report_times_load(&pipeline, again), BW_OK);
        assert_true(again[0] == 1.75 && again[2] == 0);
    }
    assert_int_equal(bw_report_time_add(stages[2].config.output, 3.25), BW_OK);
    assert_int_equal(bw_report_times_load(&pipeline, again), BW_OK);
    assert_true(again[2] == 3.25);
    assert_int_equal(bw_report_finished(&stages[0], &finished), BW_OK);
    assert_false(finished);
    assert_int_equal(bw_report_finished(&stages[1], &finished), BW_OK);
    assert_true(finished);
    assert_int_equal(bw_report_write(&pipeline, again, &text), BW_OK);
    char *csv = path_of("report.csv");
    bw_map map;
    assert_int_equal(bw_map_open(&map, csv), BW_OK);
    assert_non_null(memmem(map.data, map.size, "\"plain \xc3\xa4, SFT\",plain,12.5,15,87.5,160,,0,,", 43));
    bw_map_close(&map);
    bw_free(csv);
    csv = path_of("times.csv");
    assert_int_equal(bw_map_open(&map, csv), BW_OK);
    assert_int_equal(map.size, strlen("stage,seconds\nuser,1.750\nplain,0.000\nlate,3.250\n"));
    assert_memory_equal(map.data, "stage,seconds\nuser,1.750\nplain,0.000\nlate,3.250\n", map.size);
    bw_map_close(&map);
    bw_free(csv);
    bw_text_free(&text);
    clear(&pipeline);
}

static int open_root(void **state)
{
    (void)state;
    return mkdtemp(root) ? 0 : 1;
}

static int remove_root(void **state)
{
    (void)state;
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", root);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_arm_shows_its_figures_and_a_missing_one_dashes),
        cmocka_unit_test(a_broken_summary_is_named),
        cmocka_unit_test(times_add_up_over_restarts),
    };
    return cmocka_run_group_tests(tests, open_root, remove_root);
}
