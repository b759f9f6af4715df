// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Steers frames: ours and plain go to the AF_XDP socket of their receive queue, everything else to the
 * kernel, untouched. Nothing is ever dropped or changed here, and in doubt the kernel gets it.
 *
 * greyhound_steer   the program; tags that the device keeps beside the frame are invisible to it
 * greyhound_tags    the same, and it asks the device for such tags (Linux 6.8, bound to its device)
 * greyhound_raw     the filter of the slow path's IPv4 sockets: raw ones for protocols 4, 41 and 47, and GRE in UDP's
 * greyhound_raw6    the same for IPv6
 * greyhound_quiet   on an underlay device's way out: the kernel's own tunnel drivers do not answer for our tunnels
 */
#include <linux/errno.h>

#include "parse.h"
#include "steer.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/*
 * One per attachment, by VLAN number; all other maps are shared. Sizes marked 1 are set before loading. The sockets' filters
 * have one entry.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct steer_port);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct steer_tunnel4);
	__type(value, __u32);
} tunnels4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct steer_tunnel6);
	__type(value, __u32);
} tunnels6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct steer_peer4);
	__type(value, __u32);
} peers4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct steer_peer6);
	__type(value, __u32);
} peers6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct steer_prefix4);
	__type(value, struct steer_route);
} prefixes4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct steer_prefix6);
	__type(value, struct steer_route);
} prefixes6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct steer_hop);
} hops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, STEER_REASON_COUNT + 1);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/*
 * The longest frame that a device's worker takes where frames may come in several buffers each; 0 where each has one, and
 * the program does not know of others. Set before loading.
 */
const volatile __u32 longest = 0;

/* Weak, so that the other programs load where the kernel has no such function. */
extern int bpf_xdp_metadata_rx_vlan_tag(const struct xdp_md *ctx, __be16 *vlan_proto,
					__u16 *vlan_tci) __ksym __weak;

/* 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3: what no router forwards, as source or destination. */
static __always_inline bool martian4(__be32 address)
{
	__u32 host = bpf_ntohl(address);
	__u32 net = host >> 24;

	return net == 0 || net == 127 || net >= 224 || host >> 16 == 0xa9fe;
}

