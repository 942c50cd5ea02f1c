/* A program outside the tree, for test_install.sh: a pure function of the library, and the tensors of an adapter file. */
#include <breakwater/base.h>
#include <breakwater/io.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    static const char *const names[] = {"train", "merge", "eval"};
    const char *nearest = bw_nearest("marge", names, 3);
    printf("nearest %s\n", nearest ? nearest : "none");
    bw_tensors *tensors = NULL;
    if (argc != 2 || bw_safetensors_open(&tensors, argv[1]) != BW_OK) {
        fprintf(stderr, "consumer: %s\n", bw_error());
        return 1;
    }
    printf("tensors %d\n", (int)bw_tensors_count(tensors));
    bw_tensors_close(tensors);
    return 0;
}
