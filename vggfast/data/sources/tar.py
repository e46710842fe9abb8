"""The samples of a shard: which members of a tar file are pictures, which are labels, and which belong together.

A picture and a label are a sample if they have one name but for their endings: "track 2.0.png" and "track 2.0.cls".
What has no partner by that rule is taken as WebDataset has it, by the name up to its first dot: "photo.input.png" with
"photo.cls", or "photo.jpg" with "photo.target.cls", as long as there is one picture and one label of that name.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import tarfile
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

from vggfast.data.sources.listing import SUFFIXES, LeftOut, ending_of, is_hidden
from vggfast.io import on_one_line

_LABELS = (".cls", ".json")
_MOST_LABEL = 1 << 24  # bytes
_MOST_LINKS = 40  # one after another
_MOST_PADDING = 16 << 20  # bytes of zeros behind the end that are looked at


class Sample(NamedTuple):
    """A picture, where its bytes lie in the shard, and its label."""

    name: str
    offset: int
    size: int
    label: int


def scan(shard: str) -> tuple[list[Sample], LeftOut]:
    """The samples of a shard in its order, and what is left out.

    Raises:
        OSError, ValueError: no tar file, one that is damaged or cut off, a picture without a label or a label without a
            picture, two of one name, a label that is no number; the text names the shard and the member.
    """
    with open(shard, "rb") as file:
        members, again = _members(shard, file)
        left_out, pictures, labels = LeftOut(), {}, {}
        for name in (*members, *again):
            ending = ending_of(name)
            if is_hidden(name):
                left_out.other("hidden")
            elif ending in SUFFIXES:
                pictures[name] = _place(shard, members, name)
            elif ending in _LABELS:
                labels[name] = _label(shard, file, _place(shard, members, name), name)
            else:
                left_out.file(name)
    if not pictures:
        but = f" but {left_out.others['hidden']} hidden members" if left_out.others["hidden"] else ""
        raise ValueError(
            f"{on_one_line(shard)} must have images, names that end in one of {', '.join(SUFFIXES)}, got none{but}"
        )
    found = _pairs(shard, pictures, labels, left_out)
    return [Sample(name, *place, found[name]) for name, place in pictures.items()], left_out


# ---- the tar file -------------------------------------------------------------------------------------------------


def _members(shard: str, file: BinaryIO) -> tuple[dict[str, tarfile.TarInfo], list[str]]:
    """The members of a tar file but its folders, by their names without "./" and the like; names that come again."""
    size = os.fstat(file.fileno()).st_size
    members: dict[str, tarfile.TarInfo] = {}
    again, last = [], ""
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                last = member.name
                if member.size < 0 or (_is_plain(member) and member.offset_data + member.size > size):
                    raise tarfile.ReadError(f"{last} ends behind the file's end")
                name = posixpath.normpath(last)
                if not member.isdir():
                    again += [name] if name in members else []
                    members[name] = member
            end = archive.offset
    except (tarfile.TarError, ValueError, ArithmeticError, LookupError, EOFError) as error:
        what = f"damaged or cut off, {last} is its last member" if last else "not an uncompressed tar file"
        raise ValueError(on_one_line(f"{shard}: {what} ({error})")) from error
    if twice := next((name for name in again if ending_of(name) in (*SUFFIXES, *_LABELS)), None):
        raise ValueError(on_one_line(f"{shard} must have each name once, got {twice} twice"))
    _check_end(shard, file, end, last)
    return members, again


def _is_plain(member: tarfile.TarInfo) -> bool:
    """Whether its bytes lie in the file as they are."""
    return member.isreg() and not member.issparse()


def _check_end(shard: str, file: BinaryIO, end: int, last: str) -> None:
    """Raises ValueError where something else than the end of a tar file, blocks of zeros, stands behind its members.

    tarfile takes a header that is damaged or cut off for the end.
    """
    file.seek(end)
    rest = file.read(tarfile.BLOCKSIZE)
    if len(rest) < tarfile.BLOCKSIZE:
        raise ValueError(
            on_one_line(f"{shard}: cut off behind {last or 'its begin'}: the end of a tar file is not there")
        )
    for _ in range(_MOST_PADDING // (1 << 20)):
        if rest.strip(b"\0"):
            raise ValueError(
                on_one_line(
                    f"{shard}: from byte {end} on, behind {last}, is neither a member nor the end of a tar file: it is "
                    "damaged, or another tar file has been appended"
                )
            )
        end, rest = end + len(rest), file.read(1 << 20)


def _place(shard: str, members: Mapping[str, tarfile.TarInfo], name: str) -> tuple[int, int]:
    """Offset and size of a member's bytes; of a link, those of what it leads to."""
    member = members[name]
    for _ in range(_MOST_LINKS):
        if not (member.islnk() or member.issym()):
            break
        target = member.linkname if member.islnk() else posixpath.join(posixpath.dirname(member.name), member.linkname)
        if posixpath.normpath(target) not in members:
            raise ValueError(on_one_line(f"{shard}:{name} is a link to {member.linkname}, which is not in the shard"))
        member = members[posixpath.normpath(target)]
    if not _is_plain(member):
        raise ValueError(on_one_line(f"{shard}:{name} must be a regular file without holes, and is not"))
    return member.offset_data, member.size


