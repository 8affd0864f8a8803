"""The Hub: a saved adapter as a repo, through huggingface_hub. A folder never touches the network."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from arr_coc._version import __version__
from arr_coc.adapters import saving
from arr_coc.adapters.checks import inner_folder, known_names


@dataclass(frozen=True)
class Source:
    """Where a saved adapter is: a folder, or a repo of the Hub.

    Args:
        place: a folder, or a repo id; a string that is no folder is a repo id, a Path never is.
        subfolder: of the folder or repo.
        revision: branch, tag or commit of a repo.
        token: for a private repo; True for the one that was logged in with.
        cache_dir: where files of repos are kept.
        local_files_only: take a repo from the cache alone.
        endpoint: address of the Hub; by default huggingface_hub's (HF_ENDPOINT).
    """

    place: str | Path
    subfolder: str = ""
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    endpoint: str | None = None

    @property
    def where(self) -> str:
        """In words, for messages."""
        at = f" at {self.revision}" if self.revision else ""
        return f"{self.place}{'/' if self.subfolder else ''}{self.subfolder}{at}"


def read(source: Source, names: Sequence[str] | None = None) -> tuple[saving.Header, list[saving.Saved]]:
    """The header of a saved set, and its adapters: those named, all by default.

    Raises:
        FileNotFoundError: if there is no such folder or repo, no such revision, or a file is not in it.
        ValueError: for a name that is not in the set, a subfolder that leads elsewhere, damaged files.
    """
    inner = inner_folder(source.subfolder)
    if Path(source.place).is_dir() or isinstance(source.place, Path):
        return _gather(Path(source.place) / inner, names, lambda _: None)
    root, commit = _download(source, inner, "", saving.CONFIG, source.revision)

    def fetch(folder: str) -> None:
        for file in saving.FILES:
            _download(source, inner, folder, file, commit)

    return _gather(root / inner, names, fetch)


def _gather(
    folder: Path, names: Sequence[str] | None, fetch: Callable[[str], None]
) -> tuple[saving.Header, list[saving.Saved]]:
    header = saving.read_header(folder)
    chosen = header.adapters if names is None else known_names(names, header.adapters)
    found = []
    for name in chosen:
        inner = "" if name == header.name else name
        fetch(inner)
        found.append(saving.read(folder / inner))
        if found[-1].header.name != name:
            raise ValueError(
                f"{folder / inner} is damaged: it holds {found[-1].header.name!r}, and {name!r} is expected"
            )
    return header, found


def _download(source: Source, inner: str, folder: str, file: str, revision: str | None) -> tuple[Path, str]:
    """Fetch one file; returns the root of the repo's snapshot, and its commit."""
    path = "/".join(part for part in (inner, folder, file) if part)
    try:
        found = hf_hub_download(
            repo_id=str(source.place),
            filename=path,
            revision=revision,
            token=source.token,
            cache_dir=source.cache_dir,
            local_files_only=source.local_files_only,
            endpoint=source.endpoint,
            library_name="arr-coc",
            library_version=__version__,
        )
    except HFValidationError as error:
        raise FileNotFoundError(
            f"{source.place!r} is no folder, and no repo id of the Hub ('owner/name') either"
        ) from error
    except GatedRepoError as error:
        raise FileNotFoundError(
            f"the repo {source.place} is gated: ask for access there ({error})"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{source.place} is no folder, and the Hub has no such repo (a private one needs a token)"
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"the repo {source.place} has no revision {source.revision!r}") from error
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{path} of {source.where} is not in the cache"
            + ("" if source.local_files_only else ", and the Hub could not be reached")
        ) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(
            f"the repo {source.where} holds no {path}; one that push_to_hub wrote is needed"
        ) from error
    root = Path(found).parents[path.count("/")]
    return root, root.name


def push(
    write: Callable[[Path], Any],
    repo_id: str,
    *,
    subfolder: str = "",
    revision: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    endpoint: str | None = None,
) -> CommitInfo:
    """Create the repo where there is none, and upload what `write` puts into a folder.

    Args:
        write: saves the adapters to the folder that it is given.
        repo_id: "owner/name", or a name of one's own.
        subfolder: of the repo, to upload to.
        revision: branch to upload to, made where there is none.
        private: whether a new repo is.
        token, endpoint: as in `Source`.
        create_pr: open a pull request instead.

    Raises:
        ValueError: for a subfolder that leads elsewhere or a repo id that cannot be.
        huggingface_hub.errors.HfHubHTTPError: what the Hub refuses.
    """
    inner = inner_folder(subfolder)
    api = HfApi(endpoint=endpoint, token=token, library_name="arr-coc", library_version=__version__)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "adapter"
        write(folder)  # first, so that what cannot be saved makes no repo
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(made.repo_id, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            path_in_repo=inner or None,
            revision=revision,
            commit_message=commit_message or "Upload arr-coc adapter",
            create_pr=create_pr,
        )
