/* Show what a file or folder is: kind, shapes, types, fingerprint. */
#include "cmd/commands.h"
#include "cmd/subject.h"
#include <string.h>

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

static int print_template(const char *model)
{
    bool there;
    const char *name;
    BW_TRY(bw_template_of_model(model, &there, &name));
    printf("%-12s %s\n", "template", name ? name : there ? "a chat template, but none that --template knows" : "none");
    return BW_OK;
}

static void print_value(const char *name, const bw_json *value)
{
    if (bw_json_text(value, NULL))
        printf("%-12s %s\n", name, bw_json_text(value, NULL));
}

/* As PEFT's configuration has it; what merge and eval compute from it is theirs to check. */
static int print_adapter(const bw_subject *subject)
{
    bw_text path = {0};
    bw_json *config = NULL;
    int status;
    BW_GO(bw_path(&path, subject->path, "adapter_config.json"));
    BW_GO(bw_json_load(&config, path.data));
    const bw_json *targets = bw_json_get(config, "target_modules");
    printf("%-12s %lld\n%-12s %g\n", "r", (long long)bw_json_int(bw_json_get(config, "r"), 8), "lora_alpha",
           bw_json_number(bw_json_get(config, "lora_alpha"), 8)); /* PEFT's defaults */
    print_value("base model", bw_json_get(config, "base_model_name_or_path"));
    print_value("targets", targets);
    if (bw_json_kind(targets) == BW_JSON_ARRAY) {
        printf("%-12s", "targets");
        for (int64_t i = 0; i < bw_json_size(targets); i++)
            printf("%s %s", i ? "," : "", bw_json_text(bw_json_at(targets, i), NULL) ? bw_json_text(bw_json_at(targets, i), NULL) : "?");
        puts("");
    }
    const char *template_name = bw_safetensors_metadata(subject->tensors, "breakwater.template");
    printf("%-12s %s\n%-12s %s\n", "role", *subject->role ? subject->role : "not recorded", "template",
           template_name ? template_name : "not recorded");
done:
    bw_json_free(config);
    bw_text_free(&path);
    return status;
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
    int status = subject.source ? print_template(subject.path) : strcmp(subject.kind, "adapter") == 0 ? print_adapter(&subject) : BW_OK;
    if (status == BW_OK && subject.tensors)
        print_tensors(subject.tensors);
    else if (status == BW_OK) {
        printf("%-12s %lld\n", "rows", (long long)subject.rows.count);
        print_hash(subject.rows.fingerprint);
    }
    bw_subject_close(&subject);
    return status;
}
