/* An output folder: one job at a time, and only what is the program's own is deleted. */
#include "breakwater/base.h"
#include <errno.h>
#include <setjmp.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "scratch.h"

/* What another job does just before, and just after, this one makes a folder of this path. */
static const char *watched;
static void (*before_mkdir)(void), (*after_mkdir)(void);

static void once(void (**action)(void))
{
    void (*now)(void) = *action;
    *action = NULL;
    if (now)
        now();
}

/* In place of the C library's. */
int mkdir(const char *path, mode_t mode)
{
    bool here = watched && strcmp(path, watched) == 0;
    if (here)
        once(&before_mkdir);
    int result = mkdirat(AT_FDCWD, path, mode);
    int error = errno;
    if (here)
        once(&after_mkdir);
    errno = error;
    return result;
}

static void put(const char *name)
{
    assert_int_equal(bw_file_write(in_folder(name), "x", 1, 0644), BW_OK);
}

/* Another process that holds the folder until it is killed, or this one ends. */
static pid_t holder_of(const char *folder)
{
    int ready[2];
    char byte;
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        bw_lock lock;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
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
    pid_t holder = holder_of(in_folder("out"));
    snprintf(process, sizeof process, "process %ld on ", (long)holder);
    assert_int_equal(bw_folder_lock(&lock, in_folder("out")), BW_CANTCREATE);
    assert_non_null(strstr(bw_error(), process));
    assert_non_null(strstr(bw_error(), "since 20"));
    assert_non_null(strstr(bw_error(), "another --output"));
    bw_error_clear();
    assert_int_equal(bw_folder_lock(&lock, in_folder("elsewhere")), BW_OK);
    bw_folder_unlock(&lock);
    kill(holder, SIGKILL);
    waitpid(holder, NULL, 0);
}

/* ---- two jobs that start at the same time ------------------------------------------------------------------------------ */

static pid_t first;
static void the_first_job_takes_it(void)
{
    first = holder_of(watched);
}

static void the_first_job_takes_it_away(void)
{
    rmdir(watched);
}

/* Both find no folder, and so both take it for theirs to remove. */
static void the_one_refused_leaves_the_folder_and_the_lock_to_the_holder(void **state)
{
    (void)state;
    bw_lock lock;
    watched = in_folder("out");
    before_mkdir = the_first_job_takes_it;
    assert_int_equal(bw_folder_lock(&lock, watched), BW_CANTCREATE);
    assert_true(bw_file_exists(in_folder("out/.lock")));
    bw_error_clear();
    assert_int_equal(bw_folder_lock(&lock, watched), BW_CANTCREATE); /* nor is a third one let in */
    kill(first, SIGKILL);
    waitpid(first, NULL, 0);
}

static void a_folder_removed_before_it_is_locked_is_made_again(void **state)
{
    (void)state;
    bw_lock lock;
    watched = in_folder("out");
    after_mkdir = the_first_job_takes_it_away;
    assert_int_equal(bw_folder_lock(&lock, watched), BW_OK);
    put("out/result");
    bw_folder_unlock(&lock);
    /* and where it goes between "is there already" and the look at what is there */
    assert_int_equal(bw_dir_make(in_folder("empty")), BW_OK);
    watched = in_folder("empty");
    after_mkdir = the_first_job_takes_it_away;
    assert_int_equal(bw_dir_make(watched), BW_OK);
    assert_true(bw_file_exists(watched));
    assert_int_equal(symlink("nowhere", in_folder("dangling")), 0);
    assert_int_equal(bw_dir_make(in_folder("dangling")), BW_CANTCREATE);
}

static void a_killed_job_keeps_nobody_out(void **state)
{
    (void)state;
    bw_lock lock;
    pid_t holder = holder_of(in_folder("out"));
    kill(holder, SIGKILL);
    waitpid(holder, NULL, 0);
    assert_true(bw_file_exists(in_folder("out/.lock")));
    assert_int_equal(bw_folder_lock(&lock, in_folder("out")), BW_OK);
    bw_folder_unlock(&lock);
    assert_int_equal(bw_folder_lock(&lock, in_folder("out")), BW_OK); /* nor does one that ended */
    bw_folder_unlock(&lock);
}

static void a_folder_made_for_nothing_goes_again_and_any_other_stays(void **state)
{
    (void)state;
    bw_lock lock;
    assert_int_equal(bw_folder_lock(&lock, in_folder("new")), BW_OK);
    bw_folder_unlock(&lock);
    assert_false(bw_file_exists(in_folder("new")));
    assert_int_equal(bw_folder_lock(&lock, in_folder("used")), BW_OK);
    put("used/result");
    bw_folder_unlock(&lock);
    assert_true(bw_file_exists(in_folder("used/result")));
    assert_int_equal(bw_dir_make(in_folder("theirs")), BW_OK);
    assert_int_equal(bw_folder_lock(&lock, in_folder("theirs")), BW_OK);
    bw_folder_unlock(&lock);
    assert_true(bw_file_exists(in_folder("theirs")));
}

