/* template_own.c - the chat template that comes with a model, and which of ours it is. */
#include "breakwater/data.h"

#include <string.h>
#include <sys/stat.h>

/* ---- its text; none stays empty ------------------------------------------------------------------------------------*/

static int read_gguf(const char *path, bw_text *out)
{
    bw_tensors *gguf = NULL;
    size_t length = 0;
    BW_TRY(bw_gguf_open(&gguf, path));
    const char *text = bw_gguf_text(gguf, "tokenizer.chat_template", &length);
    int status = text ? bw_text_add(out, text, length) : BW_OK;
    bw_tensors_close(gguf);
    return status;
}

/* A text, or a list of {"name", "template"}, whose templates open their turns alike. */
static int add_value(const bw_json *value, bw_text *out)
{
    size_t length = 0;
    const char *text = bw_json_text(value, &length);
    if (text)
        return bw_text_add(out, text, length);
    for (int64_t i = 0; bw_json_kind(value) == BW_JSON_ARRAY && i < bw_json_size(value); i++) {
        text = bw_json_text(bw_json_get(bw_json_at(value, i), "template"), &length);
        if (text)
            BW_TRY(bw_text_add(out, text, length));
    }
    return BW_OK;
}

static int read_whole(const char *path, bw_text *out)
{
    bw_map map;
    BW_TRY(bw_map_open(&map, path));
    int status = bw_text_add(out, map.data, map.size);
    bw_map_close(&map);
    return status;
}

/* The file of its own comes before the key, as Hugging Face has it. */
static int read_folder(const char *folder, bw_text *out)
{
    bw_text path = {0};
    bw_json *config = NULL;
    int status;
    BW_GO(bw_path(&path, folder, "chat_template.jinja"));
    if (bw_file_exists(path.data)) {
        status = read_whole(path.data, out);
        goto done;
    }
    BW_GO(bw_path(&path, folder, "tokenizer_config.json"));
    if (!bw_file_exists(path.data))
        goto done;
    BW_GO(bw_json_load(&config, path.data));
    status = add_value(bw_json_get(config, "chat_template"), out);
done:
    bw_json_free(config);
    bw_text_free(&path);
    return status;
}

/* ---- which it is ---------------------------------------------------------------------------------------------------*/

int bw_template_of_model(const char *model_path, bool *there, const char **name)
{
    struct stat found;
    bw_text text = {0};
    bool folder = stat(model_path, &found) == 0 && S_ISDIR(found.st_mode);
    int status = (folder ? read_folder : read_gguf)(model_path, &text);
    *there = text.length > 0;
    *name = *there ? bw_template_recognise(text.data) : NULL;
    bw_text_free(&text);
    return status;
}

int bw_template_compare(bw_template which, const char *model_path)
{
    bool there;
    const char *own;
    BW_TRY(bw_template_of_model(model_path, &there, &own));
    if (own && strcmp(own, bw_template_name(which)) != 0)
        bw_warn("--model %s brings the chat template %s, and these prompts are of %s: what it was tuned to do may not show (--template)", model_path,
                own, bw_template_name(which));
    return BW_OK;
}
