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

enum { ALIGNMENT = 64, NAME_BYTES = BW_MEM_NAME, LARGE = 1 << 20, CHUNK = 16 << 20 };

typedef struct header { /* sits in front of every block */
    void *start;        /* as calloc gave it */
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

/* Its pages, now: in one call where the kernel has it. What they hold stays. */
static void populate(char *start, int64_t bytes)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    char *first = (char *)(((uintptr_t)start + page - 1) / page * page), *end = (char *)(((uintptr_t)start + (uintptr_t)bytes) / page * page);
#ifdef MADV_POPULATE_WRITE
    if (first >= end || madvise(first, (size_t)(end - first), MADV_POPULATE_WRITE) == 0)
        return;
#endif
    for (volatile char *at = first; at < end; at += page)
        *at = *at;
}

/* On all threads; small memory meets its pages when it is used. A small team would send the threads of the large ones home. */
static void prepare(char *start, int64_t bytes, bool clear)
{
    const int64_t chunks = (bytes + CHUNK - 1) / CHUNK;
    if (bytes < LARGE) {
        if (clear)
            memset(start, 0, (size_t)bytes);
        return;
    }
#pragma omp parallel for
    for (int64_t i = 0; i < chunks; i++) {
        const int64_t from = bytes * i / chunks, to = bytes * (i + 1) / chunks;
        populate(start + from, to - from);
        if (clear)
            memset(start + from, 0, (size_t)(to - from));
    }
}

void bw_mem_clear(void *start, int64_t bytes)
{
    prepare(start, bytes, true);
}

void *bw_calloc(int64_t items, size_t size, const char *purpose)
{
    size_t bytes;
    if (items < 0 || __builtin_mul_overflow((size_t)items, size, &bytes) || bytes > (size_t)PTRDIFF_MAX - ALIGNMENT - sizeof(header)) {
        bw_fail(BW_SYSTEM, "%s: %lld x %zu bytes are more than memory can hold", purpose, (long long)items, size);
        return NULL;
    }
    char *start = calloc(1, bytes + ALIGNMENT + sizeof(header)); /* which knows what is fresh from the kernel and needs no clearing */
    if (!start) {
        bw_fail(BW_SYSTEM, "out of memory: %s needs %zu bytes more; this rank holds %lld", purpose, bytes, (long long)bw_mem_now());
        return NULL;
    }
    char *data = start + sizeof(header) + (ALIGNMENT - ((uintptr_t)start + sizeof(header)) % ALIGNMENT) % ALIGNMENT;
    prepare(data, (int64_t)bytes, false);
    pthread_mutex_lock(&lock);
    header *about = (header *)(void *)data - 1;
    *about = (header){start, bytes, find_purpose(purpose)};
    count(about->purpose, (int64_t)bytes);
    pthread_mutex_unlock(&lock);
    return data;
}

void bw_free(void *pointer)
{
    if (!pointer)
        return;
    const header *about = (const header *)pointer - 1;
    pthread_mutex_lock(&lock);
    count(about->purpose, -(int64_t)about->bytes);
    pthread_mutex_unlock(&lock);
    free(about->start);
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
