#!/usr/bin/env bash
# Install what is missing and build one preset, all of it or one target: jobs/build.sh [release|debug|asan] [TARGET].
# Prints the build folder.
set -euo pipefail
case ${1:-} in
  -h | --help) sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
  -*) echo "build.sh: there is no option $1 (--help)" >&2; exit 64 ;;
esac
cd "$(dirname "$0")/.."
preset=${1:-release}
case $preset in release | debug | asan) ;; *) echo "build.sh: there is no preset $preset: release, debug or asan" >&2; exit 64 ;; esac
bash jobs/install-deps.sh >&2
[ -f "build/$preset/build.ninja" ] || cmake --preset "$preset" -G Ninja >&2
cmake --build --preset "$preset" ${2:+--target "$2"} >&2
echo "$PWD/build/$preset"
