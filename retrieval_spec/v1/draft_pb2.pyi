from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ServerInfo(_message.Message):
    __slots__ = ("version", "incarnation", "vocab_size", "source_names", "datastores", "wanted_topk", "state_dimensions", "takes_ended")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_NAMES_FIELD_NUMBER: _ClassVar[int]
    DATASTORES_FIELD_NUMBER: _ClassVar[int]
    WANTED_TOPK_FIELD_NUMBER: _ClassVar[int]
    STATE_DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    TAKES_ENDED_FIELD_NUMBER: _ClassVar[int]
    version: str
    incarnation: int
    vocab_size: int
    source_names: _containers.RepeatedScalarFieldContainer[str]
    datastores: _containers.RepeatedCompositeFieldContainer[Datastore]
    wanted_topk: int
    state_dimensions: int
    takes_ended: bool
    def __init__(self, version: _Optional[str] = ..., incarnation: _Optional[int] = ..., vocab_size: _Optional[int] = ..., source_names: _Optional[_Iterable[str]] = ..., datastores: _Optional[_Iterable[_Union[Datastore, _Mapping]]] = ..., wanted_topk: _Optional[int] = ..., state_dimensions: _Optional[int] = ..., takes_ended: bool = ...) -> None: ...

class Datastore(_message.Message):
    __slots__ = ("name", "tokenizer_fingerprint")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    name: str
    tokenizer_fingerprint: str
    def __init__(self, name: _Optional[str] = ..., tokenizer_fingerprint: _Optional[str] = ...) -> None: ...

class GetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetInfoResponse(_message.Message):
    __slots__ = ("info",)
    INFO_FIELD_NUMBER: _ClassVar[int]
    info: ServerInfo
    def __init__(self, info: _Optional[_Union[ServerInfo, _Mapping]] = ...) -> None: ...

class GetProjectionRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetProjectionResponse(_message.Message):
    __slots__ = ("projection",)
    PROJECTION_FIELD_NUMBER: _ClassVar[int]
    projection: Projection
    def __init__(self, projection: _Optional[_Union[Projection, _Mapping]] = ...) -> None: ...

