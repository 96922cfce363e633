#!/bin/sh
# Builds librepo with zchunk, which Debian's own is built without, from Debian's source: into a directory of its own,
# for python3-librepo to find by LD_LIBRARY_PATH. It needs some minutes and root, for what the build depends on. It does
# nothing where that was done before. Where to: see mirrortest.Tool.
set -eu
top=${INSTANTMIRROR_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/instantmirror-test}
works() { ldd "$1/librepo.so.0" 2>/dev/null | grep -q libzck && /usr/bin/python3 -c 'import librepo'; }

if works "$top/librepo"; then exit 0; fi
export DEBIAN_FRONTEND=noninteractive
tools="cmake dpkg-dev gcc libc6-dev libcurl4-gnutls-dev libglib2.0-dev libgpgme-dev libssl-dev libxml2-dev libzck-dev
	make pkg-config python3-librepo zchunk"
# shellcheck disable=SC2086 # a list
if ! dpkg -s $tools >/dev/null 2>&1; then
	apt-get -qq update
	apt-get install -y -qq --no-install-recommends $tools >/dev/null
fi

mkdir -p "$top"
new=$(mktemp -d "$top/librepo.XXXXXX")
trap 'rm -rf "$new"' EXIT
cd "$new"
# The machine's own lists may name no sources, and stay as they are.
mkdir lists out parts
sed 's/^Types:.*/Types: deb-src/' /etc/apt/sources.list.d/debian.sources >parts/debian.sources 2>/dev/null ||
	sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >parts/debian.list
apt="apt-get -qq -o Dir::Etc::sourcelist=- -o Dir::Etc::sourceparts=$new/parts -o Dir::State::lists=$new/lists
	-o APT::Sandbox::User=root"
$apt update
$apt source librepo >log 2>&1 || { cat log; exit 1; } # with Debian's patches
{
	cmake -S librepo-*/ -B build -DCMAKE_BUILD_TYPE=Release -DENABLE_DOCS=OFF -DENABLE_TESTS=OFF -DENABLE_PYTHON=OFF \
		-DWITH_ZCHUNK=ON -DENABLE_SELINUX=OFF && cmake --build build --parallel 2
} >log 2>&1 || { cat log; exit 1; }
cp -P build/librepo/librepo.so* out/
works out
chmod 755 out
rm -rf "$top/librepo"
mv out "$top/librepo"
