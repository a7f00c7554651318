#!/usr/bin/env bash
# install.sh VARIANT LOCK [TORCH_INDEX]: what the lock file names, and nothing else. Run by the Dockerfile.
#
# Lines with a digest are verified and come from pip's index. Lines without one are torch and torchvision of the CPU
# variant: they are asked of TORCH_INDEX, which is asked for nothing else. `pip check` then says if anything lacks.
set -euo pipefail

variant=$1 lock=$2 torch_index=${3:-}
pip=(python -m pip install --no-cache-dir --no-deps --only-binary :all:)
case $variant in
    cuda) ;;
    cpu)
        if [ -z "$torch_index" ]; then
            echo "VARIANT=cpu needs --build-arg TORCH_INDEX=URL, a package index with the CPU wheels of torch and" \
                "torchvision; or build with VARIANT=cuda, which runs without GPUs, too, and is larger" >&2
            exit 2
        fi
        "${pip[@]}" --index-url "$torch_index" -r <(grep -E '^(torch|torchvision)==[^ ]+$' "$lock")
        ;;
    *)
        echo "VARIANT is '$variant', expected cpu or cuda" >&2
        exit 2
        ;;
esac
"${pip[@]}" --require-hashes -r <(grep -E '^[a-z0-9-]+==[^ ]+ --hash=sha256:[0-9a-f]{64}$' "$lock")
python -m pip check
