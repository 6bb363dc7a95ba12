#!/bin/sh
# Build the image without a Docker daemon and run it the way a strict cluster would: read-only, no capabilities, any uid.
#
# Needs root and: apt-get install buildah podman runc debootstrap
# The base image is a stand-in, a Debian made by debootstrap, so this proves our Dockerfile's steps and not the real
# slim image. With PULL=missing the real one is fetched, from where registries.conf says.
#
#   PYTHON_VERSION  of the base; the stand-in is always Debian bookworm's 3.11
#   ROOTFS          a folder with the stand-in's files, to be made if it is missing and kept
#   IMAGE_WORK      where images are stored; default: a temporary folder, removed at the end
#   BUILD_OPTIONS   more options for buildah, such as --volume for a certificate bundle
set -eu

cd "$(dirname "$0")/.."
for tool in buildah podman runc curl; do
    command -v "$tool" >/dev/null || { echo "image_test: $tool is missing: apt-get install buildah podman runc curl" >&2; exit 1; }
done

pull=${PULL:-never}
python_version=${PYTHON_VERSION:-3.11}
work=${IMAGE_WORK:-$(mktemp -d)}
container=lookout-image-test-$$
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

# The vfs driver and an own folder: nothing is mounted, and images of the machine's owner stay as they are.
mkdir -p "$work/run"
printf '[storage]\ndriver = "vfs"\ngraphroot = "%s/storage"\nrunroot = "%s/run"\n' "$work" "$work" >"$work/storage.conf"
export CONTAINERS_STORAGE_CONF="$work/storage.conf"

# runc and the limits: for machines with hybrid cgroups that may not raise limits, as CI runners often are.
podman() {
    command podman --runtime runc --cgroup-manager=cgroupfs "$@"
}

clean_up() {
    podman rm --force --time 0 "$container" >/dev/null 2>&1 || true
    [ -n "${IMAGE_WORK:-}" ] || rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 1' INT TERM

fail() {
    echo "image_test: $1" >&2
    podman logs "$container" >&2 || true
    exit 1
}

if [ "$pull" = never ] && ! podman image exists "localhost/python:$python_version-slim"; then
    rootfs=${ROOTFS:-$work/rootfs}
    if [ ! -d "$rootfs/usr" ]; then
        echo "== base: a stand-in by debootstrap (2 minutes)"
        debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip bookworm "$rootfs" >"$work/debootstrap.log"
    fi
    ln -sf python3 "$rootfs/usr/bin/python"
    tar -C "$rootfs" -c . | podman import - "localhost/python:$python_version-slim" >/dev/null
fi

echo "== build"
# shellcheck disable=SC2086 # options are words
buildah build --isolation chroot --network host --pull="$pull" --format docker --quiet \
    --build-arg "PYTHON_VERSION=$python_version" ${BUILD_OPTIONS:-} --tag lookout:test .

echo "== run: read-only, no capabilities, uid 12345"
podman run --detach --name "$container" --network host --read-only --read-only-tmpfs=false --cap-drop=all --user 12345:0 \
    --security-opt no-new-privileges --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 \
    --env "LOOKOUT_WEB_LISTEN_ADDRESS=127.0.0.1:$port" --env CELERY_BROKER_URL=redis://127.0.0.1:1/0 lookout:test >/dev/null

tries=0
until curl --silent --fail "http://127.0.0.1:$port/-/healthy" >/dev/null; do
    tries=$((tries + 1))
    [ "$tries" -lt 60 ] || fail "/-/healthy does not answer within 30 s"
    sleep 0.5
done
curl --silent --fail "http://127.0.0.1:$port/metrics" | grep '^celery_exporter_build_info' || fail "/metrics lacks celery_exporter_build_info"

# podman schedules health checks by systemd, which may be absent: the image's own command is run by hand.
podman healthcheck run "$container" >/dev/null || fail "the image's HEALTHCHECK fails"
[ "$(podman exec "$container" id -u)" = 12345 ] || fail "it does not run as the uid that was asked for"
[ "$(podman image inspect --format '{{.User}}' lookout:test)" = 65532:65532 ] || fail "the image's own user is root"
podman exec "$container" sh -c 'touch /opt/celery-lookout/x /x 2>/dev/null' && fail "the file system is not read-only"

echo "== stop: SIGTERM reaches the program"
began=$(date +%s)
podman stop --time 10 "$container" >/dev/null
took=$(($(date +%s) - began))
code=$(podman inspect --format '{{.State.ExitCode}}' "$container")
[ "$code" = 0 ] && [ "$took" -lt 8 ] || fail "exit code $code after $took s"

size=$(podman image inspect --format '{{.Size}}' lookout:test)
base=$(podman image inspect --format '{{.Size}}' "$(podman images --quiet --filter reference="*python:$python_version-slim" | head -n 1)")
echo "ok: built and ran (base image: $([ "$pull" = never ] && echo 'stand-in by debootstrap' || echo real)); $(((size - base) / 1000000)) MB on top of the base"
