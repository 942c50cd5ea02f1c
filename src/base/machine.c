/* A machine file: what a plan has to know of a cluster's nodes, as a YAML mapping. */
#include "base/yaml.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Bounds are wide of any machine, and close enough to catch a number in another unit. */
typedef struct quantity {
    const char *name, *unit;
    size_t offset;
    double low, high;
    bool whole;
} quantity;
static const quantity quantities[] = {
    {"cores", "cores of a node", offsetof(bw_machine, cores), 1, 4096, true},
    {"gemm_gflops", "GFLOP/s of a core", offsetof(bw_machine, gemm_gflops), 0.1, 1e6, false},
    {"memory_gib", "GiB of a node", offsetof(bw_machine, memory_gib), 0.125, 1e6, false},
    {"memory_gbs", "GB/s of a node", offsetof(bw_machine, memory_gbs), 0.1, 1e6, false},
    {"network_us", "microseconds", offsetof(bw_machine, network_us), 0.01, 1e6, false},
    {"network_gbs", "GB/s of a node", offsetof(bw_machine, network_gbs), 0.001, 1e6, false},
};
enum { QUANTITIES = sizeof quantities / sizeof *quantities };

static int find_quantity(const char *name, const char *where)
{
    const char *names[QUANTITIES];
    for (int i = 0; i < QUANTITIES; i++) {
        names[i] = quantities[i].name;
        if (strcmp(names[i], name) == 0)
            return i;
    }
    const char *nearest = bw_nearest(name, names, QUANTITIES);
    bw_fail(BW_USAGE, "%s: unknown in a machine file. %s%s%s", where,
            nearest ? "Did you mean " : "It has cores, gemm_gflops, memory_gib, memory_gbs, ", nearest ? nearest : "network_us and network_gbs",
            nearest ? "?" : "");
    return -1;
}

static int set_quantity(bw_machine *machine, const quantity *quantity, const char *text, const char *where)
{
    char *end = NULL;
    const double value = text ? strtod(text, &end) : 0;
    const bool number = text && end != text && *end == 0 && isfinite(value);
    if (!number || value < quantity->low || value > quantity->high || (quantity->whole && value != floor(value)))
        return bw_fail(BW_USAGE, "%s: '%s' is not a %snumber of %s from %g to %g", where, text ? text : "a list or mapping",
                       quantity->whole ? "whole " : "", quantity->unit, quantity->low, quantity->high);
    if (quantity->whole)
        *(int64_t *)((char *)machine + quantity->offset) = (int64_t)value;
    else
        *(double *)((char *)machine + quantity->offset) = value;
    return BW_OK;
}

static int take_entry(bw_machine *machine, const bw_yaml *yaml, int index, bool seen[QUANTITIES], bw_text *where)
{
    const int key = bw_yaml_key(yaml, bw_yaml_root(yaml), index);
    BW_TRY(bw_yaml_where(yaml, key, where));
    const int found = find_quantity(bw_yaml_text(yaml, key), where->data);
    if (found < 0)
        return BW_USAGE;
    if (seen[found])
        return bw_fail(BW_USAGE, "%s: given twice", where->data);
    seen[found] = true;
    return set_quantity(machine, &quantities[found], bw_yaml_text(yaml, bw_yaml_value(yaml, bw_yaml_root(yaml), index)), where->data);
}

static int take_entries(bw_machine *machine, const bw_yaml *yaml)
{
    bool seen[QUANTITIES] = {false};
    bw_text where = {0};
    const int root = bw_yaml_root(yaml);
    int status = bw_yaml_kind_of(yaml, root) == BW_YAML_MAPPING
                     ? BW_OK
                     : bw_fail(BW_USAGE, "%s: not a machine file: expected lines such as 'cores: 64'", bw_yaml_name(yaml));
    for (int i = 0; status == BW_OK && i < bw_yaml_count(yaml, root); i++)
        status = take_entry(machine, yaml, i, seen, &where);
    bw_text_free(&where);
    for (int i = 0; status == BW_OK && i < QUANTITIES; i++)
        if (!seen[i])
            status = bw_fail(BW_USAGE, "%s: %s is missing (%s)", bw_yaml_name(yaml), quantities[i].name, quantities[i].unit);
    return status;
}

int bw_machine_load(bw_machine *machine, const char *path)
{
    bw_yaml *yaml = NULL;
    *machine = (bw_machine){0};
    BW_TRY(bw_yaml_open(&yaml, path));
    const int status = take_entries(machine, yaml);
    bw_yaml_close(&yaml);
    return status;
}
