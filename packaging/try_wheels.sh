#!/usr/bin/env bash
# Tries the wheels in dist/ as a user without a compiler has them: for each Python, a fresh environment
# whose PATH holds nothing else, the install, `graftlm doctor`, and a demo of 20 steps.
#
#   packaging/try_wheels.sh python3.10 python3.11 python3.12 python3.13
set -euo pipefail
cd "$(dirname "$0")/.."
dist=$PWD/dist
for python in "$@"; do
    work=$(mktemp -d)
    "$python" -m venv "$work/env"
    (
        cd "$work"
        export PATH="$work/env/bin"  # no compiler, no cmake, not even a shell
        python -m pip install --quiet --disable-pip-version-check torch
        # Alone and without an index, so that it is surely this wheel; then what it needs.
        python -m pip install --quiet --no-deps --no-index --find-links "$dist" graftlm
        python -m pip install --quiet --disable-pip-version-check "graftlm[demo]"
        python -c 'import sys, graftlm; print(sys.version.split()[0], graftlm.__file__)'
        graftlm doctor
        graftlm demo --steps 20 --out demo
    )
    rm -rf "$work"
done
