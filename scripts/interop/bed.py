"""The two ends, what is between them, and Greyhound running at one of them.

    A host 10.1.0.2 ─ lan A router wan 192.0.2.1 ─ toA underlay toB ─ 198.51.100.1 eth0 B router lan ─ B host 10.2.0.2

The underlay is one link with a router on it, so that multicast passes and unicast is routed.
"""

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field, replace

from places import Failed, Namespace, Place, boot, card
from tunnels import BRIDGE, DEVICE, WAN

# Of a TCP connection each way: enough to tell the paths apart. A virtual machine without KVM takes some time for it.
BYTES = 3_000_000
UNDERLAY = "transit"
MAC_B = "02:00:00:00:b0:01"


@dataclass
class End:
    """One end of the tunnel: its router and the host behind it, their addresses by family, and its port of the underlay.

    `behind` is the host's address in its own network, `joined` the one in a network of both hosts; `inner` the one in use.
    """

    name: str
    router: Place
    host: Place
    outer: dict
    behind: dict
    joined: dict
    tunnel: dict
    net: dict
    port: str
    wan: str
    files: str
    inner: dict = field(default_factory=dict)
    mac: str = ""
    host_mac: str = ""
    tunnel_mac: str = ""
    digest: str = ""
    # The tunnel device's, and what a packet may have that goes through whole.
    mtu: int = 0
    whole: int = 0
    sequence: int = 0
    other: "End" = field(default=None, repr=False)
    # The same router once more, as if it were another: for tunnels to several.
    second: "End" = field(default=None, repr=False)

    def gateway(self, family):
        return self.behind[family][:-1] + "1"

    def lan(self):
        """A shell command that gives the router its addresses towards the host."""
        return f"ip addr add {self.gateway(4)}/24 dev lan; ip addr add {self.gateway(6)}/64 dev lan nodad"


