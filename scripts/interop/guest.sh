# shellcheck shell=bash
# What the virtual machine is made of: Debian's packages, unpacked into $INTEROP_CACHE by way of $DIR; nothing is installed.
# Sourced, never run.

# All that a tunnel endpoint with a network behind it needs; what these depend on comes along.
GUEST_MODULES=(virtio_pci virtio_net virtio_console veth ip_gre ip6_gre ipip sit ip6_tunnel fou fou6 bridge)
# Not busybox's: its ip knows no tunnel types, its ping no DF, and its sh would prefer both to these.
GUEST_PROGRAMS=(dash ip ping ethtool)

# Unpacks packages "${@:2}" into directory $1 of the cache, once.
unpack_packages() {
    local into=$INTEROP_CACHE/$1 deb work
    shift
    [[ ! -e $into/.complete ]] || return 0
    rm -rf "$into"
    mkdir -p "$into"
    work=$(mktemp -d "$DIR/fetch.XXXXXX")
    note "fetching $*"
    # Package lists may be older than what they speak of.
    if ! download "$work" "$@"; then
        apt_update || true
        download "$work" "$@" || cannot "apt-get cannot download $*"
    fi
    for deb in "$work"/*.deb; do nice dpkg-deb -x "$deb" "$into"; done
    rm -rf "$work"
    touch "$into/.complete"
}

# Into directory $1. What apt says is shown when it fails: a warning that root needed no sandbox comes also when all is well.
download() {
    (cd "$1" && timeout 200 apt-get download -qq "${@:2}") >"$DIR/apt" 2>&1 || {
        quote <"$DIR/apt"
        return 1
    }
}

# The package with the image and the modules that meta package $1 stands for.
kernel_image() {
    apt-cache depends "$1" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1
}

# nc, and the guest's user space. A host that is its own peer uses it too, so that both speak the same nc.
fetch_busybox() {
    command -v apt-get >/dev/null || cannot "no apt-get here: what it takes is fetched as Debian packages"
    unpack_packages busybox busybox-static
    BUSYBOX=$INTEROP_CACHE/busybox/bin/busybox
    [[ -x $BUSYBOX ]] || BUSYBOX=$INTEROP_CACHE/busybox/usr/bin/busybox
}

fetch_guest() {
    local meta=${INTEROP_KERNEL:-linux-image-cloud-amd64} image packages
    [[ $(uname -m) == x86_64 ]] || cannot "the virtual machine is one for x86_64"
    image=$(kernel_image "$meta")
    [[ -n $image ]] || { apt_update || true && image=$(kernel_image "$meta"); }
    [[ -n $image ]] || cannot "no package $meta here (INTEROP_KERNEL may name another)"
    unpack_packages "$image" "$image"
    KERNEL=${image#linux-image-}
    KERNEL_TREE=$INTEROP_CACHE/$image
    if [[ ! -e $INTEROP_CACHE/$image/lib/modules/$KERNEL/modules.dep ]]; then
        [[ -d $KERNEL_TREE/lib/modules ]] || ln -s usr/lib "$KERNEL_TREE/lib"
        find "$KERNEL_TREE/lib/modules/" -name '*.ko.xz' -exec xz -d {} +
        "$BUSYBOX" depmod -b "$KERNEL_TREE" "$KERNEL"
    fi
    ln -sfn "$KERNEL_TREE/boot/vmlinuz-$KERNEL" "$DIR/vmlinuz"
    command -v qemu-system-x86_64 >/dev/null && return
    # Installed, it could remove a newer QEMU's tools; unpacked, it disturbs nothing.
    if [[ ! -e $INTEROP_CACHE/qemu/.complete ]]; then
        mapfile -t packages < <(apt-get install -s --no-install-recommends qemu-system-x86 | awk '/^Inst/ {print $2}')
        [[ ${#packages[@]} -gt 0 ]] || cannot "no package qemu-system-x86 here"
        unpack_packages qemu "${packages[@]}"
    fi
}

# The paths of modules "$@" below /lib/modules, each after what it depends on.
modules_in_order() {
    awk -v wanted="$*" '
        {sub(":", "", $1); file = $1; name = file; sub(".*/", "", name); sub("[.]ko.*", "", name); gsub("-", "_", name)
         path[name] = file; line[file] = $0}
        function visit(file,   parts, n, i) {
            if (done[file]++) return
            n = split(line[file], parts, " ")
            for (i = 2; i <= n; i++) visit(parts[i])
            print file
        }
        END {n = split(wanted, names, " "); for (i = 1; i <= n; i++) if (names[i] in path) visit(path[names[i]])}
    ' "$KERNEL_TREE/lib/modules/$KERNEL/modules.dep"
}

# Writes to $1 the file system that the guest runs in; what is in directory $2 comes along.
build_initramfs() {
    local root program path library module
    root=$(mktemp -d "$DIR/root.XXXXXX")
    mkdir -p "$root"/{bin,sbin,proc,sys,dev,run/netns,tmp,modules}
    cp "$BUSYBOX" "$root/bin/busybox"
    cp "$ROOT/scripts/interop/init" "$root/init"
    for program in "${GUEST_PROGRAMS[@]}"; do
        path=$(readlink -f "$(command -v "$program")")
        cp "$path" "$root/sbin/$program"
        while read -r library; do
            mkdir -p "$root${library%/*}"
            cp -L "$library" "$root$library"
        done < <(ldd "$path" | grep -o '/[^ ]*')
    done
    ln -s dash "$root/sbin/sh"
    modules_in_order "${GUEST_MODULES[@]}" >"$root/modules/order"
    while read -r module; do
        cp "$KERNEL_TREE/lib/modules/$KERNEL/$module" "$root/modules/"
    done <"$root/modules/order"
    [[ -z ${2:-} ]] || cp -a "$2/." "$root/"
    (cd "$root" && find . | "$BUSYBOX" cpio -o -H newc 2>/dev/null) >"$1"
    rm -rf "$root"
}
