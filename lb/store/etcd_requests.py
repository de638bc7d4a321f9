"""From the store's values to etcd's messages and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lb.store.base import Compare, Delete, Event, KeyValue, Put, Unwritten
from lb.store.etcd_package import rpc

# etcd's --max-txn-ops, 128 unless it was raised: no level of a transaction may have more compares, or
# more operations. A nested transaction counts as one operation, and what it holds must fit into what the
# level above leaves free (checkTxnRequest in etcdserver/api/v3rpc/key.go). All compares are looked at
# before anything is written, so a tree of transactions is as atomic as a flat one.
MAX_OPERATIONS = 128
_EVENT_DELETE = 1  # mvccpb.Event.DELETE


def prefix_range(prefix: str) -> tuple[bytes, bytes]:
    """key and range_end of all keys that begin with `prefix`."""
    if not prefix:
        return b"\0", b"\0"  # etcd: from the first key to the last
    first = prefix.encode()
    return first, first[:-1] + bytes((first[-1] + 1,))  # no byte of UTF-8 is 0xFF


def key_value(message: Any) -> KeyValue:
    """What others wrote need not be UTF-8: it is shown as it can be, and no document is valid so."""
    return KeyValue(
        _text(message.key), _text(message.value), message.mod_revision, message.create_revision
    )


def event(message: Any) -> Event:
    """One change."""
    deleted = message.type == _EVENT_DELETE
    return Event(
        _text(message.kv.key),
        None if deleted else _text(message.kv.value),
        message.kv.mod_revision,
    )


def transaction(operations: Sequence[Put | Delete], compares: Sequence[Compare | Unwritten]) -> Any:
    """A TxnRequest. If a compare does not hold, its answer has the revisions that there are, in
    order."""
    wanted = [_operation(each) for each in operations]
    return rpc.TxnRequest(
        compare=[_compare(each) for each in compares],
        success=_nested(wanted, len(compares)),
        failure=[rpc.RequestOp(request_range=_compared(each)) for each in compares],
    )


def _nested(operations: list[Any], compares: int) -> list[Any]:
    """The operations themselves if they fit, or as few nested transactions as hold them all."""
    if len(operations) <= MAX_OPERATIONS:
        return operations
    for groups in range(2, MAX_OPERATIONS):
        size = -(-len(operations) // groups)
        if size <= MAX_OPERATIONS - max(groups, compares):
            return [
                rpc.RequestOp(request_txn=rpc.TxnRequest(success=operations[start : start + size]))
                for start in range(0, len(operations), size)
            ]
    return operations  # etcd says no, unless its limit was raised


def _operation(operation: Put | Delete) -> Any:
    key = operation.key.encode()
    if isinstance(operation, Delete):
        return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))
    return rpc.RequestOp(
        request_put=rpc.PutRequest(key=key, value=operation.value.encode(), lease=operation.lease or 0)
    )


def _compare(compare: Compare | Unwritten) -> Any:
    if isinstance(compare, Unwritten):
        key, range_end = prefix_range(compare.prefix)
        return rpc.Compare(
            result=rpc.Compare.LESS,
            target=rpc.Compare.MOD,
            key=key,
            range_end=range_end,
            mod_revision=compare.after + 1,
        )
    return rpc.Compare(
        result=rpc.Compare.EQUAL,
        target=rpc.Compare.MOD,
        key=compare.key.encode(),
        mod_revision=compare.mod_revision,
    )


def _compared(compare: Compare | Unwritten) -> Any:
    """What a compare was about: the key, or the one of many that was put last."""
    if isinstance(compare, Compare):
        return rpc.RangeRequest(key=compare.key.encode(), keys_only=True)
    key, range_end = prefix_range(compare.prefix)
    return rpc.RangeRequest(
        key=key,
        range_end=range_end,
        keys_only=True,
        limit=1,
        sort_order=rpc.RangeRequest.DESCEND,
        sort_target=rpc.RangeRequest.MOD,
    )


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
