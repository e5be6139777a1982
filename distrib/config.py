"""How every daemon takes its settings: file, environment, flags; and how it refuses them.

A settings model is a frozen subclass of :class:`Settings`. Values come, strongest first, from
flags (given as a dictionary), the environment (``<PREFIX>_SECTION__KEY``), a TOML file, and the
defaults. Unknown keys and wrong values are refused with the key, the value and what is allowed.
``as_toml`` is what ``--dump-config`` prints: every key with the value in force and its meaning.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from distrib.errors import ConfigInvalid

AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]
"""A path that is taken from where the daemon was started, and then means the same to everybody."""


class Section(BaseModel):
    """A table of a settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(BaseSettings):
    """Base of the daemons' settings models. Subclasses set ``ENV_PREFIX``."""

    ENV_PREFIX: ClassVar[str] = "DISTRIB"

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_nested_delimiter="__", case_sensitive=False
    )

    @classmethod
    def load(
        cls,
        *,
        file: Path | None = None,
        flags: Mapping[str, object] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """Read the settings.

        ``file`` is TOML (none: no file); ``flags`` maps dotted keys (``"api.port"``) to values,
        None meaning not given; ``environ`` is the environment (default: the process's).
        Raises ConfigInvalid naming source, key, value and what is allowed.
        """
        environment = dict(os.environ if environ is None else environ)
        from_file = {} if file is None else _read_toml(file)
        from_env = cls._read_environment(environment)
        from_flags = _unflatten({k: v for k, v in (flags or {}).items() if v is not None})
        merged = _merge(_merge(from_file, from_env), from_flags)
        sources = {"flags": from_flags, "environment": from_env, str(file): from_file}
        try:
            return cls(**merged)
        except ValidationError as error:
            raise _refusal(error, sources) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Everything is merged in ``load``, so that a refusal can name its source."""
        return (init_settings,)

    @classmethod
    def _read_environment(cls, environ: Mapping[str, str]) -> dict[str, Any]:
        prefix = f"{cls.ENV_PREFIX}_"
        mine = {k: v for k, v in environ.items() if k.upper().startswith(prefix)}
        source = EnvSettingsSource(cls, env_prefix=prefix, env_nested_delimiter="__")
        source.env_vars = {k.lower(): v for k, v in mine.items()}
        known = set(_environment_names(cls, prefix))
        for name in sorted(mine):
            if name.upper() not in known:
                raise ConfigInvalid(
                    f"environment: unknown variable {name}",
                    hint=f"known are {', '.join(sorted(known))}",
                    key=name,
                )
        try:
            return dict(source())
        except ValueError as error:
            raise ConfigInvalid(
                f"environment: {error}", hint="a list or table is given as JSON"
            ) from None

    def as_toml(self) -> str:
        """All keys with the value in force, each under its meaning as a comment."""
        return "\n".join(_toml_lines(type(self), self.model_dump(mode="json"), "")) + "\n"


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigInvalid(f"{file}: no such settings file", hint="check --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{file}: {error}", hint="make it a readable UTF-8 file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigInvalid(f"{file}: {error}", hint="settings files are TOML 1.0") from None


def _unflatten(flat: Mapping[str, object]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for dotted, value in flat.items():
        *path, last = dotted.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[last] = value
    return tree


def _merge(weak: dict[str, Any], strong: dict[str, Any]) -> dict[str, Any]:
    merged = dict(weak)
    for key, value in strong.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            merged[key] = _merge(below, value)
        else:
            merged[key] = value
    return merged


def _section(annotation: Any) -> type[BaseModel] | None:
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_model else None


def _rows(annotation: Any) -> type[BaseModel] | None:
    """The model of a list of tables."""
    return _section(get_args(annotation)[0]) if get_origin(annotation) is list else None


def _environment_names(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for key, field in model.model_fields.items():
        name = f"{prefix}{key}".upper()
        yield name
        section = _section(field.annotation)
        if section is not None:
            yield from _environment_names(section, f"{name}__")


def _refusal(error: ValidationError, sources: Mapping[str, dict[str, Any]]) -> ConfigInvalid:
    first = error.errors(include_url=False)[0]
    loc = [str(part) for part in first["loc"]]
    key = ".".join(loc) or "settings"
    source = next((name for name, tree in sources.items() if _has(tree, loc)), "settings")
    if first["type"] == "missing":
        return ConfigInvalid(f"{key} is not set", hint="it has no default: set it", key=key)
    if first["type"] == "extra_forbidden":
        return ConfigInvalid(
            f"{source}: unknown key {key}", hint="--dump-config prints every key", key=key
        )
    return ConfigInvalid(
        f"{source}: {key} = {first['input']!r}: {first['msg']}",
        hint="--dump-config prints every key with its meaning",
        key=key,
    )


def _has(tree: object, path: list[str]) -> bool:
    for part in path:
        if not isinstance(tree, dict) or part not in tree:
            return isinstance(tree, list)
        tree = tree[part]
    return True


def _toml_lines(model: type[BaseModel], values: Mapping[str, Any], path: str) -> Iterator[str]:
    sections = []
    tables = []
    for key, field in model.model_fields.items():
        section, rows = _section(field.annotation), _rows(field.annotation)
        if section is not None:
            sections.append((key, section))
            continue
        if rows is not None:
            tables.append((key, rows, field.description))
            continue
        if field.description:
            yield f"# {field.description}"
        value = values[key]
        yield f"# {key} is not set" if value is None else f"{key} = {_toml_value(value)}"
    for key, section in sections:
        name = f"{path}{key}"
        yield f"\n[{name}]"
        yield from _toml_lines(section, values[key], f"{name}.")
    for key, rows, description in tables:
        name = f"{path}{key}"
        yield f"\n# {description or key}: one table each"
        if not values[key]:
            # An empty list here would forbid to write tables behind it.
            yield f"# [[{name}]]"
        for row in values[key]:
            yield f"[[{name}]]"
            yield from _toml_lines(rows, row, f"{name}.")


def _toml_value(value: object) -> str:
    if isinstance(value, dict):
        # TOML has no null: what is not set is left out.
        inner = ", ".join(
            f"{json.dumps(k)} = {_toml_value(v)}" for k, v in value.items() if v is not None
        )
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list):
        return f"[{', '.join(_toml_value(v) for v in value)}]"
    return json.dumps(value)
