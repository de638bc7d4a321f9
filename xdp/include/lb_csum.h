/* SPDX-License-Identifier: GPL-2.0-only */
/* Internet checksums (RFC 1071), updated in place (RFC 1624, equation 3) where a few words change. */
#ifndef LB_CSUM_H
#define LB_CSUM_H

static __always_inline __u16 csum_fold32(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)~sum;
}

static __always_inline __u32 csum_fold64(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (__u32)sum;
}

/* The sum of so many words of 32 bits, still to be folded. */
static __always_inline __u64 csum_u32s(const __u32 *word, int words)
{
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < words; i++)
		sum += word[i];
	return sum;
}

/* ~HC' = ~HC + ~m + m', with diff = ~m + m' as a 32-bit one's-complement sum. */
static __always_inline __u16 csum_apply(__u16 check, __u32 diff)
{
	return csum_fold32(csum_fold64((__u64)(__u16)~check + diff));
}

/* The 32-bit one's-complement difference that replacing `from` by `to` makes. */
static __always_inline __u32 csum_diff_addr(const __u32 *from, const __u32 *to, int ipv6)
{
	__u64 sum = (__u64)(__u32)~from[3] + to[3];

	if (ipv6) {
		sum += (__u64)(__u32)~from[0] + to[0];
		sum += (__u64)(__u32)~from[1] + to[1];
		sum += (__u64)(__u32)~from[2] + to[2];
	}
	return csum_fold64(sum);
}

static __always_inline __u32 csum_diff_u16(__u16 from, __u16 to)
{
	return (__u32)(__u16)~from + to;
}

#endif
