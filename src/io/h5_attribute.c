/* h5_attribute.c - text and integers beside the data. */
#include <string.h>
#include "io/h5_inside.h"

enum { MOST_TEXT = 1 << 24 }; /* bytes of an attribute that is believed */

/* ---- attributes --------------------------------------------------------------------------------------------------- */
static hid_t open_or_create_group(bw_h5 *h5, const char *group)
{
    if (strcmp(group, "/") == 0 || bw_h5_has(h5, group))
        return H5Oopen(h5->file, group, H5P_DEFAULT);
    hid_t links = H5Pcreate(H5P_LINK_CREATE);
    H5Pset_create_intermediate_group(links, 1);
    hid_t object = H5Gcreate2(h5->file, group, links, H5P_DEFAULT, H5P_DEFAULT);
    bw_h5_release(links);
    return object;
}

static int set_attribute(bw_h5 *h5, const char *group, const char *name, hid_t stored, hid_t native, hid_t space, const void *values)
{
    hid_t object = open_or_create_group(h5, group);
    hid_t attribute = object >= 0 && space >= 0 ? H5Acreate2(object, name, stored, space, H5P_DEFAULT, H5P_DEFAULT) : -1;
    herr_t result = attribute >= 0 ? H5Awrite(attribute, native, values) : -1;
    bw_h5_release(attribute);
    bw_h5_release(object);
    return bw_h5_agree(h5, result >= 0 ? BW_OK : bw_h5_fail(BW_IO, h5->path, "write attribute", name));
}

int bw_h5_set_text(bw_h5 *h5, const char *group, const char *name, const char *value)
{
    hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
    H5Tset_size(type, strlen(value) + 1);
    H5Tset_cset(type, H5T_CSET_UTF8);
    int status = set_attribute(h5, group, name, type, type, space, value);
    bw_h5_release(space);
    bw_h5_release(type);
    return status;
}

int bw_h5_set_ints(bw_h5 *h5, const char *group, const char *name, const int64_t *values, int count)
{
    hsize_t length = (hsize_t)count;
    hid_t space = H5Screate_simple(1, &length, NULL);
    int status = set_attribute(h5, group, name, H5T_STD_I64LE, H5T_NATIVE_INT64, space, values);
    bw_h5_release(space);
    return status;
}

static hid_t open_attribute(bw_h5 *h5, const char *group, const char *name)
{
    if (strcmp(group, "/") != 0 && !bw_h5_has(h5, group))
        return -1;
    return H5Aopen_by_name(h5->file, group, name, H5P_DEFAULT, H5P_DEFAULT);
}

static int read_text(bw_h5 *h5, const char *name, hid_t attribute, hid_t type, bw_text *value)
{
    size_t size = H5Tget_size(type);
    char *bytes = NULL;
    if (H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) != 0 || size == 0 || size > MOST_TEXT)
        return bw_fail(BW_DATA, "%s: attribute %s is not a text of fixed length up to %d bytes", h5->path, name, MOST_TEXT);
    BW_TRY(BW_NEW(bytes, size + 1, "hdf5"));
    int status =
        H5Aread(attribute, type, bytes) >= 0 ? bw_text_add(value, bytes, strlen(bytes)) : bw_h5_fail(BW_DATA, h5->path, "read attribute", name);
    bw_free(bytes);
    return status;
}

static int read_ints(bw_h5 *h5, const char *name, hid_t attribute, hid_t type, int64_t *values)
{
    if (H5Tget_class(type) != H5T_INTEGER)
        return bw_fail(BW_DATA, "%s: attribute %s does not hold integers", h5->path, name);
    return H5Aread(attribute, H5T_NATIVE_INT64, values) >= 0 ? BW_OK : bw_h5_fail(BW_DATA, h5->path, "read attribute", name);
}

/* Either `text` or `values` is wanted. */
static int get_attribute(bw_h5 *h5, const char *group, const char *name, bw_text *text, int64_t *values, int count)
{
    hid_t attribute = open_attribute(h5, group, name), space = -1, type = -1;
    int status;
    if (attribute < 0)
        BW_GO(bw_fail(BW_DATA, "%s: no attribute %s in %s", h5->path, name, group));
    space = H5Aget_space(attribute);
    type = H5Aget_type(attribute);
    hssize_t found = H5Sget_simple_extent_npoints(space);
    if (found != count)
        BW_GO(bw_fail(BW_DATA, "%s: attribute %s of %s has %lld entries, expected %d", h5->path, name, group, (long long)found, count));
    BW_GO(text ? read_text(h5, name, attribute, type, text) : read_ints(h5, name, attribute, type, values));
done:
    bw_h5_release(type);
    bw_h5_release(space);
    bw_h5_release(attribute);
    return bw_h5_agree(h5, status);
}

int bw_h5_get_text(bw_h5 *h5, const char *group, const char *name, bw_text *value)
{
    return get_attribute(h5, group, name, value, NULL, 1);
}

int bw_h5_get_ints(bw_h5 *h5, const char *group, const char *name, int64_t *values, int count)
{
    return get_attribute(h5, group, name, NULL, values, count);
}
