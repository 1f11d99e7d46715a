#!/bin/sh
# Install the programs that `make demo` and `make test` need, where this script may: on Debian and Ubuntu, as root or
# with passwordless sudo. Elsewhere print the command to run. A second call finds everything and does nothing.
#
#   sh .ci/programs.sh PYTHON            the interpreter with its venv module; fails if it cannot be installed
#   sh .ci/programs.sh PYTHON browser …  the same, and the programs of the tests; those that cannot be installed are named
set -u
python=$1
shift

say() { echo "$*" >&2; }

runs() {  # does it start, and can it read the files of the tests? A snap cannot; Ubuntu's package is a stub for one
  command -v "$1" && version=$("$1" --version) && [ "${version%%" snap"*}" = "$version" ]
}

have() {  # is what the package contains on this machine?
  case $1 in
    python) command -v "$python" >/dev/null ;;
    venv) "$python" -c 'import ensurepip' 2>/dev/null ;;
    browser) runs chromium || runs chromium-browser || runs google-chrome ;;
    prometheus) command -v prometheus && command -v promtool ;;
    compiler) command -v c++ ;;
    git) command -v git ;;
    library) "$python" -c 'import ctypes.util, os, sys, sysconfig
name = "python" + sysconfig.get_python_version()
path = os.path.join(sysconfig.get_config_var("LIBDIR") or "", f"lib{name}.so.1.0")
sys.exit(not (os.path.exists(path) or ctypes.util.find_library(name)))' ;;
  esac >/dev/null 2>&1
}

package() {  # the package that contains it, if there is one
  case $1 in
    python) echo python3 ;;
    venv) "$python" -c 'import sysconfig; print(f"python{sysconfig.get_python_version()}-venv")' ;;
    library) "$python" -c 'import sysconfig; print(f"libpython{sysconfig.get_python_version()}")' ;;
    browser) [ "$system" = ubuntu ] || echo chromium ;;
    prometheus) echo prometheus ;;
    compiler) echo g++ ;;
    git) echo git ;;
  esac
}

may_install() {
  command -v apt-get >/dev/null || return 1
  [ "$(id -u)" -eq 0 ] && root='' && return 0
  command -v sudo >/dev/null && sudo -n true 2>/dev/null && root='sudo -n'
}

chrome=https://dl.google.com/linux/direct/google-chrome-stable_current_amd64.deb
system=$(. "${OS_RELEASE:-/etc/os-release}" 2>/dev/null && echo "${ID:-}")
updated=
log=$(mktemp)
trap 'rm -f "$log"' EXIT

install() {  # Debian package; apt's output is shown only when it fails
  say "Installing $1 (apt-get)"
  if [ -z "$updated" ]; then
    $root apt-get update -qq >"$log" 2>&1 || cat "$log" >&2 # one broken source does not stop the others
    updated=yes
  fi
  $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1" >"$log" 2>&1 ||
    { cat "$log" >&2; return 1; }
}

ensure() {  # is it there, or can it be installed?
  have "$1" && return
  name=$(package "$1")
  [ -n "$name" ] && may_install && install "$name" && have "$1"
}

fail() {
  say "error: $python $1, or name another interpreter: make PYTHON=python3.12"
  exit 1
}

ensure python || fail "needs the package $name: sudo apt-get install $name"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "is $("$python" --version), which is too old: install 3.11 or later"
ensure venv || fail "needs the package $name: sudo apt-get install $name"

missing=
for program in "$@"; do
  ensure "$program" && continue
  if [ -n "$name" ]; then missing="$missing $name"
  else
    say "Not installed, so the tests that need it are skipped: a browser. Ubuntu has Chromium as a snap, and a snap cannot read the files of the tests. To install Chrome: curl -LO $chrome && sudo apt-get install ./${chrome##*/}"
  fi
done
[ -z "$missing" ] ||
  say "Not installed, so the tests that need it are skipped:$missing. To install: sudo apt-get install --no-install-recommends$missing"
