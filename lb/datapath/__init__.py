"""The shell around the kernel side: compile, load, maps, attachment, next hops, counters."""
