#!/usr/bin/env bash
# The map of rooms, checked: who may include whose headers, and that each foreign library is behind one file of ours.
set -euo pipefail
source_root=$(cd "${BW_TEST_DATA:?folder tests/}/.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/breakwater-system.XXXXXX")
trap 'rm -rf "$work"' EXIT

# base <- par, num, io <- data, model <- train, post, plan <- cmd. `h5` is io/h5*.c, the only part of io that knows MPI.
declare -A may_use=(
  [base]="" [par]="base" [num]="base" [io]="base" [h5]="base par" [data]="base io" [model]="base par num io data"
  [train]="base par num io h5 data model" [post]="base par num io h5 data model" [plan]="base par io data model"
  [bench]="base par num io h5 data model train post"
  [cmd]="base par num io h5 data model train post plan bench"
)

# What stands in the code -> the files that may have it (extended patterns; paths from the root).
only_there=(
  '# *include *<mpi\.h>|\<MPI_[A-Z]'                    '^src/(par/[^/]*|io/h5[a-z_]*\.[ch])$'
  '# *include *<hdf5\.h>|\<H5[A-Z][a-z]*_?[a-z0-9]* *\(' '^src/io/h5[a-z_]*\.[ch]$'
  '# *include *<(blis/)?blis\.h>|\<(bli|cblas)_[a-z]'   '^src/num/gemm_blis\.c$'
  '# *include *<(oneapi/dnnl/)?dnnl|\<dnnl_[a-z]'        '^src/num/onednn\.c$'
  '\<(Cblacs|p[sd](gemm|ge|or|la|po|sy)[a-z0-9]*)_'     '^src/par/scalapack\.c$'
  '# *include *<jansson\.h>|\<json_[a-z_]+ *\('         '^src/io/json\.c$'
  '# *include *<yaml\.h>|\<yaml_[a-z_]+ *\('            '^src/base/yaml\.c$'
  '# *include *<Random123/'                             '^src/base/rng\.c$'
  '# *include *<xxhash\.h>'                             '^src/base/file\.c$'
  '# *include *<pcre2\.h>|\<pcre2_[a-z]'                '^src/data/tokenizer[a-z_]*\.[ch]$'
  '# *include *<utf8proc\.h>|\<utf8proc_[a-z]'          '^src/data/tokenizer[a-z_]*\.[ch]$'
)

# path:line:code of all files, without comments (they say what is not done, too) and without texts, those of #include aside.
code() {
  awk '
    FNR == 1 { comment = 0 }
    {
      line = $0
      if (comment) { if (!sub(/^.*\*\//, "", line)) next; comment = 0 }
      gsub(/\/\*[^*]*(\*[^*\/][^*]*)*\*\//, "", line)
      if (sub(/\/\*.*$/, "", line)) comment = 1
      sub(/\/\/.*$/, "", line)
      if (line !~ /^ *# *include/) gsub(/"([^"\\]|\\.)*"/, "\"\"", line)
      if (line ~ /[^ ]/) print FILENAME ":" FNR ":" line
    }' src/*.c src/*/*.[ch] include/breakwater/*.h
}

wrong_headers() { # FILE OF CODE
  awk -F: -v rules="$(for room in "${!may_use[@]}"; do echo "$room=${may_use[$room]};"; done)" '
    function room_of(path,  parts) {
      split(path, parts, "/")
      if (path ~ /\/h5[a-z_]*\.[ch]$/) return "h5"
      if (path ~ /^include\//) { sub(/\.h$/, "", parts[3]); return parts[3] }
      return path == "src/main.c" ? "cmd" : parts[2]
    }
    function room_of_header(header, own,  parts) {
      if (split(header, parts, "/") == 1) return own # beside the file that includes it
      if (parts[1] != "breakwater") return parts[1]
      sub(/\.h$/, "", parts[2])
      return parts[2]
    }
    BEGIN {
      count = split(rules, rows, /;\n?/)
      for (i = 1; i < count; i++) { split(rows[i], row, "="); allowed[row[1]] = " " row[1] " " row[2] " " }
      allowed["h5"] = allowed["h5"] "io "
    }
    {
      room = room_of($1)
      if (!(room in allowed)) { print $1 ": lies in no room of the map"; next }
      if ($3 !~ /^ *# *include *"/) next
      header = $3
      sub(/^[^"]*"/, "", header); sub(/".*/, "", header)
      if (!index(allowed[room], " " room_of_header(header, room) " "))
        print $1 ":" $2 ": room " room " may not include \"" header "\""
    }' "$1" | sort -u
}

wrong_libraries() { # FILE OF CODE
  local i
  for ((i = 0; i < ${#only_there[@]}; i += 2)); do
    { grep -E -- ":.*(${only_there[i]})" "$1" || true; } |
      awk -F: -v place="${only_there[i + 1]//\\/\\\\}" '$1 !~ place { print $0 ": belongs in " place " alone" }'
  done
}

# violations ROOT: a line for each.
violations() (
  cd "$1"
  code >"$work/code"
  wrong_headers "$work/code"
  wrong_libraries "$work/code"
)

found=$(violations "$source_root")
[ -z "$found" ] || { printf 'FAILED: the map of rooms is broken:\n%s\n' "$found" >&2; exit 1; }

# The check itself: every planted violation has to be found.
mkdir "$work/copy" && cp -r "$source_root/src" "$source_root/include" "$work/copy"
planted() { # FILE LINE
  mkdir -p "$(dirname "$work/copy/$1")"
  echo "$2" >>"$work/copy/$1"
  violations "$work/copy" >"$work/found"
  [ "$(wc -l <"$work/found")" -eq 1 ] && grep -q "^$1:" "$work/found" || {
    echo "FAILED: planted in $1: $2; found:" >&2
    cat "$work/found" >&2
    exit 1
  }
  if [ -e "$source_root/$1" ]; then cp "$source_root/$1" "$work/copy/$1"; else rm -r "$(dirname "$work/copy/$1")"; fi
}
planted src/train/adamw.c '#include "breakwater/post.h"'
planted src/post/eval.c '#include "breakwater/train.h"'
planted src/data/batch.c '#include "breakwater/model.h"'
planted src/num/loss.c '#include "breakwater/par.h"'
planted src/io/json.c '#include "breakwater/par.h"'
planted src/base/rng.c '#include "io/utf8.h"'
planted include/breakwater/data.h '#include "breakwater/model.h"'
planted src/model/lora.c '#include "cmd/session.h"'
planted src/train/step.c '#include <mpi.h>'
planted src/io/gguf.c 'int bw_sneak(void) { return MPI_Barrier(0); }'
planted src/train/checkpoint.c '#include <hdf5.h>'
planted src/model/store.c '#include <blis.h>'
planted src/num/loss.c 'void bw_sneak(void) { cblas_sgemm(); }'
planted src/post/merge_pair.c 'void bw_sneak(void) { psgemm_(); }'
planted src/post/judge.c '#include <jansson.h>'
planted src/cmd/run.c '#include <yaml.h>'
planted src/cupboard/new.c 'int bw_new;'
echo "$(cd "$source_root" && ls src/*.c src/*/*.[ch] include/breakwater/*.h | wc -l) files keep to the map; 17 planted violations were found"
