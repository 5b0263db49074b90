"""Every route of the engine that can be reached through the gateway, and every field that a request to it may have.

vLLM takes unknown fields, serves routes that change what runs, and says so nowhere: so both are allow-lists. A field that is
in neither a route's list nor `REFUSED` is unknown, and refused as well. `tests` hold the table against vLLM's own classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import unquote

DONE, MESSAGE_STOP = b"data: [DONE]\n\n", b"event: message_stop\n"
RESPONSE_COMPLETED = b"event: response.completed\n"
MAX_TEXT = 1024 * 1024  # about a second of the engine's one tokenizer, while which everybody waits


class Kind(Enum):
    """What a request carries."""

    NOTHING = "nothing"
    JSON = "JSON"
    FORM = "multipart/form-data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One way in."""

    engine: str  # the engine's own path
    kind: Kind = Kind.JSON
    fields: frozenset[str] = frozenset()
    ending: bytes | None = None  # how the last event of its streams begins; None: it never streams
    most: int | None = None  # bytes of a body, where neither the engine nor a key's tokens bound the work
    method: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", "GET" if self.kind is Kind.NOTHING else "POST")


# Named, so that the refusal can say why. Anything else that is not in a list is refused without a reason.
REFUSED: Mapping[str, str] = {
    "priority": "the gateway treats tenants alike",
    "request_id": "it names work of the engine, which other tenants have too",
    "session_id": "it ties requests together in the engine, across tenants",
    "vllm_xargs": "it reaches extensions of the engine, unchecked",
    "kv_transfer_params": "it moves cached prompts between engines",
    "ec_transfer_params": "it moves cached media between engines",
    "mm_processor_kwargs": "it configures how the model's code reads media",
    "media_io_kwargs": "it configures how the engine reads media",
    "mm_payload": "it serves other engines, not clients",
    "return_mm_kwargs": "it serves other engines, not clients",
    "prompt_embeds": "tensors are loaded by code that trusts them",
    "chat_template": "the template is part of the measured model",
    "truncate_prompt_tokens": "a prompt cut in silence would be another prompt",
    "truncation_side": "a prompt cut in silence would be another prompt",
    "watermarking": "the operator decides on watermarks",
    "stream_interval": "the operator decides how streams are cut",
    "routed_experts_prompt_start": "it shows the engine's inside",
    "previous_response_id": "nothing is stored between requests",
    "previous_input_messages": "messages go into `input`",
    "enable_response_messages": "it shows the engine's inside",
    "prompt_cache_retention": "the operator decides what is cached",
    "background": "nothing is stored between requests",
    "store": "nothing is stored between requests",
    "prompt": "no prompts are stored here, and this route takes no other",
    "data": "it is for plug-ins of the engine, and none is loaded",
}
# Values that leave things as they are, for clients that spell them out.
HARMLESS: Mapping[str, tuple[object, ...]] = {
    "background": (None, False),
    "previous_response_id": (None,),
    "priority": (None, 0),
    "prompt": (None,),
    "store": (None, False),
}
# Of OpenAI's API, without effect in vLLM, and without harm when they have none.
IGNORED = frozenset({"metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"})


def names(text: str, *more: frozenset[str]) -> frozenset[str]:
    """The words of a text, and more of them."""
    return frozenset(text.split()).union(*more)


_COMMON = names("model user cache_salt")  # the gateway itself may refuse cache_salt: see docs/access.md
_SAMPLING = names(
    """temperature top_p top_k min_p seed n stop stop_token_ids max_tokens min_tokens ignore_eos presence_penalty
    frequency_penalty repetition_penalty repetition_detection logit_bias allowed_token_ids bad_words use_beam_search
    length_penalty thinking_token_budget"""
)
_GENERATE = names(
    """stream stream_options logprobs prompt_logprobs logprob_token_ids echo response_format structured_outputs
    add_special_tokens include_stop_str_in_output skip_special_tokens spaces_between_special_tokens
    return_tokens_as_token_ids return_token_ids return_token_offsets""",
    _COMMON,
    _SAMPLING,
)
# Templates are the model's own: what they are filled with is the tenant's prompt.
_TEMPLATE = names("add_generation_prompt continue_final_message chat_template_kwargs")
# A text cut to fit is what users of embeddings ask for; a chat cut in silence would be another question, so only here.
_POOLING = names("truncate_prompt_tokens truncation_side padding use_activation", _COMMON)
_VECTOR = names("encoding_format embed_dtype endianness dimensions")
_MESSAGES = names("messages add_special_tokens", _TEMPLATE)
_SCORING = names("max_tokens_per_query max_tokens_per_doc instruction chat_template_kwargs", _POOLING)
_AUDIO = names(
    """file model language to_language hotwords prompt response_format stream stream_include_usage
    stream_continuous_usage_stats temperature top_p top_k min_p seed frequency_penalty presence_penalty repetition_penalty
    max_completion_tokens use_beam_search n length_penalty include_stop_str_in_output"""
)

