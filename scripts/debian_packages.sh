#!/bin/sh
# Usage: debian_packages.sh FOLDER NAME... : unpack Debian packages into FOLDER without installing them.
set -eu
folder=$1
shift
command -v apt-get >/dev/null && command -v dpkg >/dev/null || {
    echo "This needs apt-get and dpkg. Elsewhere, unpack these packages of Debian 12 into $folder: $*" >&2
    exit 1
}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
for name in "$@"; do
    [ -e "$folder/.$name" ] && continue
    scratch=$(mktemp -d)
    (cd "$scratch" && apt-get download "$name") || {
        rm -rf "$scratch"
        echo "apt-get download $name failed; refresh the package lists with: sudo apt-get update" >&2
        exit 1
    }
    dpkg -x "$scratch"/*.deb "$folder"
    rm -rf "$scratch"
    touch "$folder/.$name"
done
