/* Counted memory: every block knows its size and purpose, so that a rank can say where its memory went. */
#include "breakwater/base.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

enum { ALIGNMENT = 64, NAME_BYTES = BW_MEM_NAME, LARGE = 1 << 20 };

typedef struct header { /* sits in front of every block */
    size_t bytes;
    int purpose;
} header;

typedef struct purpose_sum {
    char name[NAME_BYTES];
    int64_t now, peak;
} purpose_sum;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static purpose_sum sums[BW_MEM_PURPOSES];
static int purposes;
static int64_t total_now, total_peak;

/* The row of a purpose, made when it is new; the last row takes what no longer fits. Under the lock. */
static int find_purpose(const char *name)
{
    for (int i = 0; i < purposes; i++)
        if (strncmp(sums[i].name, name, NAME_BYTES - 1) == 0)
            return i;
    if (purposes == BW_MEM_PURPOSES)
        return BW_MEM_PURPOSES - 1;
    snprintf(sums[purposes].name, NAME_BYTES, "%s", name);
    return purposes++;
}

static void count(int purpose, int64_t bytes)
{
    sums[purpose].now += bytes;
    if (sums[purpose].now > sums[purpose].peak)
        sums[purpose].peak = sums[purpose].now;
    total_now += bytes;
    if (total_now > total_peak)
        total_peak = total_now;
}

void bw_mem_clear(void *start, int64_t bytes)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t first = ((uintptr_t)start + page - 1) / page * page, end = ((uintptr_t)start + (uintptr_t)bytes) / page * page;
#ifdef MADV_POPULATE_WRITE
    if (bytes >= LARGE && first < end)
        (void)madvise((void *)first, end - first, MADV_POPULATE_WRITE); /* advice: where the kernel does not know it, memset meets the pages */
#endif
    memset(start, 0, (size_t)bytes);
}

void *bw_calloc(int64_t items, size_t size, const char *purpose)
{
    size_t bytes;
    if (items < 0 || __builtin_mul_overflow((size_t)items, size, &bytes) || bytes > (size_t)PTRDIFF_MAX - ALIGNMENT) {
        bw_fail(BW_SYSTEM, "%s: %lld x %zu bytes are more than memory can hold", purpose, (long long)items, size);
        return NULL;
    }
    void *block;
    if (posix_memalign(&block, ALIGNMENT, ALIGNMENT + bytes) != 0) {
        bw_fail(BW_SYSTEM, "out of memory: %s needs %zu bytes more; this rank holds %lld", purpose, bytes, (long long)bw_mem_now());
        return NULL;
    }
    void *data = (char *)block + ALIGNMENT;
    bw_mem_clear(data, (int64_t)bytes);
    pthread_mutex_lock(&lock);
    *(header *)block = (header){bytes, find_purpose(purpose)};
    count(((header *)block)->purpose, (int64_t)bytes);
    pthread_mutex_unlock(&lock);
    return data;
}

void bw_free(void *pointer)
{
    if (!pointer)
        return;
    header *block = (header *)((char *)pointer - ALIGNMENT);
    pthread_mutex_lock(&lock);
    count(block->purpose, -(int64_t)block->bytes);
    pthread_mutex_unlock(&lock);
    free(block);
}

void bw_mem_note(const char *purpose, int64_t bytes)
{
    pthread_mutex_lock(&lock);
    count(find_purpose(purpose), bytes);
    pthread_mutex_unlock(&lock);
}

int64_t bw_mem_now(void)
{
    pthread_mutex_lock(&lock);
    int64_t bytes = total_now;
    pthread_mutex_unlock(&lock);
    return bytes;
}

int64_t bw_mem_peak(void)
{
    pthread_mutex_lock(&lock);
    int64_t bytes = total_peak;
    pthread_mutex_unlock(&lock);
    return bytes;
}

int64_t bw_mem_peak_rss(void)
{
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (int64_t)usage.ru_maxrss * 1024 : 0; /* Linux counts in KiB */
}

int64_t bw_mem_rss(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r"); /* size, resident, ... in pages */
    if (!file || fscanf(file, "%*d %ld", &pages) != 1)
        pages = 0;
    if (file)
        fclose(file);
    return (int64_t)pages * sysconf(_SC_PAGESIZE);
}

bool bw_mem_purpose(int index, char name[BW_MEM_NAME], int64_t *peak)
{
    pthread_mutex_lock(&lock);
    bool there = index >= 0 && index < purposes;
    if (there) {
        memcpy(name, sums[index].name, NAME_BYTES);
        *peak = sums[index].peak;
    }
    pthread_mutex_unlock(&lock);
    return there;
}

int64_t bw_mem_purpose_peak(const char *name)
{
    char found[BW_MEM_NAME];
    int64_t peak;
    for (int i = 0; bw_mem_purpose(i, found, &peak); i++)
        if (strncmp(found, name, BW_MEM_NAME - 1) == 0)
            return peak;
    return 0;
}
