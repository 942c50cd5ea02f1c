#!/usr/bin/env bash
# The long version of system/test_kills.sh: tests/kill_campaign.sh [KILLS]    default 200, some ten minutes
BW_KILLS=${1:-200} exec bash "$(dirname "$0")/run.sh" release --verbose --tests-regex '^test_kills'
