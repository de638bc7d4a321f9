"""`python -m lb.lab up|down|demo`."""

from lb.lab.cli import main

main()
