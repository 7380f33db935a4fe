r"""Files of tensors without pickle: safetensors, a JSON header, a checksum, atomic replacement.

The header's metadata holds one JSON document and the SHA-256 of everything else, so that a flipped
bit is an error and not a slightly different prior. Writing goes to a temporary file in the same
folder, is flushed to disk, and then replaces the old file, so that a kill or a full disk leaves
either the old file or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
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

    Raises:
        OSError: if the folder can't be written to; an older file at ``path`` stays as it was.
    """
    # Copies: safetensors refuses shared and non-contiguous storage, as moving averages have.
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    text = json.dumps(document, sort_keys=True, allow_nan=False)
    metadata = {"document": text, "sha256": _digest(plain, text)}
    payload = save_tensors(plain, metadata)
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        # The same kind of error, but of the file that the caller named.
        raise OSError(error.errno, error.strerror, str(target)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
    with source.open("rb") as file:
        _check_header_length(source, file.read(8))
    payload = source.read_bytes()
    try:
        tensors = load_tensors(payload)
        length = int.from_bytes(payload[:8], "little")
        metadata = json.loads(payload[8 : 8 + length])["__metadata__"]
        text, digest = metadata["document"], metadata["sha256"]
        document = json.loads(text)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
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
