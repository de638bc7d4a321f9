"""How long `lbctl rollout abort` takes to the last kernel: `aborting.py STORE SERVICE CANARY,… PIN_DIR…`
in the namespace of a node, with LB_CONFIG.

Prints {"command": ms, "decision": ms, "back": slots}: from the start of the command, and from the moment
that is in the history, until no kernel had a slot for the canary; and how many slots it had again in the
second after.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from lb.lab.node import program
from lb.lab.propagation import Kernels
from lb.model.rollout import Phase
from lb.store import rollouts
from lb.store.opening import open_store

PATIENCE = 20.0
AFTER = 1.0

url, service, canary, *pins = sys.argv[1:]
views = [Kernels(service, name, [Path(each) for each in pins]) for name in canary.split(",")]


def held() -> int:
    return sum(view.share(node) for view in views for node in range(len(pins)))


assert held(), "no kernel has a slot for the canary before the abort"
begin = time.time()
command = subprocess.Popen([*program("lbctl"), "rollout", "abort", service], stdout=subprocess.DEVNULL)
while held():
    assert time.time() < begin + PATIENCE, "kernels still hold the canary"
    time.sleep(0.001)
end = time.time()
assert command.wait() == 0
back = 0
while time.time() < end + AFTER:
    back = max(back, held())
    time.sleep(0.01)
with open_store(url) as store:
    found = rollouts.find(store, service)
assert found
decided = next(each.at for each in found.rollout.status.history if each.phase is Phase.ABORTING)
print(json.dumps({"command": (end - begin) * 1e3, "decision": (end - decided) * 1e3, "back": back}))
