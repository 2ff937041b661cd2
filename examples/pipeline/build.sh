#!/bin/sh
# Builds a model by a pipeline's file, and takes it from a cache where the same content was built before.
# Usage: sh build.sh FILE.toml OUT CACHE      OUT: the folder that the file's outputs are in
set -eu
file=$1 out=$2 cache=$3
key=$(onnxport pipeline "$file" --key)
if [ -d "$cache/$key" ]; then
    rm -rf "$out"
    mkdir -p "$(dirname "$out")"
    cp -R "$cache/$key" "$out"
    echo "$out: taken from $cache/$key"
else
    onnxport pipeline "$file" --force      # ends with its exit code where a gate fails: nothing is kept then
    mkdir -p "$cache"
    cp -R "$out" "$cache/.$key.$$"
    mv "$cache/.$key.$$" "$cache/$key"     # whole or not at all
    echo "$out: kept as $cache/$key"
fi
