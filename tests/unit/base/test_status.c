/* Messages, memory, text and clock. */
#include "breakwater/base.h"
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

static void the_first_message_is_kept_until_it_is_cleared(void **state)
{
    (void)state;
    bw_error_clear();
    assert_int_equal(bw_fail(BW_DATA, "tensor '%s' is missing", "w"), BW_DATA);
    assert_int_equal(bw_fail(BW_IO, "a caller's view"), BW_IO);
    assert_string_equal(bw_error(), "tensor 'w' is missing");
    bw_error_clear();
    assert_string_equal(bw_error(), "");
    bw_fail(BW_IO, "next");
    assert_string_equal(bw_error(), "next");
}

static void a_message_is_one_line_and_cannot_steer_a_terminal(void **state)
{
    (void)state;
    bw_error_clear();
    bw_fail(BW_DATA, "name '%s'", "a\nb\033[2J\x7f");
    assert_string_equal(bw_error(), "name 'a b?[2J?'");
}

static void a_long_message_is_cut_not_overrun(void **state)
{
    (void)state;
    static char name[10000];
    memset(name, 'x', sizeof name - 1);
    bw_error_clear();
    bw_fail(BW_DATA, "%s", name);
    assert_true(strlen(bw_error()) > 1000 && strlen(bw_error()) < sizeof name - 1);
}

static int assertion_of(int value)
{
    BW_ASSERT(value == 1);
    return BW_OK;
}

static void an_assertion_names_its_place(void **state)
{
    (void)state;
    bw_error_clear();
    assert_int_equal(assertion_of(1), BW_OK);
    assert_int_equal(assertion_of(2), BW_BUG);
    assert_non_null(strstr(bw_error(), "test_status.c"));
    assert_non_null(strstr(bw_error(), "value == 1"));
}

static void sizes_that_overflow_are_refused_with_a_message(void **state)
{
    (void)state;
    const int64_t counts[] = {-1, INT64_MIN, INT64_MAX, INT64_MAX / 8, INT64_C(1) << 60};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        bw_error_clear();
        assert_null(bw_calloc(counts[i], 64, "test"));
        assert_non_null(strstr(bw_error(), "test"));
    }
    bw_error_clear();
    int64_t *numbers;
    assert_int_equal(BW_NEW(numbers, INT64_MAX, "test"), BW_SYSTEM);
}

static void memory_is_zeroed_aligned_and_counted(void **state)
{
    (void)state;
    int64_t before = bw_mem_now();
    double *numbers;
    assert_int_equal(BW_NEW(numbers, 1000, "test numbers"), BW_OK);
    assert_int_equal((uintptr_t)numbers % 64, 0);
    for (int i = 0; i < 1000; i++)
        assert_true(numbers[i] == 0);
    assert_int_equal(bw_mem_now(), before + 8000);
    bw_mem_note("test window", 5000);
    assert_int_equal(bw_mem_now(), before + 13000);
    bw_mem_note("test window", -5000);
    bw_free(numbers);
    assert_int_equal(bw_mem_now(), before);
    assert_true(bw_mem_peak() >= before + 13000);
    assert_true(bw_mem_peak_rss() > 0);
}

static void nothing_is_a_valid_amount_of_memory(void **state)
{
    (void)state;
    void *nothing = bw_calloc(0, 8, "test");
    assert_non_null(nothing);
    bw_free(nothing);
    bw_free(NULL);
}

static void more_purposes_than_rows_still_add_up(void **state)
{
    (void)state;
    int64_t before = bw_mem_now();
    char name[32];
    for (int i = 0; i < 200; i++) {
        snprintf(name, sizeof name, "purpose %d", i);
        bw_mem_note(name, 10);
    }
    assert_int_equal(bw_mem_now(), before + 2000);
    for (int i = 0; i < 200; i++) {
        snprintf(name, sizeof name, "purpose %d", i);
        bw_mem_note(name, -10);
    }
    assert_int_equal(bw_mem_now(), before);
}

static void text_grows_and_stays_terminated(void **state)
{
    (void)state;
    bw_text text = {0};
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(bw_text_addf(&text, "%03d,", i), BW_OK);
        assert_int_equal(strlen(text.data), text.length);
    }
    assert_int_equal(text.length, 4000);
    assert_memory_equal(text.data + 4 * 517, "517,", 4);
    bw_text_free(&text);
    assert_int_equal(bw_text_add(&text, "a\0b", 3), BW_OK);
    assert_int_equal(text.length, 3);
    assert_memory_equal(text.data, "a\0b", 4);
    bw_text_free(&text);
    assert_int_equal(bw_text_add(&text, NULL, 0), BW_OK); /* nothing added is still a string */
    assert_string_equal(text.data, "");
    bw_text_free(&text);
}

static void the_nearest_word_is_the_one_meant(void **state)
{
    (void)state;
    static const char *const words[] = {"lr", "seed", "batch", "warmup", "max-length", "weight-decay", "schedule"};
    static const char *const slips[][2] = {{"sed", "seed"},
                                           {"batch-size", "batch"},
                                           {"wramup", "warmup"},
                                           {"maxlength", "max-length"},
                                           {"weight_decay", "weight-decay"},
                                           {"sched", "schedule"},
                                           {"rl", "lr"}};
    for (size_t i = 0; i < sizeof slips / sizeof *slips; i++) {
        const char *nearest = bw_nearest(slips[i][0], words, 7);
        assert_non_null(nearest);
        assert_string_equal(nearest, slips[i][1]);
    }
    assert_null(bw_nearest("temperature", words, 7));
    assert_null(bw_nearest("", words, 7));
    assert_null(bw_nearest("seed", words, 0));
}

