"""docs/reference/etcd.md: what other services need to know to read and write desired state in etcd."""

from __future__ import annotations

import json
from pathlib import Path

from lb.cli.declarative import DOCUMENTS
from lb.model import keys
from lb.model.document import LATEST

EXAMPLES = Path(__file__).resolve().parents[2] / "configs/etcd/examples"

# document: key, who writes it, what for
LAYOUT = {
    "config": (keys.CONFIG, "lbctl, once", "The seed of the flow hash, which all nodes must share."),
    "service": (keys.service("<service>"), "people, deployments", "A VIP with its policies."),
    "backend": (
        keys.backend("<service>", "<backend>"),
        "people, deployments",
        "A server of a service.",
    ),
    "table": (
        keys.table("<service>"),
        "nodes",
        "A slot table; `<service>/<pool>` for a pool that rules send clients to.",
    ),
    "node": (keys.node("<node>"), "that node, under a lease", "What a node reports of itself."),
    "votes": (
        keys.votes("<node>"),
        "that node, under the same lease",
        "What its checks found, in short: what the other nodes want to know of it.",
    ),
    "member": (
        keys.member("<node>"),
        "that node",
        "Stays when the node is lost: its status is gone, this is not.",
    ),
    "flows": (
        keys.observed("<service>", "<node>"),
        "that node, under the same lease",
        "What a node, or a server itself, saw of the connections of a service that is observed.",
    ),
    "record": (keys.record("<any name>"), "who makes a change", "Who changed what, and why."),
    "rollout": (
        keys.rollout("<service>"),
        "deployments, then nodes",
        "A rollout: `spec` is what was asked, `status` how far it is; who begins one leaves that out.",
    ),
    "evidence": (
        keys.evidence("<service>"),
        "the node that runs it",
        "What a rollout is judged by.",
    ),
    "lock": (keys.ROLLOUT_LOCK, "a node, under a lease", "Which node runs the rollouts."),
}