ROUTES: Mapping[bytes, Route] = {
    b"/v1/models": Route(engine="/v1/models", kind=Kind.NOTHING),
    b"/v1/chat/completions": Route(
        engine="/v1/chat/completions",
        ending=DONE,
        fields=names(
            """messages tools tool_choice parallel_tool_calls max_completion_tokens top_logprobs reasoning_effort
            include_reasoning documents return_prompt_text""",
            _GENERATE,
            _TEMPLATE,
            IGNORED,
        ),
    ),
    b"/v1/completions": Route(
        engine="/v1/completions", ending=DONE, fields=names("prompt suffix", _GENERATE, IGNORED)
    ),
    b"/v1/responses": Route(
        engine="/v1/responses",
        ending=RESPONSE_COMPLETED,
        fields=names(
            """input instructions include text reasoning include_reasoning tools tool_choice parallel_tool_calls
            max_tool_calls max_output_tokens stream temperature top_p top_k min_p seed stop stop_token_ids ignore_eos
            presence_penalty frequency_penalty repetition_penalty logit_bias top_logprobs truncation structured_outputs
            skip_special_tokens include_stop_str_in_output chat_template_kwargs""",
            _COMMON,
            IGNORED,
        ),
    ),
    b"/v1/messages": Route(
        engine="/v1/messages",
        ending=MESSAGE_STOP,
        fields=names(
            """messages system max_tokens metadata output_config thinking stop_sequences stream temperature top_p top_k
            tools tool_choice chat_template_kwargs model cache_salt"""
        ),
    ),
    b"/v1/messages/count_tokens": Route(
        engine="/v1/messages/count_tokens",
        fields=names(
            "messages system output_config thinking tools tool_choice chat_template_kwargs model cache_salt"
        ),
    ),
    b"/v1/embeddings": Route(
        engine="/v1/embeddings", fields=names("input", _POOLING, _VECTOR, _MESSAGES, IGNORED)
    ),
    b"/v1/pooling": Route(engine="/pooling", fields=names("input task", _POOLING, _VECTOR, _MESSAGES)),
    b"/v1/classify": Route(engine="/classify", fields=names("input", _POOLING, _MESSAGES)),
    b"/v1/score": Route(
        engine="/score", fields=names("data_1 data_2 text_1 text_2 queries documents items", _SCORING)
    ),
    b"/v1/rerank": Route(engine="/rerank", fields=names("query documents top_n", _SCORING)),
    b"/v1/generative_scoring": Route(
        engine="/generative_scoring",
        fields=names("query items label_token_ids apply_softmax item_first add_special_tokens", _COMMON),
    ),
    b"/v1/tokenize": Route(
        engine="/tokenize",
        most=MAX_TEXT,
        fields=names("model prompt return_token_strs tools cache_salt", _MESSAGES),
    ),
    b"/v1/detokenize": Route(engine="/detokenize", most=MAX_TEXT, fields=names("model tokens cache_salt")),
    b"/v1/audio/transcriptions": Route(
        engine="/v1/audio/transcriptions",
        kind=Kind.FORM,
        ending=DONE,
        fields=names("timestamp_granularities[]", _AUDIO),
    ),
    b"/v1/audio/translations": Route(
        engine="/v1/audio/translations", kind=Kind.FORM, ending=DONE, fields=_AUDIO
    ),
}
#: `GET /v1/models/{model}`, which vLLM does not have: its entry of the list.
MODEL = Route(engine="/v1/models", kind=Kind.NOTHING)
_MODELS = b"/v1/models/"


def route_of(path: bytes) -> Route | None:
    """Where a request to this path goes, if anywhere."""
    return ROUTES.get(path) or (MODEL if path.startswith(_MODELS) else None)


def model_of(target: str) -> str:
    """Which model such a request is about. A name may have slashes, which clients send as they are, or as %2F."""
    return unquote(target.partition("?")[0][len(_MODELS) :])
