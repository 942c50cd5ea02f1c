/* Where the time went: seconds, operations and bytes by event. */
#include "breakwater/base.h"
#include <time.h>

static const char *const names[BW_EVENTS] = {
    [BW_EVENT_LOAD] = "load",         [BW_EVENT_TOKENIZE] = "tokenize", [BW_EVENT_GATHER] = "gather",
    [BW_EVENT_FORWARD] = "forward",   [BW_EVENT_BACKWARD] = "backward", [BW_EVENT_LOSS] = "loss",
    [BW_EVENT_REDUCE] = "reduce",     [BW_EVENT_UPDATE] = "update",     [BW_EVENT_CHECKPOINT] = "checkpoint",
    [BW_EVENT_GENERATE] = "generate", [BW_EVENT_MERGE] = "merge",       [BW_EVENT_WRITE] = "write",
};

static bw_event_sum sums[BW_EVENTS];
static double recorded; /* seconds of all events so far */

double bw_now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static double started;

__attribute__((constructor)) static void note_start(void)
{
    started = bw_now();
}

double bw_uptime(void)
{
    return bw_now() - started;
}

void bw_event_add(bw_event event, double seconds, double flops, double bytes)
{
    bw_event_sum *sum = &sums[event];
    sum->count++;
    sum->seconds += seconds;
    recorded += seconds;
    sum->flops += flops;
    sum->bytes += bytes;
}

bw_span bw_span_begin(void)
{
    return (bw_span){bw_now(), recorded};
}

void bw_span_end(const bw_span *span, bw_event event, double flops, double bytes)
{
    bw_event_add(event, bw_now() - span->start - (recorded - span->recorded), flops, bytes);
}

const bw_event_sum *bw_event_get(bw_event event)
{
    return &sums[event];
}

const char *bw_event_name(bw_event event)
{
    return names[event];
}