INTRODUCTION = """\
# The store: keys and documents

What is wanted is under one prefix, `{root}`, one JSON document a key. Nodes watch it and do what it
says, whoever wrote it: any etcd client can drive lb. What nodes report is beside it, under
`{reports}`: nobody watches that but who wants to know. (In the embedded store the keys are the same,
but only `lbctl` writes there.)

| key | document | written by | |
|---|---|---|---|
{layout}

## Rules for who writes

- **One document, one key.** A document's names must be those of its key. Settings that are left out
  have their defaults; unknown ones are errors. In what nodes report they are ignored, and in slot
  tables, so that an older node reads a newer one's; do so, too, if you read them.
- **Numbers have bounds**, also in what nodes write: times are at most {latest} (the year 2242), and
  NaN and infinity are none.
- **Compare before you set.** Read the key, change what you are about, and write it in a transaction
  that compares the key's `mod_revision` (0 = it must not exist). Else somebody's change is lost.
- **What is wrong is quarantined**, not obeyed: the last good version of the object stays in force,
  and `lbctl status`, the node's status, its log and its metrics say why. That holds for documents that
  are no valid JSON, don't match the schema or have more than 524,288 characters, and for those that
  contradict others: a backend of a service that does not exist, the second service with a VIP, or the
  second backend with a socket, a VIP that is a backend's address. A rollout that is no valid document
  is not run: `lbctl status` and the nodes' logs say so. Keys that nobody reads are listed there, too.
- **What was in force keeps what it has.** Of what is new, and on a node that has no memory, the key that
  is older (`create_revision`; in the embedded store, where `lbctl` refuses all this, the last change)
  goes before the other, and of one transaction the first by name.
- **Together in one transaction** is applied together: a packet sees all of it or nothing.
- **`config` is the lock of structure.** Adding or removing services and backends, or changing a
  VIP, a mode, rules or an address, can contradict what somebody else is just writing to another key.
  `lbctl` therefore rewrites `config` (with the value that it has) in every such transaction, and
  compares its `mod_revision`. Do the same, and such a race is a conflict, not a quarantine.
  Weights, drains, splits and policies need none of it.
- **Never change the seed** in `config`, and never delete it: it says where every flow goes. Whoever
  adds the first service may leave it out; a node makes one, if it has the right to (with the roles of
  configs/etcd only `lb-admin` has, so then it has to be there).
- **Deleting everything** under `{root}` is not taken for a wish: nodes keep what is in force, and
  say so. Delete services.
- **A rollout is begun by one document**, `service`, `id` and `spec`, if there is none or the last one is
  over (`status.phase` is `promoted` or `aborted`). Later only `status.ask` is anybody's to write, for a
  command. While it is under way the service's split belongs to it: another one ends it, and stays.
- Leave `{reports}`, `members` and `tables` to the nodes. Writing a `record` is optional.
- The rights for all this: [configs/etcd](../../configs/etcd/README.md).

Applied is a change when each document under `{nodes}` has a `revision` at or above that of the
transaction: that is what `--wait` waits for.

## With etcdctl

A weight, by compare-and-set:

```bash
key={backend}
revision=$(etcdctl get "$key" -w json | sed -E 's/.*"mod_revision":([0-9]+).*/\\1/')
value=$(etcdctl get "$key" --print-value-only | sed -E 's/"weight":[0-9]+/"weight":10/; s/[\\"]/\\\\&/g')
etcdctl txn <<END
mod("$key") = "$revision"

put $key "$value"


END
```

It says `SUCCESS`, or `FAILURE` when somebody else was faster: then read again.

## With Python

The same, without any package, through etcd's JSON gateway:

```python
import base64
import json
import os
import urllib.request

ETCD = os.environ.get("ETCD", "http://127.0.0.1:2379")
KEY = "{backend}"


def ask(path, **body):
    request = urllib.request.Request(f"{{ETCD}}/v3/{{path}}", json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def packed(text):
    return base64.b64encode(text.encode()).decode()


found = ask("kv/range", key=packed(KEY))["kvs"][0]
backend = json.loads(base64.b64decode(found["value"]))
backend["weight"] = 20
done = ask(
    "kv/txn",
    compare=[{{"target": "MOD", "key": packed(KEY), "mod_revision": found["mod_revision"]}}],
    success=[{{"request_put": {{"key": packed(KEY), "value": packed(json.dumps(backend))}}}}],
)
print("done" if done.get("succeeded") else "somebody else was faster: read again")
```

## With Python and etcd3

[etcd3](https://pypi.org/project/etcd3/) 0.12 wants protobuf 3.20 (`pip install etcd3 'protobuf<4'`), or
`PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python` in the environment. These are files in
configs/etcd/examples. Whoever was not alone reads again, and tries again.

{add_service}
`spec` of a rollout may have what the [schema](#rollout) lists; `pool` and `steps` it has to have.

{begin_rollout}
A node that is lost keeps its `member` and has no status: nobody waits for it here. What a node could not
do is among the `problems` of its status.

{wait_applied}
## Schemas

JSON Schema of each document; `lbctl schema` prints the same.
"""


def etcd_page() -> str:
    """The page."""
    rows = [
        f"| `{key}` | [{name}](#{name}) | {writer} | {what} |"
        for name, (key, writer, what) in LAYOUT.items()
    ]
    parts = [
        INTRODUCTION.format(
            root=keys.ROOT,
            nodes=keys.NODES,
            reports=keys.REPORTS,
            backend=keys.backend("web", "b1"),
            latest=LATEST,
            **{each.stem: f"```python\n{each.read_text()}```\n" for each in EXAMPLES.glob("*.py")},
            layout="\n".join(rows),
        )
    ]
    for name, kind in DOCUMENTS.items():
        schema = json.dumps(kind.model_json_schema(), indent=2, ensure_ascii=False)
        parts.append(f"### {name}\n\n```json\n{schema}\n```\n")
    return "\n".join(parts)
