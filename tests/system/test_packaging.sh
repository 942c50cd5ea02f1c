#!/usr/bin/env bash
# The recipes in docs/packaging are Python, and of the version that is built; where EasyBuild is installed, it has to read its own.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
packaging=$BW_TEST_DATA/../docs/packaging
version=$("$BW_PROGRAM" --version | sed -n '1s/^breakwater \([^ ]*\).*/\1/p')

command -v python3 >/dev/null || { echo "SKIPPED: no python3 here" && exit 77; }
for file in "$packaging"/*.eb "$packaging"/spack/package.py; do
  python3 -c 'import ast, sys; ast.parse(open(sys.argv[1]).read(), sys.argv[1])' "$file" 2>err || fail "$file is not Python"
done
[ -s "$packaging/breakwater-$version-foss-2023b.eb" ] && grep -qx "version = '$version'" "$packaging/breakwater-$version-foss-2023b.eb" ||
  fail "no EasyBuild file of version $version"
if command -v eb >/dev/null && [ "$(id -u)" -ne 0 ]; then # it refuses root
  for file in "$packaging"/*.eb; do
    eb "$file" --dry-run --robot --robot-paths="$packaging:" >out 2>err || fail "eb --dry-run $file"
  done
fi
note "done"
