from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class ForgetRequest(_message.Message):
    __slots__ = ("namespace",)
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    def __init__(self, namespace: _Optional[str] = ...) -> None: ...

class ForgetResponse(_message.Message):
    __slots__ = ("was_kept",)
    WAS_KEPT_FIELD_NUMBER: _ClassVar[int]
    was_kept: bool
    def __init__(self, was_kept: bool = ...) -> None: ...
