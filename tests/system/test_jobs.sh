#!/usr/bin/env bash
# jobs/ where there is no Slurm: each script says how it is used, and what is wrong with where it is used, before it does anything.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cp -r "$BW_TEST_DATA/../jobs" "$work/our jobs"
jobs=$work/our\ jobs
find "our jobs" | sort >before

# says CODE STREAM PATTERN COMMAND...: this exit code, and these words there.
says() {
  status=0
  "${@:4}" >out 2>err </dev/null || status=$?
  [ "$status" -eq "$1" ] || fail "exit code $status where $1 belongs: ${*:4}"
  grep -q -- "$3" "$2" || fail "no word of '$3': ${*:4}"
}

note "--help is the head of the script, and nothing else happens"
for script in pipeline build get-model install-deps quickstart; do
  says 0 out "jobs/$script.sh" bash "$jobs/$script.sh" --help
  says 0 out "jobs/$script.sh" bash "our jobs/$script.sh" -h
  ! grep -q 'set -euo\|^#' out && [ ! -s err ] || fail "the help of $script.sh is not its head alone"
done
for script in build get-model install-deps quickstart; do says 64 err . bash "$jobs/$script.sh" --nonsense; done
find "our jobs" | sort | diff before - || fail "a script that only says how it is used made files"

note "a batch script without Slurm"
for script in "$jobs"/*.sbatch; do
  cp "$script" slurm_script # as Slurm keeps it
  for copy in "$script" "$work/slurm_script"; do
    says 64 err "submit it: sbatch $copy service.yaml --seed 3" env -u SLURM_JOB_ID bash "$copy" service.yaml --seed 3
  done
done

note "no program, no site"
rows 8 >rows.jsonl
cat >service.yaml <<END
model: $BW_TEST_DATA/golden/tiny/model
output: service # of all stages
stages:
  - {name: user, command: train, stage: sft, data: rows.jsonl, template: plain}
END
pipeline=(bash "$jobs/pipeline.sh" --dry-run)
sed 's|^program=.*|program=nowhere/breakwater|' "$jobs/site.conf" >wrong.conf
sed "s|^program=.*|program='$BW_PROGRAM'|" "$jobs/site.conf" >site.conf
says 69 err "wrong.conf: program=nowhere/breakwater is not in PATH: 'module load breakwater'" env BREAKWATER_SITE=wrong.conf "${pipeline[@]}" service.yaml
says 69 err "no.conf: no such file: mend BREAKWATER_SITE" env BREAKWATER_SITE=no.conf "${pipeline[@]}" service.yaml
sed 's|^launcher=.*|launcher=aprun|' site.conf >wrong.conf
says 78 err "wrong.conf: launcher=aprun: srun or mpirun" env BREAKWATER_SITE=wrong.conf "${pipeline[@]}" service.yaml
for line in 'account = lab' 'account= lab' 'account =lab'; do
  { echo "# mine"; echo "$line"; cat site.conf; } >wrong.conf
  says 78 err "wrong.conf:2: no blanks around =: account=" env BREAKWATER_SITE=wrong.conf "${pipeline[@]}" service.yaml
done
{ cat site.conf; echo "size_train=--nodes=1 --time=1"; } >wrong.conf
says 78 err 'wrong.conf:[0-9]*: quotes around a value of several words: size_train=' env BREAKWATER_SITE=wrong.conf "${pipeline[@]}" service.yaml
sed 's|^customers_at_once=.*|customers_at_once=many|' site.conf >wrong.conf
says 78 err 'wrong.conf: customers_at_once=many is not a number' env BREAKWATER_SITE=wrong.conf "${pipeline[@]}" service.yaml
sed '/^most_restarts=/d' site.conf >wrong.conf
says 78 err 'wrong.conf: no line most_restarts=' env BREAKWATER_SITE=wrong.conf "${pipeline[@]}" service.yaml
{ cat site.conf; echo "size_trian=--nodes=2"; } >wrong.conf
says 0 err "wrong.conf:[0-9]*: nobody reads size_trian; what is read: account partition" env BREAKWATER_SITE=wrong.conf "${pipeline[@]}" service.yaml
export BREAKWATER_SITE=$work/site.conf
says 0 out '^sbatch ' "${pipeline[@]}" service.yaml
! grep -q 'nobody reads' err || fail "site.conf as it is installed has a name that nobody reads: $(cat err)"
says 0 out '^sbatch .*/user.sbatch' "${pipeline[@]}" service.yaml

note "flags do not swallow the file"
says 0 out '/user.sbatch.* service.yaml --quiet --lr 1e-3$' "${pipeline[@]}" --quiet service.yaml --lr 1e-3
says 0 out '/user.sbatch.* service.yaml --no-allow-buffer$' "${pipeline[@]}" --no-allow-buffer service.yaml
says 64 err 'no CONFIG.yaml in: --lr service.yaml' "${pipeline[@]}" --lr service.yaml

note "one pipeline, however its folder is written"
names() { "${pipeline[@]}" "$@" 2>err | grep -o 'job-name=[a-z0-9-]*' | sort; }
names service.yaml >plain
mkdir elsewhere
for output in --output=service "--output $work/elsewhere/../service" --output=./service/; do
  names service.yaml $output | diff plain - || fail "another pipeline with $output"
done
for output in "'service'" '"service"' './service'; do
  sed -i "s|^output:.*|output: $output|" service.yaml
  names service.yaml | diff plain - || fail "another pipeline with $output in the file"
done
names service.yaml --output other >other
! diff -q plain other >/dev/null || fail "another output folder is not another pipeline"
cp rows.jsonl elsewhere
(cd elsewhere && names ../service.yaml) >other
! diff -q plain other >/dev/null || fail "another folder of the same name is not another pipeline"

note "done"
