"""`make bench`: what lb costs and how its tables behave, measured beside others in the same run."""
