# shellcheck shell=bash
# The site's facts, its modules, and whether the program is there: what every job, and who submits them, begins with. Sourced, by bash; $jobs is
# this folder.
site=${BREAKWATER_SITE:-$jobs/site.conf}
[ -r "$site" ] || { echo "$site: no such file: mend BREAKWATER_SITE, which names it, or unset it for $jobs/site.conf" >&2; exit 69; }
# It is bash: what is meant as an assignment has to be one, and of a name that somebody reads, here or in the environment.
known='account partition modules module_init program launcher launcher_options size_train size_small customers_at_once most_restarts'
while read -r line name wrong; do
  case $wrong in
    blank) echo "$site:$line: no blanks around =: $name=..." >&2; exit 78 ;;
    quote) echo "$site:$line: quotes around a value of several words: $name=\"...\"" >&2; exit 78 ;;
  esac
  [[ " $known " == *" $name "* || -n ${!name+x} ]] || echo "$site:$line: nobody reads $name; what is read: $known" >&2
done < <(awk '/^[A-Za-z_][A-Za-z_0-9]*[ \t]*=/ {
  name = $0; sub(/[ \t]*=.*/, "", name)
  print NR, name, /^[A-Za-z_0-9]+[ \t]/ || /^[^=]*=[ \t]+[^# \t]/ ? "blank" : /^[^=]*=[^ \t"'"'"'#;&|`$(]+[ \t]+[^# \t;&|]/ ? "quote" : "" }' "$site")
unset $known # what is said is said here
. "$site"
for name in $known; do
  [ -n "${!name+x}" ] || { echo "$site: no line $name=; $jobs/site.conf, as it comes, has one" >&2; exit 78; }
done
for name in customers_at_once most_restarts; do
  [[ ${!name} =~ ^[0-9]+$ ]] || { echo "$site: $name=${!name} is not a number" >&2; exit 78; }
done
case $launcher in srun | mpirun) ;; *) echo "$site: launcher=$launcher: srun or mpirun" >&2; exit 78 ;; esac
if [ -n "$modules" ]; then
  command -v module >/dev/null || . "$module_init"
  module load $modules
fi
command -v "$program" >/dev/null || { echo "$site: program=$program is not in PATH: 'module load breakwater', or say modules= or program= there" >&2; exit 69; }
