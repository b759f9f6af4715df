// SPDX-License-Identifier: GPL-2.0
/*
 * The same work inside the kernel, for comparison: encapsulate and decapsulate plain GRE over IPv4.
 *
 *   tc_*   the kernel forwards; the outer header comes on at the egress of the underlay's device, and goes off at its
 *          ingress (clsact, direct action).
 *   xdp_*  nothing but these lines stand between the two devices: neither route nor neighbour is looked up.
 *
 * What they need to know is compiled in: -DLOCAL=… -DREMOTE=… (addresses as numbers), -DFROM_MAC=… -DTO_MAC=… (six bytes
 * with commas), -DOUT=… (the index of the device to send out of). Little-endian machines only.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>

#define SEC(name) __attribute__((section(name), used))
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
#define bpf_htons(x) ((__be16)__builtin_bswap16((__u16)(x)))
#define bpf_htonl(x) ((__be32)__builtin_bswap32(x))
#define bpf_ntohs(x) bpf_htons(x)

/* bpf-helpers(7); by their numbers, so that no header of libbpf is needed. */
static __u32 (*bpf_get_prandom_u32)(void) = (void *)7;
static long (*bpf_skb_store_bytes)(struct __sk_buff *, __u32, const void *, __u32, __u64) = (void *)9;
static long (*bpf_redirect)(__u32, __u64) = (void *)23;
static long (*bpf_xdp_adjust_head)(struct xdp_md *, int) = (void *)44;
static long (*bpf_skb_adjust_room)(struct __sk_buff *, __s32, __u32, __u64) = (void *)50;

#define GRE 47
#define TTL 64

struct gre {
	__be16 flags, protocol;
};

struct outer {
	struct iphdr ip;
	struct gre gre;
};

static __always_inline __sum16 checksum(const struct iphdr *ip)
{
	const __u16 *half = (const __u16 *)ip;
	__u32 sum = 0;

	for (int i = 0; i < 10; i++)
		sum += half[i];
	sum = (sum & 0xffff) + (sum >> 16);
	return ~((sum & 0xffff) + (sum >> 16));
}

static __always_inline void fill(struct outer *o, __be16 inner_len, __u8 tos)
{
	__builtin_memset(o, 0, sizeof(*o));
	o->ip.version = 4;
	o->ip.ihl = 5;
	o->ip.tos = tos;
	o->ip.tot_len = bpf_htons(bpf_ntohs(inner_len) + sizeof(*o));
	o->ip.id = bpf_get_prandom_u32();
	o->ip.frag_off = bpf_htons(0x4000);
	o->ip.ttl = TTL;
	o->ip.protocol = GRE;
	o->ip.saddr = bpf_htonl(LOCAL);
	o->ip.daddr = bpf_htonl(REMOTE);
	o->ip.check = checksum(&o->ip);
	o->gre.protocol = bpf_htons(ETH_P_IP);
}

/* A packet of the one tunnel, as it should be: no options, no fragment, checksum right. */
static __always_inline int is_ours(const struct outer *o)
{
	return o->ip.version == 4 && o->ip.ihl == 5 && o->ip.protocol == GRE && !(o->ip.frag_off & bpf_htons(0x3fff)) &&
	       o->ip.saddr == bpf_htonl(REMOTE) && o->ip.daddr == bpf_htonl(LOCAL) && checksum(&o->ip) == 0 &&
	       o->gre.flags == 0 && o->gre.protocol == bpf_htons(ETH_P_IP);
}

SEC("tc-encapsulate")
int tc_encapsulate(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *inner = data + ETH_HLEN;
	struct outer o;

	if ((void *)(inner + 1) > end || skb->protocol != bpf_htons(ETH_P_IP))
		return TC_ACT_OK;
	fill(&o, inner->tot_len, inner->tos);
	if (bpf_skb_adjust_room(skb, sizeof(o), BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_GRE))
		return TC_ACT_SHOT;
	if (bpf_skb_store_bytes(skb, ETH_HLEN, &o, sizeof(o), 0))
		return TC_ACT_SHOT;
	return TC_ACT_OK;
}

SEC("tc-decapsulate")
int tc_decapsulate(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct outer *o = data + ETH_HLEN;

	if ((void *)(o + 1) > end || skb->protocol != bpf_htons(ETH_P_IP) || !is_ours(o))
		return TC_ACT_OK;
	if (bpf_skb_adjust_room(skb, -(int)sizeof(*o), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return TC_ACT_SHOT;
	return TC_ACT_OK;
}

static __always_inline void ethernet(struct ethhdr *eth)
{
	static const __u8 to[ETH_ALEN] = {TO_MAC}, from[ETH_ALEN] = {FROM_MAC};

	__builtin_memcpy(eth->h_dest, to, ETH_ALEN);
	__builtin_memcpy(eth->h_source, from, ETH_ALEN);
	eth->h_proto = bpf_htons(ETH_P_IP);
}

/* RFC 1624, as the kernel's ip_decrease_ttl() does it. */
static __always_inline void decrement(struct iphdr *ip)
{
	__u32 check = ip->check;

	check += bpf_htons(0x0100);
	ip->check = check + (check >= 0xffff);
	ip->ttl--;
}

SEC("xdp-encapsulate")
int xdp_encapsulate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *inner = data + ETH_HLEN;
	struct outer o, *to;

	if ((void *)(inner + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) || inner->ttl <= 1)
		return XDP_PASS;
	decrement(inner);
	fill(&o, inner->tot_len, inner->tos);
	if (bpf_xdp_adjust_head(ctx, -(int)sizeof(o)))
		return XDP_DROP;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	to = data + ETH_HLEN;
	if ((void *)(to + 1) > end)
		return XDP_DROP;
	ethernet(data);
	*to = o;
	return bpf_redirect(OUT, 0);
}

SEC("xdp-decapsulate")
int xdp_decapsulate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct outer *o = data + ETH_HLEN;
	struct iphdr *inner = (void *)(o + 1);

	if ((void *)(inner + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) || !is_ours(o) || inner->ttl <= 1)
		return XDP_PASS;
	decrement(inner);
	if (bpf_xdp_adjust_head(ctx, sizeof(*o)))
		return XDP_DROP;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + ETH_HLEN > end)
		return XDP_DROP;
	ethernet(data);
	return bpf_redirect(OUT, 0);
}

char _license[] SEC("license") = "GPL";
