"""Configuration: dataclasses that check their own values, and how they are read from nested mappings.

A field is declared once, with its type, its legal values and one line that says what it is; reading a config file,
`launch.py --help` and docs/configuration.md all take it from there. Validation is pydantic's. A field of another
package's configuration is declared there: `llamo_jax.models.config`, `llamo_jax.training.config`,
`llamo_jax.evaluation.config`; here are those that several packages share.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError
from pydantic import StrictBool as Bool
from pydantic import StrictFloat as Float
from pydantic import StrictInt as Int
from pydantic import StrictStr as Text

T = TypeVar("T")

__all__ = [
    "Bool",
    "ConfigError",
    "DecodingConfig",
    "Float",
    "Int",
    "Kinds",
    "MeshConfig",
    "PromptConfig",
    "Text",
    "differences",
    "field_table",
    "from_dict",
    "setting",
    "settings",
    "to_dict",
]


class ConfigError(ValueError):
    """A configuration that cannot be run; the message says which key and what to do."""


def setting(description: str, *, default: Any = ..., **constraints: Any) -> Any:
    """A field of a configuration: what it is, and its limits (`ge`, `gt`, `le`, `lt`, as in pydantic's Field).

    Without `default` it must be given: architecture constants have no defaults.
    """
    return Field(default, description=description, **constraints)


@typing.dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(setting,))
def settings(cls: type[T]) -> type[T]:
    """A frozen dataclass whose values are checked when it is made: types, limits, no NaN, no unknown key.

    Raises ConfigError, in one line, wherever it is made. Numbers and texts are not converted into each other, and a
    text is no tuple of its characters.
    """
    checked = pydantic.dataclasses.dataclass(
        cls, frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False)
    )
    construct = checked.__init__

    @functools.wraps(construct)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            construct(self, *args, **kwargs)
        except ValidationError as error:
            raise ConfigError(_one_line(error, cls.__name__)) from None

    checked.__init__ = init  # type: ignore[method-assign]
    return typing.cast(type[T], checked)


class Kinds(typing.Generic[T]):
    """The configurations that can stand in one place, told apart by their field `kind`: an open, tagged union.

    `what` names the place in messages, such as "config.model.projector".
    """

    def __init__(self, what: str):
        self.what = what
        self._configs: dict[str, type[T]] = {}

    def register(self, config: type[T]) -> type[T]:
        """A class decorator, above `settings`; raises ValueError if another class has the same kind."""
        kind = config.kind  # type: ignore[attr-defined]
        if kind in self._configs:
            raise ValueError(f"{self.what}.kind={kind!r} is registered already, by {self._configs[kind].__name__}")
        self._configs[kind] = config
        return config

    def names(self) -> tuple[str, ...]:
        """Every registered kind."""
        return tuple(sorted(self._configs))

    def __getitem__(self, kind: str) -> type[T]:
        """The configuration class of a kind; raises ConfigError if there is none."""
        if not isinstance(kind, str) or kind not in self._configs:
            raise ConfigError(f"kind: {kind!r} is not one of {', '.join(self.names())}")
        return self._configs[kind]

    def parse(self, value: Any) -> T:
        """A configuration, or a mapping of one with its `kind`; raises ConfigError or pydantic's ValidationError."""
        if isinstance(value, tuple(self._configs.values())):
            return typing.cast(T, value)
        if not isinstance(value, Mapping) or "kind" not in value:
            raise ConfigError(f"kind: one of {', '.join(self.names())} must be given, got {str(value)[:60]!r}")
        parsed: T = TypeAdapter(self[value["kind"]]).validate_python(dict(value))
        return parsed

    def read(self, value: Any, path: str) -> T:
        """As `parse`, with one line that begins with `path` for everything that is wrong; raises ConfigError."""
        try:
            return self.parse(value)
        except ValidationError as error:
            raise ConfigError(_one_line(error, path)) from None

    def field(self) -> PlainValidator:
        """The annotation that makes a field of a `settings` class take any registered kind."""
        return PlainValidator(self.parse)


def from_dict(cls: type[T], values: Mapping[str, Any], path: str = "config") -> T:
    """An instance of the `settings` class `cls` from nested mappings.

    Raises ConfigError, in one line that names every wrong, missing or unknown key.

    >>> from_dict(MeshConfig, {"data": 1, "fsdp": -1, "tensor": 1})
    MeshConfig(data=1, fsdp=-1, tensor=1)
    >>> from_dict(MeshConfig, {"data": 1, "fsdp": "all", "tensors": 1})
    Traceback (most recent call last):
    llamo_jax.config.ConfigError: config.fsdp: input should be a valid integer, got 'all'; config.tensor is missing; ...
    """
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        raise ConfigError(_one_line(error, path)) from None


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dictionaries, ready for JSON; `from_dict` reads them back."""
    return dataclasses.asdict(config)


def differences(there: Mapping[str, Any], here: Mapping[str, Any], path: str = "config") -> list[str]:
    """Where two nested mappings differ: `config.a.b=1 (there 2)`, sorted; tuples equal lists, as in JSON."""
    found = []
    for key in sorted({*there, *here}):
        name, a, b = f"{path}.{key}", there.get(key), here.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, name)
        elif _listed(a) != _listed(b):
            found.append(f"{name}={b!r} (there {a!r})")
    return found


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


class FieldRow(typing.NamedTuple):
    """One field for people: its dotted path, type and limits, default ("" if there is none), and description."""

    path: str
    legal: str
    default: str
    description: str


def field_table(cls: Any, path: str = "config") -> list[FieldRow]:
    """Every field of a `settings` class and of those inside of it, in order."""
    rows: list[FieldRow] = []
    hints = typing.get_type_hints(cls, include_extras=True)
    for name, info in cls.__pydantic_fields__.items():
        inner = _settings_inside(hints[name])
        where = f"{path}.{name}"
        if inner:
            for each in inner:  # its kind first: what follows are the fields of that kind
                rows += sorted(field_table(each, where), key=lambda row: row.path != f"{where}.kind")
        else:
            default = "" if info.is_required() else repr(info.default)
            rows.append(FieldRow(where, _legal(hints[name], info.metadata), default, info.description or ""))
    return rows


def _settings_inside(hint: Any) -> list[Any]:
    """The `settings` classes that a field takes: several, where it takes any kind."""
    if typing.get_origin(hint) is Annotated:
        inner, *extras = typing.get_args(hint)
        for extra in extras:
            kinds = getattr(getattr(extra, "func", None), "__self__", None)
            if isinstance(kinds, Kinds):
                return [kinds[name] for name in kinds.names()]
        return _settings_inside(inner)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return [found for option in typing.get_args(hint) for found in _settings_inside(option)]
    return [hint] if hasattr(hint, "__pydantic_fields__") else []


_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def _legal(hint: Any, metadata: list[Any]) -> str:
    limits = [f"{sign} {getattr(each, name)}" for each in metadata for name, sign in _SIGNS.items()
              if getattr(each, name, None) is not None]  # fmt: skip
    return " ".join([_type_name(hint), *limits])


def _type_name(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _type_name(args[0])
    if origin is Literal:
        return " or ".join(str(each) or '""' for each in args)
    if origin is tuple:
        return f"tuple of {' and '.join(_type_name(each) for each in args if each is not ...)}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type_name(each) for each in args)
    return "None" if hint is type(None) else "text" if hint is str else hint.__name__


def _one_line(error: ValidationError, path: str) -> str:
    return " ".join("; ".join(_messages(error, path)).split())  # a value that is shown may have ends of lines


def _messages(error: ValidationError, path: str) -> list[str]:
    found = []
    for fault in error.errors():
        where = ".".join([path, *map(str, fault["loc"])])
        cause = fault.get("ctx", {}).get("error")
        if isinstance(cause, ValidationError):  # of a registered kind
            found += _messages(cause, where)
        elif fault["type"] == "missing":
            found.append(f"{where} is missing")
        elif fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            found.append(f"{where}: unknown key")
        elif cause is not None:
            found.append(f"{where}.{cause}")  # of __post_init__: the message begins with the field
        else:
            reason = fault["msg"][0].lower() + fault["msg"][1:]
            found.append(f"{where}: {reason}, got {str(fault['input'])[:60]!r}")
    return list(dict.fromkeys(found))


# Shared configurations


@settings
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1: all devices that are left."""

    data: Int = setting("replicas of the parameters; between slices of TPUs, only this axis", ge=-1)
    fsdp: Int = setting("devices that divide rows and parameters among them", ge=-1)
    tensor: Int = setting("devices that divide heads, MLP and vocabulary among them", ge=-1)

    def __post_init__(self) -> None:
        for axis, size in to_dict(self).items():
            if size == 0:
                raise ConfigError(f"{axis}=0: an axis of the mesh has at least one device (or -1: all that are left)")


@settings
class PromptConfig:
    """How a conversation becomes tokens; see data_pipeline.prompt."""

    style: Literal["plain", "llama2", "chat_template"] = setting("how turns are marked")
    show_smiles: Bool = setting("whether the prompt also shows the molecule's SMILES")
    show_graph: Bool = setting("whether it shows the graph tokens; False: a language model alone", default=True)


@settings
class DecodingConfig:
    """How answers are chosen, token by token; greedy unless said otherwise. Terms as in Hugging Face's transformers."""

    max_new_tokens: Int = setting("tokens of an answer, at most", default=128, ge=1, le=2**20)
    min_new_tokens: Int = setting("no stop token before so many others", default=0, ge=0)
    temperature: Float = setting(
        "0: the most probable token; else drawn from softmax(logits / t)", default=0.0, ge=0, le=1e3
    )
    top_k: Int = setting("draw among the k most probable; 0: all", default=0, ge=0, lt=2**31)
    top_p: Float = setting("draw among the most probable that reach this probability", default=1.0, gt=0, le=1)
    repetition_penalty: Float = setting(
        "above 1: tokens that are there already get less probable", default=1.0, gt=0, le=1e3
    )
    num_beams: Int = setting("above 1: beam search", default=1, ge=1, le=1024)
    length_penalty: Float = setting("beams compare by log-probability / length ** this", default=1.0, ge=-100, le=100)
    num_samples: Int = setting("answers to each prompt", default=1, ge=1, le=2**16)
    stop_ids: tuple[Int, ...] = setting("tokens that end an answer besides the prompt style's", default=())
    suppressed_ids: tuple[tuple[Int, Int], ...] = setting(
        "(first, last) of ids that are never chosen; those that the tokenizer lacks never are", default=()
    )
    seed: Int = setting("of what is drawn", default=0, ge=0, lt=2**32)

    def __post_init__(self) -> None:
        if any(not 0 <= index < 2**31 for index in self.stop_ids):
            raise ConfigError(f"stop_ids: {self.stop_ids} are not all ids of tokens")
        if any(not 0 <= first <= last < 2**31 for first, last in self.suppressed_ids):
            raise ConfigError(f"suppressed_ids: {self.suppressed_ids} are not all (first, last) of ids of tokens")
        rules = {
            "min_new_tokens must be at most max_new_tokens": self.min_new_tokens <= self.max_new_tokens,
            "num_beams above 1 draws nothing: set temperature=0": self.num_beams == 1 or self.temperature == 0,
            "num_samples must be at most num_beams, which gives that many": self.num_beams == 1
            or self.num_samples <= self.num_beams,
            "num_samples above 1 needs a temperature above 0 or as many beams": self.num_samples == 1
            or self.temperature > 0
            or self.num_beams > 1,
        }
        for rule, holds in rules.items():
            if not holds:
                raise ConfigError(rule)
