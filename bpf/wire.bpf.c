// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * One end of a wire: every frame that comes in by the device leaves by the one at the other end.
 *
 * It runs on tc ingress (clsact). There frames are whole again, however the device received them, and the kernel's stack
 * has not seen them yet.
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The interface index; set before loading. */
volatile const __u32 other_end;

SEC("tc")
int greyhound_wire(struct __sk_buff *skb)
{
	(void)skb;
	/* Where there is no such device any more the frame is dropped: it is nobody else's. */
	return bpf_redirect(other_end, 0);
}
