#!/usr/bin/env bash
# Sample every row of a file; run it again until it says that all is there: samples/sample.sh samples/rows.jsonl outputs/rows
set -uo pipefail
rows=${1:?a file of rows} folder=${2:?a folder}
shift 2

for _ in 1 2 3; do
    cm3kit sample run "$rows" -o "$folder" --seed 1 "$@" && break
    status=$?
    # 3 is "incomplete": what is missing may be made by the next run. Anything else is an error, a crash or Ctrl-C.
    if [ "$status" -ne 3 ]; then exit "$status"; fi
done
cm3kit sample merge "$folder" && cm3kit sample status "$folder" --verify
