#!/usr/bin/env bash
# Install what is missing and build one preset, all of it or one target: jobs/build.sh [release|debug|asan] [TARGET].
# Prints the build folder.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-release}
bash jobs/install-deps.sh >&2
[ -f "build/$preset/build.ninja" ] || cmake --preset "$preset" -G Ninja >&2
cmake --build --preset "$preset" ${2:+--target "$2"} >&2
echo "$PWD/build/$preset"
