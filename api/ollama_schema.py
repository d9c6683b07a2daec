"""Bodies of requests and responses under /api: Ollama's.

Pure. As in schema.py a field that nobody knows is an error, and so is a known one with a value that
is not supported. null always means "not given".
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType

from .schema import Ignored, Only, TokenLogprob


class OllamaOptions(Struct, forbid_unknown_fields=True, kw_only=True):
    """What `options` may hold."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    """-1: any."""
    num_predict: int | None = None
    """The most tokens of the answer; 0 or less: as many as fit."""
    stop: str | list[str] | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    """Tokens that penalties look back at: -1 is all, 0 none."""
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    num_ctx: int | None = None
    """Does nothing, but must not be more than the model's length."""

    mirostat: Only = 0
    tfs_z: Only = 1
    typical_p: Only = 1
    penalize_newline: Only = True

    mirostat_tau: Ignored = None
    mirostat_eta: Ignored = None
    num_keep: Ignored = None
    num_batch: Ignored = None
    num_gpu: Ignored = None
    main_gpu: Ignored = None
    num_thread: Ignored = None
    numa: Ignored = None
    low_vram: Ignored = None
    f16_kv: Ignored = None
    logits_all: Ignored = None
    vocab_only: Ignored = None
    use_mmap: Ignored = None
    use_mlock: Ignored = None
    embedding_only: Ignored = None
    draft_num_predict: Ignored = None


class OllamaBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """What both kinds of generation share."""

    model: str
    stream: bool | None = None
    """Not false: a stream."""
    format: Any = None
    """ "json", or a JSON Schema."""
    options: OllamaOptions | None = None
    think: bool | str | None = None
    """Whether to think, or how much: low, medium or high."""
    logprobs: bool | None = None
    top_logprobs: int | None = None

    truncate: Only = False
    shift: Only = False
    keep_alive: Ignored = None


class OllamaGenerateBody(OllamaBody, kw_only=True):
    """POST /api/generate."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    """true: the prompt is not put into the chat template."""

    suffix: Only = ""
    template: Only = ""
    context: Only = []
    images: Only = []
    width: Only = 0
    height: Only = 0
    steps: Only = 0


class OllamaFunction(Struct, frozen=True, kw_only=True):
    """A call's tool and arguments."""

    index: int | UnsetType | None = UNSET
    name: str
    arguments: dict[str, Any] = {}


class OllamaCall(Struct, frozen=True, kw_only=True):
    """One call of a tool."""

    id: str | UnsetType | None = UNSET
    type: str | UnsetType | None = UNSET
    function: OllamaFunction


class OllamaMessage(Struct, forbid_unknown_fields=True, kw_only=True):
    """A message of a conversation."""

    role: str
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[OllamaCall] | None = None
    tool_name: str | None = None
    """Of the tool whose result this is."""
    tool_call_id: str | None = None
    images: Only = []


class OllamaChatBody(OllamaBody, kw_only=True):
    """POST /api/chat."""

    messages: list[OllamaMessage] | None = None
    tools: list[dict[str, Any]] | None = None


class OllamaAnswer(Struct, frozen=True, kw_only=True):
    """What both kinds of answers say; what is unset is said with the end only."""

    model: str
    created_at: str
    done: bool
    logprobs: list[TokenLogprob] | UnsetType = UNSET
    done_reason: str | UnsetType = UNSET
    seed: int | UnsetType | None = UNSET
    """Give it to get the same answer again."""
    total_duration: int | UnsetType = UNSET
    """Nanoseconds from when the engine had the request until it ended,"""
    load_duration: int | UnsetType = UNSET
    """in the queue,"""
    prompt_eval_duration: int | UnsetType = UNSET
    """until the first token,"""
    eval_duration: int | UnsetType = UNSET
    """and until the last."""
    prompt_eval_count: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    """Tokens of prompt and answer."""


class OllamaGenerateAnswer(OllamaAnswer, frozen=True, kw_only=True):
    """An answer of /api/generate, or a piece of it."""

    response: str
    thinking: str | UnsetType = UNSET


class OllamaAnswerMessage(Struct, frozen=True, kw_only=True):
    """The message of an answer."""

    role: str = "assistant"
    content: str = ""
    thinking: str | UnsetType = UNSET
    tool_calls: list[OllamaCall] | UnsetType = UNSET


class OllamaChatAnswer(OllamaAnswer, frozen=True, kw_only=True):
    """An answer of /api/chat, or a piece of it."""

    message: OllamaAnswerMessage


class OllamaDetails(Struct, frozen=True, kw_only=True):
    """What kind of model it is; what is not known is empty."""

    parent_model: str = ""
    format: str = "safetensors"
    family: str = ""
    families: list[str] = []
    parameter_size: str = ""
    quantization_level: str = ""


class OllamaModel(Struct, frozen=True, kw_only=True):
    """An entry of GET /api/tags."""

    name: str
    model: str
    modified_at: str
    size: int = 0
    digest: str = ""
    details: OllamaDetails = OllamaDetails()


class OllamaModels(Struct, frozen=True):
    """GET /api/tags."""

    models: list[OllamaModel]


class OllamaEmbedBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """POST /api/embed."""

    model: str
    input: str | list[str]
    truncate: bool | None = None
    """Not false: a text that is too long loses its end."""
    dimensions: int | None = None
    options: OllamaOptions | None = None
    keep_alive: Ignored = None


class OllamaEmbedOneBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """POST /api/embeddings."""

    model: str
    prompt: str
    options: OllamaOptions | None = None
    keep_alive: Ignored = None


class OllamaEmbeddings(Struct, frozen=True, kw_only=True):
    """What /api/embed answers."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    """Nanoseconds."""
    load_duration: int = 0
    prompt_eval_count: int


class OllamaEmbedding(Struct, frozen=True):
    """What /api/embeddings answers."""

    embedding: list[float]


class OllamaShowBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """POST /api/show."""

    model: str | None = None
    name: str | None = None
    """The older name of `model`."""
    verbose: Ignored = None


class OllamaShown(Struct, frozen=True, kw_only=True):
    """What POST /api/show tells of a model."""

    modified_at: str
    template: str
    """Jinja."""
    model_info: dict[str, str | int]
    capabilities: list[str]
    details: OllamaDetails = OllamaDetails()
    modelfile: str = ""
    parameters: str = ""
    license: str = ""
