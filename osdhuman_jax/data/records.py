"""The packed record: one picture with its header, as `curate` writes it and training reads it.

Curation and training meet in this format and in nothing else: encoding and decoding stand here, for
both, free of JAX. A record holds its own digest, so that a damaged file is noticed at the picture
that is damaged.

Layout: magic "OHR" and a version byte, the header's length (uint32, little endian), the header
(JSON, UTF-8: crop_id, w, h, codec, sha256 of the picture's bytes; if known a caption, text), the
encoded picture (PNG, WebP or JPEG) to the end. Records lie in ArrayRecord files written with
"group_size:1,uncompressed".
"""

import hashlib
import json
import struct

from osdhuman_jax.config import Json

MAGIC = b"OHR"
VERSION = 1
# What the writer gives of a picture; sha256 is added here.
FIELDS = ("crop_id", "w", "h", "codec")
# Magic, version, the header's length in bytes.
_PREFIX = struct.Struct("<3sBI")


class RecordError(ValueError):
    """Bytes that are not a whole record, or a picture that is not the one that was packed."""


def encode_record(header: Json, payload: bytes) -> bytes:
    """Packs one encoded picture.

    Args:
        header: `FIELDS` and, if wanted, more JSON values; w and h in pixels. sha256 is computed.
        payload: the encoded picture.

    Raises:
        RecordError: a field is missing, or a sha256 was given that is not the payload's.
    """
    if missing := [name for name in FIELDS if name not in header]:
        raise RecordError(f"record header lacks {', '.join(missing)}")
    # A digest that came with the picture is proof that nothing happened to it on its way here.
    digest = hashlib.sha256(payload).hexdigest()
    if header.get("sha256", digest) != digest:
        raise RecordError(f"record {header['crop_id']}: sha256 given is not the payload's")
    text = json.dumps({**header, "sha256": digest}, separators=(",", ":")).encode()
    return _PREFIX.pack(MAGIC, VERSION, len(text)) + text + payload


def decode_record(data: bytes) -> tuple[Json, bytes]:
    """The header, sha256 included, and the encoded picture that `encode_record` packed.

    Raises:
        RecordError: bad magic, unknown version, truncated, bad header, digest mismatch.
    """
    header, start = _decode_header(data)
    # Checked at every reading: a disk may fail in the middle of a long run.
    payload = data[start:]
    if hashlib.sha256(payload).hexdigest() != header["sha256"]:
        raise RecordError(f"record {header['crop_id']}: picture damaged or cut, sha256 differs")
    return header, payload


def _decode_header(data: bytes) -> tuple[Json, int]:
    """The header and where the payload starts. Raises RecordError."""
    # From the outside in, so that the message names the first thing that is wrong.
    if not data.startswith(MAGIC):
        raise RecordError(f"not a record: starts with {data[:4]!r}, not {MAGIC!r}")
    if len(data) < _PREFIX.size:
        raise RecordError(f"truncated record: {len(data)} bytes")
    _, version, length = _PREFIX.unpack_from(data)
    if version != VERSION:
        raise RecordError(f"record version {version}; this program reads {VERSION}")
    # The length is believed only as far as there are bytes for it.
    end = _PREFIX.size + length
    if len(data) < end:
        raise RecordError(f"truncated record: {len(data)} bytes, the header ends at {end}")
    try:
        header = json.loads(data[_PREFIX.size : end])
    except ValueError as error:
        raise RecordError(f"record header is not JSON: {error}") from error
    if not isinstance(header, dict) or any(name not in header for name in (*FIELDS, "sha256")):
        raise RecordError(f"record header needs {', '.join(FIELDS)}, sha256")
    return header, end
