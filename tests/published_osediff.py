"""OSEDiff and what it is made of, small and random, as its authors' homes have it.

files = osediff_files(folder)           # (source, name) -> bytes, of homes.toml's sources
serve(hub, files); table(hub, path, files)    # on this machine, and the table that says so
"""

import hashlib
import json
from pathlib import Path

import make_weights as made
import torch
from loopback_hub import Hub

from osdhuman_jax.weights.homes import read_homes

Files = dict[tuple[str, str], bytes]
MIRRORS = ("gone/sd21", "copy/sd21")  # the first has nothing


def osediff_files(folder: Path) -> Files:
    """Every file that the package's table lists for OSEDiff."""
    nets = made.networks()
    made.diffusers_folder(folder / "sd", nets)
    tokenizer = folder / "sd" / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(made.VOCAB)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n" + "\n".join(made.MERGES) + "\n")
    ram = {**made.ram_encoder(made.swin()), **made.ram_head()}
    for name in ("ram", "dape", "osediff"):
        (folder / name).mkdir()
    torch.save({"model": ram | made.ram_extras()}, folder / "ram" / "ram_swin_large_14m.pth")
    torch.save(made.dape_state(ram), folder / "dape" / "DAPE.pth")
    tags = made.tag_folder(folder / "tags")
    (tags / "ram_tag_list_threshold.txt").write_text("\n".join(["0.68"] * made.TAGS))
    torch.save(made.osediff(nets), folder / "osediff" / "osediff.pkl")  # last: it changes `nets`
    sources = read_homes()["osediff"].sources
    return {
        (name, file.name): (folder / source.folder / file.name).read_bytes()
        for name, source in sources.items()
        for file in source.files
    }


def serve(hub: Hub, files: Files) -> None:
    """Stable Diffusion in a repository, the rest on a plain server."""
    for (source, name), data in files.items():
        repository = MIRRORS[1] if source in ("sd21", "clip") else ""
        hub.put(repository, name, data)


def table(hub: Hub, path: Path, files: Files) -> Path:
    """The package's table with this machine's homes; digests are known of all but OSEDiff's."""
    sources = read_homes()["osediff"].sources
    lines = ["[models.osediff]", f"sources = {json.dumps(list(sources))}", "bytes = 3_000_000"]
    for name, source in sources.items():
        lines += [f"[sources.{name}]", f'title = "{source.title}"', f'folder = "{source.folder}"']
        lines += [f'licence = "{source.licence}"', f'licence_link = "{source.licence_link}"']
        hubs = [f'{{hub = "{mirror}", seen = "here"}}' for mirror in MIRRORS]
        plain = [f'{{url = "{hub.plain}", seen = "here"}}']
        lines += [f"homes = [{', '.join(hubs if name in ('sd21', 'clip') else plain)}]"]
        for file in source.files:
            data = files[name, file.name]
            lines += [f"[[sources.{name}.files]]", f'name = "{file.name}"']
            if name != "osediff":
                digest = hashlib.sha256(data).hexdigest()
                lines += [f"bytes = {len(data)}", f'sha256 = "{digest}"', 'known = "here"']
    path.write_text("\n".join(lines) + "\n")
    return path
