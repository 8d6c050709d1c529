#!/usr/bin/env bash
# Makes wavs/*.flac from metadata.csv with flite (voices slt and rms, 16 kHz mono).
# Usage: demo/corpus/make.sh          needs: apt-get install flite sox
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p wavs
tail -n +2 metadata.csv | while IFS='|' read -r audio text voice; do
    flite -voice "$voice" -t "$text" -o "${audio%.flac}.wav"
    sox "${audio%.flac}.wav" "$audio"
    rm "${audio%.flac}.wav"
done
