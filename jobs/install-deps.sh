#!/usr/bin/env bash
# Install what Breakwater builds on. Debian and Ubuntu: by apt-get, asking for nothing. Elsewhere: name what is missing.
#   jobs/install-deps.sh           install what is missing
#   jobs/install-deps.sh --check   say what is missing, install nothing; exit 1 if anything is
#   jobs/install-deps.sh --tests   with what only tests need, where it can be had
set -euo pipefail
case ${1:-} in
  -h | --help) sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
  '' | --check | --tests) ;;
  *) echo "install-deps.sh: there is no option $1 (--help)" >&2; exit 64 ;;
esac

packages=(
  gcc cmake ninja-build pkg-config git                                  # to build
  libopenmpi-dev openmpi-bin                                            # MPI
  libblis-openmp-dev libscalapack-openmpi-dev liblapack-dev             # BLIS, ScaLAPACK
  libhdf5-openmpi-dev hdf5-tools                                        # parallel HDF5, h5dump
  libjansson-dev libyaml-dev libpcre2-dev libutf8proc-dev  # JSON, YAML, tokenizer
  librandom123-dev libxxhash-dev libcmocka-dev                          # random numbers, checksums, tests
  python3 python3-pip ca-certificates                                   # to fetch the small model of the quick start
)

# What the build finds where it is, and does without elsewhere.
optional=(libdnnl-dev) # oneDNN: the CPU's own bf16, and fp32 at its full rate where it has AVX512

# A test says so when one of these is not there. Lmod excludes environment-modules, so it comes only where no modules are yet.
if [ "${1:-}" = --tests ]; then
  packages+=(man-db slurmctld slurmd slurm-client munge) # the tests of jobs/ start a cluster of their own
  [ -e /usr/share/modules/init/bash ] || packages+=(lmod)
fi

if ! command -v dpkg-query >/dev/null; then
  missing=()
  for tool in cc cmake ninja pkg-config mpicc mpiexec h5pcc python3; do
    command -v "$tool" >/dev/null || missing+=("$tool")
  done
  for module in jansson yaml-0.1 libpcre2-8 libutf8proc libxxhash cmocka; do
    pkg-config --exists "$module" 2>/dev/null || missing+=("$module (pkg-config)")
  done
  for header in blis/blis.h Random123/philox.h; do
    echo "#include <$header>" | cc -E - >/dev/null 2>&1 || missing+=("$header")
  done
  if [ ${#missing[@]} -eq 0 ]; then
    echo "everything that can be checked here is there (ScaLAPACK is looked for by cmake)"
    exit 0
  fi
  echo "This system has no apt-get. Breakwater needs, beside ScaLAPACK for your MPI:" >&2
  printf '  %s\n' "${missing[@]}" >&2
  exit 1
fi

is_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
missing=() better=()
for package in "${packages[@]}"; do is_installed "$package" || missing+=("$package"); done
for package in "${optional[@]}"; do is_installed "$package" || better+=("$package"); done
if [ ${#missing[@]} -eq 0 ] && [ ${#better[@]} -eq 0 ]; then
  echo "all $((${#packages[@]} + ${#optional[@]})) packages are installed"
  exit 0
fi
if [ "${1:-}" = --check ]; then
  [ ${#better[@]} -eq 0 ] || echo "not there, and not needed: ${better[*]}"
  [ ${#missing[@]} -eq 0 ] && exit 0
  echo "missing: ${missing[*]}"
  exit 1
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if [ ${#missing[@]} -eq 0 ] && ! command -v sudo >/dev/null; then
    echo "all ${#packages[@]} packages that are needed are installed; ask your administrator for ${better[*]} if you like"
    exit 0
  fi
  command -v sudo >/dev/null || { echo "not root and no sudo: ask your administrator for: ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
log=$(mktemp "${TMPDIR:-/tmp}/breakwater-install.XXXXXX")
trap 'rm -f "$log"' EXIT

# apt_get PATTERN ACTION argument...: run apt-get, show the lines that say how far it is, and all of its last words when it fails.
apt_get() {
  local pattern=$1 status=0
  shift
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o Dpkg::Use-Pty=0 "$@" </dev/null 2>&1 | tee "$log" |
    { grep --line-buffered -E "$pattern" || true; } | cut -c 1-110 || status=${PIPESTATUS[0]}
  [ "$status" -ne 0 ] || return 0
  echo "apt-get $1 failed (exit code $status); its last lines:" >&2
  tail -n 15 "$log" >&2
  echo "no network, another apt-get at work, or a full disk are the usual reasons; run this script again afterwards" >&2
  exit 1
}

echo "${#missing[@]} of ${#packages[@]} packages are missing${missing[*]:+: ${missing[*]}}; wanted, not needed: ${better[*]:-none}"
echo "1 of 2: the package lists (apt-get update)"
apt_get '^(Err|E:)' update
for package in ${better[@]+"${better[@]}"}; do
  if apt-cache show "$package" >/dev/null 2>&1; then missing+=("$package"); else echo "$package is not to be had here: the build does without"; fi
done
[ ${#missing[@]} -gt 0 ] || exit 0
echo "2 of 2: download and install, with what these packages need in turn; some minutes"
apt_get '^(Need to get|After this|Get:|Setting up|E:)' install -y --no-install-recommends "${missing[@]}"
echo "all packages are installed"
