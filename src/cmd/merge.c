#include "breakwater/post.h"
#include "cmd/commands.h"
#include "cmd/session.h"

int bw_cmd_merge(const bw_config *config)
{
    BW_TRY(bw_session_start(config));
    return bw_session_work(config, BW_MERGE, bw_merge, NULL);
}
