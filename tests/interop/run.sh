#!/bin/sh
# run.sh SAFETENSORS_COPY [TAUNET]: exchanges files with the Python package safetensors. Makes a virtual environment in
# build/interop-venv on first use, with packages from PyPI; needs python3-venv. Ends with "N passed, N failed".
set -u
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: tests/interop/run.sh SAFETENSORS_COPY [TAUNET]" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
venv=$here/../../build/interop-venv
python=$venv/bin/python

broken() {
    echo "error: $1" >&2
    echo "0 passed, 1 failed"
    exit 1
}

if ! "$python" -c 'import safetensors.numpy, numpy, packaging' 2>/dev/null; then
    rm -rf "$venv"
    mkdir -p "$(dirname "$venv")"
    /usr/bin/python3 -m venv "$venv" || broken "cannot make a virtual environment in $venv; install python3-venv"
    "$python" -m pip install --quiet --disable-pip-version-check safetensors numpy packaging ||
        broken "cannot install safetensors, numpy and packaging from PyPI into $venv"
fi
exec "$python" "$here/test_interop.py" "$@"
