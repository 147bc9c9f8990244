"""The promise of the messages: numbers, names and types never change under those who use them."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def protos():
    loader = SourceFileLoader("check_protos", str(REPOSITORY / "tools" / "check_protos"))
    module = module_from_spec(spec_from_loader("check_protos", loader))
    loader.exec_module(module)
    return module


def test_every_message_and_call_is_what_the_listing_says(protos):
    files = protos.descriptors()
    assert {file.name for file in files} == {
        "retrieval_spec/v1/draft.proto",
        "retrieval_spec/v1/datastore.proto",
        "retrieval_spec/v1/namespace.proto",
    }
    assert protos.listing(files) == protos.LISTING.read_text().splitlines()
    assert protos.faults(files) == []


CHANGES = {
    "removed": lambda fields: fields.pop(0),
    "renumbered": lambda fields: setattr(fields[0], "number", 19),
    "retyped": lambda fields: setattr(fields[0], "type", 9),
    "renamed": lambda fields: setattr(fields[0], "name", "other"),
    "repeated": lambda fields: setattr(fields[0], "label", 3),
    "made optional": None,
}


def changed(protos, change):
    """The listing of draft.proto with one field of `DraftStep` changed."""
    from google.protobuf import descriptor_pb2, descriptor_pool

    from retrieval_spec.v1 import draft_pb2

    file = descriptor_pb2.FileDescriptorProto.FromString(draft_pb2.DESCRIPTOR.serialized_pb)
    step = next(message for message in file.message_type if message.name == "DraftStep")
    if change is None:
        step.field[0].proto3_optional = True
        step.field[0].oneof_index = len(step.oneof_decl)
        step.oneof_decl.add(name="_step_number")
    else:
        change(step.field)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return protos.listing([pool.FindFileByName(file.name)])


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_field_is_a_break(protos, change):
    from retrieval_spec.v1 import draft_pb2

    kept = protos.listing([draft_pb2.DESCRIPTOR])
    assert len(protos.breaks(kept, changed(protos, change))) == 1
    assert protos.breaks(kept, changed(protos, lambda fields: None)) == []


def test_a_new_field_is_none(protos):
    kept = protos.listing(protos.descriptors())
    assert protos.breaks(kept, [*kept, "field retrieval_spec.v1.DraftStep 99 new bytes"]) == []
