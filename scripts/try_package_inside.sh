#!/usr/bin/env bash
# What try_package.sh does inside the clean root: the package's life.
set -euo pipefail

failed() {
    printf '    FAIL  line %s: %s\n' "$1" "$2"
    [[ ! -s /tmp/log ]] || sed 's/^/    /' /tmp/log
    exit 1
}
trap 'failed "$LINENO" "$BASH_COMMAND"' ERR
done_with() { printf '    ok    %s\n' "$1"; }
quiet() { "$@" >/tmp/log 2>&1 </dev/null; }

# Until a command succeeds, at most ten seconds.
until_it_works() {
    local i
    for ((i = 0; i < 100; i++)); do
        ! "$@" >/tmp/log 2>&1 || return 0
        sleep 0.1
    done
    "$@"
}

export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin

quiet dpkg --install /first.deb
greyhound --version >/tmp/log
grep -q '^greyhound .*libbpf-sys .*libxdp-sys ' /tmp/log
for file in /usr/sbin/greyhound /etc/greyhound/greyhound.toml /lib/systemd/system/greyhound.service \
    /usr/share/bash-completion/completions/greyhound /usr/share/zsh/vendor-completions/_greyhound \
    /usr/share/fish/vendor_completions.d/greyhound.fish; do
    [[ -s $file || -s /usr$file ]]
done
[[ ! -e /etc/systemd/system/multi-user.target.wants/greyhound.service ]] # nobody is started with an example for a configuration
# Programs that the unit starts are where the package has put them.
sed -n 's/^Exec[A-Z][a-z]*=\([^ ]*\).*/\1/p' /lib/systemd/system/greyhound.service | while read -r program; do [[ -x $program ]]; done
done_with "installed"

# The example's own devices and addresses.
quiet ip link set lo up
for device in eth0:192.0.2.1/30 eth1:10.1.0.1/24; do
    quiet ip link add "${device%%:*}" numrxqueues 1 numtxqueues 1 type veth peer name "far-${device%%:*}" numrxqueues 1 numtxqueues 1
    quiet ip addr add "${device#*:}" dev "${device%%:*}"
    quiet ip link set "${device%%:*}" up
    quiet ip link set "far-${device%%:*}" up
done
quiet ip route add default via 192.0.2.2
echo 1 >/proc/sys/net/ipv4/ip_forward
quiet greyhound check
done_with "check accepts the example configuration"

quiet dpkg --audit
greyhound run 2>/tmp/router.log &
ROUTER=$!
until_it_works greyhound tunnel show gre1
ip route show 10.2.0.0/24 >/tmp/log
grep -q 'dev gre1' /tmp/log
greyhound stats >/tmp/log
grep -q eth0 /tmp/log
done_with "runs"

echo '# by the operator' >>/etc/greyhound/greyhound.toml
cp /etc/greyhound/greyhound.toml /tmp/mine.toml
quiet dpkg --install /second.deb
[[ $(dpkg-query -W -f '${Version}' greyhound) == *-2 ]]
cmp /etc/greyhound/greyhound.toml /tmp/mine.toml
kill -0 "$ROUTER"
quiet greyhound tunnel show gre1
done_with "upgraded: the configuration and the running router stay"

greyhound run --takeover 2>/tmp/second.log &
SECOND=$!
wait "$ROUTER"
quiet greyhound tunnel show gre1
kill -0 "$SECOND"
done_with "the upgraded one takes over"

kill -TERM "$SECOND"
wait "$SECOND"
[[ ! -e /sys/class/net/gre1 ]]
[[ ! -e /run/greyhound/control.sock ]]
done_with "ends and leaves nothing"

quiet dpkg --remove greyhound
[[ ! -e /usr/sbin/greyhound ]]
cmp /etc/greyhound/greyhound.toml /tmp/mine.toml
quiet dpkg --purge greyhound
left=$(find /etc /usr /var /lib -iname '*greyhound*' 2>/dev/null)
[[ -z $left ]] || failed "$LINENO" "left behind: $left"
done_with "removed and purged"

# Nothing but the program: no library, no shell.
mkdir /empty
cp /tarball/sbin/greyhound /empty/
chroot /empty /greyhound --version >/tmp/log
grep -q '^greyhound ' /tmp/log
/tarball/sbin/greyhound run --config /tarball/share/greyhound/greyhound.toml 2>/tmp/router.log &
ROUTER=$!
until_it_works /tarball/sbin/greyhound tunnel show gre1
kill -TERM "$ROUTER"
wait "$ROUTER"
for file in share/man/man8/greyhound.8 share/man/man5/greyhound.toml.5 share/bash-completion/completions/greyhound \
    lib/systemd/system/greyhound.service share/doc/greyhound/LICENSE-MIT share/doc/greyhound/troubleshooting.md; do
    [[ -s /tarball/$file ]]
done
grep -q '^ExecStart=/usr/local/sbin/greyhound ' /tarball/lib/systemd/system/greyhound.service
done_with "the tarball's program runs by itself"