class Bed:
    def __init__(self, options):
        self.name, self.dir, self.greyhound = options.name, options.dir, options.greyhound
        self.machine = self.process = None
        self.port, self.mtu = 5000, WAN
        os.symlink(f"{options.cache}/busybox/bin/busybox", f"{self.dir}/busybox")
        if options.peer == "guest":
            self.machine, peer = boot(self.dir, options.cache, card("toB", MAC_B))
            peer.must("ip netns add far")
            far, far_name, files = peer.inside("far"), "far", "/tmp/b"
        else:
            far_name, files = f"{self.name}-far", f"{self.dir}/b"
            peer, far = Namespace(f"{self.name}-peer"), Namespace(far_name)
        self.a = End("Greyhound", Namespace(f"{self.name}-router"), Namespace(f"{self.name}-host"),
                     {4: "192.0.2.1", 6: "2001:db8:a::1"}, {4: "10.1.0.2", 6: "fd00:1::2"}, {4: "10.5.0.1", 6: "fd00:5::1"},
                     {4: "172.16.0.1", 6: "fd00:172::1"}, {4: "10.1.0.0/24", 6: "fd00:1::/64"}, "toA", "wan", f"{self.dir}/a")
        self.b = End("the kernel", peer, far,
                     {4: "198.51.100.1", 6: "2001:db8:b::1"}, {4: "10.2.0.2", 6: "fd00:2::2"}, {4: "10.5.0.2", 6: "fd00:5::2"},
                     {4: "172.16.0.2", 6: "fd00:172::2"}, {4: "10.2.0.0/24", 6: "fd00:2::/64"}, "toB", "eth0", files)
        self.a.other, self.b.other = self.b, self.a
        self.b.second = replace(self.b, outer={4: "198.51.100.3", 6: "2001:db8:b::3"}, tunnel={4: "172.16.0.3", 6: "fd00:172::3"})
        self.underlay = Namespace(f"{self.name}-underlay")
        peer.must(f"ip link add lan type veth peer name eth0 netns {far_name}")
        self.build()

    def build(self):
        """Addresses and routes. No rate limit on ICMP errors: each of them is waited for."""
        for router in (self.a.router, self.b.router, self.underlay):
            router.must("for f in ipv4/ip_forward ipv6/conf/all/forwarding; do echo 1 >/proc/sys/net/$f; done;"
                        "for f in ipv4/icmp_ratelimit ipv6/icmp/ratelimit ipv4/icmp_echo_ignore_broadcasts ipv4/conf/all/send_redirects"
                        " ipv4/conf/default/send_redirects ipv4/conf/all/rp_filter ipv4/conf/default/rp_filter;"
                        " do echo 0 >/proc/sys/net/$f; done")
        for host in (self.a.host, self.b.host):
            host.must("echo 0 >/proc/sys/net/ipv4/icmp_echo_ignore_broadcasts")
        self.underlay.must(f"ip link add {UNDERLAY} type bridge mcast_snooping 0; ip link set {UNDERLAY} up;"
                           f"for p in toA toB; do ip link set $p master {UNDERLAY}; done")
        for end in (self.a, self.b):
            addresses = "".join(f"ip addr add {host[4]}/24 dev eth0; ip addr add {host[6]}/64 dev eth0 nodad;"
                                for host in (end.behind, end.joined))
            end.host.must(f"mkdir -p {end.files}; ip link set lo up; ip link set eth0 up; {addresses}"
                          f"ip route add default via {end.gateway(4)}; ip -6 route add default via {end.gateway(6)}")
            self.underlay.must(f"ip addr add {end.outer[4][:-1]}2/29 dev {UNDERLAY};"
                               f"ip addr add {end.outer[6][:-1]}2/64 dev {UNDERLAY} nodad")
            outer = [each.outer for each in (end, end.second) if each]
            end.router.must(f"ip link set lan up; ip link set {end.wan} up; {end.lan()};"
                            + "".join(f"ip addr add {each[4]}/29 dev {end.wan}; ip addr add {each[6]}/64 dev {end.wan} nodad;"
                                      for each in outer)
                            + f"ip route add default via {end.outer[4][:-1]}2; ip -6 route add default via {end.outer[6][:-1]}2;"
                            f"ping -c 1 -W 5 {end.outer[4][:-1]}2")
            _, end.mac = end.router.link(end.wan)
            _, end.host_mac = end.host.link("eth0")
            end.digest = end.host.must(f"head -c {BYTES} /dev/urandom >{end.files}/sent; md5sum <{end.files}/sent", 60)

    # --- The tunnel

    def configuration(self, tunnel, xdp):
        path = f"{self.dir}/greyhound.toml"
        router = ['underlay = ["wan"]', 'overlay = ["lan"]', f'xdp = "{xdp}"', f'control = "{self.dir}/control.sock"']
        with open(path, "w") as file:
            file.write(tunnel.configuration(self.a, router))
        return path

    def refusal(self, tunnel, xdp):
        """Greyhound's word, when this version does not have the tunnel."""
        path = self.configuration(tunnel, xdp)
        _, output = self.a.router.run(f"{self.greyhound} check --config {path}")
        return next((line.strip() for line in output.splitlines() if "not available in this version" in line), None)

    def next_port(self):
        """Nobody's yet: whatever went wrong before does not matter."""
        self.port += 1
        return self.port

    def up(self, tunnel, xdp):
        """Makes the tunnel at both ends, and waits until a packet has passed."""
        self.set_mtu(tunnel.wan)
        if tunnel.bridge:
            self.a.router.must("ip addr flush dev lan")
        self.start(self.configuration(tunnel, xdp))
        for end, commands in ((self.a, []), (self.b, tunnel.commands(self.b))):
            end.sequence = 0x4000_0000
            end.inner = end.joined if tunnel.bridge else end.behind
            commands = [*commands, *tunnel.routes(end, end is self.b)]
            end.mtu, end.tunnel_mac = end.router.link(DEVICE, "; ".join(commands) or "true")
        self.a.whole = self.b.whole = min(self.a.mtu, self.b.mtu)
        if tunnel.bridge:
            # No router between them tells the hosts.
            for end in (self.a, self.b):
                end.host.must(f"ip link set eth0 mtu {end.whole}")
        for version in tunnel.payloads:
            self.a.host.until(f"ping -n -c 1 -W 1 {self.b.inner[version]}")

    def set_mtu(self, mtu):
        """Of every device but the tunnel's."""
        if mtu == self.mtu:
            return
        self.mtu = mtu
        for end in (self.a, self.b):
            end.host.must(f"ip link set eth0 mtu {mtu}")
            end.router.must(f"ip link set lan mtu {mtu}; ip link set {end.wan} mtu {mtu}")
            self.underlay.must(f"ip link set {end.port} mtu {mtu}")
        self.underlay.must(f"ip link set {UNDERLAY} mtu {mtu}")

    def start(self, config):
        with open(f"{self.dir}/greyhound.log", "wb") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", f"{self.name}-router", self.greyhound, "run", "--config", config],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"Greyhound does not start: {self.last_words()}")
            time.sleep(0.05)

    def stats(self):
        status, output = self.a.router.run(f"{self.greyhound} stats --json --socket {self.dir}/control.sock")
        return None if status else json.loads(output)

    def ready(self):
        stats = self.stats()
        return bool(stats) and all(tunnel["state"] == "up" for tunnel in stats["tunnels"])

    def last_words(self):
        with open(f"{self.dir}/greyhound.log", errors="replace") as log:
            return " / ".join(log.read().splitlines()[-3:])

    def down(self):
        """Takes the tunnel away at both ends; what they have learned about the path goes too."""
        forget = "ip route flush cache; ip -6 route flush cache"
        self.b.router.run(f"ip link del {DEVICE}; ip link del {DEVICE}b; ethtool -K {self.b.wan} gro on; {forget}")
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None
        for place in (self.a.router, self.a.host, self.b.host):
            place.run(forget)
        if self.a.inner is self.a.joined:
            self.b.router.run(f"ip link del {BRIDGE}")
            for end in (self.a, self.b):
                # Down and up: for a link-local address, without which a router finds no neighbour.
                end.router.run(f"ip link set lan down; ip link set lan up; {end.lan()}")
                end.host.run(f"ip link set eth0 mtu {self.mtu}")

    def close(self):
        if self.process:
            self.down()
        if self.machine:
            self.machine.kill()
            self.machine.wait()
