#!/usr/bin/env bash
# Write subtitles that say what is going on beside every video of a folder. Videos that have some are left out, so it can
# be started again; a damaged video does not stop the others.
#
#   caption_folder.sh /media/videos [options of edgemllm stream]
#
# QUESTION and EVERY change what is asked, and how often.
set -euo pipefail
folder=$1
shift
failed=0
trap 'exit 130' INT
trap 'exit 143' TERM

for video in "$folder"/*; do
    case ${video,,} in *.mp4 | *.mkv | *.mov | *.webm | *.avi) ;; *) continue ;; esac
    subtitles=${video%.*}.srt
    [ -e "$subtitles" ] && continue
    echo "$video" >&2
    if edgemllm stream "$video" --ask "${QUESTION:-Describe what happens, in one sentence.}" --every "${EVERY:-10s}" \
        --max-tokens 48 --srt "$@" </dev/null >"$subtitles.part"; then
        mv "$subtitles.part" "$subtitles"
    else
        rm -f "$subtitles.part"
        failed=$((failed + 1))
    fi
done
if [ "$failed" -gt 0 ]; then
    echo "$failed videos could not be captioned" >&2
    exit 6
fi
