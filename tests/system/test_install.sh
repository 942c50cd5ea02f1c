#!/usr/bin/env bash
# What `cmake --install` leaves works from where it lies, also after the tree was moved: program, man pages, completion, job scripts,
# modulefiles (Lmod and environment-modules), pkg-config and the CMake package. DESTDIR and the prefix are both honoured.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
: "${BW_BUILD:?build folder}"
prefix=$work/prefix
skipped=()

have() { command -v "$1" >/dev/null || { skipped+=("$2: no $1 here"); return 1; }; }

note "DESTDIR, and the folders of GNUInstallDirs"
DESTDIR=$work/stage cmake --install "$BW_BUILD" --prefix /opt/breakwater >out 2>err || fail "cmake --install with DESTDIR"
[ -x stage/opt/breakwater/bin/breakwater ] || fail "DESTDIR is not honoured"
module_of() { find "$1" -path "*/breakwater/*" -name "$2" -path '*modulefiles*'; }
version=$("$BW_PROGRAM" --version | sed -n '1s/^breakwater \([^ ]*\).*/\1/p')
for name in "$version" "$version.lua"; do
  grep -q '"\?/opt/breakwater"\?' "$(module_of stage "$name")" || fail "the modulefile $name does not name the prefix"
done
! grep -rIl "$work" stage || fail "an installed text names the staging folder"
! grep -rIl --exclude=*.1 "$BW_BUILD" stage || fail "an installed text names the build folder"

cmake --install "$BW_BUILD" --prefix "$work/first place" >out 2>err || fail "cmake --install"
"$work/first place/bin/breakwater" --version >out 2>err || fail "the installed program does not start"

note "everything below is done in a tree that was moved"
mv "$work/first place" "$prefix"
"$prefix/bin/breakwater" --version >out 2>err || fail "the moved program does not start"
commands=$("$prefix/bin/breakwater" --help | sed -n '/^Exit codes/q; s/^  \([a-z]*\) .*/\1/p' | grep -v -e '^breakwater$' -e '^mpirun$')
[ "$(wc -w <<<"$commands")" -ge 6 ] || fail "the commands of --help are not understood: $commands"

note "man pages"
manual=$prefix/share/man
page_of() { man -M "$manual" "$1" | col -b; }
if have man "man pages as text"; then
  export MANWIDTH=100 MANROFFOPT=-ww LC_ALL=C.UTF-8
  for name in breakwater $(sed 's/^/breakwater-/' <<<"$commands"); do
    page_of "$name" >"$name.txt" 2>err || fail "no man page $name"
    [ ! -s err ] || fail "man $name: warnings"
    man --warnings=w -l "$manual/man1/$name.1" >/dev/null 2>err
    [ ! -s err ] || fail "man --warnings $name"
    for section in NAME SYNOPSIS DESCRIPTION 'EXIT STATUS' 'SEE ALSO'; do
      grep -q "^$section" "$name.txt" || fail "$name has no section $section"
    done
  done
  for command in $commands; do
    "$prefix/bin/breakwater" "$command" --help | grep -oE '^  --(\[no-\])?[a-z0-9-]+' | sed 's/^  //; s/\[no-\]//' >options
    for option in $(<options); do
      grep -qE -- "^ +$option( |,|$)" "breakwater-$command.txt" || fail "$option of $command is not in its man page"
    done
    grep -q "breakwater-$command" breakwater.txt || fail "breakwater(1) does not name $command"
  done
  # `run` takes the options of its stages: its page has to have them all.
  for command in train merge eval; do
    for option in $("$prefix/bin/breakwater" "$command" --help | grep -oE '^  --[a-z0-9-]+' | grep -v -e '--config$'); do
      grep -qE -- "^ +$option( |,|$)" breakwater-run.txt || fail "$option of $command is not in the man page of run"
    done
  done
