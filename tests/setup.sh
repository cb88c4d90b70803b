#!/bin/sh
# Installs what a run (`setup.sh run`) or the tests (`setup.sh test`) need and this machine lacks:
# on Debian and Ubuntu with apt-get, on macOS with brew. Touches nothing that is there, and says
# nothing when nothing is missing.
set -eu
cd "$(dirname "$0")/.."

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

# add "packages for apt-get" "arguments for brew"
updated=
add() {
  if has apt-get; then
    say "installing $1"
    # Before the first package only: it is slow, and most runs install nothing.
    [ "$updated" ] || as_root apt-get update -qq
    updated=yes
    # shellcheck disable=SC2086 # several packages are several words
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $1 >&2
  elif has brew; then
    say "installing $2"
    # shellcheck disable=SC2086 # as above
    brew install --quiet $2 >&2
  else
    die "this machine has neither apt-get nor brew; please install $1 in its own way"
  fi
}

# Rust links with it, and one dependency is partly C.
compiler() {
  has cargo || die "Rust is missing; get it from https://rustup.rs"
  has cc || add build-essential gcc
}

# The same places in which the relay looks.
has_postgres() {
  if [ "${ROWCAST_PG_BIN:-}" ]; then
    [ -x "$ROWCAST_PG_BIN/initdb" ] || die "there is no initdb in ROWCAST_PG_BIN=$ROWCAST_PG_BIN"
    return
  fi
  for initdb in /usr/lib/postgresql/*/bin/initdb /usr/pgsql-*/bin/initdb \
    /opt/homebrew/opt/postgresql@*/bin/initdb /usr/local/opt/postgresql@*/bin/initdb; do
    [ ! -x "$initdb" ] || return 0
  done
  has initdb
}

postgresql() {
  has_postgres || add postgresql postgresql@17
}

# A relay must know a pooler when it meets one.
pooler() {
  has pgbouncer || [ -x /usr/sbin/pgbouncer ] || add pgbouncer pgbouncer
}

has_browser() {
  for name in chromium chromium-browser google-chrome google-chrome-stable; do
    ! has "$name" || return 0
  done
  [ -d "/Applications/Chromium.app" ] || [ -d "/Applications/Google Chrome.app" ]
}

# Ubuntu has no package of the first name; its second one is a snap.
browser() {
  has_browser || add chromium "--cask google-chrome" || add chromium-browser ""
}

# In front of the relay in tests, as in front of many in earnest. Where the package would also start
# them, Debian's own switch says no: the tests start their own.
proxies() {
  if has apt-get; then
    has nginx || [ -x /usr/sbin/nginx ] || RUNLEVEL=1 add nginx ""
    has haproxy || [ -x /usr/sbin/haproxy ] || RUNLEVEL=1 add haproxy ""
    has faketime || add faketime ""
  else
    has nginx || add "" nginx
    has haproxy || add "" haproxy
  fi
}

# Debian 12 and Ubuntu 24.04 package Node 18, and the tests need 20: npm has newer ones. The
# Makefile puts that directory in front of PATH.
javascript() {
  { has node && has npm; } || add "nodejs npm" node
  PATH="$PWD/tests/.node/node_modules/node/bin:$PATH"
  [ "$(node -p 'parseInt(process.versions.node) >= 20')" = true ] && return
  say "installing Node 22 in tests/.node"
  npm install --prefix tests/.node --no-audit --no-fund --loglevel=error node@22 >&2
}

# npm's own record of an installation tells whether it is older than the lock file.
packages() {
  for directory in tests/browser tests/clients; do
    lock=$directory/package-lock.json
    [ -f "$lock" ] || continue
    installed=$directory/node_modules/.package-lock.json
    [ -f "$installed" ] && [ -z "$(find "$lock" -newer "$installed")" ] && continue
    say "installing the packages of $directory"
    (cd "$directory" && npm ci --no-audit --no-fund --loglevel=error >&2)
  done
}

# The copy of the list beside the installation tells whether it is older than the list.
python() {
  list=tests/clients/requirements.txt
  venv=tests/clients/.venv
  [ -f "$list" ] || return 0
  cmp -s "$list" "$venv/installed.txt" && return
  has python3 || add python3 python
  python3 -c 'import ensurepip' 2>/dev/null || add python3-venv python
  say "installing the packages of $list"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$list"
  cp "$list" "$venv/installed.txt"
}

case "${1:-}" in
  run) compiler; postgresql ;;
  test) compiler; postgresql; pooler; proxies; browser; javascript; packages; python ;;
  *) die "usage: tests/setup.sh run | test" ;;
esac