static void a_lock_that_cannot_be_made_is_said(void **state)
{
    (void)state;
    bw_lock lock;
    assert_int_equal(bw_dir_make(in_folder("out/.lock")), BW_OK);
    assert_int_equal(bw_folder_lock(&lock, in_folder("out")), BW_CANTCREATE);
    assert_non_null(strstr(bw_error(), ".lock"));
    bw_error_clear();
    assert_int_equal(bw_dir_make(in_folder("trap")), BW_OK);
    assert_int_equal(symlink(in_folder("victim"), in_folder("trap/.lock")), 0);
    assert_int_equal(bw_folder_lock(&lock, in_folder("trap")), BW_CANTCREATE);
    assert_false(bw_file_exists(in_folder("victim")));
}

/* Exit code of a child that does it: 77 where this machine does not let it try. */
static int in_child(int (*work)(void))
{
    int status = 0;
    pid_t child = fork();
    if (child == 0)
        _exit(work());
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int lock_as_nobody(void)
{
    bw_lock lock;
    if (geteuid() != 0 || setuid(65534) != 0)
        return 77;
    return bw_folder_lock(&lock, in_folder("out")) == BW_CANTCREATE && strstr(bw_error(), "another user (number 0)") &&
                   strstr(bw_error(), "name another --output")
               ? 0
               : 1;
}

static void a_lock_of_another_user_is_refused_with_what_to_do(void **state)
{
    (void)state;
    assert_int_equal(chmod(folder, 0755), 0);
    assert_int_equal(bw_dir_make(in_folder("out")), BW_OK);
    put("out/.lock");
    int code = in_child(lock_as_nobody);
    if (code == 77)
        skip();
    assert_int_equal(code, 0);
}

static int lock_read_only(void)
{
    bw_lock lock;
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 || mount(folder, folder, NULL, MS_BIND, NULL) != 0 ||
        mount(NULL, folder, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL) != 0)
        return 77;
    if (bw_folder_lock(&lock, in_folder("out")) != BW_OK)
        return 1;
    bw_folder_unlock(&lock);
    if (bw_folder_lock(&lock, in_folder("old")) != BW_OK || lock.descriptor >= 0)
        return 2;
    bw_folder_unlock(&lock);
    return bw_file_exists(in_folder("old/.lock")) && bw_folder_lock(&lock, in_folder("new")) == BW_CANTCREATE ? 0 : 3;
}

static void what_is_finished_on_a_read_only_file_system_may_be_looked_at(void **state)
{
    (void)state;
    assert_int_equal(bw_dir_make(in_folder("out")), BW_OK);
    assert_int_equal(bw_dir_make(in_folder("old")), BW_OK);
    put("old/.lock");
    int code = in_child(lock_read_only);
    if (code == 77)
        skip();
    assert_int_equal(code, 0);
}

static const char *const names[] = {"answers.jsonl", "model", NULL};

static void what_somebody_else_made_is_refused_by_name(void **state)
{
    (void)state;
    assert_int_equal(bw_folder_check(in_folder("nowhere"), names), BW_OK);
    assert_int_equal(bw_dir_make(in_folder("out")), BW_OK);
    put("out/slurm-17.out");
    assert_int_equal(bw_folder_check(in_folder("out"), names), BW_OK);
    put("out/answers.jsonl");
    assert_int_equal(bw_folder_check(in_folder("out"), names), BW_CANTCREATE);
    assert_non_null(strstr(bw_error(), "out/answers.jsonl"));
    bw_error_clear();
    put("out/config.yaml");
    assert_int_equal(bw_folder_check(in_folder("out"), names), BW_OK);
}

static void only_named_entries_are_removed(void **state)
{
    (void)state;
    assert_int_equal(bw_dir_make(in_folder("out/model/deep")), BW_OK);
    assert_int_equal(bw_dir_make(in_folder("out/model.tmp")), BW_OK);
    const char *const files[] = {"out/model/deep/w",      "out/model.tmp/w", "out/answers.jsonl",
                                 "out/answers.jsonl.tmp", "out/notes.txt",   "out/notes.tmp"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        put(files[i]);
    assert_int_equal(bw_folder_sweep(in_folder("out"), names), BW_OK);
    assert_true(bw_file_exists(in_folder("out/model/deep/w")) && bw_file_exists(in_folder("out/answers.jsonl")));
    assert_false(bw_file_exists(in_folder("out/model.tmp")) || bw_file_exists(in_folder("out/answers.jsonl.tmp")));
    assert_int_equal(bw_folder_remove(in_folder("out"), names), BW_OK);
    assert_false(bw_file_exists(in_folder("out/model")) || bw_file_exists(in_folder("out/answers.jsonl")));
    assert_true(bw_file_exists(in_folder("out/notes.txt")) && bw_file_exists(in_folder("out/notes.tmp")));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_second_job_is_refused_and_told_who_is_there, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(the_one_refused_leaves_the_folder_and_the_lock_to_the_holder, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(a_folder_removed_before_it_is_locked_is_made_again, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(a_killed_job_keeps_nobody_out, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(a_folder_made_for_nothing_goes_again_and_any_other_stays, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(a_lock_that_cannot_be_made_is_said, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(a_lock_of_another_user_is_refused_with_what_to_do, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(what_is_finished_on_a_read_only_file_system_may_be_looked_at, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(what_somebody_else_made_is_refused_by_name, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(only_named_entries_are_removed, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
