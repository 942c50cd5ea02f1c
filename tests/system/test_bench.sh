#!/usr/bin/env bash
# The benchmark: every part has its rows, all of them right, in the table and in the CSV, on one rank and on several.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

"$BW_MAKE_TINY" tiny 1
parts="limits gemm layers attention step decode gather allreduce merge checkpoint"

# check RANKS option...
check() {
  note "$*"
  run "$1" bench --model tiny --repetitions 1 --lora-r 4 --batch 4 --eval-batch 2 --output files --csv bench.csv --threads 1 "${@:2}"
  for part in $parts; do
    grep -q "^$part,\"" bench.csv || fail "no row of part $part"
    grep -q "^$part  *[^ ].* ok$" out || fail "no row of part $part in the table"
  done
  [ "$(grep -vc ',ok$' bench.csv)" -eq 1 ] || fail "a row that is not ok: $(grep -v ',ok$' bench.csv | tail -n 1)"
  [ "$(grep -c "^[a-z]*,\".*\",${1/0/1},1,1," bench.csv)" -eq $(($(wc -l <bench.csv) - 1)) ] || fail "ranks, threads or repetitions are wrong"
  [ ! -e files ] || fail "files are left behind"
}
check 0
check 2
check 2 --grid 2x1 --weights stream --recompute layer
check 4 --grid 1x2 --replicas 2 --targets q,o,down
expect_fail 64 '5 ranks and 4 rows: give --batch 5' 5 bench --model tiny --batch 4 --parts step --threads 1

note "only what is asked for"
run 0 bench --model tiny --repetitions 1 --parts gather,merge --csv some.csv --threads 1
[ "$(cut -d, -f1 some.csv | sort -u | tr '\n' ' ')" = "gather limits merge part " ] || fail "other parts than gather and merge"
expect_fail 64 'parts' 0 bench --parts gemm,everything
