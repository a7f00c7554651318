#!/usr/bin/env bash
# smoke.sh IMAGE [docker|podman]: is this the image that the lock file describes, and does shoal work in it as it will have
# to: without network, without privileges, with a read-only root, and under a uid that the image has never heard of?
set -euo pipefail

image=${1:?expected: smoke.sh IMAGE [docker|podman]}
engine=${2:-docker}
run() { "$engine" run --rm --network none --cap-drop ALL --security-opt no-new-privileges "$@"; }
sealed() { # Ray writes to /tmp, and, unless it is given one, a token to the home folder
    run --read-only --tmpfs /tmp:mode=1777 --tmpfs /home/shoal:mode=1777 --shm-size 1g "$@"
}
check() { # WHAT COMMAND...
    if "${@:2}" >"$log" 2>&1; then
        echo "ok    $1"
    else
        echo "FAIL  $1"
        tail -n 20 "$log"
        failed=1
    fi
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=''

# shellcheck disable=SC2016 # expanded in the container
check "is not root, in group 0" run "$image" bash -c '[ "$(id -u):$(id -g)" = 1000:0 ]'
check "first process is tini" run "$image" grep -qx tini /proc/1/comm
check "ray and shoal are on the PATH of a login shell, as Ray's launcher has it" run "$image" bash -lc 'command -v ray shoal'
check "has what KubeRay's probes and Ray's launcher call" run "$image" bash -c 'command -v wget rsync ssh'
check "has the packages of the lock file, at its versions, and no others" run "$image" bash -c '
    diff <(sed -nE "s/^([a-z0-9-]+==[^ ]+).*/\1/p" /opt/shoal/requirements-*.lock | sort) \
        <(python -m pip list --format freeze | tr A-Z_. a-z-. | sed "s/+[a-z0-9.]*$//" | grep -vE "^(shoal|pip|wheel)==" | sort)'
check "has no credentials, and no file of the repository but its code" run "$image" bash -c '
    ! find / -xdev \( -name .git -o -name pip.conf -o -name .aws -o -name auth_token \) -print 2>/dev/null | grep .'
check "the demo, sealed, as uid 123456" sealed --user 123456:0 "$image" shoal demo --output /tmp/demo
check "Ray comes up with a token, sealed" sealed --env RAY_AUTH_MODE=token --env RAY_AUTH_TOKEN=0123456789abcdef0123456789abcdef \
    "$image" bash -c 'ray start --head && ray status && ray stop'
check "TERM interrupts it: exit code 130" bash -c "
    name=shoal-smoke-\$\$
    $engine run --detach --name \$name --network none $image shoal demo --output /tmp/demo
    sleep 20
    $engine stop --time 60 \$name
    code=\$($engine inspect --format '{{.State.ExitCode}}' \$name)
    $engine rm --force \$name
    [ \$code = 130 ]"

[ -z "$failed" ] || exit 1
