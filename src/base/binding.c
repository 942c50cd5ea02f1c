/* On which cores ranks may run, as text and as a warning. A launcher that binds ranks to fewer cores than they have threads slows a job down many
 * times, and nothing else of it shows. */
#include "breakwater/base.h"
#include <sched.h>
#include <string.h>
#include <unistd.h>

enum { MOST_RUNS = 6, MOST_PLACES = 8, MOST_HOSTS = 8, LONG_LINE = 100 };

/* ---- sets of cores -------------------------------------------------------------------------------------------------- */

static bool has(const bw_binding *binding, int core)
{
    return binding->cores[core / 64] >> (core % 64) & 1;
}

void bw_binding_add(bw_binding *binding, int core)
{
    if (core >= 0 && core < BW_MOST_CORES)
        binding->cores[core / 64] |= UINT64_C(1) << (core % 64);
}

int bw_binding_cores(const bw_binding *binding)
{
    int count = 0;
    for (int i = 0; i < BW_MOST_CORES / 64; i++)
        count += __builtin_popcountll(binding->cores[i]);
    return count;
}

void bw_binding_get(bw_binding *binding)
{
    cpu_set_t set[BW_MOST_CORES / CPU_SETSIZE];
    *binding = (bw_binding){.online = (int)sysconf(_SC_NPROCESSORS_ONLN)};
    bool known = sched_getaffinity(0, sizeof set, set) == 0;
    for (int core = 0; core < BW_MOST_CORES; core++)
        if (known ? CPU_ISSET_S((size_t)core, sizeof set, set) : core < binding->online)
            bw_binding_add(binding, core);
}

/* Runs of neighbours, "0-3,8"; many of them are only counted. */
static int add_cores(bw_text *text, const bw_binding *binding)
{
    int count = bw_binding_cores(binding), runs = 0;
    bw_text list = {0};
    int status = bw_text_addf(&list, count == 1 ? "core " : "cores ");
    for (int first = 0; status == BW_OK && first < BW_MOST_CORES; first++) {
        int end = first;
        while (end < BW_MOST_CORES && has(binding, end))
            end++;
        if (end == first)
            continue;
        status = bw_text_addf(&list, end - first > 1 ? "%s%d-%d" : "%s%d", runs++ ? "," : "", first, end - 1);
        first = end;
    }
    if (status == BW_OK)
        status = runs <= MOST_RUNS ? bw_text_add(text, list.data, list.length) : bw_text_addf(text, "%d cores", count);
    bw_text_free(&list);
    return status;
}

/* ---- a host ----------------------------------------------------------------------------------------------------------- */
typedef struct range {
    int least, most;
} range;

typedef struct host {
    const bw_binding *ranks;
    int count;
    bool alike;        /* all ranks may use the same cores */
    bw_binding all;    /* cores of any rank, threads of all */
    bw_binding common; /* cores of more than one rank */
    range cores, threads;
    int tightest; /* the rank with the most threads beyond its cores; -1: none has */
} host;

static void widen(range *range, int value)
{
    if (value < range->least || range->most == 0)
        range->least = value;
    if (value > range->most)
        range->most = value;
}

static host look_at(const bw_binding *ranks, int count)
{
    host h = {.ranks = ranks, .count = count, .alike = true, .all.online = ranks->online, .tightest = -1};
    int beyond = 0;
    for (int rank = 0; rank < count; rank++) {
        int cores = bw_binding_cores(&ranks[rank]);
        for (int i = 0; i < BW_MOST_CORES / 64; i++) {
            h.common.cores[i] |= h.all.cores[i] & ranks[rank].cores[i];
            h.all.cores[i] |= ranks[rank].cores[i];
        }
        h.all.threads += ranks[rank].threads;
        h.alike &= memcmp(ranks[rank].cores, ranks[0].cores, sizeof ranks[0].cores) == 0;
        widen(&h.cores, cores);
        widen(&h.threads, ranks[rank].threads);
        if (ranks[rank].threads - cores > beyond) {
            beyond = ranks[rank].threads - cores;
            h.tightest = rank;
        }
    }
    return h;
}

static int add_count(bw_text *text, range range, const char *what)
{
    if (range.least < range.most)
        BW_TRY(bw_text_addf(text, "%d to ", range.least));
    return bw_text_addf(text, "%d %s%s", range.most, what, range.most == 1 ? "" : "s");
}

static int add_each(bw_text *text, const host *h)
{
    for (int rank = 0; rank < h->count; rank++) {
        BW_TRY(bw_text_addf(text, rank ? " | " : "on "));
        BW_TRY(add_cores(text, &h->ranks[rank]));
    }
    return BW_OK;
}

