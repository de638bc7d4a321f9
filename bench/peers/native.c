/* The peers' inner loops in C: as their authors would write them, so that the times are fair.
 * tests/unit/test_bench.py holds them against the Python versions, which are written to be read. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* bench/peers/maglev.py: fill(). Returns 0, or -1 without memory. */
int maglev(const uint64_t *offsets, const uint64_t *skips, const int64_t *weights, int64_t count,
	   int64_t size, int32_t *slots)
{
	int64_t *earned = calloc(count, sizeof(*earned));
	uint64_t *at = malloc(count * sizeof(*at));
	int64_t price = 0, filled = 0;

	if (!earned || !at) {
		free(earned);
		free(at);
		return -1;
	}
	memset(slots, 0xff, size * sizeof(*slots));
	for (int64_t i = 0; i < count; i++) {
		at[i] = offsets[i];
		price = weights[i] > price ? weights[i] : price;
	}
	while (filled < size) {
		for (int64_t i = 0; i < count && filled < size; i++) {
			earned[i] += weights[i];
			if (earned[i] < price)
				continue;
			earned[i] -= price;
			while (slots[at[i]] >= 0) {
				at[i] += skips[i];
				at[i] -= at[i] >= (uint64_t)size ? (uint64_t)size : 0;
			}
			slots[at[i]] = (int32_t)i;
			filled++;
		}
	}
	free(earned);
	free(at);
	return 0;
}

static inline uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

/* bench/peers/rendezvous.py: fill(). As -ln(u) >= 1 - u, most candidates need no logarithm. */
void rendezvous(const uint64_t *keys, const int64_t *weights, int64_t count, int64_t size,
		int32_t *owners)
{
	for (int64_t s = 0; s < size; s++) {
		uint64_t slot = mix(s + 1);
		double best = INFINITY;
		int32_t owner = 0;

		for (int64_t i = 0; i < count; i++) {
			double u = ((double)(mix(slot ^ keys[i]) >> 11) + 0.5) / 9007199254740992.0;
			double score;

			if (1 - u >= best * weights[i])
				continue;
			score = -log(u) / weights[i];
			if (score < best) {
				best = score;
				owner = (int32_t)i;
			}
		}
		owners[s] = owner;
	}
}
