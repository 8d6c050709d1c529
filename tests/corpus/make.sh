#!/usr/bin/env bash
# Makes wavs/*.flac from metadata.csv with flite (voice slt, 16 kHz mono).
# Usage: tests/corpus/make.sh          needs: apt-get install flite sox
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p wavs
while IFS='|' read -r id _ text; do
    flite -voice slt -t "$text" -o "wavs/$id.wav"
    sox "wavs/$id.wav" "wavs/$id.flac"
    rm "wavs/$id.wav"
done < metadata.csv
