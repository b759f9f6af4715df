"""Open vSwitch's userspace datapath, run by hand in the router's namespace: nothing of the system's is touched."""

from __future__ import annotations

import contextlib
import re
import shutil

from bed import ROUTER_CPU, Bed, Trouble, end, run, wait_until
from contestants import ENCAPSULATE, Contestant, resident, tunnel_ends

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"


class OpenVSwitch(Contestant):
    key, title = "ovs", "Open vSwitch, userspace, GRE"
    cores = f"PMD thread on CPU {ROUTER_CPU}, polling"

    def __init__(self, bed: Bed):
        super().__init__(bed)
        self.directory = bed.directory / "ovs"
        self.daemon = shutil.which("ovs-vswitchd")
        self.netdev = "afxdp" if self.daemon and "libxdp" in run("ldd", self.daemon, check=False) else "af_packet"
        if self.daemon:
            version = re.search(r"[0-9.]+[0-9]", run(self.daemon, "--version")).group()
            self.title = f"Open vSwitch {version}, userspace, {'AF_XDP' if self.netdev == 'afxdp' else 'af_packet'}"
        self.database = None
        self.moved: list[str] = []

    def missing(self) -> str | None:
        return None if self.daemon else "not installed (apt-get install openvswitch-switch)"

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def vsctl(self, *argv: str) -> str:
        return run("ovs-vsctl", f"--db=unix:{self.path('db.sock')}", "--timeout=10", *argv)

    def appctl(self, *argv: str) -> str:
        return run("ovs-appctl", "-t", self.path("vswitchd.ctl"), *argv)

    def start(self, direction: str) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir()
        run("ovsdb-tool", "create", self.path("conf.db"), SCHEMA)
        self.database = self.bed.start(
            "router", "ovsdb-server", self.path("conf.db"), f"--remote=punix:{self.path('db.sock')}",
            f"--unixctl={self.path('ovsdb.ctl')}", name="ovsdb")
        wait_until(lambda: (self.directory / "db.sock").exists(), "Open vSwitch's database is up")
        self.vsctl("--no-wait", "init", "--", "set", "Open_vSwitch", ".", f"other_config:pmd-cpu-mask={1 << ROUTER_CPU:#x}")
        self.process = self.bed.start(
            "router", "env", f"OVS_RUNDIR={self.directory}", self.daemon, f"unix:{self.path('db.sock')}",
            f"--unixctl={self.path('vswitchd.ctl')}", f"--log-file={self.path('log')}", name="vswitchd")
        wait_until(lambda: self.dies() or (self.directory / "vswitchd.ctl").exists(), "Open vSwitch is up")
        if self.dies():
            raise Trouble(f"Open vSwitch did not come up: {self.bed.said('vswitchd')}")
        self.bridges(direction)

    def bridges(self, direction: str) -> None:
        local, remote = tunnel_ends(direction)
        into = direction == ENCAPSULATE
        underlay, overlay = (self.outside, self.inside) if into else (self.inside, self.outside)
        mac = self.bed.mac("out" if into else "in")
        self.vsctl("add-br", "br-phy", "--", "set", "bridge", "br-phy", "datapath_type=netdev", f"other-config:hwaddr={mac}",
                   "fail-mode=secure")
        self.vsctl("add-br", "br-int", "--", "set", "bridge", "br-int", "datapath_type=netdev", "fail-mode=secure")
        self.port("br-phy", underlay)
        self.port("br-int", overlay)
        self.vsctl("add-port", "br-int", "gre1", "--", "set", "interface", "gre1", "type=gre", "ofport_request=2",
                   f"options:local_ip={local}", f"options:remote_ip={remote}", "options:packet_type=legacy_l3")
        # The route to the tunnel's far end has to lead to the bridge.
        self.bed.ip("router", "address", "del", f"{local}/24", "dev", underlay)
        self.moved = [local, underlay]
        self.bed.ip("router", "address", "add", f"{local}/24", "dev", "br-phy")
        self.bed.ip("router", "link", "set", "br-phy", "up")
        if into:
            self.appctl("tnl/neigh/set", "br-phy", remote, self.bed.mac("sink"))
        self.flow("br-phy", "in_port=LOCAL,actions=output:1")
        self.flow("br-phy", "in_port=1,actions=LOCAL")
        if into:
            self.flow("br-int", "in_port=1,ip,actions=dec_ttl,output:2")
        else:
            self.flow("br-int", f"in_port=2,ip,actions=dec_ttl,mod_dl_src:{self.bed.mac('out')},mod_dl_dst:{self.bed.mac('sink')},output:1")
        wait_until(lambda: f"{remote.rsplit('.', 1)[0]}.0/24" in self.appctl("ovs/route/show"), "Open vSwitch knows the route")

    def port(self, bridge: str, device: str) -> None:
        kind = ["type=afxdp", "options:n_rxq=1", "options:xdp-mode=native"] if self.netdev == "afxdp" else []
        self.vsctl("add-port", bridge, device, "--", "set", "interface", device, "ofport_request=1", *kind)
        error = self.vsctl("get", "interface", device, "error").strip()
        if error not in ("[]", '""'):
            raise Trouble(f"Open vSwitch: {device}: {error}")

    def flow(self, bridge: str, flow: str) -> None:
        run("ovs-ofctl", "add-flow", f"unix:{self.path(bridge + '.mgmt')}", flow)

    def stop(self) -> None:
        if self.process and not self.dies():
            # Its bridges' devices outlive the process otherwise.
            run("ovs-appctl", "-T", "5", "-t", self.path("vswitchd.ctl"), "exit", "--cleanup", check=False)
            with contextlib.suppress(Trouble):
                wait_until(self.dies, "Open vSwitch ends")
        super().stop()
        if self.database:
            end(self.database)
            self.database = None
        if self.moved:
            local, underlay = self.moved
            self.bed.ip("router", "address", "add", f"{local}/24", "dev", underlay, check=False)
            self.moved = []
        for device in ("in", "out"):
            self.bed.ip("router", "link", "set", "dev", self.bed.device[device], "xdp", "off", check=False)

    def facts(self, direction: str) -> dict:
        if self.netdev == "afxdp":
            self.native("in", "out")
        return {"mode": self.netdev, "rss_kib": resident(self.process.pid)}
