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


def check_columns(data: Any, columns: Sequence[str]) -> None:
    """Raises:
    KeyError: for a column that a data set does not have; the nearest is named."""
    for column in columns:
        if column not in data.column_names:
            near = difflib.get_close_matches(column, data.column_names, n=1, cutoff=0.0)
            raise KeyError(f"no column {column!r}; the nearest of {data.column_names} is {near[0]!r}")
