#!/bin/sh
# Usage: npm_packages.sh FOLDER NAME@VERSION... : unpack npm packages into FOLDER/NAME without installing them.
set -eu
folder=$1
shift
command -v npm >/dev/null || {
    echo "This needs npm. Elsewhere, unpack these packages into $folder/NAME: $*" >&2
    exit 1
}
for package in "$@"; do
    name=${package%@*}
    [ -e "$folder/$name" ] && continue
    scratch=$(mktemp -d)
    (cd "$scratch" && npm pack --silent "$package" >/dev/null) || {
        rm -rf "$scratch"
        echo "npm pack $package failed; is the registry reached?" >&2
        exit 1
    }
    tar -xzf "$scratch"/*.tgz -C "$scratch"
    mkdir -p "$(dirname "$folder/$name")"
    mv "$scratch/package" "$folder/$name"
    rm -rf "$scratch"
done