/* ::/64 holds the unspecified, the loopback and the IPv4-mapped addresses; then fe80::/10 and ff00::/8. */
static __always_inline bool martian6(const struct in6_addr *address)
{
	const __be32 *word = address->in6_u.u6_addr32;

	return (word[0] | word[1]) == 0 ||
	       (word[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000) ||
	       (word[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

static __always_inline bool group4(__be32 address)
{
	return (address & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000);
}

/* Whether a frame is inside whose key may be a virtual subnet. What is left of the shim is as the maps have it. */
static __always_inline bool may_be_subnet(struct steer_shim *shim, __u32 port_flags)
{
	bool frame = shim->payload == bpf_htons(ETH_P_TEB);

	shim->payload = 0;
	return frame && shim->has_key && port_flags & STEER_PORT_NVGRE;
}

static __always_inline void take_subnet(struct steer_shim *shim)
{
	shim->key &= bpf_htonl(0xffffff00);
	shim->has_key = STEER_KEY_SUBNET;
}

static __always_inline __u32 find_tunnel4(struct steer_tunnel4 tunnel, bool any_remote)
{
	const __u32 *flags = bpf_map_lookup_elem(&tunnels4, &tunnel);

	if (!flags && any_remote) {
		tunnel.remote = 0;
		flags = bpf_map_lookup_elem(&tunnels4, &tunnel);
	}
	return flags ? *flags : 0;
}

/* The tunnel's flags; 0 where there is none. */
static __always_inline __u32 known_tunnel4(struct steer_tunnel4 *tunnel, __u32 port_flags)
{
	bool any_remote = port_flags & STEER_PORT_ANY_REMOTE && !martian4(tunnel->remote);
	bool subnet = may_be_subnet(&tunnel->shim, port_flags);
	__u32 flags;

	/* 0 stands for any in the map; as a source it is nobody. */
	if (!tunnel->remote)
		return 0;
	flags = find_tunnel4(*tunnel, any_remote);
	if (!flags && subnet) {
		take_subnet(&tunnel->shim);
		flags = find_tunnel4(*tunnel, any_remote);
	}
	return flags;
}

static __always_inline bool unspecified6(const struct in6_addr *address)
{
	const __be32 *word = address->in6_u.u6_addr32;

	return (word[0] | word[1] | word[2] | word[3]) == 0;
}

static __always_inline __u32 find_tunnel6(struct steer_tunnel6 tunnel, bool any_remote)
{
	const __u32 *flags = bpf_map_lookup_elem(&tunnels6, &tunnel);

	if (!flags && any_remote) {
		__builtin_memset(&tunnel.remote, 0, sizeof(tunnel.remote));
		flags = bpf_map_lookup_elem(&tunnels6, &tunnel);
	}
	return flags ? *flags : 0;
}

static __always_inline __u32 known_tunnel6(struct steer_tunnel6 *tunnel, __u32 port_flags,
					   bool any_remote)
{
	bool subnet = may_be_subnet(&tunnel->shim, port_flags);
	__u32 flags;

	if (unspecified6(&tunnel->remote))
		return 0;
	flags = find_tunnel6(*tunnel, any_remote);
	if (!flags && subnet) {
		take_subnet(&tunnel->shim);
		flags = find_tunnel6(*tunnel, any_remote);
	}
	return flags;
}

/* What a packet of a tunnel with these flags comes to. */
static __always_inline enum steer_reason judge_tunnel(__u32 flags)
{
	if (!flags)
		return STEER_unknown_tunnel;
	return flags & STEER_TUNNEL_FAST ? STEER_redirected_underlay : STEER_kernel_tunnel;
}

/* A GRE packet of `length` bytes: whether it is well formed, and its key. */
static __always_inline enum steer_reason read_gre(struct cursor cursor, __u32 length,
						  struct steer_shim *shim)
{
	const struct gre_base *gre = take(&cursor, struct gre_base);
	const __be32 *key;
	__u16 flags;

	if (!gre)
		return STEER_bad_header;
	flags = bpf_ntohs(gre->flags);
	if (flags & GRE_VERSION)
		return STEER_gre_version;
	if (flags & GRE_REFUSED)
		return STEER_gre_flags;
	if (length < gre_length(flags))
		return STEER_bad_header;
	shim->payload = gre->protocol;
	if (flags & GRE_KEY) {
		if (flags & GRE_CHECKSUM && !take(&cursor, __be32))
			return STEER_bad_header;
		key = take(&cursor, __be32);
		if (!key)
			return STEER_bad_header;
		shim->key = *key;
		shim->has_key = STEER_KEY_WHOLE;
	}
	return STEER_redirected_underlay;
}

/*
 * A UDP packet of `length` bytes: whether there is GRE in it. The checksum is user space's to verify. Where UDP's own
 * length ends earlier than IP's the kernel decides.
 */
static __always_inline enum steer_reason read_udp(struct cursor cursor, __u32 length,
						  struct steer_shim *shim)
{
	const struct udphdr *udp = take(&cursor, struct udphdr);

	if (!udp || length < sizeof(*udp) || udp->dest != bpf_htons(GRE_IN_UDP_PORT))
		return STEER_not_tunnel;
	if (bpf_ntohs(udp->len) != length)
		return STEER_bad_header;
	return read_gre(cursor, length - sizeof(*udp), shim);
}

/* The `length` bytes behind an outer header: whether they are what a tunnel of this protocol carries. */
static __always_inline enum steer_reason read_shim(struct cursor cursor, __u32 length,
						   struct steer_shim *shim)
{
	if (shim->protocol == IPPROTO_GRE)
		return read_gre(cursor, length, shim);
	if (shim->protocol == IPPROTO_UDP)
		return read_udp(cursor, length, shim);
	if (inner_header_complete(cursor, shim->protocol, length))
		return STEER_redirected_underlay;
	return STEER_bad_header;
}

static __always_inline bool is_tunnel(__u8 protocol)
{
	return protocol == IPPROTO_GRE || protocol == IPPROTO_IPIP || protocol == IPPROTO_IPV6 ||
	       protocol == IPPROTO_UDP;
}

/* The cursor stands behind the plain IPv4 header of a packet of `length` bytes. */
static __always_inline enum steer_reason underlay4(struct cursor cursor, const struct iphdr *ip,
						   __u32 length, __u32 port_flags)
{
	struct steer_tunnel4 tunnel = { .local = ip->daddr, .remote = ip->saddr };
	enum steer_reason reason;

	if (!is_tunnel(ip->protocol))
		return STEER_not_tunnel;
	tunnel.shim.protocol = ip->protocol;
	reason = read_shim(cursor, length - sizeof(*ip), &tunnel.shim);
	if (reason != STEER_redirected_underlay)
		return reason;
	return judge_tunnel(known_tunnel4(&tunnel, port_flags));
}

/* The cursor stands behind the IPv6 header of a packet with `length` bytes of payload. */
static __always_inline enum steer_reason underlay6(struct cursor cursor, const struct ipv6hdr *ip,
						   __u32 length, __u32 port_flags)
{
	struct steer_tunnel6 tunnel = { .local = ip->daddr, .remote = ip->saddr };
	const struct encapsulation_limit *limit;
	__u8 protocol = ip->nexthdr;
	enum steer_reason reason;
	bool any_remote;

	if (protocol == IPPROTO_FRAGMENT)
		return STEER_fragment;
	if (protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING)
		return STEER_ip_options;
	if (protocol == IPPROTO_DSTOPTS) {
		limit = take(&cursor, struct encapsulation_limit);
		if (!limit || length < sizeof(*limit))
			return STEER_bad_header;
		if (!is_encapsulation_limit(limit) || !is_tunnel(limit->next_header))
			return STEER_ip_options;
		protocol = limit->next_header;
		length -= sizeof(*limit);
	}
	if (!is_tunnel(protocol))
		return STEER_not_tunnel;
	tunnel.shim.protocol = protocol;
	reason = read_shim(cursor, length, &tunnel.shim);
	if (reason != STEER_redirected_underlay)
		return reason;
	any_remote = port_flags & STEER_PORT_ANY_REMOTE6 && !martian6(&ip->saddr);
	return judge_tunnel(known_tunnel6(&tunnel, port_flags, any_remote));
}

/* What the route says about a packet of `length` bytes; `otherwise` is the reason where it has none. */
static __always_inline enum steer_reason judge_route(const struct steer_route *route, __u32 length,
						     enum steer_reason otherwise)
{
	const struct steer_hop *hop;
	__u32 number;

	if (!route)
		return otherwise;
	number = route->hop;
	hop = bpf_map_lookup_elem(&hops, &number);
	if (!hop || !hop->mtu)
		return STEER_kernel_route;
	if (length > hop->mtu)
		return STEER_too_big;
	return STEER_redirected_overlay;
}

/*
 * A sender behind a veth may leave the transport checksum to the hardware that is not there. TCP and UDP are
 * completed by the worker, ICMP is always complete; others (SCTP, tunnels in which it happens again) are not ours.
 */
static __always_inline bool may_be_partial(__u8 protocol, __u32 port_flags)
{
	return port_flags & STEER_PORT_PARTIAL_CHECKSUMS && protocol != IPPROTO_TCP &&
	       protocol != IPPROTO_UDP && protocol != IPPROTO_ICMP && protocol != IPPROTO_ICMPV6;
}

static __always_inline enum steer_reason overlay4(const struct iphdr *ip, __u32 length,
						  __u32 port_flags, enum steer_reason otherwise)
{
	struct steer_prefix4 prefix = { .length = 32, .address = ip->daddr };
	enum steer_reason reason;

	if (!(port_flags & STEER_PORT_FORWARD4))
		return STEER_forwarding_off;
	if (group4(ip->daddr))
		return STEER_multicast;
	if (martian4(ip->daddr) || martian4(ip->saddr))
		return STEER_martian;
	if (ip->ttl <= 1)
		return STEER_ttl;
	reason = judge_route(bpf_map_lookup_elem(&prefixes4, &prefix), length, otherwise);
	if (reason == STEER_redirected_overlay && may_be_partial(ip->protocol, port_flags))
		return STEER_partial_checksum;
	return reason;
}

/* `to_group`: the frame is for many, and only a packet to a tunnel's group is ours. */
static __always_inline enum steer_reason judge4(struct cursor cursor, __u32 port_flags,
						bool to_group)
{
	const struct iphdr *ip = take(&cursor, struct iphdr);
	enum steer_reason reason = STEER_no_route;
	__u8 first;
	__u32 length;

	if (!ip)
		return STEER_bad_header;
	first = *(const __u8 *)ip;
	if (first != IPV4_PLAIN)
		return first > IPV4_PLAIN && first < 0x50 ? STEER_ip_options : STEER_bad_header;
	/* What follows the total length is Ethernet padding. */
	length = length_field(ip->tot_len);
	if (length < sizeof(*ip) || !goes_on(&cursor, ip, length))
		return STEER_bad_header;
	if (ip->frag_off & bpf_htons(IPV4_MORE_OR_OFFSET))
		return STEER_fragment;
	if (!ipv4_checksum_good(ip))
		return STEER_bad_checksum;
	if (to_group && !group4(ip->daddr))
		return STEER_other_mac;

	if (port_flags & STEER_PORT_UNDERLAY) {
		reason = underlay4(cursor, ip, length, port_flags);
		if (reason == STEER_redirected_underlay)
			return reason;
	}
	/* A tunnel's packet that is not ours may still be an inner packet on its way into a tunnel. */
	if (port_flags & STEER_PORT_OVERLAY)
		return overlay4(ip, length, port_flags,
				reason == STEER_not_tunnel ? STEER_no_route : reason);
	return reason;
}

static __always_inline enum steer_reason overlay6(const struct ipv6hdr *ip, __u32 length,
						  __u32 port_flags, enum steer_reason otherwise)
{
	struct steer_prefix6 prefix = { .length = 128 };
	enum steer_reason reason;

	if (!(port_flags & STEER_PORT_FORWARD6))
		return STEER_forwarding_off;
	if (ip->nexthdr == IPPROTO_FRAGMENT)
		return STEER_fragment;
	if (ip->nexthdr == IPPROTO_HOPOPTS || ip->nexthdr == IPPROTO_ROUTING ||
	    ip->nexthdr == IPPROTO_DSTOPTS)
		return STEER_ip_options;
	if (ip->daddr.in6_u.u6_addr8[0] == 0xff)
		return STEER_multicast;
	if (martian6(&ip->daddr) || martian6(&ip->saddr))
		return STEER_martian;
	if (ip->hop_limit <= 1)
		return STEER_ttl;
	__builtin_memcpy(prefix.address, &ip->daddr, sizeof(prefix.address));
	reason = judge_route(bpf_map_lookup_elem(&prefixes6, &prefix), sizeof(*ip) + length,
			     otherwise);
	if (reason == STEER_redirected_overlay && may_be_partial(ip->nexthdr, port_flags))
		return STEER_partial_checksum;
	return reason;
}

static __always_inline enum steer_reason judge6(struct cursor cursor, __u32 port_flags,
						bool to_group)
{
	const struct ipv6hdr *ip = take(&cursor, struct ipv6hdr);
	enum steer_reason reason = STEER_no_route;
	__u32 length;

	if (!ip || (*(const __u8 *)ip & 0xf0) != IPV6_VERSION)
		return STEER_bad_header;
	length = length_field(ip->payload_len);
	if (!goes_on(&cursor, cursor.at, length))
		return STEER_bad_header;
	if (to_group && ip->daddr.in6_u.u6_addr8[0] != 0xff)
		return STEER_other_mac;
	if (port_flags & STEER_PORT_UNDERLAY) {
		reason = underlay6(cursor, ip, length, port_flags);
		if (reason == STEER_redirected_underlay)
			return reason;
	}
	if (port_flags & STEER_PORT_OVERLAY)
		return overlay6(ip, length, port_flags,
				reason == STEER_not_tunnel ? STEER_no_route : reason);
	return reason;
}

static __always_inline bool own_mac(const struct ethhdr *ethernet, const struct steer_port *port)
{
	const __u16 *a = (const __u16 *)ethernet->h_dest;
	const __u16 *b = (const __u16 *)port->mac;

	return ((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2])) == 0;
}

/*
 * The same of a frame on a wire: the worker finishes what it finds, also behind tags and past fragments, which the kernel
 * has finished before it cut them. What is neither IP nor ARP only the kernel knows.
 */
static __always_inline bool frame_may_be_partial(struct cursor cursor, __be16 type,
						 __u32 port_flags)
{
	const struct ipv6hdr *ip6;
	const struct iphdr *ip;
	const struct vlan_tag *tag;

	for (int i = 0; i < VLAN_TAGS && is_vlan(type); i++) {
		tag = take(&cursor, struct vlan_tag);
		if (!tag)
			return true;
		type = tag->type;
	}
	if (type == bpf_htons(ETH_P_IP)) {
		ip = take(&cursor, struct iphdr);
		return !ip || (!(ip->frag_off & bpf_htons(IPV4_MORE_OR_OFFSET)) &&
			       may_be_partial(ip->protocol, port_flags));
	}
	if (type == bpf_htons(ETH_P_IPV6)) {
		ip6 = take(&cursor, struct ipv6hdr);
		return !ip6 || (ip6->nexthdr != IPPROTO_FRAGMENT &&
				may_be_partial(ip6->nexthdr, port_flags));
	}
	return type != bpf_htons(ETH_P_ARP);
}

/* Any frame that comes by a wire, of `length` bytes without the wire's own tag. The cursor stands behind its header. */
static __always_inline enum steer_reason judge_wire(struct cursor cursor, __u32 length, __be16 type,
						    const struct steer_port *port)
{
	if (!port->largest)
		return STEER_kernel_route;
	if (length > port->largest)
		return STEER_too_big;
	if (port->flags & STEER_PORT_PARTIAL_CHECKSUMS &&
	    frame_may_be_partial(cursor, type, port->flags))
		return STEER_partial_checksum;
	return STEER_redirected_overlay;
}

static __always_inline bool has_role(const struct steer_port *port)
{
	return port->flags & (STEER_PORT_UNDERLAY | STEER_PORT_OVERLAY | STEER_PORT_WIRE);
}

/* A frame of `port`'s, with its own tag taken off: `type` is what the cursor stands at. */
static __always_inline enum steer_reason judge_frame(struct cursor cursor, __be16 type,
						     const struct ethhdr *ethernet,
						     const struct steer_port *port)
{
	bool to_group = false;
	enum steer_reason reason;

	if (type != bpf_htons(ETH_P_IP) && type != bpf_htons(ETH_P_IPV6))
		return STEER_not_ip;
	if (!own_mac(ethernet, port)) {
		to_group = port->flags & STEER_PORT_GROUPS && ethernet->h_dest[0] & 1;
		if (!to_group)
			return STEER_other_mac;
	}
	if (type == bpf_htons(ETH_P_IP))
		reason = judge4(cursor, port->flags, to_group);
	else
		reason = judge6(cursor, port->flags, to_group);
	/* The overlay's multicast is the kernel's. */
	return to_group && reason != STEER_redirected_underlay ? STEER_other_mac : reason;
}

/* Tunnel headers and what the worker reads behind them, down to TCP's options, are no longer than this. */
enum { HEADERS = 256 };

/* The tag that a device keeps beside a frame: 0 for none, a VLAN number, or UNREADABLE. */
enum { UNREADABLE = STEER_VLANS };

/*
 * Whose frame it is: the device's own, or by its outer tag a VLAN device's. Priority and drop eligibility say nothing about
 * that. Provider tags (802.1ad), the priority tag (number 0), and more than one tag are the kernel's, but for wires.
 */
static __always_inline enum steer_reason judge(struct xdp_md *ctx, const struct steer_port *self,
					       __u32 beside)
{
	struct cursor cursor = {
		.at = (const void *)(long)ctx->data,
		.end = (const void *)(long)ctx->data_end,
		.more = longest ? bpf_xdp_get_buff_len(ctx) - (ctx->data_end - ctx->data) : 0,
	};
	const struct ethhdr *ethernet = take(&cursor, struct ethhdr);
	const struct steer_port *port = self;
	__u32 number = beside, length = ctx->data_end - ctx->data + cursor.more;
	const struct vlan_tag *tag;
	__be16 type;

	if (!ethernet)
		return STEER_bad_header;
	if (cursor.more && length > longest)
		return STEER_too_big;
	if (cursor.more && length - cursor.more < HEADERS)
		return STEER_split_header;
	type = ethernet->h_proto;
	if (self->flags & STEER_PORT_WIRE) {
		/* A worker would not see what is beside the frame. */
		if (beside)
			return STEER_vlan_tag;
		return judge_wire(cursor, length, type, self);
	}
	if (!beside && type == bpf_htons(ETH_P_8021Q)) {
		tag = take(&cursor, struct vlan_tag);
		if (!tag)
			return STEER_vlan_tag;
		number = bpf_ntohs(tag->control) & VLAN_NUMBER;
		if (!number)
			return STEER_vlan_tag;
		type = tag->type;
		length -= sizeof(*tag);
	}
	if (number) {
		port = bpf_map_lookup_elem(&ports, &number);
		if (!port || !has_role(port))
			return STEER_vlan_tag;
		if (port->flags & STEER_PORT_WIRE)
			return judge_wire(cursor, length, type, port);
	}
	if (is_vlan(type))
		return STEER_vlan_tag;
	if (!has_role(port))
		return STEER_port_off;
	return judge_frame(cursor, type, ethernet, port);
}

static __always_inline __u32 tag_beside(struct xdp_md *ctx)
{
	__be16 protocol = 0;
	__u16 control = 0;
	int told = bpf_xdp_metadata_rx_vlan_tag(ctx, &protocol, &control);

	/* Only a plain "there is none" lets the frame pass for untagged: a tag must never be lost. */
	if (told == -ENODATA)
		return 0;
	control &= VLAN_NUMBER;
	return told || protocol != bpf_htons(ETH_P_8021Q) || !control ? UNREADABLE : control;
}

/* Both link addresses and the tag behind them, as words. */
struct tagged_header {
	__u32 addresses[3];
	__be16 type;
	__be16 control;
};

/* Puts a tag into the frame, where a worker sees it; false leaves the frame as it was. */
static __always_inline bool push_tag(struct xdp_md *ctx, __u32 number)
{
	struct tagged_header *header;

	if (bpf_xdp_adjust_head(ctx, -(int)sizeof(struct vlan_tag)))
		return false;
	header = (void *)(long)ctx->data;
	/* The frame was longer than this before: for the verifier. */
	if ((void *)(header + 1) > (void *)(long)ctx->data_end)
		return false;
	header->addresses[0] = header->addresses[1];
	header->addresses[1] = header->addresses[2];
	header->addresses[2] = *(__u32 *)&header->type;
	header->type = bpf_htons(ETH_P_8021Q);
	header->control = bpf_htons(number);
	return true;
}

/* Undoes push_tag. */
static __always_inline void pop_tag(struct xdp_md *ctx)
{
	struct tagged_header *header = (void *)(long)ctx->data;

	if ((void *)(header + 1) > (void *)(long)ctx->data_end)
		return;
	*(__u32 *)&header->type = header->addresses[2];
	header->addresses[2] = header->addresses[1];
	header->addresses[1] = header->addresses[0];
	bpf_xdp_adjust_head(ctx, sizeof(struct vlan_tag));
}

static __always_inline int steer(struct xdp_md *ctx, bool ask_for_tag)
{
	__u32 zero = 0, queue = ctx->rx_queue_index, slot = 0, beside = 0, reason;
	const struct steer_port *self = bpf_map_lookup_elem(&ports, &zero);
	__u64 *counter;
	int action;

	if (!self)
		return XDP_PASS;
	if (ask_for_tag)
		beside = tag_beside(ctx);
	reason = judge(ctx, self, beside);
	if (reason <= STEER_redirected_overlay) {
		slot = self->first_slot + queue;
		if (queue >= self->queues || !bpf_map_lookup_elem(&xsks, &slot))
			reason = STEER_no_socket;
		else if (beside && !push_tag(ctx, beside))
			reason = STEER_vlan_tag;
	}
	counter = bpf_map_lookup_elem(&counters, &reason);
	if (counter)
		*counter += 1;
	if (reason > STEER_redirected_overlay)
		return XDP_PASS;
	action = bpf_redirect_map(&xsks, slot, XDP_PASS);
	/* The socket has gone this very moment: the kernel gets the frame as it came. */
	if (beside && action != XDP_REDIRECT)
		pop_tag(ctx);
	return action;
}

SEC("xdp")
int greyhound_steer(struct xdp_md *ctx)
{
	return steer(ctx, false);
}

SEC("xdp")
int greyhound_tags(struct xdp_md *ctx)
{
	return steer(ctx, true);
}

/* What a raw socket's filter says: nothing of the packet, or all. */
enum { DROP = 0, WHOLE = 0x7fffffff };

/* For the sockets' filters: a packet of no tunnel. */
static __always_inline int stranger(void)
{
	__u32 key = STEER_STRANGERS;
	__u64 *count = bpf_map_lookup_elem(&counters, &key);

	if (count)
		++*count;
	return DROP;
}

/* The same of a packet whose tunnel has these flags, or 0 without a tunnel. */
static __always_inline int for_socket(__u32 flags)
{
	if (!flags)
		return stranger();
	return flags & STEER_TUNNEL_SOCKET ? WHOLE : DROP;
}

/* A key's worth of a GRE header at `offset`; true where `verdict` says what becomes of the packet already. */
static __always_inline bool filter_gre(struct __sk_buff *skb, __u32 offset, struct steer_shim *shim,
				       int *verdict)
{
	struct gre_base gre;
	__u16 flags;

	*verdict = WHOLE;
	if (bpf_skb_load_bytes(skb, offset, &gre, sizeof(gre)))
		return true;
	shim->payload = gre.protocol;
	flags = bpf_ntohs(gre.flags);
	if (flags & GRE_VERSION) {
		*verdict = DROP;
		return true;
	}
	if (flags & GRE_REFUSED)
		return true;
	if (flags & GRE_KEY) {
		offset += flags & GRE_CHECKSUM ? 8 : 4;
		if (bpf_skb_load_bytes(skb, offset, &shim->key, sizeof(shim->key)))
			return true;
		shim->has_key = STEER_KEY_WHOLE;
	}
	return false;
}

/*
 * The kernel hands the raw socket every packet of its protocol for this host, beginning with its IP header, and a UDP
 * socket those to its port, beginning with the UDP header.
 * Let through: packets of our tunnels, and what our peers send malformed (user space counts it).
 */
SEC("socket")
int greyhound_raw(struct __sk_buff *skb)
{
	struct steer_tunnel4 tunnel = {};
	struct steer_peer4 peer = {};
	struct iphdr ip;
	__u32 zero = 0, offset;
	int verdict;
	const struct steer_port *self = bpf_map_lookup_elem(&ports, &zero);

	if (!self || bpf_skb_load_bytes_relative(skb, 0, &ip, sizeof(ip), BPF_HDR_START_NET) ||
	    ip.version != 4)
		return DROP;
	peer.local = ip.daddr;
	peer.remote = ip.saddr;
	peer.protocol = ip.protocol;
	if (!bpf_map_lookup_elem(&peers4, &peer)) {
		peer.remote = 0;
		if (!(self->flags & STEER_PORT_ANY_REMOTE) || !bpf_map_lookup_elem(&peers4, &peer))
			return stranger();
	}
	if (ip.protocol != IPPROTO_GRE && ip.protocol != IPPROTO_UDP)
		return WHOLE;
	tunnel.local = ip.daddr;
	tunnel.remote = ip.saddr;
	tunnel.shim.protocol = ip.protocol;
	offset = ip.protocol == IPPROTO_UDP ? sizeof(struct udphdr) : ip.ihl * 4;
	if (filter_gre(skb, offset, &tunnel.shim, &verdict))
		return verdict;
	return for_socket(known_tunnel4(&tunnel, self->flags));
}

/* The protocol behind the IPv6 header and the few extension headers that the kernel may have followed. */
static __always_inline __u8 protocol_behind(struct __sk_buff *skb, __u8 next_header)
{
	__u32 at = sizeof(struct ipv6hdr);
	struct ipv6_opt_hdr header;

	for (int i = 0; i < 4; i++) {
		if (next_header != IPPROTO_HOPOPTS && next_header != IPPROTO_ROUTING &&
		    next_header != IPPROTO_DSTOPTS)
			break;
		if (bpf_skb_load_bytes_relative(skb, at, &header, sizeof(header), BPF_HDR_START_NET))
			break;
		next_header = header.nexthdr;
		at += (header.hdrlen + 1) * 8;
	}
	return next_header;
}

/* The same over IPv6, where every packet begins behind the IPv6 header and all extension headers. */
SEC("socket")
int greyhound_raw6(struct __sk_buff *skb)
{
	struct steer_tunnel6 tunnel = {};
	struct steer_peer6 peer = {};
	struct udphdr udp = {};
	struct ipv6hdr ip;
	__u32 zero = 0, offset = 0, flags;
	int verdict;
	bool any_remote;
	const struct steer_port *self = bpf_map_lookup_elem(&ports, &zero);

	if (!self || bpf_skb_load_bytes_relative(skb, 0, &ip, sizeof(ip), BPF_HDR_START_NET))
		return DROP;
	any_remote = self->flags & STEER_PORT_ANY_REMOTE6;
	peer.local = ip.daddr;
	peer.remote = ip.saddr;
	peer.protocol = protocol_behind(skb, ip.nexthdr);
	if (!bpf_map_lookup_elem(&peers6, &peer)) {
		__builtin_memset(&peer.remote, 0, sizeof(peer.remote));
		if (!any_remote || !bpf_map_lookup_elem(&peers6, &peer))
			return stranger();
	}
	if (peer.protocol == IPPROTO_UDP) {
		if (bpf_skb_load_bytes(skb, 0, &udp, sizeof(udp)))
			return DROP;
		offset = sizeof(udp);
	} else if (peer.protocol != IPPROTO_GRE) {
		return WHOLE;
	}
	tunnel.local = ip.daddr;
	tunnel.remote = ip.saddr;
	tunnel.shim.protocol = peer.protocol;
	if (filter_gre(skb, offset, &tunnel.shim, &verdict))
		return verdict;
	flags = known_tunnel6(&tunnel, self->flags, any_remote);
	/* The socket takes packets without a checksum as soon as one tunnel does. */
	if (offset && !udp.check && !(flags & STEER_TUNNEL_ZERO_CHECKSUM))
		return DROP;
	return for_socket(flags);
}

enum { TC_NEXT = -1, TC_SHOT = 2 };

/* Types and codes of RFC 792 and RFC 4443, whose headers (linux/icmp.h) need a C library. */
enum { UNREACHABLE4 = 3, PORT4 = 3, UNREACHABLE6 = 1, PORT6 = 4, ICMP_LEN = 8 };

/* What an error quotes at `at`: a packet for one of the tunnels whose packets the slow path's socket has got. */
static __always_inline bool quotes_ours4(struct __sk_buff *skb, __u32 at,
					 const struct steer_port *self)
{
	struct steer_tunnel4 tunnel = {};
	struct steer_peer4 peer = {};
	struct iphdr ip;
	int verdict;

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.version != 4)
		return false;
	peer.local = ip.daddr;
	peer.remote = ip.saddr;
	peer.protocol = ip.protocol;
	if (!bpf_map_lookup_elem(&peers4, &peer)) {
		peer.remote = 0;
		if (!(self->flags & STEER_PORT_ANY_REMOTE) || !bpf_map_lookup_elem(&peers4, &peer))
			return false;
	}
	if (ip.protocol != IPPROTO_GRE)
		return ip.protocol != IPPROTO_UDP;
	tunnel.local = ip.daddr;
	tunnel.remote = ip.saddr;
	tunnel.shim.protocol = ip.protocol;
	if (filter_gre(skb, at + ip.ihl * 4, &tunnel.shim, &verdict))
		return false;
	return known_tunnel4(&tunnel, self->flags) & STEER_TUNNEL_SOCKET;
}

static __always_inline bool quotes_ours6(struct __sk_buff *skb, __u32 at,
					 const struct steer_port *self)
{
	bool any_remote = self->flags & STEER_PORT_ANY_REMOTE6;
	struct steer_tunnel6 tunnel = {};
	struct steer_peer6 peer = {};
	struct ipv6_opt_hdr options;
	struct ipv6hdr ip;
	int verdict;

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.version != 6)
		return false;
	at += sizeof(ip);
	peer.local = ip.daddr;
	peer.remote = ip.saddr;
	peer.protocol = ip.nexthdr;
	for (int i = 0; i < 4; i++) {
		if (peer.protocol != IPPROTO_HOPOPTS && peer.protocol != IPPROTO_ROUTING &&
		    peer.protocol != IPPROTO_DSTOPTS)
			break;
		if (bpf_skb_load_bytes(skb, at, &options, sizeof(options)))
			return false;
		peer.protocol = options.nexthdr;
		at += (options.hdrlen + 1) * 8;
	}
	if (!bpf_map_lookup_elem(&peers6, &peer)) {
		__builtin_memset(&peer.remote, 0, sizeof(peer.remote));
		if (!any_remote || !bpf_map_lookup_elem(&peers6, &peer))
			return false;
	}
	if (peer.protocol != IPPROTO_GRE)
		return peer.protocol != IPPROTO_UDP;
	tunnel.local = ip.daddr;
	tunnel.remote = ip.saddr;
	tunnel.shim.protocol = peer.protocol;
	if (filter_gre(skb, at, &tunnel.shim, &verdict))
		return false;
	return known_tunnel6(&tunnel, self->flags, any_remote) & STEER_TUNNEL_SOCKET;
}

/*
 * ip_gre, ipip, sit and their siblings get a copy of what the slow path's raw sockets receive, and answer "port
 * unreachable" for tunnels that are none of theirs. Everything else goes on.
 */
SEC("tc")
int greyhound_quiet(struct __sk_buff *skb)
{
	__u32 zero = 0, at = sizeof(struct ethhdr);
	const struct steer_port *self = bpf_map_lookup_elem(&ports, &zero);
	struct ipv6hdr ip6;
	struct iphdr ip;
	__u8 kind[2];

	if (!self)
		return TC_NEXT;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.protocol != IPPROTO_ICMP)
			return TC_NEXT;
		at += ip.ihl * 4;
		if (bpf_skb_load_bytes(skb, at, kind, sizeof(kind)) || kind[0] != UNREACHABLE4 ||
		    kind[1] != PORT4)
			return TC_NEXT;
		return quotes_ours4(skb, at + ICMP_LEN, self) ? TC_SHOT : TC_NEXT;
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, at, &ip6, sizeof(ip6)) || ip6.nexthdr != IPPROTO_ICMPV6)
			return TC_NEXT;
		at += sizeof(ip6);
		if (bpf_skb_load_bytes(skb, at, kind, sizeof(kind)) || kind[0] != UNREACHABLE6 ||
		    kind[1] != PORT6)
			return TC_NEXT;
		return quotes_ours6(skb, at + ICMP_LEN, self) ? TC_SHOT : TC_NEXT;
	}
	return TC_NEXT;
}
