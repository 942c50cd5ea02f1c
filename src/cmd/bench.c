#include "breakwater/bench.h"
#include "cmd/commands.h"
#include "cmd/session.h"

int bw_cmd_bench(const bw_config *config)
{
    BW_TRY(bw_session_start(config));
    return bw_session_work(config, BW_BENCH, bw_bench_run, NULL);
}
