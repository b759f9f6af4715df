/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Headers, taken one after another from a cursor that knows where the frame ends. */
#ifndef PARSE_H
#define PARSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct cursor {
	const void *at;
	const void *end;
	__u32 more; /* bytes of the frame behind `end`, in further buffers */
};

static __always_inline const void *take_bytes(struct cursor *cursor, __u32 size)
{
	const void *header = cursor->at;

	if (header + size > cursor->end)
		return NULL;
	cursor->at = header + size;
	return header;
}

/* The next header as a pointer to `type`, and the cursor behind it; NULL where the frame ends too early. */
#define take(cursor, type) ((const type *)take_bytes(cursor, sizeof(type)))

/* Whether the frame goes on for `length` bytes from here, be it in further buffers. */
static __always_inline bool goes_on(const struct cursor *cursor, const void *from, __u32 length)
{
	__u64 here = cursor->end - from;

	/* Nothing may be added to `end` itself, says the verifier; the compiler would. */
	asm volatile("" : "+r"(here));
	return length <= here + cursor->more;
}

/*
 * A length field as a number that may be added to a packet pointer: the verifiers of Linux 6.1 and 6.12 know nothing of
 * what a byte swap leaves, and a plain mask would be optimised away.
 */
static __always_inline __u32 length_field(__be16 field)
{
	__u32 length = bpf_ntohs(field);

	asm volatile("%0 &= 0xffff" : "+w"(length));
	return length;
}

/* Tags that a frame may have in front of what it carries: a provider's and a customer's. */
#define VLAN_TAGS 2

/* What follows a tag's EtherType. */
struct vlan_tag {
	__be16 control;
	__be16 type; /* of what is behind the tag */
};

/* The VLAN's number within a tag's control information; priority and drop eligibility stand above it. */
#define VLAN_NUMBER 0x0fff

static __always_inline bool is_vlan(__be16 type)
{
	return type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD);
}

#define IPV4_PLAIN 0x45 /* version 4, no options */
#define IPV4_MORE_OR_OFFSET 0x3fff
#define IPV6_VERSION 0x60

/* RFC 791 section 3.1: the sum over a header without options, its checksum included, is all ones. */
static __always_inline bool ipv4_checksum_good(const struct iphdr *ip)
{
	const __u32 *word = (const __u32 *)ip;
	__u64 sum = (__u64)word[0] + word[1] + word[2] + word[3] + word[4];

	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum == 0xffff;
}

/* RFC 2784 and 2890. Bits 6 to 12 are reserved and ignored on receipt. */
#define GRE_CHECKSUM 0x8000
#define GRE_KEY 0x2000
#define GRE_SEQUENCE 0x1000
#define GRE_VERSION 0x0007
/* RFC 2784 section 2.3: discard where bit 1 (RFC 1701: routing), 4 or 5 is set. */
#define GRE_REFUSED 0x4c00

/* RFC 8086 section 3.2.2 */
#define GRE_IN_UDP_PORT 4754

struct gre_base {
	__be16 flags;
	__be16 protocol;
};

static __always_inline __u32 gre_length(__u16 flags)
{
	__u32 length = sizeof(struct gre_base);

	if (flags & GRE_CHECKSUM)
		length += 4;
	if (flags & GRE_KEY)
		length += 4;
	if (flags & GRE_SEQUENCE)
		length += 4;
	return length;
}

/*
 * RFC 2473 section 4.1.1, as the only destination options, padded as Linux does it (`init_tel_txopt`): what else such a
 * header can hold is not for us.
 */
struct encapsulation_limit {
	__u8 next_header;
	__u8 length; /* in units of 8 bytes beyond the first */
	__u8 option;
	__u8 option_length;
	__u8 limit;
	__u8 padding[3];
};

static __always_inline bool is_encapsulation_limit(const struct encapsulation_limit *header)
{
	return header->length == 0 && header->option == 4 && header->option_length == 1 &&
	       header->padding[0] == 1 && header->padding[1] == 1 && header->padding[2] == 0;
}

/* Whether an inner IP header of the version that `protocol` says is complete within `length` bytes. */
static __always_inline bool inner_header_complete(struct cursor cursor, __u8 protocol, __u32 length)
{
	const __u8 *first = cursor.at;
	__u32 header = sizeof(struct ipv6hdr);
	__u8 version = IPV6_VERSION;

	if (!take(&cursor, __u8))
		return false;
	if (protocol == IPPROTO_IPIP) {
		header = (*first & 0x0f) * 4;
		version = 0x40;
		if (header < sizeof(struct iphdr))
			return false;
	}
	return (*first & 0xf0) == version && length >= header;
}

#endif
