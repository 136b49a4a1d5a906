"""What is wrong with a recipe, in one line per mistake: where, what was found, what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails


def suggestion(word: str, known: Iterable[str]) -> str:
    """The sentence that asks about the nearest known word, or nothing if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


def explain(error: ValidationError, root: type[BaseModel], source: str) -> str:
    """One line for each mistake that pydantic found in the recipe named `source`."""
    lines = (_line(root, details) for details in error.errors(include_url=False))
    return "\n".join(f"{source}: {line}" for line in dict.fromkeys(lines))


def _line(root: type[BaseModel], details: ErrorDetails) -> str:
    path, owner = _walk(root, details["loc"])
    where, found, context = ".".join(path), details["input"], details.get("ctx", {})
    match details["type"]:
        case "extra_forbidden":
            keys = list(owner.model_fields)
            return f"{where}: unknown key.{suggestion(path[-1], keys)} Keys: {', '.join(keys)}"
        case "missing":
            return f"{where}: missing. {owner.model_fields[path[-1]].description}"
        case "union_tag_not_found":
            return f"{where}.type: missing. One of: {', '.join(_members(owner, path[-1]))}"
        case "union_tag_invalid":
            names = list(_members(owner, path[-1]))
            return (
                f"{where}.type: unknown {context['tag']}.{suggestion(context['tag'], names)} One of: {', '.join(names)}"
            )
        case "literal_error":
            names = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
            return f"{where}: unknown {found}.{suggestion(str(found), names)} One of: {', '.join(names)}"
        case "option":
            return f"{where}.{context['key']}: {details['msg']}"
        case "value_error":
            return f"{where}: {context['error']}" if where else str(context["error"])
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{where}: found {found!r}, expected keys with values"
        case _:
            return f"{where}: found {found!r}, {details['msg'].replace('Input should be', 'expected')}"


def _walk(root: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[list[str], type[BaseModel]]:
    """A location as the recipe writes it, and the section to which its last part belongs.

    Pydantic names the chosen member of a discriminated union in its locations; a recipe does not.
    """
    path: list[str] = []
    owner: type[BaseModel] = root
    members: dict[str, type[BaseModel]] = {"": root}
    for part in map(str, loc):
        if len(members) > 1:
            members = {"": members[part]}
            continue
        owner = members.get("", owner)
        members = _members(owner, part)
        path.append(part)
    return path, owner


def _members(owner: type[BaseModel], key: str) -> dict[str, type[BaseModel]]:
    """The sections a key of `owner` may hold: by ``type`` if there are several, under "" if there is one."""
    field = owner.model_fields.get(key)
    sections = list(_sections(field.annotation)) if field else []
    if len(sections) == 1:
        return {"": sections[0]}
    return {section.model_fields["type"].default: section for section in sections}


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)
