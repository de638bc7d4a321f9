/* SPDX-License-Identifier: GPL-2.0-only */
/* Histograms of times: lb/core/histogram.py says what a bucket is. */
#ifndef LB_HISTOGRAM_H
#define LB_HISTOGRAM_H

/* The bucket of a time in us. The shift, its binary logarithm less LB_TIME_SUB_BITS, is found by halves, and
 * without branches, each of which would double what the verifier has to look at. */
static __always_inline __u64 bucket_of(__u64 time)
{
	__u64 x, shift, step;

	if (time >= 1ULL << LB_TIME_BITS)
		time = (1ULL << LB_TIME_BITS) - 1;
	x = time >> LB_TIME_SUB_BITS;
	shift = (x > 0xffff) << 4;
	x >>= shift;
	step = (x > 0xff) << 3;
	x >>= step;
	shift |= step;
	step = (x > 0xf) << 2;
	x >>= step;
	shift |= step;
	step = (x > 0x3) << 1;
	x >>= step;
	shift |= step;
	shift |= x > 0x1;
	return (shift << LB_TIME_SUB_BITS) + (time >> shift);
}

static __always_inline void count_time(__u64 *histogram, __u64 since, __u64 now)
{
	__u64 bucket = bucket_of((now - since) / 1000);

	lb_keep(bucket);
	if (bucket < LB_TIME_BUCKETS)
		__sync_fetch_and_add(&histogram[bucket], 1);
}

#endif
