#!/bin/sh
# Installs http-cache-tests (Mark Nottingham, BSD-3), a suite for HTTP caches, from npm into a directory of its own. The
# tests have no network, so this comes before them. It does nothing where that was done before. Where to: see
# mirrortest.Tool.
set -eu
version=0.4.5
top=${INSTANTMIRROR_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/instantmirror-test}
installed=$top/http-cache-tests/node_modules/http-cache-tests/package.json

if grep -qs "\"version\": \"$version\"" "$installed"; then exit 0; fi
mkdir -p "$top"
new=$(mktemp -d "$top/http-cache-tests.XXXXXX")
trap 'rm -rf "$new"' EXIT
npm install --prefix "$new" --ignore-scripts --no-audit --no-fund --silent "http-cache-tests@$version"
chmod 755 "$new"
rm -rf "$top/http-cache-tests"
mv "$new" "$top/http-cache-tests"