static int add_places(bw_text *text, const host *h)
{
    if (h->alike) {
        BW_TRY(bw_text_addf(text, h->count > 1 ? "each on " : "on "));
        return add_cores(text, &h->all);
    }
    bw_text each = {0};
    int status = h->count <= MOST_PLACES ? add_each(&each, h) : BW_OK;
    if (status == BW_OK && each.length > 0 && each.length <= LONG_LINE)
        status = bw_text_add(text, each.data, each.length);
    else if (status == BW_OK && (status = add_count(text, h->cores, "core")) == BW_OK && (status = bw_text_addf(text, " each, of ")) == BW_OK)
        status = add_cores(text, &h->all);
    bw_text_free(&each);
    return status;
}

static int describe(bw_text *text, const host *h)
{
    BW_TRY(add_count(text, (range){h->count, h->count}, "rank"));
    BW_TRY(bw_text_addf(text, " x "));
    BW_TRY(add_count(text, h->threads, "thread"));
    BW_TRY(bw_text_addf(text, ", "));
    return add_places(text, h);
}

/* ---- what is wrong with it ---------------------------------------------------------------------------------------------- */

/* What helps depends on whose fault it is: a launcher that gives away fewer cores than there are, or more threads than the host has cores. */
static const char *advice(const host *h)
{
    return bw_binding_cores(&h->all) < h->all.online || !h->alike
               ? "give a rank as many cores as it has threads (mpirun --map-by slot:PE=N, or --bind-to none; Slurm: --cpus-per-task=N)"
               : "start fewer ranks, or set --threads";
}

static int find_fault(bw_text *text, const host *h)
{
    int cores = bw_binding_cores(&h->all);
    if (h->tightest >= 0) {
        const bw_binding *rank = &h->ranks[h->tightest];
        BW_TRY(bw_text_addf(text, "a rank has %d threads on ", rank->threads));
        BW_TRY(add_cores(text, rank));
    } else if (h->all.threads > cores) {
        BW_TRY(bw_text_addf(text, "%d ranks have %d threads on ", h->count, h->all.threads));
        BW_TRY(add_cores(text, &h->all));
    } else if (!h->alike && bw_binding_cores(&h->common) > 0) {
        BW_TRY(bw_text_addf(text, "ranks share "));
        BW_TRY(add_cores(text, &h->common));
        BW_TRY(bw_text_addf(text, " and not the others"));
    } else {
        return BW_OK;
    }
    /* Measured, beside other work: two threads on one core trained at 5 tokens/s, on two cores they do about 200. */
    return bw_text_addf(text, ", of %d%s: %s", h->all.online, h->tightest >= 0 ? ", which is many times slower" : "", advice(h));
}

int bw_binding_of_host(bw_host_binding *out, const char *name, const bw_binding *ranks, int count)
{
    host h = look_at(ranks, count);
    bw_text about = {0}, fault = {0};
    *out = (bw_host_binding){.ranks = count};
    int status = describe(&about, &h);
    if (status == BW_OK)
        status = find_fault(&fault, &h);
    if (status == BW_OK) {
        snprintf(out->name, sizeof out->name, "%s", name);
        snprintf(out->about, sizeof out->about, "%s", about.data);
        snprintf(out->fault, sizeof out->fault, "%s", fault.data ? fault.data : "");
    }
    bw_text_free(&about);
    bw_text_free(&fault);
    return status;
}

/* ---- all hosts ---------------------------------------------------------------------------------------------------------- */

static int add_hosts(bw_text *lines, const bw_host_binding *hosts, int count)
{
    int64_t others = 0;
    BW_TRY(bw_text_addf(lines, "%d hosts", count));
    for (int i = 0; i < count; i++)
        if (i < MOST_HOSTS)
            BW_TRY(bw_text_addf(lines, "\n  %s: %s", hosts[i].name, hosts[i].about));
        else
            others += hosts[i].ranks;
    return count > MOST_HOSTS ? bw_text_addf(lines, "\n  %d more: %lld ranks", count - MOST_HOSTS, (long long)others) : BW_OK;
}

static int add_warning(bw_text *warning, const bw_host_binding *hosts, int count)
{
    int first = -1, faulty = 0;
    for (int i = 0; i < count; i++)
        if (hosts[i].fault[0] && faulty++ == 0)
            first = i;
    if (first < 0)
        return BW_OK;
    BW_TRY(bw_text_addf(warning, "on %s", hosts[first].name));
    if (faulty > 1)
        BW_TRY(bw_text_addf(warning, " (%d hosts are alike in this)", faulty));
    return bw_text_addf(warning, " %s", hosts[first].fault);
}

int bw_binding_report(const bw_host_binding *hosts, int count, bw_text *lines, bw_text *warning)
{
    bool alike = true;
    for (int i = 1; i < count; i++)
        alike &= strcmp(hosts[i].about, hosts[0].about) == 0;
    BW_TRY(add_warning(warning, hosts, count));
    if (count == 1)
        return bw_text_addf(lines, "host %s: %s", hosts[0].name, hosts[0].about);
    return alike ? bw_text_addf(lines, "%d hosts x %s", count, hosts[0].about) : add_hosts(lines, hosts, count);
}
