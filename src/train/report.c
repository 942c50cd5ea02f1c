/* train/report.c - where the time of a stage went. */
#include "step.h"
#include <inttypes.h>
#include <math.h>
#include <string.h>

void bw_trainer_report_begin(bw_trainer *t)
{
    t->opened = bw_now();
    for (int event = 0; event < BW_EVENTS; event++)
        t->before[event] = *bw_event_get((bw_event)event);
}

typedef struct row { /* of all ranks */
    double fastest, slowest, mean, flops, bytes;
    int64_t count;
} row;

/* Doubles of all ranks are summed as integers: a nanosecond, a flop, a byte are small enough. */
static int row_of(const bw_grid *grid, const bw_event_sum *mine, row *out)
{
    int64_t sums[] = {mine->count, llrint(mine->seconds * 1e9), llrint(mine->flops), llrint(mine->bytes)};
    BW_TRY(bw_min_max(grid, mine->seconds, &out->fastest, &out->slowest));
    BW_TRY(bw_sum_ints(grid, sums, sizeof sums / sizeof *sums));
    out->count = sums[0];
    out->mean = (double)sums[1] * 1e-9 / grid->size;
    out->flops = (double)sums[2];
    out->bytes = (double)sums[3];
    return BW_OK;
}

static int add_row(bw_text *out, const char *name, const row *r, int ranks, double whole)
{
    char flops[32] = "-", rate[32] = "-", bytes[32] = "-";
    if (r->flops > 0) {
        snprintf(flops, sizeof flops, "%.1f", r->flops * 1e-9);
        snprintf(rate, sizeof rate, "%.1f", r->flops * 1e-9 / (r->mean * ranks));
    }
    if (r->bytes > 0)
        snprintf(bytes, sizeof bytes, "%.1f", r->bytes / 1048576);
    return bw_text_addf(out, "%-12s %9" PRId64 " %11.3f %11.3f %12s %10s %11s %6.1f%%\n", name, r->count, r->fastest, r->slowest, flops, rate, bytes,
                        100 * r->mean / whole);
}

/* Rank 0 has every purpose: it counts what its node shares. Largest of all ranks, and the sum of all. Collective on world. */
static int add_purposes(const bw_trainer *t, bw_text *out)
{
    char names[BW_MEM_PURPOSES][BW_MEM_NAME] = {{0}};
    int64_t largest[BW_MEM_PURPOSES] = {0}, all[BW_MEM_PURPOSES] = {0}, unused;
    int count = 0;
    while (count < BW_MEM_PURPOSES && bw_mem_purpose(count, names[count], &unused))
        count++;
    BW_TRY(bw_broadcast(t->grid, names, sizeof names));
    for (int i = 0; i < BW_MEM_PURPOSES; i++)
        largest[i] = all[i] = *names[i] ? bw_mem_purpose_peak(names[i]) : 0;
    BW_TRY(bw_max_ints(t->grid, largest, BW_MEM_PURPOSES));
    BW_TRY(bw_sum_ints(t->grid, all, BW_MEM_PURPOSES));
    int status = bw_text_addf(out, "%-40s %16s %16s\n", "memory, bytes at peak", "fullest rank", "all ranks");
    for (int i = 0; status == BW_OK && i < count; i++)
        status = bw_text_addf(out, "%-40s %16" PRId64 " %16" PRId64 "\n", names[i], largest[i], all[i]);
    return bw_agree(t->grid, status);
}

static int add_memory(const bw_grid *grid, bw_text *out)
{
    double least, most;
    int64_t sum = bw_mem_peak_rss();
    int status = bw_text_addf(out, "memory of rank 0: %.0f MiB at its peak\n", (double)sum / 1048576);
    BW_TRY(bw_min_max(grid, (double)sum, &least, &most));
    BW_TRY(bw_sum_ints(grid, &sum, 1));
    if (status == BW_OK && grid->size > 1)
        status = bw_text_addf(out, "memory of a rank at its peak: %.0f to %.0f MiB; of all %d: %.0f MiB, what ranks share counted once for each\n",
                              least / 1048576, most / 1048576, grid->size, (double)sum / 1048576);
    return bw_agree(grid, status);
}

/* Parallel efficiency and its two factors, as the POP centre of excellence defines them: useful is what is not spent between ranks. Collective. */
static int add_efficiency(const bw_grid *grid, double useful, double whole, bw_text *out)
{
    row r;
    BW_TRY(row_of(grid, &(bw_event_sum){.seconds = useful}, &r));
    return bw_text_addf(out, "parallel efficiency: %.1f%% = load balance %.1f%% x communication %.1f%%\n", 100 * r.mean / whole,
                        100 * r.mean / r.slowest, 100 * r.slowest / whole);
}

