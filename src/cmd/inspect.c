/* Show what a file or folder is: kind, shapes, types, fingerprint. */
#include "cmd/commands.h"
#include "cmd/subject.h"

static void print_hash(bw_hash hash)
{
    char text[33];
    bw_hash_text(hash, text);
    printf("%-12s %s\n", "fingerprint", text);
}

static void print_model(const bw_source *source)
{
    const bw_spec *spec = bw_source_spec(source);
    printf("%-12s %s, %d layers, %lld wide, %lld in the MLP, %d heads of %d, %d for keys, vocabulary %lld%s\n", "architecture", spec->family,
           spec->n_layer, (long long)spec->d_model, (long long)spec->d_ff, spec->n_head, spec->head_dim, spec->n_kv, (long long)spec->vocab,
           spec->tied ? ", head tied to the embedding" : "");
    print_hash(bw_source_fingerprint(source));
}

static void print_tensors(const bw_tensors *tensors)
{
    int64_t count = bw_tensors_count(tensors), bytes = 0;
    for (int64_t i = 0; i < count; i++) {
        const bw_tensor *tensor = bw_tensors_at(tensors, i);
        printf("  %-64s %-5s [", tensor->name, bw_dtype_name(tensor->dtype));
        for (int d = 0; d < tensor->n_dims; d++)
            printf("%s%lld", d ? ", " : "", (long long)tensor->shape[d]);
        puts("]");
        bytes += tensor->bytes;
    }
    printf("%-12s %lld, %lld bytes\n", "tensors", (long long)count, (long long)bytes);
}

int bw_cmd_inspect(const bw_config *config)
{
    bw_subject subject;
    BW_TRY(bw_subject_open(&subject, config->input));
    printf("%-12s %s\n%-12s %s\n", "path", subject.path, "kind", subject.kind);
    if (subject.source)
        print_model(subject.source);
    if (*subject.role)
        printf("%-12s %s\n", "role", subject.role);
    if (subject.tensors)
        print_tensors(subject.tensors);
    else {
        printf("%-12s %lld\n", "rows", (long long)subject.rows.count);
        print_hash(subject.rows.fingerprint);
    }
    bw_subject_close(&subject);
    return BW_OK;
}
