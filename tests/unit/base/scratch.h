/* A folder of its own for each test: made before it, removed with all that is in it after. */
#ifndef TEST_BASE_SCRATCH_H
#define TEST_BASE_SCRATCH_H
#include "breakwater/base.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char folder[64];

/* The path of a name in it; good until the fourth call from here. */
static const char *in_folder(const char *name)
{
    static char paths[4][160];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static int make_folder(void **state)
{
    (void)state;
    bw_error_clear();
    strcpy(folder, "/tmp/bw_test_base_XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

#endif