fi
if have mandoc "man pages by mandoc"; then
  mandoc -T lint -W warning "$manual"/man1/*.1 >out 2>&1 || true # an empty date is meant: the version says how old it is
  grep -vE 'missing date|^$' out >lint || true
  [ ! -s lint ] || fail "mandoc: $(cat lint)"
fi

note "completion"
# offers WORD...: what bash would offer for the last word.
offers() {
  bash -c '. "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _breakwater; printf "%s\n" "${COMPREPLY[@]}"' - \
    "$prefix/share/bash-completion/completions/breakwater" "$@"
}
expect_offers() { # "EXPECTED" WORD...
  local found
  found=$(offers "${@:2}" | sort | tr '\n' ' ')
  [ "${found% }" = "$1" ] || fail "completion of '${*:2}': '$found', not '$1'"
}
mkdir "a folder" && touch "a file.jsonl"
expect_offers "train" breakwater tr
expect_offers "train" breakwater help tr
expect_offers "--stage --steps --store" breakwater train --st
expect_offers "--store" breakwater merge --st
expect_offers "reinforce" breakwater train --stage re
expect_offers "reinforce" breakwater train --stage = re
expect_offers "align buffer reinforce sft user" breakwater train --stage =
expect_offers "a file.jsonl a folder" breakwater train --data a
expect_offers "a folder" breakwater train --output "a "
expect_offers "a file.jsonl a folder" breakwater run a
expect_offers "" breakwater train --lr ""
for command in $commands; do
  "$prefix/bin/breakwater" "$command" --help | grep -oE '^  --(\[no-\])?[a-z0-9-]+' | sed 's/^  //; s/\[no-\]//' | sort >options
  offers breakwater "$command" - | sort >offered
  [ -z "$(comm -23 options offered)" ] || fail "completion of $command does not offer: $(comm -23 options offered)"
done

note "job scripts and the data of the demo"
for file in quickstart.sh get-model.sh demo/pipeline.yaml demo/task_train.jsonl demo/README.md; do
  [ -s "$prefix/share/breakwater/jobs/$file" ] || fail "jobs/$file is not installed"
done
grep -ohE 'jobs/demo/[a-z0-9_]+\.jsonl' "$prefix/share/breakwater/jobs/demo/pipeline.yaml" | sort -u | while read -r file; do
  [ -s "$prefix/share/breakwater/$file" ] || fail "the installed pipeline names $file, which is not there"
done

note "documents"
for file in README.md docs/slurm.md docs/install.md jobs/demo/README.md; do
  [ -s "$prefix/share/breakwater/$file" ] || fail "$file is not installed"
done
find "$prefix/share/breakwater" -name '*.md' | while read -r file; do
  { grep -oE '\]\([^)#:]+' "$file" || true; } | sed 's/^](//' | while read -r link; do
    [ -e "$(dirname "$file")/$link" ] || fail "$file links to $link, which is not installed"
  done
done
(cd "$prefix/share/breakwater" && "$prefix/bin/breakwater" plan --model benchmarks/machines/llama-3-8b.json --machine benchmarks/machines/cluster.yaml --ranks 8) \
  >out 2>err || fail "the plan of docs/scaling.md cannot be repeated with what is installed"

note "the plan of the README, with the machine that is installed"
"$prefix/bin/breakwater" plan --model "$BW_TEST_DATA/golden/tiny/model" --machine "$prefix/share/breakwater/machines/cluster.yaml" --ranks 8,16,32 >out 2>err ||
  fail "no plan with the installed machine file"

note "programs outside the tree: pkg-config and find_package"
adapter=$BW_TEST_DATA/golden/tiny/init/adapter_model.safetensors
flags=${BW_SANITIZE:+-fsanitize=$BW_SANITIZE}
check_consumer() { # PROGRAM
  LD_LIBRARY_PATH=$prefix/lib "$1" "$adapter" >out 2>err || fail "$1 does not run"
  diff out - <<<$'nearest merge\ntensors 42' || fail "$1 prints something else"
}
export PKG_CONFIG_PATH=$prefix/lib/pkgconfig
[ "$(pkg-config --modversion breakwater)" = "$version" ] || fail "pkg-config has another version"
cc -std=c17 -Wall -Wextra -pedantic -Werror $flags -o by-pkg-config "$BW_TEST_DATA/system/consumer.c" $(pkg-config --cflags --libs breakwater) 2>err ||
  fail "does not build with pkg-config"
check_consumer ./by-pkg-config
for header in "$prefix"/include/breakwater/*.h; do # each alone, in plain C and as C11
  echo "#include <breakwater/$(basename "$header")>" | cc -std=c11 -fsyntax-only -Wall -Werror -xc - $(pkg-config --cflags breakwater) 2>err ||
    fail "$(basename "$header") cannot be included alone"
done
mkdir consumer && cp "$BW_TEST_DATA/system/consumer.c" consumer/
cat >consumer/CMakeLists.txt <<END
cmake_minimum_required(VERSION 3.16)
project(consumer C)
find_package(breakwater ${version%.*} REQUIRED)
add_executable(consumer consumer.c)
target_link_libraries(consumer PRIVATE breakwater::breakwater)
END
cmake -G Ninja -S consumer -B consumer/build -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_C_FLAGS="$flags" >out 2>err && cmake --build consumer/build >>out 2>>err ||
  fail "does not build with find_package"
check_consumer consumer/build/consumer

note "modules"
# A shell as a batch job has it: no startup files; INIT defines module.
in_modules() { # INIT COMMANDS
  env -u LMOD_CMD -u MODULEPATH -u LOADEDMODULES -u _LMFILES_ -u BASH_ENV -u MANPATH -u PKG_CONFIG_PATH PATH=/usr/local/bin:/usr/bin:/bin \
    bash --norc -euo pipefail -c ". '$1'; module use '$prefix/share/modulefiles'; $2" 2>&1
}
check_modules() { # NAME INIT
  local found
  note "  $1"
  found=$(in_modules "$2" "module load breakwater/$version; breakwater --version; command -v breakwater; echo root=\$BREAKWATER_ROOT") ||
    fail "$1: module load breakwater/$version && breakwater --version: $found"
  grep -q "^breakwater $version " <<<"$found" && grep -qx "$prefix/bin/breakwater" <<<"$found" && grep -qx "root=$prefix" <<<"$found" ||
    fail "$1: not the installed program: $found"
  found=$(in_modules "$2" "module load breakwater; pkg-config --modversion breakwater; man -w breakwater-train; manpath; echo lib=\$LD_LIBRARY_PATH; echo cmake=\$CMAKE_PREFIX_PATH") ||
    fail "$1: the default version, pkg-config, man: $found"
  for line in "$version" "$manual/man1/breakwater-train.1" "$manual:.*/share/man.*" "lib=$prefix/lib.*" "cmake=$prefix"; do
    grep -qxE "$line" <<<"$found" || fail "$1: no line '$line' in: $found"
  done
  in_modules "$2" "module help breakwater/$version" >help || fail "$1: module help"
  grep -q 'srun .*breakwater run' help || fail "$1: module help says nothing: $(cat help)"
  found=$(sed -n 's|^ *\$BREAKWATER_ROOT/\(.*slurm.md\)$|\1|p' help)
  [ -s "$prefix/${found:-nowhere}" ] || fail "$1: module help names no document that is installed: $(cat help)"
  in_modules "$2" "module whatis breakwater/$version" >whatis || fail "$1: module whatis"
  grep -q 'Description: Fine-tuning' whatis || fail "$1: module whatis says nothing: $(cat whatis)"
  found=$(in_modules "$2" "module load breakwater/$version; module unload breakwater; echo root=\${BREAKWATER_ROOT-none}; ! command -v breakwater") ||
    fail "$1: module unload: $found"
  grep -qx root=none <<<"$found" || fail "$1: unloading leaves something: $found"
  found=$(in_modules "$2" "module use '$work/outside/m'; module load breakwater/$version; echo file=\$_LMFILES_; echo root=\$BREAKWATER_ROOT") ||
    fail "$1: modulefiles outside of the prefix: $found"
  grep -q "^file=$work/outside/m/breakwater/" <<<"$found" && grep -qx "root=$prefix" <<<"$found" ||
    fail "$1: a modulefile outside of the prefix takes what lies beside it for the program: $found"
}
# With an absolute BW_MODULE_DIR. As many folders above the modulefile as the prefix would be lies another program.
sed 's|set(destination "[^"]*/modulefiles/breakwater")|set(destination "'"$work"'/outside/m/breakwater")|' "$BW_BUILD/modules/cmake_install.cmake" >outside.cmake
cmake -DCMAKE_INSTALL_PREFIX="$prefix" -P outside.cmake >out 2>err || fail "cmake --install with modulefiles outside of the prefix"
[ -s "outside/m/breakwater/$version.lua" ] || fail "modulefiles are not where BW_MODULE_DIR says"
mkdir bin && touch bin/breakwater
lmod=${LMOD_PKG:-/usr/share/lmod/lmod}/init/bash
if [ -r "$lmod" ]; then check_modules Lmod "$lmod"; else skipped+=("Lmod: not installed"); fi
# Debian's packages of the two exclude one another, so that environment-modules is unpacked here where it is not installed.
modulecmd=$(ls /usr/lib/*/modulecmd.tcl /usr/share/modules/libexec/modulecmd.tcl 2>/dev/null | head -n 1 || true)
if [ -z "$modulecmd" ] && command -v apt-get dpkg >/dev/null; then
  { apt-get download environment-modules && dpkg -x environment-modules_*.deb "$work/environment-modules"; } >out 2>&1 || true
  modulecmd=$(ls "$work"/environment-modules/usr/lib/*/modulecmd.tcl 2>/dev/null || true)
fi
if [ -n "$modulecmd" ] && command -v tclsh >/dev/null; then
  echo "module() { eval \"\$(tclsh '$modulecmd' bash \"\$@\")\"; }" >environment-modules.init
  check_modules environment-modules "$work/environment-modules.init"
else
  skipped+=("environment-modules: not installed, and its package cannot be fetched")
fi

[ ${#skipped[@]} -eq 0 ] || printf 'NOT TESTED: %s\n' "${skipped[@]}"
note "the installed tree works"