static void events_add_up(void **state)
{
    (void)state;
    double start = bw_now();
    assert_true(bw_now() >= start);
    bw_event_add(BW_EVENT_MERGE, 1.5, 100, 8);
    bw_event_add(BW_EVENT_MERGE, 0.5, 50, 4);
    const bw_event_sum *sum = bw_event_get(BW_EVENT_MERGE);
    assert_int_equal(sum->count, 2);
    assert_true(sum->seconds == 2 && sum->flops == 150 && sum->bytes == 12);
    for (int event = 0; event < BW_EVENTS; event++)
        assert_non_null(bw_event_name((bw_event)event));
}

/* The work of a child process: 500 progress lines as fast as it can, and an end. */
static void progress_to(int descriptor)
{
    dup2(descriptor, STDOUT_FILENO);
    for (int i = 1; i <= 500; i++)
        bw_progress("step %d of 500", i);
    bw_info("end");
    fflush(stdout);
    _exit(0);
}

static void read_all(int descriptor, char *text, size_t room)
{
    size_t length = 0;
    for (ssize_t got = 1; got > 0; length += got > 0 ? (size_t)got : 0)
        got = read(descriptor, text + length, room - 1 - length);
    text[length] = 0;
}

/* The work of a child process: what it was doing, and the error that ended it. */
static void fail_to(int descriptor)
{
    dup2(descriptor, STDOUT_FILENO);
    dup2(descriptor, STDERR_FILENO);
    bw_error_clear();
    bw_progress("step 1 of 500");
    bw_progress("step 2 of 500");
    bw_fail(BW_IO, "the disk is full");
    bw_log_error();
    _exit(0);
}

static const char *const launchers[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"};

static void a_log_file_gets_the_first_and_the_last_progress_line(void **state)
{
    (void)state;
    int lines[2], status;
    char text[8192];
    assert_int_equal(pipe(lines), 0);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        progress_to(lines[1]);
    close(lines[1]);
    read_all(lines[0], text, sizeof text);
    close(lines[0]);
    waitpid(child, &status, 0);
    assert_string_equal(text, "step 1 of 500\nstep 500 of 500\nend\n");
}

/* The other end of a pseudo-terminal: mpirun gives its ranks one, whatever its own output is. */
static void what_is_on_a_terminal(void (*work)(int descriptor), bool launched, char *text, size_t room)
{
    int status, master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) != 0 || unlockpt(master) != 0) {
        print_message("no pseudo-terminals here (is devpts mounted?)\n");
        skip();
    }
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        for (size_t i = 0; i < sizeof launchers / sizeof *launchers; i++)
            unsetenv(launchers[i]);
        if (launched)
            setenv(launchers[0], "0", 1);
        work(open(ptsname(master), O_RDWR | O_NOCTTY));
    }
    waitpid(child, &status, 0);
    read_all(master, text, room);
    close(master);
}

static void a_terminal_gets_a_progress_line_that_replaces_itself(void **state)
{
    (void)state;
    char text[8192];
    what_is_on_a_terminal(progress_to, false, text, sizeof text);
    assert_string_equal(text, "\rstep 1 of 500\033[K\rstep 500 of 500\033[K\r\nend\r\n");
}

static void the_terminal_that_a_launcher_makes_is_taken_for_a_file(void **state)
{
    (void)state;
    char text[8192];
    what_is_on_a_terminal(progress_to, true, text, sizeof text);
    assert_string_equal(text, "step 1 of 500\r\nstep 500 of 500\r\nend\r\n");
}

static void an_error_comes_after_the_last_progress_line(void **state)
{
    (void)state;
    char text[8192];
    what_is_on_a_terminal(fail_to, false, text, sizeof text);
    assert_string_equal(text, "\rstep 1 of 500\033[K\rstep 2 of 500\033[K\r\nbreakwater: error: the disk is full\r\n");
    what_is_on_a_terminal(fail_to, true, text, sizeof text);
    assert_string_equal(text, "step 1 of 500\r\nstep 2 of 500\r\nbreakwater: error: the disk is full\r\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_message_is_kept_until_it_is_cleared),
        cmocka_unit_test(a_message_is_one_line_and_cannot_steer_a_terminal),
        cmocka_unit_test(a_long_message_is_cut_not_overrun),
        cmocka_unit_test(an_assertion_names_its_place),
        cmocka_unit_test(sizes_that_overflow_are_refused_with_a_message),
        cmocka_unit_test(memory_is_zeroed_aligned_and_counted),
        cmocka_unit_test(nothing_is_a_valid_amount_of_memory),
        cmocka_unit_test(more_purposes_than_rows_still_add_up),
        cmocka_unit_test(text_grows_and_stays_terminated),
        cmocka_unit_test(the_nearest_word_is_the_one_meant),
        cmocka_unit_test(events_add_up),
        cmocka_unit_test(a_log_file_gets_the_first_and_the_last_progress_line),
        cmocka_unit_test(a_terminal_gets_a_progress_line_that_replaces_itself),
        cmocka_unit_test(the_terminal_that_a_launcher_makes_is_taken_for_a_file),
        cmocka_unit_test(an_error_comes_after_the_last_progress_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
