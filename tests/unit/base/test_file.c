/* Files are there complete or not at all. */
#include "breakwater/base.h"
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "scratch.h"

static void assert_content(const char *path, const char *expected)
{
    bw_map map;
    assert_int_equal(bw_map_open(&map, path), BW_OK);
    assert_int_equal(map.size, strlen(expected));
    assert_memory_equal(map.size ? (const void *)map.data : "", expected, map.size);
    assert_string_equal(map.path, path);
    bw_map_close(&map);
}

/* A file system that cannot flush: folders, or files as well. In place of the C library's. */
static enum { ALL, FILES_ONLY, NOTHING } flushes;
int fsync(int descriptor)
{
    struct stat info;
    if (flushes == NOTHING || (flushes == FILES_ONLY && fstat(descriptor, &info) == 0 && S_ISDIR(info.st_mode))) {
        errno = EINVAL;
        return -1;
    }
    return (int)syscall(SYS_fsync, descriptor);
}

static void a_folder_is_published_where_folders_cannot_be_flushed_and_a_file_is_not(void **state)
{
    (void)state;
    flushes = FILES_ONLY;
    assert_int_equal(bw_dir_make(in_folder("whole.tmp")), BW_OK);
    assert_int_equal(bw_file_publish(in_folder("whole.tmp"), in_folder("whole")), BW_OK);
    assert_true(bw_file_exists(in_folder("whole")));
    assert_int_equal(bw_file_write(in_folder("a"), "x", 1, 0644), BW_OK);
    flushes = NOTHING;
    assert_int_equal(bw_file_write(in_folder("b"), "x", 1, 0644), BW_IO);
    flushes = ALL;
    assert_non_null(strstr(bw_error(), "not written to disk: Invalid argument"));
    assert_false(bw_file_exists(in_folder("b")) || bw_file_exists(in_folder("b.tmp")));
    bw_error_clear();
}

static void what_is_written_is_read(void **state)
{
    (void)state;
    const char *path = in_folder("a");
    assert_int_equal(bw_file_write(path, "hello", 5, 0644), BW_OK);
    assert_content(path, "hello");
    assert_int_equal(bw_file_write(path, "", 0, 0644), BW_OK);
    assert_content(path, "");
    assert_false(bw_file_exists(in_folder("a.tmp")));
}

static void a_private_file_is_private_even_over_a_leftover(void **state)
{
    (void)state;
    const char *path = in_folder("private");
    assert_int_equal(bw_file_write(in_folder("private.tmp"), "left over", 9, 0666), BW_OK);
    assert_int_equal(bw_file_write(path, "secret", 6, 0600), BW_OK);
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
}

/* A limit on the size of files stands in for a full disk: write() fails half way in both. */
static void a_full_disk_keeps_the_old_file(void **state)
{
    (void)state;
    const char *path = in_folder("kept");
    assert_int_equal(bw_file_write(path, "old", 3, 0644), BW_OK);
    struct rlimit before, small = {4096, RLIM_INFINITY};
    getrlimit(RLIMIT_FSIZE, &before);
    small.rlim_max = before.rlim_max;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    static char large[100000];
    bw_error_clear();
    int status = bw_file_write(path, large, sizeof large, 0644);
    setrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, handler);
    assert_int_equal(status, BW_IO);
    assert_non_null(strstr(bw_error(), path));
    assert_content(path, "old");
    assert_false(bw_file_exists(in_folder("kept.tmp")));
}

static void a_device_is_never_replaced(void **state)
{
    (void)state;
    bw_error_clear();
    assert_int_equal(bw_file_write("/dev/full", "x", 1, 0644), BW_CANTCREATE);
    struct stat info;
    assert_true(stat("/dev/full", &info) == 0 && S_ISCHR(info.st_mode));
}

static void a_folder_that_is_missing_or_in_the_way_is_said(void **state)
{
    (void)state;
    bw_error_clear();
    assert_int_equal(bw_file_write(in_folder("no/such/file"), "x", 1, 0644), BW_CANTCREATE);
    assert_non_null(strstr(bw_error(), "No such file"));
    bw_error_clear();
    assert_int_equal(bw_file_write("/proc/bw_test", "x", 1, 0644), BW_CANTCREATE); /* closed even to root */
    assert_int_equal(bw_dir_make(in_folder("d")), BW_OK);
    bw_error_clear();
    assert_int_equal(bw_file_write(in_folder("d"), "x", 1, 0644), BW_CANTCREATE);
}

static void a_folder_of_one_s_own_without_write_permission_keeps_the_old_file(void **state)
{
    (void)state;
    if (geteuid() == 0)
        skip(); /* root writes everywhere */
    const char *path = in_folder("closed/a");
    assert_int_equal(bw_dir_make(in_folder("closed")), BW_OK);
    assert_int_equal(bw_file_write(path, "old", 3, 0644), BW_OK);
    assert_int_equal(chmod(in_folder("closed"), 0500), 0);
    assert_int_equal(bw_file_write(path, "new", 3, 0644), BW_CANTCREATE);
    chmod(in_folder("closed"), 0700);
    assert_content(path, "old");
}

