/* hints.c - "KEY=VALUE" texts as an MPI_Info, and back. */
#include <string.h>
#include "par/comms.h"

/* The value of a hint in its text; NULL: not KEY=VALUE, or longer than MPI takes it. */
static const char *parse(const char *hint, char key[MPI_MAX_INFO_KEY])
{
    const char *equals = strchr(hint, '=');
    if (!equals || equals == hint || !equals[1] || equals - hint >= MPI_MAX_INFO_KEY || strlen(equals + 1) >= MPI_MAX_INFO_VAL)
        return NULL;
    snprintf(key, MPI_MAX_INFO_KEY, "%.*s", (int)(equals - hint), hint);
    return equals + 1;
}

int bw_hints_check(const bw_list *hints)
{
    char key[MPI_MAX_INFO_KEY];
    for (int i = 0; i < hints->count; i++)
        if (!parse(hints->items[i], key))
            return bw_fail(BW_USAGE, "--mpi-hint: '%.60s' is not KEY=VALUE with a key of 1 to %d bytes and a value of 1 to %d", hints->items[i],
                           MPI_MAX_INFO_KEY - 1, MPI_MAX_INFO_VAL - 1);
    return BW_OK;
}

const char *bw_hint_find(const bw_list *hints, const char *key)
{
    char other[MPI_MAX_INFO_KEY];
    const char *found = NULL;
    for (int i = 0; i < hints->count; i++) {
        const char *value = parse(hints->items[i], other);
        if (value && strcmp(other, key) == 0)
            found = value;
    }
    return found;
}

int bw_hints_info(const bw_list *hints, MPI_Info *info)
{
    char key[MPI_MAX_INFO_KEY];
    *info = MPI_INFO_NULL;
    if (!hints || hints->count == 0)
        return BW_OK;
    BW_TRY(bw_hints_check(hints));
    BW_MPI(MPI_Info_create(info));
    for (int i = 0; i < hints->count; i++) {
        const char *value = parse(hints->items[i], key);
        BW_MPI(MPI_Info_set(*info, key, value));
    }
    return BW_OK;
}

int bw_hints_describe(MPI_Info info, bw_text *text)
{
    int keys = 0;
    if (info != MPI_INFO_NULL)
        BW_MPI(MPI_Info_get_nkeys(info, &keys));
    for (int i = 0; i < keys; i++) {
        char key[MPI_MAX_INFO_KEY + 1] = "", value[MPI_MAX_INFO_VAL + 1] = "";
        int there = 0;
        BW_MPI(MPI_Info_get_nthkey(info, i, key));
        BW_MPI(MPI_Info_get(info, key, MPI_MAX_INFO_VAL, value, &there));
        BW_TRY(bw_text_addf(text, "%s%s=%s", i ? ", " : "", key, value));
    }
    return keys > 0 ? BW_OK : bw_text_addf(text, "none");
}