/* Collective: a rank that runs out of memory for the text goes on to the end, where all agree. */
static int add_rows(const bw_trainer *t, double whole, bw_text *out)
{
    const bw_grid *grid = t->grid;
    double named = 0, talk = 0, useful = whole;
    int status = bw_text_addf(out, "%-12s %9s %11s %11s %12s %10s %11s %7s\n", "event", "count", "fastest, s", "slowest, s", "Gflop", "GFLOP/s",
                              "MiB", "share");
    for (int event = 0; event < BW_EVENTS; event++) {
        const bw_event_sum *now = bw_event_get((bw_event)event), *before = &t->before[event];
        bw_event_sum mine = {now->count - before->count, now->seconds - before->seconds, now->flops - before->flops, now->bytes - before->bytes};
        row r;
        BW_TRY(row_of(grid, &mine, &r));
        named += mine.seconds;
        if (event == BW_EVENT_GATHER || event == BW_EVENT_REDUCE) {
            talk += r.mean;
            useful -= mine.seconds;
        }
        if (status == BW_OK && r.count > 0)
            status = add_row(out, bw_event_name((bw_event)event), &r, grid->size, whole);
    }
    row rest;
    BW_TRY(row_of(grid, &(bw_event_sum){.count = 1, .seconds = fmax(0, whole - named)}, &rest));
    if (status == BW_OK)
        status = add_row(out, "other", &rest, grid->size, whole);
    if (status == BW_OK)
        status = bw_text_addf(out, "between ranks (gather, reduce): %.1f%% of %.1f s\n", 100 * talk / whole, whole);
    int added = add_efficiency(grid, useful, whole, out);
    return status == BW_OK ? added : status;
}

/* What the row "gather" holds of streamed weights, and what went on behind compute. Collective on world. */
static int add_streaming(const bw_trainer *t, bw_text *out)
{
    const bw_streaming *sum = bw_store_streaming(t->store);
    const struct {
        const char *name;
        double seconds;
    } parts[] = {{"in flight", sum->in_flight}, {"waited for", sum->waited}, {"unpacked", sum->unpacked}, {"node's ranks", sum->met}};
    enum { PARTS = sizeof parts / sizeof *parts };
    double mean[PARTS];
    int status = bw_text_addf(out, "gather of streamed weights: in flight beside compute; what compute then waited for, in parts\n");
    for (int i = 0; i < PARTS; i++) {
        row r;
        BW_TRY(row_of(t->grid, &(bw_event_sum){.count = sum->gathers, .seconds = parts[i].seconds}, &r));
        mean[i] = r.mean;
        if (status == BW_OK)
            status = bw_text_addf(out, "%-12s %9" PRId64 " %11.3f %11.3f\n", parts[i].name, r.count, r.fastest, r.slowest);
    }
    if (status == BW_OK && mean[0] > 0)
        status = bw_text_addf(out, "the gather of the weights: %.3f s in flight, %.3f s of it waited for: %.0f%% hidden\n", mean[0], mean[1],
                              100 * (1 - fmin(1, mean[1] / mean[0])));
    else if (status == BW_OK)
        status = bw_text_addf(out, "the gather of the weights: none from other nodes, so nothing was in flight\n");
    return status;
}

int bw_trainer_report(const bw_trainer *t)
{
    double shortest, whole;
    bw_text out = {0};
    BW_TRY(bw_min_max(t->grid, bw_now() - t->opened, &shortest, &whole));
    int status = add_rows(t, whole, &out);
    BW_GO(bw_agree(t->grid, status));
    if (bw_store_streams(t->store))
        BW_GO(bw_agree(t->grid, add_streaming(t, &out)));
    BW_GO(add_memory(t->grid, &out));
    bw_info("%.*s", (int)out.length - 1, out.data); /* what each purpose took is for the file */
    BW_GO(add_purposes(t, &out));
    if (t->grid->rank == 0)
        status = bw_file_write(t->output.report.data, out.data, out.length, 0644);
    if (status == BW_OK && t->grid->rank == 0)
        status = bw_timeline_write(t->output.timeline.data);
    status = bw_agree(t->grid, status);
done:
    bw_text_free(&out);
    return status;
}