static void files_made_by_others_are_published(void **state)
{
    (void)state;
    assert_int_equal(bw_file_write(in_folder("theirs.part"), "data", 4, 0644), BW_OK);
    assert_int_equal(bw_file_publish(in_folder("theirs.part"), in_folder("theirs")), BW_OK);
    assert_content(in_folder("theirs"), "data");
    assert_false(bw_file_exists(in_folder("theirs.part")));
    bw_error_clear();
    assert_int_equal(bw_file_publish(in_folder("theirs.part"), in_folder("theirs")), BW_IO);
    assert_content(in_folder("theirs"), "data");
}

static void folders_are_made_with_all_above_them(void **state)
{
    (void)state;
    assert_int_equal(bw_dir_make(in_folder("x//y/z/")), BW_OK);
    assert_int_equal(bw_dir_make(in_folder("x/y/z")), BW_OK);
    assert_true(bw_file_exists(in_folder("x/y/z")));
    assert_int_equal(bw_dir_make("/"), BW_OK);
    assert_int_equal(bw_file_write(in_folder("file"), "", 0, 0644), BW_OK);
    bw_error_clear();
    assert_int_equal(bw_dir_make(in_folder("file/below")), BW_CANTCREATE);
    assert_int_equal(bw_dir_make(in_folder("file")), BW_CANTCREATE);
    assert_int_equal(bw_dir_make(""), BW_CANTCREATE);
}

static void what_cannot_be_read_is_no_input(void **state)
{
    (void)state;
    bw_map map;
    /* A named pipe that nobody writes to must not be waited for. */
    assert_int_equal(mkfifo(in_folder("pipe"), 0600), 0);
    const char *const paths[] = {in_folder("missing"), folder, "/dev/null", in_folder("pipe")};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        bw_error_clear();
        assert_int_equal(bw_map_open(&map, paths[i]), BW_NOINPUT);
        assert_non_null(strstr(bw_error(), paths[i]));
        bw_map_close(&map);
    }
}

static void paths_join_with_one_slash(void **state)
{
    (void)state;
    bw_text path = {0};
    static const char *const cases[][3] = {{"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"/", "b", "/b"}, {"", "b", "b"}, {"a//", "b", "a/b"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(bw_path(&path, cases[i][0], cases[i][1]), BW_OK);
        assert_string_equal(path.data, cases[i][2]);
    }
    assert_int_equal(bw_path(&path, path.data, "c"), BW_OK); /* a text may extend itself */
    assert_string_equal(path.data, "a/b/c");
    bw_text_free(&path);
}

/* Touches the last byte of a mapped file that is cut short meanwhile; gives the exit status, and what was said. */
static int read_what_was_cut(const char *path, char *said, size_t room)
{
    int lines[2], status = 0;
    assert_int_equal(pipe(lines), 0);
    pid_t child = fork();
    if (child == 0) {
        bw_map map, other;
        dup2(lines[1], STDERR_FILENO);
        if (bw_map_open(&other, "/proc/self/exe") != BW_OK || bw_map_open(&map, path) != BW_OK || truncate(path, 10) != 0)
            _exit(1);
        _exit(((const volatile uint8_t *)map.data)[map.size - 1]);
    }
    close(lines[1]);
    size_t length = 0;
    for (ssize_t got = 1; got > 0; length += got > 0 ? (size_t)got : 0)
        got = read(lines[0], said + length, room - 1 - length);
    said[length] = 0;
    close(lines[0]);
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void a_file_cut_short_while_it_is_read_is_named(void **state)
{
    (void)state;
    static char bytes[3 * 65536];
    char said[512];
    assert_int_equal(bw_file_write(in_folder("model"), bytes, sizeof bytes, 0644), BW_OK);
    assert_int_equal(read_what_was_cut(in_folder("model"), said, sizeof said), BW_IO);
    assert_non_null(strstr(said, "breakwater: error: "));
    assert_non_null(strstr(said, in_folder("model")));
    assert_ptr_equal(strchr(said, '\n'), said + strlen(said) - 1);
}

static void hashes_tell_content_and_order_apart(void **state)
{
    (void)state;
    char text[33];
    bw_hash_text(bw_hash_bytes("", 0), text);
    assert_string_equal(text, "99aa06d3014798d86001c324468d497f"); /* XXH3-128 of nothing, seed 0, from its specification */
    bw_hash a = bw_hash_bytes("a", 1), b = bw_hash_bytes("b", 1), ab = bw_hash_join(a, b), ba = bw_hash_join(b, a);
    assert_true(a.low != b.low && a.high != b.high);
    assert_true(ab.low != ba.low && ab.high != ba.high);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_folder_is_published_where_folders_cannot_be_flushed_and_a_file_is_not),
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(a_private_file_is_private_even_over_a_leftover),
        cmocka_unit_test(a_full_disk_keeps_the_old_file),
        cmocka_unit_test(a_device_is_never_replaced),
        cmocka_unit_test(a_folder_that_is_missing_or_in_the_way_is_said),
        cmocka_unit_test(a_folder_of_one_s_own_without_write_permission_keeps_the_old_file),
        cmocka_unit_test(files_made_by_others_are_published),
        cmocka_unit_test(folders_are_made_with_all_above_them),
        cmocka_unit_test(what_cannot_be_read_is_no_input),
        cmocka_unit_test(paths_join_with_one_slash),
        cmocka_unit_test(a_file_cut_short_while_it_is_read_is_named),
        cmocka_unit_test(hashes_tell_content_and_order_apart),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
