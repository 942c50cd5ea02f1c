#!/usr/bin/env bash
# Install what is missing, build, run the tests: tests/run.sh [release|debug|asan] [ctest arguments]
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "$0"; exit 0 ;; esac
cd "$(dirname "$0")/.."
preset=release
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
  preset=$1
  shift
fi
bash jobs/install-deps.sh --tests >&2 || echo "tests say what they leave out" >&2 # what the build needs is asked for by the build
build=$(bash jobs/build.sh "$preset")
# The tests on the real model need its file; without a network they are skipped, and say so.
if [ -z "${BW_MODEL:-}" ]; then
  BW_MODEL=$(bash jobs/get-model.sh) || echo "tests on the real model will be skipped" >&2
fi
export BW_MODEL
exec ctest --test-dir "$build" --output-on-failure --no-tests=error -j "$(nproc)" "$@"
