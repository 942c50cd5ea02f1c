#!/usr/bin/env bash
# Where the time went, as a user sees it: the timeline of a step shows every streamed layer on its way while another is computed, the table at the end says
# how much of that was hidden, and neither is there twice, stale, or in the way.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

"$BW_MAKE_TINY" tiny 5 layers=5
rows 30 >rows.jsonl
settings=(--model tiny --stage sft --data rows.jsonl --template plain --micro-batches 4 --lora-r 4 --batch 8 --threads 1)

# count WHAT FOLDER: rows of the timeline.
count() { grep -c "^$1," "$2/timeline.csv" || true; }

# Every gather begins before a neighbouring layer is computed, and is asked for only when that is done.
overlaps() {
  awk -F, '
    NR == 1 { next }
    $1 == "forward" || $1 == "backward" { n++; layer[n] = $2; from[n] = $3; to[n] = $4 }
    $1 == "in flight" { g++; which[g] = $2; start[g] = $3 }
    $1 == "gather" && $2 != "" { f++; finished[f] = $2; needed[f] = $3 }
    END {
      if (g == 0 || g != f) { print g " gathers started, " f " finished"; exit 1 }
      for (i = 1; i <= g; i++) {
        behind = 0
        for (j = 1; j <= n; j++)
          behind = behind || ((layer[j] - which[i]) ^ 2 == 1 && start[i] <= from[j] && to[j] <= needed[i])
        if (which[i] != finished[i] || !behind) { print "layer " which[i] ", started at " start[i] " ms, did not travel while a neighbour was computed"; exit 1 }
      }
    }' "$1/timeline.csv" >"$work/overlap" || fail "$(cat "$work/overlap" "$1/timeline.csv")"
}

note "streamed between two nodes"
run 2 train "${settings[@]}" --steps 3 --weights stream --ranks-per-node 1 --output two
[ "$(head -n 1 two/timeline.csv)" = what,layer,start_ms,end_ms ] || fail "the head of the timeline"
[ "$(count forward two) $(count backward two) $(count 'in flight' two)" = "10 10 12" ] || fail "not two rounds of 5 layers and 6 gathers: $(cat two/timeline.csv)"
[ "$(count update two) $(count loss two)" = "1 2" ] || fail "not one step: $(cat two/timeline.csv)"
overlaps two
grep -Eq '^the gather of the weights: [0-9.]+ s in flight, [0-9.]+ s of it waited for: [0-9]+% hidden$' two/report.txt || fail "$(cat two/report.txt)"
[ "$(grep -Ec '^(in flight|waited for|unpacked|node.s ranks) +[0-9]+ +[0-9.]+ +[0-9.]+$' two/report.txt)" -eq 4 ] || fail "$(cat two/report.txt)"

note "two ranks of one node send nothing"
run 2 train "${settings[@]}" --steps 3 --weights stream --output one
overlaps one
grep -q '^the gather of the weights: none from other nodes' one/report.txt || fail "$(cat one/report.txt)"

note "resident weights: nothing is gathered while a step runs"
run 1 train "${settings[@]}" --steps 1 --weights resident --output still
[ "$(count forward still) $(count 'in flight' still)" = "20 0" ] || fail "$(cat still/timeline.csv)"
! grep -q 'the gather of the weights' still/report.txt || fail "$(cat still/report.txt)"

note "a start without a step leaves the timeline of the start before it"
before=$(cat two/timeline.csv)
rm -r two/adapter
run 2 train "${settings[@]}" --steps 3 --weights stream --ranks-per-node 1 --output two
[ "$(cat two/timeline.csv)" = "$before" ] || fail "$(cat two/timeline.csv)"
note "done"
