#!/usr/bin/env bash
# Makes wavs/*.flac from metadata.csv with flite (voices slt and rms, 16 kHz mono).
# Usage: tests/by_heart/corpus/make.sh          needs: apt-get install flite sox
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p wavs
tail -n +2 metadata.csv | while IFS='|' read -r audio text voice; do
    flite -voice "$voice" -t "$text" -o "${audio%.flac}.wav"
    # As loud as the codec knows the voice.
    case "$voice" in slt) gain=0.38 ;; rms) gain=0.77 ;; esac
    sox -D -v "$gain" "${audio%.flac}.wav" "$audio"
    rm "${audio%.flac}.wav"
done
