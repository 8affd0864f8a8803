"""Data sets of others: from a folder, or by a name on the Hub where a download is allowed."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def opened(source: str | Path, split: str, hub: bool = False, streaming: bool = False) -> Any:
    """One split of a data set; no code of a repository is run.

    Args:
        source: a folder (images in a folder per class, parquet, JSON lines or CSV files, or what
            `save_to_disk` wrote) or, with `hub`, a name.
        streaming: rows are read as they are met, and nothing is held.

    Raises:
        FileNotFoundError: for a path that is no folder. ValueError: for a name without `hub`, or a split that
            it does not have.
    """
    import datasets

    folder = Path(source)
    if not folder.is_dir():
        looks_like_a_path = (
            isinstance(source, Path) or folder.suffix or str(source).startswith((".", "/", "~"))
        )
        if looks_like_a_path or not hub:
            hint = "" if looks_like_a_path else " (a name on the Hub needs a download to be allowed)"
            raise FileNotFoundError(f"{source} is no folder{hint}")
        return datasets.load_dataset(str(source), split=split, streaming=streaming)
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        saved = datasets.load_from_disk(str(folder))
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise ValueError(f"{folder} has no split {split!r}; there are {', '.join(saved)}")
            saved = saved[split]
        return saved.to_iterable_dataset() if streaming else saved
    return datasets.load_dataset(str(folder), split=split, streaming=streaming)


def wanted(what: str, possible: Sequence[str], asked: Sequence[str]) -> list[str]:
    """Those of the possible parts of a benchmark that are asked for, in its order; all where none is.

    Raises:
        ValueError: for a part that it does not have; the nearest is named.
    """
    for part in asked:
        if part not in possible:
            near = difflib.get_close_matches(part, possible, n=1, cutoff=0.0)[0]
            raise ValueError(f"{what} has no {part!r}; the nearest is {near!r}. It has {', '.join(possible)}")
    return [part for part in possible if not asked or part in asked]


def parts(
    root: str | Path, names: Sequence[str], aliases: dict[str, str], needed: Sequence[str], option: str
) -> dict[str, Path]:
    """The folder of each part of a benchmark; letters and digits alone tell which is which.

    Args:
        names: what its parts are called. aliases: other names, in small letters and digits.
        needed: the parts that have to be there.
        option: with which some of them alone are asked for, for the error.

    Raises:
        FileNotFoundError: for a root that is no folder, and for parts without one.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder")

    def plain(name: str) -> str:
        return "".join(c for c in name.lower() if c.isalnum())

    known = {plain(name): name for name in names} | aliases
    there = {known.get(plain(f.name), f.name): f for f in sorted(root.iterdir()) if f.is_dir()}
    missing = [name for name in needed if name not in there]
    if missing:
        has = ", ".join(f.name for f in there.values()) or "nothing"
        some = ",".join([name for name in needed if name in there] or needed[:2])
        raise FileNotFoundError(
            f"{root} has no folder for {', '.join(missing)}; it has {has}. Some alone are asked for as in "
            f"'{option}={some}'"
        )
    return {name: there[name] for name in needed}


def check_columns(data: Any, columns: Sequence[str]) -> None:
    """Raises:
    KeyError: for a column that a data set does not have; the nearest is named."""
    for column in columns:
        if column not in data.column_names:
            near = difflib.get_close_matches(column, data.column_names, n=1, cutoff=0.0)
            raise KeyError(f"no column {column!r}; the nearest of {data.column_names} is {near[0]!r}")
