#!/usr/bin/env bash
# Writes requirements-cuda.lock and requirements-cpu.lock beside this file: what pip finds today for pyproject.toml, with
# digests. Linux x86-64 and the Python of the image only, since a lock is of one platform. `make lock` runs it; look at
# the difference, build, and run smoke.sh before committing.
set -euo pipefail
cd "$(dirname "$0")"

python=${PYTHON:-python3.11}
image=$(sed -n 's/^ARG PYTHON=//p' Dockerfile)
here=$("$python" -c 'import platform, sys; print("%d.%d" % sys.version_info[:2], platform.system(), platform.machine())')
if [ "$here" != "$image Linux x86_64" ]; then
    echo "The lock is for Python $image on Linux x86_64, but $python is $here; name another by PYTHON=..." >&2
    exit 2
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"

resolve() { # REPORT PIP-ARGUMENT...: "name==version --hash=sha256:..." a line, of what pip would install
    "$work/venv/bin/pip" install --quiet --dry-run --ignore-installed --only-binary :all: --report "$work/$1" "${@:2}"
    "$python" - "$work/$1" <<'PYTHON'
import json, re, sys
for item in json.load(open(sys.argv[1]))["install"]:
    name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
    if name != "shoal":
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
        print(f"{name}=={item['metadata']['version']} --hash=sha256:{digest}")
PYTHON
}

resolve cuda.json "../..[efficientnet]" | LC_ALL=C sort >"$work/cuda"
faiss=$(sed -n 's/^faiss-gpu==\([^ ]*\) .*/\1/p' "$work/cuda")
{
    grep -vE '^(cuda-|faiss-gpu=|nvidia-|triton=)' "$work/cuda" | sed -E 's/^(torch|torchvision)(==[^ ]*) .*/\1\2/'
    resolve faiss.json --no-deps "faiss-cpu==$faiss"
} | LC_ALL=C sort >"$work/cpu"

{
    cat <<TEXT
# What the CUDA image installs: shoal's dependencies and theirs, resolved by pip on $(date -u +%F) for Python $image on
# Linux x86-64. Made by lock.sh (\`make lock\`); not edited by hand. Every line has the digest of its wheel.
TEXT
    cat "$work/cuda"
} >requirements-cuda.lock
{
    cat <<TEXT
# What the CPU image installs. Made by lock.sh (\`make lock\`) from requirements-cuda.lock, not resolved on its own: the
# same versions without the CUDA libraries and triton, and faiss-cpu for faiss-gpu. torch and torchvision have no digest:
# their CPU wheels are not on the index this was made from, where Linux x86-64 has CUDA builds only, but on one that the
# builder names (TORCH_INDEX, see the Dockerfile). All other lines have the digest of their wheel.
TEXT
    cat "$work/cpu"
} >requirements-cpu.lock
