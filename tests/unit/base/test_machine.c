/* Machine files: what a plan knows of a cluster. A slip ends in one line that names file, line, what was found and what belongs there. */
#include "breakwater/base.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static char folder[] = "/tmp/bw_test_machine_XXXXXX", path[64];
static const char good[] = "# a node\ncores: 64\ngemm_gflops: 70.5\nmemory_gib: 512\nmemory_gbs: 350\nnetwork_us: 2\nnetwork_gbs: 24\n";

static int load(bw_machine *machine, const char *text)
{
    bw_error_clear();
    assert_int_equal(bw_file_write(path, text, strlen(text), 0644), BW_OK);
    const int status = bw_machine_load(machine, path);
    unlink(path);
    return status;
}

static void every_quantity_is_read(void **state)
{
    (void)state;
    bw_machine m;
    assert_int_equal(load(&m, good), BW_OK);
    assert_int_equal(m.cores, 64);
    assert_true(m.gemm_gflops == 70.5 && m.memory_gib == 512 && m.memory_gbs == 350 && m.network_us == 2 && m.network_gbs == 24);
}

static void refused(const char *text, const char *part)
{
    bw_machine m;
    assert_int_equal(load(&m, text), BW_USAGE);
    if (!strstr(bw_error(), part) || strchr(bw_error(), '\n'))
        fail_msg("'%s' is not in one line: %s", part, bw_error());
}

static void slips_are_named_with_their_line(void **state)
{
    (void)state;
    refused("cores: 64\ngemm_gflop: 70\n", ":2: gemm_gflop: unknown in a machine file. Did you mean gemm_gflops?");
    refused("cores: 64\ncores: 64\n", ":2: cores: given twice");
    refused("cores: many\n", ":1: cores: 'many' is not a whole number of cores of a node");
    refused("cores: 2.5\n", "'2.5' is not a whole number");
    refused("cores: 0\n", "from 1 to 4096");
    refused("memory_gib: nan\n", "'nan' is not a number");
    refused("memory_gib: 1e400\n", "'1e400' is not a number");
    refused("memory_gib: 512 GiB\n", "'512 GiB' is not a number");
    refused("network_us: -1\n", "'-1' is not a number");
    refused("network_us: [1, 2]\n", "a list or mapping");
    refused("network_gbs:\n", "network_gbs: ''");
    refused("cores: 64\n", "gemm_gflops is missing");
}

static void what_is_no_machine_file_is_refused(void **state)
{
    (void)state;
    refused("", "not a machine file");
    refused("- 1\n- 2\n", "not a machine file");
    refused("64\n", "not a machine file");
    refused("cores: [1\n", "not YAML");
    refused("? [a]\n: 1\n", "a key must be a word");
    bw_machine m;
    assert_int_equal(bw_machine_load(&m, "/nowhere/machine.yaml"), BW_NOINPUT);
}

static int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return 1;
    snprintf(path, sizeof path, "%s/machine.yaml", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_quantity_is_read),
        cmocka_unit_test(slips_are_named_with_their_line),
        cmocka_unit_test(what_is_no_machine_file_is_refused),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
