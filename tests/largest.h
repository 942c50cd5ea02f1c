/* The largest error, where one that is no number is larger than any: fmax would lose it, and a check would pass on a result of NaN. */
#ifndef TESTS_LARGEST_H
#define TESTS_LARGEST_H
#include <math.h>

static inline double larger(double worst, double error)
{
    return isnan(error) || error > worst ? error : worst;
}
#endif
