"""Probes: an encapsulated echo request, put on the underlay as if from one end to the other, and what comes back.

The far host echoes TTL and DSCP anew but the request's TOS as it was: one vantage point shows both directions of an end.
"""

import ipaddress
import logging
import os
import time

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

from scapy.all import (GRE, ICMP, IP, ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, Ether, Raw, UDP, bind_layers, conf)  # noqa: E402

from tunnels import UDP_PORT  # noqa: E402

conf.ipv6_enabled = True
bind_layers(UDP, GRE, dport=UDP_PORT)
GRE_VERSIONS = {4: 0x0800, 6: 0x86DD}


class Reply:
    """An end's answer: the delivery header and what it carries."""

    def __init__(self, frame):
        layers = [layer for layer in walk(frame) if isinstance(layer, (IP, IPv6))]
        self.outer, self.inner = layers[0], layers[-1]
        self.gre = frame.getlayer(GRE)
        self.options = frame.getlayer(IPv6ExtHdrDestOpt)

    def gre_is(self, key, csum, seq, nvgre):
        """Whether the GRE header carries these, and nothing else."""
        gre, key = self.gre, None if key is None else int(key)
        sent = gre.key if gre.key_present else None
        if nvgre and sent is not None:
            sent &= ~0xFF
        present = (sent, bool(gre.chksum_present), bool(gre.seqnum_present))
        rest = (gre.routing_present, gre.strict_route_source, gre.recursion_control, gre.flags, gre.version)
        return present == (key, bool(csum), bool(seq)) and not any(rest)

    def header(self, tunnel):
        """What of the delivery header both ends have to agree about."""
        outer, label = self.outer, tunnel.options.get("flowlabel")
        seen = {"ttl": hops(outer), "tos": traffic_class(outer)}
        if isinstance(outer, IP):
            seen["df"], seen["options"] = bool(outer.flags & 2), outer.ihl > 5
        else:
            seen["encaplimit"] = bytes(self.options)[:8].hex() if self.options else None
            if label == "inherit" and isinstance(self.inner, IPv6) and self.inner.fl:
                seen["flow label"] = "copied" if outer.fl == self.inner.fl else "another"
            elif label and label != "inherit":
                seen["flow label"] = outer.fl
        if "encap" in tunnel.options:
            udp, port = outer[UDP], tunnel.options.get("encap-sport")
            seen["source port"] = udp.sport if port else "high" if udp.sport >= 32768 else "low"
            seen["UDP checksum"] = bool(udp.chksum)
        return seen


def walk(packet):
    while packet and packet.name != "NoPayload":
        yield packet
        packet = packet.payload


def traffic_class(header):
    return header.tos if isinstance(header, IP) else header.tc


def hops(header):
    return header.ttl if isinstance(header, IP) else header.hlim


def group_mac(group):
    """RFC 1112 section 6.4, RFC 2464 section 7."""
    packed = ipaddress.ip_address(group).packed
    mac = b"\x33\x33" + packed[12:] if len(packed) == 16 else bytes([1, 0, 0x5E, packed[1] & 0x7F]) + packed[2:]
    return mac.hex(":")


class Prober:
    """Sends probes to one end of a bed's tunnel and hears its answers."""

    def __init__(self, bed, tunnel, end):
        self.bed, self.tunnel, self.end = bed, tunnel, end
        self.socket = conf.L2socket(iface=end.port)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def sequence(self):
        self.end.sequence += 1
        return self.end.sequence

    def request(self, token, inner_tos):
        """An echo request from the other end's host to this end's host, as the other end's router forwards it."""
        source, target, version = self.end.other.inner, self.end.inner, self.tunnel.payload
        if version == 4:
            packet = IP(src=source[4], dst=target[4], tos=inner_tos, ttl=63) / ICMP(id=7) / Raw(token)
        else:
            packet = IPv6(src=source[6], dst=target[6], tc=inner_tos, hlim=63) / ICMPv6EchoRequest(id=7, data=token)
        if self.tunnel.kind.layer2:
            target = self.end.host_mac if self.tunnel.bridge else self.end.tunnel_mac
            packet = Ether(src=self.end.other.host_mac, dst=target) / packet
        return packet

    def expects(self, name):
        """What this end wants of `key`, `csum` or `seq`."""
        return self.tunnel.expects(name, self.end is self.bed.b)

    def frame(self, token, inner_tos=0, outer_tos=0, sequence=None, **twist):
        """`twist` replaces fields of the GRE header."""
        kind, version = self.tunnel.kind, self.tunnel.payload
        inner = self.request(token, inner_tos)
        protocol = {4: 4, 6: 41}[version]
        if kind.gre:
            protocol = 47
            fields = {"proto": 0x6558 if kind.layer2 else GRE_VERSIONS[version]}
            if self.expects("key"):
                fields |= {"key_present": 1, "key": int(self.expects("key"))}
            if self.expects("csum"):
                fields["chksum_present"] = 1
            if self.expects("seq"):
                fields |= {"seqnum_present": 1, "seqence_number": self.sequence() if sequence is None else sequence}
            inner = GRE(**fields | twist) / inner
        if "encap" in self.tunnel.options:
            protocol = 17
            inner = UDP(sport=50001, dport=UDP_PORT) / inner
        source, target = self.end.other.outer[kind.delivery], self.tunnel.group or self.end.outer[kind.delivery]
        if kind.delivery == 4:
            outer = IP(src=source, dst=target, proto=protocol, tos=outer_tos, ttl=60, flags="DF")
        else:
            outer = IPv6(src=source, dst=target, nh=protocol, tc=outer_tos, hlim=60)
        mac = group_mac(target) if self.tunnel.group else self.end.mac
        return Ether(src="02:00:00:00:00:0e", dst=mac) / outer / inner

    def ask(self, *probes):
        """Sends probes, each a dictionary of `frame`'s arguments, and one more that must be answered. Returns the answers."""
        tokens = [os.urandom(16) for _ in probes] + [os.urandom(16)]
        frames = [self.frame(token, **probe) for token, probe in zip(tokens, [*probes, {}])]
        for frame in frames:
            self.socket.send(frame)
        replies = [None] * len(frames)
        deadline = time.monotonic() + 5
        while (left := deadline - time.monotonic()) > 0:
            if not self.socket.select([self.socket], left):
                break
            frame = self.socket.recv()
            if frame is None or not self.from_end(frame):
                continue
            data = bytes(frame)
            for number, token in enumerate(tokens):
                if token in data and replies[number] is None:
                    replies[number] = Reply(frame)
            if all(replies):
                break
            if replies[-1]:
                # What has come another way than the last one gets a moment more.
                deadline = min(deadline, time.monotonic() + 0.15)
        if replies[-1] is None:
            raise AssertionError(f"{self.end.name} answers no probe at all")
        return replies[:-1]

    def from_end(self, frame):
        """An encapsulated packet of this end, not our own, and no ICMP error that quotes our own."""
        outer = frame.getlayer(IP if self.tunnel.kind.delivery == 4 else IPv6)
        if outer is None or outer.src != self.end.outer[self.tunnel.kind.delivery]:
            return False
        return not (isinstance(outer, IP) and outer.proto == 1) and not (isinstance(outer, IPv6) and outer.nh == 58)
