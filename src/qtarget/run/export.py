"""`qtarget export RUN --to FOLDER|hub:NAME`: the trained model as others load it, with a model card."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from qtarget.config.parsers import export_parser
from qtarget.errors import QTargetError
from qtarget.files import replacing
from qtarget.model.fingerprint import model_folder
from qtarget.record.record import stored_result
from qtarget.run.exported_model import CHECKPOINT
from qtarget.run.model_card import model_card
from qtarget.units import in_bytes

HUB = "hub:"
CARD = "README.md"
SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model")
"""Of weights, configurations, templates and vocabularies. What else lies in a checkpoint (optimizer.pt) stays."""


def export(arguments: Sequence[str]) -> int:
    """Write or upload the model of a finished run. Returns 0; raises QTargetError for what the user has to mend."""
    options = export_parser().parse_args(arguments)
    run = exported_run(Path(options.run).expanduser())
    files = exported_files(run / CHECKPOINT)
    name = options.to.removeprefix(HUB)
    if not name:
        raise QTargetError("--to names a folder, or a repository of the hub as hub:OWNER/NAME")
    is_hub = options.to.startswith(HUB)
    folder = None if is_hub else _empty_folder(Path(name).expanduser().absolute())
    card = model_card(run, folder.name if folder else name)
    if options.dry_run:
        print(f"{options.to}, nothing is written:")
        print(*_listed(files, card), sep="\n")
    elif folder is None:
        print(f"uploaded to {_upload(files, card, name, private=not options.public)}")
    else:
        _write(files, card, folder)
        print(f"exported to {name}: {len(files) + 1} files, {in_bytes(_size(files, card))}")
    return 0


def exported_run(where: Path) -> Path:
    """The folder of a finished run with a checkpoint. Raises QTargetError, with what to do, for anything else.

    where: that folder, its checkpoint, or a folder with one such run.
    """
    run = where.parent if where.name == CHECKPOINT and (where.parent / "result.json").is_file() else where
    if not (run / "result.json").is_file():
        run = model_folder(str(where)).parent  # of the only finished run below it
        if not (run / "result.json").is_file():
            raise QTargetError(f"{where} is a model, and no run of qtarget: copy it as it is")
    result = stored_result(run) or {}
    if result.get("status") != "finished":
        raise QTargetError(
            f"{run} is {result.get('status')}: give its command again, which finishes it, then export it"
        )
    if (run / CHECKPOINT / "config.json").is_file():
        return run
    if result.get("task") == "evaluate":
        raise QTargetError(f"{run} evaluated a model and trained none: export the run that trained it")
    raise QTargetError(
        f"{run} has no {CHECKPOINT}/: it was trained with checkpoint.save=false, or the folder was removed. Remove "
        f"{run}, and train again with checkpoint.save=true"
    )


def exported_files(checkpoint: Path) -> dict[str, Path]:
    """Name in the model's folder → file. Raises QTargetError where there are no weights among them."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.suffix in SUFFIXES)
    if not any(path.suffix == ".safetensors" for path in files):
        raise QTargetError(f"{checkpoint} holds no safetensors: train again, or save the model as such")
    return {path.relative_to(checkpoint).as_posix(): path for path in files}


def _empty_folder(folder: Path) -> Path:
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise QTargetError(f"can't export to {folder}: {error.strerror}; name another folder") from error
    if taken:
        raise QTargetError(f"{folder} is there and isn't empty: name a new folder, or empty it")
    return folder


def _write(files: dict[str, Path], card: str, folder: Path) -> None:
    """All of it, or nothing."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replacing(folder) as scratch:
            for name, path in files.items():
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, scratch / name)
            (scratch / CARD).write_text(card, encoding="utf-8")
    except OSError as error:
        raise QTargetError(f"can't export to {folder}: {error}; nothing is left there") from error


def _upload(files: dict[str, Path], card: str, name: str, *, private: bool) -> str:
    """Upload to a repository that is new or holds nothing; returns its address.

    The weights are read from the run's folder, without a copy in between. The token is huggingface_hub's own affair.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    content: dict[str, str | bytes] = {**{path: str(file) for path, file in files.items()}, CARD: card.encode()}
    api = HfApi(library_name="qtarget")
    try:
        repository = api.create_repo(name, private=private, exist_ok=True)
        held = set(api.list_repo_files(repository.repo_id)) - {".gitattributes"}
        if held:
            raise QTargetError(f"{repository} holds {len(held)} files: name a new repository, or empty it")
        operations = [CommitOperationAdd(path, data) for path, data in content.items()]
        api.create_commit(repository.repo_id, operations, commit_message="Upload by qtarget export")
    except QTargetError:
        raise
    except Exception as error:  # of a network, the hub, or a name that is none
        told = str(error).replace(get_token() or "\0", "…")
        raise QTargetError(
            f"can't upload to {HUB}{name}: {told}. It needs a network and a token that may write (`hf auth login`, or "
            "HF_TOKEN); --dry-run shows what would be uploaded, and --to FOLDER needs neither"
        ) from error
    return str(repository)


def _listed(files: dict[str, Path], card: str) -> list[str]:
    sizes = {CARD: len(card.encode()), **{name: path.stat().st_size for name, path in files.items()}}
    return [*(f"  {name:<32}{in_bytes(size):>10}" for name, size in sizes.items()), "", card]


def _size(files: dict[str, Path], card: str) -> int:
    return len(card.encode()) + sum(path.stat().st_size for path in files.values())
