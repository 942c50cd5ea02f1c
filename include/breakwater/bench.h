/* breakwater/bench.h - how fast the parts are on this machine: each beside what bounds it, and checked. */
#ifndef BREAKWATER_BENCH_H
#define BREAKWATER_BENCH_H
#include "breakwater/par.h"

/* Measure the parts that config->parts names, on the shapes of config->model (NULL: SmolLM2-135M's), and print a row for each problem; with
 * config->csv rank 0 writes them there, too. A row whose result is wrong is marked and makes the whole fail: BW_BUG. Collective on world. */
int bw_bench_run(const bw_grid *grid, const bw_config *config);
#endif
