#!/bin/sh
# Makes a realistic image of eight layers, as two OCI layouts: OUT/gzip and OUT/zstd, tag "latest".
# The layers are a minimal Debian, then packages as `apt-get install` leaves them, then deletions and
# a change of modes. Needs the machine's Debian mirror; without it the layers are made from this
# machine's own /usr and OUT/source says so.
# usage: mklayers.sh OUT        needs: mmdebstrap, umoci, skopeo, root
set -eu
out=$(realpath -m "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umoci init --layout "$work/oci"
umoci new --image "$work/oci:latest"
umoci config --image "$work/oci:latest" --os linux --architecture "$(dpkg --print-architecture)" \
    --config.env PATH=/usr/sbin:/usr/bin:/sbin:/bin
umoci unpack --image "$work/oci:latest" "$work/bundle" >/dev/null
root=$work/bundle/rootfs

# What changed since the last call becomes one layer.
layer() {
    umoci repack --refresh-bundle --image "$work/oci:latest" "$work/bundle" >/dev/null
}

# Lists and archives of apt lie in a directory that becomes part of no layer.
apt() {
    mkdir -p "$work/apt/lists" "$work/apt/cache"
    mv "$work/apt" "$root/apt"
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get -qq -o Dir::State::Lists=/apt/lists \
        -o Dir::Cache=/apt/cache "$@" >/dev/null 2>&1
    mv "$root/apt" "$work/apt"
}

install_packages() {
    apt install -y --no-install-recommends "$@"
    layer
}

# Files of this machine, in the order of their names, up to so many MiB.
copy_files() {
    directory=$1 limit=$2 done=0
    find "$directory" -xdev -type f -size -32M 2>/dev/null | LC_ALL=C sort >"$work/list"
    while read -r file; do
        size=$(stat -c %s "$file")
        done=$((done + size))
        [ "$done" -le $((limit << 20)) ] || break
        printf '%s\n' "$file"
    done <"$work/list" | tar -C / -cf - --no-recursion -T - 2>/dev/null | tar -C "$root" -xf -
    layer
}

suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
if mmdebstrap --quiet --mode=root --variant=minbase "$suite" "$work/base" >"$work/log" 2>&1; then
    echo "mmdebstrap $suite" >"$work/source"
    cp -a "$work/base/." "$root/"
    layer
    apt update
    install_packages ca-certificates curl
    install_packages python3
    install_packages git
    install_packages vim less procps iproute2
    install_packages nginx-light
else
    echo "mklayers: no Debian mirror, layers are made from this machine's /usr:" >&2
    tail -n 3 "$work/log" >&2
    echo "files of this machine" >"$work/source"
    for part in /usr/lib/x86_64-linux-gnu:90 /usr/bin:40 /usr/share/doc:20 /usr/share/perl:20 \
        /usr/include:20 /usr/sbin:10; do
        copy_files "${part%:*}" "${part#*:}"
    done
fi
# Deletions, then changes of what is below.
rm -rf "$root/usr/share/locale" "$root/usr/share/doc/git" "$root/usr/share/perl/5.36"
layer
mkdir -p "$root/srv/app" "$root/etc"
echo 'bench' >"$root/etc/hostname"
[ ! -e "$root/usr/share/man" ] || chmod -R g+w "$root/usr/share/man"
layer
umoci gc --layout "$work/oci" >/dev/null
rm -rf "$out"
mkdir -p "$out"
mv "$work/oci" "$out/gzip"
skopeo --insecure-policy copy -q --dest-compress-format zstd --dest-compress \
    "oci:$out/gzip:latest" "oci:$out/zstd:latest"
mv "$work/source" "$out/source"
