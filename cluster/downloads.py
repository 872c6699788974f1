"""Fetches models from the Hugging Face hub into a models directory, where replicas find them.

The directory has the layout of the hub's own cache. Files that are there are not fetched again; a
connection that breaks in the middle of one is resumed there, but a process that ends in the
middle of one begins it anew (huggingface_hub 2.4). The new files are complete before the name
`main` points to them, so that a replica that starts meanwhile loads the old ones.
"""

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.ai_models import AIModel
from cluster.errors import DownloadFailed, ModelNotFound
from deployments.loading import find_snapshot
from deployments.model_files import (
    CONFIG,
    INDEX,
    Repository,
    companions,
    files_to_load,
    has_weights,
    own_repository,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """Where from, and as whom."""

    endpoint: str
    token: str | None = field(repr=False)

    @classmethod
    def from_environment(cls) -> "Hub":
        """HF_ENDPOINT, and HF_TOKEN or the account that `hf auth login` has left here."""
        from huggingface_hub import constants, get_token

        endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
        return cls(endpoint=endpoint.rstrip("/"), token=get_token())


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What became of one repository on one machine."""

    model_id: str
    files: int = 0
    size_bytes: int = 0
    problem: str = ""
    """Empty where it is all there."""
    needed_by: tuple[str, ...] = ()
    """Entries of the aiModels.json."""

    def __str__(self) -> str:
        if self.problem:
            return f"{self.model_id}: {self.problem}; needed by {', '.join(self.needed_by)}"
        return f"{self.model_id}: {self.files} files, {self.size_bytes / 1e9:.2f} GB"


def fetch_all(models: Sequence[AIModel], models_dir: Path, *, hub: Hub) -> list[Fetched]:
    """Fetches every model and what goes with it; a problem with one keeps no other from it.

    On a terminal the hub's client shows a bar for each file.

    Args:
        models: those that Ray serves.
        models_dir: made if need be.
        hub: where from.
    """
    done: dict[Repository, Fetched] = {}

    def need(repository: Repository, model: AIModel) -> None:
        fetched = done.get(repository) or _fetched(repository, models_dir, hub)
        needed_by = (*fetched.needed_by, f"entry {model.entry} ({model.key})")
        done[repository] = replace(fetched, needed_by=needed_by)

    for model in models:
        own = own_repository(model.model_id)
        need(own, model)
        config = _config(own.id, models_dir)
        for companion in companions(model.pipeline, model.model_id, config):
            need(companion, model)
    return list(done.values())


def _fetched(repository: Repository, models_dir: Path, hub: Hub) -> Fetched:
    try:
        return fetch(repository, models_dir, hub=hub)
    except DownloadFailed as error:
        try:
            snapshot = find_snapshot(repository.id, models_dir, repo_type=repository.repo_type)
        except ModelNotFound:
            snapshot = None
        if snapshot and all((snapshot / file).is_file() for file in repository.files):
            problem = f"not brought up to date, {snapshot} is as it was: {error}"
        else:
            what = f"{', '.join(repository.files)} is " if repository.files else ""
            problem = f"{what}missing in {models_dir}: {error}"
        return Fetched(model_id=repository.id, problem=problem)


def fetch(repository: Repository, models_dir: Path, *, hub: Hub) -> Fetched:
    """Fetches one repository.

    Raises:
        DownloadFailed: it is not all there; the text says why and what helps.
    """
    from huggingface_hub import HfApi, hf_hub_download

    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        ask = api.dataset_info if repository.repo_type == "dataset" else api.model_info
        info = ask(repository.id, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}

        def get(file: str) -> Path:
            return Path(
                hf_hub_download(
                    repository.id,
                    file,
                    repo_type=repository.repo_type,
                    revision=info.sha,
                    cache_dir=models_dir,
                    endpoint=hub.endpoint,
                    token=hub.token,
                )
            )

        files = _wanted(repository, sizes, get)
        for file in files:
            get(file)
        name = f"{repository.repo_type}s--{repository.id.replace('/', '--')}"
        _point_main_to(str(info.sha), models_dir / name)
    except DownloadFailed:
        raise
    except Exception as error:
        raise _failure(error, repository, hub) from error
    return Fetched(
        model_id=repository.id, files=len(files), size_bytes=sum(sizes[file] for file in files)
    )


def _wanted(
    repository: Repository, there: Collection[str], get: Callable[[str], Path]
) -> Sequence[str]:
    """Which files to fetch.

    Raises:
        DownloadFailed: the repository has not what is needed.
    """
    if repository.files:
        if missing := [file for file in repository.files if file not in there]:
            raise DownloadFailed(f"the repository has no {', '.join(missing)}")
        return repository.files
    index = json.loads(get(INDEX).read_text()) if INDEX in there else None
    files = files_to_load(there, index=index)
    if not repository.weights:
        files = [file for file in files if not has_weights([file])]
    elif not has_weights(files):
        raise DownloadFailed("the repository has no weights in a form that is loaded here")
    return files


def _point_main_to(commit: str, repository: Path) -> None:
    refs = repository / "refs"
    refs.mkdir(exist_ok=True)
    new = refs / f".main.{os.getpid()}"
    new.write_text(commit)
    new.replace(refs / "main")


def _config(model_id: str, models_dir: Path) -> Mapping[str, Any]:
    """The model's config.json, if it is there and has one."""
    try:
        config: dict[str, Any] = json.loads(
            (find_snapshot(model_id, models_dir) / CONFIG).read_text()
        )
    except (ModelNotFound, OSError, ValueError):
        return {}
    return config


def _failure(error: Exception, repository: Repository, hub: Hub) -> DownloadFailed:
    """Puts into words what the hub's client raised."""
    from huggingface_hub import errors

    kind = "" if repository.repo_type == "model" else f"{repository.repo_type}s/"
    page = f"{hub.endpoint}/{kind}{repository.id}"
    if isinstance(error, errors.GatedRepoError):
        return DownloadFailed(
            f"its authors ask for consent: log in at {page}, accept, and set HF_TOKEN to a token "
            f"of that account ({'this one has no access' if hub.token else 'none is set'})"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return DownloadFailed(
            f"there is no {page}, or it is private: check the model_id, or set HF_TOKEN to a "
            "token that may read it"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return DownloadFailed("HF_HUB_OFFLINE is set; unset it to download")
    if isinstance(error, errors.HfHubHTTPError):
        return DownloadFailed(f"{hub.endpoint} answered {error.response.status_code}")
    if isinstance(error, errors.LocalEntryNotFoundError) or not isinstance(error, OSError):
        return DownloadFailed(f"no answer from {hub.endpoint} ({_cause(error)})")
    return DownloadFailed(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
