#!/bin/sh
# Makes a small OCI image archive from Debian's busybox-static.
# usage: mkimage.sh OUT.tar REFERENCE        needs: umoci, busybox
set -eu
out=$(realpath -m "$1") name=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umoci init --layout "$work/oci"
umoci new --image "$work/oci:latest"
umoci unpack --image "$work/oci:latest" "$work/bundle" >/dev/null
root=$work/bundle/rootfs
mkdir -p "$root/bin" "$root/etc" "$root/tmp" "$root/root" "$root/proc" "$root/sys" "$root/dev"
chmod 1777 "$root/tmp"
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in $("$root/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
printf 'root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\nuser:x:1000:\n' >"$root/etc/group"
umoci repack --image "$work/oci:latest" "$work/bundle" >/dev/null
umoci config --image "$work/oci:latest" --config.env PATH=/bin --config.cmd /bin/sh --os linux \
    --architecture "$(dpkg --print-architecture)"
umoci gc --layout "$work/oci" >/dev/null
# umoci knows tags only; importers read the whole name from this annotation.
sed -i "s|\"annotations\":{|&\"io.containerd.image.name\":\"$name\",|" "$work/oci/index.json"
grep -q "$name" "$work/oci/index.json"
tar -C "$work/oci" -cf "$out" .
