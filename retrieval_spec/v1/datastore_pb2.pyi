from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ServedDatastore(_message.Message):
    __slots__ = ("name", "folder", "kind", "generation", "num_segments", "num_tokens", "num_documents", "num_bytes", "vocab_size", "tokenizer_fingerprint")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    NUM_SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    name: str
    folder: str
    kind: str
    generation: int
    num_segments: int
    num_tokens: int
    num_documents: int
    num_bytes: int
    vocab_size: int
    tokenizer_fingerprint: str
    def __init__(self, name: _Optional[str] = ..., folder: _Optional[str] = ..., kind: _Optional[str] = ..., generation: _Optional[int] = ..., num_segments: _Optional[int] = ..., num_tokens: _Optional[int] = ..., num_documents: _Optional[int] = ..., num_bytes: _Optional[int] = ..., vocab_size: _Optional[int] = ..., tokenizer_fingerprint: _Optional[str] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("datastores",)
    DATASTORES_FIELD_NUMBER: _ClassVar[int]
    datastores: _containers.RepeatedCompositeFieldContainer[ServedDatastore]
    def __init__(self, datastores: _Optional[_Iterable[_Union[ServedDatastore, _Mapping]]] = ...) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("name", "folder")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    name: str
    folder: str
    def __init__(self, name: _Optional[str] = ..., folder: _Optional[str] = ...) -> None: ...

class LoadResponse(_message.Message):
    __slots__ = ("datastore",)
    DATASTORE_FIELD_NUMBER: _ClassVar[int]
    datastore: ServedDatastore
    def __init__(self, datastore: _Optional[_Union[ServedDatastore, _Mapping]] = ...) -> None: ...

class UnloadRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SwapRequest(_message.Message):
    __slots__ = ("name", "folder")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    name: str
    folder: str
    def __init__(self, name: _Optional[str] = ..., folder: _Optional[str] = ...) -> None: ...

class SwapResponse(_message.Message):
    __slots__ = ("datastore", "is_changed")
    DATASTORE_FIELD_NUMBER: _ClassVar[int]
    IS_CHANGED_FIELD_NUMBER: _ClassVar[int]
    datastore: ServedDatastore
    is_changed: bool
    def __init__(self, datastore: _Optional[_Union[ServedDatastore, _Mapping]] = ..., is_changed: bool = ...) -> None: ...

class AppendRequest(_message.Message):
    __slots__ = ("name", "token_ids", "document_lengths", "origin", "tokenizer_fingerprint")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    name: str
    token_ids: bytes
    document_lengths: bytes
    origin: str
    tokenizer_fingerprint: str
    def __init__(self, name: _Optional[str] = ..., token_ids: _Optional[bytes] = ..., document_lengths: _Optional[bytes] = ..., origin: _Optional[str] = ..., tokenizer_fingerprint: _Optional[str] = ...) -> None: ...

class AppendResponse(_message.Message):
    __slots__ = ("datastore", "num_added", "num_duplicates")
    DATASTORE_FIELD_NUMBER: _ClassVar[int]
    NUM_ADDED_FIELD_NUMBER: _ClassVar[int]
    NUM_DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    datastore: ServedDatastore
    num_added: int
    num_duplicates: int
    def __init__(self, datastore: _Optional[_Union[ServedDatastore, _Mapping]] = ..., num_added: _Optional[int] = ..., num_duplicates: _Optional[int] = ...) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ("name", "folder")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    name: str
    folder: str
    def __init__(self, name: _Optional[str] = ..., folder: _Optional[str] = ...) -> None: ...

class SnapshotResponse(_message.Message):
    __slots__ = ("datastore", "path")
    DATASTORE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    datastore: ServedDatastore
    path: str
    def __init__(self, datastore: _Optional[_Union[ServedDatastore, _Mapping]] = ..., path: _Optional[str] = ...) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsResponse(_message.Message):
    __slots__ = ("datastores",)
    DATASTORES_FIELD_NUMBER: _ClassVar[int]
    datastores: _containers.RepeatedCompositeFieldContainer[DatastoreStats]
    def __init__(self, datastores: _Optional[_Iterable[_Union[DatastoreStats, _Mapping]]] = ...) -> None: ...

class DatastoreStats(_message.Message):
    __slots__ = ("datastore", "mapped_bytes", "resident_bytes", "retired_bytes", "num_sessions")
    DATASTORE_FIELD_NUMBER: _ClassVar[int]
    MAPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RETIRED_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    datastore: ServedDatastore
    mapped_bytes: int
    resident_bytes: int
    retired_bytes: int
    num_sessions: int
    def __init__(self, datastore: _Optional[_Union[ServedDatastore, _Mapping]] = ..., mapped_bytes: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., retired_bytes: _Optional[int] = ..., num_sessions: _Optional[int] = ...) -> None: ...
