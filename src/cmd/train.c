#include "breakwater/train.h"
#include "cmd/commands.h"
#include "cmd/session.h"

int bw_cmd_train(const bw_config *config)
{
    BW_TRY(bw_session_start(config));
    return bw_session_work(config, BW_TRAIN, bw_train, NULL);
}
