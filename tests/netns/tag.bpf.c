/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Puts VLAN 5 on every frame, beside it, where a VLAN device would put it. For kernels that have none. */

static long (*vlan_push)(void *skb, unsigned short proto, unsigned short tci) = (void *)18;

__attribute__((section("tc"), used)) int tag(void *skb)
{
	vlan_push(skb, __builtin_bswap16(0x8100), 5);
	return 0; /* TC_ACT_OK */
}

__attribute__((section("license"), used)) char licence[] = "Dual BSD/GPL";
