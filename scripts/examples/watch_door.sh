#!/usr/bin/env bash
# Watch a door camera indefinitely and append a line to a file whenever the answer says so. Survives a camera that goes away;
# started again, it continues with what it remembers.
#
#   watch_door.sh rtsp://user:password@camera/stream alerts.tsv [options of edgemllm stream]
#
# QUESTION, EVERY and ALERT (a regular expression that an answer must match) change what it looks for.
set -euo pipefail
source=$1 alerts=$2
shift 2
question=${QUESTION:-Is there a person at the door? Answer yes or no.}

edgemllm stream "$source" --ask "$question" --every "${EVERY:-10s}" --max-tokens 16 --skip-similar 0.98 --retries -1 \
    --save "$alerts.edge" --resume "$alerts.edge" "$@" </dev/null |
    while IFS=$'\t' read -r when question answer; do
        if grep -qiE "${ALERT:-^yes}" <<<"$answer"; then
            printf '%s\t%s\t%s\n' "$(date +%Y-%m-%dT%H:%M:%S%z)" "$when" "$answer" >>"$alerts"
        fi
    done
