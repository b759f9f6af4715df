/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What the steering program and user space agree on: the maps' keys and values, and the reasons.
 * The Rust side is src/xdp/abi.rs; a unit test there reads this file and compares the reasons.
 *
 * Addresses, ports and keys stand in network byte order, everything else in the host's.
 */
#ifndef STEER_H
#define STEER_H

#include <linux/in6.h>
#include <linux/types.h>

/* Why a frame was redirected or passed. Every frame is counted under exactly one. */
#define STEER_REASONS(X)                                                                          \
	X(redirected_underlay) /* a packet of one of our tunnels */                                \
	X(redirected_overlay)  /* a packet that routes into one of our tunnels */                  \
	X(port_off)            /* the device has no role in the plan */                            \
	X(not_ip)              /* neither IPv4 nor IPv6 */                                         \
	X(other_mac)           /* not for the device's own address */                              \
	X(vlan_tag)            /* in the frame or beside it: no port's VLAN, or more than one tag */ \
	X(ip_options)          /* IPv4 options, or IPv6 extension headers for routers */           \
	X(bad_header)          /* truncated, wrong version, lengths beyond the frame */            \
	X(bad_checksum)        /* IPv4 header checksum */                                          \
	X(fragment)            /* an IPv4 or IPv6 fragment */                                      \
	X(not_tunnel)          /* an underlay device's other traffic */                            \
	X(gre_version)         /* not version 0: PPTP */                                           \
	X(gre_flags)           /* routing, or bits that must be zero */                            \
	X(unknown_tunnel)      /* no tunnel has these addresses and this key */                    \
	X(kernel_tunnel)       /* a tunnel of ours whose packets are the kernel's all the same */    \
	X(forwarding_off)      /* the kernel would not forward this family from here */            \
	X(multicast)           /* multicast destination */                                         \
	X(martian)             /* an address that no router forwards */                            \
	X(ttl)                 /* TTL or hop limit would reach zero */                             \
	X(no_route)            /* no prefix of the plan covers the destination */                  \
	X(kernel_route)        /* the longest match is not a tunnel */                             \
	X(too_big)             /* larger than the tunnel's MTU */                                  \
	X(partial_checksum)    /* may carry a checksum that only the kernel can finish */          \
	X(split_header)        /* its headers are not all in the first of its buffers */           \
	X(no_socket)           /* no AF_XDP socket on this receive queue */

enum steer_reason {
#define STEER_ENUM(name) STEER_##name,
	STEER_REASONS(STEER_ENUM)
#undef STEER_ENUM
	STEER_REASON_COUNT,
	/* Beside the reasons: packets for this host that the socket filters kept away, because no tunnel is theirs. */
	STEER_STRANGERS = STEER_REASON_COUNT,
};

enum steer_port_flags {
	STEER_PORT_UNDERLAY = 1 << 0,
	STEER_PORT_OVERLAY = 1 << 1,
	STEER_PORT_FORWARD4 = 1 << 2,
	STEER_PORT_FORWARD6 = 1 << 3,
	/* Local programs behind this device (a veth) may leave transport checksums unfinished. */
	STEER_PORT_PARTIAL_CHECKSUMS = 1 << 4,
	/* Some tunnel over IPv4 has no remote address: a second lookup is worth its time. */
	STEER_PORT_ANY_REMOTE = 1 << 5,
	/* The same over IPv6. */
	STEER_PORT_ANY_REMOTE6 = 1 << 6,
	/* Every frame goes into one tunnel, whatever it is. The device has no other role. */
	STEER_PORT_WIRE = 1 << 7,
	/* Some tunnel has keys that are virtual subnets: a second lookup of frames is worth its time. */
	STEER_PORT_NVGRE = 1 << 8,
	/* Some tunnel receives what is sent to a group. */
	STEER_PORT_GROUPS = 1 << 9,
};

/* Valid VLAN numbers are less; entry 0 of an attachment is the device itself, the others its VLAN devices. */
#define STEER_VLANS 4096

/* The device that a program is attached to, or a VLAN device on it; each attachment has its own. */
struct steer_port {
	__u8 mac[6];
	__u16 flags;
	__u32 first_slot; /* in the XSKMAP: receive queue q has slot first_slot + q */
	__u32 queues;
	__u32 largest; /* frame that a wire's tunnel takes, in bytes; 0 while it is not ready */
};

/* What a tunnel puts between its outer header and the inner packet. Only GRE has a key. */
struct steer_shim {
	__be32 key;
	__u8 protocol; /* 47, 17 for GRE in UDP, or 4 or 41 where there is nothing */
	__u8 has_key;  /* enum steer_key; no key is not key 0 */
	__be16 payload; /* GRE's protocol type, while a packet is looked at; 0 in the maps */
};

enum steer_key {
	STEER_KEY_NONE = 0,
	STEER_KEY_WHOLE = 1,
	/* RFC 7637: the upper 24 bits are a virtual subnet, the lower 8 a flow (0 in the maps). */
	STEER_KEY_SUBNET = 2,
};

/* A tunnel as its packets name it: local is the outer destination, remote the outer source or 0. */
struct steer_tunnel4 {
	__be32 local;
	__be32 remote;
	struct steer_shim shim;
};

/* What the map says of a tunnel. */
enum steer_tunnel_flags {
	STEER_TUNNEL_KNOWN = 1 << 0,
	/* GRE in UDP over IPv6 that does without a UDP checksum. */
	STEER_TUNNEL_ZERO_CHECKSUM = 1 << 1,
	/* Its packets are steered. */
	STEER_TUNNEL_FAST = 1 << 2,
	/* The slow path's socket gets them. A tunnel of the kernel's own needs none. */
	STEER_TUNNEL_SOCKET = 1 << 3,
};

struct steer_tunnel6 {
	struct in6_addr local;
	struct in6_addr remote;
	struct steer_shim shim;
};

/* The outer addresses and the protocol alone, for the raw sockets' filters. */
struct steer_peer4 {
	__be32 local;
	__be32 remote;
	__u32 protocol;
};

struct steer_peer6 {
	struct in6_addr local;
	struct in6_addr remote;
	__u32 protocol;
};

struct steer_prefix4 {
	__u32 length; /* in bits, 0..32 */
	__be32 address;
};

struct steer_prefix6 {
	__u32 length; /* in bits, 0..128 */
	__be32 address[4];
};

/* Where a prefix leads: to the hop of that number. Hop 0 is the kernel. */
struct steer_route {
	__u32 hop;
};

/* Into a tunnel that takes packets of up to mtu bytes, or with mtu 0 to the kernel. Many prefixes share a hop. */
struct steer_hop {
	__u32 mtu;
};

#endif