# ---- labels -------------------------------------------------------------------------------------------------------


def _label(shard: str, file: BinaryIO, place: tuple[int, int], name: str) -> int | str:
    """The number that a label holds; or what is wrong with a .json, which may be something else than a label."""
    offset, size = place
    file.seek(offset)
    content = file.read(min(size, _MOST_LABEL + 1))
    is_json = ending_of(name) == ".json"
    try:
        value = _json_label(content) if is_json else int(content) if re.fullmatch(rb"\s*[+-]?\d+\s*", content) else None
        if type(value) is int and -(2**63) <= value < 2**63:
            return value
    except (ValueError, RecursionError):
        pass
    expected = 'a JSON object with a whole number "label"' if is_json else "a whole number"
    said = on_one_line(f"{shard}:{name} must be {expected}, got {content[:40]!r}")
    if not is_json:
        raise ValueError(said)
    return said


def _json_label(content: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if [name for name, _ in pairs].count("label") > 1:
            raise ValueError("two labels")
        return dict(pairs)

    found = json.loads(content, object_pairs_hook=unique)
    return found.get("label") if isinstance(found, dict) else None


def _pairs(
    shard: str, pictures: Mapping[str, Any], labels: Mapping[str, int | str], left_out: LeftOut
) -> dict[str, int]:
    """{picture: its label}."""
    by_key: dict[str, str] = {}
    for name in pictures:
        if (other := by_key.setdefault(_stem(name), name)) != name:
            raise ValueError(on_one_line(f"{shard} must have one picture of each name, got {other} and {name}"))
    said: dict[str, dict[str, int | str]] = {}
    for name, label in labels.items():
        said.setdefault(_stem(name), {})[name] = label
    for key, (lonely, others) in _by_first_dot(by_key, said).items():
        waiting = [stem for stem in others if any(type(label) is int for label in said[stem].values())]
        if len(lonely) == len(waiting) == 1 and key in (*lonely, *waiting):
            by_key[waiting[0]] = by_key.pop(lonely[0])
        elif lonely and waiting:
            both = ", ".join(
                [*(by_key[stem] for stem in lonely), *(name for stem in waiting for name in said[stem])][:6]
            )
            raise ValueError(on_one_line(f"{shard} must have one picture and one label of each name, got {both}"))
    found = {}
    for key, name in by_key.items():
        found[name] = _one_label(shard, name, said.pop(key, {}), left_out)
    for names_of_label in said.values():
        for name, label in names_of_label.items():
            if isinstance(label, int):
                raise ValueError(
                    on_one_line(f"{shard}:{name} must be the label of a picture of its name, got no picture")
                )
            left_out.file(name)
    return found


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _by_first_dot(pictures: Mapping[str, str], labels: Mapping[str, Any]) -> dict[str, tuple[list[str], list[str]]]:
    """By their names up to the first dot: the keys of pictures without a label, and of labels without a picture."""
    groups: dict[str, tuple[list[str], list[str]]] = {}
    for place, (own, others) in enumerate(((pictures, labels), (labels, pictures))):
        for key in own:
            if key not in others:
                folder, base = posixpath.split(key)
                short = posixpath.join(folder, base.partition(".")[0])
                groups.setdefault(short, ([], []))[place].append(key)
    return groups


def _one_label(shard: str, picture: str, said: Mapping[str, int | str], left_out: LeftOut) -> int:
    """The label of a picture, by its .cls, its .json, or both; a .json beside a .cls may be something else."""
    numbers = {name: label for name, label in said.items() if isinstance(label, int)}
    if not said:
        raise ValueError(on_one_line(f"{shard}:{picture} must have a .cls or .json of its name, got no label"))
    if not numbers:
        raise ValueError(next(str(label) for label in said.values()))
    if len({*numbers.values()}) > 1:
        both = " and ".join(f"{name} with {label}" for name, label in numbers.items())
        raise ValueError(on_one_line(f"{shard}:{picture} must have one label, got {both}"))
    for name in said.keys() - numbers.keys():
        left_out.file(name)
    return next(iter(numbers.values()))
