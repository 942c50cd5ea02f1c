/* What an interrupted job keeps for the next one: parts of {how much is done, bytes that follow}, bytes, checksum of all of it. */
#include "post/inside.h"
#include <string.h>

typedef struct head {
    int64_t done, length;
} head;

int bw_kept_add(bw_text *out, int64_t done, const void *bytes, int64_t length)
{
    const head h = {done, length};
    const size_t first = out->length;
    BW_TRY(bw_text_add(out, &h, sizeof h));
    BW_TRY(bw_text_add(out, length ? bytes : "", (size_t)length));
    const bw_hash hash = bw_hash_bytes(out->data + first, out->length - first);
    return bw_text_add(out, &hash, sizeof hash);
}

/* Whether the checksum of these bytes follows them. */
static bool is_intact(const char *bytes, size_t length)
{
    const bw_hash hash = bw_hash_bytes(bytes, length);
    return memcmp(&hash, bytes + length, sizeof hash) == 0;
}

int bw_kept_next(bw_kept *kept, int64_t most, int64_t *done, const char **bytes, int64_t *length)
{
    head h = {.done = -1};
    const ptrdiff_t room = kept->end - kept->at - (ptrdiff_t)(sizeof h + sizeof(bw_hash)); /* for bytes */
    if (room >= 0)
        memcpy(&h, kept->at, sizeof h);
    if (h.done < 0 || h.done > most || h.length < 0 || h.length > room || !is_intact(kept->at, sizeof h + (size_t)h.length))
        return bw_fail(BW_DATA, "%s: what an earlier start kept here is damaged; delete the file to do it again", kept->path);
    *done = h.done;
    *bytes = kept->at + sizeof h;
    *length = h.length;
    kept->at += (ptrdiff_t)sizeof h + h.length + (ptrdiff_t)sizeof(bw_hash);
    return BW_OK;
}

int bw_kept_end(const bw_kept *kept)
{
    if (kept->at == kept->end)
        return BW_OK;
    return bw_fail(BW_DATA, "%s: damaged: %lld bytes follow what an earlier start kept here; delete the file to do it again", kept->path,
                   (long long)(kept->end - kept->at));
}
