/* What one step did when: filled by whoever works, written once. A table of fixed size, so that noting costs two words and a line of memory. */
#include "breakwater/base.h"
#include <stdlib.h>

typedef struct entry {
    const char *what;
    int layer, order;
    double start, end;
} entry;

enum { MOST = 4096 }; /* a round of 32 streamed layers has 350 */
static entry entries[MOST];
static int count;
static bool noting;
static double zero; /* when noting began */

void bw_timeline_begin(void)
{
    count = 0;
    noting = true;
    zero = bw_now();
}

void bw_timeline_end(void)
{
    noting = false;
}

void bw_timeline_add(const char *what, int layer, double start, double end)
{
    if (!noting || count == MOST)
        return;
    entries[count] = (entry){.what = what, .layer = layer, .order = count, .start = start, .end = end};
    count++;
}

static int by_start(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->start != y->start)
        return x->start < y->start ? -1 : 1;
    return x->order - y->order;
}

int bw_timeline_write(const char *path)
{
    bw_text out = {0};
    if (count == 0)
        return BW_OK;
    int status = bw_text_addf(&out, "what,layer,start_ms,end_ms\n");
    qsort(entries, (size_t)count, sizeof *entries, by_start);
    for (int i = 0; status == BW_OK && i < count; i++) {
        const entry *e = &entries[i];
        char layer[16] = "";
        if (e->layer >= 0)
            snprintf(layer, sizeof layer, "%d", e->layer);
        status = bw_text_addf(&out, "%s,%s,%.3f,%.3f\n", e->what, layer, (e->start - zero) * 1e3, (e->end - zero) * 1e3);
    }
    if (status == BW_OK)
        status = bw_file_write(path, out.data, out.length, 0644);
    bw_text_free(&out);
    count = 0;
    return status;
}
