"""What is demanded of every plugin class."""

from __future__ import annotations

import inspect
import json
from typing import Any

from pydantic import BaseModel, ValidationError

from certframe import protocols
from certframe.protocols import KINDS
from certframe.testing.kit import NotApplicable, Subject, check, require

_UNKNOWN = "surely_no_option_is_called_this"


def _options_class(subject: Subject) -> type[BaseModel]:
    found = getattr(subject.cls, "Options", None)
    require(isinstance(found, type) and issubclass(found, BaseModel),
            "the class has no Options: nest `class Options(certframe.Options)` in it, empty if need be")
    return found  # type: ignore[return-value]


@check(*KINDS, static=True)
def options_class(subject: Subject) -> None:
    """The class carries a pydantic model `Options`: the command line, files and documentation are made from it."""
    _options_class(subject)


@check(*KINDS, static=True)
def docstring(subject: Subject) -> None:
    """The class has a docstring of its own: its first line is what `certframe describe` shows."""
    text = inspect.cleandoc(vars(subject.cls).get("__doc__") or "")
    require(bool(text.strip()), "the class has no docstring of its own: say in one line what it does")


@check(*KINDS, static=True)
def unknown_option(subject: Subject) -> None:
    """An unknown option is refused: a misspelt one would otherwise be ignored without a word."""
    try:
        _options_class(subject).model_validate({**subject.options, _UNKNOWN: 1})
    except ValidationError as error:
        named = any(_UNKNOWN in (*problem["loc"], problem["msg"]) for problem in error.errors())
        require(named, f"an unknown option gives an error that does not name it: {error.errors()[0]['msg']}")
        return
    require(False, "Options accepts an unknown key: inherit from certframe.Options, or set extra='forbid'")


@check(*KINDS, static=True)
def options_described(subject: Subject) -> None:
    """Every option has a description: it is all that a user is told about it."""
    fields = _options_class(subject).model_fields
    bare = [name for name, field in fields.items() if not (field.description or "").strip()]
    require(not bare, f"no description for {', '.join(bare)}: use Field(…, description=…)")


@check(*KINDS, static=True)
def options_stored(subject: Subject) -> None:
    """Options survive being stored as JSON: a run keeps them, and is resumed and repeated from what it kept."""
    cls = _options_class(subject)
    try:
        options = cls.model_validate(subject.options)
    except ValidationError as error:
        raise NotApplicable("there are no valid options to store: see the check 'constructs'") from error
    stored = json.dumps(options.model_dump(mode="json"))
    try:
        back = cls.model_validate(json.loads(stored))
    except ValidationError as error:
        problem = error.errors()[0]
        require(False, f"option {'.'.join(map(str, problem['loc']))} cannot be read back from JSON: {problem['msg']}")
    require(json.dumps(back.model_dump(mode="json")) == stored, f"options read back from JSON differ: {stored}")


@check(*KINDS, static=True)
def argument_option(subject: Subject) -> None:
    """`argument`, where there is one, names an option: it takes what follows the colon in ``name:argument``."""
    name = getattr(subject.cls, "argument", None)
    require(name is None or name in _options_class(subject).model_fields, f"argument = {name!r} is not an option")


@check(*KINDS, static=True)
def execution_option(subject: Subject) -> None:
    """`execution`, where there is one, names options: they are left out of what identifies a result."""
    unknown = set(getattr(subject.cls, "execution", ())) - _options_class(subject).model_fields.keys()
    require(not unknown, f"execution names {', '.join(sorted(map(repr, unknown)))}, which is not an option")


@check(*KINDS, static=True)
def constructs(subject: Subject) -> None:
    """``cls(cls.Options(…))`` works, with the defaults or with what ``conformance_options`` returns."""
    try:
        subject.build()
    except ValidationError as error:
        problem = error.errors()[0]
        require(False, f"Options({', '.join(subject.options) or 'defaults'}) is refused: "
                       f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}; when options are needed, give the "
                       "class a classmethod conformance_options(directory)")


def _members(protocol: Any) -> list[str]:
    return [name for name in {**getattr(protocol, "__annotations__", {}), **vars(protocol)}
            if name != "Options" and not name.startswith("_")]


@check(*KINDS)
def members(subject: Subject) -> None:
    """The class has every attribute and method of its protocol; class variables are on the class itself."""
    protocol = getattr(protocols, subject.kind.capitalize())
    missing = [name for name in _members(protocol) if not hasattr(subject.instance, name)]
    require(not missing, f"lacks {', '.join(missing)} of certframe.{protocol.__name__}")
    hints = inspect.get_annotations(protocol, eval_str=False)
    on_instance = [name for name, hint in hints.items() if str(hint).startswith("ClassVar")
                   and not hasattr(subject.cls, name)]
    require(not on_instance, f"{', '.join(on_instance)} must be set on the class, so that they can be read without "
                             "constructing it")
    for name in _members(protocol):
        if inspect.isfunction(getattr(protocol, name, None)):
            require(callable(getattr(subject.instance, name)), f"{name} is not a method")
