# shellcheck shell=bash
# The site's facts, its modules, and whether the program is there: what every job, and who submits them, begins with. Sourced, by bash; $jobs is
# this folder.
site=${BREAKWATER_SITE:-$jobs/site.conf}
[ -r "$site" ] || { echo "$site: no such file: mend BREAKWATER_SITE, which names it, or unset it for $jobs/site.conf" >&2; exit 69; }
. "$site"
if [ -n "$modules" ]; then
  command -v module >/dev/null || . "$module_init"
  module load $modules
fi
command -v "$program" >/dev/null || { echo "$site: program=$program is not in PATH: 'module load breakwater', or say modules= or program= there" >&2; exit 69; }
