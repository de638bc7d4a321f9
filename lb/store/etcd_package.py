"""The one way in to the `etcd3` package: `from lb.store.etcd_package import client, rpc`.

What protoc made for etcd3 0.12, in 2019, builds its descriptors one by one, which protobuf 4 and later
refuse. The same files carry the whole description of the API as one string of bytes, and that is a
format that every protobuf reads. So three of etcd3's modules are made here from that string, by
protobuf's own public functions, and put where `import etcd3` finds them:
docs/decisions/009-etcd3-and-protobuf.md.
"""

from __future__ import annotations

import ast
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message_factory import GetMessageClass

_FILES = ("kv", "auth", "rpc")  # each imports only those before it


def _description(source: str) -> bytes:
    """The serialized FileDescriptorProto in a module that protoc made: `serialized_pb=_b('...')`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == "serialized_pb":
            assert isinstance(node.value, ast.Call)
            text = ast.literal_eval(node.value.args[0])
            assert isinstance(text, str)
            return text.encode("latin-1")
    raise ImportError(f"etcd3 {version('etcd3')} is not made as lb knows it; 0.12.0 is")


def _make_modules() -> None:
    spec = find_spec("etcd3")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("the package etcd3 is not installed: `make venv` does it")
    folder = Path(spec.submodule_search_locations[0]) / "etcdrpc"
    # A pool of its own: "rpc.proto" and "auth.proto" are names that other packages might use, too.
    pool = DescriptorPool()
    for name in _FILES:
        pool.AddSerializedFile(_description((folder / f"{name}_pb2.py").read_text()))
        file = pool.FindFileByName(f"{name}.proto")
        module = ModuleType(f"etcd3.etcdrpc.{name}_pb2", f"etcd3's {name}.proto")
        for message, descriptor in file.message_types_by_name.items():
            setattr(module, message, GetMessageClass(descriptor))
        for enum, descriptor in file.enum_types_by_name.items():
            setattr(module, enum, EnumTypeWrapper(descriptor))
        sys.modules[module.__name__] = module


_make_modules()

from etcd3 import client  # noqa: E402 - it needs the modules made above
from etcd3 import etcdrpc as rpc  # noqa: E402

__all__ = ["client", "rpc"]
