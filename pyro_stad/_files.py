r"""Files of tensors without pickle: safetensors, a JSON header, a checksum, atomic replacement.

The header's metadata holds one JSON document and the SHA-256 of everything else, so that a flipped
bit is an error and not a slightly different prior. Writing goes to a temporary file in the same
folder, is flushed to disk, and then replaces the old file, so that a kill or a full disk leaves
either the old file or the new one. The temporary file's name is the writer's own, so that any
number of threads and processes may write to one path; what a kill leaves of it, the next writer in
that folder takes away.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import secrets
import stat
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from pyro_stad.errors import CheckpointError

__all__ = ["read_tensors", "write_tensors"]

# A header is a few kilobytes; a length field of gigabytes is an attack or an accident.
_MAX_HEADER = 10_000_000


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], document: Any) -> None:
    """Write ``tensors`` and a JSON ``document`` to ``path``, atomically.

    A symbolic link stays one: what it points to is written. An older file passes its permissions
    on to the new one.

    Raises:
        OSError: if the folder can't be written to, or ``path`` is a folder, a device or a pipe; an
            older file at ``path`` stays as it was.
    """
    # Copies: safetensors refuses shared and non-contiguous storage, as moving averages have.
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    text = json.dumps(document, sort_keys=True, allow_nan=False)
    metadata = {"document": text, "sha256": _digest(plain, text)}
    payload = save_tensors(plain, metadata)
    try:
        target = Path(path).resolve()
        _replace(target, payload, _mode_of(target))
    except OSError as error:
        # The same kind of error, but of the file that the caller named.
        raise OSError(error.errno, error.strerror, str(path)) from error


def _mode_of(target: Path) -> int | None:
    """Return the permissions of a file that is to be replaced; None if there is none yet."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "it is a folder; expected the name of a file")
    if not stat.S_ISREG(mode):
        # Replacing /dev/null by a file breaks the machine for everybody.
        raise OSError(errno.EINVAL, "it is a device or a pipe; expected the name of a file")
    return stat.S_IMODE(mode)


def _replace(target: Path, payload: bytes, mode: int | None) -> None:
    """Put ``payload`` in the place of ``target``, whole or not at all."""
    _sweep(target.parent)
    # Not tempfile's: its permissions are the owner's alone, and the umask can't be asked for
    # without setting it for the whole process.
    token = secrets.token_hex(8)
    temporary = target.with_name(f"{_prefix()}{os.getpid()}.{token}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            temporary.chmod(mode)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _prefix() -> str:
    # The machine's name, because a number of a process says nothing on another machine.
    return f".pyro_stad.{platform.node()}."


def _sweep(folder: Path) -> None:
    """Remove what killed writers of this machine have left in ``folder``."""
    if os.name != "posix":
        return  # elsewhere, to ask for a process may end it
    for name in os.listdir(folder):
        if not (name.startswith(_prefix()) and name.endswith(".tmp")):
            continue
        number = name.removeprefix(_prefix()).partition(".")[0]
        if number.isdecimal() and not _is_alive(int(number)):
            (folder / name).unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True  # somebody else's, or no number of ours
    return True


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors and the document of a file written by ``write_tensors``.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is anything but an intact file of this format.
    """
    source = Path(path)
    if source.is_symlink():
        raise CheckpointError(
            f"{source} is a symbolic link; pass the file that it points to, {source.resolve()}"
        )
    if source.is_dir():
        raise CheckpointError(f"{source} is a folder; expected a file")
    if source.exists() and not source.is_file():
        # Opening a pipe waits for somebody to write into it.
        raise CheckpointError(f"{source} is a device or a pipe; expected a file")
    with source.open("rb") as file:
        _check_header_length(source, file.read(8))
    payload = source.read_bytes()
    try:
        tensors = load_tensors(payload)
        length = int.from_bytes(payload[:8], "little")
        metadata = json.loads(payload[8 : 8 + length])["__metadata__"]
        text, digest = metadata["document"], metadata["sha256"]
        document = json.loads(text)
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{source} is not a checkpoint of pyro_stad: {error}") from error
    if _digest(tensors, text) != digest:
        raise CheckpointError(f"{source} is damaged: its SHA-256 does not match its content")
    return tensors, document


def _check_header_length(source: Path, prefix: bytes) -> None:
    """Refuse, before reading on, what can't be a safetensors file."""
    length, size = int.from_bytes(prefix, "little"), source.stat().st_size
    if len(prefix) == 8 and length <= min(_MAX_HEADER, size - 8):
        return
    # A header of a plausible length that is cut may begin with the same byte as a pickle.
    plausible = len(prefix) == 8 and length <= _MAX_HEADER
    if (prefix[:1] == b"\x80" and not plausible) or prefix[:2] == b"PK":
        raise CheckpointError(
            f"{source} looks like a pickle or a torch.save archive, which is never loaded because "
            "it could run code; save with FlowPrior.save"
        )
    raise CheckpointError(
        f"{source} is not a checkpoint of pyro_stad, or is truncated: its header claims "
        f"{length} bytes, the file has {size}"
    )


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()
