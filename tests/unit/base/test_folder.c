/* An output folder: one job at a time, and only what is the program's own is deleted. */
#include "breakwater/base.h"
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

static char root[64];

static const char *in_root(const char *name)
{
    static char paths[4][160];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", root, name);
    return path;
}

static int make_root(void **state)
{
    (void)state;
    bw_error_clear();
    strcpy(root, "/tmp/bw_test_folder_XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int remove_root(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", root);
    return system(command);
}

static void put(const char *name)
{
    assert_int_equal(bw_file_write(in_root(name), "x", 1, 0644), BW_OK);
}

/* Another process that holds the folder until it is killed. */
static pid_t holder_of(const char *folder)
{
    int ready[2];
    char byte;
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        bw_lock lock;
        if (bw_folder_lock(&lock, folder) == BW_OK && write(ready[1], "x", 1) == 1)
            pause();
        _exit(1);
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    close(ready[1]);
    return child;
}

static void a_second_job_is_refused_and_told_who_is_there(void **state)
{
    (void)state;
    char process[64];
    bw_lock lock;
    pid_t holder = holder_of(in_root("out"));
    snprintf(process, sizeof process, "process %ld on ", (long)holder);
    assert_int_equal(bw_folder_lock(&lock, in_root("out")), BW_CANTCREATE);
    assert_non_null(strstr(bw_error(), process));
    assert_non_null(strstr(bw_error(), "since 20"));
    assert_non_null(strstr(bw_error(), "another --output"));
    bw_error_clear();
    assert_int_equal(bw_folder_lock(&lock, in_root("elsewhere")), BW_OK);
    bw_folder_unlock(&lock);
    kill(holder, SIGKILL);
    waitpid(holder, NULL, 0);
}

static void a_killed_job_keeps_nobody_out(void **state)
{
    (void)state;
    bw_lock lock;
    pid_t holder = holder_of(in_root("out"));
    kill(holder, SIGKILL);
    waitpid(holder, NULL, 0);
    assert_true(bw_file_exists(in_root("out/.lock")));
    assert_int_equal(bw_folder_lock(&lock, in_root("out")), BW_OK);
    bw_folder_unlock(&lock);
    assert_int_equal(bw_folder_lock(&lock, in_root("out")), BW_OK); /* nor does one that ended */
    bw_folder_unlock(&lock);
}

static void a_folder_made_for_nothing_goes_again_and_any_other_stays(void **state)
{
    (void)state;
    bw_lock lock;
    assert_int_equal(bw_folder_lock(&lock, in_root("new")), BW_OK);
    bw_folder_unlock(&lock);
    assert_false(bw_file_exists(in_root("new")));
    assert_int_equal(bw_folder_lock(&lock, in_root("used")), BW_OK);
    put("used/result");
    bw_folder_unlock(&lock);
    assert_true(bw_file_exists(in_root("used/result")));
    assert_int_equal(bw_dir_make(in_root("theirs")), BW_OK);
    assert_int_equal(bw_folder_lock(&lock, in_root("theirs")), BW_OK);
    bw_folder_unlock(&lock);
    assert_true(bw_file_exists(in_root("theirs")));
}

static void a_lock_that_cannot_be_made_is_said(void **state)
{
    (void)state;
    bw_lock lock;
    assert_int_equal(bw_dir_make(in_root("out/.lock")), BW_OK);
    assert_int_equal(bw_folder_lock(&lock, in_root("out")), BW_CANTCREATE);
    assert_non_null(strstr(bw_error(), ".lock"));
    bw_error_clear();
    assert_int_equal(bw_dir_make(in_root("trap")), BW_OK);
    assert_int_equal(symlink(in_root("victim"), in_root("trap/.lock")), 0);
    assert_int_equal(bw_folder_lock(&lock, in_root("trap")), BW_CANTCREATE);
    assert_false(bw_file_exists(in_root("victim")));
}

static const char *const names[] = {"answers.jsonl", "model", NULL};

static void what_somebody_else_made_is_refused_by_name(void **state)
{
    (void)state;
    assert_int_equal(bw_folder_check(in_root("nowhere"), names), BW_OK);
    assert_int_equal(bw_dir_make(in_root("out")), BW_OK);
    put("out/slurm-17.out");
    assert_int_equal(bw_folder_check(in_root("out"), names), BW_OK);
    put("out/answers.jsonl");
    assert_int_equal(bw_folder_check(in_root("out"), names), BW_CANTCREATE);
    assert_non_null(strstr(bw_error(), "out/answers.jsonl"));
    bw_error_clear();
    put("out/config.yaml");
    assert_int_equal(bw_folder_check(in_root("out"), names), BW_OK);
}

static void only_named_entries_are_removed(void **state)
{
    (void)state;
    assert_int_equal(bw_dir_make(in_root("out/model/deep")), BW_OK);
    assert_int_equal(bw_dir_make(in_root("out/model.tmp")), BW_OK);
    const char *const files[] = {"out/model/deep/w",      "out/model.tmp/w", "out/answers.jsonl",
                                 "out/answers.jsonl.tmp", "out/notes.txt",   "out/notes.tmp"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        put(files[i]);
    assert_int_equal(bw_folder_sweep(in_root("out"), names), BW_OK);
    assert_true(bw_file_exists(in_root("out/model/deep/w")) && bw_file_exists(in_root("out/answers.jsonl")));
    assert_false(bw_file_exists(in_root("out/model.tmp")) || bw_file_exists(in_root("out/answers.jsonl.tmp")));
    assert_int_equal(bw_folder_remove(in_root("out"), names), BW_OK);
    assert_false(bw_file_exists(in_root("out/model")) || bw_file_exists(in_root("out/answers.jsonl")));
    assert_true(bw_file_exists(in_root("out/notes.txt")) && bw_file_exists(in_root("out/notes.tmp")));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_second_job_is_refused_and_told_who_is_there, make_root, remove_root),
        cmocka_unit_test_setup_teardown(a_killed_job_keeps_nobody_out, make_root, remove_root),
        cmocka_unit_test_setup_teardown(a_folder_made_for_nothing_goes_again_and_any_other_stays, make_root, remove_root),
        cmocka_unit_test_setup_teardown(a_lock_that_cannot_be_made_is_said, make_root, remove_root),
        cmocka_unit_test_setup_teardown(what_somebody_else_made_is_refused_by_name, make_root, remove_root),
        cmocka_unit_test_setup_teardown(only_named_entries_are_removed, make_root, remove_root),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
