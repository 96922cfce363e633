#!/bin/sh
# Fetches zypper and what Debian 12 has it need beyond the tools of .ci/run, and unpacks it into a directory of its own: it
# cannot be installed beside dnf-plugins-core. The tests have no network, so this comes before them. It does nothing
# where that was done before. Where to: see mirrortest.Tool.
set -eu
top=${INSTANTMIRROR_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/instantmirror-test}
works() { test -e "$1/usr/bin/repo2solv.sh" && LD_LIBRARY_PATH="$1/usr/lib/$(uname -m)-linux-gnu" "$1/usr/bin/zypper" --version; }

if works "$top/zypper" >/dev/null 2>&1; then exit 0; fi
mkdir -p "$top"
new=$(mktemp -d "$top/zypper.XXXXXX")
trap 'rm -rf "$new"' EXIT
cd "$new"
fetch() {
	apt-get -qq -o APT::Sandbox::User=root download zypper zypper-common libzypp1722 libaugeas0 augeas-lenses \
		libboost-thread1.74.0 libproxy1v5 libsigc++-2.0-0v5 libyaml-cpp0.7 libsolv-tools
}
fetch || { apt-get -qq update && fetch; }
for deb in *.deb; do dpkg -x "$deb" root; done
ln -s repo2solv root/usr/bin/repo2solv.sh # libzypp's name for it where it is not in /usr/bin
works root
chmod 755 root
rm -rf "$top/zypper"
mv root "$top/zypper"