class Projection(_message.Message):
    __slots__ = ("mean", "scale", "components", "model_fingerprint")
    MEAN_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    mean: bytes
    scale: bytes
    components: bytes
    model_fingerprint: str
    def __init__(self, mean: _Optional[bytes] = ..., scale: _Optional[bytes] = ..., components: _Optional[bytes] = ..., model_fingerprint: _Optional[str] = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("prompt_token_ids", "namespace", "replaced_session_id", "ended")
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    REPLACED_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    prompt_token_ids: bytes
    namespace: str
    replaced_session_id: int
    ended: _containers.RepeatedCompositeFieldContainer[CloseSessionRequest]
    def __init__(self, prompt_token_ids: _Optional[bytes] = ..., namespace: _Optional[str] = ..., replaced_session_id: _Optional[int] = ..., ended: _Optional[_Iterable[_Union[CloseSessionRequest, _Mapping]]] = ...) -> None: ...

class OpenSessionResponse(_message.Message):
    __slots__ = ("session_id", "info")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    info: ServerInfo
    def __init__(self, session_id: _Optional[int] = ..., info: _Optional[_Union[ServerInfo, _Mapping]] = ...) -> None: ...

class DraftStep(_message.Message):
    __slots__ = ("step_number", "incarnation", "session_ids", "context_lengths", "commit_lengths", "commit_token_ids", "max_nodes", "total_nodes", "feedback", "cost_curve", "pad_to_nodes")
    STEP_NUMBER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    COMMIT_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    COMMIT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_NODES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_NODES_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    COST_CURVE_FIELD_NUMBER: _ClassVar[int]
    PAD_TO_NODES_FIELD_NUMBER: _ClassVar[int]
    step_number: int
    incarnation: int
    session_ids: bytes
    context_lengths: bytes
    commit_lengths: bytes
    commit_token_ids: bytes
    max_nodes: bytes
    total_nodes: int
    feedback: _containers.RepeatedCompositeFieldContainer[SessionFeedback]
    cost_curve: CostCurve
    pad_to_nodes: int
    def __init__(self, step_number: _Optional[int] = ..., incarnation: _Optional[int] = ..., session_ids: _Optional[bytes] = ..., context_lengths: _Optional[bytes] = ..., commit_lengths: _Optional[bytes] = ..., commit_token_ids: _Optional[bytes] = ..., max_nodes: _Optional[bytes] = ..., total_nodes: _Optional[int] = ..., feedback: _Optional[_Iterable[_Union[SessionFeedback, _Mapping]]] = ..., cost_curve: _Optional[_Union[CostCurve, _Mapping]] = ..., pad_to_nodes: _Optional[int] = ...) -> None: ...

class CostCurve(_message.Message):
    __slots__ = ("node_counts", "costs")
    NODE_COUNTS_FIELD_NUMBER: _ClassVar[int]
    COSTS_FIELD_NUMBER: _ClassVar[int]
    node_counts: bytes
    costs: bytes
    def __init__(self, node_counts: _Optional[bytes] = ..., costs: _Optional[bytes] = ...) -> None: ...

class SessionFeedback(_message.Message):
    __slots__ = ("session_index", "node_token_ids", "node_parents", "topk_ids", "topk_logprobs", "hidden_state", "phrase_length", "phrases")
    SESSION_INDEX_FIELD_NUMBER: _ClassVar[int]
    NODE_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NODE_PARENTS_FIELD_NUMBER: _ClassVar[int]
    TOPK_IDS_FIELD_NUMBER: _ClassVar[int]
    TOPK_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_STATE_FIELD_NUMBER: _ClassVar[int]
    PHRASE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    PHRASES_FIELD_NUMBER: _ClassVar[int]
    session_index: int
    node_token_ids: bytes
    node_parents: bytes
    topk_ids: bytes
    topk_logprobs: bytes
    hidden_state: bytes
    phrase_length: int
    phrases: bytes
    def __init__(self, session_index: _Optional[int] = ..., node_token_ids: _Optional[bytes] = ..., node_parents: _Optional[bytes] = ..., topk_ids: _Optional[bytes] = ..., topk_logprobs: _Optional[bytes] = ..., hidden_state: _Optional[bytes] = ..., phrase_length: _Optional[int] = ..., phrases: _Optional[bytes] = ...) -> None: ...

class DraftStepResult(_message.Message):
    __slots__ = ("step_number", "incarnation", "statuses", "errors", "node_counts", "token_ids", "parents", "probs", "sources")
    STEP_NUMBER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    NODE_COUNTS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    PROBS_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    step_number: int
    incarnation: int
    statuses: bytes
    errors: _containers.RepeatedCompositeFieldContainer[SessionError]
    node_counts: bytes
    token_ids: bytes
    parents: bytes
    probs: bytes
    sources: bytes
    def __init__(self, step_number: _Optional[int] = ..., incarnation: _Optional[int] = ..., statuses: _Optional[bytes] = ..., errors: _Optional[_Iterable[_Union[SessionError, _Mapping]]] = ..., node_counts: _Optional[bytes] = ..., token_ids: _Optional[bytes] = ..., parents: _Optional[bytes] = ..., probs: _Optional[bytes] = ..., sources: _Optional[bytes] = ...) -> None: ...

class SessionError(_message.Message):
    __slots__ = ("session_index", "type", "message")
    SESSION_INDEX_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    session_index: int
    type: str
    message: str
    def __init__(self, session_index: _Optional[int] = ..., type: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class DraftRequest(_message.Message):
    __slots__ = ("step",)
    STEP_FIELD_NUMBER: _ClassVar[int]
    step: DraftStep
    def __init__(self, step: _Optional[_Union[DraftStep, _Mapping]] = ...) -> None: ...

class DraftResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: DraftStepResult
    def __init__(self, result: _Optional[_Union[DraftStepResult, _Mapping]] = ...) -> None: ...

class DraftStreamRequest(_message.Message):
    __slots__ = ("step", "ahead_outcomes", "ended")
    STEP_FIELD_NUMBER: _ClassVar[int]
    AHEAD_OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    step: DraftStep
    ahead_outcomes: int
    ended: _containers.RepeatedCompositeFieldContainer[CloseSessionRequest]
    def __init__(self, step: _Optional[_Union[DraftStep, _Mapping]] = ..., ahead_outcomes: _Optional[int] = ..., ended: _Optional[_Iterable[_Union[CloseSessionRequest, _Mapping]]] = ...) -> None: ...

class DraftStreamResponse(_message.Message):
    __slots__ = ("result", "ahead")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    result: DraftStepResult
    ahead: DraftAhead
    def __init__(self, result: _Optional[_Union[DraftStepResult, _Mapping]] = ..., ahead: _Optional[_Union[DraftAhead, _Mapping]] = ...) -> None: ...

class DraftAhead(_message.Message):
    __slots__ = ("trees", "outcome_lengths", "outcome_token_ids")
    TREES_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    trees: DraftStepResult
    outcome_lengths: bytes
    outcome_token_ids: bytes
    def __init__(self, trees: _Optional[_Union[DraftStepResult, _Mapping]] = ..., outcome_lengths: _Optional[bytes] = ..., outcome_token_ids: _Optional[bytes] = ...) -> None: ...

class TruncateSessionRequest(_message.Message):
    __slots__ = ("session_id", "context_length", "kept_length")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    KEPT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    context_length: int
    kept_length: int
    def __init__(self, session_id: _Optional[int] = ..., context_length: _Optional[int] = ..., kept_length: _Optional[int] = ...) -> None: ...

class TruncateSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ("session_id", "context_length", "commit_token_ids")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    COMMIT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    context_length: int
    commit_token_ids: bytes
    def __init__(self, session_id: _Optional[int] = ..., context_length: _Optional[int] = ..., commit_token_ids: _Optional[bytes] = ...) -> None: ...

class CloseSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DraftSuffixesRequest(_message.Message):
    __slots__ = ("namespace", "context_lengths", "suffix_lengths", "suffix_token_ids", "max_nodes", "total_nodes", "cost_curve", "pad_to_nodes")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    SUFFIX_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    SUFFIX_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_NODES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_NODES_FIELD_NUMBER: _ClassVar[int]
    COST_CURVE_FIELD_NUMBER: _ClassVar[int]
    PAD_TO_NODES_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    context_lengths: bytes
    suffix_lengths: bytes
    suffix_token_ids: bytes
    max_nodes: bytes
    total_nodes: int
    cost_curve: CostCurve
    pad_to_nodes: int
    def __init__(self, namespace: _Optional[str] = ..., context_lengths: _Optional[bytes] = ..., suffix_lengths: _Optional[bytes] = ..., suffix_token_ids: _Optional[bytes] = ..., max_nodes: _Optional[bytes] = ..., total_nodes: _Optional[int] = ..., cost_curve: _Optional[_Union[CostCurve, _Mapping]] = ..., pad_to_nodes: _Optional[int] = ...) -> None: ...

class DraftSuffixesResponse(_message.Message):
    __slots__ = ("result", "missing_tokens", "info")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    MISSING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    result: DraftStepResult
    missing_tokens: bytes
    info: ServerInfo
    def __init__(self, result: _Optional[_Union[DraftStepResult, _Mapping]] = ..., missing_tokens: _Optional[bytes] = ..., info: _Optional[_Union[ServerInfo, _Mapping]] = ...) -> None: ...

class FramedHello(_message.Message):
    __slots__ = ("authorization",)
    AUTHORIZATION_FIELD_NUMBER: _ClassVar[int]
    authorization: str
    def __init__(self, authorization: _Optional[str] = ...) -> None: ...

class FramedRefusal(_message.Message):
    __slots__ = ("status", "type", "message")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    status: int
    type: str
    message: str
    def __init__(self, status: _Optional[int] = ..., type: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...
