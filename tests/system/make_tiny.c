/* make_tiny.c - writes the tiny model of tests/tiny_model.h, whole or with one fault, for the system tests.
 *   make_tiny FOLDER SEED [layers=N] [architecture=NAME] [config=TEXT] [omit|misshape|surplus|poison=TENSOR] */
#include "../tiny_model.h"

static bool take_text(const char *argument, const char *key, const char **out)
{
    size_t length = strlen(key);
    if (strncmp(argument, key, length) != 0 || argument[length] != '=')
        return false;
    *out = argument + length + 1;
    return true;
}

static bool take(bw_tiny *tiny, const char *argument)
{
    const char *layers = NULL;
    if (take_text(argument, "layers", &layers)) {
        tiny->n_layer = atoi(layers);
        return tiny->n_layer > 0 && tiny->n_layer * 9 + 3 <= BW_TINY_MOST;
    }
    return take_text(argument, "architecture", &tiny->architecture) || take_text(argument, "config", &tiny->extra_config) ||
           take_text(argument, "omit", &tiny->omit) || take_text(argument, "misshape", &tiny->misshape) ||
           take_text(argument, "surplus", &tiny->surplus) || take_text(argument, "poison", &tiny->poison);
}

int main(int argc, char **argv)
{
    bw_tiny tiny = BW_TINY;
    for (int i = 3; i < argc; i++)
        if (!take(&tiny, argv[i])) {
            fprintf(stderr, "make_tiny: cannot use '%s'\n", argv[i]);
            return BW_USAGE;
        }
    if (argc < 3) {
        fprintf(stderr, "make_tiny: needs FOLDER SEED\n");
        return BW_USAGE;
    }
    int status = bw_tiny_model_write_as(argv[1], &tiny, strtoull(argv[2], NULL, 10));
    if (status != BW_OK)
        fprintf(stderr, "make_tiny: %s\n", bw_error());
    return status;
}
