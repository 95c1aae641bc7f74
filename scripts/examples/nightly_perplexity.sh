#!/usr/bin/env bash
# Nightly regression of perplexity: measure, add a line to a record, and fail if the value is worse than the best one in it.
#
#   nightly_perplexity.sh book.txt record.tsv [options of edgemllm perplexity]
#
# TOKENS says how much to score; TOLERANCE how much worse, in percent, is still fine.
set -euo pipefail
text=$1 record=$2
shift 2

value=$(edgemllm perplexity --text "$text" --tokens "${TOKENS:-100k}" --json "$@" |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["runs"][0]["perplexity"])')
best=$({ cut -f2 "$record" 2>/dev/null || true; } | sort -g | head -n 1)
printf '%s\t%s\n' "$(date +%Y-%m-%dT%H:%M:%S%z)" "$value" >>"$record"
awk -v value="$value" -v best="${best:-$value}" -v tolerance="${TOLERANCE:-1}" 'BEGIN {
    printf "perplexity %.4f, best so far %.4f (%+.2f%%)\n", value, best, 100 * (value / best - 1)
    exit value > best * (1 + tolerance / 100)
}'
